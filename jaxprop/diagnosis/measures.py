"""Three statistics of every cotangent, taken in one pass, and questions about how they propagate."""

import functools
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact

from ..core.graph import Graph, Node, Value
from ..core.recorders import Recorder
from ..core.structure import binding, once, producers
from ..core.types import ValueId
from ..record.tape import Tape

#: Statistics of one value: one number, or one for each step of the loops around it.
Steps = Float[np.ndarray, "*steps"]


class Measure(NamedTuple):
    """Statistics of a cotangent `ct`. A *unit* is a slice along the last axis.

    Attributes:
        top: `max(|ct|)`, in units of the cotangent. Zero if and only if all of the cotangent is.
        norm: `sqrt(sum(|ct|**2))`, computed so that the squares neither underflow nor overflow.
        dead: fraction of units that are zero throughout, between 0 and 1.
    """

    top: Float[Array, ""] | Steps
    norm: Float[Array, ""] | Steps
    dead: Float[Array, ""] | Steps


@jax.jit  # traced once for each shape
def measure(ct: Inexact[Array, "..."]) -> Measure:
    """Measure a cotangent."""
    size = jnp.abs(ct)
    if size.dtype != jnp.float64:
        size = size.astype(jnp.float32)
    units = jnp.max(size, axis=tuple(range(size.ndim - 1)), initial=0) if size.ndim > 1 else size
    top = jnp.max(units, initial=0)
    scale = jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top))
    norm = scale * jnp.sqrt(jnp.sum((size / scale) ** 2))
    dead = jnp.mean((units == 0).astype(size.dtype)) if units.size else jnp.zeros_like(top)
    return Measure(top, norm, dead)


#: Measures every cotangent.
recorder = Recorder.each(cotangent=measure)


@dataclass(frozen=True, eq=False)
class Field:
    """The measures of one pass, by value.

    Attributes:
        graph: the program.
        sinks: the results that are differentiated.
        by_unit: whether `dead` counts units; otherwise it counts elements, of which there are more.
    """

    graph: Graph
    sinks: tuple[Value, ...]
    _measures: Mapping[int, Measure]
    by_unit: bool = True

    @classmethod
    def of(cls, tape: Tape) -> "Field":
        """Read a tape recorded by `recorder`."""
        found = {id_: Measure(*map(np.asarray, record)) for id_, record in _cotangents(tape)}
        return cls(tape.graph, tape.graph.outputs[: len(tape.seed)], found)

    @classmethod
    def of_health(cls, tape: Tape) -> "Field":
        """Read a tape recorded by `nonfinite.recorders.health`."""
        found = {}
        for id_, record in _cotangents(tape):
            nan = np.isnan(record.squares)
            norm = np.sqrt(record.squares)
            # The squares of very small and very large numbers are 0 and Inf: then use the largest number.
            whole = np.where((norm == 0) | np.isinf(norm), record.top, norm)
            found[id_] = Measure(np.where(nan, np.inf, record.top), whole, np.asarray(record.zeros))
        return cls(tape.graph, tape.graph.outputs[: len(tape.seed)], found, by_unit=False)

    def __contains__(self, value: Value) -> bool:
        return value.id in self._measures

    def top(self, value: Value) -> float | None:
        """Return the largest `|ct|` over all steps; None if it was not measured."""
        if value.id not in self._tops:
            found = self._measures.get(value.id)
            self._tops[value.id] = None if found is None else float(np.max(found.top, initial=0.0))
        return self._tops[value.id]

    def norms(self, value: Value) -> Steps:
        """Return the norm of the cotangent, one for each step of the loops around."""
        return np.asarray(self._measures[value.id].norm)

    @functools.cached_property
    def _tops(self) -> dict[int, float | None]:
        return {}

    @functools.cached_property
    def _norms(self) -> dict[int, float]:
        return {}

    def norm(self, value: Value) -> float:
        """Return the norm of the cotangents of all steps together."""
        if value.id not in self._norms:
            self._norms[value.id] = _norm_of(self.norms(value))
        return self._norms[value.id]

    def dead(self, value: Value) -> float:
        """Return the fraction of units whose cotangent is zero, averaged over all steps."""
        return float(np.mean(self._measures[value.id].dead))

    # --- how cotangents propagate ----------------------------------------------------------------

    @functools.cached_property
    def readers(self) -> Mapping[int, list[tuple[Node, int]]]:
        """The active consumers of each value, with the position they read it at, by id of the value."""
        return active_readers(self.graph)

    @functools.cached_property
    def leaving(self) -> Mapping[int, list[tuple[Node, Value]]]:
        """For each output of a nested graph: the node that holds the graph, and the values it becomes."""
        found: dict[int, list[tuple[Node, Value]]] = {}
        for node in self.graph.walk():
            if not node.opened:
                continue
            for nested in node.graphs:
                joined = binding(node, nested)
                for inner, outer in (*joined.out_of, *joined.around):
                    found.setdefault(inner.id, []).append((node, outer))
        return found

    def entering(self, node: Node, position: int) -> Iterator[Value]:
        """Yield the inputs of nested graphs that an operand becomes."""
        for nested in node.graphs:
            skip = len(node.operands) - len(nested.inputs)  # the index of a cond comes first
            if position >= skip:
                yield nested.inputs[position - skip]

    def onward(self, value: Value) -> Iterator[tuple[Node, Value]]:
        """Yield the active values that one node computes from a value, with that node; in and out of bodies."""
        for node, position in self.readers.get(value.id, ()):
            computed = self.entering(node, position) if node.opened else node.outputs
            yield from ((node, new) for new in computed if new.active)
        yield from ((node, new) for node, new in self.leaving.get(value.id, ()) if new.active)

    def fed_by(self, value: Value) -> list[Value]:
        """List the leaves with a gradient that a value depends on, by values whose cotangent is not zero."""
        reached = self._reached_from.get(value.id, 0)
        return [leaf for i, leaf in enumerate(self.graph.inputs) if self.top(leaf) and reached >> i & 1]

    @functools.cached_property
    def _reached_from(self) -> Mapping[ValueId, int]:
        """By id of a value: which inputs reach it, one bit for each."""
        produced = producers(self.graph)
        reached = {leaf.id: 1 << i for i, leaf in enumerate(self.graph.inputs) if self.top(leaf)}
        values = {leaf.id: leaf for leaf in self.graph.inputs if leaf.id in reached}
        queue = [(produced[id_].index, id_) for id_ in values]
        heapq.heapify(queue)
        while queue:  # in program order, so that a value is visited once unless a loop leads back to it
            _, id_ = heapq.heappop(queue)
            for _, new in self.onward(values[id_]):
                before = reached.get(new.id, 0)
                if self.top(new) != 0 and before | reached[id_] != before:
                    reached[new.id], values[new.id] = before | reached[id_], new
                    heapq.heappush(queue, (produced[new.id].index, new.id))
        return reached


def _norm_of(norms: Steps) -> float:
    norms = norms.astype(np.float64)
    top = float(np.max(norms, initial=0.0))
    if not np.isfinite(top) or top == 0:
        return top
    return top * float(np.sqrt(np.sum((norms / top) ** 2)))


def _cotangents(tape: Tape) -> Iterator[tuple[int, Any]]:
    for entry in tape:
        if entry.cotangent is not None:
            yield entry.node.outputs[entry.node.names.index(entry.name)].id, entry.cotangent


@once
def active_readers(graph: Graph) -> Mapping[int, list[tuple[Node, int]]]:
    """The active consumers of each value, with the position they read it at, by id of the value."""
    found: dict[int, list[tuple[Node, int]]] = {}
    for node in graph.walk():
        if not node.active:
            continue
        for position, operand in enumerate(node.operands):
            if operand.active:
                found.setdefault(operand.id, []).append((node, position))
    return found


def with_parents(graph: Graph, nodes: Iterable[Node]) -> frozenset[int]:
    """Return the indices of nodes and of the loops around them, which keep the constants read inside."""
    found = {node.index for node in nodes}
    return frozenset(found.union(parent.index for index in found for parent, _ in graph.places[index].parents))


def is_number(value: Value) -> bool:
    """Whether a value has at most one element, so that it has no units to tell apart."""
    return math.prod(value.shape) < 2
