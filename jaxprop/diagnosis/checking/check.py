"""Whether the rules of a program are the derivatives of what it computes: node by node, at its own numbers."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ... import _jaxpr
from ..._backprop import Pass, make_plan
from ..._fingerprint import fingerprint
from ..._text import one_line
from ..._tracing import Traced, check_points, trace_call
from ...core.graph import Graph, Node
from ...core.recorders import Recorder
from ...core.rules import Rule, Rules
from ...core.selectors import Selector, matches, select
from ..report import Finding, Report, at
from .inputs import Points
from .mistakes import explain
from .node_check import RuleError, Subject, Verdict, examine
from .total_check import Whole, whole_gradient

#: What every custom rule that is meant to be no derivative can be told by.
BY_DESIGN = "If it is meant so, say so: check(..., expected={name!r})."


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
    precision of the program. The others are had from what the node computes, in float64: by central
    differences at two steps, and by what JAX derives from its program with all custom rules taken out. A
    rule is suspect where it is neither. Where an output has no derivative (relu at 0, ties of max, a jump) its
    cotangent is zero, so the point decides nothing. Random keys stay what they are.

    Cost: some ten evaluations in float64 for each operand of each node, and two compilations for all nodes that
    are the same, kept for later calls. Memory: every value a node reads, as in a full tape.

    Args:
        fun: as in `backprop`, and so `argnums` and `has_aux`.
        nodes: which nodes; by default all a cotangent can reach.
        rules: as in `backprop`: what is checked is the rule in force.
        expected: nodes whose rule is no derivative by design (straight-through, reversal): no finding.
        directions: random tangents for each operand, each with a cotangent of its own. They go in proportion to
            each element and to the size of the array, in turn.
        steps: inside a loop, at how many steps: the first, the last and some between.
        total: whether the whole gradient is held against differences as well, values that carry no derivative
            held where they are.
        seed: of the directions.

    Returns:
        A function of the same arguments that gives a `Report`: suspects, worst first. Figures: `nodes` checked,
        `kinds` of nodes (compiled apart), `worst` relative error of a node that is no suspect, `total`
        relative error of the whole gradient.

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

    @functools.wraps(fun, updated=())
    def checked(*args: Any, **kwargs: Any) -> Report:
        check_points(args, argnums, fun, False, False, "check")
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
        return _report(traced, make_plan(traced, None, Recorder(), rules), settings)

    return checked


def assert_gradients(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    **settings: Any,
) -> Callable[..., None]:
    """Assert that every rule of a function is a derivative: `check`, for a test suite.

    Args:
        fun: as in `backprop`, and so `argnums` and `has_aux`.
        settings: as in `check`.

    Returns:
        A function of the same arguments that returns None.

    Raises:
        AssertionError: with the report.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> jp.assert_gradients(lambda w: jnp.sum(jax.nn.gelu(w)))(jnp.linspace(-2.0, 2.0, 5))
    """
    checked = check(fun, argnums, has_aux, **settings)

    @functools.wraps(fun, updated=())
    def asserted(*args: Any, **kwargs: Any) -> None:
        report = checked(*args, **kwargs)
        if not report.ok:
            raise AssertionError(str(report))

    return asserted


@dataclass(frozen=True)
class Settings:
    """What is checked, and how much is tried."""

    nodes: Selector | None
    expected: Selector
    directions: int
    steps: int
    total: bool
    seed: int


def _report(traced: Traced, plan: Pass, settings: Settings) -> Report:
    graph = plan.graph
    chosen = _checkable(graph, settings.nodes)
    reading = [node for node in graph.walk() if node.active] if settings.total else chosen
    points = Points.of(traced, graph, [value for node in reading for value in node.operands])
    subjects: dict[_Like, Subject] = {}
    outcomes = [
        _check_node(graph, node, _subject(node, plan.rules.get(node.index), subjects), points, settings)
        for node in chosen
    ]
    found, excused = [], 0
    for node, outcome in zip(chosen, outcomes, strict=True):
        if outcome.finding is not None and settings.expected and matches(settings.expected, node):
            excused += 1
        elif outcome.finding is not None:
            found.append(outcome.finding)
    findings = [finding for _, finding in sorted(found, key=lambda pair: -pair[0])]
    whole = whole_gradient(traced, plan, points, settings.seed) if settings.total else None
    if whole is not None and not whole.failed and not whole.wrong:
        findings = [_harmless(finding) if finding.kind == "primitive" else finding for finding in findings]
    if whole is not None and whole.wrong and not findings and not excused:
        findings.append(_whole_finding(traced.name, whole))
    margins = [margin for outcome in outcomes for margin in outcome.margins]
    figures = {"nodes": len(chosen), "kinds": len(subjects), "worst": max(margins, default=0.0)}
    if whole is not None and not whole.failed:
        figures["total"] = whole.error
    notes = _notes(outcomes, excused, whole)
    return Report.of(f"check {traced.name}", findings, figures, notes)


@dataclass(frozen=True)
class Outcome:
    """What was found at one node.

    Attributes:
        finding: the worst, with how bad it is; None where there is none.
        margins: errors where the rule is right.
        unread: places where nothing could be decided: no derivative there, or not finite.
        failed: why it could not be run in double precision, "" otherwise.
    """

    finding: tuple[float, Finding] | None
    margins: list[float]
    unread: int
    failed: str = ""


def _checkable(graph: Graph, nodes: Selector | None) -> list[Node]:
    """The nodes that have a rule of their own: a loop's is that of the nodes in it."""
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


class _Like:
    """A node and its rule, equal to those that do the same."""

    def __init__(self, node: Node, rule: Rule | None) -> None:
        types = tuple((v.shape, str(v.dtype), v.active) for v in (*node.operands, *node.outputs))
        ids = [value.id for value in node.operands]
        again = tuple(map(ids.index, ids))  # which operands are one value
        self.node, self.rule, self.key = node, rule, (fingerprint(node.eqn), types, again)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Like) and self.rule is other.rule and self.key == other.key

    def __hash__(self) -> int:
        return hash((self.key[1:], id(self.rule)))


def _subject(node: Node, rule: Rule | None, own: dict[_Like, Subject]) -> Subject:
    """The node as functions, compiled once for all nodes that are the same.

    Those of plain primitives are kept for later calls. A `custom_vjp` is another one at each trace.
    """
    like = _Like(node, rule)
    if like not in own:
        lasting = rule is None and _jaxpr.custom_form(node.eqn) != "custom_vjp"
        own[like] = _lasting(like) if lasting else Subject(node, rule)
    return own[like]


@functools.lru_cache(maxsize=256)
def _lasting(like: _Like) -> Subject:
    return Subject(like.node, like.rule)


def _check_node(graph: Graph, node: Node, subject: Subject, points: Points, settings: Settings) -> Outcome:
    worst: tuple[Verdict, tuple[int, ...], list[Any]] | None = None
    margins, unread = [], 0
    if not subject.moved or not subject.kept:
        return Outcome(None, [], 0)
    for number, step in enumerate(points.steps(node, settings.steps)):
        operands = points.operands(node, step)
        seed = settings.seed + 1000 * node.index + number
        try:
            verdicts = examine(subject, operands, settings.directions, seed)
        except RuleError as error:
            return Outcome((float("inf"), _failed(graph, node, step, str(error))), margins, unread)
        except Exception as error:  # whatever JAX has against the program in double precision
            return Outcome(None, margins, unread, f"{node.where}: {one_line(error, 100)}")
        for verdict in verdicts:
            if verdict.undecided:
                unread += 1
            elif not (verdict.wrong or verdict.crooked):
                margins.append(verdict.margin)
            elif worst is None or verdict.badness > worst[0].badness:
                worst = verdict, step, operands
    if worst is None:
        return Outcome(None, margins, unread)
    verdict, step, operands = worst
    return Outcome((verdict.badness, _finding(graph, node, subject, verdict, step, operands)), margins, unread)


# --- what is said ------------------------------------------------------------------------------------


def _kind(node: Node, subject: Subject) -> tuple[str, str]:
    if subject.rule is not None:
        return "rule", f"the rule given for `{node.name}`"
    form = _jaxpr.custom_form(node.eqn)
    if form is not None:
        return "custom rule", f"the {form} rule of `{node.primitive}`"
    return "primitive", f"JAX's rule for `{node.primitive}`"


def _finding(
    graph: Graph, node: Node, subject: Subject, verdict: Verdict, step: tuple[int, ...], operands: list[Any]
) -> Finding:
    kind, subject_text = _kind(node, subject)
    told = explain(subject, verdict, operands)
    operand = node.operands[verdict.position].name
    numbers = {"relative error": verdict.error, "tolerance": verdict.allowed, **told.numbers}
    if verdict.derived is not None:
        numbers["error against its primal's own derivative"] = verdict.derived
    if verdict.crooked and not verdict.wrong:
        numbers["jvp against its transpose"] = verdict.linear
    differs = "its primal" if kind != "primitive" else "what it computes"
    return Finding(
        kind,
        "error",
        f"{subject_text} is not the derivative of {differs} with respect to `{operand}`: {told.summary}.",
        **at(graph, node),
        step=step,
        element=told.element,
        cause=told.cause,
        why=told.why,
        fix=f"{told.fix} {BY_DESIGN.format(name=node.name)}" if kind != "primitive" else told.fix,
        numbers=numbers,
    )


def _failed(graph: Graph, node: Node, step: tuple[int, ...], error: str) -> Finding:
    return Finding(
        "custom rule" if _jaxpr.custom_form(node.eqn) else "primitive",
        "error",
        f"the rule of `{node.name}` fails: {error[:300]}",
        **at(graph, node),
        step=step,
        cause="fails",
        why="JAX cannot apply it to these operands and a cotangent.",
        fix="Return one cotangent for each operand, of its type; a jvp rule is linear in the tangent.",
    )


def _harmless(finding: Finding) -> Finding:
    """A primitive may have a rule that is right only where it is used: in place writes of a library, say."""
    return replace(finding, severity="note", why="The gradient as a whole is right: its use here allows it.")


def _whole_finding(name: str, whole: Whole) -> Finding:
    return Finding(
        "total",
        "warning",
        f"the gradient of `{name}` differs from differences, though every node by itself is right.",
        cause="whole",
        why="It may lie in a loop at steps that were not looked at, or in a form that was not opened.",
        fix="Check at more steps: check(..., steps=100).",
        numbers={"relative error": whole.error, "tolerance": whole.allowed},
    )


def _notes(outcomes: Sequence[Outcome], excused: int, whole: Whole | None) -> Sequence[str]:
    notes = [f"Not checked, no double precision: {each.failed}" for each in outcomes if each.failed]
    unread = sum(outcome.unread for outcome in outcomes)
    if unread:
        notes.append(f"{unread} directions decide nothing: no derivative there, or one that is not finite.")
    if excused:
        notes.append(f"{excused} rules are no derivatives, as expected.")
    if whole is not None and whole.failed:
        notes.append(f"The whole gradient was not checked: {whole.failed}")
    return notes
