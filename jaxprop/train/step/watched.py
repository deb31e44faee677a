"""What was watched in one step, read on the host."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from ...core.types import Array
from ...record.tape import Entry, Tape
from .norms import Norms


class LeafNorms(NamedTuple):
    """What was watched of one leaf of the params; NaN for what was not asked for.

    In `history.watched.leaves` each is an array over the watched steps.

    Attributes:
        param: 2-norm of the parameter, before the step.
        grad: 2-norm of its gradient.
        update: 2-norm of its change by the step as applied, after rounding to the parameter's precision.
        ratio: update / param: by which fraction the step changes it. NaN for a parameter that is zero.
        unchanged: Fraction of its elements that the step did not change, between 0 and 1. Near 1 where updates
            are lost to rounding, as in bfloat16 with small steps.
    """

    param: np.ndarray
    grad: np.ndarray
    update: np.ndarray
    ratio: np.ndarray
    unchanged: np.ndarray


class ExampleNorms(NamedTuple):
    """What was watched of the gradients of single examples, for one leaf of the params.

    In `history.watched.per_example` each is an array over the watched steps.

    Attributes:
        rms: Root mean square, over the examples, of the 2-norm of their gradients.
        max: The largest of these norms.
        noise_scale: The batch size at which noise equals signal, see `jaxprop.PerExample.noise_scale`.
    """

    rms: np.ndarray
    max: np.ndarray
    noise_scale: np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched(Mapping[str, Entry]):
    """What was watched in one step: `watched["h"].cotangent.norm`. Read it on the host.

    A mapping from names of values to entries (`Entry`). It is empty, and false, if the step was not watched.

    Attributes:
        on: Whether the step was watched.
        step: The count of the step.
        tape: Records of values and cotangents, None with `nodes=()`.
        norms: By quantity, one number for each leaf of the params.
        paths: The names of the leaves.
    """

    on: bool | Bool[Array, ""]
    step: int | Int[Array, ""]
    tape: Tape | None
    norms: Norms
    paths: tuple[str, ...] = field(metadata={"static": True})

    def __bool__(self) -> bool:
        return bool(self.on)

    def __getitem__(self, name: str) -> Entry:
        self._check_on()
        if self.tape is None:
            raise KeyError(f"{name!r} was not watched: `nodes=()` selects no node.")
        return self.tape[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tape.names if self and self.tape is not None else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _check_on(self) -> None:
        if not self:
            raise ValueError(
                "this step was not watched, so there is nothing to read. Check `if metrics.watched:` first."
            )

    @functools.cached_property
    def leaves(self) -> Mapping[str, LeafNorms]:
        """Norms by leaf of the params: `watched.leaves["params['w1']"].ratio`."""
        self._check_on()
        param, grad, update, unchanged = map(self._norm, ("param", "grad", "update", "unchanged"))
        rows = np.transpose([param, grad, update, _ratio(update, param), unchanged])
        return {path: LeafNorms(*row) for path, row in zip(self.paths, rows, strict=True)}

    @functools.cached_property
    def per_example(self) -> Mapping[str, ExampleNorms]:
        """Norms of single examples by leaf of the params: `watched.per_example["w"].max`."""
        self._check_on()
        rms, largest, noise, signal = map(self._norm, ("example_rms", "example_max", "noise", "signal"))
        rows = np.transpose([rms, largest, _ratio(noise, signal)])
        return {path: ExampleNorms(*row) for path, row in zip(self.paths, rows, strict=True)}

    @property
    def noise_scale(self) -> float:
        """The gradient noise scale of all params together, in examples; NaN without `per_example=True`."""
        self._check_on()
        return float(_ratio(self._norm("noise").sum(), self._norm("signal").sum()))

    def _norm(self, quantity: str) -> Float[np.ndarray, " leaf"]:
        return np.asarray(self.norms[quantity]) if quantity in self.norms else np.full(len(self.paths), np.nan)


#: What a step that was not watched returns.
UNWATCHED = Watched(False, -1, None, {}, ())


def without_results(tape: Tape) -> Tape:
    """Return only the records: what a step returns elsewhere is removed from the tape."""
    return replace(tape, value=None, aux=None, grads=None, seed=None)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a / b`, and NaN where `b` is zero."""
    b = np.asarray(b)
    return np.divide(a, b, out=np.full(b.shape, np.nan, b.dtype), where=b != 0)
