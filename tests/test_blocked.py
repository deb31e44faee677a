"""Leaves that get no gradient: the cut is named, by node, line and cause."""

import linecache
import re

import blocked_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from jaxprop.diagnosis import Thresholds

CASES = (*blocked_cases.STATIC, *blocked_cases.DYNAMIC)


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def gradients(case):
    """What jax.grad gives, by path: the independent oracle for which leaves get nothing."""
    grads = jax.grad(case.loss, has_aux=case.has_aux)(*case.args)
    grads = grads[0] if case.has_aux else grads
    name = case.loss.__code__.co_varnames[0]
    return {name + jax.tree_util.keystr(path): ct for path, ct in jax.tree_util.tree_leaves_with_path(grads)}


def test_there_are_enough_cases():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


def structs(case):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), case.args)


def check_the_cut(case, report):
    (found,) = report
    assert (found.cause, set(found.leaves)) == (case.cause, set(case.leaves))
    assert found.kind == ("blocked" if case.static else "zero gradient")
    assert (found.severity == "note") == (case.name in blocked_cases.HARMLESS)
    if case.cause != "never used":
        line = linecache.getline(found.source.file, found.source.line)
        assert line.endswith("# cut\n"), f"{found.place}: {line}"
        assert found.code
        assert " ".join(found.code.split()) in " ".join(line.split())


@by_name(blocked_cases.STATIC)
def test_the_cut_in_the_program_is_named_from_shapes(case):
    check_the_cut(case, jp.blocked_gradients(case.loss, has_aux=case.has_aux)(*structs(case)))


@by_name([*blocked_cases.STATIC[::6], *blocked_cases.DYNAMIC])
def test_the_cut_is_named_from_numbers(case):
    check_the_cut(case, jp.blocked_gradients(case.loss, has_aux=case.has_aux)(*case.args))


@by_name(CASES)
def test_the_leaves_are_those_jax_gives_no_gradient(case):
    nothing = {name for name, ct in gradients(case).items() if not np.any(np.asarray(ct, np.float32))}
    assert nothing == set(case.leaves)


@by_name([case for case in blocked_cases.STATIC if case.name in ("argmax_in_loss", "rounded", "rule_of_zeros")])
@pytest.mark.parametrize("how", ["jit", "vmap", "scan", "checkpoint"])
def test_the_cut_is_found_inside_transformations(case, how):
    def loss(*args):
        if how == "jit":
            return jax.jit(case.loss)(*args)
        if how == "checkpoint":
            return jax.checkpoint(case.loss)(*args)
        if how == "vmap":
            first, *rest = args
            return jnp.sum(jax.vmap(lambda x: case.loss(first, x))(jnp.stack(rest * 2)))
        return jax.lax.scan(lambda total, _: (total + case.loss(*args), None), 0.0, None, length=2)[0]

    (found,) = jp.blocked_gradients(loss)(*structs(case))
    assert found.cause == case.cause
    assert linecache.getline(found.source.file, found.source.line).endswith("# cut\n")


def test_every_leaf_dead_is_an_error_and_one_of_several_a_warning():
    (all_of_them,) = jp.blocked_gradients(blocked_cases.argmax_in_loss)(blocked_cases.PARAMS, blocked_cases.X)
    (one,) = jp.blocked_gradients(blocked_cases.frozen_parameters)(blocked_cases.PARAMS, blocked_cases.X)
    assert (all_of_them.severity, one.severity) == ("error", "warning")


def test_the_text_says_what_and_where():
    report = jp.blocked_gradients(blocked_cases.convection_trigger)(jnp.float32(0.1), jnp.ones(5), jnp.ones(5))
    (found,) = report
    assert found.message == "`threshold` gets no gradient: `cape > threshold` cuts it off (comparison)."
    assert found.why == (
        "A comparison says yes or no: it has no derivative, whatever is chosen by it; it only chooses between "
        "values in `jnp.where(active, rate * cape, 0.0)`."
    )
    assert found.fix == "Make the choice smooth: `jax.nn.sigmoid((a - b) / width)` in place of `a > b`."
    assert re.search(r"blocked_cases.py:\d+ in convection_trigger   cape > threshold", str(report))
    assert report.data()["findings"][0]["cause"] == "comparison"


def test_a_cut_on_one_way_is_noted_when_asked_for():
    def loss(w, x):
        scale = jax.lax.stop_gradient(jnp.max(jnp.abs(w)))
        return jnp.sum(x @ (w / scale))

    args = (blocked_cases.W, blocked_cases.X)
    assert not jp.blocked_gradients(loss)(*args)
    report = jp.blocked_gradients(loss, partial=True)(*args)
    assert report.ok
    assert [(found.severity, found.cause) for found in report] == [("note", "stop_gradient")]
    assert report[0].message == (
        "`w` gets a gradient, but none by way of `jax.lax.stop_gradient(jnp.max(jnp.abs(w)))`."
    )


def test_dead_units_are_counted():
    bias = jnp.array([-50.0, -50.0, -50.0, 0.0])

    def loss(w, x):
        h = jax.nn.relu(x @ w + bias[None])
        return jnp.sum(h)

    x = jnp.abs(blocked_cases.X)
    (found,) = jp.blocked_gradients(loss)(jnp.abs(blocked_cases.W), x)
    assert (found.kind, found.cause, found.severity) == ("dead units", "dead relu", "warning")
    assert found.numbers == {"dead": 0.75, "units": 4}
    assert (
        found.message == "3 of 4 units get no gradient through `jax.nn.relu(x @ w + bias[None])` (dead relu)."
    )
    assert found.leaves == ("w",)
    assert not jp.blocked_gradients(loss, thresholds=Thresholds(dead=0.8))(jnp.abs(blocked_cases.W), x)


@pytest.mark.parametrize("function", [jax.nn.sigmoid, jnp.tanh], ids=["sigmoid", "tanh"])
def test_the_gain_of_a_saturated_function_is_its_derivative(function):
    def loss(w, x):
        h = function(x + w)
        return jnp.sum(h)

    w, x = jnp.zeros(4), jnp.full(4, 7.5)
    (found,) = jp.blocked_gradients(loss)(w, x)
    assert (found.kind, found.cause) == ("saturated", "saturated")
    np.testing.assert_allclose(found.numbers["local gain"], jax.grad(function)(7.5), rtol=1e-5)
    assert not jp.blocked_gradients(loss, thresholds=Thresholds(saturated=0.0))(w, x)


def test_a_sigmoid_under_a_logarithm_is_not_saturated():
    def loss(w):
        return -jnp.mean(jnp.log(jax.nn.sigmoid(w - 8.0)))

    assert not jp.blocked_gradients(loss)(jnp.zeros(4))


def test_a_mask_is_no_dead_relu():
    mask = jnp.array([1.0, 0.0, 0.0, 0.0]) > 0

    def loss(w, x):
        h = jnp.where(mask[None], x @ w, 0.0)
        return jnp.sum(h**2)

    assert not jp.blocked_gradients(loss)(blocked_cases.W, blocked_cases.X)


def test_an_empty_batch_says_so():
    (found,) = jp.blocked_gradients(lambda w, x: jnp.sum(x @ w))(blocked_cases.W, jnp.zeros((0, 3)))
    assert found.cause == "empty"


def test_what_is_not_finite_is_left_to_others():
    assert not jp.blocked_gradients(lambda w: jnp.sum(jnp.sqrt(w) * 0.0))(jnp.zeros(3))


def test_thresholds_are_checked():
    with pytest.raises(ValueError, match=r"^the threshold `dead` must be 0 or more, got -1.$"):
        Thresholds(dead=-1)


def test_rules_of_libraries_are_not_run_twice():
    """Equinox fills a store in the forward half of a rule: to trace it once more would use it up."""
    eqx = pytest.importorskip("equinox")
    from equinox.internal import while_loop

    def loss(w):
        def body(x):
            return x * w

        return while_loop(lambda x: x < 10.0, body, jnp.float32(1.0), max_steps=8, kind="checkpointed")

    assert eqx is not None
    for _ in range(2):
        assert not jp.blocked_gradients(loss)(jnp.float32(2.0))


@by_name([*blocked_cases.STATIC[:1], *blocked_cases.DYNAMIC[::4]])
def test_diagnose_says_the_same(case):
    (expected,) = jp.blocked_gradients(case.loss)(*case.args)
    found = [finding for finding in jp.diagnose(case.loss)(*case.args) if finding.kind == expected.kind]
    assert [(one.node, one.cause, one.leaves) for one in found] == [
        (expected.node, expected.cause, expected.leaves)
    ]


def test_diagnose_counts_dead_units_too():
    bias = jnp.array([-50.0, -50.0, -50.0, 0.0])

    def loss(w, x):
        h = jax.nn.relu(x @ w + bias[None])
        return jnp.sum(h)

    args = (jnp.abs(blocked_cases.W), jnp.abs(blocked_cases.X))
    (found,) = jp.diagnose(loss)(*args)
    (expected,) = jp.blocked_gradients(loss)(*args)
    assert (found.kind, found.numbers) == (expected.kind, expected.numbers)


def test_a_factor_of_zero_from_outside_of_the_loop():
    def loss(w, xs, gate):
        h, _ = jax.lax.scan(lambda h, x: (h + gate * (w * x), None), jnp.zeros(3), xs)
        return jnp.sum(h)

    (found,) = jp.blocked_gradients(loss)(jnp.ones(3), jnp.ones((4, 3)), jnp.zeros(3))
    assert (found.cause, found.code, found.path) == ("zero factor", "gate * (w * x)", ("scan h",))
    assert found.why.startswith("It is multiplied by `")


def test_the_greater_of_two_layers_is_no_dead_relu():
    def loss(params, x):
        h = jnp.maximum(x @ params["a"], x @ params["b"] - 50.0 * jnp.array([1.0, 1.0, 1.0, 0.0])[None])
        return jnp.sum(h**2)

    assert not jp.blocked_gradients(loss)({"a": blocked_cases.W, "b": blocked_cases.W[::-1]}, blocked_cases.X)
