"""Plots show the right numbers; each takes and returns an `Axes`."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_readme

import jaxprop as jp
from jaxprop.show import plot_gradient_flow, plot_histogram, plot_history, plot_through_time, plots

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

DOCS = Path(__file__).parents[1] / "docs" / "api"


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


def rnn(params, xs):
    def step(h, x):
        h = jnp.tanh(params["u"] @ h + params["v"] * x)
        return h, None

    last, _ = jax.lax.scan(step, jnp.zeros(4), xs)
    return jnp.sum(last * params["out"]) + 0.0 * jnp.sum(params["unused"])


@pytest.fixture(scope="module")
def inputs():
    random = np.random.default_rng(0)
    params = {name: jnp.asarray(random.normal(size=4), jnp.float32) for name in ("v", "out", "unused")}
    params["u"] = jnp.asarray(random.normal(size=(4, 4)), jnp.float32)
    return params, jnp.asarray(random.normal(size=12), jnp.float32)


@pytest.fixture(scope="module", params=[None, jp.summary], ids=["full", "summary"])
def tape(request, inputs):
    return jp.backprop(rnn, record=request.param)(*inputs)


def test_gradient_flow(tape, inputs):
    ax = pyplot.subplots()[1]
    assert plot_gradient_flow(tape, ax=ax) is ax
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels == ["u", "v", "out", "unused"]  # in the order of their first use
    grads = jax.grad(rnn)(*inputs)
    norms = [float(jnp.linalg.norm(grads[name])) for name in labels]
    points = ax.lines[1].get_ydata()
    np.testing.assert_allclose(points[:3], norms[:3], rtol=1e-5)
    assert np.isnan(points[3]) and ax.get_yscale() == "log"
    (zero,) = [line for line in ax.lines if line.get_label() == "zero"]
    assert list(zero.get_xdata()) == [3]


def test_gradient_flow_of_chosen_values_and_infinities():
    tape = jp.backprop(lambda w: jnp.sum(jnp.sqrt(w * 2.0)))(jnp.array([0.0, 1.0]))
    ax = plot_gradient_flow(tape, nodes=["mul", "sqrt"])
    (bad,) = [line for line in ax.lines if line.get_label() == "not finite"]
    assert list(bad.get_xdata()) == [0]
    constant = jp.backprop(lambda w: w * 2.0, nodes="w")(1.0)
    with pytest.raises(ValueError, match="the selector 'x' matches no node"):
        plot_gradient_flow(constant, nodes="x")


def test_through_time(tape, inputs):
    ax = plot_through_time(tape, ["h"])

    def from_step(params, xs, shift):
        def step(h, x):
            x, s = x
            h = jnp.tanh(params["u"] @ h + params["v"] * x) + s
            return h, None

        last, _ = jax.lax.scan(step, jnp.zeros(4), (xs, shift))
        return jnp.sum(last * params["out"])

    cotangents = jax.grad(from_step, argnums=2)(*inputs, jnp.zeros((12, 4)))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), jnp.linalg.norm(cotangents, axis=1), rtol=1e-4)
    with pytest.raises(ValueError, match="is not inside a scan, so it has no steps."):
        plot_through_time(tape, "params['out']")


def test_histogram(inputs):
    tape = jp.backprop(rnn)(*inputs)
    ax = plot_histogram(tape, "h", "value", bins=10)
    assert sum(patch.get_height() for patch in ax.patches) == 48
    with pytest.raises(
        ValueError, match="a histogram needs the cotangent of 'h', but the tape holds only statistics of it."
    ):
        plot_histogram(jp.backprop(rnn, record=jp.summary)(*inputs), "h")
    with pytest.raises(ValueError, match="`what` must be 'cotangent' or 'value', got 'grad'."):
        plot_histogram(tape, "h", "grad")
    bad = jp.backprop(lambda w: jnp.sum(jnp.sqrt(w)))(jnp.array([0.0, 1.0]))
    assert plot_histogram(bad, "w").get_title() == "1 of 2 not finite"


def test_history():
    steps = np.arange(5)
    history = {
        "step": steps * 10,
        "loss": 2.0**-steps,
        "eval_loss": [1.0, np.nan, 0.5, np.nan, 0.3],
        "lr": steps,
    }
    ax = plot_history(history)
    assert [line.get_label() for line in ax.lines] == ["loss", "eval_loss"] and ax.get_yscale() == "log"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), steps * 10)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [1.0, 0.5, 0.3])
    assert plot_history({"a": [0.0, 1.0]}).get_yscale() == "linear"
    with pytest.raises(
        KeyError, match="the history has no curve 'lss'. Available curves: loss, eval_loss, lr."
    ):
        plot_history(history, ["lss"])
    with pytest.raises(ValueError, match="the curve 'a' has 1 numbers, but `step` has 2."):
        plot_history({"step": [0, 1], "a": [1.0]})


def test_the_pictures_of_the_docs(tmp_path, monkeypatch):
    """Each picture of the page exists, and its code draws it. To write them again: `JAXPROP_GOLDEN=write`."""
    page = (DOCS / "show.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    with matplotlib.rc_context({"svg.hashsalt": "jaxprop", "svg.fonttype": "none"}):
        test_readme.run(page, tmp_path)
    pictures = re.findall(r"!\[.*\]\(show/(.*)\)", page)
    assert len(pictures) == 4
    for picture in pictures:
        drawn = (tmp_path / picture).read_bytes()
        if os.environ.get("JAXPROP_GOLDEN") == "write":
            (DOCS / "show" / picture).write_bytes(drawn)
        assert drawn.startswith(b"<?xml") and (DOCS / "show" / picture).exists()


def test_tick_labels_stay_apart():
    assert plots._tick_labels(["params['blocks'][0]['w']", "arrays.layers[1].bias"]) == [
        "blocks.0.w",
        "layers.1.bias",
    ]
    assert plots._tick_labels(["a['w']", "b['w']", "x[0]"]) == ["a['w']", "b['w']", "x[0]"]


def test_without_matplotlib(tape, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'jaxprop-toolkit\[plots\]'"):
        plot_gradient_flow(tape)
