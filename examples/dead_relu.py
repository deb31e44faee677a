"""A network killed by a learning rate that is far too high: which relu, how many units, what to do."""

import jax
import jax.numpy as jnp

import jaxprop as jp


def make(activation):
    def loss(params, x, y):
        h = activation(x @ params["w1"] + params["b1"])
        y_hat = (h @ params["w2"] + params["b2"])[:, 0]
        return jnp.mean((y_hat - y) ** 2)

    return loss


keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.uniform(keys[0], (64, 4))
y = jnp.sum(x, axis=1)
start = {
    "w1": jax.random.normal(keys[1], (4, 32)) * (2 / 4) ** 0.5,
    "b1": jnp.zeros(32),
    "w2": jax.random.normal(keys[2], (32, 1)) * (1 / 32) ** 0.5,
    "b2": jnp.zeros(1),
}
loss = make(jax.nn.relu)
assert jp.blocked_gradients(loss)(start, x, y).ok

params = start
for _ in range(3):  # each step overshoots
    params = jax.tree.map(lambda p, g: p - 1.0 * g, params, jax.grad(loss)(params, x, y))

report = jp.blocked_gradients(loss)(params, x, y)
print(report)
assert {found.cause for found in report if found.severity != "note"} >= {"dead relu"}

leaky = jp.blocked_gradients(make(jax.nn.leaky_relu))(params, x, y)
print(leaky)
assert leaky.ok
