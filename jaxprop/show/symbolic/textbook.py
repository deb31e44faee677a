"""Write expressions as a textbook does: softmax, means, and derivatives in terms of the output."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from .arithmetic import broadcast, divide, linear, multiply, power, where
from .arrays import apply_array, permuted, reduce, reshape
from .contractions import einsum, index_letters
from .expressions import ONE, Apply, Expr, Num, Prod, Sum, Sym, contains, fold


def rebuild(x: Expr, parts: Sequence[Expr]) -> Expr:
    """Build an expression like `x` from other parts, simplified again."""
    if all(new is old for new, old in zip(parts, x.parts, strict=True)):
        return x
    if isinstance(x, Sum):
        return broadcast(linear([(c, part) for (c, _), part in zip(x.terms, parts, strict=True)]), x.shape)
    if isinstance(x, Prod):
        powers = (power(part, e) for (_, e), part in zip(x.factors, parts, strict=True))
        return broadcast(multiply(Num(x.coefficient), *powers), x.shape)
    if not isinstance(x, Apply) or "own" in x.params:
        return Apply(x.fn, parts, x.shape, x.params, x.pointwise) if isinstance(x, Apply) else x
    match x.fn:
        case "broadcast_to":
            return broadcast(parts[0], x.shape)
        case "reshape":
            return reshape(parts[0], x.shape)
        case "transpose":
            return permuted(parts[0], x.params["order"])
        case "sum":
            return reduce("sum", parts[0], x.params["axes"])
        case "where":
            return broadcast(where(*parts), x.shape)
        case "einsum":
            inputs, output, _ = index_letters(x)
            return einsum(parts, inputs, output)
    return Apply(x.fn, parts, x.shape, x.params, x.pointwise)


def replace(x: Expr, others: Mapping[Expr, Expr]) -> Expr:
    """Replace expressions inside `x` by others, outermost first."""
    return fold(x, lambda here, parts: others[here] if here in others else rebuild(here, parts))


# --- in terms of the output ------------------------------------------------------------------------------


def in_terms_of(output: Sym, forward: Expr, x: Expr) -> Expr:
    """Write a derivative in terms of the output of the operation, where that is shorter.

    For `y = n/d`, the numerator is `y*d` (softmax); for `y = 1/(1 + e)`, `e` is `1/y - 1` (logistic).
    """
    if not isinstance(forward, Prod) or forward.coefficient != 1:
        return x
    denominators = [f for f, e in forward.factors if e == -1]
    numerators = [f for f, e in forward.factors if e == 1 and isinstance(f, Apply)]
    if len(denominators) != 1 or len(numerators) + 1 != len(forward.factors) or len(numerators) > 1:
        return x
    (below,) = denominators
    symbol = Sym("below", 0, below.shape)
    bare = below.args[0] if isinstance(below, Apply) and below.fn == "reshape" else below
    others = {bare: reshape(symbol, bare.shape)}
    if numerators:
        others[numerators[0]] = multiply(output, symbol)
    else:
        others = {below: divide(ONE, output)}
        if not isinstance(below, Sum) or len(below.terms) != 2 or (1, ONE) not in below.terms:
            return x
        ((coefficient, term),) = [pair for pair in below.terms if pair != (1, ONE)]
        if coefficient != 1:
            return x
        others[term] = linear([(Fraction(1), divide(ONE, output)), (Fraction(-1), ONE)])
    found = replace(x, others)
    return x if contains(found, symbol) or found.size >= x.size else symbols_first(found)


def symbols_first(x: Expr) -> Expr:
    """`a*(1 - a)` in place of `(1 - a)*a`."""
    if not isinstance(x, Prod):
        return x
    return Prod(x.coefficient, sorted(x.factors, key=lambda pair: not isinstance(pair[0], Sym)), x.shape)


# --- recognised forms ----------------------------------------------------------------------------------


def recognised(x: Expr) -> Expr:
    """Write `exp(x)/sum(exp(x))` as `softmax(x)`, and `sum(x)/n` as `mean(x)`."""

    def visit(here: Expr, parts: list[Expr]) -> Expr:
        here = rebuild(here, parts)
        if isinstance(here, Sum):
            terms = [multiply(Num(c), term) for c, term in here.terms]
            means = [_as_mean(term) for term in terms]
            if any(mean is not term for mean, term in zip(means, terms, strict=True)):
                return broadcast(linear([(Fraction(1), mean) for mean in means]), here.shape)
        return _as_mean(_as_softmax(here)) if isinstance(here, Prod) else here

    return fold(x, visit)


def _as_softmax(x: Expr) -> Expr:
    if not isinstance(x, Prod):
        return x
    exponents = dict(x.factors)
    for factor, exponent in x.factors:
        if exponent != 1 or not isinstance(factor, Apply) or factor.fn != "exp":
            continue
        for below in exponents:
            total = below.args[0] if isinstance(below, Apply) and below.fn == "reshape" else below
            if not (isinstance(total, Apply) and total.fn == "sum" and total.args == (factor,)):
                continue
            axes = total.params["axes"]
            kept = tuple(1 if i in axes else n for i, n in enumerate(factor.shape))
            if exponents[below] == -1 and len(axes) == 1 and below.shape in (kept, ()):
                softmax = apply_array(
                    "softmax", [_unshifted(factor.args[0], axes[0])], factor.shape, axis=axes[0]
                )
                others = [power(f, e) for f, e in x.factors if f not in (factor, below)]
                return broadcast(multiply(Num(x.coefficient), softmax, *others), x.shape)
    return x


def _unshifted(x: Expr, axis: int) -> Expr:
    """Leave out terms that are constant along an axis: softmax does not depend on them."""
    if not isinstance(x, Sum):
        return x
    from_end = axis - len(x.shape)
    varying = [(c, t) for c, t in x.terms if len(t.shape) >= -from_end and t.shape[from_end] != 1]
    found = linear(varying) if varying else x
    return found if found.shape == x.shape else x


def _as_mean(x: Expr) -> Expr:
    if not isinstance(x, Prod) or not isinstance(x.coefficient, Fraction) or x.coefficient.denominator == 1:
        return x
    for factor, exponent in x.factors:
        total = factor.args[0] if isinstance(factor, Apply) and factor.fn == "reshape" else factor
        if exponent != 1 or not isinstance(total, Apply) or total.fn != "sum":
            continue
        (inside,), axes = total.args, total.params["axes"]
        count = math.prod(inside.shape[axis] for axis in axes)
        if x.coefficient.denominator % count == 0:
            mean = reshape(apply_array("mean", [inside], total.shape, **total.params), factor.shape)
            others = [power(f, e) for f, e in x.factors if f != factor]
            return broadcast(multiply(Num(x.coefficient * count), mean, *others), x.shape)
    return x
