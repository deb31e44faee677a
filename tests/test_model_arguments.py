"""Equinox and NNX modules as arguments, unmodified: gradients against `eqx.filter_grad` and `nnx.grad`."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp

eqx = pytest.importorskip("equinox")
nnx = pytest.importorskip("flax.nnx")

pytestmark = pytest.mark.library

X = jax.random.normal(jax.random.key(1), (3, 4))
Y = jax.random.normal(jax.random.key(2), (3, 4))


class Normalized(nnx.Module):
    """Parameters, statistics, random keys, a function and a number."""

    def __init__(self, rngs):
        self.q = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.act, self.scale = jax.nn.gelu, 2

    def __call__(self, x):
        h = self.drop(self.norm(self.q(x)))
        return self.act(h) * self.scale


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([Normalized(rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Tied(nnx.Module):
    """One weight under two names."""

    def __init__(self, rngs):
        self.encoder = nnx.Linear(4, 4, rngs=rngs)
        self.decoder = nnx.Linear(4, 4, rngs=rngs)
        self.decoder.kernel = self.encoder.kernel

    def __call__(self, x):
        return self.decoder(jnp.tanh(self.encoder(x)))


class Frozen(eqx.Module):
    """A frozen statistic, an integer and a function beside a weight."""

    weight: jax.Array
    mean: jax.Array
    count: jax.Array
    act: Callable = jnp.tanh

    def __call__(self, x):
        return self.act(self.weight @ (x - jax.lax.stop_gradient(self.mean))) * self.count


def of_batch(model, x, y, note=None):
    """The loss of a model of whole batches."""
    error = model(x) - y
    return jnp.mean(error**2)


def of_examples(model, x, y, note=None):
    """The loss of a model of single examples."""
    error = jax.vmap(model)(x) - y
    return jnp.mean(error**2)


class Case(NamedTuple):
    make: Callable
    loss: Callable
    gradient: Callable
    name: str


KEY = jax.random.key(0)
CASES = {
    "eqx.nn.MLP": Case(
        lambda: eqx.nn.MLP(4, 4, 8, 2, key=KEY), of_examples, eqx.filter_grad, "model.layers[0].weight"
    ),
    "an Equinox module": Case(
        lambda: Frozen(jnp.eye(4) * 0.3, jnp.ones(4), jnp.array(3)),
        of_examples,
        eqx.filter_grad,
        "model.weight",
    ),
    "an NNX module with state": Case(
        lambda: Stack(nnx.Rngs(0)), of_batch, nnx.grad, "model.blocks[1].q.kernel"
    ),
    "tied weights": Case(lambda: Tied(nnx.Rngs(0)), of_batch, nnx.grad, "model.decoder.kernel"),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def assert_close(ours, theirs, rtol=1e-4):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), ours, theirs)


def test_gradients_come_back_in_the_structure_of_the_model(case):
    tape = jp.backprop(case.loss)(case.make(), X, Y)
    assert_close(tape.grads, case.gradient(case.loss)(case.make(), X, Y))
    assert case.name in [value.name for value in tape.graph.inputs]


def test_under_jit(case):
    if case.gradient is nnx.grad:
        ours = nnx.jit(lambda model, x, y: jp.backprop(case.loss)(model, x, y).grads)
    else:
        ours = eqx.filter_jit(lambda model, x, y: jp.backprop(case.loss)(model, x, y).grads)
    # Batch normalization of three examples amplifies what is rounded otherwise.
    assert_close(ours(case.make(), X, Y), case.gradient(case.loss)(case.make(), X, Y), rtol=1e-3)


def test_several_models_in_a_container(case):
    def loss(models, x, y):
        return case.loss(models["a"], x, y) + 2 * case.loss(models["b"], x, y) * models["weight"]

    models = {"a": case.make(), "b": case.make(), "weight": 0.5}
    grads = jp.backprop(loss)(models, X, Y).grads
    value, grad = jax.value_and_grad(lambda w: case.loss(case.make(), X, Y) * 2 * w)(0.5)
    np.testing.assert_allclose(grads["weight"], grad, rtol=1e-5)
    assert_close(grads["a"], case.gradient(case.loss)(case.make(), X, Y))
    assert jax.tree.structure(grads["b"]) == jax.tree.structure(grads["a"])


def test_a_model_that_is_not_differentiated(case):
    def loss(w, model, x, y, note):
        return case.loss(model, w * x, y, note)

    tape = jp.backprop(loss)(2.0, case.make(), X, Y, "a note")
    expected = jax.grad(lambda w: loss(w, case.make(), X, Y, None))(2.0)
    np.testing.assert_allclose(tape.grads, expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["eqx.nn.MLP", "an Equinox module", "tied weights"])
def test_gradients_of_examples(name):
    case = CASES[name]
    found = jp.per_example(case.loss)(case.make(), X, Y)
    assert_close(found.grads, case.gradient(case.loss)(case.make(), X, Y))
    ones = [case.gradient(case.loss)(case.make(), X[i : i + 1], Y[i : i + 1]) for i in range(len(X))]
    norms = [jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(one))) for one in ones]
    np.testing.assert_allclose(found.norm, norms, rtol=1e-5)


TOOLS = {
    "trace": jp.trace,
    "diagnose": jp.diagnose,
    "blocked_gradients": jp.blocked_gradients,
    "gradient_flow": jp.gradient_flow,
    "check": jp.check,
    "residuals": jp.residuals,
    "precision": lambda loss: jp.precision(loss, jnp.bfloat16, tolerance=1.0),
    "derivative": lambda loss: jp.derivative(loss, of="error", wrt="x"),
}


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")  # BatchNorm of NNX in bfloat16
@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool(case, tool):
    found = TOOLS[tool](case.loss)(case.make(), X, Y, jnp.tanh)
    if tool in ("diagnose", "gradient_flow", "check", "precision"):
        assert not [finding for finding in found if finding.severity == "error"], found


def test_drawing_and_explaining(case):
    tape = jp.backprop(case.loss)(case.make(), X, Y)
    assert case.name.split(".")[-1] in str(jp.explain(tape, to=case.name))
    assert "<svg" in jp.draw(tape).svg()


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    "note", [None, "a string", jnp.tanh, {"a": [None, "b"]}], ids=["none", "string", "function", "nested"]
)
def test_other_arguments_hold_anything(tool, note):
    def loss(w, x, note):
        error = w * x
        return jnp.sum(error**2)

    TOOLS[tool](loss)(2.0, X, note)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
@pytest.mark.parametrize("tool", [*TOOLS, "backprop"])
def test_the_state_of_an_nnx_module_is_not_changed(tool):
    model = Stack(nnx.Rngs(0))
    before = copy.deepcopy(jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngKey))))
    (TOOLS | {"backprop": jp.backprop})[tool](of_batch)(model, X, Y)
    after = jax.tree.leaves(nnx.state(model, nnx.Not(nnx.RngKey)))
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_frozen_statistic_is_not_blocked():
    assert not jp.blocked_gradients(of_batch)(Stack(nnx.Rngs(0)), X, Y)


def test_shapes_suffice():
    shapes = eqx.filter_eval_shape(CASES["eqx.nn.MLP"].make)
    x = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    assert not jp.blocked_gradients(of_examples)(shapes, x, x)
    assert jp.trace(of_examples)(shapes, x, x)["error"].shape == (3, 4)


def test_plain_containers_stay_strict():
    with pytest.raises(TypeError, match=r"^`params\['act'\]` has type function, which is not an array"):
        jp.backprop(lambda params, x: jnp.sum(params["act"](params["w"] * x)))(
            {"w": 1.0, "act": lambda x: x}, X
        )


def test_on_the_command_line(tmp_path, capsys):
    from jaxprop.cli.main import main

    file = tmp_path / "model.py"
    file.write_text(
        "import equinox as eqx, jax, jax.numpy as jnp\n"
        "def loss(model, x):\n"
        "    y = jax.vmap(model)(x)\n"
        "    return jnp.mean(y**2)\n"
        "def args():\n"
        "    return eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0)), jnp.ones((3, 2))\n"
    )
    main(["explain", f"{file}:loss", "--args", f"{file}:args", "--to", "model.layers[0].weight"])
    assert "model.layers[0].weight" in capsys.readouterr().out
    main(["trace", f"{file}:loss", "--args", f"{file}:args"])
    assert "model.layers[1].bias" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("eqx.nn.MLP", "params.activation"),
        ("an Equinox module", "params.count"),
        ("an NNX module with state", "params.blocks[0].drop.rngs.count"),
    ],
)
def test_what_is_not_trained_is_kept_out_of_the_params(name, leaf):
    import optax

    with pytest.raises(TypeError) as raised:
        jp.make_step(CASES[name].loss, optax.sgd(0.1)).init(CASES[name].make())
    assert str(raised.value) == (
        f"`params` holds a module with leaves that are not trained, such as `{leaf}`. Keep them out of `params`: "
        "from a model object, split off the arrays (`eqx.partition(model, eqx.is_inexact_array)`, "
        "`nnx.split(model, nnx.Param, ...)`), and pass state that training changes as `model_state`."
    )
