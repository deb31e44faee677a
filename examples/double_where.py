"""The double-where trap: a masked NaN that poisons the gradient, found, explained and fixed in one call."""

import jax
import jax.numpy as jnp

import jaxprop as jp


def energy(positions):
    """Coulomb energy of point charges: the sum of 1 / distance over all pairs."""
    apart = positions[:, None] - positions[None, :]
    distance = jnp.sqrt(jnp.sum(apart**2, axis=-1))
    pair = ~jnp.eye(len(positions), dtype=bool)
    return 0.5 * jnp.sum(jnp.where(pair, 1.0 / distance, 0.0))


positions = jnp.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
print("energy  ", energy(positions))  # fine: the mask hides 1 / 0
print("gradient", jax.grad(energy)(positions).ravel())  # nan all over

report = jp.diagnose(energy)(positions)
print()
print(report)
assert [finding.cause for finding in report if finding.kind == "origin"] == ["division by 0", "norm at 0"]


def fixed(positions):
    """The same, the operand masked as well as the result."""
    apart = positions[:, None] - positions[None, :]
    pair = ~jnp.eye(len(positions), dtype=bool)
    square = jnp.where(pair, jnp.sum(apart**2, axis=-1), 1.0)
    return 0.5 * jnp.sum(jnp.where(pair, 1.0 / jnp.sqrt(square), 0.0))


print()
print("fixed   ", jax.grad(fixed)(positions).ravel())
assert jp.diagnose(fixed)(positions).ok
assert jnp.allclose(fixed(positions), energy(positions))
