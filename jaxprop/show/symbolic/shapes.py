"""Read the primitives of whole arrays: those that reshape, select, move, reduce or accumulate elements."""

from collections.abc import Sequence

from .arithmetic import broadcast, unbroadcast
from .arrays import apply_array, flip, reduce, reshape, slice_array
from .contractions import transpose
from .expressions import ZERO, Equation, Expr, PrimitiveReader, Unreadable


def _reshape(operands: Sequence[Expr], equation: Equation) -> Expr:
    order = equation.params.get("dimensions")
    return reshape(operands[0] if order is None else transpose(operands[0], order), equation.shape)


def _broadcast_in_dim(operands: Sequence[Expr], equation: Equation) -> Expr:
    if len(operands) != 1:
        raise Unreadable("broadcast_in_dim")
    x, axes, shape = operands[0], equation.params["broadcast_dimensions"], equation.shape
    expanded = [1] * len(shape)
    for size, axis in zip(x.shape, axes, strict=True):
        expanded[axis] = size
    first = min(axes, default=len(shape))  # NumPy adds leading axes by itself
    return broadcast(reshape(x, tuple(expanded[first:])), shape)


def _slice(operands: Sequence[Expr], equation: Equation) -> Expr:
    params = equation.params
    return slice_array(operands[0], params["start_indices"], params["limit_indices"], params["strides"])


def _split(operands: Sequence[Expr], equation: Equation) -> list[Expr]:
    (x,), axis = operands, equation.params["axis"]
    start, found = 0, []
    for size in equation.params["sizes"]:
        starts = tuple(start if i == axis else 0 for i in range(len(x.shape)))
        limits = tuple(start + size if i == axis else n for i, n in enumerate(x.shape))
        found.append(slice_array(x, starts, limits, None))
        start += size
    return found


def _pad(operands: Sequence[Expr], equation: Equation) -> Expr:
    x, value, shape = operands[0], unbroadcast(operands[1]), equation.shape
    config = [tuple(map(int, row)) for row in equation.params["padding_config"]]
    low, high, inside = zip(*config, strict=True) if shape else ((), (), ())
    crops = min((*low, *high), default=0) < 0
    if (crops and any(inside)) or (value != ZERO and (crops or any(inside))):
        raise Unreadable("pad")
    if any(inside):
        steps = tuple(i + 1 for i in inside)
        limit = tuple(a + (n - 1) * s + 1 if n else a for a, n, s in zip(low, x.shape, steps, strict=True))
        return apply_array("place", [x], shape, start=low, limit=limit, steps=steps)
    if crops:
        starts = [max(-a, 0) for a in low]
        x = slice_array(x, starts, [n - max(-b, 0) for n, b in zip(x.shape, high, strict=True)], None)
    width = tuple((max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))
    if value != ZERO:
        return apply_array("pad", [x, value], shape, width=width)
    return apply_array("pad", [x], shape, width=width) if any(map(any, width)) else x


def _iota(operands: Sequence[Expr], equation: Equation) -> Expr:
    axis, shape = equation.params["dimension"], equation.shape
    line = apply_array("arange", [], (shape[axis],), size=shape[axis])
    return broadcast(reshape(line, (shape[axis],) + (1,) * (len(shape) - axis - 1)), shape)


def _concatenate(operands: Sequence[Expr], equation: Equation) -> Expr:
    return apply_array("concatenate", operands, equation.shape, axis=int(equation.params["dimension"]))


def _dynamic_slice(operands: Sequence[Expr], equation: Equation) -> Expr:
    return apply_array("dynamic_slice", operands, equation.shape, sizes=tuple(equation.params["slice_sizes"]))


SHAPES: dict[str, PrimitiveReader] = {
    "reshape": _reshape,
    "squeeze": lambda operands, equation: reshape(operands[0], equation.shape),
    "expand_dims": lambda operands, equation: reshape(operands[0], equation.shape),
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": lambda operands, equation: transpose(operands[0], equation.params["permutation"]),
    "rev": lambda operands, equation: flip(operands[0], equation.params["dimensions"]),
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "concatenate": _concatenate,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": lambda operands, equation: apply_array(
        "dynamic_update_slice", operands, equation.shape
    ),
    "iota": _iota,
    "zeros_like": lambda operands, equation: broadcast(ZERO, equation.shape),
    "full": lambda operands, equation: broadcast(operands[0], equation.shape),
}


# --- reductions --------------------------------------------------------------------------------------


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
