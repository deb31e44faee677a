"""Steps on clipped gradients of single examples, with and without noise, beside optax and jax_privacy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprop as jp

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(12, 4)), jnp.float32)
Y = jnp.asarray(RNG.normal(size=(12, 3)), jnp.float32)
PARAMS = {
    "w1": jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32),
    "w2": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32),
}


def loss(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w1"]) @ p["w2"] - y) ** 2)


def gradients(params, x, y):
    return jax.vmap(jax.grad(lambda p, x, y: loss(p, x[None], y[None])), (None, 0, 0))(params, x, y)


def clipped_mean(grads, bound):
    norm = jnp.sqrt(sum(jnp.sum(g**2, tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)))
    return jax.tree.map(lambda g: jnp.einsum("b...,b->...", g, jnp.minimum(1, bound / norm)) / len(norm), grads)


def near(ours, theirs, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), ours, theirs)


def update(examples, optimizer=None, key=None, steps=1, batch=(X, Y)):
    """The change of the params by some steps of SGD with rate 1: minus the gradient."""
    step = jp.make_step(loss, optimizer or optax.sgd(1.0), examples=examples)
    state = step.init(PARAMS, key)
    for _ in range(steps):
        state, metrics = step(state, *batch)
    return jax.tree.map(jnp.subtract, PARAMS, state.params), metrics


def test_a_step_follows_the_clipped_gradient():
    grads, metrics = update(jp.Clip(0.5))
    each = gradients(PARAMS, X, Y)
    near(grads, clipped_mean(each, 0.5))
    norm = jnp.sqrt(sum(jnp.sum(g**2, tuple(range(1, g.ndim))) for g in jax.tree.leaves(each)))
    np.testing.assert_allclose(metrics.examples.norm, jnp.median(norm), rtol=1e-5)
    assert float(metrics.examples.clipped) == pytest.approx(float(jnp.mean(norm > 0.5)))
    np.testing.assert_allclose(metrics.loss, loss(PARAMS, X, Y), rtol=1e-5)


def test_it_is_the_gradient_of_optax():
    aggregate = optax.contrib.differentially_private_aggregate(0.5, 0.0, jax.random.key(0))
    theirs, _ = aggregate.update(gradients(PARAMS, X, Y), aggregate.init(PARAMS))
    near(update(jp.Clip(0.5))[0], theirs)


@pytest.mark.library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_the_gradient_of_jax_privacy():
    clipping = pytest.importorskip("jax_privacy.clipping", reason="NOT CHECKED: jax_privacy is not installed")
    theirs = clipping.clipped_grad(loss, l2_clip_norm=0.5, batch_argnums=(1, 2), normalize_by=len(X))
    near(jp.per_example(loss, clip=0.5)(PARAMS, X, Y).grads, theirs(PARAMS, X, Y))


def test_noise_has_the_scale_of_its_multiplier_and_is_new_in_each_step():
    clean, _ = update(jp.Clip(0.5))
    step = jp.make_step(loss, optax.sgd(0.0), examples=jp.Clip(0.5, noise=2.0))

    def noise_of(key):
        def grads_at(count):
            state = step.init(PARAMS, key)._replace(step=jnp.int32(count))
            return step.functions.gradient(state, X, Y).grads

        difference = jax.tree.map(lambda a, b: a - b, (grads_at(0), grads_at(1)), (clean, clean))
        return jnp.stack(
            [jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(each)]) for each in difference]
        )

    noise = jax.jit(jax.vmap(noise_of))(jax.random.split(jax.random.key(1), 300))  # key, step, element
    np.testing.assert_allclose(noise.std(), 2.0 * 0.5 / len(X), rtol=0.03)
    assert abs(float(jnp.corrcoef(noise[:, 0].ravel(), noise[:, 1].ravel())[0, 1])) < 0.05
    assert abs(float(noise.mean())) < 0.005
    assert float(jnp.max(jnp.abs(jnp.corrcoef(noise[:, 0].T) - jnp.eye(noise.shape[-1])))) < 0.3


def test_noise_is_that_of_the_key():
    again = [update(jp.Clip(0.5, noise=1.0), key=seed)[0] for seed in (3, 3, 4)]
    jax.tree.map(np.testing.assert_array_equal, again[0], again[1])
    assert not np.allclose(again[0]["w1"], again[2]["w1"])


def test_with_several_bounds_the_noise_is_that_of_their_root():
    assert jp.Clip({"w1": 3.0, "*": 4.0}).sensitivity == 5.0
    assert jp.Clip(2).sensitivity == 2.0


@pytest.mark.library
def test_microbatches_of_multisteps_have_the_noise_of_one_step():
    clip = jp.Clip(0.5, noise=2.0, microbatches=3)
    parts = [(X[i : i + 4], Y[i : i + 4]) for i in (0, 4, 8)]
    whole = clipped_mean(gradients(PARAMS, X, Y), 0.5)

    def run(examples, key):
        optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=3)
        step = jp.make_step(loss, optimizer, examples=examples)
        state = step.init(PARAMS, key)
        for part in parts:
            state, _ = step.plain(state, *part)
        return jax.tree.map(jnp.subtract, PARAMS, state.params)

    near(run(jp.Clip(0.5), 0), whole)
    noisy = jax.jit(jax.vmap(lambda key: run(clip, key)))(jax.random.split(jax.random.key(0), 300))
    noise = jnp.concatenate(
        [jnp.ravel(a - b[None]) for a, b in zip(noisy.values(), whole.values(), strict=True)]
    )
    np.testing.assert_allclose(noise.std(), 2.0 * 0.5 / len(X), rtol=0.03)


def test_each_example_has_a_key_of_its_own():
    def dropped(p, x, y, key):
        mask = jax.random.bernoulli(key, 0.5, x.shape)
        return loss(p, jnp.where(mask, x, 0.0), y)

    step = jp.make_step(dropped, optax.sgd(1.0), examples=jp.Clip(0.5))
    state = step.init(PARAMS, 7)
    keys = jax.random.split(jax.random.fold_in(state.key, 0), len(X))
    new, _ = step(state, X, Y)

    def one(p, x, y, key):
        return dropped(p, x[None], y[None], key)

    each = jax.vmap(jax.grad(one), (None, 0, 0, 0))(PARAMS, X, Y, keys)
    near(jax.tree.map(jnp.subtract, PARAMS, new.params), clipped_mean(each, 0.5))


def test_scalars_of_aux_are_means():
    def with_aux(p, x, y):
        y_hat = jnp.tanh(x @ p["w1"]) @ p["w2"]
        return loss(p, x, y), {
            "error": jnp.mean(jnp.abs(y_hat - y)),
            "positive": jnp.sum(y_hat[:, 0] > 0),
            "y": y_hat,
        }

    step = jp.make_step(with_aux, has_aux=True, examples=jp.Clip(1.0))
    _, metrics = step(step.init(PARAMS), X, Y)
    y_hat = jnp.tanh(X @ PARAMS["w1"]) @ PARAMS["w2"]
    np.testing.assert_allclose(metrics.aux["error"], jnp.mean(jnp.abs(y_hat - Y)), rtol=1e-5)
    np.testing.assert_allclose(metrics.aux["positive"], jnp.mean(y_hat[:, 0] > 0), rtol=1e-5)
    np.testing.assert_allclose(metrics.aux["y"][:, 0], y_hat, rtol=1e-5)


def test_fit_clips_and_says_how_much():
    watch = jp.Watch(nodes="loss", every=5)
    step = jp.make_step(loss, optax.sgd(0.5), examples=jp.Clip(0.1), watch=watch)
    state, history = jp.fit(step, PARAMS, (X, Y), steps=12, batch_size=6, progress=False)
    assert history["examples/clipped"].shape == history["examples/norm"].shape == (12,)
    assert 0 < history["examples/clipped"].min() <= 1
    for leaf in history.watched.leaves.values():
        assert leaf.grad.max() <= 0.1 + 1e-6
    assert not np.allclose(state.params["w1"], PARAMS["w1"])


def with_state(p, x, *, model_state):
    return jnp.mean(x @ p["w1"]), model_state


ERRORS = {
    "`examples` must be a jaxprop.Clip, such as Clip(1.0); got 1.0.": (
        lambda: jp.make_step(loss, examples=1.0),
        TypeError,
    ),
    "`examples` and `rules` cannot be combined: clip by a rule or by examples, not both.": (
        lambda: jp.make_step(loss, examples=jp.Clip(1.0), rules=[("tanh", jp.rules.scale(0.5))]),
        ValueError,
    ),
    "a loss that takes `model_state` returns one new state for the whole batch, but with `examples` each example is "
    "a batch of its own. Freeze the state and close over it, or use a model without it.": (
        lambda: jp.make_step(with_state, examples=jp.Clip(1.0)),
        ValueError,
    ),
    "Clip(noise=...) must not be negative, got -1.0.": (lambda: jp.Clip(1.0, noise=-1.0), ValueError),
    "Clip(microbatches=...) must be a positive integer, got 0.": (
        lambda: jp.Clip(1.0, microbatches=0),
        ValueError,
    ),
    "`optax.MultiSteps` averages the gradients of several steps, and the noise of all of them would add up. Say how "
    "many there are: Clip(..., microbatches=k) for `every_k_schedule=k`.": (
        lambda: jp.make_step(loss, optax.MultiSteps(optax.sgd(1.0), 2), examples=jp.Clip(1.0, 1.0)).init(
            PARAMS
        ),
        ValueError,
    ),
    "Clip(microbatches=2) scales the noise for an optimizer that accumulates as many steps, but this one does not. "
    "Wrap it in optax.MultiSteps, or leave `microbatches` out.": (
        lambda: jp.make_step(loss, examples=jp.Clip(1.0, 1.0, microbatches=2)).init(PARAMS),
        ValueError,
    ),
    "`watch` belongs to the step: pass it to make_step, not to `fit`.": (
        lambda: jp.fit(jp.make_step(loss, examples=jp.Clip(1.0)), PARAMS, (X, Y), steps=1, watch=jp.Watch()),
        TypeError,
    ),
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors(sentence):
    call, kind = ERRORS[sentence]
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        call()
