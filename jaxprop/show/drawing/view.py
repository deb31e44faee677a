"""Which part of a scene is drawn: the boxes that are open, and the cards and lines this leaves."""

import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..._text import suggestion
from .scene import Box, Edge, Endpoint, Scene, SceneNode

#: Which boxes are drawn closed, see `draw`.
Collapse: TypeAlias = None | bool | int | str | Sequence[str]

#: By default boxes are opened level by level while at most this many cards are drawn.
MOST_CARDS = 150


@dataclass(frozen=True, slots=True)
class Line:
    """What is drawn between two cards: one edge, or several.

    Attributes:
        source, target: ids of the cards.
        edges: the edges, in the order of the scene.
        active: whether a cotangent flows back along it. It does not from a branch that was not taken.
    """

    source: str
    target: str
    edges: tuple[Edge, ...]
    active: bool


@dataclass(frozen=True, slots=True)
class SceneView:
    """A scene with some of its boxes open.

    Attributes:
        scene: the scene.
        open: the boxes drawn as frames, outer ones first.
        nodes: the nodes drawn as cards.
        closed: the boxes drawn as cards.
        lines: the lines between cards.
        notes: what is not drawn, and why.
    """

    scene: Scene
    open: tuple[Box, ...]
    nodes: tuple[SceneNode, ...]
    closed: tuple[Box, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def parents(self) -> dict[str, str]:
        """The frame around each card and each frame; those outside all frames are missing."""
        frames = {box.id for box in self.open}
        items = [(str(node.id), node.box) for node in self.nodes]
        items += [(box.id, box.parent) for box in (*self.closed, *self.open)]
        return {item: box for item, box in items if box in frames}

    def nested(self) -> Iterator[tuple[str, str | Box, int]]:
        """Traverse the frames: `("card", id, depth)`, `("open", box, depth)` and `("close", box, depth)`."""
        parents = self.parents()
        cards: dict[str | None, list[str]] = {}
        frames: dict[str | None, list[Box]] = {}
        for item in (*(str(node.id) for node in self.nodes), *(box.id for box in self.closed)):
            cards.setdefault(parents.get(item), []).append(item)
        for box in self.open:
            frames.setdefault(parents.get(box.id), []).append(box)
        for item in cards.get(None, ()):
            yield "card", item, 0
        stack = [(box, 0) for box in reversed(frames.get(None, ()))]
        ends: list[tuple[Box, int]] = []
        while stack:
            box, depth = stack.pop()
            while ends and ends[-1][1] >= depth:
                yield "close", *ends.pop()
            yield "open", box, depth
            ends.append((box, depth))
            for item in cards.get(box.id, ()):
                yield "card", item, depth + 1
            stack += [(inner, depth + 1) for inner in reversed(frames.get(box.id, ()))]
        while ends:
            yield "close", *ends.pop()


def view_of(scene: Scene, collapse: Collapse = None, to: str | None = None) -> SceneView:
    """Choose what is drawn; the arguments are those of `draw`.

    Raises:
        KeyError: there is no value named `to`, or no box that `collapse` matches.
        TypeError: `collapse` has another type.
    """
    if to is not None:
        scene = between(scene, to)
    visible = _Visible(scene, _open_boxes(scene, collapse))
    notes = list(scene.notes)
    if any(not box.opaque for box in visible.closed):
        inside = sum(box.count for box in visible.closed)
        boxes = "1 box" if len(visible.closed) == 1 else f"{len(visible.closed)} boxes"
        notes.append(f"{inside:,} of {len(scene.nodes):,} nodes are inside {boxes} drawn closed.")
    if to is not None:
        notes.append(f"Only the nodes between {to} and {scene.title} are drawn.")
    return SceneView(scene, visible.open, visible.nodes, visible.closed, tuple(visible.lines()), tuple(notes))


def display_name(node: SceneNode, boxes: Mapping[str, Box]) -> str:
    """A node's name without the scope that the title of a box around it gives already."""
    box = node.box
    while box is not None:
        path = boxes[box].path
        if boxes[box].kind == "scope" and node.name.startswith(path + "/"):
            return node.name[len(path) + 1 :]
        box = boxes[box].parent
    return node.name


# --- which boxes are open --------------------------------------------------------------------------


def _open_boxes(scene: Scene, collapse: Collapse) -> frozenset[str]:
    if collapse is None:
        return fitting(scene, MOST_CARDS)
    if collapse is True or collapse is False:
        return frozenset() if collapse else frozenset(box.id for box in scene.boxes)
    if isinstance(collapse, int):
        return _outer_levels(scene, collapse)
    patterns = [collapse] if isinstance(collapse, str) else collapse
    if not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            "`collapse` must be None, a number of levels, True, False, a glob or a list of globs, "
            f"got {collapse!r}."
        )
    return _all_but(scene, patterns)


def fitting(scene: Scene, most: int) -> frozenset[str]:
    """The boxes of as many levels as give at most `most` cards. Opaque boxes are opened on request only."""
    found: frozenset[str] = frozenset()
    for levels in range(1, max(_depths(scene.boxes).values(), default=0) + 2):
        tried = _outer_levels(scene, levels)
        if _Visible(scene, tried).cards > most:
            break
        found = tried
    return found


def _outer_levels(scene: Scene, levels: int) -> frozenset[str]:
    depths = _depths(scene.boxes)
    return frozenset(box.id for box in scene.boxes if depths[box.id] < levels and not box.opaque)


def _depths(boxes: Iterable[Box]) -> dict[str, int]:
    depths: dict[str, int] = {}
    for box in boxes:
        depths[box.id] = 0 if box.parent is None else depths[box.parent] + 1
    return depths


def _all_but(scene: Scene, patterns: Sequence[str]) -> frozenset[str]:
    closed = set()
    for pattern in patterns:
        escaped = pattern.replace("[", "[[]")
        found = {
            b.id for b in scene.boxes if any(fnmatch.fnmatchcase(text, escaped) for text in (b.name, b.path))
        }
        if not found:
            names = list(dict.fromkeys(box.name for box in scene.boxes))
            hint = suggestion(pattern, names) if names else " The graph has no boxes."
            raise KeyError(f"no box is named {pattern!r}.{hint}")
        closed |= found
    open_ids: set[str] = set()
    for box in scene.boxes:
        if (box.parent is None or box.parent in open_ids) and box.id not in closed and not box.opaque:
            open_ids.add(box.id)
    return frozenset(open_ids)


# --- what is drawn then ----------------------------------------------------------------------------


class _Visible:
    """The cards and frames of a scene, given which boxes are open."""

    def __init__(self, scene: Scene, open_ids: frozenset[str]) -> None:
        self._scene = scene
        self._boxes = {box.id: box for box in scene.boxes}
        self.open = tuple(
            box
            for box in scene.boxes
            if box.id in open_ids and self._closed_around(box.parent, open_ids) is None
        )
        self._open_nodes = {box.node for box in self.open if box.node is not None}
        self._card_of: dict[int, str | None] = {}  # by node; None if it is drawn as a frame, or not at all
        nodes: list[SceneNode] = []
        closed: dict[str, Box] = {}
        for node in scene.nodes:
            box = self._closed_around(node.box, open_ids)
            if box is None and node.id not in self._open_nodes:
                self._card_of[node.id] = str(node.id)
                nodes.append(node)
            elif box is not None and (box.node is None or box.node in self._open_nodes):
                self._card_of[node.id] = box.id
                closed[box.id] = box
            else:
                self._card_of[node.id] = None
        self.nodes, self.closed = tuple(nodes), tuple(closed.values())
        self._not_taken = {str(node.id) for node in nodes if node.taken == 0.0}

    @property
    def cards(self) -> int:
        return len(self.nodes) + len(self.closed)

    def _closed_around(self, box: str | None, open_ids: frozenset[str]) -> Box | None:
        """The outermost closed box around."""
        found = None
        while box is not None:
            if box not in open_ids:
                found = self._boxes[box]
            box = self._boxes[box].parent
        return found

    def lines(self) -> Iterator[Line]:
        """The lines between cards, edges between the same two cards together."""
        results: dict[Endpoint, list[Endpoint]] = {}
        for edge in self._scene.edges:
            if edge.kind == "leave":
                results.setdefault(edge.target, []).append(edge.source)
        together: dict[tuple[str, str], list[Edge]] = {}
        for edge in self._scene.edges:
            target = self._card_of.get(edge.target[0])
            if edge.kind not in ("data", "enter") or target is None:
                continue
            for source in self._producers(edge.source, results):
                if source != target:
                    together.setdefault((source, target), []).append(edge)
        for (source, target), edges in together.items():
            active = any(edge.active for edge in edges) and not {source, target} & self._not_taken
            yield Line(source, target, tuple(edges), active)

    def _producers(self, start: Endpoint, results: Mapping[Endpoint, list[Endpoint]]) -> Iterator[str]:
        """The cards that produce a value; of an open body, those that produce its results."""
        stack = [start]
        while stack:
            end = stack.pop()
            if end[0] in self._open_nodes:
                stack += reversed(results.get(end, ()))
                continue
            card = self._card_of.get(end[0])
            if card is not None:
                yield card


# --- the part that depends on one value ------------------------------------------------------------


def between(scene: Scene, name: str) -> Scene:
    """The part of a scene between one value and the result."""
    produced = {out.name: node.id for node in scene.nodes for out in node.outputs if out.name}
    if name not in produced:
        raise KeyError(f"there is no value named {name!r} in the graph.{suggestion(name, produced)}")
    consumers: dict[int, list[int]] = {}
    producers: dict[int, list[int]] = {}
    for edge in scene.edges:
        consumers.setdefault(edge.source[0], []).append(edge.target[0])
        producers.setdefault(edge.target[0], []).append(edge.source[0])
    dependents = _reachable([produced[name]], consumers)
    keep = (dependents & _reachable([node for node, _ in scene.loss], producers)) | {produced[name]}
    nodes = tuple(node for node in scene.nodes if node.id in keep)
    counts: Counter[str] = Counter()
    parents = {box.id: box.parent for box in scene.boxes}
    for node in nodes:
        box = node.box
        while box is not None:
            counts[box] += 1
            box = parents[box]
    return dataclasses.replace(
        scene,
        nodes=nodes,
        edges=tuple(e for e in scene.edges if e.source[0] in keep and e.target[0] in keep),
        boxes=tuple(dataclasses.replace(b, count=counts[b.id]) for b in scene.boxes if counts[b.id]),
        reads=tuple(r for r in scene.reads if r.source[0] in keep and r.target in keep),
    )


def _reachable(starts: Iterable[int], neighbours: Mapping[int, Sequence[int]]) -> set[int]:
    seen, stack = set(starts), list(starts)
    while stack:
        for item in neighbours.get(stack.pop(), ()):
            if item not in seen:
                seen.add(item)
                stack.append(item)
    return seen
