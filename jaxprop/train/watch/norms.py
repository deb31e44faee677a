"""Norms and histograms of the leaves of the params, their gradient and their change."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...core.types import Array, PyTree
from ..examples.per_example import PerExample, noise_and_signal
from .histogram import Histogram, as_histograms
from .watch import Watch

#: For each quantity that was recorded one number per leaf, in the order of the leaves of the params.
Norms: TypeAlias = dict[str, Float[Array, " leaf"]]
#: For each quantity one histogram per leaf, stacked.
LeafHistograms: TypeAlias = dict[str, Histogram]


class LeafStatistics(NamedTuple):
    """What is recorded of the leaves of the params in one step."""

    norms: Norms
    histograms: LeafHistograms

    def __or__(self, other: "LeafStatistics") -> "LeafStatistics":
        return LeafStatistics(self.norms | other.norms, self.histograms | other.histograms)


NOTHING = LeafStatistics({}, {})


def of_gradient(watch: Watch, params: Sequence[Array], grads: Sequence[Array]) -> LeafStatistics:
    """Return what a `Watch` asks for of the params and their gradient."""
    if not watch.grads:
        return NOTHING
    norms = {"param": _norms(params), "grad": _norms(grads)}
    return LeafStatistics(norms, _histograms(watch, {"param": params, "grad": grads}))


def of_update(watch: Watch, old: Sequence[Array], new: Sequence[Array]) -> LeafStatistics:
    """Return what a `Watch` asks for of the change of the params as applied.

    That is not the optimizer's update: in bfloat16 the two may have nothing in common.
    """
    if not watch.updates:
        return NOTHING
    change = [_as_stored(b) - _as_stored(a) for a, b in zip(old, new, strict=True)]
    unchanged = [_unchanged(b, a) for a, b in zip(old, new, strict=True)]
    norms = {"param": _norms(old), "update": _norms(change), "unchanged": jnp.stack(unchanged)}
    return LeafStatistics(norms, _histograms(watch, {"update": change}))


def of_examples(examples: PerExample) -> LeafStatistics:
    """Return statistics of single examples' gradients, and unbiased estimates of noise and signal, by leaf."""
    squares = jnp.stack(jax.tree.leaves(examples.norms)) ** 2
    mean = _norms(jax.tree.leaves(examples.grads)).astype(squares.dtype) ** 2
    noise, signal = noise_and_signal(squares, mean)
    norms = {
        "example_rms": jnp.sqrt(squares.mean(1)),
        "example_max": jnp.sqrt(squares.max(1)),
        "noise": noise,
        "signal": signal,
    }
    return LeafStatistics(norms, {})


def _histograms(watch: Watch, quantities: Mapping[str, Sequence[Array]]) -> LeafHistograms:
    count = as_histograms(watch.histograms)
    if count is None:
        return {}
    return {
        name: jax.tree.map(lambda *xs: jnp.stack(xs), *map(count, leaves))
        for name, leaves in quantities.items()
    }


def float_leaves(tree: PyTree) -> list[Array]:
    """Return the leaves of the params, or of a model that holds them, that can be trained."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)]


def _norms(leaves: Sequence[Array]) -> Float[Array, " leaf"]:
    return jnp.stack([_two_norm(x) for x in leaves])


def _two_norm(x: Array) -> Float[Array, ""]:
    x = jnp.abs(_at_least_single(x))
    return jnp.sqrt(jnp.sum(x * x))


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
