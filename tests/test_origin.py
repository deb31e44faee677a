"""The origin of NaN and Inf: real reports in every context, hard cases, and healthy models without a finding."""

import inspect
import json

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from nan_cases import CASES

import jaxprop as jp

# --- real reports ------------------------------------------------------------------------------------


def marked_lines(case):
    """Line numbers of `# origin`, `# origin 2` in the source of a case."""
    lines, start = inspect.getsourcelines(case.loss)
    marks = ["# origin", *(f"# origin {n}" for n in range(2, 5))]
    return [start + i for mark in marks for i, line in enumerate(lines) if line.rstrip().endswith(mark)]


def total(cases):
    """One loss of many: each term gets the cotangent 1, so that none spoils another."""

    def loss(xs):
        return sum(case.loss(x).astype(jnp.float32) for case, x in zip(cases, xs, strict=True))

    return loss


def stacked(cases):
    """Three points for each case, the bad one in the middle."""
    return [
        jnp.stack([case.bad if case.good is None else case.good, case.bad, case.bad if case.good is None else case.good])
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


# How a context lengthens the step and the element of what it holds; the element alone of an argument.
CONTEXTS = {
    "plain": (plain, (), (), ()),
    "jit": (jitted, (), (), ()),
    "remat": (remat, (), (), ()),
    "vmap": (vmapped, (), (1,), (1,)),
    "scan": (scanned, (1,), (), (1,)),
    "flax": (in_flax, (), (), ()),
    "equinox": (in_equinox, (), (), ()),
    "everything": (everything, None, (1,), None),
}
SOME = [case for case in CASES if case.good is not None][::6]


def check_cases(cases, context):
    make, steps, elements, given = CONTEXTS[context]
    loss, points = make(cases)
    report = jp.diagnose(loss, most=1000)(points)
    places = {}
    for finding in report:
        assert finding.severity == "error", finding
        place = finding.source.line if finding.source else "argument"
        places.setdefault(place, []).append(finding)
    json.loads(report.json())
    for case in cases:
        for expect, line in zip(case.origins, marked_lines(case) or ["argument"], strict=True):
            found = places[line]
            causes = [f.cause for f in found if _stands_at(f, expect, steps, elements, given)]
            assert expect.cause in causes, (case.name, expect, [(f.cause, f.step, f.element) for f in found])
    known = {line for case in cases for line in (marked_lines(case) or ["argument"])}
    assert set(places) == known


def _stands_at(finding, expect, steps, elements, given):
    if expect.given and given is not None:
        return (finding.element, finding.step) == ((*given, *expect.element), ())
    if steps is None:  # in which of the two equal steps it shows first depends on the way
        return expect.given or finding.element == (*elements, *expect.element)
    return (finding.element, finding.step) == ((*elements, *expect.element), (*steps, *expect.step))


@pytest.mark.library
def test_forty_real_reports():
    assert len(CASES) >= 40
    assert len({case.reference for case in CASES}) >= 40
    check_cases(CASES, "plain")


@pytest.mark.library
@pytest.mark.parametrize("context", ["everything", "scan", "flax"])
def test_some_real_reports_in_context(context):
    check_cases(SOME, context)


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("context", [name for name in CONTEXTS if name != "plain"])
def test_real_reports_in_context(context):
    check_cases(CASES, context)


@pytest.mark.library
@pytest.mark.parametrize("case", CASES[::8], ids=lambda case: case.name)
def test_one_report_by_itself(case):
    report = jp.diagnose(case.loss)(case.bad)
    assert [finding.cause for finding in report] == [expect.cause for expect in case.origins]
    gradient = jax.grad(case.loss)(case.bad)
    assert any(finding.leaves for finding in report) == (not np.all(np.isfinite(gradient)))
