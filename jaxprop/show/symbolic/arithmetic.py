"""Build expressions elementwise, simplified: sums, products, powers, comparisons, `where`, broadcasting."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from ...core.types import Shape
from .expressions import ONE, ZERO, Apply, Expr, Num, Number, Prod, Sum, Sym, exact, is_negative


def shape_of(parts: Iterable[Expr]) -> Shape:
    return np.broadcast_shapes(*(part.shape for part in parts))


# --- broadcasting --------------------------------------------------------------------------------------


def broadcast(x: Expr, shape: Shape) -> Expr:
    """Broadcast as NumPy does, aligned at the last axis."""
    if x.shape == shape:
        return x
    return Apply("broadcast_to", (unbroadcast(x),), shape, pointwise=False)


def unbroadcast(x: Expr) -> Expr:
    """Undo broadcasting: inside sums and products NumPy does it again by itself."""
    while isinstance(x, Apply) and (x.fn == "broadcast_to" or (x.fn == "reshape" and _only_leads(x))):
        x = x.args[0]
    return x


def _only_leads(x: Apply) -> bool:
    """Whether a reshape only adds leading axes of length one."""
    inner = x.args[0].shape
    new = len(x.shape) - len(inner)
    return new > 0 and x.shape == (1,) * new + inner


# --- sums --------------------------------------------------------------------------------------------


def add(*parts: Expr) -> Expr:
    """Return a sum with like terms collected: `x + x` is `2*x`, `x - x` is 0."""
    return linear([(Fraction(1), part) for part in parts])


def subtract(a: Expr, b: Expr) -> Expr:
    return linear([(Fraction(1), a), (Fraction(-1), b)])


def negate(x: Expr) -> Expr:
    return linear([(Fraction(-1), x)])


def linear(parts: Sequence[tuple[Number, Expr]]) -> Expr:
    """Return the linear combination of `(coefficient, expression)` pairs."""
    shape = shape_of(part for _, part in parts)
    collected: dict[Expr, Number] = {}
    for coefficient, part in parts:
        for own, term in _terms(unbroadcast(part)):
            collected[term] = _plus(collected.get(term, Fraction(0)), _times(coefficient, own))
    kept = [(coefficient, term) for term, coefficient in collected.items() if coefficient != 0]
    if not kept:
        return broadcast(ZERO, shape)
    if len(kept) == 1:
        return broadcast(multiply(Num(kept[0][0]), kept[0][1]), shape)
    shared = _common_factor([term for _, term in kept])
    if shared is not None:
        rest = linear([(coefficient, divide(term, shared)) for coefficient, term in kept])
        return broadcast(multiply(shared, rest), shape)
    return broadcast(Sum(_positive_first(kept), shape_of(term for _, term in kept)), shape)


def _terms(part: Expr) -> Iterable[tuple[Number, Expr]]:
    if isinstance(part, Sum):
        return part.terms
    if isinstance(part, Num):
        return [(part.value, ONE)]
    if isinstance(part, Prod):
        bare = _product(Fraction(1), dict(part.factors))
        if isinstance(bare, Sum) and part.coefficient == -1:
            return [(_times(Fraction(-1), own), term) for own, term in bare.terms]
        return [(part.coefficient, bare)]  # 2*(a + b) is not expanded
    return [(Fraction(1), part)]


def _common_factor(terms: Sequence[Expr]) -> Expr | None:
    """A factor that all terms share: `a - a*b` is `a*(1 - b)`."""
    first, *others = map(_exponents, terms)
    for factor, exponent in first.items():
        if _is_natural(exponent) and all(_is_natural(other.get(factor, Fraction(0))) for other in others):
            return factor
    return None


def _is_natural(exponent: Number) -> bool:
    return isinstance(exponent, Fraction) and exponent.denominator == 1 and exponent >= 1


def _exponents(term: Expr) -> dict[Expr, Number]:
    if isinstance(term, Prod):
        return dict(term.factors)
    return {} if isinstance(term, Num) else {term: Fraction(1)}


def _positive_first(terms: Sequence[tuple[Number, Expr]]) -> list[tuple[Number, Expr]]:
    """Move a positive term to the front: `1 - a`, not `-a + 1`."""
    first = next((i for i, (coefficient, _) in enumerate(terms) if not is_negative(coefficient)), 0)
    return [terms[first], *terms[:first], *terms[first + 1 :]]


def has_minus(x: Expr) -> bool:
    """Whether an expression is written with a leading minus sign."""
    if isinstance(x, Num):
        return is_negative(x.value)
    return isinstance(x, Prod) and is_negative(x.coefficient)


# --- products ----------------------------------------------------------------------------------------


def multiply(*parts: Expr) -> Expr:
    """Return a product with powers collected: `x * x` is `x**2`, `0 * x` is 0."""
    shape = shape_of(parts)
    coefficient: Number = Fraction(1)
    collected: dict[Expr, Number] = {}
    for part in map(unbroadcast, parts):
        if isinstance(part, Num):
            coefficient = _times(coefficient, part.value)
            continue
        if isinstance(part, Prod):
            coefficient = _times(coefficient, part.coefficient)
        for factor, exponent in part.factors if isinstance(part, Prod) else ((part, Fraction(1)),):
            collected[factor] = _plus(collected.get(factor, Fraction(0)), exponent)
    return broadcast(_product(coefficient, collected), shape)


def divide(a: Expr, b: Expr) -> Expr:
    return multiply(a, power(b, Fraction(-1)))


def power(x: Expr, exponent: Number) -> Expr:
    """Return `x ** exponent` for a number."""
    base, shape = unbroadcast(x), x.shape
    if isinstance(base, Num):
        folded = _power(base.value, exponent)
        return broadcast(Num(folded) if folded is not None else Apply("pow", (base, Num(exponent)), ()), shape)
    whole = isinstance(exponent, Fraction) and exponent.denominator == 1
    if isinstance(base, Prod) and whole:
        coefficient = _power(base.coefficient, exponent)
        if coefficient is not None:
            return broadcast(_product(coefficient, {f: _times(e, exponent) for f, e in base.factors}), shape)
    return broadcast(_product(Fraction(1), {base: exponent}), shape)


def raise_to(x: Expr, y: Expr) -> Expr:
    """Return `x ** y`."""
    exponent = unbroadcast(y)
    if isinstance(exponent, Num):
        return broadcast(power(x, exponent.value), shape_of((x, y)))
    return apply("pow", x, y)


def _power(base: Number, exponent: Number) -> Number | None:
    """`base ** exponent` for numbers, None where it is undefined."""
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


def _product(coefficient: Number, factors: Mapping[Expr, Number]) -> Expr:
    kept = {factor: exponent for factor, exponent in factors.items() if exponent != 0}
    if coefficient == 0 or not kept:
        return Num(coefficient)
    mask = next((f for f, e in kept.items() if e == 1 and isinstance(f, Apply) and _is_mask(f)), None)
    if mask is not None:
        return _masked(mask, [Num(coefficient), *(power(f, e) for f, e in kept.items() if f != mask)])
    cancelled = _cancelled(kept)
    if cancelled is not None:
        return multiply(Num(coefficient), *cancelled)
    square = _difference_of_squares(kept)
    if square is not None:
        return multiply(Num(coefficient), *square)
    only = next(iter(kept)) if list(kept.values()) == [1] else None
    if only is not None and coefficient == 1:
        return only
    if isinstance(only, Sum) and coefficient == -1:
        return Sum(_positive_first([(_times(Fraction(-1), c), t) for c, t in only.terms]), only.shape)
    return Prod(coefficient, list(kept.items()), shape_of(kept))


def _cancelled(factors: Mapping[Expr, Number]) -> list[Expr] | None:
    """`(a/s - b) * s` is `a - b*s`."""
    for total, exponent in factors.items():
        if exponent != 1 or not isinstance(total, Sum):
            continue
        for factor, outside in factors.items():
            inside = [_exponents(term).get(factor, Fraction(0)) for _, term in total.terms]
            if _is_natural(outside) and any(_is_natural(_times(Fraction(-1), e)) for e in inside):
                terms = [(c, multiply(term, factor)) for c, term in total.terms]
                rest = {**factors, factor: _plus(outside, Fraction(-1))}
                return [linear(terms), *(power(f, e) for f, e in rest.items() if f != total and e != 0)]
    return None


def _is_mask(x: Apply) -> bool:
    return x.fn == "where" and ZERO in x.args[1:]


def _masked(mask: Apply, factors: Sequence[Expr]) -> Expr:
    """Move factors into a mask, and into the masks inside it: `where(c, a, 0) * b` is `where(c, a * b, 0)`."""
    around: list[tuple[Expr, bool]] = []  # the condition of each mask, and whether its first branch is kept
    inside: Expr = mask
    while isinstance(inside, Apply) and _is_mask(inside):
        condition, yes, no = inside.args
        around.append((condition, no == ZERO))
        inside = yes if no == ZERO else no
    found = ZERO if inside == ZERO else multiply(inside, *factors)
    for condition, first in reversed(around):
        found = where(condition, found, ZERO) if first else where(condition, ZERO, found)
    return found


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


# --- applied functions that simplify -------------------------------------------------------------------


def apply(fn: str, *args: Expr) -> Expr:
    """Apply an elementwise function: `apply("sin", x)`."""
    bare = tuple(map(unbroadcast, args))
    return broadcast(Apply(fn, bare, shape_of(bare)), shape_of(args))


def where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Return `yes` where the condition holds, else `no`."""
    shape = shape_of((condition, yes, no))
    condition, yes, no = map(unbroadcast, (condition, yes, no))
    if isinstance(condition, Num):
        return broadcast(yes if condition.value else no, shape)
    if yes == no:
        return broadcast(yes, shape)
    if isinstance(condition, Apply) and condition.fn == "not":
        condition, yes, no = condition.args[0], no, yes
    return broadcast(Apply("where", (condition, yes, no), shape_of((condition, yes, no))), shape)


_COMPARISONS: dict[str, Callable[[Number, Number], bool]] = {
    name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")
}


def compare(fn: str, a: Expr, b: Expr) -> Expr:
    """Compare, deciding at once between two numbers: `fn` is one of `eq`, `ne`, `lt`, `le`, `gt`, `ge`."""
    shape = shape_of((a, b))
    a, b = unbroadcast(a), unbroadcast(b)
    if isinstance(a, Num) and isinstance(b, Num) and not isinstance(a.value, complex | bool):
        return broadcast(Num(bool(_COMPARISONS[fn](a.value, b.value))), shape)
    return broadcast(Apply(fn, (a, b), shape_of((a, b))), shape)


# --- polynomials -------------------------------------------------------------------------------------


def as_polynomial(x: Expr, variable: Expr) -> Expr:
    """Write a polynomial with its highest power first: `3*x**2 + 2*x` in place of `x*(2 + 3*x)`."""
    terms = x.terms if isinstance(x, Sum) else _expanded(x, variable) if isinstance(x, Prod) else ()
    degrees = [degree for _, term in terms if (degree := _degree(term)) is not None]
    if not terms or len(degrees) < len(terms):
        return x
    order = sorted(range(len(terms)), key=lambda i: -degrees[i])
    return x if is_negative(terms[order[0]][0]) else Sum([terms[i] for i in order], x.shape)


def _degree(term: Expr) -> Fraction | None:
    """The degree of a monomial in all symbols, None where a term is not one."""
    if term == ONE:
        return Fraction(0)
    factors = _exponents(term)
    exponents = [e for factor, e in factors.items() if isinstance(factor, Sym) and isinstance(e, Fraction)]
    return sum(exponents, Fraction(0)) if len(exponents) == len(factors) else None


def _expanded(x: Prod, variable: Expr) -> Sequence[tuple[Number, Expr]]:
    """The terms of `variable**n * (a polynomial in it)`, () for any other product."""
    factors = dict(x.factors)
    outside = factors.pop(variable, Fraction(0))
    if not _is_natural(outside) or len(factors) != 1:
        return ()
    ((inside, exponent),) = factors.items()
    if exponent != 1 or not isinstance(inside, Sum):
        return ()
    if any(_exponents(term).keys() - {variable, ONE} for _, term in inside.terms):
        return ()
    outer = power(variable, outside)
    return [(_times(x.coefficient, c), multiply(outer, term)) for c, term in inside.terms]
