"""No false alarm: models at their usual initialisation, and a trained one, give no finding."""

import jax
import jax.numpy as jnp
import pytest

import jaxprop as jp
import models
from helpers import sample
from jaxprop.cli.demo import digits_loss, init_params
from jaxprop.diagnosis.flow.flow import cancellation_findings, flow_findings
from jaxprop.diagnosis.measures import Field, recorder
from jaxprop.diagnosis.passes import Passes
from jaxprop.diagnosis.zero.blocked import blocked_findings

QUICK = (
    "dict_mlp",
    "dict_scan_layers",
    "linen_mlp",
    "nnx_attention",
    "eqx_cnn",
    "haiku_gru",
)
SLOW = (
    "distrax_flow",
    "linen_lstm",
    "linen_vae",
    "dict_checkpoint_policy",
    "dict_bf16",
    "linen_cnn",
    "linen_gru",
    "linen_transformer",
    "linen_scan",
    "nnx_cnn",
    "nnx_gru",
    "eqx_lstm",
    "eqx_transformer",
    "haiku_cnn",
    "haiku_lstm",
    "diffrax_ode",
    "flowjax_flow",
)
CASES = {case.name: case for case in models.CASES}


def check(name):
    """What `blocked` and `flow` say, from one pass that both read."""
    loss, args, argnums = CASES[name].make(jax.random.key(0))
    run = Passes(loss, argnums).at(*args)
    field = Field.of(run(record=recorder))
    found = blocked_findings(field, run)
    # Equinox keeps the start of a running mean beside the weights: the loss does not read it.
    assert all(one.severity == "note" and one.cause == "never used" for one in found), found
    found = flow_findings(field, run) + cancellation_findings(field, run)
    assert not found


@pytest.mark.library
@pytest.mark.parametrize("name", QUICK)
def test_a_healthy_model(name):
    check(name)


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("name", sample(SLOW, 3))
def test_a_healthy_model_of_the_rest(name):
    check(name)


@pytest.mark.library
def test_a_trained_network_is_healthy():
    images, labels = models.digits(256)
    params = init_params(jax.random.key(0), (64, 64, 64, 10))

    @jax.jit
    def train(params):
        def step(params, _):
            grads = jax.grad(digits_loss)(params, images, labels)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), None

        return jax.lax.scan(step, params, None, length=200)[0]

    trained = train(params)
    assert float(digits_loss(trained, images, labels)) < 0.05
    assert not jp.blocked_gradients(digits_loss)(trained, images, labels)
    assert not jp.gradient_flow(digits_loss, power_steps=0)(trained, images, labels)


def test_a_linear_model_at_its_optimum_is_a_note_at_most():
    x = jnp.eye(3)
    report = jp.blocked_gradients(lambda w: jnp.sum((x @ w - 1.0) ** 2))(jnp.ones(3))
    assert report.ok


@pytest.mark.library
@pytest.mark.parametrize("name", ["dict_mlp", "linen_mlp"])
def test_diagnose_finds_nothing_in_a_healthy_model(name):
    loss, args, argnums = CASES[name].make(jax.random.key(0))
    report = jp.diagnose(loss, argnums)(*args)
    assert not report, str(report)
