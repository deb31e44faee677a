"""The values that depend on a value, through the bodies of loops and branches as well."""

from collections.abc import Iterable

from ...core.graph import Graph, Value
from ...core.structure import binding


def downstream(graph: Graph, start: int) -> frozenset[int]:
    """Ids of the values that depend on a value, itself included."""
    reached = {start}
    while _propagate(graph, reached):  # around the carries of loops, until nothing is added
        pass
    return frozenset(reached)


def _propagate(graph: Graph, reached: set[int]) -> bool:
    """Visit all nodes once; returns whether a carry gained something that the next step has to see."""
    again = False
    for node in graph.equations():
        if not node.opened:
            if any(value.id in reached for value in node.operands):
                reached.update(value.id for value in node.outputs)
            continue
        for nested in node.graphs:
            bindings = binding(node, nested)
            _bind_body(reached, bindings.into)
            again |= _propagate(nested, reached)
            _bind_body(reached, bindings.out_of)
            again |= _bind_body(reached, bindings.around)
    return again


def _bind_body(reached: set[int], pairs: Iterable[tuple[Value, Value]]) -> bool:
    before = len(reached)
    reached.update(to.id for from_, to in pairs if from_.id in reached and to.id >= 0)
    return len(reached) > before
