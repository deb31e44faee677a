"""Origins put into words: findings of kind `origin`."""

from typing import Any

import numpy as np

from ..._text import type_name
from ...core.graph import Graph
from ...record.aliases import BACK
from ...record.tape import Tape
from ..report import Finding, at, spell
from .events import Event
from .evidence import Point, point_of
from .lookup import explain
from .origins import Origin


def origin_findings(origins: list[Origin], full: Tape, batch: int | None) -> list[Finding]:
    """One finding for each origin.

    Args:
        origins: those to be spelled out.
        full: a tape that keeps operands and cotangents at their nodes.
        batch: the length of the batch axis, where it is known.
    """
    return [_finding(origin, point_of(origin.event, full), full.graph, batch) for origin in origins]


def accused(origins: list[Origin]) -> frozenset[int]:
    """The nodes whose numbers are needed."""
    return frozenset(origin.event.node.index for origin in origins)


def _finding(origin: Origin, point: Point, graph: Graph, batch: int | None) -> Finding:
    event = origin.event
    cause, why, fix = explain(point, graph)
    numbers = _numbers(point)
    if batch is not None and event.element and event.value.shape[0] == batch:
        numbers["example"] = event.element[0]
    if event.count > 1:
        numbers["bad numbers"] = event.count
    if event.steps > 1:
        numbers["bad steps"] = event.steps
    return Finding(
        kind="origin",
        severity="note" if origin.harmless else "error",
        message=_message(origin, point),
        **at(graph, event.node),
        step=event.step,
        element=event.element,
        cause=cause,
        why=why,
        fix=fix,
        numbers=numbers,
        leaves=origin.leaves,
    )


def _message(origin: Origin, point: Point) -> str:
    event = origin.event
    what = _what(origin, point)
    name = event.node.name
    match event.kind:
        case "given":
            begins = f"`{name}` holds {what}{_index(event)}"
        case "seed":
            begins = f"the cotangent of `{name}` the pass begins with holds {what}{_index(event)}"
        case "sum":
            begins = f"the cotangents sent to `{name}` sum to {what}"
        case _ if event.half == BACK:
            begins = f"the gradient becomes {what} on the way back through `{name}`"
        case _:
            begins = f"`{name}` makes {what}"
    return f"{begins}{_consequence(origin)}."


def _consequence(origin: Origin) -> str:
    where = ["the gradient"] if origin.leaves else []
    where += ["the loss"] if origin.spoils_value else []
    if where:
        return f"; it reaches {' and '.join(where)}"
    return "; it reaches neither the gradient nor the loss: harmless"


def _what(origin: Origin, point: Point) -> str:
    event = origin.event
    if event.half == BACK and event.kind in ("made", "from inf"):
        sent = point.sent[event.position]
        return "inf" if sent is not None and np.any(np.isinf(sent[event.element])) else "nan"
    arrays = point.cts if event.half == BACK else point.outputs
    x = arrays[event.position]
    if x is None:
        return "nan" if origin.nan else "inf"
    x = np.asarray(x)[event.element]
    return "nan" if np.any(np.isnan(x)) else spell(_real(x))


def _index(event: Event) -> str:
    return f" at [{', '.join(map(str, event.element))}]" if event.element else ""


def _numbers(point: Point) -> dict[str, Any]:
    """What a person wants to see: operands, result, local gradient, cotangent, and what was sent."""
    event, node = point.event, point.node
    if event.kind in ("seed", "given", "sum"):
        return {}
    found: dict[str, Any] = {}
    for value, x, whole in zip(node.operands, point.x, point.operands, strict=True):
        if value.literal is None or value.id >= 0:
            found[value.name] = _brief(x if x is not None else whole)
    if event.half == BACK and event.kind in ("made", "from inf"):
        if point.gain is not None:
            found["local gradient"] = _brief(point.gain)
        found["incoming cotangent"] = _brief(
            point.ct if point.ct is not None else next((ct for ct in point.cts if ct is not None), None)
        )
        sent = point.sent[event.position]
        found["sent back"] = _brief(None if sent is None else np.asarray(sent)[event.element])
    elif event.half != BACK:
        found["result"] = _brief(point.y if point.y is not None else point.outputs[event.position])
    return found


def _brief(x: Any) -> Any:
    """A number as it is, a short array as a list, a long one as type and range."""
    if x is None:
        return None
    x = np.asarray(x)
    if x.ndim == 0:
        return _real(x)
    if x.size <= 6 and x.ndim == 1:
        return [_real(item) for item in x]
    wide = np.real(np.asarray(x, complex))
    finite = wide[np.isfinite(wide)]
    between = f" from {spell(float(finite.min()))} to {spell(float(finite.max()))}" if finite.size else ""
    bad = x.size - finite.size
    return f"{type_name(x.dtype, x.shape)}{between}{f', {bad} not finite' if bad else ''}"


def _real(x: Any) -> Any:
    x = np.asarray(x)
    if np.iscomplexobj(x):
        return str(x[()])
    return float(x) if x.dtype.kind not in "iub" else int(x)
