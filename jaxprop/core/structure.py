"""Graph algorithms: producers, paths, how a nested graph is bound to its node. Answered once for each graph."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from .. import _jaxpr
from .graph import Graph, Node, Value
from .statements import Statement
from .types import NodeIndex, Position, ValueId

T = TypeVar("T")


def once(question: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """Answer a question once for each graph, and keep the answer with the graph.

    A cache by equality would compare two graphs node by node at every look.
    """

    @functools.wraps(question)
    def answer(graph: Graph) -> T:
        if question not in graph.answers:
            graph.answers[question] = question(graph)
        return graph.answers[question]

    return answer


@once
def sources(graph: Graph) -> Mapping[ValueId, tuple[Node, Position]]:
    """By id of a value: the node that produces it, and the position of the output."""
    return {value.id: (node, Position(i)) for node in graph.walk() for i, value in enumerate(node.outputs)}


@once
def producers(graph: Graph) -> Mapping[ValueId, Node]:
    """By id of a value: the node that produces it."""
    return {id_: node for id_, (node, _) in sources(graph).items()}


@once
def outside(graph: Graph) -> Mapping[ValueId, Value]:
    """For each input of a body that is one value outside of it (no carry, no slice): that value."""
    found: dict[ValueId, Value] = {}
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
    """The nodes on the paths from `source` to `target`, in program order."""
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


@once
def statements_with(graph: Graph) -> Mapping[NodeIndex, tuple[Statement[Node, Value], ...]]:
    """By index of an operation: the statements it is part of; none where nothing reads it."""
    found: dict[NodeIndex, tuple[Statement[Node, Value], ...]] = {}
    for statement in (one for level in graph.levels() for one in level.statements):
        for node in statement.nodes:
            found[node.index] = (*found.get(node.index, ()), statement)
    return found


@once
def loop_constants(graph: Graph) -> frozenset[NodeIndex]:
    """Indices of the input nodes of scan bodies that are the same in every step."""
    produced_by = producers(graph)
    return frozenset(
        produced_by[id_].index
        for id_ in outside(graph)
        if isinstance(_jaxpr.opened_form(graph.places[produced_by[id_].index].parents[-1][0].eqn), _jaxpr.Scan)
    )


class Binding(NamedTuple):
    """How a nested graph is bound to the node that holds it: pairs of values.

    Attributes:
        into: (operand of the node, input of the nested graph).
        out_of: (output of the nested graph, output of the node).
        around: (output of the nested graph, input it becomes in the next step of a scan).
    """

    into: tuple[tuple[Value, Value], ...]
    out_of: tuple[tuple[Value, Value], ...]
    around: tuple[tuple[Value, Value], ...]


def binding(node: Node, nested: Graph) -> Binding:
    """Tell how one of the graphs of an opened node is bound to it."""
    form = _jaxpr.opened_form(node.eqn)
    operands = node.operands[1:] if isinstance(form, _jaxpr.Cond) else node.operands
    carries: tuple[Value, ...] = ()
    if isinstance(form, _jaxpr.Scan):
        carries = nested.inputs[form.num_consts :][: form.num_carry]
    return Binding(
        tuple(zip(operands, nested.inputs, strict=True)),
        tuple(zip(nested.outputs, node.outputs, strict=True)),
        tuple(zip(nested.outputs, carries, strict=False)),
    )
