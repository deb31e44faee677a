"""Norms of the leaves of the params, computed inside a watched step."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...core.types import Array, PyTree
from ..examples.per_example import PerExample, noise_and_signal
from .watch import Watch

#: For each quantity that was recorded one number per leaf, in the order of the leaves of the params.
Norms: TypeAlias = dict[str, Float[Array, " leaf"]]


def leaf_norms(
    watch: Watch, params: PyTree, new_params: PyTree, grads: PyTree, examples: PerExample | None
) -> Norms:
    """Return the norms that a `Watch` asks for.

    Args:
        watch: What to record.
        params, new_params: The params before and after the step.
        grads: The gradient at `params`.
        examples: Norms of the gradients of single examples, or None.
    """
    norms = {} if examples is None else _example_norms(examples)
    if watch.grads or watch.updates:
        norms["param"] = _norms(params)
    if watch.grads:
        norms["grad"] = _norms(grads)
    if watch.updates:
        # The change as applied, not the optimizer's update: in bfloat16 the two may have nothing in common.
        norms["update"] = _norms(jax.tree.map(_difference, new_params, params))
        norms["unchanged"] = _as_vector(jax.tree.map(_unchanged, new_params, params))
    return norms


def _example_norms(examples: PerExample) -> Norms:
    """Statistics of single examples' gradients, and unbiased estimates of noise and signal, by leaf."""
    squares = jnp.stack(jax.tree.leaves(examples.norms)) ** 2
    noise, signal = noise_and_signal(squares, _norms(examples.grads).astype(squares.dtype) ** 2)
    return {
        "example_rms": jnp.sqrt(squares.mean(1)),
        "example_max": jnp.sqrt(squares.max(1)),
        "noise": noise,
        "signal": signal,
    }


def _norms(tree: PyTree) -> Float[Array, " leaf"]:
    return _as_vector(jax.tree.map(_two_norm, tree))


def _as_vector(tree: PyTree) -> Float[Array, " leaf"]:
    return jnp.stack(jax.tree.leaves(tree))


def _two_norm(x: Array) -> Float[Array, ""]:
    x = jnp.abs(_at_least_single(x))
    return jnp.sqrt(jnp.sum(x * x))


def _difference(new: Array, old: Array) -> Array:
    return _as_stored(new) - _as_stored(old)


def _unchanged(new: Array, old: Array) -> Float[Array, ""]:
    """Fraction of elements that are the same in both."""
    same = jnp.sum(_as_stored(new) == _as_stored(old), dtype=jnp.float32)
    return same / jnp.float32(max(new.size, 1))


def _as_stored(x: Array) -> Array:
    """A parameter at single precision or more, with the digits that its dtype can store.

    XLA may keep more digits inside a fused program: there a conversion to bfloat16 and back changes nothing.
    """
    if not _is_narrow(x):
        return x
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x.astype(jnp.float32), info.nexp, info.nmant)


def _at_least_single(x: Array) -> Array:
    """At least single precision, so that squares are not rounded away."""
    return x.astype(jnp.float32) if _is_narrow(x) else x


def _is_narrow(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
