"""A view in the language of Graphviz: for `dot` and for everything that reads it."""

from collections.abc import Iterator

from .. import palette
from ..card import Card, cards_of
from ..scene import Box
from ..text_metrics import escape, minus, shorten
from ..view import View

_LIGHT = palette.THEMES["light"]


def dot_of(view: View) -> str:
    """Write a view as DOT: boxes are clusters, labels are HTML-like."""
    cards = cards_of(view)
    lines = [
        "digraph {",
        '  graph [fontname="Helvetica", fontsize=11, labeljust=l, nodesep=0.3, ranksep=0.45];',
        '  node [shape=plain, fontname="DejaVu Sans Mono", fontsize=11];',
        f'  edge [fontname="DejaVu Sans Mono", fontsize=9, color="{_LIGHT["forward"]}", arrowsize=0.7];',
        f"  label={_quoted(' = '.join(filter(None, (view.scene.title, view.scene.value))))}; labelloc=t;",
        *_inside(None, view, cards, "  "),
        *_edges(view),
        *(f"  // {shorten(note, 200)}" for note in view.notes),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _inside(box: str | None, view: View, cards: dict[str, Card], indent: str) -> Iterator[str]:
    open_ids = {frame.id for frame in view.open}
    for node in view.nodes:
        if (node.box if node.box in open_ids else None) == box:
            yield f"{indent}{_quoted(f'n{node.id}')} [label=<{_table(cards[str(node.id)])}>];"
    for closed in view.closed:
        if (closed.parent if closed.parent in open_ids else None) == box:
            yield f"{indent}{_quoted(closed.id)} [label=<{_table(cards[closed.id])}>];"
    for frame in view.open:
        if frame.parent == box:
            yield f"{indent}subgraph {_quoted(f'cluster_{frame.id}')} {{"
            yield f"{indent}  label={_quoted(_heading(frame))};"
            yield f'{indent}  style="rounded,filled"; fillcolor="{_LIGHT["frame"]}"; color="{_LIGHT["line"]}";'
            yield from _inside(frame.id, view, cards, indent + "  ")
            yield f"{indent}}}"


def _heading(box: Box) -> str:
    steps = f", {box.length} steps" if box.length else ""
    return f"{box.kind}: {box.name}{steps}"


def _table(card: Card) -> str:
    border = _LIGHT.get("bad" if card.alarm else card.kind, _LIGHT["line"])
    ink = _LIGHT["soft"] if border == _LIGHT["line"] else border
    fill = _LIGHT["card"] if card.active or card.kind in ("parameter", "loss") else _LIGHT["faint"]
    rows = []
    if card.tag:
        rows.append(f'<tr><td colspan="2" align="left">{_font(card.tag, ink, 8)}</td></tr>')
    kind = _font(card.type, _LIGHT["soft"], 9)
    rows.append(f'<tr><td align="left"><b>{_safe(card.name)}</b></td><td align="right">{kind}</td></tr>')
    if card.call:
        rows.append(f'<tr><td colspan="2" align="left">{_font(card.call, _LIGHT["soft"], 9)}</td></tr>')
    if card.cells:
        span = ' colspan="2"' if len(card.cells) == 1 else ""
        cells = "".join(
            f'<td{span} bgcolor="{_shade(c.shade)[0]}">{_font(c.text, _shade(c.shade)[1], 10)}</td>'
            for c in card.cells
        )
        rows.append(f"<tr>{cells}</tr>")
    wide = 2 if card.alarm or card.kind in ("parameter", "loss") else 1
    return (
        f'<table border="{wide}" cellborder="0" cellspacing="3" cellpadding="2" style="rounded" '
        f'color="{border}" bgcolor="{fill}">{"".join(rows)}</table>'
    )


def _shade(shade: str) -> tuple[str, str]:
    """Fill and ink of a cell."""
    if shade == "value":
        return _LIGHT["faint"], _LIGHT["ink"]
    fill = _LIGHT["bad"] if shade == "nan" else palette.RAMPS["light"][int(shade[1:])]
    return fill, palette.on(fill)


def _font(text: str, colour: str, size: int) -> str:
    return f'<font color="{colour}" point-size="{size}">{_safe(text)}</font>' if text else ""


def _safe(text: str) -> str:
    return escape(text).replace("&#x27;", "&#39;")


def _edges(view: View) -> Iterator[str]:
    closed = {box.id for box in view.closed}
    for line in view.lines:
        source, target = (end if end in closed else f"n{end}" for end in (line.source, line.target))
        options = [] if line.active else [f'color="{_LIGHT["weak"]}"', "style=dashed"]
        only = line.edges[0]
        if line.active and len(line.edges) == 1 and only.share is not None:
            options.append(f"label={_quoted(minus(only.share.text))}")
            options.append(f'fontcolor="{_LIGHT["backward"]}"')
        if only.local is not None and only.local.text:
            options.append(f"tooltip={_quoted(only.local.text)}")
        said = f" [{', '.join(options)}]" if options else ""
        yield f"  {_quoted(source)} -> {_quoted(target)}{said};"


def _quoted(text: str) -> str:
    """A string of DOT: whatever it holds stays text."""
    flat = " ".join(text.split())
    return '"' + flat.replace("\\", "\\\\").replace('"', '\\"') + '"'
