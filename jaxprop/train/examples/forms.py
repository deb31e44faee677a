"""Gradients of single examples as products of arrays, and what is computed of them without building them.

A parameter meets the examples at few kinds of nodes, and at each of them an example's gradient is a sum of
products of two arrays that the backward pass computes anyway: the operand and the cotangent. Norms (Goodfellow
2015, arXiv:1510.01799; Rochette, Manoel and Tramel 2019, arXiv:1912.06015), weighted sums (book-keeping: Bu,
Wang, Zha and Karypis 2022, arXiv:2210.00038) and inner products are computed from these factors.

Index letters, the same in docstrings and einsums:
    b, a: example    s: slice of a parameter that is scanned over    f, e: position (time, space, step of a
    scan) h: axis that operand, parameter and result share    c: axis that the node contracts    k: axis of
    the result n, r: row of a table, and element of a row    o: offset in a kernel    p: pixel
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.lax import PrecisionLike
from jaxtyping import Float, Int

from ...core.types import Array, Dtype, PyTree, Shape

T = TypeVar("T")

#: Elements that may be held at once, besides those of the backward pass: examples are processed in chunks.
CHUNK = 2**21

#: Lookups of an example that are compared pair by pair; more of them are sorted.
COMPARED = 256

#: Positions of axes.
Axes: TypeAlias = tuple[int, ...]


class Form(Protocol):
    """The gradient of an operand for each example: a pytree whose arrays begin with `b, s, f`."""

    def squares(self) -> Float[Array, " b"]:
        """Return the squared norm of each example's gradient, summed over `s`."""
        ...

    def weighted(self, weights: Float[Array, " b"]) -> Float[Array, "s ..."]:
        """Return the sum of the gradients, each times its weight, in the layout of the operand."""
        ...

    def built(self) -> Float[Array, "b s ..."]:
        """Return the gradients, in the layout of the operand."""
        ...


#: Of a field of a form that is not an array.
_STATIC = {"static": True}


# --- gradients that are built -------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Built:
    """A gradient as it is, perhaps in parts: `g[b,s,...] = sum_f parts[b,s,f,...]`."""

    parts: Float[Array, "b s f ..."]

    def squares(self) -> Array:
        g = self.built()
        return squared(g).sum(tuple(range(1, g.ndim)))

    def weighted(self, weights: Array) -> Array:
        return times(self.built(), weights).sum(0)

    def built(self) -> Array:
        return self.parts.sum(2)


# --- matrix products -----------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OuterProducts:
    """A sum of outer products: `g[b,s,h,c,k] = sum_f x[b,s,f,h,c] * ct[b,s,f,h,k]`.

    Attributes:
        axes: Those of the operand that are `h`, `c` and `k`.
        shape: Of the operand.
        precision: Of the matrix product, as JAX takes it.
    """

    x: Float[Array, "b s f h c"]
    ct: Float[Array, "b s f h k"]
    axes: tuple[Axes, Axes, Axes] = field(metadata=_STATIC)
    shape: Shape = field(metadata=_STATIC)
    precision: PrecisionLike = field(metadata=_STATIC)

    def squares(self) -> Array:
        _, s, f, h, c = self.x.shape
        k = self.ct.shape[-1]
        if s * f * h == 1:
            return squared(_matrix(self.x)).sum(1) * squared(_matrix(self.ct)).sum(1)
        if f == 1:
            return (squared(self.x).sum(-1) * squared(self.ct).sum(-1)).sum((1, 2, 3))
        if f * (c + k) <= c * k:
            return by_chunks(lambda one: jnp.real(one._gram().sum()), s * h * f * f, self)
        return by_chunks(lambda one: squared(one.products()).sum(), s * h * c * k, self)

    def _gram(self) -> Array:
        """Compute `|x.T @ ct|**2` as the sum of `(x @ x.T) * (ct @ ct.T)`: cheaper where positions are few."""
        xx, cc = (
            contract("bsfhc,bsehc->bshfe", y, y.conj(), precision=self.precision) for y in (self.x, self.ct)
        )
        return xx * cc

    def products(self) -> Float[Array, "b s h c k"]:
        """Return the gradients, not laid out."""
        b, s, _, h, _ = self.x.shape
        if s * h > 1:
            return contract("bsfhc,bsfhk->bshck", self.x, self.ct, precision=self.precision)
        x, ct = (y.reshape(b, -1, y.shape[-1]) for y in (self.x, self.ct))
        return contract("bfc,bfk->bck", x, ct, precision=self.precision)[:, None, None]

    def weighted(self, weights: Array) -> Array:
        x, ct = self.x, self.ct
        x, ct = (times(x, weights), ct) if x.size < ct.size else (x, times(ct, weights))
        _, s, _, h, _ = x.shape
        if s * h == 1:
            g = contract("nc,nk->ck", _matrix(x), _matrix(ct), precision=self.precision)[None, None]
        else:
            g = contract("bsfhc,bsfhk->shck", x, ct, precision=self.precision)
        return self._laid_out(g)

    def built(self) -> Array:
        return self._laid_out(self.products())

    def _laid_out(self, g: Float[Array, "... h c k"]) -> Float[Array, "... shape"]:
        axes = [axis for group in self.axes for axis in group]
        lead = g.ndim - 3
        g = g.reshape(*g.shape[:lead], *(self.shape[axis] for axis in axes))
        return jnp.transpose(g, (*range(lead), *(lead + axes.index(axis) for axis in range(len(axes)))))


def _matrix(x: Float[Array, "b s f h c"]) -> Float[Array, "n c"]:
    """An array as a matrix: XLA copies what it contracts if there are axes of length one in between."""
    return x.reshape(-1, x.shape[-1])


# --- rows of a table -----------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Rows looked up in a table: `g[b,s,n,r] = sum of ct[b,s,f,r] over the f that look up row n`.

    Attributes:
        shape: Of the table.
    """

    rows: Int[Array, "b s f"]
    ct: Float[Array, "b s f r"]
    shape: Shape = field(metadata=_STATIC)

    def squares(self) -> Array:
        _, s, f, r = self.ct.shape
        if f == 1:
            return squared(self.ct).sum((1, 2, 3))
        if f <= COMPARED:
            return by_chunks(lambda one: one._by_pairs(), s * f * max(f, r), self)
        return by_chunks(lambda one: squared(one._by_row()).sum(), s * f * r, self)

    def _by_pairs(self) -> Array:
        same = (self.rows[..., :, None] == self.rows[..., None, :]).astype(self.ct.dtype)
        return real_product(contract("bsfe,bser->bsfr", same, self.ct), self.ct).sum()

    def _by_row(self) -> Array:
        """The rows of the gradient that are not zero, in the order of their numbers."""

        def of_one(rows: Array, ct: Array) -> Array:
            order = jnp.argsort(rows)
            ordered = rows[order]
            place = jnp.cumsum(jnp.diff(ordered, prepend=ordered[:1]) != 0)
            return jnp.zeros_like(ct).at[place].add(ct[order], indices_are_sorted=True)

        return jax.vmap(jax.vmap(of_one))(self.rows, self.ct)

    def weighted(self, weights: Array) -> Array:
        return jax.vmap(self._scattered, 1)(self.rows, times(self.ct, weights))

    def built(self) -> Array:
        return jax.vmap(jax.vmap(self._scattered))(self.rows, self.ct)

    def _scattered(self, rows: Int[Array, "*f"], ct: Float[Array, "*f r"]) -> Array:
        g = jnp.zeros((self.shape[0], ct.shape[-1]), ct.dtype)
        return g.at[rows.reshape(-1)].add(ct.reshape(-1, ct.shape[-1])).reshape(self.shape)


# --- kernels of convolutions -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """The parameters of a convolution, its batch first."""

    numbers: lax.ConvDimensionNumbers
    groups: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    x_dilation: tuple[int, ...]
    dilation: tuple[int, ...]
    shape: Shape
    precision: PrecisionLike

    @property
    def kernel(self) -> Shape:
        """The spatial shape of the kernel."""
        return tuple(self.shape[axis] for axis in self.numbers.rhs_spec[2:])

    def __call__(self, x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            self.stride,
            self.padding,
            self.x_dilation,
            self.dilation,
            self.numbers,
            self.groups,
            precision=self.precision,
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """A kernel moved over pixels: `g[b,s,o,c,k] = sum_f sum_p x[b,s,f,c,p+o] * ct[b,s,f,k,p]`.

    The offsets in the kernel are processed one by one, so the patches of the input are not all in memory.
    """

    x: Float[Array, "b s f ..."]
    ct: Float[Array, "b s f ..."]
    geometry: Geometry = field(metadata=_STATIC)

    def squares(self) -> Array:
        shape, (_, s, f, *_) = self.geometry.shape, self.x.shape
        offsets, size = math.prod(self.geometry.kernel), math.prod(shape)
        positions = f * math.prod(self._pixels)
        c_and_k = offsets * shape[self.geometry.numbers.rhs_spec[1]] * self.geometry.groups
        c_and_k += shape[self.geometry.numbers.rhs_spec[0]]
        if positions * c_and_k <= size:
            held = s * positions * max(positions, c_and_k)
            return by_chunks(lambda one: one._as_outer_products().squares()[0], held, self)
        held = math.prod(self.x.shape[1:]) * min(offsets, 2) + s * size

        def of_one(one: Kernel) -> Array:
            return functools.reduce(jnp.add, (squared(part.products()).sum() for part in one._by_offset()))

        return by_chunks(of_one, held, self)

    def weighted(self, weights: Array) -> Array:
        kernel = jax.ShapeDtypeStruct(self.geometry.shape, self.x.dtype)

        def of_slice(x: Array, ct: Array) -> Array:
            x, ct = (y.reshape(-1, *y.shape[2:]) for y in (x, ct))
            return jax.linear_transpose(lambda w: self.geometry(x, w), kernel)(ct)[0]

        x, ct = self.x, times(self.ct, weights)
        if x.shape[1] == 1:
            return of_slice(x[:, 0], ct[:, 0])[None]
        return lax.map(lambda pair: of_slice(*pair), (jnp.swapaxes(x, 0, 1), jnp.swapaxes(ct, 0, 1)))

    def built(self) -> Array:
        (k, c, *kernel), shape = self.geometry.numbers.rhs_spec, self.geometry.shape
        g = jnp.stack([one.built() for one in self._by_offset()], 2)
        g = jnp.einsum("bsogck->bsocgk", g)
        g = g.reshape(*g.shape[:2], *self.geometry.kernel, shape[c], shape[k])
        axes = (*kernel, c, k)
        return jnp.transpose(g, (0, 1, *(2 + axes.index(axis) for axis in range(len(axes)))))

    @property
    def _pixels(self) -> Shape:
        """The spatial shape of the result."""
        return tuple(self.ct.shape[2 + axis] for axis in self.geometry.numbers.out_spec[2:])

    def _by_offset(self) -> list[OuterProducts]:
        """For each offset in the kernel a matrix product: `f` are positions and pixels, `h` the groups."""
        of = self.geometry
        ct = self._positions_first(_channels_last(self.ct, of.numbers.out_spec))
        k = ct.shape[-1]
        return [
            OuterProducts(x, ct, ((0,), (1,), (2,)), (of.groups, x.shape[-1], k), of.precision)
            for x in map(self._positions_first, self._windows())
        ]

    def _windows(self) -> list[Float[Array, "b s f *p c"]]:
        """What each offset in the kernel reads."""
        of, x = self.geometry, _channels_last(self.x, self.geometry.numbers.lhs_spec)
        config = [(lo, hi, d - 1) for (lo, hi), d in zip(of.padding, of.x_dilation, strict=True)]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * 3 + config + [(0, 0, 0)])
        spans = [(size - 1) * stride + 1 for size, stride in zip(self._pixels, of.stride, strict=True)]

        def at(offset: Sequence[int]) -> Array:
            starts = [o * d for o, d in zip(offset, of.dilation, strict=True)]
            limits = [start + span for start, span in zip(starts, spans, strict=True)]
            whole = x.shape[:3], x.shape[-1:]
            return lax.slice(
                x, (0,) * 3 + (*starts, 0), (*whole[0], *limits, *whole[1]), (1,) * 3 + (*of.stride, 1)
            )

        return [at(offset) for offset in itertools.product(*map(range, of.kernel))]

    def _positions_first(self, x: Float[Array, "b s f *p channels"]) -> Float[Array, "b s fp g c"]:
        groups = self.geometry.groups
        return x.reshape(*x.shape[:2], -1, groups, x.shape[-1] // groups)

    def _as_outer_products(self) -> OuterProducts:
        """The same with all patches in memory."""
        parts = self._by_offset()
        x = jnp.concatenate([part.x for part in parts], -1)
        groups, _, k = parts[0].shape
        return replace(parts[0], x=x, shape=(groups, x.shape[-1], k))


def _channels_last(x: Float[Array, "b s f ..."], spec: Sequence[int]) -> Float[Array, "b s f *p channels"]:
    return jnp.transpose(x, (0, 1, 2, *(2 + axis for axis in (*spec[2:], spec[1]))))


# --- inner products ----------------------------------------------------------------------------------------


def inner(one: Form, other: Form, size: int) -> Float[Array, "a b"]:
    """Return the inner products of each gradient of one form with each of another, of the same operand.

    Args:
        one, other: The gradients, in the same layout.
        size: The number of elements of one gradient.
    """
    if isinstance(one, Rows) and isinstance(other, Rows):
        return _inner_of_rows(one, other)
    if isinstance(one, OuterProducts) and isinstance(other, OuterProducts) and one.axes == other.axes:
        (_, s, f, h, c), e, k = one.x.shape, other.x.shape[2], one.ct.shape[-1]
        if f * e * (c + k) <= c * k:
            return _inner_by_positions(one, other, other.x.shape[0] * s * h * f * e)

    def with_all(one: Form) -> Float[Array, " b"]:
        g = one.built()[0]
        return by_chunks(lambda other: jnp.sum(real_product(other.built()[0], g)), size, other)

    return by_chunks(with_all, size, one)


def _inner_by_positions(one: OuterProducts, other: OuterProducts, held: int) -> Array:
    def with_all(one: OuterProducts) -> Float[Array, " b"]:
        xx = contract("asfhc,bsehc->bsfeh", one.x, other.x.conj(), precision=one.precision)
        cc = contract("asfhk,bsehk->bsfeh", one.ct, other.ct.conj(), precision=one.precision)
        return jnp.real(xx * cc).sum((1, 2, 3, 4))

    return by_chunks(with_all, held, one)


def _inner_of_rows(one: Rows, other: Rows) -> Array:
    b, s, e, _ = other.ct.shape

    def with_all(one: Rows) -> Float[Array, " b"]:
        same = one.rows[0, None, :, :, None] == other.rows[:, :, None, :]
        cc = contract("asfr,bser->bsfe", one.ct, other.ct.conj())
        return jnp.real(jnp.where(same, cc, 0)).sum((1, 2, 3))

    return by_chunks(with_all, b * s * one.ct.shape[2] * e, one)


def products_of_tied(table: Rows, product: OuterProducts) -> Float[Array, " b"]:
    """Return each example's inner product of its gradients of a table: as one looked up, and as a matrix.

        sum over f, e of x[b,e,rows[b,f]] * (ct_e[b,e] . ct_f[b,f])

    Args:
        table: From the lookups.
        product: From the matrix products, with `c` the rows of the table.
    """

    def of_one(one: tuple[Rows, OuterProducts]) -> Array:
        table, product = one
        read = jnp.take_along_axis(product.x[:, :, :, 0], table.rows[:, :, None], -1)  # b s e f
        cc = contract("bsek,bsfk->bsef", product.ct[:, :, :, 0], table.ct.conj())
        return real_product(cc, read).sum()

    s, f, e = table.rows.shape[1], table.rows.shape[2], product.x.shape[2]
    return by_chunks(of_one, s * f * e, (table, product))


# --- shared ------------------------------------------------------------------------------------------------


def widest(*dtypes: Dtype) -> Dtype:
    """Return the type that holds numbers of all of these, whatever JAX's own promotion is set to."""
    with jax.numpy_dtype_promotion("standard"):
        return functools.reduce(jnp.promote_types, [jnp.dtype(dtype) for dtype in dtypes])


def wide(*dtypes: Dtype) -> Dtype:
    """Return the same, float32 at least: what squares and sums are computed in."""
    return widest(np.dtype(np.float32), *dtypes)


def squared(x: Array) -> Array:
    """Return `|x|**2`, in float32 at least."""
    x = x.astype(wide(x.dtype))
    return real_product(x, x)


def real_product(x: Array, y: Array) -> Array:
    """Return the real part of `x` times the conjugate of `y`."""
    dtype = widest(x.dtype, y.dtype)
    return jnp.real(x.astype(dtype) * y.astype(dtype).conj())


def times(x: Float[Array, "b ..."], weights: Float[Array, " b"]) -> Float[Array, "b ..."]:
    """Return an array with what belongs to each example times its weight."""
    return x * weights.astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def contract(spec: str, x: Array, y: Array, precision: PrecisionLike = None) -> Array:
    """Contract two arrays of perhaps different types, accumulated in float32 at least."""
    dtype = widest(x.dtype, y.dtype)
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(spec, x, y, precision=precision, preferred_element_type=wide(dtype))


def by_chunks(fun: Callable[..., T], size: int, batch: PyTree) -> T:
    """Map a function over examples, as many at a time as `CHUNK` allows.

    Args:
        fun: A function of a batch of one example; `batch` with its first axes of length one.
        size: The number of elements it holds at once.
        batch: Arrays with the examples on the first axis.
    """

    def of_one(one: PyTree) -> T:
        return fun(jax.tree.map(lambda x: x[None], one))

    count, together = jax.tree.leaves(batch)[0].shape[0], max(1, CHUNK // max(size, 1))
    if together >= count:
        return jax.vmap(of_one)(batch)
    return lax.map(of_one, batch, batch_size=together)
