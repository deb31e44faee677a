"""Finite differences along a direction, and what they can decide.

Two questions are asked of the values of a function on both sides of a point. *Fine* differences take two small
steps: where the one-sided slopes agree there is a derivative, else a kink or a jump. *Coarse* differences take
    a
ladder of large steps: a bisection or another iteration is piecewise constant in its parameters, flat between
    the jumps, and only across many jumps does its slope show.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ...core.types import Dtype, Shape

#: Machine epsilon of float64.
DOUBLE_EPS = 2.0**-52


class StepSizes(NamedTuple):
    """The two steps of fine differences.

    Attributes:
        long, short: relative to the size of the point.
        eps: machine epsilon of the precision in which the function is evaluated.
    """

    long: float
    short: float
    eps: float = DOUBLE_EPS

    @property
    def offsets(self) -> np.ndarray:
        return np.array([0.0, self.long, -self.long, self.short, -self.short])


#: The steps of a function that is evaluated in double precision.
DOUBLE = StepSizes(1e-4, 1e-5)


def steps_for(eps: float) -> StepSizes:
    """StepSizes for a function evaluated in a precision of this machine epsilon.

    Truncation of a central difference grows as `h**2`, rounding as `eps / h`: they balance at `eps**(1/3)`.
    """
    return DOUBLE if eps <= DOUBLE_EPS else StepSizes(10 * eps ** (1 / 3), eps ** (1 / 3), eps)


class Slope(NamedTuple):
    """How an output changes along a direction.

    Attributes:
        value: the central difference, zero where it is not smooth.
        spread: how far two steps differ in it.
        noise: the error that rounding explains.
        smooth: where there is a derivative.
        flat: where the output is exactly the same on both sides.
        size: the magnitude of the output, zero where it is not finite.
        finite: where the output is finite.
    """

    value: np.ndarray
    spread: np.ndarray
    noise: np.ndarray
    smooth: np.ndarray
    flat: np.ndarray
    size: np.ndarray
    finite: np.ndarray

    def override(self, other: "Slope", where: np.ndarray) -> "Slope":
        """Take the slopes of `other` at these elements, which count as smooth there."""
        return Slope(*(np.where(where, theirs, mine) for mine, theirs in zip(self, other, strict=True)))


def along(
    fun: Callable[..., Sequence[jax.Array]],
    points: Sequence[jax.Array],
    tangents: Sequence[ArrayLike],
    offsets: np.ndarray,
) -> list[jax.Array]:
    """Evaluate `fun` at `points + offset * tangents`, for each direction and each offset.

    Args:
        fun: a function of the points.
        points: where it is evaluated.
        tangents: one for each point, the directions on the first axis.
        offsets: the steps, of both signs.

    Returns:
        Its outputs, of shape `(directions, offsets, *shape)`. One loop runs over all of them, so that `fun` is
        compiled once.
    """
    directions = [jnp.asarray(t) for t in tangents]
    count = len(directions[0])

    def at(pair: tuple[jax.Array, jax.Array]) -> Sequence[jax.Array]:
        offset, number = pair
        return fun(*(x + offset.astype(x.dtype) * t[number] for x, t in zip(points, directions, strict=True)))

    pairs = jnp.asarray(np.tile(offsets, count)), jnp.asarray(np.repeat(np.arange(count), len(offsets)))
    return [value.reshape(count, len(offsets), *value.shape[1:]) for value in jax.lax.map(at, pairs)]


def fine_slope(values: np.ndarray, steps: StepSizes) -> Slope:
    """Take fine differences of an output along one direction.

        slope = (f(x + h t) - f(x - h t)) / 2 h

    Where the one-sided differences disagree, and do not approach one another as the step gets smaller, there is
    a kink or a jump and no derivative.

    Args:
        values: the output at `steps.offsets`, on the first axis.
        steps: the steps it was evaluated at.
    """
    at, far, far_back, near, near_back = np.asarray(values)
    with np.errstate(all="ignore"):
        slope_far, slope = (far - far_back) / (2 * steps.long), (near - near_back) / (2 * steps.short)
        jump_far = np.abs(far + far_back - 2 * at) / steps.long
        jump = np.abs(near + near_back - 2 * at) / steps.short
        greatest = np.max(np.abs(at), initial=0.0, where=np.isfinite(at))
        noise = 16 * steps.eps * greatest / steps.short
        size = np.maximum(np.abs(near - at), np.abs(at - near_back)) / steps.short
        ratio = steps.short / steps.long
        smooth = (jump <= 1e-4 * size + noise) | (jump <= 2 * ratio * jump_far + noise)
        smooth &= np.isfinite(slope) & np.isfinite(slope_far)
        spread = np.where(smooth, np.abs(slope - slope_far), 0)
        flat = (near == at) & (near_back == at) & (far == at) & (far_back == at)
    return Slope(np.where(smooth, slope, 0), spread, np.where(smooth, noise, 0), smooth, flat, *_magnitude(at))


#: The steps of coarse differences, relative to the size of the point, largest first.
LADDER = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3)

#: Offsets of coarse differences: the point itself, then both sides of each step.
COARSE_OFFSETS = np.array([0.0, *(sign * step for step in LADDER for sign in (1.0, -1.0))])

#: Relative difference of two coarse slopes that still count as one, and of the one-sided slopes of a smooth
#: output.
AGREES, ONE_SIDED = 0.1, 0.3


def coarse_slope(values: np.ndarray) -> Slope:
    """Take coarse differences of an output along one direction.

    The derivative is the slope on which two neighbouring steps of the ladder agree best. Where none agree, or
    the one-sided slopes disagree (a kink nearby), it is not smooth.

    Args:
        values: the output at `COARSE_OFFSETS`, on the first axis.
    """
    values = np.asarray(values)
    at, ahead, behind = values[0], values[1::2], values[2::2]
    steps = np.array(LADDER).reshape(-1, *(1,) * at.ndim)
    with np.errstate(all="ignore"):
        slopes = (ahead - behind) / (2 * steps)
        one_sided = np.abs(ahead + behind - 2 * at) / steps
        size = np.abs(slopes)
        change = np.abs(slopes[:-1] - slopes[1:])
        fits = (change <= AGREES * size[1:]) & (one_sided[1:] <= ONE_SIDED * size[1:]) & (size[1:] > 0)
        change = np.where(fits & np.isfinite(change), change, np.inf)
    best = np.argmin(change, axis=0)[None]
    spread = np.take_along_axis(change, best, 0)[0]
    value = np.take_along_axis(slopes[1:], best, 0)[0]
    smooth = np.isfinite(spread)
    flat = np.all(values == at, axis=0)
    zero = np.zeros_like(at, float)
    return Slope(np.where(smooth, value, 0), np.where(smooth, spread, 0), zero, smooth, flat, *_magnitude(at))


def _magnitude(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.abs(x)
    finite = np.isfinite(size)
    return np.where(finite, size, 0.0), finite


# --- directions, and products with them ------------------------------------------------------------------


def to_double(x: ArrayLike) -> np.ndarray:
    """Convert to float64, or complex128."""
    x = np.asarray(x)
    return x.astype(np.complex128 if np.issubdtype(x.dtype, np.complexfloating) else np.float64)


def size_of(x: ArrayLike) -> float:
    """Return the root mean square of an array, 1 where it is zero."""
    values = np.abs(to_double(x))
    finite = values[np.isfinite(values)]
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return rms if math.isfinite(rms) and rms > 0 else 1.0


def random_tangent(x: ArrayLike, rng: np.random.Generator, relative: bool) -> np.ndarray:
    """Draw a direction, scaled by each element (small ones keep their sign) or by the size of the array."""
    wide = to_double(x)
    size = size_of(wide)
    signs = rng.choice([-1.0, 1.0], wide.shape) * rng.uniform(0.5, 1.5, wide.shape)
    if np.iscomplexobj(wide):
        signs = signs * np.exp(2j * np.pi * rng.uniform(size=wide.shape))
    if not relative:
        return signs * size
    length = np.abs(wide)
    return signs * np.where((length > 0) & np.isfinite(length), length, size)


def is_complex(dtype: Dtype) -> bool:
    return dtype is not None and bool(jnp.issubdtype(dtype, np.complexfloating))


def random_cotangent(shape: Shape, dtype: Dtype, rng: np.random.Generator) -> np.ndarray:
    """Draw a cotangent from the standard normal distribution."""
    ct = rng.normal(size=shape)
    return ct + 1j * rng.normal(size=shape) if is_complex(dtype) else ct


class Pairing(NamedTuple):
    """`sum a * b`, and the 2-norm of its terms: rounding errs by that norm times the precision."""

    total: float
    norm: float


def pairing(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> Pairing:
    """Sum the products of two lists of arrays."""
    with np.errstate(invalid="ignore", over="ignore"):
        terms = np.concatenate([np.real(x * y).ravel() for x, y in zip(a, b, strict=True)] or [np.zeros(0)])
        return Pairing(float(terms.sum()), float(np.sqrt(np.sum(terms**2))))


def relative_error(a: Pairing, b: Pairing) -> float:
    """Return `|a - b|` relative to the norm of their terms; infinite where one is not finite."""
    if not (math.isfinite(a.total) and math.isfinite(b.total)):
        return math.inf
    scale = max(a.norm, b.norm)
    return abs(a.total - b.total) / scale if scale else 0.0
