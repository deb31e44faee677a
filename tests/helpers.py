"""What the tests share: samples of large products, one table of tolerances, comparisons of whole trees."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

#: Whether to run every test on every case: `JAXPROP_FULL=1 pytest -n 2`, about an hour on two cores.
FULL = bool(os.environ.get("JAXPROP_FULL"))


def sample(cases, every, start=0):
    """Each `every`-th of the cases, from `start` on; all of them with JAXPROP_FULL=1."""
    return list(cases) if FULL else list(cases)[start % every :: every]


# Allowed difference by dtype, as a fraction of the scale of what is compared.
TOLERANCE = {
    "bfloat16": 2e-2,
    "float16": 2e-3,
    "float32": 1e-5,
    "float64": 1e-12,
    "complex64": 1e-5,
    "complex128": 1e-12,
}


def tolerance(*dtypes):
    """The tolerance of the least precise of `dtypes`; 0 for integers, booleans and keys."""
    return max((TOLERANCE.get(jnp.dtype(d).name, 0.0) for d in dtypes), default=0.0)


def flat(tree):
    """The leaves of `tree` as `{path: NumPy array}`; keys are compared by their bits."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): _numpy(leaf) for path, leaf in leaves}


def check_equal(actual, expected):
    """The two trees have the same structure, shapes, dtypes and bits (NaN equals NaN)."""
    for path, a, e in _pairs(actual, expected):
        np.testing.assert_array_equal(a, e, err_msg=f"at {path or 'the only leaf'}")


def check_close(actual, expected, factor=1.0):
    """The two trees agree to rounding.

    A leaf is judged by the scale of the whole tree as well as by its own: a gradient that is zero
    in truth (of a bias before a norm) comes out as round-off of the others.
    """
    pairs = list(_pairs(actual, expected))
    scale = max((np.abs(_wide(e[np.isfinite(e)])).max(initial=0.0) for *_, e in pairs), default=0.0)
    for path, a, e in pairs:
        tol = factor * tolerance(a.dtype, e.dtype)
        where = f"at {path or 'the only leaf'}"
        np.testing.assert_allclose(_wide(a), _wide(e), rtol=tol, atol=tol * scale, err_msg=where)


def _pairs(actual, expected):
    actual_def, expected_def = map(jax.tree.structure, (actual, expected))
    assert actual_def == expected_def, f"{actual_def} is not {expected_def}"
    flat_actual, flat_expected = flat(actual), flat(expected)
    for path, a in flat_actual.items():
        e = flat_expected[path]
        assert (a.shape, a.dtype) == (e.shape, e.dtype), (
            f"at {path or 'the only leaf'}: {a.dtype}{a.shape} is not {e.dtype}{e.shape}"
        )
        yield path, a, e


def _numpy(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.view(bool) if array.dtype == jax.dtypes.float0 else array


def _wide(array):
    """bfloat16 and float16 as float32: NumPy compares those."""
    return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array


def trained_by_hand(loss, optimizer, params, data):
    """The loop of everybody's tutorial: params, state of the optimizer, and the losses."""

    @jax.jit
    def step(params, opt_state, *batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = jax.tree.map(jnp.asarray, params)
    opt_state, losses = optimizer.init(params), []
    for batch in data:
        params, opt_state, value = step(params, opt_state, *batch)
        losses.append(value)
    return params, opt_state, losses
