"""The way of a bad number: from where it is made, through the values and cotangents that carry it.

Sites are values (`OUT`) and their cotangents (`BACK`); an edge goes from one that is not finite to another
that is not finite because of it. All steps of a scan count as one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...record.aliases import BACK, OUT
from .origin_test import Back, Out, passes_on

#: Half and id of a value.
Site: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Counts:
    """What the two passes found, by value and node; arrays over the steps of the loops around.

    Attributes:
        bad: numbers that are not finite, by site; sites that were not looked at are missing.
        outs: the counts at each output, by (node, position).
        backs: the counts of what is sent to each operand, by (node, position).
    """

    bad: Mapping[Site, np.ndarray]
    outs: Mapping[tuple[int, int], Out]
    backs: Mapping[tuple[int, int], Back]

    def is_bad(self, half: str, value: Value) -> bool:
        """Whether a value is not finite; taken to be, where nobody looked and it is a float."""
        if not _floats(value) or (half == BACK and not value.active):
            return False
        found = self.bad.get((half, value.id))
        return True if found is None else bool(np.any(found))


def _floats(value: Value) -> bool:
    return _jaxpr.is_inexact(value.dtype)


@dataclass
class Ways:
    """The edges between bad sites."""

    next: dict[Site, set[Site]] = field(default_factory=dict)
    before: dict[Site, set[Site]] = field(default_factory=dict)

    def add(self, source: Site, target: Site) -> None:
        self.next.setdefault(source, set()).add(target)
        self.before.setdefault(target, set()).add(source)

    def after(self, sites: Iterable[Site]) -> set[Site]:
        """All sites that are bad because of these, themselves included."""
        return _closure(sites, self.next)

    def behind(self, sites: Iterable[Site]) -> set[Site]:
        """All sites because of which these are bad, themselves included."""
        return _closure(sites, self.before)


def _closure(sites: Iterable[Site], edges: Mapping[Site, set[Site]]) -> set[Site]:
    found, todo = set(), list(sites)
    while todo:
        site = todo.pop()
        if site not in found:
            found.add(site)
            todo += edges.get(site, ())
    return found


def ways(graph: Graph, counts: Counts) -> Ways:
    """All edges between the bad sites of a graph."""
    found = Ways()
    for node in graph.walk():
        if node.eqn is None:
            continue
        for source, target in _edges(node, counts):
            if source[1].literal is None and counts.is_bad(*source) and counts.is_bad(*target):
                found.add((source[0], source[1].id), (target[0], target[1].id))
    return found


_Edge: TypeAlias = tuple[tuple[str, Value], tuple[str, Value]]


def _edges(node: Node, counts: Counts) -> Iterator[_Edge]:
    if node.opened and node.graphs:
        for inside in _through_form(node):
            yield from _both_ways(*inside)
        return
    yield from _forward_edges(node, counts)
    yield from _backward_edges(node, counts)


def _both_ways(source: Value, target: Value) -> Iterator[_Edge]:
    """One value handed on as another: its cotangent comes back the same way."""
    yield (OUT, source), (OUT, target)
    if source.active and target.active:
        yield (BACK, target), (BACK, source)


def _through_form(node: Node) -> Iterator[tuple[Value, Value]]:
    """Pairs of values of which one is handed on as the other, into a body, out of it and round a loop."""
    form = _jaxpr.opened_form(node.eqn)
    operands = node.operands[1:] if isinstance(form, _jaxpr.Cond) else node.operands
    for body in node.graphs:
        yield from zip(operands, body.inputs, strict=False)
        yield from zip(body.outputs, node.outputs, strict=False)
        if isinstance(form, _jaxpr.Scan):
            carried = body.inputs[form.num_consts : form.num_consts + form.num_carry]
            yield from zip(body.outputs, carried, strict=False)


def _forward_edges(node: Node, counts: Counts) -> Iterator[_Edge]:
    for position, output in enumerate(node.outputs):
        out = counts.outs.get((node.index, position))
        if out is not None and not np.any(out.carried):
            continue  # all of it is made here
        for operand in node.operands:
            yield (OUT, operand), (OUT, output)


def _backward_edges(node: Node, counts: Counts) -> Iterator[_Edge]:
    for position, operand in enumerate(node.operands):
        if not operand.active:
            continue
        back = counts.backs.get((node.index, position))
        if back is not None and not np.any(back.sent):
            continue
        by_ct, by_value = (True, False) if passes_on(node) else _blame(back)
        for output in node.outputs:
            if by_ct:
                yield (BACK, output), (BACK, operand)
            if by_value:
                yield (OUT, output), (BACK, operand)
        for other in node.operands if by_value else ():
            yield (OUT, other), (BACK, operand)


def _blame(back: Back | None) -> tuple[bool, bool]:
    """Whether cotangents, whether operands are to blame for what was sent; both where neither is alone."""
    if back is None:
        return True, True
    by_ct, by_value = bool(np.any(back.by_ct)), bool(np.any(back.by_value))
    return (True, True) if not (by_ct or by_value) else (by_ct, by_value)
