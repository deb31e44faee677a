"""Every row of the table of stable forms: equal to the broken form where both are finite, finite where that is not."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop.diagnosis.nonfinite.stable_forms as forms
from jaxprop.diagnosis import StableForm

SPD = np.array([[2.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.5]])
SINGULAR = np.array([[1.0, 2.0], [2.0, 4.0]])
PAIRS = np.array([[0.5, 2.0], [-1.5, 0.25]])


class Row(NamedTuple):
    """A form, numbers at which both expressions are finite, numbers at which the broken one is not.

    `value` is what the stable one gives there, from a closed form in double precision.
    """

    form: StableForm
    good: dict[str, object]
    bad: dict[str, object]
    value: object
    f: object = None


ROWS = [
    Row(forms.LOG_SUM_EXP, {"x": PAIRS, "axis": 1}, {"x": [1000.0, 1001.0]}, 1001 + np.log1p(np.exp(-1.0))),
    Row(forms.LOG_SOFTMAX, {"x": PAIRS, "axis": -1}, {"x": [0.0, 200.0]}, [-200.0, 0.0]),
    Row(
        forms.LOG_SOFTMAX_BY_HAND,
        {"x": PAIRS, "axis": 1, "keepdims": True},
        {"x": [0.0, 200.0]},
        [-200.0, 0.0],
    ),
    Row(forms.SOFTMAX, {"x": PAIRS, "axis": 1, "keepdims": True}, {"x": [0.0, 200.0]}, [np.exp(-200.0), 1.0]),
    Row(forms.SOFTPLUS, {"x": PAIRS}, {"x": [100.0]}, [100.0]),
    Row(forms.SOFTPLUS_BY_LOG1P, {"x": PAIRS}, {"x": [100.0]}, [100.0]),
    Row(forms.SIGMOID, {"x": PAIRS}, {"x": [-100.0]}, [np.exp(-100.0)]),
    Row(forms.SIGMOID_OF_MINUS, {"x": PAIRS}, {"x": [100.0]}, [np.exp(-100.0)]),
    Row(forms.LOG_SIGMOID, {"x": PAIRS}, {"x": [-200.0]}, [-200.0]),
    Row(forms.LOG_ONE_MINUS_SIGMOID, {"x": PAIRS}, {"x": [200.0]}, [-200.0]),
    Row(forms.LOG_ONE_MINUS_TANH2, {"x": PAIRS}, {"x": [20.0]}, [2 * (np.log(2.0) - 20.0)]),
    Row(forms.LOG1P, {"x": [0.5, 2.0]}, {"x": [0.0]}, [0.0]),
    Row(forms.DIVIDED_BY_LOG1P, {"x": [0.5, 2.0], "y": [1.0, 3.0]}, {"x": [1e-9], "y": [1e-9]}, [1.0]),
    Row(forms.EXPM1, {"x": [0.5, 2.0]}, {"x": [0.0]}, [0.0]),
    Row(forms.DIVIDED_BY_EXPM1, {"x": [0.5, 2.0], "y": [1.0, 3.0]}, {"x": [1e-9], "y": [1e-9]}, [1.0]),
    Row(forms.SINC, {"x": PAIRS}, {"x": [0.0]}, [1.0]),
    Row(forms.ARCTAN2, {"x": [0.5, 2.0], "y": [1.0, -3.0]}, {"x": [0.0], "y": [2.0]}, [np.pi / 2]),
    Row(forms.SLOGDET, {"x": SPD}, {"x": 1e-20 * np.eye(3)}, 3 * np.log(1e-20)),
    Row(forms.SLOGDET_OF_ABS, {"x": -SPD}, {"x": -1e-20 * np.eye(3)}, 3 * np.log(1e-20)),
    Row(forms.TIMES_LOG, {"x": PAIRS, "y": [[0.5, 2.0], [1.0, 4.0]]}, {"x": [0.0], "y": [0.0]}, [0.0]),
    Row(forms.XLOGY, {"x": PAIRS, "y": [[0.5, 2.0], [1.0, 4.0]]}, {"x": [0.0], "y": [0.0]}, [0.0]),
    Row(forms.XLOG1PY, {"x": PAIRS, "y": [[0.5, 2.0], [1.0, 4.0]]}, {"x": [0.0], "y": [-1.0]}, [0.0]),
    Row(forms.SAFE_NORM, {"x": PAIRS, "axis": 1}, {"x": [0.0, 0.0]}, 0.0),
    Row(forms.STD_WITH_EPS, {"x": PAIRS, "axis": 0}, {"x": [3.0, 3.0]}, 1e-6),
    Row(forms.SQRT_WITH_EPS, {"x": [0.5, 2.0]}, {"x": [0.0]}, [1e-6]),
    Row(forms.NORM_WITH_EPS, {"x": PAIRS, "axis": 1}, {"x": [0.0, 0.0]}, 1e-6),
    Row(forms.RSQRT_WITH_EPS, {"x": [0.5, 2.0]}, {"x": [0.0]}, [1e6]),
    Row(forms.DIVIDED_BY_SQRT, {"x": [0.5, 2.0], "y": [1.0, 3.0]}, {"x": [0.0], "y": [0.0]}, [0.0]),
    Row(
        forms.DIVIDED_BY_NORM,
        {"x": PAIRS, "y": PAIRS, "axis": 1, "keepdims": True},
        {"x": [0.0, 0.0], "y": [0.0, 0.0]},
        [0.0, 0.0],
    ),
    Row(
        forms.DIVIDED_BY_STD,
        {"x": PAIRS, "y": PAIRS, "axis": 1, "keepdims": True},
        {"x": [3.0, 3.0], "y": [0.0, 0.0]},
        [0.0, 0.0],
    ),
    Row(forms.JITTER, {"x": SPD}, {"x": SINGULAR}, None, jnp.linalg.cholesky),
    Row(forms.MORE_JITTER, {"x": SPD}, {"x": SINGULAR}, None, jnp.linalg.inv),
    Row(forms.CLIP_ABOVE_ZERO, {"x": [0.5, 2.0]}, {"x": [0.0]}, [np.log(1e-12)], jnp.log),
    Row(forms.CLIP_TO_ONE, {"x": [0.5, -0.25]}, {"x": [1.0]}, None, jnp.arctanh),
    Row(forms.CLIP_ABOVE_ONE, {"x": [1.5, 2.0]}, {"x": [0.5]}, None, jnp.arccosh),
    Row(forms.CLIP_ABOVE_MINUS_ONE, {"x": [0.5, -0.25]}, {"x": [-1.0]}, None, jnp.log1p),
    Row(
        forms.CLIP_SECOND_ABOVE_MINUS_ONE,
        {"x": [0.5, 2.0], "y": [0.5, -0.25]},
        {"x": [2.0], "y": [-1.0]},
        None,
    ),
    Row(forms.CLIP_EXPONENT, {"x": [0.5, 2.0]}, {"x": [100.0]}, [np.exp(80.0)], jnp.exp),
    Row(forms.FINITE_MASK, {"x": PAIRS}, {"x": [-np.inf, -np.inf]}, [0.5, 0.5], jax.nn.softmax),
    Row(forms.WHERE_INSIDE_ONE, {"x": [0.5, -0.25]}, {"x": [-1.0]}, [np.pi], jnp.arccos),
    Row(forms.WHERE_ABOVE_ONE, {"x": [1.5, 2.0]}, {"x": [1.0]}, [0.0], jnp.arccosh),
    Row(forms.WHERE_FACTOR, {"x": PAIRS, "y": PAIRS}, {"x": [-np.inf], "y": [0.0]}, [0.0]),
    Row(forms.WHERE_POSITIVE, {"x": [0.5, 2.0]}, {"x": [0.0]}, [0.0], jnp.sqrt),
    Row(forms.WHERE_NONZERO, {"x": [0.5, -2.0]}, {"x": [0.0]}, [0.0], lambda x: x**-2),
    Row(forms.WHERE_ABOVE_MINUS_ONE, {"x": [0.5, -0.25]}, {"x": [-1.0]}, [0.0], jnp.log1p),
    Row(forms.WHERE_DIVISOR, {"x": PAIRS, "y": PAIRS}, {"x": [0.0], "y": [0.0]}, [0.0]),
    Row(forms.WHERE_REMAINDER, {"x": [0.75, 2.0], "y": [2.0, 3.5]}, {"x": [0.0], "y": [1.0]}, [0.0]),
    Row(forms.WHERE_LARGE_DIVISOR, {"x": PAIRS, "y": PAIRS}, {"x": [1e-20], "y": [0.0]}, [0.0]),
    Row(forms.WHERE_ANGLE, {"x": PAIRS, "y": PAIRS[::-1]}, {"x": [0.0], "y": [0.0]}, [0.0]),
    Row(forms.WHERE_NOT_NAN, {"x": PAIRS}, {"x": [np.nan]}, [1.0], jnp.exp),
    Row(forms.WHERE_NAN_KEPT, {"x": PAIRS}, {"x": [np.nan]}, [np.nan], jnp.exp),
    Row(forms.WHERE_FINITE, {"x": PAIRS}, {"x": [np.inf]}, [1.0], jnp.cos),
]


def names_of(numbers):
    return [name for name in numbers if name not in ("axis", "keepdims")]


def evaluate(code, row, numbers):
    """Value of an expression, and its gradient by each of its names."""
    constants = {name: float(text) for name, text in forms.CONSTANTS["float32"].items()}
    plain = {"axis": None, "keepdims": False, **{k: v for k, v in numbers.items() if k in ("axis", "keepdims")}}
    if "softmax(" in code and plain["axis"] is None:
        plain["axis"] = -1
    arrays = [jnp.asarray(numbers[name], jnp.float32) for name in names_of(numbers)]

    def value(*arrays):
        scope = {"jnp": jnp, "jax": jax, "f": row.f, **constants, **plain}
        return eval(code, {**scope, **dict(zip(names_of(numbers), arrays, strict=True))})

    out, pull = jax.vjp(value, *arrays)
    return np.asarray(out), [np.asarray(ct) for ct in pull(jnp.ones_like(out))]


def finite(x):
    return bool(np.all(np.isfinite(x)))


def test_every_row_is_tried():
    assert {row.form for row in ROWS} == set(forms.STABLE_FORMS)


@pytest.mark.library
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.form.name}: {row.form.broken}")
def test_a_stable_form(row):
    value, gradient = evaluate(row.form.stable, row, row.good)
    broken, broken_gradient = evaluate(row.form.broken, row, row.good)
    assert finite(broken) and all(map(finite, broken_gradient))
    np.testing.assert_allclose(value, broken, rtol=2e-4, atol=2e-6)
    for mine, its in zip(gradient, broken_gradient, strict=True):
        np.testing.assert_allclose(mine, its, rtol=2e-3, atol=2e-5)

    value, gradient = evaluate(row.form.stable, row, row.bad)
    assert all(map(finite, gradient))
    if row.value is not None:
        np.testing.assert_allclose(value, row.value, rtol=2e-4, atol=2e-9)
    if row.form is not forms.WHERE_NAN_KEPT:
        assert finite(value)


#: Rows that are there for their digits: the broken form is finite, and wrong.
FOR_DIGITS = (forms.LOG1P, forms.EXPM1)


@pytest.mark.library
@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.form not in FOR_DIGITS],
    ids=lambda row: f"{row.form.name}: {row.form.broken}",
)
def test_the_broken_form_is_broken(row):
    """Value or gradient is not finite, or the gradient's own terms are not: a form is there for a reason."""
    value, gradient = evaluate(row.form.broken, row, row.bad)
    assert not (finite(value) and all(map(finite, gradient)))


@pytest.mark.parametrize("form", FOR_DIGITS, ids=lambda form: form.name)
def test_a_form_for_the_sake_of_digits(form):
    """log(1 + x) and exp(x) - 1 lose all digits of a small x."""
    row = Row(form, {"x": [1e-10]}, {}, None)
    expected = np.log1p(1e-10) if form is forms.LOG1P else np.expm1(1e-10)
    np.testing.assert_allclose(evaluate(form.stable, row, row.good)[0], [expected], rtol=1e-6)
    np.testing.assert_array_equal(evaluate(form.broken, row, row.good)[0], [0.0])
