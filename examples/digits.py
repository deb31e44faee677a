"""A network on real digits, watched from inside the compiled step: which layer's units die, and when."""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import jaxprop as jp

digits = load_digits()
images = jnp.asarray(digits.data / 16.0, jnp.float32)
labels = jnp.asarray(digits.target)
train, test = slice(0, 1200), slice(1200, None)


def logits_of(params, x):
    h1 = jax.nn.relu(x @ params["w1"] + params["b1"])
    h2 = jax.nn.relu(h1 @ params["w2"] + params["b2"])
    return h2 @ params["w3"]


def loss(params, x, y):
    logits = logits_of(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


keys = jax.random.split(jax.random.key(0), 3)
params = {
    "w1": jax.random.normal(keys[0], (64, 64)) * 0.2,
    "b1": jnp.zeros(64),
    "w2": jax.random.normal(keys[1], (64, 64)) * 0.2,
    "b2": jnp.zeros(64),
    "w3": jax.random.normal(keys[2], (64, 10)) * 0.2,
}
optimizer = optax.sgd(0.3)
opened = jp.backprop(loss, nodes=["h1", "h2", "logits"], record=jp.summary)


@jax.jit
def step(params, state, x, y):
    tape = opened(params, x, y)  # ordinary outputs: no callback, nothing to switch off
    updates, state = optimizer.update(tape.grads, state)
    return optax.apply_updates(params, updates), state, tape


state = optimizer.init(params)
for i in range(401):
    params, state, tape = step(params, state, images[train], labels[train])
    if i % 100 == 0:
        print(
            f"step {i:3}  loss {float(tape.value):.3f}"
            f"  units at zero: h1 {float(tape['h1'].value.zeros):.0%}, h2 {float(tape['h2'].value.zeros):.0%}"
            f"  |d loss/d h1| {float(tape['h1'].cotangent.norm):.2e}"
        )

accuracy = jnp.mean(jnp.argmax(logits_of(params, images[test]), axis=1) == labels[test])
print(f"test accuracy {float(accuracy):.1%}")
assert accuracy > 0.9
assert int(tape["h1"].cotangent.nonfinite) == 0
