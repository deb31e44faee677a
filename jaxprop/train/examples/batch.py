"""A call of a loss taken apart: the params, and a batch of examples each of which is a batch of one."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._models import named_leaves
from ..._tracing import Traced, argument_names, name_of, trace_call
from ...core.types import Array, Dtype, Function, PyTree


@dataclass(frozen=True, eq=False)
class Batch:
    """A call of a loss on a batch of examples.

    Attributes:
        loss: The loss.
        position: The position of the differentiated argument.
        has_aux: Whether the loss returns a pair (value, aux).
        params: The differentiated argument.
        leaves: The arrays of the batch.
        axes: Of each array the axis that counts the examples; None if it is the same for all.
        size: The number of examples.
    """

    loss: Function
    position: int
    has_aux: bool
    params: PyTree
    leaves: list[Array]
    axes: list[int | None]
    size: int
    _tree: Any = field(repr=False)
    _kwargs: dict[str, PyTree] = field(repr=False)

    def one(self, params: PyTree, example: Sequence[Array]) -> tuple[PyTree, PyTree]:
        """Return the loss and the auxiliary output of one example; its arrays lack the axis of examples."""
        parts = [
            x if axis is None else jnp.expand_dims(x, axis) for x, axis in zip(example, self.axes, strict=True)
        ]
        return self.whole(params, *parts)

    def whole(self, params: PyTree, *leaves: Array) -> tuple[PyTree, PyTree]:
        """Return the loss and the auxiliary output of a batch with these arrays."""
        rest = jax.tree.unflatten(self._tree, list(leaves))
        result = self.loss(*rest[: self.position], params, *rest[self.position :], **self._kwargs)
        return result if self.has_aux else (result, None)

    def mean(self, params: PyTree, *leaves: Array) -> tuple[Array, tuple[Array, PyTree]]:
        """Return the mean of the losses of single examples; these losses, and their auxiliary output."""
        losses, aux = jax.vmap(self.one, in_axes=(None, self.axes))(params, list(leaves))
        if jnp.ndim(losses) != 1:
            raise TypeError(
                f"`{name_of(self.loss)}` must return a scalar, but it returned shape {jnp.shape(losses)[1:]} "
                "for a batch of one example. Return the mean or the sum."
            )
        return jnp.mean(losses), (losses, aux)

    def weighted_mean(self, params: PyTree, weights: Float[Array, " batch"]) -> Float[Array, ""]:
        """Return the mean of the losses of single examples, each times its weight."""
        losses = self.mean(params, *self.leaves)[1][0]
        return jnp.mean(losses * weights.astype(losses.dtype))

    # --- traced ----------------------------------------------------------------------------------------

    def traced(self, function: Function) -> Traced:
        """Trace `mean` or `whole`, the arrays of the batch closed over."""
        return trace_call(function, (self.params, *self.leaves), {}, 0, True)

    def traced_abstractly(self, function: Function, one_more: bool = False) -> Traced:
        """Trace `mean` or `whole`, the arrays of the batch as arguments.

        Args:
            function: Takes the params and the arrays.
            one_more: Whether there is one example more: axes that are longer then count the examples.
        """
        leaves = map(_longer, self.leaves, self.axes) if one_more else self.leaves
        return trace_call(function, (self.params, *leaves), {}, 0, True, abstract=True)

    # --- the leaves of the params --------------------------------------------------------------------------

    @functools.cached_property
    def params_leaves(self) -> list[Array]:
        """The leaves of the params."""
        return jax.tree.leaves(self.params)

    def as_params(self, leaves: Sequence[Array]) -> PyTree:
        """Put one thing for each leaf of the params into their structure."""
        return jax.tree.unflatten(jax.tree.structure(self.params), leaves)

    @property
    def real_dtypes(self) -> list[Dtype]:
        """The types of the norms of the leaves."""
        return [jnp.finfo(jnp.result_type(leaf)).dtype for leaf in self.params_leaves]

    @property
    def names(self) -> list[str]:
        """The names of the leaves, `params['attn']['w']`."""
        root = argument_names(self.loss, self.position + 1)[self.position]
        return [name for name, _ in named_leaves(root, self.params)]

    @property
    def paths(self) -> list[str]:
        """The paths of the leaves, `attn/w`."""
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path in self._paths]

    @functools.cached_property
    def _paths(self) -> list[jax.tree_util.KeyPath]:
        return [path for path, _ in jax.tree_util.tree_leaves_with_path(self.params)]


def _longer(x: Array, axis: int | None) -> Array | jax.ShapeDtypeStruct:
    if axis is None:
        return x
    aval = jax.typeof(x)
    shape = list(aval.shape)
    shape[axis] += 1
    return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)


def as_batch_of_examples(
    loss: Function,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
    argnums: int,
    has_aux: bool,
    in_axes: PyTree,
) -> Batch:
    """Take a call of a loss apart.

    Raises:
        ValueError: The arrays of the batch differ in their number of examples, or there are none.
    """
    position = range(len(args))[argnums]
    rest = [arg for i, arg in enumerate(args) if i != position]
    leaves, tree = jax.tree.flatten(rest)
    axes = _axes_of_batch(in_axes, rest)
    count = _example_count(loss, leaves, axes)
    return Batch(loss, position, has_aux, args[position], leaves, axes, count, tree, kwargs)


def _axes_of_batch(in_axes: PyTree, batch: list[PyTree]) -> list[int | None]:
    """One axis for each leaf of the batch."""
    given = list(in_axes) if isinstance(in_axes, tuple | list) else [in_axes] * len(batch)
    if len(given) != len(batch):
        raise ValueError(
            f"`in_axes` has {len(given)} entries, but the batch has {len(batch)} arguments. Pass one for each."
        )
    spread = jax.tree.map(
        lambda axis, part: [axis] * len(jax.tree.leaves(part)), given, batch, is_leaf=lambda x: x is None
    )
    return [axis for axes in spread for axis in axes]


def _example_count(loss: Function, leaves: Sequence[Array], axes: Sequence[int | None]) -> int:
    sizes = {
        np.shape(leaf)[axis] if -np.ndim(leaf) <= axis < np.ndim(leaf) else 0
        for leaf, axis in zip(leaves, axes, strict=True)
        if axis is not None
    }
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves) or "no arrays"
        raise ValueError(
            f"`{name_of(loss)}` was called with a batch of {shapes}, but every array of a batch needs the same "
            "number of examples, at least one, on its first axis or on that given by `in_axes`. Pass what is "
            "the same for all examples by keyword."
        )
    return sizes.pop()
