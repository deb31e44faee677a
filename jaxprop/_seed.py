"""Seeds: the cotangents that a backward pass starts from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _jaxpr
from ._tracing import Traced
from .core.types import Array, PyTree

#: The seed of a scalar: created once the result is known, in its type (which mesh axes it varies over).
ONE = object()


def seed_of(traced: Traced, cotangent: PyTree | None, holomorphic: bool) -> list[Array]:
    """The initial cotangents (seed), one for each output that is not aux.

    Raises:
        TypeError: the output is not a scalar and there is no cotangent, or it has another structure or dtype.
        ValueError: the cotangent has another shape.
    """
    name = traced.name
    outs = [_jaxpr.struct_of(var) for var in traced.program.jaxpr.outvars[: traced.outputs.count]]
    if cotangent is None:
        return [_scalar_seed(name, traced, outs, holomorphic)]
    leaves, tree = jax.tree.flatten(cotangent, is_leaf=lambda x: x is None)
    if tree != traced.outputs.tree:
        raise TypeError(
            f"`cotangent` has the structure {tree}, but `{name}` returns {traced.outputs.tree}. A cotangent "
            "has the structure of its primal."
        )
    return [_seed_leaf(name, ct, out) for ct, out in zip(leaves, outs, strict=True)]


def _seed_leaf(name: str, ct: Any, out: jax.ShapeDtypeStruct) -> PyTree:
    if ct is None or not _jaxpr.is_inexact(out.dtype):
        return None
    if np.shape(ct) != out.shape:
        raise ValueError(
            f"`cotangent` has shape {np.shape(ct)}, but `{name}` returns shape {out.shape}. A cotangent has "
            "the shape of its primal."
        )
    given = getattr(ct, "dtype", None)
    if given is not None and jax.dtypes.canonicalize_dtype(given) != given:
        raise TypeError(
            f"`cotangent` is {given}, which JAX would downcast to {jax.dtypes.canonicalize_dtype(given)} "
            "because x64 is disabled. Set `jax.config.update('jax_enable_x64', True)` at startup, or pass "
            f"{out.dtype}."
        )
    dtype = jnp.result_type(ct)
    if dtype != out.dtype and not isinstance(ct, bool | int | float | complex):
        raise TypeError(
            f"`cotangent` is {dtype}, but `{name}` returns {out.dtype}. A cotangent has the dtype of its "
            f"primal: pass `cotangent.astype({out.dtype})`."
        )
    return jnp.asarray(ct, out.dtype)


def _scalar_seed(name: str, traced: Traced, outs: list[jax.ShapeDtypeStruct], holomorphic: bool) -> PyTree:
    if len(outs) != 1 or outs[0].shape != ():
        shapes = ", ".join(f"{out.dtype}{list(out.shape)}" for out in outs) or "nothing"
        raise TypeError(
            f"a gradient requires a scalar-output function, but `{name}` returned {shapes}. Reduce it to one "
            "number, for instance with `jnp.mean` or `jnp.sum`; for a pair (value, aux) pass has_aux=True; or "
            "pass `cotangent=`, shaped like the result, to `backprop`."
        )
    dtype = outs[0].dtype
    if jnp.issubdtype(dtype, np.complexfloating) and not holomorphic:
        raise TypeError(
            f"a gradient requires a real-valued function, but `{name}` returned {dtype}. For a holomorphic "
            "function pass holomorphic=True; otherwise take `jnp.real` or `jnp.abs` of the result."
        )
    if holomorphic and not jnp.issubdtype(dtype, np.complexfloating):
        raise TypeError(
            f"holomorphic=True requires a function with complex outputs, but `{name}` returned {dtype}."
        )
    if not _jaxpr.is_inexact(dtype):
        raise TypeError(
            f"a gradient requires a floating-point output, but `{name}` returned {dtype}, which has no "
            "derivative."
        )
    return ONE
