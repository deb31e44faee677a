"""Local gains, estimated by vjp power steps: of the parts of a chain, and of the step of a loop.

Power steps apply `J` and its transpose by turns to a random vector: it turns towards the direction in which `J`
stretches most, and the stretch towards the greatest singular value. No Jacobian is built.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.graph import Graph
from ...core.interpreter import Interpreter, Plan
from ...record.local_gradient import LocalGradient
from ...record.tape import Tape
from ..measures import measure
from .dominators import Carry


def greatest_gains(tape: Tape, parts: Sequence[tuple[str, str]], power_steps: int) -> list[float]:
    """The greatest local gain of each part (of, wrt) of a chain: the greatest singular value of `d of / d wrt`.

    A lower bound that grows with the number of power steps. In a loop the greatest of all steps.
    """
    locals_ = [tape.local(of, wrt) for of, wrt in parts]

    @jax.jit
    def run(locals_: list[LocalGradient]) -> list[Any]:
        return [_greatest(local, power_steps) for local in locals_]

    return [float(np.max(gain)) for gain in run(locals_)]


def _greatest(local: LocalGradient, power_steps: int) -> Any:
    shape = (*local.steps, *local.in_shape)
    axes = tuple(range(len(local.steps), len(shape)))
    dtype = local.point.dtype

    def unit(x: Any) -> tuple[Any, Any]:
        size = jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=axes, keepdims=True))
        return x / jnp.where(size > 0, size, jnp.ones_like(size)).astype(dtype), size

    def step(_: int, carry: Any) -> Any:
        x, _ = carry
        return unit(jnp.conj(local.vjp(jnp.conj(local.jvp(x)))))  # JAX's vjp transposes and does not conjugate

    start = unit(jax.random.normal(jax.random.key(0), shape, dtype))
    _, size = jax.lax.fori_loop(0, power_steps, step, start)
    return jnp.sqrt(size)  # of J^T J: the square of that of J


def gains_of_steps(graph: Graph, carry: Carry, operands: Sequence[Any]) -> np.ndarray[Any, Any]:
    """The gain of each step of a loop on a cotangent that comes from the end, losses on the way left out.

    A random cotangent of the last carry is pulled back step by step through `d carry[t+1] / d carry[t]`, and
    made a unit again after each: the gains multiply to what the loop does to a gradient that crosses all of it,
    and the mean of their logarithms tends to the greatest Lyapunov exponent.

    Args:
        graph: the program.
        carry: the loop.
        operands: its operands at one point.

    Returns:
        One gain for each step, in the order of time.

    Source: Benettin et al., Lyapunov characteristic exponents for smooth dynamical systems (1980).
    """
    consts, count = carry.form.num_consts, carry.form.num_carry
    compiled = graph.answers.setdefault("_gains", {})  # with the graph, so that it is compiled once
    if carry.node.index not in compiled:
        compiled[carry.node.index] = jax.jit(_pull_through(graph, carry))
    run = compiled[carry.node.index]
    operands = list(operands)
    return np.asarray(run(operands[:consts], operands[consts : consts + count], operands[consts + count :]))


def _pull_through(graph: Graph, carry: Carry) -> Callable[[list[Any], list[Any], list[Any]], Any]:
    """The gains as a function of the loop's constants, its first carry and what it goes through."""
    form, body = carry.form, carry.body
    consts, count = form.num_consts, form.num_carry
    active = [i for i, value in enumerate(body.inputs[consts : consts + count]) if value in carry.into]
    sweep = Interpreter(Plan(graph))

    def run(held: list[Any], start: list[Any], xs: list[Any]) -> Any:
        def step(state: list[Any], x: Sequence[Any]) -> list[Any]:
            return sweep.run(body, [*held, *state, *x], {})[0]

        def forward(state: list[Any], x: Any) -> Any:
            return step(state, x)[:count], state

        def backward(cts: list[Any], seen: Any) -> Any:
            state, x = seen

            def of(points: list[Any]) -> list[Any]:
                full = list(state)
                for i, point in zip(active, points, strict=True):
                    full[i] = point
                new = step(full, x)
                return [new[i] for i in active]

            (pulled,) = jax.vjp(of, [state[i] for i in active])[1](cts)
            return _unit(pulled)

        options = {"length": form.length, "reverse": form.reverse}
        last, states = jax.lax.scan(forward, start, xs, **options)
        keys = jax.random.split(jax.random.key(0), len(active))
        ones = [jax.random.normal(k, last[i].shape, last[i].dtype) for k, i in zip(keys, active, strict=True)]
        begin, _ = _unit(ones)
        options["reverse"] = not form.reverse
        _, gains = jax.lax.scan(backward, begin, (states, xs), **options)
        return gains[::-1] if form.reverse else gains

    return run


def _unit(cts: list[Any]) -> tuple[list[Any], Any]:
    """Cotangents scaled so that their norms together are 1, and what they were."""
    norms = [measure(ct).norm for ct in cts]
    wide = functools.reduce(jnp.promote_types, [norm.dtype for norm in norms])
    size = functools.reduce(jnp.hypot, [norm.astype(wide) for norm in norms])
    scale = jnp.where(size > 0, size, jnp.ones_like(size))
    return [ct / scale.astype(ct.dtype) for ct in cts], size
