"""An unmodified Flax model: the norm of every cotangent, by module."""

import flax.linen as nn
import jax
import jax.numpy as jnp

import jaxprop as jp


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        h = nn.gelu(nn.Dense(64)(h))
        return x + nn.Dense(x.shape[-1])(h)


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = Block()(x)
        return nn.Dense(1)(x)


model = Model()
x = jax.random.normal(jax.random.key(0), (32, 16))
params = model.init(jax.random.key(1), x)


def loss(params, x):
    y = model.apply(params, x)
    return jnp.mean(y**2)


tape = jax.jit(jp.backprop(loss, nodes="*dot_general", record=jp.summary))(params, x)
for entry in reversed(tape):
    print(f"{entry.name:40} |ct| {float(entry.cotangent.norm):.2e}")
assert any("Block_2" in entry.node.scope for entry in tape)
