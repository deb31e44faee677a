"""The table of numerically stable forms: the expression that breaks, and the one to write instead.

Both are Python expressions. Names stand for what is there in the program:

- `x`, `y`: any sub-expression, its value an array;
- `axis`, `keepdims`: keywords, left out where they are not given;
- `f(x)`: the operation in question as it is written, whatever it is, and the argument in question;
- `eps`, `edge`, `big`, `huge`: numbers that depend on the dtype (`CONSTANTS`).

A form is offered only where it was tried (`trial`): a row need not hold for all numbers, but where both
expressions are finite they must agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StableForm:
    """An expression that may produce NaN or Inf, and a stable one that equals it wherever both are finite.

    Attributes:
        name: what the stable form is called.
        broken: the expression to replace, in the spelling of `jax.numpy`.
        stable: what to write instead.

    Examples:
        >>> from jaxprop.diagnosis import StableForm
        >>> StableForm("log1p", "jnp.log(1 + x)", "jnp.log1p(x)").stable
        'jnp.log1p(x)'
    """

    name: str
    broken: str
    stable: str


#: The numbers that depend on the dtype: `eps` is added under a root, `edge` is the distance kept from 1, `big`
#: the largest argument of an exponential, `huge` a large finite number in place of infinity.
CONSTANTS: Mapping[str, Mapping[str, str]] = {
    "float16": {"eps": "1e-6", "edge": "1e-3", "big": "10.0", "huge": "1e4"},
    "bfloat16": {"eps": "1e-12", "edge": "1e-2", "big": "80.0", "huge": "1e9"},
    "float32": {"eps": "1e-12", "edge": "1e-6", "big": "80.0", "huge": "1e9"},
    "float64": {"eps": "1e-24", "edge": "1e-12", "big": "700.0", "huge": "1e30"},
}


def constants_for(dtype: np.dtype) -> Mapping[str, str]:
    """Return the numbers for a dtype, as text; those of float32 for a dtype that has none of its own."""
    return CONSTANTS.get(dtype.name, CONSTANTS["float32"])


# --- one operation in place of several -------------------------------------------------------------

LOG_SUM_EXP = StableForm(
    "log-sum-exp",
    "jnp.log(jnp.sum(jnp.exp(x), axis=axis, keepdims=keepdims))",
    "jax.nn.logsumexp(x, axis=axis, keepdims=keepdims)",
)
LOG_SOFTMAX = StableForm(
    "log-softmax", "jnp.log(jax.nn.softmax(x, axis=axis))", "jax.nn.log_softmax(x, axis=axis)"
)
LOG_SOFTMAX_BY_HAND = StableForm(
    "log-softmax",
    "jnp.log(jnp.exp(x) / jnp.sum(jnp.exp(x), axis=axis, keepdims=keepdims))",
    "jax.nn.log_softmax(x, axis=axis)",
)
SOFTMAX = StableForm(
    "softmax",
    "jnp.exp(x) / jnp.sum(jnp.exp(x), axis=axis, keepdims=keepdims)",
    "jax.nn.softmax(x, axis=axis)",
)
SOFTPLUS = StableForm("softplus", "jnp.log(1 + jnp.exp(x))", "jax.nn.softplus(x)")
SOFTPLUS_BY_LOG1P = StableForm("softplus", "jnp.log1p(jnp.exp(x))", "jax.nn.softplus(x)")
SIGMOID = StableForm("sigmoid", "1 / (1 + jnp.exp(-x))", "jax.nn.sigmoid(x)")
SIGMOID_OF_MINUS = StableForm("sigmoid", "1 / (1 + jnp.exp(x))", "jax.nn.sigmoid(-x)")
LOG_SIGMOID = StableForm("log-sigmoid", "jnp.log(jax.nn.sigmoid(x))", "jax.nn.log_sigmoid(x)")
LOG_ONE_MINUS_SIGMOID = StableForm("log-sigmoid", "jnp.log(1 - jax.nn.sigmoid(x))", "jax.nn.log_sigmoid(-x)")
LOG_ONE_MINUS_TANH2 = StableForm(
    "log-det of tanh",
    "jnp.log(1 - jnp.tanh(x) ** 2)",
    "2.0 * (jnp.log(2.0) - x - jax.nn.softplus(-2.0 * x))",
)
LOG1P = StableForm("log1p", "jnp.log(1 + x)", "jnp.log1p(x)")
DIVIDED_BY_LOG1P = StableForm("log1p", "y / jnp.log(1 + x)", "y / jnp.log1p(x)")
EXPM1 = StableForm("expm1", "jnp.exp(x) - 1", "jnp.expm1(x)")
DIVIDED_BY_EXPM1 = StableForm("expm1", "y / (jnp.exp(x) - 1)", "y / jnp.expm1(x)")
SINC = StableForm("sinc", "jnp.sin(x) / x", "jnp.sinc(x / jnp.pi)")
ARCTAN2 = StableForm("arctan2", "jnp.arctan(y / x)", "jnp.arctan2(y, x)")
SLOGDET = StableForm("slogdet", "jnp.log(jnp.linalg.det(x))", "jnp.linalg.slogdet(x)[1]")
SLOGDET_OF_ABS = StableForm("slogdet", "jnp.log(jnp.abs(jnp.linalg.det(x)))", "jnp.linalg.slogdet(x)[1]")
TIMES_LOG = StableForm(
    "x log x", "x * jnp.log(y)", "jnp.where(x != 0, x * jnp.log(jnp.where(x != 0, y, 1.0)), 0.0)"
)
XLOGY = StableForm(
    "x log y",
    "jax.scipy.special.xlogy(x, y)",
    "jnp.where(x != 0, jax.scipy.special.xlogy(x, jnp.where(x != 0, y, 1.0)), 0.0)",
)
XLOG1PY = StableForm(
    "x log1p y",
    "jax.scipy.special.xlog1py(x, y)",
    "jnp.where(x != 0, jax.scipy.special.xlog1py(x, jnp.where(x != 0, y, 0.0)), 0.0)",
)

# --- a small number added --------------------------------------------------------------------------

SAFE_NORM = StableForm(
    "safe norm",
    "jnp.linalg.norm(x, axis=axis, keepdims=keepdims)",
    "jnp.where((sq := jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims)) > 0, "
    "jnp.sqrt(jnp.where(sq > 0, sq, 1.0)), 0.0)",
)
STD_WITH_EPS = StableForm(
    "eps under the root",
    "jnp.std(x, axis=axis, keepdims=keepdims)",
    "jnp.sqrt(jnp.var(x, axis=axis, keepdims=keepdims) + eps)",
)
SQRT_WITH_EPS = StableForm("eps under the root", "jnp.sqrt(x)", "jnp.sqrt(x + eps)")
NORM_WITH_EPS = StableForm(
    "eps under the root",
    "jnp.linalg.norm(x, axis=axis, keepdims=keepdims)",
    "jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims) + eps)",
)
RSQRT_WITH_EPS = StableForm("eps under the root", "jax.lax.rsqrt(x)", "jax.lax.rsqrt(x + eps)")
DIVIDED_BY_SQRT = StableForm("eps under the root", "y / jnp.sqrt(x)", "y / jnp.sqrt(x + eps)")
DIVIDED_BY_NORM = StableForm(
    "eps under the root",
    "y / jnp.linalg.norm(x, axis=axis, keepdims=keepdims)",
    "y / jnp.sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims) + eps)",
)
DIVIDED_BY_STD = StableForm(
    "eps under the root",
    "y / jnp.std(x, axis=axis, keepdims=keepdims)",
    "y / jnp.sqrt(jnp.var(x, axis=axis, keepdims=keepdims) + eps)",
)
JITTER = StableForm("jitter on the diagonal", "f(x)", "f(x + 1e-6 * jnp.eye(x.shape[-1], dtype=x.dtype))")
MORE_JITTER = StableForm("jitter on the diagonal", "f(x)", "f(x + 1e-4 * jnp.eye(x.shape[-1], dtype=x.dtype))")

# --- an operand kept inside the domain -------------------------------------------------------------

CLIP_ABOVE_ZERO = StableForm("clipping", "f(x)", "f(jnp.maximum(x, eps))")
CLIP_TO_ONE = StableForm("clipping", "f(x)", "f(jnp.clip(x, -1 + edge, 1 - edge))")
CLIP_ABOVE_ONE = StableForm("clipping", "f(x)", "f(jnp.maximum(x, 1 + edge))")
CLIP_ABOVE_MINUS_ONE = StableForm("clipping", "f(x)", "f(jnp.maximum(x, -1 + edge))")
CLIP_SECOND_ABOVE_MINUS_ONE = StableForm(
    "clipping", "jax.scipy.special.xlog1py(x, y)", "jax.scipy.special.xlog1py(x, jnp.maximum(y, -1 + edge))"
)
CLIP_EXPONENT = StableForm("clipping", "f(x)", "f(jnp.minimum(x, big))")
FINITE_MASK = StableForm("finite mask", "f(x)", "f(jnp.maximum(x, -huge))")

# --- the double where ------------------------------------------------------------------------------

WHERE_INSIDE_ONE = StableForm(
    "double where",
    "f(x)",
    "jnp.where(jnp.abs(x) < 1, f(jnp.where(jnp.abs(x) < 1, x, 0.0)), jax.lax.stop_gradient(f(x)))",
)
WHERE_ABOVE_ONE = StableForm("double where", "f(x)", "jnp.where(x > 1, f(jnp.where(x > 1, x, 2.0)), 0.0)")
WHERE_FACTOR = StableForm("double where", "y * x", "jnp.where(y != 0, y * jnp.where(y != 0, x, 1.0), 0.0)")
WHERE_POSITIVE = StableForm("double where", "f(x)", "jnp.where(x > 0, f(jnp.where(x > 0, x, 1.0)), 0.0)")
WHERE_NONZERO = StableForm("double where", "f(x)", "jnp.where(x != 0, f(jnp.where(x != 0, x, 1.0)), 0.0)")
WHERE_ABOVE_MINUS_ONE = StableForm(
    "double where", "f(x)", "jnp.where(x > -1, f(jnp.where(x > -1, x, 0.0)), 0.0)"
)
WHERE_DIVISOR = StableForm("double where", "y / x", "jnp.where(x != 0, y / jnp.where(x != 0, x, 1.0), 0.0)")
WHERE_REMAINDER = StableForm("double where", "y % x", "jnp.where(x != 0, y % jnp.where(x != 0, x, 1.0), 0.0)")
WHERE_LARGE_DIVISOR = StableForm(
    "double where", "y / x", "jnp.where(jnp.abs(x) > eps, y / jnp.where(jnp.abs(x) > eps, x, 1.0), 0.0)"
)
WHERE_ANGLE = StableForm(
    "double where", "jnp.arctan2(y, x)", "jnp.arctan2(y, jnp.where((x == 0) & (y == 0), 1.0, x))"
)
WHERE_NOT_NAN = StableForm("double where", "f(x)", "f(jnp.where(jnp.isnan(x), 0.0, x))")
WHERE_NAN_KEPT = StableForm(
    "double where", "f(x)", "jnp.where(jnp.isnan(x), jnp.nan, f(jnp.where(jnp.isnan(x), 0.0, x)))"
)
WHERE_FINITE = StableForm("double where", "f(x)", "f(jnp.where(jnp.isfinite(x), x, 0.0))")

#: All of them.
STABLE_FORMS: tuple[StableForm, ...] = (
    LOG_SUM_EXP,
    LOG_SOFTMAX,
    LOG_SOFTMAX_BY_HAND,
    SOFTMAX,
    SOFTPLUS,
    SOFTPLUS_BY_LOG1P,
    SIGMOID,
    SIGMOID_OF_MINUS,
    LOG_SIGMOID,
    LOG_ONE_MINUS_SIGMOID,
    LOG_ONE_MINUS_TANH2,
    LOG1P,
    DIVIDED_BY_LOG1P,
    EXPM1,
    DIVIDED_BY_EXPM1,
    SINC,
    ARCTAN2,
    SLOGDET,
    SLOGDET_OF_ABS,
    TIMES_LOG,
    XLOGY,
    XLOG1PY,
    SAFE_NORM,
    STD_WITH_EPS,
    SQRT_WITH_EPS,
    NORM_WITH_EPS,
    RSQRT_WITH_EPS,
    DIVIDED_BY_SQRT,
    DIVIDED_BY_NORM,
    DIVIDED_BY_STD,
    JITTER,
    MORE_JITTER,
    CLIP_ABOVE_ZERO,
    CLIP_TO_ONE,
    CLIP_ABOVE_ONE,
    CLIP_ABOVE_MINUS_ONE,
    CLIP_SECOND_ABOVE_MINUS_ONE,
    CLIP_EXPONENT,
    FINITE_MASK,
    WHERE_INSIDE_ONE,
    WHERE_ABOVE_ONE,
    WHERE_FACTOR,
    WHERE_POSITIVE,
    WHERE_NONZERO,
    WHERE_ABOVE_MINUS_ONE,
    WHERE_DIVISOR,
    WHERE_REMAINDER,
    WHERE_LARGE_DIVISOR,
    WHERE_ANGLE,
    WHERE_NOT_NAN,
    WHERE_NAN_KEPT,
    WHERE_FINITE,
)
