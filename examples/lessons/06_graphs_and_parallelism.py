# %% [markdown]
# # 6. Computational graphs, and what may run at the same time
#
# A program is a list of operations, but not all of them wait for one another. The graph knows: an operation needs its
# operands and nothing else. Its **level** is the longest way from the inputs to it. Operations of one level need
# nothing from each other, so they may run at the same time. On the way back the levels are walked in reverse.

# %%
import jax.numpy as jnp

import jaxprop as jp


def two_branches(w, x):
    left = jnp.sin(w * x)
    right = jnp.exp(-x)
    product = left * right
    return product + left


graph = jp.trace(two_branches)(jnp.float32(0.5), jnp.float32(2.0))
print(graph)


# %%
def levels(graph):
    """The level of every node: one more than the highest among its operands."""
    found = {}
    for node in graph.nodes:
        found[node.name] = 1 + max((found[v.name] for v in node.operands if v.name in found), default=-1)
    return found


by_level = {}
for name, level in levels(graph).items():
    by_level.setdefault(level, []).append(name)
for level, names in by_level.items():
    print(level, ", ".join(names))
longest = max(by_level)
print(f"{len(graph)} nodes, {longest + 1} levels: nothing can be faster than {longest} operations in a row")

# %%
jp.draw(jp.backprop(two_branches)(jnp.float32(0.5), jnp.float32(2.0)))

# %% [markdown]
# `left` is read twice, so its cotangent is a sum of two shares: one from each reader. This is the only place where the
# backward pass has to wait for two results.

# %%
tape = jp.backprop(two_branches)(jnp.float32(0.5), jnp.float32(2.0))
shares = tape.shares("left")
print({reader: round(float(share), 4) for reader, share in shares.items()}, "sum", round(float(shares.total), 4))
assert abs(float(shares.total) - float(tape["left"].cotangent)) < 1e-6
