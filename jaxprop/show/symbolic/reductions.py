"""Read the primitives that reduce or accumulate along axes."""

from collections.abc import Sequence

from .arrays import apply_array, flip, reduce
from .expressions import Equation, Expr, PrimitiveReader


def _reduction(fn: str) -> PrimitiveReader:
    return lambda operands, equation: reduce(fn, operands[0], equation.params["axes"])


def _argument(fn: str) -> PrimitiveReader:
    def read(operands: Sequence[Expr], equation: Equation) -> Expr:
        return apply_array(fn, operands, equation.shape, axis=int(equation.params["axes"][0]))

    return read


def _cumulative(fn: str) -> PrimitiveReader:
    def read(operands: Sequence[Expr], equation: Equation) -> Expr:
        (x,), axis, reverse = operands, equation.params["axis"], equation.params["reverse"]
        found = apply_array(fn, [flip(x, (axis,)) if reverse else x], equation.shape, axis=axis)
        return flip(found, (axis,)) if reverse else found

    return read


REDUCTIONS: dict[str, PrimitiveReader] = {
    "reduce_sum": _reduction("sum"),
    "reduce_max": _reduction("max"),
    "reduce_min": _reduction("min"),
    "reduce_prod": _reduction("prod"),
    "reduce_and": _reduction("all"),
    "reduce_or": _reduction("any"),
    **{fn: _argument(fn) for fn in ("argmax", "argmin")},
    **{fn: _cumulative(fn) for fn in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")},
}
