"""What a tape records of each value, in words, and the names of values."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import outside, producers
from ...core.types import Array, ValueId
from ...record.tape import Tape
from ..symbolic.derive import Statement
from ..symbolic.expressions import PrimitiveReader
from ..symbolic.formula import Formulas, has_own_name
from ..symbolic.names import Spelled
from ..symbolic.reader import checked_primitives
from .pieces import edge, quotient
from .statements import Statements, statements_of
from .values import NOTHING, Described, describe, has_only_finite


class Consumer(NamedTuple):
    """A statement that consumes a value.

    Attributes:
        statement: the statement.
        read: the value it reads: this one, or a copy of it.
        through: the operations that read it: the keys of its contributions in `tape.shares`.
    """

    statement: Statement
    read: Value
    through: tuple[str, ...]

    @property
    def node(self) -> Node:
        return self.statement.nodes[-1]

    @property
    def out(self) -> Value:
        return self.statement.outputs[0]


@dataclass(frozen=True)
class Lookup:
    """Everything a tape can say about a value.

    Attributes:
        tape: the tape.
        loss: the name of the result, as in `dloss/dw`.
        primitives: how each primitive is read.
        statements: the statements of its graph.
        brief: whether arrays are described without their first elements.
    """

    tape: Tape
    loss: str
    primitives: Mapping[str, PrimitiveReader]
    statements: Statements
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
    def copies(self) -> Mapping[ValueId, Value]:
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

    def numbers(self, statement: Statement) -> Mapping[ValueId, float | complex] | None:
        """Inputs and outputs of a statement as numbers, by id; None if an input is an array or unknown."""
        if self.steps(statement.nodes[-1]):
            return None
        found = {value.id: self._number(value) for value in statement.inputs}
        if None in found.values():
            return None
        found |= {output.id: self._number(output) for output in statement.outputs}
        return {id_: number for id_, number in found.items() if number is not None}

    def _number(self, value: Value) -> float | complex | None:
        original = self.original(value)
        if value.shape != ():
            return None
        if original.literal is not None:
            return describe(original.literal).number
        known = next((v for v in (value, original) if v.name in self.recorded), None)
        return None if known is None else describe(self.tape[known.name].value).number

    def is_finite(self, statement: Statement) -> bool:
        """Whether no value and no cotangent in a statement is NaN or infinite: else it is shown in full.

        The formula of a whole statement holds for finite numbers: a mask in it drops a `0 * inf`.
        """
        names = {name for node in statement.nodes for name in node.names} & self.recorded
        entries = (self.tape[name] for name in names)
        return all(has_only_finite(entry.value) and has_only_finite(entry.cotangent) for entry in entries)

    @functools.cached_property
    def _slopes(self) -> dict[tuple[int, int], Described]:
        return {}

    def slope(self, statement: Statement, wrt: Value) -> Described:
        """The local gradient of a statement, of a scalar with respect to a scalar."""
        node, out = statement.nodes[-1], statement.outputs[0]
        scalar = wrt.shape == () and out.shape == () and len(node.outputs) == 1
        if not scalar or not self.tape.is_full or out.name not in self.recorded:
            return NOTHING
        key = node.index, wrt.id
        if key not in self._slopes:
            self._slopes[key] = self._slope(statement, wrt)
        return self._slopes[key]

    def _slope(self, statement: Statement, wrt: Value) -> Described:
        node, out = statement.nodes[-1], statement.outputs[0]
        numbers = None if len(statement.nodes) == 1 else self.numbers(statement)
        if numbers is not None:
            return describe(_derivative_at(statement, wrt, numbers))
        try:
            local = edge(self.tape, out, wrt)
            inside = {inner.index for inner in local.path} <= {inner.index for inner in statement.nodes}
            return describe(local.jacobian(), self.steps(node)) if inside else NOTHING
        except (ValueError, KeyError, TypeError):
            return NOTHING

    # --- structure -------------------------------------------------------------------------------------

    @functools.cached_property
    def _consumers(self) -> Mapping[ValueId, list[Node]]:
        return _active_consumers(self.tape.graph)

    def consumers(self, value: Value) -> list[Consumer]:
        """The statements that contribute to the cotangent of a value."""
        found: dict[tuple[int, int], Consumer] = {}
        for node, read, through in self._consuming(value, None):
            (head,) = self.statements.consumers_of(node)
            consumer = found.setdefault((head.index, read.id), Consumer(self.statements.of(head), read, ()))
            keys = dict.fromkeys((*consumer.through, through))
            found[head.index, read.id] = consumer._replace(through=tuple(keys))
        return list(found.values())

    def _consuming(self, value: Value, through: str | None) -> Iterator[tuple[Node, Value, str]]:
        for node in self._consumers.get(value.id, ()):
            key = through or node.name or node.primitive
            copied = is_copy(node) and self.statements.consumers_of(node) == (node,)
            own = list(self._consuming(node.outputs[0], key)) if copied else []
            yield from own or [(node, value, key)]

    def has_other_paths(self, statement: Statement, wrt: Value) -> bool:
        """Whether a statement computes the result, and the result depends on this input in other ways too."""
        is_result = any(value.name == self.loss for value in statement.outputs)
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
        return producers(self.tape.graph)[value.id]


def result_name(tape: Tape) -> str:
    """The name of the result that is differentiated, `L` if there are several."""
    pairs = zip(tape.graph.outputs, tape.seed, strict=False)
    names = [value.name for value, seed in pairs if value.active and seed is not None]
    return names[0] if len(names) == 1 else "L"


#: With more statements than this, nobody asks whether each of them can be written.
_MOST_STATEMENTS = 200


def lookup_in(
    tape: Tape, primitives: Mapping[str, PrimitiveReader], operations: bool = False, start: Value | None = None
) -> Lookup:
    """Look up what a tape records, statement by statement.

    Args:
        tape: the tape.
        primitives: how each primitive is read.
        operations: whether every operation is a statement of its own.
        start: a value that is not folded.
    """
    alone = statements_of(tape.graph, lambda node: False)
    lookup = Lookup(tape, result_name(tape), checked_primitives(primitives), alone)
    if operations:
        return lookup

    def is_dead(node: Node) -> bool:
        return not node.active and not any(name in lookup.recorded for name in node.names)

    def may_fold(node: Node) -> bool:
        if node.opened or node.index in tape.ruled or (start is not None and node.name == start.name):
            return False
        return is_dead(node) or not has_own_name(node, node.outputs[0])

    statements = statements_of(tape.graph, may_fold)
    if len(statements.by_head) > _MOST_STATEMENTS:
        return replace(lookup, statements=statements)
    unreadable = {
        node.index
        for statement in statements.by_head.values()
        if not _can_be_written(lookup.formulas, statement) or not lookup.is_finite(statement)
        for node in statement.nodes
        if not is_dead(node)
    }
    statements = statements_of(tape.graph, lambda node: may_fold(node) and node.index not in unreadable)
    return replace(lookup, statements=statements)


def _can_be_written(formulas: Formulas, statement: Statement) -> bool:
    """Whether a statement and all its local gradients have a closed form."""
    found = (formulas.of(statement, value) for value in statement.inputs if value.active)
    return formulas.operation(statement) is not None and not any(
        formula is not None and formula.data["form"] == "map" for formula in found
    )


def _derivative_at(statement: Statement, wrt: Value, numbers: Mapping[ValueId, float | complex]) -> Array:
    """The derivative of a statement of scalars with respect to one input, at these numbers."""
    point = {value.id: jnp.asarray(numbers[value.id], value.dtype) for value in statement.inputs}

    def along(x: Array) -> Array:
        return statement.function(*(x if id_ == wrt.id else value for id_, value in point.items()))[0]

    return jax.jvp(along, (point[wrt.id],), (jnp.ones_like(point[wrt.id]),))[1]


def is_copy(node: Node) -> bool:
    """Whether a node changes nothing: it converts to the dtype its operand has."""
    if node.eqn is None or node.eqn.primitive.name != "convert_element_type":
        return False
    before, after = node.operands[0], node.outputs[0]
    return before.id >= 0 and before.literal is None and before.dtype == after.dtype


def _active_consumers(graph: Graph) -> dict[ValueId, list[Node]]:
    """The active nodes that read each value, by its id."""
    found: dict[ValueId, list[Node]] = {}
    for node in graph.walk():
        if node.active:
            for id_ in dict.fromkeys(value.id for value in node.operands if value.id >= 0):
                found.setdefault(id_, []).append(node)
    return found
