"""A view as Mermaid, which GitHub, GitLab and notebooks draw from Markdown."""

from collections.abc import Iterator

from .. import palette
from ..card import Card, cards_of
from ..text_metrics import minus, shorten
from ..view import SceneView

_LIGHT = palette.THEMES["light"]
_SHAPES = {"parameter": ("([", "])"), "loss": ("{{", "}}"), "closed": ("[[", "]]")}


def mermaid_of(view: SceneView) -> str:
    """Write a view as a Mermaid flowchart: frames are subgraphs, cotangents colour the nodes."""
    cards = cards_of(view)
    lines = ["flowchart TD", *_statements(view, cards), *_arrows(view), *_styles(cards)]
    lines += [f"  %% {shorten(note, 200)}" for note in view.notes]
    return "\n".join(lines) + "\n"


def _statements(view: SceneView, cards: dict[str, Card]) -> Iterator[str]:
    for kind, item, depth in view.nested():
        indent = "  " * (depth + 1)
        if isinstance(item, str):
            left, right = _SHAPES.get(cards[item].kind, ("(", ")"))
            yield f'{indent}{_name_of(item)}{left}"{_label(cards[item])}"{right}'
        elif kind == "open":
            yield f'{indent}subgraph {item.id}["{_literal(f"{item.kind}: {item.name}")}"]'
        else:
            yield f"{indent}end"


def _name_of(card: str) -> str:
    return card if card.startswith("b") else f"n{card}"


def _label(card: Card) -> str:
    first = f"<b>{_literal(card.name)}</b> {_literal(card.type)}".strip()
    cells = " | ".join(_literal(cell.text) for cell in card.cells)
    return "<br/>".join(filter(None, (first, _literal(card.call), cells)))


def _arrows(view: SceneView) -> Iterator[str]:
    for line in view.lines:
        only = line.edges[0]
        label = ""
        if line.active and len(line.edges) == 1 and only.share is not None:
            label = f'|"{_literal(minus(only.share.text))}"|'
        arrow = "-->" if line.active else "-.->"
        yield f"  {_name_of(line.source)} {arrow}{label} {_name_of(line.target)}"


def _styles(cards: dict[str, Card]) -> Iterator[str]:
    members: dict[str, list[str]] = {}
    for card in cards.values():
        members.setdefault(_style_name(card), []).append(_name_of(card.id))
    for name, ids in sorted(members.items()):
        yield f"  classDef {name} {_style(name)}"
        yield f"  class {','.join(ids)} {name}"


def _style_name(card: Card) -> str:
    shade = card.cells[-1].shade if card.cells else "value"
    if card.alarm:
        return "nan"
    return shade if card.active and shade != "value" else ("plain" if card.active else "idle")


def _style(name: str) -> str:
    if name in ("plain", "idle"):
        fill = _LIGHT["card" if name == "plain" else "faint"]
        return f"fill:{fill},stroke:{_LIGHT['line']},color:{_LIGHT['ink']}"
    fill = _LIGHT["bad"] if name == "nan" else palette.RAMPS["light"][int(name[1:])]
    return f"fill:{fill},stroke:{_LIGHT['line']},color:{palette.text_on(fill)}"


#: Characters with a meaning in Mermaid or in the markup of its labels, which it knows by number.
_SPECIAL = {ord(char): f"#{ord(char)};" for char in "\"#&<>;`{}[]()|\\*_~:'"}


def _literal(text: str) -> str:
    """Escape a text for a label."""
    return " ".join(text.split()).translate(_SPECIAL)
