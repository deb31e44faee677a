"""Spells expressions as text: a line of NumPy."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from .einsum import as_matmul, outer_sides
from .expressions import ONE, ZERO, Call, Expr, Num, Number, Prod, Sum, Sym, negative

#: How strongly a piece of text holds together: Python's own order.
COMPARE, OR, XOR, AND, SUM, PRODUCT, UNARY, POWER, ATOM = range(9)


class Piece(NamedTuple):
    """A piece of text and how strongly it holds together."""

    text: str
    level: int


class Names(NamedTuple):
    """What the symbols of an expression are called: by role (`in`, `out`, `ct`), in order."""

    symbols: Mapping[tuple[str, int], str]

    def of(self, symbol: Sym) -> str:
        return self.symbols[symbol.role, symbol.index]


def text(x: Expr, names: Names) -> str:
    """An expression as a line of NumPy."""
    return Text(names).of(x).text


def atom(x: Expr, names: Names) -> bool:
    """Whether the text of an expression needs no parentheses anywhere."""
    return Text(names).of(x).level == ATOM


# --- numbers -------------------------------------------------------------------------------------------


def spell_number(value: Any) -> str:
    """A number as a person writes it: 2 not 2.0, 0.5, 1e-05."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, complex):
        return f"({value.real:.15g}{value.imag:+.15g}j)"
    if not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return f"{value:.15g}"


def bracketed(number: str) -> str:
    """A number inside a formula: a negative one in parentheses."""
    return f"({number})" if number.startswith("-") else number


def fraction_of(value: Number) -> tuple[Number, Number]:
    """A coefficient as (above, below) the line: what is shorter to read."""
    if isinstance(value, Fraction):
        return Fraction(value.numerator), Fraction(value.denominator)
    if isinstance(value, bool | complex) or not math.isfinite(value) or value == 0:
        return value, Fraction(1)
    inverse = float(f"{1 / value:.12g}")
    if len(spell_number(value)) > 8 and len(spell_number(abs(inverse))) < 6:
        below = Fraction(int(abs(inverse))) if inverse == int(inverse) else abs(inverse)
        return Fraction(1 if value > 0 else -1), below
    return value, Fraction(1)


# --- text ----------------------------------------------------------------------------------------------


class Text:
    def __init__(self, names: Names) -> None:
        self.names = names

    def of(self, x: Expr) -> Piece:
        if isinstance(x, Num):
            return self.number(x.value)
        if isinstance(x, Sym):
            return Piece(self.names.of(x), ATOM)
        if isinstance(x, Sum):
            return self.sum(x)
        if isinstance(x, Prod):
            return self.product(x)
        return self.call(x)  # type: ignore[arg-type]

    def at(self, x: Expr, level: int) -> str:
        """An expression where at least `level` is needed."""
        return self.wrapped(self.of(x), level)

    def wrapped(self, piece: Piece, level: int) -> str:
        return piece.text if piece.level >= level else f"({piece.text})"

    def number(self, value: Number) -> Piece:
        spelled = spell_number(value)
        if isinstance(value, Fraction) and value.denominator != 1:
            return Piece(spelled, PRODUCT if value > 0 else SUM)
        if spelled == "-inf":
            return Piece(spelled, UNARY)
        return Piece(spelled, UNARY if spelled.startswith("-") else ATOM)

    def sum(self, x: Sum) -> Piece:
        parts: list[str] = []
        for coefficient, term in x.terms:
            minus = not isinstance(coefficient, complex) and coefficient < 0
            piece = self.scaled(-coefficient if minus else coefficient, term)
            text = self.wrapped(piece, PRODUCT)
            parts.append((" - " if minus else " + ") + text if parts else ("-" if minus else "") + text)
        return Piece("".join(parts), SUM)

    def scaled(self, coefficient: Number, term: Expr) -> Piece:
        if term == ONE:
            return self.number(coefficient)
        if coefficient == 1:
            return self.of(term)
        factors = term.factors if isinstance(term, Prod) else ((term, Fraction(1)),)
        own = term.coefficient if isinstance(term, Prod) else Fraction(1)
        return self.product(Prod(own * coefficient, factors, term.shape))  # type: ignore[operator]

    def product(self, x: Prod) -> Piece:
        minus = negative(x)
        above, below = fraction_of(-x.coefficient if minus else x.coefficient)
        over = [(f, e) for f, e in x.factors if not is_negative(e)]
        under = [(f, -e) for f, e in x.factors if is_negative(e)]
        line = self.quotient(above, below, over, under)
        return (
            Piece("-" + self.wrapped(line, PRODUCT), UNARY if line.level > PRODUCT else SUM) if minus else line
        )

    def quotient(self, above: Number, below: Number, over: list[Any], under: list[Any]) -> Piece:
        first = [] if above == 1 and over else [self.wrapped(self.number(above), UNARY)]
        last = [] if below == 1 else [self.wrapped(self.number(below), UNARY)]
        tops = first + [self.wrapped(self.raised(f, e), UNARY) for f, e in over]
        bottoms = last + [self.wrapped(self.raised(f, e), POWER) for f, e in under]
        top = "*".join(tops)
        if not bottoms:
            only = self.raised(*over[0]) if len(tops) == 1 and over else Piece(top, ATOM)
            return only if len(tops) == 1 else Piece(top, PRODUCT)
        bottom = bottoms[0] if len(bottoms) == 1 else f"({'*'.join(bottoms)})"
        return Piece(f"{top}/{bottom}", PRODUCT)

    def raised(self, base: Expr, exponent: Number) -> Piece:
        if exponent == 1:
            return self.of(base)
        return Piece(f"{self.at(base, ATOM)}**{self.wrapped(self.number(exponent), UNARY)}", POWER)

    def call(self, x: Call) -> Piece:
        special = _SPECIAL.get(x.fn) if "own" not in x.params else None
        if special is not None:
            return special(self, x)
        return Piece(f"{x.fn}({', '.join(self.of(arg).text for arg in x.args)})", ATOM)

    def transposed(self, x: Expr) -> str:
        return f"{self.at(x, ATOM)}.{'T' if len(x.shape) == 2 else 'mT'}"


def is_negative(exponent: Number) -> bool:
    return not isinstance(exponent, complex) and exponent < 0


_Spell = Callable[[Text, Call], Piece]


def _operator(sign: str, level: int) -> _Spell:
    def spell(self: Text, x: Call) -> Piece:
        sides = [self.at(arg, level + 1) for arg in x.args]
        return Piece(f" {sign} ".join(sides), level)

    return spell


def _not(self: Text, x: Call) -> Piece:
    return Piece(f"~{self.at(x.args[0], UNARY)}", UNARY)


def _pow(self: Text, x: Call) -> Piece:
    return Piece(f"{self.at(x.args[0], ATOM)}**{self.at(x.args[1], UNARY)}", POWER)


def _pi(self: Text, x: Call) -> Piece:
    return Piece("pi", ATOM)


def _plain(self: Text, x: Expr) -> str:
    return self.of(x).text


def _tuple(items: Sequence[Any]) -> str:
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def _axes(axes: Sequence[int]) -> str:
    return str(axes[0]) if len(axes) == 1 else _tuple(axes)


def _reduction(self: Text, x: Call, kept: bool = False) -> Piece:
    axis = "" if x.params["whole"] and (len(x.args[0].shape) == 1 or not kept) else _axes(x.params["axes"])
    inside = [_plain(self, x.args[0])]
    inside += [f"axis={axis}"] if axis else []
    inside += ["keepdims=True"] if kept else []
    return Piece(f"{x.fn}({', '.join(inside)})", ATOM)


def _reshape(self: Text, x: Call) -> Piece:
    inner = x.args[0]
    if isinstance(inner, Call) and inner.fn in ("sum", "max", "min", "prod"):
        full, axes = inner.args[0].shape, inner.params["axes"]
        if x.shape == tuple(1 if i in axes else n for i, n in enumerate(full)):
            return _reduction(self, inner, kept=True)
    index = new_axes(inner.shape, x.shape)
    if index is not None:
        return Piece(f"{self.at(inner, ATOM)}[{index}]", ATOM)
    return Piece(f"reshape({_plain(self, inner)}, {_tuple(x.shape)})", ATOM)


def new_axes(old: Sequence[int], new: Sequence[int]) -> str | None:
    """`:, None` where the new shape is the old one with axes of length one put in."""
    if len(new) <= len(old):
        return None
    index, at = [], 0
    for n in new:
        if at < len(old) and old[at] == n:
            index.append(":")
            at += 1
        elif n == 1:
            index.append("None")
        else:
            return None
    return ", ".join(index) if at == len(old) else None


def _broadcast_to(self: Text, x: Call) -> Piece:
    inner, shape = x.args[0], _tuple(x.shape)
    if inner in (ZERO, ONE):
        return Piece(f"{'ones' if inner == ONE else 'zeros'}({shape})", ATOM)
    if isinstance(inner, Num):
        return Piece(f"full({shape}, {_plain(self, inner)})", ATOM)
    return Piece(f"broadcast_to({_plain(self, inner)}, {shape})", ATOM)


def _transpose(self: Text, x: Call) -> Piece:
    order, count = x.params["order"], len(x.shape)
    if order == (*range(count - 2), count - 1, count - 2):
        return Piece(self.transposed(x.args[0]), ATOM)
    return Piece(f"transpose({_plain(self, x.args[0])}, {_tuple(order)})", ATOM)


def ranges(x: Call, shape: Sequence[int]) -> str:
    parts = []
    for start, limit, step, n in zip(
        x.params["start"], x.params["limit"], x.params["steps"], shape, strict=True
    ):
        first = "" if start == 0 else str(start)
        last = "" if limit >= n or len(range(start, n, step)) == len(range(start, limit, step)) else str(limit)
        parts.append(f"{first}:{last}" + (f":{step}" if step != 1 else ""))
    while len(parts) > 1 and parts[-1] == ":":
        parts.pop()
    return ", ".join(parts)


def _slice(self: Text, x: Call) -> Piece:
    return Piece(f"{self.at(x.args[0], ATOM)}[{ranges(x, x.args[0].shape)}]", ATOM)


def _place(self: Text, x: Call) -> Piece:
    return Piece(f"zeros({_tuple(x.shape)}).at[{ranges(x, x.shape)}].set({_plain(self, x.args[0])})", ATOM)


def _pad(self: Text, x: Call) -> Piece:
    width = x.params["width"]
    spelled = str(width if len(width) > 1 else next(iter(width)))
    inner, *filled = (_plain(self, arg) for arg in x.args)
    value = f", constant_values={filled[0]}" if filled else ""
    return Piece(f"pad({inner}, {spelled}{value})", ATOM)


def _concatenate(self: Text, x: Call) -> Piece:
    axis = f", axis={x.params['axis']}" if len(x.shape) > 1 else ""
    return Piece(f"concatenate([{', '.join(_plain(self, arg) for arg in x.args)}]{axis})", ATOM)


def _along(self: Text, x: Call) -> Piece:
    axis = f", axis={x.params['axis']}" if len(x.args[0].shape) > 1 else ""
    return Piece(f"{x.fn}({_plain(self, x.args[0])}{axis})", ATOM)


def _flip(self: Text, x: Call) -> Piece:
    axis = f", axis={_axes(x.params['axes'])}" if len(x.shape) > 1 else ""
    return Piece(f"flip({_plain(self, x.args[0])}{axis})", ATOM)


def _arange(self: Text, x: Call) -> Piece:
    return Piece(f"arange({x.params['size']})", ATOM)


def _dynamic_slice(self: Text, x: Call) -> Piece:
    start = _tuple([_plain(self, arg) for arg in x.args[1:]])
    return Piece(f"dynamic_slice({_plain(self, x.args[0])}, {start}, {_tuple(x.params['sizes'])})", ATOM)


def _dynamic_update_slice(self: Text, x: Call) -> Piece:
    start = _tuple([_plain(self, arg) for arg in x.args[2:]])
    return Piece(f"dynamic_update_slice({_plain(self, x.args[0])}, {_plain(self, x.args[1])}, {start})", ATOM)


def _triangular_solve(self: Text, x: Call) -> Piece:
    flags = "".join(f", {name}=True" for name, on in x.params.items() if on)
    return Piece(f"triangular_solve({_plain(self, x.args[0])}, {_plain(self, x.args[1])}{flags})", ATOM)


def _einsum(self: Text, x: Call) -> Piece:
    found = as_matmul(x)
    if found is not None:
        sides = [self.transposed(arg) if turned else self.at(arg, UNARY) for arg, turned in found]
        return Piece(" @ ".join(sides), PRODUCT)
    sides = outer_sides(x)
    args = ", ".join(_plain(self, arg) for arg in sides or x.args)
    return Piece(f"outer({args})" if sides else f"einsum('{x.params['spec']}', {args})", ATOM)


_SPECIAL: dict[str, _Spell] = {
    "eq": _operator("==", COMPARE),
    "ne": _operator("!=", COMPARE),
    "lt": _operator("<", COMPARE),
    "le": _operator("<=", COMPARE),
    "gt": _operator(">", COMPARE),
    "ge": _operator(">=", COMPARE),
    "and": _operator("&", AND),
    "or": _operator("|", OR),
    "xor": _operator("^", XOR),
    "not": _not,
    "pow": _pow,
    "pi": _pi,
    "sum": _reduction,
    "max": _reduction,
    "min": _reduction,
    "prod": _reduction,
    "all": _reduction,
    "any": _reduction,
    "reshape": _reshape,
    "broadcast_to": _broadcast_to,
    "transpose": _transpose,
    "slice": _slice,
    "place": _place,
    "pad": _pad,
    "concatenate": _concatenate,
    "argmax": _along,
    "argmin": _along,
    "cumsum": _along,
    "cumprod": _along,
    "cummax": _along,
    "cummin": _along,
    "cumlogsumexp": _along,
    "flip": _flip,
    "arange": _arange,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "triangular_solve": _triangular_solve,
    "einsum": _einsum,
}
