"""How the gradients of single examples are weighted before they are added."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from ...core.selectors import matches
from ...core.types import Array, PyTree
from .forms import wide

#: A bound on the norm of each example's gradient; or one for the leaves that each glob matches.
Bound: TypeAlias = float | Mapping[str, float]


@dataclass(frozen=True)
class Clip:
    """Clip the gradient of each example, and add noise to the mean: the step of DP-SGD.

        grads = 1/B * (sum_b g_b * min(1, bound / |g_b|) + noise * bound * N(0, 1))

    Pass it to `make_step` or `fit` as `examples=`. Without noise it bounds the influence of each example, which
    also helps against outliers and wrong labels. It computes no privacy budget: use an accountant, such as
    those of `jax_privacy` and `dp_accounting`, with `noise` as its noise multiplier.

    Attributes:
        bound: The largest norm of an example's gradient, all leaves together; or bounds by glob on the names of
            leaves, `{"*embed*": 0.1, "*": 1.0}`: leaves of one glob are clipped together, by the first that
            matches.
        noise: The standard deviation of the noise over the sensitivity of the sum, which is `bound`; with
            several bounds the root of the sum of their squares.
        microbatches: How many steps `optax.MultiSteps` accumulates: the noise of each is as much smaller, so
            that their mean has the noise of one step over all their examples.

    Raises:
        ValueError: A bound or a number is not positive, or the noise is negative.

    Source: Abadi et al. 2016, arXiv:1607.00133.
    """

    bound: Bound
    noise: float = 0.0
    microbatches: int = 1

    def __post_init__(self) -> None:
        check_bound(self.bound)
        if not self.noise >= 0:
            raise ValueError(f"Clip(noise=...) must not be negative, got {self.noise!r}.")
        if isinstance(self.microbatches, bool) or not self.microbatches >= 1:
            raise ValueError(f"Clip(microbatches=...) must be a positive integer, got {self.microbatches!r}.")

    @property
    def sensitivity(self) -> float:
        """The largest norm that one example's clipped gradient has."""
        bounds = self.bound.values() if isinstance(self.bound, Mapping) else [self.bound]
        return float(np.sqrt(sum(bound**2 for bound in bounds)))

    def with_noise(self, grads: PyTree, key: Key[Array, ""], count: int) -> PyTree:
        """Add noise to the mean of clipped gradients over `count` examples."""
        scale = self.noise * self.sensitivity / (count * self.microbatches**0.5)
        leaves, tree = jax.tree.flatten(grads)
        keys = jax.random.split(key, len(leaves))

        def noisy(g: Array, key: Array) -> Array:
            dtype = wide(g.dtype)  # rounded once, after the noise is added
            return (g.astype(dtype) + scale * jax.random.normal(key, g.shape, dtype)).astype(g.dtype)

        return tree.unflatten([noisy(g, key) for g, key in zip(leaves, keys, strict=True)])


def check_bound(bound: object) -> None:
    """Check a bound, or several.

    Raises:
        TypeError: It is neither a number nor a mapping.
        ValueError: One is not positive, or there are none.
    """
    if isinstance(bound, Mapping):
        if not bound:
            raise ValueError("`clip` is an empty mapping: there is no bound. Pass a number, or {'*': 1.0}.")
        for each in bound.values():
            check_bound(each)
        return
    if isinstance(bound, bool) or not isinstance(bound, int | float | np.number):
        raise TypeError(
            "a bound on the norms of gradients is a positive number, or a mapping from globs to such numbers; "
            f"got {bound!r}."
        )
    if not bound > 0:
        raise ValueError(f"a bound on the norms of gradients must be positive, got {bound!r}.")


class _Leaf(NamedTuple):
    """What a glob is matched against: the name of a leaf, and its path without the name of the argument."""

    names: tuple[str, ...]
    scope: str
    primitive: str = ""


def clip_weights(
    bound: Bound, squares: Sequence[Float[Array, " b"]], names: Sequence[str], paths: Sequence[str]
) -> list[Float[Array, " b"]]:
    """Return the factor of each example's gradient, for each leaf: `min(1, bound / norm)`.

    Args:
        bound: The bound, or bounds by glob.
        squares: For each leaf the squared norms.
        names: The names of the leaves, `params['attn']['w']`.
        paths: Their paths in the argument, `attn/w`, which globs match as well.

    Raises:
        ValueError: A glob matches no leaf, or a leaf is matched by none.
    """
    if not isinstance(bound, Mapping):
        return [_factors(bound, squares)] * len(squares)
    leaves = [_Leaf((name,), path) for name, path in zip(names, paths, strict=True)]
    group_of = [next((glob for glob in bound if matches(glob, leaf)), "") for leaf in leaves]
    if "" in group_of:
        name = names[group_of.index("")]
        raise ValueError(f"`clip` has no bound for `{name}`. Add one for all other leaves: '*'.")
    for glob in bound:
        if glob not in group_of:
            raise ValueError(
                f"the bound of {glob!r} in `clip` is that of no leaf: it matches none, or only what an earlier "
                f"glob matches. Leaves: {', '.join(names)}."
            )
    factors = {
        glob: _factors(bound[glob], [s for s, group in zip(squares, group_of, strict=True) if group == glob])
        for glob in set(group_of)
    }
    return [factors[group] for group in group_of]


def _factors(bound: float, squares: Sequence[Array]) -> Float[Array, " b"]:
    norm = jnp.sqrt(total(squares))
    limit = jnp.asarray(bound, norm.dtype)
    return jnp.where(norm > limit, limit / norm, jnp.ones_like(norm))


def total(squares: Sequence[Float[Array, " b"]]) -> Float[Array, " b"]:
    """Return the sum of squared norms over leaves, in the widest of their types, float32 at least."""
    dtype = wide(*(x.dtype for x in squares))
    return functools.reduce(jnp.add, (x.astype(dtype) for x in squares))
