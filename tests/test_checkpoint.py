"""Checkpoints: what comes back is what was saved, bit for bit; what does not fit or is damaged is named."""

import collections
import csv
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprop as jp
import processes
from jaxprop.train import CSV, Checkpoint, CheckpointError, Data, Evaluation, open_store
from jaxprop.train.checkpoint.leaves import fingerprints

pytest.importorskip("orbax.checkpoint")

MOVED = "Resume with the parameters and the optimizer it was written with, or choose another directory."


def same(a, b):
    """Whether two trees are the same, down to types, structure and every bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(map(_same_leaf, jax.tree.leaves(a), jax.tree.leaves(b)))


def _same_leaf(a, b):
    if type(a) is not type(b) or getattr(a, "dtype", None) != getattr(b, "dtype", None):
        return False
    if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def files(place):
    return {p.relative_to(place): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def state_of(key, optimizer=None, width=4):
    params = {"w": jax.random.normal(key, (3, width)), "b": jnp.zeros(width)}
    return {"params": params, "opt": (optimizer or optax.adam(1e-3)).init(params), "step": jnp.int32(7)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with checkpoints 1 and 2 of one state, and the state. Copy it before changing it."""
    place = tmp_path_factory.mktemp("checkpoints") / "run"
    state = {**state_of(jax.random.key(1)), "key": jax.random.key(3)}
    with open_store(Checkpoint(place)) as store:
        for step in (1, 2):
            store.save(step, state, {"epoch": step, "loss": np.arange(50.0)})
    return place, state


# --- what comes back --------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(optax.cosine_decay_schedule(1e-3, 100)),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-3)),
    "multi steps": optax.MultiSteps(optax.adam(1e-3), 4),
    "masked": optax.masked(optax.adam(1e-3), {"w": True, "b": False}),
    "multi transform": optax.multi_transform(
        {"a": optax.adam(1e-3), "s": optax.sgd(1e-2)}, {"w": "a", "b": "s"}
    ),
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
}
KEYS = {
    "typed": lambda: jax.random.key(5),
    "typed rbg": lambda: jax.random.key(5, impl="rbg"),
    "many typed": lambda: jax.random.split(jax.random.key(5), (2, 3)),
    "raw": lambda: jax.random.PRNGKey(5),
}
DTYPES = [
    "bool",
    "int4",
    "int8",
    "uint16",
    "int32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float32",
    "complex64",
]


@pytest.mark.library
def test_everything_comes_back_bit_for_bit(key, tmp_path):
    state = {
        "optimizers": {name: state_of(key, optimizer) for name, optimizer in OPTIMIZERS.items()},
        "keys": {name: make() for name, make in KEYS.items()},
        "dtypes": {name: jnp.array([[1, 0, 1]]).astype(name) for name in DTYPES},
        "odd": jax.lax.bitcast_convert_type(
            jnp.array([0x7FC12345, 0xFFC00001, 0x80000000, 1], jnp.uint32), jnp.float32
        ),
        "shapes": [jnp.zeros(()), jnp.zeros((0, 3)), jnp.zeros((1, 0)), jnp.arange(24.0).reshape(2, 3, 4)],
        "host": {"array": np.arange(3.0), "scalar": np.float64(0.1), "int": 3, "float": 0.1, "bool": True},
        "names": {"a/b": jnp.ones(1), "": jnp.ones(1), "é.": jnp.ones(1), 0: jnp.ones(1), 'x"': jnp.ones(1)}[
            "é."
        ],
        "nothing": (None, {}, []),
    }
    progress = {
        "n": np.int64(3),
        "f": 0.1,
        "s": "text",
        "list": [1, 2.5, None],
        "history": np.array([0.1, np.nan]),
    }
    with open_store(Checkpoint(tmp_path)) as store:
        store.save(3, state, progress)
        store.wait()
        restored, back = store.restore(state)
    assert same(state, restored)
    history = back.pop("history")
    assert back == {"n": 3, "f": 0.1, "s": "text", "list": [1, 2.5, None]}
    assert history.tobytes() == progress["history"].tobytes()


@pytest.mark.parametrize("name", ["a/b", "", "é.", "..", 'x"', "a'b", " ", 0, (1, "t")], ids=repr)
def test_any_name_of_a_leaf_will_do(name, tmp_path):
    state = {name: jnp.arange(3.0)}
    with open_store(Checkpoint(tmp_path)) as store:
        store.save(1, state)
        store.wait()
        assert same(state, store.restore(state)[0])


def test_a_state_of_shapes_is_a_template_too(saved):
    place, state = saved
    shapes = jax.eval_shape(lambda: state)
    with open_store(Checkpoint(place), resume=True) as store:
        assert same(state, store.restore(shapes)[0])


def test_sixty_four_bits(x64, tmp_path):
    state = {
        "w": jnp.array([0.1, 1e300]),
        "n": jnp.array(2**40),
        "c": jnp.array([1e300 + 0.1j]),
        "host": np.array([0.1]),
    }
    with open_store(Checkpoint(tmp_path)) as store:
        store.save(1, state)
        store.wait()
        assert same(state, store.restore(state)[0])


def test_arrays_may_be_donated_once_save_returns(key, tmp_path):
    state = {"w": jax.random.normal(key, (1000, 300)), "v": jnp.ones((1000, 300))}
    move = jax.jit(lambda s: jax.tree.map(lambda x: x * 1.5 + 1.0, s), donate_argnums=0)
    expected = {}
    with open_store(Checkpoint(tmp_path, keep=5)) as store:
        for step in range(1, 6):
            expected[step] = jax.tree.map(np.array, state)
            store.save(step, state)
            for _ in range(3):
                state = move(state)
        store.wait()
        for step, each in expected.items():
            assert same(each, jax.tree.map(np.array, store.restore(state, step)[0]))


def test_devices_are_the_templates(key, tmp_path):
    devices = np.array(jax.devices())
    eight, two = Mesh(devices, ("data",)), Mesh(devices[:2].reshape(1, 2), ("a", "b"))
    w = jax.random.normal(key, (16, 8))
    state = {
        "w": jax.device_put(w, NamedSharding(eight, P("data"))),
        "key": jax.device_put(jax.random.split(key, 8), NamedSharding(eight, P("data"))),
    }
    places = {
        "two": (NamedSharding(two, P("b", "a")), NamedSharding(two, P())),
        "eight, other axis": (NamedSharding(eight, P(None, "data")), NamedSharding(eight, P())),
        "one": (jax.sharding.SingleDeviceSharding(devices[3]),) * 2,
    }
    with open_store(Checkpoint(tmp_path)) as store:
        store.save(1, state)
        store.wait()
        for name, (of_w, of_key) in places.items():
            template = {
                "w": jax.device_put(jnp.zeros_like(w), of_w),
                "key": jax.device_put(state["key"], of_key),
            }
            restored, _ = store.restore(template)
            assert same(jax.tree.map(np.array, restored["w"]), np.array(w)), name
            assert np.array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(state["key"]))
            assert restored["w"].sharding.is_equivalent_to(of_w, 2), name
        plain, _ = store.restore({"w": jnp.zeros_like(w), "key": jax.random.split(key, 8)})
        assert not plain["w"].committed and same(np.array(plain["w"]), np.array(w))


# --- which are kept ---------------------------------------------------------------------------------

KEPT = [
    (Checkpoint("", keep=1), [3, 1, 2, 4], [4], None),
    (Checkpoint("", keep=2), [3, 1, 2, 4], [3, 4], None),
    (Checkpoint("", keep=1, best="eval"), [3, 1, 2, 4], [2, 4], 2),
    (Checkpoint("", keep=2, best="eval", mode="max"), [3, 5, 2, 4], [2, 3, 4], 2),
    (Checkpoint("", keep=1, best="eval"), [3, np.nan, None, 4], [1, 4], 1),
    (Checkpoint("", keep=1, best="eval"), [2, 2, 2], [1, 3], 1),
    (Checkpoint("", keep=1, best="eval"), [None, None], [2], None),
]


@pytest.mark.parametrize("settings, scores, kept, best", KEPT)
def test_the_last_and_the_best_are_kept(settings, scores, kept, best, tmp_path):
    settings = Checkpoint(tmp_path, 1, settings.keep, settings.best, settings.mode)
    for step, score in enumerate(scores, 1):  # opened anew each time: the scores are on disk
        with open_store(settings, resume=True) as store:
            store.save(
                step, {"w": jnp.ones(2)}, {}, {} if score is None else {"eval": np.float32(score), "loss": 1}
            )
    with open_store(settings, resume=True) as store:
        assert (store.steps(), store.best(), store.latest()) == (kept, best, len(scores))


def test_the_newest_step_is_not_written_twice(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "run")
    before = files(tmp_path / "run")
    with open_store(Checkpoint(tmp_path / "run"), resume=True) as store:
        store.save(2, saved[1])
    assert files(tmp_path / "run") == before


# --- beginning and going on -------------------------------------------------------------------------


def test_resume_with_nothing_there_begins(tmp_path):
    for place in (tmp_path, tmp_path / "not" / "there"):
        with open_store(Checkpoint(place), resume=True) as store:
            assert store.latest() is None and store.steps() == [] and store.best() is None
            with pytest.raises(CheckpointError, match=f"^there is no checkpoint in {place} to restore.$"):
                store.restore({})


def test_other_files_in_the_directory_do_not_matter(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss\n")
    (tmp_path / "notes").mkdir()
    with open_store(Checkpoint(tmp_path)) as store:
        store.save(1, {"w": jnp.ones(2)})
    assert (tmp_path / "log.csv").exists() and (tmp_path / "notes").exists()


def test_without_resume_nothing_is_overwritten(saved):
    place, _ = saved
    before = files(place)
    message = (
        f"{place} already contains checkpoints 1, 2. Continue from there with resume=True, or choose another "
        "directory: nothing is overwritten."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        open_store(Checkpoint(place))
    assert files(place) == before


def test_an_incomplete_newest_one_is_skipped_aloud(saved, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(saved[0], place)
    shutil.copytree(place / "2", place / "3.orbax-checkpoint-tmp")
    (place / "3.orbax-checkpoint-tmp" / "commit_success.txt").unlink(missing_ok=True)
    message = (
        f"checkpoint 3 in {place} is incomplete: the run ended while it was being written. It is skipped, "
        "continuing from checkpoint 2."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        store = open_store(Checkpoint(place), resume=True)
    with store:
        assert store.latest() == 2 and same(saved[1], store.restore(saved[1])[0])
        store.save(3, saved[1])
    assert sorted(p.name for p in place.iterdir()) == ["1", "2", "3"]


def test_an_incomplete_first_one_begins_anew(tmp_path):
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    with pytest.warns(UserWarning, match="It is skipped, starting over.$"):
        store = open_store(Checkpoint(tmp_path))
    with store:
        assert store.latest() is None


# --- what does not fit ------------------------------------------------------------------------------

OTHERS = {
    "another shape": (
        lambda key: state_of(key, width=5),
        [
            "['opt'][0].mu['b']: float32[4] in the checkpoint, float32[5] in the state",
            "['params']['w']: float32[3, 4] in the checkpoint, float32[3, 5] in the state",
        ],
    ),
    "another dtype": (
        lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), state_of(key)),
        ["['params']['b']: float32[4] in the checkpoint, bfloat16[4] in the state"],
    ),
    "another optimizer": (
        lambda key: state_of(key, optax.sgd(0.1, momentum=0.9)),
        [
            "['opt'][0].count: int32[] in the checkpoint, not in the state",
            "['opt'][0].trace['w']: not in the checkpoint, float32[3, 4] in the state",
        ],
    ),
    "another model": (
        lambda key: {**state_of(key), "params": {"v": jnp.ones(3)}},
        [
            "['params']['w']: float32[3, 4] in the checkpoint, not in the state",
            "['params']['v']: not in the checkpoint, float32[3] in the state",
        ],
    ),
    "a raw key": (
        lambda key: {**state_of(key), "key": jax.random.PRNGKey(3)},
        ["['key']: key<fry>[] in the checkpoint, uint32[2] in the state"],
    ),
    "another kind of key": (
        lambda key: {**state_of(key), "key": jax.random.key(3, impl="rbg")},
        ["['key']: key<fry>[] in the checkpoint, key<rbg>[] in the state"],
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_state_is_named_leaf_by_leaf(case, saved, key):
    place, _ = saved
    make, lines = OTHERS[case]
    other = {"key": jax.random.key(3), **make(key)}
    before = files(place)
    with open_store(Checkpoint(place), resume=True) as store, pytest.raises(CheckpointError) as caught:
        store.restore(other)
    head, *body, tail = str(caught.value).split("\n")
    assert head == f"checkpoint 2 in {place} belongs to another state. Differences:"
    assert tail == f"It was left unchanged. {MOVED}"
    assert set(lines) <= {line.strip() for line in body}
    assert files(place) == before


def test_many_differences_are_cut_short(tmp_path):
    with open_store(Checkpoint(tmp_path)) as store:
        store.save(1, {f"w{i:02}": jnp.ones(1) for i in range(20)})
        with pytest.raises(CheckpointError, match=r"w07.*\n  and 12 more\nIt was left unchanged\."):
            store.restore({})


def test_another_programs_directory_is_left_alone(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    before = files(tmp_path)
    message = (
        f"checkpoint 5 in {tmp_path} was not written by jaxprop, or is damaged: it does not contain 'about'. "
        "It was left unchanged; choose another directory."
    )
    for resume in (True, False):
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            open_store(Checkpoint(tmp_path), resume=resume)
    assert files(tmp_path) == before


def test_a_file_in_the_place_of_the_directory(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(
        CheckpointError, match=f"^{tmp_path / 'run'} is a file, but checkpoints need a directory.$"
    ):
        open_store(Checkpoint(tmp_path / "run"))


def test_a_step_that_is_not_there(saved):
    with open_store(Checkpoint(saved[0]), resume=True) as store:
        with pytest.raises(
            CheckpointError, match=f"^there is no checkpoint 9 in {saved[0]}; available: 1, 2.$"
        ):
            store.restore(saved[1], step=9)
        assert store.restore(saved[1], step=1)[1]["epoch"] == 1


# --- what is damaged --------------------------------------------------------------------------------


def _cut(data, rng):
    return data[: len(data) // 2]


def _empty(data, rng):
    return b""


def _flip(data, rng):
    data = bytearray(data)
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return bytes(data)


DAMAGES = {"cut": _cut, "empty": _empty, "deleted": None, "flip 1": _flip, "flip 2": _flip, "flip 3": _flip}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_damage_becomes_a_wrong_number(saved, tmp_path):
    """Every file of the newest checkpoint, damaged in every way: an error that names it, or the true numbers."""
    original, state = saved
    rng = np.random.default_rng(0)
    found = collections.Counter()
    place = tmp_path / "run"
    for file in files(original):
        if file.parts[0] != "2":
            continue
        for how, damage in DAMAGES.items():
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(original, place)
            if damage is None:
                (place / file).unlink()
            else:
                (place / file).write_bytes(damage((place / file).read_bytes(), rng))
            before = files(place)
            try:
                with open_store(Checkpoint(place), resume=True) as store:
                    restored, progress = store.restore(state)
            except CheckpointError as error:
                message = str(error)
                assert message.startswith(f"checkpoint 2 in {place} ") and "damaged" in message
                assert "left unchanged" in message
                found["said"] += 1
            else:
                assert same(restored, state), (file, how)
                assert progress["epoch"] == 2 and np.array_equal(progress["loss"], np.arange(50.0)), (file, how)
                found["harmless"] += 1
            assert files(place) == before, (file, how)
    assert found["said"] > 20, found


def test_the_one_before_can_be_gone_on_from(saved, tmp_path):
    place = tmp_path / "run"
    shutil.copytree(saved[0], place)
    (place / "2" / "about" / "metadata").write_text("{}")
    message = (
        f"checkpoint 2 in {place} is damaged: its 'about' has no content. It was left unchanged; to continue "
        "from 1, remove it."
    )
    with (
        open_store(Checkpoint(place), resume=True) as store,
        pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"),
    ):
        store.restore(saved[1])
    shutil.move(place / "2", tmp_path / "away")
    with open_store(Checkpoint(place), resume=True) as store:
        assert store.latest() == 1 and same(saved[1], store.restore(saved[1])[0])


def test_numbers_changed_behind_its_back_are_found(saved, tmp_path):
    """Arrays that read well and are not those that were saved: only the fingerprint tells."""
    place, state = tmp_path / "run", saved[1]
    shutil.copytree(saved[0], place)
    w = state["params"]["w"]
    other = {**state, "params": {**state["params"], "w": w.at[1, 2].add(1e-6)}}
    with open_store(Checkpoint(tmp_path / "other")) as store:
        store.save(2, other, {"epoch": 2, "loss": np.arange(50.0)})
    shutil.rmtree(place / "2" / "state")
    shutil.copytree(tmp_path / "other" / "2" / "state", place / "2" / "state")
    message = (
        f"checkpoint 2 in {place} is damaged: the numbers of ['params']['w'] are not those that were saved. It "
        "was left unchanged; to continue from 1, remove it."
    )
    with (
        open_store(Checkpoint(place), resume=True) as store,
        pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"),
    ):
        store.restore(saved[1])


def _fingerprint_in_numpy(x):
    x = np.ascontiguousarray(np.asarray(x))
    size = x.dtype.itemsize
    words = x.astype(np.uint32) if x.dtype == bool else x.view(np.uint32 if size >= 4 else f"uint{8 * size}")
    words = words.ravel().astype(np.uint64)
    weights = (2 * np.arange(words.size, dtype=np.uint64) + 1) * np.uint64(0x9E3779B1) % np.uint64(2**32)
    return int(sum(int(a) * int(b) for a, b in zip(words, weights, strict=True)) % 2**32)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint16", "bfloat16", "float32", "complex64", "float64", "complex128"]
)
def test_fingerprints_follow_their_formula(dtype):
    x = np.random.default_rng(0).normal(size=(6, 16)).astype(np.complex64 if "complex" in dtype else np.float32)
    host = (
        (x > 0)
        if dtype == "bool"
        else np.asarray(jnp.asarray(x, dtype))
        if dtype == "bfloat16"
        else x.astype(dtype)
    )
    expected = _fingerprint_in_numpy(host)
    assert fingerprints([host]) == [expected]
    if host.dtype.itemsize <= 4 or dtype == "complex64":
        mesh = Mesh(np.array(jax.devices()), ("data",))
        arrays = [jax.device_put(host, NamedSharding(mesh, spec)) for spec in (P(), P(None, "data"))]
        assert fingerprints([jnp.asarray(host), *arrays]) == [expected] * 3


def test_fingerprints_see_every_bit():
    x = jnp.arange(6, dtype=jnp.uint32)
    flipped = [x.at[i].set(x[i] ^ jnp.uint32(1 << bit)) for i in range(6) for bit in range(0, 32, 5)]
    assert fingerprints([x])[0] not in fingerprints(flipped)
    assert fingerprints([x])[0] != fingerprints([x[::-1]])[0]


# --- settings and what is missing -------------------------------------------------------------------

SETTINGS = [
    ({"every": 0}, "Checkpoint(every=...) must be a positive integer, got 0."),
    ({"every": 2.5}, "Checkpoint(every=...) must be a positive integer, got 2.5."),
    ({"keep": True}, "Checkpoint(keep=...) must be a positive integer, got True."),
    ({"mode": "least"}, "Checkpoint(mode=...) must be 'min' or 'max', got 'least'."),
]


@pytest.mark.parametrize("given, message", SETTINGS)
def test_settings_are_checked(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Checkpoint("runs", **given)


def test_what_cannot_be_saved_is_named(tmp_path):
    with open_store(Checkpoint(tmp_path)) as store:
        message = (
            "only arrays and numbers can be saved, but ['act'] is a function. Remove it from the state (with "
            "Equinox: eqx.partition(model, eqx.is_array))."
        )
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            store.save(1, {"w": jnp.ones(2), "act": same})
        with pytest.raises(
            TypeError,
            match="^progress can hold NumPy arrays and values that JSON can represent, but 'x' is a set.$",
        ):
            store.save(1, {"w": jnp.ones(2)}, {"x": {1}})
        assert store.latest() is None


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path):
    store = open_store(Checkpoint(tmp_path / "run"))
    store.save(1, {"w": jnp.ones(2)})
    store.wait()
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(CheckpointError, match=f"^checkpoint 2 in {tmp_path / 'run'} could not be written: "):
        store.save(2, {"w": jnp.ones(2)})
        store.wait()


def test_without_orbax_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    message = "Checkpoints are written by Orbax, which is not installed: pip install 'jaxprop-toolkit[train]'"
    with pytest.raises(ImportError, match=re.escape(message)):
        open_store(Checkpoint(tmp_path))


# --- within fit --------------------------------------------------------------------------------------


def test_a_run_is_gone_on_with_bit_for_bit(tmp_path):
    settings = {"batch_size": processes.BATCH, "evaluation": Evaluation(processes.data(), every=4)}
    whole, expected = processes.train(**settings)
    saved = Checkpoint(tmp_path / "saved", every=6)
    log = CSV(tmp_path / "log.csv")
    for steps in (8, 8, 16, 24):  # 8 is asked for twice: there is nothing left to do
        state, history = processes.train(
            **{**settings, "steps": steps}, checkpoint=saved, resume=True, writers=[log], log_every=1
        )
        assert history.stop.step == len(history["loss"]) == steps
    assert same(state, whole)
    assert all(history[name].tobytes() == column.tobytes() for name, column in expected.items())
    steps = [int(line.split(",")[0]) for line in lines(tmp_path / "log.csv")[1:]]
    assert sorted(set(steps)) == list(range(1, 25)) and steps == sorted(steps)


def test_the_best_is_saved_when_it_is_found(tmp_path):
    """An evaluation between two saves that is the best so far is saved."""
    rising = lambda params, x, y: {"score": jnp.abs(jnp.sum(params["b1"]) - 0.001)}  # noqa: E731
    settings = {
        "batch_size": processes.BATCH,
        "evaluation": Evaluation(processes.data(), rising, every=2),
    }
    saved = Checkpoint(tmp_path, every=100, keep=1, best="eval_score")
    _, history = processes.train(**settings, checkpoint=saved)
    with open_store(saved, resume=True) as store:
        assert store.best() == history["step"][np.nanargmin(history["eval_score"])]
        assert store.latest() == processes.STEPS
    wrong = Checkpoint(tmp_path / "other", best="eval_skore")
    message = "Checkpoint(best='eval_skore') is not a number of this run; available: loss, epoch, eval_score."
    with pytest.raises(ValueError) as caught:
        processes.train(
            **{**settings, "evaluation": Evaluation(processes.data(), rising, every=1)}, checkpoint=wrong
        )
    assert str(caught.value) == message


BATCHES = [*processes.batches(0, processes.BATCH)]
HALVES = [(x[:8], y[:8]) for x, y in BATCHES]

#: How a resumed run reads its data, beside how the run before did, and what is said.
OTHER_DATA = {
    "batch_size": ({}, {"batch_size": 12}, "batch_size was 16, now 12"),
    "shuffle": ({}, {"data_": Data(processes.data(), shuffle=False)}, "shuffle was True, now False"),
    "fewer examples": ({}, {"data_": tuple(x[:32] for x in processes.data())}, "examples was 48, now 32"),
    "remainder": (
        {"batch_size": 20},
        {"batch_size": 20, "data_": Data(processes.data(), remainder="drop")},
        "remainder was keep, now drop",
    ),
    "all at once": ({}, {"batch_size": None}, "batch_size was 16, now None"),
}


@pytest.mark.parametrize("case", OTHER_DATA)
def test_a_run_that_reads_its_data_in_another_order_is_not_resumed(case, tmp_path):
    before, after, changes = OTHER_DATA[case]
    options = {"checkpoint": tmp_path / "saved", "batch_size": processes.BATCH}
    processes.train(**{**options, **before, "steps": 4})
    on_disk_before = files(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        processes.train(**{**options, **after, "steps": 8, "resume": True})
    assert str(caught.value) == (
        f"checkpoint 4 in {tmp_path / 'saved'} belongs to a run that reads its data in another order: "
        f'{changes}. Pass the data as before, or resume="state" to continue from the state with the data as '
        "it is now."
    )
    assert files(tmp_path) == on_disk_before
    _, history = processes.train(**{**options, **after, "steps": 8, "resume": "state"})
    assert len(history["loss"]) == 8 and np.isfinite(history["loss"]).all()


def test_a_stream_of_other_batches_is_not_resumed(tmp_path):
    options = {"checkpoint": tmp_path / "saved", "resume": True}
    processes.train(BATCHES, steps=4, **options)
    with pytest.raises(CheckpointError) as caught:
        processes.train(HALVES, steps=8, **options)
    assert str(caught.value) == (
        "the run that is resumed read batches of float32[16, 12], float32[16, 4], but the first batch is now "
        "float32[8, 12], float32[8, 4]: the data would continue elsewhere. Pass batches of the same shape, or "
        'resume="state" to continue from the state with the data as it is now.'
    )
    with pytest.raises(CheckpointError, match="batch_size was None, now 16|examples was None, now 48"):
        processes.train(batch_size=processes.BATCH, steps=8, **options)
    _, history = processes.train(HALVES, steps=8, **{**options, "resume": "state"})
    assert len(history["loss"]) == 8
    with pytest.raises(ValueError, match="^`resume` must be True, False or \"state\", got 'all'.$"):
        processes.train(steps=8, **{**options, "resume": "all"})


# --- what was watched, over pauses ------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Largest:
    """A container that JAX knows and JSON does not."""

    value: jax.Array


def largest(x):
    return {"max": jnp.max(jnp.abs(x)), "pair": (jnp.min(x), [jnp.mean(x)])}


RECORDERS = {
    "summary": jp.summary,
    "one number": jp.Recorder.each(cotangent=lambda ct: jnp.max(jnp.abs(ct))),
    "containers": jp.Recorder.each(largest, largest),
    "a class": jp.Recorder.each(value=lambda x: Largest(jnp.max(x))),
}


def watched_columns(history):
    watched = history.watched
    return {
        "steps": watched.steps,
        **{name: watched[name] for name in watched},
        "leaves": watched.leaves,
        "per_example": watched.per_example,
    }


@pytest.mark.parametrize("name", RECORDERS)
def test_what_was_watched_before_comes_back(name, tmp_path):
    watch = jp.Watch(["h", "loss"], every=3, record=RECORDERS[name], per_example=name == "summary")
    options = {"batch_size": processes.BATCH, "watch": watch}
    _, expected = processes.train(**options, steps=12)
    for steps in (4, 5, 12):  # 4 to 5: nothing is watched
        _, history = processes.train(**options, steps=steps, checkpoint=tmp_path / "saved", resume=True)
        assert history.watched.steps.tolist() == list(range(0, steps, 3))
    assert list(history.watched) == list(expected.watched) and len(history.watched) > 0
    jax.tree.map(np.testing.assert_array_equal, watched_columns(history), watched_columns(expected))
    assert str(history.watched) == str(expected.watched)
    if name != "a class":  # nothing is left to do, and no step says what was watched
        _, again = processes.train(**options, steps=12, checkpoint=tmp_path / "saved", resume=True)
        jax.tree.map(np.testing.assert_array_equal, watched_columns(again), watched_columns(expected))


def test_what_is_watched_otherwise_starts_again_and_says_so(tmp_path):
    options = {"batch_size": processes.BATCH, "checkpoint": tmp_path / "saved"}
    processes.train(**options, steps=4, watch=jp.Watch("h", every=2))
    _, history = processes.train(**options, steps=8, watch=jp.Watch("loss", every=2), resume=True)
    assert history.watched.steps.tolist() == [4, 6] and list(history.watched) == ["loss"]
    assert history.notes == (
        "What was watched before step 4 is left out: other numbers are watched since the run was resumed.",
    )


# --- a run that is killed ---------------------------------------------------------------------------


class Lives:
    """Lives of one run in child processes, each ended by SIGKILL or by its end."""

    def __init__(self):
        environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        script = Path(__file__).with_name("killed.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def begin(self, place):
        place.mkdir(exist_ok=True)
        self.process.stdin.write(f"{place}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self):
        return int(self.process.stdout.readline())

    def close(self):
        _, errors = self.process.communicate()
        return errors


def lines(file):
    return file.read_text().splitlines() if file.exists() else []


def on_disk(place):
    return [int(p.name) for p in place.iterdir() if p.name.isdecimal()] if place.exists() else []


def log_of(place):
    rows = list(csv.DictReader(lines(place / "log.csv")))
    return [(int(row["step"]), row["loss"], row.get("eval_loss", "")) for row in rows]


def wait_for_moment(kind, place, trained):
    """0: do not wait. 1, 2: until this life has taken a step. 3: until it is writing a checkpoint."""
    deadline = time.monotonic() + 20
    while kind and lines(place / "training") == trained and time.monotonic() < deadline:
        time.sleep(0.01)
    while kind == 3 and not half_written(place) and time.monotonic() < deadline:
        time.sleep(0.001)


def half_written(place):
    return any("tmp" in p.name for p in (place / "saved").glob("*"))


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_the_same(tmp_path):
    """SIGKILL, twenty times: each life goes on from the newest checkpoint, and the end is bit for bit the
    same.
    """
    from killed import EVERY

    lives = Lives()
    lives.begin(tmp_path / "whole")
    assert lives.end() == 0, lives.close()
    expected = dict(np.load(tmp_path / "whole" / "end.npz"))
    rng = np.random.default_rng(0)
    kills, runs, halves, lost = 0, 0, 0, []
    while kills < 20 or runs == 0:
        place = tmp_path / f"run {runs}"
        finished = False
        while not finished:
            before, saved = lines(place / "lives"), on_disk(place / "saved")
            trained = lines(place / "training")
            child = lives.begin(place)
            if kills < 20:
                wait_for_moment(kills % 4, place, trained)
                time.sleep(0.0 if kills % 4 == 3 else rng.uniform(0.0, 0.25))
                os.kill(child, signal.SIGKILL)
            status = lives.end()
            finished = status == 0
            kills += status == signal.SIGKILL
            assert finished or status == signal.SIGKILL, lives.close()
            now = lines(place / "lives")
            if len(now) > len(before):  # this life came far enough to say where it goes on
                assert int(now[-1]) == max(saved, default=0)
            halves += half_written(place)
            reached = [step for step, *_ in log_of(place)] or [0]
            if not finished:
                lost.append(reached[-1] - max(on_disk(place / "saved"), default=0))
        ended = dict(np.load(place / "end.npz"))
        assert ended.keys() == expected.keys()
        for name, array in expected.items():
            assert ended[name].tobytes() == array.tobytes(), name
        assert log_of(place) == log_of(tmp_path / "whole")
        runs += 1
    errors = lives.close()
    # What is lost are the steps since the newest whole checkpoint: one may be on its way to disk.
    assert max(lost) <= 2 * EVERY, lost
    assert max(lost) > 0, "no kill fell between two checkpoints"
    assert halves > 0, "no kill fell into a save"
    assert "is incomplete: the run ended while it was being written" in errors
