"""What a training step takes and returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from ...core.types import Array, PyTree
from ..watch.watched import Watched

#: Columns of the history that do not come from `aux`.
_RESERVED = ("loss", "step", "epoch", "steps_per_second")


class State(NamedTuple):
    """Everything a step changes: a pytree, saved and restored as a whole.

    Attributes:
        params: The differentiated parameters.
        opt_state: The state of the optimizer.
        step: The number of steps taken, an int32 scalar.
        key: The random key of the run, or None if there is none. It does not change; the key of a step is
            `jax.random.fold_in(key, step)`.
        model_state: The model's own state (batch statistics, counters), or None if there is none.
    """

    params: PyTree
    opt_state: PyTree
    step: Int[Array, ""]
    key: Array | None = None
    model_state: PyTree = None


class Clipping(NamedTuple):
    """What a step that clips the gradients of single examples reports; it is not private.

    Attributes:
        clipped: The fraction of examples whose gradient was made smaller, between 0 and 1.
        norm: The median of the 2-norms of their gradients, before they are clipped.
    """

    clipped: Float[Array, ""]
    norm: Float[Array, ""]


class Metrics(NamedTuple):
    """What a step reports; `metrics["loss"]` is `metrics.loss`.

    Attributes:
        loss: The loss at the params before the update.
        aux: The auxiliary output of the loss, None without `has_aux`.
        watched: What was watched (`Watched`), None without `watch`.
        examples: How the gradients of single examples were clipped, None without `examples`.
    """

    loss: Float[Array, ""]
    aux: PyTree = None
    watched: Watched | None = None
    examples: Clipping | None = None

    def __getitem__(self, name: Any) -> Any:
        if isinstance(name, int | slice):
            return tuple(self)[name]
        if name not in self._fields:
            raise KeyError(f"a step has no metric {name!r}; available: {', '.join(self._fields)}.")
        return getattr(self, name)


class LossOutput(NamedTuple):
    """What the loss returned, taken apart."""

    loss: Array
    aux: PyTree
    model_state: PyTree


class Gradient(NamedTuple):
    """The result of the forward and the backward pass of one step."""

    loss: Array
    aux: PyTree
    model_state: PyTree
    grads: PyTree
    examples: Clipping | None = None

    @property
    def row(self) -> dict[str, Array]:
        """The numbers of the step by name."""
        clipping = {} if self.examples is None else self.examples._asdict()
        return row_of(self.loss, self.aux) | {f"examples/{name}": x for name, x in clipping.items()}


def donatable(x: object) -> Array:
    """Return a copy of an array, without weak type: it can be donated, and a step does not change its type."""
    return jnp.array(x, dtype=jax.typeof(x).dtype, copy=True)


def row_of(loss: Array, aux: PyTree) -> dict[str, Array]:
    """Return the numbers of a step by name: the loss, and the scalars of the auxiliary output by their keys."""
    row = {"loss": loss}
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if jnp.shape(leaf) == () and jnp.issubdtype(jax.typeof(leaf).dtype, jnp.number):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            named = isinstance(path[0], jax.tree_util.DictKey | jax.tree_util.GetAttrKey) if path else False
            row[name if named and name not in _RESERVED else f"aux/{name}".rstrip("/")] = jnp.asarray(leaf)
    return row
