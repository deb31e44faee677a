# %% [markdown]
# # 5. Vectors, matrices, and double precision
#
# A gradient has the shape of the argument it belongs to. The function itself returns one number. If it returns several,
# you choose the weights with which they are added up.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import jaxprop as jp

# %% [markdown]
# ## A number


# %%
def square(x):
    return x**2


tape = jp.backprop(square)(4.0)
print(tape.value, tape.grads)
assert (float(tape.value), float(tape.grads)) == (16.0, 8.0)

# %% [markdown]
# ## A vector: `y = mean(x**2 + 2x + 1)` has the gradient `(2x + 2) / n`


# %%
def parabola(x):
    terms = x**2 + 2 * x + 1
    return terms.mean()


x = jnp.arange(10.0)
tape = jp.backprop(parabola)(x)
print(jp.formula(tape.local("terms", wrt="x")))
print(tape.grads)
assert np.allclose(tape.grads, (2 * x + 2) / 10)

# %% [markdown]
# ## A matrix: `z = sum(X**3 + X**2)` has the gradient `3 X**2 + 2 X`


# %%
def cubic(X):
    y = X**3 + X**2
    return y.sum()


X = jnp.array([[2.0, 3.0, 1.0], [4.0, 5.0, 3.0], [7.0, 6.0, 4.0]])
tape = jp.backprop(cubic)(X)
print(jp.formula(tape.local("y", wrt="X")))
print(tape.value)
print(tape.grads)
assert float(tape.value) == 1040.0
assert tape.grads.tolist() == [[16, 33, 5], [56, 85, 33], [161, 120, 56]]

# %% [markdown]
# Without the sum there is no single number to differentiate. The error says so, and what to do about it.


# %%
def not_a_number(X):
    return X**3 + X**2


try:
    jp.backprop(not_a_number)(X)
except TypeError as error:
    print(error)

# %% [markdown]
# A cotangent holds one weight for each output. With weights of one, the result is the gradient of the sum again.

# %%
tape = jp.backprop(not_a_number, cotangent=jnp.ones((3, 3)))(X)
assert tape.grads.tolist() == [[16, 33, 5], [56, 85, 33], [161, 120, 56]]

# %% [markdown]
# ## Double precision
#
# The gradient of `log(x)` is `1/x`. It is computed in the precision of `x`.

# %%
with jax.enable_x64(True):
    x = jnp.array([[2.0, 6.0], [3.0, 7.0], [9.0, 8.0]], jnp.float64)
    tape = jp.backprop(lambda x: jnp.log(x).sum())(x)
    print(tape.grads.dtype)
    print(tape.grads)
    assert np.array_equal(tape.grads, 1 / np.asarray(x))

# %% [markdown]
# Integers have no derivative, because a small change of an integer is not an integer.

# %%
try:
    jp.backprop(lambda x: jnp.log(x).sum())(jnp.array([[2, 6], [3, 7], [9, 8]]))
except TypeError as error:
    print(error)
