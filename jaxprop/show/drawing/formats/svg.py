"""A view as SVG: cards, frames, both directions of each connection, a legend."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...._text import plural
from .. import palette
from ..card import cards_of, draw_card, f
from ..layout import Connection, Layout, Polyline, Rect, Size, lay_out
from ..scene import Box, LocalText, Scene
from ..text_metrics import MONO_FONTS, SANS, SANS_FONTS, escape, minus, shorten, width
from ..view import Line, SceneView

MARGIN, TITLE, LABEL, NOTE = 22.0, 17.0, 10.5, 10.5
#: The height added to a frame for its heading.
HEADROOM = 8.0
#: Both directions are drawn for up to `PAIRED` connections, local gradients for up to `LABELLED`.
PAIRED, LABELLED = 80, 40
LONGEST_LABEL = 38


class Label(NamedTuple):
    """The texts on a connection: the local gradient, and the contribution that flows back."""

    local: str
    share: str

    @property
    def size(self) -> Size:
        lines = [line for line in self if line]
        if not lines:
            return Size(0, 0)
        return Size(max(width(line, LABEL) for line in lines) + 14, 13.5 * len(lines) + 4)


def svg_of(view: SceneView, theme: str = "light", direction: str = "down") -> str:
    """Draw a view as SVG."""
    cards = cards_of(view)
    labels = _labels(view, direction)
    layout = lay_out(
        cards={i: card.size for i, card in cards.items()},
        frames=[box.id for box in view.open],
        parents=view.parents(),
        connections=[
            Connection(line.source, line.target, label.size)
            for line, label in zip(view.lines, labels, strict=True)
        ],
        direction=direction,
    )
    layout = _with_headroom(layout, view)
    legend = _Legend(view)
    title = minus(f"{view.scene.title} = {view.scene.value}" if view.scene.value else view.scene.title)
    title = shorten(title, 70)
    wide = max(layout.size.width, legend.width, width(title, TITLE)) + 2 * MARGIN
    top = MARGIN + TITLE + 16
    high = top + layout.size.height + 26 + legend.height + MARGIN
    inside = (MARGIN + (wide - 2 * MARGIN - layout.size.width) / 2, top)
    body = [
        _frames(view, layout),
        *(_connection(line, route, view) for line, route in zip(view.lines, layout.lines, strict=True)),
        _headings(view, layout),
        *(draw_card(card, layout.cards[i]) for i, card in cards.items()),
        *(_written(label, route) for label, route in zip(labels, layout.lines, strict=True)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="jaxprop-{theme}" role="img" '
        f'aria-label="{escape(f"Computational graph of {view.scene.title}")}" '
        f'width="{f(wide)}" height="{f(high)}" viewBox="0 0 {f(wide)} {f(high)}">'
        f"<style>{style(theme)}</style>"
        f'<rect class="paper" width="100%" height="100%"/>'
        f'<text class="title" x="{f(MARGIN)}" y="{f(MARGIN + TITLE - 3)}">{escape(title)}</text>'
        f'<g transform="translate({f(inside[0])} {f(inside[1])})">{"".join(body)}</g>'
        f'<g transform="translate({f(MARGIN)} {f(top + layout.size.height + 26)})">{legend.draw()}</g>'
        "</svg>\n"
    )


def _with_headroom(layout: Layout, view: SceneView) -> Layout:
    """Make room for headings: a line of text in each frame, and one more for each level of frames in it."""
    lines: dict[str, int] = {}
    for box in reversed(view.open):
        own = lines.setdefault(box.id, 1)
        if box.parent is not None:
            lines[box.parent] = max(lines.get(box.parent, 1), own + 1)
    down = HEADROOM * max(lines.values(), default=0)
    frames = {
        i: Rect(r.x, r.y + down - HEADROOM * lines[i], r.width, r.height + HEADROOM * lines[i])
        for i, r in layout.frames.items()
    }
    return Layout(
        Size(layout.size.width, layout.size.height + down),
        {i: r._replace(y=r.y + down) for i, r in layout.cards.items()},
        frames,
        tuple(
            Polyline(tuple((x, y + down) for x, y in r.points), (r.label[0], r.label[1] + down))
            for r in layout.lines
        ),
    )


# --- frames ----------------------------------------------------------------------------------------


def _frames(view: SceneView, layout: Layout) -> str:
    return "".join(_frame(box, layout.frames[box.id]) for box in view.open)


def _headings(view: SceneView, layout: Layout) -> str:
    """The titles of the frames, drawn over the lines that cross them."""
    return "".join(_heading(box, layout.frames[box.id]) for box in view.open)


def _frame(box: Box, at: Rect) -> str:
    idle = " idle" if box.taken == 0.0 else ""
    return (
        f'<rect class="frame {box.kind}{idle}" x="{f(at.x)}" y="{f(at.y)}" width="{f(at.width)}" '
        f'height="{f(at.height)}" rx="9"/>'
    )


def _heading(box: Box, at: Rect) -> str:
    words = box.name if box.kind in ("scope", "function", "range", "cond") else f"{box.kind}: {box.name}"
    taken = ""
    if box.length:
        words += f", {plural(box.length, 'step')}"
    if box.taken is not None:
        taken = {0.0: " (not taken)", 1.0: " (taken)"}.get(box.taken, f" (taken in {box.taken:.0%} of steps)")
    words += taken
    most = max(3, int((at.width - 16) / (11 * SANS)))
    text = shorten(f"branch {box.branch}{taken}" if taken and len(words) > most else words, most)
    return (
        f'<g class="heading"><title>{escape(words)}</title>'
        f'<rect x="{f(at.x + 5)}" y="{f(at.y + 3)}" width="{f(width(text, 11, SANS) + 6)}" height="14" rx="3"/>'
        f'<text x="{f(at.x + 8)}" y="{f(at.y + 14)}">{escape(text)}</text></g>'
    )


# --- connections -----------------------------------------------------------------------------------


def _labels(view: SceneView, direction: str) -> list[Label]:
    """The label of each line, empty if there are many lines."""
    names = {
        (node.id, i): out.short or out.name for node in view.scene.nodes for i, out in enumerate(node.outputs)
    }
    back = "↑" if direction == "down" else "←"
    found = []
    for line in view.lines:
        edge = line.edges[0]
        if len(view.lines) > LABELLED or len(line.edges) != 1 or edge.local is None or not line.active:
            found.append(Label("", ""))
            continue
        share = f"{back} {minus(edge.share.text)}" if edge.share else ""
        ends = names.get((edge.target[0], 0), ""), names.get(edge.source, "")
        found.append(Label(_local_text(edge.local, *ends), share))
    return found


def _local_text(local: LocalText, of: str, wrt: str) -> str:
    """The formula with its number, or the part of it that fits."""
    number = "" if local.number is None else minus(f"{local.number:.4g}")
    left, _, right = local.text.partition(" = ")
    is_quotient = "/d" in left
    for formula in (local.text, f"d{of}/d{wrt} = {right}" if is_quotient else "", "" if is_quotient else right):
        same = not number or number == formula or formula.endswith(f"= {number}")
        whole = formula if same else f"{formula} = {number}"
        if formula and len(whole) <= LONGEST_LABEL:
            return whole
    return number or shorten(right, LONGEST_LABEL) or local.kind


def _connection(line: Line, route: Polyline, view: SceneView) -> str:
    tip = ", ".join(dict.fromkeys(edge.name for edge in line.edges))
    start = f'<g class="line{"" if line.active else " idle"}"><title>{escape(tip)}</title>'
    if not line.active or len(view.lines) > PAIRED or view.scene.numbers == "none":
        return f"{start}{_arrow(route.points, 'there')}</g>"
    there, back = _shifted(route.points, 2.6), _shifted(route.points, -2.6)[::-1]
    bad = any(edge.share is not None and edge.share.nonfinite for edge in line.edges)
    kind = "back bad" if bad else "back"
    return f"{start}{_arrow(there, 'there')}{_arrow(back, kind, _weight(line, view.scene))}</g>"


def _weight(line: Line, scene: Scene) -> float:
    """The width of a backward line: 1 to 2.5, by the norm of the contribution."""
    norms = [edge.share.norm for edge in line.edges if edge.share is not None and edge.share.norm]
    finite = [norm for norm in norms if math.isfinite(norm)]
    if not finite or scene.scale is None:
        return 1.2
    low, high = scene.scale
    return 1 + 1.5 * min(max((math.log10(max(finite)) - low) / (high - low), 0.0), 1.0)


def _arrow(points: Sequence[tuple[float, float]], kind: str, weight: float | None = None) -> str:
    """Draw a smooth line with an arrowhead."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    side = 2.8 + 0.4 * (weight or 1.0)
    x, y = x1 - dx * 2 * side, y1 - dy * 2 * side
    head = f"M{f(x1)} {f(y1)}L{f(x - dy * side)} {f(y + dx * side)}L{f(x + dy * side)} {f(y - dx * side)}z"
    wide = f' style="stroke-width:{weight:.2g}"' if weight is not None else ""
    line = _smooth([*points[:-1], (x, y)])
    return f'<path class="{kind}"{wide} d="{line}"/><path class="{kind} head" d="{head}"/>'


def _smooth(points: Sequence[tuple[float, float]]) -> str:
    """A path through the midpoints of the segments, with rounded bends."""
    text = f"M{f(points[0][0])} {f(points[0][1])}"
    for (x0, y0), (x1, y1) in zip(points[1:], points[2:], strict=False):
        text += f"Q{f(x0)} {f(y0)} {f((x0 + x1) / 2)} {f((y0 + y1) / 2)}"
    return text + f"L{f(points[-1][0])} {f(points[-1][1])}"


def _shifted(points: Sequence[tuple[float, float]], by: float) -> list[tuple[float, float]]:
    """A line parallel to another one."""
    moved = []
    for i, (x, y) in enumerate(points):
        (x0, y0), (x1, y1) = points[max(i - 1, 0)], points[min(i + 1, len(points) - 1)]
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        moved.append((x - by * (y1 - y0) / length, y + by * (x1 - x0) / length))
    return moved


def _written(label: Label, route: Polyline) -> str:
    lines = [(kind, line) for kind, line in zip(("local", "share"), label, strict=True) if line]
    if not lines:
        return ""
    (x, y), (wide, high) = route.label, label.size
    top = y - high / 2
    place = f'x="{f(x - wide / 2)}" y="{f(top)}" width="{f(wide)}" height="{f(high)}"'
    texts = "".join(
        f'<text class="{kind}" x="{f(x)}" y="{f(top + 12.5 + 13.5 * i)}" text-anchor="middle">'
        f"{escape(line)}</text>"
        for i, (kind, line) in enumerate(lines)
    )
    return f'<rect class="slip" {place} rx="3"/>{texts}'


# --- legend ----------------------------------------------------------------------------------------


class _Legend:
    """The legend: a row of symbols, the colour scale, the notes."""

    BAR = 126.0

    def __init__(self, view: SceneView) -> None:
        self.view = view
        kinds = {node.kind for node in view.nodes}
        self.items = [kind for kind in ("parameter", "data", "loss") if kind in kinds]
        if view.scene.numbers != "none" and view.scene.scale:
            self.items += ["there", "back"] if len(view.lines) <= PAIRED else []
        if any(not node.active and node.kind not in ("data", "const") for node in view.nodes):
            self.items.append("idle")
        if any(card.alarm for card in cards_of(view).values()):
            self.items.append("bad")
        self.notes = [shorten(note, 120) for note in view.notes]
        self.scale = view.scene.scale if view.scene.numbers != "none" else None

    _WORDS = {
        "parameter": "parameter", "data": "data", "loss": "result", "there": "forward: values",
        "back": "backward: cotangents ∂", "idle": "no gradient", "bad": "not finite",
    }  # fmt: skip

    @property
    def width(self) -> float:
        row = sum(26 + width(self._WORDS[item], NOTE, SANS) + 16 for item in self.items)
        ends = (2 * 70 + self.BAR + 90) if self.scale else 0
        return max([row, ends, *(width(note, NOTE, SANS) for note in self.notes)], default=0.0)

    @property
    def height(self) -> float:
        return (18 if self.items else 0) + (26 if self.scale else 0) + 16 * len(self.notes)

    def draw(self) -> str:
        parts, y = [], 0.0
        if self.items:
            parts += self._row()
            y += 18
        if self.scale:
            parts += self._bar(y + 6)
            y += 26
        for note in self.notes:
            parts.append(f'<text class="note" x="0" y="{f(y + 12)}">{escape(note)}</text>')
            y += 16
        return f'<g class="legend">{"".join(parts)}</g>'

    def _row(self) -> Iterator[str]:
        x = 0.0
        for item in self.items:
            if item in ("there", "back"):
                ends = [(x, 6.0), (x + 18, 6.0)]
                yield _arrow(ends if item == "there" else ends[::-1], item)
            else:
                kind = "card bad" if item == "bad" else "card op idle" if item == "idle" else f"card {item}"
                yield f'<g class="{kind}"><rect class="plate" x="{f(x)}" y="0" width="18" height="12" rx="3"/>'
                if item in ("parameter", "loss"):
                    yield f'<rect class="mark" x="{f(x + 2)}" y="2.5" width="3" height="7" rx="1.5"/>'
                yield "</g>"
            yield f'<text class="note" x="{f(x + 24)}" y="10">{escape(self._WORDS[item])}</text>'
            x += 26 + width(self._WORDS[item], NOTE, SANS) + 16

    def _bar(self, y: float) -> Iterator[str]:
        assert self.scale is not None
        low, high = (f"{float(f'{10**end:.2g}'):g}" for end in self.scale)
        words = "norm of ∂ "
        x = width(words, NOTE, SANS)
        yield f'<text class="note" x="0" y="{f(y + 9)}">{words}</text>'
        yield f'<text class="note" x="{f(x)}" y="{f(y + 9)}">{low}</text>'
        x += width(low, NOTE, SANS) + 6
        pieces = len(palette.RAMPS["light"])
        wide = self.BAR / pieces
        for i in range(pieces):
            yield f'<rect class="c{i}" x="{f(x + i * wide)}" y="{f(y)}" width="{f(wide)}" height="11"/>'
        yield f'<rect class="rim" x="{f(x)}" y="{f(y)}" width="{f(wide * pieces)}" height="11"/>'
        yield f'<text class="note" x="{f(x + self.BAR + 6)}" y="{f(y + 9)}">{high} (logarithmic)</text>'


# --- style -----------------------------------------------------------------------------------------


def style(theme: str) -> str:
    """The style rules of a theme; `auto` follows the system. Many SVG readers do not know CSS variables."""
    if theme != "auto":
        return _rules(f".jaxprop-{theme}", theme)
    return _rules(".jaxprop-auto", "light") + (
        "@media(prefers-color-scheme:dark){" + _rules(".jaxprop-auto", "dark") + "}"
    )


def _rules(root: str, theme: str) -> str:
    c = palette.THEMES[theme]
    mono, sans = f"font-family:{MONO_FONTS}", f"font-family:{SANS_FONTS}"
    rules = {
        "text": f"fill:{c['ink']}",
        ".paper": f"fill:{c['paper']}",
        ".title": f"{mono};font-size:17px;font-weight:bold",
        ".name": f"{mono};font-size:13px;font-weight:bold",
        ".type": f"{mono};font-size:10.5px;fill:{c['soft']}",
        ".call": f"{mono};font-size:11px;fill:{c['soft']}",
        ".tag": f"{sans};font-size:9px;fill:{c['soft']};letter-spacing:.3px",
        ".local": f"{mono};font-size:10.5px;fill:{c['forward']}",
        ".share": f"{mono};font-size:10.5px;fill:{c['backward']}",
        ".note": f"{sans};font-size:10.5px;fill:{c['soft']}",
        ".slip": f"fill:{c['paper']}",
        ".plate": f"fill:{c['card']};stroke:{c['line']};stroke-width:1",
        ".under": f"fill:{c['faint']};stroke:{c['line']};stroke-width:1",
        ".value": f"fill:{c['faint']}",
        ".rim": f"fill:none;stroke:{c['line']};stroke-width:.6",
        ".frame": f"fill:{c['frame']};stroke:{c['line']};stroke-width:1",
        ".scan": "stroke-width:1.8",
        ".cond": "stroke-dasharray:6 3",
        ".checkpoint": "stroke-dasharray:2 2",
        ".frame.idle": "opacity:.6",
        ".heading text": f"{sans};font-size:11px;fill:{c['soft']}",
        ".heading rect": f"fill:{c['frame']}",
        ".there": f"fill:none;stroke:{c['forward']};stroke-width:1.2",
        ".back": f"fill:none;stroke:{c['backward']};stroke-width:1.5",
        ".head": "stroke:none",
        ".there.head": f"fill:{c['forward']}",
        ".back.head": f"fill:{c['backward']}",
        ".back.bad": f"stroke:{c['bad']}",
        ".back.bad.head": f"fill:{c['bad']};stroke:none",
        ".line.idle .there": f"stroke:{c['weak']}",
        ".line.idle .there.head": f"fill:{c['weak']};stroke:none",
        ".card.idle .plate": f"fill:{c['faint']}",
        ".card.idle text": f"fill:{c['soft']}",
        ".parameter .plate": f"stroke:{c['parameter']};stroke-width:1.6",
        ".parameter .mark": f"fill:{c['parameter']}",
        ".parameter .tag": f"fill:{c['parameter']}",
        ".loss .plate": f"stroke:{c['loss']};stroke-width:1.6",
        ".loss .mark": f"fill:{c['loss']}",
        ".loss .tag": f"fill:{c['loss']}",
        ".data .plate": f"fill:{c['faint']};stroke-dasharray:4 2.5",
        ".const .plate": f"fill:{c['faint']};stroke-dasharray:4 2.5",
        ".data .value": f"fill:{c['card']}",
        ".const .value": f"fill:{c['card']}",
        ".card.bad .plate": f"stroke:{c['bad']};stroke-width:2",
        ".card.bad .tag": f"fill:{c['bad']}",
        ".sign": f"fill:{c['bad']}",
        ".bang": f"fill:none;stroke:{c['on_bad']};stroke-width:1.3",
        ".number": f"{mono};font-size:12px",
        **palette.rules(theme),
    }
    return "".join(f"{root} {selector}{{{rule}}}" for selector, rule in rules.items())
