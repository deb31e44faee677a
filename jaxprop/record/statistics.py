"""The ready recorder of bounded statistics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..core.rules import Recorder
from ..core.types import Array


class Summary(NamedTuple):
    """Seven numbers that say what an array is like.

    For an array `x` of `n` numbers; of complex numbers the absolute values are taken. Computed in float32, in
    float64 where `x` is. What NumPy gives: a NaN in `x` makes the first five NaN. Of an empty array the norm
    and the count are 0, the rest is NaN.

    Attributes:
        norm: `sqrt(sum(x**2))`, in units of `x`.
        rms: `sqrt(mean(x**2))`, in units of `x`.
        mean: `mean(x)`, in units of `x`.
        min: `min(x)`, in units of `x`.
        max: `max(x)`, in units of `x`.
        zeros: fraction of numbers that are exactly zero, between 0 and 1.
        nonfinite: count of NaN and infinite numbers.
    """

    norm: Array
    rms: Array
    mean: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array


def summarize(x: Any) -> Summary:
    """Compute the `Summary` of an array.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> s = jp.summarize(jnp.array([3.0, 0.0, -4.0]))
        >>> float(s.norm), float(s.max), round(float(s.zeros), 3), int(s.nonfinite)
        (5.0, 3.0, 0.333, 0)
    """
    x = jnp.asarray(x)
    return _finish(_measure(x), np.array(x.size))


#: Integers up to here are exact in float32.
_EXACT = 2**24


class _Measures(NamedTuple):
    """What one pass over an array gives."""

    total: Array
    squares: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array


@jax.jit  # traced once for each shape, not once for each array
def _measure(x: Array) -> _Measures:
    """Reduce an array. How, is measured on XLA for CPUs (`benchmarks/`).

    A plain sum goes to a vectorised library; a sum among other reductions does not. The other four go over the
    array together: there `min` and `max` see NaN, which the plain reductions of XLA for CPUs lose in large
    arrays.
    """
    x = real(x)
    axes, zero, infinity = tuple(range(x.ndim)), np.zeros((), x.dtype), np.array(np.inf, x.dtype)
    none = np.int32(0)
    total, squares = (lax.reduce(y, zero, lax.add, axes) for y in (x, x * x))
    least, most, zeros, nonfinite = lax.reduce(
        (x, x, (x == zero).astype(np.int32), (~jnp.isfinite(x)).astype(np.int32)),
        (infinity, -infinity, none, none),
        lambda a, b: (lax.min(a[0], b[0]), lax.max(a[1], b[1]), a[2] + b[2], a[3] + b[3]),
        axes,
    )
    return _Measures(total, squares, least, most, portable(zeros, x), portable(nonfinite, x))


def portable(count: Array, x: Array) -> Array:
    """A count of numbers of `x`, as it travels back: as a float, where that is exact."""
    return count.astype(x.dtype) if x.size <= _EXACT else count


def real(x: Array) -> Array:
    """What is measured of an array: of complex numbers the absolute values; in float32, float64 where it is."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.abs(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _finish(m: _Measures, sizes: np.ndarray[Any, Any]) -> Summary:
    dtype = m.total.dtype
    count = np.where(sizes, sizes, np.nan).astype(dtype)
    empty = np.where(sizes, 0, np.nan).astype(dtype)
    return Summary(
        norm=jnp.sqrt(m.squares),
        rms=jnp.sqrt(m.squares / count),
        mean=m.total / count,
        min=m.min + empty,
        max=m.max + empty,
        zeros=m.zeros.astype(dtype) / count,
        nonfinite=m.nonfinite.astype(jnp.int32),
    )


#: Record the `Summary` of every value and of every cotangent.
summary = Recorder(_measure, _measure, per_value=True, finish=_finish, deferred=4096, order_free=True)
