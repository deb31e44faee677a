"""What a value has an influence on, through the bodies of loops and choices too."""

from collections.abc import Iterable

from ...core.graph import Graph, Value
from ...core.structure import joints


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
            joined = joints(node, nested)
            _mark(reached, joined.into)
            again |= _flow(nested, reached)
            _mark(reached, joined.out_of)
            again |= _mark(reached, joined.around)
    return again


def _mark(reached: set[int], pairs: Iterable[tuple[Value, Value]]) -> bool:
    before = len(reached)
    for from_, to in pairs:
        if from_.id in reached and to.id >= 0:
            reached.add(to.id)
    return len(reached) > before
