"""Check one node at a point: its rule against differences, and against what JAX derives from its program.

For a random cotangent `ct` of the outputs and a random tangent `t` of one operand, three numbers agree:

    <rule(ct), t>      the rule in force, in the precision of the program
    <ct, slope>        central differences along `t`, in double precision
    <ct, jvp(t)>       the derivative JAX makes of the node's own program, in double precision

A cotangent is zero at outputs that have no derivative there (kinks, ties, jumps). The third number counts where
it agrees with the second, or where the program stops gradients on purpose: the derivative that JAX makes of a
bisection is zero, and wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ... import _jaxpr
from ...core.local import scatter, take
from .differences import (
    Slope,
    coarse_slope,
    fine_slope,
    pairing,
    random_cotangent,
    random_tangent,
    relative_error,
    to_double,
)
from .float64 import UNSUPPORTED
from .rule_functions import Arrays, Operands, RuleFunctions, Sides

#: Why a direction decides nothing.
Reason: TypeAlias = Literal["no derivative", "not finite", "piecewise constant", "imprecise", "ill-conditioned"]

#: Differences whose own error is more than this fraction decide nothing, ...
MOST_DOUBT = 0.1

#: ... and neither does a rule that changes by more when its operands change in their last bit.
MOST_ROUNDING = 0.3


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was found at one operand, along one direction.

    Attributes:
        position: of the operand.
        error: `|<rule(ct), t> - <ct, slope>|`, relative to the 2-norm of the terms of both.
        allowed: what it may be: the tolerance, and the error of the differences.
        derived: the same error against `<ct, jvp(t)>`; None where JAX derives none, or none that counts.
        linear: the same between the node's own forward rule and its transpose; None where there is none.
        agree: whether differences and what JAX derives are one.
        in_ct: what the rule sends to the operand.
        cts: the cotangents it was given, one for each output; None where no cotangent arrives.
        coarse: whether coarse differences were needed: the primal is piecewise constant.
        undecided: why nothing was decided, None where something was.
        wrong: whether the rule is not the derivative.
    """

    position: int
    error: float
    allowed: float
    derived: float | None
    linear: float | None
    agree: bool
    in_ct: np.ndarray
    cts: tuple[np.ndarray | None, ...]
    coarse: bool = False
    undecided: Reason | None = None
    wrong: bool = False

    @property
    def not_transposed(self) -> bool:
        """Whether the forward rule is not the transpose of the reverse rule."""
        return self.linear is not None and not self.linear <= self.allowed

    @property
    def margin(self) -> float:
        """The error of a rule that is right: against what agrees with it."""
        return self.error if self.derived is None else min(self.error, self.derived)

    @property
    def badness(self) -> float:
        worst = max(x for x in (self.error, self.linear or 0.0) if not math.isnan(x))
        return worst if math.isfinite(worst) else math.inf


def check_operands(rule: RuleFunctions, operands: Operands, directions: int, seed: int) -> list[Judgement]:
    """Check the rule of a node at one point: all moved operands, along random directions.

    Raises:
        RuleError: the rule itself fails.
        UNSUPPORTED: the primal cannot be evaluated on both sides of the point.
    """
    rng = np.random.default_rng(seed)
    tangents = [
        np.stack([random_tangent(operands[position], rng, relative=k % 2 == 0) for k in range(directions)])
        for position in rule.moved
    ]
    sides = rule.fine_sides(operands, tangents)
    return [
        _Trial(rule, operands, which, ts[k], rng).judge(_direction(sides[which], k))
        for which, ts in enumerate(tangents)
        for k in range(len(ts))
    ]


def _direction(sides: Sides | None, k: int) -> Sides:
    assert sides is not None
    return Sides([x[k] for x in sides.values], None if sides.pushed is None else [x[k] for x in sides.pushed])


class _Trial:
    """One operand of a node, moved along one direction, under one random cotangent."""

    def __init__(
        self, rule: RuleFunctions, operands: Operands, which: int, tangent: np.ndarray, rng: np.random.Generator
    ) -> None:
        self.rule, self.operands, self.which, self.tangent = rule, operands, which, tangent
        outputs = [rule.node.outputs[i] for i in rule.kept]
        self.dtypes = [value.dtype for value in outputs]
        self.random_cts = [random_cotangent(value.shape, value.dtype, rng) for value in outputs]

    def judge(self, sides: Sides) -> Judgement:
        slopes = [fine_slope(value, self.rule.steps) for value in sides.values]
        found = self.compare(slopes, sides.pushed)
        if not self.rule.may_iterate:
            return found
        flat = all(bool(np.all(slope.flat | ~slope.smooth)) for slope in slopes)
        if not (flat or found.wrong or found.undecided):
            return found
        return self.judge_coarse(slopes, sides.pushed, found, flat)

    def judge_coarse(
        self, slopes: list[Slope], pushed: Arrays | None, fine: Judgement, flat: bool
    ) -> Judgement:
        """Judge by coarse differences, where fine ones see nothing but the flat parts of a staircase."""
        sides = self.rule.coarse_sides(self.operands, self.alone(self.tangent))[self.which]
        coarse = [coarse_slope(value) for value in _direction(sides, 0).values]
        stairs = [c.smooth & (f.flat | ~f.smooth) for f, c in zip(slopes, coarse, strict=True)]
        if any(map(np.any, stairs)):
            mixed = [f.override(c, where) for f, c, where in zip(slopes, coarse, stairs, strict=True)]
            found = self.compare(mixed, pushed, stairs=True)
            reason = "piecewise constant" if found.undecided == "imprecise" else found.undecided
            return replace(found, coarse=True, undecided=reason)
        changes = not all(bool(np.all(slope.flat)) for slope in coarse)
        if flat and changes and self.rule.has_loop:
            return replace(fine, undecided="piecewise constant", wrong=False)
        return fine

    def alone(self, tangent: np.ndarray) -> list[np.ndarray | None]:
        """One direction for the operand of this trial, and none for the others."""
        return [tangent[None] if i == self.which else None for i in range(len(self.rule.moved))]

    # --- comparing -------------------------------------------------------------------------------

    def compare(self, slopes: list[Slope], pushed: Arrays | None, stairs: bool = False) -> Judgement:
        """Compare the rule with differences and with what JAX derives."""
        cts = [
            np.where(slope.smooth, ct, 0).astype(dtype)
            for slope, ct, dtype in zip(slopes, self.random_cts, self.dtypes, strict=True)
        ]
        in_ct = np.asarray(self.rule.pull(self.operands, cts)[self.which])
        tangent, bad = self.tangent, ~np.isfinite(to_double(in_ct))
        if bad.any() and not bad.all():
            # Where the rule is infinite nothing moves; there is a derivative elsewhere.
            tangent, in_ct = np.where(bad, 0, tangent), np.where(bad, 0, in_ct)
            sides = self.rule.fine_sides(self.operands, self.alone(tangent))[self.which]
            here = _direction(sides, 0)
            slopes = [fine_slope(value, self.rule.steps) for value in here.values]
            pushed = here.pushed
        comparison = _Comparison(self, tangent, cts, in_ct, slopes, pushed, stairs)
        return comparison.judgement()

    def conditioning(self, cts: Arrays, tangent: np.ndarray, in_ct: np.ndarray) -> float:
        """Measure how much the rule changes with the last bit of its operands, in the scale of `error`.

        `logaddexp(x, y)` at -1e5 cannot tell 0.500 from 0.498 in float32: neighbours of x are 0.008 apart.
        """
        rng, here = np.random.default_rng(0), pairing([to_double(in_ct)], [tangent])
        changes = []
        for _ in range(8):  # where two operands move alike, their difference does not
            neighbours = [_neighbour(x, rng) for x in self.operands]
            there = pairing([to_double(self.rule.pull(neighbours, cts)[self.which])], [tangent])
            changes.append(relative_error(here, there))
        return max((change for change in changes if math.isfinite(change)), default=0.0)


class _Comparison:
    """The three numbers of one trial, and what follows from them."""

    def __init__(
        self,
        trial: _Trial,
        tangent: np.ndarray,
        cts: Arrays,
        in_ct: np.ndarray,
        slopes: Sequence[Slope],
        pushed: Arrays | None,
        stairs: bool,
    ) -> None:
        self.trial, self.rule, self.tangent, self.cts, self.in_ct = trial, trial.rule, tangent, cts, in_ct
        self.slopes, self.stairs = slopes, stairs
        self.wide = [to_double(ct) for ct in cts]
        self.by_rule = pairing([to_double(in_ct)], [tangent])
        self.by_slope = pairing(self.wide, [slope.value for slope in slopes])
        spread = 3 * pairing(self.wide, [slope.spread for slope in slopes]).norm
        noise = 3 * pairing(self.wide, [slope.noise for slope in slopes]).norm
        natural = pairing(self.wide, [slope.size for slope in slopes]).norm
        scale = max(self.by_rule.norm, self.by_slope.norm)
        doubt = (spread + noise) / scale if scale else 0.0
        self.error = relative_error(self.by_rule, self.by_slope)
        self.allowed = self.rule.tolerance + doubt
        #: Whether the differences are good enough to decide: a gradient of zero is known to rounding only.
        self.decisive = (spread <= max(MOST_DOUBT * scale, noise)) and noise <= MOST_DOUBT * max(scale, natural)
        finite = pushed is not None and all(np.isfinite(x).all() for x in pushed)
        self.pushed = pushed if finite else None
        by_jvp = None if self.pushed is None else pairing(self.wide, self.pushed)
        apart = math.inf if by_jvp is None else relative_error(self.by_slope, by_jvp)
        self.agree = self.decisive and apart <= self.allowed
        #: Whether the differences contradict what JAX derives: at a tie, say, that is no derivative.
        self.contradict = by_jvp is not None and math.isfinite(apart) and apart > self.allowed
        self.derived = relative_error(self.by_rule, by_jvp) if by_jvp is not None and self.derivable else None

    @property
    def derivable(self) -> bool:
        """Whether what JAX derives counts: see the module's docstring."""
        rule = self.rule
        if not rule.derivable:
            return False
        jaxs_own = _jaxpr.custom_form(rule.node.eqn) is None
        unopposed = not (self.decisive or self.stairs or self.contradict)
        return self.agree or jaxs_own or rule.stops_gradients or unopposed

    def judgement(self) -> Judgement:
        smooth = sum(int(np.sum(slope.smooth)) for slope in self.slopes)
        size = sum(np.size(slope.smooth) for slope in self.slopes)
        undecided: Reason | None = None
        extra, wrong = 0.0, False
        if size and not smooth:
            finite = any(np.any(slope.finite) for slope in self.slopes)
            undecided = "no derivative" if finite else "not finite"
        elif not math.isfinite(self.error) and smooth < size:
            undecided = "not finite"
        elif not self.is_right(0.0):
            extra = self.rounding()
            wrong = not self.is_right(extra)
            if not wrong and extra > MOST_ROUNDING:
                undecided = "ill-conditioned"
            elif wrong and not self.decisive and self.derived is None:
                undecided, wrong = "imprecise", False
        rule = self.rule
        return Judgement(
            position=rule.moved[self.trial.which],
            error=self.error,
            allowed=self.allowed + extra,
            derived=self.derived,
            linear=self.linear(),
            agree=self.agree,
            in_ct=self.in_ct,
            cts=scatter(self.cts, rule.kept, len(rule.node.outputs)),
            undecided=undecided,
            wrong=wrong,
        )

    def is_right(self, extra: float) -> bool:
        """Whether the rule agrees with what decides here, `extra` being the error that rounding explains."""
        by_differences = self.decisive and self.error <= self.allowed + extra
        by_derivative = self.derived is not None and self.derived <= self.rule.tolerance + extra
        return by_differences or by_derivative

    def rounding(self) -> float:
        """The error that rounding alone explains: a rule at an ill-conditioned point is not a wrong rule."""
        extra = 2 * self.trial.conditioning(self.cts, self.tangent, self.in_ct)
        if self.is_right(extra):
            return extra
        which, operands = self.trial.which, self.trial.operands
        try:
            if not self.rule.has_custom_rule:
                exact = to_double(self.rule.pull_wide(operands, self.wide)[which])
                self.error = min(self.error, relative_error(pairing([exact], [self.tangent]), self.by_slope))
            else:
                exact = to_double(self.rule.pull_in_double(operands, self.cts)[which])
                rounding = 2 * relative_error(self.by_rule, pairing([exact], [self.tangent]))
                extra += rounding if math.isfinite(rounding) else 0.0
        except UNSUPPORTED:  # JAX derives nothing from this program
            pass
        return extra

    def linear(self) -> float | None:
        """The error of the node's own forward rule as the transpose of the reverse rule."""
        push = self.rule.push
        if push is None:
            return None
        moved = map(jnp.asarray, take(self.trial.operands, self.rule.moved))
        tangents = [
            jnp.asarray(self.tangent if i == self.trial.which else np.zeros(x.shape), x.dtype)
            for i, x in enumerate(moved)
        ]
        own = [to_double(x) for x in push(self.trial.operands, tangents)]
        finite = all(np.isfinite(x).all() for x in own)
        return relative_error(self.by_rule, pairing(self.wide, own)) if finite else None


def _neighbour(x: ArrayLike, rng: np.random.Generator) -> ArrayLike:
    """Move each element by one or a few roundings, up or down.

    One may change nothing: an intermediate of the rule is rounded too, on a coarser grid if it is larger.
    """
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return x
    step = float(jnp.finfo(dtype).eps) * rng.choice([-4.0, -1.0, 1.0, 4.0], np.shape(x))
    return jnp.asarray((to_double(x) * (1 + step)).astype(dtype))


def off_the_kink(rule: RuleFunctions, operands: Operands, seed: int) -> list[ArrayLike]:
    """Move the differentiated operands by one percent of their size, away from kinks and ties."""
    rng, full = np.random.default_rng(seed), list(operands)
    for places in rule.places:
        x = operands[places[0]]
        moved = to_double(x) + 1e-2 * random_tangent(x, rng, relative=False)
        for place in places:
            full[place] = jnp.asarray(moved.astype(jnp.result_type(x)))
    return full
