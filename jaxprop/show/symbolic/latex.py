"""Spell expressions as LaTeX."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeAlias

from .contractions import as_matmul, as_outer, index_letters
from .expressions import Apply, Expr, Num, Number, Sym, is_negative
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
    Factor,
    Names,
    Piece,
    Speller,
    exact_number,
)


def latex(x: Expr, names: Names) -> str:
    """Spell an expression as LaTeX, for math mode with amsmath."""
    return LatexSpeller(names).of(x).text


class LatexSpeller(Speller):
    def wrapped(self, piece: Piece, level: int) -> str:
        return piece.text if piece.level >= level else rf"\left({piece.text}\right)"

    def number(self, value: Number) -> Piece:
        if isinstance(value, Fraction) and value.denominator != 1:
            sign = "-" if value < 0 else ""
            return Piece(
                rf"{sign}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}", SUM if sign else ATOM
            )
        return Piece(latex_number(value), UNARY if is_negative(value) else ATOM)

    def quotient(self, above: Number, below: Number, over: Sequence[Factor], under: Sequence[Factor]) -> Piece:
        tops = self.line(above, over)
        if below == 1 and not under:
            if above == 1 and len(over) == 1:
                return self.raised(*over[0])
            return Piece(tops, PRODUCT if over else ATOM)
        return Piece(rf"\frac{{{tops}}}{{{self.line(below, under)}}}", POWER)

    def line(self, coefficient: Number, factors: Sequence[Factor]) -> str:
        if not factors:
            return self.number(coefficient).text
        parts = [] if coefficient == 1 else [self.wrapped(self.number(coefficient), UNARY)]
        alone = len(factors) == 1 and not parts
        parts += [self.wrapped(self.raised(f, e), SUM if alone else UNARY) for f, e in factors]
        return _juxtaposed(parts)

    def raised(self, base: Expr, exponent: Number) -> Piece:
        if exponent == 1:
            return self.of(base)
        if isinstance(base, Apply) and base.fn in _POWERED and "own" not in base.params:
            inside = self.listed(base.args)
            return Piece(rf"{_FUNCTIONS[base.fn]}^{{{self.number(exponent).text}}}\left({inside}\right)", POWER)
        return Piece(f"{self.at(base, ATOM)}^{{{self.number(exponent).text}}}", POWER)

    def applied(self, x: Apply) -> Piece:
        if "own" in x.params:
            return Piece(rf"\mathrm{{{escape(x.fn)}}}{self.arguments(x)}", ATOM)
        if x.fn in _SPELLED:
            return _SPELLED[x.fn](self, x)
        sign = _FUNCTIONS.get(x.fn) or rf"\mathrm{{{escape(x.fn)}}}"
        return Piece(sign + self.arguments(x), ATOM)

    def arguments(self, x: Apply) -> str:
        return rf"\left({self.listed(x.args)}\right)"

    def indexed(self, x: Expr) -> str:
        return self.of(x).text if isinstance(x, Sym) else rf"\left({self.of(x).text}\right)"

    def transposed(self, x: Expr) -> str:
        return rf"{self.at(x, ATOM)}^{{\top}}"


def _juxtaposed(parts: Sequence[str]) -> str:
    """A product, with a dot in front of a factor that is a number."""
    line = parts[0]
    for part in parts[1:]:
        line += (r" \cdot " if part[:1].isdigit() or part.startswith(("(-", r"\left(-")) else r"\,") + part
    return line


def latex_number(value: Number) -> str:
    r"""Spell a number in LaTeX: `1.5 \cdot 10^{-5}`, `\infty`."""
    spelled = exact_number(value)
    named = {"inf": r"\infty", "-inf": r"-\infty", "nan": r"\mathrm{NaN}"}
    if spelled in named:
        return named[spelled]
    if spelled in ("True", "False"):
        return rf"\mathrm{{{spelled}}}"
    digits, mark, power = spelled.partition("e")
    return rf"{digits} \cdot 10^{{{int(power)}}}" if mark and power.lstrip("+-").isdigit() else spelled


_SpellApplied: TypeAlias = Callable[[LatexSpeller, Apply], Piece]


def _latex_operator(sign: str, level: int) -> _SpellApplied:
    def spell(self: LatexSpeller, x: Apply) -> Piece:
        return Piece(f" {sign} ".join(self.at(arg, level + 1) for arg in x.args), level)

    return spell


def _latex_where(self: LatexSpeller, x: Apply) -> Piece:
    condition, yes, no = (self.of(arg).text for arg in x.args)
    return Piece(
        rf"\begin{{cases}} {yes} & \text{{if }} {condition} \\ {no} & \text{{else}} \end{{cases}}", COMPARE
    )


def _latex_exp(self: LatexSpeller, x: Apply) -> Piece:
    return Piece(f"e^{{{self.of(x.args[0]).text}}}", POWER)


def _latex_sqrt(self: LatexSpeller, x: Apply) -> Piece:
    return Piece(rf"\sqrt{{{self.of(x.args[0]).text}}}", ATOM)


def _latex_cbrt(self: LatexSpeller, x: Apply) -> Piece:
    return Piece(rf"\sqrt[3]{{{self.of(x.args[0]).text}}}", ATOM)


def _latex_abs(self: LatexSpeller, x: Apply) -> Piece:
    return Piece(rf"\left|{self.of(x.args[0]).text}\right|", ATOM)


def _latex_pow(self: LatexSpeller, x: Apply) -> Piece:
    return Piece(f"{self.at(x.args[0], ATOM)}^{{{self.of(x.args[1]).text}}}", POWER)


def _latex_not(self: LatexSpeller, x: Apply) -> Piece:
    return Piece(rf"\lnot {self.at(x.args[0], UNARY)}", UNARY)


def _latex_reduction(sign: str) -> _SpellApplied:
    def spell(self: LatexSpeller, x: Apply) -> Piece:
        axes = "" if x.params["whole"] else rf"_{{\mathrm{{axis}}\,{', '.join(map(str, x.params['axes']))}}}"
        inside = self.of(x.args[0]).text if sign != r"\sum" else self.at(x.args[0], PRODUCT)
        if sign == r"\sum":
            return Piece(rf"\sum{axes} {inside}", PRODUCT)
        return Piece(rf"{sign}{axes}\left({inside}\right)", ATOM)

    return spell


def _latex_transpose(self: LatexSpeller, x: Apply) -> Piece:
    order, count = x.params["order"], len(x.shape)
    if order == (*range(count - 2), count - 1, count - 2):
        return Piece(self.transposed(x.args[0]), POWER)
    return Piece(
        rf"\mathrm{{transpose}}_{{{', '.join(map(str, order))}}}\left({self.of(x.args[0]).text}\right)", ATOM
    )


def _latex_einsum(self: LatexSpeller, x: Apply) -> Piece:
    found = as_matmul(x)
    if found is not None:
        sides = [self.transposed(arg) if turned else self.at(arg, UNARY) for arg, turned in found]
        if all(len(arg.shape) == 1 for arg, _ in found):
            return Piece(rf"{sides[0]}^{{\top}} {sides[1]}", PRODUCT)
        return Piece(r"\,".join(sides), PRODUCT)
    if as_outer(x):
        a, b = (self.at(arg, UNARY) for arg in as_outer(x))
        return Piece(rf"{a}\,{b}^{{\top}}", PRODUCT)
    letters, output, summed = index_letters(x)
    factors = r"\,".join(f"{self.indexed(arg)}_{{{own}}}" for arg, own in zip(x.args, letters, strict=True))
    total = rf"\sum_{{{summed}}} {factors}" if summed else factors
    return Piece(rf"\left[{total}\right]_{{{output}}}" if output else rf"\left({total}\right)", ATOM)


def _latex_as_in_text(self: LatexSpeller, x: Apply) -> Piece:
    """Functions without a mathematical notation of their own are written as in the text."""
    inside = self.listed(x.args)
    details = ", ".join(_detail(x))
    return Piece(
        rf"\mathrm{{{escape(x.fn)}}}\left({inside}{', ' if inside and details else ''}{details}\right)", ATOM
    )


def _shape(x: Expr) -> str:
    return r" \times ".join(map(str, x.shape)) or "1"


def _detail(x: Apply) -> list[str]:
    if x.fn in ("reshape", "broadcast_to", "place"):
        return [_shape(x)]
    if x.fn == "slice":
        spans = zip(x.params["start"], x.params["limit"], strict=True)
        return [", ".join(f"{start}{{:}}{limit}" for start, limit in spans)]
    if x.fn == "flip":
        return [f"{', '.join(map(str, x.params['axes']))}"]
    return [str(x.params["axis"])] if "axis" in x.params else []


def _latex_broadcast_to(self: LatexSpeller, x: Apply) -> Piece:
    inner = x.args[0]
    if isinstance(inner, Num):
        return Piece(rf"{self.at(inner, UNARY)}_{{{_shape(x)}}}", ATOM)
    return _latex_as_in_text(self, x)


#: The notation of a function.
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

_SPELLED: dict[str, _SpellApplied] = {
    "eq": _latex_operator("=", COMPARE),
    "ne": _latex_operator(r"\ne", COMPARE),
    "lt": _latex_operator("<", COMPARE),
    "le": _latex_operator(r"\le", COMPARE),
    "gt": _latex_operator(">", COMPARE),
    "ge": _latex_operator(r"\ge", COMPARE),
    "and": _latex_operator(r"\land", AND),
    "or": _latex_operator(r"\lor", OR),
    "xor": _latex_operator(r"\oplus", XOR),
    "not": _latex_not,
    "pow": _latex_pow,
    "pi": lambda self, x: Piece(r"\pi", ATOM),
    "where": _latex_where,
    "exp": _latex_exp,
    "sqrt": _latex_sqrt,
    "cbrt": _latex_cbrt,
    "abs": _latex_abs,
    "sum": _latex_reduction(r"\sum"),
    "prod": _latex_reduction(r"\prod"),
    "mean": _latex_reduction(r"\operatorname{mean}"),
    "max": _latex_reduction(r"\max"),
    "min": _latex_reduction(r"\min"),
    "transpose": _latex_transpose,
    "einsum": _latex_einsum,
    "broadcast_to": _latex_broadcast_to,
    "reshape": _latex_as_in_text,
    "slice": _latex_as_in_text,
    "place": _latex_as_in_text,
    "pad": _latex_as_in_text,
    "concatenate": _latex_as_in_text,
    "flip": _latex_as_in_text,
}
