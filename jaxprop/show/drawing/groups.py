"""Which nodes are drawn as a group: by scope, by body, by function, and long rows by place in the program."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ...core.graph import Graph, Node
from .scene import Box

#: A level of a graph with more items than this is cut into ranges; without scopes, first by function.
CROWDED, RANGE = 60, 40
_BODIES = {"scan": "scan", "cond": "cond", "checkpoint": "checkpoint", "while": "while"}


@dataclass
class _Group:
    """A box on its way: items are nodes and groups in program order."""

    name: str
    path: str
    kind: str
    items: list["Node | _Group"] = field(default_factory=list)
    node: int | None = None
    branch: int | None = None


class Boxes:
    """The boxes of a graph.

    Attributes:
        boxes: the boxes, each after the one it lies in.
        of: the box of each node, by its number; nodes outside of all boxes are missing.

    Consecutive nodes of one scope are one box, so no two boxes ever feed each other in a circle.
    """

    def __init__(self, graph: Graph) -> None:
        self.boxes: list[Box] = []
        self.of: dict[int, str] = {}
        self._parents: dict[str, str | None] = {}
        self._add_level(graph, None, "")

    def _add_level(self, graph: Graph, box: str | None, scope: str) -> None:
        items = list(_grouped(graph.equations(), tuple(filter(None, scope.split("/")))))
        self._add(_eased(items), box)
        self._place_heads(graph, box)
        for node in graph.nodes:
            for number, nested in enumerate(node.graphs):
                self._add_body(node, number, nested)

    def _add_body(self, node: Node, number: int, nested: Graph) -> None:
        kind = _BODIES.get(node.primitive, "custom")
        branch = number if len(node.graphs) > 1 else None
        name = node.name if branch is None else f"{node.name}: branch {number}"
        if kind == "while":
            name = f"{node.name}: {('condition', 'body')[number]}" if len(node.graphs) == 2 else node.name
        path = "/".join(filter(None, (node.scope, node.primitive)))
        group = _Group(name, path, kind, [], node.index, branch)
        inner = self._open(group, self.of.get(node.index))
        self._add_level(nested, inner, node.scope)

    def _open(self, group: _Group, parent: str | None) -> str:
        name = f"b{len(self.boxes)}"
        self.boxes.append(Box(name, group.name, group.path, group.kind, parent, group.node, group.branch))
        self._parents[name] = parent
        return name

    def _add(self, items: Iterable[Node | _Group], box: str | None) -> None:
        for item in items:
            if isinstance(item, Node):
                if box is not None:
                    self.of[item.index] = box
            else:
                self._add(item.items, self._open(item, box))

    def _place_heads(self, graph: Graph, box: str | None) -> None:
        """Put each argument where all its readers are."""
        heads = {value.id: node.index for node in (*graph.heads, *graph.fixed) for value in node.outputs}
        ways: dict[int, list[str | None]] = {}
        for node in graph.equations():
            for value in node.operands:
                if value.id in heads:
                    way = self._way(self.of.get(node.index))
                    known = ways.setdefault(heads[value.id], way)
                    ways[heads[value.id]] = _common(known, way)
        for value in graph.outputs:
            if value.id in heads:
                ways[heads[value.id]] = self._way(box)
        for index in heads.values():
            place = ways.get(index, self._way(box))[-1]
            if place is not None:
                self.of[index] = place

    def _way(self, box: str | None) -> list[str | None]:
        """The boxes around, outermost first; None stands for the picture itself."""
        way = [box]
        while way[-1] is not None:
            way.append(self._parents[way[-1]])
        return way[::-1]


def _common(a: Sequence[str | None], b: Sequence[str | None]) -> list[str | None]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return [x for x, _ in pairs]


def _grouped(nodes: Iterable[Node], base: tuple[str, ...]) -> Iterator[Node | _Group]:
    """Consecutive nodes of one scope as groups in groups."""
    top = _Group("", "/".join(base), "scope")
    stack: list[_Group] = [top]
    for node in nodes:
        path = tuple(filter(None, node.scope.split("/")))
        inner = path[len(base) :] if path[: len(base)] == base else path
        names = [group.name for group in stack[1:]]
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(names, inner, strict=False))))
        del stack[same + 1 :]
        for name in inner[same:]:
            group = _Group(name, "/".join(filter(None, (stack[-1].path, name))), "scope")
            stack[-1].items.append(group)
            stack.append(group)
        stack[-1].items.append(node)
    yield from top.items


def _eased(items: Sequence[Node | _Group]) -> list[Node | _Group]:
    """Groups of one node dissolved, groups of one group joined, crowded ones cut."""
    eased: list[Node | _Group] = []
    for item in items:
        if isinstance(item, Node):
            eased.append(item)
            continue
        item.items = _eased(item.items)
        if len(item.items) > 1:
            eased.append(item)
            continue
        only = item.items[0]
        if isinstance(only, _Group) and only.kind == "scope":
            only.name = f"{item.name}/{only.name}"
        eased.append(only)
    return _cut(_by_function(eased) if len(eased) > CROWDED else eased)


def _by_function(items: Sequence[Node | _Group]) -> list[Node | _Group]:
    """Rows of nodes that stem from one function of the source as groups, where there is more than one."""

    def function(item: Node | _Group) -> str:
        return item.source.function if isinstance(item, Node) and item.source else ""

    rows = [(name, list(row)) for name, row in itertools.groupby(items, function)]
    if len({name for name, _ in rows if name}) < 2:
        return list(items)
    most = max({name for name, _ in rows}, key=lambda name: sum(len(row) for n, row in rows if n == name))
    found: list[Node | _Group] = []
    for name, row in rows:
        own = name and name != most and len(row) > 2
        found += [_Group(name, name, "function", _cut(row))] if own else row
    return found


def _cut(items: list[Node | _Group]) -> list[Node | _Group]:
    """A crowded row as ranges of neighbours, so often that none is crowded."""
    while len(items) > CROWDED:
        pieces = [items[i : i + RANGE] for i in range(0, len(items), RANGE)]
        items = [_range(piece) if len(piece) > 1 else piece[0] for piece in pieces]
    return items


def _range(items: list[Node | _Group]) -> _Group:
    first, last = _first(items[0]), _last(items[-1])
    return _Group(f"{first.name} … {last.name}", f"{first.index}-{last.index}", "range", items)


def _first(item: Node | _Group) -> Node:
    return item if isinstance(item, Node) else _first(item.items[0])


def _last(item: Node | _Group) -> Node:
    return item if isinstance(item, Node) else _last(item.items[-1])
