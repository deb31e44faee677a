"""Leaves that get no gradient: the cut is named, by node, line and cause."""

import linecache
import re

import blocked_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from jaxprop._structure import propagate, propagate_back
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
    assert found.message == ("`threshold` receives no gradient: blocked by `cape > threshold` (comparison).")
    assert found.why == (
        "A comparison is piecewise constant: it has no derivative, whatever it selects; it only selects between "
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
        "`w` receives a gradient, but none through `jax.lax.stop_gradient(jnp.max(jnp.abs(w)))`."
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


# --- one cause, told once ------------------------------------------------------------------------------------


def test_the_leaves_of_one_line_are_one_finding():
    def loss(params, x):
        for p in params:
            jnp.tanh(x @ p["w"] + p["b"][None])
        return jnp.sum(x)

    params = [blocked_cases.PARAMS] * 3
    (found,) = jp.blocked_gradients(loss)(params, blocked_cases.X)
    assert found.message == (
        "`params[0]['b']` and 5 other leaves receive no gradient: the result does not depend on what is computed "
        "from them."
    )
    assert (found.cause, len(found.leaves)) == ("unused result", 6)


def test_frozen_statistics_are_one_finding():
    def loss(params, x):
        mean, var = jax.lax.stop_gradient(params["mean"]), jax.lax.stop_gradient(params["var"])
        return jnp.mean(((x @ params["w"] - mean[None]) / jnp.sqrt(var[None] + 1e-5)) ** 2)

    params = {"w": blocked_cases.W, "mean": jnp.zeros(4), "var": jnp.ones(4)}
    (found,) = jp.blocked_gradients(loss)(params, blocked_cases.X)
    assert (found.cause, found.leaves) == ("stop_gradient", ("params['mean']", "params['var']"))


def test_statistics_that_are_state_are_a_note():
    """Running averages leave the loss as its auxiliary output, for the next step."""

    def loss(variables, x):
        h = x @ variables["w"]
        mean = 0.9 * variables["mean"] + 0.1 * jnp.mean(h, 0)
        return jnp.mean((h - jnp.mean(h, 0)[None]) ** 2), {
            "mean": mean,
            "logged": jnp.sum(variables["penalty"]),
        }

    variables = {"w": blocked_cases.W, "mean": jnp.zeros(4), "penalty": jnp.ones(3)}
    logged, state = jp.blocked_gradients(loss, has_aux=True)(variables, blocked_cases.X)
    assert (state.severity, state.cause, state.leaves) == ("note", "state", ("variables['mean']",))
    assert (logged.severity, logged.cause) == ("warning", "only in aux")


# --- the true cut ---------------------------------------------------------------------------------------------


def times_zero_before_a_relu(params, x):
    h = jnp.tanh(x @ params["w"])
    g = h * 0  # cut
    return jnp.sum(jax.nn.relu(g)) + jnp.sum(params["b"] ** 2)


def times_zero_before_a_square(params, x):
    h = jnp.tanh(x @ params["w"])
    g = h * 0  # cut
    return jnp.sum((g @ params["v"]) ** 2) + jnp.sum(params["b"] ** 2)


def a_mask_of_zeros_before_a_maximum(params, x):
    mask = jnp.zeros((5, 1))
    h = mask * (x @ params["w"])  # cut
    return jnp.sum(jnp.maximum(h, 0.0)) + jnp.sum(params["b"] ** 2)


@pytest.mark.library  # h * 0 promotes an integer
@pytest.mark.parametrize(
    "loss", (times_zero_before_a_relu, times_zero_before_a_square, a_mask_of_zeros_before_a_maximum)
)
@pytest.mark.parametrize("tool", (jp.blocked_gradients, jp.diagnose), ids=("blocked", "diagnose"))
def test_what_makes_a_zero_is_to_blame_and_not_what_it_meets(loss, tool):
    params = {**blocked_cases.PARAMS, "v": jnp.ones((4, 2))}
    if loss is not times_zero_before_a_square:
        del params["v"]
    (found,) = tool(loss)(params, blocked_cases.X)
    assert (found.kind, found.cause) == ("zero gradient", "zero factor")
    assert linecache.getline(found.source.file, found.source.line).endswith("# cut\n")


def test_a_dead_layer_of_many_is_named_by_its_pass():
    def loss(params, x):
        h = x
        for p in params:
            h = jax.nn.relu(h @ p["w"] + p["b"][None])
        return jnp.sum(h + 1.0)

    biases = [0.0, 0.0, -50.0, 0.0]
    params = [{"w": jnp.eye(3), "b": jnp.full(3, bias)} for bias in biases]
    (found,) = jp.blocked_gradients(loss)(params, blocked_cases.X)
    assert found.cause == "dead relu"
    assert found.message == (
        "The gradient of `params[0]['b']` and 7 other leaves is zero: nothing gets through "
        '`jax.nn.relu(h @ p["w"] + p["b"][None])` (pass 3 of 4) (dead relu).'
    )


# --- exact cancellation: a zero that is true ------------------------------------------------------------------


def minus_itself(w, x):
    h = w * x
    return jnp.sum(h - h)


def minus_its_mean(w, x):
    y = w * x
    return jnp.sum(y - jnp.mean(y))


def along_a_symmetry(w, x):
    """The function is unchanged by a shift of w: so is its derivative along one."""

    def energy(w):
        return jnp.sum(jnp.sin(w[:, None] - w[None]) ** 2)

    return jnp.sum(jax.jvp(jax.grad(energy), (w,), (jnp.ones_like(w),))[1])


@pytest.mark.parametrize(
    ("loss", "value"), [(minus_itself, "h"), (minus_its_mean, "y"), (along_a_symmetry, None)]
)
def test_contributions_that_cancel_exactly_are_a_note(loss, value):
    w, x = jnp.array([0.25, 0.5, 1.0, 2.0]), jnp.array([1.0, -2.0, 0.5, 4.0])
    assert not np.any(jax.grad(loss)(w, x))
    report = jp.blocked_gradients(loss)(w, x)
    assert report.ok, report
    if value is None:
        return
    (found,) = report
    assert (found.severity, found.cause) == ("note", "exact cancellation")
    assert found.message.endswith(f"to the cotangent of `{value}` cancel exactly.")
    assert list(found.numbers.values()) == [2.0, 2.0]  # ones, and minus ones


# --- derivatives inside the loss ------------------------------------------------------------------------------


def laplacian(params, x, activation):
    u = lambda x: activation(x * params["w"] + params["b"]) @ params["v"]  # noqa: E731
    return jax.grad(jax.grad(u))(x) ** 2


def force(params, x, activation):
    u = lambda x: activation(x * params["w"] + params["b"]) @ params["v"]  # noqa: E731
    return jax.grad(u)(x) ** 2


NETWORK = {"w": jnp.arange(1.0, 4.0), "b": jnp.ones(3), "v": jnp.ones(3)}


@pytest.mark.parametrize("activation", (jax.nn.relu, lambda z: jnp.maximum(z, 0.0)), ids=("relu", "maximum"))
def test_the_second_derivative_of_a_relu_is_named(activation):
    report = jp.blocked_gradients(lambda p, x: laplacian(p, x, activation))(NETWORK, jnp.float32(0.3))
    (found,) = report
    assert (found.cause, len(found.leaves)) == ("second derivative", 3)
    assert "second derivative of `" in found.why and "piecewise linear" in found.why
    assert not np.any(jax.grad(lambda p: laplacian(p, jnp.float32(0.3), activation))(NETWORK)["w"])
    smooth = jp.blocked_gradients(lambda p, x: laplacian(p, x, jnp.tanh))(NETWORK, jnp.float32(0.3))
    assert smooth.ok


def test_a_bias_that_a_first_derivative_does_not_see():
    report = jp.blocked_gradients(lambda p, x: force(p, x, jax.nn.relu))(NETWORK, jnp.float32(0.3))
    assert [(found.cause, found.leaves) for found in report] == [("second derivative", ("p['b']",))]

    def shifted(p, x):
        return jax.grad(lambda x: jnp.sin(p["w"] * x) + p["b"])(x) ** 2

    (found,) = jp.blocked_gradients(shifted)({"w": jnp.float32(2.0), "b": jnp.float32(1.0)}, jnp.float32(0.3))
    assert (found.cause, found.leaves) == ("derivative only", ("p['b']",))
    assert found.message == "`p['b']` receives no gradient: the derivative in the loss does not depend on it."


# --- fixes that can be followed -------------------------------------------------------------------------------


def with_rule(arity, returned):
    """A product of `arity` arguments whose backward rule returns the expression of a fix."""
    names = ["a", "b", "c"][:arity]
    fun = jax.custom_vjp(lambda *xs: jnp.prod(jnp.stack(xs), axis=0))
    code = f"lambda kept, ct: {returned}"
    fun.defvjp(lambda *xs: (fun(*xs), None), eval(code, {"ct_1": None}))
    return lambda p: jnp.sum(fun(*(p[name] for name in names)))


@pytest.mark.parametrize("arity", (1, 2, 3))
def test_the_fix_of_a_custom_rule_fits_its_arguments(arity):
    params = {name: jnp.ones(3) for name in ("a", "b", "c")[:arity]}
    (found,) = jp.blocked_gradients(with_rule(arity, f"({'None, ' * arity})"))(params)
    returned = re.search(r"`return (.*?)`", found.fix)[1]
    fixed = jax.grad(with_rule(arity, returned))(params)
    assert all(np.any(ct) for ct in fixed.values())
    assert jp.blocked_gradients(with_rule(arity, returned))(params).ok


def test_the_fix_of_a_jvp_rule_is_one_of_tangents():
    (found,) = jp.blocked_gradients(blocked_cases.spiking_without_surrogate)(blocked_cases.W, blocked_cases.X)
    assert "from the tangent `t` of" in found.fix


@pytest.mark.parametrize(
    ("dtype", "wider"),
    [(jnp.float16, "bfloat16 or float32"), (jnp.bfloat16, "float64"), (jnp.float32, "float64")],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_a_fix_never_names_the_dtype_in_use(dtype, wider):
    info = jnp.finfo(dtype)
    tiny = jnp.asarray(float(info.tiny) ** 0.95, dtype)
    (under,) = jp.blocked_gradients(lambda w: jnp.sum((w * tiny) * tiny))(jnp.ones(3, dtype))
    huge = jnp.full(3, float(info.max) ** 0.6, dtype)
    (over,) = jp.blocked_gradients(lambda w: jnp.sqrt(jnp.sum(w * w)))(huge)
    assert (under.cause, over.cause) == ("underflow", "overflow")
    for found in (under, over):
        assert found.fix.endswith(f"or compute this part in {wider}.")


def test_the_dead_units_of_a_loop_over_layers_are_one_finding():
    def loss(params, x):
        h = x
        for p in params:
            h = jax.nn.relu(h @ p["w"] + p["b"][None])
        return jnp.sum(h)

    counts, mixing = [1, 3, 0, 2], jnp.full((4, 4), 0.25)
    params = [{"w": mixing, "b": jnp.where(jnp.arange(4) < count, -50.0, 1.0)} for count in counts]
    (found,) = jp.blocked_gradients(loss, thresholds=Thresholds(dead=0.2))(params, jnp.ones((5, 4)))
    assert found.message.startswith("3 of 4 units get no gradient through `jax.nn.relu(")
    assert "(pass 2 of 4)" in found.message
    assert found.numbers == {"dead": 0.75, "units": 4, "passes": [1, 2, 4]}


# --- growth of the work ---------------------------------------------------------------------------------------


def test_each_node_is_visited_once():
    def loss(w, x):
        for _ in range(20):
            x = jnp.tanh(w * x) + x
        return jnp.sum(x)

    graph = jp.trace(loss)(1.0, jnp.ones(3))
    visits = []

    def transfer(node, sets):
        visits.append(node.index)
        return [sets[0] | sets[-1]] * len(node.outputs)

    reached = propagate(graph, {graph.inputs[0].id: 1}, transfer)
    assert len(visits) == len(set(visits)) and graph.outputs[0].id in reached
    back = propagate_back(graph, {graph.outputs[0].id: 1})
    assert graph.inputs[0].id in back and graph.inputs[1].id in back


def test_a_carry_gets_what_reaches_it_in_any_step():
    def loss(a, b):
        def step(carry, _):
            first, second, third = carry
            return (b, first, second), third

        return jnp.sum(jax.lax.scan(step, (a, a, a), None, length=5)[1])

    graph = jp.trace(loss)(1.0, 2.0)
    a, b = (value.id for value in graph.inputs)
    reached = propagate(graph, {a: 1, b: 2})
    assert reached[graph.outputs[0].id] == 3  # b gets there in the fourth step


def test_the_leaves_behind_a_node_are_those_without_another_path():
    def hidden(params, x):
        return jax.nn.relu(x @ params["a"] - jnp.array([50.0, 50.0, 50.0, 0.0])[None])

    def only(params, x):
        h = hidden(params, x)
        return jnp.sum(h) + jnp.sum(h @ params["b"])

    def besides(params, x):
        return only(params, x) + jnp.sum(params["a"] ** 2)

    x = jnp.abs(blocked_cases.X)
    params = {"a": jnp.abs(blocked_cases.W), "b": jnp.ones((4, 2))}
    for loss, leaves in ((only, ("params['a']",)), (besides, ())):
        (found,) = jp.blocked_gradients(loss)(params, x)
        assert (found.kind, found.leaves) == ("dead units", leaves)
