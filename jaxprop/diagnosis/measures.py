"""Three numbers of every cotangent, taken in the one pass, and a way to look them up."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from ..core.graph import Graph, Node, Value
from ..core.recorders import Recorder
from ..core.structure import binding, once
from ..core.types import Array
from ..record.tape import Tape


class Measure(NamedTuple):
    """What is measured of a cotangent `ct`. A *unit* is a slice along the last axis.

    Attributes:
        top: `max(|ct|)`, in units of the cotangent. Zero just where all of it is.
        norm: `sqrt(sum(|ct|**2))`, without underflow or overflow of the squares.
        dead: fraction of units that are zero throughout, between 0 and 1.
    """

    top: Any
    norm: Any
    dead: Any


@jax.jit  # traced once for each shape
def measure(ct: Array) -> Measure:
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
        by_unit: whether `dead` counts units; else it counts elements, which are more.
    """

    graph: Graph
    sinks: tuple[Value, ...]
    _measures: Mapping[int, Measure]
    by_unit: bool = True

    @classmethod
    def of(cls, tape: Tape) -> "Field":
        """Read a tape that `recorder` wrote."""
        found = {id_: Measure(*map(np.asarray, record)) for id_, record in _cotangents(tape)}
        return cls(tape.graph, tape.graph.outputs[: len(tape.seed)], found)

    @classmethod
    def of_health(cls, tape: Tape) -> "Field":
        """Read a tape that `health` wrote."""
        found = {}
        for id_, record in _cotangents(tape):
            nan = np.isnan(record.squares)
            norm = np.sqrt(record.squares)
            # The squares of very small and very large numbers are 0 and Inf: then the greatest stands for all.
            whole = np.where((norm == 0) | np.isinf(norm), record.top, norm)
            found[id_] = Measure(np.where(nan, np.inf, record.top), whole, np.asarray(record.zeros))
        return cls(tape.graph, tape.graph.outputs[: len(tape.seed)], found, by_unit=False)

    def __contains__(self, value: Value) -> bool:
        return value.id in self._measures

    def top(self, value: Value) -> float | None:
        """The greatest `|ct|` of all steps, None where it was not measured."""
        found = self._measures.get(value.id)
        return None if found is None else float(np.max(found.top, initial=0.0))

    def norms(self, value: Value) -> np.ndarray[Any, Any]:
        """The norm of the cotangent, one for each step where it stands in a loop."""
        return self._measures[value.id].norm

    @functools.cached_property
    def _norms(self) -> dict[int, float]:
        return {}

    def norm(self, value: Value) -> float:
        """The norm of the cotangents of all steps together."""
        if value.id not in self._norms:
            self._norms[value.id] = self._norm(value)
        return self._norms[value.id]

    def _norm(self, value: Value) -> float:
        norms = self._measures[value.id].norm.astype(np.float64)
        top = float(np.max(norms, initial=0.0))
        if not np.isfinite(top) or top == 0:
            return top
        return top * float(np.sqrt(np.sum((norms / top) ** 2)))

    def dead(self, value: Value) -> float:
        """The fraction of units whose cotangent is zero, the mean of all steps."""
        return float(np.mean(self._measures[value.id].dead))

    @functools.cached_property
    def readers(self) -> Mapping[int, list[tuple[Node, int]]]:
        """The active nodes that read a value, with the position they read it in."""
        return active_readers(self.graph)

    @functools.cached_property
    def leaving(self) -> Mapping[int, list[tuple[Node, Value]]]:
        """For a result of a nested graph: the node that holds it, and the values it becomes."""
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
        """The inputs of nested graphs that an operand becomes."""
        for nested in node.graphs:
            skip = len(node.operands) - len(nested.inputs)  # the index of a cond stands first
            if position >= skip:
                yield nested.inputs[position - skip]

    def onward(self, value: Value) -> Iterator[tuple[Node, Value]]:
        """The active values made from a value by one node, and that node; into and out of nested graphs."""
        for node, position in self.readers.get(value.id, ()):
            made = self.entering(node, position) if node.opened else node.outputs
            yield from ((node, new) for new in made if new.active)
        yield from ((node, new) for node, new in self.leaving.get(value.id, ()) if new.active)

    def fed_by(self, value: Value) -> list[Value]:
        """The leaves with a gradient that a value is made from."""
        return [leaf for leaf in self.graph.inputs if self.top(leaf) and self._leads(leaf, value)]

    def _leads(self, source: Value, target: Value) -> bool:
        seen, queue = {source.id}, [source]
        for value in queue:
            if value.id == target.id:
                return True
            for _, new in self.onward(value):
                if new.id not in seen and self.top(new) != 0:
                    seen.add(new.id)
                    queue.append(new)
        return False


def _cotangents(tape: Tape) -> Iterator[tuple[int, Any]]:
    for entry in tape:
        if entry.cotangent is not None:
            yield entry.node.outputs[entry.node.names.index(entry.name)].id, entry.cotangent


@once
def active_readers(graph: Graph) -> Mapping[int, list[tuple[Node, int]]]:
    """The active nodes that read a value, with the position they read it in, by id of the value."""
    found: dict[int, list[tuple[Node, int]]] = {}
    for node in graph.walk():
        if not node.active:
            continue
        for position, operand in enumerate(node.operands):
            if operand.active:
                found.setdefault(operand.id, []).append((node, position))
    return found


def with_parents(graph: Graph, nodes: Iterable[Node]) -> frozenset[int]:
    """The indices of nodes, and of the loops around them: those keep the constants that are read inside."""
    found = {node.index for node in nodes}
    return frozenset(found.union(parent.index for index in found for parent, _ in graph.places[index].parents))


def is_number(value: Value) -> bool:
    """Whether a value is one number, or none: nothing can be said of its units."""
    return int(np.prod(value.shape)) < 2


def carries(value: Value) -> bool:
    return _jaxpr.is_inexact(value.dtype)
