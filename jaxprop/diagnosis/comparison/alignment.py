"""Align two programs: which value of one is which of the other, by name, source, order and operands."""

import difflib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ... import _jaxpr
from ...core.graph import Node, Value
from ...core.structure import producers
from ...core.types import Array, ValueId
from ...record.tape import Tape

#: Operations that pass their operand through: one program may have them where the other does not.
TRANSPARENT = frozenset(
    {"convert_element_type", "reduce_precision", "copy", "copy_p", "name", "optimization_barrier"}
)


@dataclass(frozen=True, eq=False)
class TapeValue:
    """A recorded value of a tape.

    Attributes:
        tape: the tape.
        names: its name; the names of all steps, where an unrolled loop is compared with a scan.
        node: the node that produces it.
        value: the value in the graph.
        steps: the lengths of the loops around it.
    """

    tape: Tape
    names: tuple[str, ...]
    node: Node
    value: Value
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def base(self) -> str:
        """Its name without the number that makes it unique."""
        return re.sub(r"#\d+", "", self.name)

    @property
    def is_named(self) -> bool:
        """Whether a person gave it its name, rather than its primitive."""
        return not re.fullmatch(rf"{re.escape(self.node.primitive)}(\[\d+\])?", self.base.rpartition("/")[2])

    def forward(self) -> np.ndarray | Array | None:
        return _stack_steps([self.tape[name].value for name in self.names])

    def backward(self) -> np.ndarray | Array | None:
        return _stack_steps([self.tape[name].cotangent for name in self.names])


def _stack_steps(parts: Sequence[Array | None]) -> np.ndarray | Array | None:
    if len(parts) == 1:
        return parts[0]
    known = [np.asarray(part) for part in parts if part is not None]
    return np.stack(known) if len(known) == len(parts) else None


def align(a: Tape, b: Tape) -> list[tuple[TapeValue, TapeValue]]:
    """Pair the recorded values that correspond to one another, in the forward order of the first tape.

    Each pass takes what those before it have left: values of one name and one expression of the source, in
        order; the same without the expression; a loop and its steps unrolled; whole names; equal operations on
        operands that are pairs already. Shapes are the same in every pair. A pair of values without a name of
        their own is dropped where their operands belong to other pairs. What has no counterpart is left out.
    """
    matching = _Matching(list(_recorded(a)), list(_recorded(b)))
    matching.by_order(lambda value: (_token(value), value.node.label))
    matching.drop_contradictions()
    matching.by_order(_token)
    matching.drop_contradictions()
    matching.by_unrolling()
    matching.by_name()
    matching.by_operands()
    return matching.result()


def _recorded(tape: Tape) -> Iterator[TapeValue]:
    made = producers(tape.graph)
    for name in tape.names:
        value = tape.graph.value(name)
        node = made.get(value.id) or tape.graph[name]
        place = tape.graph.places.get(node.index)
        yield TapeValue(tape, (name,), node, value, place.steps if place else ())


def _token(value: TapeValue) -> Hashable:
    return value.base, value.node.primitive, value.value.shape, value.steps


def _own(value: TapeValue) -> Hashable:
    """What a step of a loop has in common with that step unrolled: its name without the body's."""
    return value.base.rpartition("/")[2], value.node.primitive, value.value.shape


def _is_reversed(value: TapeValue) -> bool:
    """Whether the loop around a value runs from its last step to the first."""
    parents = value.tape.graph.places[value.node.index].parents
    forms = [_jaxpr.opened_form(parent.eqn) for parent, _ in parents]
    return any(isinstance(form, _jaxpr.Scan) and form.reverse for form in forms)


class _Matching:
    """The pairs found so far."""

    def __init__(self, a: list[TapeValue], b: list[TapeValue]) -> None:
        self.a, self.b = a, b
        self.pairs: dict[str, TapeValue] = {}  # by name in a
        self.taken: set[str] = set()  # names in b
        self.unrolled_a: list[tuple[TapeValue, TapeValue]] = []  # where the loop is in b

    def join(self, one: TapeValue, other: TapeValue) -> None:
        self.pairs[one.name] = other
        self.taken.update(other.names)

    def by_order(self, token: Callable[[TapeValue], Hashable]) -> None:
        """Match equal tokens in order: the longest common subsequences of what is left."""
        left = [value for value in self.a if value.name not in self.pairs]
        right = [value for value in self.b if value.name not in self.taken]
        matcher = difflib.SequenceMatcher(None, list(map(token, left)), list(map(token, right)), autojunk=False)
        for block in matcher.get_matching_blocks():
            for k in range(block.size):
                self.join(left[block.a + k], right[block.b + k])

    def drop_contradictions(self) -> None:
        """Drop pairs of unnamed values whose operands are paired with others."""
        ids = self._ids()
        for one in self.a:
            other = self.pairs.get(one.name)
            if other is None or one.is_named or one.steps or other.steps:
                continue
            mine = {ids.get(_source(one, operand, ids).id) for operand in one.node.operands if operand.id >= 0}
            theirs = {id_ for operand in other.node.operands for id_ in _passed_through(other, operand)}
            if not mine - {None} <= theirs:
                del self.pairs[one.name]
                self.taken.difference_update(other.names)

    def _ids(self) -> Mapping[int, int]:
        """By id of a value in a: that of its counterpart."""
        return {one.value.id: self.pairs[one.name].value.id for one in self.a if one.name in self.pairs}

    def by_unrolling(self) -> None:
        for one, other in _unrolled(self.a, self.b, set(self.pairs), self.taken):
            self.join(one, other)
        self.unrolled_a = _unrolled(self.b, self.a, self.taken, set(self.pairs))

    def by_name(self) -> None:
        """Match what has one name: an operation written otherwise, but not a loop or a branch."""
        done = {name for _, value in self.unrolled_a for name in value.names}
        by_name = {value.name: value for value in self.b}
        for one in self.a:
            other = by_name.get(one.name)
            if other is None or one.name in self.pairs or one.name in done or other.name in self.taken:
                continue
            same = one.value.shape == other.value.shape and one.steps == other.steps
            if one.is_named and same and bool(one.node.graphs) == bool(other.node.graphs):
                self.join(one, other)

    def by_operands(self) -> None:
        """Match equal operations on operands that are pairs already."""
        ids = dict(self._ids())
        free: dict[Hashable, list[TapeValue]] = defaultdict(list)
        for other in self.b:
            if other.name not in self.taken and other.node.operands:
                free[_operation(other, {})].append(other)
        for one in self.a:
            if one.name in self.pairs or not one.node.operands:
                continue
            key = _operation(one, ids)
            if len(free.get(key, ())) == 1:
                other = free.pop(key)[0]
                ids[one.value.id] = other.value.id
                self.join(one, other)

    def result(self) -> list[tuple[TapeValue, TapeValue]]:
        found = [(one, self.pairs[one.name]) for one in self.a if one.name in self.pairs]
        return found + [(one, other) for other, one in self.unrolled_a if one.name not in self.pairs]


def _unrolled(
    loops: Sequence[TapeValue], flats: Sequence[TapeValue], done: set[str], taken: set[str]
) -> list[tuple[TapeValue, TapeValue]]:
    """Values of a loop's body, each with those of its steps unrolled: as many, of one name and operation."""
    steps: dict[Hashable, list[TapeValue]] = defaultdict(list)
    for value in flats:
        if value.name not in taken and not value.steps:
            steps[_own(value)].append(value)
    alike: dict[Hashable, int] = defaultdict(int)
    for value in loops:
        alike[_own(value)] += bool(value.steps)
    found = []
    for value in loops:
        key = _own(value)
        if value.name in done or len(value.steps) != 1 or alike[key] != 1:
            continue
        if len(steps[key]) == value.steps[0]:
            one = steps[key][0]
            names = tuple(other.name for other in steps[key])
            names = names[::-1] if _is_reversed(value) else names
            found.append((value, TapeValue(one.tape, names, one.node, one.value, value.steps)))
    return found


def _source(value: TapeValue, operand: Value, ids: Mapping[int, int]) -> Value:
    """An operand, looked through operations that pass it through, as far as a value that is paired."""
    *_, last = _passed_through(value, operand).values()
    return next((one for one in _passed_through(value, operand).values() if one.id in ids), last)


def _passed_through(value: TapeValue, operand: Value) -> dict[ValueId, Value]:
    """An operand and the values it is, but for operations that pass them through; by id."""
    made, found = producers(value.tape.graph), {operand.id: operand}
    node = made.get(operand.id)
    while node is not None and node.primitive in TRANSPARENT:
        operand = node.operands[0]
        found[operand.id] = operand
        node = made.get(operand.id)
    return found


def _operation(value: TapeValue, ids: Mapping[int, int]) -> Hashable:
    """The operation a value is computed by, its operands by the ids of their counterparts."""

    def operand_key(operand: Value) -> Hashable:
        operand = _source(value, operand, ids)
        return ("literal", operand.name) if operand.literal is not None else ids.get(operand.id, operand.id)

    position = [out.id for out in value.node.outputs].index(value.value.id)
    operands = tuple(map(operand_key, value.node.operands))
    return value.node.primitive, position, value.value.shape, value.steps, operands
