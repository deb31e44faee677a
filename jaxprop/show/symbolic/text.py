"""Spell expressions as text: a line of NumPy."""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from .arithmetic import has_minus
from .contractions import as_matmul, as_outer
from .expressions import ONE, ZERO, Apply, Expr, Num, Number, Prod, Sum, Sym, is_negative, walk

#: How tightly a piece of text binds, loosest first: Python's own order.
COMPARE, OR, XOR, AND, SUM, PRODUCT, UNARY, POWER, ATOM = range(9)

#: A factor and its exponent.
Factor: TypeAlias = tuple[Expr, Number]


class Piece(NamedTuple):
    """A piece of text and how tightly it binds."""

    text: str
    level: int


class Names(NamedTuple):
    """The names of the symbols of an expression, by role and index."""

    symbols: Mapping[tuple[str, int], str]

    def of(self, symbol: Sym) -> str:
        return self.symbols[symbol.role, symbol.index]


def text(x: Expr, names: Names) -> str:
    """Spell an expression as a line of NumPy."""
    return Speller(names).of(x).text


def is_atom(x: Expr, names: Names) -> bool:
    """Whether the text of an expression never needs parentheses."""
    return Speller(names).of(x).level == ATOM


# --- numbers -----------------------------------------------------------------------------------------


def exact_number(value: Number) -> str:
    """Spell a number of a formula to its last digit, the way a person does: 2 rather than 2.0, 0.5, 1e-05."""
    if isinstance(value, bool | Fraction):
        return str(value)
    if isinstance(value, complex):
        return f"({value.real:.15g}{value.imag:+.15g}j)"
    return f"{value:.15g}"


def bracketed(number: str) -> str:
    """Put a negative number in parentheses."""
    return f"({number})" if number.startswith("-") else number


def as_ratio(value: Number, divided: bool) -> tuple[Number, Number]:
    """Split a coefficient into numerator and denominator, where that is shorter to read.

    `divided` says whether other factors are divided by as well: then 0.5 is better written below the line too.
    """
    if isinstance(value, Fraction):
        return Fraction(value.numerator), Fraction(value.denominator)
    if isinstance(value, bool | complex) or not math.isfinite(value) or value == 0:
        return value, Fraction(1)
    if divided and abs(1 / value) in (2, 4, 8, 16):
        return Fraction(1 if value > 0 else -1), Fraction(int(abs(1 / value)))
    inverse = float(f"{1 / value:.12g}")
    if len(exact_number(value)) > 8 and len(exact_number(abs(inverse))) < 6:
        below = Fraction(int(abs(inverse))) if inverse == int(inverse) else abs(inverse)
        return Fraction(1 if value > 0 else -1), below
    return value, Fraction(1)


# --- spelling ----------------------------------------------------------------------------------------


class Speller:
    """Spells expressions, each after its parts, so that nothing recurses."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._spelled: dict[
            int, tuple[Expr, Piece]
        ] = {}  # the expressions are kept: an id alone may be used again

    def of(self, x: Expr) -> Piece:
        if id(x) not in self._spelled:
            for here in walk(x):
                if id(here) not in self._spelled:
                    self._spelled[id(here)] = here, self._spell(here)
        return self._spelled[id(x)][1]

    def _spell(self, x: Expr) -> Piece:
        """Spell an expression whose parts are spelled."""
        match x:
            case Num():
                return self.number(x.value)
            case Sym():
                return Piece(self.names.of(x), ATOM)
            case Sum():
                return self.sum(x)
            case Prod():
                return self.product(x)
            case Apply():
                return self.applied(x)
        raise TypeError(x)

    def at(self, x: Expr, level: int) -> str:
        """An expression where the context binds with `level`."""
        return self.wrapped(self.of(x), level)

    def wrapped(self, piece: Piece, level: int) -> str:
        return piece.text if piece.level >= level else f"({piece.text})"

    def number(self, value: Number) -> Piece:
        spelled = exact_number(value)
        if isinstance(value, Fraction) and value.denominator != 1:
            return Piece(spelled, PRODUCT if value > 0 else SUM)
        if spelled == "-inf":
            return Piece(spelled, UNARY)
        return Piece(spelled, UNARY if spelled.startswith("-") else ATOM)

    def sum(self, x: Sum) -> Piece:
        parts: list[str] = []
        for coefficient, term in x.terms:
            minus = is_negative(coefficient)
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
        minus = has_minus(x)
        over = [(f, e) for f, e in x.factors if not is_negative(e)]
        under = [(f, -e) for f, e in x.factors if is_negative(e)]
        above, below = as_ratio(-x.coefficient if minus else x.coefficient, bool(under))
        line = self.quotient(above, below, over, under)
        if not minus:
            return line
        return Piece("-" + self.wrapped(line, PRODUCT), UNARY if line.level > PRODUCT else SUM)

    def quotient(self, above: Number, below: Number, over: Sequence[Factor], under: Sequence[Factor]) -> Piece:
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

    def applied(self, x: Apply) -> Piece:
        if x.fn in _SPELLED and "own" not in x.params:
            return _SPELLED[x.fn](self, x)
        return Piece(f"{x.fn}({self.listed(x.args)})", ATOM)

    def listed(self, args: Sequence[Expr]) -> str:
        return ", ".join(self.of(arg).text for arg in args)

    def transposed(self, x: Expr) -> str:
        return f"{self.at(x, ATOM)}.{'T' if len(x.shape) == 2 else 'mT'}"


_SpellApplied: TypeAlias = Callable[[Speller, Apply], Piece]


def _spell_operator(sign: str, level: int) -> _SpellApplied:
    def spell(self: Speller, x: Apply) -> Piece:
        sides = [self.at(arg, level + 1) for arg in x.args]
        return Piece(f" {sign} ".join(sides), level)

    return spell


def _spell_not(self: Speller, x: Apply) -> Piece:
    return Piece(f"~{self.at(x.args[0], UNARY)}", UNARY)


def _spell_pow(self: Speller, x: Apply) -> Piece:
    return Piece(f"{self.at(x.args[0], ATOM)}**{self.at(x.args[1], UNARY)}", POWER)


def _spell_pi(self: Speller, x: Apply) -> Piece:
    return Piece("pi", ATOM)


def _tuple_text(items: Sequence[object]) -> str:
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def _axes_text(axes: Sequence[int]) -> str:
    return str(axes[0]) if len(axes) == 1 else _tuple_text(axes)


def _spell_reduction(self: Speller, x: Apply, kept: bool = False) -> Piece:
    axis = "" if x.params["whole"] and (len(x.args[0].shape) == 1 or not kept) else _axes_text(x.params["axes"])
    inside = [self.of(x.args[0]).text]
    inside += [f"axis={axis}"] if axis else []
    inside += ["keepdims=True"] if kept else []
    return Piece(f"{x.fn}({', '.join(inside)})", ATOM)


def _spell_softmax(self: Speller, x: Apply) -> Piece:
    axis = x.params["axis"]
    along = f", axis={axis}" if axis != len(x.shape) - 1 else ""
    return Piece(f"softmax({self.of(x.args[0]).text}{along})", ATOM)


def _spell_reshape(self: Speller, x: Apply) -> Piece:
    inner = x.args[0]
    if isinstance(inner, Apply) and inner.fn in ("sum", "mean", "max", "min", "prod"):
        full, axes = inner.args[0].shape, inner.params["axes"]
        if x.shape == tuple(1 if i in axes else n for i, n in enumerate(full)):
            return _spell_reduction(self, inner, kept=True)
    index = _new_axes_text(inner.shape, x.shape)
    if index is not None:
        return Piece(f"{self.at(inner, ATOM)}[{index}]", ATOM)
    return Piece(f"reshape({self.of(inner).text}, {_tuple_text(x.shape)})", ATOM)


def _new_axes_text(old: Sequence[int], new: Sequence[int]) -> str | None:
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


def _spell_broadcast_to(self: Speller, x: Apply) -> Piece:
    inner, shape = x.args[0], _tuple_text(x.shape)
    if inner in (ZERO, ONE):
        return Piece(f"{'ones' if inner == ONE else 'zeros'}({shape})", ATOM)
    if isinstance(inner, Num):
        return Piece(f"full({shape}, {self.of(inner).text})", ATOM)
    return Piece(f"broadcast_to({self.of(inner).text}, {shape})", ATOM)


def _spell_transpose(self: Speller, x: Apply) -> Piece:
    order, count = x.params["order"], len(x.shape)
    if order == (*range(count - 2), count - 1, count - 2):
        return Piece(self.transposed(x.args[0]), ATOM)
    return Piece(f"transpose({self.of(x.args[0]).text}, {_tuple_text(order)})", ATOM)


def _ranges(x: Apply, shape: Sequence[int]) -> str:
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


def _spell_slice(self: Speller, x: Apply) -> Piece:
    return Piece(f"{self.at(x.args[0], ATOM)}[{_ranges(x, x.args[0].shape)}]", ATOM)


def _spell_place(self: Speller, x: Apply) -> Piece:
    return Piece(
        f"zeros({_tuple_text(x.shape)}).at[{_ranges(x, x.shape)}].set({self.of(x.args[0]).text})", ATOM
    )


def _spell_pad(self: Speller, x: Apply) -> Piece:
    width = x.params["width"]
    spelled = str(width if len(width) > 1 else next(iter(width)))
    inner, *filled = (self.of(arg).text for arg in x.args)
    value = f", constant_values={filled[0]}" if filled else ""
    return Piece(f"pad({inner}, {spelled}{value})", ATOM)


def _spell_concatenate(self: Speller, x: Apply) -> Piece:
    axis = f", axis={x.params['axis']}" if len(x.shape) > 1 else ""
    return Piece(f"concatenate([{self.listed(x.args)}]{axis})", ATOM)


def _spell_along(self: Speller, x: Apply) -> Piece:
    axis = f", axis={x.params['axis']}" if len(x.args[0].shape) > 1 else ""
    return Piece(f"{x.fn}({self.of(x.args[0]).text}{axis})", ATOM)


def _spell_flip(self: Speller, x: Apply) -> Piece:
    axis = f", axis={_axes_text(x.params['axes'])}" if len(x.shape) > 1 else ""
    return Piece(f"flip({self.of(x.args[0]).text}{axis})", ATOM)


def _spell_arange(self: Speller, x: Apply) -> Piece:
    return Piece(f"arange({x.params['size']})", ATOM)


def _spell_dynamic_slice(self: Speller, x: Apply) -> Piece:
    start = _tuple_text([self.of(arg).text for arg in x.args[1:]])
    return Piece(f"dynamic_slice({self.of(x.args[0]).text}, {start}, {_tuple_text(x.params['sizes'])})", ATOM)


def _spell_dynamic_update_slice(self: Speller, x: Apply) -> Piece:
    start = _tuple_text([self.of(arg).text for arg in x.args[2:]])
    return Piece(f"dynamic_update_slice({self.of(x.args[0]).text}, {self.of(x.args[1]).text}, {start})", ATOM)


def _spell_triangular_solve(self: Speller, x: Apply) -> Piece:
    flags = "".join(f", {name}=True" for name, on in x.params.items() if on)
    return Piece(f"triangular_solve({self.of(x.args[0]).text}, {self.of(x.args[1]).text}{flags})", ATOM)


def _spell_einsum(self: Speller, x: Apply) -> Piece:
    found = as_matmul(x)
    if found is not None:
        sides = [self.transposed(arg) if turned else self.at(arg, UNARY) for arg, turned in found]
        return Piece(" @ ".join(sides), PRODUCT)
    sides = as_outer(x)
    args = self.listed(sides or x.args)
    return Piece(f"outer({args})" if sides else f"einsum('{x.params['spec']}', {args})", ATOM)


_SPELLED: dict[str, _SpellApplied] = {
    "eq": _spell_operator("==", COMPARE),
    "ne": _spell_operator("!=", COMPARE),
    "lt": _spell_operator("<", COMPARE),
    "le": _spell_operator("<=", COMPARE),
    "gt": _spell_operator(">", COMPARE),
    "ge": _spell_operator(">=", COMPARE),
    "and": _spell_operator("&", AND),
    "or": _spell_operator("|", OR),
    "xor": _spell_operator("^", XOR),
    "not": _spell_not,
    "pow": _spell_pow,
    "pi": _spell_pi,
    "sum": _spell_reduction,
    "mean": _spell_reduction,
    "softmax": _spell_softmax,
    "max": _spell_reduction,
    "min": _spell_reduction,
    "prod": _spell_reduction,
    "all": _spell_reduction,
    "any": _spell_reduction,
    "reshape": _spell_reshape,
    "broadcast_to": _spell_broadcast_to,
    "transpose": _spell_transpose,
    "slice": _spell_slice,
    "place": _spell_place,
    "pad": _spell_pad,
    "concatenate": _spell_concatenate,
    "argmax": _spell_along,
    "argmin": _spell_along,
    "cumsum": _spell_along,
    "cumprod": _spell_along,
    "cummax": _spell_along,
    "cummin": _spell_along,
    "cumlogsumexp": _spell_along,
    "flip": _spell_flip,
    "arange": _spell_arange,
    "dynamic_slice": _spell_dynamic_slice,
    "dynamic_update_slice": _spell_dynamic_update_slice,
    "triangular_solve": _spell_triangular_solve,
    "einsum": _spell_einsum,
}
