"""Rules that change a cotangent on its way through a node."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from .. import _jaxpr
from ..core.local import Local
from ..core.rules import Rule
from ..core.types import InCts, OutCts


def _changed(change: Callable[[Any], Any]) -> Rule:
    """The chain rule, with the cotangents of the outputs changed before it."""

    def rule(local: Local, out_cts: OutCts) -> InCts:
        return local.vjp(tuple(None if ct is None else change(ct) for ct in out_cts))

    return rule


def scale(factor: float) -> Rule:
    """Multiply cotangents that cross the node.

        in_ct[i] = factor * sum_o out_ct[o] * d out[o] / d in[i]

    Args:
        factor: a plain number, without unit.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2, rules=[("integer_pow", jp.rules.scale(10.0))])(3.0))
        60.0
    """
    return _changed(lambda ct: ct * jnp.asarray(factor, ct.dtype))


def reverse(factor: float = 1.0) -> Rule:
    """Turn cotangents round: `scale(-factor)`.

    What comes before the node climbs where what comes after it descends.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2, rules=[("integer_pow", jp.rules.reverse())])(3.0))
        -6.0

    Source: Ganin & Lempitsky, Unsupervised Domain Adaptation by Backpropagation (2015), section 3.1.
    """
    return scale(-factor)


def stop() -> Rule:
    """Let no cotangent through: `in_ct = 0`.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2 + w, rules=[("integer_pow", jp.rules.stop())])(3.0))
        1.0
    """

    def rule(local: Local, out_cts: OutCts) -> InCts:
        return (None,) * len(local.operands)

    return rule


def clip(max_norm: float | None = None, max_value: float | None = None) -> Rule:
    """Bound the cotangents of the node's outputs before they cross it.

        out_ct <- out_ct * min(1, max_norm / |out_ct|)      (2-norm of the whole array)
        out_ct <- min(max(out_ct, -max_value), max_value)   (each element)

    Args:
        max_norm: greatest norm, in units of the cotangent.
        max_value: greatest absolute value of an element, in units of the cotangent. Applied first.

    Raises:
        ValueError: neither bound is given, or one is negative.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: 100.0 * w**2, rules=[("integer_pow", jp.rules.clip(max_norm=1.0))])(3.0))
        6.0
    """
    if max_norm is None and max_value is None:
        raise ValueError("clip needs a bound: pass max_norm=, max_value=, or both.")
    for name, bound in (("max_norm", max_norm), ("max_value", max_value)):
        if bound is not None and bound < 0:
            raise ValueError(f"clip needs {name} >= 0, got {bound}.")

    def change(ct: Any) -> Any:
        if max_value is not None:
            size = jnp.abs(ct)
            bound = jnp.asarray(max_value, size.dtype)
            ct = jnp.where(size > bound, ct * (bound / jnp.where(size > bound, size, 1)), ct)
        if max_norm is not None:
            bound = jnp.asarray(max_norm, jnp.abs(ct).dtype)
            norm = jnp.sqrt(jnp.sum(jnp.abs(ct) ** 2))
            ct = jnp.where(norm > bound, ct * (bound / jnp.where(norm > bound, norm, 1)), ct)
        return ct

    return _changed(change)


def straight_through() -> Rule:
    """Let cotangents through as if the node were the identity: `in_ct = out_ct`.

    It stands in for the derivative of `round`, `sign`, `floor`, `clip` and the like, which is zero. The
    cotangent goes to every floating point operand that has the shape of the output.

    Raises:
        ValueError: no operand has the shape of the output.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> float(jp.grad(lambda w: 3.0 * jnp.round(w), rules=[("round", jp.rules.straight_through())])(0.4))
        3.0

    Source: Bengio, Leonard & Courville, Estimating or Propagating Gradients Through Stochastic Neurons (2013).
    """

    def rule(local: Local, out_cts: OutCts) -> InCts:
        (ct,) = [ct for ct in out_cts if ct is not None][:1] or (None,)
        if ct is None:
            return (None,) * len(local.operands)
        fits = [_jaxpr.is_inexact(x.dtype) and x.shape == ct.shape for x in map(jnp.asarray, local.operands)]
        if not any(fits):
            raise ValueError(
                f"straight_through cannot stand in for {local.node.where}: its output has shape {ct.shape}, "
                "and no floating point operand has that shape."
            )
        return tuple(ct.astype(x.dtype) if fit else None for x, fit in zip(local.operands, fits, strict=True))

    return rule
