"""Every parameter of an opened form, in every form JAX accepts it: the gradient is that of `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprop as jp

X, W = jnp.ones((2, 3)) * 0.5, jnp.eye(3) + 0.1


def remat(**options):
    def body(x, w):
        return jnp.tanh(x @ w + jnp.array([[1.0, 2.0, 3.0]]))  # closes over an array

    return lambda w, x: jnp.sum(jax.checkpoint(body, **options)(x, w) ** 2)


def scan(**options):
    def loss(w, x):
        def step(carry, row):
            return jnp.tanh(carry @ w + row), jnp.sum(carry)

        carry, ys = lax.scan(step, x[0], x, **options)
        return jnp.sum(carry) + jnp.sum(ys)

    return loss


def switch(index):
    branches = [lambda a, w: a @ w, lambda a, w: jnp.tanh(a), lambda a, w: a * 2.0]
    return lambda w, x: jnp.sum(lax.switch(index, branches, x, w) ** 2)


def jitted(**options):
    return lambda w, x: jnp.sum(jax.jit(lambda x, w: jnp.tanh(x @ w), **options)(x, w))


dots = jax.checkpoint_policies.dots_saveable
FORMS = {
    **{f"remat, prevent_cse={p}": remat(prevent_cse=p) for p in (True, False, (False, True), (True, False))},
    "remat, a policy": remat(policy=dots),
    "remat, a policy and prevent_cse by operand": remat(policy=dots, prevent_cse=(False, True)),
    **{f"scan, {o}": scan(**o) for o in ({}, {"unroll": 2}, {"unroll": True}, {"reverse": True})},
    "scan, split transpose": scan(_split_transpose=True),
    **{f"switch {i!r}": switch(i) for i in (0, 2, 5, -3)},
    "switch, a traced index": switch(jnp.uint8(1)),
    "jit, inline": jitted(inline=True),
    "jit, keep_unused": jitted(keep_unused=True),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_gradient_and_the_records_of(name):
    loss = FORMS[name]
    expected = jax.grad(loss, argnums=(0, 1))(W, X)
    tape = jp.backprop(loss, argnums=(0, 1))(W, X)
    jax.tree.map(np.testing.assert_array_equal, tape.grads, expected)
    summary = jax.jit(jp.backprop(loss, argnums=(0, 1), record=jp.summary))(W, X)
    for name in ("w", "x"):
        norm = np.linalg.norm(tape[name].cotangent)
        np.testing.assert_allclose(summary[name].cotangent.norm, norm, rtol=1e-5)


KEYS = {
    "scan": lambda w: lax.scan(
        lambda c, _: ((c[0] * w, jax.random.split(c[1])[0]), None), (1.0, jax.random.key(0)), None, length=3
    )[0][0],
    "cond": lambda w: lax.cond(
        w > 0, lambda w, k: (w * 2.0, k), lambda w, k: (w, jax.random.split(k)[0]), w, jax.random.key(0)
    )[0],
    "remat": lambda w: jax.checkpoint(lambda w, k: (w * 2.0, jax.random.split(k)[0]))(w, jax.random.key(0))[0],
}


RECORDERS = {"full": None, "summary": jp.summary, "each": jp.Recorder.each(jnp.max, jnp.max)}


@pytest.mark.parametrize("record", RECORDERS)
@pytest.mark.parametrize("form", KEYS)
def test_a_random_key_leaves_beside_a_float(form, record):
    loss, record = KEYS[form], RECORDERS[record]
    for run in (jp.backprop(loss, record=record), jax.jit(jp.backprop(loss, record=record))):
        assert float(run(2.0).grads) == float(jax.grad(loss)(2.0))


CARRIES = {
    "int32": jnp.arange(3),
    "bool": jnp.array([True, False]),
    "bfloat16": jnp.ones(2, jnp.bfloat16),
    "float8": jnp.ones(2, jnp.float8_e4m3fn),
    "int4": jnp.ones(2, jnp.int4),
    "uint8": jnp.ones(2, jnp.uint8),
    "complex64": jnp.ones(2, jnp.complex64) * 1j,
    "empty": jnp.zeros((0, 2)),
    "keys": jax.random.split(jax.random.key(0)),
}


@pytest.mark.parametrize("kind", CARRIES)
def test_a_carry_of_another_type(kind):
    other = CARRIES[kind]

    def loss(w):
        def step(carry, _):
            return (carry[0] * w, carry[1]), carry[1]

        (x, _), _ = lax.scan(step, (jnp.float32(1.0), other), None, length=2)
        return x

    for record in (None, jp.summary):
        tape = jp.backprop(loss, record=record, nodes="*")(jnp.float32(2.0))
        assert float(tape.grads) == 4.0 and str(tape)


def test_an_integer_argument_is_differentiated_if_allowed():
    def loss(w, i):
        return jnp.sum(w[i] * w)

    args = W, jnp.array([0, 2, 1])
    expected = jax.grad(loss, argnums=(0, 1), allow_int=True)(*args)
    for transform in (lambda f: f, jax.jit):
        tape = transform(jp.backprop(loss, argnums=(0, 1), allow_int=True))(*args)
        np.testing.assert_allclose(tape.grads[0], expected[0])
        assert tape.grads[1].dtype == expected[1].dtype and "i" not in tape


def test_a_plain_number_handed_through_jit_stays_weakly_typed():
    power = jax.jit(lambda x, n: x**n)
    loss = lambda x, n: jnp.sum(power(x, n))  # noqa: E731
    np.testing.assert_array_equal(jp.backprop(loss)(X, 0).grads, jax.grad(loss)(X, 0))


def test_contributions_through_a_reduction_of_several_arrays():
    def loss(w):
        a, b = w * 2.0, w * 3.0
        totals = lax.reduce((a, b), (0.0, 0.0), lambda p, q: (p[0] + q[0], p[1] + q[1]), (0, 1))
        return totals[0] * totals[1]

    tape = jp.backprop(loss)(W)
    for name in ("a", "b"):
        np.testing.assert_allclose(tape.shares(name).total, tape[name].cotangent, rtol=1e-6)
        np.testing.assert_array_equal(
            tape.local(f"reduce[{'ab'.index(name)}]", wrt=name).jacobian(), np.ones((3, 3))
        )


def test_contributions_in_a_branch_not_taken_are_zero():
    def loss(u):
        def yes(u):
            q = lax.top_k(u + 1.0, 3)[0]
            r = q / jnp.sum(q)
            return jnp.sum(r * r)

        return lax.cond(jnp.sum(u) > 100, yes, lambda u: jnp.sum(u**2), u)

    tape = jp.backprop(loss)(-jnp.ones(3))
    for name in ("yes/add", "yes/top_k[0]", "r", "yes/reduce_sum"):
        np.testing.assert_array_equal(tape.shares(name).total, np.zeros_like(tape[name].cotangent))


def test_contributions_of_a_loop_without_steps():
    def loss(w):
        def step(carry, _):
            h = carry * w
            return h, h

        carry, ys = lax.scan(step, w, None, length=0)
        return carry + jnp.sum(ys)

    tape = jp.backprop(loss)(2.0)
    assert tape.shares("h").total.shape == (0,) and float(tape.shares("w").total) == 1.0


def test_nested_branches_are_traced_in_linear_time():
    """Each recorder function runs a number of times that grows with the depth, and not with its power of two."""

    def nested(depth):
        def branch(x):
            return jax.lax.cond(x > depth, nested(depth - 1), lambda x: x * depth, x) if depth else jnp.sin(x)

        return branch

    def calls(depth):
        seen = []
        recorder = jp.Recorder.each(lambda x: seen.append(x) or x)
        jax.jit(jp.backprop(nested(depth), nodes="*sin*", record=recorder)).lower(1.0)
        return len(seen)

    assert calls(8) - calls(6) == calls(6) - calls(4) <= 4
