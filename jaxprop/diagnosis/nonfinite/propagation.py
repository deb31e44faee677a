"""How a bad number propagates: from where it first appears to the values and cotangents it spoils.

A site is a value (`FORWARD`) or its cotangent (`BACKWARD`). An edge goes from a site that is not finite to
another that is not finite because of it. All steps of a scan count as one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ...core.graph import Graph, Node, Value
from ...core.structure import binding
from ...core.types import ValueId
from ...record.aliases import BACKWARD, FORWARD
from .probe import CotangentProbe, OutputProbe, is_float, passes_cotangents

#: The half of the pass, `FORWARD` or `BACKWARD`, and the id of a value.
ValueSite: TypeAlias = tuple[str, ValueId]


@dataclass(frozen=True)
class Nonfinite:
    """What the passes found, by value and node; arrays over the steps of the loops around.

    Attributes:
        numbers: how many numbers are not finite, by site; a site that was not examined is missing.
        outputs: the probe of each output, by (node, position).
        cotangents: the probe of each operand's cotangent, by (node, position).
    """

    numbers: Mapping[ValueSite, np.ndarray]
    outputs: Mapping[tuple[int, int], OutputProbe]
    cotangents: Mapping[tuple[int, int], CotangentProbe]

    def at(self, half: str, value: Value) -> bool:
        """Whether a value is not finite; assumed of a float that was not examined."""
        if not is_float(value) or (half == BACKWARD and not value.active):
            return False
        found = self.numbers.get((half, value.id))
        return True if found is None else bool(np.any(found))


@dataclass
class Edges:
    """The edges between sites that are not finite."""

    next: dict[ValueSite, set[ValueSite]] = field(default_factory=dict)
    before: dict[ValueSite, set[ValueSite]] = field(default_factory=dict)

    def add(self, source: ValueSite, target: ValueSite) -> None:
        """Add an edge."""
        self.next.setdefault(source, set()).add(target)
        self.before.setdefault(target, set()).add(source)

    def after(self, sites: Iterable[ValueSite]) -> set[ValueSite]:
        """Return all sites that are bad because of these, including these."""
        return _reachable(sites, self.next)

    def behind(self, sites: Iterable[ValueSite]) -> set[ValueSite]:
        """Return all sites because of which these are bad, including these."""
        return _reachable(sites, self.before)


def _reachable(sites: Iterable[ValueSite], edges: Mapping[ValueSite, set[ValueSite]]) -> set[ValueSite]:
    found, todo = set(), list(sites)
    while todo:
        site = todo.pop()
        if site not in found:
            found.add(site)
            todo += edges.get(site, ())
    return found


def edges_of(graph: Graph, bad: Nonfinite) -> Edges:
    """Find all edges between the bad sites of a graph."""
    found = Edges()
    for node in graph.walk():
        if node.eqn is None:
            continue
        for source, target in _edges_at(node, bad):
            if source[1].literal is None and bad.at(*source) and bad.at(*target):
                found.add((source[0], source[1].id), (target[0], target[1].id))
    return found


_Edge: TypeAlias = tuple[tuple[str, Value], tuple[str, Value]]


def _edges_at(node: Node, bad: Nonfinite) -> Iterator[_Edge]:
    if node.opened and node.graphs:
        for source, target in bound_values(node):
            yield (FORWARD, source), (FORWARD, target)
            if source.active and target.active:
                yield (BACKWARD, target), (BACKWARD, source)
        return
    yield from _forward_edges(node, bad)
    yield from _backward_edges(node, bad)


def bound_values(node: Node) -> Iterator[tuple[Value, Value]]:
    """Yield pairs of values of which one becomes the other: into a body, out of it, and around a loop."""
    for body in node.graphs:
        for pairs in binding(node, body):
            yield from pairs


def _forward_edges(node: Node, bad: Nonfinite) -> Iterator[_Edge]:
    for position, output in enumerate(node.outputs):
        probed = bad.outputs.get((node.index, position))
        if probed is not None and not np.any(probed.propagated):
            continue  # all of it is produced here
        for operand in node.operands:
            yield (FORWARD, operand), (FORWARD, output)


def _backward_edges(node: Node, bad: Nonfinite) -> Iterator[_Edge]:
    for position, operand in enumerate(node.operands):
        if not operand.active:
            continue
        probed = bad.cotangents.get((node.index, position))
        if probed is not None and not np.any(probed.nonfinite):
            continue
        by_cts, by_operands = (True, False) if passes_cotangents(node) else _reasons(probed)
        for output in node.outputs:
            if by_cts:
                yield (BACKWARD, output), (BACKWARD, operand)
            if by_operands:
                yield (FORWARD, output), (BACKWARD, operand)
        for other in node.operands if by_operands else ():
            yield (FORWARD, other), (BACKWARD, operand)


def _reasons(probed: CotangentProbe | None) -> tuple[bool, bool]:
    """Whether the out_cts and whether the operands cause a bad in_ct; both if neither does alone."""
    if probed is None:
        return True, True
    by_cts, by_operands = bool(np.any(probed.by_cts)), bool(np.any(probed.by_operands))
    return (by_cts, by_operands) if by_cts or by_operands else (True, True)
