"""Causes of one's own, and fixes that are tried: what is printed as code is finite, and does not change the loss."""

import gc
import textwrap
import warnings
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from jaxprop.diagnosis import DEFAULT_CAUSES, Cause, StableForm

# --- causes of one's own, as a package outside would write them ----------------------------------------


def shell_radius(x):
    radius = jnp.sqrt(jnp.sum(x**2))
    return 1.0 / radius


CENTRE = Cause(
    name="at the centre",
    matches=lambda evidence: evidence.primitive == "div" and evidence.x[1] == 0,
    why="the point is at the centre of the shell: {a} / {b} is {y} in {dtype}.",
    fix="start away from the centre, with {operation} in mind{wider}",
)


def test_a_cause_of_ones_own_comes_first():
    report = jp.diagnose(shell_radius, causes=(CENTRE, *DEFAULT_CAUSES))(jnp.zeros(3))
    assert [finding.cause for finding in report] == ["at the centre", "norm at 0"]
    assert report[0].why == "the point is at the centre of the shell: 1.0 / 0.0 is inf in float32."
    assert report[0].fix == "start away from the centre, with div in mind, or compute this part in float64"


def test_without_causes_the_cause_is_unknown():
    report = jp.diagnose(shell_radius, causes=())(jnp.zeros(3))
    assert {finding.cause for finding in report} == {"unknown"}
    assert report[0].why == "no known cause fits the numbers at this operation."


def test_what_the_evidence_holds():
    seen = []

    def matches(evidence):
        seen.append(evidence)
        return False

    def loss(w, x):
        h = jnp.sqrt(w * x)
        return jnp.sum(jnp.where(x > 0, h, 0.0))

    watching = Cause("watching", matches, "nothing.", "nothing")
    jp.diagnose(loss, causes=(watching,))(jnp.float32(2.0), jnp.array([3.0, 0.0]))
    (evidence,) = seen
    assert (evidence.primitive, evidence.code, evidence.kind) == ("sqrt", "jnp.sqrt(w * x)", "produced")
    assert (evidence.backward, evidence.element, evidence.step, evidence.position) == (True, (1,), (), 0)
    assert (evidence.leaves, evidence.reaches_loss) == (("w",), False)
    assert (evidence.x, evidence.y, evidence.ct, evidence.gain) == ((0.0,), 0.0, 0.0, np.inf)
    np.testing.assert_array_equal(evidence.operands[0], [6.0, 0.0])
    np.testing.assert_array_equal(evidence.out_cts[0], [1.0, 0.0])
    assert np.isnan(evidence.in_cts[0][1]) and evidence.dtype == np.float32
    assert evidence.producer(0).primitive == "mul"


def test_an_error_of_a_predicate_names_its_cause():
    broken = Cause("broken", lambda evidence: evidence.nonsense, "nothing.", "nothing")
    with pytest.raises(AttributeError) as caught:
        jp.diagnose(shell_radius, causes=(broken,))(jnp.zeros(3))
    assert caught.value.__notes__ == ["This was raised by `matches` of the cause 'broken'."]


@pytest.mark.parametrize(
    ("causes", "message"),
    [
        (
            CENTRE,
            r"^`causes` must be a sequence of `jaxprop\.diagnosis\.Cause`, such as `\(mine, \*DEFAULT_CAUSES\)`; "
            r"got Cause\.$",
        ),
        (
            [CENTRE, lambda evidence: True],
            r"^`causes\[1\]` must be a `jaxprop\.diagnosis\.Cause`, got function\. Wrap a function in one: "
            r"`Cause\(name=\.\.\., matches=function, why=\.\.\., fix=\.\.\.\)`\.$",
        ),
    ],
)
def test_what_is_no_cause_is_refused(causes, message):
    with pytest.raises(TypeError, match=message):
        jp.diagnose(shell_radius, causes=causes)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (TypeError, {"name": 3}, r"^`name` of a cause must be a str, got int\.$"),
        (
            TypeError,
            {"matches": "div"},
            r"^`matches` of the cause 'c' must be a function of the evidence that returns a bool, got str\.$",
        ),
        (
            TypeError,
            {"forms": ("jnp.log1p(x)",)},
            r"^`forms` of the cause 'c' must hold `jaxprop\.diagnosis\.StableForm`s, got str\.$",
        ),
        (
            ValueError,
            {"why": "{value} is bad."},
            r"^the sentence '\{value\} is bad\.' of the cause 'c' has the unknown replacement \{value\}; available: "
            r"\{a\}, \{b\}, \{y\}, \{operation\}, \{dtype\}, \{wider\}\. Double the braces to print them\.$",
        ),
    ],
)
def test_what_a_cause_consists_of_is_checked(kind, change, message):
    with pytest.raises(kind, match=message):
        Cause(**{"name": "c", "matches": bool, "why": "w.", "fix": "f", **change})


def test_a_form_that_is_not_python_is_refused():
    cause = Cause("c", lambda evidence: True, "w.", "f", (StableForm("typo", "jnp.sqrt(x", "jnp.sqrt(x)"),))
    message = r"^a stable form consists of two Python expressions, but 'jnp\.sqrt\(x' is not one\.$"
    with pytest.raises(ValueError, match=message):
        jp.diagnose(shell_radius, causes=(cause,))(jnp.zeros(3))


# --- what is printed as code was tried ------------------------------------------------------------------


class Program:
    """A loss in a file of its own, into which a fix can be put."""

    def __init__(self, folder, body):
        self.file, self.body = folder / "program.py", body

    def loss(self, body=None):
        lines = textwrap.indent(textwrap.dedent(body or self.body).strip(), "    ")
        self.file.write_text(f"def loss(x):\n{lines}\n")
        names = {"jnp": jnp, "jax": jax}
        exec(compile(self.file.read_text(), str(self.file), "exec"), names)
        return names["loss"]

    def fixed(self, finding):
        """The loss with the code of a finding in place of what it says it replaces."""
        code, _, replaced = finding.fix.partition("  # instead of ")
        wanted = replaced or finding.code
        spelled = [line for line in self.body.splitlines() if squeezed(wanted) in squeezed(line)]
        assert spelled, (wanted, self.body)
        start = squeezed(self.body).index(squeezed(wanted))
        return self.loss(
            squeezed(self.body)[:start] + f"({code})" + squeezed(self.body)[start + len(squeezed(wanted)) :]
        )


def squeezed(code):
    """A body without the spaces that do not matter, so that `x**2` and `x ** 2` are alike."""
    return "\n".join(
        line[: len(line) - len(line.lstrip())]
        + ("return " if "return " in line else "")
        + "".join(line.replace("return ", "").split())
        for line in textwrap.dedent(code).strip().splitlines()
    )


# The program, a point that breaks it, a point that does not, and the fix of the first finding.
FIXED = {
    "log of a softmax that underflows": (
        "p = jax.nn.softmax(x)\nreturn -jnp.log(p)[0]",
        [0.0, 200.0],
        [0.5, 2.0],
        "jax.nn.log_softmax(x)",
    ),
    "an entry of a softmax": (
        "p = jax.nn.softmax(x)\nreturn -jnp.log(p[0])",
        [0.0, 200.0],
        [0.5, 2.0],
        "jax.nn.log_softmax(x)[0]",
    ),
    "softmax by hand": (
        "e = jnp.exp(x)\nreturn (e / jnp.sum(e))[0]",
        [100.0, 1.0],
        [0.5, 2.0],
        "jax.nn.softmax(x)  # instead of e / jnp.sum(e)",
    ),
    "log-sum-exp by hand": (
        "total = jnp.exp(x).sum()\nreturn jnp.log(total)",
        [100.0, 1.0],
        [0.5, 2.0],
        "jax.nn.logsumexp(x)  # instead of jnp.log(total)",
    ),
    "softplus by hand": (
        "return jnp.sum(jnp.log(1.0 + jnp.exp(x)))",
        [100.0, 1.0],
        [0.5, 2.0],
        "jax.nn.softplus(x)  # instead of jnp.log(1.0 + jnp.exp(x))",
    ),
    "log of a sigmoid": (
        "return -jnp.sum(jnp.log(jax.nn.sigmoid(3.0 * x)))",
        [-100.0, 1.0],
        [0.5, 2.0],
        "jax.nn.log_sigmoid(3.0 * x)",
    ),
    "root mean square": (
        "return jnp.sum(x / jnp.sqrt(jnp.mean(x**2)))",
        [0.0, 0.0],
        [0.5, 2.0],
        "x / jnp.sqrt(jnp.mean(x ** 2) + 1e-12)",
    ),
    "root mean square, in two lines": (
        "scale = jnp.sqrt(jnp.mean(x**2))\nreturn jnp.sum(x / scale)",
        [0.0, 0.0],
        [0.5, 2.0],
        "x / jnp.sqrt(jnp.mean(x ** 2) + 1e-12)",
    ),
    "sinc": ("return jnp.sum(jnp.sin(x) / x)", [0.0, 1.0], [0.5, 2.0], "jnp.sinc(x / jnp.pi)"),
    "log-determinant": (
        "a = x[:, None] * jnp.eye(4)\nreturn jnp.log(jnp.linalg.det(a))",
        [1e-15, 1e-15, 1e-15, 1e-15],
        [1.0, 2.0, 3.0, 0.5],
        "jnp.linalg.slogdet(a)[1]",
    ),
    "x log x": (
        "return jnp.sum(x * jnp.log(x))",
        [0.0, 1.0],
        [0.5, 2.0],
        "jnp.where(x != 0, x * jnp.log(jnp.where(x != 0, x, 1.0)), 0.0)  # instead of x * jnp.log(x)",
    ),
    "masked data": (
        "return jnp.nansum(x**2)",
        [jnp.nan, 2.0],
        [0.5, 2.0],
        "jnp.where(jnp.isnan(x), 0.0, x) ** 2",
    ),
    "masked data that is counted": (
        "return jnp.nanmean(x**2)",
        [jnp.nan, 2.0],
        [0.5, 2.0],
        "jnp.where(jnp.isnan(x), jnp.nan, jnp.where(jnp.isnan(x), 0.0, x) ** 2)",
    ),
    "a factor of nan": (
        "y = x * jnp.array([2.0, jnp.nan])\nreturn jnp.sum(jnp.where(jnp.isnan(y), 0.0, y) * x)",
        [1.0, 2.0],
        None,
        None,
    ),
    "a covariance that is not quite positive": (
        "a = jnp.outer(x, x)\nreturn jnp.sum(jnp.linalg.cholesky(a) ** 2)",
        [1.0, 1.0],
        None,
        None,
    ),
    "xlog1py at its pole": (
        "return jnp.sum(jax.scipy.special.xlog1py(x - 1.0, -x))",
        [1.0, 0.5],
        [0.5, 0.25],
        None,
    ),
}


@pytest.mark.library
@pytest.mark.parametrize("name", FIXED)
def test_the_fix_put_in_gives_a_finite_gradient_and_the_same_loss(name, tmp_path):
    body, bad, good, expected = FIXED[name]
    program, bad = Program(tmp_path, body), jnp.asarray(bad, jnp.float32)
    loss = program.loss()
    before = loss(bad)
    finding = next(found for found in jp.diagnose(loss)(bad) if found.kind == "origin")
    if expected is not None:
        assert finding.fix == expected
    fixed = program.fixed(finding)
    value, gradient = jax.value_and_grad(fixed)(bad)
    assert np.isfinite(value) and np.all(np.isfinite(gradient)), (finding.fix, value, gradient)
    if np.isfinite(before):
        np.testing.assert_allclose(value, before, rtol=1e-4)
    if good is not None:
        good = jnp.asarray(good, jnp.float32)
        np.testing.assert_allclose(fixed(good), program.loss()(good), rtol=1e-4)


def test_the_gradient_of_the_fixed_loss_is_the_derivative(tmp_path, x64):
    """log-softmax in place of the log of a softmax, against central differences in double precision."""
    program = Program(tmp_path, "p = jax.nn.softmax(x)\nreturn -jnp.log(p[0])")
    bad = jnp.array([0.0, 800.0, 1.0])
    fixed = program.fixed(jp.diagnose(program.loss())(bad)[0])
    step = 1e-4
    steps = step * np.eye(3)
    differences = [(fixed(bad + e) - fixed(bad - e)) / (2 * step) for e in steps]
    np.testing.assert_allclose(jax.grad(fixed)(bad), differences, atol=1e-6)
    np.testing.assert_allclose(fixed(bad), 800.0)


# Forms that are finite and wrong, each for another reason.
WRONG = {
    "another value": StableForm(
        "w", "jnp.sqrt(x)", "jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0) + 1.0"
    ),
    "an infinite derivative": StableForm("w", "jnp.sqrt(x)", "jnp.power(x, 0.5)"),
    "another shape": StableForm("w", "jnp.sqrt(x)", "jnp.sqrt(jnp.sum(x) + eps)"),
    "another dtype": StableForm("w", "jnp.sqrt(x)", "jnp.sqrt(x + eps).astype(jnp.float16)"),
    "no such function": StableForm("w", "f(x)", "f(x[..., 0, 0])"),
    "another operation": StableForm("w", "jnp.log(x)", "jnp.log(x + eps)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_form_is_not_printed(name):
    def loss(x):
        return jnp.sum(jnp.where(x > 0, jnp.sqrt(x), 0.0))

    cause = Cause("sqrt at 0", lambda evidence: True, "w.", "in words", (WRONG[name],))
    assert jp.diagnose(loss, causes=(cause,))(jnp.array([4.0, 0.0]))[0].fix == "in words"


def test_a_form_that_changes_the_loss_elsewhere_is_not_printed():
    """1 / x is infinite, exp(-1 / x) is 0: with a quotient of 0 in its place the loss would be another."""

    def loss(x):
        bump = jnp.exp(-(1.0 / x))
        return jnp.sum(bump)

    x = jnp.array([0.0, 2.0])
    (finding,) = jp.diagnose(loss)(x)
    assert (finding.cause, finding.leaves) == ("division by 0", ("x",))
    assert finding.fix == "add a small number to the divisor, or mask it as well as the result"


def test_a_masked_quotient_is_masked_twice():
    def loss(x):
        inverse = 1.0 / x
        return jnp.sum(jnp.where(x > 0, inverse, 0.0))

    (finding,) = jp.diagnose(loss)(jnp.array([0.0, 2.0]))
    assert finding.fix == "jnp.where(x != 0, 1.0 / jnp.where(x != 0, x, 1.0), 0.0)"


def test_inside_a_scan_the_fix_is_tried_at_the_bad_step_and_in_the_whole_loop():
    def loss(x):
        def body(total, row):
            p = jax.nn.softmax(row)
            return total - jnp.log(p[0]), None

        return jax.lax.scan(body, jnp.float32(0.0), x)[0]

    x = jnp.array([[0.0, 1.0], [0.0, 200.0], [1.0, 0.0]])
    (finding,) = jp.diagnose(loss)(x)
    assert (finding.step, finding.fix) == ((1,), "jax.nn.log_softmax(row)[0]")


def test_under_vmap_the_fix_is_in_the_words_of_the_source():
    def one(row):
        total = jnp.sum(jnp.exp(row))
        return jnp.log(total)

    (finding,) = jp.diagnose(lambda x: jnp.sum(jax.vmap(one)(x)))(jnp.array([[100.0, 1.0], [0.0, 1.0]]))
    assert finding.fix == "jax.nn.logsumexp(row)  # instead of jnp.log(total)"


def test_a_variable_that_changes_in_between_is_not_put_elsewhere():
    def loss(x):
        e = jnp.exp(x)
        x = 2.0 * x
        return jnp.log(jnp.sum(e)) + x[0]

    (finding,) = (found for found in jp.diagnose(loss)(jnp.array([100.0, 1.0])) if found.kind == "origin")
    assert finding.fix == "jnp.exp(jnp.minimum(x, 80.0))"


# --- masked data ------------------------------------------------------------------------------------------


def test_data_that_the_forward_pass_masks_is_accused_where_the_backward_pass_multiplies_by_it():
    def loss(w, x):
        residual = w * x - 1.0
        error = residual**2
        return jnp.nanmean(error)

    x = jnp.array([1.0, jnp.nan, 3.0])
    assert np.isfinite(loss(2.0, x))
    (finding,) = jp.diagnose(loss)(2.0, x)
    assert (finding.cause, finding.code, finding.element, finding.leaves) == ("masked NaN", "w * x", (), ("w",))
    assert finding.severity == "error"


def test_each_line_that_multiplies_by_masked_data_is_a_finding():
    def loss(w, x):
        a = w * x
        b = jnp.sin(x * w)
        return jnp.nansum(a) + jnp.nansum(b)

    report = jp.diagnose(loss)(2.0, jnp.array([1.0, jnp.nan]))
    assert [(finding.cause, finding.code) for finding in report] == [
        ("masked NaN", "x * w"),
        ("masked NaN", "w * x"),
    ]


def test_data_that_spoils_the_loss_is_accused_itself():
    report = jp.diagnose(lambda w, x: jnp.mean((w * x) ** 2))(2.0, jnp.array([1.0, jnp.nan]))
    assert [(finding.cause, finding.node, finding.element) for finding in report] == [
        ("in the inputs", "x", (1,))
    ]
    assert report[0].fix == "clean the data: drop or repair this entry before the step"


def test_a_parameter_that_is_not_finite_is_not_called_data():
    report = jp.diagnose(lambda w: jnp.sum(w**2))(jnp.array([1.0, jnp.nan]))
    assert report[0].fix == "clean the data; in a parameter, find the step that produced it: `explain_bad_step`"


def test_infinity_written_on_purpose_is_not_an_origin():
    """A running minimum starts from inf; the root has the only derivative that is not finite."""

    def loss(x):
        best = jnp.full((2,), jnp.inf)
        for row in x:
            best = jnp.where(row < best, jnp.sqrt(row), best)
        return jnp.sum(jnp.where(best < 1e3, best, 0.0))

    report = jp.diagnose(loss)(jnp.array([[0.0, 4.0], [1.0, 9.0]]))
    assert [(finding.primitive, finding.cause) for finding in report] == [("sqrt", "sqrt at 0")]


@jax.custom_vjp
def solve(x, saved):
    return jnp.sqrt(x), saved


solve.defvjp(lambda x, saved: (solve(x, saved), x), lambda x, cts: (cts[0] / (2.0 * jnp.sqrt(x)), None))


def test_infinity_that_passes_through_a_closed_node_is_not_an_origin():
    """As in diffrax: what is saved is filled with inf, and it is the derivative of the closed solve that is not finite."""

    def loss(x, unit):
        y, saved = solve(x, jnp.full((2,), jnp.inf * unit))
        return jnp.sum(jnp.where(saved < 1.0, saved, y))

    (finding,) = jp.diagnose(loss)(jnp.array([0.0, 4.0]), jnp.float32(1.0))
    assert (finding.primitive, finding.cause, finding.element) == ("solve", "custom rule", (0,))


# --- the right words --------------------------------------------------------------------------------------


def test_the_rule_of_a_library_is_not_to_be_fixed_by_the_user():
    def loss(x):
        return jnp.sum(jax.scipy.special.xlog1py(x, x - 2.0))

    (finding,) = (found for found in jp.diagnose(loss)(jnp.array([1.0, 3.0])) if found.kind == "origin")
    assert finding.cause == "custom rule of a library"
    assert "judged as a whole" in finding.why
    assert finding.fix == "jax.scipy.special.xlog1py(x, jnp.maximum(x - 2.0, -1 + 1e-6))"


@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (jnp.float16, "scale the numbers down, or keep this part in float32"),
        (jnp.bfloat16, "scale the numbers down, or compute this part in float64"),
        (jnp.float32, "scale the numbers down, or compute this part in float64"),
    ],
)
def test_advice_does_not_name_the_dtype_in_use(dtype, advice):
    w = jnp.full(2, float(jnp.finfo(dtype).max) ** 0.6, dtype)
    report = jp.diagnose(lambda w: jnp.sum(w * w).astype(jnp.float32))(w)
    assert report[0].why == f"the result is too large for {jnp.dtype(dtype).name}."
    assert report[0].fix == advice


def test_in_double_precision_no_wider_dtype_is_named(x64):
    report = jp.diagnose(lambda w: jnp.sum(w * w))(jnp.full(2, 1e200))
    assert (report[0].why, report[0].fix) == ("the result is too large for float64.", "scale the numbers down")


def test_one_line_is_one_finding():
    def loss(params):
        total = 0.0
        for w in params:
            total = total + jnp.sum(jnp.where(w > 0, jnp.sqrt(w), 0.0))
        return total

    (finding,) = jp.diagnose(loss)([jnp.zeros(2), jnp.ones(2), jnp.zeros(3)])
    assert finding.leaves == ("params[0]", "params[2]")
    assert len(finding.numbers["also at"]) == 1


# --- what is kept -----------------------------------------------------------------------------------------


def test_the_programs_used_last_are_kept():
    from jaxprop.diagnosis.compiled import MOST_PROGRAMS, jit_with_structure

    traces = []
    compiled = jit_with_structure(lambda w, step: traces.append(step) or w * step)
    for step in (*range(2 * MOST_PROGRAMS), 2 * MOST_PROGRAMS - 1, 0):
        compiled(jnp.float32(1.0), step)
    assert traces == [*range(2 * MOST_PROGRAMS), 0]


@pytest.mark.parametrize("within", ["jit", "custom_jvp"])
def test_a_closed_over_array_is_freed_after_the_search_for_origins(within):
    from jaxprop.diagnosis.nonfinite.findings import origin_findings
    from jaxprop.diagnosis.nonfinite.origins import find_origins
    from jaxprop.diagnosis.nonfinite.recorders import health
    from jaxprop.diagnosis.passes import Passes, on_host

    def diagnosed():
        table = jnp.arange(1_000_000, dtype=jnp.float32)

        if within == "jit":
            helper = jax.jit(lambda x: x * jnp.sum(table))
        else:
            helper = jax.custom_jvp(lambda x: x * jnp.sum(table))
            helper.defjvp(lambda x, t: (helper(*x), t[0] * jnp.sum(table)))
        run = Passes(lambda w: jnp.sum(jnp.where(w > 0, jnp.sqrt(w), 0.0)) + jnp.sum(helper(w))).at(
            jnp.zeros(2)
        )
        first = on_host(run(record=health))
        origins = find_origins(run, first)
        findings, _ = origin_findings(run, first, origins, DEFAULT_CAUSES, None)
        assert findings[0].cause == "sqrt at 0"
        return weakref.ref(table)

    table = diagnosed()
    with warnings.catch_warnings(action="ignore"):
        jax.clear_caches()
    gc.collect()
    assert table() is None
