"""Text in pictures: an upper bound of its width, shortening, escaping."""

import html
import re
import unicodedata

#: Advance of a character of the fonts below, in em; none of them is wider.
MONO = 0.603
MONO_FONTS = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"
SANS_FONTS = "Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"
#: Average advance in the widest of the sans-serif fonts (DejaVu Sans), in em.
SANS = 0.6


def width(text: str, size: float, advance: float = MONO) -> float:
    """An upper bound of the width of a text, in pixels, at a font size in pixels."""
    return size * advance * sum(map(_advances, text))


def _advances(char: str) -> float:
    if unicodedata.combining(char):
        return 0.0
    if unicodedata.east_asian_width(char) in "WF":
        return 2.0
    # Characters that the font lacks come from another one, which may be wider.
    return 1.0 if ord(char) < 0x250 else 1.25


def shorten(text: str, most: int) -> str:
    """Write a text on one line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def middle(text: str, most: int) -> str:
    """Cut a text to at most `most` characters in its middle: the end of a path says more."""
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 3
    return text[: most - 1 - tail] + "…" + text[-tail:]


_PATH = re.compile(r"\w+((?:\.\w+|\['?[^\]']+'?\])+)")
_KEY = re.compile(r"\.(\w+)|\['?([^\]']+)'?\]")


def dotted(name: str) -> str:
    """Write the path of an array in an argument with dots: `params['blocks'][0]['w']` as `blocks.0.w`."""
    path = _PATH.fullmatch(name)
    keys = [attribute or key for attribute, key in _KEY.findall(path[1])] if path else []
    return name if all(key.isdigit() for key in keys) else ".".join(keys)


def escape(text: str) -> str:
    """Escape a text for markup; characters that XML forbids become U+FFFD."""
    return html.escape("".join(char if _allowed(char) else "\ufffd" for char in text), quote=True)


def _allowed(char: str) -> bool:
    code = ord(char)
    return code in (9, 10, 13) or (32 <= code < 0xD800) or 0xE000 <= code < 0xFFFE or code >= 0x10000


def minus(text: str) -> str:
    """Write a number with a true minus sign."""
    return text.replace("-", "−")
