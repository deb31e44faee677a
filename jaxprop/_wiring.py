"""Questions about the wiring of a graph, each answered once."""

import functools
from collections.abc import Callable, Mapping
from typing import TypeVar

from . import _jaxpr
from ._graph import Graph, Node, Value

_Answer = TypeVar("_Answer")


def _once(question: Callable[[Graph], _Answer]) -> Callable[[Graph], _Answer]:
    """Keep the answer with the graph. A cache would compare graphs node by node, each time it is asked."""
    name = f"_once_{question.__name__}"

    @functools.wraps(question)
    def answer(graph: Graph) -> _Answer:
        if name not in graph.__dict__:
            graph.__dict__[name] = question(graph)
        return graph.__dict__[name]

    return answer


@_once
def makers(graph: Graph) -> Mapping[int, Node]:
    return {value.id: node for node in graph.walk() for value in node.outputs}


@_once
def outside(graph: Graph) -> Mapping[int, Value]:
    """For each input of a body that is one value outside of it (no carry, no slice): that value."""
    found: dict[int, Value] = {}
    for node in graph.walk():
        form = _jaxpr.opened_form(node.eqn) if node.opened else None
        if form is None:
            continue
        operands = node.operands[1:] if isinstance(form, _jaxpr.Cond) else node.operands
        if isinstance(form, _jaxpr.Scan):
            operands = operands[: form.num_consts]
        for nested in node.graphs:
            for outer, inner in zip(operands, nested.inputs, strict=False):
                found[inner.id] = outer
    return found


def between(graph: Graph, source: Value, target: Value) -> list[Node]:
    """The nodes through which `target` is made from `source`, in program order."""
    made = {source.id}
    forward = []
    for node in graph.equations():
        if any(operand.id in made for operand in node.operands):
            forward.append(node)
            made.update(value.id for value in node.outputs)
    wanted, found = {target.id}, []
    for node in reversed(forward):
        if any(value.id in wanted for value in node.outputs):
            found.append(node)
            wanted.update(operand.id for operand in node.operands if operand.id >= 0)
    return found[::-1] if source.id in wanted and target.id != source.id else []


@_once
def loop_constants(graph: Graph) -> frozenset[int]:
    """Indices of the input nodes of scan bodies that are the same in every step."""
    made_by = makers(graph)
    return frozenset(
        made_by[id_].index
        for id_ in outside(graph)
        if isinstance(_jaxpr.opened_form(graph.places[made_by[id_].index].parents[-1][0].eqn), _jaxpr.Scan)
    )
