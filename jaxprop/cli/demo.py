"""`jaxprop demo`: the worked example of the lessons, then a network trained on real digits."""

import argparse
import importlib.util
from collections.abc import Sequence
from typing import TextIO

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from .._api import backprop
from ..train import Console, Evaluation, Watch, fit
from .command import FINE, Command, Terminal

WIDTHS, TRAIN, BATCH, EPOCHS = (64, 128, 128, 10), 1400, 50, 25
#: The layers, by the variables of `digits_loss`.
LAYERS = ("h1", "h2", "logits")

NEXT_STEPS = """
What to try next, on a function of your own:
  jaxprop explain FILE.py:loss w=1. x=1. y=2.    its chain rule in words and numbers
  jaxprop draw FILE.py:loss ... -o loss.html     its picture, played step by step
  jaxprop diagnose FILE.py:loss ...              where its gradient goes wrong, and the fix
  tape = jaxprop.backprop(loss)(*args)           all of it, as arrays"""

Layer = dict[str, Array]


def _takes_no_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing to the parser."""


def _demo(options: argparse.Namespace, console: Terminal) -> int:
    _worked_example(console.out)
    if importlib.util.find_spec("sklearn") is None:
        console.say("\nFor the second part, on real digits: pip install 'jaxprop-toolkit[demo]'")
    else:
        _digits(console.out)
    return FINE


def worked_loss(w: Float[Array, ""], x: Float[Array, ""], y: Float[Array, ""]) -> Float[Array, ""]:
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
    print(f"one SGD step with learning rate 0.01: w = 1 -> {1.0 - 0.01 * float(tape.grads):g}", file=out)


def _dense(layer: Layer, x: Float[Array, "batch in"]) -> Float[Array, "batch out"]:
    return x @ layer["w"] + layer["b"]


def digits_loss(
    params: Sequence[Layer], images: Float[Array, "batch pixels"], labels: Int[Array, " batch"]
) -> Float[Array, ""]:
    """The cross entropy of a network with two hidden layers, in nats."""
    h1 = jax.nn.relu(_dense(params[0], images))
    h2 = jax.nn.relu(_dense(params[1], h1))
    logits = _dense(params[2], h2)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))


def accuracy(
    params: Sequence[Layer], images: Float[Array, "batch pixels"], labels: Int[Array, " batch"]
) -> dict[str, Float[Array, ""]]:
    """The fraction of digits classified correctly."""
    h = images
    for layer in params[:-1]:
        h = jax.nn.relu(_dense(layer, h))
    correct = jnp.argmax(_dense(params[-1], h), axis=1) == labels
    return {"accuracy": jnp.mean(correct.astype(jnp.float32))}


def init_params(key: Array, widths: Sequence[int] = WIDTHS) -> list[Layer]:
    """Random parameters of a network with layers of these widths (He initialization)."""
    keys = jax.random.split(key, len(widths) - 1)
    return [
        {
            "w": jax.random.normal(key, (n, m)) * np.sqrt(2 / n).astype(np.float32),
            "b": jnp.zeros(m),
        }
        for key, n, m in zip(keys, widths[:-1], widths[1:], strict=True)
    ]


def _digits(out: TextIO) -> None:
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    images, labels = (pixels / 16.0)[order].astype(np.float32), digits[order].astype(np.int32)
    steps = EPOCHS * (TRAIN // BATCH)
    print(f"\n\nA network on {len(labels)} real digits, {len(labels) - TRAIN} of them held out.", file=out)
    out.flush()
    _, history = fit(
        digits_loss,
        init_params(jax.random.key(0)),
        (images[:TRAIN], labels[:TRAIN]),
        optimizer=optax.adam(2e-3),
        epochs=EPOCHS,
        batch_size=BATCH,
        key=0,
        evaluation=Evaluation((images[TRAIN:], labels[TRAIN:]), fn=accuracy, every=steps),
        watch=Watch(nodes=list(LAYERS), every=steps - 1),
        writers=[Console(steps, pause=1.0)],
        progress=False,
    )
    print(f"{steps} compiled steps of optax.adam, watched from inside: first -> last\n", file=out)
    print(f"{'':10}{'rms of value':>20}{'zeros':>16}{'|cotangent|':>24}{'|gradient of w|':>24}", file=out)
    for number, name in enumerate(LAYERS):
        value, cotangent = history.watched[name].value, history.watched[name].cotangent
        gradient = history.watched.leaves[f"params[{number}]['w']"].grad
        print(
            f"{name:10}{_first_and_last(value.rms, '.3f'):>20}{_first_and_last(value.zeros, '.0%'):>16}"
            f"{_first_and_last(cotangent.norm, '.2e'):>24}{_first_and_last(gradient, '.2e'):>24}",
            file=out,
        )
    losses, held_out = history["loss"], history["eval_accuracy"][-1]
    print(f"\nloss {losses[0]:.3f} -> {losses[-1]:.3f}, test accuracy {held_out:.1%}", file=out)
    print(NEXT_STEPS, file=out)


def _first_and_last(numbers: np.ndarray, form: str) -> str:
    """The first and the last of several numbers."""
    return f"{float(numbers[0]):{form}} -> {float(numbers[-1]):{form}}"


demo = Command(
    name="demo",
    help="open the backward pass of one line of code, and of a network on real digits",
    examples="jaxprop demo",
    configure=_takes_no_arguments,
    run=_demo,
)
