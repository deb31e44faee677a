"""The origin of NaN and Inf: which node made them, where, and what they spoil."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Value
from ...core.structure import outside
from ...record.aliases import BACK, OUT
from ...record.tape import Tape
from ..passes import Run, on_host
from .events import Event, events, given, loose_ends, read_counts, seeds, unseen
from .origin_test import is_float, made, moves
from .propagation import Counts, Site, Ways, ways
from .recorders import tally


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


@dataclass(frozen=True)
class Ends:
    """What has to be finite.

    Attributes:
        leaves: the cotangents of the differentiated leaves, with their names.
        results: the values returned, without the auxiliary ones.
    """

    leaves: Mapping[Site, str]
    results: frozenset[Site]

    @classmethod
    def of(cls, tape: Tape) -> "Ends":
        graph = tape.graph
        results = [value for value in graph.outputs[: len(tape.seed)] if is_float(value)]
        return cls(
            {(BACK, value.id): value.name for value in graph.inputs if value.active},
            frozenset((OUT, value.id) for value in results),
        )


def find_origins(run: Run, first: Tape) -> list[Origin]:
    """The origins of what is not finite, those that reach the gradient first; none for a healthy pass.

    Args:
        run: further passes at the same arguments.
        first: the tape of the first pass, recorded by `health`, on the host.
    """
    if not _worth_looking(first):
        return []
    counted = on_host(run(record=tally))
    graph = counted.graph
    counts = read_counts(graph, counted, on_host(run(nodes=suspects(counted), record=made)))
    edges = ways(graph, counts)
    ends = Ends.of(counted)
    found = [*seeds(graph, counted.seed), *_merged(events(graph, counts))]
    inputs = given(graph, counts)
    wrong = [event for event in inputs if not _meant(event, counts, run.leaf_names)]
    origins = _first_causes(found, wrong, edges)
    loose = loose_ends(graph, counts, edges, [*found, *origins])
    origins += [event for event in loose if event.kind == "sum" or _makes_nan(event, counts)]
    origins += _uncovered(graph, counts, edges, ends, origins, [*found, *inputs, *loose])
    judged = [_judged(event, counts, edges, ends) for event in origins]
    kept = [origin for origin in judged if not origin.harmless or (origin.nan and origin.event.kind in _MADE)]
    return sorted(kept, key=lambda origin: (not origin.leaves, origin.harmless, origin.event.order))


#: Of events that do no harm, only these are worth a note: a NaN that is given or written may be meant.
_MADE = ("made", "from inf")


# --- what to look at ------------------------------------------------------------------------------


def _worth_looking(first: Tape) -> bool:
    """Whether the result or the gradient is not finite, or a NaN is hidden in between.

    An Inf in between is no fault: masks are made of it.
    """
    results = [x for x in jax.tree.leaves(first.value) if _jaxpr.is_inexact(_jaxpr.dtype_of(x))]
    if not all(np.all(np.isfinite(np.asarray(x, complex))) for x in results):
        return True
    for entry in first:
        if _hides_nan(entry.value) or _hides_nan(entry.cotangent):
            return True
        if (
            entry.node.primitive == "input"
            and entry.cotangent is not None
            and not np.all(np.isfinite(entry.cotangent.top))
        ):
            return True
    return False


def _hides_nan(record: Any) -> bool:
    return record is not None and bool(np.any(np.isnan(record.squares)))


def suspects(counted: Tape) -> frozenset[int]:
    """The nodes to be tested: next to something that is not finite, or not looked at before."""
    graph, bad = counted.graph, set()
    for entry in counted:
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


def _first_causes(found: Sequence[Event], wrong: Sequence[Event], edges: Ways) -> list[Event]:
    """What is made of finite numbers; of what is made from Inf, only where nobody made the Inf."""
    kept = [*(event for event in found if event.kind in ("made", "seed")), *wrong]
    producers = {site for event in kept for site in event.sites}
    for event in found:
        if event.kind == "from inf":
            behind = edges.behind((OUT, value.id) for value in event.node.operands)
            if not behind & producers:
                kept.append(event)
    return kept


def _meant(event: Event, counts: Counts, arguments: Set[str]) -> bool:
    """Whether what is not finite in an argument or constant may well be meant.

    Minus infinity is, as in masks; so is any in a constant. A NaN never is.
    """
    out = counts.outs[event.node.index, 0]
    return not np.any(out.nan) and not (np.any(out.up) and event.node.name in arguments)


def _uncovered(
    graph: Graph,
    counts: Counts,
    edges: Ways,
    ends: Ends,
    origins: Sequence[Event],
    others: Sequence[Event],
) -> Iterator[Event]:
    """For ends no origin explains: the first of the other events that does, else the end itself."""
    open_ends = {site for site in (*ends.leaves, *ends.results) if np.any(counts.bad.get(site, 0))}
    for event in origins:
        open_ends -= edges.after(event.sites)
    for event in sorted(others, key=lambda event: event.order):
        reached = edges.after(event.sites) & open_ends
        if reached:
            open_ends -= reached
            yield event
    yield from (unseen(graph, site, counts) for site in sorted(open_ends))


# --- what an origin spoils -------------------------------------------------------------------------


def _judged(event: Event, counts: Counts, edges: Ways, ends: Ends) -> Origin:
    bad = {site for site in edges.after(event.sites) if np.any(counts.bad.get(site, 0))}
    leaves = tuple(name for site, name in ends.leaves.items() if site in bad)
    return Origin(event, leaves, bool(bad & ends.results), _makes_nan(event, counts))


def _makes_nan(event: Event, counts: Counts) -> bool:
    if event.kind == "from inf":
        return True
    if event.half == BACK:
        return True
    out = counts.outs.get((event.node.index, event.position))
    return out is None or bool(np.any(out.nan))
