"""Read a graph as statements: one for each value worth a row, with the anonymous intermediates folded in."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...core.graph import Graph, Node
from ..symbolic.derive import Statement, composition_of, statement_of


@dataclass(frozen=True)
class Statements:
    """The statements of a graph and of the bodies in it.

    Attributes:
        by_head: each statement, by the index of its last node.
        heads: for each node, the last nodes of the statements it is part of.
        folded: ids of the values inside statements.
    """

    by_head: Mapping[int, Statement]
    heads: Mapping[int, tuple[Node, ...]]
    folded: frozenset[int]

    def of(self, node: Node) -> Statement:
        """The statement that ends with a node; the node alone if it is folded into another one."""
        return self.by_head.get(node.index) or statement_of(node)

    def consumers_of(self, node: Node) -> tuple[Node, ...]:
        """The last nodes of the statements a node is part of."""
        return self.heads.get(node.index, (node,))


def statements_of(graph: Graph, may_fold: Callable[[Node], bool]) -> Statements:
    """Fold each node that `may_fold` into the statement that consumes it.

    A node that a cotangent passes through is folded only into a single statement.
    """
    heads = {index: nodes for level in _levels_of(graph) for index, nodes in _heads(level, may_fold)}
    members: dict[int, list[Node]] = {}
    folded: set[int] = set()
    for node in graph.walk():
        for head in heads.get(node.index, ()):
            members.setdefault(head.index, []).append(node)
            if head is not node:
                folded.update(value.id for value in node.outputs)
    by_head = {
        index: composition_of(nodes, nodes[-1].outputs[0]) for index, nodes in members.items() if len(nodes) > 1
    }
    return Statements(by_head, heads, frozenset(folded))


def _levels_of(graph: Graph) -> Iterator[Graph]:
    stack = [graph]
    while stack:
        level = stack.pop()
        yield level
        stack += [nested for node in level.equations() for nested in node.graphs]


def _heads(level: Graph, may_fold: Callable[[Node], bool]) -> Iterable[tuple[int, tuple[Node, ...]]]:
    nodes = list(level.equations())
    consumers: dict[int, list[Node]] = {}
    for node in nodes:
        for value in node.operands:
            consumers.setdefault(value.id, []).append(node)
    leaving = {value.id for value in level.outputs}
    found: dict[int, tuple[Node, ...]] = {}
    for node in reversed(nodes):
        found[node.index] = (node,)
        if len(node.outputs) != 1 or node.outputs[0].id in leaving or not may_fold(node):
            continue
        into = {head.index: head for c in consumers.get(node.outputs[0].id, ()) for head in found[c.index]}
        if any(head.opened or len(head.outputs) != 1 for head in into.values()):
            continue
        if len(into) == 1 or (into and not node.active):
            found[node.index] = tuple(into.values())
    return found.items()
