"""What several processes run together: `python processes.py PORT COUNT INDEX DIRECTORY`.

Each process has one device. The first writes down what came out.
"""

import os
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop as jp
from jaxprop.train import CSV, Checkpoint, CheckpointError, Data, data_parallel, fully_sharded

ROWS, BATCH, STEPS = 48, 16, 24


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 12)).astype(np.float32)
    return x, np.tanh(x[:, :4])


def params():
    rng = np.random.default_rng(1)
    shapes = {"w1": (12, 16), "b1": (16,), "w2": (16, 4)}
    return {name: rng.normal(size=shape).astype(np.float32) * 0.3 for name, shape in shapes.items()}


def loss(params, x, y):
    h = jnp.tanh(x @ params["w1"] + params["b1"][None])
    return jnp.mean((h @ params["w2"] - y) ** 2)


def batches(first, last):
    """Rows `first` to `last` of each batch, in order."""
    x, y = data()
    for start in range(0, ROWS, BATCH):
        rows = slice(start + first, start + last)
        yield x[rows], y[rows]


SETTINGS = {"optimizer": optax.sgd(0.1, momentum=0.9), "key": 3, "progress": False}


def train(data_=None, **more):
    return jp.fit(loss, params(), data() if data_ is None else data_, **{**SETTINGS, "steps": STEPS, **more})


def columns(history):
    return {name: history[name] for name in history if name.startswith(("loss", "eval"))}


def both(place, count, index):
    """Everything two processes do, and four."""
    found = {}
    state, history = train(
        batch_size=BATCH,
        sharding=data_parallel(),
        evaluation=data(),
        watch=jp.Watch(["h"], every=6),
        writers=[CSV(place / f"log {count} {index}.csv")],
    )
    found["arrays"] = columns(history)
    found["watched"] = {
        "cotangent": history.watched["h"].cotangent.norm,
        "value": history.watched["h"].value.norm,
    }
    found["params"] = {name: np.asarray(x) for name, x in state.params.items()}
    assert all(x.is_fully_replicated for x in state.params.values())

    share = BATCH // count
    own = [*batches(index * share, (index + 1) * share)]
    found["own rows"] = columns(train(lambda: iter(own), sharding=data_parallel())[1])
    found["streamed"] = columns(
        train(Data(data(), memory_limit=1), batch_size=BATCH, sharding=data_parallel())[1]
    )

    settings = Checkpoint(place / "saved", every=5)
    more = {"batch_size": BATCH, "sharding": fully_sharded(least=1), "checkpoint": settings}
    if count == 2:
        state, history = train(steps=10, **more)
        assert not state.params["w1"].is_fully_replicated
    else:  # what two processes wrote, four go on with
        state, history = train(resume=True, **more)
        found["resumed"] = columns(history)
        try:
            jp.fit(loss, {**params(), "w2": np.ones((16, 5), np.float32)}, data(), steps=1, resume=True, **more)
        except CheckpointError as error:
            found["other"] = {"message": np.array(str(error))}
    for sharding, batch in ((None, BATCH), (data_parallel(), 6 if count == 4 else 3)):
        try:
            train(sharding=sharding, batch_size=batch)
        except ValueError as error:
            found[f"error {batch}"] = {"message": np.array(str(error))}
    return found


if __name__ == "__main__":
    port, count, index = map(int, sys.argv[1:4])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    place = Path(sys.argv[4])
    try:
        found = both(place, count, index)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at once: the others are stopped by who started them
    if index == 0:
        flat = {f"{case}/{name}": array for case, columns in found.items() for name, array in columns.items()}
        np.savez(place / f"found {count}.npz", **flat)
