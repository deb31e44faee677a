"""Taps return what is recorded in the backward pass as cotangents of unused zero arguments.

A tap is an identity with a second argument, its carrier, that it ignores. To JAX the tap is a function with a
custom derivative (`jax.custom_vjp`): what it returns as the cotangent of the carrier is the record. So records
are ordinary results of `jax.vjp`, from inside scan, cond and remat too: no callbacks and no global state.
Carriers are never read, so they cost nothing in a compiled program.

Cotangents are floating point: integers and booleans travel as floats that hold them exactly.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from .. import _jaxpr
from .types import Array, Dtype, OutCts, PyTree, Steps

_CHUNK = 16  # bits of an integer in one float32, which holds up to 24 exactly; 16 divides 32 and 64


def tap(
    outputs: Sequence[Array], kept: PyTree, carrier: PyTree, write: Callable[[PyTree, OutCts], PyTree]
) -> list[Array]:
    """Return `outputs`; let `write(kept, out_cts)` leave the backward pass as the cotangent of the carrier.

    `out_cts` has None for a cotangent that JAX knows to be zero; `write` is not called where all of them are.
    """
    # Where there is one output, JAX does not call the backward function for a cotangent that is zero.
    symbolic = len(outputs) > 1

    def identity(outputs: Sequence[Array], kept: PyTree, carrier: PyTree) -> Sequence[Array]:
        return outputs

    def forward(outputs: PyTree, kept: PyTree, carrier: PyTree) -> tuple[Sequence[Array], PyTree]:
        return (primals(outputs), primals(kept)) if symbolic else (outputs, kept)

    def backward(kept: PyTree, cts: Sequence[Array]) -> tuple[PyTree, None, PyTree]:
        present = tuple(map(present_ct, cts))
        return list(present), None, encode(write(kept, present))

    tapped = jax.custom_vjp(identity)
    tapped.defvjp(forward, backward, symbolic_zeros=symbolic)
    return list(tapped(list(outputs), kept, carrier))


def primals(tree: PyTree) -> PyTree:
    """The arrays in what `custom_vjp` with symbolic zeros passes to the forward function."""
    return jax.tree.map(lambda primal: primal.value, tree)


def present_ct(ct: Array | SymbolicZero) -> Array | None:
    """A cotangent; None for one that JAX knows to be zero, and for that of an integer."""
    if isinstance(ct, SymbolicZero) or ct.dtype == _jaxpr.float0:
        return None
    return ct


# --- carriers ---------------------------------------------------------------------------------------------


def carriers(struct: PyTree, steps: Steps) -> PyTree:
    """Zeros whose cotangents carry records of these types out, `steps` of them."""
    return jax.tree.map(lambda leaf: _jaxpr.zeros(_carrier(leaf), steps), struct)


def _carrier(struct: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return struct if _jaxpr.is_inexact(struct.dtype) else _jaxpr.eval_shape(_encode, struct)


def encode(tree: PyTree) -> PyTree:
    """Write numbers as floats, without loss."""
    return jax.tree.map(_encode, tree)


def decode(tree: PyTree, struct: PyTree) -> PyTree:
    """Read numbers written by `encode`; `struct` has their types."""
    return jax.tree.map(_decode, struct, tree)


def _encode(x: ArrayLike) -> Array:
    dtype: Dtype = jnp.result_type(x)
    if _jaxpr.is_inexact(dtype):
        return x if isinstance(x, jax.Array) else jnp.asarray(x)
    if dtype == np.bool_:
        return jnp.asarray(x, jnp.float32)
    if dtype is None or not jnp.issubdtype(dtype, np.integer):
        raise TypeError(f"a recorder cannot record {dtype} in the backward pass, only numbers.")
    unsigned = _unsigned(dtype)
    bits = jnp.asarray(x).astype(unsigned)
    mask = jnp.asarray((1 << _CHUNK) - 1, unsigned)
    chunks = [
        (jax.lax.shift_right_logical(bits, jnp.asarray(shift, unsigned)) & mask).astype(jnp.float32)
        for shift in range(0, unsigned.itemsize * 8, _CHUNK)
    ]
    return jnp.stack(chunks, axis=-1)


def _decode(struct: jax.ShapeDtypeStruct, x: Array) -> Array:
    dtype = struct.dtype
    if _jaxpr.is_inexact(dtype):
        return x
    if dtype == np.bool_:
        return x != 0
    unsigned = _unsigned(dtype)
    parts = x.astype(unsigned)
    bits = sum(
        jax.lax.shift_left(parts[..., i], jnp.asarray(i * _CHUNK, unsigned)) for i in range(parts.shape[-1])
    )
    return jnp.asarray(bits).astype(dtype)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return jnp.dtype(f"uint{max(dtype.itemsize * 8, 32)}")
