# %% [markdown]
# # 7. To the optimal weight
#
# Training repeats three things: the forward pass, the backward pass, the update. In PyTorch the update changes the weight in
# place under `no_grad`, and the gradient has to be set to zero. Here a step is a pure function from the old state to the
# new one, compiled once.

# %%
import optax

import jaxprop as jp


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


step = jp.make_step(loss, optax.sgd(0.01))
state = step.init(1.0)
state, metrics = step(state, 1.0, 2.0)
print(f"w = {float(state.params):.2f} after one step; before it, the loss was {float(metrics.loss):.2f}")
assert abs(float(state.params) - 1.02) < 1e-6

# %% [markdown]
# Repeat it. Each step moves the weight 2 % closer to `w = 2`, where the loss is zero.

# %%
weights = [1.0]
for _ in range(600):
    weights.append(float(state.params))
    state, metrics = step(state, 1.0, 2.0)
for i in (0, 1, 10, 100, 600):
    print(f"after {i:3d} steps  w = {weights[i]:.4f}  loss = {(weights[i] - 2) ** 2:.6f}")
assert abs(weights[-1] - 2.0) < 1e-4
assert abs(weights[100] - (2 - 0.98**100)) < 1e-4  # the closed form

# %% [markdown]
# `jp.fit` is the same loop, compiled as a whole. It keeps a history, and stops at a tolerance.

# %%
state, history = jp.fit(
    loss,
    1.0,
    (1.0, 2.0),
    optimizer=optax.sgd(0.01),
    steps=2000,
    until=jp.train.below("loss", 1e-10),
    progress=False,
)
print(f"w = {float(state.params):.5f} after {len(history['loss'])} steps")
