"""What is watched inside the compiled step against the same looked up outside, with `backprop` and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprop as jp
from helpers import check_close, check_equal

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def mlp(params, x, y):
    h = jnp.tanh(x @ params["w1"])
    y_hat = h @ params["w2"]
    return jnp.mean((y_hat - y) ** 2)


PARAMS = {"w1": normal(4, 8), "w2": normal(8, 2)}
X, Y = normal(30, 4), normal(30, 2)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def rnn(w, xs):
    @jax.checkpoint
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, None

    last, _ = jax.lax.scan(step, jnp.zeros(3), xs)
    return jnp.sum(last**2)


def outside(params):
    """Entries at these params, by the engine alone, as NumPy computes their statistics."""
    tape = jp.backprop(mlp)(jax.tree.map(jnp.asarray, params), X, Y)
    return {entry.name: entry for entry in tape}


def norm(x):
    return np.linalg.norm(np.asarray(x, np.float64).ravel())


def steps_by_hand(count):
    """(params, grads, updates) of each step."""
    params, opt_state = jax.tree.map(jnp.asarray, PARAMS), OPTIMIZER.init(PARAMS)
    for _ in range(count):
        grads = jax.grad(mlp)(params, X, Y)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        yield params, grads, updates
        params = optax.apply_updates(params, updates)


def check_watched(watched, params, grads, updates):
    expected = outside(params)
    assert set(watched) >= {"h", "y_hat", "mlp", "params['w1']"}
    for name, entry in expected.items():
        if name not in watched:
            continue
        for side in ("value", "cotangent"):
            seen, x = getattr(watched[name], side), getattr(entry, side)
            assert (seen is None) == (x is None), (name, side)
            if x is not None:
                np.testing.assert_allclose(seen.norm, norm(x), rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(seen.max, np.max(x), rtol=1e-4, atol=1e-6)
    for name in PARAMS:
        leaf = watched.leaves[f"params[{name!r}]"]
        both = norm(params[name]), norm(grads[name]), norm(updates[name])
        np.testing.assert_allclose(leaf, (*both, both[2] / both[0], 0.0), rtol=1e-4)


@pytest.mark.parametrize("chosen", ["by the count", "by hand", "on the device"])
def test_a_step_is_watched_when_it_is_its_turn(chosen):
    step = jp.make_step(mlp, OPTIMIZER, watch=jp.Watch(every=3))
    plain = jp.make_step(mlp, OPTIMIZER)
    state, unwatched = step.init(PARAMS), plain.init(PARAMS)
    on_the_device = jax.jit(step)
    for i, (params, grads, updates) in enumerate(steps_by_hand(7)):
        if chosen == "on the device":
            state, metrics = on_the_device(state, X, Y)
        else:
            state, metrics = step(state, X, Y, watch=None if chosen == "by the count" else i % 3 == 0)
        unwatched, _ = plain(unwatched, X, Y)
        assert bool(metrics.watched) == (i % 3 == 0)
        if metrics.watched:
            assert int(metrics.watched.step) == i
            check_watched(metrics.watched, params, grads, updates)
    check_close(state.params, unwatched.params)  # looking can change fusion, hence the last bits


def test_the_count_follows_the_state():
    """A state from elsewhere, and one gone back to."""
    step = jp.make_step(mlp, watch=jp.Watch(nodes=(), every=3), donate=False)
    state = step.init(PARAMS)
    states, seen = [state], []
    for _ in range(5):
        state, metrics = step(state, X, Y)
        states.append(state)
        seen.append(bool(metrics.watched))
    assert seen == [True, False, False, True, False]
    assert [bool(step(states[i], X, Y)[1].watched) for i in (3, 1, 0, 2)] == [True, False, True, False]


def test_a_step_that_was_not_watched_has_nothing_to_read():
    step = jp.make_step(mlp, watch=jp.Watch(every=2))
    state, _ = step(step.init(PARAMS), X, Y)
    _, metrics = step(state, X, Y)
    assert not metrics.watched and list(metrics.watched) == [] and len(metrics.watched) == 0
    message = "this step was not watched, so there is nothing to read. Check `if metrics.watched:` first."
    for read in (lambda w: w["h"], lambda w: w.leaves):
        with pytest.raises(ValueError) as caught:
            read(metrics.watched)
        assert str(caught.value) == message


@pytest.mark.parametrize("memory_limit", [None, 0])
def test_a_run_watches_the_same(memory_limit):
    watch = jp.Watch("*", every=3)
    data = jp.train.Data((X, Y), memory_limit=memory_limit)
    options = {"optimizer": OPTIMIZER, "steps": 7, "progress": False}
    state, history = jp.fit(mlp, PARAMS, data, watch=watch, **options)
    assert history.watched.steps.tolist() == [0, 3, 6]
    for row, (params, grads, updates) in enumerate(steps_by_hand(7)):
        if row % 3:
            continue
        at = row // 3
        expected = outside(params)
        np.testing.assert_allclose(
            history.watched["h"].cotangent.norm[at], norm(expected["h"].cotangent), rtol=1e-4
        )
        np.testing.assert_allclose(history.watched["h"].value.mean[at], np.mean(expected["h"].value), atol=1e-5)
        leaf = history.watched.leaves["params['w2']"]
        np.testing.assert_allclose(leaf.grad[at], norm(grads["w2"]), rtol=1e-4)
        np.testing.assert_allclose(leaf.ratio[at], norm(updates["w2"]) / norm(params["w2"]), rtol=1e-4)
    assert "h" in history.watched and len(history.watched) > 5
    _, fewer = jp.fit(mlp, PARAMS, data, watch=jp.Watch(every=3), **options)
    assert set(fewer.watched) == {
        "params['w1']",
        "params['w2']",
        "h",
        "y_hat",
        "mlp",
    }  # the values of variables
    plain, _ = jp.fit(mlp, PARAMS, data, **options)
    check_close(state.params, plain.params)


def test_what_is_watched_is_told_to_writers():
    rows = []

    class Notes:
        def write(self, step, row):
            rows.append((step, row))

        def close(self):
            pass

    watch = jp.Watch(nodes="h", every=2)
    _, history = jp.fit(mlp, PARAMS, (X, Y), steps=4, watch=watch, writers=[Notes()], progress=False)
    told = {step: row for step, row in rows if "h/cotangent/norm" in row}
    assert sorted(told) == [1, 3]
    assert told[3]["h/cotangent/norm"] == float(history.watched["h"].cotangent.norm[1])
    assert told[1]["params['w1']/ratio"] > 0 and "y_hat/value/norm" not in told[1]
    assert all(isinstance(x, float | int) for row in told.values() for x in row.values())


def test_inside_scan_and_remat():
    xs, w = normal(5, 3) * 0.1, normal(3, 3)
    step = jp.make_step(rnn, optax.sgd(0.0), watch=jp.Watch(nodes="h", every=1))
    _, metrics = step(step.init(w), xs)
    tape = jp.backprop(rnn, nodes="h")(jnp.asarray(w), xs)
    expected = np.linalg.norm(tape["h"].cotangent, axis=1)
    np.testing.assert_allclose(metrics.watched["h"].cotangent.norm, expected, rtol=1e-4)
    _, history = jp.fit(
        rnn, w, [(xs,)] * 3, optimizer=optax.sgd(0.0), steps=3, watch=step.watch, progress=False
    )
    np.testing.assert_allclose(history.watched["h"].cotangent.norm, [expected] * 3, rtol=1e-4)


def test_a_recorder_of_ones_own_and_rules():
    largest = jp.Recorder.each(cotangent=lambda ct: jnp.max(jnp.abs(ct)))
    rules = [("h", jp.rules.scale(0.5))]
    watch = jp.Watch(nodes=["h"], every=2, record=largest, updates=False)
    step = jp.make_step(mlp, OPTIMIZER, watch=watch, rules=rules)
    state, metrics = step(step.init(PARAMS), X, Y)
    entry = jp.backprop(mlp, rules=rules)(jax.tree.map(jnp.asarray, PARAMS), X, Y)["h"]
    np.testing.assert_allclose(metrics.watched["h"].cotangent, np.abs(entry.cotangent).max(), rtol=1e-4)
    assert np.isnan(metrics.watched.leaves["params['w1']"].update)
    assert metrics.watched.leaves["params['w1']"].grad > 0
    _, metrics = step(state, X, Y)
    assert not metrics.watched


def test_leaves_alone():
    step = jp.make_step(mlp, OPTIMIZER, watch=jp.Watch(nodes=(), every=1))
    _, metrics = step(step.init(PARAMS), X, Y)
    (params, grads, updates), *_ = steps_by_hand(1)
    leaf = metrics.watched.leaves["params['w1']"]
    np.testing.assert_allclose(leaf[:3], [norm(t["w1"]) for t in (params, grads, updates)], rtol=1e-4)
    with pytest.raises(KeyError, match="'h' was not watched"):
        metrics.watched["h"]


def test_with_a_key_aux_and_a_model_state():
    def loss(w, x, *, key, model_state):
        noise = jax.random.normal(key)
        h = w * x + noise
        return jnp.mean(h**2), (model_state + 1, noise)

    step = jp.make_step(loss, has_aux=True, watch=jp.Watch(every=2))
    state = step.init(1.0, key=1, model_state=0.0)
    for i in range(4):
        state, metrics = step(state, X)
        check_equal(metrics.aux, jax.random.normal(jax.random.fold_in(jax.random.key(1), i)))
    assert float(state.model_state) == 4


def wide(params, x, y):
    h = x
    for w in params["hidden"]:
        h = jax.nn.relu(h @ w)
    return jnp.mean((h @ params["out"] - y) ** 2)


def test_memory_and_flops_of_watching():
    """The plain branch costs nothing more; donation is on in both."""
    params = {"hidden": [normal(128, 128) for _ in range(4)], "out": normal(128, 1)}
    batch = normal(512, 128), normal(512, 1)
    plain = jp.make_step(wide, optax.sgd(0.1, momentum=0.9))
    watched = jp.make_step(wide, optax.sgd(0.1, momentum=0.9), watch=jp.Watch())
    state = plain.init(params)

    def compiled(step):
        return jax.jit(step, donate_argnums=0).lower(state, *batch).compile()

    alone, both, never = map(compiled, (plain.pure, watched.pure, watched.plain))
    held = sum(x.nbytes for x in jax.tree.leaves(state.params)) * 2
    assert both.memory_analysis().alias_size_in_bytes >= held
    total = [
        m.temp_size_in_bytes + m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
        for m in (both.memory_analysis(), alone.memory_analysis())
    ]
    assert total[0] <= 1.05 * total[1], total
    assert never.cost_analysis()["flops"] == alone.cost_analysis()["flops"]


ERRORS = {
    "never": (ValueError, r"Watch\(every=\.\.\.\) must be a positive number of steps, got 0\.", {"every": 0}),
    "no recorder": (
        TypeError,
        r"Watch\(record=\.\.\.\) must be a jaxprop\.Recorder, such as jaxprop\.summary; got str\.",
        {"record": "norm"},
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    kind, message, options = ERRORS[case]
    with pytest.raises(kind, match=f"^{message}$"):
        jp.Watch(**options)


def test_a_selector_that_matches_nothing():
    step = jp.make_step(mlp, watch=jp.Watch(nodes="attention"))
    with pytest.raises(ValueError, match="the selector 'attention' matches no node"):
        step(step.init(PARAMS), X, Y)


def test_single_examples_are_watched_inside_the_step():
    def loss(w, x, y):
        return jnp.mean((x @ w - y) ** 2)

    x, y = jax.random.normal(jax.random.key(0), (6, 3)), jnp.arange(6.0)
    step = jp.make_step(loss, optax.sgd(0.1), watch=jp.Watch(nodes=(), every=2, per_example=True))
    state = step.init(jnp.ones(3))
    singly = jp.per_example(loss)(jnp.ones(3), x, y)
    state, metrics = step(state, x, y)
    leaf = metrics.watched.per_example["w"]
    np.testing.assert_allclose(leaf.rms, np.sqrt(np.mean(singly.norms**2)), rtol=1e-5)
    np.testing.assert_allclose(leaf.max, singly.norms.max(), rtol=1e-5)
    np.testing.assert_allclose(leaf.noise_scale, singly.noise_scale(), rtol=1e-4)
    np.testing.assert_allclose(metrics.watched.noise_scale, leaf.noise_scale, rtol=1e-5)
    _, metrics = step(state, x, y)
    assert not metrics.watched


def test_single_examples_are_in_the_history():
    def loss(w, x):
        return jnp.mean((x @ w) ** 2)

    x = jax.random.normal(jax.random.key(0), (8, 3))
    watch = jp.Watch(nodes=(), every=2, grads=False, updates=False, per_example=True)
    _, history = jp.fit(loss, jnp.ones(3), (x,), steps=5, batch_size=4, watch=watch, progress=False)
    assert history.watched.per_example["w"].noise_scale.shape == (3,)
    assert np.isfinite(history.watched.per_example["w"].rms).all()


# --- updates as they are applied ---------------------------------------------------------------------------


def regression(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2)


def test_updates_that_are_rounded_away_show():
    """In bfloat16 a step of 1e-4 changes no weight near 1: optax's update is not zero, what is applied is."""
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    x, y = normal(16, 4).astype(jnp.bfloat16), jnp.zeros(16, jnp.bfloat16)
    options = {"optimizer": optax.sgd(1e-4), "steps": 4, "progress": False}
    state, history = jp.fit(regression, params, (x, y), watch=jp.Watch((), every=2), **options)
    leaf = history.watched.leaves["params['w']"]
    check_equal(state.params, params)
    assert leaf.grad.min() > 0.1
    for column, expected in zip((leaf.update, leaf.ratio, leaf.unchanged), (0, 0, 1), strict=True):
        np.testing.assert_array_equal(column, [expected] * 2)
    wide = jp.fit(regression, {"w": jnp.ones(4)}, (x.astype(jnp.float32), y.astype(jnp.float32)), **options)[0]
    assert np.abs(wide.params["w"] - 1).max() > 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
def test_the_update_is_the_difference_of_the_params(dtype):
    """By NumPy in double precision, from the params before and after a step in which some elements change."""
    scale = np.array([1.0, 1e-3, 0.5, 0.0], np.float32)
    params = {"w": jnp.asarray(scale, dtype)}
    x = jnp.asarray(np.array([3e-3, 1.0, 0.2, 0.7]), dtype)
    loss = lambda p, x: jnp.sum(jnp.abs(p["w"] * x) ** 2) + jnp.sum(jnp.real(p["w"] * x))  # noqa: E731
    step = jp.make_step(loss, optax.sgd(1e-2), watch=jp.Watch((), every=1), donate=False)
    state, metrics = step(step.init(params), x)
    old, new = (np.asarray(tree["w"]).astype(np.complex128) for tree in (params, state.params))
    (leaf,) = metrics.watched.leaves.values()
    np.testing.assert_allclose(leaf.update, np.linalg.norm(new - old), rtol=1e-5)
    np.testing.assert_allclose(leaf.unchanged, np.mean(new == old))
    assert 0 <= leaf.unchanged < 1


def test_what_is_undefined_is_not_written():
    """The ratio to a bias that starts at zero, the mean of an empty array: no NaN and no infinity is written."""
    rows = []

    class Notes:
        def write(self, step, row):
            rows.append(row)

        def close(self): ...

    def loss(params, x):
        empty = params["empty"] * 2.0
        return jnp.mean((x @ params["w"] + params["b"] - 1.0) ** 2) + jnp.sum(empty)

    params = {"w": np.ones(4, np.float32), "b": np.float32(0), "unused": np.zeros(3, np.float32)}
    params["empty"] = np.zeros((0, 2), np.float32)
    _, history = jp.fit(loss, params, (X,), steps=4, watch=jp.Watch(every=2), writers=[Notes()], progress=False)
    told = [row for row in rows if "params['w']/ratio" in row]
    assert ["params['b']/ratio" in row for row in told] == [False, True]
    assert not any("params['unused']/ratio" in row for row in told)
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert np.isnan(history.watched.leaves["params['b']"].ratio[0])
    assert history.watched.leaves["params['unused']"].unchanged.tolist() == [1, 1]


# --- as a table ------------------------------------------------------------------------------------------


def test_what_was_watched_prints_as_a_table():
    def loss(params, x):
        h = params["w"] * x
        return jnp.sum(h * h) + params["b"]

    params = {"w": np.array([1.0, 0.0], np.float32), "b": np.float32(0)}
    x = np.array([1.0, 2.0], np.float32)
    options = {"optimizer": optax.sgd(0.25), "steps": 3, "progress": False}
    _, history = jp.fit(loss, params, x, watch=jp.Watch("h", every=1), **options)
    assert str(history.watched).splitlines() == [
        "watched in 3 steps, from 0 to 2: first -> last",
        "",
        "value  |value|    |cotangent|  zeros       not finite",
        "-----------------------------------------------------",
        "h      1 -> 0.25  2 -> 0.5     0.5 -> 0.5  0",
        "",
        "parameter    param      grad      update        ratio       unchanged",
        "----------------------------------------------------------------------",
        "params['b']  0 -> 0.5   1 -> 1    0.25 -> 0.25  - -> 0.5    0 -> 0",
        "params['w']  1 -> 0.25  2 -> 0.5  0.5 -> 0.125  0.5 -> 0.5  0.5 -> 0.5",
    ]
    assert repr(history.watched) == "WatchedHistory(3 steps, 1 value)"
    assert str(jp.fit(loss, params, x, **options)[1].watched) == "nothing was watched"


# --- every kind of leaf, in every place --------------------------------------------------------------------

LEAVES = {
    "int32": lambda: jnp.arange(3),
    "int8": lambda: jnp.arange(3, dtype=jnp.int8),
    "uint8": lambda: jnp.arange(3, dtype=jnp.uint8),
    "int4": lambda: jnp.arange(3).astype(jnp.int4),
    "bool": lambda: jnp.array([True, False, True]),
    "raw key": lambda: jax.random.key_data(jax.random.key(1)),
    "float16": lambda: jnp.ones(3, jnp.float16),
    "bfloat16": lambda: jnp.ones(3, jnp.bfloat16),
    "float8": lambda: jnp.ones(3, jnp.float8_e4m3fn),
    "complex64": lambda: jnp.full(3, 1 + 1j, jnp.complex64),
    "empty": lambda: jnp.zeros((0, 3)),
    "empty int": lambda: jnp.zeros((0,), jnp.int32),
}
KEYS = {"key": lambda: jax.random.key(1), "keys": lambda: jax.random.split(jax.random.key(1), 3)}


def in_batch(leaves):
    def loss(w, z, leaves):
        h = w * z
        return jnp.sum(h**2) + 0 * sum(x.size for x in jax.tree.leaves(leaves))

    return loss, (X[0], leaves), None


def in_aux(leaves):
    def loss(w, z, *, model_state):
        return jnp.sum((w * z) ** 2), (model_state, model_state)

    return loss, (X[0],), leaves


def in_state(leaves):
    def loss(w, z, *, model_state):
        return jnp.sum((w * z) ** 2), model_state

    return loss, (X[0],), leaves


def in_a_carry(leaves):
    def loss(w, z):
        (c, _), _ = jax.lax.scan(lambda c, _: ((c[0] * w, c[1]), None), (jnp.float32(1), leaves), length=3)
        return jnp.sum(c * z)

    return loss, (X[0],), None


def stacked_by_a_scan(leaves):
    def loss(w, z):
        c, _ = jax.lax.scan(lambda c, _: (c * w, leaves), jnp.float32(1), length=3)
        return jnp.sum(c * z)

    return loss, (X[0],), None


def leaving_a_cond(leaves):
    def loss(w, z):
        c, _ = jax.lax.cond(jnp.sum(z) > 0, lambda c: (c * w, leaves), lambda c: (c, leaves), jnp.float32(2))
        return jnp.sum(c * z)

    return loss, (X[0],), None


def leaving_a_checkpoint(leaves):
    def loss(w, z):
        c, _ = jax.checkpoint(lambda c: (jnp.sin(c * w), leaves))(jnp.float32(2))
        return jnp.sum(c * z)

    return loss, (X[0],), None


PLACES = [in_batch, in_aux, in_state, in_a_carry, stacked_by_a_scan, leaving_a_cond, leaving_a_checkpoint]


def check_every_way(make, leaves, nodes):
    """The step plain and watched, and `fit` watched, end where `jax.grad` says."""
    loss, batch, model_state = make(leaves)
    has_aux = make is in_aux
    extra = {} if model_state is None else {"model_state": model_state}
    value, grad = jax.value_and_grad(loss, has_aux=bool(extra))(jnp.float32(0.5), *batch, **extra)
    expected = 0.5 - 0.01 * grad
    step = jp.make_step(loss, has_aux=has_aux, watch=jp.Watch(nodes, every=1))
    for watch in (False, True):
        state, metrics = step(step.init(0.5, model_state=model_state), *batch, watch=watch)
        np.testing.assert_allclose(state.params, expected, rtol=1e-5)
        assert len(list(metrics.watched)) > 0 or not watch
    options = {"model_state": model_state, "has_aux": has_aux, "steps": 1, "progress": False}
    state, history = jp.fit(loss, 0.5, [batch], watch=step.watch, **options)
    np.testing.assert_allclose(state.params, expected, rtol=1e-5)
    assert len(history.watched) > 0 and str(history.watched)


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_every_kind_of_leaf_in_every_place(make):
    check_every_way(make, {name: leaf() for name, leaf in LEAVES.items()}, lambda node: True)


@pytest.mark.parametrize(
    "make, nodes",
    [
        (in_batch, "*"),
        (in_aux, "*"),
        (in_state, "*"),
        (in_a_carry, "*"),
        (stacked_by_a_scan, "*"),
        (leaving_a_cond, "*"),
        (leaving_a_checkpoint, "*"),
        (in_batch, lambda node: True),
        *((make, lambda node: True) for make in PLACES[1:]),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_typed_keys_in_every_place(make, nodes):
    check_every_way(make, {name: leaf() for name, leaf in KEYS.items()}, nodes)


NOT_TRAINED = {
    **KEYS,
    **{name: LEAVES[name] for name in ("int32", "uint8", "int4", "bool", "raw key", "empty int")},
}


@pytest.mark.parametrize("name", NOT_TRAINED)
def test_params_that_cannot_be_trained_are_named(name):
    params = {"w": jnp.float32(1), "x": NOT_TRAINED[name]()}
    message = (
        f"`params['x']` has dtype {params['x'].dtype}, but only floating point can be trained. Convert it to a float, or "
        "keep it out of `params` (close over it, or put it into `model_state`)."
    )
    with pytest.raises(TypeError) as caught:
        jp.fit(lambda p, z: jnp.sum(p["w"] * z), params, (X[0],), steps=1, progress=False)
    assert str(caught.value) == message


def test_every_floating_point_can_be_trained_and_watched():
    params = {name: LEAVES[name]() for name in ("float16", "bfloat16", "float8", "complex64", "empty")}

    def loss(params, z):
        return sum(jnp.sum(jnp.abs(x).astype(jnp.float32)) for x in params.values()) * jnp.sum(z)

    state, history = jp.fit(loss, params, (X[0],), steps=2, watch=jp.Watch(every=1), progress=False)
    assert {name: x.dtype for name, x in state.params.items()} == {name: x.dtype for name, x in params.items()}
    leaves = history.watched.leaves
    np.testing.assert_allclose(leaves["params['complex64']"].param[0], 6**0.5, rtol=1e-5)
    assert all(np.isfinite(leaf.grad).all() for leaf in leaves.values())
