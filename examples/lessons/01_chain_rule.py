# %% [markdown]
# # 1. The chain rule
#
# Take two functions, one after the other: `y = f(x)`, then `w = g(y)`. If `x` changes a little, how much does `w` change?
# The change of `y` for a change of `x`, times the change of `w` for a change of `y`:
#
#     dw/dx = dw/dy * dy/dx
#
# The two factors are **local gradients**. Each depends on one function alone, at the values it was evaluated at.

# %%
import jax
import jax.numpy as jnp

import jaxprop as jp


def composed(x):
    y = jnp.sin(x)  # f
    w = jnp.exp(y)  # g
    return w


tape = jp.backprop(composed)(0.5)
print(tape)

# %% [markdown]
# The tape holds both local gradients. They are not written by hand: each is JAX's own rule for one operation, and its
# formula is read from that rule.

# %%
dw_dy, dy_dx = tape.local("w", wrt="y"), tape.local("y", wrt="x")
print(f"{jp.formula(dw_dy)} = {float(dw_dy):.6g}")
print(f"{jp.formula(dy_dx)} = {float(dy_dx):.6g}")

# %% [markdown]
# Their product is the derivative of the whole function. `jax.grad` returns the same number.

# %%
product = float(dw_dy) * float(dy_dx)
print(f"{product:.6g} by the chain rule, {float(jax.grad(composed)(0.5)):.6g} by jax.grad")
assert abs(product - float(jax.grad(composed)(0.5))) < 1e-6

# %% [markdown]
# It works for any two functions. Try some.

# %%
for f, g in [(jnp.cos, jnp.tanh), (jnp.log, jnp.sqrt), (jnp.square, jnp.arctan)]:

    def any_two(x):
        y = f(x)  # noqa: B023
        w = g(y)  # noqa: B023
        return w

    tape = jp.backprop(any_two)(1.7)
    product = float(tape.local("w", wrt="y")) * float(tape.local("y", wrt="x"))
    print(f"{f.__name__}, then {g.__name__}: {product:.6f}")
    assert abs(product - float(jax.grad(any_two)(1.7))) < 1e-6
