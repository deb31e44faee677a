"""Gradient estimators for operations whose derivative is zero: `straight_through`."""

import jax.numpy as jnp

from .. import _jaxpr
from ..core.local import Local
from ..core.rules import Rule
from ..core.types import InCts, OutCts


def straight_through() -> Rule:
    """Propagate cotangents as if the node were the identity: `in_ct = out_ct`.

    It replaces the derivative of `round`, `sign`, `floor`, `clip` and similar operations, which is zero almost
    everywhere. The cotangent is passed to every floating point operand with the shape of the output.

    Raises:
        ValueError: no operand has the shape of the output.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> float(jp.grad(lambda w: 3.0 * jnp.round(w), rules=[("round", jp.rules.straight_through())])(0.4))
        3.0

    Source: Bengio, Leonard & Courville, Estimating or Propagating Gradients Through Stochastic Neurons (2013).
    """

    def rule(local: Local, out_cts: OutCts) -> InCts:
        ct = next((ct for ct in out_cts if ct is not None), None)
        if ct is None:
            return (None,) * len(local.operands)
        fits = [_jaxpr.is_inexact(x.dtype) and x.shape == ct.shape for x in map(jnp.asarray, local.operands)]
        if not any(fits):
            raise ValueError(
                f"`straight_through` cannot be applied to {local.node.where}: its output has shape {ct.shape}, "
                "and no floating point operand has that shape."
            )
        return tuple(ct.astype(x.dtype) if fit else None for x, fit in zip(local.operands, fits, strict=True))

    return rule
