"""Where bad numbers begin: events read off the probes, in the order of the pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import sources
from ...core.types import Array
from ...record.aliases import BACKWARD, FORWARD
from ...record.tape import Tape
from .probe import float_outputs, is_float, probed_operands, read_cotangent, read_output
from .propagation import Edges, Nonfinite, ValueSite, bound_values

#: How a bad number begins:
#: `produced` from finite numbers;
#: `from inf`: a NaN produced from Inf;
#: `masked`: a NaN in the data that the forward pass masks, and that the backward pass multiplies by 0;
#: `sum`: finite cotangents whose sum is not finite;
#: `input`: it is in an argument or a closed-over array;
#: `seed`: it is in the initial cotangent;
#: `unexamined`: nobody can look inside the node.
Kind: TypeAlias = Literal["produced", "from inf", "masked", "sum", "input", "seed", "unexamined"]

#: The kinds that concern the in_ct of an operand in the backward pass.
OF_OPERAND = ("produced", "from inf", "masked")


@dataclass(frozen=True)
class Event:
    """A place where bad numbers begin.

    Attributes:
        half: the forward pass (`FORWARD`) or the backward pass (`BACKWARD`).
        node: the node; for `sum` the one whose output's cotangent is the sum.
        position: of the output in the forward pass; of the operand in the backward pass.
        kind: how it begins.
        step: the first step of each loop around, in the order of the pass.
        element: index into the value.
        count: how many bad numbers begin here, over all steps.
        steps: in how many steps.
        order: sorts events in the order of the pass.
        sites: where its bad numbers first show.
    """

    half: str
    node: Node
    position: int
    kind: Kind
    step: tuple[int, ...]
    element: tuple[int, ...]
    count: int
    steps: int
    order: tuple[bool, tuple[int, ...]]
    sites: tuple[ValueSite, ...]

    @property
    def at_operand(self) -> bool:
        """Whether the bad number is in the cotangent of an operand, not in an output or its cotangent."""
        return self.half == BACKWARD and self.kind in OF_OPERAND

    @property
    def value(self) -> Value:
        """The value of which the number, or the number of its cotangent, is bad."""
        return (self.node.operands if self.at_operand else self.node.outputs)[self.position]


class _Numbers(NamedTuple):
    """Arrays over the steps: where there are bad numbers, the flat index of the first, and how many."""

    mask: np.ndarray
    first: np.ndarray
    total: np.ndarray


def read_probes(graph: Graph, counted: Tape, probed_tape: Tape) -> Nonfinite:
    """Combine what one pass counted (`tally`) and the next probed (`probe`)."""
    numbers: dict[ValueSite, np.ndarray] = {}
    for entry in counted:
        id_ = graph.value(entry.name).id
        numbers[BACKWARD, id_] = np.array(0)
        for half, record in ((FORWARD, entry.value), (BACKWARD, entry.cotangent)):
            if record is not None and hasattr(record, "nonfinite"):
                numbers[half, id_] = record.nonfinite
    outputs, cotangents = {}, {}
    for name in probed_tape.names:
        entry = probed_tape[name]
        node = entry.node
        if node.name != name:
            continue
        for row, position in enumerate(float_outputs(node)):
            probed = read_output(np.asarray(entry.forward)[..., row, :])
            outputs[node.index, position] = probed
            numbers.setdefault((FORWARD, node.outputs[position].id), probed.nonfinite)
        if entry.backward is not None:
            for row, position in enumerate(probed_operands(node)):
                cotangents[node.index, position] = read_cotangent(np.asarray(entry.backward)[..., row, :])
    return Nonfinite(numbers, outputs, cotangents)


# --- what nodes produce ----------------------------------------------------------------------------


def events(graph: Graph, bad: Nonfinite) -> list[Event]:
    """Find what nodes produce, in the order of the pass. What shows in both halves is one event."""
    found = []
    for node in graph.walk():
        forward = list(_forward_events(graph, node, bad))
        hidden = tuple(
            (BACKWARD, node.operands[i].id)
            for i in probed_operands(node)
            if (probed := bad.cotangents.get((node.index, i))) is not None and np.any(probed.by_operands)
        )
        if hidden:
            forward = [replace(event, sites=(*event.sites, *hidden)) for event in forward]
        found += [*forward, *_backward_events(graph, node, bad)]
    return sorted(found, key=lambda event: event.order)


def _forward_events(graph: Graph, node: Node, bad: Nonfinite) -> Iterator[Event]:
    for position in float_outputs(node):
        probed = bad.outputs.get((node.index, position))
        if probed is None:
            continue
        site = (FORWARD, node.outputs[position].id)
        if np.any(probed.produced):
            numbers = _Numbers(probed.produced, probed.produced_at, probed.total)
            yield _event(graph, FORWARD, node, position, "produced", numbers, site)
        if np.any(probed.nan_from_inf):
            numbers = _Numbers(probed.nan_from_inf, probed.nan_from_inf_at, probed.total)
            yield _event(graph, FORWARD, node, position, "from inf", numbers, site)


def _backward_events(graph: Graph, node: Node, bad: Nonfinite) -> Iterator[Event]:
    for position in probed_operands(node):
        probed = bad.cotangents.get((node.index, position))
        if probed is None:
            continue
        site = (BACKWARD, node.operands[position].id)
        if np.any(probed.produced):
            numbers = _Numbers(probed.produced, probed.produced_at, probed.total)
            yield _event(graph, BACKWARD, node, position, "produced", numbers, site)
        if np.any(probed.nan_from_inf):
            numbers = _Numbers(probed.nan_from_inf, probed.nan_from_inf_at, probed.total)
            yield _event(graph, BACKWARD, node, position, "from inf", numbers, site)


def _event(
    graph: Graph, half: str, node: Node, position: int, kind: Kind, numbers: _Numbers, *sites: ValueSite
) -> Event:
    mask = np.asarray(numbers.mask) > 0
    step = first_step(graph, node, mask, half)
    event = Event(
        half=half,
        node=node,
        position=position,
        kind=kind,
        step=step,
        element=(),
        count=int(np.sum(np.where(mask, numbers.total, 0))),
        steps=int(np.sum(mask)),
        order=order_of(graph, half, node, step),
        sites=sites,
    )
    shape = event.value.shape
    element = np.unravel_index(int(np.asarray(numbers.first)[step]), shape) if shape else ()
    return replace(event, element=tuple(map(int, element)))


# --- the order of the pass -------------------------------------------------------------------------


def first_step(graph: Graph, node: Node, mask: np.ndarray, half: str) -> tuple[int, ...]:
    """Return the first step, in the order of the pass, at which a mask over the steps holds."""
    if not mask.ndim:
        return ()
    flips = tuple(reverse != (half == BACKWARD) for reverse in _reversals(graph, node))
    turned = mask[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    first = np.unravel_index(int(np.argmax(turned)), turned.shape)
    pairs = zip(first, mask.shape, flips, strict=True)
    return tuple(int(n - 1 - i if flip else i) for i, n, flip in pairs)


def _reversals(graph: Graph, node: Node) -> list[bool]:
    """For each loop around a node, outermost first: whether it runs from the last step to the first."""
    forms = (_jaxpr.opened_form(parent.eqn) for parent, _ in graph.places[node.index].parents)
    return [form.reverse for form in forms if isinstance(form, _jaxpr.Scan)]


def order_of(graph: Graph, half: str, node: Node, step: tuple[int, ...]) -> tuple[bool, tuple[int, ...]]:
    """Return a key that sorts places in the order of the pass: forward first, backward from last to first."""
    sign = -1 if half == BACKWARD else 1
    steps = iter(step)
    reversals = iter(_reversals(graph, node))
    key = []
    for parent, _ in graph.places[node.index].parents:
        looped = isinstance(_jaxpr.opened_form(parent.eqn), _jaxpr.Scan)
        at = (-1 if next(reversals) else 1) * next(steps) if looped and step else 0
        key += [sign * parent.index, sign * at]
    return (half == BACKWARD, (*key, sign * node.index))


# --- what no node produces -------------------------------------------------------------------------


def inputs(graph: Graph, bad: Nonfinite) -> list[Event]:
    """Find arguments and closed-over arrays that are not finite."""
    found = []
    for node in graph.heads:
        probed = bad.outputs.get((node.index, 0))
        if probed is not None and np.any(probed.nonfinite):
            numbers = _Numbers(probed.nonfinite, probed.nonfinite_at, np.array(0))
            found.append(_event(graph, FORWARD, node, 0, "input", numbers, (FORWARD, node.outputs[0].id)))
    return found


def seeds(graph: Graph, seed: Sequence[Array | None]) -> list[Event]:
    """Find initial cotangents that are not finite."""
    produced = sources(graph)
    found = []
    for value, ct in zip(graph.outputs, seed, strict=False):
        if ct is None or value.id not in produced or np.all(np.isfinite(ct)):
            continue
        node, position = produced[value.id]
        bad = ~np.isfinite(np.asarray(ct))
        numbers = _Numbers(np.array(True), np.array(np.argmax(bad.ravel())), np.sum(bad))
        found.append(_event(graph, BACKWARD, node, position, "seed", numbers, (BACKWARD, value.id)))
    return found


def masked(graph: Graph, bad: Nonfinite, event: Event) -> list[Event]:
    """Find where the backward pass multiplies by the bad numbers of an input that the forward pass masks.

    The first such operations after the input: to keep its bad numbers from them is to keep them from all that
    follow.
    """
    tainted = {id_ for half, id_ in event.sites if half == FORWARD}
    found: dict[int, Event] = {}
    count = -1
    while count != len(tainted):  # once more where a body hands values back to what was visited before
        count = len(tainted)
        for node in graph.walk():
            if node.opened and node.graphs:
                pairs = ((inner, outer) for inner, outer in bound_values(node) if inner.id in tainted)
                tainted.update(outer.id for _, outer in pairs if bad.at(FORWARD, outer))
            elif any(operand.id in tainted for operand in node.operands):
                multiplied = _first_multiplied(graph, node, bad)
                if multiplied is not None:
                    found[node.index] = multiplied
                else:
                    tainted.update(value.id for value in node.outputs if bad.at(FORWARD, value))
    return list(found.values())


def _first_multiplied(graph: Graph, node: Node, bad: Nonfinite) -> Event | None:
    for position in probed_operands(node):
        probed = bad.cotangents.get((node.index, position))
        if probed is not None and np.any(probed.by_operands):
            numbers = _Numbers(probed.by_operands, probed.by_operands_at, np.array(0))
            return _event(
                graph, BACKWARD, node, position, "masked", numbers, (BACKWARD, node.operands[position].id)
            )
    return None


def loose_ends(graph: Graph, bad: Nonfinite, edges: Edges, known: Sequence[Event]) -> list[Event]:
    """Find bad values and cotangents that nothing bad leads to: sums, literals, what nobody can look into."""
    begun = {site for event in known for site in event.sites}
    found = []
    for node in graph.walk():
        for position, value in enumerate(node.outputs):
            if not is_float(value):
                continue
            for half in (FORWARD, BACKWARD):
                site = (half, value.id)
                mask = bad.numbers.get(site)
                if mask is None or not np.any(mask) or site in begun or edges.before.get(site):
                    continue
                kind: Kind = "sum" if half == BACKWARD else "unexamined"
                numbers = _Numbers(mask, np.zeros_like(mask), mask)
                found.append(_event(graph, half, node, position, kind, numbers, site))
    return found


def unexamined(graph: Graph, site: ValueSite, bad: Nonfinite) -> Event:
    """Return the event of a bad value or cotangent whose beginning was not found."""
    half, id_ = site
    node, position = sources(graph)[id_]
    mask = bad.numbers[site]
    return _event(graph, half, node, position, "unexamined", _Numbers(mask, np.zeros_like(mask), mask), site)
