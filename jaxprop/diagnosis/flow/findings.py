"""Findings on gradients that vanish, explode or cancel, from the measures of one pass."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._structure import predecessors, reachable
from ...core.graph import Node, Value
from ..measures import Field, with_parents
from ..report import Finding, Severity, at
from ..thresholds import Thresholds
from ..zero.dynamic import RunPass, is_finite
from ..zero.wording import SATURATING, quoted, repetition, subject
from . import cancellation
from .chains import Chain, Segment, chains
from .gains import Gains
from .loops import Carries, Loop, loops, segments_of_step


def flow_findings(
    field: Field, run: RunPass, thresholds: Thresholds | None = None, gains: Gains | None = None
) -> list[Finding]:
    """Report gradients that vanish or explode, from a pass that `measures.recorder` recorded.

    Args:
        field: the measures of the pass.
        run: one more pass, `(nodes, record) -> Tape`; run only for a loop that something is reported of.
        thresholds: from where on something is reported.
        gains: the estimators, kept by the caller so that they are compiled once.
    """
    limits, gains = thresholds or Thresholds(), gains or Gains()
    found, named = [], set()
    for carries, loop in loops(field):
        kind = _kind_of_loop(carries, loop, limits)
        if not kind and loop.overflows:
            loop = with_gains(field, carries, loop, run, gains)
            kind = "exploding" if loop.log_gain > math.log(limits.exploding) else ""
        elif kind:
            loop = with_gains(field, carries, loop, run, gains)
        if kind:
            found.append(_loop_finding(field, carries, loop, kind))
            named.add(carries.node.index)
    for kind, some in _by_kind(chains(field), limits).items():
        worst = max(some, key=lambda chain: abs(math.log(chain.ratio)))
        if _blame(worst.segments)[0].node.index not in named:
            found.append(_chain_finding(field, worst, kind, some))
    return found


def not_finite_findings(field: Field) -> list[Finding]:
    """Report leaves whose gradient is not finite: its magnitude says nothing."""
    leaves = [leaf.name for leaf in field.graph.inputs if not np.isfinite(field.top(leaf) or 0.0)]
    if is_finite(field):
        return []
    return [
        Finding(
            kind="not finite",
            severity="warning",
            message=f"The gradient of {subject(leaves)} is not finite.",
            cause="not finite",
            why="Behind a NaN or Inf the magnitude of a cotangent says nothing.",
            fix="Find out with `jp.diagnose` where it comes from.",
            leaves=tuple(leaves),
        )
    ]


def _kind_of_ratio(ratio: float, limits: Thresholds) -> str:
    if 0 < ratio < limits.vanishing:
        return "vanishing"
    return "exploding" if ratio > limits.exploding else ""


def _kind_of_loop(carries: Carries, loop: Loop, limits: Thresholds) -> str:
    finite = [norm for norm in loop.norms if math.isfinite(norm)]
    if loop.overflows and not _is_huge(max(finite, default=0.0), carries.into[0]):
        return ""
    return _kind_of_ratio(loop.ratio, limits)


def _is_huge(norm: float, value: Value) -> bool:
    """Whether a cotangent has grown so large that it overflows soon: a pole makes an Inf out of nothing."""
    dtype = value.dtype if _jaxpr.is_inexact(value.dtype) else np.dtype("float32")
    return norm > math.sqrt(float(jnp.finfo(dtype).max))


def _by_kind(known: Sequence[Chain], limits: Thresholds) -> dict[str, list[Chain]]:
    found: dict[str, list[Chain]] = {}
    for chain in known:
        if chain.overflows and not _is_huge(chain.start, chain.first):
            continue
        if kind := _kind_of_ratio(chain.ratio, limits):
            found.setdefault(kind, []).append(chain)
    return found


def _verb(kind: str) -> str:
    return "vanishes" if kind == "vanishing" else "explodes"


# --- along depth -----------------------------------------------------------------------------------------


def log_gain(gain: float) -> float:
    """The logarithm of a gain; zero where the cotangent overflows, so that it is not known."""
    if not math.isfinite(gain):
        return 0.0
    return math.log(gain) if gain > 0 else -700.0


def _blame(segments: Sequence[Segment]) -> list[Segment]:
    """The segments of a chain that shrinks (or grows), the one that does most first."""
    total = sum(log_gain(segment.gain) for segment in segments)
    return sorted(segments, key=lambda s: log_gain(s.gain) if total < 0 else -log_gain(s.gain))


def _chain_finding(field: Field, chain: Chain, kind: str, some: Sequence[Chain]) -> Finding:
    worst = _blame(chain.segments)[0]
    alone = log_gain(worst.gain) / math.log(chain.ratio) > 0.5
    first = f"{chain.start:.2g} at `{chain.first.name}`, {chain.ratio:.1e} times that"
    if chain.overflows:
        first = f"overflows {chain.first.dtype} before it reaches `{chain.first.name}`"
    where = f"{quoted(worst.node)}{repetition(field.graph, worst.node)}"
    return Finding(
        kind=kind,
        severity="warning",
        message=f"The gradient {_verb(kind)} in the backward pass: |ct| is {chain.end:.2g} at "
        f"`{chain.last.name}` and {first}.",
        **at(field.graph, worst.node),
        cause="one node" if alone else "many layers",
        why=f"{where} alone multiplies it by {worst.gain:.2g}." if alone else _no_single_node(chain),
        fix=_fix(kind, _most(chain.segments), _has_skips(chain.segments)),
        numbers={"ratio": chain.ratio, "values": len(chain.segments) + 1, "gain here": worst.gain},
        leaves=tuple(name for one in some for name in one.leaves),
    )


def _no_single_node(chain: Chain) -> str:
    primitive = _most(chain.segments)
    gains = [s.gain for s in chain.segments if s.node.primitive == primitive and math.isfinite(s.gain)]
    mean = math.exp(float(np.mean([log_gain(gain) for gain in gains])))
    return (
        f"No single node dominates: `{primitive}` contributes most, {len(gains)} times {mean:.2g} on average. "
        "The strongest of all nodes is named here."
    )


def _most(segments: Sequence[Segment]) -> str:
    """The primitive whose nodes together change the norm most, in the direction of the whole."""
    total: dict[str, float] = {}
    for segment in segments:
        name = segment.node.primitive
        total[name] = total.get(name, 0.0) + log_gain(segment.gain)
    sign = math.copysign(1.0, sum(total.values()))
    return max(total, key=lambda name: sign * total[name])


def _has_skips(segments: Sequence[Segment]) -> bool:
    """Whether there are skip connections: an addition that reads the value before it."""
    return any(
        segment.node.primitive in ("add", "add_any") and segment.near in segment.node.operands
        for segment in segments
    )


def _fix(kind: str, primitive: str, has_skips: bool) -> str:
    if kind == "exploding":
        return (
            "Use a smaller initialization (variance 1 / fan_in), normalise between layers, or clip the "
            "gradient: `optax.clip_by_global_norm(1.0)`."
        )
    skip = "" if has_skips else ", or add skip connections: `h = h + f(h)`"
    if primitive in SATURATING:
        function = SATURATING[primitive]
        return f"Use `jax.nn.gelu` or `jax.nn.relu` in place of {function}, or normalise its input{skip}."
    return (
        "Use a larger initialization (variance 1 / fan_in, 2 / fan_in before a relu), or normalise between "
        f"layers{skip}."
    )


# --- through time ----------------------------------------------------------------------------------------


def with_gains(field: Field, carries: Carries, loop: Loop, run: RunPass, gains: Gains) -> Loop:
    """Add the gains of the steps, by one more pass that keeps the operands of the loop."""
    tape = run(with_parents(field.graph, [carries.node]))
    operands = []
    for value in carries.node.operands:
        last = (-1,) * len(
            field.graph.places[carries.node.index].steps
        )  # of the loops around it, the last step
        operands.append(jnp.asarray(tape.value_of(value, last)))
    return replace(loop, gains=tuple(map(float, gains.of_steps(field.graph, carries, operands))))


def _loop_finding(field: Field, carries: Carries, loop: Loop, kind: str) -> Finding:
    step, alone = _worst_step(loop)
    segments = segments_of_step(field, carries)
    worst = _blame(segments)[0] if segments else None
    node = worst.node if worst is not None else carries.node
    length = carries.form.length
    growth = loop.gain if math.isnan(loop.growth) else loop.growth
    numbers = {"ratio": loop.ratio, "growth per step": growth, "steps": length}
    if loop.gains:
        numbers["gain per step"] = loop.gain
    within = f" Within a step {quoted(node)} contributes most: {worst.gain:.2g}." if worst is not None else ""
    why = (
        f"Step {step} alone multiplies it by {_step_factors(loop)[step]:.2g}."
        if alone
        else f"Each step of the backward pass multiplies it by {growth:.3g}, {length} times.{within}"
    )
    name = carries.node.name
    return Finding(
        kind=kind,
        severity="warning",
        message=f"The gradient {_verb(kind)} through the steps of `{name}`: {_growth_in_words(carries, loop)}.",
        **at(field.graph, node),
        step=(step,) if alone else (),
        cause="one step" if alone else "recurrence",
        why=why,
        fix=_loop_fix(kind, carries.out[0].name),
        numbers=numbers,
        leaves=_leaves_into(field, carries),
    )


def _growth_in_words(carries: Carries, loop: Loop) -> str:
    if not loop.overflows:
        return (
            f"|ct| of the carry is {loop.norms[0]:.2g} before the first step, {loop.ratio:.1e} times that "
            "after the last"
        )
    finite = [step for step, norm in enumerate(loop.norms) if 0 < norm < math.inf]
    dtype = carries.into[0].dtype
    if not finite or finite[0] == 0:
        return f"|ct| of the carry exceeds the range of {dtype} at every step"
    return (
        f"|ct| of the carry is {loop.norms[finite[-1]]:.2g} after the last step and overflows {dtype} before "
        f"step {finite[0]} of {carries.form.length}"
    )


def _leaves_into(field: Field, carries: Carries) -> tuple[str, ...]:
    """The leaves with a gradient that what a step hands on depends on."""
    step = predecessors(field.graph)

    def back(value: Value) -> list[Value]:
        return [new for _, new in step.get(value.id, ()) if new.active and field.top(new) != 0]

    reached = reachable(carries.out, back)
    return tuple(leaf.name for leaf in field.graph.inputs if leaf.id in reached and field.top(leaf))


def _step_factors(loop: Loop) -> list[float]:
    """The factor of each step of the backward pass, in the order of time."""
    pairs = zip(loop.norms, loop.norms[1:], strict=False)
    return [a / b if 0 < a < math.inf and 0 < b < math.inf else 1.0 for a, b in pairs]


def _worst_step(loop: Loop) -> tuple[int, bool]:
    """The step that changes the norm most, and whether it does more than all others together."""
    logs = [log_gain(factor) for factor in _step_factors(loop)]
    total = sum(logs)
    step = int(np.argmin(logs) if total < 0 else np.argmax(logs))
    return step, total != 0 and logs[step] / total > 0.5 and not loop.overflows


def _loop_fix(kind: str, carry: str) -> str:
    if kind == "exploding":
        return (
            "Initialise the recurrent matrix as orthogonal, clip the gradient "
            "(`optax.clip_by_global_norm(1.0)`), or the cotangent at each step: "
            f'`rules=[("{carry}", jp.rules.clip(max_norm=1.0))]`.'
        )
    return (
        "Use a gated cell (a GRU, or an LSTM whose forget bias is initialised to 1), an orthogonal recurrent "
        "matrix, or a skip connection around the step: `h = h + f(h, x)`."
    )


# --- cancellation ----------------------------------------------------------------------------------------


def cancellation_findings(field: Field, run: RunPass, thresholds: Thresholds | None = None) -> list[Finding]:
    """Report values whose contributions are large and cancel, by one more pass at the nodes that read them."""
    limits = thresholds or Thresholds()
    known = cancellation.consumers_of_fan_outs(field.graph)
    readers = frozenset(node.index for some in known.values() for node, _ in some)
    if not readers or not is_finite(field):
        return []
    tape = run(readers, cancellation.recorder)
    scale = max((field.norm(leaf) for leaf in field.graph.inputs if leaf in field), default=0.0)
    found = []
    for fan_out in cancellation.fan_outs(field, tape):
        large = [norm for _, norm in fan_out.contributions if norm > 1e-3 * scale]
        if len(large) > 1 and fan_out.cancellation < limits.cancellation:
            found.append(_largest_cancellation(field, fan_out))
    return found


def _largest_cancellation(field: Field, fan_out: cancellation.FanOut) -> Finding:
    ranked = sorted(fan_out.contributions, key=lambda pair: -pair[1])
    node, value = ranked[0][0], fan_out.value
    names = " and ".join(dict.fromkeys(quoted(reader) for reader, _ in ranked[:2]))
    exact = fan_out.norm == 0
    severity: Severity = "note" if exact else "warning"
    numbers = {"sum": fan_out.norm, **_by_consumer(ranked[:4])}
    message = f"The contributions to the cotangent of `{value.name}` cancel"
    if exact:
        return Finding(
            kind="cancellation",
            severity=severity,
            message=f"{message} exactly: their sum is zero.",
            **at(field.graph, node),
            cause="exact cancellation",
            why=f"What {names} contribute is equal and opposite: the derivative is truly zero.",
            numbers=numbers,
        )
    precision = float(jnp.finfo(value.dtype).eps)
    digits = min(-math.log10(fan_out.cancellation), -math.log10(precision))
    wider = ", or compute this part in float64" if jnp.finfo(value.dtype).bits < 64 else ""
    return Finding(
        kind="cancellation",
        severity=severity,
        message=f"{message}: their sum is {fan_out.cancellation:.1e} of their magnitude.",
        **at(field.graph, node),
        cause="cancellation",
        why=f"What {names} contribute is nearly equal and opposite: about {digits:.0f} digits are lost to "
        "cancellation.",
        fix="Write the two as one expression whose parts do not cancel (`jnp.var`, `log1p`, `expm1`, "
        f"`logsumexp`){wider}.",
        numbers=numbers,
    )


def _by_consumer(contributions: Sequence[tuple[Node, float]]) -> Mapping[str, float]:
    return {f"contribution of {node.name}": norm for node, norm in contributions}
