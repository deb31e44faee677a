"""Origins put into words: findings of kind `origin`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from ... import _jaxpr
from ..._text import listed, type_name
from ...core.graph import Graph, Value
from ...core.types import NodeIndex
from ...record.tape import Tape
from ..measures import with_parents
from ..passes import Run, on_host
from ..report import Finding, at, spell
from .cause_table import UNKNOWN
from .causes import Cause
from .events import OF_OPERAND
from .evidence import Evidence, Number, evidence_of
from .origins import Origin
from .probe import is_float
from .rewriting import Rewrite, replaceable, rewrites
from .trial import Choice, choose, fitted

#: How many stable forms are tried in the whole program for each origin.
_MOST_CANDIDATES = 3


def origin_findings(
    run: Run,
    first: Tape,
    origins: Sequence[Origin],
    causes: Sequence[Cause],
    batch: int | None,
    complete: bool = True,
) -> tuple[list[Finding], list[str]]:
    """Describe origins: one finding for each line and cause.

    Args:
        run: passes at the arguments in question.
        first: the tape of the first pass, on the host.
        origins: the origins to describe.
        causes: the causes to match, in order.
        batch: the length of the batch axis, if known.
        complete: whether these are all of the origins.

    Returns:
        The findings, and notes on what the fixes do not resolve.
    """
    if not origins:
        return [], []
    full = on_host(run(nodes=_nodes_to_record(first.graph, origins, causes)))
    evidence = [evidence_of(origin, full) for origin in origins]
    matched = [_cause_of(one, causes) for one in evidence]
    candidates = [_candidates(one, cause, full) for one, cause in zip(evidence, matched, strict=True)]
    results = jax.tree.leaves(first.value)
    loss = [np.asarray(x) for x, ct in zip(results, first.seed, strict=True) if ct is not None]
    choice = choose(run, loss, candidates)
    described = [
        _describe(origin, one, cause, rewrite, batch)
        for origin, one, cause, rewrite in zip(origins, evidence, matched, choice.chosen, strict=True)
    ]
    order = {value.name: i for i, value in enumerate(full.graph.inputs)}
    return list(_one_for_each_line(described, order)), _notes(choice, origins, full.graph, complete)


def _nodes_to_record(graph: Graph, origins: Sequence[Origin], causes: Sequence[Cause]) -> frozenset[int]:
    """The accused nodes, and all that the expressions around them consist of which a form may replace."""
    forms = list(dict.fromkeys(form for cause in causes for form in cause.forms))
    found: set[NodeIndex] = set()
    for node in (origin.event.node for origin in origins):
        found.add(NodeIndex(node.index))
        for form in forms:
            for position in range(len(node.operands)):
                found.update(map(NodeIndex, replaceable(form, graph, node, position)))
    return with_parents(graph, [graph.by_index[index] for index in found])


def _cause_of(evidence: Evidence, causes: Sequence[Cause]) -> Cause:
    for cause in causes:
        try:
            if cause.matches(evidence):
                return cause
        except Exception as error:
            error.add_note(f"This was raised by `matches` of the cause {cause.name!r}.")
            raise
    return UNKNOWN


def _candidates(evidence: Evidence, cause: Cause, tape: Tape) -> list[Rewrite]:
    """The stable forms of a cause that fit the source and pass their trial at the recorded numbers."""
    if any(np.iscomplexobj(x) for x in evidence.operands if x is not None):
        return []  # complex numbers have no order to choose by
    found: list[Rewrite] = []
    position = _suspect_operand(evidence)
    for form in cause.forms:
        for rewrite in rewrites(form, evidence.graph, evidence.node, position):
            if len(found) < _MOST_CANDIDATES and (passed := fitted(rewrite, evidence, tape)) is not None:
                found.append(passed)
    return found


def _suspect_operand(evidence: Evidence) -> int:
    """The operand that a fix has to change: the one that is not finite, else the first."""
    if evidence.kind not in ("masked", "from inf"):
        return 0
    for i, x in enumerate(evidence.operands):
        if x is not None and _jaxpr.is_inexact(np.asarray(x).dtype) and not np.all(np.isfinite(x)):
            return i
    return 0


# --- in words --------------------------------------------------------------------------------------


def _describe(
    origin: Origin, evidence: Evidence, cause: Cause, rewrite: Rewrite | None, batch: int | None
) -> Finding:
    event = origin.event
    numbers = _numbers_to_show(evidence)
    if batch is not None and event.element and event.value.shape[0] == batch:
        numbers["example"] = event.element[0]
    if event.count > 1:
        numbers["bad numbers"] = event.count
    if event.steps > 1:
        numbers["bad steps"] = event.steps
    replacements = _replacements(evidence)
    fix = cause.fix.format(**replacements) if rewrite is None else _fix_as_code(rewrite, evidence)
    return Finding(
        kind="origin",
        severity="note" if origin.harmless else "error",
        message=_message(origin, evidence),
        **at(evidence.graph, event.node),
        step=event.step,
        element=event.element,
        cause=cause.name,
        why=cause.why.format(**replacements) + _behind_mask(evidence),
        fix=fix,
        numbers=numbers,
        leaves=origin.leaves,
    )


def _fix_as_code(rewrite: Rewrite, evidence: Evidence) -> str:
    """The code of a fix; if it replaces more than the expression of the finding, a comment says what."""
    if rewrite.nodes == {evidence.node.index} or rewrite.root.label == evidence.code:
        return rewrite.code
    return f"{rewrite.code}  # instead of {rewrite.replaced}"


def _replacements(evidence: Evidence) -> dict[str, str]:
    a, b = (*evidence.x, None, None)[:2]
    dtype = evidence.dtype
    if evidence.primitive in ("convert_element_type", "reduce_precision"):
        dtype = np.dtype(evidence.node.outputs[0].dtype if not evidence.backward else dtype)
    return {
        "a": "x" if a is None else spell(_as_plain(a)),
        "b": "p" if b is None else spell(_as_plain(b)),
        "y": spell(_as_plain(evidence.y)),
        "operation": evidence.primitive,
        "dtype": dtype.name,
        "wider": _WIDER.get(dtype.name, ""),
    }


#: Where a number too large for a dtype can be held.
_WIDER = {
    "float16": ", or keep this part in float32",
    "bfloat16": ", or compute this part in float64",
    "float32": ", or compute this part in float64",
    "complex64": ", or compute this part in complex128",
}


def _behind_mask(evidence: Evidence) -> str:
    if evidence.kind not in ("produced", "from inf") or not evidence.backward:
        return ""
    if evidence.ct is None or np.any(evidence.ct != 0):
        return ""
    return (
        " The incoming cotangent is 0, as from a mask after it, but 0 * inf is NaN: masking a result does not "
        "mask its derivative."
    )


def _message(origin: Origin, evidence: Evidence) -> str:
    event = origin.event
    name, what, then = event.node.name, _what(origin, evidence), _consequence(origin)
    match event.kind:
        case "input":
            return f"`{name}` contains {what}{_index(event.element)}, which {then}."
        case "seed":
            return f"the initial cotangent of `{name}` contains {what}{_index(event.element)}, which {then}."
        case "sum":
            return f"the cotangents of `{name}` sum to {what}, which {then}."
        case "unexamined" if evidence.backward:
            return f"the cotangent of `{name}` is {what}, and where that begins was not found; it {then}."
        case _ if evidence.backward:
            return f"the backward pass through `{name}` produces {what}, which {then}."
    return f"`{name}` produces {what}, which {then}."


def _consequence(origin: Origin) -> str:
    reached = ["the gradient"] * bool(origin.leaves) + ["the loss"] * origin.reaches_loss
    if reached:
        return f"propagates to {' and '.join(reached)}"
    return "reaches neither the gradient nor the loss: harmless"


def _what(origin: Origin, evidence: Evidence) -> str:
    event = origin.event
    if event.at_operand:
        ct = evidence.in_cts[event.position]
        return "inf" if ct is not None and np.any(np.isinf(ct[event.element])) else "NaN"
    x = (evidence.out_cts if evidence.backward else evidence.outputs)[event.position]
    if x is None:
        return "NaN" if origin.nan else "inf"
    x = np.asarray(x)[event.element]
    return "NaN" if np.any(np.isnan(x)) else spell(_as_plain(x))


def _index(element: tuple[int, ...]) -> str:
    return f" at [{', '.join(map(str, element))}]" if element else ""


def _numbers_to_show(evidence: Evidence) -> dict[str, object]:
    """Operands, result, local gradient, and the cotangents that arrive and leave."""
    if evidence.kind in ("seed", "input", "sum"):
        return {}
    found: dict[str, object] = {}
    shown = _operands_to_show(evidence)
    for value, x, whole in shown:
        found[value.name] = _abridged(x if x is not None else whole)
    if (others := len(evidence.node.operands) - len(shown)) and len(shown) == _MOST_OPERANDS:
        found["other operands"] = others
    if evidence.backward and evidence.kind in OF_OPERAND:
        if evidence.gain is not None:
            found["local gradient"] = _as_plain(evidence.gain)
        first = next((ct for ct in evidence.out_cts if ct is not None), None)
        found["incoming cotangent"] = _abridged(evidence.ct if evidence.ct is not None else first)
        ct = evidence.in_cts[evidence.position]
        found["product"] = None if ct is None else _as_plain(ct[evidence.element])
    elif not evidence.backward:
        found["result"] = _abridged(
            evidence.y if evidence.y is not None else evidence.outputs[evidence.position]
        )
    return found


#: How many operands of a node are shown.
_MOST_OPERANDS = 6


def _operands_to_show(evidence: Evidence) -> list[tuple[Value, Number, np.ndarray | None]]:
    """The operands that are not written as numbers; of many those that are differentiated or not finite."""
    found = [
        (value, x, whole)
        for value, x, whole in zip(evidence.node.operands, evidence.x, evidence.operands, strict=True)
        if value.literal is None or value.id >= 0
    ]
    if len(found) <= _MOST_OPERANDS:
        return found

    def is_of_interest(entry: tuple[Value, Number, np.ndarray | None]) -> bool:
        value, _, whole = entry
        return value.active or (is_float(value) and whole is not None and not np.all(np.isfinite(whole)))

    return sorted(found, key=lambda entry: not is_of_interest(entry))[:_MOST_OPERANDS]


def _abridged(x: np.ndarray | Number) -> object:
    """A number as it is, a short array as a list, a long one as its type and range."""
    if x is None:
        return None
    x = np.asarray(x)
    if x.ndim == 0:
        return _as_plain(x)
    if x.size <= 6 and x.ndim == 1:
        return [_as_plain(item) for item in x]
    if not _jaxpr.is_inexact(x.dtype) and x.dtype.kind not in "iub":
        return type_name(x.dtype, x.shape)
    wide = np.real(np.asarray(x, complex))
    finite = wide[np.isfinite(wide)]
    between = f" from {spell(float(finite.min()))} to {spell(float(finite.max()))}" if finite.size else ""
    bad = x.size - finite.size
    return f"{type_name(x.dtype, x.shape)}{between}{f', {bad} not finite' if bad else ''}"


def _as_plain(x: object) -> object:
    """A number as Python has it; a complex one as text."""
    if x is None:
        return None
    x = np.asarray(x)
    if np.iscomplexobj(x):
        return str(x[()])
    return float(x) if x.dtype.kind not in "iub" else int(x)


# --- together --------------------------------------------------------------------------------------


def _one_for_each_line(findings: Sequence[Finding], order: Mapping[str, int]) -> Iterator[Finding]:
    """Merge the findings of one line, expression and cause: the first, with the leaves of all, in order."""
    groups: dict[object, list[Finding]] = {}
    for i, finding in enumerate(findings):
        key = (finding.source, finding.code, finding.cause, finding.severity, finding.fix)
        groups.setdefault(key if finding.source is not None and finding.code else i, []).append(finding)
    for first, *rest in groups.values():
        leaves = sorted({leaf for one in (first, *rest) for leaf in one.leaves}, key=order.__getitem__)
        numbers = dict(first.numbers)
        if rest:
            numbers["also at"] = [one.node for one in rest]
        yield replace(first, leaves=tuple(leaves), numbers=numbers)


def _notes(choice: Choice, origins: Sequence[Origin], graph: Graph, complete: bool) -> list[str]:
    """Say what is not finite even with all fixes, where each origin has one."""
    harmful = [rewrite for rewrite, origin in zip(choice.chosen, origins, strict=True) if not origin.harmless]
    if not (complete and choice.unresolved and all(harmful)):
        return []
    leaves = listed([f"`{graph.inputs[i].name}`" for i in choice.unresolved])
    return [
        f"With these fixes the gradient of {leaves} is still not finite: apply them and run `diagnose` again."
    ]
