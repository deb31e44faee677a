"""Eight losses in plain JAX, from one multiplication to a six-layer transformer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Model(NamedTuple):
    """A loss and its arguments; `watch` names one value inside its scan, if it has one."""

    loss: Callable[..., jax.Array]
    args: tuple[Any, ...]
    watch: str | None = None


def _draw(seed):
    """Random float32 arrays, `normal(*shape)`, scaled by the square root of the fan-in."""
    source = np.random.default_rng(seed)

    def normal(*shape):
        scale = shape[0] ** -0.5 if len(shape) > 1 else 0.1
        return jnp.asarray(source.normal(size=shape) * scale, jnp.float32)

    return normal


def _classes(seed, batch, classes):
    return jnp.asarray(np.random.default_rng(seed).integers(classes, size=batch), jnp.int32)


def cross_entropy(logits, labels):
    """Mean of -log p(label); `logits` has the classes last."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[..., None], axis=-1))


def scalar(quick=False):
    """The worked example: (w * x - y)**2."""

    def loss(w, x, y):
        y_hat = w * x
        s = y_hat - y
        return s**2

    return Model(loss, (jnp.float32(1.0), jnp.float32(1.0), jnp.float32(2.0)))


def linear(quick=False):
    """Linear regression: 4,000 rows of 20."""
    normal = _draw(1)

    def loss(params, x, y):
        y_hat = x @ params["w"] + params["b"]
        residual = y_hat - y
        return jnp.mean(residual**2)

    params = {"w": normal(20), "b": jnp.float32(0.0)}
    return Model(loss, (params, normal(4000, 20), normal(4000)))


def mlp(quick=False, batch=256, widths=(64, 256, 256, 10)):
    """A classifier of 8 by 8 images, the size of scikit-learn's digits."""
    normal = _draw(2)
    widths = (64, 32, 10) if quick else widths

    def loss(params, x, labels):
        h = x
        for layer in params[:-1]:
            h = jax.nn.relu(h @ layer["w"] + layer["b"])
        logits = h @ params[-1]["w"] + params[-1]["b"]
        return cross_entropy(logits, labels)

    params = [
        {"w": normal(m, n), "b": jnp.zeros(n, jnp.float32)} for m, n in zip(widths, widths[1:], strict=False)
    ]
    return Model(loss, (params, normal(batch, 64), _classes(2, batch, 10)))


def cnn(quick=False, batch=32):
    """Three convolutions with pooling on 28 by 28 images."""
    normal = _draw(3)
    batch, widths = (4, (1, 4, 8)) if quick else (batch, (1, 16, 32, 32))

    def conv(x, w, b):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims) + b

    def pool(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "SAME")

    def loss(params, x, labels):
        h = x
        for layer in params["conv"]:
            h = pool(jax.nn.relu(conv(h, layer["w"], layer["b"])))
        features = jnp.mean(h, axis=(1, 2))
        logits = features @ params["w"] + params["b"]
        return cross_entropy(logits, labels)

    convs = [
        {"w": normal(3, 3, m, n) / m**0.5, "b": jnp.zeros(n, jnp.float32)}
        for m, n in zip(widths, widths[1:], strict=False)
    ]
    params = {"conv": convs, "w": normal(widths[-1], 10), "b": jnp.zeros(10, jnp.float32)}
    return Model(loss, (params, normal(batch, 28, 28, 1), _classes(3, batch, 10)))


def lstm(quick=False):
    """An LSTM scanned over 64 steps, a class at the end."""
    normal = _draw(4)
    steps, batch, width = (16, 4, 16) if quick else (64, 32, 128)

    def step(params, carry, x):
        h, c = carry
        gates = x @ params["wx"] + h @ params["wh"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), None

    def loss(params, xs, labels):
        start = jnp.zeros((xs.shape[1], width), jnp.float32)
        (h, _), _ = jax.lax.scan(lambda carry, x: step(params, carry, x), (start, start), xs)
        logits = h @ params["out"]
        return cross_entropy(logits, labels)

    params = {
        "wx": normal(32, 4 * width),
        "wh": normal(width, 4 * width),
        "b": jnp.zeros(4 * width, jnp.float32),
        "out": normal(width, 10),
    }
    return Model(loss, (params, normal(steps, batch, 32), _classes(4, batch, 10)), "gates")


def scan(quick=False):
    """A plain recurrence of 256 steps with a loss at each: what opening a scan costs."""
    normal = _draw(5)
    steps, batch, width = (32, 4, 16) if quick else (256, 32, 128)

    def loss(params, xs, ys):
        def body(h, pair):
            x, y = pair
            z = x @ params["wx"] + h @ params["wh"]
            h = jnp.tanh(z)
            error = h @ params["out"] - y
            return h, jnp.mean(error**2)

        start = jnp.zeros((xs.shape[1], width), jnp.float32)
        _, losses = jax.lax.scan(body, start, (xs, ys))
        return jnp.mean(losses)

    params = {"wx": normal(32, width), "wh": normal(width, width), "out": normal(width, 8)}
    return Model(loss, (params, normal(steps, batch, 32), normal(steps, batch, 8)), "z")


def _norm(x, scale, shift):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred**2, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * scale + shift


def _attention(p, x, heads):
    batch, length, width = x.shape
    qkv = (x @ p["qkv"]).reshape(batch, length, 3, heads, width // heads)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // heads) ** -0.5
    seen = jnp.tril(jnp.ones((length, length), bool))
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9), axis=-1)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, length, width)
    return mixed @ p["proj"]


def _block(p, x, heads):
    x = x + _attention(p, _norm(x, p["s1"], p["b1"]), heads)
    hidden = jax.nn.gelu(_norm(x, p["s2"], p["b2"]) @ p["up"])
    return x + hidden @ p["down"]


def _block_params(normal, width):
    ones, zeros = jnp.ones(width, jnp.float32), jnp.zeros(width, jnp.float32)
    return {
        "qkv": normal(width, 3 * width),
        "proj": normal(width, width),
        "up": normal(width, 4 * width),
        "down": normal(4 * width, width),
        **{"s1": ones, "b1": zeros, "s2": ones, "b2": zeros},
    }


def block(quick=False):
    """One transformer block, its output squared."""
    normal = _draw(6)
    batch, length, width, heads = (2, 8, 16, 2) if quick else (8, 64, 128, 4)

    def loss(params, x):
        y = _block(params, x, heads)
        return jnp.mean(y**2)

    return Model(loss, (_block_params(normal, width), normal(batch, length, width)))


def transformer(quick=False, layers=6, batch=8, length=128, width=256, heads=8, vocab=512):
    """A language model of six blocks: some hundreds of milliseconds a step on two cores."""
    normal = _draw(7)
    if quick:
        layers, batch, length, width, heads, vocab = 2, 2, 8, 16, 2, 32

    def loss(params, tokens):
        x = params["embed"][tokens[:, :-1]] + params["place"]
        for p in params["blocks"]:
            x = _block(p, x, heads)
        logits = x @ params["out"]
        return cross_entropy(logits, tokens[:, 1:])

    params = {
        "embed": normal(vocab, width),
        "place": normal(length, width),
        "blocks": [_block_params(normal, width) for _ in range(layers)],
        "out": normal(width, vocab),
    }
    source = np.random.default_rng(7)
    tokens = jnp.asarray(source.integers(vocab, size=(batch, length + 1)), jnp.int32)
    return Model(loss, (params, tokens))


MODELS = {
    "scalar": scalar,
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "lstm": lstm,
    "scan": scan,
    "block": block,
    "transformer": transformer,
}
