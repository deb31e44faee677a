"""The lesson's loop in one call: fit y = w x until w = 2, with the loss on training and test data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop as jp

x = jax.random.normal(jax.random.key(0), (100,))
y = 2.0 * x
train, test = (x[:50], y[:50]), (x[50:], y[50:])


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return jnp.mean(s**2)


# The step of the worked example by hand: w = 1, x = 1, y = 2.
step = jp.make_step(loss, optax.sgd(0.01))
state, metrics = step(step.init(1.0), jnp.ones(1), 2.0 * jnp.ones(1))
print(f"loss {metrics.loss:.2f}, and w goes from 1 to {state.params:.2f}")
assert abs(state.params - 1.02) < 1e-6

# And all of them, until the loss is practically zero.
state, history = jp.fit(
    loss,
    params=1.0,
    data=train,
    optimizer=optax.sgd(0.01),
    steps=10_000,
    until=jp.train.below("loss", 1e-10),
    evaluation=test,
    progress=False,
)
for row in np.flatnonzero(~np.isnan(history["eval_loss"]))[:5]:
    step, train_loss, test_loss = (history[name][row] for name in ("step", "loss", "eval_loss"))
    print(f"step {step:3}  train loss {train_loss:.2e}  test loss {test_loss:.2e}")
print(f"{history.stop.message}  w = {state.params:.4f}")
assert abs(state.params - 2.0) < 1e-4
assert history.stop.reason == "until" and history["loss"][-1] < 1e-10
