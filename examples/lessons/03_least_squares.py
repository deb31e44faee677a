# %% [markdown]
# # 3. Least squares, with its graph
#
# Ordinary least squares fits `y = X b` by minimising the mean squared residual. Its gradient has a closed form,
# `2/n * X.T @ (X b - y)`. Here the chain rule finds it from the local gradients, one for each step of the computation.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import jaxprop as jp

source = np.random.default_rng(0)
X = jnp.asarray(source.normal(size=(50, 2)), jnp.float32)
y = X @ jnp.array([1.5, -0.5]) + 0.1 * jnp.asarray(source.normal(size=50), jnp.float32)


def least_squares(b, X, y):
    fitted = X @ b
    residual = fitted - y
    squares = residual**2
    return jnp.mean(squares)


b = jnp.zeros(2)
tape = jp.backprop(least_squares)(b, X, y)
print(tape)

# %%
jp.draw(tape)

# %% [markdown]
# Each operation has a local gradient, written here as a formula. For a matrix product the formula is in terms of
# cotangents: `db` is the cotangent of `b`, and `dfitted` the cotangent of `fitted`.

# %%
for of, wrt in [("squares", "residual"), ("residual", "fitted"), ("fitted", "b")]:
    print(jp.formula(tape.local(of, wrt=wrt)))

# %%
closed_form = 2 / len(y) * X.T @ (X @ b - y)
print(tape.grads, closed_form)
assert np.allclose(tape.grads, closed_form, atol=1e-5)

# %% [markdown]
# Follow the gradient downhill until it vanishes. The result is the solution of the normal equations.

# %%
gradient = jax.jit(jp.grad(least_squares))
for _ in range(300):
    b = b - 0.1 * gradient(b, X, y)
exact = jnp.linalg.lstsq(X, y)[0]
print(b, exact)
assert np.allclose(b, exact, atol=1e-4)
