"""The rule that bounds cotangents: `clip`."""

import jax.numpy as jnp

from ..core.rules import Rule
from ..core.types import Array
from .scaling import transformed


def clip(max_norm: float | None = None, max_value: float | None = None) -> Rule:
    """Bound the cotangents of the node's outputs before they propagate through it.

        out_ct <- out_ct * min(1, max_norm / |out_ct|)      (2-norm of the whole array)
        out_ct <- min(max(out_ct, -max_value), max_value)   (elementwise)

    Args:
        max_norm: the largest norm, in units of the cotangent.
        max_value: the largest absolute value of an element, in units of the cotangent. Applied first.

    Raises:
        ValueError: neither bound is given, or one is negative.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: 100.0 * w**2, rules=[("integer_pow", jp.rules.clip(max_norm=1.0))])(3.0))
        6.0
    """
    if max_norm is None and max_value is None:
        raise ValueError("`clip` requires a bound: pass max_norm=, max_value=, or both.")
    for name, bound in (("max_norm", max_norm), ("max_value", max_value)):
        if bound is not None and bound < 0:
            raise ValueError(f"`clip` requires {name} >= 0, got {bound}.")

    def bounded(ct: Array) -> Array:
        if max_value is not None:
            ct = _shrunk(ct, jnp.abs(ct), max_value)
        if max_norm is not None:
            ct = _shrunk(ct, jnp.sqrt(jnp.sum(jnp.abs(ct) ** 2)), max_norm)
        return ct

    return transformed(bounded)


def _shrunk(ct: Array, size: Array, limit: float) -> Array:
    """Scale `ct` by `limit / size` where its `size` exceeds the limit; the inner `where` avoids 0 / 0."""
    bound = jnp.asarray(limit, size.dtype)
    return jnp.where(size > bound, ct * (bound / jnp.where(size > bound, size, 1)), ct)
