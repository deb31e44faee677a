"""Planted wrong rules are found, ranked first and told apart; what is right is left alone.

The oracle of `check` is differences in float64. Its own oracle is this file: rules whose mistake is known.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from wrong_rules import WRONG

import jaxprop as jp
import models
from helpers import sample

RULES = {case.name: case for case in WRONG}


def draw(*shapes, scale=1.0):
    """Arrays of our own, one for each shape: the same every time."""
    source = np.random.default_rng(5)
    return [jnp.asarray(scale * source.normal(size=shape), jnp.float32) for shape in shapes]


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def sign_flipped():
    return RULES["sign flipped"].make()


# --- planted -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_a_wrong_rule_is_found_and_ranked_first(name):
    case = RULES[name]
    wrong, args = case.make(), draw(*case.shapes)

    def loss(*xs):
        h = [jnp.tanh(x) for x in xs]
        y = first(wrong(*h))
        return jnp.mean(y * y)

    report = jp.check(loss, tuple(range(len(args))), total=False)(*args)
    assert not report.ok
    found = report[0]
    assert (found.primitive, found.cause, found.kind) == ("wrong", case.cause, "custom rule"), report
    assert {finding.primitive for finding in report} == {"wrong"}
    assert found.source is not None and found.source.line > 0


def in_scan(wrong):
    def loss(x):
        def body(h, _):
            h = jnp.cos(wrong(h))
            return h, jnp.sum(h)

        _, sums = lax.scan(body, x, None, length=5)
        return jnp.sum(sums)

    return loss


def in_cond(wrong):
    def loss(x):
        return jnp.sum(lax.cond(jnp.sum(x) < 1e3, wrong, jnp.sin, x) ** 2)

    return loss


def in_remat(wrong):
    return lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(wrong(x)))(x))


def in_jit(wrong):
    return lambda x: jnp.sum(jax.jit(lambda x: jnp.sin(wrong(x)))(x))


def in_vmap(wrong):
    return lambda x: jnp.sum(jax.vmap(lambda x: jnp.sin(wrong(x)))(x))


def in_linen(wrong):
    nn = models.need("flax.linen")
    model = nn.Sequential([nn.Dense(3), wrong, nn.Dense(2)])
    params = model.init(jax.random.key(0), jnp.ones((4, 3)))
    return lambda x: jnp.sum(model.apply(params, x) ** 2)


def in_equinox(wrong):
    eqx = models.need("equinox")
    one, two = jax.random.split(jax.random.key(0))
    model = eqx.nn.Sequential(
        [eqx.nn.Linear(3, 3, key=one), eqx.nn.Lambda(wrong), eqx.nn.Linear(3, 2, key=two)]
    )
    return lambda x: jnp.sum(jax.vmap(model)(x) ** 2)


PLACES = (in_scan, in_cond, in_remat, in_jit, in_vmap)
LIBRARIES = (in_linen, in_equinox)


@pytest.mark.library
@pytest.mark.parametrize(
    "place",
    [*PLACES, *(pytest.param(place, marks=pytest.mark.slow) for place in LIBRARIES)],
    ids=lambda place: place.__name__,
)
def test_a_wrong_rule_is_found_wherever_it_stands(place):
    report = jp.check(place(sign_flipped()), total=False)(*draw((4, 3)))
    assert [(finding.primitive, finding.cause) for finding in report] == [("wrong", "sign")], report
    assert (report[0].step != ()) == (place is in_scan)


def test_a_rule_wrong_at_one_step_only_is_found_at_that_step():
    wrong = jax.custom_vjp(lambda x, i: x**2)
    wrong.defvjp(
        lambda x, i: (x**2, (x, i)),
        lambda kept, ct: (jnp.where(kept[1] == 3, ct, 2 * kept[0] * ct), None),
    )

    def loss(x):
        y, _ = lax.scan(lambda h, i: (jnp.sin(wrong(h, i)), None), x, jnp.arange(5))
        return jnp.sum(y)

    report = jp.check(loss, steps=5, total=False)(jnp.array([0.7, 1.1], jnp.float32))
    assert [finding.step for finding in report] == [(3,)]
    few = jp.check(loss, steps=3)(jnp.array([0.7, 1.1], jnp.float32))
    assert [finding.kind for finding in few] == ["total"]  # steps 0, 2 and 4 were looked at


def test_the_wrong_rule_of_two_with_the_greater_error_comes_first():
    slightly, badly = RULES["half a percent"].make(), sign_flipped()
    report = jp.check(lambda x: jnp.sum(badly(slightly(x))), total=False)(*draw((4, 3)))
    assert [finding.cause for finding in report] == ["sign", "factor"]
    errors = [finding.numbers["relative error"] for finding in report]
    assert errors[0] > errors[1] > 1e-3


def test_a_rule_of_jaxprop_is_checked_too():
    def loss(x):
        h = jnp.sin(x)
        return jnp.sum(h**3)

    (x,) = draw((4,))
    report = jp.check(loss, rules=[("h", jp.rules.scale(0.5))], total=False)(x)
    assert [(f.kind, f.node, f.cause) for f in report] == [("rule", "h", "factor")]
    assert report[0].message == (
        "the rule given for `h` is not the derivative of its primal with respect to `x`: it is 0.5 times the "
        "derivative."
    )


def test_what_is_said_of_an_element():
    report = jp.check(lambda x: jnp.sum(RULES["one element"].make()(x)), total=False)(*draw((4, 3)))
    (found,) = report
    assert found.element == (0, 0)
    assert found.numbers["sent back"] == 0.0
    assert found.numbers["derivative"] == pytest.approx(3 * found.numbers["derivative"] / 3)
    assert found.numbers["elements wrong"] == "1 of 12"


# --- by design -----------------------------------------------------------------------------------------


def straight_through():
    rounded = jax.custom_vjp(lambda x: jnp.round(x))
    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, ct: (ct,))
    return rounded, "straight-through"


def reversal():
    reverse = jax.custom_vjp(lambda x: x)
    reverse.defvjp(lambda x: (x, None), lambda _, ct: (-ct,))
    return reverse, "reversal"


def clipping():
    clipped = jax.custom_vjp(lambda x: x)
    clipped.defvjp(lambda x: (x, None), lambda _, ct: (jnp.clip(ct, -0.3, 0.3),))
    return clipped, "not linear"


@pytest.mark.parametrize("make", (straight_through, reversal, clipping), ids=lambda make: make.__name__)
def test_a_rule_that_is_no_derivative_by_design_is_a_finding_unless_expected(make):
    rule, cause = make()

    def loss(x):
        y = rule(1.7 * x)
        return jnp.sum(y**2)

    (x,) = draw((6,))
    assert [(f.node, f.cause) for f in jp.check(loss, total=False)(x)] == [("y", cause)]
    report = jp.check(loss, expected="y")(x)
    assert report.ok and report.notes == ("1 rule excluded by `expected=`.",)


# --- where rounding, or what JAX leaves out of the chain rule, is all there is -------------------------------


def kalman(log_noise, observed):
    """Its solves factor a copy of the matrix that is cut off from the chain rule."""
    move, look = jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.array([[1.0, 0.0]])

    def step(carry, y):
        mean, cov = carry
        mean, cov = move @ mean, move @ cov @ move.T + jnp.exp(log_noise[0]) * jnp.eye(2)
        spread = look @ cov @ look.T + jnp.exp(log_noise[1]) * jnp.eye(1)
        gain = jnp.linalg.solve(spread, look @ cov).T
        off = y - look @ mean
        fit = off @ jnp.linalg.solve(spread, off) + jnp.linalg.slogdet(spread)[1]
        return (mean + gain @ off, cov - gain @ spread @ gain.T), fit

    return 0.5 * jnp.sum(jax.lax.scan(step, (jnp.zeros(2), jnp.eye(2)), observed)[1])


def constant_matrix(b):
    """A matrix that the user has cut off stays where it is."""
    a = jax.lax.stop_gradient(jnp.eye(3) + jnp.outer(b, b))
    return jnp.sum(jnp.linalg.solve(a, b) ** 2)


def far_out(x):
    """In float32 the neighbours of -1e5 are 0.008 apart: the derivative is right to three digits only."""
    return jnp.sum(jnp.logaddexp(x, x[::-1]) * jnp.arange(1.0, 5.0))


def conjugate_gradients(w, b):
    """It reads its matrix twice, for the solution and for the derivative."""
    x, _ = jax.scipy.sparse.linalg.cg(lambda x: jax.nn.softplus(w) * x, b, maxiter=20)
    return jnp.sum(x**2)


def root(a):
    """Its solver is no program that double precision can be had of."""
    newton = lambda f, x: jax.lax.fori_loop(0, 20, lambda i, x: x - f(x) / jax.grad(f)(x), x)  # noqa: E731
    of = lambda x: x**3 + a * x - 1.0  # noqa: E731
    return jax.lax.custom_root(of, jnp.float32(1.0), newton, lambda g, y: y / g(jnp.float32(1.0))) ** 2


ODD = {
    "conjugate gradients": (conjugate_gradients, jnp.array([1.0, 2.0]), jnp.array([1.0, -1.0])),
    "root": (root, jnp.float32(2.0)),
    "kalman": (kalman, jnp.array([-1.0, 0.0]), jnp.sin(jnp.arange(8.0))[:, None]),
    "a matrix that is cut off": (constant_matrix, jnp.array([0.5, -0.25, 1.0])),
    "far from zero": (far_out, jnp.array([-1e5, -1e5, -2e5, -1e5])),
}


@pytest.mark.library
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "kalman" else n for n in ODD])
def test_what_is_right_as_far_as_can_be_gives_no_finding(name):
    loss, *args = ODD[name]
    report = jp.check(loss)(*args)
    assert report.ok and not report.findings, str(report)


# --- healthy -------------------------------------------------------------------------------------------

KINKS = {
    "relu at 0": lambda x: jnp.sum(jax.nn.relu(x - x[0]) * x),
    "abs at 0": lambda x: jnp.sum(jnp.abs(x - x[1]) * jnp.sin(x)),
    "ties of max": lambda x: jnp.max(jnp.concatenate([x, x])) + jnp.sum(jnp.maximum(x, x)),
    "a kink within the step": lambda x: jnp.sum(jax.nn.relu(x - x[0] + 1e-6) ** 1),
    "round and sign": lambda x: jnp.sum(x * jnp.round(3 * x) + jnp.sign(x) * x),
    "argmax and one hot": lambda x: jnp.sum(jax.nn.one_hot(jnp.argmax(x), 5) * x),
    "clip at its bound": lambda x: jnp.sum(jnp.clip(x, x[0], x[1] + 5) * x),
    "sort": lambda x: jnp.sum(jnp.sort(x) * jnp.arange(5.0)),
    "sqrt at 0": lambda x: jnp.sum(jnp.where(x > 9, jnp.sqrt(jnp.maximum(x - 9, 0)), x)),
    "where": lambda x: jnp.sum(jnp.where(x > 0, x, jnp.expm1(x))),
    "stop_gradient": lambda x: jnp.sum(x * lax.stop_gradient(jnp.exp(x))),
    "straight through by hand": lambda x: jnp.sum((x + lax.stop_gradient(jnp.round(x) - x)) ** 2),
    "dropout": lambda x: jnp.sum(jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, (5,)), x**2, 0.0)),
    "reparametrised": lambda x: jnp.sum((x + jnp.exp(x) * jax.random.normal(jax.random.key(0), (5,))) ** 2),
    "logsumexp, softplus": lambda x: jax.nn.logsumexp(30 * x) + jnp.sum(jax.nn.softplus(100 * x)),
    "small and large": lambda x: jnp.sum(lax.rsqrt(x**2 * jnp.array([1e-12, 1.0, 1e6, 1e-6, 1e3]) + 1e-10)),
    "linear algebra": lambda x: jnp.linalg.slogdet(jnp.outer(x, x) + jnp.eye(5))[1],
    "eigenvalues": lambda x: jnp.sum(jnp.linalg.eigvalsh(jnp.outer(x, x) + jnp.diag(jnp.arange(5.0))) ** 2),
    "complex": lambda x: jnp.sum(jnp.abs(jnp.fft.fft(x)) ** 2) + jnp.real(jnp.vdot(jnp.exp(1j * x), x + 0j)),
    "while ahead": lambda x: jnp.sum(x) * lax.while_loop(lambda i: i < 3.0, lambda i: i + 1, 0.0),
    "scatter and gather": lambda x: jnp.sum(jnp.zeros(3).at[jnp.array([0, 1, 0])].add(x[:3]) ** 2 * x[2]),
    "cumulative": lambda x: jnp.sum(jnp.cumsum(x) * jnp.cumprod(x)) + jnp.max(lax.cummax(x)),
    "switch in scan": lambda x: jnp.sum(
        lax.scan(lambda h, i: (lax.switch(i % 2, (jnp.sin, jnp.cos), h), h), x, jnp.arange(4))[1]
    ),
    "special functions": lambda x: jnp.sum(lax.erf(x) + lax.lgamma(x**2 + 1) + lax.digamma(x**2 + 1)),
}


#: What takes a second or more to compile.
LONG = {"linear algebra", "eigenvalues", "special functions", "complex"}


@pytest.mark.library
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in KINKS]
)
def test_what_is_right_gives_no_finding(name):
    report = jp.check(
        KINKS[name], total=name in ("stop_gradient", "straight through by hand", "switch in scan")
    )(*draw((5,)))
    assert not len(report), report
    assert report.figures["worst"] < 1e-4
    if "total" in report.figures:
        assert report.figures["total"] < 1e-4


HEALTHY = ("dict_scan_layers", "dict_checkpoint_policy")
MORE = (
    *("dict_bf16", "linen_cnn", "linen_vae", "nnx_attention", "eqx_gru"),
    *("haiku_cnn", "diffrax_ode_direct", "distrax_flow"),
)
MODELS = {case.name: case for case in models.CASES}


@pytest.mark.library
@pytest.mark.parametrize(
    "name", [*HEALTHY, *(pytest.param(name, marks=pytest.mark.slow) for name in sample(MORE, 2))]
)
def test_a_healthy_model_has_no_suspect(name, key):
    loss, args, argnums = MODELS[name].make(key)
    report = jp.check(loss, argnums)(*args)
    assert report.ok, report
    assert report.figures["nodes"] > 5
    assert report.figures["total"] < (0.05 if "bf16" in name else 1e-3)


def test_a_while_loop_solver_with_an_implicit_rule_is_right():
    """Its program cannot be differentiated backwards: differences decide."""

    def solve(a):
        return lax.fori_loop(0, 40, lambda _, x: jnp.cos(x) * a, jnp.ones_like(a))

    root = jax.custom_vjp(
        lambda a: lax.while_loop(lambda s: s[0] < 60, lambda s: (s[0] + 1, a * jnp.cos(s[1])), (0, a))[1]
    )
    root.defvjp(
        lambda a: (solve(a), (a, solve(a))),
        lambda kept, ct: (ct * jnp.cos(kept[1]) / (1 + kept[0] * jnp.sin(kept[1])),),
    )
    assert jp.check(lambda a: jnp.sum(root(a) ** 2), total=False)(jnp.array([0.3, 0.6], jnp.float32)).ok


# --- undecided -----------------------------------------------------------------------------------------


def relu(rule):
    f = jax.custom_vjp(lambda x: jnp.maximum(x, 0.0))
    f.defvjp(lambda x: (f(x), x), lambda x, ct: (rule(x, ct),))
    return f


def sevenfold(x, ct):
    return 7 * ct


def test_a_rule_at_a_kink_only_is_undecided():
    f = relu(sevenfold)
    loss = lambda w: jnp.sum(f(w))  # noqa: E731
    report = jp.check(loss)(jnp.zeros(3))
    assert not report.ok
    (found,) = report
    assert (found.kind, found.severity, found.cause) == ("undecided", "warning", "no derivative")
    assert found.message == (
        "the custom_vjp rule of `<lambda>` could not be checked with respect to `w`: no output has a derivative "
        "at these operands."
    )
    assert "At operands moved by 1% the rule is wrong: " in found.why
    assert (report.figures["nodes"], report.figures["undecided"]) == (1, 1)  # the sum is right
    with pytest.raises(AssertionError, match="could not be checked"):
        jp.assert_gradients(loss)(jnp.zeros(3))
    jp.assert_gradients(loss, allow_undecided=True)(jnp.zeros(3))
    with pytest.raises(AssertionError, match="is not the derivative"):
        jp.assert_gradients(loss, allow_undecided=True)(jnp.ones(3))


@pytest.mark.parametrize("value", (0.0, 0.5, 1.0))
def test_a_right_rule_at_a_kink_is_decided_next_to_it(value):
    f = relu(lambda x, ct: ct * jnp.where(x == 0, value, (x > 0).astype(x.dtype)))
    report = jp.check(lambda w: jnp.sum(f(w)))(jnp.zeros(3))
    assert not len(report) and (report.figures["nodes"], report.figures["undecided"]) == (2, 0)


def test_a_rule_that_is_nowhere_finite_is_undecided():
    root = jax.custom_vjp(jnp.sqrt)
    root.defvjp(lambda x: (jnp.sqrt(x), x), lambda x, ct: (ct / jnp.sqrt(x),))
    report = jp.check(lambda w: jnp.sum(root(w)), total=False)(-jnp.ones(3))
    (found,) = report
    assert (found.kind, found.cause, found.node) == ("undecided", "not finite", "sqrt")
    assert found.why.endswith("1 node after it is not finite either.")
    assert (report.figures["nodes"], report.figures["undecided"]) == (0, 2)


def primitive(name, dtype, factor, refuse):
    """An elementwise sine of one dtype only, whose JVP is `factor` times the derivative."""
    p = Primitive(name)

    @p.def_abstract_eval
    def _(x):
        if refuse == "tracing" and x.dtype != dtype:
            raise TypeError(f"{name} takes {dtype} only")
        return x

    def lower(ctx, x):
        if ctx.avals_in[0].dtype != dtype:
            raise NotImplementedError(f"{name} takes {dtype} only")
        return mlir.lower_fun(jnp.sin, multiple_results=False)(ctx, x)

    mlir.register_lowering(p, lower)
    ad.defjvp(p, lambda t, x: factor * t * jnp.cos(x))
    batching.primitive_batchers[p] = lambda xs, axes: (p.bind(*xs), axes[0])
    return p.bind


@pytest.mark.library
@pytest.mark.parametrize("refuse", ("tracing", "compiling"))
def test_a_primitive_that_refuses_double_precision_is_checked_in_its_own(refuse):
    x = jnp.array([0.3, 0.7, 1.1])
    right = primitive("right32", jnp.float32, 1.0, refuse)
    report = jp.check(lambda w: jnp.sum(right(w)), total=False)(x)
    assert not len(report) and report.figures["nodes"] == 2
    assert report.notes == ("Checked with larger steps, since it does not run in float64: `right32`.",)
    wrong = primitive("wrong32", jnp.float32, 1.5, refuse)
    (found,) = jp.check(lambda w: jnp.sum(wrong(w)), total=False)(x)
    assert (found.kind, found.cause) == ("primitive", "factor")
    assert found.message == (
        "the derivative rule of the primitive `wrong32` is not the derivative of what it computes with respect to "
        "`w`: it is 1.5 times the derivative."
    )
    np.testing.assert_allclose(found.numbers["derivative"], found.numbers["sent back"] / 1.5, rtol=1e-2)


@pytest.mark.library
def test_a_primitive_too_coarse_for_differences_is_undecided():
    wrong = primitive("wrong16", jnp.bfloat16, 1.5, "tracing")
    (found,) = jp.check(lambda w: jnp.sum(wrong(w)), total=False)(jnp.array([0.3, 0.7], jnp.bfloat16))
    assert (found.kind, found.cause, found.why) == (
        "undecided",
        "imprecise",
        "`wrong16` does not run in float64.",
    )


def bisection(steps, factor, looped=True):
    """The root x of x**3 + p[0] x = p[1] in [0, 2], with `factor` times its implicit derivative as the rule."""

    def halve(p, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = middle**3 + p[0] * middle > p[1]
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    def solve(p):
        bracket = jnp.zeros_like(p[0]), 2 * jnp.ones_like(p[0])
        if looped:
            return sum(lax.fori_loop(0, steps, lambda _, b: halve(p, b), bracket)) / 2
        for _ in range(steps):
            bracket = halve(p, bracket)
        return sum(bracket) / 2

    root = jax.custom_vjp(solve)

    def backward(kept, ct):
        x, p = kept
        slope = 3 * x**2 + p[0]
        return (factor * ct * jnp.stack([-x / slope, 1 / slope]),)

    root.defvjp(lambda p: (root(p), (root(p), p)), backward)
    return lambda p: root(p) ** 2


P = jnp.array([1.0, 2.0])  # the root is 1: x**3 + x = 2


@pytest.mark.library
@pytest.mark.parametrize("steps", (14, 24, 50))
def test_the_implicit_rule_of_a_bisection(steps):
    assert not len(jp.check(bisection(steps, 1.0))(P))
    np.testing.assert_allclose(jax.grad(bisection(steps, 1.0))(P), [-0.5, 0.5], rtol=1e-3)  # by hand
    (zero,) = jp.check(bisection(steps, 0.0))(P)
    assert (zero.kind, zero.cause) == ("custom rule", "zero")
    (doubled,) = jp.check(bisection(steps, 2.0))(P)
    assert (doubled.kind, doubled.cause) == ("custom rule", "factor")
    assert re.search(r"it is (2|1\.99\d*|2\.00\d*) times the derivative\.$", doubled.message)


@pytest.mark.library
@pytest.mark.parametrize("looped", (True, False))
def test_a_bisection_too_short_for_any_difference_is_not_called_right(looped):
    for factor in (0.0, 1.0, 2.0):
        report = jp.check(bisection(5, factor, looped), total=False)(P)
        if looped:
            (found,) = report
            assert (found.kind, found.cause) == ("undecided", "piecewise constant")
        else:  # a program of a few jumps, which says nothing of an equation: it is taken at its word
            assert report.ok == (factor == 0.0)


def test_a_fine_quantiser_is_no_iteration():
    rounded = jax.custom_vjp(lambda x: jnp.round(1000 * x) / 1000)
    rounded.defvjp(lambda x: (jnp.round(1000 * x) / 1000, None), lambda _, ct: (ct,))
    (found,) = jp.check(lambda w: jnp.sum(rounded(w)), total=False)(jnp.array([0.3333, 0.7777]))
    assert found.cause == "straight-through"


def test_a_rule_where_the_derivative_is_zero_is_not_off_by_a_ratio():
    step = jax.custom_vjp(lambda x: jnp.round(x))
    step.defvjp(lambda x: (jnp.round(x), x), lambda x, ct: (ct * jnp.exp(-(x**2)),))
    (found,) = jp.check(lambda w: jnp.sum(step(w)), total=False)(jnp.array([0.3, 0.7, 1.2]))
    assert re.fullmatch(r".*: it has norm [\d.]+, where the derivative is zero\.", found.message)


# --- in force ------------------------------------------------------------------------------------------


def test_assert_gradients_says_the_report():
    with pytest.raises(AssertionError) as caught:
        jp.assert_gradients(lambda x: jnp.sum(sign_flipped()(x)))(*draw((3,)))
    text = " ".join(str(caught.value).split())
    assert text.startswith(
        "check <lambda>: 1 error 1. error: the custom_vjp rule of `wrong` is not the derivative"
    )
    assert "If this is intended, pass `expected=" in text
    assert re.search(r"test_check.py:\d+", text)
    jp.assert_gradients(lambda x: jnp.sum(jnp.sin(x)))(*draw((3,)))


def test_nodes_that_are_the_same_are_compiled_once():
    def loss(x):
        for _ in range(4):
            x = jnp.sin(x) * 1.5
        return jnp.sum(x)

    figures = jp.check(loss)(*draw((3,))).figures
    assert (figures["nodes"], figures["kinds"]) == (9, 3)


def test_only_the_nodes_asked_for():
    wrong = sign_flipped()
    report = jp.check(lambda x: jnp.sum(wrong(jnp.sin(x))), nodes="sin", total=False)(*draw((3,)))
    assert report.ok and report.figures["nodes"] == 1


def test_double_precision_holds_rules_to_more(x64):
    wrong = jax.custom_vjp(jnp.exp)
    wrong.defvjp(lambda x: (jnp.exp(x), x), lambda x, ct: ((1 + 1e-5) * ct * jnp.exp(x),))
    report = jp.check(lambda x: jnp.sum(wrong(x)))(jnp.linspace(0.0, 1.0, 4))
    assert [finding.cause for finding in report] == ["factor"]


def test_complex_numbers():
    """JAX's cotangents are not conjugated: a rule that conjugates is wrong, one that does not is right."""
    right, wrong = jax.custom_vjp(lambda z: z * z), jax.custom_vjp(lambda z: z * z)
    right.defvjp(lambda z: (z * z, z), lambda z, ct: (2 * z * ct,))
    wrong.defvjp(lambda z: (z * z, z), lambda z, ct: (2 * jnp.conj(z) * ct,))
    z = jnp.array([1.0 + 2.0j, 0.3 - 1.0j], jnp.complex64)
    assert jp.check(lambda z: jnp.sum(jnp.abs(right(z))))(z).ok
    assert len(jp.check(lambda z: jnp.sum(jnp.abs(wrong(z))), total=False)(z)) == 1


@pytest.mark.library
def test_calls_of_all_kinds():
    def loss(params, x, *, k=2.0):
        y = jnp.sin(params["a"] * x) * k
        return jnp.sum(y), {"y": y}

    assert jp.check(loss, has_aux=True)({"a": jnp.ones(3)}, jnp.arange(3.0), k=3.0).ok
    assert jp.check(lambda w: jnp.sin(w))(jnp.ones(3)).ok  # no scalar
    assert jp.check(jax.jit(lambda w, n: jnp.sum(jnp.sin(w)) * n))(jnp.ones(3), 2).ok
    assert jp.check(lambda x: jnp.sum(x**2))(jnp.zeros((0, 3))).ok
    assert jp.check(lambda x: x**2)(3.0).ok
    nothing = jp.check(lambda x: jnp.sum(lax.stop_gradient(x)))(jnp.ones(3))
    assert nothing.ok and nothing.figures["nodes"] == 0


@pytest.mark.library
def test_a_gradient_that_is_not_finite_is_left_to_diagnose():
    trap = jp.check(lambda x: jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0)))(jnp.array([0.0, 1.0, 4.0]))
    assert trap.ok and "it is not finite; `diagnose` finds where that comes from." in trap.notes[-1]


def test_the_report_is_data():
    data = jp.check(lambda x: jnp.sum(sign_flipped()(x)), total=False)(*draw((3,))).data()
    (found,) = data["findings"]
    assert (data["ok"], found["cause"], found["kind"]) == (False, "sign", "custom rule")
    assert found["source"]["line"] > 0 and found["numbers"]["relative error"] == pytest.approx(2, rel=1)
