"""What one node adds to each example's gradient of one parameter, without building that gradient.

A parameter meets the examples at few kinds of nodes: products of matrices, convolutions, look-ups of rows, and
elementwise operations by which it is spread over the examples. There each example's gradient is a product of
two arrays that the backward pass has at hand anyway, the operand and the cotangent. Norms are taken from
these factors (Goodfellow 2015, arXiv:1510.01799; Rochette, Manoel and Tramel 2019, arXiv:1912.06015).

Index letters, the same everywhere:
    b: example    s: slice of a parameter that a scan goes through    f: position (time, space, step of a scan)
    h: axis that operand, parameter and result share    c: axis summed over by the node    k: axis of the result
    n, r: row of a table, and what is in a row    o: place in a kernel    p: place in a picture
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ...core.graph import Node, Value
from ...core.local import Local, node_function
from ...core.rules import Rule
from ...core.types import Array, InCts, OutCts

#: Numbers that may be laid out at once, beyond what the backward pass holds: examples are taken in such chunks.
CHUNK = 2**21

#: Arrays a gradient is built from. `Part.read` gives axes `b, f, ...`; in the end they are `b, s, f, ...`.
Factors: TypeAlias = Mapping[str, Array]
#: The axis that counts the examples; None for a value that is the same for all.
AxisOf: TypeAlias = Callable[[Value], int | None]


class Part(Protocol):
    """A node that reads a parameter, taken apart."""

    def read(self, local: Local, out_ct: Array) -> Factors:
        """Take the factors, in the backward pass."""
        ...

    def squares(self, factors: Factors) -> Array:
        """The squared norm of each example's gradient of the operand, summed over `s`: axis `b`."""
        ...

    def gradient(self, factors: Factors) -> Array:
        """Each example's gradient of the operand: axes `b, s`, then its own."""
        ...


def part_of(node: Node, position: int, axis_of: AxisOf) -> Part | None:
    """How a node is taken apart with respect to one operand, the same for all examples; None: not known."""
    if len(node.outputs) != 1 or axis_of(node.outputs[0]) is None:
        return None
    makers = {
        "dot_general": _product,
        "conv_general_dilated": _convolution,
        "gather": _rows,
        "broadcast_in_dim": _broadcast,
    }
    return makers.get(node.primitive, _elementwise)(node, position, axis_of)


# --- products of matrices -------------------------------------------------------------------------


@dataclass(frozen=True)
class Product:
    """`dot_general` of something with a parameter: `g[b,h,c,k] = sum_f x[b,f,h,c] * ct[b,f,h,k]`."""

    position: int
    example: int  # axis b of the other operand
    x_axes: tuple[tuple[int, ...], ...]  # of the other operand: f, h, c
    w_axes: tuple[tuple[int, ...], ...]  # of the parameter: h, c, k
    shape: tuple[int, ...]

    def read(self, local: Local, out_ct: Array) -> Factors:
        x = local.operands[1 - self.position]
        f, h, c = self.x_axes
        count = x.shape[self.example]
        sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (f, h, c)]
        x_factor = jnp.transpose(x, (self.example, *f, *h, *c)).reshape(count, *sizes)
        # Axes of the result: h, those of the left operand that are left over, those of the right.
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
            return by_chunks(_through_positions, s * h * f * f, x, ct)
        return by_chunks(lambda x, ct: _square(_product_of(x, ct)).sum(), s * h * c * k, x, ct)

    def gradient(self, factors: Factors) -> Array:
        g = jax.vmap(_product_of)(factors["x"], factors["ct"])
        axes = [axis for axes in self.w_axes for axis in axes]
        g = g.reshape(*g.shape[:2], *(self.shape[axis] for axis in axes))
        return jnp.transpose(g, (0, 1, *(2 + axes.index(axis) for axis in range(len(axes)))))


def thin(node: Node, part: Product) -> Rule | None:
    """The chain rule of a product, with the axes of length one of its operand left out; None: there are none.

    An example that is a batch of one leaves such an axis in every layer. XLA lays cotangents out anew because
    of it, which costs an MLP a quarter of its step.
    """
    other = 1 - part.position
    shape = node.operands[other].shape
    ones = [axis for axis in part.x_axes[0] if shape[axis] == 1]
    if not ones or node.params.get("out_sharding") is not None:
        return None
    left = [axis for axis in range(len(shape)) if axis not in ones]
    numbers = tuple(
        tuple(tuple(map(left.index, axes)) if i == other else axes for i, axes in enumerate(pair))
        for pair in node.params["dimension_numbers"]
    )
    run = functools.partial(lax.dot_general, **{**node.params, "dimension_numbers": numbers})

    def product(*operands: Array) -> Array:
        return run(*(lax.squeeze(x, ones) if i == other else x for i, x in enumerate(operands)))

    def rule(local: Local, out_cts: OutCts) -> InCts:
        (ct,) = out_cts  # the only one: called where one comes
        assert ct is not None
        out, pull = jax.vjp(product, *local.operands)
        return pull(jnp.reshape(ct, out.shape))

    return rule


def _product_of(x: Array, ct: Array) -> Array:
    return jnp.einsum("sfhc,sfhk->shck", x, ct)


def _through_positions(x: Array, ct: Array) -> Array:
    """`|x.T @ ct|**2` as the sum of `(x @ x.T) * (ct @ ct.T)`: cheaper where positions are few."""
    xx, cc = (jnp.einsum("sfhc,sghc->shfg", y, y.conj()) for y in (x, ct))
    return _real(xx * cc).sum()


def _product(node: Node, position: int, axis_of: AxisOf) -> Part | None:
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
    return Product(position, example, (f, tuple(x_h), tuple(x_c)), (tuple(w_h), tuple(w_c), k), shape)


# --- convolutions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convolution:
    """`conv_general_dilated` whose kernel is a parameter: `g[b,o,c,k] = sum_p x[b,c,p+o] * ct[b,k,p]`.

    Places in the kernel are taken one by one, so the patches of the input are never laid out together.
    """

    numbers: Any
    groups: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    x_dilation: tuple[int, ...]
    dilation: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.shape[axis] for axis in self.numbers.rhs_spec[2:])

    def read(self, local: Local, out_ct: Array) -> Factors:
        x = jnp.transpose(local.operands[0], self.numbers.lhs_spec)
        ct = jnp.transpose(out_ct, self.numbers.out_spec)
        return {"x": x[:, None], "ct": ct[:, None]}

    def squares(self, factors: Factors) -> Array:
        x, ct = factors["x"], factors["ct"]
        laid_out = math.prod(x.shape[1:]) * min(math.prod(self.kernel), 2) + x.shape[1] * math.prod(self.shape)
        return by_chunks(lambda x, ct: sum(_square(g).sum() for g in self._places(x, ct)), laid_out, x, ct)

    def gradient(self, factors: Factors) -> Array:
        g = jax.vmap(lambda x, ct: jnp.stack(self._places(x, ct)))(factors["x"], factors["ct"])
        g = jnp.einsum("bosgck->bsgkco", g)
        g = g.reshape(*g.shape[:2], -1, g.shape[4], *self.kernel)
        spec = self.numbers.rhs_spec
        return jnp.transpose(g, (0, 1, *(2 + spec.index(axis) for axis in range(len(spec)))))

    def _places(self, x: Array, ct: Array) -> list[Array]:
        """One example's gradient, for each place in the kernel: axes `s, group, c, k`."""
        config = zip(self.padding, self.x_dilation, strict=True)
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 3 + [(lo, hi, d - 1) for (lo, hi), d in config])

        def at(place: Sequence[int]) -> Array:
            starts = [o * d for o, d in zip(place, self.dilation, strict=True)]
            spans = [(size - 1) * stride + 1 for size, stride in zip(ct.shape[3:], self.stride, strict=True)]
            limits = [start + span for start, span in zip(starts, spans, strict=True)]
            window = lax.slice(x, (0, 0, 0, *starts), (*x.shape[:3], *limits), (1, 1, 1, *self.stride))
            return jnp.einsum("sfgcp,sfgkp->sgck", self._grouped(window), self._grouped(ct))

        return [at(place) for place in _places_of(self.kernel)]

    def _grouped(self, x: Array) -> Array:
        s, f, channels = x.shape[:3]
        return x.reshape(s, f, self.groups, channels // self.groups, -1)


def _places_of(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for size in sizes:
        found = [(*place, i) for place in found for i in range(size)]
    return found


def _convolution(node: Node, position: int, axis_of: AxisOf) -> Part | None:
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


# --- rows of a table ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Rows looked up in a table: `g[b,n,r] = sum of ct[b,f,r] over the f that look up row n`."""

    example: int  # axis b of the indices
    offsets: tuple[int, ...]  # axes of the result that are those of a row
    mode: Any
    shape: tuple[int, ...]

    def read(self, local: Local, out_ct: Array) -> Factors:
        rows = local.operands[1]
        count, last = rows.shape[self.example], self.shape[0] - 1
        positions = [axis for axis in range(out_ct.ndim) if axis not in self.offsets]
        order = (positions.pop(self.example), *positions, *self.offsets)
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
            return _real(jnp.einsum("sfg,sgr->sfr", same, ct) * ct.conj()).sum()

        return by_chunks(of_one, s * f * max(f, r), rows, ct)

    def gradient(self, factors: Factors) -> Array:
        def of_one(rows: Array, ct: Array) -> Array:
            return jnp.zeros((self.shape[0], ct.shape[-1]), ct.dtype).at[rows].add(ct)

        g = jax.vmap(jax.vmap(of_one))(factors["rows"], factors["ct"])
        return g.reshape(*g.shape[:2], *self.shape)


def _rows(node: Node, position: int, axis_of: AxisOf) -> Part | None:
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
    return Rows(example, tuple(numbers.offset_dims), node.params["mode"], table.shape)


# --- spread over examples and positions -----------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A parameter spread over examples and positions: `g[b,...] = sum_f ct[b,f,...]`."""

    position: int
    example: int  # axis b of the result
    axes: tuple[int, ...]  # the axes of the result that those of the parameter become
    shape: tuple[int, ...]
    elementwise: bool  # an operation that spreads it by itself, not `broadcast_in_dim`

    def read(self, local: Local, out_ct: Array) -> Factors:
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
    """The cotangent of the operand, were it laid out over all of the result."""
    fun, operands = node_function(local.node), list(local.operands)

    def of(x: Array) -> Array:
        operands[position] = x
        return fun(*operands)[0]

    return jax.vjp(of, jnp.broadcast_to(operands[position], out_ct.shape))[1](out_ct)[0]


def _broadcast(node: Node, position: int, axis_of: AxisOf) -> Part | None:
    example = axis_of(node.outputs[0])
    axes = tuple(map(int, node.params["broadcast_dimensions"]))
    if position != 0 or example is None:
        return None
    return Spread(0, example, axes, node.operands[0].shape, elementwise=False)


#: Operations that act element by element on several operands, and spread those of size 1.
_ELEMENTWISE = frozenset({"add", "add_any", "sub", "mul", "div", "max", "min", "pow", "atan2", "select_n"})


def _elementwise(node: Node, position: int, axis_of: AxisOf) -> Part | None:
    shape, out = node.operands[position].shape, node.outputs[0].shape
    example = axis_of(node.outputs[0])
    if node.primitive not in _ELEMENTWISE or example is None:
        return None
    if shape and (len(shape) != len(out) or shape[example] != 1):
        return None
    return Spread(position, example, tuple(range(len(shape))), shape, elementwise=True)


# --- shared ---------------------------------------------------------------------------------------


def _square(x: Array) -> Array:
    return _real(x * x.conj())


def _real(x: Array) -> Array:
    return x.real if jnp.iscomplexobj(x) else x


def by_chunks(fun: Callable[..., Any], size: int, *arrays: Array) -> Any:
    """Map over examples, so many at once that what one lays out (`size` numbers) stays within `CHUNK`."""
    count, together = arrays[0].shape[0], max(1, CHUNK // max(size, 1))
    if together >= count:
        return jax.vmap(fun)(*arrays)
    return lax.map(lambda args: fun(*args), arrays, batch_size=together)
