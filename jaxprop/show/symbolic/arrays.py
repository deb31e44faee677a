"""Build expressions that rearrange or reduce arrays, simplified: reshape, transpose, slice, flip, sum."""

import math
from collections.abc import Sequence

from ...core.types import Shape
from .arithmetic import broadcast, linear, multiply, power, shape_of, unbroadcast
from .expressions import ONE, ZERO, Apply, Expr, Num, Prod, Sum, num


def apply_array(fn: str, args: Sequence[Expr], shape: Shape, **params: object) -> Expr:
    """Apply a function of whole arrays."""
    return Apply(fn, args, shape, params, pointwise=False)


# --- reshape -----------------------------------------------------------------------------------------


def reshape(x: Expr, shape: Shape) -> Expr:
    """Give an array another shape; axes of length one go to the factors and terms: `(a / b)[:, None]`."""
    done: dict[int, Expr] = {}
    stack = [x]
    while stack:
        here = stack[-1]
        missing = [part for part in _parts_to_reshape(here, shape) if id(part) not in done]
        if missing:
            stack.extend(missing)
        else:
            done[id(here)] = _reshaped(here, shape, done)
            stack.pop()
    return done[id(x)]


def _parts_to_reshape(x: Expr, shape: Shape) -> Sequence[Expr]:
    if x.shape == shape or _spread_scalar(x) is not None:
        return ()
    if isinstance(x, Apply):
        return x.args if x.fn == "reshape" else ()
    return [part for part in x.parts if part.shape != ()] if _distributes(x, shape) else ()


def _reshaped(x: Expr, shape: Shape, done: dict[int, Expr]) -> Expr:
    """Reshape an expression whose parts are done."""
    if x.shape == shape:
        return x
    scalar = _spread_scalar(x)
    if scalar is not None:
        return broadcast(scalar, shape)
    if isinstance(x, Apply) and x.fn == "reshape":
        return done[id(x.args[0])]
    if isinstance(x, Prod) and _distributes(x, shape):
        return multiply(Num(x.coefficient), *(power(done.get(id(f), f), e) for f, e in x.factors))
    if isinstance(x, Sum) and _distributes(x, shape):
        return linear([(c, done.get(id(term), term)) for c, term in x.terms])
    return apply_array("reshape", [x], shape)


def _spread_scalar(x: Expr) -> Expr | None:
    """The scalar that fills an array, None where there is none."""
    inner = unbroadcast(x)
    filled = inner is not x or isinstance(inner, Num | Prod | Sum)
    return inner if inner.shape == () and filled else None


def _distributes(x: Expr, shape: Shape) -> bool:
    if not isinstance(x, Prod | Sum) or any(part.shape not in ((), x.shape) for part in x.parts):
        return False
    return [n for n in shape if n != 1] == [n for n in x.shape if n != 1]


# --- order and selection -------------------------------------------------------------------------------


def permuted(x: Expr, order: Sequence[int]) -> Expr:
    """Transpose, unless the expression knows a simpler way."""
    order = tuple(int(i) for i in order)
    shape = tuple(x.shape[i] for i in order)
    if order == tuple(range(len(order))):
        return x
    inner = unbroadcast(x)
    if inner.shape == ():
        return broadcast(inner, shape)
    if isinstance(x, Apply) and x.fn == "transpose":
        inside: Sequence[int] = x.params["order"]
        return permuted(x.args[0], [inside[i] for i in order])
    return apply_array("transpose", [x], shape, order=order)


def flip(x: Expr, axes: Sequence[int]) -> Expr:
    """Reverse some axes."""
    axes = tuple(axes)
    if isinstance(x, Apply) and x.fn == "flip" and x.params["axes"] == axes:
        return x.args[0]
    return apply_array("flip", [x], x.shape, axes=axes) if axes and unbroadcast(x).shape != () else x


def slice_array(x: Expr, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None) -> Expr:
    """Take a part of an array, as `jax.lax.slice` does."""
    steps = tuple(strides or (1,) * len(x.shape))
    shape = tuple(len(range(*span)) for span in zip(start, limit, steps, strict=True))
    if shape == x.shape and set(steps) <= {1}:
        return x
    if unbroadcast(x).shape == ():
        return broadcast(unbroadcast(x), shape)
    return apply_array("slice", [x], shape, start=tuple(start), limit=tuple(limit), steps=steps)


# --- reductions --------------------------------------------------------------------------------------


def reduce(fn: str, x: Expr, axes: Sequence[int]) -> Expr:
    """Reduce over some axes: `fn` is `sum`, `max`, `min`, `prod`, `all` or `any`."""
    axes = tuple(int(a) for a in axes)
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if all(x.shape[axis] == 1 for axis in axes):
        squeezed = reshape(x, shape)
        if not (isinstance(squeezed, Apply) and squeezed.fn == "reshape"):
            return squeezed
    inner = unbroadcast(x)
    if inner.shape == () and fn == "sum":
        return broadcast(multiply(num(math.prod(x.shape[a] for a in axes)), inner), shape)
    if isinstance(x, Apply) and x.fn == "where" and x.args[1:] == (ONE, ZERO) and fn == "sum":
        x = broadcast(x.args[0], x.shape)  # a count
    if isinstance(x, Prod) and fn == "sum":
        constant = [(f, e) for f, e in x.factors if _is_constant(f, x.shape, axes)]
        varying = [power(f, e) for f, e in x.factors if not _is_constant(f, x.shape, axes)]
        if varying and shape_of(varying) == x.shape and (constant or x.coefficient != 1):
            outside = [power(_without_axes(f, x.shape, axes), e) for f, e in constant]
            return broadcast(
                multiply(Num(x.coefficient), *outside, reduce(fn, multiply(*varying), axes)), shape
            )
    return apply_array(fn, [x], shape, axes=axes, whole=len(axes) == len(x.shape))


def _is_constant(x: Expr, shape: Shape, axes: Sequence[int]) -> bool:
    """Whether a factor of an array of this shape is the same along some of its axes."""
    sizes = (1,) * (len(shape) - len(x.shape)) + x.shape
    return all(sizes[axis] == 1 for axis in axes) and all(shape[axis] != 1 for axis in axes)


def _without_axes(x: Expr, shape: Shape, axes: Sequence[int]) -> Expr:
    """A factor that is constant along some axes, with these axes removed."""
    first = len(shape) - len(x.shape)
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i + first not in axes))
