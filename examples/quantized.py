"""Learn rounded weights with a straight-through rule, the model unchanged."""

import jax
import jax.numpy as jnp

import jaxprop as jp


def loss(w, x, y):
    q = jnp.round(w)
    return jnp.mean((x @ q - y) ** 2)


true = jnp.array([3.0, -2.0, 0.0, 1.0])
x = jax.random.normal(jax.random.key(0), (64, 4))
y = x @ true
w = jnp.zeros(4) + 0.1

plain = jax.grad(loss)(w, x, y)
print("jax.grad through round:", plain)
assert not plain.any()

step = jax.jit(lambda w: w - 0.05 * jp.grad(loss, rules=[("round", jp.rules.straight_through())])(w, x, y))
for _ in range(200):
    w = step(w)
print("learned:", jnp.round(w))
assert (jnp.round(w) == true).all()
