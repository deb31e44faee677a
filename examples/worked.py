"""The worked example of the lessons: forward pass, local gradients, backward pass, updates to the optimum."""

import jax
import optax

import jaxprop as jp


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


x, y = 1.0, 2.0
tape = jp.backprop(loss)(1.0, x, y)
print(tape)

# By the chain rule, the gradient is the product of the local gradients along the path.
chain = [tape.local("loss", wrt="s"), tape.local("s", wrt="y_hat"), tape.local("y_hat", wrt="w")]
print(*chain, sep="\n")
product = float(chain[0]) * float(chain[1]) * float(chain[2])
assert product == float(tape.grads) == -2.0

# The update is a compiled function, in place of `w -= lr * w.grad` under `no_grad`.
optimizer = optax.sgd(0.01)


@jax.jit
def step(w, state):
    value, gradient = jp.value_and_grad(loss)(w, x, y)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(w, updates), state, value


w = jax.numpy.asarray(1.0)
state = optimizer.init(w)
w, state, value = step(w, state)
print(f"after one step: w = {w:.4f}")
assert abs(float(w) - 1.02) < 1e-6

for _ in range(500):
    w, state, value = step(w, state)
print(f"after 501 steps: w = {w:.4f}, loss = {value:.2e}")
assert abs(float(w) - 2.0) < 1e-3
