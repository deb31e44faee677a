"""Records as results: they can be differentiated, and cost nothing where nobody asks; JAX by hand is the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprop as jp

X = jnp.array([0.3, -0.2, 0.7])


def loss(w):
    a = jnp.sin(w)
    b = a**2
    return jnp.sum(b * w)


def scanned(w):
    def step(h, x):
        h = jnp.tanh(h * w + x)
        return h, h

    last, hs = lax.scan(step, jnp.zeros(3), jnp.stack([X, 2 * X]))
    return jnp.sum(last * w) + jnp.sum(hs**2)


def hidden_states(w):
    h1 = jnp.tanh(X)
    return jnp.stack([h1, jnp.tanh(h1 * w + 2 * X)])


def branched(w):
    def yes(w):
        a = jnp.sin(w)
        return a**3

    return jnp.sum(lax.cond(w[0] > 0, yes, lambda w: w, w))


def checkpointed(w):
    def body(w):
        a = jnp.sin(w)
        return a**3

    return jnp.sum(jax.checkpoint(body)(w))


# name: (a quantity from a tape, the same by hand)
QUANTITIES = {
    "a value": (lambda w: jp.backprop(loss)(w)["a"].value, jnp.sin),
    "a cotangent": (lambda w: jp.backprop(loss)(w)["a"].cotangent, lambda w: 2 * jnp.sin(w) * w),
    "the gradient": (lambda w: jp.backprop(loss)(w).grads, jax.grad(loss)),
    "shares": (lambda w: jp.backprop(loss)(w).shares("w").total, jax.grad(loss)),
    "one share": (lambda w: jp.backprop(loss)(w).shares("w")["mul"], lambda w: jnp.sin(w) ** 2),
    "a local vjp": (
        lambda w: jp.backprop(loss)(w).local("b", wrt="a").vjp(jnp.ones(3)),
        lambda w: 2 * jnp.sin(w),
    ),
    "a local jvp": (lambda w: jp.backprop(loss)(w).local("b", wrt="a").jvp(X), lambda w: 2 * jnp.sin(w) * X),
    "a diagonal": (lambda w: jp.backprop(loss)(w).local("b", wrt="w").diagonal(), lambda w: jnp.sin(2 * w)),
    "a Jacobian": (
        lambda w: jp.backprop(loss)(w).local("b", wrt="w").jacobian(),
        lambda w: jnp.diag(jnp.sin(2 * w)),
    ),
    "a norm": (
        lambda w: jp.backprop(loss, record=jp.summary)(w)["a"].value.norm,
        lambda w: jnp.linalg.norm(jnp.sin(w)),
    ),
    "a maximum": (
        lambda w: jp.backprop(loss, record=jp.summary)(w)["a"].value.max,
        lambda w: jnp.max(jnp.sin(w)),
    ),
    "the norm of a cotangent": (
        lambda w: jp.backprop(loss, record=jp.summary)(w)["a"].cotangent.norm,
        lambda w: jnp.linalg.norm(2 * jnp.sin(w) * w),
    ),
    "a recorded value": (
        lambda w: jp.backprop(loss, record=jp.Recorder.each(jnp.sum))(w)["a"].value,
        lambda w: jnp.sum(jnp.sin(w)),
    ),
    "values in a scan": (lambda w: jp.backprop(scanned)(w)["h"].value, hidden_states),
    "norms in a scan": (
        lambda w: jp.backprop(scanned, record=jp.summary)(w)["h"].value.norm,
        lambda w: jnp.linalg.norm(hidden_states(w), axis=-1),
    ),
    "a value in a branch": (lambda w: jp.backprop(branched)(w)["a"].value, jnp.sin),
    "a cotangent in a branch": (
        lambda w: jp.backprop(branched)(w)["a"].cotangent,
        lambda w: 3 * jnp.sin(w) ** 2,
    ),
    "a value in a checkpoint": (lambda w: jp.backprop(checkpointed)(w)["a"].value, jnp.sin),
    "a cotangent in a checkpoint": (
        lambda w: jp.backprop(checkpointed)(w)["a"].cotangent,
        lambda w: 3 * jnp.sin(w) ** 2,
    ),
    "a gradient by a rule": (
        lambda w: jp.grad(loss, rules=[("sin", jp.rules.scale(2.0))])(w),
        lambda w: 4 * jnp.sin(w) * jnp.cos(w) * w + jnp.sin(w) ** 2,
    ),
}


def squared(quantity):
    return lambda w: jnp.sum(
        jnp.sin(quantity(w)) * jnp.arange(1.0, 1.0 + quantity(w).size).reshape(quantity(w).shape)
    )


@pytest.mark.parametrize("name", QUANTITIES)
def test_derivatives_of(name, key):
    ours, by_hand = map(squared, QUANTITIES[name])
    t = jax.random.normal(key, (3,))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)  # noqa: E731
    close(ours(X), by_hand(X))
    close(jax.grad(ours)(X), jax.grad(by_hand)(X))
    close(jax.jit(jax.grad(ours))(X), jax.grad(by_hand)(X))
    close(jax.jvp(ours, (X,), (t,))[1], jax.jvp(by_hand, (X,), (t,))[1])
    batch = jnp.stack([X, 0.5 * X])
    close(jax.vmap(jax.grad(ours))(batch), jax.vmap(jax.grad(by_hand))(batch))


TWICE = ("a value", "shares", "a local vjp", "values in a scan", "a cotangent in a branch")


@pytest.mark.parametrize("name", TWICE)
def test_second_derivatives_of(name):
    ours, by_hand = map(squared, QUANTITIES[name])
    np.testing.assert_allclose(jax.hessian(ours)(X), jax.hessian(by_hand)(X), rtol=2e-4, atol=2e-5)


def test_recording_costs_nothing_where_nobody_differentiates():
    """The values of a scan leave it as results anyway: no residual is kept for their derivative."""
    w, xs = jnp.eye(64) * 0.5, jnp.ones((256, 8, 64))

    def recurrent(w, xs):
        def step(h, x):
            h = jnp.tanh(h @ w + x)
            return h, jnp.sum(h**2)

        return jnp.sum(lax.scan(step, xs[0], xs)[1])

    def compiled(fun):
        return jax.jit(fun).lower(w, xs).compile()

    plain = compiled(jax.value_and_grad(recurrent))
    watched = compiled(jp.backprop(recurrent, record=jp.summary))
    stacked = xs.size * xs.dtype.itemsize
    assert (
        watched.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes + stacked / 4
    )


@pytest.mark.parametrize("size", [1_000, 100_000])
def test_statistics_of_constant_cotangents_are_not_left_to_the_compiler(size):
    """XLA evaluates what is constant at compile time, element by element: ten seconds for a million elements."""

    def mean(w, x):
        y = w * x
        return jnp.mean(y)  # its cotangent is 1/n everywhere

    def reductions(fun, *args):
        return jax.jit(fun).lower(*args).compile().as_text().count(" reduce(")

    x = jnp.ones(size)
    constant = reductions(jp.backprop(mean, record=jp.summary), x, x)

    def with_seed(w, x, seed):
        return jp.backprop(mean, record=jp.summary, cotangent=seed)(w, x)

    assert constant == reductions(with_seed, x, x, jnp.float32(1.0)) > 0
