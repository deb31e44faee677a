"""No false alarm: models at their usual initialisation, and a trained one, give no finding."""

import jax
import jax.numpy as jnp
import models
import pytest

import jaxprop as jp
from jaxprop._demo import _init, digits_loss

QUICK = (
    "dict_mlp",
    "dict_bf16",
    "dict_scan_layers",
    "dict_checkpoint_policy",
    "linen_mlp",
    "linen_lstm",
    "linen_vae",
    "linen_scan",
    "nnx_attention",
    "eqx_cnn",
    "haiku_gru",
    "distrax_flow",
)
CASES = {case.name: case for case in models.CASES}


def check(name):
    loss, args, argnums = CASES[name].make(jax.random.key(0))
    blocked = jp.blocked(loss, argnums)(*args)
    assert blocked.ok, str(blocked)
    # Equinox keeps the start of a running mean beside the weights: the loss does not read it.
    assert all(found.cause == "never used" for found in blocked), str(blocked)
    flow = jp.flow(loss, argnums, power_steps=0)(*args)
    assert not flow, str(flow)


@pytest.mark.library
@pytest.mark.parametrize("name", QUICK)
def test_a_healthy_model(name):
    check(name)


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("name", [name for name in CASES if name not in QUICK])
def test_a_healthy_model_of_the_rest(name):
    check(name)


def test_a_trained_network_is_healthy():
    images, labels = models.digits(256)
    params = _init(jax.random.key(0), (64, 64, 64, 10))

    @jax.jit
    def train(params):
        def step(params, _):
            grads = jax.grad(digits_loss)(params, images, labels)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), None

        return jax.lax.scan(step, params, None, length=200)[0]

    trained = train(params)
    assert float(digits_loss(trained, images, labels)) < 0.05
    assert not jp.blocked(digits_loss)(trained, images, labels)
    assert not jp.flow(digits_loss, power_steps=0)(trained, images, labels)


def test_a_linear_model_at_its_optimum_is_a_note_at_most():
    x = jnp.eye(3)
    report = jp.blocked(lambda w: jnp.sum((x @ w - 1.0) ** 2))(jnp.ones(3))
    assert report.ok
