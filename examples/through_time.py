"""Gradients that vanish inside a scan: seen during training, then fixed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop as jp

STEPS, WIDTH = 40, 8


def remember(params, xs, target):
    """Read a sequence, and predict from the last state what its first element was."""

    def read(h, x):
        h = jnp.tanh(h @ params["w"] + x @ params["u"])
        return h, None

    last, _ = jax.lax.scan(read, jnp.zeros((xs.shape[1], WIDTH)), xs)
    y_hat = last @ params["out"]
    return jnp.mean((y_hat[:, 0] - target) ** 2)


keys = jax.random.split(jax.random.key(0), 4)
first = jax.random.rademacher(keys[0], (256,), jnp.float32)
xs = jnp.zeros((STEPS, 256, 1)).at[0, :, 0].set(first)
rotation = jnp.linalg.qr(jax.random.normal(keys[1], (WIDTH, WIDTH)))[0]


def train(scale):
    """Train with a recurrence that scales by `scale`; return losses and |d loss / d h| over time."""
    params = {
        "w": scale * rotation,
        "u": 0.3 * jax.random.normal(keys[2], (1, WIDTH)),
        "out": 0.3 * jax.random.normal(keys[3], (WIDTH, 1)),
    }
    _, history = jp.fit(
        remember,
        params,
        [(xs, first)],
        optimizer=optax.adam(3e-3),
        epochs=301,
        watch=jp.Watch(nodes="h", every=100),
        progress=False,
    )
    # One row for each watched step, one column for each step of the scan.
    through = history.watched["h"].cotangent.norm
    for row, step in enumerate(history.watched.steps):
        print(
            f"  step {step:3}  loss {history['loss'][step]:.4f}"
            f"  |d loss / d h| at the last step of the scan {through[row, -1]:.1e},"
            f" at the first {through[row, 0]:.1e}"
        )
    return history["loss"], through


print("a contracting recurrence: the gradient does not reach the first step, and nothing is learned")
losses, through = train(0.5)
assert (through[:, 0] < 1e-6 * through[:, -1]).all()
assert losses[-1] > 0.9

print("an orthogonal recurrence: the gradient reaches the first step")
fixed, kept = train(1.0)
assert (kept[:, 0] > 1e-2 * kept[:, -1])[0]
assert fixed[-1] < 0.01

# Or change the backward pass only: double the cotangents at every tanh; the model stays the same.
params = {"w": 0.5 * rotation, "u": 0.3 * jnp.ones((1, WIDTH)), "out": 0.3 * jnp.ones((WIDTH, 1))}
for rules in ([], [("tanh", jp.rules.scale(2.0))]):
    tape = jax.jit(jp.backprop(remember, nodes="h", rules=rules))(params, xs, first)
    norms = np.linalg.norm(np.asarray(tape["h"].cotangent).reshape(STEPS, -1), axis=1)
    kind = "with a rule at tanh" if rules else "without a rule"
    print(f"{kind}: |d loss / d h| at the first step {norms[0]:.1e}")
assert norms[0] > 1e-3 * norms[-1]
