"""What an explanation tells, in order, and what it folds: statements, functions, scopes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.graph import Graph, Node, Value
from .reach import downstream


@dataclass(frozen=True)
class Item:
    """A value to tell of, or what was folded into one.

    Attributes:
        node: the operation.
        value: what it makes.
        depth: how many bodies it stands in.
        body: where an opened node begins: its items, by nested graph.
        count: how many values it stands for.
        key: the scope, function or statement that was folded.
    """

    node: Node
    value: Value | None
    depth: int
    body: tuple[tuple[int, tuple["Item", ...]], ...] = ()
    count: int = 1
    key: str = ""


@dataclass(frozen=True)
class Outline:
    """The items of a graph.

    Attributes:
        items: in forward order; the items of a body hang on the node it belongs to.
        folded: by what was folded: "", `statement`, `function`, `scope`, `middle`.
        total: how many values there are.
    """

    items: tuple[Item, ...]
    folded: str = ""
    total: int = 0


def outline(graph: Graph, shown: Callable[[Value], bool], limit: int) -> Outline:
    """The items of all values that are shown, folded until there are no more than `limit`."""
    items = tuple(_items(graph, shown, 0))
    total = _count(items)
    if total <= limit:
        return Outline(items, "", total)
    for folded, key in _KEYS:
        fewer = _fold(items, key)
        if _count(fewer) <= limit:
            return Outline(fewer, folded, total)
    return Outline(tuple(_middle_out(items, limit)), "middle", total)


def reached_from(graph: Graph, start: Value | None) -> Callable[[Value], bool]:
    """Whether a value is made from `start`; with None, every value."""
    if start is None:
        return lambda value: True
    ids = downstream(graph, start.id)
    return lambda value: value.id in ids


def _items(graph: Graph, shown: Callable[[Value], bool], depth: int) -> Iterator[Item]:
    nodes: Sequence[Node] = tuple(graph.equations()) if depth == 0 else (*graph.heads, *graph.equations())
    for node in nodes:
        bodies = []
        if node.opened:
            for number, nested in enumerate(node.graphs):
                body = tuple(_items(nested, shown, depth + 1))
                if body:
                    bodies.append((number, body))
        if bodies:
            yield Item(node, None, depth, tuple(bodies))
        for value in node.outputs:
            if value.name and shown(value):
                yield Item(node, value, depth)


def _count(items: Sequence[Item]) -> int:
    return sum((item.value is not None) + sum(_count(body) for _, body in item.body) for item in items)


def _statement(node: Node) -> Any:
    source = node.source
    return None if source is None else f"{source}"


def _function(node: Node) -> Any:
    return None if node.source is None else f"{node.source.function} in {str(node.source).split(':')[0]}"


def _scope(depth: int) -> Callable[[Node], Any]:
    return lambda node: "/".join(node.scope.split("/")[:depth]) or None


_KEYS: tuple[tuple[str, Callable[[Node], Any]], ...] = (
    ("statement", _statement),
    *(("scope", _scope(depth)) for depth in (6, 5, 4, 3, 2)),
    ("function", _function),
    ("scope", _scope(1)),
)


def _fold(items: Sequence[Item], key: Callable[[Node], Any]) -> tuple[Item, ...]:
    """Runs of values of one key, as one item: that of the last."""
    found: list[Item] = []
    last: Any = None
    for item in items:
        own = key(item.node)
        if item.body:
            found.append(Item(item.node, None, item.depth, tuple((n, _fold(b, key)) for n, b in item.body)))
            last = None
            continue
        if own is not None and own == last and found:
            count = found[-1].count + 1
            found[-1] = Item(item.node, item.value, item.depth, (), count, own)
        else:
            found.append(item)
        last = own
    return tuple(found)


def _middle_out(items: Sequence[Item], limit: int) -> Iterator[Item]:
    """The first and the last items; the bodies of loops are left out."""
    flat = [item for item in items if item.value is not None]
    half = max(limit // 2, 1)
    if len(flat) <= 2 * half:
        yield from flat
        return
    yield from flat[:half]
    cut = flat[half : len(flat) - half]
    yield Item(cut[-1].node, cut[-1].value, 0, (), len(cut), "...")
    yield from flat[-half:]


def readers_of(graph: Graph) -> dict[int, list[Node]]:
    """The active nodes that read each value, by its id."""
    found: dict[int, list[Node]] = {}
    for node in graph.walk():
        if node.active:
            for id_ in dict.fromkeys(value.id for value in node.operands if value.id >= 0):
                found.setdefault(id_, []).append(node)
    return found
