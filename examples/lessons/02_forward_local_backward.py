# %% [markdown]
# # 2. Forward pass, local gradients, backward pass
#
# A model with one weight predicts `y_hat = w * x`. Its loss is the squared error. For `x = 1`, `y = 2` and an initial
# weight of `w = 1`, how should the weight change? Backpropagation answers in three steps.

# %%
import jax

import jaxprop as jp


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


w, x, y = 1.0, 1.0, 2.0

# %% [markdown]
# ## By hand
#
# 1. **Forward pass.** Compute the values: `y_hat = 1`, `s = -1`, `loss = 1`.
# 2. **Local gradients.** `dloss/ds = 2s = -2`, `ds/dy_hat = 1`, `dy_hat/dw = x = 1`. The input `x` and the target `y` are
#    data, so their gradients are not needed.
# 3. **Backward pass.** Multiply, from the end to the start: `dloss/dy_hat = -2 * 1 = -2`, `dloss/dw = -2 * 1 = -2`.
#
# ## With jaxprop

# %%
tape = jp.backprop(loss)(w, x, y)
print(jp.explain(tape, to="w"))

# %% [markdown]
# The same as a picture, with the values, the cotangents, and the local gradients on the edges.

# %%
jp.draw(tape)

# %% [markdown]
# The gradient is negative, so a larger weight makes the loss smaller. One step of gradient descent:

# %%
w = w - 0.01 * float(tape.grads)
print(w)
assert abs(w - 1.02) < 1e-6
assert float(tape.grads) == float(jax.grad(loss)(1.0, x, y)) == -2.0

# %% [markdown]
# In PyTorch a second backward pass adds to `w.grad`, so the training loop has to set it to zero. Here nothing accumulates:
# call the function again, and it returns the gradient at the new weight.

# %%
print(jp.backprop(loss)(w, x, y).grads)
