"""Words and numbers for people: one of each small helper, for the whole package."""

import difflib
import functools
import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_SHORT_DTYPES = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def number(x: Any, digits: int = 6) -> str:
    """Write a number in at most so many significant digits: `-2`, `0.5`, `1.5e-05`, `1+2j`."""
    x = x.item() if hasattr(x, "item") else x
    if isinstance(x, bool):
        return str(x)
    if isinstance(x, complex):
        return f"{x.real:.{digits}g}{x.imag:+.{digits}g}j"
    return f"{x:.{digits}g}"


def byte_count(count: int) -> str:
    """Write a number of bytes in binary units: `512 bytes`, `1.5 MiB`."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} bytes" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def listed(names: Sequence[Any], most: int = 8) -> str:
    """Join names with commas, at most `most` of them: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Write a count with its noun: `1 node`, `3 nodes`."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def sentence(text: str) -> str:
    """Start a text with a capital, unless it starts with code."""
    return text[:1].upper() + text[1:]


def one_line(error: BaseException, most: int | None = None) -> str:
    """Write an error as one line: its type, and at most `most` characters of its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:most]}"


def shortened(text: str, most: int) -> str:
    """Cut a text to at most `most` characters, `...` included."""
    return text if len(text) <= most else text[: most - 3] + "..."


def type_name(dtype: Any, shape: tuple[int, ...]) -> str:
    """Write a type as JAX does: `f32[2,3]`."""
    text = re.sub(r"^(bfloat|float|uint|int|complex)(?=\d)", lambda m: _SHORT_DTYPES[m[1]], str(dtype or "ref"))
    return f"{text}[{','.join(map(str, shape))}]"


def in_columns(rows: Sequence[Sequence[str]]) -> str:
    """Write rows as a table with aligned columns, a rule under the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


@functools.singledispatch
def notebook_html(x: object) -> str:
    """Write an object as HTML for a notebook: preformatted text, unless `show` has a picture for its type.

    The classes below `show` call it in `_repr_html_`; `show.notebook` registers how each of them is shown.
    """
    return f'<pre style="line-height:1.3">{html.escape(str(x))}</pre>'


def suggestion(name: str, available: Iterable[str], noun: str = "names") -> str:
    """Point to names that exist: ` Nearest names: loss.`, or ` Available names: w, b.` if none is near."""
    known = list(available)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f" Nearest {noun}: {', '.join(close)}."
    return f" Available {noun}: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}." if known else ""
