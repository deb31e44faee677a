"""`flow`: where gradients vanish, explode or cancel out, along depth and through time."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._text import in_columns
from ..._tracing import name_of
from ..measures import Field, recorder, with_parents
from ..passes import Passes
from ..report import Finding, Report, at, plain
from ..thresholds import Thresholds
from ..zero.dynamic import Pass, is_finite
from ..zero.wording import SATURATING
from ..zero.wording import quoted as text_of
from . import cancellation
from .chains import Chain, Loop, Part, chains, inside, longest_chain, loops
from .dominators import Carry
from .gains import gains_of_steps, greatest_gains


@dataclass(frozen=True)
class Level:
    """One value of the longest chain.

    Attributes:
        name: name of the value.
        code: the expression it comes from.
        scope: the modules around it.
        norm: `|ct|`, in units of the loss per unit of the value.
        gain: `|ct|` of this value by that of the next one, a pure number; NaN at the last.
        greatest: the greatest gain the part between the two could have for any cotangent, by power steps: the
            greatest singular value of its Jacobian; NaN where not estimated.
    """

    name: str
    code: str
    scope: str
    norm: float
    gain: float
    greatest: float = np.nan


@dataclass(frozen=True)
class Flow(Report):
    """What `flow` found, and what it measured.

    Attributes:
        levels: the longest chain of values that every way goes through, from the leaf on.
        loops: the loops that carry gradients from step to step.
    """

    levels: tuple[Level, ...] = ()
    loops: tuple[Loop, ...] = ()

    def data(self) -> dict[str, Any]:
        levels = [vars(level) for level in self.levels]
        return {**super().data(), "levels": plain(levels), "loops": plain([loop.data() for loop in self.loops])}

    def __str__(self) -> str:
        parts = [super().__str__(), *([_table(self.levels)] if self.levels else [])]
        return "\n\n".join([*parts, *map(_line, self.loops)])

    __repr__ = __str__


def gradient_flow(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    thresholds: Thresholds | None = None,
    power_steps: int = 8,
) -> Callable[..., Flow]:
    """Find where gradients vanish, explode or cancel out.

    Along depth: the values that every way from a leaf to the result goes through, the norm of the cotangent at
    each, and the gain of each part between two. Through time: the norm of the carries' cotangent at each step
    of a loop, and its growth per step. At values read more than once: whether the shares cancel out.

        gain of a part    = |ct(near)| / |ct(far)|
        growth of a loop  = exp(-slope of log |ct(carry before step t)| over t)
        cancellation      = |sum of shares| / sum of |shares|

    A ratio of norms tells of this one cotangent. What a part could do to any is its greatest singular value,
    and what a loop does in the long run its greatest Lyapunov exponent: both are estimated by power steps.

    Args:
        fun: a loss, as it stands.
        argnums, has_aux: as in `backprop`.
        thresholds: from where on something is said; see `Thresholds`.
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
    limits = thresholds or Thresholds()
    passes = Passes(fun, argnums, has_aux)

    @functools.wraps(fun, updated=())
    def report(*args: Any, **kwargs: Any) -> Flow:
        run = passes.at(*args, **kwargs)
        field = Field.of(run(record=recorder))
        found = flow_findings(field, run, limits) + cancellation_findings(field, run, limits)
        known = chains(field)
        longest = longest_chain(known)
        levels = _levels(field, longest) if longest else ()
        seen = loops(field)
        if power_steps and longest:
            levels = _with_greatest(levels, longest, run, power_steps)
        if power_steps:
            seen = [(carry, _with_gains(field, carry, loop, run)) for carry, loop in seen]
        base = Report.of(f"flow {name_of(fun)}", found)
        return Flow(base.title, base.findings, levels=levels, loops=tuple(loop for _, loop in seen))

    return report


def flow_findings(field: Field, run: Pass, thresholds: Thresholds | None = None) -> list[Finding]:
    """Gradients that vanish or explode, from a pass that was recorded by `recorder` (for `diagnose`).

    Args:
        field: the measures of the pass.
        run: one more pass, `(nodes, record) -> Tape`; run only for a loop something is said of.
        thresholds: from where on something is said.
    """
    limits = thresholds or Thresholds()
    if not is_finite(field):
        return []
    found, named = [], set()
    for carry, loop in loops(field):
        kind = _kind(loop.ratio, limits)
        if kind:
            found.append(_loop_finding(field, carry, _with_gains(field, carry, loop, run), kind))
            named.add(carry.node.index)
    for kind, some in _worst(chains(field), limits).items():
        worst = max(some, key=lambda chain: abs(np.log(chain.ratio)))
        if _blame(worst.parts)[0].node.index not in named:
            found.append(_chain_finding(field, worst, kind, some))
    return found


def _kind(ratio: float, limits: Thresholds) -> str:
    if 0 < ratio < limits.vanishing:
        return "vanishing"
    return "exploding" if ratio > limits.exploding else ""


def _worst(known: Sequence[Chain], limits: Thresholds) -> dict[str, list[Chain]]:
    found: dict[str, list[Chain]] = {}
    for chain in known:
        if kind := _kind(chain.ratio, limits):
            found.setdefault(kind, []).append(chain)
    return found


# --- along depth -----------------------------------------------------------------------------------------


def _blame(parts: Sequence[Part]) -> list[Part]:
    """The parts that make a chain shrink (or grow), the one that does most first."""
    total = sum(_log(part.gain) for part in parts)
    return sorted(parts, key=lambda part: _log(part.gain) if total < 0 else -_log(part.gain))


def _log(gain: float) -> float:
    return float(np.log(gain)) if gain > 0 else -700.0


def _chain_finding(field: Field, chain: Chain, kind: str, some: Sequence[Chain]) -> Finding:
    first, last = chain.parts[0].near, chain.parts[-1].far
    worst = _blame(chain.parts)[0]
    alone = _log(worst.gain) / _log(chain.ratio) > 0.5
    leaves = tuple(name for one in some for name in one.leaves)
    verb = "vanishes" if kind == "vanishing" else "explodes"
    return Finding(
        kind=kind,
        severity="warning",
        message=f"The gradient {verb} on its way back: |ct| is {chain.end:.2g} at `{last.name}` and "
        f"{chain.start:.2g} "
        f"at `{first.name}`, {chain.ratio:.1e} times that.",
        **at(field.graph, worst.node),
        cause="one node" if alone else "many layers",
        why=f"{text_of(worst.node)} alone multiplies it by {worst.gain:.2g}." if alone else _spread(chain),
        fix=_fix(kind, _most(chain.parts)),
        numbers={"ratio": chain.ratio, "values": len(chain.parts) + 1, "gain here": worst.gain},
        leaves=leaves,
    )


def _spread(chain: Chain) -> str:
    primitive = _most(chain.parts)
    gains = [part.gain for part in chain.parts if part.node.primitive == primitive]
    mean = float(np.exp(np.mean([_log(gain) for gain in gains])))
    return (
        f"No single node does it: `{primitive}` does most, {len(gains)} times {mean:.2g} on the average; "
        "the strongest "
        "of them all is named here."
    )


def _most(parts: Sequence[Part]) -> str:
    """The primitive whose nodes together change the norm most, in the direction of the whole."""
    total: dict[str, float] = {}
    for part in parts:
        total[part.node.primitive] = total.get(part.node.primitive, 0.0) + _log(part.gain)
    sign = np.sign(sum(total.values()))
    return max(total, key=lambda name: sign * total[name])


def _fix(kind: str, primitive: str) -> str:
    if kind == "exploding":
        return (
            "Begin with smaller weights (variance 1 / fan_in), normalise between layers, or bound the step: "
            "`optax.clip_by_global_norm(1.0)`."
        )
    if primitive in SATURATING:
        return (
            f"Use `jax.nn.gelu` or `jax.nn.relu` in place of {SATURATING[primitive]}, normalise what goes "
            "into it, or "
            "lead around it: `h = h + f(h)`."
        )
    return (
        "Begin with larger weights (variance 1 / fan_in, 2 / fan_in before a relu), normalise between "
        "layers, or lead "
        "around them: `h = h + f(h)`."
    )


# --- through time ----------------------------------------------------------------------------------------


def _loop_finding(field: Field, carry: Carry, loop: Loop, kind: str) -> Finding:
    step, alone = _worst_step(loop)
    parts = inside(field, carry)
    worst = _blame(parts)[0] if parts else None
    node = worst.node if worst is not None else carry.node
    verb = "vanishes" if kind == "vanishing" else "explodes"
    numbers = {"ratio": loop.ratio, "growth per step": loop.growth, "steps": carry.form.length}
    if loop.gains:
        numbers["gain per step"] = loop.gain
    within = f" Within a step {text_of(node)} does most: {worst.gain:.2g}." if worst is not None else ""
    why = (
        f"Step {step} alone changes it by {_steps(loop)[step]:.2g}."
        if alone
        else f"Each step back multiplies it by {loop.growth:.3g}, {carry.form.length} times.{within}"
    )
    return Finding(
        kind=kind,
        severity="warning",
        message=f"The gradient {verb} through the steps of `{carry.node.name}`: |ct| of the carry is "
        f"{loop.norms[0]:.2g} before the first step, {loop.ratio:.1e} times that after the last.",
        **at(field.graph, node),
        step=(step,) if alone else (),
        cause="one step" if alone else "recurrence",
        why=why,
        fix=_loop_fix(kind, carry.out[0].name),
        numbers=numbers,
        leaves=tuple(dict.fromkeys(leaf.name for out in carry.out for leaf in field.fed_by(out))),
    )


def _steps(loop: Loop) -> list[float]:
    """The factor of each step back, in the order of time."""
    pairs = zip(loop.norms, loop.norms[1:], strict=False)
    return [a / b if a > 0 and b > 0 else 1.0 for a, b in pairs]


def _worst_step(loop: Loop) -> tuple[int, bool]:
    """The step that changes the norm most, and whether it does more than all others together."""
    logs = [_log(factor) for factor in _steps(loop)]
    total = sum(logs)
    step = int(np.argmin(logs) if total < 0 else np.argmax(logs))
    return step, total != 0 and logs[step] / total > 0.5


def _loop_fix(kind: str, carry: str) -> str:
    if kind == "exploding":
        return (
            "Begin with an orthogonal recurrent matrix, bound the step "
            "(`optax.clip_by_global_norm(1.0)`), or the "
            f'cotangent at each step: `rules=[("{carry}", jp.rules.clip(max_norm=1.0))]`.'
        )
    return (
        "Use a gated cell (a GRU, or an LSTM whose forget bias begins at 1), an orthogonal recurrent "
        "matrix, or a way "
        "around the step: `h = h + f(h, x)`."
    )


# --- cancellation ----------------------------------------------------------------------------------------


def cancellation_findings(field: Field, run: Pass, thresholds: Thresholds | None = None) -> list[Finding]:
    """Values whose shares are large and cancel out, by one more pass at the nodes that read them."""
    limits = thresholds or Thresholds()
    readers = frozenset(node.index for some in cancellation.fans_of(field.graph).values() for node, _ in some)
    if not readers or not is_finite(field):
        return []
    tape = run(readers, cancellation.recorder)
    scale = max((field.norm(leaf) for leaf in field.graph.inputs if leaf in field), default=0.0)
    found = []
    for fan in cancellation.fans(field, tape):
        large = [share for _, share in fan.readers if share > 1e-3 * scale]
        if len(large) > 1 and fan.cancellation < limits.cancellation:
            found.append(_cancelled(field, fan))
    return found


def _cancelled(field: Field, fan: cancellation.Fan) -> Finding:
    ranked = sorted(fan.readers, key=lambda pair: -pair[1])
    node, _ = ranked[0]
    names = " and ".join(text_of(reader) for reader, _ in ranked[:2])
    digits = -np.log10(max(fan.cancellation, 1e-300))
    return Finding(
        kind="cancellation",
        severity="warning",
        message=f"The shares of the cotangent of `{fan.value.name}` cancel out: their sum is "
        f"{fan.cancellation:.1e} of them.",
        **at(field.graph, node),
        cause="cancellation",
        why=f"What {names} send back is nearly equal and opposite: some {digits:.0f} digits of the sum "
        "are lost.",
        fix="Write the two as one expression whose parts do not cancel (`jnp.var`, `log1p`, `expm1`, "
        "`logsumexp`), or compute this part in float64.",
        numbers={"sum": fan.norm, **{f"share of {reader.name}": share for reader, share in ranked[:4]}},
    )


#: A gain of one, to rounding: of a bias, a reshape.
SAME = 1e-6

# --- figures -----------------------------------------------------------------------------------------------


def _levels(field: Field, chain: Chain) -> tuple[Level, ...]:
    parts = chain.parts
    made = [(part.near, part.gain) for part in parts] + [(parts[-1].far, np.nan)]
    nodes = {value.id: node for node in field.graph.walk() for value in node.outputs}
    return tuple(
        Level(value.name, nodes[value.id].label, nodes[value.id].scope, field.norm(value), float(gain))
        for value, gain in made
    )


#: Of longer chains the greatest gains of so many parts are estimated, those that change the norm most.
MOST_PARTS = 48


def _with_greatest(levels: tuple[Level, ...], chain: Chain, run: Pass, power_steps: int) -> tuple[Level, ...]:
    """Levels with the greatest gains of the parts between values of one body, outside of loops."""
    tape = run(None)
    places = tape.graph.places
    order = sorted(range(len(chain.parts)), key=lambda i: -abs(_log(chain.parts[i].gain)))
    wanted = {}
    for i in order:
        part = chain.parts[i]
        near = tape.graph[part.near.name]
        together = places[near.index].graph is places[part.node.index].graph
        if together and not places[near.index].steps and abs(part.gain - 1) > SAME:
            wanted[i] = (part.far.name, part.near.name)
    wanted = dict(list(wanted.items())[:MOST_PARTS])
    found = dict(zip(wanted, greatest_gains(tape, list(wanted.values()), power_steps), strict=True))
    return tuple(replace(level, greatest=found.get(i, np.nan)) for i, level in enumerate(levels))


def _with_gains(field: Field, carry: Carry, loop: Loop, run: Pass) -> Loop:
    tape = run(with_parents(field.graph, [carry.node]))
    operands = []
    for value in carry.node.operands:
        x = jnp.asarray(tape._value_of(value))
        operands.append(x[(-1,) * tape._axes_of(value)])  # of loops around it, the last step
    return replace(loop, gains=tuple(map(float, gains_of_steps(field.graph, carry, operands))))


def _table(levels: Sequence[Level]) -> str:
    rows = [("value", "|ct|", "gain", "greatest", "operation")]
    for level in levels:
        if abs(level.gain - 1) < SAME:
            continue  # the next row says as much
        code = " ".join(level.code.split())
        rows.append((level.name, f"{level.norm:.3g}", _number(level.gain), _number(level.greatest), code[:60]))
    return in_columns(rows)


def _number(x: float) -> str:
    return "" if np.isnan(x) else f"{x:.3g}"


def _line(loop: Loop) -> str:
    gain = f", {loop.gain:.3g} by power steps" if loop.gains else ""
    return (
        f"{loop.node}: {len(loop.norms) - 1} steps, |ct| of the carry {loop.norms[0]:.3g} before the first and "
        f"{loop.norms[-1]:.3g} after the last, times {loop.growth:.4g} at each step back{gain}"
    )
