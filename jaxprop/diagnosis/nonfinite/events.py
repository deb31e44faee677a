"""Where bad numbers begin: events read off the counts, in the order of the pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...record.aliases import BACK, OUT
from ...record.tape import Tape
from .origin_test import asked_operands, float_outputs, is_float, read_back, read_out
from .propagation import Counts, Site, Ways

#: How a bad number begins: made from finite ones; a NaN made from Inf; finite shares whose sum is not; there
#: in an argument or a constant; in the cotangent the pass begins with; nobody looked inside.
Kind: TypeAlias = Literal["made", "from inf", "sum", "given", "seed", "unseen"]


@dataclass(frozen=True)
class Event:
    """A place where bad numbers begin.

    Attributes:
        half: on the way out, or back.
        node: the node; for `sum` the one whose output's cotangent is the sum.
        position: of the output, on the way out; of the operand it is sent to, on the way back.
        kind: how it begins.
        step: the first step of each loop around, in the order of the pass.
        element: index into the value.
        count: bad numbers that begin here, over all steps.
        steps: in how many steps.
        order: sorts events in the order of the pass.
        sites: where its bad numbers are first to be seen.
    """

    half: str
    node: Node
    position: int
    kind: Kind
    step: tuple[int, ...]
    element: tuple[int, ...]
    count: int
    steps: int
    order: tuple[Any, ...]
    sites: tuple[Site, ...]

    @property
    def value(self) -> Value:
        """The value whose number, or whose cotangent's number, is bad."""
        back = self.half == BACK and self.kind in ("made", "from inf")
        return (self.node.operands if back else self.node.outputs)[self.position]


def read_counts(graph: Graph, counted: Tape, made: Tape) -> Counts:
    """Put together what one pass (`tally`) and the next (who made it) wrote down."""
    bad: dict[Site, np.ndarray] = {}
    for entry in counted:
        for half, record in ((OUT, entry.value), (BACK, entry.cotangent)):
            if record is not None and hasattr(record, "nonfinite"):
                bad[half, graph.value(entry.name).id] = record.nonfinite
        if entry.cotangent is None:
            bad[BACK, graph.value(entry.name).id] = np.array(0)
    outs, backs = {}, {}
    for name in made.names:
        entry = made[name]
        node = entry.node
        if node.name != name:
            continue
        rows = entry.forward
        for row, position in enumerate(float_outputs(node)):
            out = read_out(rows[..., row, :])
            outs[node.index, position] = out
            bad.setdefault((OUT, node.outputs[position].id), out.bad)
        if entry.backward is not None:
            for row, position in enumerate(asked_operands(node)):
                backs[node.index, position] = read_back(entry.backward[..., row, :])
    return Counts(bad, outs, backs)


def events(graph: Graph, counts: Counts) -> list[Event]:
    """What is made at the nodes, in the order of the pass. What shows on both ways is one event."""
    found = []
    for node in graph.walk():
        forward = list(_forward_events(graph, node, counts))
        backward = list(_backward_events(graph, node, counts))
        hidden = tuple(
            (BACK, node.operands[i].id)
            for i in asked_operands(node)
            if (back := counts.backs.get((node.index, i))) is not None and np.any(back.by_value)
        )
        if forward and hidden:
            forward = [replace(event, sites=(*event.sites, *hidden)) for event in forward]
        found += forward + backward
    return sorted(found, key=lambda event: event.order)


def _forward_events(graph: Graph, node: Node, counts: Counts) -> Iterator[Event]:
    for position in float_outputs(node):
        out = counts.outs.get((node.index, position))
        if out is None:
            continue
        site = (OUT, node.outputs[position].id)
        if np.any(out.made):
            yield _event(graph, OUT, node, position, "made", out.made, out.made_at, out.begun, site)
        if np.any(out.from_inf):
            yield _event(graph, OUT, node, position, "from inf", out.from_inf, out.from_inf_at, out.begun, site)


def _backward_events(graph: Graph, node: Node, counts: Counts) -> Iterator[Event]:
    for position in asked_operands(node):
        back = counts.backs.get((node.index, position))
        if back is None:
            continue
        site = (BACK, node.operands[position].id)
        if np.any(back.fresh):
            yield _event(graph, BACK, node, position, "made", back.fresh, back.fresh_at, back.begun, site)
        if np.any(back.from_inf):
            yield _event(
                graph, BACK, node, position, "from inf", back.from_inf, back.from_inf_at, back.begun, site
            )


def _event(
    graph: Graph,
    half: str,
    node: Node,
    position: int,
    kind: Kind,
    where: Any,
    first: Any,
    count: Any,
    *sites: Site,
) -> Event:
    where, first = np.asarray(where) > 0, np.asarray(first)
    step = first_step(graph, node, where, half)
    value = (node.operands if half == BACK and kind in ("made", "from inf") else node.outputs)[position]
    element = np.unravel_index(int(first[step]), value.shape) if value.shape else ()
    return Event(
        half=half,
        node=node,
        position=position,
        kind=kind,
        step=step,
        element=tuple(map(int, element)),
        count=int(np.sum(np.where(where, count, 0))),
        steps=int(np.sum(where)),
        order=order_of(graph, half, node, step),
        sites=sites,
    )


def first_step(graph: Graph, node: Node, where: np.ndarray, half: str) -> tuple[int, ...]:
    """The first step, in the order of the pass, where a mask over the steps holds."""
    if not where.ndim:
        return ()
    flips = tuple(reverse != (half == BACK) for reverse in _reversals(graph, node))
    turned = where[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    first = np.unravel_index(int(np.argmax(turned)), turned.shape)
    pairs = zip(first, where.shape, flips, strict=True)
    return tuple(int(n - 1 - i if flip else i) for i, n, flip in pairs)


def _reversals(graph: Graph, node: Node) -> list[bool]:
    """For each loop around a node, outermost first: whether it runs from the last step to the first."""
    forms = (_jaxpr.opened_form(parent.eqn) for parent, _ in graph.places[node.index].parents)
    return [form.reverse for form in forms if isinstance(form, _jaxpr.Scan)]


def order_of(graph: Graph, half: str, node: Node, step: tuple[int, ...]) -> tuple[Any, ...]:
    """Sorts places in the order of the pass: out before back, and back from the last to the first."""
    sign = -1 if half == BACK else 1
    steps = iter(step)
    reversals = iter(_reversals(graph, node))
    key = []
    for parent, _ in graph.places[node.index].parents:
        looped = isinstance(_jaxpr.opened_form(parent.eqn), _jaxpr.Scan)
        at = (-1 if next(reversals) else 1) * next(steps) if looped and step else 0
        key += [sign * parent.index, sign * at]
    return (half == BACK, (*key, sign * node.index))


# --- what no node made ------------------------------------------------------------------------------


def given(graph: Graph, counts: Counts) -> list[Event]:
    """Arguments and closed-over arrays that hold what is not finite."""
    found = []
    for node in graph.heads:
        out = counts.outs.get((node.index, 0))
        if out is not None and np.any(out.bad):
            found.append(
                _event(graph, OUT, node, 0, "given", out.bad, out.bad_at, 0, (OUT, node.outputs[0].id))
            )
    return found


def seeds(graph: Graph, seed: Sequence[Any]) -> list[Event]:
    """Cotangents the pass begins with that are not finite."""
    producers = {value.id: (node, i) for node in graph.nodes for i, value in enumerate(node.outputs)}
    found = []
    for value, ct in zip(graph.outputs, seed, strict=False):
        if ct is None or value.id not in producers or np.all(np.isfinite(ct)):
            continue
        node, position = producers[value.id]
        bad = ~np.isfinite(np.asarray(ct))
        first = np.array(np.argmax(bad.ravel()))
        found.append(_event(graph, BACK, node, position, "seed", True, first, np.sum(bad), (BACK, value.id)))
    return found


def loose_ends(graph: Graph, counts: Counts, ways: Ways, known: Sequence[Event]) -> list[Event]:
    """Bad values and cotangents that nothing bad leads to: sums, literals, what nobody can look into."""
    begun = {site for event in known for site in event.sites}
    found = []
    for node in graph.walk():
        for position, value in enumerate(node.outputs):
            if not is_float(value):
                continue
            for half in (OUT, BACK):
                site = (half, value.id)
                where = counts.bad.get(site)
                if where is None or not np.any(where) or site in begun or ways.before.get(site):
                    continue
                at = np.zeros_like(where)
                kind: Kind = "sum" if half == BACK else "unseen"
                found.append(_event(graph, half, node, position, kind, where, at, where, site))
    return found


def unseen(graph: Graph, site: Site, counts: Counts) -> Event:
    """A bad value or cotangent as it stands, where its beginning was not found."""
    half, id_ = site
    node, position = next(
        (node, i) for node in graph.walk() for i, value in enumerate(node.outputs) if value.id == id_
    )
    where = counts.bad[site]
    return _event(graph, half, node, position, "unseen", where, np.zeros_like(where), where, site)
