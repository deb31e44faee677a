"""The card of a node or of a closed box: its contents, its size, its drawing."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..._text import plural
from . import palette
from .layout import Rect, Size
from .scene import Box, Scene, SceneNode, Shown, Thumb
from .text_metrics import SANS, escape, middle, minus, shorten, width
from .view import SceneView, display_name

NAME, TYPE, CALL, NUMBER, TAG = 13.0, 10.5, 11.0, 12.0, 9.0
PAD, GAP = 9.0, 6.0
#: The longest name and expression in characters; the longest side of a heat map in pixels.
LONGEST_NAME, LONGEST_CALL, MAP = 36, 38, 40.0
_TAGS = {
    "parameter": "parameter", "data": "data", "const": "constant", "loss": "loss",
    "constant": "loop constant",
    "carry": "carry", "slice": "slice of step", "operand": "operand",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """A number on a card: value or cotangent."""

    text: str
    thumb: Thumb | None
    shade: str  # `value`, or the class of a step of the colour scale: `c0` to `c8`, `nan`

    @property
    def size(self) -> Size:
        wide = width(self.text, NUMBER) + 14
        if self.thumb is None:
            return Size(wide, 21)
        w, h = map_size(self.thumb)
        return Size(max(wide, w + 12), 21 + h + 5)


@dataclass(frozen=True, slots=True)
class Card:
    """The contents of a card.

    Attributes:
        id: of the node or the box.
        kind: of the node, or `closed` for a box.
        tag, name, type, call: its texts.
        cells: value and cotangent.
        tip: the details, shown under the pointer.
        active: whether a cotangent can reach it.
        alarm: how many of its numbers are not finite.
    """

    id: str
    kind: str
    tag: str
    name: str
    type: str
    call: str
    cells: tuple[Cell, ...]
    tip: str
    active: bool
    alarm: int = 0

    @property
    def size(self) -> Size:
        head = width(self.name, NAME) + (GAP * 2 + width(self.type, TYPE) if self.type else 0)
        cells = sum(cell.size.width for cell in self.cells) + GAP * max(len(self.cells) - 1, 0)
        tag = width(self.tag, TAG, SANS) * 1.12 + (16 if self.alarm else 0)
        wide = max(head, width(self.call, CALL), cells, tag, 44.0) + 2 * PAD
        high = 2 * PAD - 2 + NAME + (13 if self.tag else 0) + (16 if self.call else 0)
        high += (7 + max(cell.size.height for cell in self.cells)) if self.cells else 0
        return Size(math.ceil(wide), math.ceil(high))


def cards_of(view: SceneView) -> dict[str, Card]:
    """The cards of a view, by id."""
    boxes = {box.id: box for box in view.scene.boxes}
    calls = _calls(view)
    carried = _carried(view.scene)
    cards = {str(n.id): _node_card(n, view.scene, boxes, calls[n.id], carried) for n in view.nodes}
    return cards | {box.id: _box_card(box, view.scene) for box in view.closed}


def _calls(view: SceneView) -> dict[int, str]:
    """The second line of each card: the expression in the source, or the operation.

    Several operations may come from one expression; only the last of them shows it.
    """
    last = {(node.source, node.label): node.id for node in view.scene.nodes if node.label}
    return {
        node.id: node.label if node.label and last[node.source, node.label] == node.id else node.call
        for node in view.nodes
    }


def _carried(scene: Scene) -> Mapping[int, str]:
    """By carry of a scan: the name of the value it has in the next step."""
    return {edge.target[0]: edge.name for edge in scene.edges if edge.kind == "carry"}


def _node_card(
    node: SceneNode, scene: Scene, boxes: Mapping[str, Box], call: str, carried: Mapping[int, str]
) -> Card:
    out = node.outputs[0] if node.outputs else None
    cells = []
    if out is not None and out.value is not None:
        cells.append(Cell(minus(out.value.text), out.value.thumb, "value"))
    if out is not None and out.cotangent is not None and node.taken != 0.0:
        cells.append(_cotangent_cell(out.cotangent, scene))
    more = f" +{len(node.outputs) - 1}" if len(node.outputs) > 1 else ""
    bad = 0 if node.constant else nonfinite(node)
    tag = _TAGS.get(node.kind, "")
    if node.id in carried:
        tag += f", next: {middle(carried[node.id], LONGEST_NAME)}"
    if bad:
        tag = f"{plural(bad, 'non-finite number')}{', ' + tag if tag else ''}"
    return Card(
        id=str(node.id),
        kind=node.kind,
        tag=tag,
        name=middle(display_name(node, boxes), LONGEST_NAME),
        type=(out.type if out else "") + more,
        call=shorten(call, LONGEST_CALL),
        cells=tuple(cells),
        tip="\n".join(_tip(node, scene)),
        active=node.active and node.taken != 0.0,
        alarm=bad,
    )


def nonfinite(node: SceneNode) -> int:
    """The count of non-finite numbers in the values and cotangents of a node."""
    return sum(s.nonfinite for out in node.outputs for s in (out.value, out.cotangent) if s is not None)


def _cotangent_cell(shown: Shown, scene: Scene) -> Cell:
    shade = "nan" if shown.nonfinite else _shade(shown.norm, scene)
    return Cell("∂ " + minus(shown.text), shown.thumb, shade)


def _shade(norm: float | None, scene: Scene) -> str:
    return f"c{palette.ramp_step(norm, scene.scale) or 0}"


def _box_card(box: Box, scene: Scene) -> Card:
    cells = []
    if box.cotangent is not None:
        cells.append(Cell(f"∂ ≤ {box.cotangent:.3g}", None, _shade(box.cotangent, scene)))
    steps = f", {plural(box.length, 'step')}" if box.length else ""
    tag = f"{box.kind}{steps}" if not box.nonfinite else f"non-finite in {plural(box.nonfinite, 'node')}"
    name = middle(box.name, LONGEST_NAME)
    return Card(
        id=box.id,
        kind="closed",
        tag=tag,
        name=name,
        type=plural(box.count, "node"),
        call="",
        cells=tuple(cells),
        tip=f"{box.kind} {box.path or box.name}: {plural(box.count, 'node')} inside",
        active=box.active,
        alarm=box.nonfinite,
    )


def _tip(node: SceneNode, scene: Scene) -> Iterator[str]:
    for out in node.outputs:
        yield f"{out.name or '_'}: {out.type}"
        for word, shown in (("value", out.value), ("cotangent", out.cotangent)):
            if shown is not None:
                yield f"  {word}: {_statistics_of(shown)}"
    if node.call:
        yield f"= {node.call}"
    if node.source is not None:
        line = scene.sources[node.source]
        yield f"{line.file}:{line.line}, {line.function}: {line.text}"
    if not node.active:
        yield "no cotangent can reach it"
    elif node.taken == 0.0:
        yield "its branch was not taken"


def _statistics_of(shown: Shown) -> str:
    if shown.mean is None:
        return shown.text
    parts = (
        ("norm", shown.norm),
        ("mean", shown.mean),
        ("std", shown.std),
        ("min", shown.min),
        ("max", shown.max),
    )
    texts = [f"{name} {x:.4g}" for name, x in parts if x is not None]
    if shown.zeros:
        texts.append(f"{shown.zeros:.0%} zeros")
    if shown.nonfinite:
        texts.append(f"{shown.nonfinite} non-finite")
    return ", ".join(texts)


# --- drawing ---------------------------------------------------------------------------------------


def draw_card(card: Card, at: Rect) -> str:
    """Draw a card as SVG in a rectangle."""
    x, y, w, h = at
    classes = f"card {card.kind}{'' if card.active or card.kind in ('data', 'const') else ' idle'}"
    if card.alarm:
        classes += " bad"
    parts = [f'<g class="{classes}"><title>{escape(card.tip)}</title>']
    if card.kind == "closed":
        parts.append(
            f'<rect class="under" x="{f(x + 4)}" y="{f(y + 4)}" width="{f(w)}" height="{f(h)}" rx="6"/>'
        )
    parts.append(f'<rect class="plate" x="{f(x)}" y="{f(y)}" width="{f(w)}" height="{f(h)}" rx="6"/>')
    if card.kind in ("parameter", "loss"):
        parts.append(
            f'<rect class="mark" x="{f(x + 3)}" y="{f(y + 6)}" width="3" height="{f(h - 12)}" rx="1.5"/>'
        )
    line = y + PAD - 1
    if card.tag:
        line += 13
        shift = 0.0
        if card.alarm:
            parts.append(_sign(x + PAD, line - 11))
            shift = 15.0
        parts.append(f'<text class="tag" x="{f(x + PAD + shift)}" y="{f(line - 3)}">{escape(card.tag)}</text>')
    line += NAME
    parts.append(f'<text class="name" x="{f(x + PAD)}" y="{f(line - 2)}">{escape(card.name)}</text>')
    if card.type:
        parts.append(
            f'<text class="type" x="{f(x + w - PAD)}" y="{f(line - 2)}" text-anchor="end">'
            f"{escape(card.type)}</text>"
        )
    if card.call:
        line += 16
        parts.append(f'<text class="call" x="{f(x + PAD)}" y="{f(line - 3)}">{escape(card.call)}</text>')
    parts += _cells(card, at, line + 7)
    parts.append("</g>")
    return "".join(parts)


def _cells(card: Card, at: Rect, top: float) -> Iterator[str]:
    if not card.cells:
        return
    inner = at.width - 2 * PAD - GAP * (len(card.cells) - 1)
    natural = sum(cell.size.width for cell in card.cells)
    high = max(cell.size.height for cell in card.cells)
    left = at.x + PAD
    for cell in card.cells:
        wide = cell.size.width * inner / natural
        yield from _cell(cell, Rect(left, top, wide, high))
        left += wide + GAP


def _cell(cell: Cell, at: Rect) -> Iterator[str]:
    yield (
        f'<rect class="cell {cell.shade}" x="{f(at.x)}" y="{f(at.y)}" width="{f(at.width)}" '
        f'height="{f(at.height)}" rx="3"/>'
    )
    ink = "" if cell.shade == "value" else f" on{cell.shade.removeprefix('c')}"
    center = at.x + at.width / 2
    yield (
        f'<text class="number{ink}" x="{f(center)}" y="{f(at.y + 15)}" text-anchor="middle">'
        f"{escape(cell.text)}</text>"
    )
    if cell.thumb is not None:
        yield heat_map(cell.thumb, center - map_size(cell.thumb).width / 2, at.y + 21)


def map_size(thumb: Thumb) -> Size:
    """The size of a thumbnail, in pixels."""
    if thumb.rows == 1:
        return Size(min(2 * MAP, 9.0 * thumb.cols), 9.0)
    return Size(min(MAP, 9.0 * thumb.cols), min(MAP, 9.0 * thumb.rows))


def heat_map(thumb: Thumb, x: float, y: float) -> str:
    """Draw a thumbnail as one path for each colour, so that it is sharp at any size and in print."""
    w, h = map_size(thumb)
    paths: dict[str, list[str]] = {}
    for row in range(thumb.rows):
        cells = thumb.data[row * thumb.cols : (row + 1) * thumb.cols]
        for start, length, shade in _runs([_level(value) for value in cells]):
            paths.setdefault(shade, []).append(f"M{start} {row}h{length}v1h-{length}z")
    drawn = "".join(f'<path class="{shade}" d="{"".join(parts)}"/>' for shade, parts in sorted(paths.items()))
    frame = f'<rect class="rim" x="{f(x)}" y="{f(y)}" width="{f(w)}" height="{f(h)}"/>'
    place = f"translate({f(x)} {f(y)}) scale({w / thumb.cols:.5g} {h / thumb.rows:.5g})"
    return f'<g transform="{place}" shape-rendering="crispEdges">{drawn}</g>{frame}'


def _level(percent: int | None) -> str:
    return "nan" if percent is None else palette.level_class(round(percent / 100 * palette.LEVELS))


def _runs(items: list[str]) -> Iterator[tuple[int, int, str]]:
    start = 0
    for i in range(1, len(items) + 1):
        if i == len(items) or items[i] != items[start]:
            yield start, i - start, items[start]
            start = i


def _sign(x: float, y: float) -> str:
    """A triangle with an exclamation mark."""
    return (
        f'<path class="sign" d="M{f(x + 5.5)} {f(y)}l5.5 9.5h-11z"/>'
        f'<path class="bang" d="M{f(x + 5.5)} {f(y + 3)}v3.2m0 1.2v1.2"/>'
    )


def f(x: float) -> str:
    """Write a coordinate to a tenth of a pixel."""
    text = f"{x:.1f}"
    return text[:-2] if text.endswith(".0") else text
