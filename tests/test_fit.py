"""The loop against hand-written ones, bit for bit, whatever the data comes from and however it is cut in
chunks.
"""

import errno
import inspect
import os
import re
import signal
import threading
import time
import tracemalloc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprop as jp
from helpers import check_close, check_equal, trained_by_hand
from jaxprop.diagnosis import load_reproduction
from jaxprop.train import Data, Evaluation, Until
from jaxprop.train.data import stream as _stream
from jaxprop.train.data.source import order_of
from jaxprop.train.loop import chunks as _chunks
from jaxprop.train.loop import schedule as _schedule
from jaxprop.train.loop.interrupts import interrupts_held
from jaxprop.train.loop.schedule import Pace, Schedule, eval_period, total_steps


def line(w, x, y):
    return jnp.mean((w * x - y) ** 2)


def mlp(params, x, y):
    h = jnp.tanh(x @ params["w1"])
    return jnp.mean((h @ params["w2"] - y) ** 2)


RNG = np.random.default_rng(0)
PARAMS = {
    "w1": RNG.normal(size=(4, 8)).astype(np.float32),
    "w2": RNG.normal(size=(8, 2)).astype(np.float32),
}
X, Y = RNG.normal(size=(30, 4)).astype(np.float32), RNG.normal(size=(30, 2)).astype(np.float32)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def fit(loss=mlp, params=PARAMS, data=(X, Y), **options):
    options = {"optimizer": OPTIMIZER, "progress": False, **options}
    return jp.fit(loss, params, data, **options)


def trained(loss, params, batches, optimizer=OPTIMIZER):
    params, _, losses = trained_by_hand(loss, optimizer, params, batches)
    return params, np.array(losses, np.float32)


def shuffled(key, epochs, size=10):
    """The batches of a shuffled run, by the contract: a pure function of key and epoch."""
    for epoch in range(epochs):
        order = order_of(jax.random.key(key), epoch, len(X))
        for start in range(0, len(X), size):
            rows = order[start : start + size]
            yield X[rows], Y[rows]


def test_the_order_of_an_epoch_is_a_function_of_key_and_epoch():
    key = jax.random.key(4)
    expected = jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, 0xFFFFFFFF), 3), 30)
    check_equal(order_of(key, 3, 30), expected)


# --- against loops by hand -------------------------------------------------------------------------------


def test_gradient_descent_in_closed_form():
    """w_t = 2 + (1 - 2 a m)^t (w_0 - 2), where m is the mean of x^2."""
    x = np.linspace(-1, 1, 9, dtype=np.float32)
    state, history = jp.fit(line, 0.0, (x, 2 * x), optimizer=optax.sgd(0.1), steps=40, progress=False)
    m = np.mean(x.astype(float) ** 2)
    w = 2 - 2 * (1 - 0.2 * m) ** np.arange(41)
    np.testing.assert_allclose(state.params, w[-1], rtol=1e-5)
    np.testing.assert_allclose(history["loss"], m * (w[:-1] - 2) ** 2, rtol=1e-4)
    assert history["step"].tolist() == list(range(1, 41)) and int(state.step) == 40


SOURCES = {
    "on the device": {"data": (X, Y), "batch_size": 10},
    "already there": {"data": (jnp.asarray(X), jnp.asarray(Y)), "batch_size": 10},
    "streamed from arrays": {"data": Data((X, Y), batch_size=10, memory_limit=0)},
    "a function of the epoch": {
        "data": lambda epoch: (batch for i, batch in enumerate(shuffled(5, 4)) if i // 3 == epoch)
    },
    "one long iterator": {"data": lambda: shuffled(5, 4), "epochs": 1},
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_same_bits_as_by_hand_from_wherever_the_data_comes(name):
    state, history = fit(**{"key": 5, "epochs": 4, **SOURCES[name]})
    params, losses = trained(mlp, PARAMS, shuffled(5, 4))
    check_equal(state.params, params)
    np.testing.assert_array_equal(history["loss"], losses)
    assert history.stop.reason == "done" and history.stop.step == 12


def test_unshuffled_and_full_batches():
    state, _ = fit(data=Data((X, Y), shuffle=False), batch_size=10, epochs=2)
    params, _ = trained(mlp, PARAMS, [(X[i : i + 10], Y[i : i + 10]) for i in (0, 10, 20)] * 2)
    check_equal(state.params, params)
    batches = [(X[:10], Y[:10]), (X[10:20], Y[10:20]), (X[20:], Y[20:])]
    check_equal(fit(data=batches, epochs=2)[0].params, params)
    params, _ = trained(mlp, PARAMS, [(X, Y)] * 3)
    check_equal(fit(steps=3)[0].params, params)


@pytest.mark.parametrize("most", [1, 3, 64])
def test_chunks_do_not_change_the_numbers(most, monkeypatch):
    """However long chunks are, and whatever is due between them."""

    def finished(self, count, now):
        self.most = most

    monkeypatch.setattr(Pace, "finished", finished)
    monkeypatch.setattr(_stream, "_GROUP_FROM", 3)
    expected, losses = trained(mlp, PARAMS, shuffled(5, 4))
    for options in (
        {"batch_size": 10},
        {"data": Data((X, Y), memory_limit=0), "batch_size": 10},
        {"batch_size": 10, "evaluation": Evaluation((X, Y), every=5)},
    ):
        state, history = fit(key=5, epochs=4, **options)
        check_equal(state.params, expected)
        np.testing.assert_array_equal(history["loss"], losses)


def test_steps_sent_off_one_by_one_are_the_same(monkeypatch):
    """What XLA is slow at in a loop is run without one: all that stops a run stops it there too."""
    monkeypatch.setattr(_chunks, "_SLOW_IN_LOOPS", frozenset({"dot_general", "sqrt"}))
    monkeypatch.setattr(Pace, "finished", lambda self, count, now: setattr(self, "most", 7))
    expected, losses = trained(mlp, PARAMS, shuffled(5, 4))
    for limit in (None, 0):
        state, history = fit(data=Data((X, Y), memory_limit=limit), key=5, epochs=4, batch_size=10)
        check_equal(state.params, expected)
        np.testing.assert_array_equal(history["loss"], losses)
    state, history = fit(key=5, epochs=4, batch_size=10, until=lambda row: row["step"] >= 11)
    assert int(state.step) == len(history["loss"]) == 11
    np.testing.assert_array_equal(history["loss"], losses[:11])
    params, x = {"a": np.float32(1), "b": np.float32(1)}, np.full(1, 0.9, np.float32)
    optimizer = optax.sgd(0.01)
    with pytest.warns(RuntimeWarning, match="after 5 steps the loss is nan"):
        state, history = fit(root_loss, params, x, optimizer=optimizer, steps=100)
    check_equal(state.params, trained(root_loss, params, [(x,)] * 5, optimizer)[0])
    assert len(history["loss"]) == 5


@pytest.mark.library  # optax's own arithmetic is not strict
def test_accumulation_clipping_and_schedules_are_those_of_optax():
    optimizer = optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(optax.cosine_decay_schedule(1e-2, 6))), 2
    )
    state, history = fit(optimizer=optimizer, batch_size=10, epochs=4, key=5)
    params, losses = trained(mlp, PARAMS, shuffled(5, 4), optimizer)
    check_equal(state.params, params)
    np.testing.assert_array_equal(history["loss"], losses)


def test_dicts_are_one_argument_and_scalars_of_aux_are_columns():
    def loss(params, batch, *, key):
        value = mlp(params, batch["x"], batch["y"])
        return value, {"twice": 2 * value, "h": batch["x"], "noise": jax.random.normal(key), "loss": value}

    _, history = fit(loss, data={"x": X, "y": Y}, has_aux=True, steps=3, key=2)
    assert list(history) == ["step", "loss", "aux/loss", "noise", "twice"]
    np.testing.assert_array_equal(history["twice"], 2 * history["loss"])
    noise = [float(jax.random.normal(jax.random.fold_in(jax.random.key(2), i))) for i in range(3)]
    np.testing.assert_allclose(history["noise"], noise, rtol=1e-6)


def test_a_history_is_a_data_frame():
    pandas = pytest.importorskip("pandas")
    _, history = fit(steps=4, evaluation=Evaluation((X, Y), every=2))
    frame = pandas.DataFrame(history)
    assert frame.shape == (4, 3) and frame["eval_loss"].notna().tolist() == [False, True, False, True]


# --- evaluation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["arrays", "batches"])
def test_an_evaluation_counts_every_example_once(kind):
    """30 examples in batches of 10, evaluated on 25: the last batch has 5."""
    held = (X[:25] + 1, Y[:25])
    data = held if kind == "arrays" else [(held[0][i : i + 10], held[1][i : i + 10]) for i in (0, 10, 20)]
    state, history = fit(batch_size=10, epochs=2, evaluation=data)
    seen = ~np.isnan(history["eval_loss"])
    assert history["step"][seen].tolist() == [3, 6]
    np.testing.assert_allclose(history["eval_loss"][-1], mlp(state.params, *held), rtol=1e-5)


def test_an_evaluation_of_several_numbers():
    def accuracy(params, x, y):
        return {"first": jnp.mean(x[:, 0]), "rest": {"second": jnp.mean(x[:, 1])}}

    _, history = fit(batch_size=10, steps=2, evaluation=Evaluation((X[:25], Y[:25]), accuracy, every=1))
    np.testing.assert_allclose(history["eval_first"], [X[:25, 0].mean()] * 2, rtol=1e-5)
    np.testing.assert_allclose(history["eval_rest/second"], [X[:25, 1].mean()] * 2, rtol=1e-5)


def test_a_loss_whose_key_may_be_none_is_evaluated_without():
    def loss(w, x, y, key=None):
        return line(w, x, y) + (0.0 if key is None else 100 + jax.random.uniform(key))

    _, history = jp.fit(loss, 1.0, (X[:, 0], Y[:, 0]), steps=3, evaluation=(X[:, 0], Y[:, 0]), progress=False)
    assert (history["loss"] > 100).all() and (history["eval_loss"] < 100).all()


def test_a_model_state_is_evaluated_as_it_is():
    def loss(w, x, y, *, model_state):
        return line(w, x, y) + model_state, model_state + 1

    state, history = jp.fit(
        loss, 1.0, (X[:, 0], Y[:, 0]), steps=3, model_state=0.0, evaluation=(X[:, 0], Y[:, 0]), progress=False
    )
    assert float(state.model_state) == 3
    expected = line(state.params, X[:, 0], Y[:, 0]) + 3
    np.testing.assert_allclose(history["eval_loss"][-1], expected, rtol=1e-5)


# --- stopping --------------------------------------------------------------------------------------------


def test_until_stops_with_the_very_step():
    _, whole = fit(steps=60)
    limit = float(whole["loss"][40])
    first = int(np.argmax(whole["loss"] < limit * 1.0001))
    for until in (jp.train.below("loss", limit * 1.0001), lambda row: row["loss"] < limit * 1.0001):
        state, history = fit(steps=60, until=until)
        assert history.stop.reason == "until" and int(state.step) == len(history["loss"]) == first + 1
        np.testing.assert_array_equal(history["loss"], whole["loss"][: first + 1])
    state, history = fit(until=lambda row: row["step"] >= 17, watch=jp.Watch(every=2))
    assert int(state.step) == 17 and history.stop.message == "`until` became true in step 17."


def test_until_of_an_evaluation_may_be_plain_python():
    seen = []

    def until(row):
        seen.append(dict(row) if type(row) is dict else None)
        return float(row["eval_loss"]) < 1e9 and row["step"] > 4

    state, history = fit(steps=60, evaluation=Evaluation((X, Y), every=2), until=until)
    assert history.stop.reason == "until" and int(state.step) == 6
    assert set(seen[-1]) >= {"step", "loss", "eval_loss"}


def test_until_stops_at_the_time():
    start = time.monotonic()
    _, history = fit(until=Until(seconds=0.2))
    assert history.stop.reason == "seconds" and time.monotonic() - start < 10
    assert len(history["loss"]) == history.stop.step > 0


def root_loss(params, x):
    h = params["a"] - x
    return jnp.sum(jnp.sqrt(h)) * params["b"]


@pytest.mark.parametrize("most", [1, 50])
@pytest.mark.parametrize("watch", [None, jp.Watch(every=3)])
def test_the_state_before_a_step_that_is_not_finite_is_kept(most, watch, monkeypatch):
    """sqrt of a number that falls below zero after some steps."""
    params, x = {"a": np.float32(1), "b": np.float32(1)}, np.full(1, 0.9, np.float32)
    monkeypatch.setattr(Pace, "finished", lambda self, count, now: setattr(self, "most", most))
    optimizer = optax.sgd(0.01)
    good = 0
    while np.isfinite(trained(root_loss, params, [(x,)] * (good + 1), optimizer)[1][-1]):
        good += 1
    expected, losses = trained(root_loss, params, [(x,)] * good, optimizer)
    with pytest.warns(RuntimeWarning, match="after .* steps the loss is nan"):
        state, history = fit(root_loss, params, x, optimizer=optimizer, steps=100, watch=watch)
    check_equal(state.params, expected)
    np.testing.assert_array_equal(history["loss"], losses)
    stop = history.stop
    assert (stop.reason, stop.step, stop.leaves) == ("nonfinite", good, ("params['a']", "params['b']"))
    assert np.isnan(stop.loss)
    assert re.fullmatch(
        rf"after {good} steps the loss is nan; the gradient of params\['a'\], params\['b'\] is not finite\. The step "
        r"was not taken: the state is the one before it\. `sqrt` produces NaN, which propagates to the gradient and the loss "
        r"\(test_fit\.py:\d+ in root_loss\)\. For more, see `history\.stop\.report`\.",
        stop.message,
    ), stop.message
    (finding,) = (found for found in stop.report if found.severity == "error")
    assert (finding.cause, finding.leaves) == ("sqrt of a negative", ("params['a']", "params['b']"))


def test_the_first_bad_step_is_saved_and_runs_again(tmp_path):
    """With dropout, batch statistics and all: what the loss was called with comes back bit by bit."""

    def loss(params, x, *, key, model_state):
        kept = jax.random.bernoulli(key, 0.5, x.shape)
        value = jnp.sum(jnp.where(kept, jnp.log(params["scale"] - x), 0.0))
        return value, {"seen": model_state["seen"] + 1}

    file, x = tmp_path / "runs" / "bad", np.full(4, 0.5, np.float32)
    with pytest.warns(RuntimeWarning, match="`log` produces NaN"):
        state, history = fit(
            loss,
            {"scale": 0.75},
            x,
            optimizer=optax.sgd(0.1),
            steps=9,
            key=3,
            model_state={"seen": np.float32(0)},
            until=Until(save_bad_step=file),
        )
    args, kwargs = load_reproduction(file.with_name("bad.npz"))
    check_equal(args[0], state.params)
    check_equal(kwargs["model_state"], state.model_state)
    assert not np.isfinite(loss(*args, **kwargs)[0])
    assert str(file) in history.stop.report.notes[-1]
    again = jp.diagnose(loss, has_aux=True)(*args, **kwargs)
    assert [found.message for found in again] == [found.message for found in history.stop.report]


def test_what_cannot_be_diagnosed_still_ends_well(monkeypatch):
    def broken(*args, **kwargs):
        raise MemoryError("no more room")

    monkeypatch.setattr("jaxprop.train.loop.bad_step.explain_bad_step", broken)
    with pytest.warns(RuntimeWarning, match=r"It could not be diagnosed: MemoryError: no more room"):
        state, history = fit(lambda w, x: jnp.sum(w * x), 1.0, np.full(2, np.nan, np.float32), steps=2)
    assert float(state.params) == 1.0 and history.stop.report is None


def test_a_gradient_that_is_not_finite_stops_too():
    """The loss at zero is fine; the slope of the root there is infinite."""

    def loss(w, x):
        return jnp.sqrt(w * x) * 1.0

    with pytest.warns(RuntimeWarning, match="the loss is 0.0 but its gradient is not finite"):
        state, history = fit(lambda w, x: jnp.sum(loss(w, x)), 0.0, np.ones(1, np.float32), steps=5)
    assert float(state.params) == 0.0 and len(history["loss"]) == 0 and history.stop.loss == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state, _ = fit(
            lambda w, x: jnp.sum(loss(w, x)), 0.0, np.ones(1, np.float32), steps=2, until=Until(nonfinite=False)
        )
    assert not np.isfinite(state.params)


def test_the_optimizer_that_left_params_not_finite_is_named():
    optimizer = optax.sgd(lambda count: jnp.where(count == 2, jnp.nan, 0.1))
    with pytest.warns(
        RuntimeWarning, match=r"the previous update left params\['w1'\], params\['w2'\] not finite"
    ):
        fit(optimizer=optimizer, steps=10)


def test_a_step_that_cannot_be_diagnosed_is_saved_all_the_same(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no such program here")

    monkeypatch.setattr("jaxprop.diagnosis.reproduction.diagnose", broken)
    file = tmp_path / "bad.npz"
    with pytest.warns(RuntimeWarning, match="It could not be diagnosed: RuntimeError: no such program here"):
        fit(
            lambda w, x: jnp.sum(w * x),
            1.0,
            np.full(2, np.nan, np.float32),
            steps=2,
            until=Until(save_bad_step=file),
        )
    (params, x), _ = load_reproduction(file)
    assert float(params) == 1.0 and np.isnan(x).all()


def test_data_that_ends_early_says_so():
    with pytest.warns(RuntimeWarning, match="the data ended after 12 of 50 steps."):
        _, history = fit(data=shuffled(5, 4), steps=50)
    assert history.stop.reason == "data" and len(history["loss"]) == 12


# --- streams ---------------------------------------------------------------------------------------------


def test_a_stream_is_read_ahead_in_another_thread_and_let_go():
    read, closed, threads = [], [], set()

    def endless():
        try:
            for i in range(10**9):
                read.append(i)
                threads.add(threading.current_thread())
                yield X, Y
        finally:
            closed.append(True)

    state, _ = fit(data=endless, steps=5)
    assert int(state.step) == 5 and len(read) <= 5 + 4
    assert threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_an_error_of_the_reader_comes_out():
    def broken():
        yield X, Y
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(data=broken, steps=5)


def test_batches_may_be_filled_anew():
    """Loaders that hand out one buffer again and again."""

    def reusing():
        x, y = np.empty((10, 4), np.float32), np.empty((10, 2), np.float32)
        for a, b in shuffled(5, 4):
            x[:], y[:] = a, b
            yield x, y

    check_equal(fit(data=reusing, steps=12)[0].params, trained(mlp, PARAMS, shuffled(5, 4))[0])


def test_memory_mapped_files_are_never_loaded_whole(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (40_000, 100))  # 16 MB
    x[:, 0] = 1
    x.flush()
    del x
    data = np.load(tmp_path / "x.npy", mmap_mode="r")

    def loss(w, x):
        return jnp.mean((x @ w - 1) ** 2)

    tracemalloc.start()
    state, _ = fit(loss, np.zeros(100, np.float32), data, batch_size=100, steps=30, optimizer=optax.sgd(0.1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8e6, peak
    np.testing.assert_allclose(state.params[0], 1 - 0.8**30, rtol=1e-3)


# --- writers ---------------------------------------------------------------------------------------------


class Notes:
    def __init__(self):
        self.rows, self.closed = [], 0

    def write(self, step, row):
        self.rows.append((step, dict(row)))

    def close(self):
        self.closed += 1


def test_writers_are_told_and_closed():
    notes = Notes()
    _, history = fit(batch_size=10, epochs=4, log_every=5, evaluation=(X, Y), writers=[notes])
    rows = [(step, row) for step, row in notes.rows if "loss" in row]
    assert [step for step, _ in rows] == [5, 10] and notes.closed == 1
    assert [row["loss"] for _, row in rows] == [float(history["loss"][i]) for i in (4, 9)]
    assert rows[0][1]["epoch"] == 5 / 3
    assert [step for step, row in notes.rows if "eval_loss" in row] == [3, 6, 9, 12]
    notes = Notes()
    with pytest.raises(TypeError):
        fit(lambda params, x, y: "no", steps=1, writers=[notes])
    assert notes.closed == 1


# --- planning --------------------------------------------------------------------------------------------

SCHEDULES = {
    "nothing is due": (Schedule(None), 7, 100, 100),
    "the end": (Schedule(10), 7, 100, 3),
    "an evaluation": (Schedule(100, eval_every=10), 7, 100, 3),
    "the end of an epoch": (Schedule(100, eval_every=None, per_epoch=9), 7, 100, 2),
    "epochs of unknown length": (Schedule(100, eval_every=None), 7, 50, 50),
    "a checkpoint before an evaluation": (Schedule(100, eval_every=10, save_every=4), 7, 100, 1),
    "a watched step": (Schedule(100, watch_every=7), 7, 100, 1),
    "up to a watched step": (Schedule(100, watch_every=7), 8, 100, 6),
    "short chunks": (Schedule(100, eval_every=50), 7, 5, 5),
    "over": (Schedule(7), 7, 5, 0),
}


@pytest.mark.parametrize("case", SCHEDULES)
def test_chunks_end_where_something_is_due(case):
    schedule, done, most, expected = SCHEDULES[case]
    assert schedule.steps(done, most) == expected


def test_totals_and_periods():
    assert (
        total_steps(5, None, 3),
        total_steps(None, 2, 3),
        total_steps(5, 2, 3),
        total_steps(None, 2, None),
    ) == (
        5,
        6,
        5,
        None,
    )
    assert (eval_period(7, 10, 1), eval_period(None, 1000, 1), eval_period(None, 1000, 5)) == (7, 10, None)


def test_chunks_grow_to_a_fifth_of_a_second_and_fall_back():
    pace, now = Pace(), 0.0
    pace.finished(1, now)  # compiled: says nothing
    assert pace.most == 1
    for _ in range(12):
        now += 1e-7 * pace.most
        pace.finished(pace.most, now)
    assert pace.most == _schedule.CAPACITY
    for _ in range(3):
        now += 0.045 * pace.most
        pace.finished(pace.most, now)
    assert pace.most == 4


# --- errors ----------------------------------------------------------------------------------------------

NAN = X.copy()
NAN[7, 2] = np.nan


def random_loss(params, x, y, key):
    return mlp(params, x, y)


ERRORS = {
    "no end": (ValueError, r"nothing says when to stop: pass `steps`, `epochs` or `until`\.", {}),
    "zero steps": (ValueError, r"`steps` must be a positive integer, got 0\.", {"steps": 0}),
    "half an epoch": (
        ValueError,
        r"`epochs` must be a positive integer, got 0\.5\.",
        {"epochs": 0.5},
    ),
    "a batch size that does not divide": (
        ValueError,
        r"batch_size=8 does not divide the 30 examples: 6 would be left over in each epoch\. Pass data=Data\(\.\.\., "
        r"remainder=\"keep\"\), \"drop\" or \"pad\", or a batch size that divides, such as 10\.",
        {"data": Data((X, Y), remainder="error"), "batch_size": 8, "epochs": 1},
    ),
    "a batch larger than the data": (
        ValueError,
        r"batch_size=64 is larger than the data, which has 30 examples\.",
        {"batch_size": 64, "epochs": 1},
    ),
    "no batch": (
        ValueError,
        r"`batch_size` must be a positive number of examples, got 0\.",
        {"batch_size": 0, "epochs": 1},
    ),
    "arrays of different lengths": (
        ValueError,
        r"the arrays of `data` differ in their number of examples, the first axis: `data\[0\]` 30, `data\[1\]` 29\.",
        {"data": (X, Y[1:]), "steps": 1},
    ),
    "empty data": (
        ValueError,
        r"`data` is empty: its arrays have 0 examples\.",
        {"data": (X[:0], Y[:0]), "steps": 1},
    ),
    "a scalar among the data": (
        ValueError,
        r"`data\[1\]` is a scalar, but an array of data must have the examples on its first axis\. Close over what is "
        r"the same for all examples\.",
        {"data": (X, np.float32(1)), "steps": 1},
    ),
    "no data": (
        TypeError,
        r"`data` must be a pytree of arrays with the examples on the first axis, an iterable of batches, or a function "
        r"that returns one; got int\.",
        {"data": 3, "steps": 1},
    ),
    "no batches": (
        ValueError,
        r"`data` has no batches: there is nothing to train on\.",
        {"data": [], "steps": 1},
    ),
    "ragged batches": (
        ValueError,
        r"batch 1 of epoch 0 has the types float32\[9, 3\], float32\[9, 2\], but the first batch float32\[30, 4\], "
        r"float32\[30, 2\]\. Only the number of examples may be smaller, as in the last batch of an epoch: each shape "
        r"needs a program of its own\. Make the batches equal\.",
        {"data": [(X, Y), (X[:9, :3], Y[:9])], "epochs": 1},
    ),
    "a batch size for batches": (
        ValueError,
        r"`batch_size` is for arrays, but `data` is a list, which provides batches itself\. Leave `batch_size` out, and "
        r"form the batches where the data comes from\.",
        {"data": [(X, Y)], "batch_size": 10, "steps": 1},
    ),
    "data wider than params": (
        TypeError,
        r"`data\[1\]` is float32, but the params are bfloat16: JAX would compute the whole loss in float32\. Convert the "
        r"data once, `\.astype\(bfloat16\)`, or the params\.",
        {"params": {"w": jnp.ones(2, jnp.bfloat16)}, "data": (X.astype(jnp.bfloat16), Y), "steps": 1},
    ),
    "NaN in the data": (
        ValueError,
        r"`data\[0\]\[7, 2\]` is nan, but the data must be finite\. Remove such examples or fill them in\.",
        {"data": Data((NAN, Y), check=True), "steps": 1},
    ),
    "NaN in a batch": (
        ValueError,
        r"`data\[0\]\[7, 2\]` of batch 1 of epoch 0 is nan, but the data must be finite\. Remove such examples or fill "
        r"them in\.",
        {"data": Data([(X, Y), (NAN, Y)], check=True), "epochs": 1},
    ),
    "not an optimizer": (
        TypeError,
        r"`optimizer` must be an optax optimizer, .*",
        {"optimizer": "adam", "steps": 1},
    ),
    "two batch sizes": (
        ValueError,
        r"the batch size is given twice: Data\(batch_size=5\) and batch_size=6\. Pass one of them\.",
        {"data": Data((X, Y), batch_size=5), "batch_size": 6, "steps": 1},
    ),
    "an evaluation that wants a key": (
        ValueError,
        r"`random_loss` requires a key, but an evaluation has none\. Pass evaluation=Evaluation\(data, fn\) with a function "
        r"of \(params, \*batch\) that uses no randomness, or give `key` the default None, which is then used in "
        r"evaluations\.",
        {"loss": random_loss, "evaluation": (X, Y), "steps": 1},
    ),
    "evaluation data that can be read once": (
        TypeError,
        r"the data of `evaluation` is a generator, which can be read only once, but every evaluation reads it\. Pass a list of "
        r"batches, or a function that returns an iterator\.",
        {"evaluation": (b for b in [(X, Y)]), "steps": 1},
    ),
    "until is a number": (
        TypeError,
        r"`until` must be a function of the row of a step, such as `lambda row: row\['loss'\] < 1e-6`, or a "
        r"jaxprop\.train\.Until; got 0\.1\.",
        {"until": 0.1},
    ),
    "until branches": (
        TypeError,
        r"`until` is evaluated in every step, inside the compiled program, where Python cannot branch on its result\. "
        r"Write it with `&`, `\|`, `~` and `jnp\.where` on the row, without `and`, `or`, `if` and `float\(\)`\.",
        {"until": lambda row: row["loss"] < 1 and row["step"] > 3},
    ),
    "until asks for what is not there": (
        KeyError,
        r"`until` reads 'accuracy', but the row of a step has step, loss\.",
        {"until": jp.train.below("accuracy", 1.0)},
    ),
    "until asks for what is not evaluated": (
        ValueError,
        r"`until` reads 'eval_loss', but nothing is evaluated: pass `evaluation`\.",
        {"until": jp.train.below("eval_loss", 1.0)},
    ),
}


KEYWORDS = {
    "remainder": "it is a field of jaxprop.train.Data, so pass data=Data(..., remainder=...).",
    "shuffle": "it is a field of jaxprop.train.Data, so pass data=Data(..., shuffle=...).",
    "save_bad_step": "it is a field of jaxprop.train.Until, so pass until=Until(..., save_bad_step=...).",
    "fn": "it is a field of jaxprop.train.Evaluation, so pass evaluation=Evaluation(..., fn=...).",
    "nodes": "it is a field of jaxprop.train.Watch, so pass watch=Watch(..., nodes=...).",
    "keep": "it is a field of jaxprop.train.Checkpoint, so pass checkpoint=Checkpoint(..., keep=...).",
}


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_that_is_a_field_of_a_group_is_explained(keyword):
    with pytest.raises(TypeError) as caught:
        fit(steps=1, **{keyword: 1})
    assert str(caught.value) == f"`fit` has no parameter `{keyword}`: {KEYWORDS[keyword]}"


def test_an_unknown_keyword_is_explained():
    with pytest.raises(TypeError) as caught:
        fit(steps=1, eval_data=(X, Y))
    text = str(caught.value)
    start = "`fit` has no parameter `eval_data`. Did you mean `evaluation`? Available: loss, params, data, optimizer, "
    assert text.startswith(start), text
    fields = "evaluation=Evaluation(data, fn, every, batch_size); until=Until(condition, seconds, nonfinite, "
    assert fields in text, text
    assert len(inspect.signature(jp.fit).parameters) <= 20


def test_a_time_limit_is_positive():
    with pytest.raises(ValueError) as caught:
        Until(seconds=-1)
    assert str(caught.value) == "`seconds` must be a positive number, got -1."


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    kind, message, options = ERRORS[case]
    with pytest.raises(kind) as caught:
        fit(**options)
    text = caught.value.args[0] if isinstance(caught.value, KeyError) else str(caught.value)
    assert re.fullmatch(message, text, re.DOTALL), text


# --- examples that do not fill a batch -------------------------------------------------------------------

#: By remainder: the batches of one epoch of 30 examples by 8, as slices of the order of the epoch.
REMAINDERS = {
    "keep": lambda order: [order[0:8], order[8:16], order[16:24], order[24:30]],
    "drop": lambda order: [order[0:8], order[8:16], order[16:24]],
    "pad": lambda order: [order[0:8], order[8:16], order[16:24], np.r_[order[24:30], order[0:2]]],
}
NOTES = {
    "keep": "batch_size=8 does not divide the 30 examples: the last batch of each epoch has 6 (remainder='keep').",
    "drop": "batch_size=8 does not divide the 30 examples: 6 are left out of each epoch (remainder='drop').",
    "pad": "batch_size=8 does not divide the 30 examples: the last batch of each epoch is filled up with 2 of the same "
    "epoch (remainder='pad').",
}


@pytest.mark.parametrize("limit", [None, 0])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("remainder", REMAINDERS)
def test_examples_that_do_not_fill_a_batch(remainder, shuffle, limit):
    """Against a loop by hand over the same rows, from arrays on the device and streamed."""

    def epochs():
        for epoch in range(3):
            order = np.asarray(order_of(jax.random.key(5), epoch, 30)) if shuffle else np.arange(30)
            for rows in REMAINDERS[remainder](order):
                yield X[rows], Y[rows]

    data = Data((X, Y), batch_size=8, shuffle=shuffle, remainder=remainder, memory_limit=limit)
    state, history = fit(data=data, epochs=3, key=5)
    params, losses = trained(mlp, PARAMS, epochs())
    check_close(state.params, params)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert history.notes == (NOTES[remainder],)


def test_by_default_no_example_is_lost():
    """As the loaders of PyTorch, TensorFlow, Keras and grain do: the last batch is shorter."""
    seen = []

    def loss(w, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.mean((w - x) ** 2)

    x = np.arange(10, dtype=np.float32)
    _, history = jp.fit(loss, 0.0, x, batch_size=4, epochs=2, progress=False)
    jax.effects_barrier()
    assert [len(batch) for batch in seen] == [4, 4, 2] * 2
    for epoch in (seen[:3], seen[3:]):
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), x)


@pytest.mark.parametrize("remainder", REMAINDERS)
def test_shorter_batches_of_a_stream(remainder):
    """A loader's last batch, in two epochs."""
    rows = [slice(0, 12), slice(12, 24), slice(24, 30)]
    state, history = fit(data=Data([(X[r], Y[r]) for r in rows], remainder=remainder), epochs=2)
    last = {"keep": [np.r_[24:30]], "drop": [], "pad": [np.r_[24:30, 0:6]]}[remainder]
    params, losses = trained(mlp, PARAMS, [(X[r], Y[r]) for r in [np.r_[0:12], np.r_[12:24], *last] * 2])
    check_close(state.params, params)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    told = {"keep": "used as they are", "drop": "left out", "pad": "filled up from the first batch of the run"}[
        remainder
    ]
    assert history.notes == (f"2 batches were shorter than the first and {told} (remainder={remainder!r}).",)


def test_what_is_done_with_the_rest_is_shown(capsys):
    fit(data=Data((X, Y), batch_size=8, remainder="drop"), epochs=1, progress=True)
    assert capsys.readouterr().err.splitlines()[0] == NOTES["drop"]


def test_a_shorter_batch_is_watched_and_stops_like_any_other():
    watch = jp.Watch("h", every=2)
    state, history = fit(batch_size=8, epochs=3, watch=watch, until=lambda row: row["step"] >= 8)
    assert int(state.step) == len(history["loss"]) == 8
    assert history.watched.steps.tolist() == [0, 2, 4, 6]


def test_a_remainder_that_is_not_known():
    with pytest.raises(ValueError) as caught:
        Data((X, Y), remainder="wrap")
    assert str(caught.value) == 'Data(remainder=...) must be "keep", "drop", "pad" or "error", got \'wrap\'.'


def test_float64_data_of_numpy_is_taken_as_float32():
    state, _ = fit(data=(X.astype(float), Y.astype(float)), steps=3)
    check_close(state.params, fit(steps=3)[0].params)


def test_each_program_is_traced_once():
    """One trace of the plain chunk and one of the watched, however many chunks of whatever lengths there are."""
    traces = []

    def loss(params, x, y):
        traces.append(1)
        return mlp(params, x, y)

    fit(
        loss,
        batch_size=10,
        epochs=8,
        evaluation=Evaluation((X, Y), lambda *_: 0.0, every=7),
        watch=jp.Watch(nodes="h", every=9),
    )
    assert len(traces) == 2


def test_plain_numbers_are_one_case():
    def loss(w, x, y):
        return (w * x - y) ** 2

    state, history = jp.fit(loss, 1.0, (1.0, 2.0), optimizer=optax.sgd(0.01), steps=100, progress=False)
    np.testing.assert_allclose(state.params, 2 - 0.98**100, rtol=1e-5)
    np.testing.assert_allclose(history["loss"][0], 1.0)


# --- outputs that are not arrays ----------------------------------------------------------------------------


class Thing:
    pass


NOT_ARRAYS = {
    "str": "text",
    "Thing": Thing(),
    "function": line,
    "ndarray (dtype <U1)": np.array(["a"]),
    "datetime64": np.datetime64("2020-01-01"),
}
WAYS = {
    "a step": lambda loss, **options: jp.make_step(loss, **options),
    "a watched step": lambda loss, **options: jp.make_step(loss, watch=jp.Watch(every=1), **options),
    "a step with rules": lambda loss, **options: jp.make_step(
        loss, rules=[("mul", jp.rules.scale(1.0))], **options
    ),
}


def outputs_error(word, kind):
    return (
        f"`loss` returned `{word}['note']` of type {kind}, but only arrays and numbers can leave a compiled "
        "function. Leave it out."
    )


@pytest.mark.parametrize("kind", NOT_ARRAYS)
@pytest.mark.parametrize("way", [*WAYS, "fit", "fit, watched", "an evaluation"])
def test_an_output_that_is_not_an_array_is_named(way, kind):
    def loss(w, x):
        return jnp.mean((w * x) ** 2), {"note": NOT_ARRAYS[kind], "fine": jnp.sum(x)}

    x = jnp.ones(3)
    with pytest.raises(TypeError) as caught:
        if way in WAYS:
            step = WAYS[way](loss, has_aux=True)
            step(step.init(1.0), x)
        elif way == "an evaluation":
            evaluation = Evaluation((x,), lambda w, x: loss(w, x)[1])
            fit(lambda w, x: loss(w, x)[0], 1.0, (x,), steps=1, evaluation=evaluation)
        else:
            watch = jp.Watch(every=1) if "watched" in way else None
            fit(loss, 1.0, (x,), steps=1, has_aux=True, watch=watch)
    expected = outputs_error("aux", kind)
    if way == "an evaluation":
        expected = expected.replace("`loss`", "`<lambda>`").replace("aux[", "result[")
    assert str(caught.value) == expected


def test_a_model_state_that_is_not_an_array_is_named():
    def loss(w, x, *, model_state):
        return w * x, {"note": "text"}

    step = jp.make_step(loss)
    with pytest.raises(TypeError) as caught:
        step(step.init(1.0, model_state={"note": 1.0}), jnp.float32(1))
    assert str(caught.value) == outputs_error("model_state", "str")
    with pytest.raises(TypeError) as caught:
        step.init(1.0, model_state={"note": "text"})
    start = "`model_state['note']` is a str, but must be an array of numbers. Keep it out of `model_state` and close "
    assert str(caught.value).startswith(start)


@pytest.mark.parametrize(
    "data", [{"x": X, "name": np.array(["a"] * 30)}, [{"x": X, "name": "text"}]], ids=["arrays", "batches"]
)
def test_data_that_is_not_an_array_is_named(data):
    with pytest.raises(TypeError) as caught:
        fit(lambda params, batch: jnp.sum(params["w1"]), data=data, steps=1)
    start = "`data['name']` is a ndarray, but must be an array of numbers. Keep it out of `data` and close over it; "
    assert str(caught.value).startswith(start), caught.value


# --- nothing is lost -----------------------------------------------------------------------------------------


class Failing:
    """A writer that raises at a step, or when it is closed."""

    def __init__(self, step=None, error=None):
        self.step, self.error, self.told = step, error, []

    def write(self, step, row):
        self.told.append(step)
        if step == self.step:
            raise self.error

    def close(self):
        if self.step is None:
            raise self.error


def notes_of(error):
    """What jaxprop added to an exception; JAX adds notes of its own."""
    return [note for note in getattr(error, "__notes__", ()) if note.startswith("jaxprop: ")]


def broken_reader(after):
    def batches():
        yield from (batch for batch, _ in zip(shuffled(5, 4), range(after), strict=False))
        raise OSError("the disk is gone")

    return batches


def broken_evaluation(params, x, y):
    raise RuntimeError("no such metric")


FAILURES = {
    "a reader": (OSError, 7, {"data": broken_reader(7)}),
    "a writer": (
        OSError,
        None,
        {"writers": lambda: [Failing(5, OSError(errno.ENOSPC, "No space left on device"))], "log_every": 5},
    ),
    "a writer that is closed": (
        ValueError,
        12,
        {"writers": lambda: [Failing(None, ValueError("not flushed"))]},
    ),
    "an evaluation": (RuntimeError, 6, {"evaluation": Evaluation((X, Y), broken_evaluation, every=6)}),
    "until": (
        KeyError,
        4,
        {"evaluation": Evaluation((X, Y), every=4), "until": lambda row: row["eval_loss"] < row["x"]},
    ),
}


@pytest.mark.parametrize("saves", [False, True])
@pytest.mark.parametrize("case", FAILURES)
def test_what_raises_keeps_state_and_history(case, saves, tmp_path):
    kind, steps, options = FAILURES[case]
    options = {"data": lambda: shuffled(5, 4), "epochs": 1, **options}
    options["writers"] = options.get("writers", list)()
    saved = {"checkpoint": tmp_path / "run"} if saves else {}
    with pytest.raises(kind) as caught:
        fit(**options, **saved)
    error = caught.value
    stop, done = error.history.stop, int(error.state.step)
    assert done == stop.step == len(error.history["loss"]) and done in (steps, steps or done)
    params, losses = trained(mlp, PARAMS, list(shuffled(5, 4))[:done])
    check_equal(error.state.params, params)
    np.testing.assert_array_equal(error.history["loss"], losses)
    if done == 12:
        assert stop.reason == "done"
    else:
        assert stop.reason == "error" and stop.message.startswith(
            f"failed after {done} steps: {kind.__name__}: "
        )
    (note,) = notes_of(error)
    start = f"jaxprop: after {done} steps, the state and the history are `error.state` and `error.history`."
    assert note == start + (f" Checkpoint {done} was saved." if saves and done < 12 else "")
    if saves:
        pytest.importorskip("orbax.checkpoint")
        state, history = fit(data=lambda: shuffled(5, 4), epochs=1, **saved, resume=True)
        whole, losses = trained(mlp, PARAMS, shuffled(5, 4))
        check_equal(state.params, whole)
        np.testing.assert_array_equal(history["loss"], losses)


def test_an_error_before_the_first_step_is_left_alone():
    with pytest.raises(TypeError) as caught:
        fit(lambda params, x, y: "no", steps=3)
    assert not hasattr(caught.value, "state") and not notes_of(caught.value)


def test_a_warning_points_at_the_call():
    with pytest.warns(RuntimeWarning, match="the data ended after 12 of 50 steps.") as caught:
        fit(data=shuffled(5, 4), steps=50)
    assert caught[0].filename == __file__


def test_every_writer_is_closed_when_one_fails():
    notes = Notes()
    with pytest.raises(ValueError, match="not flushed"):
        fit(
            steps=2,
            writers=[notes, Failing(None, ValueError("not flushed")), Failing(None, ValueError("nor this"))],
        )
    assert notes.closed == 1


class Alarm(Notes):
    """Sends Ctrl-C some time after the first row."""

    def __init__(self, delay):
        super().__init__()
        self.timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])

    def write(self, step, row):
        if not self.rows:
            self.timer.start()
        super().write(step, row)


@pytest.mark.parametrize("most", [pytest.param(1, marks=pytest.mark.slow), 40])
def test_ctrl_c_at_any_moment_loses_nothing(most, monkeypatch):
    """The state is that of a run of as many steps, bit by bit, wherever the signal comes in."""
    monkeypatch.setattr(Pace, "finished", lambda self, count, now: setattr(self, "most", most))
    options = {"batch_size": 10, "key": 5}
    runs = []
    for delay in np.random.default_rng(most).uniform(0.0, 0.5, 3):
        alarm = Alarm(delay)
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(until=Until(seconds=120), writers=[alarm], **options)
        state, history = caught.value.state, caught.value.history
        assert history.stop.reason == "interrupted"
        assert int(state.step) == history.stop.step == len(history["loss"]) > 0
        runs.append((state, history))
    state, history = max(runs, key=lambda run: run[1].stop.step)
    whole, expected = fit(steps=history.stop.step, **options)
    check_equal(state.params, whole.params)
    np.testing.assert_array_equal(history["loss"], expected["loss"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_held_back_until_the_state_is_stored():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the block")
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt), interrupts_held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a second one is not held
        done.append("not reached")
    assert len(done) == 1
    with interrupts_held():
        done.append("nothing happens")


def test_ctrl_c_saves_a_checkpoint(tmp_path):
    pytest.importorskip("orbax.checkpoint")

    class Impatient(Notes):
        def write(self, step, row):
            if step >= 20:
                signal.raise_signal(signal.SIGINT)

    options = {"batch_size": 10, "key": 5, "checkpoint": tmp_path / "run", "log_every": 1}
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(steps=4000, writers=[Impatient()], **options)
    done = caught.value.history.stop.step
    assert caught.value.history.stop.message == f"interrupted after {done} steps."
    assert f"Checkpoint {done} was saved." in notes_of(caught.value)[0]
    state, history = fit(steps=done + 20, resume=True, **options)
    whole, expected = fit(steps=done + 20, batch_size=10, key=5)
    check_equal(state.params, whole.params)
    np.testing.assert_array_equal(history["loss"], expected["loss"])


def test_a_full_disk(tmp_path):
    """The system's own: every write to /dev/full fails."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="No space left on device") as caught:
        fit(steps=30, batch_size=10, key=5, writers=[jp.train.JSONL("/dev/full")])
    state, history = caught.value.state, caught.value.history
    check_equal(state.params, fit(steps=history.stop.step, batch_size=10, key=5)[0].params)
