"""The origin of NaN and Inf: which node made them, where, and what they spoil."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from .. import _jaxpr
from .._graph import Graph, Value
from .._tape import Tape
from .._views import BACK, OUT
from .._wiring import outside
from ._compiled import Run, on_host
from ._events import Event, events, given, loose_ends, read_counts, seeds, unseen
from ._made import is_float, made, moves
from ._reach import Counts, Site, Ways, ways


@dataclass(frozen=True)
class Origin:
    """An event, and what it spoils.

    Attributes:
        event: where bad numbers begin.
        leaves: paths of the differentiated leaves whose gradient it spoils.
        spoils_value: whether it spoils the value of the loss.
        nan: whether what begins here is NaN; else it is Inf alone.
    """

    event: Event
    leaves: tuple[str, ...]
    spoils_value: bool
    nan: bool

    @property
    def harmless(self) -> bool:
        return not (self.leaves or self.spoils_value)


def find_origins(run: Run, health: Tape) -> list[Origin]:
    """The origins of what is not finite, those that reach the gradient first; none for a healthy pass.

    Args:
        run: further passes at the same arguments.
        health: the tape of the first pass, recorded by `jaxprop.summary`, on the host.
    """
    if not _worth_looking(health):
        return []
    graph = health.graph
    counts = read_counts(graph, health, on_host(run(nodes=suspects(health), record=made)))
    edges = ways(graph, counts)
    found = [*seeds(graph, health.seed), *_merged(events(graph, counts))]
    origins = _first_causes(found, given(graph, counts), counts, edges)
    loose = loose_ends(graph, counts, edges, [*found, *origins])
    origins += [event for event in loose if event.kind == "sum" or _makes_nan(event, counts)]
    origins += _uncovered(graph, counts, edges, origins, [*found, *given(graph, counts), *loose])
    judged = [_judged(graph, event, counts, edges) for event in origins]
    kept = [origin for origin in judged if origin.nan or not origin.harmless]
    return sorted(kept, key=lambda origin: (not origin.leaves, origin.harmless, origin.event.order))


# --- what to look at ------------------------------------------------------------------------------


def _worth_looking(health: Tape) -> bool:
    """Whether the result or the gradient is not finite, or a NaN is hidden in between.

    An Inf in between is no fault: masks are made of it.
    """
    results = [x for x in jax.tree.leaves(health.value) if _jaxpr.is_inexact(_jaxpr.dtype_of(x))]
    if not all(np.all(np.isfinite(np.asarray(x, complex))) for x in results):
        return True
    for entry in health:
        if _hides_nan(entry.value) or _hides_nan(entry.cotangent):
            return True
        if entry.node.primitive == "input" and entry.cotangent is not None and np.any(entry.cotangent.nonfinite):
            return True
    return False


def _hides_nan(summary: Any) -> bool:
    return summary is not None and bool(np.any(np.isnan(summary.min) & (summary.nonfinite > 0)))


def suspects(health: Tape) -> frozenset[int]:
    """The nodes to be tested: next to something that is not finite, or not looked at before."""
    graph, bad = health.graph, set()
    for entry in health:
        if any(record is not None and np.any(record.nonfinite) for record in (entry.value, entry.cotangent)):
            bad.add(graph.value(entry.name).id)
    outer = outside(graph)

    def is_bad(value: Value) -> bool:
        return value.id in bad or (value.id in outer and is_bad(outer[value.id]))

    found = set()
    for node in graph.walk():
        hidden = any(is_float(value) and not value.active for value in node.outputs)
        if hidden or (not moves(node) and any(map(is_bad, (*node.operands, *node.outputs)))):
            found.add(node.index)
    return frozenset(found)


# --- which events are origins ---------------------------------------------------------------------


def _merged(found: Sequence[Event]) -> list[Event]:
    """One event for each node and way: the first, with the sites of all."""
    merged: dict[Any, Event] = {}
    for event in found:
        key = (event.half, event.node.index, event.kind)
        first = merged.get(key)
        merged[key] = event if first is None else replace(first, sites=(*first.sites, *event.sites))
    return list(merged.values())


def _first_causes(
    found: Sequence[Event], inputs: Sequence[Event], counts: Counts, edges: Ways
) -> list[Event]:
    """What is made of finite numbers; of what is made from Inf, only where nobody made the Inf."""
    makers = {site for event in found if event.kind in ("made", "seed") for site in event.sites}
    wrong = {site for event in inputs if not _meant(event, counts) for site in event.sites}
    kept = [event for event in found if event.kind in ("made", "seed")]
    for event in found:
        if event.kind == "from inf":
            behind = edges.behind((OUT, value.id) for value in event.node.operands)
            if not behind & (makers | wrong):
                kept.append(event)
    return kept + [event for event in inputs if not _meant(event, counts)]


def _meant(event: Event, counts: Counts) -> bool:
    """Whether what is not finite in an argument or constant may well be meant: minus infinity, as in masks."""
    out = counts.outs[event.node.index, 0]
    return not np.any(out.nan) and (event.node.primitive == "const" or not np.any(out.up))


def _uncovered(
    graph: Graph, counts: Counts, edges: Ways, origins: Sequence[Event], others: Sequence[Event]
) -> Iterator[Event]:
    """For ends no origin explains: the first of the other events that does, else the end itself."""
    ends = {*_leaf_sites(graph), *_result_sites(graph)}
    open_ends = {site for site in ends if np.any(counts.bad.get(site, 0))}
    for event in origins:
        open_ends -= edges.after(event.sites)
    for event in sorted(others, key=lambda event: event.order):
        reached = edges.after(event.sites) & open_ends
        if reached:
            open_ends -= reached
            yield event
    yield from (unseen(graph, site, counts) for site in sorted(open_ends))


# --- what an origin spoils -------------------------------------------------------------------------


def _judged(graph: Graph, event: Event, counts: Counts, edges: Ways) -> Origin:
    after = edges.after(event.sites)
    bad = {site for site in after if np.any(counts.bad.get(site, 0))}
    leaves = tuple(name for site, name in _leaf_sites(graph).items() if site in bad)
    return Origin(event, leaves, bool(bad & _result_sites(graph)), _makes_nan(event, counts))


def _leaf_sites(graph: Graph) -> Mapping[Site, str]:
    return {(BACK, value.id): value.name for value in graph.inputs if value.active}


def _result_sites(graph: Graph) -> set[Site]:
    return {(OUT, value.id) for value in graph.outputs if is_float(value)}


def _makes_nan(event: Event, counts: Counts) -> bool:
    if event.kind == "from inf":
        return True
    if event.half == BACK:
        return True
    out = counts.outs.get((event.node.index, event.position))
    return out is None or bool(np.any(out.nan))
