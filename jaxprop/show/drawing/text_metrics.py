"""Text in pictures: how wide it is at most, and as markup."""

import html
import unicodedata

#: Advance of a character in the fonts named below, in em; none of them is wider.
MONO = 0.603
MONO_FONTS = "DejaVu Sans Mono, Menlo, Consolas, Liberation Mono, monospace"
SANS_FONTS = "Helvetica Neue, Helvetica, Arial, DejaVu Sans, sans-serif"
#: The widest of the common sans-serif fonts (DejaVu Sans) takes at most this much for a line of words, in em.
SANS = 0.6


def width(text: str, size: float, advance: float = MONO) -> float:
    """The width of a text at most, in pixels, at a font size in pixels."""
    return size * advance * sum(map(_columns, text))


def _columns(char: str) -> float:
    if unicodedata.combining(char):
        return 0.0
    if unicodedata.east_asian_width(char) in "WF":
        return 2.0
    # What a font lacks comes from another, which may be wider.
    return 1.0 if ord(char) < 0x250 else 1.25


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def middle(text: str, most: int) -> str:
    """At most `most` characters: of a path the end tells more than the middle."""
    if len(text) <= most:
        return text
    tail = (most - 1) * 2 // 3
    return text[: most - 1 - tail] + "…" + text[-tail:]


def escape(text: str) -> str:
    """Text for markup: whatever it holds stays text; characters XML does not allow become a sign."""
    return html.escape("".join(char if _allowed(char) else "\ufffd" for char in text), quote=True)


def _allowed(char: str) -> bool:
    code = ord(char)
    return code in (9, 10, 13) or (32 <= code < 0xD800) or 0xE000 <= code < 0xFFFE or code >= 0x10000


def minus(text: str) -> str:
    """A number with a true minus sign."""
    return text.replace("-", "−")


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
