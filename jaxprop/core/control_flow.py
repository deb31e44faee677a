"""scan, cond and remat, rebuilt around an interpreted body.

Each is rebuilt from the public function it came from, so JAX differentiates it as it always does: the same
residuals, the same hoisting, the same remat policy. The interpreter of the body is passed in. What is recorded
inside comes out as further results: with a step axis from a scan, as zeros from branches not taken.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .. import _jaxpr
from .graph import Graph, Node
from .types import Array, NodeIndex, PyTree, ValueId

#: Zeros by which records leave the backward pass, by index of the node.
Carriers: TypeAlias = Mapping[NodeIndex, PyTree]


class Recorded(NamedTuple):
    """What was recorded in the forward pass.

    Attributes:
        records: what the recorder recorded, by index of the node.
        values: values kept unchanged, by id.
        branches: the branch taken, by index of the cond.
    """

    records: dict[NodeIndex, PyTree]
    values: dict[ValueId, Array]
    branches: dict[NodeIndex, Array]

    @classmethod
    def nothing(cls) -> "Recorded":
        return cls({}, {}, {})

    def update(self, other: "Recorded") -> None:
        """Add what was recorded elsewhere."""
        self.records.update(other.records)
        self.values.update(other.values)
        self.branches.update(other.branches)


#: The results of a graph or a node, and what was recorded on the way.
Results: TypeAlias = tuple[list[Array], Recorded]
#: Evaluates a graph: (graph, operands, carriers) -> results.
Interpret: TypeAlias = Callable[[Graph, Sequence[Array], Carriers], Results]
#: Evaluates a node: (operands, carriers) -> results.
Evaluate: TypeAlias = Callable[[Sequence[Array], Carriers], Results]


def open_node(
    node: Node, interpret: Interpret, known: dict[NodeIndex, list[Recorded]] | None = None
) -> Evaluate:
    """Rebuild an opened node around its interpreted body.

    Args:
        known: the types of what the branches of each cond record. It is filled here, so that branches nested in
            branches are traced twice for each level, and not twice as often at each.
    """
    form = _jaxpr.opened_form(node.eqn)
    match form:
        case _jaxpr.Scan():
            return lambda operands, carriers: _scan(node, form, interpret, operands, carriers)
        case _jaxpr.Cond():
            types = {} if known is None else known
            return lambda operands, carriers: _cond(node, interpret, types, operands, carriers)
        case _jaxpr.Remat():
            return lambda operands, carriers: _remat(node, form, interpret, operands, carriers)
        case _:
            raise AssertionError(f"{node.primitive} has no opened form")


def _inside(graph: Graph, carriers: Carriers) -> dict[NodeIndex, PyTree]:
    return {index: carrier for index, carrier in carriers.items() if index in graph.indices}


def _scan(
    node: Node, form: _jaxpr.Scan, interpret: Interpret, operands: Sequence[Array], carriers: Carriers
) -> Results:
    (body,) = node.graphs
    first, last = form.num_consts, form.num_consts + form.num_carry
    consts, carry, xs = operands[:first], operands[first:last], operands[last:]

    def step(carry: list[Array], slices: tuple[list[Array], Carriers]) -> tuple[list[Array], Results]:
        xs, step_carriers = slices
        outputs, recorded = interpret(body, [*consts, *carry, *xs], step_carriers)
        return outputs[: form.num_carry], (outputs[form.num_carry :], recorded)

    carry, (ys, recorded) = jax.lax.scan(
        step,
        list(carry),
        (list(xs), _inside(body, carriers)),
        length=form.length,
        reverse=form.reverse,
        unroll=form.unroll,
    )
    return [*carry, *ys], recorded


def _cond(
    node: Node,
    interpret: Interpret,
    known: dict[NodeIndex, list[Recorded]],
    operands: Sequence[Array],
    carriers: Carriers,
) -> Results:
    """Evaluate a cond. All branches return one type: what only another one records is zero in it."""
    index, *rest = operands
    inside = [_inside(graph, carriers) for graph in node.graphs]

    def recorded_by(number: int, graph: Graph) -> Recorded:
        return jax.eval_shape(lambda r, c: interpret(graph, r, c[number])[1], rest, inside)

    if node.index not in known:
        known[node.index] = [recorded_by(number, graph) for number, graph in enumerate(node.graphs)]

    def branch(number: int) -> Callable[[list[Array], list[Carriers]], Results]:
        def run(rest: list[Array], inside: list[Carriers]) -> Results:
            outputs, recorded = interpret(node.graphs[number], rest, inside[number])
            for other, struct in enumerate(known[node.index]):
                if other != number:
                    recorded.update(jax.tree.map(lambda leaf: jnp.asarray(_jaxpr.zeros(leaf)), struct))
            return outputs, recorded

        return run

    branches = [branch(number) for number in range(len(node.graphs))]
    outputs, recorded = jax.lax.switch(index, branches, rest, inside)
    recorded.branches[node.index] = index
    return outputs, recorded


def _remat(
    node: Node, form: _jaxpr.Remat, interpret: Interpret, operands: Sequence[Array], carriers: Carriers
) -> Results:
    (body,) = node.graphs

    def run(operands: list[Array], inside: Carriers) -> Results:
        return interpret(body, operands, inside)

    prevent_cse: PyTree = form.prevent_cse
    if isinstance(prevent_cse, tuple):  # one for each operand; carriers are read by nobody
        prevent_cse = (list(prevent_cse), False)
    remat = jax.checkpoint(run, policy=form.policy, prevent_cse=prevent_cse)
    return remat(list(operands), _inside(body, carriers))
