"""The norm of every intermediate gradient: PyTorch's hooks and `retain_grad` compared with `jp.summary`.

The same MLP and transformer in both, on the CPU with the same number of threads. Each framework has its own
process, and they take turns, since in one process they compete for the cores. What is compared is the ratio of
each framework to its own plain step.

    python -m benchmarks.torch_hooks [--quick]
"""

import argparse
import importlib.util
from typing import Any

from . import worker
from .machine import cores

COLUMNS = {
    "model": "model",
    "framework": "framework",
    "what": "what",
    "told": "norms|d",
    "run_ms": "ms|.2f",
    "run": "ratio to its own step|.2f",
    "run_min": "(of minima)|.2f",
}

SIZES = {  # the sizes of benchmarks.models
    "mlp": {"batch": 256, "widths": (64, 256, 256, 10)},
    "transformer": {
        **{"layers": 6, "batch": 8, "length": 128},
        **{"width": 256, "heads": 8, "vocab": 512},
    },
}
QUICK = {
    "mlp": SIZES["mlp"],
    "transformer": {
        **{"layers": 2, "batch": 2, "length": 32},
        **{"width": 32, "heads": 2, "vocab": 64},
    },
}


def measure(models: list[str], quick: bool, rounds: int) -> list[dict[str, Any]]:
    """The rows of the table; the frameworks are measured in turns."""
    return worker.measure(__spec__.name, ("torch", "jax"), models, quick, rounds, base="plain step")


def available() -> bool:
    """Whether PyTorch can be imported here."""
    return importlib.util.find_spec("torch") is not None


def _jax_jobs(name, sizes):
    """Each job runs a step, waits for it, and returns the number of norms."""
    import jax
    import jax.numpy as jnp

    import jaxprop as jp

    from .models import MODELS

    model = MODELS[name](**sizes)

    def norm(local, out_cts):
        return [jnp.sqrt(jnp.sum(jnp.square(ct))) for ct in out_cts if ct is not None]

    norms = jp.Recorder(backward=norm)
    plain = jax.jit(jax.value_and_grad(model.loss))
    only_norms = jax.jit(jp.backprop(model.loss, record=norms))
    summary = jax.jit(jp.backprop(model.loss, record=jp.summary))

    def none():
        jax.block_until_ready(plain(*model.args))
        return 0

    def tape(step, count):
        def job():
            return count(jax.block_until_ready(step(*model.args)))

        return job

    return jax.__version__, {
        "plain step": none,
        "jp.backprop, norms": tape(only_norms, lambda t: sum(len(e.backward or ()) for e in t)),
        "jp.summary": tape(summary, lambda t: sum(e.cotangent is not None for e in t)),
    }


def _torch_jobs(name, sizes):
    """Each job runs a step and returns the number of norms."""
    import warnings

    import torch

    # The hook of a module whose input has no gradient fires at its output, which is what we want here.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    model, args = torch_model(name, **sizes)
    parts = [part for part in model.modules() if not list(part.children())]

    def step():
        model.zero_grad(set_to_none=True)
        model(*args).backward()

    def plain():
        step()
        return 0

    def hooks():
        found = []

        def hook(part, grad_in, grad_out):
            found.extend(g.norm() for g in grad_out if g is not None)

        handles = [part.register_full_backward_hook(hook) for part in parts]
        step()
        for handle in handles:
            handle.remove()
        return len(found)

    def retain():
        kept = []

        def hook(part, args, out):
            out.retain_grad()
            kept.append(out)

        handles = [part.register_forward_hook(hook) for part in parts]
        step()
        for handle in handles:
            handle.remove()
        return len([out.grad.norm() for out in kept if out.grad is not None])

    return torch.__version__.split("+")[0], {
        "plain step": plain,
        "full backward hooks": hooks,
        "retain_grad": retain,
    }


def torch_model(name, **sizes):
    """The model of `benchmarks.models`, with a module for each operation, so that hooks see all of them."""
    import torch
    from torch import nn

    class Op(nn.Module):
        """An operation without parameters as a module."""

        def __init__(self, function):
            super().__init__()
            self.function = function

        def forward(self, *args):
            return self.function(*args)

    class Mlp(nn.Module):
        def __init__(self, batch, widths):
            super().__init__()
            layers = []
            for m, n in zip(widths, widths[1:], strict=False):
                layers += [nn.Linear(m, n), nn.ReLU()]
            self.layers, self.loss = nn.Sequential(*layers[:-1]), Op(nn.functional.cross_entropy)

        def forward(self, x, labels):
            return self.loss(self.layers(x), labels)

    class Block(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.proj = nn.Linear(width, width, bias=False)
            self.up = nn.Linear(width, 4 * width, bias=False)
            self.down = nn.Linear(4 * width, width, bias=False)
            self.gelu, self.softmax = nn.GELU(approximate="tanh"), nn.Softmax(-1)
            size = (width // heads) ** -0.5
            self.scores = Op(lambda q, k: size * torch.einsum("bqhd,bkhd->bhqk", q, k))
            self.mask = Op(lambda scores, seen: torch.where(seen, scores, -1e9))
            self.mix = Op(lambda w, v: torch.einsum("bhqk,bkhd->bqhd", w, v))
            self.add1, self.add2 = Op(torch.add), Op(torch.add)

        def forward(self, x, seen):
            batch, length, width = x.shape
            qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, -1)
            q, k, v = qkv.unbind(2)
            weights = self.softmax(self.mask(self.scores(q, k), seen))
            x = self.add1(x, self.proj(self.mix(weights, v).reshape(batch, length, width)))
            return self.add2(x, self.down(self.gelu(self.up(self.norm2(x)))))

    class Transformer(nn.Module):
        def __init__(self, layers, batch, length, width, heads, vocab):
            super().__init__()
            self.embed = nn.Embedding(vocab, width)
            self.place = nn.Parameter(torch.zeros(length, width))
            self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
            self.out = nn.Linear(width, vocab, bias=False)
            self.loss = Op(nn.functional.cross_entropy)
            self.register_buffer("seen", torch.ones(length, length, dtype=torch.bool).tril())

        def forward(self, tokens):
            x = self.embed(tokens[:, :-1]) + self.place
            for block in self.blocks:
                x = block(x, self.seen)
            return self.loss(self.out(x).flatten(0, 1), tokens[:, 1:].flatten())

    if name == "mlp":
        batch = sizes["batch"]
        return Mlp(**sizes), (torch.randn(batch, 64), torch.randint(10, (batch,)))
    tokens = torch.randint(sizes["vocab"], (sizes["batch"], sizes["length"] + 1))
    return Transformer(**sizes), (tokens,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small transformer, few rounds")
    parser.add_argument("--rounds", type=int, help="how often each framework is timed")
    parser.add_argument("--worker", choices=["torch", "jax"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        sizes = QUICK if options.quick else SIZES
        load = {"torch": _torch_jobs, "jax": _jax_jobs}[options.worker]
        worker.serve(lambda name: load(name, sizes[name]))
        return
    from .timing import table

    rounds = options.rounds or (3 if options.quick else 15)
    print(table(measure(list(SIZES), options.quick, rounds), COLUMNS))


if __name__ == "__main__":
    main()
