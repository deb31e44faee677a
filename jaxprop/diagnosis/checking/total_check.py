"""The gradient as a whole, against differences of the function it is the gradient of."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._backprop import Pass, run
from ..._text import one_line
from ..._tracing import Traced
from .float64 import along, slope, wide_graph, widen
from .inputs import Points
from .node_check import apart, double, pairing, random_cotangent, random_tangent, tolerance_of

#: Relative to the size of the arguments: so short that few kinks of a whole network lie within.
STEPS = (1e-6, 1e-7)


@dataclass(frozen=True)
class Whole:
    """Relative error of the whole gradient along random directions, and what it may be.

    Attributes:
        failed: why it could not be had, "" otherwise.
    """

    error: float
    allowed: float
    failed: str = ""

    @property
    def wrong(self) -> bool:
        return not self.failed and not self.error <= self.allowed


def whole_gradient(traced: Traced, plan: Pass, points: Points, seed: int, directions: int = 2) -> Whole:
    """Hold the gradient against differences of the function, what carries no derivative held where it is."""
    rng = np.random.default_rng(seed)
    graph = plan.graph
    active = {value.id: i for i, value in enumerate(graph.inputs) if value.active}
    moved = [i for i in active.values() if _jaxpr.is_inexact(graph.inputs[i].dtype)]
    kept = [
        i
        for i, value in enumerate(graph.outputs[: traced.outputs.count])
        if value.active and _jaxpr.is_inexact(value.dtype)
    ]
    if not moved or not kept:
        return Whole(0.0, 0.0, "no cotangent reaches a differentiated argument.")
    cts = [np.asarray(random_cotangent(graph.outputs[i], rng)).astype(graph.outputs[i].dtype) for i in kept]
    read = (value for node in graph.walk() if node.active for value in node.operands)
    held = points.held(value for value in read if not value.active)
    try:
        grads = _gradient(traced, plan, dict(zip(kept, cts, strict=True)))
        results = _slopes(traced, plan, held, moved, kept, rng, directions)
    except Exception as error:
        return Whole(0.0, 0.0, one_line(error, 200))
    if not all(np.isfinite(double(grads[i])).all() for i in moved):
        return Whole(0.0, 0.0, "it is not finite; `diagnose` says where that comes from.")
    dtypes = [value.dtype for node in graph.walk() if node.active for value in node.outputs]
    tolerance = 20 * tolerance_of(dtypes)
    whole: Whole | None = None
    for ts, parts in results:
        masked = [np.where(part.smooth, double(ct), 0) for ct, part in zip(cts, parts, strict=True)]
        if any(np.any(m != c) for m, c in zip(masked, cts, strict=True)):
            continue  # a kink within the step: nothing is decided
        gradient = pairing([double(grads[i]) for i in moved], ts)
        change = pairing(masked, [part.value for part in parts])
        doubt = 3 * pairing(masked, [part.doubt for part in parts]).norm
        scale = max(gradient.norm, change.norm)
        error, allowed = apart(gradient, change), tolerance + (doubt / scale if scale else 0.0)
        if whole is None or error - allowed > whole.error - whole.allowed:
            whole = Whole(error, allowed)
    return whole or Whole(0.0, 0.0, "there is a kink within the step in every direction tried.")


def _gradient(traced: Traced, plan: Pass, cts: dict[int, Any]) -> list[Any]:
    def pull(points: list[Any], cts: dict[int, Any]) -> Any:
        seed: list[Any] = [cts.get(i) for i in range(traced.outputs.count)]
        return jax.tree.leaves(run(replace(traced, points=points), plan, seed, (0,)).grads)

    return jax.jit(pull)(traced.points, cts)


def _slopes(
    traced: Traced, plan: Pass, held: Any, moved: list[int], kept: list[int], rng: Any, directions: int
) -> list[tuple[list[Any], list[Any]]]:
    ts = [
        [random_tangent(traced.points[i], rng, relative=k % 2 == 0) for i in moved] for k in range(directions)
    ]
    stacked = [np.stack(parts) for parts in zip(*ts, strict=True)]

    def measure(operands: list[Any], held: Any, stacked: list[Any]) -> Any:
        held = jax.tree.map(widen, held)
        wide = [widen(x) for x in operands]

        def of(*points: Any) -> list[Any]:
            full = list(wide)
            for i, point in zip(moved, points, strict=True):
                full[i] = point
            outputs = wide_graph(plan.graph, full, held)
            return [outputs[i] for i in kept]

        points = [wide[i] for i in moved]
        return along(of, points, stacked, STEPS)

    with jax.enable_x64(True):
        found = jax.jit(measure)(traced.operands, held, [jnp.asarray(x) for x in stacked])
        found = jax.tree.map(np.asarray, found)
    return [(ts[k], [slope(value[k], STEPS) for value in found]) for k in range(directions)]
