"""A view in the language of Mermaid: what GitHub, GitLab and notebooks draw from Markdown."""

from collections.abc import Iterator

from .. import palette
from ..card import Card, cards_of
from ..text_metrics import minus, shorten
from ..view import View

_LIGHT = palette.THEMES["light"]


def mermaid_of(view: View) -> str:
    """Write a view as a Mermaid flowchart: boxes are subgraphs, cotangents colour the nodes."""
    cards = cards_of(view)
    lines = ["flowchart TD", *_inside(None, view, cards, "  "), *_edges(view), *_classes(cards)]
    lines += [f"  %% {shorten(note, 200)}" for note in view.notes]
    return "\n".join(lines) + "\n"


def _inside(box: str | None, view: View, cards: dict[str, Card], indent: str) -> Iterator[str]:
    open_ids = {frame.id for frame in view.open}
    items = [(node.id, node.box) for node in view.nodes] + [(b.id, b.parent) for b in view.closed]
    for item, parent in items:
        if (parent if parent in open_ids else None) == box:
            card = cards[str(item)]
            left, right = {"parameter": ("([", "])"), "loss": ("{{", "}}"), "closed": ("[[", "]]")}.get(
                card.kind, ("(", ")")
            )
            yield f"{indent}{_id(str(item))}{left}{_quoted(_label(card))}{right}"
    for frame in view.open:
        if frame.parent == box:
            yield f"{indent}subgraph {frame.id}[{_quoted(_line(f'{frame.kind}: {frame.name}'))}]"
            yield from _inside(frame.id, view, cards, indent + "  ")
            yield f"{indent}end"


def _id(item: str) -> str:
    return item if item.startswith("b") else f"n{item}"


def _label(card: Card) -> str:
    first = f"<b>{_line(card.name)}</b> {_line(card.type)}".strip()
    cells = " | ".join(_line(cell.text) for cell in card.cells)
    return "<br/>".join(filter(None, (first, _line(card.call), cells)))


def _edges(view: View) -> Iterator[str]:
    for line in view.lines:
        only = line.edges[0]
        said = ""
        if line.active and len(line.edges) == 1 and only.share is not None:
            said = f"|{_quoted(_line(minus(only.share.text)))}|"
        yield f"  {_id(line.source)} {'-->' if line.active else '-.->'}{said} {_id(line.target)}"


def _classes(cards: dict[str, Card]) -> Iterator[str]:
    used: dict[str, list[str]] = {}
    for card in cards.values():
        used.setdefault(_class(card), []).append(_id(card.id))
    for name, members in sorted(used.items()):
        yield f"  classDef {name} {_style(name)}"
        yield f"  class {','.join(members)} {name}"


def _class(card: Card) -> str:
    shade = card.cells[-1].shade if card.cells else "value"
    if card.alarm:
        return "nan"
    return shade if card.active and shade != "value" else ("plain" if card.active else "idle")


def _style(name: str) -> str:
    if name in ("plain", "idle"):
        fill = _LIGHT["card" if name == "plain" else "faint"]
        return f"fill:{fill},stroke:{_LIGHT['line']},color:{_LIGHT['ink']}"
    fill = _LIGHT["bad"] if name == "nan" else palette.RAMPS["light"][int(name[1:])]
    return f"fill:{fill},stroke:{_LIGHT['line']},color:{palette.on(fill)}"


#: Characters with a meaning in Mermaid or in the markup it makes of labels; it knows them by number.
_SPECIAL = {ord(char): f"#{ord(char)};" for char in "\"#&<>;`{}[]()|\\*_~:'"}


def _line(text: str) -> str:
    """Text for a label: whatever it holds stays text."""
    return " ".join(text.split()).translate(_SPECIAL)


def _quoted(text: str) -> str:
    return f'"{text}"'
