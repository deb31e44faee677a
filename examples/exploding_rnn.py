"""A recurrence whose gradient explodes: which loop, its growth per step, and what helps."""

import jax
import jax.numpy as jnp

import jaxprop as jp

STEPS, WIDTH = 40, 16


def loss(params, xs, target):
    def step(h, x):
        h = jnp.tanh(params["recurrent"] @ h + params["input"] @ x)
        return h, None

    last, _ = jax.lax.scan(step, jnp.zeros(WIDTH), xs)
    return jnp.mean((last - target) ** 2)


keys = jax.random.split(jax.random.key(0), 3)
xs = 1e-3 * jax.random.normal(keys[0], (STEPS, 4))
target = jnp.ones(WIDTH)
wide = {
    "recurrent": 1.5 * jnp.linalg.qr(jax.random.normal(keys[1], (WIDTH, WIDTH)))[0],
    "input": 1e-6 * jax.random.normal(keys[2], (WIDTH, 4)),
}

report = jp.gradient_flow(loss)(wide, xs, target)
print(report)
(found,) = report
assert found.kind == "exploding"
assert "recurrent" in found.leaves[0] + found.leaves[1]

# An orthogonal matrix preserves norms: each step has a gain of one.
orthogonal = {**wide, "recurrent": wide["recurrent"] / 1.5}
report = jp.gradient_flow(loss)(orthogonal, xs, target)
print(report)
assert report.ok
assert abs(report.loops[0].gain - 1.0) < 1e-2
