"""In which precision does this loss work? Cotangents that underflow, the scale that fixes it, lost digits."""

import jax
import jax.numpy as jnp

import jaxprop as jp


def loss(w, x, y):
    y_hat = x @ w
    error = y_hat - y
    return jnp.mean(error**2)


keys = jax.random.split(jax.random.key(0), 2)
x = jax.random.normal(keys[0], (4096, 8)) * 1e-3
w = jax.random.normal(keys[1], (8,))
y = x @ w + 1e-3

# In float16 the cotangents, of the order of 1e-7 * 1e-3, are below the smallest number there is.
half = jp.precision(loss, jnp.float16)(w, x, y)
print(half)
(underflow,) = [finding for finding in half if finding.kind == "underflow"]
assert half.scale > 1

# The scale it advises fixes it: the gradient of the scaled loss, divided in float32.
low = [a.astype(jnp.float16) for a in (w, x, y)]
true = jax.grad(loss)(w, x, y)


def off(gradient):
    return float(jnp.linalg.norm(gradient.astype(jnp.float32) - true) / jnp.linalg.norm(true))


plain = jax.grad(loss)(*low)
scaled = jax.grad(lambda *args: loss(*args) * half.scale)(*low).astype(jnp.float32) / half.scale
print(f"\nerror of the gradient in float16: {off(plain):.3f}, with the loss scaled: {off(scaled):.3f}")
assert off(scaled) < off(plain)


# bfloat16 has the range of float32, so nothing underflows. But it has two digits and a half.
def shifted(w, x):
    h = x @ w + 100.0
    centred = h - jnp.mean(h)
    return jnp.mean(centred**2)


brain = jp.precision(shifted, jnp.bfloat16)(w, x)
print(f"\n{brain}")
assert brain.scale == 1
(digits,) = brain
assert (digits.kind, digits.node, digits.cause) == ("digits", "centred", "cancellation")
assert brain.gradient["w"] > 0.9
