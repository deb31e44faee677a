"""What `jaxprop demo` shows: the worked example of the lessons, then a network on real data."""

import importlib
import importlib.util
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np

from ._api import backprop
from ._summary import summary
from ._tape import Tape


def run(out: TextIO) -> None:
    """Write the demonstration."""
    _worked_example(out)
    if importlib.util.find_spec("sklearn") is None:
        print("\nFor the second part, on real digits: pip install 'jaxprop-toolkit[demo]'", file=out)
        return
    _digits(out)


def worked_loss(w: Any, x: Any, y: Any) -> Any:
    """The squared error of a line through the origin."""
    y_hat = w * x
    s = y_hat - y
    return s**2


def _worked_example(out: TextIO) -> None:
    tape = backprop(worked_loss)(1.0, 1.0, 2.0)
    print("One weight, w = 1, and one example, x = 1, y = 2.\n", file=out)
    print(tape, file=out)
    print("\nlocal gradients", file=out)
    for of, wrt in (("y_hat", "w"), ("s", "y_hat"), ("worked_loss", "s")):
        print(f"  {tape.local(of, wrt)}", file=out)
    print(f"their product, the gradient of w: {float(tape.grads):g}", file=out)
    print(f"one step of SGD, 0.01 of it: w = 1 -> {1.0 - 0.01 * float(tape.grads):g}", file=out)


def _dense(layer: dict[str, Any], x: Any) -> Any:
    return x @ layer["w"] + layer["b"]


def digits_loss(params: list[dict[str, Any]], images: Any, labels: Any) -> Any:
    """The cross entropy of a network with two hidden layers."""
    h1 = jax.nn.relu(_dense(params[0], images))
    h2 = jax.nn.relu(_dense(params[1], h1))
    logits = _dense(params[2], h2)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def _digits(out: TextIO) -> None:
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    images = jnp.asarray(digits.data / 16.0, jnp.float32)
    labels = jnp.asarray(digits.target, jnp.int32)
    params = _init(jax.random.key(0), (64, 128, 128, 10))
    opened = jax.jit(backprop(digits_loss, record=summary))

    @jax.jit
    def step(params: Any) -> Any:
        grads = jax.grad(digits_loss)(params, images, labels)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)

    first = opened(params, images, labels)
    for _ in range(300):
        params = step(params)
    last = opened(params, images, labels)
    print(f"\nA network on {len(labels)} real digits, 300 steps of SGD, watched from inside.", file=out)
    print(f"loss {float(first.value):.3f} -> {float(last.value):.3f}\n", file=out)
    print(f"{'':10}{'rms of value':>24}{'dead':>18}{'norm of cotangent':>28}", file=out)
    for name in ("h1", "h2", "logits"):
        print(_row(name, first, last), file=out)


def _init(key: Any, widths: tuple[int, ...]) -> list[dict[str, Any]]:
    keys = jax.random.split(key, len(widths))
    return [
        {
            "w": jax.random.normal(key, (n, m)) * np.sqrt(2 / n).astype(np.float32),
            "b": jnp.zeros(m),
        }
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def _row(name: str, first: Tape, last: Tape) -> str:
    def change(pick: Any, form: str) -> str:
        return " -> ".join(format(float(pick(tape[name])), form) for tape in (first, last))

    return (
        f"{name:10}{change(lambda e: e.value.rms, '.3f'):>24}"
        f"{change(lambda e: e.value.zeros, '.0%'):>18}"
        f"{change(lambda e: e.cotangent.norm, '.2e'):>28}"
    )
