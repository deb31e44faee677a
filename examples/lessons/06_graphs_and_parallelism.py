# %% [markdown]
# # 6. Computational graphs, and what can run in parallel
#
# A program is a list of operations, but not every operation has to wait for the one before it. It only needs its operands,
# and the graph shows which those are. The **level** of an operation is the length of the longest path from the inputs to
# it. Operations on the same level do not depend on each other, so they can run in parallel. The backward pass visits the
# levels in reverse.

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
    """The level of each node: one more than the highest level among its operands."""
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
print(
    f"{len(graph)} nodes on {longest + 1} levels: at least {longest} operations have to run one after the other"
)

# %%
jp.draw(jp.backprop(two_branches)(jnp.float32(0.5), jnp.float32(2.0)))

# %% [markdown]
# `left` is used twice, so its cotangent is the sum of two contributions, one from each consumer. `tape.shares` returns
# them. This is the only point at which the backward pass has to wait for two results.

# %%
tape = jp.backprop(two_branches)(jnp.float32(0.5), jnp.float32(2.0))
shares = tape.shares("left")
print(
    {consumer: round(float(share), 4) for consumer, share in shares.items()},
    "sum",
    round(float(shares.total), 4),
)
assert abs(float(shares.total) - float(tape["left"].cotangent)) < 1e-6
