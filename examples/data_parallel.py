"""Digits on eight devices: the script for one device with one more argument."""

import os

# Simulate eight devices on a CPU; set before JAX is imported. Leave this out on a machine with GPUs or TPUs.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxprop as jp
from jaxprop.train import Evaluation, data_parallel, fully_sharded

digits = load_digits()
images, labels = (digits.data / 16.0).astype(np.float32), digits.target.astype(np.int32)
order = np.random.default_rng(0).permutation(len(images))
train, test = order[:1440], order[1440:]


def logits_of(params, x):
    h = jax.nn.relu(x @ params["w1"] + params["b1"])
    return h @ params["w2"] + params["b2"]


def loss(params, x, y):
    logits = logits_of(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params, x, y):
    return {"accuracy": jnp.mean(jnp.argmax(logits_of(params, x), axis=1) == y)}


keys = jax.random.split(jax.random.key(0))
params = {
    "w1": jax.random.normal(keys[0], (64, 128)) * 0.1,
    "b1": jnp.zeros(128),
    "w2": jax.random.normal(keys[1], (128, 10)) * 0.1,
    "b2": jnp.zeros(10),
}


def run(sharding):
    return jp.fit(
        loss,
        params,
        (images[train], labels[train]),
        optimizer=optax.adam(2e-3),
        epochs=20,
        batch_size=96,
        key=1,
        evaluation=Evaluation((images[test], labels[test]), accuracy),
        sharding=sharding,
        watch=jp.Watch(["h", "logits"], every=100),
        progress=False,
    )


_, alone = run(None)
for name, sharding in {"data parallel": data_parallel(), "fully sharded": fully_sharded()}.items():
    state, history = run(sharding)
    w1 = state.params["w1"]
    apart = np.max(np.abs(history["loss"] - alone["loss"]))
    print(
        f"{name} on {w1.sharding.num_devices} devices: test accuracy {history['eval_accuracy'][-1]:.1%}, "
        f"w1 {w1.shape} in parts of {w1.addressable_shards[0].data.shape}, "
        f"loss curve within {apart:.0e} of that of one device"
    )
    assert w1.sharding.num_devices == 8
    assert history["eval_accuracy"][-1] > 0.96
    assert np.allclose(history["loss"], alone["loss"], rtol=2e-3, atol=1e-4)
    cotangent, expected = (each.watched["h"].cotangent.norm for each in (history, alone))
    assert np.allclose(cotangent, expected, rtol=2e-2)
