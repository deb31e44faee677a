"""Rules that multiply cotangents by a constant: `scale`, `reverse` and `stop`."""

from collections.abc import Callable

import jax.numpy as jnp

from ..core.local import Local
from ..core.rules import Rule
from ..core.types import Array, InCts, OutCts


def transformed(change: Callable[[Array], Array]) -> Rule:
    """The chain rule, applied to changed cotangents of the outputs: `local.vjp(change(out_cts))`."""

    def rule(local: Local, out_cts: OutCts) -> InCts:
        return local.vjp(tuple(None if ct is None else change(ct) for ct in out_cts))

    return rule


def scale(factor: float) -> Rule:
    """Multiply the cotangents that propagate through the node.

        in_ct[i] = factor * sum_o out_ct[o] * d out[o] / d in[i]

    Args:
        factor: a plain number, dimensionless.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2, rules=[("integer_pow", jp.rules.scale(10.0))])(3.0))
        60.0
    """
    return transformed(lambda ct: ct * jnp.asarray(factor, ct.dtype))


def reverse(factor: float = 1.0) -> Rule:
    """Reverse the sign of the cotangents: the same as `scale(-factor)`.

    The parameters before the node then ascend the loss that the parameters after it descend.

    Args:
        factor: a plain number, dimensionless.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2, rules=[("integer_pow", jp.rules.reverse())])(3.0))
        -6.0

    Source: Ganin & Lempitsky, Unsupervised Domain Adaptation by Backpropagation (2015), section 3.1.
    """
    return scale(-factor)


def stop() -> Rule:
    """Stop cotangents at the node: `in_ct = 0`.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2 + w, rules=[("integer_pow", jp.rules.stop())])(3.0))
        1.0
    """

    def rule(local: Local, out_cts: OutCts) -> InCts:
        return (None,) * len(local.operands)

    return rule
