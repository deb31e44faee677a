"""What a tape knows of each value, in words; and what values are called."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ... import _jaxpr
from ...core.graph import Node, Value
from ...core.structure import makers, outside
from ...record.tape import Tape
from ..symbolic.derive import distinct
from ..symbolic.notation import Spelled
from .outline import readers_of
from .pieces import edge, quotient
from .values import NOTHING, Described, describe


class Reader(NamedTuple):
    """A node that reads a value, and what it reads it as.

    Attributes:
        node: the node.
        read: the value itself, or the same under another name.
        through: the node that stands first on the way: the key of its share.
    """

    node: Node
    read: Value
    through: Node


@dataclass(frozen=True)
class Known:
    """What is known of a tape.

    Attributes:
        tape: the tape.
        loss: the name of the result, as it stands in `dloss/dw`.
        brief: whether arrays are described without their first numbers.
    """

    tape: Tape
    loss: str
    brief: bool = False

    # --- names -----------------------------------------------------------------------------------------

    @functools.cached_property
    def held(self) -> frozenset[str]:
        return frozenset(self.tape.names)

    @functools.cached_property
    def same(self) -> Mapping[int, Value]:
        """Values that are another value over again: the same outside of a body, or before a change of type."""
        found = dict(outside(self.tape.graph))
        for node in self.tape.graph.walk():
            if is_same(node):
                found[node.outputs[0].id] = node.operands[0]
        return found

    def root(self, value: Value) -> Value:
        """The value that a value is over again."""
        while value.id in self.same:
            value = self.same[value.id]
        return value

    def called(self, value: Value) -> str:
        root = self.root(value)
        return root.name if root.name else value.name

    def d(self, value: Value) -> Spelled:
        """`dloss/dw`."""
        return quotient(self.loss, self.called(value))

    # --- numbers ---------------------------------------------------------------------------------------

    def steps(self, node: Node) -> tuple[int, ...]:
        return self.tape.graph.places[node.index].steps

    def value(self, value: Value, node: Node) -> Described:
        """A value as it was."""
        if value.literal is not None:
            return describe(value.literal)
        if value.name not in self.held:
            return NOTHING
        return describe(self.tape[value.name].value, self.steps(node), self.brief)

    def cotangent(self, value: Value, node: Node) -> Described:
        if value.name not in self.held:
            return NOTHING
        return describe(self.tape[value.name].cotangent, self.steps(node), self.brief)

    def numbers(self, node: Node) -> Mapping[int, Any] | None:
        """The operands of a node as numbers, by id; None where one of them is an array, or not known."""
        if self.steps(node):
            return None
        found = {}
        for operand in distinct(node.operands):
            number = self._number(operand)
            if number is None:
                return None
            found[operand.id] = number
        return found

    def _number(self, value: Value) -> Any:
        root = self.root(value)
        if value.shape != ():
            return None
        if root.literal is not None:
            return describe(root.literal).number
        known = next((v for v in (value, root) if v.name in self.held), None)
        return None if known is None else describe(self.tape[known.name].value).number

    def slope(self, node: Node, wrt: Value) -> Described:
        """The local gradient of a node, of a scalar by a scalar."""
        scalar = wrt.shape == () and node.shape == () and len(node.outputs) == 1
        if not scalar or not self.tape.is_full or node.name not in self.held:
            return NOTHING
        try:
            return describe(edge(self.tape, node.outputs[0], wrt).jacobian(), self.steps(node))
        except (ValueError, KeyError, TypeError):
            return NOTHING

    # --- wiring ----------------------------------------------------------------------------------------

    @functools.cached_property
    def _readers(self) -> Mapping[int, list[Node]]:
        return readers_of(self.tape.graph)

    def readers(self, value: Value) -> list[Reader]:
        """The nodes a cotangent of a value comes from."""
        return list(self._reading(value, None))

    def _reading(self, value: Value, through: Node | None) -> Iterator[Reader]:
        for node in self._readers.get(value.id, ()):
            own = list(self._reading(node.outputs[0], through or node)) if is_same(node) else []
            if own:
                yield from own
            else:
                yield Reader(node, value, through or node)

    def by_other_ways(self, node: Node, wrt: Value) -> bool:
        """Whether a node makes the result, and the result depends on a value it reads in other ways too."""
        is_result = any(value.name == self.loss for value in node.outputs)
        return is_result and len(self.readers(self.root(wrt))) > 1

    def branch_taken(self, node: Node, number: int) -> Any:
        """Whether a branch of a `cond` was taken, one for each step; None where that is not known."""
        for inner in node.graphs[number].nodes:
            for value in inner.outputs:
                if value.name in self.held:
                    taken = self.tape[value.name].taken
                    return None if taken is None or _jaxpr.is_tracer(taken) else np.asarray(taken)
        return None

    def maker(self, value: Value) -> Node:
        return makers(self.tape.graph)[value.id]


def is_same(node: Node) -> bool:
    """Whether a node changes nothing: a conversion to the type its operand has."""
    if node.eqn is None or node.eqn.primitive.name != "convert_element_type":
        return False
    before, after = node.operands[0], node.outputs[0]
    return before.id >= 0 and before.literal is None and before.dtype == after.dtype
