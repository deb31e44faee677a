"""Programs as people write them: every tool accepts each of them unmodified, and gives no false alarm.

The programs are the table in ``programs.py``. By default those that a tool once failed on are tried;
with JAXPROP_FULL=1 all are.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from helpers import FULL, check_close
from programs import PROGRAMS

pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

LONG = ("kalman", "ctc")  # many equations
SHORT = ("sde", "quantum", "sinkhorn", "fixedpoint", "fft", "cg")


def some(*names):
    """Run a test on the programs of these names; the long ones are slow tests."""
    names = list(PROGRAMS) if FULL else names
    marks = dict.fromkeys(LONG, pytest.mark.slow)
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks.get(n, ())) for n in names])


@some(*LONG, *SHORT)
def test_the_shares_of_every_value_sum_to_its_cotangent(name):
    loss, args = PROGRAMS[name]()
    tape = jp.backprop(loss)(*args)
    check_close(tape.grads, jax.grad(loss)(*args), 100)
    asked = 0
    for value in tape.names:
        try:
            shares = tape.shares(value)
        except ValueError:  # no cotangent reaches it
            assert tape[value].cotangent is None or not tape.graph.value(value).active
            continue
        asked += 1
        total, cotangent = np.asarray(shares.total), np.asarray(tape[value].cotangent)
        assert total.shape == cotangent.shape
        scale = np.abs(cotangent).max(initial=0) + 1e-6
        np.testing.assert_allclose(total, cotangent, rtol=2e-3, atol=1e-4 * scale, err_msg=value)
    assert asked


@some("ctc", "sde")
def test_a_healthy_program_has_no_suspect(name):
    loss, args = PROGRAMS[name]()
    for report in (jp.diagnose(loss)(*args), jp.check(loss)(*args)):
        assert not [found for found in report if found.severity == "error"], str(report)
        assert not [found for found in report if found.kind in ("total", "primitive", "custom rule")], str(
            report
        )


@some("kalman", "sde", "quantum")
def test_every_tool_takes_it(name):
    loss, args = PROGRAMS[name]()
    tape = jp.backprop(loss)(*args)
    drawing = jp.draw(tape)
    for text in (str(jp.explain(tape)), drawing.svg(), drawing.dot(), drawing.mermaid(), drawing.html()):
        assert text
    jp.quiz(tape)
    assert jp.compare(tape, jax.jit(jp.backprop(loss))(*args), tolerance=0.05).ok
    jp.gradient_flow(loss)(*args)
    assert jp.residuals(loss, compiled=False)(*args).total >= 0
    try:
        jp.precision(loss, jnp.bfloat16)(*args)
    except TypeError as error:
        assert "does not run in bfloat16" in str(error), str(error)
