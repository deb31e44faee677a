"""Evaluation: the mean of a function over all of the evaluation data, including a shorter last batch."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Int

from ..._tracing import name_of
from ...core.types import Array, Function, PyTree
from ..checks import check_outputs
from ..data.arrays import example_count, is_arrays
from ..data.placement import DevicePlacement
from ..data.source import Batch, as_batch
from ..data.stream import batches_of
from ..step.objective import Objective, requested_extras
from ..step.state import State, row_of

#: (params, model_state, batch) -> numbers by name.
Measure: TypeAlias = Callable[[PyTree, PyTree, Batch], dict[str, Array]]
#: A state -> means by name.
Evaluate: TypeAlias = Callable[[State], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What to evaluate during a run, on which data, and how often.

    Pass it to `fit` as `evaluation`; `evaluation=(x, y)` is short for `Evaluation((x, y))`.

    Attributes:
        data: Data as in `fit`, except that it must be possible to read it more than once. A shorter last batch
            counts by its examples.
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

    data: object = field(repr=False)
    fn: Function | None = None
    every: int | None = None
    batch_size: int | None = None


def as_evaluation(evaluation: object) -> Evaluation | None:
    """Interpret `evaluation` of `fit`: None, an `Evaluation`, or data for the loss."""
    if evaluation is None or isinstance(evaluation, Evaluation):
        return evaluation
    return Evaluation(evaluation)


def make_evaluate(
    objective: Objective, evaluation: Evaluation | None, batch_size: int | None, placement: DevicePlacement
) -> Evaluate | None:
    """Return a function that evaluates a state, None if there is no evaluation.

        mean = sum over batches of (examples in it * its value) / examples

    which is exact if the function is a mean over the examples of its batch.

    Raises:
        ValueError: There is neither a function nor a loss that works without a key.
        TypeError: The data can only be read once.
    """
    if evaluation is None:
        return None
    function, data = evaluation.fn, evaluation.data
    measure = measure_loss(objective) if function is None else measure_function(function)
    measure = _with_split_batches(measure, placement)
    if isinstance(data, Iterator):
        raise TypeError(
            f"the data of `evaluation` is a {type(data).__name__}, which can be read only once, but every "
            "evaluation reads it. Pass a list of batches, or a function that returns an iterator."
        )
    if not is_arrays(data):
        return BatchEvaluation(data, jax.jit(measure))
    size = example_count(data, "evaluation")
    asked = batch_size if evaluation.batch_size is None else evaluation.batch_size
    batch = size if asked is None else min(asked, size)
    return ArrayEvaluation(placement.whole(data), size, batch, measure)


@dataclass(frozen=True, eq=False)
class ArrayEvaluation:
    """An evaluation over arrays on the device, batch after batch."""

    data: PyTree
    size: int
    batch: int
    measure: Measure

    def __call__(self, state: State) -> dict[str, float]:
        starts = range(0, self.size, self.batch)
        sizes = [min(self.batch, self.size - start) for start in starts]
        parts = [
            self._program(state.params, state.model_state, self.data, np.int32(start), size)
            for start, size in zip(starts, sizes, strict=True)
        ]
        return weighted_means(jax.device_get(parts), sizes)

    @functools.cached_property
    def _program(self) -> Callable[..., dict[str, Array]]:
        return jax.jit(self._of_rows, static_argnums=4)

    def _of_rows(
        self, params: PyTree, model_state: PyTree, data: PyTree, start: Int[Array, ""], size: int
    ) -> dict[str, Array]:
        def cut(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size)

        return self.measure(params, model_state, as_batch(jax.tree.map(cut, data)))


@dataclass(frozen=True, eq=False)
class BatchEvaluation:
    """An evaluation over an iterable of batches, of any sizes."""

    data: object
    program: Measure

    def __call__(self, state: State) -> dict[str, float]:
        parts, sizes = [], []
        for batch in batches_of(self.data):
            parts.append(self.program(state.params, state.model_state, as_batch(batch)))
            sizes.append(len(jax.tree.leaves(batch)[0]))
        if not sizes:
            raise ValueError("the data of `evaluation` has no batches.")
        return weighted_means(jax.device_get(parts), sizes)


def weighted_means(parts: Sequence[dict[str, np.ndarray]], sizes: Sequence[int]) -> dict[str, float]:
    """Return the means over all batches, each weighted by its number of examples."""
    return {
        name: sum(size * float(part[name]) for part, size in zip(parts, sizes, strict=True)) / sum(sizes)
        for name in parts[0]
    }


def measure_function(function: Function) -> Measure:
    """Return what a function of (params, *batch) computes: a number, or several by name."""

    def measure(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        extras = {"model_state": model_state} if "model_state" in requested_extras(function) else {}
        found = function(params, *batch, **extras)
        check_outputs(found, name_of(function), "result")
        if jax.tree.structure(found) == jax.tree.structure(0):
            return {"eval_loss": found}
        return {
            "eval_" + jax.tree_util.keystr(path, simple=True, separator="/"): x
            for path, x in jax.tree_util.tree_leaves_with_path(found)
        }

    return measure


def measure_loss(objective: Objective) -> Measure:
    """Return the loss itself, and the scalars of its auxiliary output.

    Raises:
        ValueError: The loss requires a key.
    """
    if "key" in objective.takes and _is_required(objective.loss, "key"):
        raise ValueError(
            f"`{name_of(objective.loss)}` requires a key, but an evaluation has none. Pass "
            "evaluation=Evaluation(data, fn) with a function of (params, *batch) that uses no randomness, or "
            "give `key` the default None, which is then used in evaluations."
        )

    def measure(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        extras = {"model_state": model_state} if "model_state" in objective.takes else {}
        found = objective.split(objective.loss(params, *batch, **extras), model_state)
        return {f"eval_{name}": x for name, x in row_of(found.loss, found.aux).items()}

    return measure


def _with_split_batches(measure: Measure, placement: DevicePlacement) -> Measure:
    """The same with the examples of a batch split over devices, if they divide."""

    def split(params: PyTree, model_state: PyTree, batch: Batch) -> dict[str, Array]:
        return measure(params, model_state, placement.split(batch))

    return split


def _is_required(function: Function, name: str) -> bool:
    return inspect.signature(function).parameters[name].default is inspect.Parameter.empty
