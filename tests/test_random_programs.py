"""Random programs: what must hold for every one of them.

A program is data: steps that read earlier values, some of which run a program inside ``jit``,
``scan``, ``cond`` and the like, two deep. Hypothesis draws them and shrinks what fails to the
smallest program that does. ``JAXPROP_EXAMPLES`` multiplies the number of examples; it is 0.4 by default,
and 1 with JAXPROP_FULL=1.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from jax import lax

import jaxprop as jp
from helpers import FULL, check_close

FLAGS = ("jax_custom_vjp3", "jax_custom_jvp3", "jax_remat3", "jax_scan3")
FLAGS_ON = [flag for flag in FLAGS if getattr(jax.config, flag, False)]


def examples(count):
    """Return settings for about `count` examples, the same ones in every run."""
    return settings(
        max_examples=max(1, int(count * float(os.environ.get("JAXPROP_EXAMPLES", "1" if FULL else "0.4")))),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],  # compiling is
    )


@pytest.fixture(scope="module", autouse=True)
def quick_compile():
    """Compile with few optimizations: each program is compiled to run once."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# Programs


class Step(NamedTuple):
    """One step of a program: what it does, the values it reads, and the program inside it."""

    kind: str
    left: int = 0
    right: int = 0
    inner: tuple[Step, ...] = ()


Program = tuple[Step, ...]

UNARY = {
    "sin": jnp.sin,
    "tanh": jnp.tanh,
    "bell": lambda x: jnp.exp(-(x * x)),
    "root": lambda x: jnp.sqrt(1.0 + x * x),
    "relu": jax.nn.relu,
    "softplus": jax.nn.softplus,
    "flip": lambda x: x[::-1],
    "cumsum": jnp.cumsum,
    "centre": lambda x: x - jnp.mean(x),
    "leaky": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "stop": lax.stop_gradient,
}

BINARY = {
    "add": jnp.add,
    "subtract": jnp.subtract,
    "multiply": jnp.multiply,
    "divide": lambda x, y: x / (1.0 + y * y),
    "maximum": jnp.maximum,
    "project": lambda x, y: y * jnp.vdot(jnp.tanh(x), jnp.tanh(y)),
    "attend": lambda x, y: jax.nn.softmax(x) * y,
}


def in_jit(f, x, y):
    """Call a program inside jit."""
    return jax.jit(f)(x, y)


def in_scan(reverse, f, x, y):
    """Carry a value through three steps of scan, and add up what comes out of them."""

    def body(carry, each):
        h = f(carry, each)
        return jnp.tanh(h), h * each

    carry, ys = lax.scan(body, x, jnp.stack([x, y, 0.5 * y]), reverse=reverse)
    return carry + jnp.sum(ys, 0)


def in_fori(f, x, y):
    """Run two steps of a loop of known length, which JAX makes a scan of."""
    return lax.fori_loop(0, 2, lambda i, carry: jnp.tanh(f(carry, y)), x)


def in_while(f, x, y):
    """Run a loop of unknown length on values that are not differentiated, then use its result."""
    start = lax.stop_gradient((x, y))

    def more(state):
        return (state[0] < 2) & (jnp.max(jnp.abs(state[1])) < 1e6)

    def body(state):
        return state[0] + 1, jnp.tanh(f(state[1], start[1]))

    _, factor = lax.while_loop(more, body, (0, start[0]))
    return x * factor + y


def in_cond(f, x, y):
    """Run a program where the first number is positive, and another where it is not."""
    return lax.cond(x[0] > 0, f, lambda x, y: x * y, x, y)


def in_switch(f, x, y):
    """Choose one of three branches by a number that depends on the data."""
    index = jnp.sum(y > 0).astype(jnp.int32)
    return lax.switch(index, [lambda x, y: x + y, f, lambda x, y: jnp.sin(x)], x, y)


def in_checkpoint(policy, f, x, y):
    """Recompute a program in the backward pass."""
    return jax.checkpoint(f, policy=policy)(x, y)


def in_custom_jvp(f, x, y):
    """Give a program a tangent of its own, which is not its derivative."""
    custom = jax.custom_jvp(f)

    @custom.defjvp
    def jvp(primals, tangents):
        x, y = primals
        dx, dy = tangents
        return custom(x, y), 2.0 * dx * jnp.cos(x) + y * dy

    return custom(x, y)


def in_custom_vjp(f, x, y):
    """Give a program cotangents of its own, which are not its derivative."""
    custom = jax.custom_vjp(f)
    custom.defvjp(lambda x, y: (f(x, y), (x, y)), lambda xy, ct: (3.0 * ct, ct * jnp.sin(xy[0])))
    return custom(x, y)


def in_vmap(f, x, y):
    """Run a program on a batch of two."""
    return jnp.sum(jax.vmap(f)(jnp.stack([x, y]), jnp.stack([y, x])), 0)


NESTED = {
    "jit": in_jit,
    "scan": functools.partial(in_scan, False),
    "reversed scan": functools.partial(in_scan, True),
    "fori": in_fori,
    "while": in_while,
    "cond": in_cond,
    "switch": in_switch,
    "checkpoint": functools.partial(in_checkpoint, None),
    "checkpoint, all saved": functools.partial(in_checkpoint, jax.checkpoint_policies.everything_saveable),
    "custom_jvp": in_custom_jvp,
    "custom_vjp": in_custom_vjp,
    "vmap": in_vmap,
}


def run(program, *values):
    """Run a program and return its last value."""
    values = list(values)
    for step in program:
        x, y = (values[i % len(values)] for i in (step.left, step.right))
        values.append(perform(step, x, y))
    return values[-1]


def perform(step, x, y):
    """Carry out one step."""
    if step.kind in UNARY:
        h = UNARY[step.kind](x)
    elif step.kind in BINARY:
        h = BINARY[step.kind](x, y)
    else:
        h = NESTED[step.kind](functools.partial(run, step.inner), x, y)
    return h


READS = st.integers(0, 5)
FLAT = st.sampled_from([*UNARY, *BINARY])
HOLDING = st.sampled_from([*NESTED])


@st.composite
def steps(draw, most):
    """Draw a few steps with nothing inside."""
    count = draw(st.integers(1, most))
    return tuple(Step(draw(FLAT), draw(READS), draw(READS)) for _ in range(count))


@st.composite
def programs(draw, depth):
    """Draw programs with others inside, to a given depth."""
    if not depth:
        return draw(steps(3))
    count = draw(st.integers(1, 2))
    inner = programs(depth - 1)
    holding = [Step(draw(HOLDING), draw(READS), draw(READS), draw(inner)) for _ in range(count)]
    return (*draw(steps(2)), *holding, *draw(steps(2)))


class Problem(NamedTuple):
    """A program, the seed of its three arguments, and which of them are differentiated."""

    program: Program
    seed: int
    argnums: tuple[int, ...]

    def loss(self, x, y, z):
        """Run the program on three arguments; return a weighted sum of its result."""
        h = run(self.program, x, y, z)
        return jnp.sum(h * jnp.array([1.0, -0.5, 2.0]))

    def args(self):
        """Return three arrays of three numbers."""
        return tuple(np.random.RandomState(self.seed).standard_normal((3, 3)).astype(np.float32))


ARGNUMS = st.sampled_from([(0, 1, 2), (0,), (1,), (0, 2), (2, 1)])


def problems(depth):
    """Draw problems whose programs are nested to a given depth."""
    return st.builds(Problem, programs(depth), st.integers(0, 99), ARGNUMS)


def by_jax(problem, wrap=lambda f: f):
    """Return JAX's value and gradients; a program that JAX itself refuses is not counted.

    JAX may refuse only where one of its experimental flags is on.
    """
    try:
        return wrap(jax.value_and_grad(problem.loss, problem.argnums))(*problem.args())
    except Exception as error:
        if not FLAGS_ON:
            raise
        event(f"refused by JAX: {type(error).__name__}")
        assume(False)


def check(tape, expected):
    """Compare the value and the gradients of a tape with JAX's."""
    check_close((tape.value, tape.grads), expected, 10.0)


# What must hold


@given(problems(2))
@examples(40)
def test_eager_gradients(problem):
    """Run eagerly, the value and the gradients are those of jax.grad."""
    expected = by_jax(problem)
    check(jp.backprop(problem.loss, problem.argnums)(*problem.args()), expected)


@given(problems(2))
@examples(15)
def test_jitted_gradients(problem):
    """Jitted, the value and the gradients are those of jax.grad."""
    expected = by_jax(problem, jax.jit)
    check(jax.jit(jp.backprop(problem.loss, problem.argnums))(*problem.args()), expected)


@given(problems(2))
@examples(15)
def test_statistics_change_no_gradient(problem):
    """With statistics of every node, the value and the gradients are those of jax.grad."""
    expected = by_jax(problem, jax.jit)
    watched = jp.backprop(problem.loss, problem.argnums, record=jp.summary)
    check(jax.jit(watched)(*problem.args()), expected)


@given(problems(2))
@examples(30)
def test_the_identity_rule_everywhere(problem):
    """A rule that is the chain rule itself, at every node at every depth, changes nothing."""
    rules = [("*", lambda local, out_cts: local.vjp(out_cts))]
    expected = by_jax(problem)
    assume(any(np.any(grad) for grad in expected[1]))  # a rule for what is never read is refused
    check(jp.backprop(problem.loss, problem.argnums, rules=rules)(*problem.args()), expected)


@given(problems(1))
@examples(20)
def test_shares_sum_to_the_cotangent(problem):
    """The shares of the consumers of a value sum to its cotangent, in bodies too."""
    by_jax(problem)
    tape = jp.backprop(problem.loss, problem.argnums)(*problem.args())
    for entry in tape:
        if entry.cotangent is not None:
            (value,) = (v for v in entry.node.outputs if v.name == entry.name)
            steps = entry.cotangent.ndim - len(value.shape)
            check_shares(tape.shares(entry.name), entry.cotangent, steps)


def check_shares(shares, cotangent, steps):
    """Check the sum of shares, their total, and the cancellation between them in each step."""
    parts = [np.asarray(share) for share in shares.values()]
    tolerance = 1e-5 * sum(np.abs(part).max() for part in parts) + 1e-30
    np.testing.assert_allclose(sum(parts), cotangent, rtol=1e-5, atol=tolerance)
    np.testing.assert_allclose(shares.total, cotangent, rtol=1e-5, atol=tolerance)
    sizes = sum(norm(part, steps) for part in parts)
    ratios = np.divide(norm(sum(parts), steps), sizes, out=np.ones_like(sizes), where=sizes > 1e-18)
    actual = np.where(sizes > 1e-18, shares.cancellation, 1.0)
    np.testing.assert_allclose(actual, ratios, rtol=1e-4, atol=1e-5)


def norm(array, steps):
    """Return the norm over all axes after the first `steps`."""
    return np.sqrt(np.sum(np.float64(array) ** 2, axis=tuple(range(steps, array.ndim))))


CHAIN = ("sin", "tanh", "bell", "root", "relu", "softplus", "flip", "cumsum")


@given(st.lists(st.sampled_from(CHAIN), min_size=1, max_size=5), st.integers(0, 99))
@examples(20)
def test_local_gradients_multiply_along_a_chain(kinds, seed):
    """The product of the Jacobians of all nodes of a chain is the gradient."""
    problem = Problem(tuple(Step(kind, i + 2) for i, kind in enumerate(kinds)), seed, (2,))
    tape = jp.backprop(problem.loss, problem.argnums)(*problem.args())
    node, product = tape.graph[tape.graph.outputs[0].name], None
    while node.primitive != "input":
        (operand,) = {value.name for value in node.operands if value.active}
        local = jnp.asarray(tape.local(node.outputs[0].name, operand).jacobian())
        size = int(np.prod(tape.graph[operand].shape))
        local = local.reshape(-1, size)
        product = local if product is None else product @ local
        node = tape.graph[operand]
    _, (gradient,) = by_jax(problem)
    np.testing.assert_allclose(product[0], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(bool(FLAGS_ON), reason="this is the run with the flags on")
@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason="there a checkpoint cannot hold a custom_vjp of the new form"
)
@pytest.mark.parametrize("flags", [FLAGS, *([(flag,) for flag in FLAGS] if FULL else ())], ids=" ".join)
def test_with_flags_on(flags):
    """Everything in this file holds with JAX's experimental forms, in a separate process.

    All of them together; with JAXPROP_FULL=1 each alone as well.
    """
    here = [flag for flag in flags if hasattr(jax.config, flag)]
    if not here:
        pytest.skip(f"this JAX has no {' '.join(flags)}")
    environment = os.environ | {flag.upper(): "1" for flag in here}
    environment |= {"JAXPROP_EXAMPLES": "0.4", "JAXPROP_FULL": ""}
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run([*pytest_here, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
