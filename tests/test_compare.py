"""Two tapes of which it is known where they diverge; precisions of which it is known what they lose."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprop as jp
import models
from jaxprop.diagnosis import Comparison

MODELS = {case.name: case for case in models.CASES}


def draw(*shapes):
    source = np.random.default_rng(2)
    return [jnp.asarray(source.normal(size=shape), jnp.float32) for shape in shapes]


def cell(w, h):
    z = h @ w
    h = jnp.tanh(z)
    return h


def unrolled(w, x):
    h = x
    for _ in range(3):
        h = cell(w, h)
    return jnp.mean(h**2)


def scanned(w, x):
    h, _ = lax.scan(lambda h, _: (cell(w, h), None), x, None, length=3)
    return jnp.mean(h**2)


def recomputed(w, x):
    h = x
    for _ in range(3):
        h = jax.checkpoint(cell)(w, h)
    return jnp.mean(h**2)


def jitted(w, x):
    h = x
    for _ in range(3):
        h = jax.jit(cell)(w, h)
    return jnp.mean(h**2)


VARIANTS = (scanned, recomputed, jitted)


@pytest.fixture(scope="module")
def reference():
    args = draw((3, 3), (2, 3))
    return args, jp.backprop(unrolled)(*args)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda f: f.__name__)
def test_the_same_program_written_otherwise_does_not_diverge(variant, reference):
    args, tape = reference
    found = jp.compare(jp.backprop(variant)(*args), tape)
    assert found.ok and not len(found), found
    assert found["z"].forward.digits > 5
    matched = {pair.other for pair in found.pairs}
    assert {"w", "x", "z", "h", "unrolled"} <= matched


def test_a_loop_against_its_steps_written_out(reference):
    args, tape = reference
    found = jp.compare(jp.backprop(scanned)(*args), tape)
    (z,) = [pair for pair in found.pairs if pair.name == "z"]
    assert z.forward.size == 3 * 2 * 3  # all steps at once
    back = jp.compare(tape, jp.backprop(scanned)(*args))
    assert back.ok and {pair.other for pair in back.pairs} >= {"z", "w", "x"}


def test_eager_and_jitted_are_one(reference):
    args, tape = reference
    found = jp.compare(jax.jit(jp.backprop(unrolled))(*args), tape)
    assert found.ok and found.unmatched == ()
    assert len(found.pairs) == len(tape)


@pytest.mark.parametrize("direction", ("forward", "backward"))
def test_the_first_node_where_they_diverge(direction, reference):
    """A fault is planted at one node, in one direction."""
    args, tape = reference
    planted = jax.custom_vjp(lambda x: x)
    planted.defvjp(lambda x: (x, None), lambda _, ct: (1.01 * ct,))

    def faulty(w, x):
        h = x
        for step in range(3):
            z = h @ w
            if step == 1 and direction == "forward":
                z = z * 1.001
            h = jnp.tanh(z)
            if step == 1 and direction == "backward":
                h = planted(h)
        return jnp.mean(h**2)

    found = jp.compare(jp.backprop(faulty)(*args), tape)
    first = next(finding for finding in found if finding.kind == direction)
    if direction == "forward":
        assert found["z"].forward.relative == 0 and found["h"].forward.relative == 0
        w, x = (np.asarray(arg, np.float64) for arg in args)
        z = np.tanh(x @ w) @ w
        off = np.linalg.norm(np.tanh(1.001 * z) - np.tanh(z)) / np.linalg.norm(np.tanh(z))
        assert first.node == "h#2" and first.source.file.endswith("test_compare.py")
        assert first.numbers["relative"] == pytest.approx(off, rel=1e-2)
    else:
        assert [finding.kind for finding in found] == ["backward"]
        assert first.numbers["relative"] == pytest.approx(1e-2, rel=0.2)
        assert found["z#3"].backward.relative == 0


def test_the_message_and_the_figures():
    def loss(w, slope):
        h = w * 2.0
        y = jnp.where(h > 0, h, slope * h)
        return jnp.sum(y**2)

    w = jnp.array([3.0, -4.0], jnp.float32)
    found = jp.compare(jp.backprop(loss)(w, jnp.float32(0.1)), jp.backprop(loss)(w, jnp.float32(0.2)))
    forward, backward = found
    assert (
        forward.message
        == "in the forward pass the values diverge at `slope`: they differ by 0.5 of the norm of the second."
    )
    assert backward.element == (1,)
    y = found["y"].forward
    a, b = np.array([6.0, -0.8]), np.array([6.0, -1.6])
    assert y.relative == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-6)
    assert y.digits == pytest.approx(-np.log10(y.relative))
    assert y.ulps == pytest.approx(y.relative / np.finfo(np.float32).eps)
    assert (y.element, y.a, y.b) == ((1,), pytest.approx(-0.8), pytest.approx(-1.6))
    data = json.loads(found.json())
    assert [finding["kind"] for finding in data["findings"]] == ["forward", "backward"]
    assert isinstance(found, Comparison) and "Farthest apart" in str(found)


def test_a_gradient_that_is_truly_zero_is_no_divergence():
    """The bias before a norm: its cotangent is round-off of the others."""

    def loss(b, x):
        h = x + b[None]
        n = (h - jnp.mean(h, 0)[None]) / jnp.std(h, 0)[None]
        return jnp.sum(n**3)

    def other(b, x):
        h = b[None] + x
        n = (h - jnp.mean(h, 0)[None]) / jnp.std(h, 0)[None]
        return jnp.sum(n * n * n)

    b, x = draw((4,), (16, 4))
    found = jp.compare(jp.backprop(loss)(b, x), jp.backprop(other)(b, x))
    assert found["b"].backward is not None
    assert found.ok, found


def test_what_cannot_be_compared():
    tape = jp.backprop(lambda w: jnp.sum(w**2))(jnp.ones(2))
    brief = jp.backprop(lambda w: jnp.sum(w**2), record=jp.summary)(jnp.ones(2))
    with pytest.raises(TypeError) as caught:
        jp.compare(tape, brief)
    assert str(caught.value) == ("compare needs values and cotangents unreduced: record them with record=None.")
    with pytest.raises(ValueError) as caught:
        jp.compare(tape, jp.backprop(lambda v: jnp.prod(jnp.sin(v)))(jnp.ones(5)))
    assert str(caught.value) == (
        "the two tapes have no value in common: no name, shape and operation is on both."
    )


# --- precision -----------------------------------------------------------------------------------------


def small(w):
    h = 1e-3 * w
    return jnp.mean(h**2)


def test_underflow_in_float16_and_the_scale_that_fixes_it():
    """d loss/d h = 2 h / n = 2e-8, d loss/d w = 2e-11: below half of the smallest float16, 2**-25."""
    w = jnp.full(1000, 1e-2)
    found = jp.precision(small, jnp.float16)(w)
    (finding,) = found
    assert (finding.kind, finding.leaves) == ("underflow", ("w",))
    assert found.comparison["w"].backward.vanished == 1000
    first = 2.0 ** np.ceil(np.log2(2.0**-25 / 2e-11))
    assert found.window == (first, 2.0**15)  # from 2**16 on the seed itself is infinite in float16
    assert first <= found.scale <= 2.0**15
    low = w.astype(jnp.float16)
    plain = jax.grad(small)(low)
    scaled = jax.grad(lambda w: small(w) * np.float16(found.scale))(low).astype(np.float32) / found.scale
    right = jax.grad(small)(w)
    assert not plain.any()
    np.testing.assert_allclose(scaled, right, rtol=0.1)  # 2.7 of the smallest steps: three are stored
    assert finding.fix.startswith(
        f"Scale the loss by 2**{int(np.log2(found.scale))}: differentiate `scale * loss`"
    )


def test_bfloat16_has_the_range_of_float32():
    found = jp.precision(small, jnp.bfloat16)(jnp.full(1000, 1e-2))
    assert not [finding for finding in found if finding.kind in ("underflow", "overflow")]
    assert found.scale == 1.0


def test_overflow_names_the_first_value():
    def loss(x):
        e = jnp.exp(x)
        return jnp.log(jnp.sum(e))

    found = jp.precision(loss, jnp.float16)(jnp.array([1.0, 12.0]))
    first = found[0]
    assert (first.kind, first.severity, first.node, first.element) == ("overflow", "error", "e", (1,))
    assert first.message == "the value of `e` is not finite in float16, at 1 of 2 elements."
    assert first.why == "The range of float16 ends at 6.55e+04."


def test_digits_are_lost_where_numbers_cancel():
    """1000 + x has two digits and a half in bfloat16; the difference has none of x left."""

    def loss(x):
        shifted = x + 1000
        back = shifted - 1000
        return jnp.sum(back * back)

    found = jp.precision(loss, jnp.bfloat16)(jnp.array([0.3, 1.1, 2.3, 0.7]))
    digits = [finding for finding in found if finding.kind == "digits"]
    assert digits[0].node == "back" and digits[0].cause == "cancellation"
    table = found.comparison
    assert table["shifted"].forward.relative < 5e-3 < 0.1 < table["back"].forward.relative


# --- the gradients themselves first ----------------------------------------------------------------------------


def low_and_high(loss, *args, low=jnp.bfloat16):
    """Relative error of the gradient, by plain `jax.grad`: the independent oracle."""
    g = np.asarray(jax.grad(loss)(*args), np.float64)
    g_low = np.asarray(jax.grad(loss)(*(x.astype(low) for x in args)), np.float64)
    return np.linalg.norm(g_low - g) / np.linalg.norm(g)


def zeroed(w, x):
    return jnp.mean((x @ w - 1) ** 2)


def gap(w, x):
    h = x * w
    gap = (h + 1e4) - 1e4
    out = 3.0 * gap
    return jnp.sum(out**2)


def variance(w, x):
    h = x @ w + 30.0
    return jnp.mean(h**2) - jnp.mean(h) ** 2


W4, X4 = jnp.full(8, 100.0), jnp.full((4, 8), 0.00125122)
SMALL = 1e-3 * jax.random.normal(jax.random.key(1), (64, 4))
LOST = {
    "zeroed": (zeroed, (W4, X4), "value", "sub"),
    "gap": (gap, (jnp.arange(1.0, 5.0), jnp.ones(4)), "value", "gap"),
    "variance": (variance, (jnp.ones(4), SMALL), "cotangent", "h"),
}


@pytest.mark.library
@pytest.mark.parametrize("name", LOST)
def test_where_the_digits_of_a_gradient_are_lost(name):
    loss, args, word, node = LOST[name]
    error = low_and_high(loss, *args)
    assert error > 0.5
    report = jp.precision(loss, jnp.bfloat16)(*args)
    assert not report.ok
    np.testing.assert_allclose(report.figures["gradient"], error, rtol=1e-2)
    assert report.gradient.keys() == {"w"}
    found = [(f.node, f.cause) for f in report if f.kind == "digits" and f.message.startswith(f"the {word}")]
    assert (node, "cancellation") in found, report
    assert f"The gradient of `w` is off by {report.gradient['w']:.2g} of its norm." in report[0].why
    assert report[0].severity == "error"


@pytest.mark.library
def test_the_node_where_digits_are_lost_is_named_and_not_the_next():
    args = jnp.arange(1.0, 5.0), jnp.ones(4)
    report = jp.precision(gap, jnp.bfloat16)(*args)
    assert [finding.node for finding in report] == ["gap"]
    table = report.comparison
    assert table["gap"].forward.lost == pytest.approx(-np.log10(2.0**-8), abs=0.1)  # all that bfloat16 has
    assert table["out"].forward.lost == table["out"].backward.lost == table["add"].forward.lost == 0
    low = jp.backprop(gap)(*(x.astype(jnp.bfloat16) for x in args))
    assert jp.compare(low, jp.backprop(gap)(*args))[0].node == "gap"


@pytest.mark.library
def test_no_more_digits_are_lost_than_a_dtype_has():
    def loss(w, big):  # a constant instead of `big` is cancelled by the XLA of JAX 0.10
        gap = (w + big) - big
        return jnp.sum((3.0 * gap) ** 2)

    w, big = 1e-8 * jnp.arange(1.0, 5.0), jnp.full(4, 1e4)
    report = jp.precision(loss, jnp.float32, reference=jnp.float64)(w, big)
    (found,) = report
    assert found.node == "gap" and "loses 7.2 digits in float32" in found.message
    assert found.fix == "Compute `add`, `big` in float64 already: what is rounded to float32 before is lost."
    for pair in report.comparison.pairs:
        for side in (pair.forward, pair.backward):
            assert side is None or side.lost <= 7.3


@pytest.mark.library
def test_a_loss_of_digits_that_does_no_harm_is_none():
    """What is far off is added to something a million times as large."""

    def loss(w):
        off = (w + 1e4) - 1e4
        return jnp.sum((1e6 * w + off) ** 2)

    w = jnp.arange(1.0, 5.0)
    assert low_and_high(loss, w) < 0.02
    report = jp.precision(loss, jnp.bfloat16)(w)
    assert report.ok and report.comparison["off"].forward.relative > 0.5


def test_a_gradient_that_is_truly_zero_is_no_loss():
    def loss(params, x):
        h = x @ params["w"] + params["b"][None]
        n = (h - jnp.mean(h, 0)[None]) / jnp.std(h, axis=0)[None]
        return jnp.mean(jnp.tanh(n @ params["w"]) ** 2)

    w, x = draw((4, 4), (16, 4))
    report = jp.precision(loss, jnp.bfloat16)({"w": w, "b": jnp.ones(4)}, x)
    assert report.gradient["params['b']"] > 1  # round-off of one against that of the other
    assert report.ok, report


def test_underflow_without_harm_is_a_note():
    def loss(w):
        return jnp.sum(w * jnp.array([1.0, 1e-8, 1.0], w.dtype)) ** 2

    report = jp.precision(loss, jnp.float16)(jnp.ones(3))
    assert [(found.kind, found.severity) for found in report] == [("underflow", "note")]
    assert report.ok and report[0].why.endswith("The gradient as a whole is right.")


@pytest.mark.library
def test_values_of_one_operation_are_not_confused():
    """Both products have no name of their own, and the first is not recorded in the lower precision."""

    def loss(w, xs, frozen):
        def step(seen, x):
            mean = jnp.mean(x * w)
            seen = 0.99 * jax.lax.stop_gradient(seen) + 0.01 * mean
            return seen, (mean - seen) ** 2

        return jnp.sum(lax.scan(step, frozen, xs)[1])

    w, xs = draw((3,), (6, 3))
    report = jp.precision(loss, jnp.bfloat16)(w, xs, jnp.float32(0.0))
    assert report.ok, report

    def one(w):
        return jnp.sum(0.99 * jax.lax.stop_gradient(w) + 0.01 * w)

    def other(w):
        return jnp.sum(0.99 * w + 0.01 * jax.lax.stop_gradient(w))

    found = jp.compare(jp.backprop(one)(w), jp.backprop(other)(w))
    for pair in found.pairs:
        assert pair.forward is None or pair.forward.relative < 1e-6, found


def test_integers_stay_and_only_params_are_cast():
    seen = []

    def loss(params, ids, x):
        seen.append((params.dtype, ids.dtype, x.dtype))
        return jnp.sum(params[ids].astype(jnp.float32) * x.astype(jnp.float32))

    args = jnp.ones(4), jnp.array([0, 2], jnp.int32), jnp.ones(2)
    jp.precision(loss, jnp.bfloat16)(*args)
    assert (jnp.bfloat16, jnp.int32, jnp.bfloat16) in seen
    seen.clear()
    jp.precision(loss, jnp.bfloat16, cast="params")(*args)
    assert (jnp.bfloat16, jnp.int32, jnp.float32) in seen


def test_a_float64_reference():
    found = jp.precision(lambda w: jnp.sum(jnp.sin(w)), jnp.float32, reference=jnp.float64)(jnp.ones(3))
    assert found.ok
    assert 6 < found.comparison["w"].backward.digits < 10
    assert not jax.config.jax_enable_x64


def test_dtypes_are_checked():
    with pytest.raises(ValueError) as caught:
        jp.precision(small, jnp.float32)
    assert str(caught.value) == "the reference must be more precise: float32 is not more precise than float32."
    with pytest.raises(TypeError) as caught:
        jp.precision(small, jnp.int32)
    assert str(caught.value) == "`dtype` must be a floating point dtype, got int32."


def test_the_scales_are_told():
    text = str(jp.precision(small, jnp.float16)(jnp.full(1000, 1e-2)))
    assert "Farthest from the reference" in text and "The loss scaled" in text and "2**11" in text
    data = json.loads(jp.precision(small, jnp.float16)(jnp.full(1000, 1e-2)).json())
    assert (
        data["scales"][0] == {"scale": 1.0, "underflow": 2000, "nonfinite": 0} or data["scales"][0]["underflow"]
    )


@pytest.mark.library
@pytest.mark.slow
@pytest.mark.parametrize("name", ("dict_digits_mlp", "nnx_attention"))
def test_a_healthy_model_in_bfloat16(name, key):
    loss, args, argnums = MODELS[name].make(key)
    found = jp.precision(loss, jnp.bfloat16, argnums)(*args)
    assert not [finding for finding in found if finding.kind in ("underflow", "overflow")], found
    assert found.comparison.figures["compared"] > 5
