"""Functions to draw in tests. Their numbers are exact in float32, so the pictures are the same everywhere."""

import jax
import jax.numpy as jnp

import jaxprop as jp


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


def hidden(params, x, y):
    z1 = x @ params["w1"] + params["b1"]
    h = jax.nn.relu(z1)
    with jax.named_scope("head"):
        y_hat = h @ params["w2"]
        residual = y_hat - y
    return jnp.sum(residual**2)


def recurrent(w, xs, target):
    def step(h, x):
        pre = w * h
        h = pre + x
        return h, h * h

    last, squares = jax.lax.scan(step, jnp.float32(1.0), xs)
    with jax.named_scope("choose"):
        chosen = jax.lax.cond(last > 0, lambda a: 2.0 * a, lambda a: -a, last)
    return (chosen - target) ** 2 + squares[0]


def worked_tape():
    return jp.backprop(loss)(1.0, 1.0, 2.0)


def hidden_args():
    params = {
        "w1": jnp.array([[1.0, -2.0, 0.5], [2.0, 1.0, -1.0]]),
        "b1": jnp.array([0.0, 1.0, 2.0]),
        "w2": jnp.array([1.0, -1.0, 2.0]),
    }
    x = jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    return params, x, jnp.array([1.0, 4.0])


def hidden_tape():
    return jp.backprop(hidden)(*hidden_args())


def recurrent_tape():
    return jp.backprop(recurrent)(2.0, jnp.array([1.0, -1.0, 2.0]), jnp.float32(3.0))


TAPES = {"worked": worked_tape, "hidden": hidden_tape, "recurrent": recurrent_tape}
