"""The opened forms: scan, cond and remat, rebuilt around a body that is swept by hand.

Each is rebuilt from the public function it came from, so JAX differentiates it as it always does: the same
residuals, the same hoisting, the same remat policy. The sweep of the body is handed in. What is written down
inside comes out beside the results: with a step axis from a scan, with zeros from branches not taken.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .. import _jaxpr
from .graph import Graph, Node
from .types import PyTree

#: Zeros by which records leave on the way back, by index of the node.
Carriers: TypeAlias = Mapping[int, PyTree]


class Written(NamedTuple):
    """What was written down on the way out.

    Attributes:
        records: what the recorder wrote, by index of the node.
        values: values kept as they are, by id.
        branches: the branch taken, by index of the cond.
    """

    records: dict[int, PyTree]
    values: dict[int, Any]
    branches: dict[int, Any]

    @classmethod
    def nothing(cls) -> "Written":
        return cls({}, {}, {})

    def take(self, other: "Written") -> None:
        for mine, its in zip(self, other, strict=True):
            mine.update(its)


#: The sweep of a graph: (graph, operands, carriers) -> (outputs, what was written).
Sweep: TypeAlias = Callable[[Graph, Sequence[Any], Carriers], tuple[list[Any], Written]]
#: An opened node: (operands, carriers) -> (outputs, what was written).
Opened: TypeAlias = Callable[[Sequence[Any], Carriers], tuple[list[Any], Written]]


def open_node(node: Node, sweep: Sweep) -> Opened:
    """An opened node as a function, its body swept by `sweep`."""
    form = _jaxpr.opened_form(node.eqn)
    match form:
        case _jaxpr.Scan():
            return lambda operands, carriers: _scan(node, form, sweep, operands, carriers)
        case _jaxpr.Cond():
            return lambda operands, carriers: _cond(node, sweep, operands, carriers)
        case _jaxpr.Remat():
            return lambda operands, carriers: _remat(node, form, sweep, operands, carriers)
        case _:
            raise AssertionError(f"{node.primitive} has no opened form")


def _inside(graph: Graph, carriers: Carriers) -> dict[int, PyTree]:
    return {index: carrier for index, carrier in carriers.items() if index in graph.indices}


def _scan(
    node: Node, form: _jaxpr.Scan, sweep: Sweep, operands: Sequence[Any], carriers: Carriers
) -> tuple[list[Any], Written]:
    (body,) = node.graphs
    first, last = form.num_consts, form.num_consts + form.num_carry
    consts, carry, xs = operands[:first], operands[first:last], operands[last:]

    def step(carry: Any, slices: Any) -> Any:
        xs, step_carriers = slices
        outs, written = sweep(body, [*consts, *carry, *xs], step_carriers)
        return outs[: form.num_carry], (outs[form.num_carry :], written)

    carry, (ys, written) = jax.lax.scan(
        step,
        list(carry),
        (list(xs), _inside(body, carriers)),
        length=form.length,
        reverse=form.reverse,
        unroll=form.unroll,
    )
    return [*carry, *ys], written


def _cond(node: Node, sweep: Sweep, operands: Sequence[Any], carriers: Carriers) -> tuple[list[Any], Written]:
    index, *rest = operands
    inside = [_inside(graph, carriers) for graph in node.graphs]

    def shapes(graph: Graph, number: int) -> Any:
        return jax.eval_shape(lambda r, c: sweep(graph, r, c[number])[1], rest, inside)

    written_by = [shapes(graph, number) for number, graph in enumerate(node.graphs)]

    def branch(number: int) -> Callable[..., Any]:
        def run(rest: list[Any], inside: list[Carriers]) -> Any:
            outs, written = sweep(node.graphs[number], rest, inside[number])
            for other, structs in enumerate(written_by):
                if other != number:
                    written.take(jax.tree.map(_zeros, structs))
            return outs, written

        return run

    branches = [branch(number) for number in range(len(node.graphs))]
    outs, written = jax.lax.switch(index, branches, rest, inside)
    written.branches[node.index] = jax.lax.stop_gradient(index)
    return outs, written


def _zeros(struct: jax.ShapeDtypeStruct) -> Any:
    return jnp.asarray(_jaxpr.zeros(struct))


def _remat(
    node: Node, form: _jaxpr.Remat, sweep: Sweep, operands: Sequence[Any], carriers: Carriers
) -> tuple[list[Any], Written]:
    (body,) = node.graphs

    def run(operands: list[Any], inside: Carriers) -> Any:
        return sweep(body, operands, inside)

    remat = jax.checkpoint(run, policy=form.policy, prevent_cse=form.prevent_cse)
    return remat(list(operands), _inside(body, carriers))
