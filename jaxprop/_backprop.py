"""One pass: a traced call is planned, evaluated forward, differentiated by JAX, and put on a tape."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from . import _jaxpr
from ._seed import ONE
from ._tracing import Traced
from .core.graph import Graph, Node, Value
from .core.interpreter import Interpreter, Plan
from .core.recorders import Recorder
from .core.rules import Rule, Rules, match_rules
from .core.selectors import Selector, matches, select
from .core.structure import loop_constants
from .core.types import Argnums, Array, NodeIndex, PyTree, ValueId
from .record.batching import Recording, recording
from .record.tape import Static, Tape

#: The selector of all nodes.
EVERY = "*"

#: Records every cotangent unchanged.
_FULL = Recorder.each(cotangent=lambda ct: ct)


@dataclass(frozen=True, eq=False)
class Pass:
    """What one pass does: the plan of its evaluation, and how its records are put together.

    Attributes:
        plan: what is asked for, by node.
        recording: the recorder at the watched nodes.
        watched: indices of the recorded nodes.
        is_full: whether values and cotangents are kept unchanged.
    """

    plan: Plan
    recording: Recording
    watched: frozenset[NodeIndex]
    is_full: bool

    @property
    def graph(self) -> Graph:
        return self.plan.graph

    @property
    def rules(self) -> Mapping[NodeIndex, Rule]:
        return self.plan.rules


def make_plan(traced: Traced, nodes: Selector | None, record: Recorder | None, rules: Rules) -> Pass:
    """Plan a pass. `record` None keeps values and cotangents unchanged; `Recorder()` records nothing.

    Raises:
        ValueError: a selector matches no node, or a rule only nodes that no cotangent can reach.
    """
    graph, matched = _with_rules(traced, rules)
    if record is not None and record.forward is None and record.backward is None:
        return plan_at(graph, [], record, matched)
    if nodes is None:
        stated = graph.indices if record is None else graph.stated
        watched = [node for node in _recordable(graph) if node.active and node.index in stated]
    else:
        watched = _watched(graph, nodes)
    return plan_at(graph, watched, record, matched)


def plan_at(
    graph: Graph, watched: Sequence[Node], record: Recorder | None, rules: Mapping[NodeIndex, Rule]
) -> Pass:
    """Plan a pass from nodes: which are recorded, and which have a rule."""
    recorder = recording(_FULL if record is None else record, graph, watched, frozenset(rules))
    kept = _needed_by(graph, watched) if record is None else frozenset()
    plan = Plan(graph, rules, recorder.forward, recorder.backward, kept)
    return Pass(plan, recorder, frozenset(node.index for node in watched), record is None)


def run(traced: Traced, planned: Pass, seed: list[PyTree], argnums: Argnums) -> Tape:
    """Evaluate a plan forward, let JAX differentiate the evaluation, and put the tape together.

    Raises:
        ValueError: a cotangent reaches a `while`.
    """
    plan = planned.plan
    interpreter = Interpreter(plan)
    seeded = [i for i, ct in enumerate(seed) if ct is not None]

    def forward(points: list[Array], carriers: Any) -> PyTree:
        outputs, recorded = interpreter.run(plan.graph, [*points, *traced.program.consts], carriers)
        return [outputs[i] for i in seeded], (outputs, recorded)

    roots, pull, (outputs, recorded) = jax.vjp(forward, traced.points, plan.carriers(), has_aux=True)
    for i, root in zip(seeded, roots, strict=True):
        if seed[i] is ONE:
            # Not a constant to XLA: it would evaluate statistics of constant cotangents at compile time.
            seed[i] = jax.lax.optimization_barrier(jnp.ones_like(root))
    point_cts, backward = pull([seed[i] for i in seeded])
    groups, where = planned.recording.gather(recorded.records, backward, interpreter.arrived)
    leaves = traced.outputs.merge(outputs)
    grads = jax.tree.unflatten(traced.point_tree, point_cts)
    return Tape(
        value=traced.outputs.value(leaves),
        aux=traced.outputs.aux(leaves),
        grads=grads if isinstance(argnums, tuple | list) else grads[0],
        seed=seed,
        _records=groups,
        _values=recorded.values,
        _branches=recorded.branches,
        _static=Static(
            graph=plan.graph,
            rules=tuple(sorted(plan.rules.items())),
            watched=planned.watched,
            where=tuple(sorted(where.items(), key=repr)),
            is_full=planned.is_full,
        ),
    )


# --- rules ------------------------------------------------------------------------------------------------


def _with_rules(traced: Traced, rules: Rules) -> tuple[Graph, dict[NodeIndex, Rule]]:
    """The rule of each node, and the graph in which rules replace derivatives that are zero (`round`).

    They do so for nodes that a selector names: `*` means every node that the chain rule propagates through.
    """
    matched = {
        index: rule
        for index, rule in match_rules(traced.graph, rules).items()
        if not _holds_reference(traced.graph.by_index[index])
    }
    named = [where for where, _ in rules if where != EVERY]
    uncut = frozenset(
        node.index
        for node in traced.graph.walk()
        if node.index in matched
        and not node.active
        and node.eqn is not None
        and any(matches(where, node) for where in named)
    )
    graph = traced.graph_with(uncut) if uncut else traced.graph
    _check_rules_live(graph, rules)
    return graph, matched


def _check_rules_live(graph: Graph, rules: Rules) -> None:
    for where, _ in rules:
        picked = select(graph, where)
        live = any(node.active and not _holds_reference(node) for node in picked)
        if not live and where != EVERY:
            raise ValueError(
                f"the rule for {where!r} has no effect: no cotangent reaches {picked[0].where}"
                f"{' or the other nodes it matches' if len(picked) > 1 else ''}. It is on no path from a "
                "differentiated argument to the result."
            )


def _holds_reference(node: Node) -> bool:
    """Whether a node reads or produces a mutable reference: those are left to JAX."""
    return any(_jaxpr.is_ref(value.aval) for value in (*node.operands, *node.outputs))


# --- what is recorded --------------------------------------------------------------------------------------


def is_active(node: Node) -> bool:
    """Select every node that a cotangent can reach."""
    return node.active


def _recordable(graph: Graph) -> Iterator[Node]:
    constants = loop_constants(graph) | {node.index for node in graph.fixed}
    for node in graph.walk():
        opened = all(parent.opened for parent, _ in graph.places[node.index].parents)
        if opened and node.index not in constants and not _holds_reference(node):
            yield node


def _watched(graph: Graph, nodes: Selector) -> list[Node]:
    """The nodes that a selector matches, as far as they can be recorded."""
    if nodes is is_active:  # may match nothing
        return [node for node in _recordable(graph) if node.active]
    if isinstance(nodes, tuple | list) and not nodes:
        return []
    picked = {node.index for node in select(graph, nodes)}
    return [node for node in _recordable(graph) if node.index in picked]


def _needed_by(graph: Graph, watched: Sequence[Node]) -> frozenset[ValueId]:
    """Ids of the values that local gradients at the watched nodes need."""
    constants = {graph.by_index[i].outputs[0].id for i in loop_constants(graph)}
    values = (value for node in watched for value in (*node.operands, *node.outputs))
    return frozenset(value.id for value in values if value.literal is None) - constants


# --- the derivative between any two values -------------------------------------------------------------------


def derivative_between(traced: Traced, of: str, wrt: str, rules: Rules) -> Array:
    """The derivative of one value with respect to another: the cotangent of a carrier at `wrt`.

    Raises:
        ValueError: one of them has no derivative, or there is no path.
    """
    out, source = (_value_named(traced.graph, name) for name in (of, wrt))
    graph = traced.graph_between(source.id, out.id)
    if not graph.by_name[of].active:
        raise ValueError(f"{of!r} does not depend on {wrt!r}: there is no differentiable path between them.")
    graph = replace(graph, outputs=(out,))
    node = graph.by_name[wrt]
    watch: Recording = recording(_FULL, graph, [node])
    plan = Plan(graph, match_rules(graph, rules), backward=watch.backward)

    def forward(carriers: Any) -> PyTree:
        (result,), _ = Interpreter(plan).run(graph, traced.operands, carriers)
        return result

    value, pull = jax.vjp(forward, plan.carriers())

    def row(ct: Any) -> PyTree:
        return pull(ct)[0][node.index].parts[node.names.index(wrt)]

    if out.shape == ():
        return row(jnp.ones_like(value))
    size = math.prod(out.shape)
    rows = jax.vmap(row)(jnp.eye(size, dtype=value.dtype).reshape(size, *out.shape))
    return rows.reshape(*out.shape, *rows.shape[1:])


def _value_named(graph: Graph, name: str) -> Value:
    value = graph.value(name)
    if not _jaxpr.is_inexact(value.dtype):
        raise ValueError(f"{name!r} is {value.dtype}, which has no derivative: only floating point has one.")
    if value.literal is not None:
        raise ValueError(
            f"{name!r} is a plain Python number, which the function reads as it is: make it an array."
        )
    return value
