"""Findings on gradients that are zero at these operands: dead, saturated, clipped, masked, underflown."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ..._structure import Bits, PostDominators, predecessors, reachable, repetitions, spread, successors, union
from ..._text import sentence
from ...core.graph import Graph, Node, Value
from ...core.recorders import Recorder
from ...core.structure import producers
from ...core.types import ValueId
from ...record.tape import Tape
from ..measures import Field, is_number, recorder, with_parents
from ..report import Finding, at
from ..thresholds import Thresholds
from .experiments import (
    CANCELLATION,
    STATIONARY,
    Experiment,
    Suspect,
    ZeroCause,
    cause_of,
    explain_dead,
    explain_saturated,
)
from .wording import RECTIFYING, quoted, repetition, saturating, subject

#: At most this many nodes are examined: each keeps its operands.
MOST = 24


class RunPass(Protocol):
    """Run one more pass over the loss: at which nodes, by index, and what is recorded."""

    def __call__(self, nodes: frozenset[int] | None, record: Recorder | None = None) -> Tape: ...


def dynamic_findings(
    field: Field, run: RunPass, thresholds: Thresholds, lost: Collection[str] = ()
) -> list[Finding]:
    """Report where and why cotangents vanish, from the measures of one pass.

    Args:
        field: the measures.
        run: one more pass, `(nodes, record) -> Tape`: run only where leaves get nothing, to keep the operands
            of the nodes where their cotangents vanish.
        thresholds: from where on something is reported.
        lost: leaves that are blocked in the program itself: nothing more is reported of them.
    """
    if not is_finite(field):
        return []  # next to a NaN, zeros mean nothing
    zero = {leaf: some for leaf, some in zero_leaves(field).items() if leaf.name not in lost}
    found = _zero_findings(field, zero, run) if zero else []
    known = {suspect.node.index for some in zero.values() for suspect in some}
    return [*found, *_poor_findings(field, run, thresholds, known)]


def is_finite(field: Field) -> bool:
    """Whether the gradient has no NaN and Inf: next to those, magnitudes mean nothing."""
    return all(np.isfinite(field.top(leaf) or 0.0) for leaf in field.graph.inputs)


def _is_zero(field: Field, value: Value) -> bool:
    return field.top(value) in (0, None)


# --- where cotangents vanish ------------------------------------------------------------------------------


def zero_leaves(field: Field) -> dict[Value, tuple[Suspect, ...]]:
    """The leaves whose gradient is exactly zero, each with the nodes where its cotangents vanish."""
    leaves = [leaf for leaf in field.graph.inputs if leaf.active and 0 not in leaf.shape]
    zero = [leaf for leaf in leaves if field.top(leaf) == 0]
    suspects = list(_vanishing_at(field, zero)) if zero else []
    return {
        leaf: tuple(dict.fromkeys(suspect for suspect, bits in suspects if bits >> i & 1))
        for i, leaf in enumerate(zero)
    }


def _vanishing_at(field: Field, leaves: Sequence[Value]) -> Iterator[tuple[Suspect, Bits]]:
    """Follow the paths from leaves as long as cotangents are zero; yield the nodes where they are not.

    Each comes with the set of the leaves it is met from.
    """
    step = successors(field.graph)

    def following(value: Value) -> Iterator[tuple[Node, Value, bool]]:
        """The active values of the next step, and whether they are inside a body that is entered."""
        for node, new in dict.fromkeys(step.get(value.id, ())):
            if new.active:
                yield node, new, node.opened and _reads(node, value)

    def onward(value: Value) -> Iterator[Value]:
        return (new for _, new, entered in following(value) if entered or _is_zero(field, new))

    zeros = reachable(leaves, onward)
    met = spread({leaf.id: 1 << i for i, leaf in enumerate(leaves)}, zeros, onward)
    for value in zeros.values():
        for node, new, entered in following(value):
            if entered or _is_zero(field, new) or new not in node.outputs:
                continue
            # What leaves a body with a cotangent of zero is in a branch that was not taken.
            through = zeros if node.opened else (value.id,)
            positions = [i for i, operand in enumerate(node.operands) if operand.id in through]
            for position in (positions or [0])[: 1 if node.opened else None]:
                yield Suspect("zero", node, node.outputs.index(new), position), met[value.id]


def _reads(node: Node, value: Value) -> bool:
    return any(operand.id == value.id for operand in node.operands)


def dead_units(field: Field, thresholds: Thresholds) -> Iterator[Suspect]:
    """Find rectifiers at which most units get no cotangent, though it reaches them.

    Where the field counts elements, that is the fraction of elements that get nothing there: about as much, or
        more.
    """
    for node, operand in _gates(field, lambda node, x: _rectifies(field, node, x)):
        if is_number(operand) or operand.shape[-1] < 2:
            continue
        before, after = field.dead(operand), field.dead(node.outputs[0])
        died = (before - after) / (1 - after) if after < 1 else 0.0
        if died >= thresholds.dead and field.top(operand) != 0:
            yield Suspect("dead", node, 0, node.operands.index(operand), died)


def saturated(field: Field, thresholds: Thresholds) -> Iterator[Suspect]:
    """Find sigmoids and the like that let next to nothing of the cotangent through.

    The cotangent of a cross entropy written as `log(sigmoid(z))` is small at the sigmoid too, because the
    logarithm made it large before: so what leaves the node is compared with what arrives at the nodes after it
    as well.
    """
    for node, operand in _gates(field, lambda node, _: bool(saturating(node))):
        made = node.outputs[0]
        if is_number(operand) or field.top(operand) == 0:
            continue
        later = [out for reader, _ in field.readers.get(made.id, ()) for out in reader.outputs if out in field]
        before = min([field.norm(made), *(field.norm(out) for out in later if not is_number(out))])
        gain = field.norm(operand) / before if before > 0 else 1.0
        if gain < thresholds.saturated:
            yield Suspect("saturated", node, 0, node.operands.index(operand), gain)


def _gates(field: Field, wanted: Callable[[Node, Value], bool]) -> Iterator[tuple[Node, Value]]:
    """Wanted nodes that were measured on both sides, with the operand that has the shape of the output."""
    for node in field.graph.walk():
        if not node.active or node.opened or len(node.outputs) != 1:
            continue
        made = node.outputs[0]
        for operand in node.operands:
            if not (operand.active and operand.shape == made.shape and operand in field and made in field):
                continue
            if len(field.readers[operand.id]) == 1 and wanted(node, operand):
                yield node, operand


def _rectifies(field: Field, node: Node, operand: Value) -> bool:
    """Whether a node is constant on one side: `relu(x)`, `maximum(x, 0)`, `where(x > 0, x, 0)`."""
    if node.primitive in RECTIFYING:  # the greater of two layers does not rectify
        return sum(value.active for value in node.operands) == 1
    if node.primitive != "select_n" or len(node.operands) != 3:
        return False
    condition = producers(field.graph).get(node.operands[0].id)
    return condition is not None and any(value.id == operand.id for value in condition.operands)


# --- leaves whose gradient is zero ------------------------------------------------------------------------


class _ZeroCauses:
    """The causes of suspects: one pass keeps their operands, another all values if a zero comes from afar."""

    def __init__(self, field: Field, run: RunPass, suspects: Sequence[Suspect]) -> None:
        self.field, self.run = field, run
        tape = run(with_parents(field.graph, [suspect.node for suspect in suspects]))
        self.found = {suspect: cause_of(Experiment.of(tape, suspect)) for suspect in suspects}
        self.full: Tape | None = None

    def origin(self, suspect: Suspect) -> tuple[Suspect, ZeroCause]:
        """The suspect, or the node upstream that made its operand zero: what nothing gets through at all.

        Behind `h * 0` a relu has an input of zero and a derivative of zero: the relu is not to blame.
        """
        cause = self.found[suspect]
        least, greatest = (cause.numbers.get(f"{word} operand") for word in ("least", "greatest"))
        if not (least == greatest == 0) and cause.factor is None:
            return suspect, cause
        value = suspect.operand if cause.factor is None else suspect.node.operands[cause.factor]
        if not value.active or producers(self.field.graph)[value.id].eqn is None:
            return suspect, cause
        if self.full is None:
            self.full = self.run(None)
        return next(_zero_origins(self.full, value), (suspect, cause))


def _zero_origins(tape: Tape, value: Value) -> Iterator[tuple[Suspect, ZeroCause]]:
    """Follow a value that is zero back to the nodes that make it so, and let no cotangent through either."""
    step = predecessors(tape.graph)

    def is_zero(value: Value) -> bool:
        recorded = tape[value.name].value if value.name in tape.graph and value.active else None
        return recorded is not None and not np.any(np.asarray(recorded, np.complex128))

    def back(value: Value) -> list[Value]:
        return [new for _, new in step.get(value.id, ()) if new.active and is_zero(new)]

    for new in reachable([value], back).values() if is_zero(value) else ():
        node = producers(tape.graph)[new.id]
        active = [(i, operand) for i, operand in enumerate(node.operands) if operand.active]
        if node.eqn is None or node.opened or any(is_zero(operand) for _, operand in active):
            continue  # further upstream, or a zero that is given
        for position, _ in active:
            suspect = Suspect("zero", node, node.outputs.index(new), position)
            experiment = Experiment.of(tape, suspect).with_ones()
            if not experiment.lets_through():
                yield suspect, cause_of(experiment)


def _zero_findings(field: Field, zero: Mapping[Value, tuple[Suspect, ...]], run: RunPass) -> list[Finding]:
    suspects = list(dict.fromkeys(suspect for some in zero.values() for suspect in some))[:MOST]
    causes = _ZeroCauses(field, run, suspects) if suspects else None
    everything = all(field.top(leaf) == 0 for leaf in field.graph.inputs if leaf.active)
    groups: dict[object, tuple[list[tuple[Suspect, ZeroCause]], list[str]]] = {}
    for leaf, some in zero.items():
        known = [causes.origin(s) for s in some if causes is not None and s in causes.found]
        key = tuple(dict.fromkeys((s.node.index, cause.name) for s, cause in known))
        groups.setdefault(key, (known, []))[1].append(leaf.name)
    return [_zero_finding(field, known, names, everything) for known, names in groups.values()]


def _zero_finding(
    field: Field, known: Sequence[tuple[Suspect, ZeroCause]], leaves: Sequence[str], everything: bool
) -> Finding:
    if not known:
        return Finding(
            kind="zero gradient",
            severity="warning",
            message=f"The gradient of {subject(leaves)} is zero: no cotangent starts at the result.",
            leaves=tuple(leaves),
            cause="zero seed",
            why="The seed of the result is zero, or nothing of the result is differentiated.",
            fix="Look at the seed and at what the loss returns.",
        )
    if all(cause.name == CANCELLATION for _, cause in known):
        return _cancellation_finding(field, known, leaves)
    first, cause = next(one for one in known if one[1].name != CANCELLATION)
    graph = field.graph
    others = [f"{quoted(s.node)} ({c.name})" for s, c in known if s.node.index != first.node.index]
    also = f" Their other paths end too: {', '.join(list(dict.fromkeys(others))[:4])}." if others else ""
    healing = all(_heals(field, suspect, one) for suspect, one in known)
    optimum = all(one.name == STATIONARY for _, one in known)
    why = cause.advice.why
    if healing and cause.factor is not None:
        factor = first.node.operands[cause.factor].name
        why += f" `{factor}` itself gets a gradient, so it is no longer zero after one step."
    return Finding(
        kind="zero gradient",
        severity="note" if healing or optimum else "error" if everything else "warning",
        message=f"The gradient of {subject(leaves)} is zero: nothing gets through {quoted(first.node)}"
        f"{repetition(graph, first.node)} ({cause.name}).",
        **at(graph, first.node),
        cause=cause.name,
        why=sentence(why) + also,
        fix=sentence(cause.advice.fix),
        numbers=cause.numbers,
        leaves=tuple(leaves),
    )


def _cancellation_finding(
    field: Field, known: Sequence[tuple[Suspect, ZeroCause]], leaves: Sequence[str]
) -> Finding:
    """A gradient that is truly zero: say at which value the contributions cancel, and of which consumers."""
    first, cause = known[0]
    value = first.operand
    here = [(s, c) for s, c in known if s.operand.id == value.id]
    nodes = dict.fromkeys(s.node for s, _ in here)
    texts = list(dict.fromkeys(map(quoted, nodes)))
    once = f"both operands of {texts[0]}" if len(nodes) == 1 else f"{len(nodes)} evaluations of {texts[0]}"
    among = f"of {' and '.join(texts[:3]) if len(texts) > 1 else once} "
    numbers = {f"operand {s.position} of {s.node.name}": cause.numbers["contribution"] for s, cause in here}
    return Finding(
        kind="zero gradient",
        severity="note",
        message=f"The gradient of {subject(leaves)} is zero: the contributions {among}to the cotangent of "
        f"`{value.name}` cancel exactly.",
        **at(field.graph, first.node),
        cause=CANCELLATION,
        why="The result does not change along these directions: this zero is the derivative, not an underflow.",
        fix=sentence(cause.advice.fix),
        numbers=dict(list(numbers.items())[:4]),
        leaves=tuple(leaves),
    )


def _heals(field: Field, suspect: Suspect, cause: ZeroCause) -> bool:
    """Whether what multiplies by zero gets a gradient of its own: weights initialised to zero."""
    if cause.factor is None:
        return False
    factor = suspect.node.operands[cause.factor]
    if not (factor.active and field.top(factor)):
        return False
    step = predecessors(field.graph)

    def back(value: Value) -> list[Value]:
        return [new for _, new in step.get(value.id, ()) if new.active and field.top(new) != 0]

    inputs = {leaf.id for leaf in field.graph.inputs if field.top(leaf)}
    return not inputs.isdisjoint(reachable([factor], back))


# --- leaves that get a gradient, but a poor one ------------------------------------------------------------


def _poor_findings(field: Field, run: RunPass, thresholds: Thresholds, known: Collection[int]) -> list[Finding]:
    dead = [s for s in _dead_units(field, run, thresholds) if s.node.index not in known]
    flat = [s for s in saturated(field, thresholds) if s.node.index not in known]
    if not (dead or flat):
        return []
    behind = _behind(field)
    return [
        *(_dead_finding(field.graph, some, behind(some)) for some in _by_expression(dead)),
        *(_saturated_finding(field, some, behind(some)) for some in _by_expression(flat)),
    ]


def _by_expression(suspects: Sequence[Suspect]) -> list[list[Suspect]]:
    """The suspects of one expression together, the worst first: a Python loop evaluates it for each layer."""
    found: dict[object, list[Suspect]] = {}
    for suspect in suspects:
        node = suspect.node
        found.setdefault((node.source, node.label) if node.source else node.index, []).append(suspect)
    return [sorted(some, key=lambda s: -s.amount if s.kind == "dead" else s.amount) for some in found.values()]


def _passes(graph: Graph, suspects: Sequence[Suspect]) -> dict[str, list[int]]:
    """The passes of a loop at which an expression is suspect, where there is more than one."""
    passes = [repetitions(graph).get(suspect.node.index, (1, 1))[0] for suspect in suspects]
    return {"passes": sorted(passes)} if len(passes) > 1 else {}


#: Half of the elements behind a relu are zero in any network: dead units show as more than that.
MANY_ZEROS = 0.65


def _dead_units(field: Field, run: RunPass, thresholds: Thresholds) -> list[Suspect]:
    """Rectifiers with dead units; where only zeros were counted, one more pass counts units."""
    if field.by_unit:
        return list(dead_units(field, thresholds))
    many = replace(thresholds, dead=max(thresholds.dead, MANY_ZEROS))
    likely = list(dead_units(field, many))
    if not likely:
        return []
    made_by = producers(field.graph)
    nodes = {node.index for suspect in likely for node in (suspect.node, made_by[suspect.operand.id])}
    return list(dead_units(Field.of(run(frozenset(nodes), recorder)), thresholds))


def _dead_finding(graph: Graph, suspects: Sequence[Suspect], leaves: tuple[str, ...]) -> Finding:
    suspect = suspects[0]
    cause, why, fix = explain_dead(suspect)
    units = suspect.operand.shape[-1]
    dead = round(suspect.amount * units)
    return Finding(
        kind="dead units",
        severity="warning",
        message=f"{dead} of {units} units get no gradient through {quoted(suspect.node)}"
        f"{repetition(graph, suspect.node)} ({cause}).",
        **at(graph, suspect.node),
        cause=cause,
        why=sentence(why),
        fix=sentence(fix),
        numbers={"dead": suspect.amount, "units": units, **_passes(graph, suspects)},
        leaves=leaves,
    )


def _saturated_finding(field: Field, suspects: Sequence[Suspect], leaves: tuple[str, ...]) -> Finding:
    suspect = suspects[0]
    cause, why, fix = explain_saturated(suspect)
    out = suspect.node.outputs[suspect.output]
    return Finding(
        kind="saturated",
        severity="warning",
        message=f"{quoted(suspect.node)}{repetition(field.graph, suspect.node)} passes {suspect.amount:.1e} of "
        f"the cotangent that reaches it ({cause}).",
        **at(field.graph, suspect.node),
        cause=cause,
        why=sentence(why),
        fix=sentence(fix),
        numbers={"local gain": suspect.amount, "|out_ct|": field.norm(out), **_passes(field.graph, suspects)},
        leaves=leaves,
    )


def _behind(field: Field) -> Callable[[Sequence[Suspect]], tuple[str, ...]]:
    """The leaves whose every path to the result goes through one of some nodes: those it post-dominates."""
    step = successors(field.graph)
    leaves = [leaf for leaf in field.graph.inputs if leaf.active]

    def onward(value: Value) -> list[Value]:
        return [new for _, new in step.get(value.id, ()) if new.active]

    bits: dict[ValueId, Bits] = {leaf.id: 1 << i for i, leaf in enumerate(leaves)}
    dominated = PostDominators.of(leaves, field.sinks, onward).dominated(bits)

    def behind(suspects: Sequence[Suspect]) -> tuple[str, ...]:
        mine = union(dominated.get(suspect.node.outputs[suspect.output].id, 0) for suspect in suspects)
        return tuple(leaf.name for leaf in leaves if bits[leaf.id] & mine)

    return behind
