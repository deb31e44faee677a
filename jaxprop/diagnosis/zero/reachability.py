"""Find where gradients are blocked for good, from the program alone: nothing is run.

A value *depends on* a leaf where it is computed from it at all, and is *active* for it where JAX's own JVP
rules give it a nonzero tangent. A blocked edge is an output that depends on a leaf and is not active for it, of
a node with an operand that is: there the tangent vanishes. Sets of leaves are the bits of an integer, so that
one data-flow analysis answers for all leaves at once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ... import _jaxpr
from ..._structure import Bits, consumers, propagate, propagate_back, union
from ...core.graph import Graph, Node, Value
from ...core.structure import once
from ...core.types import ValueId
from ...naming.syntax import is_library


@dataclass(frozen=True)
class BlockedEdge:
    """An edge of the graph that no tangent of some leaves crosses.

    Attributes:
        node: the node.
        output: position of its output.
        position: position of the operand by which the leaves enter.
        dropped: whether a custom rule drops the cotangent, rather than JAX's own rule.
    """

    node: Node
    output: int
    position: int
    dropped: bool = False


@dataclass(frozen=True)
class BlockedLeaf:
    """A leaf that gets no gradient.

    Attributes:
        leaf: the leaf.
        edges: the blocked edges on its paths to the result that no other comes after; empty where it has no
            path.
        readers: the nodes that read it, where it has no path.
        aux: whether it reaches an auxiliary output.
        state: whether an auxiliary output of its own type depends on it: it is state, handed to the next step.
    """

    leaf: Value
    edges: tuple[BlockedEdge, ...]
    readers: tuple[Node, ...] = ()
    aux: bool = False
    state: bool = False


def blocked_leaves(graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value]) -> list[BlockedLeaf]:
    """Find the leaves no cotangent can reach, each with the last blocked edges on its paths to the sinks."""
    flow = _DataFlow.of(graph, leaves, sinks)
    alive = _union(flow.active, sinks)
    dead = [(i, leaf) for i, leaf in enumerate(leaves) if not alive >> i & 1]
    if not dead:
        return []
    edges = list(flow.blocked_edges())
    order = _Order(graph, [edge for edge, _ in edges])
    found = []
    for i, leaf in dead:
        mine = [number for number, (_, bits) in enumerate(edges) if bits >> i & 1]
        last = tuple(edges[number][0] for number in order.last(mine))
        found.append(BlockedLeaf(leaf, last) if last else _without_path(flow, leaf, 1 << i))
    return found


def partly_blocked(
    graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value]
) -> list[tuple[BlockedEdge, list[Value]]]:
    """Find the blocked edges on some paths of leaves that get a gradient by another path."""
    flow = _DataFlow.of(graph, leaves, sinks)
    alive = _union(flow.active, sinks)
    found = [
        (edge, [leaf for i, leaf in enumerate(leaves) if bits & alive >> i & 1])
        for edge, bits in flow.blocked_edges()
    ]
    return [(edge, some) for edge, some in found if some]


def _without_path(flow: "_DataFlow", leaf: Value, bit: Bits) -> BlockedLeaf:
    sinks = {value.id for value in flow.sinks}
    aux = [out for out in flow.graph.outputs if out.id not in sinks and flow.depends.get(out.id, 0) & bit]
    state = any((out.shape, out.dtype) == (leaf.shape, leaf.dtype) for out in aux)
    readers = dict.fromkeys(node for node, _ in consumers(flow.graph).get(leaf.id, ()))
    return BlockedLeaf(leaf, (), tuple(readers), bool(aux), state)


class _Order:
    """Which blocked edges come after which.

    Attributes:
        before: for each edge the set of those from which a path leads to it.
        after: for each edge the set of those to which a path leads from it.
    """

    def __init__(self, graph: Graph, edges: Sequence[BlockedEdge]) -> None:
        outputs: dict[ValueId, Bits] = {}
        operands: dict[ValueId, Bits] = {}
        for number, edge in enumerate(edges):
            for found, values in (
                (outputs, edge.node.outputs[edge.output :][:1]),
                (operands, edge.node.operands),
            ):
                for value in values:
                    found[value.id] = found.get(value.id, 0) | 1 << number
        reached, reaching = propagate(graph, outputs), propagate_back(graph, operands)
        self.before = [_union(reached, edge.node.operands) for edge in edges]
        self.after = [reaching.get(edge.node.outputs[edge.output].id, 0) for edge in edges]

    def last(self, numbers: Sequence[int]) -> list[int]:
        """The edges that no other comes after: with the earlier ones removed, these would still block.

        `softmax` stops the gradient of its maximum, on one path; the `argmax` after it ends all paths.
        """
        mine = sum(1 << number for number in numbers)
        return [i for i in numbers if not self.after[i] & mine & ~self.before[i]]


def _union(of: Mapping[ValueId, Bits], values: Iterable[Value]) -> Bits:
    return union(of.get(value.id, 0) for value in values)


@dataclass(frozen=True, eq=False)
class _DataFlow:
    """Which leaves a value depends on, for which it is active, and which values the sinks depend on.

    Attributes:
        graph: the program.
        sinks: the values whose derivative is asked for.
        depends: sets of leaves, by id of the value.
        active: likewise.
        needed: the values the sinks depend on, by id.
    """

    graph: Graph
    sinks: Sequence[Value]
    depends: Mapping[ValueId, Bits]
    active: Mapping[ValueId, Bits]
    needed: Mapping[ValueId, Bits]

    @classmethod
    def of(cls, graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value]) -> "_DataFlow":
        bits = {leaf.id: 1 << i for i, leaf in enumerate(leaves)}
        floating = {leaf.id: bits[leaf.id] for leaf in leaves if _carries_cotangent(leaf)}
        dropped = dropped_operands(graph)
        return cls(
            graph,
            sinks,
            propagate(graph, bits),
            propagate(graph, floating, lambda node, sets: _active_outputs(node, sets, dropped)),
            propagate_back(graph, {value.id: 1 for value in sinks if value.id >= 0}),
        )

    def blocked_edges(self) -> Iterator[tuple[BlockedEdge, Bits]]:
        """The blocked edges on paths to the sinks, in program order, with the leaves each blocks."""
        dropped = dropped_operands(self.graph)
        for node in self.graph.walk():
            if node.eqn is None or node.opened or not _union(self.active, node.operands):
                continue
            for position, operand in enumerate(node.operands):
                mine = self.active.get(operand.id, 0)
                for output, value in enumerate(node.outputs):
                    bits = mine & ~self.active.get(value.id, 0)
                    if bits and value.id in self.needed:
                        by_rule = position in dropped.get(node.index, ())
                        yield BlockedEdge(node, output, position, by_rule), bits


def _active_outputs(node: Node, sets: Sequence[Bits], dropped: Mapping[int, frozenset[int]]) -> Sequence[Bits]:
    """For each output of a node, the leaves whose tangent crosses it, according to JAX's own JVP rule."""
    if any(_jaxpr.is_ref(value.aval) for value in (*node.operands, *node.outputs)):
        return [union(sets)] * len(node.outputs)  # what a reference holds is not followed
    dead = dropped.get(node.index, frozenset())
    sets = [0 if i in dead else bits for i, bits in enumerate(sets)]
    found = [0] * len(node.outputs)
    for leaves in _classes(sets):
        zero = _zero_tangents(node, tuple(bool(bits & leaves) for bits in sets))
        found = [bits | (0 if none else leaves) for bits, none in zip(found, zero, strict=True)]
    return [bits if _carries_cotangent(value) else 0 for bits, value in zip(found, node.outputs, strict=True)]


def _zero_tangents(node: Node, perturbed: tuple[bool, ...]) -> Sequence[bool]:
    if len(node.operands) == 1 and all(value.active for value in node.outputs):
        return (False,) * len(node.outputs)  # JAX was asked when the graph was built
    assert node.eqn is not None
    return _jaxpr.zero_tangents(node.eqn, perturbed)


def _carries_cotangent(value: Value) -> bool:
    return _jaxpr.is_ref(value.aval) or _jaxpr.is_inexact(value.dtype)


def _classes(sets: Sequence[Bits]) -> list[Bits]:
    """Partition leaves into classes that enter by the same operands."""
    found = [rest] if (rest := union(sets)) else []
    for some in set(sets):
        parts = [part for leaves in found for part in (leaves & some, leaves & ~some)]
        found = [part for part in parts if part]
    return found


@once
def dropped_operands(graph: Graph) -> Mapping[int, frozenset[int]]:
    """Positions of operands whose cotangent a user's custom rule drops, by index of the node."""
    found = {}
    for node in graph.walk():
        if node.eqn is not None and _jaxpr.has_custom_rule(node.eqn) and is_users(node):
            try:
                found[node.index] = _jaxpr.dead_positions(node.eqn)
            except Exception:  # a user's rule may raise anything when it is traced alone: running it tells
                continue
    return found


def is_users(node: Node) -> bool:
    """Whether a custom rule is in the user's own code. The rules of libraries are trusted."""
    programs = _jaxpr.nested_programs(node.eqn)
    file = programs[0].function_file if programs else None
    return file is not None and not is_library(file)
