"""One pass: a plan for a traced call, run forward and back, and put on a tape."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from . import _jaxpr
from ._seed import ONE
from ._tracing import Traced
from .core.activity import Ends
from .core.graph import Graph, Node, Selector, Value, matches, select
from .core.interpreter import Plan, Sweep
from .core.rules import Recorder, Rule, Rules, match_rules
from .core.structure import loop_constants
from .record.batching import gather
from .record.tape import Static, Tape

#: The selector of all nodes.
EVERY = "*"


def make_plan(traced: Traced, nodes: Selector | None, recorder: Recorder, rules: Rules) -> Plan:
    """Say what is to be done where.

    Raises:
        ValueError: a selector matches nothing, or a rule only what no cotangent can reach.
    """
    matched = {
        index: rule
        for index, rule in match_rules(traced.graph, rules).items()
        if not _holds_reference(traced.graph.by_index[index])
    }
    graph = _with_rules(traced, matched, rules)
    _check_rules_live(graph, rules)
    watched = _watched(graph, nodes) if recorder.forward or recorder.backward else []
    kept: frozenset[int] = frozenset()
    if recorder.keeps_operands:
        kept = _kept(graph, watched)
        # Values are kept once, by id: what is left to record is the way back.
        recorder = replace(recorder, forward=None)
    return Plan(graph, recorder, frozenset(node.index for node in watched), matched, kept)


def _holds_reference(node: Node) -> bool:
    """Whether a node reads or makes a mutable reference: those are left to JAX."""
    return any(_jaxpr.is_ref(value.aval) for value in (*node.operands, *node.outputs))


def _with_rules(traced: Traced, matched: dict[int, Rule], rules: Rules) -> Graph:
    """The graph in which a rule stands in for a derivative that is zero (`round`, `stop_gradient`).

    That is for rules whose selector names the node: `*` means every node the chain rule crosses.
    """
    named = [where for where, _ in rules if where != EVERY]
    uncut = frozenset(
        node.index
        for node in traced.graph.walk()
        if node.index in matched
        and not node.active
        and node.eqn is not None
        and any(matches(where, node) for where in named)
    )
    return traced.build(uncut=uncut) if uncut else traced.graph


def _check_rules_live(graph: Graph, rules: Rules) -> None:
    for where, _ in rules:
        picked = select(graph, where)
        live = any(node.active and not _holds_reference(node) for node in picked)
        if not live and where != EVERY:
            raise ValueError(
                f"the rule for {where!r} would do nothing: no cotangent comes to {picked[0].where}"
                f"{' and the others it picks' if len(picked) > 1 else ''}. It lies on no path from a "
                "differentiated argument to the result."
            )


def _watched(graph: Graph, nodes: Selector | None) -> list[Node]:
    """The nodes the recorder looks at: by default all that a cotangent can reach."""
    constants = loop_constants(graph)
    fixed = {node.index for node in graph.fixed}
    open_to_us = [
        node
        for node in graph.walk()
        if all(parent.opened for parent, _ in graph.places[node.index].parents)
        and node.index not in constants | fixed
        and not _holds_reference(node)
    ]
    if nodes is None:
        return [node for node in open_to_us if node.active]
    if isinstance(nodes, tuple | list) and not nodes:
        return []
    picked = {node.index for node in select(graph, nodes)}
    return [node for node in open_to_us if node.index in picked]


def _kept(graph: Graph, watched: list[Node]) -> frozenset[int]:
    """Ids of the values that local gradients at the watched nodes need."""
    constants = {graph.by_index[i].outputs[0].id for i in loop_constants(graph)}
    return (
        frozenset(
            value.id for node in watched for value in (*node.operands, *node.outputs) if value.literal is None
        )
        - constants
    )


def run(traced: Traced, plan: Plan, seed: list[Any], argnums: Any) -> Tape:
    """Run a plan forward and back, and put the tape together.

    Raises:
        ValueError: a cotangent reaches a `while`.
    """
    outputs = traced.outputs
    sweep = Sweep(plan)
    carriers = plan.carriers()
    seeded = [i for i, ct in enumerate(seed) if ct is not None]

    def forward(points: list[Any], carriers: Any) -> Any:
        outs, written = sweep.run(plan.graph, [*points, *traced.program.consts], carriers)
        return [outs[i] for i in seeded], (outs, written)

    try:
        roots, pull, (outs, written) = jax.vjp(forward, traced.points, carriers, has_aux=True)
        for i, root in zip(seeded, roots, strict=True):
            if seed[i] is ONE:
                seed[i] = jnp.ones_like(root)
        point_cts, records = pull([seed[i] for i in seeded])
    except ValueError as error:
        if plan.guarded or not _is_while_error(error):
            raise
        # JAX says that there is such a loop, not which: the second time each speaks for itself.
        return run(traced, replace(plan, guarded=True), seed, argnums)
    leaves = outputs.merge(outs)
    grads = jax.tree.unflatten(traced.point_tree, point_cts)
    groups, where = gather(plan, written.records, _reached(plan, records, sweep.reached))
    return Tape(
        value=outputs.value(leaves),
        aux=outputs.aux(leaves),
        grads=grads if isinstance(argnums, tuple | list) else grads[0],
        seed=seed,
        _records=groups,
        _values=written.values,
        _branches=written.branches,
        _static=Static(
            graph=plan.graph,
            recorder=plan.recorder,
            rules=tuple(sorted(plan.rules.items())),
            watched=plan.watched,
            where=tuple(sorted(where.items(), key=repr)),
        ),
    )


def _reached(plan: Plan, records: Any, reached: set[tuple[int, int]]) -> dict[int, Any]:
    """What was written on the way back, None where no cotangent came: there the carriers are still zero."""
    if plan.recorder.per_value:
        return {
            index: tuple(x if (index, i) in reached else None for i, x in enumerate(record))
            for index, record in records.items()
        }
    came = {index for index, _ in reached}
    return {index: record for index, record in records.items() if index in came}


def _is_while_error(error: ValueError) -> bool:
    return "Reverse-mode differentiation does not work for lax.while_loop" in str(error)


def derivative_between(traced: Traced, of: str, wrt: str, rules: Rules) -> Any:
    """The derivative of one value with respect to another: the cotangent of a carrier at `wrt`.

    Raises:
        ValueError: one of them carries no derivative, or there is no path.
    """
    out, into = (_value_named(traced.graph, name) for name in (of, wrt))
    graph = traced.build(ends=Ends(frozenset({into.id}), frozenset({out.id})))
    if not graph.by_name[of].active:
        raise ValueError(f"{of!r} does not depend on {wrt!r}: there is no differentiable path between them.")
    graph = replace(graph, outputs=(out,))
    source = graph.by_name[wrt].index
    watch = Recorder.each(cotangent=lambda ct: ct)
    plan = Plan(graph, watch, frozenset({source}), match_rules(graph, rules))

    def forward(carriers: Any) -> Any:
        (result,), _ = Sweep(plan).run(graph, traced.operands, carriers)
        return result

    value, pull = jax.vjp(forward, plan.carriers())

    def row(ct: Any) -> Any:
        return pull(ct)[0][source][graph.by_name[wrt].names.index(wrt)]

    if out.shape == ():
        return row(jnp.ones_like(value))
    size = math.prod(out.shape)
    rows = jax.vmap(row)(jnp.eye(size, dtype=value.dtype).reshape(size, *out.shape))
    return rows.reshape(*out.shape, *rows.shape[1:])


def _value_named(graph: Graph, name: str) -> Value:
    value = graph.value(name)
    if not _jaxpr.is_inexact(value.dtype):
        raise ValueError(f"{name!r} is {value.dtype}, which carries no derivative: only floating point does.")
    if value.literal is not None:
        raise ValueError(
            f"{name!r} is a plain Python number, which the function reads as it is: make it an array."
        )
    return value
