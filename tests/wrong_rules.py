"""Wrong rules, as data: each is planted in a small loss, and must be found and ranked first.

A case has a name, the function with the wrong rule (its name is that of the node), what it is called with, the
operand whose cotangent is wrong, and the cause that must be told. Most are mistakes people make; where one is
known from a report, the report is named.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Wrong(NamedTuple):
    """A function with a wrong rule: `make()` builds it, `shapes` are those of its arguments."""

    name: str
    make: Callable[[], Callable[..., Any]]
    shapes: tuple[tuple[int, ...], ...]
    cause: str


def vjp(fun, bwd, fwd=None, **options):
    """`fun` with a reverse rule `bwd(operands, ct)`."""
    f = jax.custom_vjp(fun, **options)
    f.defvjp(fwd or (lambda *xs: (fun(*xs), xs)), bwd)
    return f


def sign_flipped():
    def wrong(x):
        return jnp.cos(x)

    return vjp(wrong, lambda xs, ct: (ct * jnp.sin(xs[0]),))


def factor_two():
    def wrong(x):
        return x**2

    return vjp(wrong, lambda xs, ct: (ct * xs[0],))


def half_a_percent():
    def wrong(x):
        return jnp.exp(x)

    return vjp(wrong, lambda xs, ct: (1.005 * ct * jnp.exp(xs[0]),))


def forgot_a_term():
    def wrong(x):
        return x * jnp.sin(x)

    return vjp(wrong, lambda xs, ct: (ct * jnp.sin(xs[0]),))


def transposed():
    def wrong(x, w):
        return x @ w

    return vjp(wrong, lambda xs, ct: (ct @ xs[1], xs[0].T @ ct))


def mean_over_the_batch():
    def wrong(x, b):
        return x + b[None]

    return vjp(wrong, lambda xs, ct: (ct, jnp.mean(ct, 0)))


def broadcast_not_summed():
    def wrong(x, b):
        return x + b[None]

    return vjp(wrong, lambda xs, ct: (ct, ct[0]))


def wrong_operand():
    def wrong(x, y):
        return x * y

    return vjp(wrong, lambda xs, ct: (ct * xs[0], ct * xs[1]))


def swapped_cotangents():
    def wrong(x, y):
        return jnp.sin(x) * jnp.exp(y)

    def bwd(xs, ct):
        x, y = xs
        return ct * jnp.sin(x) * jnp.exp(y), ct * jnp.cos(x) * jnp.exp(y)

    return vjp(wrong, bwd)


def returns_the_primal():
    def wrong(x):
        return jnp.tanh(x)

    return vjp(wrong, lambda xs, ct: (ct * jnp.tanh(xs[0]),))


def squares_the_cotangent():
    """Nx, PR 1779: clip gave g**2; three tests passed, because all of them used sum (cotangent 1)."""

    def wrong(x):
        return jnp.clip(x, -0.5, 0.5)

    inside = lambda x: (jnp.abs(x) < 0.5).astype(x.dtype)  # noqa: E731
    return vjp(wrong, lambda xs, ct: (ct**2 * inside(xs[0]),))


def ignores_the_cotangent():
    def wrong(x):
        return jnp.sin(x)

    return vjp(wrong, lambda xs, ct: (jnp.cos(xs[0]),))


def wrong_axis():
    def wrong(x):
        return jax.nn.softmax(x, axis=-1)

    def bwd(xs, ct):
        y = jax.nn.softmax(xs[0], axis=-1)
        return (y * (ct - jnp.sum(ct * y, axis=0, keepdims=True)),)

    return vjp(wrong, bwd)


def stops_the_gradient():
    def wrong(x):
        return jnp.sin(x)

    def bwd(xs, ct):
        _, pull = jax.vjp(lambda x: jnp.sin(jax.lax.stop_gradient(x)), *xs)
        return pull(ct)

    return vjp(wrong, bwd)


def squares_the_tangent():
    """JAX cannot transpose it: the gradient of the whole fails, with a line in JAX."""

    @jax.custom_jvp
    def wrong(x):
        return jnp.sin(x)

    @wrong.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return wrong(x), jnp.cos(x) * t**2

    return wrong


def wrong_where_negative():
    def wrong(x):
        return jax.nn.leaky_relu(x, 0.1)

    return vjp(wrong, lambda xs, ct: (jnp.where(xs[0] > 0, ct, 0.2 * ct),))


def forgets_an_output():
    """A rule for symbolic zeros that gives up where one of the two cotangents is zero."""

    def wrong(x):
        return jnp.sin(x), jnp.cos(x)

    def fwd(x):
        return wrong_primal(x.value), x.value

    def bwd(x, cts):
        ct, other = cts
        if any(isinstance(c, jax.custom_derivatives.SymbolicZero) for c in (ct, other)):
            return (jnp.zeros_like(x),)
        return (ct * jnp.cos(x) - other * jnp.sin(x),)

    wrong_primal, f = wrong, jax.custom_vjp(wrong)
    f.defvjp(fwd, bwd, symbolic_zeros=True)
    return f


def adds_to_the_tangent():
    """A jvp rule that is not linear in the tangent: the reverse mode does not see what is added."""

    @jax.custom_jvp
    def wrong(x):
        return jnp.sin(x)

    @wrong.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        return wrong(x), jnp.cos(x) * t + 0.5

    return wrong


def wrong_static_argument():
    """`nondiff_argnums` come first in `bwd`: the power was read from the wrong place."""

    def wrong(power, x):
        return x**power

    f = jax.custom_vjp(wrong, nondiff_argnums=(0,))
    f.defvjp(lambda power, x: (x**power, x), lambda power, x, ct: (2 * ct * x ** (power - 1),))
    return lambda x: f(3, x)


def shifted_by_one():
    """A cumulative sum, whose transpose runs from the other end."""

    def wrong(x):
        return jnp.cumsum(x, axis=0)

    return vjp(wrong, lambda xs, ct: (jnp.cumsum(ct, axis=0),))


def not_finite():
    def wrong(x):
        return x**2

    return vjp(wrong, lambda xs, ct: (ct * jnp.sqrt(xs[0] ** 2 - 100.0),))


def one_element():
    """Only the first element is wrong."""

    def wrong(x):
        return 3.0 * x

    return vjp(wrong, lambda xs, ct: ((3.0 * ct).at[0, 0].set(0.0),))


def detached_statistics():
    """A layer norm that takes mean and deviation for constants."""

    def wrong(x):
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5)

    def bwd(xs, ct):
        x = xs[0] - jnp.mean(xs[0], -1, keepdims=True)
        return (ct * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5),)

    return vjp(wrong, bwd)


X, SQUARE = (4, 3), (3, 3)
WRONG = (
    Wrong("sign flipped", sign_flipped, (X,), "sign"),
    Wrong("factor two", factor_two, (X,), "factor"),
    Wrong("half a percent", half_a_percent, (X,), "factor"),
    Wrong("forgot a term", forgot_a_term, (X,), "differs"),
    Wrong("transposed weight", transposed, (X, SQUARE), "differs"),
    Wrong("mean over the batch", mean_over_the_batch, (X, (3,)), "factor"),
    Wrong("broadcast not summed", broadcast_not_summed, (X, (3,)), "differs"),
    Wrong("wrong operand", wrong_operand, (X, X), "operands"),
    Wrong("swapped cotangents", swapped_cotangents, (X, X), "operands"),
    Wrong("returns the primal", returns_the_primal, (X,), "differs"),
    Wrong("squares the cotangent", squares_the_cotangent, (X,), "not linear"),
    Wrong("ignores the cotangent", ignores_the_cotangent, (X,), "not linear"),
    Wrong("wrong axis", wrong_axis, (X,), "differs"),
    Wrong("stops the gradient", stops_the_gradient, (X,), "zero"),
    Wrong("squares the tangent", squares_the_tangent, (X,), "fails"),
    Wrong("wrong where negative", wrong_where_negative, (X,), "some elements"),
    Wrong("forgets an output", forgets_an_output, (X,), "zero"),
    Wrong("adds to the tangent", adds_to_the_tangent, (X,), "not linear"),
    Wrong("wrong static argument", wrong_static_argument, (X,), "factor"),
    Wrong("runs the wrong way", shifted_by_one, (X,), "differs"),
    Wrong("not finite", not_finite, (X,), "not finite"),
    Wrong("one element", one_element, (X,), "some elements"),
    Wrong("detached statistics", detached_statistics, (X,), "differs"),
)
