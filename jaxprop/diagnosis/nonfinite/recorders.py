"""The first pass of `diagnose`: as little as tells a healthy pass from one that is not.

Each number more is a reduction more over every array of the pass. A plain sum of squares is the cheapest there
is (`benchmarks/diagnose.py`), and says more than its name: it is NaN just where there is a NaN. How many
numbers are not finite is only counted, in a pass of its own (`tally`), where this one found something.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ...core.recorders import Recorder
from ...core.types import Array
from ...record.statistics import Statistic, portable, real


class Health(NamedTuple):
    """What is measured of an array `x`; of complex numbers the absolute values are taken.

    Attributes:
        squares: `sum(x**2)`; NaN just where `x` holds one, and Inf where a square overflows as well.
        top: `max(|x|)`, of a cotangent; says nothing of one that holds NaN. None of a value.
        zeros: fraction of numbers that are exactly zero, of a cotangent. None of a value.
    """

    squares: Any
    top: Any = None
    zeros: Any = None


class Tally(NamedTuple):
    """How many numbers of an array are NaN or infinite."""

    nonfinite: Any


@jax.jit  # traced once for each shape
def _of_value(x: Array) -> Health:
    x = real(x)
    return Health(lax.reduce(x * x, np.zeros((), x.dtype), lax.add, tuple(range(x.ndim))))


@jax.jit
def _of_cotangent(ct: Array) -> Health:
    ct = real(ct)
    zero, none = np.zeros((), ct.dtype), np.int32(0)
    top, zeros = lax.reduce(
        (jnp.abs(ct), (ct == zero).astype(np.int32)),
        (zero, none),
        lambda a, b: (lax.max(a[0], b[0]), a[1] + b[1]),
        tuple(range(ct.ndim)),
    )
    return Health(_of_value(ct).squares, top, portable(zeros, ct))


def _finish(parts: Health, sizes: np.ndarray[Any, Any]) -> Health:
    if parts.zeros is None:
        return parts
    dtype = parts.squares.dtype
    return parts._replace(zeros=parts.zeros.astype(dtype) / np.maximum(sizes, 1).astype(dtype))


@jax.jit
def _tally(x: Array) -> Tally:
    return Tally(portable(jnp.sum(~jnp.isfinite(x), dtype=np.int32), real(x)))


def _counted(parts: Tally, sizes: np.ndarray[Any, Any]) -> Tally:
    del sizes
    return Tally(parts.nonfinite.astype(jnp.int32))


#: Says of every value whether it holds a NaN, and of every cotangent how large it is.
health = Recorder.each(
    Statistic(_of_value, _finish, order_free=True), Statistic(_of_cotangent, _finish, order_free=True)
)

#: Counts what is not finite, everywhere.
_TALLY = Statistic(_tally, _counted, order_free=True)
tally = Recorder.each(_TALLY, _TALLY)
