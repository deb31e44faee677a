"""Norms of the gradients of single examples, compared with `vmap` of `grad`, and BackPACK if it is installed.

Each framework's figures are ratios to its own plain gradient; memory is the peak of the compiled program.

    python -m benchmarks.per_example [--quick]
"""

import argparse
import importlib.util
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxprop as jp

from . import worker
from .machine import cores
from .models import MODELS
from .timing import table

COLUMNS = {
    "model": "model",
    "framework": "framework",
    "what": "what",
    "run_ms": "ms|.2f",
    "run": "run|.2f",
    "run_min": "(of minima)|.2f",
    "told": "peak memory|.2f",
}
SIZES = {"mlp": {"batch": 256}, "cnn": {"batch": 256}, "lstm": {}}
IN_AXES = {"lstm": (1, 0)}  # steps first
PLAIN = "plain gradient"


def measure(models: Sequence[str], quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = []
    for name in SIZES:
        beside = ["torch"] if available() and name not in IN_AXES else []  # BackPACK has no scans
        if name in models:
            rows += worker.measure(__spec__.name, ["jax", *beside], [name], quick, rounds, base=PLAIN)
    return rows


def available() -> bool:
    """Return whether PyTorch and BackPACK are installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "backpack"))


def _jax_jobs(name: str, quick: bool) -> tuple[str, worker.Jobs]:
    model = MODELS[name](quick=quick) if quick else MODELS[name](**SIZES[name])
    params, *batch = model.args

    in_axes = IN_AXES.get(name, (0,) * len(batch))

    def by_vmap(params, *batch):
        def one(params, *example):
            return model.loss(params, *map(jnp.expand_dims, example, in_axes))

        grads = jax.vmap(jax.grad(one), in_axes=(None, *in_axes))(params, *batch)
        return jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim)))), grads)

    def norms(params, *batch):
        found = jp.per_example(model.loss, in_axes=in_axes)(params, *batch)
        return found.value, found.grads, found.norms

    functions = {PLAIN: jax.value_and_grad(model.loss), "jp.per_example": norms, "vmap(grad)": by_vmap}
    compiled = {what: jax.jit(fun).lower(params, *batch).compile() for what, fun in functions.items()}
    peak = {what: _peak(program) for what, program in compiled.items()}

    def job(what):
        def run():
            jax.block_until_ready(compiled[what](params, *batch))
            return peak[what] / peak[PLAIN]

        return run

    return jax.__version__, {what: job(what) for what in functions}


def _peak(program: Any) -> int:
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def _torch_jobs(name: str, quick: bool) -> tuple[str, worker.Jobs]:
    """The same MLP and CNN in PyTorch."""
    import backpack
    import torch
    from backpack.extensions import BatchL2Grad
    from torch import nn

    torch.set_num_threads(cores())
    torch.manual_seed(0)
    batch = 4 if quick else 256
    if name == "mlp":
        widths = (64, 32, 10) if quick else (64, 256, 256, 10)
        layers = [
            part for m, n in zip(widths, widths[1:], strict=False) for part in (nn.Linear(m, n), nn.ReLU())
        ]
        model, x = nn.Sequential(*layers[:-1]), torch.randn(batch, 64)
    else:
        widths = (1, 4, 8) if quick else (1, 16, 32, 32)
        layers = [
            part
            for m, n in zip(widths, widths[1:], strict=False)
            for part in (nn.Conv2d(m, n, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))
        ]
        side = -(-28 // 2 ** (len(widths) - 1))
        model = nn.Sequential(*layers, nn.AvgPool2d(side), nn.Flatten(), nn.Linear(widths[-1], 10))
        x = torch.randn(batch, 1, 28, 28)
    labels, entropy = torch.randint(10, (batch,)), nn.CrossEntropyLoss()
    plain = _backward(model, entropy, x, labels)
    other, other_entropy = backpack.extend(model), backpack.extend(entropy)

    def norms():
        with backpack.backpack(BatchL2Grad()):
            _backward(other, other_entropy, x, labels)()

    return f"{torch.__version__}", {PLAIN: plain, "BackPACK BatchL2Grad": norms}


def _backward(model, entropy, x, labels):
    def step():
        model.zero_grad(set_to_none=True)
        entropy(model(x), labels).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small models, few rounds")
    parser.add_argument("--worker", choices=["torch", "jax"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        load = {"torch": _torch_jobs, "jax": _jax_jobs}[options.worker]
        worker.serve(lambda name: load(name, options.quick))
        return
    print(table(measure(list(SIZES), options.quick, 3 if options.quick else 15), COLUMNS))


if __name__ == "__main__":
    main()
