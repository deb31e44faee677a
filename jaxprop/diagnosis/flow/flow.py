"""`gradient_flow`: where gradients vanish, explode or cancel, along depth and through time."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..._text import in_columns
from ..._tracing import name_of
from ...core.structure import producers
from ...core.types import Function
from ..measures import Field, recorder
from ..passes import Passes
from ..report import Report, plain
from ..thresholds import Thresholds
from ..zero.dynamic import RunPass
from .chains import Chain, chains, longest_chain
from .findings import cancellation_findings, flow_findings, log_gain, not_finite_findings, with_gains
from .gains import Gains
from .loops import Loop, loops

#: A gain of one, to rounding: of a bias, a reshape.
SAME = 1e-6

#: Of longer chains the greatest gains of this many segments are estimated, those that change the norm most.
MOST_SEGMENTS = 48


@dataclass(frozen=True)
class Level:
    """One value of the longest chain.

    Attributes:
        name: name of the value.
        code: the expression it comes from.
        scope: the modules around it.
        norm: `|ct|`, in units of the loss per unit of the value.
        gain: `|ct|` of this value by that of the next one, dimensionless; NaN at the last.
        greatest: the greatest gain the segment between the two could have for any cotangent, by power steps:
            the greatest singular value of its Jacobian; NaN where not estimated.
    """

    name: str
    code: str
    scope: str
    norm: float
    gain: float
    greatest: float = math.nan


@dataclass(frozen=True)
class Flow(Report):
    """What `gradient_flow` found and measured.

    Attributes:
        levels: the longest chain of values that every path goes through, from the leaf on.
        loops: the loops that carry gradients from step to step.
    """

    levels: tuple[Level, ...] = ()
    loops: tuple[Loop, ...] = ()

    def data(self) -> dict[str, Any]:
        levels = [vars(level) for level in self.levels]
        return {**super().data(), "levels": plain(levels), "loops": plain([loop.data() for loop in self.loops])}

    def __str__(self) -> str:
        parts = [super().__str__(), *([_level_table(self.levels)] if self.levels else [])]
        return "\n\n".join([*parts, *map(_loop_line, self.loops)])

    __repr__ = __str__


def gradient_flow(
    fun: Function,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    thresholds: Thresholds | None = None,
    power_steps: int = 8,
) -> Callable[..., Flow]:
    """Find where gradients vanish, explode or cancel.

    Along depth: the values that every path from a leaf to the result goes through, the norm of the cotangent at
        each, and the gain of each segment between two. Through time: the norm of the carries' cotangent at each
        step of a loop, and its growth per step. At values with several consumers: whether their contributions
        cancel.

        gain of a segment = |ct(near)| / |ct(far)|
        growth of a loop  = exp(-slope of log |ct(carry before step t)| over t)
        cancellation      = |sum of contributions| / sum of |contributions|

    A ratio of norms describes this one cotangent. What a segment could do to any is its greatest singular
    value, and what a loop does in the long run its greatest Lyapunov exponent: both are estimated by power
    steps. Where a cotangent overflows, growth is measured over the steps at which it is finite, or by power
    steps.

    Args:
        fun: a loss, any function JAX can differentiate.
        argnums, has_aux: as in `backprop`.
        thresholds: from where on something is reported; see `Thresholds`.
        power_steps: how many power steps; 0 leaves the estimates out. They keep all values of the pass.

    Returns:
        A function of the same arguments that gives a `Flow`: a `Report` with `levels` and `loops`.

    Raises:
        TypeError: as `backprop`.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, xs):
        ...     h, _ = jax.lax.scan(lambda h, x: (w @ h + x, None), jnp.zeros(2), xs)
        ...     return jnp.sum(h)
        >>> report = jp.gradient_flow(loss)(3.0 * jnp.eye(2), jnp.ones((20, 2)))
        >>> report[0].kind, round(report.loops[0].growth, 4), round(report.loops[0].gain, 4)
        ('exploding', 3.0, 3.0)
    """
    limits, gains = thresholds or Thresholds(), Gains()
    passes = Passes(fun, argnums, has_aux)

    @functools.wraps(fun, updated=())
    def report(*args: Any, **kwargs: Any) -> Flow:
        run = passes.at(*args, **kwargs)
        field = Field.of(run(record=recorder))
        found = flow_findings(field, run, limits, gains) + cancellation_findings(field, run, limits)
        found = found or not_finite_findings(field)
        longest = longest_chain(chains(field))
        levels = _levels_of_chain(field, longest) if longest else ()
        seen = loops(field)
        if power_steps and longest:
            levels = _with_greatest(levels, longest, run, power_steps, gains)
        if power_steps:
            seen = [(carries, with_gains(field, carries, loop, run, gains)) for carries, loop in seen]
        base = Report.of(f"gradient flow of {name_of(fun)}", found)
        return Flow(base.title, base.findings, levels=levels, loops=tuple(loop for _, loop in seen))

    return report


def _levels_of_chain(field: Field, chain: Chain) -> tuple[Level, ...]:
    nodes = producers(field.graph)
    gains = [*(segment.gain for segment in chain.segments), math.nan]
    return tuple(
        Level(value.name, nodes[value.id].label, nodes[value.id].scope, field.norm(value), float(gain))
        for value, gain in zip(chain.values, gains, strict=True)
    )


def _with_greatest(
    levels: tuple[Level, ...], chain: Chain, run: RunPass, power_steps: int, gains: Gains
) -> tuple[Level, ...]:
    """Add the greatest gains of the segments between values of one body, outside of loops."""
    tape = run(None)
    places = tape.graph.places
    order = sorted(range(len(chain.segments)), key=lambda i: -abs(log_gain(chain.segments[i].gain)))
    wanted = {}
    for i in order:
        segment = chain.segments[i]
        near = tape.graph[segment.near.name]
        together = places[near.index].graph is places[segment.node.index].graph
        if together and not places[near.index].steps and abs(segment.gain - 1) > SAME:
            wanted[i] = (segment.far.name, segment.near.name)
    wanted = dict(list(wanted.items())[:MOST_SEGMENTS])
    found = dict(zip(wanted, gains.of_segments(tape, list(wanted.values()), power_steps), strict=True))
    return tuple(replace(level, greatest=found.get(i, math.nan)) for i, level in enumerate(levels))


def _level_table(levels: Sequence[Level]) -> str:
    rows = [("value", "|ct|", "gain", "greatest", "operation")]
    for level in levels:
        if abs(level.gain - 1) < SAME:
            continue  # the next row says as much
        code = " ".join(level.code.split())
        rows.append((level.name, f"{level.norm:.3g}", _cell(level.gain), _cell(level.greatest), code[:60]))
    return in_columns(rows)


def _cell(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.3g}"


def _loop_line(loop: Loop) -> str:
    growth = "" if math.isnan(loop.growth) else f", times {loop.growth:.4g} per step of the backward pass"
    gain = f", {loop.gain:.3g} by power steps" if loop.gains else ""
    return (
        f"{loop.node}: {len(loop.norms) - 1} steps, |ct| of the carry {loop.norms[0]:.3g} before the first and "
        f"{loop.norms[-1]:.3g} after the last{growth}{gain}"
    )
