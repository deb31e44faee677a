"""What an explanation shows, in order, and what it folds: statements, functions, scopes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ...core.graph import Graph, Node, Value
from .reach import downstream


@dataclass(frozen=True)
class OutlineItem:
    """A value to show, or several folded into one.

    Attributes:
        node: the operation.
        value: its output; None for the start of the bodies of an opened node.
        depth: the number of bodies around it.
        body: the items of the bodies of an opened node, with the number of the nested graph.
        count: the number of values it stands for.
        key: the scope, function or statement that was folded.
    """

    node: Node
    value: Value | None
    depth: int
    body: tuple[tuple[int, tuple["OutlineItem", ...]], ...] = ()
    count: int = 1
    key: str = ""

    @property
    def is_gap(self) -> bool:
        """Whether it stands for values that are left out."""
        return self.key == _GAP


#: The key of an item that stands for what is left out.
_GAP = "..."


@dataclass(frozen=True)
class Outline:
    """The items of a graph.

    Attributes:
        items: in forward order; the items of a body belong to its node.
        folded: what was folded: "" (nothing), `statement`, `function`, `scope`, or `middle`.
        total: the number of values.
    """

    items: tuple[OutlineItem, ...]
    folded: str = ""
    total: int = 0


def outline(graph: Graph, shown: Callable[[Value], bool], limit: int) -> Outline:
    """The items of all values that are shown, folded until there are at most `limit`."""
    items = tuple(_graph_items(graph, shown, 0))
    total = _shown_count(items)
    if total <= limit:
        return Outline(items, "", total)
    for folded, key in _KEYS:
        fewer = _fold(items, key)
        if _shown_count(fewer) <= limit:
            return Outline(fewer, folded, total)
    return Outline(tuple(_ends_only(items, limit)), "middle", total)


def depends_on(graph: Graph, start: Value | None) -> Callable[[Value], bool]:
    """Whether a value depends on `start`; with None, every value does."""
    if start is None:
        return lambda value: True
    ids = downstream(graph, start.id)
    return lambda value: value.id in ids


def _graph_items(graph: Graph, shown: Callable[[Value], bool], depth: int) -> Iterator[OutlineItem]:
    nodes: Sequence[Node] = tuple(graph.equations()) if depth == 0 else (*graph.heads, *graph.equations())
    for node in nodes:
        bodies = []
        if node.opened:
            for number, nested in enumerate(node.graphs):
                body = tuple(_graph_items(nested, shown, depth + 1))
                if body:
                    bodies.append((number, body))
        if bodies:
            yield OutlineItem(node, None, depth, tuple(bodies))
        for value in node.outputs:
            if value.name and shown(value):
                yield OutlineItem(node, value, depth)


def _shown_count(items: Sequence[OutlineItem]) -> int:
    return sum((item.value is not None) + sum(_shown_count(body) for _, body in item.body) for item in items)


# --- folding -----------------------------------------------------------------------------------------


def _by_statement(node: Node) -> str | None:
    return None if node.source is None else f"{node.source}"


def _by_function(node: Node) -> str | None:
    return None if node.source is None else f"{node.source.function} in {str(node.source).split(':')[0]}"


def _by_scope(depth: int) -> Callable[[Node], str | None]:
    return lambda node: "/".join(node.scope.split("/")[:depth]) or None


_KEYS: tuple[tuple[str, Callable[[Node], str | None]], ...] = (
    ("statement", _by_statement),
    *(("scope", _by_scope(depth)) for depth in (6, 5, 4, 3, 2)),
    ("function", _by_function),
    ("scope", _by_scope(1)),
)


def _fold(items: Sequence[OutlineItem], key: Callable[[Node], str | None]) -> tuple[OutlineItem, ...]:
    """Fold runs of values with one key into the last of them."""
    found: list[OutlineItem] = []
    last: str | None = None
    for item in items:
        own = key(item.node)
        if item.body:
            body = tuple((number, _fold(inner, key)) for number, inner in item.body)
            found.append(OutlineItem(item.node, None, item.depth, body))
            last = None
            continue
        if own is not None and own == last and found:
            count = found[-1].count + 1
            found[-1] = OutlineItem(item.node, item.value, item.depth, (), count, own)
        else:
            found.append(item)
        last = own
    return tuple(found)


def _ends_only(items: Sequence[OutlineItem], limit: int) -> Iterator[OutlineItem]:
    """The first and the last items; bodies are left out."""
    flat = [item for item in items if item.value is not None]
    half = max(limit // 2, 1)
    if len(flat) <= 2 * half:
        yield from flat
        return
    yield from flat[:half]
    gap = flat[half : len(flat) - half]
    yield OutlineItem(gap[-1].node, gap[-1].value, 0, (), len(gap), _GAP)
    yield from flat[-half:]
