"""The origin of NaN and Inf: which node produced them, where, and what they spoil."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import jax
import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import outside
from ...record.aliases import BACKWARD, FORWARD
from ...record.tape import Tape
from ..passes import Run, on_host
from .events import Event, events, inputs, loose_ends, masked, read_probes, seeds, unexamined
from .probe import is_float, moves, probe
from .propagation import Edges, Nonfinite, ValueSite, edges_of
from .recorders import tally


@dataclass(frozen=True)
class Origin:
    """An event, and what it spoils.

    Attributes:
        event: where bad numbers begin.
        leaves: paths of the differentiated leaves whose gradient it spoils.
        reaches_loss: whether it spoils the value of the loss.
        nan: whether NaN begins here; otherwise only Inf does.
    """

    event: Event
    leaves: tuple[str, ...]
    reaches_loss: bool
    nan: bool

    @property
    def harmless(self) -> bool:
        """Whether it reaches neither the gradient nor the loss."""
        return not (self.leaves or self.reaches_loss)


@dataclass(frozen=True)
class Results:
    """What has to be finite.

    Attributes:
        leaves: the cotangents of the differentiated leaves, with their names.
        values: the values returned, without the auxiliary ones.
    """

    leaves: Mapping[ValueSite, str]
    values: frozenset[ValueSite]

    @classmethod
    def of(cls, tape: Tape) -> "Results":
        """Read them off the graph of a tape."""
        graph = tape.graph
        returned = [value for value in graph.outputs[: len(tape.seed)] if is_float(value)]
        return cls(
            {(BACKWARD, value.id): value.name for value in graph.inputs if value.active},
            frozenset((FORWARD, value.id) for value in returned),
        )


@dataclass(frozen=True)
class _Search:
    """What the search for origins knows: the program, what is bad in it, what leads where, what matters.

    Attributes:
        infinite: the returned values that hold an infinity and no NaN.
    """

    graph: Graph
    bad: Nonfinite
    edges: Edges
    results: Results
    infinite: tuple[Value, ...]

    def judged(self, event: Event) -> Origin:
        """Find out what an event spoils."""
        spoiled = {site for site in self.edges.after(event.sites) if np.any(self.bad.numbers.get(site, 0))}
        leaves = tuple(name for site, name in self.results.leaves.items() if site in spoiled)
        return Origin(event, leaves, bool(spoiled & self.results.values), self.makes_nan(event))

    def makes_nan(self, event: Event) -> bool:
        """Whether NaN begins at an event; otherwise only Inf does."""
        if event.kind in ("from inf", "masked") or event.half == BACKWARD:
            return True
        probed = self.bad.outputs.get((event.node.index, event.position))
        return probed is None or bool(np.any(probed.nan))


def find_origins(run: Run, first: Tape) -> list[Origin]:
    """Find the origins of what is not finite, those that reach the gradient first; none in a healthy pass.

    Args:
        run: further passes at the same arguments.
        first: the tape of the first pass, recorded by `health`, on the host.
    """
    if not _is_suspicious(first):
        return []
    counted = on_host(run(record=tally))
    graph = counted.graph
    bad = read_probes(graph, counted, on_host(run(nodes=suspects(counted), record=probe)))
    search = _Search(graph, bad, edges_of(graph, bad), Results.of(counted), _infinite_results(counted))
    found = [*seeds(graph, counted.seed), *_merged(events(graph, bad))]
    given = inputs(graph, bad)
    wrong = list(
        _wrong_inputs(search, [event for event in given if not _is_intended(event, bad, run.leaf_names)])
    )
    origins = _first_causes(found, wrong, search.edges)
    loose = loose_ends(graph, bad, search.edges, [*found, *given])
    origins += [event for event in loose if event.kind == "sum" or search.makes_nan(event)]
    origins += _uncovered(search, origins, [*found, *given, *loose])
    kept = [origin for origin in map(search.judged, origins) if _is_worth_telling(origin)]
    return sorted(kept, key=lambda origin: (not origin.leaves, origin.harmless, origin.event.order))


def _is_worth_telling(origin: Origin) -> bool:
    """Whether an origin does harm, or is a NaN that some operation produced.

    A NaN in the data or in the program that does no harm may be intended.
    """
    return not origin.harmless or (origin.nan and origin.event.kind in ("produced", "from inf"))


def _infinite_results(tape: Tape) -> tuple[Value, ...]:
    pairs = zip(tape.graph.outputs, jax.tree.leaves(tape.value), strict=False)
    return tuple(
        value for value, x in pairs if is_float(value) and np.any(np.isinf(x)) and not np.any(np.isnan(x))
    )


# --- what to look at -------------------------------------------------------------------------------


def _is_suspicious(first: Tape) -> bool:
    """Whether the result or the gradient is not finite, or there is a NaN among the intermediates.

    An Inf among the intermediates is not a fault: masks are made of it.
    """
    results = [x for x in jax.tree.leaves(first.value) if _jaxpr.is_inexact(_jaxpr.dtype_of(x))]
    if not all(np.all(np.isfinite(np.asarray(x, complex))) for x in results):
        return True
    for entry in first:
        if any(x is not None and np.any(np.isnan(x.squares)) for x in (entry.value, entry.cotangent)):
            return True
        if (
            entry.node.primitive == "input"
            and entry.cotangent is not None
            and not np.all(np.isfinite(entry.cotangent.top))
        ):
            return True
    return False


def suspects(counted: Tape) -> frozenset[int]:
    """Return the nodes to probe: next to something that is not finite, or not examined before."""
    graph, bad = counted.graph, set()
    for entry in counted:
        if any(record is not None and np.any(record.nonfinite) for record in (entry.value, entry.cotangent)):
            bad.add(graph.value(entry.name).id)
    outer = outside(graph)

    def is_bad(value: Value) -> bool:
        while value.id not in bad and value.id in outer:
            value = outer[value.id]
        return value.id in bad

    def is_suspect(node: Node) -> bool:
        if any(is_float(value) and not value.active for value in node.outputs):
            return True
        return not moves(node) and any(map(is_bad, (*node.operands, *node.outputs)))

    return frozenset(node.index for node in graph.walk() if is_suspect(node))


# --- which events are origins ----------------------------------------------------------------------


def _merged(found: Sequence[Event]) -> list[Event]:
    """Keep one event for each node, half and kind: the first, with the sites of all."""
    merged: dict[tuple[str, int, str], Event] = {}
    for event in found:
        key = (event.half, event.node.index, event.kind)
        first = merged.get(key)
        merged[key] = event if first is None else replace(first, sites=(*first.sites, *event.sites))
    return list(merged.values())


def _wrong_inputs(search: _Search, given: Sequence[Event]) -> Iterator[Event]:
    """Replace each bad input that the forward pass masks by where the backward pass multiplies by it."""
    for event in given:
        if search.judged(event).reaches_loss:
            yield event
        else:
            yield from masked(search.graph, search.bad, event)


def _first_causes(found: Sequence[Event], wrong: Sequence[Event], edges: Edges) -> list[Event]:
    """Keep what is produced from finite numbers, and from an Inf only if no event produced that Inf."""
    kept = [event for event in found if event.kind in ("produced", "seed")]
    kept += [event for event in wrong if event.kind == "input"]
    produced = {site for event in kept for site in event.sites}
    for event in found:
        if event.kind == "from inf":
            behind = edges.behind((FORWARD, value.id) for value in event.node.operands)
            if not behind & produced:
                kept.append(event)
    known = {event.node.index for event in kept}
    return kept + [event for event in wrong if event.kind == "masked" and event.node.index not in known]


def _is_intended(event: Event, bad: Nonfinite, arguments: Set[str]) -> bool:
    """Whether what is not finite in an argument or constant may well be intended.

    Minus infinity is, as in masks, and so is any infinity in a constant. A NaN never is.
    """
    probed = bad.outputs[event.node.index, 0]
    return not np.any(probed.nan) and not (np.any(probed.positive_inf) and event.node.name in arguments)


def _uncovered(search: _Search, origins: Sequence[Event], others: Sequence[Event]) -> Iterator[Event]:
    """Explain the bad results that no origin explains by the first other event that does, or as they are.

    An infinity that is written on purpose explains an infinite loss, but not a NaN.
    """
    results = (*search.results.leaves, *search.results.values)
    unexplained = {site for site in results if np.any(search.bad.numbers.get(site, 0))}
    for event in origins:
        unexplained -= search.edges.after(event.sites)
    for event in sorted(others, key=lambda event: event.order):
        reached = search.edges.after(event.sites) & unexplained
        if not search.makes_nan(event):
            reached &= {(FORWARD, value.id) for value in search.infinite}
        if reached:
            unexplained -= reached
            yield event
    yield from (unexamined(search.graph, site, search.bad) for site in sorted(unexplained))
