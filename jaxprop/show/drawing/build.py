"""Build the scene of a `Graph` or a `Tape`: nodes, edges, boxes, numbers, sources."""

import dataclasses
import linecache
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ... import _jaxpr
from ..._text import type_name
from ...core.graph import Graph, Node, Source, Value
from ...core.structure import sources
from ...record.statistics import Summary
from ...record.tape import Entry, Tape
from .arrays import largest, show_array, show_summary
from .edges import Site, local_numbers, local_texts, residuals, shares
from .groups import Boxes
from .scene import Box, Edge, LocalText, Output, Scene, SceneNode, Shown, SourceText

#: Steps of a scan shown one by one: at most so many, and at most so many over all values of the scene.
MOST_STEPS, ALL_STEPS = 64, 20_000
#: Powers of ten the scale of colours spans, at least and at most.
DECADES = 2.0, 8.0
#: Lines of source before and after the one in question.
AROUND = 3


def scene_of(what: Graph | Tape) -> Scene:
    """Build the scene of a graph (no numbers) or of a tape.

    Raises:
        TypeError: `what` is neither, or holds tracers: it has no numbers yet.
        ValueError: the tape went through `vmap`: then it is many records, not one.
    """
    if not isinstance(what, Graph | Tape):
        raise TypeError(
            f"what is drawn is a `Graph` (of `jaxprop.trace`) or a `Tape` (of `jaxprop.backprop`), not "
            f"{type(what).__name__}."
        )
    graph = what if isinstance(what, Graph) else what.graph
    numbers = _Numbers(what) if isinstance(what, Tape) else None
    sources = _Sources()
    boxes = Boxes(graph)
    levels = _levels(graph)
    kinds = _kinds(graph, isinstance(what, Tape))
    constants = _constants(graph)
    kept, besides, kept_bytes = residuals(graph)
    slopes = local_numbers(graph, numbers.values) if numbers else {}
    parts, left = shares(what, numbers.shown) if isinstance(what, Tape) and numbers else ({}, 0)
    nodes = tuple(
        dataclasses.replace(
            _node(node, graph, kinds, levels, boxes.of, numbers, sources.index(node.source)),
            keeps=besides.get(node.index, 0),
            constant=node.index in constants,
        )
        for node in graph.walk()
    )
    notes = list(numbers.notes) if numbers else []
    if left:
        notes.append(f"The shares of {left} values read in several places were not computed.")
    loss = tuple(_position(graph, value) for value in graph.outputs if value.id >= 0)
    return Scene(
        title=", ".join(dict.fromkeys(value.name for value in graph.outputs)),
        nodes=nodes,
        edges=tuple(_edges(graph, local_texts(graph, slopes), parts)),
        boxes=_filled(boxes.boxes, nodes, {node.index: node for node in graph.walk()}),
        loss=loss,
        value=numbers.loss if numbers else "",
        sources=sources.table,
        scale=_scale(nodes),
        numbers=numbers.kind if numbers else "none",
        notes=tuple(notes),
        residuals=kept,
        kept_bytes=kept_bytes,
    )


# --- nodes ---------------------------------------------------------------------------------------


def _node(
    node: Node,
    graph: Graph,
    kinds: Mapping[int, str],
    levels: Mapping[int, int],
    boxes: Mapping[int, str],
    numbers: "_Numbers | None",
    source: int | None,
) -> SceneNode:
    return SceneNode(
        id=node.index,
        name=node.name,
        primitive=node.primitive,
        kind=kinds.get(node.index, "op"),
        label=node.label,
        call=f"{node.primitive}({', '.join(value.name for value in node.operands)})" if node.operands else "",
        outputs=tuple(_output(value, numbers) for value in node.outputs),
        active=node.active,
        box=boxes.get(node.index),
        scope=node.scope,
        source=source,
        level=levels[node.index],
        steps=graph.places[node.index].steps,
        taken=numbers.taken.get(node.index) if numbers else None,
    )


def _output(value: Value, numbers: "_Numbers | None") -> Output:
    shown = numbers.shown.get(value.id, (None, None)) if numbers else (None, None)
    return Output(
        name=value.name,
        type=type_name(value.dtype, value.shape),
        shape=value.shape,
        dtype=str(value.dtype),
        active=value.active,
        value=shown[0],
        cotangent=shown[1],
    )


def _kinds(graph: Graph, is_tape: bool) -> dict[int, str]:
    """The kinds of nodes that are no plain operation."""
    kinds = {node.index: _head_kind(node, is_tape) for node in (*graph.heads, *graph.fixed)}
    for node in graph.walk():
        for nested in node.graphs:
            kinds |= zip((head.index for head in nested.heads), _body_kinds(node, nested), strict=False)
    returned = {value.id for value in graph.outputs}
    for node in graph.equations():
        if any(value.id in returned for value in node.outputs):
            kinds[node.index] = "loss"
    return kinds


def _head_kind(node: Node, is_tape: bool) -> str:
    if node.primitive == "const":
        return "const" if node.name.split("#")[0] == "const" else "data"
    if node.outputs[0].literal is not None:
        return "data"
    return "parameter" if is_tape or node.active else "data"


def _body_kinds(node: Node, nested: Graph) -> Iterator[str]:
    form = _jaxpr.opened_form(node.eqn)
    for position, _ in enumerate(nested.heads):
        if not isinstance(form, _jaxpr.Scan) or position >= len(nested.inputs):
            yield "operand"
        elif position < form.num_consts:
            yield "constant"
        else:
            yield "carry" if position < form.num_consts + form.num_carry else "slice"


def _levels(graph: Graph) -> dict[int, int]:
    """The longest way to each node from the inputs of its own graph."""
    level: dict[int, int] = {}
    made: dict[int, int] = {}
    for node in graph.walk():
        before = [made[value.id] for value in node.operands if value.id in made]
        level[node.index] = max(before, default=-1) + 1
        made |= dict.fromkeys((value.id for value in node.outputs), level[node.index])
    return level


def _constants(graph: Graph) -> frozenset[int]:
    """The nodes that depend on no argument and no closed-over array."""
    depends = {
        value.id for level in _bodies(graph) for head in (*level.heads, *level.fixed) for value in head.outputs
    }
    found = set()
    for node in graph.walk():
        if any(value.id in depends for value in node.operands) or any(v.id in depends for v in node.outputs):
            depends.update(value.id for value in node.outputs)
        else:
            found.add(node.index)
    return frozenset(found)


def _bodies(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.walk():
        yield from node.graphs


def _scale(nodes: Iterable[SceneNode]) -> tuple[float, float] | None:
    norms = [
        out.cotangent.norm
        for node in nodes
        for out in node.outputs
        if out.cotangent and out.cotangent.norm and math.isfinite(out.cotangent.norm) and node.taken != 0.0
    ]
    if not norms:
        return None
    # A gradient that is zero in truth comes out as round-off: it must not stretch the scale. Nor must two norms
    # that are nearly one look far apart.
    high = math.log10(max(norms))
    return min(max(math.log10(min(norms)), high - DECADES[1]), high - DECADES[0]), high


# --- edges ---------------------------------------------------------------------------------------


def _edges(graph: Graph, locals_: Mapping[Site, LocalText], parts: Mapping[Site, Shown]) -> Iterator[Edge]:
    made = sources(graph)
    swept = graph.by_index
    wires = _wires(graph)
    found = (
        (_position(graph, value), target, value, kind) for value, target, kind in wires if value.id in made
    )
    for number, (source, target, value, kind) in enumerate(found):
        reader = swept[target[0]]
        active = value.active and (kind != "data" or reader.active) and (kind != "enter" or reader.active)
        own = kind == "data"
        local, share = (locals_.get(target), parts.get(target)) if own else (None, None)
        yield Edge(number, source, target, value.name, kind, active, local, share)


def _position(graph: Graph, value: Value) -> tuple[int, int]:
    node, output = sources(graph)[value.id]
    return node.index, output


def _wires(graph: Graph) -> Iterator[tuple[Value, tuple[int, int], str]]:
    """Which value goes to which node and position, and how; those of a body after those of its node."""
    for node in graph.walk():
        for position, value in enumerate(node.operands):
            yield value, (node.index, position), "data"
        for nested in node.graphs:
            yield from _wires_of_body(node, nested)


def _wires_of_body(node: Node, nested: Graph) -> Iterator[tuple[Value, tuple[int, int], str]]:
    heads = {head.outputs[0].id: head.index for head in nested.heads}
    for outer, inner in zip(_handed_in(node, nested), nested.inputs, strict=False):
        if inner.id in heads:
            yield outer, (heads[inner.id], 0), "enter"
    if len(nested.outputs) == len(node.outputs):
        for position, value in enumerate(nested.outputs):
            yield value, (node.index, position), "leave"
    form = _jaxpr.opened_form(node.eqn)
    if isinstance(form, _jaxpr.Scan):
        carried = nested.inputs[form.num_consts : form.num_consts + form.num_carry]
        for value, inner in zip(nested.outputs, carried, strict=False):
            yield value, (heads[inner.id], 0), "carry"


def _handed_in(node: Node, nested: Graph) -> tuple[Value, ...]:
    """The operands of a node in the order of the inputs of its body, where they correspond."""
    if node.primitive == "cond":
        return node.operands[1:]
    if node.primitive == "while":
        first, second = node.params["cond_nconsts"], node.params["body_nconsts"]
        carried = node.operands[first + second :]
        if nested is node.graphs[-1]:
            return (*node.operands[first : first + second], *carried)
        return (*node.operands[:first], *carried)
    return node.operands if len(node.operands) == len(nested.inputs) else ()


# --- boxes ---------------------------------------------------------------------------------------


def _filled(
    boxes: Iterable[Box], nodes: Iterable[SceneNode], graph_nodes: Mapping[int, Node]
) -> tuple[Box, ...]:
    """Boxes with what their nodes add up to."""
    boxes = tuple(boxes)
    inside: dict[str, list[SceneNode]] = {box.id: [] for box in boxes}
    parents = {box.id: box.parent for box in boxes}
    for node in nodes:
        box = node.box
        while box is not None:
            inside[box].append(node)
            box = parents[box]
    return tuple(_sum_up(box, inside[box.id], graph_nodes) for box in boxes)


def _sum_up(box: Box, nodes: list[SceneNode], graph_nodes: Mapping[int, Node]) -> Box:
    outputs = [out for node in nodes for out in node.outputs]
    bad = [n for n in nodes if not n.constant and any(map(_nonfinite, n.outputs))]
    form = _jaxpr.opened_form(graph_nodes[box.node].eqn) if box.node is not None else None
    direct = [node.taken for node in nodes if node.box == box.id and node.taken is not None]
    return dataclasses.replace(
        box,
        count=len(nodes),
        cotangent=largest([out.cotangent for out in outputs]),
        nonfinite=len(bad),
        active=any(node.active for node in nodes),
        taken=direct[0] if direct and box.branch is not None else None,
        length=form.length if isinstance(form, _jaxpr.Scan) else None,
    )


def _nonfinite(out: Output) -> bool:
    return any(shown is not None and shown.nonfinite for shown in (out.value, out.cotangent))


# --- sources -------------------------------------------------------------------------------------


class _Sources:
    """A table of places in the source, each once."""

    def __init__(self) -> None:
        self._found: dict[Source, int] = {}

    def index(self, source: Source | None) -> int | None:
        return None if source is None else self._found.setdefault(source, len(self._found))

    @property
    def table(self) -> tuple[SourceText, ...]:
        return tuple(map(_source_text, self._found))


def _source_text(source: Source) -> SourceText:
    lines = linecache.getlines(source.file)
    first = max(1, source.line - AROUND)
    context = tuple(line.rstrip() for line in lines[first - 1 : source.line + AROUND])
    text = lines[source.line - 1].strip() if 0 < source.line <= len(lines) else ""
    return SourceText(
        os.path.basename(source.file), source.line, source.function, text, first if context else 0, context
    )


# --- numbers -------------------------------------------------------------------------------------


class _Numbers:
    """What a tape holds of each value, as it is shown.

    Attributes:
        shown: value and cotangent by the value's id.
        values: the values themselves, on the host.
        taken: by node: in which fraction of steps its branch was taken.
        kind: `full` or `summary`.
        loss: the value returned, as text.
    """

    def __init__(self, tape: Tape) -> None:
        _check_concrete(tape)
        entries = list(tape)
        hosted = jax.device_get(jax.tree.map(_plain_keys, [(e.value, e.cotangent, e.taken) for e in entries]))
        stepped = [entry for entry in entries if tape.graph.places[entry.node.index].steps]
        self.most = min(MOST_STEPS, max(8, ALL_STEPS // max(1, 2 * len(stepped))))
        self.notes = self._notes(tape, stepped)
        self.shown: dict[int, tuple[Shown | None, Shown | None]] = {}
        self.values: dict[int, Any] = {}
        self.taken: dict[int, float] = {}
        self.kind = "full"
        for entry, (value, cotangent, taken) in zip(entries, hosted, strict=True):
            out = entry.node.outputs[entry.node.names.index(entry.name)]
            steps = tape.graph.places[entry.node.index].steps
            if _is_numeric(value):
                self.values[out.id] = value
            self.shown[out.id] = self._show(out, value, steps, entry), self._show(out, cotangent, steps, entry)
            if taken is not None:
                self.taken[entry.node.index] = float(np.mean(taken))
        self.loss = _loss_text(tape.value)

    def _notes(self, tape: Tape, stepped: list[Entry]) -> tuple[str, ...]:
        longest = max((math.prod(tape.graph.places[e.node.index].steps) for e in stepped), default=0)
        return (f"{self.most} of {longest} steps are shown one by one.",) if longest > self.most else ()

    def _show(self, out: Value, x: Any, steps: tuple[int, ...], entry: Entry) -> Shown | None:
        if x is None:
            return None
        scalar = out.shape == ()
        if isinstance(x, Summary):
            self.kind = "summary"
            axes = _step_axes(np.shape(x.norm), steps, (), entry)
            return show_summary(x, axes, self.most, scalar)
        if not _is_numeric(x):
            return None
        array = np.asarray(x)
        return show_array(array, _step_axes(array.shape, steps, out.shape, entry), self.most)


def _step_axes(shape: tuple[int, ...], steps: tuple[int, ...], own: tuple[int, ...], entry: Entry) -> int:
    """How many step axes a record has: all, or none where it is the same in every step."""
    if shape == (*steps, *own):
        return len(steps)
    for count in range(len(steps)):
        if shape == (*steps[:count], *own):
            return count
    raise ValueError(
        f"the record of {entry.name!r} has shape {shape}, the graph says {(*steps, *own)}: the tape went "
        "through `vmap`, so it is many records. Draw one of them: `jax.tree.map(lambda x: x[0], tape)`."
    )


def _check_concrete(tape: Tape) -> None:
    if any(map(_jaxpr.is_tracer, jax.tree.leaves(tape))):
        raise TypeError(
            "the tape holds tracers, no numbers yet: it is being traced by `jax.jit` or another "
            "transformation. Return the tape from the function and draw it outside, or draw `tape.graph`."
        )


def _plain_keys(x: Any) -> Any:
    """Random keys have no numbers to show."""
    return None if _jaxpr.is_key(x) else x


def _is_numeric(x: Any) -> bool:
    return isinstance(x, bool | int | float | complex | np.number | np.ndarray | np.bool_)


def _loss_text(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or np.ndim(leaves[0]) or not _is_numeric(np.asarray(leaves[0])):
        return ""
    return show_array(np.asarray(leaves[0]), 0, 1).text
