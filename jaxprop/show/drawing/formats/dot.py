"""A view as DOT, for Graphviz and every program that reads its language."""

from collections.abc import Iterator

from .. import palette
from ..card import Card, cards_of
from ..scene import Box
from ..text_metrics import escape, minus, shorten
from ..view import SceneView

_LIGHT = palette.THEMES["light"]


def dot_of(view: SceneView) -> str:
    """Write a view as DOT: frames are clusters, cards are HTML-like labels."""
    title = " = ".join(filter(None, (view.scene.title, view.scene.value)))
    lines = [
        "digraph {",
        '  graph [fontname="Helvetica", fontsize=11, labeljust=l, nodesep=0.3, ranksep=0.45];',
        '  node [shape=plain, fontname="DejaVu Sans Mono", fontsize=11];',
        f'  edge [fontname="DejaVu Sans Mono", fontsize=9, color="{_LIGHT["forward"]}", arrowsize=0.7];',
        f"  label={_string(title)}; labelloc=t;",
        *_statements(view),
        *_arrows(view),
        *(f"  // {shorten(note, 200)}" for note in view.notes),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _statements(view: SceneView) -> Iterator[str]:
    cards = cards_of(view)
    for kind, item, depth in view.nested():
        indent = "  " * (depth + 1)
        if isinstance(item, str):
            yield f"{indent}{_string(_name_of(item))} [label=<{_html_table(cards[item])}>];"
        elif kind == "open":
            yield f"{indent}subgraph {_string(f'cluster_{item.id}')} {{"
            yield f"{indent}  label={_string(_frame_title(item))};"
            yield f'{indent}  style="rounded,filled"; fillcolor="{_LIGHT["frame"]}"; color="{_LIGHT["line"]}";'
        else:
            yield f"{indent}}}"


def _name_of(card: str) -> str:
    return card if card.startswith("b") else f"n{card}"


def _frame_title(box: Box) -> str:
    steps = f", {box.length} steps" if box.length else ""
    return f"{box.kind}: {box.name}{steps}"


def _html_table(card: Card) -> str:
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
    """Fill and text colour of a cell."""
    if shade == "value":
        return _LIGHT["faint"], _LIGHT["ink"]
    fill = _LIGHT["bad"] if shade == "nan" else palette.RAMPS["light"][int(shade[1:])]
    return fill, palette.text_on(fill)


def _font(text: str, colour: str, size: int) -> str:
    return f'<font color="{colour}" point-size="{size}">{_safe(text)}</font>' if text else ""


def _safe(text: str) -> str:
    return escape(text).replace("&#x27;", "&#39;")


def _arrows(view: SceneView) -> Iterator[str]:
    for line in view.lines:
        options = [] if line.active else [f'color="{_LIGHT["weak"]}"', "style=dashed"]
        only = line.edges[0]
        if line.active and len(line.edges) == 1 and only.share is not None:
            options.append(f"label={_string(minus(only.share.text))}")
            options.append(f'fontcolor="{_LIGHT["backward"]}"')
        if only.local is not None and only.local.text:
            options.append(f"tooltip={_string(only.local.text)}")
        attributes = f" [{', '.join(options)}]" if options else ""
        yield f"  {_string(_name_of(line.source))} -> {_string(_name_of(line.target))}{attributes};"


def _string(text: str) -> str:
    """Quote a text for DOT."""
    flat = " ".join(text.split())
    return '"' + flat.replace("\\", "\\\\").replace('"', '\\"') + '"'
