"""What scaling the loss does to cotangents that underflow: the backward pass from seeds of powers of two."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ..._api import backprop
from ..._backprop import is_active
from ..._text import in_columns
from ...core.recorders import Recorder
from ...core.types import Array, Dtype
from ...record.tape import Tape
from .compare import Comparison

#: Powers of two tried as a scale of the loss.
POWERS = tuple(range(0, 25))


@dataclass(frozen=True)
class Scaled:
    """The backward pass with the loss scaled.

    Attributes:
        scale: the factor.
        underflow: elements of cotangents that are zero, and are not in the reference.
        nonfinite: elements of cotangents that are NaN or infinite.
        worst: the greatest fraction of one cotangent that underflows.
    """

    scale: float
    underflow: int
    nonfinite: int

    worst: float

    @property
    def clean(self) -> bool:
        """Whether nothing is lost: one element in fifty of a value may cancel."""
        return self.worst <= 0.02 and not self.nonfinite


def _count_lost(ct: Array) -> tuple[Array, Array]:
    zeros = jnp.sum(ct == 0, dtype=jnp.int32)
    return zeros, jnp.sum(~jnp.isfinite(ct), dtype=jnp.int32)


def try_scales(
    fun: Callable[..., object],
    argnums: int | tuple[int, ...],
    has_aux: bool,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    tape: Tape,
    compared: Comparison,
) -> tuple[Scaled, ...]:
    """Run the backward pass from other seeds, if anything underflows: compiled once, run for powers of two."""
    known = [pair for pair in compared.pairs if pair.backward is not None]
    sides = [side for pair in known if (side := pair.backward) is not None]
    if not any(side.underflown for side in sides):
        return ()
    if jax.tree.structure(tape.value) != jax.tree.structure(0.0) or jnp.shape(tape.value) != ():
        return ()
    dtype = tape.value.dtype
    record = Recorder.each(cotangent=_count_lost)

    @jax.jit
    def run(seed: Array, args: tuple[object, ...], kwargs: dict[str, object]) -> list[Array]:
        again = backprop(fun, argnums, has_aux, nodes=is_active, record=record, cotangent=seed)
        scaled = again(*args, **kwargs)
        counts = [scaled[pair.name].cotangent for pair in known]
        return [jnp.stack([jnp.sum(x) for x in count]) for count in counts if count is not None]

    true_zeros = np.array([side.zeros - side.vanished for side in sides])
    sizes = np.array([side.size for side in sides])
    found = []
    for power in POWERS:
        if 2.0**power > float(jnp.finfo(dtype).max):
            break
        counts = np.array(run(jnp.asarray(2.0**power, dtype), args, kwargs)).reshape(-1, 2)
        lost = np.maximum(counts[:, 0] - true_zeros, 0)
        worst = float(np.max(lost / np.maximum(sizes, 1), initial=0.0))
        found.append(Scaled(2.0**power, int(lost.sum()), int(counts[:, 1].sum()), worst))
    return tuple(found)


def window_of(scales: Sequence[Scaled]) -> tuple[tuple[float, float] | None, float]:
    """Return the scales at which nothing is lost, and the one to take."""
    if not scales:
        return None, 1.0
    clean = [scaled.scale for scaled in scales if scaled.clean]
    if scales[0].clean:
        return (clean[0], clean[-1]), 1.0
    if clean:
        return (clean[0], clean[-1]), 2.0 ** round((math.log2(clean[0]) + math.log2(clean[-1])) / 2)
    finite = [scaled for scaled in scales if not scaled.nonfinite]
    if not finite:
        return None, 1.0
    best = min(finite, key=lambda scaled: (scaled.underflow, scaled.scale))
    return None, best.scale if best.underflow < scales[0].underflow else 1.0


def advice(scales: Sequence[Scaled], window: tuple[float, float] | None, scale: float, dtype: Dtype) -> str:
    """Write what to do about cotangents that underflow."""
    wider = wider_than(dtype)
    if not scales:
        return f"Scale the loss, and divide the gradient by the scale in {wider[-1]}."
    how = f"differentiate `scale * loss`, and divide the gradient by it in {wider[-1]}"
    if window is not None and scale > 1.0:
        first, last = (f"2**{round(math.log2(x))}" for x in window)
        return f"Scale the loss by 2**{round(math.log2(scale))}: {how}. From {first} to {last} nothing is lost."
    part = f"Compute this part in {' or '.join(wider)}."
    if scale > 1.0:
        least = min(scaled.underflow for scaled in scales if not scaled.nonfinite)
        return (
            f"Loss scaling helps but does not eliminate underflow: with 2**{round(math.log2(scale))} {least} "
            f"of {scales[0].underflow} elements are still lost. {part}"
        )
    return f"Loss scaling does not help here. {part}"


def wider_than(dtype: Dtype) -> tuple[str, ...]:
    """The dtypes with a wider range than one, the most precise last."""
    narrow = jnp.finfo(dtype).maxexp < jnp.finfo(jnp.float32).maxexp  # type: ignore[arg-type]
    return ("bfloat16", "float32") if narrow else ("float64",)


def scale_table(scales: Sequence[Scaled]) -> str:
    """Write one row for each run of scales with the same result."""
    rows = [("scale", "underflow", "not finite")]
    for (underflow, nonfinite), alike in itertools.groupby(scales, lambda s: (s.underflow, s.nonfinite)):
        powers = [f"2**{round(math.log2(s.scale))}" for s in alike]
        rows.append((" to ".join(dict.fromkeys((powers[0], powers[-1]))), f"{underflow}", f"{nonfinite}"))
    return in_columns(rows)
