"""What the backward pass keeps: cases whose answer is known by hand, and JAX's own arrays as the oracle."""

import gc
import json
import re
import weakref
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name, print_saved_residuals

import jaxprop as jp
import models

POLICIES = jax.checkpoint_policies
MODELS = {case.name: case for case in models.CASES}


def ledger(fun, *args, argnums=0):
    return jp.residuals(fun, argnums, compiled=False)(*args)


def types(rows):
    return sorted(row.type for row in rows)


# --- by hand -------------------------------------------------------------------------------------------


def test_a_sine_is_kept_as_its_cosine():
    def loss(x):
        h = jnp.sin(x)
        return jnp.sum(h)

    (kept,) = ledger(loss, jnp.ones(5)).kept
    assert (kept.name, kept.primitive, kept.type, kept.bytes) == ("cos for h", "cos", "f32[5]", 20)
    assert kept.code == "jnp.sin(x)" and kept.source.file.endswith("test_residuals.py")
    assert kept.consumers == (f"jnp.sin(x) at {kept.source}",)


def test_an_mlp():
    """Of two layers with tanh: 1 - tanh(z)**2 twice, h1 for the gradient of w2. And x, w2, which are there."""

    def loss(params, x):
        h1 = jnp.tanh(x @ params["w1"])
        h2 = jnp.tanh(h1 @ params["w2"])
        return jnp.sum(h2)

    params = {"w1": jnp.ones((3, 4)), "w2": jnp.ones((4, 2))}
    found = ledger(loss, params, jnp.ones((5, 3)))
    arrays = Counter(types(found.kept))
    # JAX 0.10 keeps tanh and 1 - tanh, later ones 1 - tanh**2: the same shapes for each layer, h1 besides.
    assert arrays["f32[5,2]"] >= 1 and arrays["f32[5,4]"] >= 2
    assert set(arrays) == {"f32[5,2]", "f32[5,4]"}
    assert "h1" in [row.name for row in found.kept]
    assert types(row for row in found.residuals if row.kind == "argument") == ["f32[4,2]", "f32[5,3]"]
    assert {row.name for row in found.residuals if row.kind == "argument"} == {"params['w2']", "x"}


@pytest.mark.parametrize("length", (3, 7))
def test_a_scan_keeps_its_steps(length):
    def loss(w, x):
        def step(h, _):
            h = jnp.sin(h @ w)
            return h, None

        h, _ = lax.scan(step, x, None, length=length)
        return jnp.sum(h)

    found = ledger(loss, jnp.ones((4, 4)), jnp.ones((2, 4)))
    assert types(found.kept) == [f"f32[{length},2,4]"] * 2  # the state that enters each step, and the cosine
    assert {row.times for row in found.kept} == {length}
    assert all(row.bytes == 4 * length * 8 for row in found.kept)
    assert {row.name for row in found.kept} >= {"cos for h"} or "cos" in {row.primitive for row in found.kept}
    assert all(row.path == ("scan[0]",) or row.path for row in found.kept)
    assert [row.name for row in found.residuals if row.kind == "argument"] == ["w"]  # once, not for each step


def test_a_scan_in_a_scan_keeps_the_product_of_the_steps():
    def loss(x):
        def inner(h, _):
            return jnp.sin(h), None

        def outer(h, _):
            return lax.scan(inner, h, None, length=3)[0], None

        return jnp.sum(lax.scan(outer, x, None, length=4)[0])

    (kept,) = ledger(loss, jnp.ones(2)).kept
    assert (kept.type, kept.times, kept.bytes) == ("f32[4,3,2]", 12, 96)


def block(w, x):
    z = checkpoint_name(x @ w, "z")
    return jnp.sin(jnp.sin(z))


def with_policy(policy):
    def loss(w, x):
        return jnp.sum(jax.checkpoint(block, policy=policy)(w, x))

    return loss


#: By policy: the arrays of shape [8, 4] kept. Nothing: all is computed again from the arguments. Products: the
#: product. By name: the same under its name. Everything: two cosines, one sine less than without.
PRODUCTS = {
    "nothing": (POLICIES.nothing_saveable, 0),
    "products": (POLICIES.dots_saveable, 1),
    "by name": (POLICIES.save_only_these_names("z"), 1),
    "everything": (POLICIES.everything_saveable, 2),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_checkpoint_policies(name):
    policy, least = PRODUCTS[name]
    found = ledger(with_policy(policy), jnp.ones((3, 4)), jnp.ones((8, 3)))
    assert set(types(found.kept)) <= {"f32[8,4]"}
    assert len(found.kept) == least if least < 2 else len(found.kept) >= least
    if name == "by name":
        assert "z" in found.kept[0].name or "x @ w" in found.kept[0].code


def test_the_difference_of_two_policies():
    args = jnp.ones((3, 4)), jnp.ones((8, 3))
    products = ledger(with_policy(POLICIES.dots_saveable), *args)
    nothing = ledger(with_policy(POLICIES.nothing_saveable), *args)
    difference = products - nothing
    assert difference.bytes == products.total == 4 * 8 * 4
    assert types(difference.only_a) == ["f32[8,4]"] and difference.only_b == ()
    assert str(difference).startswith(
        "128 bytes against 0 bytes: 128 bytes more\n\nOnly the first keeps: 128 bytes"
    )
    assert (products - products).bytes == 0 and (products - products).only_a == ()


def test_a_branch():
    def loss(x):
        return jnp.sum(lax.cond(x[0] > 0, jnp.sin, lambda x: x**3, x))

    found = ledger(loss, jnp.ones(5))
    assert any(row.path for row in found.kept)
    assert set(types(found.kept)) <= {"f32[5]", "i32[]", "bool[]", "f32[]"}


def test_constants_and_arguments_cost_nothing_more():
    table = jnp.arange(6.0)
    found = ledger(lambda w, x: jnp.sum(w * x * table), jnp.ones(6), jnp.ones(6))
    kinds = {row.name: row.kind for row in found.residuals}
    assert kinds["x"] == "argument"
    assert "constant" in kinds.values()
    assert found.figures["arguments"] + found.figures["constants"] == sum(
        row.bytes for row in found.residuals if row.kind != "value"
    )


# --- JAX as the oracle ---------------------------------------------------------------------------------


def kept_by_jax(fun, args, argnums):
    """Bytes of the arrays `jax.vjp` holds that are not its arguments, each buffer once; no scalars."""
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)

    def of(*points):
        full = list(args)
        for i, point in zip(numbers, points, strict=True):
            full[i] = point
        return fun(*full)

    there = [x for x in jax.tree.leaves(args) if isinstance(x, jax.Array) and _plain(x)]
    _, pull = jax.vjp(of, *(args[i] for i in numbers))
    leaves = {x.unsafe_buffer_pointer(): x for x in jax.tree.leaves(pull) if _plain(x)}
    # Known by its numbers: run eagerly, an argument may be handed on as a copy.
    new = [x for x in leaves.values() if x.size > 1 and not any(np.array_equal(x, y) for y in there)]
    return sum(x.nbytes for x in new)


def _plain(x):
    return not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


@pytest.mark.library
@pytest.mark.parametrize(
    "name",
    (
        *("dict_scan_layers", "dict_checkpoint_policy"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("dict_digits_mlp", "linen_remat_scan", "eqx_mlp")
        ),
    ),
)
def test_the_total_is_what_jax_holds(name, key):
    loss, args, argnums = MODELS[name].make(key)
    found = jp.residuals(loss, argnums, compiled=False)(*args)
    held = kept_by_jax(loss, args, argnums)
    constants = found.figures["constants"]
    total = sum(row.bytes for row in found.kept if np.prod(row.shape) > 1 and "key" not in row.dtype)
    assert total <= held <= total + constants


@pytest.mark.library
def test_a_loop_that_is_driven_by_noise(key):
    """Its forward half hands on more arrays than the function that is scanned returns."""

    def loss(p, key):
        def step(x, key):
            drift, noise = jnp.tanh(p["f"] @ x), jax.random.normal(key, (3,))
            return x + 0.1 * drift + jax.nn.sigmoid(p["g"]) * noise, x

        x, _ = lax.scan(step, jnp.zeros(3), jax.random.split(key, 10))
        return jnp.sum(x**2)

    params = {"f": jnp.eye(3), "g": jnp.zeros(3)}
    found = jp.residuals(loss, compiled=False)(params, key)
    assert found.total <= kept_by_jax(loss, (params, key), 0)
    assert "120" in str(found) and all(row.name for row in found.kept)


def test_the_types_are_those_jax_prints(capsys):
    def fun(w, x):
        h = jax.checkpoint(partial(block), policy=POLICIES.dots_saveable)(w, x)
        return jnp.sum(jnp.tanh(h) * jnp.exp(x[:, :1] * h))

    args = jnp.ones((3, 4)), jnp.ones((8, 3))
    found = jp.residuals(fun, (0, 1), compiled=False)(*args)
    capsys.readouterr()
    print_saved_residuals(fun, *args)
    said = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert Counter(said) == Counter(row.type for row in found.residuals)


def test_the_compiled_program_holds_about_as_much():
    """Where all residuals are results of products, XLA cannot compute them again for nothing."""

    def loss(ws, x):
        h = x
        for w in ws:
            h = jnp.sin(h @ w)
        return jnp.sum(h)

    ws = [jnp.ones((64, 64)) for _ in range(6)]
    found = jp.residuals(loss)(ws, jnp.ones((256, 64)))
    assert found.figures["kept"] == found.total == 4 * 256 * 64 * 11  # 6 cosines, 5 inputs of products
    assert 0.4 < found.figures["temporary"] / found.total < 1.3


# --- what is said --------------------------------------------------------------------------------------


def test_assert_residuals_names_the_largest():
    def loss(x):
        big = jnp.sin(jnp.concatenate([x, x, x]))
        return jnp.sum(big) + jnp.sum(jnp.exp(x))

    jp.assert_residuals(loss, max_bytes=160)(jnp.ones(10))
    with pytest.raises(AssertionError) as caught:
        jp.assert_residuals(loss, max_bytes=100)(jnp.ones(10))
    text = str(caught.value).split("\n")[0]
    assert re.fullmatch(
        r"the backward pass of `loss` keeps 160 bytes, more than max_bytes=100\. The largest is `cos for big`, "
        r"f32\[30\] at .*test_residuals\.py:\d+: 120 bytes\. Put `jax\.checkpoint` around what produces it, or choose "
        r"another policy\.",
        text,
    )


def test_the_ledger_is_data_and_text():
    def loss(w, x):
        return jnp.sum(jnp.sin(x @ w))

    found = ledger(loss, jnp.ones((3, 2)), jnp.ones((4, 3)))
    data = json.loads(found.json())
    assert data["figures"] == {"kept": 32, "arguments": 48, "constants": 0}
    assert [row["kind"] for row in data["residuals"]] == ["value", "argument"]
    text = str(found)
    assert text.startswith("residuals loss: 32 bytes kept in 1 arrays\n\nbytes  type")
    assert "Live anyway (arguments and constants): 48 bytes" in text
    assert found.ok


def test_shapes_are_enough():
    def loss(w):
        return jnp.sum(jnp.sin(w))

    found = ledger(loss, jax.ShapeDtypeStruct((2**20, 1024), np.float32))
    assert found.total == 2**32
    assert str(found).startswith("residuals loss: 4.0 GiB kept in 1 arrays")


@pytest.mark.library
def test_every_name_is_one_array():
    def block(w, x):
        return jax.nn.gelu(x @ w) * jax.nn.sigmoid(x @ w)

    def loss(w, x):
        for _ in range(3):
            x = block(w, x)
        return jnp.sum(x)

    found = ledger(loss, jnp.eye(4), jnp.ones((2, 4)))
    names = [row.name for row in found.residuals]
    assert len(names) == len(set(names)) > 6


def test_an_array_that_nothing_reads_says_what_becomes_of_it():
    """JAX keeps the zeros that a relu puts in where its input is negative."""

    def loss(w, x):
        h = jax.nn.relu(x @ w)
        return jnp.sum(h**2)

    found = ledger(loss, jnp.ones((3, 4)), jnp.ones((8, 3)))
    unused = [row for row in found.kept if not row.consumers]
    if unused:  # it depends on the version of JAX
        text = str(found)
        assert "(unused: XLA drops it)" in text and "nothing" not in text
        assert "are kept by `jax.vjp`, but no operation of the backward pass reads them" in found.notes[0]
        assert found.notes[0].startswith("128 bytes in 1 array ")


def test_a_residual_that_is_the_gradient_has_a_consumer():
    through = jax.custom_vjp(lambda x: jnp.sum(x))
    through.defvjp(lambda x: (jnp.sum(x), jnp.cos(x)), lambda kept, ct: (kept,))
    (kept,) = ledger(through, jnp.ones(5)).kept
    assert kept.consumers == ("the gradient itself",)


def test_temporary_memory_beyond_the_residuals_is_explained():
    """What is recomputed is not kept, and needs memory all the same: here the scores of an attention."""

    @jax.checkpoint
    def scores(q):
        return jnp.sum(jax.nn.softmax(q @ q.T))

    report = jp.residuals(scores)(jnp.ones((512, 8)))
    assert report.figures["temporary"] > 2**20 > 20 * report.total
    assert "of temporary memory, more than the residuals: values that live within one pass." in report.notes[-1]
    assert "f32[512,512] at " in report.notes[-1] and "test_residuals.py" in report.notes[-1]
    assert not jp.residuals(lambda w: jnp.sum(jnp.sin(w)))(jnp.ones(1000)).notes


# --- the memory of the process -------------------------------------------------------------------------


def closing_over(array, how):
    """A loss that closes over an array by a jitted helper, or by the rule of a custom function."""
    if how == "jit":
        helper = jax.jit(lambda w: w * array.astype(w.dtype))
    elif how == "custom_jvp":
        helper = jax.custom_jvp(jnp.sin)
        helper.defjvp(lambda xs, ts: (helper(*xs), ts[0] * jnp.cos(xs[0]) * array[0].astype(ts[0].dtype)))
    else:
        helper = jax.custom_vjp(lambda w: 2 * w)
        helper.defvjp(lambda w: (2 * w, None), lambda _, ct: (2 * ct * array[0].astype(ct.dtype),))
    return lambda w: jnp.sum(helper(w)) + lax.scan(lambda h, _: (h * w, None), w, None, length=3)[0]


def compared(loss):
    return lambda w: jp.compare(jp.backprop(loss)(w), jp.backprop(loss)(w))


def in_bfloat16(loss):
    return jp.precision(loss, jnp.bfloat16)


TOOLS = [
    *(jp.check, jp.residuals, in_bfloat16, compared, jp.blocked_gradients, jp.gradient_flow),
]


@pytest.mark.parametrize("how", ("jit", "custom_jvp", "custom_vjp"))
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.__name__)
def test_what_a_loss_closes_over_is_freed_with_it(tool, how):
    array = jnp.ones(10_000)
    alive = weakref.ref(array)
    loss = closing_over(array, how)
    report = str(tool(loss)(jnp.float32(1.5)))
    assert report and alive() is not None
    del array, loss
    for _ in range(3):  # what one collection frees may hold cycles of its own
        gc.collect()
    assert alive() is None
