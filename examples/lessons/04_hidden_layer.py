# %% [markdown]
# # 4. One hidden layer, every derivative
#
# A network with two inputs, two hidden units and one output, written out in full: `z_i = w_i1 x_1 + w_i2 x_2 + b_i`,
# `a_i = sigmoid(z_i)`, `y_hat = v_1 a_1 + v_2 a_2 + c`, `L = (y_hat - y)**2`.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import jaxprop as jp


def network(p, x1, x2, y):
    z1 = p["w11"] * x1 + p["w12"] * x2 + p["b1"]
    z2 = p["w21"] * x1 + p["w22"] * x2 + p["b2"]
    a1 = jax.nn.sigmoid(z1)
    a2 = jax.nn.sigmoid(z2)
    y_hat = p["v1"] * a1 + p["v2"] * a2 + p["c"]
    L = (y_hat - y) ** 2
    return L


names = ("w11", "w12", "w21", "w22", "b1", "b2", "v1", "v2", "c")
p = dict(zip(names, map(float, (0.15, 0.2, 0.25, 0.3, 0.35, 0.35, 0.4, 0.45, 0.6)), strict=True))
x1, x2, y = 0.05, 0.1, 0.99
tape = jp.backprop(network)(p, x1, x2, y)

# %%
jp.draw(tape)

# %% [markdown]
# ## How each unit depends on its weights
#
# `dz_i/dw_ij = x_j`, and `dz_i/db_i = 1`.

# %%
for z, wrt, expected in [
    *(("z1", name, value) for name, value in [("w11", x1), ("w12", x2), ("b1", 1.0)]),
    *(("z2", name, value) for name, value in [("w21", x1), ("w22", x2), ("b2", 1.0)]),
]:
    local = float(tape.local(z, wrt=f"p['{wrt}']"))
    print(f"d{z}/d{wrt} = {local:g}")
    assert np.isclose(local, expected)

# %% [markdown]
# ## How the loss depends on each weight
#
# Multiply the local gradients along the path through the hidden unit: `dL/dw_ij = dL/dy_hat * v_i * a_i (1 - a_i) * x_j`.
# The factor in the middle is the derivative of the sigmoid, and jaxprop writes it the same way.

# %%
print(jp.formula(tape.local("a1", wrt="z1")))
a1, a2 = (float(tape[name].value) for name in ("a1", "a2"))
dy = 2 * (float(tape["y_hat"].value) - y)
closed = {
    "w11": dy * p["v1"] * a1 * (1 - a1) * x1,
    "w12": dy * p["v1"] * a1 * (1 - a1) * x2,
    "w21": dy * p["v2"] * a2 * (1 - a2) * x1,
    "w22": dy * p["v2"] * a2 * (1 - a2) * x2,
    "b1": dy * p["v1"] * a1 * (1 - a1),
    "b2": dy * p["v2"] * a2 * (1 - a2),
    "v1": dy * a1,
    "v2": dy * a2,
    "c": dy,
}
for name, expected in closed.items():
    print(f"dL/d{name} = {float(tape.grads[name]):+.6f}    by hand {expected:+.6f}")
    assert np.isclose(float(tape.grads[name]), expected, rtol=1e-4)

# %% [markdown]
# With matrices, the same network is a graph with fewer nodes, and the formulas are the ones in textbooks.


# %%
def by_matrices(p, x, y):
    z = p["W"] @ x + p["b"]
    a = jax.nn.sigmoid(z)
    y_hat = p["v"] @ a + p["c"]
    L = (y_hat - y) ** 2
    return L


matrices = {
    "W": jnp.array([[p["w11"], p["w12"]], [p["w21"], p["w22"]]]),
    "b": jnp.array([p["b1"], p["b2"]]),
    "v": jnp.array([p["v1"], p["v2"]]),
    "c": p["c"],
}
tape = jp.backprop(by_matrices)(matrices, jnp.array([x1, x2]), y)
for of, wrt in [("L", "y_hat"), ("y_hat", "a"), ("a", "z")]:
    print(jp.formula(tape.local(of, wrt=wrt)))
print(tape.grads["W"])
assert np.allclose(tape.grads["W"], [[closed["w11"], closed["w12"]], [closed["w21"], closed["w22"]]], rtol=1e-4)
