"""One run in two processes, as on two hosts of a cluster. Without arguments the script starts both.

On a cluster each host runs the script once, and `jax.distributed.initialize()` finds the other hosts.
"""

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop as jp
from jaxprop.train import CSV, Checkpoint, data_parallel

PROCESSES, STEPS, BATCH = 2, 60, 32


def loss(params, x, y):
    h = jnp.tanh(x @ params["w1"])
    return jnp.mean((h @ params["w2"] - y) ** 2)


def examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(128, 8)).astype(np.float32)
    return x, np.sin(x[:, :2])


def train(folder, steps=STEPS, sharding=None, rows=None, **more):
    rng = np.random.default_rng(1)
    params = {"w1": rng.normal(size=(8, 32)) * 0.3, "w2": rng.normal(size=(32, 2)) * 0.3}
    params = {name: w.astype(np.float32) for name, w in params.items()}
    rows = slice(0, BATCH) if rows is None else rows

    def batches():  # a process reads its own rows of each batch
        x, y = examples()
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH][rows], y[start : start + BATCH][rows]

    return jp.fit(
        loss,
        params,
        batches,
        optimizer=optax.adam(1e-2),
        steps=steps,
        sharding=sharding,
        checkpoint=Checkpoint(folder / "saved", every=20),
        progress=False,
        **more,
    )


def one_of_two(port, index, folder):
    """What each process runs."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # on CPUs only
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, index)
    share = BATCH // PROCESSES
    mine = {"sharding": data_parallel(), "rows": slice(index * share, (index + 1) * share)}
    log = CSV(folder / "log.csv")  # only the first process writes
    train(folder, steps=STEPS // 2, writers=[log], log_every=1, **mine)
    state, history = train(folder, writers=[log], log_every=1, resume=True, **mine)  # as after a restart
    if index == 0:
        np.savez(folder / "two.npz", loss=history["loss"], w1=np.asarray(state.params["w1"]))


def main():
    folder = Path(tempfile.mkdtemp())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen([sys.executable, __file__, str(port), str(index), str(folder)])
        for index in range(PROCESSES)
    ]
    assert [process.wait(timeout=240) for process in running] == [0] * PROCESSES
    two = np.load(folder / "two.npz")
    state, history = train(folder / "alone")
    apart = np.max(np.abs(two["loss"] - history["loss"]))
    print(
        f"two processes: loss {two['loss'][0]:.3f} -> {two['loss'][-1]:.3f}, within {apart:.0e} of one process"
    )
    assert np.allclose(two["loss"], history["loss"], rtol=1e-4, atol=1e-6)
    assert np.allclose(two["w1"], state.params["w1"], rtol=1e-3, atol=1e-5)
    assert len((folder / "log.csv").read_text().splitlines()) == STEPS + 1  # a header, and each step once


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        one_of_two(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
