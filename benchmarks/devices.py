"""Two devices compared with one, and the cost of watching and saving. On host devices, which share one CPU.

Two devices on one CPU cannot be faster than one device that uses all its cores: the numbers show the cost of
splitting. Accelerators are separate devices.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

import jaxprop as jp
from jaxprop.train import Checkpoint, Evaluation, data_parallel, fully_sharded, make_step

from .timing import in_turns, ratios

SCALING = {
    "what": "what",
    "devices": "devices|d",
    "batch": "batch|d",
    "ms": "ms a step|.3f",
    "run": "over one device|.2f",
    "per_example": "per example|.2f",
    "flops": "flops a device|.2f",
    "state": "state a device|.2f",
}
COST = {
    "what": "what",
    "every": "every|d",
    "ms": "ms a step|.3f",
    "each": "ms each time|.1f",
    "run": "over a plain run|.3f",
    "least": "least|.3f",
}


def measure(quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Return both tables, measured in a separate process that has two devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    command = [sys.executable, "-m", __name__, *(["--quick"] if quick else [])]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def loss(params, x, y):
    h = x
    for w in params["layers"]:
        h = jax.nn.relu(h @ w)
    return optax.softmax_cross_entropy_with_integer_labels(h @ params["out"], y).mean()


def model(width: int, depth: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    layer = lambda n, m: (rng.normal(size=(n, m)) / n**0.5).astype(np.float32)  # noqa: E731
    return {"layers": [layer(width, width) for _ in range(depth)], "out": layer(width, 10)}


def data(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(rows, width)).astype(np.float32), rng.integers(10, size=rows).astype(np.int32)


# --- one device and two -----------------------------------------------------------------------------


def scaling(quick: bool) -> Iterator[dict[str, Any]]:
    """Strong: the same batch on one and two devices. Weak: as many examples on each."""
    width, batch, budget = (128, 256, 1.0) if quick else (1024, 1024, 20.0)
    one, two = (Mesh(np.array(jax.devices()[:n]), ("data",)) for n in (1, 2))
    runs = {
        "one device": (data_parallel(one), batch),
        "strong, data parallel": (data_parallel(two), batch),
        "strong, fully sharded": (fully_sharded(two), batch),
        "weak, data parallel": (data_parallel(two), 2 * batch),
        "weak, fully sharded": (fully_sharded(two), 2 * batch),
    }
    made = [prepare(placement, rows, width) for placement, rows in runs.values()]
    samples = in_turns([run for run, _ in made], budget)
    base = made[0][1]
    for (what, (placement, rows)), (_, costs), row, (run, _) in zip(
        runs.items(), made, samples, ratios(samples), strict=True
    ):
        yield {
            "what": what,
            "devices": placement.parts,
            "batch": rows,
            "ms": 1e3 * statistics.median(row),
            "run": run,
            "per_example": run * batch / rows,
            "flops": costs["flops"] / base["flops"],
            "state": costs["state"] / base["state"],
        }


def prepare(placement: Any, rows: int, width: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """Return a compiled step on its devices, and its costs on one of them."""
    step = make_step(loss, optax.adam(1e-3), donate=False)
    state = placement.state(step.init(model(width)))
    batch = placement.batch(data(rows, width))
    held = jax.jit(lambda state, *batch: placement.hold(step.plain(state, *batch)[0]))
    compiled = held.lower(state, *batch).compile()
    costs = {
        "flops": compiled.cost_analysis().get("flops", 0.0),
        "state": sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state.params)),
    }
    return lambda: compiled(state, *batch), costs


# --- watching and saving ----------------------------------------------------------------------------


class Stopwatch:
    """A writer that measures the time from one step to another, without compilation."""

    def __init__(self, first: int, last: int):
        self.ends = {first: 0.0, last: 0.0}

    def write(self, step: int, row: Any) -> None:
        if step in self.ends:
            self.ends[step] = time.perf_counter()

    def close(self) -> None: ...

    def per_step(self) -> float:
        (first, start), (last, end) = self.ends.items()
        return (end - start) / (last - first)


def cost(quick: bool) -> Iterator[dict[str, Any]]:
    """Measure milliseconds per step of whole runs of `fit`, alternating.

    All evaluate on a few rows every `every` steps, so that all synchronize there: otherwise a run does not
    report when a step was done.
    """
    width, every, periods, rounds = (128, 50, 4, 2) if quick else (512, 50, 10, 7)
    x, y = data(2048, width)
    watch = {"watch": jp.Watch(every=every)}
    kinds: dict[str, Callable[[str], dict[str, Any]]] = {
        "plain": lambda place: {},
        "plain again": lambda place: {},
        "watch": lambda place: watch,
        "checkpoint": lambda place: {"checkpoint": Checkpoint(place, every=every)},
        "both": lambda place: {"checkpoint": Checkpoint(place, every=every), **watch},
    }
    samples: list[list[float]] = [[] for _ in kinds]
    for turn in range(rounds):
        for i in range(len(kinds)):
            which = (i + turn) % len(kinds)
            clock = Stopwatch(2 * every, (2 + periods) * every)
            with tempfile.TemporaryDirectory() as place:
                jp.fit(
                    loss,
                    model(width),
                    (x, y),
                    optimizer=optax.adam(1e-3),
                    steps=(2 + periods) * every,
                    batch_size=256,
                    evaluation=Evaluation((x[:16], y[:16]), every=every),
                    writers=[clock],
                    log_every=every,
                    progress=False,
                    **list(kinds.values())[which](place),
                )
            samples[which].append(clock.per_step())
    for what, row, (run, least) in zip(kinds, samples, ratios(samples), strict=True):
        ms, plain = 1e3 * statistics.median(row), 1e3 * statistics.median(samples[0])
        more = every * (ms - plain)
        yield {"what": what, "every": every, "ms": ms, "each": more, "run": run, "least": least}


if __name__ == "__main__":
    quick = "--quick" in sys.argv
    print(json.dumps({"scaling": list(scaling(quick)), "cost": list(cost(quick))}))
