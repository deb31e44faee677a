"""Read the constants of a program as a person would write them: 0.1, 1/3, 2/sqrt(pi)."""

import math
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike

from .arithmetic import apply, divide, multiply
from .expressions import ONE, Expr, Num, exact, num


def literal(value: ArrayLike) -> Expr:
    """Return a scalar of a program as an expression: the shortest that rounds to it."""
    array = np.asarray(value)
    dtype = array.dtype
    if dtype.kind in "biuc":
        return Num(exact(array.item()))
    if dtype.kind == "V" or dtype.name in ("bfloat16", "float16", "float32"):
        found = float(str(array[()]))  # the shortest decimal of this precision
    else:
        found = float(array)
    if not math.isfinite(found) or len(str(found).strip("-0").replace(".", "")) < 7 or found == int(found):
        return Num(exact(found))
    return _constant(found, dtype) or Num(exact(found))


def _constant(value: float, dtype: np.dtype) -> Expr | None:
    """A well-known constant, or a ratio of small integers, that rounds to this number."""

    def rounds_to_it(x: float) -> bool:
        return bool(np.asarray(x, dtype) == np.asarray(value, dtype))

    for constant, spelled in _CONSTANTS:
        for factor in map(Fraction, (1, -1, 2, -2, 0.5, -0.5)):
            if rounds_to_it(constant * float(factor)):
                return multiply(Num(factor), spelled)
    for denominator in (3, 6, 7, 9, 11, 12):
        if rounds_to_it(round(value * denominator) / denominator):
            return Num(Fraction(round(value * denominator), denominator))
    return None


def _sqrt(x: Expr) -> Expr:
    return apply("sqrt", x)


_PI, _TWO = apply("pi"), num(2)
_CONSTANTS: list[tuple[float, Expr]] = [
    (math.pi, _PI),
    (1 / math.pi, divide(ONE, _PI)),
    (math.sqrt(math.pi), _sqrt(_PI)),
    (1 / math.sqrt(math.pi), divide(ONE, _sqrt(_PI))),
    (math.sqrt(2), _sqrt(_TWO)),
    (1 / math.sqrt(2), divide(ONE, _sqrt(_TWO))),
    (math.sqrt(2 / math.pi), _sqrt(divide(_TWO, _PI))),
    (math.sqrt(2 * math.pi), _sqrt(multiply(_TWO, _PI))),
    (1 / math.sqrt(2 * math.pi), divide(ONE, _sqrt(multiply(_TWO, _PI)))),
    (math.log(2), apply("log", _TWO)),
    (1 / math.log(2), divide(ONE, apply("log", _TWO))),
    (math.log(10), apply("log", num(10))),
    (1 / math.log(10), divide(ONE, apply("log", num(10)))),
]
