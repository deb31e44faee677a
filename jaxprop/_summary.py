"""The ready recorder of bounded statistics."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._rules import Recorder
from ._types import Array


class Summary(NamedTuple):
    """Seven numbers that say what an array is like.

    For an array `x` of `n` numbers; of complex numbers the absolute values are taken. Computed in float32, in
    float64 where `x` is. What NumPy gives: a NaN in `x` makes the first five NaN.

    Attributes:
        norm: `sqrt(sum(x**2))`, in units of `x`.
        rms: `sqrt(mean(x**2))`, in units of `x`.
        mean: `mean(x)`, in units of `x`.
        min: `min(x)`; +inf where `x` is empty.
        max: `max(x)`; -inf where `x` is empty.
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

    Example:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> s = jp.summarize(jnp.array([3.0, 0.0, -4.0]))
        >>> float(s.norm), float(s.max), round(float(s.zeros), 3), int(s.nonfinite)
        (5.0, 3.0, 0.333, 0)
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jnp.zeros((0,), jnp.float32)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.abs(x)
    if x.dtype != jnp.float64:
        x = x.astype(jnp.float32)
    count = math.prod(x.shape)
    share = 1.0 / count if count else math.nan
    squares = jnp.sum(x * x)
    return Summary(
        norm=jnp.sqrt(squares),
        rms=jnp.sqrt(squares * share),
        mean=jnp.sum(x) * share,
        min=jnp.min(x, initial=jnp.inf),
        max=jnp.max(x, initial=-jnp.inf),
        zeros=jnp.sum(x == 0, dtype=x.dtype) * share,
        nonfinite=jnp.sum(~jnp.isfinite(x), dtype=jnp.int32),
    )


def _of_value(x: Any) -> Summary:
    return summarize(x)


#: Record the `Summary` of every value and of every cotangent.
summary = Recorder.each(_of_value, _of_value)

__all__ = ["Summary", "summarize", "summary"]
