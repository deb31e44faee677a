"""Norms of cotangents along depth: the values that every path from a leaf to the result goes through.

From a weight of the first layer these are the activations of layer after layer, or the residual stream. Nothing
bypasses the nodes between two of them, so the ratio of their cotangents is the gain of that segment. They are
the branches of one tree, the post-dominator tree: what is asked of a chain is computed for all chains at once.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ... import _jaxpr
from ..._structure import Neighbours, PostDominators, consumers, successors
from ...core.graph import Graph, Node, Value
from ...core.structure import binding, producers
from ...core.types import ValueId
from ..measures import Field, is_number


@dataclass(frozen=True)
class Segment:
    """A segment of a chain: from one value that every path goes through to the next.

    Attributes:
        near, far: the value nearer to the leaves, and the one nearer to the result.
        node: the node that produces `far`.
        gain: `|ct(near)| / |ct(far)|`, dimensionless; NaN where neither is finite.
    """

    near: Value
    far: Value
    node: Node
    gain: float


@dataclass(frozen=True, eq=False)
class Chain:
    """A chain of values from leaves towards the result.

    Attributes:
        tree: the tree it is a branch of.
        first, last: its first and its last value.
        leaves: the leaves it starts at.
    """

    tree: "ChainTree"
    first: Value
    last: Value
    leaves: tuple[str, ...]

    @functools.cached_property
    def values(self) -> tuple[Value, ...]:
        return tuple(self.tree.between(self.first, self.last))

    @functools.cached_property
    def segments(self) -> tuple[Segment, ...]:
        """Its segments, from the leaves on."""
        made_by, norm = producers(self.tree.field.graph), self.tree.field.norm
        pairs = zip(self.values, self.values[1:], strict=False)
        return tuple(
            Segment(near, far, made_by[far.id], _gain_of(norm(near), norm(far))) for near, far in pairs
        )

    @property
    def length(self) -> int:
        return self.tree.heights[self.first.id] - self.tree.heights[self.last.id] + 1

    @functools.cached_property
    def start(self) -> float:
        """`|ct|` of the first value whose cotangent is finite: before it, it has overflowed."""
        return self.tree.finite_norm(self.first, self.last)

    @property
    def end(self) -> float:
        return self.tree.field.norm(self.last)

    @property
    def overflows(self) -> bool:
        """Whether the cotangent is no longer finite at the first value."""
        return not math.isfinite(self.tree.field.norm(self.first))

    @property
    def ratio(self) -> float:
        """`|ct at the start| / |ct at the end|`: the product of the gains, dimensionless."""
        return self.start / self.end if self.end > 0 and math.isfinite(self.end) else 1.0


def _gain_of(a: float, b: float) -> float:
    if math.isfinite(a) and math.isfinite(b):
        return a / b if b > 0 else 1.0
    return math.inf if math.isfinite(b) and not math.isnan(a) else math.nan


class ChainTree:
    """The post-dominator tree of the measured values: chains are its branches.

    Attributes:
        field: the measures.
        leaves: the leaves the chains start at.
        following: for each value the next measured one that every path goes through; by id.
    """

    def __init__(self, field: Field, leaves: Sequence[Value]) -> None:
        self.field, self.leaves = field, leaves
        onward = along_depth(field.graph)
        tree = PostDominators.of(leaves, field.sinks, onward)
        self.measured: dict[int, Value | None] = {}  # the value itself, or the next that is measured
        self.following: dict[int, Value | None] = {}
        self.heights: dict[int, int] = {}
        self.only_numbers: dict[int, bool] = {}
        for id_, after in tree.after.items():  # those nearest to the result come first
            value, far = tree.values[id_], None if after is None else self.measured[after.id]
            known = value in field
            self.following[id_] = far
            self.measured[id_] = value if known else far
            self.heights[id_] = (0 if far is None else self.heights[far.id]) + known
            alike = far is None or self.only_numbers[far.id]
            self.only_numbers[id_] = alike and (is_number(value) or not known)
        alone = of_one_leaf(field.graph)
        firsts = {leaf.id: [self.measured.get(new.id) for new in onward(leaf)] for leaf in leaves}
        self.starts = {
            id_: [self._met(first, alone) for first in some if first is not None]
            for id_, some in firsts.items()
        }

    def _met(self, value: Value, alone: Mapping[ValueId, ValueId]) -> Value:
        """From where a parameter meets the data on: a bias that is broadcast is no layer yet."""
        at: Value | None = value
        while at is not None and at.id in alone:
            at = self.following[at.id]
        return value if at is None else at

    @functools.cached_property
    def _before(self) -> Mapping[int, set[int]]:
        """For each value those just before it, on any chain."""
        found: dict[int, set[int]] = {}
        seen: set[int] = set()
        for start in itertools.chain.from_iterable(self.starts.values()):
            near: Value | None = start
            while near is not None and near.id not in seen:
                seen.add(near.id)
                far = self.following[near.id]
                if far is not None:
                    found.setdefault(far.id, set()).add(near.id)
                near = far
        return found

    @functools.cached_property
    def _ends(self) -> Mapping[bool, Mapping[int, Value]]:
        """The last value of the chain from each: for chains of numbers alone, and for others."""
        first = {start.id for some in self.starts.values() for start in some}
        found: dict[bool, dict[int, Value]] = {True: {}, False: {}}
        for id_, far in self.following.items():
            if far is None:
                continue
            joined = far.id in first or bool(self._before.get(far.id, set()) - {id_})
            for numbers, ends in found.items():
                if far.id in ends:
                    ends[id_] = ends[far.id]
                elif joined and (numbers or not is_number(far)):
                    ends[id_] = far
        return found

    def end(self, start: Value) -> Value | None:
        """The last array on a chain that another path from a leaf joins.

        What follows is the loss: its gains say how far off the prediction is, and how the mean is taken.
        """
        return self._ends[self.only_numbers[start.id]].get(start.id)

    def between(self, first: Value, last: Value) -> Iterator[Value]:
        """The values of a chain."""
        value: Value | None = first
        while value is not None and value.id != last.id:
            yield value
            value = self.following[value.id]
        yield last

    def finite_norm(self, first: Value, last: Value) -> float:
        """`|ct|` of the first value of a chain whose cotangent is finite."""
        norms = (self.field.norm(value) for value in self.between(first, last))
        return next((norm for norm in norms if math.isfinite(norm)), math.nan)

    def chains(self) -> list[Chain]:
        """The chain of every leaf that has one, as far as the last value that parameters enter."""
        found: dict[tuple[int, int], tuple[Value, Value, list[str]]] = {}
        for leaf in self.leaves:
            start = max(self.starts[leaf.id], key=lambda value: self.heights[value.id], default=None)
            end = None if start is None else self.end(start)
            if start is not None and end is not None:
                found.setdefault((start.id, end.id), (start, end, []))[2].append(leaf.name)
        return [Chain(self, start, end, tuple(names)) for start, end, names in found.values()]


def chains(field: Field) -> list[Chain]:
    """Find the chains of all leaves that get a gradient."""
    leaves = [leaf for leaf in field.graph.inputs if leaf.active and field.top(leaf)]
    return ChainTree(field, leaves).chains() if leaves else []


def longest_chain(known: Sequence[Chain]) -> Chain | None:
    """Return the longest chain."""
    return max(known, key=lambda chain: chain.length, default=None)


def along_depth(graph: Graph) -> Neighbours:
    """From a value to those computed from it: through `checkpoint` and branches, past loops."""
    step, reads = successors(graph), consumers(graph)

    def onward(value: Value) -> Iterator[Value]:
        for node, _ in reads.get(value.id, ()):
            if is_loop(node):
                yield from (new for new in node.outputs if new.active)
        for node, new in step.get(value.id, ()):
            if new.active and not is_loop(node):
                yield new

    return onward


def is_loop(node: Node) -> bool:
    return node.opened and isinstance(_jaxpr.opened_form(node.eqn), _jaxpr.Scan)


def of_one_leaf(graph: Graph) -> Mapping[ValueId, ValueId]:
    """The values computed from one leaf alone, and constants of the program: that leaf."""
    owner = {leaf.id: leaf.id for leaf in graph.inputs}
    _own(graph, owner)
    return owner


def _own(graph: Graph, owner: dict[ValueId, ValueId]) -> None:
    for node in graph.equations():
        if node.opened and len(node.graphs) == 1 and not is_loop(node):
            joined = binding(node, node.graphs[0])
            owner.update({inner.id: owner[outer.id] for outer, inner in joined.into if outer.id in owner})
            _own(node.graphs[0], owner)
            owner.update({outer.id: owner[inner.id] for inner, outer in joined.out_of if inner.id in owner})
        elif not node.opened:
            made_from = {owner.get(value.id) for value in node.operands if value.literal is None}
            if len(made_from) == 1 and (only := made_from.pop()) is not None:
                owner.update({value.id: only for value in node.outputs})


def segments_by_steps(values: Iterable[Value], field: Field) -> list[Segment]:
    """The segments of one step of a loop, with their gains: the geometric mean of all steps."""
    known = [value for value in values if value in field]
    logs = [_mean_log(field.norms(value)) for value in known]
    made_by = producers(field.graph)
    return [
        Segment(near, far, made_by[far.id], math.exp(a - b))
        for near, far, a, b in zip(known, known[1:], logs, logs[1:], strict=False)
        if math.isfinite(a - b)
    ]


def _mean_log(norms: np.ndarray) -> float:
    with np.errstate(divide="ignore"):
        logs = np.log(np.asarray(norms, np.float64))
    return float(np.mean(logs[np.isfinite(logs)])) if np.any(np.isfinite(logs)) else np.nan
