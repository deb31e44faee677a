"""Gradients that vanish, explode or cancel: numbers known in closed form, and the place named."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from jaxprop._structure import PostDominators
from jaxprop.diagnosis import Thresholds
from jaxprop.diagnosis.flow.loops import growth_of

KEY = jax.random.key(0)
STEPS = 30


def orthogonal(size):
    return jnp.linalg.qr(jax.random.normal(KEY, (size, size)))[0]


def rnn(w, xs):
    h, _ = jax.lax.scan(lambda h, x: (w @ h + x, None), jnp.zeros(4), xs)
    return jnp.sum(h * jnp.arange(1.0, 5.0))


# --- through time: an orthogonal recurrence keeps norms exactly -------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
def test_the_growth_of_an_orthogonal_recurrence_is_its_scale(scale):
    xs = jax.random.normal(KEY, (STEPS, 4))
    report = jp.gradient_flow(rnn)(scale * orthogonal(4), xs)
    (loop,) = report.loops
    seed = np.linalg.norm(np.arange(1.0, 5.0))
    expected = seed * scale ** np.arange(STEPS, -1, -1.0)
    np.testing.assert_allclose(loop.norms, expected, rtol=1e-5)
    np.testing.assert_allclose(loop.growth, scale, rtol=1e-6)
    np.testing.assert_allclose(loop.gains, scale, rtol=1e-5)
    assert len(loop.gains) == STEPS
    kinds = {0.5: ["vanishing"], 1.0: [], 1.5: ["exploding"]}
    assert [found.kind for found in report] == kinds[scale]


def test_the_finding_names_the_step_and_says_how_much():
    (found,) = jp.gradient_flow(rnn, power_steps=0)(1.5 * orthogonal(4), jnp.ones((STEPS, 4)))
    assert (found.kind, found.severity, found.cause) == ("exploding", "warning", "recurrence")
    assert (found.code, found.primitive, found.path) == ("w @ h", "dot_general", ("scan h",))
    np.testing.assert_allclose(found.numbers["growth per step"], 1.5, rtol=1e-5)
    np.testing.assert_allclose(found.numbers["ratio"], 1.5**STEPS, rtol=1e-4)
    assert found.message.startswith("The gradient explodes through the steps of `h`: |ct| of the carry is ")
    assert found.why == (
        "Each step of the backward pass multiplies it by 1.5, 30 times. Within a step `w @ h` contributes most: 1.5."
    )
    assert found.leaves == ("w",)


def test_one_bad_step_is_named():
    factors = jnp.ones(STEPS).at[7].set(1e-6)

    def loss(w, factors):
        h, _ = jax.lax.scan(lambda h, f: (f * (w @ h) + 1.0, None), jnp.ones(4), factors)
        return jnp.sum(h)

    (found,) = jp.gradient_flow(loss)(orthogonal(4), factors)
    assert (found.kind, found.cause, found.step) == ("vanishing", "one step", (7,))
    assert found.why == "Step 7 alone multiplies it by 1e-06."


def test_a_reversed_loop_is_read_in_the_order_of_time():
    def loss(w, xs):
        h, _ = jax.lax.scan(lambda h, x: (w @ h + x, None), jnp.zeros(4), xs, reverse=True)
        return jnp.sum(h)

    (loop,) = jp.gradient_flow(loss)(0.5 * orthogonal(4), jnp.ones((STEPS, 4))).loops
    np.testing.assert_allclose(loop.norms, 2.0 * 0.5 ** np.arange(STEPS, -1, -1.0), rtol=1e-5)
    np.testing.assert_allclose(loop.gains, 0.5, rtol=1e-5)


def test_losses_on_the_way_do_not_hide_the_gain_of_a_step():
    def loss(w, xs):
        _, hs = jax.lax.scan(lambda h, x: (w @ h + x, h), jnp.zeros(4), xs)
        return jnp.sum(hs)

    report = jp.gradient_flow(loss)(0.5 * orthogonal(4), jnp.ones((STEPS, 4)))
    assert not report
    np.testing.assert_allclose(report.loops[0].gain, 0.5, rtol=1e-5)


def test_the_gain_tends_to_the_greatest_eigenvalue():
    w = jnp.diag(jnp.array([0.9, 0.3, 0.2, 0.1]))
    (loop,) = jp.gradient_flow(rnn)(w, jnp.ones((STEPS, 4))).loops
    np.testing.assert_allclose(loop.gains[0], 0.9, rtol=1e-5)


def test_a_fit_of_growth_forgets_steps_that_get_nothing():
    np.testing.assert_allclose(growth_of([8.0, 4.0, 2.0, 1.0, 0.0, 0.0]), 2.0, rtol=1e-12)
    assert growth_of([1.0, 0.0, 0.0]) == 1.0


@pytest.mark.parametrize("steps", (30, 60, 100, 200))
@pytest.mark.parametrize("result", (jnp.sum, lambda h: jnp.sum(h**2)), ids=("linear", "square"))
def test_an_explosion_that_overflows_is_one(steps, result):
    """The gradient is 3**steps: infinite from 81 steps on in float32, and behind a square from the start."""

    def loss(w, x):
        h, _ = jax.lax.scan(lambda h, _: (w * h + x, None), jnp.zeros(3), None, length=steps)
        return result(h)

    report = jp.gradient_flow(loss)(jnp.full(3, 3.0), jnp.ones(3))
    found = report[0]
    assert (found.kind, found.cause, found.severity) == ("exploding", "recurrence", "warning")
    np.testing.assert_allclose(found.numbers["growth per step"], 3.0, rtol=1e-5)
    np.testing.assert_allclose(report.loops[0].gain, 3.0, rtol=1e-5)
    diagnosed = {found.kind for found in jp.diagnose(loss)(jnp.full(3, 3.0), jnp.ones(3))}
    assert "exploding" in diagnosed


@pytest.mark.slow
@pytest.mark.parametrize("depth", (30, 100))
def test_layers_that_overflow_explode(depth):
    def loss(ws, x):
        h = x
        for w in ws:
            h = h @ w
        return jnp.sum(h)

    report = jp.gradient_flow(loss, power_steps=0)([3 * jnp.eye(3)] * depth, jnp.ones((2, 3)))
    (found,) = report
    assert (found.kind, found.cause, found.primitive) == ("exploding", "many layers", "dot_general")
    assert ("overflows float32" in found.message) == (depth == 100)
    assert "times 3 on average" in found.why


@pytest.mark.parametrize("how", ["pole", "nan in the data"])
def test_a_pole_is_no_explosion(how):
    def loss(w, xs):
        h, _ = jax.lax.scan(lambda h, x: (0.9 * h + x * jnp.sqrt(w), None), 0.0, xs)
        return h

    w, xs = (0.0, jnp.ones(8)) if how == "pole" else (1.0, jnp.full(8, jnp.nan))
    assert {found.kind for found in jp.gradient_flow(loss)(jnp.float32(w), xs)} == {"not finite"}


# --- along depth ---------------------------------------------------------------------------------------------


def layers(depth, scale, size=16):
    keys = jax.random.split(KEY, depth)
    return [
        {"w": scale * orthogonal(size) + 0.0 * jax.random.normal(k, ()), "b": jnp.zeros(size)} for k in keys
    ]


def deep(act):
    def loss(params, x):
        h = x
        for p in params:
            h = act(h @ p["w"] + p["b"][None])
        return jnp.mean(h**2)

    return loss


def residual(params, x):
    h = x
    for p in params:
        h = h + jnp.tanh(h @ p["w"] + p["b"][None]) / 10
    return jnp.mean(h**2)


X = jax.random.normal(KEY, (4, 16))


@pytest.mark.parametrize(("scale", "kind"), [(0.2, "vanishing"), (1.0, None), (5.0, "exploding")])
def test_a_deep_linear_network_of_orthogonal_layers(scale, kind):
    depth = 9
    report = jp.gradient_flow(deep(lambda z: z))(layers(depth, scale), X)
    products = [level for level in report.levels if abs(level.gain - 1) > 1e-4]
    if kind is None:
        assert not report
        assert not products
        return
    (found,) = report
    assert (found.kind, found.cause, found.primitive) == (kind, "many layers", "dot_general")
    np.testing.assert_allclose(found.numbers["ratio"], scale ** (depth - 1), rtol=1e-4)
    assert len(products) == depth - 1
    np.testing.assert_allclose([level.gain for level in products], scale, rtol=1e-4)
    np.testing.assert_allclose([level.greatest for level in products], scale, rtol=1e-4)


def test_a_deep_sigmoid_network_vanishes_and_a_residual_one_does_not():
    params = layers(10, 1.0)
    (found,) = jp.gradient_flow(deep(jax.nn.sigmoid), power_steps=0)(params, X)
    assert (found.kind, found.primitive, found.cause) == ("vanishing", "logistic", "many layers")
    assert "params[0]['w']" in found.leaves
    assert "params[9]['w']" not in found.leaves
    assert found.code == 'act(h @ p["w"] + p["b"][None])'
    assert found.fix.startswith("Use `jax.nn.gelu` or `jax.nn.relu` in place of sigmoid")
    assert not jp.gradient_flow(residual, power_steps=0)(params, X)
    assert not jp.gradient_flow(deep(jax.nn.sigmoid), power_steps=0, thresholds=Thresholds(vanishing=1e-9))(
        params, X
    )


def test_one_node_that_does_it_all_is_named():
    def loss(params, x):
        h = x @ params["a"]
        small = h * 1e-6
        return jnp.sum((small @ params["b"]) ** 2)

    w = orthogonal(16)
    (found,) = jp.gradient_flow(loss, power_steps=0)({"a": w, "b": w}, X)
    assert (found.kind, found.cause, found.node, found.code) == ("vanishing", "one node", "small", "h * 1e-6")
    assert found.leaves == ("params['a']",)
    np.testing.assert_allclose(found.numbers["gain here"], 1e-6, rtol=1e-5)


def test_the_greatest_gain_is_the_greatest_singular_value():
    w = jax.random.normal(KEY, (16, 16))

    def loss(params, x):
        h = x @ params["a"]
        y = h @ params["b"]
        return jnp.sum(y**2)

    report = jp.gradient_flow(loss, power_steps=60)({"a": w, "b": w}, X)
    (level,) = report.levels[:-1]
    np.testing.assert_allclose(level.greatest, np.linalg.svd(w, compute_uv=False)[0], rtol=1e-3)
    assert level.gain <= level.greatest


def test_the_levels_are_the_norms_of_the_cotangents():
    params = layers(3, 1.0)
    tape = jp.backprop(deep(jnp.tanh))(params, X)
    for level in jp.gradient_flow(deep(jnp.tanh), power_steps=0)(params, X).levels:
        np.testing.assert_allclose(level.norm, np.linalg.norm(tape[level.name].cotangent), rtol=1e-5)


def test_a_bias_before_a_normalisation_is_no_finding():
    """Its gradient is zero in truth, and comes out as round-off."""

    def loss(params, x):
        z = x @ params["w"] + params["b"][None]
        h = (z - jnp.mean(z, 0, keepdims=True)) / jnp.std(z, axis=0, keepdims=True)
        return jnp.sum(jnp.tanh(h @ params["w"]) ** 2)

    params = {"w": jax.random.normal(KEY, (16, 16)), "b": jnp.ones(16)}
    grads = jax.grad(loss)(params, X)
    assert np.linalg.norm(grads["b"]) < 1e-5 * np.linalg.norm(grads["w"])
    assert not jp.gradient_flow(loss, power_steps=0)(params, X)
    assert not jp.blocked_gradients(loss)(params, X)


class _Vertex:
    def __init__(self, number):
        self.id = number


def post_dominators(edges, sources, sinks):
    values = {i: _Vertex(i) for i in edges}
    tree = PostDominators.of(
        [values[i] for i in sources],
        [values[i] for i in sinks],
        lambda value: [values[i] for i in edges[value.id]],
    )
    return tree, values


def test_post_dominators_go_round_what_is_bypassed():
    edges = {1: [2, 3], 2: [4], 3: [4], 4: [5, 6], 5: [6], 6: []}
    tree, values = post_dominators(edges, [1], [6])
    assert [value.id for value in tree.chain(values[1])] == [1, 4, 6]
    assert [value.id for value in tree.chain(values[5])] == [5, 6]


def reaches(edges, start, sinks, closed=None):
    """Whether a path leads from the start to a sink, one vertex closed."""
    seen, queue = {start}, [start]
    for i in queue:
        if i in sinks:
            return True
        new = [j for j in edges[i] if j not in seen and j != closed]
        seen.update(new)
        queue += new
    return False


@pytest.mark.parametrize("cyclic", (False, True), ids=("acyclic", "with cycles"))
@pytest.mark.parametrize("seed", range(20))
def test_post_dominators_are_what_closes_every_path(seed, cyclic):
    """By the definition: with such a vertex closed nothing gets from the start to a sink."""
    rng = np.random.default_rng(seed)
    count = 10
    edges = {
        i: sorted({int(j) for j in rng.integers(0 if cyclic else min(i + 1, count - 1), count, 3)} - {i})
        for i in range(count)
    }
    sources, sinks = [0, 1], sorted({int(rng.integers(3, count)), count - 1})
    tree, values = post_dominators(edges, sources, sinks)
    for start in edges:
        if start not in tree.values:
            continue
        assert (start in tree.after) == reaches(edges, start, sinks)
        if start not in tree.after or start in sinks:
            continue
        closing = {i for i in edges if i != start and not reaches(edges, start, sinks, i)}
        assert {value.id for value in tree.chain(values[start])} == {start, *closing}
    dominated = tree.dominated({source: 1 << i for i, source in enumerate(sources)})
    for i, source in enumerate(sources):
        mine = {value.id for value in tree.chain(values[source])}
        assert {id_ for id_, bits in dominated.items() if bits >> i & 1} == mine


# --- cancellation --------------------------------------------------------------------------------------------


def variance(w, x):
    y = w * x + 3e4
    return jnp.mean(y**2) - jnp.mean(y) ** 2


def test_cancellation_at_a_value_read_twice():
    w, x = jnp.ones(8), 1e-2 * jax.random.normal(KEY, (8,))
    (found,) = jp.gradient_flow(variance, power_steps=0)(w, x)
    assert (found.kind, found.cause, found.severity) == ("cancellation", "cancellation", "warning")
    assert found.message.startswith("The contributions to the cotangent of `y` cancel: their sum is ")
    tape = jp.backprop(variance)(w, x)
    measured = found.numbers["sum"] / sum(v for k, v in found.numbers.items() if k.startswith("contribution"))
    np.testing.assert_allclose(measured, tape.shares("y").cancellation, rtol=1e-4)
    assert not jp.gradient_flow(lambda w, x: jnp.var(w * x + 3e4), power_steps=0)(w, x)


def test_contributions_that_cancel_exactly_are_no_loss_of_digits():
    def loss(params, x):
        h = params["w"] * x
        return jnp.sum(h - h) + jnp.sum(params["w"] ** 2)

    (found,) = jp.gradient_flow(loss, power_steps=0)({"w": jnp.ones(3)}, jnp.arange(3.0))
    assert (found.severity, found.cause) == ("note", "exact cancellation")
    assert found.message == "The contributions to the cotangent of `h` cancel exactly: their sum is zero."


def test_no_more_digits_are_lost_than_the_dtype_has():
    w, x = jnp.ones(8), 1e-2 * jax.random.normal(KEY, (8,))
    (found,) = jp.gradient_flow(variance, power_steps=0)(w, x)
    digits = int(re.search(r"about (\d+) digits", found.why)[1])
    assert 4 <= digits <= 7


def test_a_skip_connection_that_is_there_is_not_advised():
    def plain(params, x):
        h = x
        for p in params:
            h = 1e-2 * jnp.tanh(h @ p)
        return jnp.mean(h**2)

    ws = [orthogonal(16)] * 6
    (found,) = jp.gradient_flow(plain, power_steps=0)(ws, X)
    assert "add skip connections" in found.fix

    def residual(params, x):
        h = x
        for p in params:
            h = h + (1e-2 * jnp.tanh(h @ p) - 0.99 * h)
        return jnp.mean(h**2)

    (found,) = jp.gradient_flow(residual, power_steps=0)(ws, X)
    assert "skip" not in found.fix


# --- the report ------------------------------------------------------------------------------------------------


def test_the_report_is_data_and_text():
    report = jp.gradient_flow(rnn)(0.5 * orthogonal(4), jnp.ones((STEPS, 4)))
    data = report.data()
    assert data["ok"] is False
    assert data["loops"][0]["node"] == "h"
    assert len(data["loops"][0]["norms"]) == STEPS + 1
    assert "30 steps, |ct| of the carry" in str(report)
    assert isinstance(report.json(), str)


def test_what_is_not_finite_is_left_to_others():
    report = jp.gradient_flow(lambda w: jnp.sum(jnp.sqrt(w @ w)), power_steps=0)(jnp.zeros((3, 3)))
    assert not report.ok  # nothing is known of it, which is no all-clear
    (found,) = report
    assert (found.kind, found.leaves) == ("not finite", ("w",))
    assert found.fix == "Find out with `jp.diagnose` where it comes from."


@pytest.mark.parametrize("how", [lambda x: x * jnp.sqrt(x - x), lambda x: jnp.sqrt(x - x)])
def test_diagnose_says_nothing_of_sizes_where_there_is_a_nan(how):
    report = jp.diagnose(lambda w: jnp.sum(how(w)))(jnp.ones(3))
    assert {found.kind for found in report} == {"origin"}


def test_a_loop_in_a_loop():
    def loss(w, xs):
        def outer(h, x):
            h, _ = jax.lax.scan(lambda h, _: (0.5 * (w @ h) + x, None), h, None, length=20)
            return h, None

        return jnp.sum(jax.lax.scan(outer, jnp.zeros(4), xs)[0])

    outer, inner = jp.gradient_flow(loss)(orthogonal(4), jnp.ones((3, 4))).loops
    np.testing.assert_allclose([outer.growth, outer.gain], 0.5**20, rtol=1e-4)
    np.testing.assert_allclose([inner.growth, inner.gain], 0.5, rtol=1e-5)


def test_the_greatest_gain_of_a_complex_product():
    w = jax.random.normal(KEY, (4, 4), jnp.complex64)

    def loss(params, x):
        h = x @ params["a"]
        y = h @ params["b"]
        return jnp.sum(jnp.abs(y) ** 2)

    report = jp.gradient_flow(loss, power_steps=60)({"a": w, "b": w}, jnp.ones((3, 4), jnp.complex64))
    np.testing.assert_allclose(report.levels[0].greatest, np.linalg.svd(w)[1][0], rtol=1e-3)
