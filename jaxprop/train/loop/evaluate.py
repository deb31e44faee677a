"""The mean of a loss over all of the evaluation data, the last short batch included."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What to evaluate during a run, on which data, and how often.

    Pass it to `fit` as `evaluation`; `evaluation=(x, y)` is short for `Evaluation((x, y))`.

    Attributes:
        data: Data as in `fit`, except that it must be possible to read it more than once. A last batch that is
            shorter counts by its examples.
        fn: A function `(params, *batch)` that returns a number or a dict of numbers, each a mean over the
            examples of the batch; by default the loss. It gets the model's state if it has a parameter
            `model_state`.
        every: The number of steps between evaluations. By default once per epoch, or about a hundred times in
            all if an epoch is a single step.
        batch_size: The number of examples in a batch, if `data` is arrays. By default that of the training
            data.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     return jnp.mean((w - x) ** 2)
        >>> def distance(w, x):
        ...     return {"distance": jnp.mean(jnp.abs(w - x))}
        >>> evaluation = jp.train.Evaluation(jnp.ones(2), distance, every=5)
        >>> _, history = jp.fit(loss, 0.0, jnp.ones(4), steps=10, evaluation=evaluation, progress=False)
        >>> history["eval_distance"][[4, 9]].round(3).tolist()
        [0.904, 0.817]
    """

    data: Any = field(repr=False)
    fn: Callable[..., Any] | None = None
    every: int | None = None
    batch_size: int | None = None


def as_evaluation(evaluation: Any) -> Evaluation | None:
    """Interpret `evaluation` of `fit`: None, an `Evaluation`, or data for the loss."""
    if evaluation is None or isinstance(evaluation, Evaluation):
        return evaluation
    return Evaluation(evaluation)


def make_evaluate(
    step: Step, evaluation: Evaluation | None, batch_size: int | None, places: Places
) -> Evaluate | None:
    """Make the evaluation a run is asked for, None where there is none.

        mean = sum over batches of (examples in it * value of it) / examples

    which is exact where the function is a mean over the examples of its batch.

    Raises:
        ValueError: there is neither a function nor a loss that does without a key.
        TypeError: the data can only be read once.
    """
    if evaluation is None:
        return None
    function, data = evaluation.fn, evaluation.data
    measure = split_rows(of_loss(step) if function is None else of_function(function), places)
    if isinstance(data, Iterator):
        raise TypeError(
            f"the data of `evaluation` is a {type(data).__name__}, which can be read only once, but every "
            "evaluation reads it. Pass a list of batches, or a function that gives an iterator."
        )
    if not is_arrays(data):
        return OverBatches(data, jax.jit(measure))
    size = check_arrays(data, "evaluation")
    asked = batch_size if evaluation.batch_size is None else evaluation.batch_size
    batch = size if asked is None else min(asked, size)
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
            raise ValueError("the data of `evaluation` gave no batches.")
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
            f"`{name_of(step.loss)}` requires a key, but an evaluation has none. Pass "
            "evaluation=Evaluation(data, fn) with a function of (params, *batch) that uses no randomness, or "
            "give `key` the default None, which is then used in evaluations."
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
