"""Which value of one program is which of another: by name, by order, by what they are made from."""

import difflib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import producers
from ...core.types import ValueId
from ...record.tape import Tape

#: Operations that hand on their operand: one program may have them where the other has not.
TRANSPARENT = frozenset(
    {"convert_element_type", "reduce_precision", "copy", "copy_p", "name", "optimization_barrier"}
)


@dataclass(frozen=True, eq=False)
class Item:
    """A recorded value of a tape.

    Attributes:
        tape: the tape it is on.
        names: its name; the names of all steps, where an unrolled loop stands against a scan.
        node: the node that makes it.
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

    def forward(self) -> Any:
        return self._stacked([self.tape[name].value for name in self.names])

    def backward(self) -> Any:
        return self._stacked([self.tape[name].cotangent for name in self.names])

    def _stacked(self, parts: Sequence[Any]) -> Any:
        if any(part is None for part in parts):
            return None
        return np.stack([np.asarray(part) for part in parts]) if len(parts) > 1 else parts[0]


def align(a: Tape, b: Tape) -> list[tuple[Item, Item]]:
    """Pairs of recorded values that stand for each other, in the forward order of the first tape.

    Four passes, each over what the one before has left: the order of names without their numbers; a loop
    against its steps written out; whole names; equal operations on operands that are pairs already. Shapes are
    the same in every pair. What finds no counterpart is left out.
    """
    items_a, items_b = list(_items(a)), list(_items(b))
    pairs: dict[str, Item] = {}
    taken: set[str] = set()

    def join(one: Item, other: Item) -> None:
        pairs[one.name] = other
        taken.update(other.names)

    for i, j in _matched([_token(item) for item in items_a], [_token(item) for item in items_b]):
        join(items_a[i], items_b[j])
    for one, other in _unrolled(items_a, items_b, set(pairs), taken):
        join(one, other)
    swapped = _unrolled(items_b, items_a, taken, set(pairs))
    done = {name for _, item in swapped for name in item.names}
    by_name = {item.name: item for item in items_b}
    for item in items_a:
        other = by_name.get(item.name)
        if other is None or item.name in pairs or item.name in done or other.name in taken:
            continue
        if _fit(item, other):
            join(item, other)
    _by_operands(a.graph, items_a, items_b, pairs, taken)
    result = [(item, pairs[item.name]) for item in items_a if item.name in pairs]
    return result + [(one, other) for other, one in swapped if one.name not in pairs]


def _items(tape: Tape) -> Iterator[Item]:
    made = producers(tape.graph)
    for name in tape.names:
        value = tape.graph.value(name)
        node = made.get(value.id) or tape.graph[name]
        place = tape.graph.places.get(node.index)
        yield Item(tape, (name,), node, value, place.steps if place else ())


def _base(name: str) -> str:
    return re.sub(r"#\d+", "", name)


def _token(item: Item) -> Any:
    return _base(item.name), item.node.primitive, item.value.shape, item.steps


def _own(item: Item) -> Any:
    """What a step of a loop has in common with itself written out: its name without the body's."""
    return _base(item.name).rpartition("/")[2], item.node.primitive, item.value.shape


def _backwards(item: Item) -> bool:
    """Whether the loop around a value runs from its last step to the first."""
    parents = item.tape.graph.places[item.node.index].parents
    forms = [_jaxpr.opened_form(parent.eqn) for parent, _ in parents]
    return any(isinstance(form, _jaxpr.Scan) and form.reverse for form in forms)


def _matched(a: Sequence[Any], b: Sequence[Any]) -> Iterator[tuple[int, int]]:
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    for block in matcher.get_matching_blocks():
        for k in range(block.size):
            yield block.a + k, block.b + k


def _fit(a: Item, b: Item) -> bool:
    """Whether two values of one name may be compared: an operation written otherwise, but no loop or branch."""
    same = a.value.shape == b.value.shape and a.steps == b.steps
    return same and bool(a.node.graphs) == bool(b.node.graphs)


def _unrolled(
    loops: Sequence[Item], flats: Sequence[Item], done: set[str], taken: set[str]
) -> list[tuple[Item, Item]]:
    """Values of a loop's body, each with those of its steps written out: as many, of one name and operation."""
    steps: dict[Any, list[Item]] = defaultdict(list)
    for item in flats:
        if item.name not in taken and not item.steps:
            steps[_own(item)].append(item)
    found = []
    for item in loops:
        if item.name in done or len(item.steps) != 1:
            continue
        key = _own(item)
        alike = [other for other in loops if other.steps and _own(other) == key]
        if len(steps[key]) == item.steps[0] and len(alike) == 1:
            one = steps[key][0]
            names = tuple(other.name for other in steps[key])
            names = names[::-1] if _backwards(item) else names
            found.append((item, Item(one.tape, names, one.node, one.value, item.steps)))
    return found


def _by_operands(
    graph: Graph, items_a: Sequence[Item], items_b: Sequence[Item], pairs: dict[str, Item], taken: set[str]
) -> None:
    ids = {item.value.id: pairs[item.name].value.id for item in items_a if item.name in pairs}
    free: dict[Any, list[Item]] = defaultdict(list)
    for other in items_b:
        if other.name not in taken and other.node.operands:
            free[_made_of(other, {})].append(other)
    for item in items_a:
        if item.name in pairs or not item.node.operands:
            continue
        key = _made_of(item, ids)
        if len(free.get(key, ())) == 1:
            other = free.pop(key)[0]
            pairs[item.name], ids[item.value.id] = other, other.value.id
            taken.update(other.names)


def _made_of(item: Item, ids: Mapping[ValueId, ValueId]) -> Any:
    made = producers(item.tape.graph)

    def source(value: Value) -> Any:
        node = made.get(value.id)
        while value.id not in ids and node is not None and node.primitive in TRANSPARENT:
            value = node.operands[0]
            node = made.get(value.id)
        if value.literal is not None:
            return "literal", value.name
        return ids.get(value.id, value.id)

    position = [out.id for out in item.node.outputs].index(item.value.id)
    return item.node.primitive, position, item.value.shape, item.steps, tuple(map(source, item.node.operands))
