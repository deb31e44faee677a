"""The first pass of `diagnose`: just enough to tell a healthy pass from one that is not.

Each further number is a further reduction over every array of the pass. A plain sum of squares is the cheapest
(`benchmarks/diagnose.py`), and says more than its name: it is NaN if and only if there is a NaN. How many
numbers are not finite is counted in a pass of its own (`tally`), and only if this one found something.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Inexact, Int

from ...core.recorders import Recorder
from ...core.types import Array
from ...record.statistics import Statistic, portable, real


class Health(NamedTuple):
    """What is measured of an array `x`; of complex numbers the absolute values are taken.

    Attributes:
        squares: `sum(x**2)`; NaN if and only if `x` holds one, and Inf also if a square overflows.
        top: `max(|x|)`, of a cotangent; meaningless if it holds NaN. None of a value.
        zeros: fraction of numbers that are exactly zero, of a cotangent. None of a value.
    """

    squares: Float[Array, "..."]
    top: Float[Array, "..."] | None = None
    zeros: Float[Array, "..."] | None = None


class Tally(NamedTuple):
    """How many numbers of an array are NaN or infinite."""

    nonfinite: Int[Array, "..."] | Float[Array, "..."]


@jax.jit  # traced once for each shape
def _health_of_value(x: Inexact[Array, "..."]) -> Health:
    x = real(x)
    return Health(lax.reduce(x * x, np.zeros((), x.dtype), lax.add, tuple(range(x.ndim))))


@jax.jit
def _health_of_cotangent(ct: Inexact[Array, "..."]) -> Health:
    ct = real(ct)
    zero, none = np.zeros((), ct.dtype), np.int32(0)
    top, zeros = lax.reduce(
        (jnp.abs(ct), (ct == zero).astype(np.int32)),
        (zero, none),
        lambda a, b: (lax.max(a[0], b[0]), a[1] + b[1]),
        tuple(range(ct.ndim)),
    )
    return Health(_health_of_value(ct).squares, top, portable(zeros, ct))


def _with_fraction(parts: Health, sizes: np.ndarray) -> Health:
    """Turn the numbers of zeros into fractions."""
    if parts.zeros is None:
        return parts
    dtype = parts.squares.dtype
    return parts._replace(zeros=parts.zeros.astype(dtype) / np.maximum(sizes, 1).astype(dtype))


@jax.jit
def _tally(x: Inexact[Array, "..."]) -> Tally:
    return Tally(portable(jnp.sum(~jnp.isfinite(x), dtype=np.int32), real(x)))


def _as_counts(parts: Tally, sizes: np.ndarray) -> Tally:
    del sizes
    return Tally(parts.nonfinite.astype(jnp.int32))


#: Tells of every value whether it holds a NaN, and of every cotangent how large it is.
health = Recorder.each(
    Statistic(_health_of_value, _with_fraction, order_free=True),
    Statistic(_health_of_cotangent, _with_fraction, order_free=True),
)

#: Counts what is not finite, everywhere.
_TALLY = Statistic(_tally, _as_counts, order_free=True)
tally = Recorder.each(_TALLY, _TALLY)
