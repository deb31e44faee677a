"""Errors say what failed, why, where in the user's own code, and what to do. Their sentences are the API."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp

HERE = re.escape(__file__)


def tanh_sum(w):
    h = jnp.tanh(w)
    return jnp.sum(h)


def raises(kind, message, call):
    """The whole message matches, not only a part of it."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value.args[0] if isinstance(caught.value, KeyError) else caught.value)
    assert re.fullmatch(message, text, re.DOTALL), text


X = jnp.arange(3.0)
CASES = {
    "the output is no scalar": (
        TypeError,
        r"a gradient requires a scalar-output function, but `sin` returned float32\[3\]\. Reduce it to one number,"
        r" for instance with `jnp\.mean` or `jnp\.sum`; for a pair \(value, aux\) pass has_aux=True; or pass "
        r"`cotangent=`, shaped like the result, to `backprop`\.",
        lambda: jp.backprop(jnp.sin)(X),
    ),
    "the output is an integer": (
        TypeError,
        r"a gradient requires a floating-point output, but `<lambda>` returned int32, which has no derivative\.",
        lambda: jp.backprop(lambda x: jnp.argmax(x))(X),
    ),
    "the output is complex": (
        TypeError,
        r"a gradient requires a real-valued function, but `<lambda>` returned complex64\. For a holomorphic "
        r"function pass holomorphic=True; otherwise take `jnp\.real` or `jnp\.abs` of the result\.",
        lambda: jp.backprop(lambda x: jnp.sum(x.astype(jnp.complex64)))(X),
    ),
    "an integer is differentiated": (
        TypeError,
        r"`params\['table'\]` is int32: only real and complex floating-point arguments can be differentiated\. "
        r"Leave it out of `argnums`, convert it to a float, or pass allow_int=True to backprop to get a gradient "
        r"of dtype float0\.",
        lambda: jp.backprop(lambda params: jnp.sum(params["w"]))({"w": X, "table": jnp.arange(3)}),
    ),
    "a boolean is differentiated": (
        TypeError,
        r"`mask` is bool: only real and complex floating-point arguments can be differentiated\. Leave it out of "
        r"`argnums`, convert it to a float, or pass allow_int=True to value_and_grad to get a gradient of dtype "
        r"float0\.",
        lambda: jp.grad(lambda mask: 1.0 * mask)(True),
    ),
    "a string is differentiated": (
        TypeError,
        r"`mode` has type str, which is not an array and cannot be differentiated\. Leave it out of `argnums`, or "
        r"close over it\.",
        lambda: jp.grad(lambda mode: 1.0)("sum"),
    ),
    "a model with a function in it is differentiated": (
        TypeError,
        r"`model\['act'\]` has type function, which is not an array and cannot be differentiated\. Leave it out of"
        r" `argnums`, or close over it; from a model object, split off the arrays \(`eqx\.partition\(model, "
        r"eqx\.is_inexact_array\)`, `nnx\.split\(model, nnx\.Param, \.\.\.\)`\)\.",
        lambda: jp.grad(lambda model: model["act"](model["w"]))({"w": 1.0, "act": double}),
    ),
    "holomorphic of a real argument": (
        TypeError,
        r"holomorphic=True requires complex arguments, but `x` is float32\. Drop holomorphic=True, or make the "
        r"argument complex\.",
        lambda: jp.grad(lambda x: x * 1j, holomorphic=True)(1.0),
    ),
    "an unknown name": (
        KeyError,
        r"there is no value named 'hh' in the graph\. Nearest names: h\.",
        lambda: jp.backprop(tanh_sum)(X)["hh"],
    ),
    "an unknown name with nothing near": (
        KeyError,
        r"there is no value named 'queries' in the graph\. Available names: w, h, tanh_sum\.",
        lambda: jp.backprop(tanh_sum)(X)["queries"],
    ),
    "a selector that matches no node": (
        ValueError,
        r"the selector 'tank' matches no node: none has such a name, scope or primitive\. Nearest names: .*",
        lambda: jp.backprop(tanh_sum, nodes="tank")(X),
    ),
    "a rule that matches no node": (
        ValueError,
        r"the selector \['relu', 'gelu'\] matches no node: .*",
        lambda: jp.grad(tanh_sum, rules=[(["relu", "gelu"], jp.rules.stop())])(X),
    ),
    "a selector of another kind": (
        TypeError,
        r"a selector is a glob, a list of globs, or a predicate on `Node`; got 3\.",
        lambda: jp.backprop(tanh_sum, nodes=3)(X),
    ),
    "a rule where no cotangent comes": (
        ValueError,
        rf"the rule for 'cos' has no effect: no cotangent reaches `unused` \(cos\) at {HERE}:\d+\. It is on no path "
        r"from a differentiated argument to the result\.",
        lambda: jp.grad(with_unused, rules=[("cos", jp.rules.stop())])(X),
    ),
    "rules of another kind": (
        TypeError,
        r"`rules` is a list of pairs \(where, rule\), a rule being a function \(local, out_cts\) -> in_cts; got .*",
        lambda: jp.grad(tanh_sum, rules=["tanh"])(X),
    ),
    "too many cotangents": (
        TypeError,
        rf"the rule for `h` \(tanh\) at {HERE}:\d+ returned 2 cotangents, expected 1 \(one for each operand: w\)\. "
        r"Return `None` for an operand without cotangent\.",
        lambda: jp.grad(tanh_sum, rules=[("tanh", lambda local, cts: (cts[0], cts[0]))])(X),
    ),
    "no tuple of cotangents": (
        TypeError,
        rf"the rule for `h` \(tanh\) at {HERE}:\d+ returned an array, expected a tuple of cotangents, one for each "
        r"operand \(1\); `None` for an operand without cotangent\.",
        lambda: jp.grad(tanh_sum, rules=[("tanh", lambda local, cts: cts[0])])(X),
    ),
    "a cotangent of another shape": (
        ValueError,
        rf"the rule for `h` \(tanh\) at {HERE}:\d+ returned a cotangent of shape \(\) for operand 0, `w`, which has "
        r"shape \(3,\)\. A cotangent has the shape of its primal\.",
        lambda: jp.grad(tanh_sum, rules=[("tanh", lambda local, cts: (jnp.sum(cts[0]),))])(X),
    ),
    "a cotangent of another dtype": (
        TypeError,
        rf"the rule for `h` \(tanh\) at {HERE}:\d+ returned a cotangent of type bf16\[3\] for operand 0, `w`, which "
        r"is f32\[3\]\. A cotangent has the dtype of its primal: convert it in the rule\.",
        lambda: jp.grad(tanh_sum, rules=[("tanh", lambda local, cts: (cts[0].astype(jnp.bfloat16),))])(X),
    ),
    "a cotangent reaches a while": (
        ValueError,
        rf"a cotangent reaches the while loop `h` \(while\) at {HERE}:\d+, which has no reverse-mode derivative because"
        r" its trip count is not known at trace time\. Use `jax\.lax\.scan`, or `fori_loop` with bounds that are "
        r"plain Python integers; or block the gradient with `jax\.lax\.stop_gradient`\.",
        lambda: jp.backprop(with_while)(X),
    ),
    "a cotangent reaches a while, nothing recorded": (
        ValueError,
        rf"a cotangent reaches the while loop `h` \(while\) at {HERE}:\d+, which has no reverse-mode derivative because"
        r" its trip count is not known at trace time\. Use `jax\.lax\.scan`, or `fori_loop` with bounds that are "
        r"plain Python integers; or block the gradient with `jax\.lax\.stop_gradient`\.",
        lambda: jp.grad(with_while)(X),
    ),
    "Python branches on a traced value": (
        TypeError,
        r"`branching` cannot be traced: it needs a concrete value where only a tracer is available\. Python "
        r"control flow, `float\(\)` or NumPy was applied to a differentiated value\. Use `jnp\.where`, "
        r"`jax\.lax\.cond` or `jax\.numpy`, or leave the argument "
        rf"out of `argnums`\. The line is {HERE}:\d+: `if x > 0:`\.",
        lambda: jp.backprop(branching)(1.0),
    ),
    "argnums out of range": (
        ValueError,
        r"`argnums=2` refers to positional argument 2, but the function was called with 1 positional argument\. Pass differentiated "
        r"arguments by position\.",
        lambda: jp.backprop(tanh_sum, argnums=2)(X),
    ),
    "argnums twice": (
        ValueError,
        r"`argnums=\(0, -1\)` names an argument twice\.",
        lambda: jp.backprop(tanh_sum, argnums=(0, -1))(X),
    ),
    "argnums of another kind": (
        TypeError,
        r"`argnums` must be an integer or a tuple of integers, got 'w'\.",
        lambda: jp.backprop(tanh_sum, argnums="w")(X),
    ),
    "no pair with has_aux": (
        TypeError,
        r"with has_aux=True the function must return a pair \(value, aux\), got .*",
        lambda: jp.backprop(tanh_sum, has_aux=True)(X),
    ),
    "no function": (
        TypeError,
        r"expected a function to differentiate, got int\.",
        lambda: jp.backprop(3)(X),
    ),
    "a recorder of another kind": (
        TypeError,
        r"`record` must be a jaxprop\.Recorder, such as jaxprop\.summary; got str\. Make one with "
        r"jaxprop\.Recorder\(forward=\.\.\., backward=\.\.\.\)\.",
        lambda: jp.backprop(tanh_sum, record="summary"),
    ),
    "a cotangent of another structure": (
        TypeError,
        r"`cotangent` has the structure PyTreeDef\(\(\*,\)\), but `sin` returns PyTreeDef\(\*\)\. A cotangent has "
        r"the structure of its primal\.",
        lambda: jp.backprop(jnp.sin, cotangent=(X,))(X),
    ),
    "a seed of another shape": (
        ValueError,
        r"`cotangent` has shape \(2,\), but `sin` returns shape \(3,\)\. A cotangent has the shape of its primal\.",
        lambda: jp.backprop(jnp.sin, cotangent=jnp.ones(2))(X),
    ),
    "a seed of another dtype": (
        TypeError,
        r"`cotangent` is bfloat16, but `sin` returns float32\. A cotangent has the dtype of its primal: pass "
        r"`cotangent\.astype\(float32\)`\.",
        lambda: jp.backprop(jnp.sin, cotangent=X.astype(jnp.bfloat16))(X),
    ),
    "a float64 seed while x64 is off": (
        TypeError,
        r"`cotangent` is float64, which JAX would downcast to float32 because x64 is disabled\. Set "
        r"`jax\.config\.update\('jax_enable_x64', True\)` at startup, or pass float32\.",
        lambda: jp.backprop(jnp.sin, cotangent=np.ones(3))(X),
    ),
    "a float64 argument while x64 is off": (
        TypeError,
        r"`w` is given as float64, which JAX would downcast to float32 because x64 is disabled\. Set "
        r"`jax\.config\.update\('jax_enable_x64', True\)` at startup, or pass float32\.",
        lambda: jp.trace(tanh_sum)(jax.ShapeDtypeStruct((3,), np.float64)),
    ),
    "no local gradient": (
        ValueError,
        r"'w' does not depend on 'h': there is no local gradient between them\.",
        lambda: jp.backprop(tanh_sum)(X).local("w", wrt="h"),
    ),
    "a local gradient across bodies": (
        ValueError,
        r"'last' and 'h' are in different bodies\. A local gradient is between values of one body; use "
        r"`jaxprop\.derivative` across bodies\.",
        lambda: jp.backprop(with_scan)(1.0).local("last", wrt="h"),
    ),
    "a local gradient of statistics": (
        ValueError,
        rf"the local gradient of `h` \(tanh\) at {HERE}:\d+ needs the value of 'w', which was not recorded; "
        r"`record=` keeps no operands: use record=None\.",
        lambda: jp.backprop(tanh_sum, record=jp.summary)(X).local("h", wrt="w"),
    ),
    "shares of statistics": (
        ValueError,
        r"shares need values and cotangents unchanged: use record=None\.",
        lambda: jp.backprop(tanh_sum, record=jp.summary)(X).shares("h"),
    ),
    "shares where no cotangent comes": (
        ValueError,
        r"no cotangent reaches 'unused': no node that reads it is on a path to the output\.",
        lambda: jp.backprop(with_unused)(X).shares("unused"),
    ),
    "a Jacobian too large": (
        ValueError,
        r"the Jacobian d h/d w has shape \(3, 3\): 9 numbers, more than max_elements=4\. Ask for less: "
        r"`\.diagonal\(\)` where the operation is elementwise, `\.vjp\(ct\)` or `\.jvp\(t\)` for a product with it, or "
        r"pass a larger max_elements\.",
        lambda: jp.backprop(tanh_sum)(X).local("h", wrt="w").jacobian(max_elements=4),
    ),
    "an array is no plain number": (
        TypeError,
        r"d h/d w has shape \(3, 3\): only the derivative of a scalar with respect to a scalar is a plain number\."
        r" Use `\.jacobian\(\)`, `\.diagonal\(\)` or `\.vjp\(ct\)`\.",
        lambda: float(jp.backprop(tanh_sum)(X).local("h", wrt="w")),
    ),
    "a cotangent that does not fit a local gradient": (
        ValueError,
        r"the cotangent of h has shape \(2,\), expected \(3,\): that of h\.",
        lambda: jp.backprop(tanh_sum)(X).local("h", wrt="w").vjp(jnp.ones(2)),
    ),
    "a derivative without a path": (
        ValueError,
        r"'h' does not depend on 'tanh_sum': there is no differentiable path between them\.",
        lambda: jp.derivative(tanh_sum, of="h", wrt="tanh_sum")(X),
    ),
    "a derivative of a value in a body": (
        ValueError,
        r"'h' is defined inside a nested body \(scan/cond/checkpoint\), and `derivative` differentiates values of "
        r"the function itself\. Return it from the body, or record it with `backprop`\.",
        lambda: jp.derivative(with_scan, of="h", wrt="w")(1.0),
    ),
    "a derivative of an integer": (
        ValueError,
        r"'i' is int32, which has no derivative: only floating point has one\.",
        lambda: jp.derivative(with_argmax, of="i", wrt="x")(X),
    ),
    "clip without a bound": (
        ValueError,
        r"`clip` requires a bound: pass max_norm=, max_value=, or both\.",
        lambda: jp.rules.clip(),
    ),
    "clip with a negative bound": (
        ValueError,
        r"`clip` requires max_norm >= 0, got -1\.0\.",
        lambda: jp.rules.clip(max_norm=-1.0),
    ),
    "straight through what changes the shape": (
        ValueError,
        r"`straight_through` cannot be applied to `tanh_sum` \(reduce_sum\) at .*: its output has shape \(\), and no "
        r"floating point operand has that shape\.",
        lambda: jp.grad(tanh_sum, rules=[("reduce_sum", jp.rules.straight_through())])(X),
    ),
    "a recorder that writes keys on the way back": (
        TypeError,
        r"a recorder cannot record key<fry> in the backward pass, only numbers\.",
        lambda: jp.backprop(tanh_sum, record=jp.Recorder(backward=lambda local, cts: jax.random.key(0)))(X),
    ),
}


def double(x):
    return 2.0 * x


def with_unused(x):
    unused = jnp.cos(x)
    del unused
    return jnp.sum(x)


def with_while(x):
    h = jax.lax.while_loop(lambda c: jnp.sum(c) < 10, lambda c: c * 2.0, x)
    return jnp.sum(h)


def with_scan(w):
    def step(h, _):
        h = jnp.tanh(w * h)
        return h, None

    last, _ = jax.lax.scan(step, 1.0, None, length=3)
    return last


def with_argmax(x):
    i = jnp.argmax(x)
    return x[i]


def branching(x):
    if x > 0:
        return x
    return -x


@pytest.mark.parametrize("case", CASES)
def test_the_message_of(case):
    kind, message, call = CASES[case]
    raises(kind, message, call)


def test_a_while_no_cotangent_reaches_does_no_harm():
    def f(x):
        n = jax.lax.while_loop(lambda c: jnp.sum(c) < 10, lambda c: c * 2.0, x)
        return jnp.sum(x**2) + jnp.sum(jax.lax.stop_gradient(n)) + jnp.sum(jnp.round(n))

    np.testing.assert_allclose(jp.backprop(f)(X).grads, 2 * X)


def test_python_may_branch_on_what_is_not_differentiated():
    def f(w, mode, n):
        if mode == "sum" and n > 2:
            return jnp.sum(w) * n
        return jnp.mean(w)

    np.testing.assert_array_equal(jp.backprop(f)(X, "sum", 3).grads, 3 * np.ones(3))
    np.testing.assert_array_equal(jp.grad(f)(X, "mean", np.int32(3)), np.full(3, 1 / 3, np.float32))


def test_with_nothing_recorded_python_may_branch_on_anything_concrete():
    assert float(jp.grad(branching)(-2.0)) == float(jax.grad(branching)(-2.0)) == -1.0
