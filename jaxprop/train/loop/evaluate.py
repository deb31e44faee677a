"""The mean of a loss over all of the evaluation data, the last short batch included."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from ..._tracing import name_of
from ...core.types import Array, PyTree
from ..data.arrays import check_arrays, is_arrays
from ..data.feed import Batch, as_batch
from ..data.placement import Places
from ..data.stream import batches_of
from ..step.step import State, Step, row_of, takes

#: (params, model_state, batch) -> numbers by name.
Measure: TypeAlias = Callable[[PyTree, PyTree, Batch], dict[str, Array]]
#: A state -> means by name.
Evaluate: TypeAlias = Callable[[State], dict[str, Any]]


def make_evaluate(
    step: Step,
    function: Callable[..., Any] | None,
    data: Any,
    batch_size: int | None,
    places: Places,
) -> Evaluate | None:
    """Make the evaluation a run is asked for, None where there is no data for it.

        mean = sum over batches of (examples in it * value of it) / examples

    which is exact where the function is a mean over the examples of its batch.

    Raises:
        ValueError: there is a function and no data; or neither a function nor a loss that does without a key.
        TypeError: the data can only be read once.
    """
    if data is None:
        if function is not None:
            raise ValueError("`eval_fn` is given, and no data to evaluate it on: pass eval_data.")
        return None
    measure = split_rows(of_loss(step) if function is None else of_function(function), places)
    if isinstance(data, Iterator):
        raise TypeError(
            f"`eval_data` is a {type(data).__name__}, which can be read once; every evaluation reads it. "
            "Pass a list of batches, or a function that gives an iterator."
        )
    if not is_arrays(data):
        return OverBatches(data, jax.jit(measure))
    size = check_arrays(data, "eval_data")
    batch = size if batch_size is None else min(batch_size, size)
    return OverArrays(
        places.whole(data), size, batch, jax.jit(functools.partial(of_rows, measure), static_argnums=3)
    )


@dataclass(frozen=True, eq=False)
class OverArrays:
    """Evaluate over arrays on the device, batch after batch."""

    data: PyTree
    size: int
    batch: int
    program: Callable[..., dict[str, Array]]

    def __call__(self, state: State) -> dict[str, Any]:
        point = (state.params, state.model_state)
        starts = range(0, self.size, self.batch)
        sizes = [min(self.batch, self.size - start) for start in starts]
        parts = [
            self.program(point, self.data, np.int32(start), size)
            for start, size in zip(starts, sizes, strict=True)
        ]
        return mean_of(jax.device_get(parts), sizes)


@dataclass(frozen=True, eq=False)
class OverBatches:
    """Evaluate over an iterable of batches, of whatever sizes."""

    data: Any
    program: Measure

    def __call__(self, state: State) -> dict[str, Any]:
        parts, sizes = [], []
        for batch in batches_of(self.data):
            parts.append(self.program(state.params, state.model_state, as_batch(batch)))
            sizes.append(len(jax.tree.leaves(batch)[0]))
        if not sizes:
            raise ValueError("`eval_data` gave no batches.")
        return mean_of(jax.device_get(parts), sizes)


def of_rows(
    measure: Measure, point: tuple[PyTree, PyTree], data: PyTree, start: Array, size: int
) -> dict[str, Array]:
    """The numbers of one batch cut out of arrays."""

    def cut(x: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size)

    return measure(*point, as_batch(jax.tree.map(cut, data)))


def mean_of(parts: Sequence[dict[str, Any]], sizes: Sequence[int]) -> dict[str, float]:
    """The means of all batches together, each counted by its examples."""
    return {
        name: sum(size * float(part[name]) for part, size in zip(parts, sizes, strict=True)) / sum(sizes)
        for name in parts[0]
    }


def of_function(function: Callable[..., Any]) -> Measure:
    """What a function of (params, *batch) says: a number, or several by name."""

    def measure(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        extras = {"model_state": model_state} if "model_state" in takes(function) else {}
        found = function(params, *batch, **extras)
        if jax.tree.structure(found) == jax.tree.structure(0):
            return {"eval_loss": found}
        return {
            "eval_" + jax.tree_util.keystr(path, simple=True, separator="/"): x
            for path, x in jax.tree_util.tree_leaves_with_path(found)
        }

    return measure


def of_loss(step: Step) -> Measure:
    """The loss itself, and the scalars of its auxiliary data.

    Raises:
        ValueError: it asks for a key.
    """
    if "key" in step.takes and _is_required(step.loss, "key"):
        raise ValueError(
            f"`{name_of(step.loss)}` asks for a key, and an evaluation has none: pass eval_fn, a function of "
            "(params, *batch) without randomness; or give `key` the default None, which it gets then."
        )

    def measure(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        extras = {"model_state": model_state} if "model_state" in step.takes else {}
        found = step.split(step.loss(params, *batch, **extras), model_state)
        return {f"eval_{name}": x for name, x in row_of(found.loss, found.aux).items()}

    return measure


def split_rows(measure: Measure, places: Places) -> Measure:
    """Have the examples of a batch split over devices, where they divide."""

    def split(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        return measure(params, model_state, places.split(batch))

    return split


def _is_required(function: Any, name: str) -> bool:
    return inspect.signature(function).parameters[name].default is inspect.Parameter.empty
