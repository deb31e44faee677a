"""What `jaxprop demo` shows: the worked example of the lessons, then a network on real data."""

import importlib
import importlib.util
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._api import backprop
from ..train import Console, Evaluation, Watch, fit

WIDTHS, TRAIN, BATCH, EPOCHS = (64, 128, 128, 10), 1400, 50, 25
#: The layers, by the variables of `digits_loss`.
LAYERS = ("h1", "h2", "logits")

NEXT = """
What to try next, on a function of your own:
  jaxprop explain FILE.py:loss w=1. x=1. y=2.    its chain rule in words and numbers
  jaxprop draw FILE.py:loss ... -o loss.html     its picture, played step by step
  jaxprop diagnose FILE.py:loss ...              where its gradient goes wrong, and the fix
  tape = jaxprop.backprop(loss)(*args)           all of it, as arrays"""


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


def accuracy(params: list[dict[str, Any]], images: Any, labels: Any) -> dict[str, Any]:
    """The fraction of digits named rightly."""
    h = images
    for layer in params[:-1]:
        h = jax.nn.relu(_dense(layer, h))
    right = jnp.argmax(_dense(params[-1], h), axis=1) == labels
    return {"accuracy": jnp.mean(right.astype(jnp.float32))}


def _digits(out: TextIO) -> None:
    digits: Any = importlib.import_module("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = (digits.data / 16.0)[order].astype(np.float32), digits.target[order].astype(np.int32)
    params = _init(jax.random.key(0), WIDTHS)
    steps = EPOCHS * (TRAIN // BATCH)
    print(f"\n\nA network on {len(labels)} real digits, {len(labels) - TRAIN} of them held out.", file=out)
    out.flush()
    _, history = fit(
        digits_loss,
        params,
        (images[:TRAIN], labels[:TRAIN]),
        optimizer=optax.adam(2e-3),
        epochs=EPOCHS,
        batch_size=BATCH,
        key=0,
        evaluation=Evaluation((images[TRAIN:], labels[TRAIN:]), accuracy, every=steps),
        watch=Watch(nodes=list(LAYERS), every=steps - 1),
        writers=[Console(steps, pause=1.0)],
        progress=False,
    )
    print(f"{steps} compiled steps of optax.adam, watched from inside: first -> last\n", file=out)
    print(f"{'':10}{'rms of value':>20}{'dead':>16}{'|cotangent|':>24}{'|gradient of w|':>24}", file=out)
    for number, name in enumerate(LAYERS):
        print(_row(name, history.watched[name], history.watched.leaves[f"params[{number}]['w']"]), file=out)
    losses, held_out = history["loss"], history["eval_accuracy"][-1]
    print(f"\nloss {losses[0]:.3f} -> {losses[-1]:.3f}, test accuracy {held_out:.1%}", file=out)
    print(NEXT, file=out)


def _init(key: Any, widths: tuple[int, ...]) -> list[dict[str, Any]]:
    keys = jax.random.split(key, len(widths))
    return [
        {
            "w": jax.random.normal(key, (n, m)) * np.sqrt(2 / n).astype(np.float32),
            "b": jnp.zeros(m),
        }
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=False)
    ]


def _row(name: str, track: Any, leaf: Any) -> str:
    def change(numbers: Any, form: str) -> str:
        return " -> ".join(format(float(x), form) for x in (numbers[0], numbers[-1]))

    return (
        f"{name:10}{change(track.value.rms, '.3f'):>20}{change(track.value.zeros, '.0%'):>16}"
        f"{change(track.cotangent.norm, '.2e'):>24}{change(leaf.grad, '.2e'):>24}"
    )
