"""Read the elementwise primitives: arithmetic, functions of one number, comparisons, selection, conversion."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ... import _jaxpr
from .arithmetic import (
    add,
    apply,
    broadcast,
    compare,
    divide,
    multiply,
    negate,
    power,
    raise_to,
    subtract,
    unbroadcast,
    where,
)
from .expressions import (
    ONE,
    ZERO,
    Apply,
    Equation,
    Expr,
    Num,
    PrimitiveReader,
    Unreadable,
    exact,
    num,
)


def _divide(operands: Sequence[Expr], equation: Equation) -> Expr:
    if not _jaxpr.is_inexact(equation.dtypes[0]):
        raise Unreadable("integer div")
    return divide(*operands)


def _sqrt(operands: Sequence[Expr], equation: Equation) -> Expr:
    x = unbroadcast(operands[0])
    if isinstance(x, Num) and isinstance(x.value, Fraction) and x.value > 0:
        root = Fraction(math.isqrt(x.value.numerator), math.isqrt(x.value.denominator))
        if root * root == x.value:
            return broadcast(Num(root), equation.shape)
    return apply("sqrt", *operands)


def _select_n(operands: Sequence[Expr], equation: Equation) -> Expr:
    if len(operands) != 3:
        raise Unreadable("select_n")
    condition, no, yes = operands
    return where(condition, yes, no)


def _clamp(operands: Sequence[Expr], equation: Equation) -> Expr:
    low, x, high = operands
    return apply("clip", x, low, high)


def _not(operands: Sequence[Expr], equation: Equation) -> Expr:
    x = unbroadcast(operands[0])
    if isinstance(x, Num) and isinstance(x.value, bool):
        return broadcast(Num(not x.value), equation.shape)
    if isinstance(x, Apply) and x.fn == "not":
        return broadcast(x.args[0], equation.shape)
    return apply("not", operands[0])


def _connective(fn: str) -> PrimitiveReader:
    """`and`, `or`, `xor`: decided where one side is known."""

    def read(operands: Sequence[Expr], equation: Equation) -> Expr:
        bare = [unbroadcast(x) for x in operands]
        known = [x.value for x in bare if isinstance(x, Num)]
        unknown = [x for x, inner in zip(operands, bare, strict=True) if not isinstance(inner, Num)]
        if len(known) == 1 and isinstance(known[0], bool) and fn in ("and", "or"):
            return unknown[0] if known[0] == (fn == "and") else broadcast(Num(known[0]), equation.shape)
        return apply(fn, *operands)

    return read


def _convert(operands: Sequence[Expr], equation: Equation) -> Expr:
    """A conversion is shown only where it changes the number: of truth values, fractions, complex numbers."""
    (x,), (before,), (after,) = operands, equation.operand_dtypes, equation.dtypes
    inner, boolean = unbroadcast(x), np.dtype(bool)
    if isinstance(inner, Num):
        return broadcast(
            _converted(inner, before == boolean, after == boolean, _jaxpr.is_inexact(after)), x.shape
        )
    if before == boolean and after != boolean:
        return where(x, ONE, ZERO)
    if _jaxpr.is_inexact(before) and not _jaxpr.is_inexact(after):
        return apply("bool" if after == boolean else "trunc", x)
    if "complex" in str(before) and "complex" not in str(after):
        return apply("real", x)
    return x


def _converted(x: Num, from_boolean: bool, to_boolean: bool, to_inexact: bool) -> Num:
    value = x.value
    if to_boolean:
        return Num(bool(value))
    if isinstance(value, complex):
        return x
    if from_boolean:
        return num(int(value))
    return x if isinstance(value, Fraction) or to_inexact else num(math.trunc(value))


def _unchanged(operands: Sequence[Expr], equation: Equation) -> Expr:
    return operands[0]


#: Elementwise functions by primitive. Names are those of `jax.numpy`, `jax.scipy.special`, `jax.nn`, `jax.lax`.
FUNCTIONS = {
    "abs": "abs",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "bessel_i0e": "i0e",
    "bessel_i1e": "i1e",
    "cbrt": "cbrt",
    "ceil": "ceil",
    "complex": "complex",
    "conj": "conj",
    "cos": "cos",
    "cosh": "cosh",
    "digamma": "digamma",
    "erf": "erf",
    "erf_inv": "erfinv",
    "erfc": "erfc",
    "exp": "exp",
    "expm1": "expm1",
    "floor": "floor",
    "igamma": "gammainc",
    "igamma_grad_a": "igamma_grad_a",
    "igammac": "gammaincc",
    "imag": "imag",
    "is_finite": "isfinite",
    "lgamma": "gammaln",
    "log": "log",
    "log1p": "log1p",
    "log2": "log2",
    "logistic": "sigmoid",
    "max": "maximum",
    "min": "minimum",
    "nextafter": "nextafter",
    "polygamma": "polygamma",
    "random_gamma_grad": "random_gamma_grad",
    "real": "real",
    "regularized_incomplete_beta": "betainc",
    "rem": "fmod",
    "round": "round",
    "sign": "sign",
    "sin": "sin",
    "sinh": "sinh",
    "sqrt": "sqrt",
    "tan": "tan",
    "tanh": "tanh",
    "zeta": "zeta",
}
#: Primitives that return their operand unchanged.
IDENTITIES = (
    "copy",
    "copy_p",
    "device_put",
    "layout_constraint",
    "mutable_array",
    "name",
    "pcast",
    "pvary",
    "reshard",
    "sharding_constraint",
    "stop_gradient",
)


def _function_of(fn: str) -> PrimitiveReader:
    return lambda operands, equation: apply(fn, *operands)


def _comparison(fn: str) -> PrimitiveReader:
    return lambda operands, equation: compare(fn, *operands)


ELEMENTWISE: dict[str, PrimitiveReader] = {
    "add": lambda operands, equation: add(*operands),
    "add_any": lambda operands, equation: add(*operands),
    "sub": lambda operands, equation: subtract(*operands),
    "mul": lambda operands, equation: multiply(*operands),
    "div": _divide,
    "neg": lambda operands, equation: negate(*operands),
    "pow": lambda operands, equation: raise_to(*operands),
    "square": lambda operands, equation: power(operands[0], Fraction(2)),
    "one_minus_square": lambda operands, equation: subtract(ONE, power(operands[0], Fraction(2))),
    "rsqrt": lambda operands, equation: divide(ONE, apply("sqrt", *operands)),
    "exp2": lambda operands, equation: raise_to(num(2), operands[0]),
    "integer_pow": lambda operands, equation: power(operands[0], exact(equation.params["y"])),
    "select_n": _select_n,
    "clamp": _clamp,
    "and": _connective("and"),
    "or": _connective("or"),
    "xor": _connective("xor"),
    "not": _not,
    "convert_element_type": _convert,
    "optimization_barrier": lambda operands, equation: operands,
    **{fn: _comparison(fn) for fn in ("eq", "ne", "lt", "le", "gt", "ge")},
    **dict.fromkeys(IDENTITIES, _unchanged),
    **{primitive: _function_of(fn) for primitive, fn in FUNCTIONS.items()},
    "sqrt": _sqrt,
}
