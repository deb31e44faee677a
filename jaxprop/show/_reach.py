"""What a value has an influence on, through the bodies of loops and choices too."""

from collections.abc import Iterable, Iterator

from .. import _jaxpr
from .._graph import Graph, Node, Value


def downstream(graph: Graph, start: int) -> frozenset[int]:
    """Ids of the values made from a value, itself included."""
    reached = {start}
    while _flow(graph, reached):  # the carry of a loop goes round
        pass
    return frozenset(reached)


def _flow(graph: Graph, reached: set[int]) -> bool:
    """Follow all nodes once; whether anything new was reached inside a loop that was passed already."""
    again = False
    for node in graph.equations():
        if not node.opened:
            if any(value.id in reached for value in node.operands):
                reached.update(value.id for value in node.outputs)
            continue
        for nested in node.graphs:
            _mark(reached, ((outer.id, inner.id) for outer, inner in entering(node, nested)))
            again |= _flow(nested, reached)
            _mark(reached, ((inner.id, outer.id) for inner, outer in leaving(node, nested)))
            again |= _mark(reached, ((last.id, first.id) for last, first in going_round(node, nested)))
    return again


def _mark(reached: set[int], pairs: Iterable[tuple[int, int]]) -> bool:
    before = len(reached)
    for from_, to in pairs:
        if from_ in reached and to >= 0:
            reached.add(to)
    return len(reached) > before


def entering(node: Node, nested: Graph) -> Iterator[tuple[Value, Value]]:
    """Pairs (operand, input of the body)."""
    cond = isinstance(_jaxpr.opened_form(node.eqn), _jaxpr.Cond)
    return zip(node.operands[1:] if cond else node.operands, nested.inputs, strict=False)


def leaving(node: Node, nested: Graph) -> Iterator[tuple[Value, Value]]:
    """Pairs (result of the body, output)."""
    return zip(nested.outputs, node.outputs, strict=False)


def going_round(node: Node, nested: Graph) -> Iterator[tuple[Value, Value]]:
    """Pairs (carry at the end of a step, carry at the beginning of the next)."""
    form = _jaxpr.opened_form(node.eqn)
    if not isinstance(form, _jaxpr.Scan):
        return iter(())
    carries = nested.inputs[form.num_consts : form.num_consts + form.num_carry]
    return zip(nested.outputs, carries, strict=False)
