"""What a tape records of each value, in words, and the names of values."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import makers, outside
from ...record.tape import Tape
from ..symbolic.derive import distinct
from ..symbolic.expressions import PrimitiveReader
from ..symbolic.formula import Formulas
from ..symbolic.names import Spelled
from ..symbolic.reader import checked_primitives
from .pieces import edge, quotient
from .values import NOTHING, Described, describe


class Consumer(NamedTuple):
    """A node that consumes a value.

    Attributes:
        node: the node.
        read: the value it reads: this one, or a copy of it.
        through: the first node on the way: the key of its contribution in `tape.shares`.
    """

    node: Node
    read: Value
    through: Node


@dataclass(frozen=True)
class Lookup:
    """Everything a tape can say about a value.

    Attributes:
        tape: the tape.
        loss: the name of the result, as in `dloss/dw`.
        primitives: how each primitive is read.
        brief: whether arrays are described without their first elements.
    """

    tape: Tape
    loss: str
    primitives: Mapping[str, PrimitiveReader]
    brief: bool = False

    @functools.cached_property
    def formulas(self) -> Formulas:
        """Formulas under the names used here."""
        return Formulas(self.called, self.primitives)

    # --- names -----------------------------------------------------------------------------------------

    @functools.cached_property
    def recorded(self) -> frozenset[str]:
        """The names that are on the tape."""
        return frozenset(self.tape.names)

    @functools.cached_property
    def copies(self) -> Mapping[int, Value]:
        """Values that equal another one: outside a body, or before a conversion that changes nothing."""
        found = dict(outside(self.tape.graph))
        for node in self.tape.graph.walk():
            if is_copy(node):
                found[node.outputs[0].id] = node.operands[0]
        return found

    def original(self, value: Value) -> Value:
        """The value that a value is a copy of."""
        while value.id in self.copies:
            value = self.copies[value.id]
        return value

    def called(self, value: Value) -> str:
        original = self.original(value)
        return original.name if original.name else value.name

    def d(self, value: Value) -> Spelled:
        """`dloss/dw`."""
        return quotient(self.loss, self.called(value))

    # --- numbers ---------------------------------------------------------------------------------------

    def steps(self, node: Node) -> tuple[int, ...]:
        return self.tape.graph.places[node.index].steps

    def value(self, value: Value, node: Node) -> Described:
        """The value that was recorded."""
        if value.literal is not None:
            return describe(value.literal)
        if value.name not in self.recorded:
            return NOTHING
        return describe(self.tape[value.name].value, self.steps(node), self.brief)

    def cotangent(self, value: Value, node: Node) -> Described:
        if value.name not in self.recorded:
            return NOTHING
        return describe(self.tape[value.name].cotangent, self.steps(node), self.brief)

    def numbers(self, node: Node) -> Mapping[int, float | complex] | None:
        """Operands and output of a node as numbers, by id; None if an operand is an array or unknown."""
        if self.steps(node):
            return None
        found = {operand.id: self._number(operand) for operand in distinct(node.operands)}
        if None in found.values():
            return None
        found |= {output.id: self._number(output) for output in node.outputs}
        return {id_: number for id_, number in found.items() if number is not None}

    def _number(self, value: Value) -> float | complex | None:
        original = self.original(value)
        if value.shape != ():
            return None
        if original.literal is not None:
            return describe(original.literal).number
        known = next((v for v in (value, original) if v.name in self.recorded), None)
        return None if known is None else describe(self.tape[known.name].value).number

    def slope(self, node: Node, wrt: Value) -> Described:
        """The local gradient of a node, of a scalar with respect to a scalar."""
        scalar = wrt.shape == () and node.shape == () and len(node.outputs) == 1
        if not scalar or not self.tape.is_full or node.name not in self.recorded:
            return NOTHING
        try:
            return describe(edge(self.tape, node.outputs[0], wrt).jacobian(), self.steps(node))
        except (ValueError, KeyError, TypeError):
            return NOTHING

    # --- structure -------------------------------------------------------------------------------------

    @functools.cached_property
    def _consumers(self) -> Mapping[int, list[Node]]:
        return _active_consumers(self.tape.graph)

    def consumers(self, value: Value) -> list[Consumer]:
        """The nodes that contribute to the cotangent of a value."""
        return list(self._consuming(value, None))

    def _consuming(self, value: Value, through: Node | None) -> Iterator[Consumer]:
        for node in self._consumers.get(value.id, ()):
            own = list(self._consuming(node.outputs[0], through or node)) if is_copy(node) else []
            if own:
                yield from own
            else:
                yield Consumer(node, value, through or node)

    def has_other_paths(self, node: Node, wrt: Value) -> bool:
        """Whether a node computes the result, and the result depends on this operand in other ways too."""
        is_result = any(value.name == self.loss for value in node.outputs)
        return is_result and len(self.consumers(self.original(wrt))) > 1

    def branch_taken(self, node: Node, number: int) -> np.ndarray | None:
        """Whether a branch of a `cond` was taken, for each step; None if that is unknown."""
        for inner in node.graphs[number].nodes:
            for value in inner.outputs:
                if value.name in self.recorded:
                    taken = self.tape[value.name].taken
                    return None if taken is None or _jaxpr.is_tracer(taken) else np.asarray(taken)
        return None

    def producer(self, value: Value) -> Node:
        return makers(self.tape.graph)[value.id]


def lookup_in(tape: Tape, primitives: Mapping[str, PrimitiveReader]) -> Lookup:
    """Look up values under the name of the result that is differentiated, `L` if there are several."""
    pairs = zip(tape.graph.outputs, tape.seed, strict=False)
    names = [value.name for value, seed in pairs if value.active and seed is not None]
    loss = names[0] if len(names) == 1 else "L"
    return Lookup(tape, loss, checked_primitives(primitives))


def is_copy(node: Node) -> bool:
    """Whether a node changes nothing: it converts to the dtype its operand has."""
    if node.eqn is None or node.eqn.primitive.name != "convert_element_type":
        return False
    before, after = node.operands[0], node.outputs[0]
    return before.id >= 0 and before.literal is None and before.dtype == after.dtype


def _active_consumers(graph: Graph) -> dict[int, list[Node]]:
    """The active nodes that read each value, by its id."""
    found: dict[int, list[Node]] = {}
    for node in graph.walk():
        if node.active:
            for id_ in dict.fromkeys(value.id for value in node.operands if value.id >= 0):
                found.setdefault(id_, []).append(node)
    return found
