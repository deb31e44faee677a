"""Statistics of arrays, and the recorder of a few numbers for each value and each cotangent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from .. import _jaxpr
from ..core.recorders import Recorder
from ..core.types import Array, PyTree


@dataclass(frozen=True)
class Statistic:
    """A statistic of an array, computed in two parts, so that the second is computed for many arrays at once.

    A statistic of many arrays, each by itself, is many small kernels, and it is their number that costs compile
    time (`record.batching`). Called on an array it is simply `finish(measure(x), x.size)`.

    Attributes:
        measure: `array -> parts`, the reductions.
        finish: `(parts, sizes) -> record`; `parts` of many arrays are stacked on the first axis, `sizes` are
            their numbers of elements.
        order_free: whether it does not depend on the order of the elements: then a reshaped or transposed array
            has the record of the array it was made from.
    """

    measure: Callable[[Array], PyTree]
    finish: Callable[[PyTree, np.ndarray], PyTree]
    order_free: bool = False

    def __call__(self, x: Array) -> PyTree:
        return self.finish(self.measure(x), np.array(x.size))


class Summary(NamedTuple):
    """Seven numbers that describe an array.

    For an array `x` of `n` numbers; for complex numbers their absolute values. Computed in float32, or in
    float64 if `x` is. As in NumPy, a NaN in `x` makes the first five NaN. For an empty array the norm and the
    count are 0, the rest is NaN.

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


def summarize(x: ArrayLike) -> Summary:
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
    """What one pass over an array computes."""

    total: Array
    squares: Array
    min: Array
    max: Array
    zeros: Array
    nonfinite: Array


@jax.jit  # traced once for each shape, not once for each array
def _measure(x: Array) -> _Measures:
    """Reduce an array. The form was chosen by measurements on XLA for CPUs (`benchmarks/`).

    A plain sum goes to a vectorised library; a sum among other reductions does not. The other four are one
    reduction: there `min` and `max` see NaN, which the plain reductions of XLA for CPUs lose in large arrays.
    """
    x = real(x)
    zero = np.zeros((), x.dtype)
    total, squares = (lax.reduce(y, zero, lax.add, tuple(range(x.ndim))) for y in (x, x * x))
    return _Measures(total, squares, *_extremes_and_counts(x))


@jax.custom_jvp
def _extremes_and_counts(x: Array) -> tuple[Array, Array, Array, Array]:
    """The minimum, the maximum, and counts of zeros and of numbers that are not finite, in one reduction."""
    if not _jaxpr.KEEPS_CUSTOM_JVP:
        return _extremes_then_counts(x)
    zero, infinity, none = np.zeros((), x.dtype), np.array(np.inf, x.dtype), np.int32(0)
    least, most, zeros, nonfinite = lax.reduce(
        (x, x, (x == zero).astype(np.int32), (~jnp.isfinite(x)).astype(np.int32)),
        (infinity, -infinity, none, none),
        lambda a, b: (lax.min(a[0], b[0]), lax.max(a[1], b[1]), a[2] + b[2], a[3] + b[3]),
        tuple(range(x.ndim)),
    )
    return least, most, portable(zeros, x), portable(nonfinite, x)


@_extremes_and_counts.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[PyTree, PyTree]:
    """JAX has no derivative of this reduction; of its parts it has."""

    def parts(x: Array) -> tuple[Array, Array]:
        return jnp.min(x, initial=np.inf), jnp.max(x, initial=-np.inf)

    outputs = _extremes_and_counts(*primals)
    _, (least, most) = jax.jvp(parts, primals, tangents)
    counts = (
        jnp.zeros_like(x) if _jaxpr.is_inexact(x.dtype) else np.zeros((), _jaxpr.float0) for x in outputs[2:]
    )
    return outputs, (least, most, *counts)


def _extremes_then_counts(x: Array) -> tuple[Array, Array, Array, Array]:
    """The same in two reductions, which JAX can differentiate where it drops the rule above."""
    infinity, none, axes = np.array(np.inf, x.dtype), np.int32(0), tuple(range(x.ndim))
    least, most = lax.reduce(
        (x, x), (infinity, -infinity), lambda a, b: (lax.min(a[0], b[0]), lax.max(a[1], b[1])), axes
    )
    zeros, nonfinite = lax.reduce(
        ((x == 0).astype(np.int32), (~jnp.isfinite(x)).astype(np.int32)),
        (none, none),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        axes,
    )
    return least, most, portable(zeros, x), portable(nonfinite, x)


def portable(count: Array, x: Array) -> Array:
    """A count of elements of `x` as a float where that is exact: so it travels through the backward pass."""
    return count.astype(x.dtype) if x.size <= _EXACT else count


def real(x: Array) -> Array:
    """What is measured of an array: in float32, or in float64 if it is; for complex numbers absolute values."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.abs(x)
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def _finish(m: _Measures, sizes: np.ndarray) -> Summary:
    dtype = m.total.dtype
    count = np.where(sizes, sizes, np.nan).astype(dtype)
    empty = np.where(sizes, 0, np.nan).astype(dtype)
    return Summary(
        norm=_root(m.squares),
        rms=_root(m.squares / count),
        mean=m.total / count,
        min=m.min + empty,
        max=m.max + empty,
        zeros=m.zeros.astype(dtype) / count,
        nonfinite=m.nonfinite.astype(jnp.int32),
    )


def _root(x: Array) -> Array:
    """The square root, with derivative 0 at 0, so that one array of zeros does not poison other derivatives."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), x)


_SUMMARY = Statistic(_measure, _finish, order_free=True)

#: Record the `Summary` of every value and of every cotangent.
summary = Recorder.each(_SUMMARY, _SUMMARY)
