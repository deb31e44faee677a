"""Build the scene of a `Graph` or a `Tape`."""

import dataclasses
import linecache
import math
import os
from collections.abc import Iterable, Iterator, Mapping

from ... import _jaxpr
from ..._text import plural, type_name
from ...core.graph import Graph, Node, Source, Value
from ...core.types import NodeIndex, ValueId
from ...record.tape import Tape
from ..symbolic.names import latex_name
from .arrays import largest
from .contributions import contributions
from .edges import edges_of, graphs_in, producer_of
from .groups import Boxes
from .local_gradients import local_numbers, local_texts, short_name
from .records import Records
from .rule_reads import rule_reads
from .scene import Box, Output, Scene, SceneNode, SourceText

#: Powers of ten that the colour scale spans, at least and at most.
DECADES = 2.0, 8.0
#: Lines of source shown before and after a line.
AROUND = 3


def scene_of(what: Graph | Tape) -> Scene:
    """Build the scene of a graph (no numbers) or of a tape.

    Raises:
        TypeError: `what` is neither, or it holds tracers instead of numbers.
        ValueError: the tape went through `vmap`, so it holds one record for each example.
    """
    if not isinstance(what, Graph | Tape):
        raise TypeError(
            "`draw` takes a `Graph` (from `jaxprop.trace`) or a `Tape` (from `jaxprop.backprop`), "
            f"got {type(what).__name__}."
        )
    graph = what if isinstance(what, Graph) else what.graph
    records = Records(what) if isinstance(what, Tape) else None
    shares, left_out = contributions(what, records.shown) if isinstance(what, Tape) and records else ({}, 0)
    slopes = local_numbers(graph, records.values) if records else {}
    notes = list(records.notes) if records else []
    if left_out:
        notes.append(f"The contributions to {plural(left_out, 'cotangent')} were not computed.")
    reads, rule_bytes = rule_reads(graph)
    boxes = Boxes(graph)
    sources = _Sources()
    nodes = tuple(_nodes(graph, isinstance(what, Tape), records, boxes.of, sources, rule_bytes))
    outputs = [value for value in graph.outputs if value.id >= 0]
    return Scene(
        title=", ".join(dict.fromkeys(value.name for value in graph.outputs)),
        nodes=nodes,
        edges=tuple(edges_of(graph, local_texts(graph, slopes), shares)),
        boxes=_totals(boxes.boxes, nodes, graph.by_index),
        loss=tuple(producer_of(graph, value) for value in outputs),
        value=records.loss if records else "",
        latex=r",\,".join(dict.fromkeys(latex_name(short_name(value)) for value in graph.outputs)),
        reads=reads,
        sources=sources.table,
        scale=_scale(nodes),
        numbers=records.kind if records else "none",
        notes=tuple(notes),
    )


# --- nodes ---------------------------------------------------------------------------------------


def _nodes(
    graph: Graph,
    is_tape: bool,
    records: Records | None,
    boxes: Mapping[NodeIndex, str],
    sources: "_Sources",
    rule_bytes: Mapping[NodeIndex, int],
) -> Iterator[SceneNode]:
    kinds = _kinds(graph, is_tape)
    levels = _levels_of(graph)
    constants = _constants(graph)
    for node in graph.walk():
        operands = ", ".join(value.name for value in node.operands)
        yield SceneNode(
            id=node.index,
            name=node.name,
            primitive=node.primitive,
            kind=kinds.get(node.index, "op"),
            label=node.label,
            call=f"{node.primitive}({operands})" if node.operands else "",
            outputs=tuple(_output(value, records) for value in node.outputs),
            active=node.active,
            box=boxes.get(node.index),
            scope=node.scope,
            source=sources.index(node.source),
            level=levels[node.index],
            steps=graph.places[node.index].steps,
            taken=records.taken.get(node.index) if records else None,
            constant=node.index in constants,
            rule_bytes=rule_bytes.get(node.index, 0),
        )


def _output(value: Value, records: Records | None) -> Output:
    recorded, cotangent = records.shown.get(value.id, (None, None)) if records else (None, None)
    short = short_name(value)
    return Output(
        name=value.name,
        type=type_name(value.dtype, value.shape),
        shape=value.shape,
        dtype=str(value.dtype),
        active=value.active,
        value=recorded,
        cotangent=cotangent,
        short="" if short == value.name else short,
        latex=latex_name(short) if short else "",
    )


def _kinds(graph: Graph, is_tape: bool) -> dict[NodeIndex, str]:
    """The kinds of nodes that are not plain operations, by index."""
    kinds = {node.index: _input_kind(node, is_tape) for node in (*graph.heads, *graph.fixed)}
    for node in graph.walk():
        for nested in node.graphs:
            kinds |= zip((head.index for head in nested.heads), _body_kinds(node, nested), strict=False)
    returned = {value.id for value in graph.outputs}
    for node in graph.equations():
        if any(value.id in returned for value in node.outputs):
            kinds[node.index] = "loss"
    return kinds


def _input_kind(node: Node, is_tape: bool) -> str:
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


def _levels_of(graph: Graph) -> dict[NodeIndex, int]:
    """The length of the longest path to each node from the inputs of its own graph."""
    levels: dict[NodeIndex, int] = {}
    of_value: dict[ValueId, int] = {}
    for node in graph.walk():
        before = [of_value[value.id] for value in node.operands if value.id in of_value]
        levels[node.index] = max(before, default=-1) + 1
        of_value |= dict.fromkeys((value.id for value in node.outputs), levels[node.index])
    return levels


def _constants(graph: Graph) -> frozenset[ValueId]:
    """The nodes that depend on no argument and on no closed-over array."""
    variable = {
        value.id
        for level in graphs_in(graph)
        for head in (*level.heads, *level.fixed)
        for value in head.outputs
    }
    found = set()
    for node in graph.walk():
        if any(value.id in variable for value in (*node.operands, *node.outputs)):
            variable.update(value.id for value in node.outputs)
        else:
            found.add(node.index)
    return frozenset(found)


def _scale(nodes: Iterable[SceneNode]) -> tuple[float, float] | None:
    norms = [
        out.cotangent.norm
        for node in nodes
        for out in node.outputs
        if out.cotangent and out.cotangent.norm and math.isfinite(out.cotangent.norm) and node.taken != 0.0
    ]
    if not norms:
        return None
    # A gradient that is zero in exact arithmetic comes out as round-off and must not stretch the scale;
    # nor must two norms that are nearly equal look far apart.
    high = math.log10(max(norms))
    return min(max(math.log10(min(norms)), high - DECADES[1]), high - DECADES[0]), high


# --- boxes ---------------------------------------------------------------------------------------


def _totals(
    boxes: Iterable[Box], nodes: Iterable[SceneNode], graph_nodes: Mapping[NodeIndex, Node]
) -> tuple[Box, ...]:
    """Boxes with the totals over their nodes."""
    boxes = tuple(boxes)
    inside: dict[str, list[SceneNode]] = {box.id: [] for box in boxes}
    parents = {box.id: box.parent for box in boxes}
    for node in nodes:
        box = node.box
        while box is not None:
            inside[box].append(node)
            box = parents[box]
    return tuple(_with_totals(box, inside[box.id], graph_nodes) for box in boxes)


def _with_totals(box: Box, nodes: list[SceneNode], graph_nodes: Mapping[NodeIndex, Node]) -> Box:
    outputs = [out for node in nodes for out in node.outputs]
    form = _jaxpr.opened_form(graph_nodes[box.node].eqn) if box.node is not None else None
    taken = [node.taken for node in nodes if node.box == box.id and node.taken is not None]
    return dataclasses.replace(
        box,
        count=len(nodes),
        cotangent=largest([out.cotangent for out in outputs]),
        nonfinite=sum(not n.constant and any(map(_is_nonfinite, n.outputs)) for n in nodes),
        active=any(node.active for node in nodes),
        taken=taken[0] if taken and box.branch is not None else None,
        length=form.length if isinstance(form, _jaxpr.Scan) else None,
    )


def _is_nonfinite(out: Output) -> bool:
    return any(shown is not None and shown.nonfinite for shown in (out.value, out.cotangent))


# --- sources -------------------------------------------------------------------------------------


class _Sources:
    """A table of source lines, each once."""

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
    file = os.path.basename(source.file)
    return SourceText(file, source.line, source.function, text, first if context else 0, context)
