"""Gradients of single examples from one backward pass for the batch: norms, clipped sums, inner products."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ..._models import split_models
from ..._tracing import check_points, normalize_argnums
from ...core.types import Array, Function, PyTree
from .batch import Batch, as_batch_of_examples
from .book_keeping import gradients_of, inner_products
from .clip import Bound, check_bound, clip_weights, total
from .coupling import refuse_coupling
from .forms import wide


class PerExample(NamedTuple):
    """Losses and gradients of single examples.

    Attributes:
        value: The mean of the losses.
        grads: The gradient of `value`, in the structure of the differentiated argument. With `clip` or `weight`
            the mean of the gradients of single examples, each times its weight.
        losses: The loss of each example.
        norms: For each differentiated leaf, the 2-norms of the gradients of `losses`, before they are clipped.
        aux: The auxiliary output of each example, with the examples on the first axis; None without `has_aux`.
        weights: For each differentiated leaf, the weights of the examples; None without `clip` and `weight`.
    """

    value: Float[Array, ""]
    grads: PyTree
    losses: Float[Array, " batch"]
    norms: PyTree[Float[Array, " batch"]]
    aux: PyTree = None
    weights: PyTree[Float[Array, " batch"]] = None

    @property
    def norm(self) -> Float[Array, " batch"]:
        """The 2-norm of the whole gradient of each example."""
        return jnp.sqrt(total([_wide(norm) ** 2 for norm in jax.tree.leaves(self.norms)]))

    @property
    def clipped(self) -> Float[Array, ""]:
        """The fraction of examples whose gradient was made smaller, between 0 and 1."""
        smaller = [weights < 1 for weights in jax.tree.leaves(self.weights)]
        if not smaller:
            return jnp.zeros(())
        return jnp.mean(functools.reduce(jnp.logical_or, smaller).astype(jnp.float32))

    def noise_scale(self) -> Float[Array, ""]:
        """Estimate the gradient noise scale, in examples: the batch size at which noise equals signal.

            B_simple = tr(S) / |G|**2

        where `tr(S)` is the variance of the gradients of single examples and `|G|**2` the squared norm of the
        true gradient, both estimated without bias: `tr(S) = B / (B - 1) * (mean |g_b|**2 - |mean g_b|**2)` and
        `|G|**2 = |mean g_b|**2 - tr(S) / B`. From a single batch the estimate is rough: average numerator and
        denominator over steps. It is not positive if the batch shows no signal, and NaN for a single example.

        Raises:
            ValueError: The gradients were clipped or weighted, so that their mean is not known.

        Source: McCandlish, Kaplan, Amodei 2018, arXiv:1812.06162, section 2.2 and appendix A.1.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> found = jp.per_example(lambda w, x: jnp.sum(w * x))(1.0, jnp.array([1.0, 3.0]))
            >>> round(float(found.noise_scale()), 4)  # g = 1, 3: tr(S) = 2, |G|**2 = 4 - 1
            0.6667
        """
        if self.weights is not None:
            raise ValueError(
                "the noise scale compares the gradients of single examples with their mean, but `grads` is a "
                "weighted mean. Call per_example without `clip` and `weight`."
            )
        mean = total([jnp.sum(jnp.abs(_wide(g)) ** 2) for g in jax.tree.leaves(self.grads)])
        noise, signal = noise_and_signal(self.norm**2, mean)
        return noise / signal


def _wide(x: Array) -> Array:
    return x.astype(wide(x.dtype))


def noise_and_signal(
    squares: Float[Array, "*leaf batch"], mean: Float[Array, "*leaf"]
) -> tuple[Float[Array, "*leaf"], Float[Array, "*leaf"]]:
    """Estimate `tr(S)` and `|G|**2` without bias, see `PerExample.noise_scale`; NaN for a single example.

    Args:
        squares: Squared norms of the gradients of single examples.
        mean: Squared norm of the mean of these gradients.
    """
    count = squares.shape[-1]
    noise = (squares.mean(-1) - mean) * (count / (count - 1) if count > 1 else math.nan)
    return noise, mean - noise / count


#: From the norms of the whole gradients of the examples to their weights.
Weight = Callable[[Float[Array, " batch"]], Float[Array, " batch"]]


@dataclass(eq=False)
class ExampleGradients:
    """A function of the gradients of single examples, made by `per_example`."""

    loss: Function
    argnums: int
    has_aux: bool
    in_axes: PyTree
    clip: Bound | None
    weight: Weight | None

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> PerExample:
        """Return the losses and norms of the examples, and the mean of their gradients, perhaps weighted."""
        batch = self._batch(args, kwargs, "per_example")
        plain = self.clip is None and self.weight is None
        found = gradients_of(batch, adds=not plain)
        squares = [batch.size**2 * s for s in found.squares]
        norms = [jnp.sqrt(s).astype(dtype) for s, dtype in zip(squares, batch.real_dtypes, strict=True)]
        grads, weights = found.grads, None
        if not plain:
            of_leaves = self._weights(squares, batch)
            grads, weights = batch.as_params(found.weighted(of_leaves)), batch.as_params(of_leaves)
        return PerExample(found.value, grads, found.losses, batch.as_params(norms), found.aux, weights)

    def _weights(self, squares: Sequence[Float[Array, " batch"]], batch: Batch) -> list[Float[Array, " batch"]]:
        """The weights of the examples, for each leaf."""
        if self.clip is not None:
            return clip_weights(self.clip, squares, batch.names, batch.paths)
        assert self.weight is not None
        weights = jnp.asarray(self.weight(jnp.sqrt(total(squares))))
        if weights.shape != (batch.size,):
            raise ValueError(
                f"`weight` must return one weight for each of the {batch.size} examples, an array of shape "
                f"({batch.size},); it returned shape {weights.shape}."
            )
        return [weights] * len(squares)

    def inner(self, params: PyTree, one: PyTree, other: PyTree, **kwargs: PyTree) -> Float[Array, "a b"]:
        """Return the inner products of the gradients of two batches, example by example.

            inner[a, b] = <d loss(params, one[a]) / d params, d loss(params, other[b]) / d params>

        For a loss they tell to first order how a step on one example changes the loss of another (TracIn:
        summed over checkpoints, each times its learning rate); for an output of a model they are its
        empirical neural tangent kernel.

        Args:
            params: The differentiated argument.
            one, other: A batch: a tuple of the other positional arguments, or the only one.
            **kwargs: Keyword arguments of the loss.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> def loss(w, x):
            ...     return jnp.sum(x @ w)
            >>> x = jnp.array([[3.0, 4.0], [0.0, 1.0]])
            >>> jp.per_example(loss).inner(jnp.zeros(2), x, x).tolist()  # x @ x.T
            [[25.0, 4.0], [4.0, 1.0]]

        Source: Pruthi et al. 2020, arXiv:2002.08484; Jacot, Gabriel and Hongler 2018, arXiv:1806.07572.
        """
        word = "per_example(...).inner"
        ours, theirs = (self._batch(self._args(params, batch), kwargs, word) for batch in (one, other))
        return inner_products(ours, theirs)

    def _args(self, params: PyTree, batch: PyTree) -> tuple[PyTree, ...]:
        rest = batch if isinstance(batch, tuple) else (batch,)
        position = range(len(rest) + 1)[self.argnums]
        return (*rest[:position], params, *rest[position:])

    def _batch(self, args: tuple[PyTree, ...], kwargs: dict[str, PyTree], word: str) -> Batch:
        check_points(args, self.argnums, self.loss, False, False, word)
        loss, args, kwargs = split_models(self.loss, args, kwargs, normalize_argnums(self.argnums, len(args)))
        batch = as_batch_of_examples(loss, args, kwargs, self.argnums, self.has_aux, self.in_axes)
        refuse_coupling(batch)
        return batch


def per_example(
    loss: Function,
    argnums: int = 0,
    has_aux: bool = False,
    in_axes: PyTree = 0,
    *,
    clip: Bound | None = None,
    weight: Weight | None = None,
) -> ExampleGradients:
    """Return a function for the norm of every example's gradient, and the mean of these gradients, clipped.

        norms[leaf][b] = |g_b[leaf]|                        g_b = d loss(params, batch[b:b+1]) / d params
        grads = 1/B * sum_b weights[b] * g_b                weights[b] = min(1, clip / |g_b|)

    One backward pass serves for all. The loss runs once for the whole batch, but each example sees itself as a
    batch of one; a loss that couples the examples, as batch normalization does, is refused. Where a parameter
    is used by matrix products, convolutions, embedding lookups and broadcasting, also inside `scan`, `cond`
    and `jax.checkpoint`, also at several places, the norms and the sum are computed from operands and
    cotangents; the gradients of single examples are built only where they take no more memory than these. For
    other leaves they are computed by `jax.vmap` of the gradient, a few examples at a time: the same numbers,
    slower.

    Args:
        loss: `loss(params, *batch)`, a scalar. Keyword arguments are the same for all examples.
        argnums: The argument to differentiate; all other positional arguments are the batch.
        has_aux: Whether the loss returns a pair (value, aux).
        in_axes: Which axis of the batch counts the examples, as in `jax.vmap`: one number, or one for each
            argument of the batch; None for an argument that is the same for all.
        clip: Scale each example's gradient down to this norm, all leaves together. Or bounds by glob on the
            names of leaves, such as `{"attn*": 0.5, "*": 1.0}`: the leaves of each are clipped together.
        weight: A function from the norms of the whole gradients to the weights of the examples, in place of
            `clip`.

    Returns:
        A function of the same arguments that returns a `PerExample`; compile it with `jax.jit`. Its method
        `inner(params, one, other)` returns inner products of gradients.

    Raises:
        TypeError: As `backprop`.
        ValueError: The arrays of the batch differ in their number of examples, or there are none; the loss
            couples the examples; a bound is not positive, or not every leaf has one.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x, y):
        ...     return jnp.mean((x @ w - y) ** 2)
        >>> x, y = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> jp.per_example(loss)(jnp.zeros(2), x, y).norms.tolist()  # 2 * |residual| * |x|
        [10.0, 2.0]
        >>> found = jp.per_example(loss, clip=5.0)(jnp.zeros(2), x, y)
        >>> found.grads.tolist(), float(found.clipped)  # the mean of [-6, -8] / 2 and [0, 2]
        ([-1.5, -1.0], 0.5)

    Source: Goodfellow 2015, arXiv:1510.01799; Bu, Wang, Zha and Karypis 2022, arXiv:2210.00038.
    """
    if clip is not None and weight is not None:
        raise ValueError("pass either `clip` or `weight`, not both: a clip is a weight, min(1, clip / norm).")
    if clip is not None:
        check_bound(clip)
    found = ExampleGradients(loss, argnums, has_aux, in_axes, clip, weight)
    functools.update_wrapper(found, loss, updated=())
    return found
