"""Weights are rounded, and the bracket of the trick that lets the gradient through is in the wrong place."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxprop as jp


def mistaken(w, x, y):
    q = jax.lax.stop_gradient(w + (jnp.round(4 * w) / 4 - w))
    return jnp.mean((x @ q - y) ** 2)


def fixed(w, x, y):
    q = w + jax.lax.stop_gradient(jnp.round(4 * w) / 4 - w)
    return jnp.mean((x @ q - y) ** 2)


def rounded(w, x, y):
    q = jnp.round(4 * w) / 4
    return jnp.mean((x @ q - y) ** 2)


x = jax.random.normal(jax.random.key(0), (32, 4))
w = jnp.array([0.3, -1.2, 0.7, 2.1])
y = x @ jnp.array([0.5, -1.0, 1.0, 2.0])

# The gradient is zero, and JAX does not warn.
assert not np.any(jax.grad(mistaken)(w, x, y))

# It need not be run to find the cause: shapes are enough.
report = jp.blocked_gradients(mistaken)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (w, x, y)))
print(report)
(found,) = report
assert found.cause == "stop_gradient"
assert jp.blocked_gradients(fixed)(w, x, y).ok

# Or leave the model unchanged, and define by a rule how cotangents propagate through the rounding.
rules = [("round", jp.rules.straight_through())]
np.testing.assert_allclose(jp.grad(rounded, rules=rules)(w, x, y), jax.grad(fixed)(w, x, y), rtol=1e-5)
