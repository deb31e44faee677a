"""Norms and clipped sums of the gradients of single examples, compared with `vmap` of `grad`.

Beside them `jax_privacy`, and in PyTorch BackPACK and Opacus, as far as they are installed.

Each framework's figures are ratios to its own plain gradient; memory is the peak of the compiled program.

    python -m benchmarks.per_example [--quick]
"""

import argparse
import copy
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
SIZES = {"mlp": {"batch": 256}, "cnn": {"batch": 256}, "lstm": {}, "transformer": {}}
IN_AXES = {"lstm": (1, 0)}  # steps first
PLAIN = "plain gradient"
BOUND = 0.5  # some examples are clipped, some are not


def measure(models: Sequence[str], quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the table."""
    rows = []
    for name in SIZES:
        beside = ["torch"] if torch_available() and name in ("mlp", "cnn") else []
        if name in models:
            rows += worker.measure(__spec__.name, ["jax", *beside], [name], quick, rounds, base=PLAIN)
    return rows


def torch_available() -> bool:
    """Return whether PyTorch is installed."""
    return _installed("torch")


def missing() -> list[str]:
    """Return what is not installed and so not measured."""
    return [name for name in ("jax_privacy", "torch", "backpack", "opacus") if not _installed(name)]


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _jax_jobs(name: str, quick: bool) -> tuple[str, worker.Jobs]:
    model = MODELS[name](quick=quick) if quick else MODELS[name](**SIZES[name])
    params, *batch = model.args

    in_axes = IN_AXES.get(name, (0,) * len(batch))

    def one(params, *example):
        return model.loss(params, *map(jnp.expand_dims, example, in_axes))

    def squares(params, *batch):
        grads = jax.vmap(jax.grad(one), in_axes=(None, *in_axes))(params, *batch)
        return grads, jax.tree.map(lambda g: jnp.sum(g**2, axis=tuple(range(1, g.ndim))), grads)

    def norms_by_vmap(params, *batch):
        return jax.tree.map(jnp.sqrt, squares(params, *batch)[1])

    def clipped_by_vmap(params, *batch):
        grads, parts = squares(params, *batch)
        weights = jnp.minimum(1, BOUND / jnp.sqrt(sum(jax.tree.leaves(parts))))
        return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1) / len(weights), grads)

    def norms(params, *batch):
        found = jp.per_example(model.loss, in_axes=in_axes)(params, *batch)
        return found.value, found.grads, found.norms

    def clipped(params, *batch):
        found = jp.per_example(model.loss, in_axes=in_axes, clip=BOUND)(params, *batch)
        return found.value, found.grads, found.norms

    functions = {
        PLAIN: jax.value_and_grad(model.loss),
        "norms": norms,
        "clipped": clipped,
        "norms, vmap(grad)": norms_by_vmap,
        "clipped, vmap(grad)": clipped_by_vmap,
    }
    if _installed("jax_privacy") and name not in IN_AXES:
        functions["clipped, jax_privacy"] = _by_jax_privacy(model.loss, len(batch))
    compiled = {what: jax.jit(fun).lower(params, *batch).compile() for what, fun in functions.items()}
    peak = {what: _peak(program) for what, program in compiled.items()}

    def job(what):
        def run():
            jax.block_until_ready(compiled[what](params, *batch))
            return peak[what] / peak[PLAIN]

        return run

    return jax.__version__, {what: job(what) for what in functions}


def _by_jax_privacy(loss: Any, arguments: int) -> Any:
    from jax_privacy.clipping import clipped_grad

    return clipped_grad(loss, l2_clip_norm=BOUND, batch_argnums=tuple(range(1, arguments + 1)))


def _peak(program: Any) -> int:
    memory = program.memory_analysis()
    return memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes


def _torch_jobs(name: str, quick: bool) -> tuple[str, worker.Jobs]:
    """The same MLP and CNN in PyTorch."""
    import torch
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
    jobs = {PLAIN: _backward(model, entropy, x, labels)}
    if _installed("backpack"):
        jobs["norms, BackPACK"] = _by_backpack(copy.deepcopy(model), x, labels)
    if _installed("opacus"):
        jobs["clipped, Opacus ghost"] = _by_opacus(copy.deepcopy(model), x, labels)
    return f"{torch.__version__}", jobs


def _by_backpack(model, x, labels):
    import backpack
    from backpack.extensions import BatchL2Grad
    from torch import nn

    model, entropy = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())

    def norms():
        with backpack.backpack(BatchL2Grad()):
            _backward(model, entropy, x, labels)()

    return norms


def _by_opacus(model, x, labels):
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
    from torch import nn

    model = GradSampleModuleFastGradientClipping(model, max_grad_norm=BOUND, use_ghost_clipping=True)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), 0.0),
        noise_multiplier=0.0,
        max_grad_norm=BOUND,
        expected_batch_size=len(x),
    )
    entropy = DPLossFastGradientClipping(model, optimizer, nn.CrossEntropyLoss(), "mean")

    def clipped():
        optimizer.zero_grad(set_to_none=True)
        entropy(model(x), labels).backward()

    return clipped


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
