"""One node at a point: its rule against differences and against what JAX derives from its program.

For a random cotangent `ct` of the outputs and a random tangent `t` of one operand, three numbers are one:

    <rule(ct), t>      the rule in force, in the precision of the program
    <ct, slope>        central differences along `t`, in double precision
    <ct, jvp(t)>       the derivative JAX makes of the node's own program, in double precision

A cotangent is zero at outputs that have no derivative there (kinks, ties, jumps).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._text import one_line
from ...core.graph import Node
from ...core.local import Local, active_operands, node_function, partial_function, scatter, take
from ...core.rules import Rule, check_in_cts
from .float64 import along, size_of, slope, wide_equation, widen

#: Relative differences allowed between a rule and differences, by the dtype the rule computes in. Far above
#: what rounding gives, far below what a wrong rule gives.
TOLERANCE = {"float64": 1e-6, "float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2}


def tolerance_of(dtypes: Sequence[Any]) -> float:
    """The tolerance of the least precise of some dtypes."""
    real = {jnp.finfo(dtype).dtype.name for dtype in dtypes if _jaxpr.is_inexact(dtype)}
    return max((TOLERANCE.get(name, 0.1) for name in real), default=TOLERANCE["float64"])


class Verdict(NamedTuple):
    """What was found at one operand, along one direction.

    Attributes:
        position: number of the operand.
        error: `|<rule(ct), t> - <ct, slope>|`, as a part of the 2-norm of the terms of both.
        allowed: what it may be: tolerance, and the doubt about the differences.
        derived: the same error against `<ct, jvp(t)>`; None where JAX derives none.
        linear: the same between the node's own forward rule and its transpose; None where there is none.
        agree: whether differences and what JAX derives are one.
        in_ct: what the rule sends to the operand.
        cts: the cotangents it was given.
        smooth: fraction of the outputs that have a derivative.
    """

    position: int
    error: float
    allowed: float
    derived: float | None
    linear: float | None
    agree: bool
    in_ct: Any
    cts: tuple[Any, ...]
    smooth: float

    @property
    def wrong(self) -> bool:
        return not self.error <= self.allowed and (self.derived is None or not self.derived <= self.allowed)

    @property
    def undecided(self) -> bool:
        """Whether the point decides nothing: the rule is not finite, and there is no derivative either."""
        return not math.isfinite(self.error) and self.smooth < 1.0

    @property
    def crooked(self) -> bool:
        """Whether the forward rule is not the transpose of the reverse one."""
        return self.linear is not None and not self.linear <= self.allowed

    @property
    def margin(self) -> float:
        """The error where nothing is wrong: against what agrees with the rule."""
        return self.error if self.derived is None else min(self.error, self.derived)

    @property
    def badness(self) -> float:
        worst = max(x for x in (self.error, self.linear or 0.0) if not math.isnan(x))
        return worst if math.isfinite(worst) else math.inf


class RuleError(Exception):
    """The rule itself failed."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A node and the rule in force at it, as functions: compiled once for all nodes that are the same.

    Attributes:
        node: one of the nodes.
        rule: the rule that stands in for the chain rule, None for JAX's own.
    """

    node: Node
    rule: Rule | None = None

    @functools.cached_property
    def moved(self) -> tuple[int, ...]:
        """Numbers of the operands that are moved; one that is read more than once counts where it is first."""
        return tuple(places[0] for places in self.places)

    @functools.cached_property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """For each operand that is moved, all places it is read in.

        They move as one: `jax.lax.custom_root(f, ...)` reads what is in `f` once to solve, once for the rule.
        """
        found: dict[int, list[int]] = {}
        for i in active_operands(self.node):
            value = self.node.operands[i]
            if _jaxpr.is_inexact(value.dtype):
                found.setdefault(value.id if value.literal is None else -1 - i, []).append(i)
        return tuple(map(tuple, found.values()))

    def _of_moved(self, fun: Callable[..., Any], operands: Sequence[Any]) -> Callable[..., list[Any]]:
        """A function of all operands, as one of those that are moved; of its results those that are kept."""

        def of(*points: Any) -> list[Any]:
            full = list(operands)
            for places, point in zip(self.places, points, strict=True):
                for place in places:
                    full[place] = point
            return take(fun(*full), self.kept)

        return of

    @functools.cached_property
    def kept(self) -> tuple[int, ...]:
        """Numbers of the outputs a cotangent comes to."""
        return tuple(i for i, v in enumerate(self.node.outputs) if v.active and _jaxpr.is_inexact(v.dtype))

    @property
    def custom(self) -> bool:
        return self.rule is not None or _jaxpr.custom_form(self.node.eqn) is not None

    @functools.cached_property
    def tolerance(self) -> float:
        values = [self.node.operands[i] for i in self.moved] + [self.node.outputs[i] for i in self.kept]
        return tolerance_of([value.dtype for value in values])

    # --- in the precision of the program ---------------------------------------------------------

    def _function(self, operands: Sequence[Any]) -> Callable[..., list[Any]]:
        return self._of_moved(node_function(self.node), operands)

    @functools.cached_property
    def pull(self) -> Callable[..., list[Any]]:
        """The rule: (operands, cotangents of the kept outputs) -> cotangents of the moved operands."""

        def by_jax(operands: list[Any], cts: list[Any]) -> list[Any]:
            _, pull = jax.vjp(self._function(operands), *take(operands, self.moved))
            return list(pull(list(cts)))

        def by_rule(operands: list[Any], cts: list[Any]) -> list[Any]:
            outputs = tuple(node_function(self.node)(*operands))
            local = Local(self.node, tuple(operands), outputs)
            full = scatter(cts, self.kept, len(outputs))
            in_cts = check_in_cts(self.rule(local, full), local)  # type: ignore[misc]
            return [self._sum(in_cts, places, operands) for places in self.places]

        return jax.jit(by_jax if self.rule is None else by_rule)

    @staticmethod
    def _sum(in_cts: Sequence[Any], places: tuple[int, ...], operands: Sequence[Any]) -> Any:
        cts = [in_cts[i] for i in places if in_cts[i] is not None]
        return functools.reduce(jnp.add, cts) if cts else jnp.zeros_like(operands[places[0]])

    @functools.cached_property
    def push(self) -> Callable[..., list[Any]] | None:
        """The node's own forward rule; None where a `custom_vjp` or another rule has none."""
        if self.rule is not None or _jaxpr.custom_form(self.node.eqn) != "custom_jvp":
            return None  # that of a primitive is tried in double precision

        def run(operands: list[Any], tangents: list[Any]) -> list[Any]:
            return jax.jvp(self._function(operands), take(operands, self.moved), tangents)[1]

        return jax.jit(run)

    # --- in double precision ---------------------------------------------------------------------

    def _wide_function(self, operands: Sequence[Any]) -> Callable[..., list[Any]]:
        return self._of_moved(wide_equation(self.node.eqn), [widen(x) for x in operands])

    @functools.cached_property
    def differ(self) -> Callable[..., Any]:
        """(operands, tangents of each moved operand) -> for each (outputs along them, jvp or None).

        Tangents have the directions on the first axis; None leaves an operand out.
        """

        def run(operands: list[Any], tangents: list[Any]) -> Any:
            of = self._wide_function(operands)
            points = [widen(x) for x in take(operands, self.moved)]
            found = []
            for which, ts in enumerate(tangents):
                alone = partial_function(of, points, (which,))
                point = points[which]
                found.append(ts if ts is None else (along(alone, [point], [ts]), _pushed(alone, point, ts)))
            return found

        return jax.jit(run)

    @functools.cached_property
    def pull_wide(self) -> Callable[..., list[Any]]:
        """The cotangents JAX derives from the node's own program, in double precision."""

        def run(operands: list[Any], cts: list[Any]) -> list[Any]:
            points = [widen(x) for x in take(operands, self.moved)]
            return list(jax.vjp(self._wide_function(operands), *points)[1](list(cts)))

        return jax.jit(run)

    @functools.cached_property
    def pull_plain(self) -> Callable[..., list[Any]]:
        """The same in the precision of the program: it shows what rounding does."""

        def run(operands: list[Any], cts: list[Any]) -> list[Any]:
            of = self._of_moved(_jaxpr.primal_function(self.node.eqn), operands)
            return list(jax.vjp(of, *take(operands, self.moved))[1](list(cts)))

        return jax.jit(run)


def _pushed(of: Callable[..., Sequence[Any]], point: Any, ts: Any) -> Any:
    try:
        return jax.lax.map(lambda t: jax.jvp(of, (point,), (t,))[1], ts)
    except Exception:  # JAX derives nothing from this program
        return None


def examine(subject: Subject, operands: list[Any], directions: int, seed: int) -> list[Verdict]:
    """Hold the rule of a node against its program, at one point.

    Raises:
        RuleError: the rule itself fails.
    """
    rng = np.random.default_rng(seed)
    tangents = [
        np.stack([random_tangent(operands[position], rng, relative=k % 2 == 0) for k in range(directions)])
        for position in subject.moved
    ]
    found = []
    for which, slopes_and_jvp in enumerate(measured(subject, operands, tangents)):
        found += _along(subject, operands, which, tangents[which], slopes_and_jvp, rng)
    return found


def measured(subject: Subject, operands: list[Any], tangents: list[Any]) -> list[Any]:
    with jax.enable_x64(True):
        ts = [None if t is None else jnp.asarray(t) for t in tangents]
        return jax.tree.map(np.asarray, subject.differ(operands, ts))


def _along(
    subject: Subject, operands: list[Any], which: int, ts: Any, seen: Any, rng: np.random.Generator
) -> list[Verdict]:
    found, (values, derived) = [], seen
    for k, t in enumerate(ts):
        parts = [slope(value[k]) for value in values]
        pushed = None if derived is None else [x[k] for x in derived]
        cts = [
            np.where(part.smooth, random_cotangent(subject.node.outputs[i], rng), 0).astype(
                subject.node.outputs[i].dtype
            )
            for i, part in zip(subject.kept, parts, strict=True)
        ]
        in_ct = np.asarray(_pulled(subject, operands, cts)[which])
        bad = ~np.isfinite(double(in_ct))
        if bad.any() and not bad.all():
            # Where the rule is infinite nothing moves; there is a derivative elsewhere.
            t, in_ct = np.where(bad, 0, t), np.where(bad, 0, in_ct)
            alone = [t[None] if i == which else None for i in range(len(subject.moved))]
            values_here, derived_here = measured(subject, operands, alone)[which]
            parts = [slope(value[0]) for value in values_here]
            pushed = None if derived_here is None else [x[0] for x in derived_here]
        verdict = _verdict(subject, operands, which, t, cts, in_ct, parts, pushed)
        if verdict.wrong:
            verdict = _without_rounding(verdict, subject, operands, which, t, cts, parts, pushed)
        found.append(verdict)
    return found


def _without_rounding(
    verdict: Verdict,
    subject: Subject,
    operands: list[Any],
    which: int,
    t: Any,
    cts: list[Any],
    parts: list[Any],
    pushed: list[Any] | None,
) -> Verdict:
    """The verdict once it is known what rounding alone does here: an ill-conditioned node is no wrong rule."""
    wide = [double(ct) for ct in cts]
    verdict = verdict._replace(
        allowed=verdict.allowed + 2 * _conditioning(verdict, subject, operands, which, t, cts)
    )
    if not verdict.wrong:
        return verdict
    try:
        if not subject.custom:
            with jax.enable_x64(True):
                exact = subject.pull_wide(operands, [widen(ct) for ct in wide])[which]
            error = apart(pairing([double(exact)], [t]), pairing(wide, [part.value for part in parts]))
            return verdict._replace(error=min(error, verdict.error))
        if pushed is None or subject.rule is not None:
            return verdict
        plain = subject.pull_plain(operands, cts)[which]
        rounding = apart(pairing([double(plain)], [t]), pairing(wide, pushed))
    except Exception:  # JAX derives nothing from this program
        return verdict
    return verdict._replace(allowed=verdict.allowed + 10 * rounding) if math.isfinite(rounding) else verdict


def _conditioning(
    verdict: Verdict, subject: Subject, operands: list[Any], which: int, t: Any, cts: list[Any]
) -> float:
    """How much the rule changes when the operands do in their last bit; `verdict.error` has the same scale.

    `logaddexp(x, y)` at -1e5 cannot tell 0.500 from 0.498 in float32: neighbours of x are 0.008 apart.
    """
    rng, here = np.random.default_rng(0), pairing([double(verdict.in_ct)], [t])
    changes = []
    for _ in range(4):
        beside = [_neighbour(x, rng) for x in operands]
        there = pairing([double(_pulled(subject, beside, cts)[which])], [t])
        changes.append(apart(here, there))
    return max((change for change in changes if math.isfinite(change)), default=0.0)


def _neighbour(x: Any, rng: np.random.Generator) -> Any:
    """An array one rounding away, up or down at each element."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return x
    step = float(jnp.finfo(dtype).eps) * rng.choice([-1.0, 1.0], np.shape(x))
    return jnp.asarray((double(x) * (1 + step)).astype(dtype))


def _pulled(subject: Subject, operands: list[Any], cts: list[Any]) -> list[Any]:
    try:
        return subject.pull(operands, cts)
    except Exception as error:
        raise RuleError(one_line(error)) from error


def _verdict(
    subject: Subject,
    operands: list[Any],
    which: int,
    t: Any,
    cts: list[Any],
    in_ct: Any,
    parts: list[Any],
    pushed: list[Any] | None,
) -> Verdict:
    wide = [double(ct) for ct in cts]
    rule = pairing([double(in_ct)], [t])
    change = pairing(wide, [part.value for part in parts])
    doubt = 3 * pairing(wide, [part.doubt for part in parts]).norm
    scale = max(rule.norm, change.norm)
    allowed = subject.tolerance + (doubt / scale if scale else 0.0)
    derived, agree = None, False
    if pushed is not None and all(np.isfinite(x).all() for x in pushed):
        derived = apart(rule, pairing(wide, pushed))
        agree = apart(change, pairing(wide, pushed)) <= allowed
    linear = None
    if subject.push is not None:
        tangents = [
            jnp.asarray(t if i == which else 0 * np.asarray(x), x.dtype).reshape(np.shape(x))
            for i, x in enumerate(map(jnp.asarray, take(operands, subject.moved)))
        ]
        own = [double(x) for x in subject.push(operands, tangents)]
        linear = apart(rule, pairing(wide, own)) if all(np.isfinite(x).all() for x in own) else None
    count = sum(np.size(part.smooth) for part in parts)
    fraction = sum(int(np.sum(part.smooth)) for part in parts) / count if count else 1.0
    full = scatter(cts, subject.kept, len(subject.node.outputs))
    error = apart(rule, change)
    return Verdict(subject.moved[which], error, allowed, derived, linear, agree, in_ct, full, fraction)


class _Pairing(NamedTuple):
    """`sum a * b`, and the 2-norm of its terms: rounding makes an error of that size times the precision."""

    total: float
    norm: float


def pairing(a: Sequence[Any], b: Sequence[Any]) -> _Pairing:
    with np.errstate(invalid="ignore", over="ignore"):
        terms = np.concatenate([np.real(x * y).ravel() for x, y in zip(a, b, strict=True)] or [np.zeros(0)])
        return _Pairing(float(terms.sum()), float(np.sqrt(np.sum(terms**2))))


def apart(a: _Pairing, b: _Pairing) -> float:
    if not (math.isfinite(a.total) and math.isfinite(b.total)):
        return math.inf
    scale = max(a.norm, b.norm)
    return abs(a.total - b.total) / scale if scale else 0.0


def double(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.issubdtype(x.dtype, np.complexfloating) else np.float64)


def random_tangent(x: Any, rng: np.random.Generator, relative: bool) -> Any:
    """A random direction, in proportion to each element (small ones keep their sign) or to their size."""
    wide = double(x)
    size = size_of(wide)
    signs = rng.choice([-1.0, 1.0], wide.shape) * rng.uniform(0.5, 1.5, wide.shape)
    if np.iscomplexobj(wide):
        signs = signs * np.exp(2j * np.pi * rng.uniform(size=wide.shape))
    if not relative:
        return signs * size
    length = np.abs(wide)
    return signs * np.where((length > 0) & np.isfinite(length), length, size)


def random_cotangent(value: Any, rng: np.random.Generator) -> Any:
    ct = rng.normal(size=value.shape)
    if jnp.issubdtype(value.dtype, np.complexfloating):
        return ct + 1j * rng.normal(size=value.shape)
    return ct
