"""Write the names of values as mathematics, in text and in LaTeX."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Spelled:
    """A piece of mathematics in text and in LaTeX; false where it is empty."""

    text: str
    latex: str

    def __bool__(self) -> bool:
        return bool(self.text)


EMPTY = Spelled("", "")

_SIMPLE = re.compile(r"[^\W\d]\w*(?:\.\w+|\[[^\[\]]*\])*(?:#\d+)?")
_LETTERS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi"
    " psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_GREEK = frozenset(_LETTERS.split())
_ACCENTS = {"hat": "hat", "bar": "bar", "tilde": "tilde", "dot": "dot", "vec": "vec"}
_PLAIN = re.compile(r"([A-Za-z]+?)_?(\d*)")


def text_name(name: str) -> str:
    """A name inside a formula; in braces where it could be taken for an operation: `{Dense_0/add}`."""
    return name if _SIMPLE.fullmatch(name) else "{" + name + "}"


def text_cotangent(name: str) -> str:
    """The cotangent of a value in the field's form: `dW`."""
    return "d" + text_name(name)


def latex_name(name: str) -> str:
    r"""A name as a lesson would write it: `y_hat` is `\hat{y}`, `w1` is `w_{1}`, `loss` is `\mathrm{loss}`."""
    base, hash_, count = name.partition("#")
    return f"{{{_latex_base(base)}^{{({count})}}}}" if hash_ else _latex_base(base)


def _latex_base(name: str) -> str:
    stem, _, accent = name.rpartition("_")
    if accent in _ACCENTS and stem and _letter(stem):
        return rf"\{_ACCENTS[accent]}{{{_letter(stem)}}}"
    found = _PLAIN.fullmatch(name)
    if found and _letter(found[1]):
        return _letter(found[1]) + (f"_{{{found[2]}}}" if found[2] else "")
    stem, _, index = name.partition("_")
    if _letter(stem) and re.fullmatch(r"[A-Za-z0-9]+", index):
        return rf"{_letter(stem)}_{{\mathrm{{{index}}}}}"
    return rf"\mathrm{{{escape(name)}}}" if re.fullmatch(r"\w+", name) else rf"\mathtt{{{escape(name)}}}"


def _letter(name: str) -> str:
    if len(name) == 1 and name.isascii() and name.isalpha():
        return name
    return rf"\{name}" if name in _GREEK else ""


def latex_cotangent(name: str) -> str:
    return rf"\mathrm{{d}}{latex_name(name)}"


_ESCAPES = {
    "\\": r"\backslash ",
    "^": r"\wedge ",
    "~": r"\sim ",
    **{char: f"\\{char}" for char in "_{}#$%&"},
}


def escape(text: str) -> str:
    """Text inside LaTeX."""
    return "".join(_ESCAPES.get(char, char) for char in text)
