"""The reference of a lower precision, and its own errors.

It is run again with its arguments moved by one rounding: what changes by as much as it is says nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Dtype, PyTree
from ...record.tape import Tape
from ..passes import as_numpy
from .alignment import TapeValue
from .deviations import Floors, eps_of, norm_of

#: How often the reference is run again with its arguments moved by one rounding.
PERTURBATIONS = 2


def is_floating(x: object) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)  # type: ignore[attr-defined]


def run_references(run: Callable[..., Tape], take: Callable[..., Any], high: np.dtype) -> list[Tape]:
    """The reference, and the same with its arguments moved by one rounding."""
    doubles = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with jax.enable_x64(high.itemsize > 4 or doubles):
        args, kwargs = take(high)
        points = [(args, kwargs), *(_moved((args, kwargs), seed) for seed in range(PERTURBATIONS))]
        return [as_numpy(run(*args, **kwargs)) for args, kwargs in points]


def _moved(tree: PyTree, seed: int) -> PyTree:
    """Move each element of the floating point leaves by one rounding, up or down."""
    rng = np.random.default_rng(seed)

    def leaf(x: Any) -> Any:
        if not is_floating(x):
            return x
        signs = rng.choice([-1.0, 1.0], np.shape(x))
        return jnp.asarray(x * jnp.asarray(1 + eps_of(x.dtype) * signs, x.dtype), x.dtype)

    return jax.tree.map(leaf, tree)


def measured_floors(aligned: Sequence[tuple[TapeValue, TapeValue]], moved: Sequence[Tape]) -> Floors:
    """The errors of the reference: how far it changes with the last bit of the arguments."""
    forward, backward = [], []
    for _, other in aligned:
        again = [TapeValue(tape, other.names, other.node, other.value, other.steps) for tape in moved]
        forward.append(_change(other.forward(), [one.forward() for one in again], other.value.dtype))
        backward.append(_change(other.backward(), [one.backward() for one in again], other.value.dtype))
    return Floors(forward, backward)


def _change(x: Any, others: Sequence[Any], dtype: Dtype) -> float:
    if x is None or not eps_of(dtype):
        return 0.0
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        changes = [norm_of(np.asarray(other) - x) for other in others if other is not None]
    return 4 * max([eps_of(dtype) * norm_of(x), *filter(np.isfinite, changes)])


@dataclass(frozen=True)
class GradientError:
    """The gradient in the lower precision against the reference's.

    Attributes:
        relative: relative error by leaf.
        excess: the same, less what the reference's own error explains; infinite where it is not finite.
        total: relative error of the whole gradient.
    """

    relative: Mapping[str, float]
    excess: Mapping[str, float]
    total: float

    @classmethod
    def of(cls, tape: Tape, references: Sequence[Tape]) -> "GradientError":
        names = [value.name for value in tape.graph.inputs]
        low, high, *moved = [
            [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(one.grads)]
            for one in (tape, *references)
        ]
        with np.errstate(all="ignore"):
            offs = [norm_of(a - b) for a, b in zip(low, high, strict=True)]
        sizes = [norm_of(b) for b in high]
        whole = norm_of(np.array(sizes))
        relative, excess = {}, {}
        for i, (name, off, size) in enumerate(zip(names, offs, sizes, strict=False)):
            floor = _change(high[i], [other[i] for other in moved], references[0].graph.inputs[i].dtype)
            relative[name] = _ratio(off, size)
            # A gradient that is truly zero is round-off in both: it is judged by the whole gradient.
            excess[name] = _ratio(max(0.0, off - floor), whole if size <= floor else size)
        return cls(relative, excess, _ratio(norm_of(np.array(offs)), whole))

    def wrong(self, allowed: float) -> tuple[str, ...]:
        """The leaves whose gradient is off by more than is allowed; twice that if the whole is not."""
        most = allowed if self.total > allowed else 2 * allowed
        return tuple(name for name, excess in self.excess.items() if not excess <= most)


def _ratio(off: float, size: float) -> float:
    if not np.isfinite(off):
        return np.inf
    return off / size if size else float(off > 0)
