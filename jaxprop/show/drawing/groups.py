"""Which nodes are drawn as a group: by scope, by body, by function, and long rows by ranges of the program."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ...core.graph import Graph, Node
from ...core.types import NodeIndex
from .scene import Box

#: A level with more items than this is cut into ranges, or first by function if it has no scopes.
CROWDED, RANGE = 60, 40
_BODIES = frozenset(("scan", "cond", "checkpoint", "while"))


@dataclass
class _Cluster:
    """A box under construction: its items are nodes and clusters in program order."""

    name: str
    path: str
    kind: str
    items: list["_Item"] = field(default_factory=list)
    node: Node | None = None
    branch: int | None = None


_Item: TypeAlias = Node | _Cluster


class Boxes:
    """The boxes of a graph.

    Consecutive nodes of one scope are one box, so that no two boxes depend on each other in a cycle.

    Attributes:
        boxes: the boxes, each after the one around it.
        of: the id of the box of each node, by index; nodes outside all boxes are missing.
    """

    def __init__(self, graph: Graph) -> None:
        self.boxes: list[Box] = []
        self.of: dict[NodeIndex, str] = {}
        self._parents: dict[str, str | None] = {}
        self._add_level(graph, None, "")
        bodies = _bodies_in(graph)
        while bodies:
            node, number, nested = bodies.pop()
            box = self._open(_body_of(node, number), self.of.get(node.index))
            self._add_level(nested, box, node.scope)
            bodies += _bodies_in(nested)

    def _add_level(self, graph: Graph, box: str | None, scope: str) -> None:
        clusters = _by_scope(graph.equations(), tuple(filter(None, scope.split("/"))))
        for cluster in reversed(clusters):  # inner clusters before those around them
            cluster.items = _simplified(cluster.items)
        self._add(clusters[0].items, box)
        self._place_inputs(graph, box)

    def _open(self, cluster: _Cluster, parent: str | None) -> str:
        id_ = f"b{len(self.boxes)}"
        node = cluster.node
        self.boxes.append(
            Box(
                id=id_,
                name=cluster.name,
                path=cluster.path,
                kind=cluster.kind,
                parent=parent,
                node=None if node is None else node.index,
                branch=cluster.branch,
                opaque=node is not None and not node.opened,
            )
        )
        self._parents[id_] = parent
        return id_

    def _add(self, items: Iterable[_Item], box: str | None) -> None:
        stack = [(iter(items), box)]
        while stack:
            rest, around = stack[-1]
            item = next(rest, None)
            if item is None:
                stack.pop()
            elif isinstance(item, _Cluster):
                stack.append((iter(item.items), self._open(item, around)))
            elif around is not None:
                self.of[item.index] = around

    def _place_inputs(self, graph: Graph, box: str | None) -> None:
        """Put each input into the innermost box that holds all its consumers."""
        heads = {value.id: node.index for node in (*graph.heads, *graph.fixed) for value in node.outputs}
        paths: dict[NodeIndex, Sequence[str | None]] = {}
        for node in graph.equations():
            for value in node.operands:
                if value.id in heads:
                    path = self._path(self.of.get(node.index))
                    known = paths.setdefault(heads[value.id], path)
                    paths[heads[value.id]] = _common_prefix(known, path)
        for value in graph.outputs:
            if value.id in heads:
                paths[heads[value.id]] = self._path(box)
        for index in heads.values():
            innermost = paths.get(index, self._path(box))[-1]
            if innermost is not None:
                self.of[index] = innermost

    def _path(self, box: str | None) -> Sequence[str | None]:
        """The boxes around, outermost first; None is the picture itself."""
        path = [box]
        while path[-1] is not None:
            path.append(self._parents[path[-1]])
        return path[::-1]


def _bodies_in(graph: Graph) -> list[tuple[Node, int, Graph]]:
    """The graphs nested in the nodes of one level, the last one first."""
    return [(node, i, nested) for node in graph.nodes for i, nested in enumerate(node.graphs)][::-1]


def _body_of(node: Node, number: int) -> _Cluster:
    kind = node.primitive if node.primitive in _BODIES else "custom"
    several = len(node.graphs) > 1
    part = ("condition", "body")[number] if kind == "while" and several else f"branch {number}"
    name = f"{part} of {node.name}" if several else node.name
    path = "/".join(filter(None, (node.scope, node.primitive)))
    return _Cluster(name, path, kind, [], node, number if several else None)


def _common_prefix(a: Sequence[str | None], b: Sequence[str | None]) -> list[str | None]:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return [x for x, _ in pairs]


def _by_scope(nodes: Iterable[Node], base: tuple[str, ...]) -> list[_Cluster]:
    """Cluster consecutive nodes of one scope; the first cluster holds all others, each precedes those in it."""
    top = _Cluster("", "/".join(base), "scope")
    found, stack = [top], [top]
    for node in nodes:
        path = tuple(filter(None, node.scope.split("/")))
        inner = path[len(base) :] if path[: len(base)] == base else path
        names = [cluster.name for cluster in stack[1:]]
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(names, inner, strict=False))))
        del stack[same + 1 :]
        for name in inner[same:]:
            cluster = _Cluster(name, "/".join(filter(None, (stack[-1].path, name))), "scope")
            stack[-1].items.append(cluster)
            stack.append(cluster)
            found.append(cluster)
        stack[-1].items.append(node)
    return found


def _simplified(items: Sequence[_Item]) -> list[_Item]:
    """Dissolve clusters of one node, merge clusters of one cluster, cut crowded rows."""
    simple: list[_Item] = []
    for item in items:
        if isinstance(item, Node) or len(item.items) > 1:
            simple.append(item)
            continue
        only = item.items[0]
        if isinstance(only, _Cluster) and only.kind == "scope":
            only.name = f"{item.name}/{only.name}"
        simple.append(only)
    return _cut(list(_by_function(simple)) if len(simple) > CROWDED else simple)


def _by_function(items: Sequence[_Item]) -> Iterator[_Item]:
    """Cluster consecutive nodes from one function of the source, unless they are all from the same one."""

    def function(item: _Item) -> str:
        return item.source.function if isinstance(item, Node) and item.source else ""

    rows = [(name, list(row)) for name, row in itertools.groupby(items, function)]
    names = {name for name, _ in rows}
    if len(names - {""}) < 2:
        yield from items
        return
    most = max(names, key=lambda name: sum(len(row) for n, row in rows if n == name))
    for name, row in rows:
        if name and name != most and len(row) > 2:
            yield _Cluster(name, name, "function", _cut(row))
        else:
            yield from row


def _cut(items: list[_Item]) -> list[_Item]:
    """Cut a crowded row into ranges, and these into ranges, until none is crowded."""
    while len(items) > CROWDED:
        pieces = [items[i : i + RANGE] for i in range(0, len(items), RANGE)]
        items = [_range_of(piece) if len(piece) > 1 else piece[0] for piece in pieces]
    return items


def _range_of(items: list[_Item]) -> _Cluster:
    first, last = _end(items[0], 0), _end(items[-1], -1)
    return _Cluster(f"{first.name} … {last.name}", f"{first.index}-{last.index}", "range", items)


def _end(item: _Item, side: int) -> Node:
    """The first (`side=0`) or last (`side=-1`) node of an item."""
    while isinstance(item, _Cluster):
        item = item.items[side]
    return item
