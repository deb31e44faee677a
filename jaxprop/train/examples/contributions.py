"""The contribution of one node to each example's gradient of one parameter, without building that gradient.

A parameter meets the examples at few kinds of nodes: matrix products, convolutions, embedding lookups, and
elementwise operations that broadcast it over the examples. There each example's gradient is a product of two
arrays that the backward pass computes anyway, the operand and the cotangent. Norms are computed from these
factors (Goodfellow 2015, arXiv:1510.01799; Rochette, Manoel and Tramel 2019, arXiv:1912.06015).

Index letters, the same everywhere:
    b: example    s: slice of a parameter that is scanned over    f: position (time, space, step of a scan)
    h: axis that operand, parameter and result share    c: axis that the node contracts    k: axis of the result
    n, r: row of a table, and element of a row    o: offset in a kernel    p: pixel
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from ...core.graph import Node, Value
from ...core.local import Local, node_function
from ...core.rules import Rule
from ...core.types import Array, InCts, OutCts, Shape

T = TypeVar("T")

#: Elements that may be held at once, besides those of the backward pass: examples are processed in chunks.
CHUNK = 2**21

#: The arrays a gradient is a product of. `Contribution.factors` has axes `b, f, ...`; finally `b, s, f, ...`.
Factors: TypeAlias = Mapping[str, Array]
#: The axis of a value that counts the examples; None for a value that is the same for all.
AxisOf: TypeAlias = Callable[[Value], int | None]
#: Positions of axes.
Axes: TypeAlias = tuple[int, ...]


class Contribution(Protocol):
    """The contribution of a node that uses a parameter to each example's gradient of it."""

    def factors(self, local: Local, out_ct: Array) -> Factors:
        """Return the factors, in the backward pass."""
        ...

    def squares(self, factors: Factors) -> Float[Array, " b"]:
        """Return the squared norm of each example's gradient of the operand, summed over `s`."""
        ...

    def gradient(self, factors: Factors) -> Float[Array, "b s ..."]:
        """Return each example's gradient of the operand."""
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
    """`dot_general` of an array with a parameter: `g[b,h,c,k] = sum_f x[b,f,h,c] * ct[b,f,h,k]`."""

    position: int
    example: int  # axis b of the other operand
    x_axes: tuple[Axes, ...]  # of the other operand: f, h, c
    w_axes: tuple[Axes, ...]  # of the parameter: h, c, k
    shape: Shape

    def factors(self, local: Local, out_ct: Array) -> Factors:
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
        return {"x": x_factor, "ct": ct}

    def squares(self, factors: Factors) -> Array:
        x, ct = factors["x"], factors["ct"]
        _, s, f, h, c = x.shape
        k = ct.shape[-1]
        if f == 1:
            return (_square(x).sum(-1) * _square(ct).sum(-1)).sum((1, 2, 3))
        if f * (c + k) <= c * k:
            return by_chunks(_squares_by_positions, s * h * f * f, x, ct)
        return by_chunks(lambda x, ct: _square(_sum_of_products(x, ct)).sum(), s * h * c * k, x, ct)

    def gradient(self, factors: Factors) -> Array:
        g = jax.vmap(_sum_of_products)(factors["x"], factors["ct"])
        axes = [axis for axes in self.w_axes for axis in axes]
        g = g.reshape(*g.shape[:2], *(self.shape[axis] for axis in axes))
        return jnp.transpose(g, (0, 1, *(2 + axes.index(axis) for axis in range(len(axes)))))


def squeezed_rule(node: Node, product: MatrixProduct) -> Rule | None:
    """Return the chain rule of a product without the axes of length one of its operand; None if there are none.

    An example that is a batch of one leaves such an axis in every layer. Because of it XLA changes the layout
    of cotangents, which costs an MLP a quarter of its step.
    """
    other = 1 - product.position
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


def _sum_of_products(x: Array, ct: Array) -> Array:
    return jnp.einsum("sfhc,sfhk->shck", x, ct)


def _squares_by_positions(x: Array, ct: Array) -> Array:
    """Compute `|x.T @ ct|**2` as the sum of `(x @ x.T) * (ct @ ct.T)`: cheaper where positions are few."""
    xx, cc = (jnp.einsum("sfhc,sghc->shfg", y, y.conj()) for y in (x, ct))
    return jnp.real(xx * cc).sum()


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
    return MatrixProduct(position, example, (f, tuple(x_h), tuple(x_c)), (tuple(w_h), tuple(w_c), k), shape)


# --- convolutions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """`conv_general_dilated` whose kernel is a parameter: `g[b,o,c,k] = sum_p x[b,c,p+o] * ct[b,k,p]`.

    The offsets in the kernel are processed one by one, so the patches of the input are never all in memory.
    """

    numbers: lax.ConvDimensionNumbers
    groups: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    x_dilation: tuple[int, ...]
    dilation: tuple[int, ...]
    shape: Shape

    @property
    def kernel(self) -> Shape:
        """The spatial shape of the kernel."""
        return tuple(self.shape[axis] for axis in self.numbers.rhs_spec[2:])

    def factors(self, local: Local, out_ct: Array) -> Factors:
        x = jnp.transpose(local.operands[0], self.numbers.lhs_spec)
        ct = jnp.transpose(out_ct, self.numbers.out_spec)
        return {"x": x[:, None], "ct": ct[:, None]}

    def squares(self, factors: Factors) -> Array:
        x, ct = factors["x"], factors["ct"]
        held = math.prod(x.shape[1:]) * min(math.prod(self.kernel), 2) + x.shape[1] * math.prod(self.shape)

        def of_one(x: Array, ct: Array) -> Array:
            return functools.reduce(jnp.add, (_square(g).sum() for g in self._by_offset(x, ct)))

        return by_chunks(of_one, held, x, ct)

    def gradient(self, factors: Factors) -> Array:
        g = jax.vmap(lambda x, ct: jnp.stack(self._by_offset(x, ct)))(factors["x"], factors["ct"])
        g = jnp.einsum("bosgck->bsgkco", g)
        g = g.reshape(*g.shape[:2], -1, g.shape[4], *self.kernel)
        spec = self.numbers.rhs_spec
        return jnp.transpose(g, (0, 1, *(2 + spec.index(axis) for axis in range(len(spec)))))

    def _by_offset(self, x: Array, ct: Array) -> list[Array]:
        """One example's gradient, for each offset in the kernel: axes `s, group, c, k`."""
        config = zip(self.padding, self.x_dilation, strict=True)
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 3 + [(lo, hi, d - 1) for (lo, hi), d in config])

        def at(offset: Sequence[int]) -> Array:
            starts = [o * d for o, d in zip(offset, self.dilation, strict=True)]
            spans = [(size - 1) * stride + 1 for size, stride in zip(ct.shape[3:], self.stride, strict=True)]
            limits = [start + span for start, span in zip(starts, spans, strict=True)]
            window = lax.slice(x, (0, 0, 0, *starts), (*x.shape[:3], *limits), (1, 1, 1, *self.stride))
            return jnp.einsum("sfgcp,sfgkp->sgck", self._grouped(window), self._grouped(ct))

        return [at(offset) for offset in itertools.product(*map(range, self.kernel))]

    def _grouped(self, x: Array) -> Array:
        s, f, channels = x.shape[:3]
        return x.reshape(s, f, self.groups, channels // self.groups, -1)


def _convolution(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    params = node.params
    numbers = params["dimension_numbers"]
    if position != 1 or axis_of(node.operands[0]) != numbers.lhs_spec[0] or params["batch_group_count"] != 1:
        return None
    return Convolution(
        numbers,
        params["feature_group_count"],
        tuple(params["window_strides"]),
        tuple(map(tuple, params["padding"])),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        node.operands[1].shape,
    )


# --- embedding lookups ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbeddingLookup:
    """Rows looked up in a table: `g[b,n,r] = sum of ct[b,f,r] over the f that look up row n`."""

    example: int  # axis b of the indices
    row_axes: Axes  # axes of the result that belong to a row
    mode: lax.GatherScatterMode
    shape: Shape

    def factors(self, local: Local, out_ct: Array) -> Factors:
        rows = local.operands[1]
        count, last = rows.shape[self.example], self.shape[0] - 1
        positions = [axis for axis in range(out_ct.ndim) if axis not in self.row_axes]
        order = (positions.pop(self.example), *positions, *self.row_axes)
        rows = jnp.moveaxis(rows[..., 0], self.example, 0).reshape(count, -1)
        ct = jnp.transpose(out_ct, order).reshape(*rows.shape, -1)
        if self.mode == lax.GatherScatterMode.FILL_OR_DROP:
            ct = jnp.where(((rows >= 0) & (rows <= last))[..., None], ct, jnp.zeros_like(ct))
        return {"rows": jnp.clip(rows, 0, last).astype(jnp.int32), "ct": ct}

    def squares(self, factors: Factors) -> Array:
        rows, ct = factors["rows"], factors["ct"]
        _, s, f, r = ct.shape
        if f == 1:
            return _square(ct).sum((1, 2, 3))

        def of_one(rows: Array, ct: Array) -> Array:
            same = (rows[:, :, None] == rows[:, None, :]).astype(ct.dtype)
            return jnp.real(jnp.einsum("sfg,sgr->sfr", same, ct) * ct.conj()).sum()

        return by_chunks(of_one, s * f * max(f, r), rows, ct)

    def gradient(self, factors: Factors) -> Array:
        def of_one(rows: Array, ct: Array) -> Array:
            return jnp.zeros((self.shape[0], ct.shape[-1]), ct.dtype).at[rows].add(ct)

        g = jax.vmap(jax.vmap(of_one))(factors["rows"], factors["ct"])
        return g.reshape(*g.shape[:2], *self.shape)


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
    return EmbeddingLookup(example, tuple(numbers.offset_dims), node.params["mode"], table.shape)


# --- broadcasting over examples and positions -----------------------------------------------------


@dataclass(frozen=True)
class Broadcast:
    """A parameter broadcast over examples and positions: `g[b,...] = sum_f ct[b,f,...]`."""

    position: int
    example: int  # axis b of the result
    axes: Axes  # the axes of the result that correspond to those of the parameter
    shape: Shape
    elementwise: bool  # an elementwise operation that broadcasts by itself, not `broadcast_in_dim`

    def factors(self, local: Local, out_ct: Array) -> Factors:
        ct = _elementwise_ct(local, self.position, out_ct) if self.elementwise else out_ct
        kept = {axis for axis, size in zip(self.axes, self.shape, strict=True) if size == ct.shape[axis] != 1}
        g = ct.sum(tuple(axis for axis in range(ct.ndim) if axis != self.example and axis not in kept))
        b = sum(axis in kept for axis in range(self.example))
        return {"g": jnp.moveaxis(g, b, 0).reshape(ct.shape[self.example], 1, *self.shape)}

    def squares(self, factors: Factors) -> Array:
        g = self.gradient(factors)
        return _square(g).sum(tuple(range(1, g.ndim)))

    def gradient(self, factors: Factors) -> Array:
        return factors["g"].sum(2)


def _elementwise_ct(local: Local, position: int, out_ct: Array) -> Array:
    """The cotangent of the operand as if it had the shape of the result."""
    fun, operands = node_function(local.node), list(local.operands)

    def of_operand(x: Array) -> Array:
        operands[position] = x
        return fun(*operands)[0]

    return jax.vjp(of_operand, jnp.broadcast_to(operands[position], out_ct.shape))[1](out_ct)[0]


def _broadcast(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    example = axis_of(node.outputs[0])
    axes = tuple(map(int, node.params["broadcast_dimensions"]))
    if position != 0 or example is None:
        return None
    return Broadcast(0, example, axes, node.operands[0].shape, elementwise=False)


#: Elementwise operations of several operands, which broadcast axes of length 1.
_ELEMENTWISE = frozenset({"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2", "select_n"})


def _elementwise(node: Node, position: int, axis_of: AxisOf) -> Contribution | None:
    shape, out = node.operands[position].shape, node.outputs[0].shape
    example = axis_of(node.outputs[0])
    if node.primitive not in _ELEMENTWISE or example is None:
        return None
    if shape and (len(shape) != len(out) or shape[example] != 1):
        return None
    return Broadcast(position, example, tuple(range(len(shape))), shape, elementwise=True)


# --- shared ---------------------------------------------------------------------------------------


def _square(x: Array) -> Array:
    return jnp.real(x * x.conj())


def by_chunks(fun: Callable[..., T], size: int, *arrays: Array) -> T:
    """Map a function over examples, as many at a time as `CHUNK` allows.

    Args:
        fun: A function of one example.
        size: The number of elements it holds at once.
        *arrays: Its arguments, with the examples on the first axis.
    """
    count, together = arrays[0].shape[0], max(1, CHUNK // max(size, 1))
    if together >= count:
        return jax.vmap(fun)(*arrays)
    return lax.map(lambda args: fun(*args), arrays, batch_size=together)
