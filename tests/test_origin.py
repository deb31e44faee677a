"""The origin of NaN and Inf: real reports in every context, hard cases, and healthy models without a finding."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
import models
from helpers import FULL, sample
from jaxprop.diagnosis import explain_bad_step, load_reproduction, save_reproduction
from nan_cases import CASES, marked_lines

# --- real reports ------------------------------------------------------------------------------------


def total(cases):
    """One loss of many: each term gets the cotangent 1, so that none spoils another."""

    def loss(xs):
        return sum(case.loss(x).astype(jnp.float32) for case, x in zip(cases, xs, strict=True))

    return loss


def stacked(cases):
    """Three points for each case, the bad one in the middle."""
    return [
        jnp.stack(
            [
                case.bad if case.good is None else case.good,
                case.bad,
                case.bad if case.good is None else case.good,
            ]
        )
        for case in cases
    ]


def plain(cases):
    return total(cases), [case.bad for case in cases]


def jitted(cases):
    return jax.jit(total(cases)), [case.bad for case in cases]


def remat(cases):
    return jax.checkpoint(total(cases)), [case.bad for case in cases]


def vmapped(cases):
    return lambda xs: jnp.mean(jax.vmap(total(cases))(xs)), stacked(cases)


def scanned(cases):
    def loss(xs):
        def body(sum_, x):
            return sum_, total(cases)(x)

        return jnp.sum(jax.lax.scan(body, jnp.float32(0.0), xs)[1])

    return loss, stacked(cases)


def in_flax(cases):
    nn = models.need("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self):
            xs = [self.param(f"x{i}", lambda _, case=case: case.bad) for i, case in enumerate(cases)]
            return total(cases)(xs)

    model = Model()
    return model.apply, model.init(jax.random.key(0))


def in_equinox(cases):
    eqx = models.need("equinox")

    class Model(eqx.Module):
        xs: list[jax.Array]

        def __call__(self):
            return total(cases)(self.xs)

    return (lambda model: model()), Model([case.bad for case in cases])


def everything(cases):
    """Scan over remat over vmap, jitted."""
    inner = jax.checkpoint(lambda xs: jnp.mean(jax.vmap(total(cases))(xs)))

    @jax.jit
    def loss(xs):
        return jnp.sum(jax.lax.scan(lambda c, x: (c, inner(x)), jnp.float32(0.0), xs)[1])

    return loss, [jnp.stack([x, x]).at[0].set(x[0]) for x in stacked(cases)]


# How a context lengthens the step and the element of what it holds.
CONTEXTS = {
    "plain": (plain, (), ()),
    "jit": (jitted, (), ()),
    "remat": (remat, (), ()),
    "vmap": (vmapped, (), (1,)),
    "scan": (scanned, (1,), ()),
    "flax": (in_flax, (), ()),
    "equinox": (in_equinox, (), ()),
    "everything": (everything, None, (1,)),
}
SOME = [case for case in CASES if case.good is not None][::6]


def check_cases(cases, context):
    loss, points = CONTEXTS[context][0](cases)
    report = diagnose(loss, most=1000)(points)
    places = {}
    for finding in report:
        assert finding.severity == "error", finding
        places.setdefault(finding.source.line, []).append(finding)
    json.loads(report.json())
    for case in cases:
        for expect, line in zip(case.origins, marked_lines(case.loss), strict=True):
            found = places[line]
            causes = [f.cause for f in found if _is_at(f, expect, *_lengthened(case, expect, context))]
            assert expect.cause in causes, (case.name, expect, [(f.cause, f.step, f.element) for f in found])
    assert set(places) == {line for case in cases for line in marked_lines(case.loss)}


def _lengthened(case, expect, context):
    """Where the bad one of three points is. If all are bad: the first in the order of the pass."""
    _, steps, elements = CONTEXTS[context]
    if case.good is not None:
        return steps, elements
    return steps and (2 if expect.back else 0,), elements and (0,)


def _is_at(finding, expect, steps, elements):
    if steps is None:  # in which of the two equal steps it shows first depends on the half of the pass
        return finding.element == (*elements, *expect.element)
    return (finding.element, finding.step) == ((*elements, *expect.element), (*steps, *expect.step))


def test_there_are_forty_reports():
    assert len({case.reference for case in CASES}) == len(CASES) >= 40
    assert len({case.reference.split("#")[0] for case in CASES}) >= 15


@pytest.mark.library
@pytest.mark.parametrize("context", ["plain", pytest.param("everything", marks=pytest.mark.slow)])
def test_some_real_reports(context):
    check_cases(SOME, context)


@pytest.mark.slow
@pytest.mark.library
def test_all_real_reports():
    check_cases(CASES, "plain")


OTHERS = [name for name in CONTEXTS if name != "plain"]


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("context", OTHERS)
def test_real_reports_in_context(context):
    """A diagonal: every other report in one context. With JAXPROP_FULL=1 each in all, which takes minutes."""
    check_cases(sample(CASES, 2 * len(OTHERS), 2 * OTHERS.index(context)), context)


@pytest.mark.library
@pytest.mark.parametrize("case", CASES[::8], ids=lambda case: case.name)
def test_one_report_by_itself(case):
    report = diagnose(case.loss)(case.bad)
    assert [finding.cause for finding in report] == [expect.cause for expect in case.origins]
    gradient = jax.grad(case.loss)(case.bad)
    assert any(finding.leaves for finding in report) == (not np.all(np.isfinite(gradient)))


# --- hard cases ---------------------------------------------------------------------------------------


def causes(report):
    return [(finding.severity, finding.primitive, finding.cause) for finding in report]


def diagnose(loss, *args, **options):
    """`jp.diagnose`, of whose findings those of kind `origin` are kept."""
    of = jp.diagnose(loss, *args, **options)

    def diagnosed(*args, **kwargs):
        report = of(*args, **kwargs)
        origins = [finding for finding in report if finding.kind == "origin"]
        return jp.Report.of(report.title, origins, report.figures, report.notes)

    return diagnosed


def test_a_masked_nan_that_spoils_nothing_is_a_note():
    def loss(w, x):
        with_nan = jnp.sqrt(x * w)
        metric = jnp.log(-w)
        return jnp.sum(jnp.where(x > 0, jnp.sin(w), w)), (metric, with_nan)

    report = diagnose(loss, has_aux=True)(jnp.ones(2), jnp.array([-1.0, 2.0]))
    assert report.ok
    assert {finding.severity for finding in report} == {"note"}
    assert report[0].message.endswith("which reaches neither the gradient nor the loss: harmless.")


def test_minus_infinity_in_a_mask_is_no_finding():
    def loss(q, mask):
        weights = jax.nn.softmax(jnp.where(mask, q @ q.T, -jnp.inf), axis=-1)
        return jnp.sum(weights**2) + jnp.sum(jax.nn.logsumexp(jnp.where(mask, q @ q.T, -jnp.inf), axis=-1))

    report = diagnose(loss)(jnp.ones((3, 2)), jnp.tril(jnp.ones((3, 3), bool)))
    assert len(report) == 0 and report.ok


def test_a_nan_that_the_library_writes_and_masks_is_no_finding():
    # `jnp.std` chooses between a quotient and nan; the division by 0 is elsewhere.
    report = diagnose(jax.jit(lambda x: jnp.std(x) + 0.0 / x[0]))(jnp.array([0.0, 2.0]))
    assert {finding.primitive for finding in report} == {"div"}


def test_nan_in_data_nobody_reads_is_no_finding():
    batch = {"x": jnp.array([[1.0, 2.0], [jnp.nan, 1.0]]), "unused": jnp.array([jnp.nan])}
    assert len(diagnose(lambda w, batch: jnp.sum(w * batch["x"][0]))(jnp.ones(2), batch)) == 0


def test_data_is_accused_by_leaf_and_index():
    batch = {"x": jnp.array([[1.0, 2.0], [jnp.inf, 1.0]]), "y": jnp.ones(2)}
    report = diagnose(lambda w, batch: jnp.mean((batch["x"] @ w - batch["y"]) ** 2))(jnp.ones(2), batch)
    assert [(f.node, f.element, f.numbers["example"]) for f in report] == [("batch['x']", (1, 0), 1)]
    assert (
        report[0].message
        == "`batch['x']` contains inf at [1, 0], which propagates to the gradient and the loss."
    )


def test_an_infinity_without_nan():
    report = diagnose(lambda w: jnp.exp(100.0 * w))(1.0)
    assert causes(report) == [("error", "exp", "overflow of exp")]
    assert report[0].numbers == {"mul": 100.0, "result": float("inf")}


def test_two_independent_origins_those_of_the_gradient_first():
    def loss(w):
        return jnp.log(w[0]) + jnp.sqrt(w[1])

    report = diagnose(loss)(jnp.array([-1.0, 0.0]))
    assert causes(report) == [("error", "sqrt", "sqrt at 0"), ("error", "log", "log of a negative")]
    assert [finding.leaves for finding in report] == [("w",), ()]


def test_what_a_first_origin_causes_is_no_second():
    def loss(x):
        e = jnp.exp(x)  # inf
        p = e / jnp.sum(e)  # inf / inf
        return -jnp.log(p[0]) - jnp.log(p[1])  # log of 0, log of nan

    report = diagnose(loss)(jnp.array([100.0, 1.0]))
    assert causes(report)[0] == ("error", "exp", "overflow of exp")
    assert "div" not in {finding.primitive for finding in report}


def test_inside_a_cond_inside_nested_scans():
    def loss(w, table):
        def outer(c, row):
            def inner(d, x):
                return d, jax.lax.cond(x > 5.0, lambda z: jnp.log(z - 6.0), lambda z: z * 2.0, x * d)

            c, ys = jax.lax.scan(inner, c, row, reverse=True)
            return c, jnp.sum(ys)

        return jnp.sum(jax.lax.scan(outer, w, table)[1])

    report = diagnose(loss)(jnp.float32(1.0), jnp.array([[1.0, 2.0, 7.0], [6.0, 6.0, 2.0]]))
    (finding,) = report
    assert (finding.primitive, finding.cause, finding.branch, finding.step) == ("log", "log of 0", 1, (1, 1))
    assert [part.split()[0] for part in finding.path] == ["scan", "scan", "cond"]


def test_in_the_backward_pass_the_last_step_is_the_first():
    def loss(w, xs):
        return jnp.sum(jax.lax.scan(lambda c, x: (c, jnp.sqrt(w * x)), 0.0, xs)[1])

    report = diagnose(loss)(jnp.float32(1.0), jnp.array([0.0, 1.0, 0.0, 1.0]))
    assert (report[0].step, report[0].numbers["bad steps"]) == ((2,), 2)
    forward = diagnose(loss)(jnp.float32(1.0), jnp.array([1.0, -1.0, -1.0, 1.0]))
    assert (forward[0].step, forward[0].cause) == ((1,), "sqrt of a negative")


def test_in_a_rule_of_ones_own():
    @jax.custom_vjp
    def double(x):
        return 2.0 * x

    double.defvjp(lambda x: (double(x), x), lambda x, ct: (ct / (x - 1.0),))
    report = diagnose(lambda x: jnp.sum(double(x)))(jnp.array([3.0, 1.0]))
    assert [(f.node, f.cause, f.element) for f in report] == [("double", "custom rule", (1,))]


def test_in_the_seed():
    report = diagnose(lambda x: x * 2.0, cotangent=jnp.array([1.0, jnp.nan]))(jnp.ones(2))
    assert [(f.cause, f.element, f.leaves) for f in report] == [("in the seed", (1,), ("x",))]


def test_a_sum_of_finite_cotangents_that_overflows():
    report = diagnose(lambda x: jnp.float32(3e38) * x + jnp.float32(3e38) * x)(jnp.float32(0.5))
    assert [(f.node, f.cause) for f in report] == [("x", "overflow of a sum")]


def test_a_nan_written_in_the_program():
    report = diagnose(lambda w: jnp.sum(jnp.where(w > 0, w, jnp.nan)))(jnp.array([1.0, -1.0]))
    assert [finding.cause for finding in report] == ["in the program"]


def test_a_closed_over_constant():
    table = jnp.array([1.0, jnp.nan])
    report = diagnose(lambda w: jnp.sum(w * table))(jnp.ones(2))
    assert [(f.primitive, f.cause, f.element) for f in report] == [("const", "in the inputs", (1,))]


def test_a_while_is_judged_as_a_whole():
    def loss(w, x):
        return w * jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.log(s[1] - 1.0)), (0, x))[1]

    assert [f.primitive for f in diagnose(loss)(1.0, jnp.float32(2.0))] == ["while"]


def test_python_may_branch_on_what_is_not_differentiated():
    def loss(w, power, x):
        return jnp.sqrt(w) ** power if float(x[0]) > 0 else w

    assert diagnose(loss)(0.0, 2, np.array([1.0]))[0].cause == "sqrt at 0"


# --- the fixes fix -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "x", "fix"),
    [
        ("jnp.sqrt(x)", 0.0, "jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)"),
        ("jnp.linalg.norm(x)", [0.0, 0.0], None),
        ("1.0 / x", 0.0, "jnp.where(x != 0, 1.0 / jnp.where(x != 0, x, 1.0), 0.0)"),
        ("(2.0 * x) ** 0.5", 0.0, None),
        ("jnp.log(x - 1.0)", 1.0, None),
        (
            "jnp.sqrt(jnp.sum(x**2, axis=-1))",
            [[0.0, 0.0]],
            "jnp.where((a := jnp.sum(x ** 2, axis=-1)) > 0, jnp.sqrt(jnp.where(a > 0, a, 1.0)), 0.0)",
        ),
        (
            "jnp.arccos(x)",
            1.0,
            "jnp.where(jnp.abs(x) < 1, jnp.arccos(jnp.where(jnp.abs(x) < 1, x, 0.0)), jax.lax.stop_gradient(jnp.arccos(x)))",
        ),
        ("jnp.exp(x)", 100.0, "jnp.exp(jnp.minimum(x, 80.0))"),
        ("jnp.arctan2(x, 2.0 * x)", 0.0, None),
        ("jnp.std(x)", [1.0, 1.0], "jnp.sqrt(jnp.var(x) + 1e-12)"),
        ("jax.nn.logsumexp(x)", [-np.inf, -np.inf], "jax.nn.logsumexp(jnp.maximum(x, -1e9))"),
        ("jax.nn.softmax(x)", [-np.inf, -np.inf], None),
    ],
)
def test_a_fix_is_code_that_fixes(code, x, fix, tmp_path):
    """The fix, put in place of the expression, gives a finite gradient, and the same value elsewhere."""
    x = jnp.asarray(x, jnp.float32)
    file = tmp_path / "sick.py"

    def loss_of(expression):
        file.write_text(f"def loss(x):\n    return jnp.sum({expression})\n")
        names = {"jnp": jnp, "jax": jax}
        exec(compile(file.read_text(), str(file), "exec"), names)
        return names["loss"]

    report = diagnose(loss_of(code))(x)
    found = report[0].fix
    assert fix is None or found == fix
    fixed = jax.grad(loss_of(found))(x)
    assert np.all(np.isfinite(fixed)), (found, fixed)
    fine = jnp.full_like(x, 0.9) * jnp.arange(1, x.size + 1, dtype=x.dtype).reshape(x.shape)
    fine = fine + 1.0 if "log(" in code else fine
    np.testing.assert_allclose(loss_of(found)(fine), loss_of(code)(fine), rtol=1e-5)


# --- use ---------------------------------------------------------------------------------------------------


def test_a_second_call_compiles_nothing():
    traced = []

    def loss(w, x, training):
        traced.append(1)
        return jnp.sum(jnp.sqrt(w * x)) if training else jnp.sum(w)

    diagnosed = diagnose(loss)
    assert len(diagnosed(jnp.ones(2), jnp.array([0.0, 1.0]), True)) == 1
    count = len(traced)
    assert len(diagnosed(jnp.ones(2), jnp.array([1.0, 0.0]), True)) == 1
    assert len(traced) == count
    assert len(diagnosed(jnp.ones(2), jnp.array([1.0, 0.0]), False)) == 0
    assert len(traced) > count


def test_nothing_is_donated_and_a_donated_argument_is_named():
    w = jnp.ones(3)
    diagnose(lambda w: jnp.sum(w))(w)
    jax.jit(lambda w: w + 1.0, donate_argnums=0)(w)
    if not w.is_deleted():
        pytest.skip("this backend does not donate")
    with pytest.raises(
        ValueError, match="was donated to a compiled function and is gone. Diagnose before the step"
    ):
        diagnose(lambda w: jnp.sum(w))(w)


def test_inside_jit_it_says_so():
    with pytest.raises(TypeError, match="`diagnose` reads numbers, and inside `jax.jit`"):
        jax.jit(lambda w: diagnose(lambda w: jnp.sum(w))(w).ok)(jnp.ones(2))


def test_debug_nans_may_stay_on():
    with jax.debug_nans(True):
        assert diagnose(lambda x: jnp.sqrt(x))(0.0)[0].cause == "sqrt at 0"


def test_the_text_of_a_report():
    report = diagnose(CASES[0].loss)(CASES[0].bad)
    line = marked_lines(CASES[0].loss)[0]
    assert str(report) == "\n".join(
        [
            "diagnose where_sqrt: 1 error",
            "",
            "1. error: the backward pass through `sqrt` produces NaN, which propagates to the gradient.",
            f"  nan_cases.py:{line} in where_sqrt   jnp.sqrt(x)",
            "  where    sqrt",
            "  numbers  x = 0.0, local gradient = inf, incoming cotangent = 0.0, product = nan",
            "  why      the derivative of sqrt at 0 is infinite. The incoming cotangent is 0, as from a mask after it, but 0",
            "           * inf is NaN: masking a result does not mask its derivative.",
            "  fix      jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)",
            "  reaches  x",
            "",
            "nodes: 3",
        ]
    )


def test_a_report_is_data():
    report = diagnose(lambda x: jnp.sqrt(x))(0.0)
    (finding,) = json.loads(report.json())["findings"]
    assert finding["numbers"]["local gradient"] == "inf"
    assert (finding["cause"], finding["leaves"], finding["source"]["line"]) == (
        "sqrt at 0",
        ["x"],
        report[0].source.line,
    )


def test_a_bad_step_is_explained_and_comes_back(tmp_path):
    def loss(params, batch, key, *, scale):
        noise = jax.random.normal(key, batch.shape)
        return scale * jnp.mean(jnp.log(params["w"].astype(jnp.float32) * batch) + 0.0 * noise)

    params = {"w": jnp.asarray([2.0], jnp.bfloat16)}
    args = (params, jnp.array([1.0, 0.0, 3.0]), jax.random.key(3))
    report = explain_bad_step(loss, *args, save=tmp_path / "runs" / "bad", scale=0.1)
    assert [(f.cause, f.element) for f in report if f.kind == "origin"] == [("log of 0", (1,))]
    path = tmp_path / "runs" / "bad.npz"
    assert str(path) in report.notes[0]
    again, kwargs = load_reproduction(path)
    assert kwargs == {"scale": 0.1}
    assert again[0]["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(again[1], args[1])
    np.testing.assert_array_equal(jax.random.key_data(again[2]), jax.random.key_data(args[2]))
    assert str(diagnose(loss)(*again, **kwargs)) == str(diagnose(loss)(*args, scale=0.1))


def test_a_module_comes_back_into_its_own_structure(tmp_path):
    eqx = models.need("equinox")
    model = eqx.nn.Linear(2, 1, key=jax.random.key(0))
    path = save_reproduction(tmp_path / "model", eqx.filter(model, eqx.is_array), jnp.ones(2))
    like = ((eqx.filter(model, eqx.is_array), jnp.zeros(2)), {})
    args, _ = load_reproduction(path, like)
    np.testing.assert_array_equal(args[0].weight, model.weight)
    with pytest.raises(ValueError, match="`like` has 1 leaves, but .* holds 3"):
        load_reproduction(path, ((jnp.zeros(2),), {}))


# --- healthy models ---------------------------------------------------------------------------------------

HEALTHY = [case for case in models.CASES if "first_order" not in case.tags and "big" not in case.tags]


@pytest.mark.library
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=() if i < 4 else pytest.mark.slow)
        for i, case in enumerate(HEALTHY)
        if FULL or i < 4 or i % 6 == 0
    ],
)
def test_a_healthy_model_gives_no_finding(case, key):
    loss, args, argnums = case.make(key)
    report = jp.diagnose(loss, argnums)(*args)
    assert len(report) == 0, str(report)


def test_a_spoiled_gradient_is_not_called_zero():
    def loss(x):
        norm = jnp.sqrt(jnp.sum(x**2))
        return jnp.where(norm > 0, norm, 0.0)

    report = jp.diagnose(loss)(jnp.zeros(3))
    assert [finding.cause for finding in report] == ["norm at 0"]
