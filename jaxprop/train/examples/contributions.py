"""The nodes at which a parameter meets the examples, and what each adds to the gradients of single examples."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ...core.graph import Node, Value
from ...core.local import Local, node_function
from ...core.rules import Rule
from ...core.types import Array, InCts, OutCts
from .forms import Axes, Built, Form, Geometry, Kernel, OuterProducts, Rows

#: The axis of a value that counts the examples; None for a value that is the same for all.
AxisOf: TypeAlias = Callable[[Value], int | None]


class Sizes(NamedTuple):
    """How many numbers an example needs: for the factors of its gradient, and for the gradient itself."""

    factors: int
    built: int


class Contribution(Protocol):
    """What a node that uses a parameter adds to each example's gradient of it."""

    @property
    def sizes(self) -> Sizes:
        """What an example needs."""
        ...

    def form(self, local: Local, out_ct: Array) -> Form:
        """Return the gradients of the operand, in the backward pass; arrays begin with `b, f`, without `s`."""
        ...


def contribution_of(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    """Return the contribution of a node to the gradient of one operand; None if it is not known.

    Args:
        node: A node that uses a parameter.
        position: The position of the parameter among its operands. It is the same for all examples.
        axis_of: The axis of a value that counts the examples.
    """
    if len(node.outputs) != 1 or axis_of(node.outputs[0]) is None:
        return None
    producers = {
        "dot_general": _matrix_product,
        "conv_general_dilated": _convolution,
        "gather": _embedding_lookup,
        "broadcast_in_dim": _broadcast,
    }
    return producers.get(node.primitive, _elementwise)(node, position, axis_of)


# --- matrix products -------------------------------------------------------------------------


@dataclass(frozen=True)
class MatrixProduct:
    """`dot_general` of an array with a parameter.

    Attributes:
        position: Of the parameter among the operands.
        example: The axis of the other operand that counts the examples.
        x_axes: Those of the other operand that are `f`, `h` and `c`.
        w_axes: Those of the parameter that are `h`, `c` and `k`.
    """

    node: Node
    position: int
    example: int
    x_axes: tuple[Axes, Axes, Axes]
    w_axes: tuple[Axes, Axes, Axes]

    @property
    def sizes(self) -> Sizes:
        x, w = (self.node.operands[i].shape for i in (1 - self.position, self.position))
        h, c, k = (math.prod(w[axis] for axis in axes) for axes in self.w_axes)
        f = math.prod(x[axis] for axis in self.x_axes[0])
        return Sizes(f * h * (c + k), h * c * k)

    def form(self, local: Local, out_ct: Array) -> Form:
        x = local.operands[1 - self.position]
        f, h, c = self.x_axes
        count = x.shape[self.example]
        sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (f, h, c)]
        x_factor = jnp.transpose(x, (self.example, *f, *h, *c)).reshape(count, *sizes)
        # Axes of the result: h, the free axes of the left operand, the free axes of the right one.
        free, k = sorted((*f, self.example)), len(self.w_axes[2])
        first_free = len(h) + (k if self.position == 0 else 0)
        first_k = len(h) + (0 if self.position == 0 else len(free))
        at = {axis: first_free + i for i, axis in enumerate(free)}
        order = (at[self.example], *(at[axis] for axis in f), *range(len(h)), *range(first_k, first_k + k))
        ct = jnp.transpose(out_ct, order).reshape(count, *sizes[:2], -1)
        shape, precision = self.node.operands[self.position].shape, self.node.params["precision"]
        return OuterProducts(x_factor, ct, self.w_axes, shape, precision)


def _matrix_product(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    x = node.operands[1 - position]
    example = axis_of(x)
    contract, batch = node.params["dimension_numbers"]
    x_c, w_c = contract[1 - position], contract[position]
    x_h, w_h = batch[1 - position], batch[position]
    if example is None or example in x_c or example in x_h:
        return None
    shape = node.operands[position].shape
    f = tuple(i for i in range(len(x.shape)) if i not in (*x_c, *x_h, example))
    k = tuple(i for i in range(len(shape)) if i not in (*w_c, *w_h))
    x_axes, w_axes = (f, tuple(x_h), tuple(x_c)), (tuple(w_h), tuple(w_c), k)
    return MatrixProduct(node, position, example, x_axes, w_axes)


def squeezed_rule(product: MatrixProduct) -> Rule | None:
    """Return the chain rule of a product without the axes of length one of its operand; None if there are none.

    An example that is a batch of one leaves such an axis in every layer. Because of it XLA changes the layout
    of cotangents, which costs an MLP a quarter of its step.
    """
    node, other = product.node, 1 - product.position
    shape = node.operands[other].shape
    ones = [axis for axis in product.x_axes[0] if shape[axis] == 1]
    if not ones or node.params.get("out_sharding") is not None:
        return None
    kept = [axis for axis in range(len(shape)) if axis not in ones]
    numbers = tuple(
        tuple(tuple(map(kept.index, axes)) if i == other else axes for i, axes in enumerate(pair))
        for pair in node.params["dimension_numbers"]
    )
    run = functools.partial(lax.dot_general, **{**node.params, "dimension_numbers": numbers})

    def squeezed(*operands: Array) -> Array:
        return run(*(lax.squeeze(x, ones) if i == other else x for i, x in enumerate(operands)))

    def rule(local: Local, out_cts: OutCts) -> InCts:
        (ct,) = out_cts  # a product has one output, and a rule is called only where a cotangent arrives
        assert ct is not None
        out, pull = jax.vjp(squeezed, *local.operands)
        return pull(jnp.reshape(ct, out.shape))

    return rule


# --- convolutions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """`conv_general_dilated` whose kernel is a parameter."""

    node: Node

    @property
    def sizes(self) -> Sizes:
        x, kernel = (math.prod(value.shape) for value in self.node.operands)
        examples = self.node.operands[0].shape[self.node.params["dimension_numbers"].lhs_spec[0]]
        return Sizes((x + math.prod(self.node.outputs[0].shape)) // examples, kernel)

    def form(self, local: Local, out_ct: Array) -> Form:
        params, shape = self.node.params, self.node.operands[1].shape
        numbers = params["dimension_numbers"]
        geometry = Geometry(
            lax.ConvDimensionNumbers(
                _batch_first(numbers.lhs_spec), numbers.rhs_spec, _batch_first(numbers.out_spec)
            ),
            params["feature_group_count"],
            tuple(params["window_strides"]),
            tuple(map(tuple, params["padding"])),
            tuple(params["lhs_dilation"]),
            tuple(params["rhs_dilation"]),
            shape,
            params["precision"],
        )
        x = jnp.moveaxis(local.operands[0], numbers.lhs_spec[0], 0)
        ct = jnp.moveaxis(out_ct, numbers.out_spec[0], 0)
        return Kernel(x[:, None], ct[:, None], geometry)


def _batch_first(spec: Axes) -> Axes:
    """Where the axes of a specification are once that of the batch was moved to the front."""
    return (0, *(axis + (axis < spec[0]) for axis in spec[1:]))


def _convolution(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    batch = node.params["dimension_numbers"].lhs_spec[0]
    if position != 1 or axis_of(node.operands[0]) != batch or node.params["batch_group_count"] != 1:
        return None
    return Convolution(node)


# --- embedding lookups ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingLookup:
    """A `gather` of whole rows of a table that is a parameter.

    Attributes:
        example: The axis of the indices that counts the examples.
    """

    node: Node
    example: int

    @property
    def sizes(self) -> Sizes:
        rows, found = self.node.operands[1].shape, self.node.outputs[0].shape
        return Sizes(math.prod(found) // rows[self.example], math.prod(self.node.operands[0].shape))

    def form(self, local: Local, out_ct: Array) -> Form:
        rows, shape = local.operands[1], self.node.operands[0].shape
        count, last = rows.shape[self.example], shape[0] - 1
        row_axes = self.node.params["dimension_numbers"].offset_dims
        positions = [axis for axis in range(out_ct.ndim) if axis not in row_axes]
        order = (positions.pop(self.example), *positions, *row_axes)
        rows = jnp.moveaxis(rows[..., 0], self.example, 0).reshape(count, -1)
        ct = jnp.transpose(out_ct, order).reshape(*rows.shape, -1)
        if self.node.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
            ct = jnp.where(((rows >= 0) & (rows <= last))[..., None], ct, jnp.zeros_like(ct))
        return Rows(jnp.clip(rows, 0, last).astype(jnp.int32), ct, shape)


def _embedding_lookup(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    table, rows = node.operands
    example, numbers = axis_of(rows), node.params["dimension_numbers"]
    plain = (
        numbers.collapsed_slice_dims == (0,)
        and numbers.start_index_map == (0,)
        and not numbers.operand_batching_dims
        and tuple(node.params["slice_sizes"]) == (1, *table.shape[1:])
    )
    if position != 0 or example is None or example == len(rows.shape) - 1 or not plain:
        return None
    return EmbeddingLookup(node, example)


# --- broadcasting over examples and positions -----------------------------------------------------


@dataclass(frozen=True)
class Broadcast:
    """A parameter broadcast over examples and positions: its gradient is the sum of the cotangent over these.

    Attributes:
        position: Of the parameter among the operands.
        example: The axis of the result that counts the examples.
        axes: The axes of the result that correspond to those of the parameter.
        elementwise: Whether it is an elementwise operation that broadcasts by itself, not `broadcast_in_dim`.
    """

    node: Node
    position: int
    example: int
    axes: Axes
    elementwise: bool

    @property
    def sizes(self) -> Sizes:
        size = math.prod(self.node.operands[self.position].shape)
        return Sizes(size, size)

    def form(self, local: Local, out_ct: Array) -> Form:
        shape = self.node.operands[self.position].shape
        ct = _elementwise_ct(local, self.position, out_ct) if self.elementwise else out_ct
        kept = {axis for axis, size in zip(self.axes, shape, strict=True) if size == ct.shape[axis] != 1}
        g = ct.sum(tuple(axis for axis in range(ct.ndim) if axis != self.example and axis not in kept))
        b = sum(axis in kept for axis in range(self.example))
        return Built(jnp.moveaxis(g, b, 0).reshape(ct.shape[self.example], 1, *shape))


def _elementwise_ct(local: Local, position: int, out_ct: Array) -> Array:
    """The cotangent of the operand as if it had the shape of the result."""
    fun, operands = node_function(local.node), list(local.operands)

    def of_operand(x: Array) -> Array:
        operands[position] = x
        return fun(*operands)[0]

    return jax.vjp(of_operand, jnp.broadcast_to(operands[position], out_ct.shape))[1](out_ct)[0]


def _broadcast(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    example = axis_of(node.outputs[0])
    if position != 0 or example is None:
        return None
    return Broadcast(node, 0, example, tuple(map(int, node.params["broadcast_dimensions"])), elementwise=False)


#: Elementwise operations of several operands, which broadcast axes of length 1.
_ELEMENTWISE = frozenset({"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2", "select_n"})


def _elementwise(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    shape, out = node.operands[position].shape, node.outputs[0].shape
    example = axis_of(node.outputs[0])
    if node.primitive not in _ELEMENTWISE or example is None:
        return None
    if shape and (len(shape) != len(out) or shape[example] != 1):
        return None
    return Broadcast(node, position, example, tuple(range(len(shape))), elementwise=True)
