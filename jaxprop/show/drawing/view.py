"""What of a scene is drawn: which boxes are open, which nodes and edges are seen then."""

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...core.selectors import nearest
from .scene import Box, Edge, Scene, SceneNode

#: By default so many boxes are opened that at most this number of cards is drawn.
MOST_CARDS = 150


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn between two cards: one edge, or several that run together.

    Attributes:
        source, target: ids of the cards.
        edges: the edges, in the order of the scene.
        active: whether a cotangent flows back along it: not from a branch that was not taken.
    """

    source: str
    target: str
    edges: tuple[Edge, ...]
    active: bool


@dataclass(frozen=True, slots=True)
class View:
    """A scene with some of its boxes open.

    Attributes:
        scene: the scene.
        open: the boxes drawn as frames, parents first.
        nodes: the nodes drawn as cards.
        closed: the boxes drawn as cards.
        lines: what connects the cards.
        notes: what is not drawn, and why.
    """

    scene: Scene
    open: tuple[Box, ...]
    nodes: tuple[SceneNode, ...]
    closed: tuple[Box, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def view_of(scene: Scene, collapse: Any = None, to: str | None = None) -> View:
    """Choose what is drawn.

    Args:
        collapse: None: as many levels of boxes are open as fit; a number: so many levels are open; True: none;
            False: all; a glob or several on names and paths of boxes: these are closed.
        to: the name of a value: only what lies between it and the result is drawn.

    Raises:
        KeyError: there is no value named `to`, no box that `collapse` names.
        TypeError: `collapse` is none of these.
    """
    if to is not None:
        scene = between(scene, to)
    open_ids = _open_boxes(scene, collapse)
    drawn = _Drawn(scene, open_ids)
    notes = list(scene.notes)
    if drawn.closed and any(box.kind != "custom" for box in drawn.closed):
        inside = sum(box.count for box in drawn.closed)
        boxes = "1 box" if len(drawn.closed) == 1 else f"{len(drawn.closed)} boxes"
        notes.append(f"{inside:,} of {len(scene.nodes):,} nodes are inside {boxes} drawn closed.")
    if to is not None:
        notes.append(f"Only what lies between {to} and {scene.title} is drawn.")
    return View(scene, drawn.open, drawn.nodes, drawn.closed, tuple(drawn.lines()), tuple(notes))


def display_name(node: SceneNode, boxes: Mapping[str, Box]) -> str:
    """A node's name without the scope that the boxes around it say already."""
    return _shorter(node.name, node.box, boxes)


def _shorter(name: str, box: str | None, boxes: Mapping[str, Box]) -> str:
    while box is not None:
        path = boxes[box].path
        if boxes[box].kind == "scope" and name.startswith(path + "/"):
            return name[len(path) + 1 :]
        box = boxes[box].parent
    return name


# --- which boxes are open --------------------------------------------------------------------------


def _open_boxes(scene: Scene, collapse: Any) -> frozenset[str]:
    depths = _depths(scene.boxes)
    if collapse is None:
        return _fitting(scene, depths)
    if collapse is True or collapse is False:
        return frozenset() if collapse else frozenset(depths)
    if isinstance(collapse, int):
        return frozenset(b.id for b in scene.boxes if depths[b.id] < collapse and b.kind != "custom")
    patterns = [collapse] if isinstance(collapse, str) else collapse
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"`collapse` is None, a number of levels, True, False, a glob or a list of globs; got {collapse!r}."
        )
    return _without(scene, patterns)


def _without(scene: Scene, patterns: Sequence[str]) -> frozenset[str]:
    closed = set()
    for pattern in patterns:
        escaped = pattern.replace("[", "[[]")
        found = {
            b.id for b in scene.boxes if any(fnmatch.fnmatchcase(text, escaped) for text in (b.name, b.path))
        }
        if not found:
            names = list(dict.fromkeys(box.name for box in scene.boxes))
            hint = nearest(pattern, names) if names else " The graph has no boxes."
            raise KeyError(f"no box is named {pattern!r}.{hint}")
        closed |= found
    open_ids: set[str] = set()
    for box in scene.boxes:
        inside = box.parent is None or box.parent in open_ids
        if inside and box.id not in closed and box.kind != "custom":
            open_ids.add(box.id)
    return frozenset(open_ids)


def _depths(boxes: Iterable[Box]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for box in boxes:
        depths[box.id] = 0 if box.parent is None else depths[box.parent] + 1
    return depths


def _fitting(scene: Scene, depths: Mapping[str, int]) -> frozenset[str]:
    """As many levels as fit into `MOST_CARDS`; the insides of custom rules are not for everyone."""
    found: frozenset[str] = frozenset()
    for depth in range(1, max(depths.values(), default=0) + 2):
        tried = frozenset(b.id for b in scene.boxes if depths[b.id] < depth and b.kind != "custom")
        drawn = _Drawn(scene, tried)
        if len(drawn.nodes) + len(drawn.closed) > MOST_CARDS:
            break
        found = tried
    return found


# --- what is drawn then ----------------------------------------------------------------------------


class _Drawn:
    """Cards and frames of a scene, given which boxes are open."""

    def __init__(self, scene: Scene, open_ids: frozenset[str]) -> None:
        self.scene = scene
        self.boxes = {box.id: box for box in scene.boxes}
        self.open = tuple(box for box in scene.boxes if box.id in open_ids and self._shown(box, open_ids))
        self.open_nodes = {box.node for box in self.open if box.node is not None}
        self.hosts: dict[int, str | None] = {}  # the card that stands for a node; None where a frame does
        nodes: list[SceneNode] = []
        closed: dict[str, Box] = {}
        for node in scene.nodes:
            box = self._closed_around(node.box, open_ids)
            if box is None and node.id not in self.open_nodes:
                self.hosts[node.id] = str(node.id)
                nodes.append(node)
            elif box is not None and (box.node is None or box.node in self.open_nodes):
                self.hosts[node.id] = box.id
                closed[box.id] = box
            else:
                self.hosts[node.id] = None
        self.nodes, self.closed = tuple(nodes), tuple(closed.values())
        self.idle = {str(node.id) for node in nodes if node.taken == 0.0}

    def _shown(self, box: Box, open_ids: frozenset[str]) -> bool:
        parent = box.parent
        while parent is not None:
            if parent not in open_ids:
                return False
            parent = self.boxes[parent].parent
        return True

    def _closed_around(self, box: str | None, open_ids: frozenset[str]) -> Box | None:
        """The outermost box around that is closed."""
        found = None
        while box is not None:
            if box not in open_ids:
                found = self.boxes[box]
            box = self.boxes[box].parent
        return found

    def lines(self) -> Iterator[Line]:
        leaves: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for edge in self.scene.edges:
            if edge.kind == "leave":
                leaves.setdefault(edge.target, []).append(edge.source)
        together: dict[tuple[str, str], list[Edge]] = {}
        for edge in self.scene.edges:
            if edge.kind not in ("data", "enter"):
                continue
            target = self.hosts.get(edge.target[0])
            if target is None:
                continue
            for source in self._sources(edge.source, leaves):
                if source != target:
                    together.setdefault((source, target), []).append(edge)
        for (source, target), edges in together.items():
            active = any(edge.active for edge in edges) and not {source, target} & self.idle
            yield Line(source, target, tuple(edges), active)

    def _sources(
        self, place: tuple[int, int], leaves: Mapping[tuple[int, int], list[tuple[int, int]]]
    ) -> Iterator[str]:
        """The cards a value comes from: through the results of bodies that are open."""
        if place[0] in self.open_nodes:
            for inner in leaves.get(place, []):
                yield from self._sources(inner, leaves)
            return
        host = self.hosts.get(place[0])
        if host is not None:
            yield host


# --- only the way to one value ---------------------------------------------------------------------


def between(scene: Scene, name: str) -> Scene:
    """The part of a scene that lies between one value and the result."""
    made = {out.name: node.id for node in scene.nodes for out in node.outputs if out.name}
    if name not in made:
        raise KeyError(f"there is no value named {name!r} in the graph.{nearest(name, made)}")
    onward, back = _reached(scene, made[name])
    keep = (onward & back) | {made[name]}
    nodes = tuple(node for node in scene.nodes if node.id in keep)
    edges = tuple(e for e in scene.edges if e.source[0] in keep and e.target[0] in keep)
    counts: Counter[str] = Counter()
    parents = {box.id: box.parent for box in scene.boxes}
    for node in nodes:
        box = node.box
        while box is not None:
            counts[box] += 1
            box = parents[box]
    boxes = tuple(dataclasses.replace(b, count=counts[b.id]) for b in scene.boxes if counts[b.id])
    residuals = tuple(r for r in scene.residuals if r.source[0] in keep and r.target in keep)
    return dataclasses.replace(scene, nodes=nodes, edges=edges, boxes=boxes, residuals=residuals)


def _reached(scene: Scene, start: int) -> tuple[set[int], set[int]]:
    readers: dict[int, list[int]] = {}
    makers: dict[int, list[int]] = {}
    for edge in scene.edges:
        readers.setdefault(edge.source[0], []).append(edge.target[0])
        makers.setdefault(edge.target[0], []).append(edge.source[0])
    return _closure([start], readers), _closure([node for node, _ in scene.loss], makers)


def _closure(starts: Iterable[int], neighbours: Mapping[int, list[int]]) -> set[int]:
    seen, stack = set(starts), list(starts)
    while stack:
        for item in neighbours.get(stack.pop(), []):
            if item not in seen:
                seen.add(item)
                stack.append(item)
    return seen
