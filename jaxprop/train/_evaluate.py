"""The mean of a loss over all of the evaluation data, the last short batch included."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._call import name_of
from .._types import Array, PyTree
from ._data import as_batch, batches_of, check_arrays, is_arrays
from ._step import State, takes


class Evaluation:
    """Evaluate a function of the params over data.

        mean = sum over batches of (examples in it * value of it) / examples

    which is exact where the function is a mean over the examples of its batch.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        has_aux: bool,
        data: Any,
        batch_size: int | None,
        place: Callable[..., Any],
    ) -> None:
        self.function, self.has_aux, self.data = function, has_aux, data
        self.size, self.batch = None, batch_size
        if is_arrays(data):
            self.size = check_arrays(data, "eval_data")
            self.batch = self.size if batch_size is None else min(batch_size, self.size)
            self.data = place(data)
        self._whole = jax.jit(self._over_arrays)
        self._one = jax.jit(self._value)

    def __call__(self, state: State) -> dict[str, Any]:
        """The means, by name: `eval_loss`, or `eval_...` for each number the function returns."""
        point = (state.params, state.model_state)
        if self.size is not None:
            return self._named(self._whole(point, self.data))
        total, count = None, 0
        for batch in batches_of(self.data):
            size = len(jax.tree.leaves(batch)[0])
            part = jax.tree.map(lambda x, size=size: size * x, self._one(point, batch))
            total = part if total is None else jax.tree.map(jnp.add, total, part)
            count += size
        if total is None:
            raise ValueError("`eval_data` gave no batches.")
        return self._named(jax.tree.map(lambda x: x / count, total))

    def _value(self, point: tuple[PyTree, PyTree], batch: PyTree) -> PyTree:
        params, model_state = point
        extras = {"model_state": model_state} if "model_state" in takes(self.function) else {}
        value = self.function(params, *as_batch(batch), **extras)
        return value[0] if self.has_aux else value

    def _over_arrays(self, point: tuple[PyTree, PyTree], data: PyTree) -> PyTree:
        assert self.size is not None and self.batch is not None
        full = self.size // self.batch

        def piece(number: Array) -> PyTree:
            cut = lambda x: jax.lax.dynamic_slice_in_dim(x, number * self.batch, self.batch)  # noqa: E731
            return self._value(point, jax.tree.map(cut, data))

        if full == 1 and self.batch == self.size:
            return self._value(point, data)
        values = jax.lax.map(piece, jnp.arange(full))
        total = jax.tree.map(lambda x: self.batch * jnp.sum(x, axis=0), values)
        if self.size % self.batch:
            rest = self._value(point, jax.tree.map(lambda x: x[full * self.batch :], data))
            total = jax.tree.map(lambda t, x: t + (self.size % self.batch) * x, total, rest)
        return jax.tree.map(lambda x: x / self.size, total)

    def _named(self, means: PyTree) -> dict[str, Any]:
        if jax.tree.structure(means) == jax.tree.structure(0):
            return {"eval_loss": means}
        return {
            "eval_" + jax.tree_util.keystr(path, simple=True, separator="/"): x
            for path, x in jax.tree_util.tree_leaves_with_path(means)
        }


def eval_function(
    loss: Callable[..., Any], given: Callable[..., Any] | None, has_aux: bool
) -> tuple[Any, bool]:
    """What to evaluate, and whether it returns a pair: by default the loss, where it can do without a key.

    Raises:
        ValueError: it cannot.
    """
    if given is not None:
        return given, False
    if "key" in takes(loss) and not _has_default(loss, "key"):
        raise ValueError(
            f"`{name_of(loss)}` asks for a key, and an evaluation has none: pass eval_fn, a function of (params, "
            "*batch) without randomness; or give `key` the default None and leave the randomness out then."
        )
    return loss, has_aux or "model_state" in takes(loss)


def _has_default(function: Any, name: str) -> bool:
    return inspect.signature(function).parameters[name].default is not inspect.Parameter.empty
