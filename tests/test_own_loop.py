"""Watching in a loop of one's own, against `jax.value_and_grad`, against `fit`, and against NumPy."""

import functools
import json
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop as jp
from jaxprop.train import CSV, JSONL, Histogram, Histograms

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def loss(params, x, y):
    h = jnp.tanh(x @ params["w1"])
    y_hat = h @ params["w2"]
    return jnp.mean((y_hat - y) ** 2)


PARAMS = {"w1": normal(4, 8), "w2": normal(8, 2)}
X, Y = normal(16, 4), normal(16, 2)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)
WATCH = jp.Watch("h", every=3)


def close(ours, theirs):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), ours, theirs)


def train_step(vg):
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, x, y, count):
        (value, grads), seen = vg(params, x, y, step=count)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        new = optax.apply_updates(params, updates)
        return new, opt_state, value, seen.with_update(params, new)

    return step


def begin():
    params = jax.tree.map(jnp.array, PARAMS)
    return params, OPTIMIZER.init(params)


def by_hand(steps=7):
    """(value, params, grads) of each step."""
    params, opt_state = begin()
    for _ in range(steps):
        value, grads = jax.value_and_grad(loss)(params, X, Y)
        yield value, params, grads
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)


# --- the numbers --------------------------------------------------------------------------------------


def test_it_is_jaxs_value_and_grad_and_sees_what_is_due():
    step = train_step(jp.value_and_grad(loss, watch=WATCH))
    params, opt_state = begin()
    for i, (value, before, grads) in enumerate(by_hand()):
        close(params, before)
        old = jax.tree.map(np.array, params)
        params, opt_state, found, seen = step(params, opt_state, X, Y, i)
        close(found, value)
        assert bool(seen) == (i % 3 == 0)
        if not seen:
            continue
        assert int(seen.step) == i and list(seen) == ["h"]
        h = jnp.tanh(X @ before["w1"])
        np.testing.assert_allclose(seen["h"].value.norm, jnp.linalg.norm(h), rtol=1e-5)
        for name in PARAMS:
            leaf, change = seen.leaves[f"params[{name!r}]"], params[name] - old[name]
            expected = np.linalg.norm(before[name]), np.linalg.norm(grads[name]), np.linalg.norm(change)
            np.testing.assert_allclose(leaf, (*expected, expected[2] / expected[0], 0), rtol=1e-4)


@pytest.mark.parametrize("step", [0, 3, np.int64(6), jnp.int32(9), True])
def test_a_step_that_is_due_by_a_number(step):
    (value, grads), seen = jp.value_and_grad(loss, watch=WATCH)(PARAMS, X, Y, step=step)
    close((value, grads), jax.value_and_grad(loss)(PARAMS, X, Y))
    assert seen and "h" in seen and np.isnan(seen.leaves["params['w1']"].update)


@pytest.mark.parametrize("step", [1, 5, np.int64(7), jnp.int32(8), False])
def test_a_step_that_is_not(step):
    (value, grads), seen = jp.value_and_grad(loss, watch=WATCH)(PARAMS, X, Y, step=step)
    close((value, grads), jax.value_and_grad(loss)(PARAMS, X, Y))
    assert not seen and seen.with_update(PARAMS, PARAMS) is seen and repr(seen) == "Watched(not watched)"


def test_a_number_at_trace_time_chooses_the_program():
    """Where it is known that a step is not due, its program is that of `jax.value_and_grad`."""

    def flops(function, *static):
        program = jax.jit(lambda *args: function(*args, *static)).lower(PARAMS, X, Y).compile()
        return program.cost_analysis()["flops"]

    vg = jp.value_and_grad(loss, watch=jp.Watch(every=3))
    plain = flops(jax.value_and_grad(loss))
    assert flops(lambda p, x, y: vg(p, x, y, step=1)) == plain < flops(lambda p, x, y: vg(p, x, y, step=3))


def test_with_aux_several_arguments_keywords_and_rules():
    def with_aux(w, x, v, *, scale):
        h = jnp.tanh(x @ w)
        return scale * jnp.mean(h * v), {"h": h}

    args, options = (normal(4, 3), X, normal(16, 3)), {"argnums": (0, 2), "has_aux": True}
    rules = [("tanh", jp.rules.scale(0.5))]
    vg = jp.value_and_grad(with_aux, **options, rules=rules, watch=jp.Watch("h", every=2))
    expected = jp.value_and_grad(with_aux, **options, rules=rules)(*args, scale=2.0)
    jitted = jax.jit(lambda *args, step: vg(*args, scale=2.0, step=step))
    for i in range(2):
        for call in (functools.partial(vg, scale=2.0), jitted):
            found, seen = call(*args, step=i)
            close(found, expected)
            assert bool(seen) == (i == 0)
            if seen:
                assert list(seen.leaves) == ["w", "v"]


def test_in_a_scan_and_under_vmap():
    vg = jp.value_and_grad(loss, watch=WATCH)

    def body(params, count):
        (value, grads), seen = vg(params, X, Y, step=count)
        new = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        return new, (value, seen.with_update(params, new))

    counts = jnp.arange(7)
    _, (values, seen) = jax.jit(lambda p: jax.lax.scan(body, p, counts))(PARAMS)
    np.testing.assert_array_equal(seen.on, counts % 3 == 0)
    history = jp.History()
    history.add(counts, {"loss": values}, seen)
    np.testing.assert_allclose(history["loss"], values)
    assert history.watched.steps.tolist() == [0, 3, 6]
    assert history.watched["h"].value.norm.shape == (3,)

    several = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), PARAMS)
    _, seen = jax.jit(jax.vmap(lambda p: vg(p, X, Y, step=jnp.int32(3))))(several)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], seen)
        expected = jnp.linalg.norm(jnp.tanh(X @ ((i + 1) * PARAMS["w1"])))
        np.testing.assert_allclose(one["h"].value.norm, expected, rtol=1e-5)


def test_sharded_over_devices():
    mesh = jax.make_mesh((8,), ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    step = train_step(jp.value_and_grad(loss, watch=WATCH))
    params, opt_state = jax.device_put(begin(), whole)
    batch = jax.device_put((X, Y), split)
    for i in range(4):
        params, opt_state, value, seen = step(params, opt_state, *batch, i)
    expected = list(by_hand(4))[-1]
    close((value, seen["h"].value.norm), (expected[0], jnp.linalg.norm(jnp.tanh(X @ expected[1]["w1"]))))
    assert value.sharding.is_fully_replicated and jax.tree.leaves(seen)[0].sharding.is_fully_replicated


def test_it_sees_what_fit_sees():
    watch = jp.Watch(every=2, histograms=8, per_example=True)
    _, expected = jp.fit(loss, PARAMS, (X, Y), optimizer=OPTIMIZER, steps=5, watch=watch, progress=False)
    step, history = train_step(jp.value_and_grad(loss, watch=watch)), jp.History()
    params, opt_state = begin()
    for i in range(5):
        params, opt_state, value, seen = step(params, opt_state, X, Y, i)
        history.add(i, {"loss": value}, seen)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
    ours, theirs = history.watched, expected.watched
    assert ours.steps.tolist() == theirs.steps.tolist() and list(ours) == list(theirs)
    for name in ours:
        close(ours[name], theirs[name])
    assert ours.leaves.keys() == theirs.leaves.keys() and ours.per_example.keys() == theirs.per_example.keys()
    for name, leaf in ours.leaves.items():
        np.testing.assert_allclose(leaf, theirs.leaves[name], rtol=1e-4, atol=1e-6)
    assert ours.histograms.keys() == theirs.histograms.keys()
    assert str(ours) == str(theirs)


def test_make_step_goes_into_ones_own_history():
    step = jp.make_step(loss, OPTIMIZER, watch=WATCH)
    state, history = step.init(PARAMS), jp.History(every=3)
    for i in range(7):
        state, metrics = step(state, X, Y)
        history.add(i, {"loss": metrics.loss}, metrics.watched)
    assert history.watched.steps.tolist() == [0, 3, 6] and len(history["loss"]) == 7


ERRORS = {
    "without a step": (
        lambda: jp.value_and_grad(loss, watch=WATCH)(PARAMS, X, Y),
        TypeError,
        "`value_and_grad` with `watch` takes the count of the step: vg(..., step=step), or whether to watch it: "
        "step=True.",
    ),
    "other params": (
        lambda: jp.value_and_grad(loss, watch=WATCH)(PARAMS, X, Y, step=0)[1].with_update(PARAMS, {"w1": X}),
        ValueError,
        "`with_update` needs the params before and after the step, 2 arrays each; got 2 and 1.",
    ),
    "a history of no rows at once": (
        lambda: jp.History(every=0),
        ValueError,
        "History(every=...) must be a positive number of rows, got 0.",
    ),
    "a history that is complete": (
        lambda: jp.fit(loss, PARAMS, (X, Y), steps=1, progress=False)[1].add(2, {"loss": 1.0}),
        ValueError,
        "this history is complete: it is that of a run by `fit`. Make one with History().",
    ),
    "no such column": (
        lambda: jp.History()["loss"],
        KeyError,
        "the history has no column 'loss'; available: .",
    ),
    "an array in a row": (
        lambda: _added({"loss": np.ones(3)}),
        TypeError,
        "a row holds single real numbers, but 'loss' is an array of shape (3,).",
    ),
    "bins": (lambda: Histograms(0), ValueError, "Histograms(bins=...) must be a positive integer, got 0."),
    "one edge": (
        lambda: Histograms(low=0.0),
        ValueError,
        "Histograms needs both edges, `low` and `high`, or neither.",
    ),
    "edges in the wrong order": (
        lambda: Histograms(low=1.0, high=0.0),
        ValueError,
        "Histograms(low=1.0, high=0.0): `low` must be below `high`.",
    ),
    "histograms of nodes": (
        lambda: jp.Watch(record=jp.Recorder(forward=lambda local: 1.0), histograms=8),
        ValueError,
        "Watch(histograms=...) needs a recorder of single arrays, such as jaxprop.summary or one made by "
        "jaxprop.Recorder.each.",
    ),
    "attention of nodes": (
        lambda: jp.Watch(record=jp.Recorder(forward=lambda local: 1.0), attention=True),
        ValueError,
        "Watch(attention=True) needs a recorder of single arrays, such as jaxprop.summary or one made by "
        "jaxprop.Recorder.each.",
    ),
}


def _added(row):
    history = jp.History()
    history.add(0, row)
    return len(history)


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, kind, message = ERRORS[case]
    with pytest.raises(kind) as caught:
        call()
    assert caught.value.args[0] == message


# --- the history ----------------------------------------------------------------------------------------


def test_a_history_is_written_and_read_back(tmp_path):
    step = train_step(jp.value_and_grad(loss, watch=WATCH))
    params, opt_state = begin()
    with jp.History([CSV(tmp_path / "log.csv"), JSONL(tmp_path / "log.jsonl")], every=4) as history:
        for i in range(7):
            params, opt_state, value, seen = step(params, opt_state, X, Y, i)
            history.add(i, {"loss": value}, seen)
            if i == 6:
                history.add(i, {"eval_loss": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(7))
    np.testing.assert_allclose([row["loss"] for row in rows], history["loss"])
    assert ["h/cotangent/norm" in row for row in rows] == [i % 3 == 0 for i in range(7)]
    assert rows[3]["params['w1']/update"] == history.watched.leaves["params['w1']"].update[1]
    assert np.isnan(history["eval_loss"][:6]).all() and history["eval_loss"][6] == rows[6]["eval_loss"] == 2.0
    assert (tmp_path / "log.csv").read_text().startswith("step,loss,")
    assert list(history) == ["step", "loss", "eval_loss"]
    assert re.fullmatch(r"History\(7 steps; step, loss, eval_loss\)", repr(history))


def test_numbers_stay_on_the_device_until_there_are_enough():
    """Adding a row must not wait for its step."""
    history, read = jp.History(every=3), []

    class Number:
        def __init__(self, i):
            self.i = i

        def __array__(self, dtype=None, copy=None):
            read.append(self.i)
            return np.array(float(self.i))

    for i in range(5):
        history.add(i, {"loss": Number(i)})
        assert sorted(set(read)) == ([0, 1, 2] if i >= 3 else [])
    assert history["loss"].tolist() == [0, 1, 2, 3, 4]


# --- histograms ---------------------------------------------------------------------------------------------

ARRAYS = {
    "normal": RNG.normal(size=1000),
    "one value": np.full(5, 3.0),
    "zeros": np.zeros((2, 3)),
    "not finite": np.array([1.0, np.nan, 2.0, np.inf, -np.inf, 1.5]),
    "nothing finite": np.array([np.nan, np.inf]),
    "one": np.array(2.5),
    "integers": np.arange(7),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_counts_are_those_of_numpy(name):
    x = ARRAYS[name].astype(np.float32)
    finite = x[np.isfinite(x)]
    for histograms, span in ((Histograms(10), None), (Histograms(10, -1.0, 1.0), (-1, 1))):
        found = jax.jit(histograms)(x)
        edges = found.edges
        assert edges.shape == (11,) and np.all(np.diff(edges) > 0)
        inside = np.clip(finite, edges[0], edges[-1]) if span else finite
        expected, _ = np.histogram(inside.astype(np.float64), edges)
        assert np.sum(found.counts) == finite.size
        # A number that is an edge to rounding may be on either side of it.
        assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= (
            0 if name == "normal" else finite.size
        )
        if finite.size and span is None and np.ptp(finite):
            np.testing.assert_allclose(edges[[0, -1]], [finite.min(), finite.max()])


def test_an_empty_array_has_an_empty_histogram():
    assert Histograms(4)(jnp.zeros((0, 3))).counts.tolist() == [0, 0, 0, 0]


def test_histograms_of_values_cotangents_gradients_and_updates():
    vg = jp.value_and_grad(loss, watch=jp.Watch("h", every=1, histograms=12))
    step = train_step(vg)
    params, opt_state = begin()
    new, _, _, seen = step(params, opt_state, X, Y, 0)
    grads = jax.grad(loss)(PARAMS, X, Y)
    h = jnp.tanh(X @ PARAMS["w1"])
    expected = {
        "h/value": h,
        "params['w1']/param": PARAMS["w1"],
        "params['w1']/grad": grads["w1"],
        "params['w1']/update": new["w1"] - PARAMS["w1"],
    }
    for name, x in expected.items():
        found = seen.histograms[name]
        counts, edges = np.histogram(x, 12)
        np.testing.assert_allclose(found.edges, edges, rtol=1e-4, atol=1e-7)
        assert np.abs(found.counts - counts).sum() <= 2  # the last bits decide at an edge
    assert set(seen.histograms) >= {"h/cotangent", *expected}
    assert isinstance(seen["h"].value, jp.Summary)


def rnn(w, xs):
    def body(h, x):
        h = jnp.tanh(w @ h + x)
        return h, None

    return jnp.sum(jax.lax.scan(body, jnp.zeros(3), xs)[0] ** 2)


def test_histograms_inside_a_scan_are_by_step_and_written_as_one():
    written = {}

    class Kept:
        def write(self, step, row): ...
        def close(self): ...
        def write_histograms(self, step, histograms):
            written[step] = histograms

    xs, w = normal(6, 3), normal(3, 3)
    for histograms in (Histograms(8, -1.0, 1.0), Histograms(8)):
        watch = jp.Watch("h", every=1, histograms=histograms)
        with jp.History([Kept()]) as history:
            history.add(0, {}, jp.value_and_grad(rnn, watch=watch)(w, xs, step=0)[1])
        found = history.watched.histograms["h/value"]
        assert found.counts.shape == (1, 6, 8) and found.edges.shape == (1, 6, 9)
        assert np.all(found.counts.sum(-1) == 3)
        whole = written[0]["h/value"]
        assert whole.counts.shape == (8,) and whole.counts.sum() == 18
        np.testing.assert_allclose(whole.low, found.low.min())


@pytest.mark.library
def test_tensorboard_reads_histograms(tmp_path):
    pytest.importorskip("tensorboardX")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    watch = jp.Watch("h", every=2, histograms=Histograms(8, -1.0, 1.0))
    _, history = jp.fit(
        loss, PARAMS, (X, Y), steps=3, watch=watch, progress=False, writers=[jp.train.TensorBoard(tmp_path)]
    )
    events = accumulator.EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    read = events.Histograms("h/value")
    assert [event.step for event in read] == [1, 3]
    ours = history.watched.histograms["h/value"]
    for event, counts in zip(read, ours.counts, strict=True):
        theirs = dict(zip(event.histogram_value.bucket_limit, event.histogram_value.bucket, strict=True))
        for limit, count in zip(ours.edges[0][1:], counts, strict=True):
            assert theirs.get(float(limit), 0) == count
    assert set(events.Tags()["histograms"]) >= {"h/cotangent", "params['w1']/grad", "params['w1']/update"}


@pytest.mark.library
@pytest.mark.filterwarnings("ignore")
def test_wandb_takes_histograms(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = jp.train.WandB(project="test", mode="offline", dir=str(tmp_path))
    watch = jp.Watch("h", every=2, histograms=8)
    jp.fit(loss, PARAMS, (X, Y), steps=3, watch=watch, progress=False, writers=[writer])
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 30  # the service of wandb writes the file after the run has finished
    while b"histogram" not in file.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert b"h/value" in file.read_bytes() and b"histogram" in file.read_bytes()


# --- through a scan -----------------------------------------------------------------------------------------


def test_growth_is_the_mean_factor_between_steps():
    def linear(w, x):
        h, _ = jax.lax.scan(lambda h, _: (1.5 * h * w, None), x, None, length=5)
        return jnp.sum(h)

    watch = jp.Watch(every=1)
    _, history = jp.fit(linear, jnp.float32(1.0), (jnp.ones(3),), steps=1, watch=watch, progress=False)
    (grown,) = {round(float(x[0]), 4) for x in history.watched.growth.values()}
    assert grown == 1.5


# --- attention ------------------------------------------------------------------------------------------------


def attention_by_einsum(p, x):
    logits = jnp.einsum("btd,bsd->bts", x @ p["q"], x @ p["k"])
    weights = jax.nn.softmax(logits)
    return jnp.mean(jnp.einsum("bts,bsd->btd", weights, x @ p["v"]) ** 2)


def attention_of_jax(p, x):
    q, k, v = (jnp.reshape(x @ p[name], (*x.shape[:2], 2, -1)) for name in "qkv")
    return jnp.mean(jax.nn.dot_product_attention(q, k, v, scale=1.0) ** 2)


def attention_by_hand(p, x):
    logits = jnp.einsum("btd,bsd->bst", x @ p["q"], x @ p["k"])
    top = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, 1, keepdims=True)))
    weights = top / jnp.sum(top, 1, keepdims=True)
    dropped = jnp.where(weights > 0.01, weights / 0.9, 0.0)
    return jnp.mean(jnp.einsum("bst,bsd->btd", dropped, x @ p["v"]) ** 2)


def attention_in_scan(p, x):
    def layer(h, _):
        weights = jax.nn.softmax(jnp.einsum("btd,bsd->bts", h @ p["q"], h @ p["k"]))
        return jnp.tanh(jnp.einsum("bts,bsd->btd", weights, h @ p["v"])), None

    return jnp.mean(jax.lax.scan(layer, x, None, length=2)[0] ** 2)


ATTENTION = {"q": normal(4, 4), "k": normal(4, 4), "v": normal(4, 4)}
TOKENS = normal(2, 5, 4)


def logits_of(p, x):
    return np.einsum("btd,bsd->bts", x @ p["q"], x @ p["k"])


def entropy(logits):
    p = np.asarray(jax.nn.softmax(logits), np.float64)
    return np.mean(-np.sum(p * np.log(p), -1))


@pytest.mark.library
@pytest.mark.parametrize("model", [attention_by_einsum, attention_by_hand, attention_in_scan, attention_of_jax])
def test_attention_is_found_by_its_structure(model):
    vg = jp.value_and_grad(model, watch=jp.Watch((), every=2, attention=True))
    (value, _), seen = jax.jit(vg)(ATTENTION, TOKENS, step=0)
    np.testing.assert_allclose(value, model(ATTENTION, TOKENS), rtol=1e-5)
    (found,) = seen.attention.values()
    assert np.all(found.keys == 5)
    if model is attention_of_jax:
        q, k = (np.reshape(TOKENS @ ATTENTION[name], (2, 5, 2, 2)) for name in "qk")
        logits = np.einsum("bthd,bshd->bhts", q, k)
    else:
        logits = logits_of(ATTENTION, np.asarray(TOKENS))
    first = lambda x: np.ravel(x)[0]  # noqa: E731
    np.testing.assert_allclose(first(found.logit), logits.max(), rtol=1e-5)
    np.testing.assert_allclose(first(found.entropy), entropy(logits), rtol=1e-4)
    assert np.shape(found.logit) == ((2,) if model is attention_in_scan else ())
    assert not jax.jit(vg)(ATTENTION, TOKENS, step=1)[1]


@pytest.mark.library
def test_attention_of_flax_is_found():
    nn = pytest.importorskip("flax.linen")
    layer = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, dropout_rate=0.1)
    variables = layer.init(jax.random.key(0), TOKENS, deterministic=True)

    def model(variables, x):
        y = layer.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(1)})
        return jnp.mean(y**2)

    _, seen = jp.value_and_grad(model, watch=jp.Watch((), attention=True))(variables, TOKENS, step=0)
    (found,) = seen.attention.values()
    assert found.keys == 5 and 0 < found.entropy < np.log(5) and np.isfinite(found.logit)


def classifier(w, x):
    return -jnp.mean(jnp.log(jax.nn.softmax(x @ w)[:, 0]))


def test_a_softmax_of_classes_is_no_attention():
    _, seen = jp.value_and_grad(classifier, watch=jp.Watch((), attention=True))(PARAMS["w1"], X, step=0)
    assert seen.attention == {}


def test_attention_beside_everything_else_and_in_the_history():
    watch = jp.Watch(every=2, attention=True, histograms=4)
    _, history = jp.fit(
        attention_by_einsum, ATTENTION, (TOKENS,), steps=3, watch=watch, progress=False, batch_size=2
    )
    (found,) = history.watched.attention.values()
    assert found.logit.shape == found.entropy.shape == (2,)
    tape = jp.backprop(attention_by_einsum)(ATTENTION, TOKENS)
    np.testing.assert_allclose(
        history.watched["weights"].value.norm[0], np.linalg.norm(tape["weights"].value), rtol=1e-5
    )
    assert "attention" in str(history.watched) and "of at most" in str(history.watched)


def test_what_is_watched_survives_a_checkpoint(tmp_path):
    watch = jp.Watch(every=2, attention=True, histograms=Histograms(4, -1.0, 1.0))
    options = {"watch": watch, "progress": False, "checkpoint": tmp_path / "run"}
    _, straight = jp.fit(attention_by_einsum, ATTENTION, (TOKENS,), steps=5, watch=watch, progress=False)
    jp.fit(attention_by_einsum, ATTENTION, (TOKENS,), steps=3, **options)
    _, resumed = jp.fit(attention_by_einsum, ATTENTION, (TOKENS,), steps=5, resume=True, **options)
    assert resumed.watched.steps.tolist() == [0, 2, 4]
    for name, found in straight.watched.attention.items():
        close(resumed.watched.attention[name], found)
    for name, found in straight.watched.histograms.items():
        assert isinstance(found, Histogram)
        np.testing.assert_array_equal(resumed.watched.histograms[name].counts, found.counts)
