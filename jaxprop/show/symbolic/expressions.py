"""Expressions: small trees of numbers, symbols, sums, products and calls, simplified as they are made.

What is equal is written one way: `x * x` and `x**2`, `-(a - b)` and `b - a` are one expression. The order of
what the user wrote is kept for reading, and does not count in comparing.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

Number: TypeAlias = Fraction | float | complex | bool
Shape: TypeAlias = tuple[int, ...]

#: No formula is longer than this, counted in symbols, numbers and operations.
LIMIT = 400


class TooLarge(Exception):
    """An expression that nobody would want to read."""


class Expr:
    """An expression. Immutable; equal to what is written the same up to the order of sums and products.

    Attributes:
        shape: the shape of its value.
        size: how many symbols, numbers and operations it is made of.
        parts: the expressions it is made of.
    """

    __slots__ = ("_hash", "_key", "parts", "shape", "size")

    def __init__(self, key: Any, shape: Shape, parts: Sequence["Expr"]) -> None:
        self.shape, self.parts = shape, tuple(parts)
        self.size = 1 + sum(part.size for part in parts)
        if self.size > LIMIT:
            raise TooLarge
        self._key = (type(self), key)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Expr) and self._hash == other._hash and self._key == other._key
        )


class Num(Expr):
    """A number: exact (`Fraction`) where it is whole or a quotient of whole numbers."""

    __slots__ = ("value",)

    def __init__(self, value: Number) -> None:
        self.value = value
        # True is not 1 here, and a NaN is a NaN.
        super().__init__((isinstance(value, bool), value if value == value else "nan"), (), ())


class Sym(Expr):
    """A symbol: what it is called is said when it is printed.

    Attributes:
        role: `in` for an operand, `out` for a result, `ct` for the cotangent of a result.
        index: which of them.
    """

    __slots__ = ("index", "role")

    def __init__(self, role: str, index: int, shape: Shape = ()) -> None:
        self.role, self.index = role, index
        super().__init__((role, index), shape, ())


class Sum(Expr):
    """`sum_i coefficient_i * term_i`. Terms are neither sums nor numbers times something, but for `ONE`."""

    __slots__ = ("terms",)

    def __init__(self, terms: Sequence[tuple[Number, Expr]], shape: Shape) -> None:
        self.terms = tuple(terms)
        key = frozenset((term, _plain(coefficient)) for coefficient, term in terms)
        super().__init__(key, shape, [term for _, term in terms])


class Prod(Expr):
    """`coefficient * prod_i factor_i ** exponent_i`."""

    __slots__ = ("coefficient", "factors")

    def __init__(self, coefficient: Number, factors: Sequence[tuple[Expr, Number]], shape: Shape) -> None:
        self.coefficient, self.factors = coefficient, tuple(factors)
        key = (_plain(coefficient), frozenset((factor, _plain(exponent)) for factor, exponent in factors))
        super().__init__(key, shape, [factor for factor, _ in factors])


class Call(Expr):
    """A function of expressions.

    Attributes:
        fn: its name.
        args: what it is called with.
        params: what it is called with beside, that is no expression.
        pointwise: whether each number of the result depends on the numbers at its own place alone.
    """

    __slots__ = ("args", "fn", "params", "pointwise")

    def __init__(
        self,
        fn: str,
        args: Sequence[Expr],
        shape: Shape,
        params: Mapping[str, Any] | None = None,
        pointwise: bool = True,
    ) -> None:
        self.fn, self.args, self.params, self.pointwise = fn, tuple(args), dict(params or {}), pointwise
        key = (fn, self.args, shape, tuple(sorted((name, repr(value)) for name, value in self.params.items())))
        super().__init__(key, shape, self.args)


def _plain(number: Number) -> Any:
    return number if number == number else "nan"


# --- numbers ---------------------------------------------------------------------------------------


def exact(value: Any) -> Number:
    """A number as exact as it is meant: whole floats are whole numbers."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Fraction):
        return value
    if isinstance(value, complex | np.complexfloating):
        return exact(value.real) if value.imag == 0 else complex(value)
    if isinstance(value, int | np.integer):
        return Fraction(int(value))
    value = float(value)
    return Fraction(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 1e15 else value


def number(value: Any) -> Num:
    return Num(exact(value))


ZERO, ONE = number(0), number(1)


def _power(base: Number, exponent: Number) -> Number | None:
    """`base ** exponent` of numbers; None where there is none."""
    try:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            return exact(base ** int(exponent))
        if isinstance(base, complex) or isinstance(exponent, complex):
            return exact(complex(base) ** complex(exponent))
        result = float(base) ** float(exponent)
    except (ZeroDivisionError, OverflowError, TypeError):
        return None
    return None if isinstance(result, complex) else exact(result)


def _times(a: Number, b: Number) -> Number:
    return exact(a * b)


def _plus(a: Number, b: Number) -> Number:
    return exact(a + b)


# --- sums and products -------------------------------------------------------------------------------


def shape_of(parts: Iterable[Expr]) -> Shape:
    return np.broadcast_shapes(*(part.shape for part in parts))


def add(*parts: Expr) -> Expr:
    """A sum, like terms collected: `x + x` is `2*x`, `x - x` is 0."""
    return _sum([(Fraction(1), part) for part in parts])


def subtract(a: Expr, b: Expr) -> Expr:
    return _sum([(Fraction(1), a), (Fraction(-1), b)])


def negate(x: Expr) -> Expr:
    return _sum([(Fraction(-1), x)])


def _sum(parts: Sequence[tuple[Number, Expr]]) -> Expr:
    shape = shape_of(part for _, part in parts)
    collected: dict[Expr, Number] = {}
    for coefficient, part in parts:
        for own, term in _terms(narrow(part)):
            collected[term] = _plus(collected.get(term, Fraction(0)), _times(coefficient, own))
    kept = [(coefficient, term) for term, coefficient in collected.items() if coefficient != 0]
    if not kept:
        return spread(ZERO, shape)
    if len(kept) == 1:
        return spread(multiply(Num(kept[0][0]), kept[0][1]), shape)
    shared = _common_factor([term for _, term in kept])
    if shared is not None:
        rest = _sum([(coefficient, divide(term, shared)) for coefficient, term in kept])
        return spread(multiply(shared, rest), shape)
    return spread(Sum(_readable(kept), shape_of(term for _, term in kept)), shape)


def _terms(part: Expr) -> Iterable[tuple[Number, Expr]]:
    if isinstance(part, Sum):
        return part.terms
    if isinstance(part, Num):
        return [(part.value, ONE)]
    if isinstance(part, Prod):
        bare = _product(Fraction(1), dict(part.factors))
        if isinstance(bare, Sum):  # 2*(a + b) stays as it is
            return (
                [(part.coefficient, bare)]
                if part.coefficient != -1
                else [(_times(Fraction(-1), own), term) for own, term in bare.terms]
            )
        return [(part.coefficient, bare)]
    return [(Fraction(1), part)]


def _common_factor(terms: Sequence[Expr]) -> Expr | None:
    """A factor all terms have: `a - a*b` is `a*(1 - b)`."""
    sets = [_factors(term) for term in terms]
    for factor, exponent in sets[0].items():
        if _whole(exponent) and all(_whole(s.get(factor, Fraction(0))) for s in sets[1:]):
            return factor
    return None


def _whole(exponent: Number) -> bool:
    return isinstance(exponent, Fraction) and exponent.denominator == 1 and exponent >= 1


def _factors(term: Expr) -> dict[Expr, Number]:
    if isinstance(term, Prod):
        return dict(term.factors)
    return {} if isinstance(term, Num) else {term: Fraction(1)}


def _readable(terms: Sequence[tuple[Number, Expr]]) -> list[tuple[Number, Expr]]:
    """No minus sign in front where there is a plus: `1 - a`, not `-a + 1`."""
    first = next((i for i, (coefficient, _) in enumerate(terms) if not _negative(coefficient)), 0)
    return [terms[first], *terms[:first], *terms[first + 1 :]]


def _negative(value: Number) -> bool:
    return not isinstance(value, complex) and value < 0


def negative(x: Expr) -> bool:
    """Whether an expression is written with a minus sign in front."""
    if isinstance(x, Num):
        return _negative(x.value)
    return isinstance(x, Prod) and _negative(x.coefficient)


def multiply(*parts: Expr) -> Expr:
    """A product, powers collected: `x * x` is `x**2`, `0 * x` is 0."""
    shape = shape_of(parts)
    coefficient: Number = Fraction(1)
    collected: dict[Expr, Number] = {}
    for part in map(narrow, parts):
        if isinstance(part, Num):
            coefficient = _times(coefficient, part.value)
            continue
        if isinstance(part, Prod):
            coefficient = _times(coefficient, part.coefficient)
        for factor, exponent in part.factors if isinstance(part, Prod) else ((part, Fraction(1)),):
            collected[factor] = _plus(collected.get(factor, Fraction(0)), exponent)
    return spread(_product(coefficient, collected), shape)


def divide(a: Expr, b: Expr) -> Expr:
    return multiply(a, power(b, Fraction(-1)))


def power(x: Expr, exponent: Number) -> Expr:
    """`x ** exponent` for a number."""
    base, shape = narrow(x), x.shape
    if isinstance(base, Num):
        folded = _power(base.value, exponent)
        return spread(Num(folded) if folded is not None else Call("pow", (base, Num(exponent)), ()), shape)
    whole = isinstance(exponent, Fraction) and exponent.denominator == 1
    if isinstance(base, Prod) and whole:
        coefficient = _power(base.coefficient, exponent)
        if coefficient is not None:
            return spread(_product(coefficient, {f: _times(e, exponent) for f, e in base.factors}), shape)
    return spread(_product(Fraction(1), {base: exponent}), shape)


def _product(coefficient: Number, factors: Mapping[Expr, Number]) -> Expr:
    kept = {factor: exponent for factor, exponent in factors.items() if exponent != 0}
    if coefficient == 0 or not kept:
        return Num(coefficient)
    masked = _masked(coefficient, kept)
    if masked is not None:
        return masked
    square = _difference_of_squares(kept)
    if square is not None:
        return multiply(Num(coefficient), *square)
    only = next(iter(kept)) if list(kept.values()) == [1] else None
    if only is not None and coefficient == 1:
        return only
    if isinstance(only, Sum) and coefficient == -1:
        return Sum(_readable([(_times(Fraction(-1), c), t) for c, t in only.terms]), only.shape)
    return Prod(coefficient, list(kept.items()), shape_of(kept))


def _masked(coefficient: Number, factors: Mapping[Expr, Number]) -> Expr | None:
    """A mask covers a product: `where(c, a, 0) * b` is `where(c, a * b, 0)`."""
    mask = next((f for f, e in factors.items() if e == 1 and is_mask(f)), None)
    if mask is None:
        return None
    rest = [power(factor, exponent) for factor, exponent in factors.items() if factor != mask]
    condition, yes, no = mask.args  # type: ignore[attr-defined]
    sides = [x if x == ZERO else multiply(Num(coefficient), x, *rest) for x in (yes, no)]
    return where(condition, *sides)


def is_mask(x: Expr) -> bool:
    return isinstance(x, Call) and x.fn == "where" and ZERO in x.args[1:]


def _difference_of_squares(factors: Mapping[Expr, Number]) -> list[Expr] | None:
    """`(1 + a) * (1 - a)` is `1 - a**2`."""
    for factor, exponent in factors.items():
        if exponent != 1 or not isinstance(factor, Sum) or len(factor.terms) != 2:
            continue
        (c, one), (d, term) = factor.terms if factor.terms[0][1] == ONE else factor.terms[::-1]
        if one != ONE:
            continue
        other = Sum([(c, ONE), (_times(Fraction(-1), d), term)], factor.shape)
        if factors.get(other) == 1:
            rest = [power(f, e) for f, e in factors.items() if f not in (factor, other)]
            squares = subtract(Num(_times(c, c)), multiply(Num(_times(d, d)), power(term, Fraction(2))))
            return [squares, *rest]
    return None


# --- calls that simplify -----------------------------------------------------------------------------


def where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes` where the condition holds, else `no`."""
    shape = shape_of((condition, yes, no))
    condition, yes, no = map(narrow, (condition, yes, no))
    if isinstance(condition, Num):
        return spread(yes if condition.value else no, shape)
    if yes == no:
        return spread(yes, shape)
    if isinstance(condition, Call) and condition.fn == "not":
        condition, yes, no = condition.args[0], no, yes
    return spread(Call("where", (condition, yes, no), shape_of((condition, yes, no))), shape)


def compare(fn: str, a: Expr, b: Expr) -> Expr:
    """`a == b` and the like, decided where both are numbers."""
    shape = shape_of((a, b))
    a, b = narrow(a), narrow(b)
    if isinstance(a, Num) and isinstance(b, Num) and not isinstance(a.value, complex | bool):
        return spread(Num(bool(_COMPARE[fn](a.value, b.value))), shape)
    return spread(Call(fn, (a, b), shape_of((a, b))), shape)


_COMPARE: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}


def apply(fn: str, *args: Expr, **params: Any) -> Expr:
    """A function that goes number by number."""
    bare = tuple(map(narrow, args))
    return spread(Call(fn, bare, shape_of(bare), params), shape_of(args))


def raised(x: Expr, y: Expr) -> Expr:
    """`x ** y`."""
    exponent = narrow(y)
    if isinstance(exponent, Num):
        return spread(power(x, exponent.value), shape_of((x, y)))
    return apply("pow", x, y)


# --- broadcasting --------------------------------------------------------------------------------------


def spread(x: Expr, shape: Shape) -> Expr:
    """Broadcast as NumPy does: to the shape, aligned at the last axis."""
    if x.shape == shape:
        return x
    return Call("broadcast_to", (narrow(x),), shape, pointwise=False)


def narrow(x: Expr) -> Expr:
    """What was broadcast, as it was before: in sums and products it comes to the same."""
    if not isinstance(x, Call):
        return x
    if x.fn == "broadcast_to" or (x.fn == "reshape" and _is_put_in_front(x)):
        return narrow(x.args[0])
    return x


def _is_put_in_front(x: Call) -> bool:
    """Whether a reshape only puts axes of length one in front: NumPy does so by itself."""
    inner = x.args[0].shape
    new = len(x.shape) - len(inner)
    return new > 0 and x.shape == (1,) * new + inner


def contains(x: Expr, part: Expr) -> bool:
    return x == part or any(contains(inner, part) for inner in x.parts)


def diagonal(x: Expr, part: Expr) -> bool:
    """Whether each number of `x` depends on the number of `part` at its own place alone."""
    if x == part or not contains(x, part):
        return True
    if x.shape != part.shape or (isinstance(x, Call) and not x.pointwise):
        return False
    return all(diagonal(inner, part) for inner in x.parts)
