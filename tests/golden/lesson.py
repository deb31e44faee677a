"""The functions of the kept explanations. Their line numbers stand in the files beside this one."""

import jax
import jax.numpy as jnp


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


def fan_out(w, x):
    a = w * x
    b = jnp.sin(a)
    c = a * b
    return c - a


def recurrent(w, xs):
    def step(h, x):
        h = jnp.tanh(w * h + x)
        return h, None

    last, _ = jax.lax.scan(step, 0.5, xs)
    return last**2


def choice(w, x):
    z = w * x
    y = jax.lax.cond(z > 0, lambda u: 3.0 * u, lambda u: -u, z)
    return y**2


def hidden_layer(params, x, y):
    z = x @ params["w1"] + params["b1"]
    h = jnp.tanh(z)
    y_hat = h @ params["w2"]
    e = y_hat - y
    return jnp.mean(e**2)
