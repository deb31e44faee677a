"""Check the gradient of the whole function against differences of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._backprop import Pass, run
from ..._text import one_line
from ..._tracing import Traced
from ...core.types import Array
from .differences import (
    Slope,
    StepSizes,
    along,
    fine_slope,
    pairing,
    random_cotangent,
    random_tangent,
    relative_error,
    steps_for,
    to_double,
)
from .float64 import UNSUPPORTED, DoublePrecision, Held, widen
from .inputs import ForwardValues
from .node_check import MOST_DOUBT
from .rule_functions import tolerance_of

#: Small enough that few kinks of a whole network lie within a step.
STEPS = StepSizes(1e-6, 1e-7)

#: One direction: the tangents of the arguments, and the slopes of the results.
_Measured: TypeAlias = tuple[list[np.ndarray], list[Slope]]


@dataclass(frozen=True)
class TotalCheck:
    """Relative error of the whole gradient along random directions.

    Attributes:
        error: `|<gradient, t> - <ct, slope>|`, relative to the 2-norm of the terms of both.
        allowed: what it may be.
        undecided: why it was not decided, "" where it was.
    """

    error: float
    allowed: float
    undecided: str = ""

    @property
    def wrong(self) -> bool:
        return not self.undecided and not self.error <= self.allowed


def _undecided(why: str) -> TotalCheck:
    return TotalCheck(0.0, 0.0, why)


def check_total(
    traced: Traced, plan: Pass, values: ForwardValues, seed: int, directions: int = 2
) -> TotalCheck:
    """Compare the gradient with differences of the function, values without a derivative held constant."""
    rng = np.random.default_rng(seed)
    graph = plan.graph
    moved = [i for i, value in enumerate(graph.inputs) if value.active and _jaxpr.is_inexact(value.dtype)]
    results = graph.outputs[: traced.outputs.count]
    kept = [i for i, value in enumerate(results) if value.active and _jaxpr.is_inexact(value.dtype)]
    if not moved or not kept:
        return _undecided("no cotangent reaches a differentiated argument.")
    drawn = (random_cotangent(results[i].shape, results[i].dtype, rng).astype(results[i].dtype) for i in kept)
    cts = dict(zip(kept, drawn, strict=True))
    read = (value for node in graph.walk() if node.active for value in node.operands)
    held = values.held(value for value in read if not value.active)
    ts = [
        [random_tangent(traced.points[i], rng, relative=k % 2 == 0) for i in moved] for k in range(directions)
    ]
    try:
        grads = _gradient(traced, plan, cts)
    except Exception as error:  # a user's rule may raise anything; the check of its node reports it
        return _undecided(one_line(error, 200))
    try:
        measured = _slopes(traced, plan, held, moved, kept, ts)
    except UNSUPPORTED as error:
        return _undecided(one_line(error, 200))
    gradient = [to_double(grads[i]) for i in moved]
    if not all(np.isfinite(x).all() for x in gradient):
        return _undecided("it is not finite; `diagnose` finds where that comes from.")
    dtypes = [value.dtype for node in graph.walk() if node.active for value in node.outputs]
    return _worst(gradient, [to_double(ct) for ct in cts.values()], measured, 20 * tolerance_of(dtypes))


def _worst(
    gradient: list[np.ndarray], cts: list[np.ndarray], measured: Sequence[_Measured], tolerance: float
) -> TotalCheck:
    found: TotalCheck | None = None
    why = "there is a kink within the step in every direction tried."
    for ts, slopes in measured:
        if not all(slope.smooth.all() for slope in slopes):
            continue  # a kink within the step: nothing is decided
        by_gradient = pairing(gradient, ts)
        by_slope = pairing(cts, [slope.value for slope in slopes])
        doubt = 3 * pairing(cts, [slope.spread + slope.noise for slope in slopes]).norm
        scale = max(by_gradient.norm, by_slope.norm)
        doubt = doubt / scale if scale else 0.0
        if doubt > MOST_DOUBT:
            why = "differences of the whole function are too imprecise."
            continue
        error, allowed = relative_error(by_gradient, by_slope), tolerance + doubt
        if found is None or error - allowed > found.error - found.allowed:
            found = TotalCheck(error, allowed)
    return found or _undecided(why)


def _gradient(traced: Traced, plan: Pass, cts: Mapping[int, np.ndarray]) -> list[Array]:
    def pull(points: list[Array], cts: dict[int, Array]) -> list[Array]:
        seed = [cts.get(i) for i in range(traced.outputs.count)]
        return jax.tree.leaves(run(replace(traced, points=points), plan, seed, (0,)).grads)

    return jax.jit(pull)(traced.points, cts)


def _slopes(
    traced: Traced, plan: Pass, held: Held, moved: list[int], kept: list[int], ts: list[list[np.ndarray]]
) -> list[_Measured]:
    precision = DoublePrecision()
    stacked = [np.stack(parts) for parts in zip(*ts, strict=True)]

    def measure(steps: StepSizes) -> list[np.ndarray]:
        def evaluate(operands: list[Array], held: Held, stacked: list[Array]) -> list[Array]:
            held = jax.tree.map(widen, held)
            wide = [widen(x) for x in operands]

            def of(*points: Array) -> list[Array]:
                full = list(wide)
                for i, point in zip(moved, points, strict=True):
                    full[i] = point
                outputs = precision.graph(plan.graph, full, held)
                return [outputs[i] for i in kept]

            return along(of, [wide[i] for i in moved], stacked, steps.offsets)

        with jax.enable_x64(True):
            found = jax.jit(evaluate)(traced.operands, held, [jnp.asarray(x) for x in stacked])
            return jax.tree.map(np.asarray, found)

    steps = STEPS
    values = measure(steps)
    if precision.fallbacks:
        steps = steps_for(precision.eps)
        values = measure(steps)
    return [(t, [fine_slope(value[k], steps) for value in values]) for k, t in enumerate(ts)]
