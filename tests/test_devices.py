"""Many devices: the same numbers as on one, to rounding; state where it was asked to be; mistakes named.

Eight host devices in this process (`conftest`), and two and four real processes over loopback.
"""

import functools
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop as jp
import processes
from jaxprop.train import (
    Checkpoint,
    Data,
    Evaluation,
    data_parallel,
    explicit_sharding,
    fully_sharded,
    make_step,
)

BATCH = processes.BATCH
UNSHUFFLED = Data(processes.data(), shuffle=False)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def mesh(**axes):
    devices = np.array(jax.devices()[: int(np.prod(list(axes.values())))])
    return Mesh(devices.reshape(tuple(axes.values())), tuple(axes))


def specs(tree):
    return jax.tree.map(lambda x: tuple(x.sharding.spec), tree)


def same_numbers(history, other):
    assert list(history) == list(other)
    for name, column in other.items():
        np.testing.assert_allclose(history[name], column, err_msg=name, **CLOSE)


@functools.cache
def alone(**more):
    """A run on one device."""
    return processes.train(batch_size=BATCH, **more)


# --- the same numbers -------------------------------------------------------------------------------

GRID = mesh(data=2, model=4)
BY_HAND = {
    "w1": NamedSharding(GRID, P(None, "model")),
    "b1": NamedSharding(GRID, P("model")),
    "w2": NamedSharding(GRID, P("model", None)),
}
WHOLE = {"w1": (), "b1": (), "w2": ()}
SHARDINGS = {
    "a mesh": (mesh(data=8), WHOLE),
    "an explicit mesh": (jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)), WHOLE),
    "fully sharded": (
        fully_sharded(least=1),
        {"w1": (None, "data"), "b1": ("data",), "w2": ("data",)},
    ),
    "by hand": (BY_HAND, {"w1": (None, "model"), "b1": ("model",), "w2": ("model",)}),
}


@pytest.mark.parametrize("case", SHARDINGS)
def test_the_curve_is_that_of_one_device(case):
    sharding, expected = SHARDINGS[case]
    state, history = processes.train(batch_size=BATCH, sharding=sharding)
    one, curve = alone()
    same_numbers(history, curve)
    for name, spec in expected.items():
        assert _trimmed(state.params[name].sharding.spec) == spec, name
        assert _trimmed(state.opt_state[0].trace[name].sharding.spec) == spec, name
        np.testing.assert_allclose(state.params[name], one.params[name], **CLOSE)


def _trimmed(spec):
    spec = tuple(spec)
    while spec and spec[-1] is None:
        spec = spec[:-1]
    return spec


def test_watching_and_evaluating_on_devices():
    more = {"evaluation": Evaluation(processes.data(), every=10)}
    watch = jp.Watch(["h", "loss"], every=6)
    _, history = processes.train(batch_size=BATCH, sharding=fully_sharded(least=1), watch=watch, **more)
    _, expected = processes.train(batch_size=BATCH, watch=watch, **more)
    same_numbers(history, expected)
    assert list(history.watched) == list(expected.watched) == ["h", "loss"]
    for name in expected.watched:
        for side in ("value", "cotangent"):
            got, want = (getattr(h.watched[name], side) for h in (history, expected))
            jax.tree.map(functools.partial(np.testing.assert_allclose, **CLOSE), got, want)
    for path, leaf in expected.watched.leaves.items():
        np.testing.assert_allclose(history.watched.leaves[path].ratio, leaf.ratio, **CLOSE)


def test_streams_on_devices():
    _, history = processes.train(
        Data(processes.data(), memory_limit=1), batch_size=BATCH, sharding=data_parallel()
    )
    same_numbers(history, alone()[1])
    rows = [*processes.batches(0, BATCH)]
    _, batches = processes.train(lambda: iter(rows), sharding=data_parallel())
    same_numbers(batches, alone(data_=UNSHUFFLED)[1])


def test_a_step_by_hand_on_devices():
    """`make_step` needs nothing: it runs where its state and its batch lie."""
    step = make_step(processes.loss, optax.sgd(0.1, momentum=0.9))
    placement = fully_sharded(least=1)
    x, y = processes.data()
    alone, spread = step.init(processes.params(), 3), placement.state(step.init(processes.params(), 3))
    for _ in range(5):
        alone, expected = step(alone, x, y)
        spread, metrics = step(spread, *placement.batch((x, y)))
        np.testing.assert_allclose(metrics.loss, expected.loss, **CLOSE)


def test_a_checkpoint_goes_on_on_other_devices(tmp_path):
    settings = Checkpoint(tmp_path, every=5)
    for sharding, steps in ((fully_sharded(least=1), 10), (data_parallel(mesh(data=2)), 17), (None, 24)):
        more = {"sharding": sharding, "checkpoint": settings, "resume": True, "steps": steps}
        _, history = processes.train(batch_size=BATCH, **more)
    same_numbers(history, alone()[1])


# --- where things lie -------------------------------------------------------------------------------


def test_a_placed_state_is_its_own(key):
    """Donating what was placed leaves what was given alone, on the same device too."""
    given = {"w": jax.random.normal(key, (16, 8)), "key": key}
    for placement in (data_parallel(), data_parallel(mesh(data=1)), fully_sharded(least=1)):
        placed = placement.state(given)
        assert not placed["w"].is_deleted()
        jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)(placed)
        np.testing.assert_array_equal(given["w"] + 0, given["w"])
        assert not given["key"].is_deleted()


def test_each_device_keeps_a_part(key):
    state = {
        "w": jax.random.normal(key, (24, 64)),
        "moment": jnp.zeros((24, 64)),
        "step": jnp.int32(0),
        "key": key,
    }
    placed = fully_sharded(least=1).state(state)
    assert {s.data.shape for s in placed["w"].addressable_shards} == {(24, 8)}
    assert placed["w"].sharding == placed["moment"].sharding
    assert placed["step"].is_fully_replicated and placed["key"].is_fully_replicated
    np.testing.assert_array_equal(placed["w"], state["w"])


def test_small_arrays_stay_whole():
    state = fully_sharded().state({"big": np.ones((32, 32)), "small": np.ones((31, 8)), "few": np.ones(4)})
    assert {name: x.is_fully_replicated for name, x in state.items()} == {
        "big": False,
        "small": True,
        "few": True,
    }


def test_what_cannot_be_split_is_kept_whole_and_said_once():
    placement = fully_sharded(least=8)
    state = {"w": np.ones((10, 16), np.float32), "v": np.ones((3, 5), np.float32), "b": np.ones(9, np.int32)}
    message = "kept whole on every device, because no axis can be split evenly over 8 devices: ['b'] int32[9], ['v'] float32[3, 5]."
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        placed = placement.state(state)
    assert {name: x.is_fully_replicated for name, x in placed.items()} == {"w": False, "v": True, "b": True}
    placement.shardings(state)  # a second time it says nothing: warnings are errors here


def test_by_hand_moments_lie_as_their_parameters():
    step = make_step(processes.loss, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)))
    state = explicit_sharding(BY_HAND).state(step.init(processes.params()))
    assert specs(state.params) == specs(state.opt_state[1][0].mu) == specs(state.opt_state[1][0].nu)
    assert specs(state.params)["w1"] == (None, "model")
    assert state.step.is_fully_replicated
    whole = explicit_sharding(NamedSharding(GRID, P()), NamedSharding(GRID, P(("data", "model"))))
    assert (whole.axes, whole.parts) == (("data", "model"), 8)
    assert all(x.is_fully_replicated for x in jax.tree.leaves(whole.state(processes.params())))


def test_batches_lie_by_rows():
    placement = data_parallel(mesh(rows=4))
    x, scale = placement.batch((np.arange(24.0).reshape(8, 3), 0.5))
    assert [s.data[:, 0].tolist() for s in x.addressable_shards] == [[0, 3], [6, 9], [12, 15], [18, 21]]
    assert scale.is_fully_replicated
    stack = placement.batch(np.zeros((5, 8, 3)), leading=1)
    assert {s.data.shape for s in stack.addressable_shards} == {(5, 2, 3)}


# --- mistakes ---------------------------------------------------------------------------------------

MISTAKES = {
    "rows": (
        lambda: data_parallel().batch(np.ones((12, 2))),
        ValueError,
        "a batch of 12 rows cannot be split evenly over the 8 devices of mesh axis 'data'. Choose a batch size that is a "
        "multiple of 8, such as 8.",
    ),
    "rows in fit": (
        lambda: processes.train(batch_size=12, sharding=data_parallel()),
        ValueError,
        "a batch of 12 rows cannot be split evenly over the 8 devices of mesh axis 'data'. Choose a batch size that is a "
        "multiple of 8, such as 8.",
    ),
    "rows of a stream": (
        lambda: processes.train(lambda: processes.batches(0, 12), sharding=data_parallel()),
        ValueError,
        "a batch of 12 rows cannot be split evenly over the 8 devices of mesh axis 'data'. Choose a batch size that is a "
        "multiple of 8, such as 8.",
    ),
    "few rows": (
        lambda: data_parallel(GRID, axis=("data", "model")).batch(np.ones((3, 2))),
        ValueError,
        "a batch of 3 rows cannot be split evenly over the 8 devices of mesh axis 'data', 'model'. Choose a batch size that "
        "is a multiple of 8, such as 8.",
    ),
    "an unknown axis": (
        lambda: fully_sharded(GRID, axis="batch"),
        ValueError,
        "the mesh has no axis 'batch'; available: 'data', 'model'.",
    ),
    "which axis": (
        lambda: data_parallel(mesh(x=2, y=4)),
        ValueError,
        "the mesh has axes 'x', 'y'. Pass the one over which the batch is split, such as axis='x'.",
    ),
    "no sharding": (
        lambda: processes.train(batch_size=BATCH, sharding="all"),
        TypeError,
        "`sharding` must be a Mesh, a Placement, or a pytree of NamedShardings; got str.",
    ),
    "two meshes": (
        lambda: explicit_sharding({"a": NamedSharding(GRID, P()), "b": NamedSharding(mesh(data=8), P())}),
        ValueError,
        "explicit shardings must belong to one mesh, got 2.",
    ),
    "a checkpoint that is none": (
        lambda: processes.train(checkpoint=3),
        TypeError,
        "`checkpoint` must be a directory or a jaxprop.train.Checkpoint, got int.",
    ),
    "a best that is not evaluated": (
        lambda: processes.train(checkpoint=Checkpoint("nowhere", best="eval_loss")),
        ValueError,
        "Checkpoint(best='eval_loss') needs an evaluation: pass `evaluation`.",
    ),
    "resume from nowhere": (
        lambda: processes.train(resume=True),
        ValueError,
        "resume=True continues from a checkpoint, but `checkpoint` is not given.",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_named(case):
    make, kind, message = MISTAKES[case]
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        make()


def test_shardings_that_do_not_fit_the_parameters():
    with pytest.raises(ValueError, match="^the explicit shardings do not match the parameters: "):
        explicit_sharding({"w1": BY_HAND["w1"]}).state(processes.params())


# --- several processes ------------------------------------------------------------------------------


def run_processes(count, place):
    """Run `processes.py` in so many processes; when one fails all are stopped."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    outputs = [place / f"output {count} {index}" for index in range(count)]
    running = []
    for index, output in enumerate(outputs):
        command = [sys.executable, processes.__file__, str(port), str(count), str(index), str(place)]
        with output.open("w") as file:
            running.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment))
    try:
        codes = [process.wait(timeout=200) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * count, "\n".join(output.read_text()[-3000:] for output in outputs)
    return dict(np.load(place / f"found {count}.npz"))


@pytest.mark.slow
def test_two_and_four_processes(tmp_path):
    """Two processes train and save; four train, and go on with what the two saved. All as one device does."""
    found = {count: run_processes(count, tmp_path) for count in (2, 4)}
    watch = jp.Watch(["h"], every=6)
    state, history = processes.train(batch_size=BATCH, evaluation=processes.data(), watch=watch)
    for count, of in found.items():
        for name in ("loss", "eval_loss"):
            np.testing.assert_allclose(of[f"arrays/{name}"], history[name], **CLOSE)
        for name, param in state.params.items():
            np.testing.assert_allclose(of[f"params/{name}"], param, **CLOSE)
        for side in ("value", "cotangent"):
            expected = getattr(history.watched["h"], side).norm
            np.testing.assert_allclose(of[f"watched/{side}"], expected, **CLOSE)
        np.testing.assert_allclose(of["streamed/loss"], history["loss"], **CLOSE)
        np.testing.assert_allclose(of["own rows/loss"], alone(data_=UNSHUFFLED)[1]["loss"], **CLOSE)
        assert str(of[f"error {BATCH}/message"]) == (
            f"there are {count} processes, but sharding= does not say how they share the work. Pass "
            "sharding=jaxprop.train.data_parallel()."
        )
        assert sorted(p.name for p in tmp_path.glob(f"log {count} *")) == [f"log {count} 0.csv"]  # one writes
    np.testing.assert_allclose(found[4]["resumed/loss"], history["loss"], **CLOSE)
    assert "a batch of 6 rows cannot be split evenly over the 4 devices" in str(found[4]["error 6/message"])
    assert ".params['w2']: float32[16, 4] in the checkpoint, float32[16, 5] in the state" in str(
        found[4]["other/message"]
    )
