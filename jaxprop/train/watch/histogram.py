"""Histograms of arrays, counted where the arrays are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from ...core.recorders import EachCotangent, EachValue, Recorder
from ...core.types import Array, PyTree
from ...record.statistics import Statistic, real


class Histogram(NamedTuple):
    """How many elements of an array are in each of some bins of equal width.

    Elements beyond fixed edges count for the outermost bins; NaN and infinite ones are not counted.

    Attributes:
        counts: The number of elements in each bin.
        low, high: The outermost edges, in units of the array.
    """

    counts: Int[Array | np.ndarray, "*steps bins"]
    low: Float[Array | np.ndarray, "*steps"]
    high: Float[Array | np.ndarray, "*steps"]

    @property
    def edges(self) -> Float[np.ndarray, "*steps edges"]:
        """The edges of the bins, one more than there are bins."""
        return np.linspace(np.asarray(self.low), np.asarray(self.high), np.shape(self.counts)[-1] + 1, axis=-1)


@dataclass(frozen=True)
class Histograms:
    """Which histograms to count.

    Attributes:
        bins: The number of bins.
        low, high: The outermost edges. By default those of the array itself, so that they move with it.

    Raises:
        ValueError: There are no bins, or only one of the edges is given, or they are in the wrong order.
    """

    bins: int = 64
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or self.bins < 1:
            raise ValueError(f"Histograms(bins=...) must be a positive integer, got {self.bins!r}.")
        if (self.low is None) != (self.high is None):
            raise ValueError("Histograms needs both edges, `low` and `high`, or neither.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"Histograms(low={self.low}, high={self.high}): `low` must be below `high`.")

    def __call__(self, x: ArrayLike) -> Histogram:
        """Count the elements of an array.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> jp.train.Histograms(bins=4, low=0.0, high=1.0)(jnp.array([0.1, 0.2, 0.6, 9.0])).counts.tolist()
            [2, 0, 1, 1]
        """
        x = jnp.ravel(real(jnp.asarray(x)))
        finite = jnp.isfinite(x)
        low, high = self._outermost(x, finite)
        place = jnp.floor((x - low) / (high - low) * self.bins)
        bins = jnp.clip(jnp.where(finite, place, 0), 0, self.bins - 1).astype(jnp.int32)
        counts = jnp.zeros(self.bins, jnp.int32).at[bins].add(finite.astype(jnp.int32))
        return Histogram(counts, low, high)

    def _outermost(self, x: Array, finite: Array) -> tuple[Array, Array]:
        if self.low is not None and self.high is not None:
            return jnp.asarray(self.low, x.dtype), jnp.asarray(self.high, x.dtype)
        low = jnp.min(jnp.where(finite, x, np.inf), initial=np.inf)
        high = jnp.max(jnp.where(finite, x, -np.inf), initial=-np.inf)
        low, high = (jnp.where(low > high, 0, edge) for edge in (low, high))  # nothing is finite
        half = jnp.where(low == 0, 0.5, 0.5 * jnp.abs(low)).astype(x.dtype)
        return jnp.where(low == high, low - half, low), jnp.where(low == high, high + half, high)


def as_histograms(asked: "Histograms | int | None") -> Histograms | None:
    """Interpret `Watch(histograms=...)`: None, a number of bins, or `Histograms`."""
    return asked if asked is None or isinstance(asked, Histograms) else Histograms(asked)


class Distribution(NamedTuple):
    """What is recorded of an array with histograms.

    Attributes:
        record: What is recorded without them.
        histogram: Its histogram.
    """

    record: PyTree
    histogram: Histogram


def with_histograms(recorder: Recorder, histograms: Histograms) -> Recorder:
    """Return a recorder that counts a histogram of every array that it records.

    Raises:
        ValueError: It does not record arrays one by one.
    """
    halves = []
    for half in (recorder.forward, recorder.backward):
        if half is not None and not isinstance(half, EachValue | EachCotangent):
            raise ValueError(
                "Watch(histograms=...) needs a recorder of single arrays, such as jaxprop.summary or one made "
                "by jaxprop.Recorder.each."
            )
        halves.append(None if half is None else _both(half.fun, histograms))
    return Recorder.each(*halves)


def _both(fun: Callable[[Array], PyTree], histograms: Histograms) -> Callable[[Array], PyTree]:
    if not isinstance(fun, Statistic):
        return lambda x: Distribution(fun(x), histograms(x))
    return Statistic(
        lambda x: Distribution(fun.measure(x), histograms(x)),
        lambda parts, sizes: Distribution(fun.finish(parts.record, sizes), parts.histogram),
        fun.order_free,
    )


def over_steps(found: Histogram) -> Histogram:
    """Return the histogram of all steps of a scan together, on the host.

    Steps with other edges are counted again, each bin at its middle.
    """
    counts = np.asarray(found.counts)
    if counts.ndim == 1:
        return found
    low, high = np.min(found.low), np.max(found.high)
    if np.ptp(found.low) == np.ptp(found.high) == 0:
        return Histogram(counts.reshape(-1, counts.shape[-1]).sum(0), low, high)
    edges = found.edges
    middles = (edges[..., 1:] + edges[..., :-1]) / 2
    whole, _ = np.histogram(middles, counts.shape[-1], (low, high), weights=counts)
    return Histogram(whole.astype(counts.dtype), low, high)
