"""What was watched in one step, read on the host."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ... import _jaxpr
from ..._text import plural
from ...core.types import Array, PyTree
from ...record.tape import Entry, Tape
from .attention import Attention, attention_on
from .histogram import Distribution, Histogram
from .norms import NOTHING, LeafStatistics, float_leaves, of_update
from .watch import Watch


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
        tape: Records of values and cotangents, None if no node was watched.
        statistics: What was recorded of the leaves of the params.
        paths: The names of the leaves.
        watch: What was asked for.
    """

    on: bool | Bool[Array, ""]
    step: int | Int[Array, ""]
    tape: Tape | None
    statistics: LeafStatistics
    paths: tuple[str, ...] = field(metadata={"static": True})
    watch: Watch | None = field(metadata={"static": True})

    def __bool__(self) -> bool:
        return bool(self.on)

    def __repr__(self) -> str:
        if _jaxpr.is_tracer(self.on):
            return f"Watched({plural(len(self.paths), 'leaf', 'leaves')}, traced)"
        if not self:
            return "Watched(not watched)"
        return f"Watched(step {int(self.step)}: {plural(len(self), 'value')})"

    def __getitem__(self, name: str) -> Entry:
        self._check_on()
        if self.tape is None:
            raise KeyError(f"{name!r} was not watched: `nodes=()` selects no node.")
        entry = self.tape[name]
        sides = {
            side: _record_of(getattr(entry, side)) for side in ("value", "cotangent", "forward", "backward")
        }
        return replace(entry, **sides)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tape.names if self and self.tape is not None else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _check_on(self) -> None:
        if not self:
            raise ValueError(
                "this step was not watched, so there is nothing to read. Check `if metrics.watched:` first."
            )

    # --- what the loop knows later ---------------------------------------------------------------------

    def with_update(self, params: PyTree, new_params: PyTree) -> "Watched":
        """Add the change of the params by the step as applied: `update`, `ratio` and `unchanged` of `leaves`.

        Call it in a loop of your own once the optimizer has made the new params; it computes nothing in steps
        that are not watched.

        Args:
            params: The params before the step: the differentiated argument.
            new_params: The params after it.
        """
        if self.watch is None or not self.watch.updates:
            return self
        watch, old, new = self.watch, float_leaves(params), float_leaves(new_params)
        if not len(old) == len(new) == len(self.paths):
            raise ValueError(
                f"`with_update` needs the params before and after the step, {len(self.paths)} arrays each; got "
                f"{len(old)} and {len(new)}."
            )

        def found(old: list[Array], new: list[Array]) -> LeafStatistics:
            return of_update(watch, old, new)

        if not _jaxpr.is_tracer(self.on):
            return replace(self, statistics=self.statistics | found(old, new)) if self.on else self

        def nothing(old: list[Array], new: list[Array]) -> LeafStatistics:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(found, old, new))

        return replace(self, statistics=self.statistics | jax.lax.cond(self.on, found, nothing, old, new))

    # --- read on the host --------------------------------------------------------------------------------

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

    @functools.cached_property
    def attention(self) -> Mapping[str, Attention]:
        """The largest logit and the entropy of each attention, by the name of its weights."""
        self._check_on()
        asked = self.tape is not None and self.watch is not None and self.watch.attention
        return attention_on(self.tape) if self.tape is not None and asked else {}

    @functools.cached_property
    def histograms(self) -> Mapping[str, Histogram]:
        """Histograms by name and quantity: `watched.histograms["h/cotangent"]`, `["params['w']/update"]`."""
        self._check_on()
        found: dict[str, Histogram] = {}
        for entry in self.tape or ():
            for side in ("value", "cotangent"):
                record = getattr(entry, side)
                if isinstance(record, Distribution):
                    found[f"{entry.name}/{side}"] = record.histogram
        for quantity, stacked in jax.device_get(self.statistics.histograms).items():
            for row, path in enumerate(self.paths):
                found[f"{path}/{quantity}"] = jax.tree.map(lambda x, row=row: x[row], stacked)
        return found

    @property
    def noise_scale(self) -> float:
        """The gradient noise scale of all params together, in examples; NaN without `per_example=True`."""
        self._check_on()
        return float(_ratio(self._norm("noise").sum(), self._norm("signal").sum()))

    def _norm(self, quantity: str) -> Float[np.ndarray, " leaf"]:
        norms = self.statistics.norms
        return np.asarray(norms[quantity]) if quantity in norms else np.full(len(self.paths), np.nan)


#: What a step that was not watched returns.
UNWATCHED = Watched(False, -1, None, NOTHING, (), None)


def without_results(tape: Tape) -> Tape:
    """Return only the records: what a step returns elsewhere is removed from the tape."""
    return replace(tape, value=None, aux=None, grads=None, seed=None)


def _record_of(record: PyTree) -> PyTree:
    return record.record if isinstance(record, Distribution) else record


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a / b`, and NaN where `b` is zero."""
    b = np.asarray(b)
    return np.divide(a, b, out=np.full(b.shape, np.nan, b.dtype), where=b != 0)
