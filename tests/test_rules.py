"""Rules: each against the formula it stands for, everywhere a node can stand; and rules that are wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from helpers import check_close, check_equal


def f(w):
    a = jnp.sin(w)
    b = a * 3.0
    return jnp.sum(b * b)


W = jnp.array([0.3, -0.8, 1.1])
A, B = np.sin(np.asarray(W)), 3 * np.sin(np.asarray(W))
D_B = 2 * B


def _clipped(ct, max_norm=None, max_value=None):
    if max_value is not None:
        ct = np.clip(ct, -max_value, max_value)
    if max_norm is not None:
        ct = ct * min(1.0, max_norm / np.linalg.norm(ct))
    return ct


# rule at `b`, and what it makes of the cotangent that reaches `w`
FORMULAS = {
    "scale": (jp.rules.scale(0.1), 0.1 * D_B * 3 * np.cos(W)),
    "reverse": (jp.rules.reverse(), -D_B * 3 * np.cos(W)),
    "reverse by a factor": (jp.rules.reverse(2.0), -2 * D_B * 3 * np.cos(W)),
    "stop": (jp.rules.stop(), np.zeros(3)),
    "clip by norm": (jp.rules.clip(max_norm=0.5), _clipped(D_B, max_norm=0.5) * 3 * np.cos(W)),
    "clip by value": (jp.rules.clip(max_value=0.5), _clipped(D_B, max_value=0.5) * 3 * np.cos(W)),
    "clip by both": (jp.rules.clip(1.0, 2.0), _clipped(D_B, 1.0, 2.0) * 3 * np.cos(W)),
    "clip that does not bind": (jp.rules.clip(1e6, 1e6), D_B * 3 * np.cos(W)),
    "straight through": (jp.rules.straight_through(), D_B * np.cos(W)),
    "the chain rule itself": (lambda local, cts: local.vjp(cts), D_B * 3 * np.cos(W)),
    "of its operands": (lambda local, cts: (cts[0] * local.operands[0], None), D_B * A * np.cos(W)),
    "of its outputs": (lambda local, cts: (cts[0] * local.outputs[0], None), D_B * B * np.cos(W)),
}


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", FORMULAS)
def test_a_rule_is_its_formula(name, jit):
    rule, expected = FORMULAS[name]
    grad = jp.grad(f, rules=[("b", rule)])
    np.testing.assert_allclose((jax.jit(grad) if jit else grad)(W), expected, rtol=2e-5, atol=1e-6)


WHERE = {
    "name": "b",
    "glob": "b*",
    "primitive": lambda node: node.primitive == "mul" and node.name == "b",
    "list": ["nothing else", "b"],
}


@pytest.mark.parametrize("how", WHERE)
def test_where_a_rule_applies(how):
    where = WHERE[how]
    np.testing.assert_allclose(jp.grad(f, rules=[(where, jp.rules.stop())])(W), np.zeros(3))


def test_the_first_rule_that_matches_wins():
    rules = [("b", jp.rules.scale(2.0)), ("mul", jp.rules.stop())]
    g = jp.backprop(f, rules=rules)(W)
    # the other `mul`, `b * b`, is stopped: nothing comes to `b`
    np.testing.assert_array_equal(g.grads, np.zeros(3))
    rules = [("b", jp.rules.scale(2.0)), ("b", jp.rules.stop())]
    np.testing.assert_allclose(jp.grad(f, rules=rules)(W), 2 * D_B * 3 * np.cos(W), rtol=1e-5)


def test_a_rule_for_a_scope():
    def g(w):
        with jax.named_scope("head"):
            a = jnp.sin(w) * 2.0
        return jnp.sum(a * w)

    expected = 2 * np.sin(W)  # what comes by `w` itself
    np.testing.assert_allclose(jp.grad(g, rules=[("head", jp.rules.stop())])(W), expected, rtol=1e-6)


def test_a_rule_on_an_argument():
    g = jp.grad(lambda p: p["a"] * p["b"], rules=[("p['a']", jp.rules.scale(5.0))])({"a": 2.0, "b": 3.0})
    assert (float(g["a"]), float(g["b"])) == (15.0, 2.0)


# --- inside every opened form -------------------------------------------------------------------------


def in_jit(w):
    return jnp.sum(jax.jit(lambda v: jnp.tanh(v) * 2.0)(w))


def in_scan(w):
    def step(c, _):
        return jnp.tanh(c) * 2.0, None

    return jnp.sum(jax.lax.scan(step, w, None, length=3)[0])


def in_cond(w):
    return jnp.sum(jax.lax.cond(w[0] > 0, lambda v: jnp.tanh(v) * 2.0, lambda v: v, w))


def in_switch(w):
    branches = [lambda v: v, lambda v: jnp.tanh(v) * 2.0, lambda v: -v]
    return jnp.sum(jax.lax.switch(1 + 0 * w.astype(jnp.int32)[0], branches, w))


def in_remat(w):
    return jnp.sum(jax.checkpoint(lambda v: jnp.tanh(v) * 2.0)(w))


def in_remat_with_a_policy(w):
    block = jax.checkpoint(lambda v: jnp.tanh(v) * 2.0, policy=jax.checkpoint_policies.everything_saveable)
    return jnp.sum(block(block(w)))


def in_scan_in_remat_in_cond(w):
    return jnp.sum(jax.lax.cond(w[0] > 0, jax.checkpoint(lambda v: in_scan(v)), lambda v: jnp.sum(v), w))


def in_vmap(w):
    return jnp.sum(jax.vmap(lambda v: jnp.tanh(v) * 2.0)(w))


FORMS = [
    in_jit,
    in_scan,
    in_cond,
    in_switch,
    in_remat,
    in_remat_with_a_policy,
    in_scan_in_remat_in_cond,
    in_vmap,
]


def scaled_tanh(factor):
    """Tanh with its derivative scaled, written with `custom_jvp`."""
    tanh = jax.custom_jvp(jax.lax.tanh)
    tanh.defjvp(lambda p, t: (jax.lax.tanh(p[0]), factor * (1 - jax.lax.tanh(p[0]) ** 2) * t[0]))
    return tanh


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_a_rule_works_inside(form, jit, monkeypatch):
    grad = jp.grad(form, rules=[("tanh", jp.rules.scale(0.5))])
    actual = (jax.jit(grad) if jit else grad)(jnp.abs(W))
    scaled = scaled_tanh(0.5)
    monkeypatch.setattr(jnp, "tanh", scaled)
    check_close(actual, jax.grad(form)(jnp.abs(W)))


def test_a_rule_for_a_whole_scan():
    stopped = jp.grad(lambda w: in_scan(w) + jnp.sum(w), rules=[("scan", jp.rules.stop())])(W)
    np.testing.assert_array_equal(stopped, np.ones(3))
    halved = jp.grad(in_scan, rules=[(lambda node: node.primitive == "scan", jp.rules.scale(0.5))])(W)
    check_close(halved, 0.5 * jax.grad(in_scan)(W))


def test_a_rule_for_a_scan_leaves_those_inside_in_force():
    rules = [("scan", lambda local, cts: local.vjp(cts)), ("tanh", jp.rules.stop())]
    np.testing.assert_array_equal(jp.grad(in_scan, rules=rules)(W), np.zeros(3))


# --- where the derivative is zero ----------------------------------------------------------------------

ZERO = {
    "round": jnp.round,
    "floor": jnp.floor,
    "sign": jnp.sign,
    "stop_gradient": jax.lax.stop_gradient,
}


@pytest.mark.parametrize("name", ZERO)
def test_straight_through_stands_in_for_a_zero(name):
    def g(w):
        q = ZERO[name](w)
        return jnp.sum(q * q)

    x = jnp.array([0.4, 1.6, -2.3])
    np.testing.assert_array_equal(jax.grad(g)(x), np.zeros(3))
    np.testing.assert_allclose(jp.grad(g, rules=[(name, jp.rules.straight_through())])(x), 2 * ZERO[name](x))


def test_a_custom_rule_is_replaced_too():
    @jax.custom_vjp
    def odd(x):
        return x * 2.0

    odd.defvjp(lambda x: (odd(x), None), lambda _, ct: (ct * 100.0,))
    assert float(jp.grad(odd)(1.0)) == 100.0
    assert float(jp.grad(odd, rules=[("odd", jp.rules.straight_through())])(1.0)) == 1.0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_chain_rule_everywhere_changes_nothing(form):
    rules = [("*", lambda local, cts: local.vjp(cts))]
    check_close(jp.grad(form, rules=rules)(jnp.abs(W)), jax.grad(form)(jnp.abs(W)))
    check_close(jax.jit(jp.grad(form, rules=rules))(jnp.abs(W)), jax.jit(jax.grad(form))(jnp.abs(W)))


def test_a_rule_sees_which_cotangents_come():
    seen = {}

    def look(local, out_cts):
        seen[local.node.primitive] = [ct is not None for ct in out_cts]
        return local.vjp(out_cts)

    def g(s):
        def step(c, x):
            return c * x, c

        last, trail = jax.lax.scan(step, s, jnp.ones(3))
        return last  # the trail is not used

    jp.grad(g, rules=[("scan", look)])(2.0)
    assert seen == {"scan": [True, False]}


def test_rules_and_records_together():
    rules = [("tanh", jp.rules.stop())]
    tape = jax.jit(jp.backprop(in_scan, nodes="tanh", record=jp.summary, rules=rules))(W)
    (tanh,) = tape.find("tanh")
    assert tanh.cotangent.norm.shape == (3,)
    # Nothing comes through the last tanh; before it there is nothing to record but zeros.
    np.testing.assert_allclose(tanh.cotangent.norm, [0.0, 0.0, 2 * np.sqrt(3)], rtol=1e-6)


def test_second_order_through_a_rule():
    grad = jp.grad(f, rules=[("b", jp.rules.scale(0.5))])
    check_close(jax.jvp(grad, (W,), (W,))[1], 0.5 * jax.jvp(jax.grad(f), (W,), (W,))[1])
    check_close(jax.grad(lambda w: jnp.sum(grad(w)))(W), 0.5 * jax.grad(lambda w: jnp.sum(jax.grad(f)(w)))(W))


def test_without_rules_it_is_jax_itself():
    check_equal(jp.grad(f)(W), jax.grad(f)(W))
    plain = jax.jit(jax.value_and_grad(f)).lower(W).compile().cost_analysis()
    ours = jax.jit(jp.value_and_grad(f)).lower(W).compile().cost_analysis()
    assert ours == plain


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("sin", jp.rules.straight_through)],
            "a rule is a function (local, out_cts) -> in_cts, but `straight_through` has the parameters (). "
            "If `straight_through` makes a rule, call it: `straight_through(...)`.",
        ),
        (
            {"sin": jp.rules.stop()},
            "`rules` is a list of pairs, `[(where, rule), ...]`, because the first match wins; got a dict.",
        ),
        (
            [("sin", lambda local, cts: ([1.0, 2.0],))],
            "the rule for `sin` (sin) at {here} returned list as the cotangent of operand 0, `x`, expected an "
            "array. Convert it with `jnp.asarray`.",
        ),
    ],
)
def test_what_is_no_rule(rules, message):
    with pytest.raises(TypeError) as raised:
        jp.backprop(lambda x: jnp.sum(jnp.sin(x)), rules=rules)(jnp.ones(2))
    assert str(raised.value).split(" at ")[0] == message.split(" at ")[0]
    assert str(raised.value).endswith(message.split("{here} ")[-1])
