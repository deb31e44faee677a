"""Estimate local gains by power iteration: of the segments of a chain, and of the steps of a loop.

Power steps apply `J` and its transpose in turn to a random vector: it converges to the direction in which `J`
stretches most, and the stretch to the greatest singular value. No Jacobian is built.
"""

import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from ...core.graph import Graph
from ...core.interpreter import Interpreter, Plan
from ...core.types import Array
from ...record.local_gradient import LocalGradient
from ...record.tape import Tape
from ..measures import measure
from .loops import Carries


class Gains:
    """The estimators of one loss, compiled once for each program and kept with the function that uses them."""

    def __init__(self) -> None:
        self._compiled: dict[Hashable, Callable[..., list[Array]]] = {}

    def of_segments(self, tape: Tape, segments: Sequence[tuple[str, str]], power_steps: int) -> list[float]:
        """Estimate the greatest singular value of `d of / d wrt` of each segment (of, wrt) of a chain.

        A lower bound that grows with the number of power steps. In a loop the greatest of all steps.
        """
        locals_ = [tape.local(of, wrt) for of, wrt in segments]
        key = (tape.graph, tuple(segments), power_steps)
        if key not in self._compiled:
            self._compiled[key] = _greatest_of_all(locals_, power_steps)
        found = self._compiled[key]([(local.point, local.held) for local in locals_])
        return [float(np.max(gain)) for gain in found]

    def of_steps(self, graph: Graph, carries: Carries, operands: Sequence[Array]) -> np.ndarray:
        """Estimate the gain of each step of a loop on a cotangent that comes from the end, losses on the way
        left out.

        A random cotangent of the last carry is pulled back step by step through `d carry[t+1] / d carry[t]`,
        and normalised after each: the gains multiply to what the loop does to a gradient that crosses all of
        it, and the mean of their logarithms tends to the greatest Lyapunov exponent. Nothing overflows.

        Args:
            graph: the program.
            carries: the loop.
            operands: its operands at one point.

        Returns:
            One gain for each step, in the order of time.

        Source: Benettin et al., Lyapunov characteristic exponents for smooth dynamical systems (1980).
        """
        consts, count = carries.form.num_consts, carries.form.num_carry
        key = (graph, carries.node.index)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(_pull_through(graph, carries))
        held, start, xs = operands[:consts], operands[consts : consts + count], operands[consts + count :]
        return np.asarray(self._compiled[key](list(held), list(start), list(xs)))


def _greatest_of_all(locals_: Sequence[LocalGradient], power_steps: int) -> Callable[..., list[Array]]:
    maps = [replace(local, point=None, held=[]) for local in locals_]  # without the arrays

    @jax.jit
    def run(points: list[tuple[Array, list[Array]]]) -> list[Array]:
        at_points = [
            replace(local, point=point, held=held) for local, (point, held) in zip(maps, points, strict=True)
        ]
        return [_greatest(local, power_steps) for local in at_points]

    return run


def _greatest(local: LocalGradient, power_steps: int) -> Array:
    shape = (*local.steps, *local.in_shape)
    axes = tuple(range(len(local.steps), len(shape)))
    dtype = local.point.dtype

    def unit(x: Array) -> tuple[Array, Array]:
        size = jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=axes, keepdims=True))
        return x / jnp.where(size > 0, size, jnp.ones_like(size)).astype(dtype), size

    def step(_: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # JAX's vjp transposes and does not conjugate.
        return unit(jnp.conj(local.vjp(jnp.conj(local.jvp(carry[0])))))

    start = unit(jax.random.normal(jax.random.key(0), shape, dtype))
    _, size = jax.lax.fori_loop(0, power_steps, step, start)
    return jnp.sqrt(size)  # of J^T J: the square of that of J


def _pull_through(graph: Graph, carries: Carries) -> Callable[..., Array]:
    """The gains as a function of the loop's constants, its first carry and what it scans over."""
    form, body = carries.form, carries.body
    consts, count = form.num_consts, form.num_carry
    active = [i for i, value in enumerate(body.inputs[consts : consts + count]) if value in carries.into]
    interpreter = Interpreter(Plan(graph))

    def run(held: list[Array], start: list[Array], xs: list[Array]) -> Array:
        def step(state: list[Array], x: Sequence[Array]) -> list[Array]:
            return interpreter.run(body, [*held, *state, *x], {})[0]

        def forward(state: list[Array], x: list[Array]) -> tuple[list[Array], list[Array]]:
            return step(state, x)[:count], state

        def backward(cts: list[Array], seen: tuple[list[Array], list[Array]]) -> tuple[list[Array], Array]:
            state, x = seen

            def of(points: list[Array]) -> list[Array]:
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


def _unit(cts: list[Array]) -> tuple[list[Array], Array]:
    """Scale cotangents so that their joint norm is 1; return the norm as well."""
    norms = [measure(ct).norm for ct in cts]
    wide = functools.reduce(jnp.promote_types, [norm.dtype for norm in norms])
    size = functools.reduce(jnp.hypot, [norm.astype(wide) for norm in norms])
    scale = jnp.where(size > 0, size, jnp.ones_like(size))
    return [ct / scale.astype(ct.dtype) for ct in cts], size
