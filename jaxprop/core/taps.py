"""How what is written down on the way back leaves the derivative: as cotangents of zeros.

A tap is an identity with a second argument, its carrier, that it ignores. To JAX the tap is a function whose
derivative is ours to say (`jax.custom_vjp`): what it answers as the cotangent of the carrier is what the
recorder writes. So records are ordinary results of `jax.vjp`, from inside scan, cond and remat too: no
callbacks and no global state. Carriers are never read, so they cost nothing in a compiled program.

Cotangents are floating point: integers and booleans travel as floats that hold them exactly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .types import PyTree, Steps

_CHUNK = 16  # bits of an integer that a float32 holds exactly


def encode(tree: PyTree) -> PyTree:
    """Write numbers as floats, without loss."""
    return jax.tree.map(_encode, tree)


def decode(tree: PyTree, structs: PyTree) -> PyTree:
    """The inverse of `encode`. `structs` says what the numbers were."""
    return jax.tree.map(_decode, structs, tree)


def carriers(structs: PyTree, steps: Steps) -> PyTree:
    """Zeros whose cotangents carry records of these types, `steps` of them."""
    return jax.tree.map(lambda struct: _jaxpr.zeros(_carrier(struct), steps), structs)


def _carrier(struct: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return _jaxpr.eval_shape(_encode, struct) if not _jaxpr.is_inexact(struct.dtype) else struct


def _encode(x: Any) -> Any:
    dtype = jnp.result_type(x)
    if _jaxpr.is_inexact(dtype):
        return jnp.asarray(x)
    if dtype == np.bool_:
        return jnp.asarray(x, jnp.float32)
    if not jnp.issubdtype(dtype, np.integer):
        raise TypeError(f"a recorder cannot write down {dtype} on the way back, only numbers.")
    unsigned = jnp.dtype(f"uint{max(dtype.itemsize * 8, 32)}")
    bits = jnp.asarray(x).astype(unsigned)
    mask = jnp.asarray((1 << _CHUNK) - 1, unsigned)
    chunks = [
        (jax.lax.shift_right_logical(bits, jnp.asarray(shift, unsigned)) & mask).astype(jnp.float32)
        for shift in range(0, unsigned.itemsize * 8, _CHUNK)
    ]
    return jnp.stack(chunks, axis=-1)


def _decode(struct: jax.ShapeDtypeStruct, x: Any) -> Any:
    dtype = struct.dtype
    if _jaxpr.is_inexact(dtype):
        return x
    if dtype == np.bool_:
        return x != 0
    unsigned = jnp.dtype(f"uint{max(dtype.itemsize * 8, 32)}")
    parts = x.astype(unsigned)
    bits = sum(
        jax.lax.shift_left(parts[..., i], jnp.asarray(i * _CHUNK, unsigned)) for i in range(parts.shape[-1])
    )
    return jnp.asarray(bits).astype(dtype)


def tap(x: Any, carrier: PyTree, write: Callable[[Any], PyTree]) -> Any:
    """Return `x`; where a cotangent comes back to it, let `write(ct)` leave by the carrier."""

    @jax.custom_vjp
    def tapped(x: Any, carrier: PyTree) -> Any:
        return x

    def fwd(x: Any, carrier: PyTree) -> Any:
        return x, None

    def bwd(_: None, ct: Any) -> Any:
        return ct, encode(write(ct))

    tapped.defvjp(fwd, bwd)
    return tapped(x, carrier)


def tap_all(xs: list[Any], extra: PyTree, carrier: PyTree, write: Callable[..., PyTree]) -> list[Any]:
    """Return `xs`; let `write(xs, extra, cts)` leave by the carrier, with None for a cotangent that is zero."""

    @jax.custom_vjp
    def tapped(xs: list[Any], extra: PyTree, carrier: PyTree) -> list[Any]:
        return xs

    def fwd(xs: list[Any], extra: PyTree, carrier: PyTree) -> Any:
        xs, extra = values((xs, extra))
        return xs, (xs, extra)

    def bwd(kept: Any, cts: list[Any]) -> Any:
        present = tuple(map(present_ct, cts))
        return list(present), None, encode(write(*kept, present))

    tapped.defvjp(fwd, bwd, symbolic_zeros=True)
    return tapped(xs, extra, carrier)


def values(tree: PyTree) -> PyTree:
    """The numbers in what `custom_vjp` with symbolic zeros hands to the forward half."""
    return jax.tree.map(lambda primal: primal.value, tree)


def present_ct(ct: Any) -> Any:
    """None for a cotangent that JAX knows to be zero, and for that of an integer."""
    if isinstance(ct, jax.custom_derivatives.SymbolicZero) or ct.dtype == _jaxpr.float0:
        return None
    return ct
