"""Norms of cotangents along depth and through the steps of loops: what they are, and what they come from."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...core.graph import Graph, Node, Value
from ...core.structure import joints, makers
from ..measures import Field, is_number
from .dominators import Carry, Spine, along_depth, carries_of, is_loop


@dataclass(frozen=True)
class Part:
    """A part of a chain: from one value that every way goes through to the next.

    Attributes:
        near, far: the value nearer to the leaves, and the one nearer to the result.
        node: the node that makes `far`.
        gain: `|ct(near)| / |ct(far)|`, a pure number.
    """

    near: Value
    far: Value
    node: Node
    gain: float


@dataclass(frozen=True)
class Chain:
    """A chain of values from a leaf to the result.

    Attributes:
        parts: its parts, from the leaf on.
        leaves: the leaves it begins at.
        start, end: `|ct|` of the first and of the last value.
    """

    parts: tuple[Part, ...]
    leaves: tuple[str, ...]
    start: float
    end: float

    @property
    def ratio(self) -> float:
        """`|ct at the start| / |ct at the end|`: the product of the gains, a pure number."""
        return self.start / self.end if self.end > 0 else 1.0


def chains(field: Field) -> list[Chain]:
    """The chain of every leaf that has one, as far as the last value parameters enter: without the loss."""
    leaves = [leaf for leaf in field.graph.inputs if leaf.active and field.top(leaf)]
    onward = along_depth(field)
    spine = Spine.of(leaves, field.sinks, onward)
    alone = of_one_leaf(field.graph)
    ways = {first.id: _measured(field, spine.chain(first), alone) for leaf in leaves for first in onward(leaf)}
    joins = _Joins.of(ways.values())
    found: dict[tuple[int, ...], tuple[list[Value], list[str]]] = {}
    for leaf in leaves:
        longest = max((ways[first.id] for first in onward(leaf)), key=len, default=[])
        values = _without_loss(longest, joins)
        if len(values) > 1:
            key = tuple(value.id for value in values)
            found.setdefault(key, (values, []))[1].append(leaf.name)
    return [_chain(field, values, names) for values, names in found.values()]


def of_one_leaf(graph: Graph) -> Mapping[int, int]:
    """The values made from one leaf alone, and numbers of the program: that leaf."""
    owner = {leaf.id: leaf.id for leaf in graph.inputs}
    _own(graph, owner)
    return owner


def _own(level: Graph, owner: dict[int, int]) -> None:
    for node in level.equations():
        if node.opened and len(node.graphs) == 1 and not is_loop(node):
            joined = joints(node, node.graphs[0])
            owner.update({inner.id: owner[outer.id] for outer, inner in joined.into if outer.id in owner})
            _own(node.graphs[0], owner)
            owner.update({outer.id: owner[inner.id] for inner, outer in joined.out_of if inner.id in owner})
        elif not node.opened:
            made_from = {owner.get(value.id) for value in node.operands if value.literal is None}
            if len(made_from) == 1 and (only := made_from.pop()) is not None:
                owner.update({value.id: only for value in node.outputs})


def longest_chain(known: Sequence[Chain]) -> Chain | None:
    """The longest chain."""
    return max(known, key=lambda chain: len(chain.parts), default=None)


def _measured(field: Field, values: Sequence[Value], alone: Mapping[int, int]) -> list[Value]:
    """The measured values, from where a parameter meets the data: a bias as it is broadcast is no layer yet."""
    known = [value for value in values if value in field]
    met = [i for i, value in enumerate(known) if value.id not in alone]
    return known[met[0] :] if met else known


@dataclass(frozen=True)
class _Joins:
    """Where the ways of leaves come together: they are the branches of one tree.

    Attributes:
        starts: ids of the values ways begin at.
        into: for each value those before it, on any way.
    """

    starts: set[int]
    into: dict[int, set[int]]

    @classmethod
    def of(cls, ways: Iterable[Sequence[Value]]) -> "_Joins":
        starts: set[int] = set()
        into: dict[int, set[int]] = {}
        for way in ways:
            starts.update(value.id for value in way[:1])
            for near, far in itertools.pairwise(way):
                before = into.setdefault(far.id, set())
                if near.id in before:
                    break  # from here on the way is known
                before.add(near.id)
        return cls(starts, into)

    def at(self, near: Value, far: Value) -> bool:
        """Whether another way comes into a value than the one from `near`."""
        return far.id in self.starts or len(self.into[far.id] - {near.id}) > 0


def _without_loss(values: Sequence[Value], joins: _Joins) -> list[Value]:
    """A chain as far as the last array that another way from a leaf comes into.

    What follows is the loss: its gains say how far off the prediction is, and how the mean is taken.
    """
    single = all(is_number(value) for value in values)
    last = 0
    for i, (near, far) in enumerate(itertools.pairwise(values), 1):
        if (single or not is_number(far)) and joins.at(near, far):
            last = i
    return list(values[: last + 1])


def _chain(field: Field, values: Sequence[Value], leaves: Sequence[str]) -> Chain:
    norms = [field.norm(value) for value in values]
    return Chain(tuple(_parts(field.graph, values, norms)), tuple(leaves), norms[0], norms[-1])


def _parts(graph: Graph, values: Sequence[Value], norms: Sequence[float]) -> list[Part]:
    made_by = makers(graph)
    pairs = zip(values, values[1:], norms, norms[1:], strict=False)
    return [Part(near, far, made_by[far.id], a / b if b > 0 else 1.0) for near, far, a, b in pairs]


@dataclass(frozen=True)
class Loop:
    """What a loop does to the gradient that crosses it.

    Attributes:
        node: name of the loop.
        norms: `|ct|` of the carries before each step and after the last, in the order of time.
        growth: factor by which the norm changes at each step back: the fit of a straight line to its
            logarithm; a pure number.
        gains: the gain of each step on a cotangent that comes from the end, by power steps (see
            `gains_of_steps`), in the order of time; () where not asked for.
    """

    node: str
    norms: tuple[float, ...]
    growth: float
    gains: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """`|ct before the first step| / |ct after the last that gets one|`, a pure number."""
        some = [norm for norm in self.norms if norm > 0]
        return self.norms[0] / some[-1] if some else 1.0

    @property
    def gain(self) -> float:
        """The gain of a step: the geometric mean of all, NaN where it was not estimated."""
        return float(np.exp(np.mean(np.log(self.gains)))) if self.gains and min(self.gains) > 0 else np.nan

    def data(self) -> dict[str, Any]:
        return {"node": self.node, "norms": self.norms, "growth": self.growth, "gains": self.gains}


#: Loops of fewer steps have no growth to speak of.
FEWEST_STEPS = 3


def loops(field: Field) -> list[tuple[Carry, Loop]]:
    """The loops that carry gradients from step to step."""
    found = []
    for node in field.graph.walk():
        carry = carries_of(node) if node.active else None
        if carry is None or carry.form.length < FEWEST_STEPS:
            continue
        norms = _norms_in_time(field, carry)
        if norms is not None and np.all(np.isfinite(norms)) and np.any(norms > 0):
            found.append((carry, Loop(node.name, tuple(map(float, norms)), growth_of(norms))))
    return found


def _norms_in_time(field: Field, carry: Carry) -> Any:
    """Norms of the carries together before each step, and after the last; outer steps together."""
    known = [value for value in carry.into if value in field]
    if not known:
        return None
    stacked = [_collapsed(field.norms(value)) for value in known]
    before = np.sqrt(np.sum([norms**2 for norms in stacked], axis=0))
    before = before[::-1] if carry.form.reverse else before
    after = [field.norm(value) for value in carry.last if value in field]
    return np.append(before, np.sqrt(np.sum(np.square(after)))) if after else before


def _collapsed(norms: Any) -> Any:
    """Norms with the steps of this loop alone: those of loops around it together."""
    wide = np.asarray(norms, np.float64)
    return np.sqrt(np.sum(wide.reshape(-1, wide.shape[-1]) ** 2, axis=0))


def growth_of(norms: Any) -> float:
    """The factor by which norms change at each step back: 1 where there are not enough of them.

    log norm[t] = a - t * log(growth)      (least squares, over the steps that get a cotangent)
    """
    norms = np.asarray(norms, np.float64)
    steps = np.flatnonzero(norms > 0)
    if len(steps) < FEWEST_STEPS:
        return 1.0
    slope = np.polyfit(steps, np.log(norms[steps]), 1)[0]
    return float(np.exp(-slope))


def inside(field: Field, carry: Carry) -> list[Part]:
    """The parts of one step of a loop, with their gains: the geometric mean of all steps."""
    spine = Spine.of(carry.into, carry.out, along_depth(field))
    longest = max((spine.chain(value) for value in carry.into), key=len, default=[])
    known = [value for value in longest if value in field]
    logs = [_mean_log(field.norms(value)) for value in known]
    return [
        Part(near, far, makers(field.graph)[far.id], float(np.exp(a - b)))
        for near, far, a, b in zip(known, known[1:], logs, logs[1:], strict=False)
        if np.isfinite(a - b)
    ]


def _mean_log(norms: Any) -> float:
    wide = np.asarray(norms, np.float64)
    with np.errstate(divide="ignore"):
        logs = np.log(wide)
    return float(np.mean(logs[np.isfinite(logs)])) if np.any(np.isfinite(logs)) else np.nan
