"""Render a story as text, Markdown, LaTeX, or plain data."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from ..._text import shortened
from ..symbolic.latex import latex_number
from ..symbolic.names import escape
from .story import Act, Json, Story, StoryRow

#: Writes a story in some format.
Renderer: TypeAlias = Callable[[Story], str]

#: A cell longer than this does not widen its column.
_WIDEST = 46


def as_text(story: Story) -> str:
    """Render a page of text."""
    lines = [story.title]
    if story.given:
        lines += ["", *_given_lines(story.given)]
    for number, act in enumerate(story.acts, 1):
        lines += ["", *act_lines(act, number)]
    if story.end:
        lines += ["", *_aligned(story.end)]
    return "\n".join(lines) + "\n"


def act_lines(act: Act, number: int) -> list[str]:
    """Render one act as lines of text."""
    head = [f"{number}. {act.title}"]
    head += [f"   {act.intro}"] if act.intro else []
    return [*head, "", *_aligned(act.rows)]


def _given_lines(rows: Sequence[StoryRow]) -> list[str]:
    """The arguments on one line if they fit."""
    line = "Given  " + ", ".join(map(_given, rows))
    if len(line) <= 100:
        return [line]
    cells = [[f"   {row.symbol.text}", f"= {row.value}" if row.value else "", row.note] for row in rows]
    return ["Given", "", *_padded(cells)]


def _given(row: StoryRow) -> str:
    note = f" ({row.note})" if row.note else ""
    return f"{row.symbol.text} = {row.value}{note}" if row.value else f"{row.symbol.text}{note}"


def _aligned(rows: Sequence[StoryRow]) -> list[str]:
    return _padded([row_cells(row) for row in rows])


def _padded(cells: Sequence[list[str]]) -> list[str]:
    count = max((len(row) for row in cells), default=0)
    padded = [row + [""] * (count - len(row)) for row in cells]
    widths = [
        max((len(c) for c in column if len(c) <= _WIDEST), default=0) for column in zip(*padded, strict=True)
    ]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in padded]


def row_cells(row: StoryRow) -> list[str]:
    """Split a row into cells: number, symbol, formula, the rest of the equation, source and note."""
    indent = "  " * row.depth
    formulas = [formula.text for formula in row.formulas if formula]
    if row.value and (not formulas or formulas[-1] != row.value):
        formulas.append(row.value)
    first = f"= {formulas[0]}" if formulas else ""
    rest = " = ".join(["", *formulas[1:]]).strip() if len(formulas) > 1 else ""
    if row.kind == "open":
        first = f": {row.formulas[0].text}"
    if row.kind in ("note", "sum"):
        return [f"   {row.number}", f"{indent}{row.note}"]
    said = "   ".join(part for part in (row.source, row.note) if part)
    return [f"   {row.number}", f"{indent}{row.symbol.text}", first, rest, said]


# --- Markdown ----------------------------------------------------------------------------------------


def as_markdown(story: Story) -> str:
    """Render Markdown with formulas in math mode: for notebooks, GitHub and MkDocs."""
    lines = [f"## {_escaped(story.title)}", ""]
    if story.given:
        lines += ["Given " + ", ".join(map(_markdown_given, story.given)) + ".", ""]
    for number, act in enumerate(story.acts, 1):
        lines += [f"### {number}. {act.title}", ""]
        lines += [_escaped(act.intro), ""] if act.intro else []
        lines += [*(_markdown_row(row) for row in act.rows), ""]
    lines += [_markdown_row(row) for row in story.end]
    return "\n".join(lines).rstrip("\n") + "\n"


def _markdown_given(row: StoryRow) -> str:
    note = f" ({row.note})" if row.note else ""
    value = _value_latex(row)
    return f"${row.symbol.latex} = {value}${note}" if value else f"${row.symbol.latex}${note}"


def _markdown_row(row: StoryRow) -> str:
    indent = "    " * row.depth
    if row.kind in ("note", "sum"):
        return f"{indent}- {_escaped(row.note)}"
    number = f"**{row.number}** " if row.number else ""
    said = " ".join(part for part in (f"`{row.source}`" if row.source else "", _escaped(row.note)) if part)
    return f"{indent}- {number}${_row_equation(row)}$" + (f" {said}" if said else "")


def _row_equation(row: StoryRow, sign: str = "=") -> str:
    parts = [formula.latex for formula in row.formulas if formula]
    value = _value_latex(row)
    if value and (not row.formulas or row.formulas[-1].text != row.value):
        parts.append(rf"\mathbf{{{value}}}" if isinstance(row.data, int | float) else value)
    if row.kind == "open":
        return rf"{row.symbol.latex} \text{{: {escape(row.formulas[0].text)}}}"
    if not parts:
        return row.symbol.latex
    return f"{row.symbol.latex} {sign} " + " = ".join(parts)


def _value_latex(row: StoryRow) -> str:
    if isinstance(row.data, int | float) and not isinstance(row.data, bool):
        return latex_number(float(row.value))
    return rf"\text{{{escape(row.value)}}}" if row.value else ""


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in "*_`<>[]#|" else char for char in text)


# --- LaTeX ---------------------------------------------------------------------------------------------


def as_latex(story: Story) -> str:
    r"""Render a fragment of LaTeX for a document with `\usepackage{amsmath}`."""
    lines = [rf"\subsection*{{{_escaped_latex(story.title)}}}"]
    if story.given:
        lines += ["Given " + ", ".join(map(_markdown_given, story.given)) + "."]
    for number, act in enumerate(story.acts, 1):
        lines += ["", rf"\subsubsection*{{{number}. {_escaped_latex(act.title)}}}"]
        lines += [_escaped_latex(act.intro)] if act.intro else []
        lines += _latex_rows(act.rows)
    lines += ["", *_latex_rows(story.end)] if story.end else []
    return "\n".join(lines) + "\n"


def _latex_rows(rows: Sequence[StoryRow]) -> list[str]:
    body = [f"  {_latex_row(row)}" for row in rows]
    return [r"\begin{align*}", " \\\\\n".join(body), r"\end{align*}"] if body else []


def _latex_row(row: StoryRow) -> str:
    indent = r"\quad " * row.depth
    if row.kind in ("note", "sum"):
        return rf"& {indent}\text{{{_escaped_latex(row.note)}}}"
    source = rf" && \texttt{{{escape(row.source)}}}" if row.source else ""
    note = rf" && \text{{{_escaped_latex(row.note)}}}" if row.note else ""
    return f"{indent}{_row_equation(row, '&=')}{source}{note}"


def _escaped_latex(text: str) -> str:
    return escape(text).replace("->", r"$\to$")


# --- plain data ----------------------------------------------------------------------------------------


def as_data(story: Story) -> dict[str, Json]:
    """Render plain data, JSON-able."""
    return {
        "title": story.title,
        "given": [_row_data(row) for row in story.given],
        "acts": [
            {"title": act.title, "intro": act.intro, "rows": [_row_data(row) for row in act.rows]}
            for act in story.acts
        ],
        "end": [_row_data(row) for row in story.end],
    }


def _row_data(row: StoryRow) -> dict[str, Json]:
    found = {
        "number": row.number,
        "kind": row.kind,
        "name": row.name,
        "symbol": row.symbol.text,
        "formulas": [formula.text for formula in row.formulas if formula],
        "latex": _row_equation(row) if row.symbol else "",
        "value": row.data,
        "text": row.value,
        "source": row.source,
        "code": row.code,
        "note": row.note,
        "depth": row.depth,
    }
    return {key: value for key, value in found.items() if value not in ("", [], None) or key == "value"}


def as_json(story: Story) -> str:
    """Render JSON."""
    return json.dumps(as_data(story), indent=1, ensure_ascii=False) + "\n"


#: The renderer of each format.
RENDERERS: dict[str, Renderer] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "json": as_json,
}


def step_texts(story: Story) -> Iterator[str]:
    """Render a story step by step: the title of an act with its first row, then row by row."""
    for number, act in enumerate(story.acts, 1):
        head = [f"{number}. {act.title}", *([f"   {act.intro}"] if act.intro else []), ""]
        for rows in act.steps():
            yield "\n".join([*head, *_aligned(rows)])
            head = []
    if story.end:
        yield "\n".join(_aligned(story.end))


def rendered(story: Story, format: str | Renderer) -> str:
    """Render a story in a format by name, or by a function of its own.

    Raises:
        ValueError: there is no format of this name.
        TypeError: `format` is not a name or a function, or the function does not return a string.
    """
    if not callable(format):
        return RENDERERS[checked_format(format)](story)
    text = format(story)
    if not isinstance(text, str):
        name = getattr(format, "__name__", repr(format))
        raise TypeError(f"the renderer `{name}` returned {type(text).__name__}, expected a string.")
    return text


def checked_format(format: str) -> str:
    if not isinstance(format, str):
        raise TypeError(
            "`format` must be the name of a format, or a function of a `jaxprop.show.Story` that returns a "
            f"string; got {type(format).__name__}."
        )
    if format not in RENDERERS:
        raise ValueError(
            f"unknown format {shortened(format, 40)!r}; available: {', '.join(RENDERERS)}, or a function of a "
            "`jaxprop.show.Story`."
        )
    return format
