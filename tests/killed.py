"""A run to be killed, and the process it is forked from: everything is imported there, JAX is not yet awake.

    python killed.py

reads lines `directory` from stdin. For each it forks a child that trains there, prints its process id, and when
the child has ended its status. So a kill costs a tenth of what starting Python anew would, and the child is a
process of its own like any other.
"""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  # imported once, for all children

import jaxprop as jp

STEPS, EVERY = 200, 5


def loss(params, x, y, key):
    h = jnp.tanh(x @ params["w1"] + params["b1"])
    h = h * jax.random.bernoulli(key, 0.9, h.shape)
    return jnp.mean((h @ params["w2"] - y) ** 2)


class Lives:
    """Writes down after which step each life goes on, and when its first step is done."""

    def __init__(self, directory):
        self.directory = directory
        self.training = False

    def resume(self, step):
        self.note("lives", step)

    def write(self, step, row):
        if not self.training:
            self.note("training", step)
        self.training = True

    def note(self, name, step):
        with open(self.directory / name, "a") as file:
            file.write(f"{step}\n")

    def close(self): ...


def run(directory):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    params = {
        "w1": rng.normal(size=(8, 16)).astype(np.float32),
        "b1": np.zeros(16, np.float32),
        "w2": rng.normal(size=(16, 3)).astype(np.float32),
    }
    state, history = jp.fit(
        loss,
        params,
        (x, y),
        optimizer=optax.adam(1e-3),
        steps=STEPS,
        batch_size=10,
        evaluation=jp.train.Evaluation((x, y), lambda p, x, y: jnp.mean(x @ p["w1"]), every=25),
        checkpoint=jp.train.Checkpoint(directory / "saved", every=EVERY, keep=2),
        resume=True,
        writers=[Lives(directory), jp.train.CSV(directory / "log.csv")],
        log_every=1,
        progress=False,
    )
    leaves = {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state, state.step))
    }
    np.savez(directory / "end.npz", **leaves, **{f"history {name}": column for name, column in history.items()})


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run(Path(line.strip()))
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
