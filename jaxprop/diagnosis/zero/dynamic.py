"""Findings on gradients that are zero at these numbers: dead, saturated, clipped, masked, underflown."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..._text import sentence
from ...core.graph import Graph, Node, Value
from ...core.recorders import Recorder
from ...core.structure import makers
from ...record.tape import Tape
from ..measures import Field, recorder, with_parents
from ..report import Finding, at
from ..thresholds import Thresholds
from .experiments import Cause, Point, cause_of, words_of_dead, words_of_saturated
from .static import subject, text_of
from .suspects import Suspect, dead_units, saturated, zero_leaves

#: So many nodes are looked at more closely, at most: each keeps its operands.
MOST = 24


class Pass(Protocol):
    """One more pass over the loss: which nodes, by index, and what is recorded."""

    def __call__(self, nodes: frozenset[int] | None, record: Recorder | None = None) -> Tape: ...


def dynamic_findings(
    field: Field, run: Pass, thresholds: Thresholds, lost: Collection[str] = ()
) -> list[Finding]:
    """Say where and why cotangents die, from the measures of one pass.

    Of leaves that are lost in the program itself nothing more is said. Only where others get nothing a second
    pass is run, that keeps the operands of the nodes where they died.
    """
    if not is_finite(field):
        return []  # with NaN about, zeros say nothing
    zero = {leaf: some for leaf, some in zero_leaves(field).items() if leaf.name not in lost}
    found = _zero_findings(field, zero, run) if zero else []
    return [*found, *_hampered(field, run, thresholds, zero)]


def is_finite(field: Field) -> bool:
    """Whether the gradient is free of NaN and Inf: with such about, sizes say nothing."""
    return all(np.isfinite(field.top(leaf) or 0.0) for leaf in field.graph.inputs)


# --- leaves whose gradient is zero ---------------------------------------------------------------------


def _zero_findings(field: Field, zero: Mapping[Value, tuple[Suspect, ...]], run: Pass) -> list[Finding]:
    suspects = list(dict.fromkeys(suspect for some in zero.values() for suspect in some))[:MOST]
    causes: dict[Suspect, Cause] = {}
    if suspects:
        tape = run(with_parents(field.graph, [suspect.node for suspect in suspects]))
        causes = {suspect: cause_of(Point.of(tape, suspect)) for suspect in suspects}
    everything = all(field.top(leaf) == 0 for leaf in field.graph.inputs if leaf.active)
    groups: dict[tuple[Suspect, ...], list[str]] = {}
    for leaf, some in zero.items():
        groups.setdefault(some, []).append(leaf.name)
    return [_zero_finding(field, some, causes, tuple(names), everything) for some, names in groups.items()]


def _zero_finding(
    field: Field,
    suspects: Sequence[Suspect],
    causes: Mapping[Suspect, Cause],
    leaves: tuple[str, ...],
    everything: bool,
) -> Finding:
    known = [suspect for suspect in suspects if suspect in causes]
    if not known:
        return Finding(
            kind="zero gradient",
            severity="warning",
            message=f"The gradient of {subject(leaves)} is zero: no cotangent begins at the result.",
            leaves=leaves,
            cause="zero seed",
            why="The result itself was given a zero cotangent, or nothing of it is differentiated.",
            fix="Look at the seed and at what the loss returns.",
        )
    first = known[0]
    cause = causes[first]
    others = list(dict.fromkeys(_brief(field.graph, s, causes[s]) for s in known[1:]))
    also = f" Their other ways end too: {', '.join(others[:4])}." if others else ""
    healing = all(_heals(field, suspect, causes[suspect]) for suspect in known)
    optimum = all(causes[suspect].words.cause == "stationary" for suspect in known)
    why = cause.words.why
    if healing:
        why += f" `{_factor(first, cause)}` itself gets a gradient, so after one step it is zero no more."
    return Finding(
        kind="zero gradient",
        severity="note" if healing or optimum else "error" if everything else "warning",
        message=f"The gradient of {subject(leaves)} is zero: nothing gets through {text_of(first.node)} "
        f"({cause.words.cause}).",
        **at(field.graph, first.node),
        cause=cause.words.cause,
        why=sentence(why) + also,
        fix=sentence(cause.words.fix),
        numbers=cause.numbers,
        leaves=leaves,
    )


def _brief(graph: Graph, suspect: Suspect, cause: Cause) -> str:
    return f"{text_of(suspect.node)} ({cause.words.cause})"


def _heals(field: Field, suspect: Suspect, cause: Cause) -> bool:
    """Whether what multiplies by zero gets a gradient of its own: weights that begin at zero."""
    if cause.factor is None:
        return False
    factor = suspect.node.operands[cause.factor]
    return bool(factor.active and field.top(factor) and field.fed_by(factor))


def _factor(suspect: Suspect, cause: Cause) -> str:
    return suspect.node.operands[cause.factor].name if cause.factor is not None else ""


# --- leaves that get a gradient, but a poor one ----------------------------------------------------------


def _hampered(field: Field, run: Pass, thresholds: Thresholds, zero: Mapping[Value, Any]) -> list[Finding]:
    known = {suspect.node.index for some in zero.values() for suspect in some}
    found = []
    for suspect in _dead_units(field, run, thresholds):
        if suspect.node.index not in known:
            found.append(_dead_finding(field, suspect))
    for suspect in saturated(field, thresholds):
        if suspect.node.index not in known:
            found.append(_saturated_finding(field, suspect))
    return found


#: Half of the elements behind a relu are zero in any network: dead units show as more than that.
MANY_ZEROS = 0.65


def _dead_units(field: Field, run: Pass, thresholds: Thresholds) -> list[Suspect]:
    """Rectifiers with dead units; where only zeros were counted, one more pass counts units."""
    if field.by_unit:
        return list(dead_units(field, thresholds))
    many = replace(thresholds, dead=max(thresholds.dead, MANY_ZEROS))
    likely = list(dead_units(field, many))
    if not likely:
        return []
    made_by = makers(field.graph)
    nodes = {node.index for suspect in likely for node in (suspect.node, made_by[suspect.operand.id])}
    return list(dead_units(Field.of(run(frozenset(nodes), recorder)), thresholds))


def _dead_finding(field: Field, suspect: Suspect) -> Finding:
    words = words_of_dead(suspect)
    units = suspect.operand.shape[-1]
    dead = round(suspect.amount * units)
    return Finding(
        kind="dead units",
        severity="warning",
        message=f"{dead} of {units} units get no gradient through {text_of(suspect.node)} ({words.cause}).",
        **at(field.graph, suspect.node),
        cause=words.cause,
        why=sentence(words.why),
        fix=sentence(words.fix),
        numbers={"dead": suspect.amount, "units": units},
        leaves=_behind(field, suspect),
    )


def _saturated_finding(field: Field, suspect: Suspect) -> Finding:
    words = words_of_saturated(suspect)
    return Finding(
        kind="saturated",
        severity="warning",
        message=f"{text_of(suspect.node)} lets through {suspect.amount:.1e} of the cotangent that comes to it "
        f"({words.cause}).",
        **at(field.graph, suspect.node),
        cause=words.cause,
        why=sentence(words.why),
        fix=sentence(words.fix),
        numbers={"local gain": suspect.amount, "|out_ct|": field.norm(suspect.node.outputs[suspect.output])},
        leaves=_behind(field, suspect),
    )


def _behind(field: Field, suspect: Suspect) -> tuple[str, ...]:
    """The leaves whose every way to the result goes through the node."""
    leaves = [leaf for leaf in field.graph.inputs if leaf.active]
    return tuple(leaf.name for leaf in leaves if not _passes_by(field, leaf, suspect.node))


def _passes_by(field: Field, leaf: Value, node: Node) -> bool:
    """Whether a leaf has a way to the result beside a node."""
    sinks = {value.id for value in field.sinks}
    seen, queue = {leaf.id}, [leaf]
    for value in queue:
        if value.id in sinks:
            return True
        for reader, new in field.onward(value):
            if reader.index != node.index and new.id not in seen:
                seen.add(new.id)
                queue.append(new)
    return False
