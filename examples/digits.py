"""Real digits: a perceptron and a small convolutional network, watched during training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxprop as jp

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.images[order] / 16.0).astype(np.float32)
labels = digits.target[order].astype(np.int32)
train, test = slice(0, 1400), slice(1400, None)


def dropout(key, rate, h):
    """Drop units at random; none without a key."""
    if key is None:
        return h
    return jnp.where(jax.random.bernoulli(key, 1 - rate, h.shape), h / (1 - rate), 0)


def perceptron(params, x, key):
    h1 = jax.nn.relu(x.reshape(len(x), -1) @ params["w1"] + params["b1"])
    h2 = jax.nn.relu(dropout(key, 0.2, h1) @ params["w2"] + params["b2"])
    return dropout(key, 0.2, h2) @ params["out"]


def convolutional(params, x, key):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    h1 = jax.nn.relu(convolve(x[..., None], params["w1"]) + params["b1"])
    h2 = jax.nn.relu(convolve(h1, params["w2"]) + params["b2"])
    pooled = jax.lax.reduce_window(h2, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return dropout(key, 0.3, pooled.reshape(len(x), -1)) @ params["out"]


def init(seed, w1, w2, out):
    def normal(key, shape):
        return jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))

    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"w1": w1, "w2": w2, "out": out}
    weights = {name: normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}
    return {**weights, "b1": jnp.zeros(w1[-1]), "b2": jnp.zeros(w2[-1])}


def learn(model, params, epochs):
    """Train; return the test accuracy of each epoch, and what was watched."""

    def loss(params, x, y, key=None):
        logits = model(params, x, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def evaluate(params, x, y):
        logits = model(params, x, None)
        return {
            "loss": optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(),
            "accuracy": jnp.mean(jnp.argmax(logits, axis=1) == y),
        }

    steps = epochs * 28
    state, history = jp.fit(
        loss,
        params,
        (images[train], labels[train]),
        optimizer=optax.adamw(optax.cosine_decay_schedule(4e-3, steps), weight_decay=1e-2),
        epochs=epochs,
        batch_size=50,
        key=0,
        evaluation=jp.train.Evaluation((images[test], labels[test]), evaluate),
        watch=jp.Watch(nodes=["h1", "h2"], every=100),
        progress=False,
    )
    accuracy = history["eval_accuracy"][~np.isnan(history["eval_accuracy"])]
    for name in ("h1", "h2"):
        zeros, norms = history.watched[name].value.zeros, history.watched[name].cotangent.norm
        print(
            f"  {name}: {zeros[0]:.0%} zeros in the first watched step, {zeros[-1]:.0%} in the last;"
            f" |d loss / d {name}| {norms[0]:.1e}, {norms[-1]:.1e}"
        )
    print(f"  test accuracy {accuracy[0]:.1%} after one epoch, {accuracy[-1]:.1%} after {epochs}")
    return accuracy, history.watched


print("perceptron")
flat, watched = learn(perceptron, init(0, (64, 128), (128, 64), (64, 10)), epochs=30)
print("convolutional network")
deep, _ = learn(convolutional, init(1, (3, 3, 1, 16), (3, 3, 16, 16), (256, 10)), epochs=16)
assert flat[-1] > 0.98 and deep[-1] > 0.98
assert int(watched["h1"].cotangent.nonfinite.sum()) == 0
