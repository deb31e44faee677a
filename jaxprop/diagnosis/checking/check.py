"""Check node by node that the rules of a program are the derivatives of what it computes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jax.typing import ArrayLike

from ... import _jaxpr
from ..._backprop import Pass, make_plan
from ..._text import listed, one_line, plural
from ..._tracing import Traced, check_points, trace_call
from ...core.graph import Graph, Node
from ...core.recorders import Recorder
from ...core.rules import Rules
from ...core.selectors import Selector, matches, select
from ..report import Finding, Report, at
from .float64 import UNSUPPORTED
from .inputs import ForwardValues
from .mistakes import describe_mistake
from .node_check import Judgement, check_operands, off_the_kink
from .rule_functions import Alike, RuleError, RuleFunctions, functions_of
from .total_check import TotalCheck, check_total

#: How to say that a custom rule is not meant to be a derivative.
BY_DESIGN = "If this is intended, pass `expected={name!r}`."

#: The kind of the findings about rules that could not be decided.
UNDECIDED = "undecided"


def check(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    nodes: Selector | None = None,
    rules: Rules = (),
    expected: Selector = (),
    directions: int = 2,
    steps: int = 3,
    total: bool = True,
    seed: int = 0,
) -> Callable[..., Report]:
    """Check every local gradient of a function at its actual operands.

    For a random cotangent `ct` of a node's outputs and a random tangent `t` of one of its operands

        <rule(ct), t> = <ct, (f(x + h t) - f(x - h t)) / 2h> = <ct, jvp(t)>

    The left side is the rule in force (JAX's, a `custom_vjp`'s or `custom_jvp`'s, or one of `rules`), in the
    precision of the program. The others come from what the node computes, in float64: central differences at
    two steps, and what JAX derives from its program without any custom rule. The primal of an iteration (a
    bisection) is piecewise constant: there the steps are larger, and what JAX derives does not count. A
    primitive that refuses float64 is evaluated in its own precision, with larger steps and a larger tolerance.
    Random keys are held.

    A rule is *wrong* where it disagrees with both. It is *undecided* where nothing could be compared: at a
    kink, a tie or a jump no value is the derivative. Such a node is checked at operands moved by one percent as
    well, and only where that does not settle it either is it a finding of kind `undecided`.

    Cost: about ten evaluations in float64 for each operand of each node, and two compilations for all nodes
        that do the same. They are kept with the returned function. Memory: every value a node reads, as in a
        full tape.

    Args:
        fun: as in `backprop`, like `argnums` and `has_aux`.
        nodes: which nodes to check; by default all that a cotangent can reach.
        rules: as in `backprop`: the rule in force is what is checked.
        expected: nodes whose rule is deliberately not a derivative (straight-through, reversal): no finding.
        directions: random tangents for each operand, each with its own cotangent. They are scaled by each
            element and by the size of the array, in turn.
        steps: how many steps of a loop to check: the first, the last and some between.
        total: whether to compare the whole gradient with differences too, values without a derivative held.
        seed: of the random directions.

    Returns:
        A function of the same arguments that gives a `Report`: wrong rules, worst first, then undecided ones.
        Figures: `nodes` decided, nodes `undecided`, `kinds` of nodes (compiled separately), `worst` relative
            error of a right rule, `total` relative error of the whole gradient.

    Raises:
        TypeError, ValueError: as `backprop`.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> @jax.custom_vjp
        ... def square(x):
        ...     return x**2
        >>> square.defvjp(lambda x: (x**2, x), lambda x, ct: (x * ct,))     # forgot the 2
        >>> report = jp.check(lambda w: jnp.sum(square(w)))(jnp.arange(3.0))
        >>> [(finding.node, finding.cause) for finding in report]
        [('square', 'factor')]
    """
    settings = Settings(nodes, expected, directions, steps, total, seed)
    compiled: dict[Alike, RuleFunctions] = {}

    @functools.wraps(fun, updated=())
    def checked(*args: Any, **kwargs: Any) -> Report:
        check_points(args, argnums, fun, False, False, "check")
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
        return _check_report(traced, make_plan(traced, None, Recorder(), rules), settings, compiled)

    return checked


def assert_gradients(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    allow_undecided: bool = False,
    **settings: Any,
) -> Callable[..., None]:
    """Assert that every rule of a function is a derivative: `check`, for a test suite.

    Args:
        fun: as in `backprop`, like `argnums` and `has_aux`.
        allow_undecided: whether rules that could not be decided at these arguments pass.
        settings: as in `check`.

    Returns:
        A function of the same arguments that returns None.

    Raises:
        AssertionError: a rule is wrong or undecided; the message is the report.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> jp.assert_gradients(lambda w: jnp.sum(jax.nn.gelu(w)))(jnp.linspace(-2.0, 2.0, 5))
    """
    checked = check(fun, argnums, has_aux, **settings)

    @functools.wraps(fun, updated=())
    def asserted(*args: Any, **kwargs: Any) -> None:
        report = checked(*args, **kwargs)
        allowed = {UNDECIDED} if allow_undecided else set()
        if any(finding.severity != "note" and finding.kind not in allowed for finding in report):
            raise AssertionError(str(report))

    return asserted


@dataclass(frozen=True)
class Settings:
    """The options of `check`."""

    nodes: Selector | None
    expected: Selector
    directions: int
    steps: int
    total: bool
    seed: int


@dataclass(frozen=True)
class Outcome:
    """The result for one node.

    Attributes:
        node: the node.
        wrong: the finding about a wrong rule, with how bad it is; None where the rule is not wrong.
        undecided: the finding about an undecided rule; None where it was decided.
        margins: the errors of a rule that is right.
        stairs: whether the primal is piecewise constant.
        fallbacks: the primitives that were not evaluated in double precision.
    """

    node: Node
    wrong: tuple[float, Finding] | None = None
    undecided: Finding | None = None
    margins: tuple[float, ...] = ()
    stairs: bool = False
    fallbacks: frozenset[str] = frozenset()


def _check_report(
    traced: Traced, plan: Pass, settings: Settings, compiled: dict[Alike, RuleFunctions]
) -> Report:
    graph = plan.graph
    chosen = _checkable(graph, settings.nodes)
    reading = [node for node in graph.walk() if node.active] if settings.total else chosen
    values = ForwardValues.of(traced, graph, [value for node in reading for value in node.operands])
    functions = functions_of(chosen, plan.rules, compiled)
    checks = [_NodeCheck(graph, node, functions[node.index], values, settings) for node in chosen]
    outcomes = [one.outcome() for one in checks if one.rule.moved and one.rule.kept]
    total = _total_if_asked(traced, plan, values, settings, outcomes)
    intended = [each for each in outcomes if settings.expected and matches(settings.expected, each.node)]
    excused = sum(each.wrong is not None for each in intended)
    rest = [each for each in outcomes if each not in intended]
    wrong = sorted((each.wrong for each in rest if each.wrong is not None), key=lambda pair: -pair[0])
    findings = [finding for _, finding in wrong]
    if total is not None and not total.undecided and not total.wrong:
        findings = [_harmless(finding) if finding.kind == "primitive" else finding for finding in findings]
    if total is not None and total.wrong and not findings and not excused:
        findings.append(_total_finding(traced.name, total))
    undecided = [each.undecided for each in rest if each.undecided is not None]
    findings += _first_not_finite(undecided)
    margins = [margin for each in outcomes for margin in each.margins]
    figures = {
        "nodes": len(outcomes) - len(undecided),
        "undecided": len(undecided),
        "kinds": len(set(map(id, functions.values()))),
        "worst": max(margins, default=0.0),
    }
    if total is not None and not total.undecided:
        figures["total"] = total.error
    return Report.of(f"check {traced.name}", findings, figures, _notes(outcomes, excused, total))


def _first_not_finite(undecided: Sequence[Finding]) -> list[Finding]:
    """Of nodes that are not finite report the first: the others propagate what it produced."""
    bad = [finding for finding in undecided if finding.cause == "not finite"]
    rest = [finding for finding in undecided if finding.cause != "not finite"]
    if len(bad) < 2:
        return [*bad, *rest]
    more = f"{plural(len(bad) - 1, 'node')} after it {'is' if len(bad) == 2 else 'are'} not finite either."
    return [replace(bad[0], why=f"{bad[0].why} {more}"), *rest]


def _checkable(graph: Graph, nodes: Selector | None) -> list[Node]:
    """The nodes that have a rule of their own: that of a loop is made of those of the nodes in it."""
    picked = None if nodes is None else {node.index for node in select(graph, nodes)}
    return [
        node
        for node in graph.walk()
        if node.eqn is not None
        and node.active
        and (picked is None or node.index in picked)
        and not (node.opened and node.graphs)
        and not _jaxpr.is_while(node.eqn)
        and all(parent.opened for parent, _ in graph.places[node.index].parents)
        and not any(_jaxpr.is_ref(value.aval) for value in (*node.operands, *node.outputs))
    ]


def _total_if_asked(
    traced: Traced, plan: Pass, values: ForwardValues, settings: Settings, outcomes: Sequence[Outcome]
) -> TotalCheck | None:
    if not settings.total:
        return None
    stairs = [each.node.name for each in outcomes if each.stairs]
    if stairs:
        return TotalCheck(0.0, 0.0, f"`{stairs[0]}` is piecewise constant in its operands.")
    return check_total(traced, plan, values, settings.seed)


# --- one node ----------------------------------------------------------------------------------------------


class _NodeCheck:
    """One node, checked at the steps it was run at."""

    def __init__(
        self, graph: Graph, node: Node, rule: RuleFunctions, values: ForwardValues, settings: Settings
    ) -> None:
        self.graph, self.node, self.rule, self.values, self.settings = graph, node, rule, values, settings

    def outcome(self) -> Outcome:
        found: list[tuple[Judgement, tuple[int, ...], list[ArrayLike]]] = []
        for number, step in enumerate(self.values.steps(self.node, self.settings.steps)):
            operands = self.values.operands(self.node, step)
            seed = self.settings.seed + 1000 * self.node.index + number
            try:
                judgements = check_operands(self.rule, operands, self.settings.directions, seed)
            except RuleError as error:
                return Outcome(self.node, (float("inf"), self.failed(step, str(error))))
            except UNSUPPORTED as error:
                return self.undecided("not evaluated", one_line(error, 200))
            found += [(judgement, step, operands) for judgement in judgements]
        wrong = [one for one in found if one[0].wrong or one[0].not_transposed]
        if wrong:
            worst = max(wrong, key=lambda one: one[0].badness)
            return self.ended(Outcome(self.node, (worst[0].badness, self.wrong(*worst))), found)
        by_operand: dict[int, list[tuple[Judgement, list[ArrayLike]]]] = {}
        for judgement, _, operands in found:
            by_operand.setdefault(judgement.position, []).append((judgement, operands))
        for some in by_operand.values():
            if all(judgement.undecided for judgement, _ in some):
                return self.ended(self.undecided_at(*some[0]), found)
        return self.ended(Outcome(self.node), found)

    def ended(
        self, outcome: Outcome, found: Sequence[tuple[Judgement, tuple[int, ...], list[ArrayLike]]]
    ) -> Outcome:
        judgements = [judgement for judgement, _, _ in found]
        right = [one for one in judgements if not (one.wrong or one.not_transposed or one.undecided)]
        stairs = any(one.coarse or one.undecided == "piecewise constant" for one in judgements)
        return replace(
            outcome,
            margins=tuple(one.margin for one in right) + outcome.margins,
            stairs=stairs,
            fallbacks=frozenset(self.rule.precision.fallbacks),
        )

    def undecided_at(self, judgement: Judgement, operands: list[ArrayLike]) -> Outcome:
        """Decide a rule at a kink by operands next to it, where that is possible."""
        reason, operand = judgement.undecided or "", self.node.operands[judgement.position].name
        if reason != "no derivative":
            return self.undecided(reason, operand=operand)
        seed = self.settings.seed + 1000 * self.node.index
        moved = off_the_kink(self.rule, operands, seed)
        try:
            near = check_operands(self.rule, moved, self.settings.directions, seed)
        except (RuleError, *UNSUPPORTED):  # outside the domain of the node
            return self.undecided(reason, operand=operand)
        near = [one for one in near if one.position == judgement.position and not one.undecided]
        wrong = [one for one in near if one.wrong]
        if near and not wrong:
            return Outcome(self.node, margins=tuple(one.margin for one in near))
        mistake = describe_mistake(self.rule, wrong[0], moved).summary if wrong else ""
        return self.undecided(reason, operand=operand, nearby=mistake)

    # --- findings --------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        if self.rule.rule is not None:
            return "rule"
        return "custom rule" if _jaxpr.custom_form(self.node.eqn) else "primitive"

    @property
    def subject(self) -> str:
        """The rule, as the subject of a sentence."""
        if self.rule.rule is not None:
            return f"the rule given for `{self.node.name}`"
        form = _jaxpr.custom_form(self.node.eqn)
        if form is not None:
            return f"the {form} rule of `{self.node.primitive}`"
        return f"the derivative rule of the primitive `{self.node.primitive}`"

    def wrong(self, judgement: Judgement, step: tuple[int, ...], operands: list[ArrayLike]) -> Finding:
        mistake = describe_mistake(self.rule, judgement, operands)
        operand = self.node.operands[judgement.position].name
        numbers = {"relative error": judgement.error, "tolerance": judgement.allowed, **mistake.numbers}
        if judgement.derived is not None:
            numbers["error against its primal's own derivative"] = judgement.derived
        if judgement.not_transposed and not judgement.wrong:
            numbers["error of the JVP as its transpose"] = judgement.linear
        of = "its primal" if self.kind != "primitive" else "what it computes"
        by_design = "" if self.kind == "primitive" else f" {BY_DESIGN.format(name=self.node.name)}"
        return Finding(
            self.kind,
            "error",
            f"{self.subject} is not the derivative of {of} with respect to `{operand}`: {mistake.summary}.",
            **at(self.graph, self.node),
            step=step,
            element=mistake.element,
            cause=mistake.cause,
            why=mistake.why,
            fix=mistake.fix + by_design,
            numbers=numbers,
        )

    def failed(self, step: tuple[int, ...], error: str) -> Finding:
        return Finding(
            "custom rule" if _jaxpr.custom_form(self.node.eqn) else "primitive",
            "error",
            f"the rule of `{self.node.name}` fails: {error[:300]}",
            **at(self.graph, self.node),
            step=step,
            cause="fails",
            why="JAX cannot apply it to these operands and a cotangent.",
            fix="Return one cotangent for each operand, of its type; a JVP rule is linear in the tangent.",
        )

    def undecided(self, reason: str, error: str = "", operand: str = "", nearby: str = "") -> Outcome:
        because, why, fix = _REASONS[reason]
        if reason == "imprecise":
            names = ", ".join(f"`{name}`" for name in sorted(self.rule.precision.fallbacks))
            why = f"{names} does not run in float64." if names else why
        if nearby:
            why += f" At operands moved by 1% the rule is wrong: {nearby}."
        respect = f" with respect to `{operand}`" if operand else ""
        finding = Finding(
            UNDECIDED,
            "warning",
            f"{self.subject} could not be checked{respect}: {because}.",
            **at(self.graph, self.node),
            cause=reason,
            why=f"{why} {error}".strip(),
            fix=fix,
        )
        return Outcome(self.node, undecided=finding, fallbacks=frozenset(self.rule.precision.fallbacks))


#: For each reason why a rule is undecided: the end of the sentence, why, and what to do.
_REASONS: Mapping[str, tuple[str, str, str]] = {
    "no derivative": (
        "no output has a derivative at these operands",
        "They are at a kink, a tie or a jump, where no value is the derivative.",
        "Check it at other operands.",
    ),
    "not finite": (
        "neither the rule nor the primal is finite at these operands",
        "There is no derivative to compare with.",
        "Find out with `diagnose` where the NaN or Inf comes from, or check at other operands.",
    ),
    "piecewise constant": (
        "its primal is piecewise constant, with jumps too wide for differences",
        "An iteration that stops early is flat between the jumps of its result, and so is its derivative.",
        "Check it with more iterations, or with a smaller tolerance of the solver.",
    ),
    "imprecise": (
        "differences are too imprecise",
        "The primal varies too much within the steps.",
        "Check it at operands of moderate size, in the highest precision it supports.",
    ),
    "ill-conditioned": (
        "the problem is ill-conditioned at these operands",
        "The last bit of the operands changes what the rule returns by as much as a mistake would.",
        "Check it at other operands, or in float64.",
    ),
    "not evaluated": (
        "the primal could not be evaluated at other operands",
        "JAX raised:",
        "Check the function it belongs to by itself, for instance with `jax.test_util.check_grads`.",
    ),
}


def _harmless(finding: Finding) -> Finding:
    """Make a note of it: a primitive may have a rule that is right only where it is used."""
    return replace(finding, severity="note", why="The gradient as a whole is right: its use here allows it.")


def _total_finding(name: str, total: TotalCheck) -> Finding:
    return Finding(
        "total",
        "warning",
        f"the gradient of `{name}` differs from differences, though every node by itself is right.",
        cause="total",
        why="The mistake may be at steps of a loop that were not checked, or in a program that was not opened.",
        fix="Check more steps: check(..., steps=100).",
        numbers={"relative error": total.error, "tolerance": total.allowed},
    )


def _notes(outcomes: Sequence[Outcome], excused: int, total: TotalCheck | None) -> list[str]:
    notes = []
    fallbacks = sorted(set().union(*(each.fallbacks for each in outcomes)))
    if fallbacks:
        names = listed([f"`{name}`" for name in fallbacks])
        notes.append(f"Checked with larger steps, since it does not run in float64: {names}.")
    if excused:
        notes.append(f"{plural(excused, 'rule')} excluded by `expected=`.")
    if total is not None and total.undecided:
        notes.append(f"The whole gradient was not checked: {total.undecided}")
    return notes
