"""The gradient of a step as the mean of the clipped gradients of its examples, with noise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ...core.rules import Rules
from ...core.types import Array, PyTree
from ..examples.clip import Clip
from ..examples.per_example import per_example
from .objective import Objective
from .state import Clipping, Gradient, State

#: Makes the key of the noise another one than the keys of the loss.
_NOISE = 0x6E6F6973


def clipped_gradient(objective: Objective, clip: Clip, state: State, batch: tuple[PyTree, ...]) -> Gradient:
    """Return the mean of the losses of single examples, and of their clipped gradients.

    A loss that takes a key gets another one for each example. Scalars of the auxiliary output are averaged over
    the examples; other arrays of it have the examples on their first axis.
    """
    keywords = objective.keywords(state)
    key = keywords.pop("key", None)

    def with_keys(params: PyTree, keys: Array | None, *batch: PyTree) -> PyTree:
        own = {} if keys is None else {"key": keys[0]}
        return objective.loss(params, *batch, **own, **keywords)

    count = np.shape(jax.tree.leaves(batch)[0])[0]
    keys = None if key is None else jax.random.split(key, count)
    found = per_example(with_keys, has_aux=objective.paired, clip=clip.bound)(state.params, keys, *batch)
    grads = found.grads
    if clip.noise:
        assert state.key is not None
        grads = clip.with_noise(grads, _noise_key(state.key, state.step), count)
    clipping = Clipping(found.clipped, jnp.median(found.norm))
    return Gradient(found.value, jax.tree.map(_mean_of_scalars, found.aux), state.model_state, grads, clipping)


def _noise_key(key: Array, step: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, _NOISE), step)


def _mean_of_scalars(x: Array) -> Array:
    if x.ndim > 1 or not jnp.issubdtype(x.dtype, jnp.number) and x.dtype != bool:
        return x
    return x.mean() if jnp.issubdtype(x.dtype, jnp.inexact) else x.mean(dtype=jnp.float32)


def check_accumulation(clip: Clip | None, opt_state: PyTree) -> None:
    """Check that noise is added once to what `optax.MultiSteps` accumulates.

    Raises:
        ValueError: It accumulates, and `Clip` does not know; or the reverse.
    """
    if clip is None or not clip.noise:
        return

    def accumulates(node: object) -> bool:
        return isinstance(node, optax.MultiStepsState)

    found = any(map(accumulates, jax.tree.leaves(opt_state, is_leaf=accumulates)))
    if found and clip.microbatches == 1:
        raise ValueError(
            "`optax.MultiSteps` averages the gradients of several steps, and the noise of all of them would "
            "add up. Say how many there are: Clip(..., microbatches=k) for `every_k_schedule=k`."
        )
    if not found and clip.microbatches > 1:
        raise ValueError(
            f"Clip(microbatches={clip.microbatches}) scales the noise for an optimizer that accumulates as "
            "many steps, but this one does not. Wrap it in optax.MultiSteps, or leave `microbatches` out."
        )


def check_examples(clip: object, takes: frozenset[str], rules: Rules) -> None:
    """Check what a step that clips the gradients of examples is made from.

    Raises:
        TypeError: It is not a `Clip`.
        ValueError: There are rules too, or the loss takes `model_state`.
    """
    if not isinstance(clip, Clip):
        raise TypeError(f"`examples` must be a jaxprop.Clip, such as Clip(1.0); got {clip!r}.")
    if rules:
        raise ValueError("`examples` and `rules` cannot be combined: clip by a rule or by examples, not both.")
    if "model_state" in takes:
        raise ValueError(
            "a loss that takes `model_state` returns one new state for the whole batch, but with `examples` "
            "each example is a batch of its own. Freeze the state and close over it, or use a model without it."
        )
