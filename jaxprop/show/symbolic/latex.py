"""Spells expressions as LaTeX."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

from .einsum import as_matmul, index_sum, outer_sides
from .expressions import Call, Expr, Num, Number, Sym
from .names import escape
from .text import (
    AND,
    ATOM,
    COMPARE,
    OR,
    POWER,
    PRODUCT,
    SUM,
    UNARY,
    XOR,
    Names,
    Piece,
    Text,
    is_negative,
    spell_number,
)


def latex(x: Expr, names: Names) -> str:
    """An expression as LaTeX, for mathematics mode with amsmath."""
    return _Latex(names).of(x).text


class _Latex(Text):
    def wrapped(self, piece: Piece, level: int) -> str:
        return piece.text if piece.level >= level else rf"\left({piece.text}\right)"

    def number(self, value: Number) -> Piece:
        if isinstance(value, Fraction) and value.denominator != 1:
            sign = "-" if value < 0 else ""
            return Piece(
                rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}", SUM if sign else ATOM
            )
        return Piece(latex_number(value), UNARY if is_negative(value) else ATOM)

    def quotient(self, above: Number, below: Number, over: list[Any], under: list[Any]) -> Piece:
        tops = self.line(above, over)
        if below == 1 and not under:
            if above == 1 and len(over) == 1:
                return self.raised(*over[0])
            return Piece(tops, PRODUCT if over else ATOM)
        return Piece(rf"\frac{{{tops}}}{{{self.line(below, under)}}}", POWER)

    def line(self, coefficient: Number, factors: list[Any]) -> str:
        if not factors:
            return self.number(coefficient).text
        parts = [] if coefficient == 1 else [self.wrapped(self.number(coefficient), UNARY)]
        alone = len(factors) == 1 and not parts
        parts += [self.wrapped(self.raised(f, e), SUM if alone else UNARY) for f, e in factors]
        return _juxtaposed(parts)

    def raised(self, base: Expr, exponent: Number) -> Piece:
        if exponent == 1:
            return self.of(base)
        if isinstance(base, Call) and base.fn in _POWERED and "own" not in base.params:
            inside = ", ".join(self.of(arg).text for arg in base.args)
            return Piece(rf"{_FUNCTIONS[base.fn]}^{{{self.number(exponent).text}}}\left({inside}\right)", POWER)
        return Piece(f"{self.at(base, ATOM)}^{{{self.number(exponent).text}}}", POWER)

    def call(self, x: Call) -> Piece:
        if "own" in x.params:
            return Piece(rf"\mathrm{{{escape(x.fn)}}}{self.arguments(x)}", ATOM)
        if x.fn in _SPECIAL:
            return _SPECIAL[x.fn](self, x)
        sign = _FUNCTIONS.get(x.fn) or rf"\mathrm{{{escape(x.fn)}}}"
        return Piece(sign + self.arguments(x), ATOM)

    def arguments(self, x: Call) -> str:
        return rf"\left({', '.join(self.of(arg).text for arg in x.args)}\right)"

    def indexed(self, x: Expr) -> str:
        return self.of(x).text if isinstance(x, Sym) else rf"\left({self.of(x).text}\right)"

    def transposed(self, x: Expr) -> str:
        return rf"{self.at(x, ATOM)}^{{\top}}"


def _juxtaposed(parts: list[str]) -> str:
    """A product: with a dot where the next factor is a number."""
    line = parts[0]
    for part in parts[1:]:
        line += (r" \cdot " if part[:1].isdigit() or part.startswith(("(-", r"\left(-")) else r"\,") + part
    return line


def latex_number(value: Any) -> str:
    r"""A number in LaTeX: `1.5 \cdot 10^{-5}`, `\infty`."""
    spelled = spell_number(value)
    named = {"inf": r"\infty", "-inf": r"-\infty", "nan": r"\mathrm{NaN}"}
    if spelled in named:
        return named[spelled]
    if spelled in ("True", "False"):
        return rf"\mathrm{{{spelled}}}"
    digits, mark, power = spelled.partition("e")
    return rf"{digits} \cdot 10^{{{int(power)}}}" if mark and power.lstrip("+-").isdigit() else spelled


_Spell = Callable[[_Latex, Call], Piece]


def _operator(sign: str, level: int) -> _Spell:
    def spell(self: _Latex, x: Call) -> Piece:
        return Piece(f" {sign} ".join(self.at(arg, level + 1) for arg in x.args), level)

    return spell


def _where(self: _Latex, x: Call) -> Piece:
    condition, yes, no = (self.of(arg).text for arg in x.args)
    return Piece(
        rf"\begin{{cases}} {yes} & \text{{if }} {condition} \\ {no} & \text{{else}} \end{{cases}}", COMPARE
    )


def _exp(self: _Latex, x: Call) -> Piece:
    return Piece(f"e^{{{self.of(x.args[0]).text}}}", POWER)


def _sqrt(self: _Latex, x: Call) -> Piece:
    return Piece(rf"\sqrt{{{self.of(x.args[0]).text}}}", ATOM)


def _cbrt(self: _Latex, x: Call) -> Piece:
    return Piece(rf"\sqrt[3]{{{self.of(x.args[0]).text}}}", ATOM)


def _abs(self: _Latex, x: Call) -> Piece:
    return Piece(rf"\left|{self.of(x.args[0]).text}\right|", ATOM)


def _pow(self: _Latex, x: Call) -> Piece:
    return Piece(f"{self.at(x.args[0], ATOM)}^{{{self.of(x.args[1]).text}}}", POWER)


def _not(self: _Latex, x: Call) -> Piece:
    return Piece(rf"\lnot {self.at(x.args[0], UNARY)}", UNARY)


def _reduction(sign: str) -> _Spell:
    def spell(self: _Latex, x: Call) -> Piece:
        axes = "" if x.params["whole"] else rf"_{{\mathrm{{axis}}\,{', '.join(map(str, x.params['axes']))}}}"
        inside = self.of(x.args[0]).text if sign != r"\sum" else self.at(x.args[0], PRODUCT)
        if sign == r"\sum":
            return Piece(rf"\sum{axes} {inside}", PRODUCT)
        return Piece(rf"{sign}{axes}\left({inside}\right)", ATOM)

    return spell


def _transpose(self: _Latex, x: Call) -> Piece:
    order, count = x.params["order"], len(x.shape)
    if order == (*range(count - 2), count - 1, count - 2):
        return Piece(self.transposed(x.args[0]), POWER)
    return Piece(
        rf"\mathrm{{transpose}}_{{{', '.join(map(str, order))}}}\left({self.of(x.args[0]).text}\right)", ATOM
    )


def _einsum(self: _Latex, x: Call) -> Piece:
    found = as_matmul(x)
    if found is not None:
        sides = [self.transposed(arg) if turned else self.at(arg, UNARY) for arg, turned in found]
        if all(len(arg.shape) == 1 for arg, _ in found):
            return Piece(rf"{sides[0]}^{{\top}} {sides[1]}", PRODUCT)
        return Piece(r"\,".join(sides), PRODUCT)
    if outer_sides(x):
        a, b = (self.at(arg, UNARY) for arg in outer_sides(x))
        return Piece(rf"{a}\,{b}^{{\top}}", PRODUCT)
    letters, output, summed = index_sum(x.params["spec"])
    factors = r"\,".join(f"{self.indexed(arg)}_{{{own}}}" for arg, own in zip(x.args, letters, strict=True))
    total = rf"\sum_{{{summed}}} {factors}" if summed else factors
    return Piece(rf"\left[{total}\right]_{{{output}}}" if output else rf"\left({total}\right)", ATOM)


def _same_text(self: _Latex, x: Call) -> Piece:
    """What has no sign of its own in mathematics is written as in the text."""
    inside = ", ".join(self.of(arg).text for arg in x.args)
    details = ", ".join(_detail(x))
    return Piece(
        rf"\mathrm{{{escape(x.fn)}}}\left({inside}{', ' if inside and details else ''}{details}\right)", ATOM
    )


def _shape(x: Expr) -> str:
    return r" \times ".join(map(str, x.shape)) or "1"


def _detail(x: Call) -> list[str]:
    if x.fn in ("reshape", "broadcast_to", "place"):
        return [_shape(x)]
    if x.fn == "slice":
        spans = zip(x.params["start"], x.params["limit"], strict=True)
        return [", ".join(f"{start}{{:}}{limit}" for start, limit in spans)]
    if x.fn == "flip":
        return [f"{', '.join(map(str, x.params['axes']))}"]
    return [str(x.params["axis"])] if "axis" in x.params else []


def _broadcast_to(self: _Latex, x: Call) -> Piece:
    inner = x.args[0]
    if isinstance(inner, Num):
        return Piece(rf"{self.at(inner, UNARY)}_{{{_shape(x)}}}", ATOM)
    return _same_text(self, x)


#: Functions with a sign of their own.
_FUNCTIONS = {
    "log": r"\log",
    "sin": r"\sin",
    "cos": r"\cos",
    "tan": r"\tan",
    "sinh": r"\sinh",
    "cosh": r"\cosh",
    "tanh": r"\tanh",
    "arcsin": r"\arcsin",
    "arccos": r"\arccos",
    "arctan": r"\arctan",
    "sigmoid": r"\sigma",
    "sign": r"\operatorname{sign}",
    "maximum": r"\max",
    "minimum": r"\min",
    "gammaln": r"\log\Gamma",
    "digamma": r"\psi",
    "real": r"\operatorname{Re}",
    "imag": r"\operatorname{Im}",
}
_POWERED = frozenset({"sin", "cos", "tan", "sinh", "cosh", "tanh", "log"})

_SPECIAL: dict[str, _Spell] = {
    "eq": _operator("=", COMPARE),
    "ne": _operator(r"\ne", COMPARE),
    "lt": _operator("<", COMPARE),
    "le": _operator(r"\le", COMPARE),
    "gt": _operator(">", COMPARE),
    "ge": _operator(r"\ge", COMPARE),
    "and": _operator(r"\land", AND),
    "or": _operator(r"\lor", OR),
    "xor": _operator(r"\oplus", XOR),
    "not": _not,
    "pow": _pow,
    "pi": lambda self, x: Piece(r"\pi", ATOM),
    "where": _where,
    "exp": _exp,
    "sqrt": _sqrt,
    "cbrt": _cbrt,
    "abs": _abs,
    "sum": _reduction(r"\sum"),
    "prod": _reduction(r"\prod"),
    "max": _reduction(r"\max"),
    "min": _reduction(r"\min"),
    "transpose": _transpose,
    "einsum": _einsum,
    "broadcast_to": _broadcast_to,
    "reshape": _same_text,
    "slice": _same_text,
    "place": _same_text,
    "pad": _same_text,
    "concatenate": _same_text,
    "flip": _same_text,
}
