"""Gradients through time: the cotangent of the state at every step of a scan, and where they vanish."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxprop as jp


def rnn(w, xs, target):
    def step(h, x):
        h = jnp.tanh(w @ h + x)
        return h, None

    last, _ = jax.lax.scan(step, jnp.zeros(8), xs)
    return jnp.sum((last - target) ** 2)


xs = jax.random.normal(jax.random.key(0), (50, 8)) * 0.1
rotation = jnp.linalg.qr(jax.random.normal(jax.random.key(1), (8, 8)))[0]
opened = jax.jit(jp.backprop(rnn, nodes="h"))


def norms(scale):
    """|d loss / d h| at each of the 50 steps."""
    tape = opened(scale * rotation, xs, jnp.ones(8))
    return np.linalg.norm(tape["h"].cotangent, axis=1)


for scale in (0.5, 1.0, 2.0):
    through = norms(scale)
    print(f"w = {scale} * rotation: |ct| at the last step {through[-1]:.1e}, at the first {through[0]:.1e}")

vanishing, kept = norms(0.5), norms(1.0)
assert vanishing[0] < 1e-12 * vanishing[-1]
assert kept[0] > 1e-3 * kept[-1]

# Scale the cotangent by 2 at every tanh: the recurrence of 0.5 lets gradients through like that of 1.0.
lifted = jp.backprop(rnn, nodes="h", rules=[("tanh", jp.rules.scale(2.0))])
through = np.linalg.norm(lifted(0.5 * rotation, xs, jnp.ones(8))["h"].cotangent, axis=1)
print(f"0.5 * rotation, with a rule at tanh: at the first step {through[0]:.1e}")
assert through[0] > 1e-3 * through[-1]
