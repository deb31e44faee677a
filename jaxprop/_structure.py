"""Graph algorithms beyond what the core needs: consumers, reachability, data flow, post-dominators.

All are pure functions of a `Graph`; what is asked often is answered once a graph (`core.structure.once`).
"""

import functools
import heapq
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from . import _jaxpr
from .core.graph import Graph, Node, Value
from .core.structure import Binding, binding, once
from .core.types import NodeIndex, ValueId

#: A set of sources, as the bits of an integer: bit i stands for source i.
Bits: TypeAlias = int

#: The sets of the outputs of a closed node, from those of its operands (or the other way round).
Transfer: TypeAlias = Callable[[Node, Sequence[Bits]], Sequence[Bits]]

#: The values next to a value.
Neighbours: TypeAlias = Callable[[Value], Iterable[Value]]


def evaluation_order(graph: Graph) -> Iterator[Node]:
    """All nodes in the order they are evaluated in: those of a body before the node that holds it."""
    for node in graph.nodes:
        for nested in node.graphs:
            yield from evaluation_order(nested)
        yield node


@once
def consumers(graph: Graph) -> Mapping[ValueId, Sequence[tuple[Node, int]]]:
    """By id of a value: the nodes that read it, each with the position of the operand."""
    found: dict[ValueId, list[tuple[Node, int]]] = {}
    for node in graph.walk():
        for position, operand in enumerate(node.operands):
            if operand.id >= 0:
                found.setdefault(operand.id, []).append((node, position))
    return found


@once
def bindings(graph: Graph) -> Mapping[NodeIndex, Sequence[Binding]]:
    """By index of an opened node: how each of its bodies binds to it."""
    return {
        node.index: tuple(binding(node, nested) for nested in node.graphs)
        for node in graph.walk()
        if node.opened
    }


@once
def successors(graph: Graph) -> Mapping[ValueId, Sequence[tuple[Node, Value]]]:
    """By id of a value: the values computed from it in one step, each with the node in between.

    A step leads through a closed node, or into, around and out of the body of an opened one. The index of a
    `cond` leads to its results.
    """
    found: dict[ValueId, list[tuple[Node, Value]]] = {}
    for source, node, target in _edges(graph):
        if source.id >= 0:
            found.setdefault(source.id, []).append((node, target))
    return found


@once
def predecessors(graph: Graph) -> Mapping[ValueId, Sequence[tuple[Node, Value]]]:
    """By id of a value: the values it is computed from in one step, each with the node in between."""
    found: dict[ValueId, list[tuple[Node, Value]]] = {}
    for source, node, target in _edges(graph):
        if source.id >= 0:
            found.setdefault(target.id, []).append((node, source))
    return found


def _edges(graph: Graph) -> Iterator[tuple[Value, Node, Value]]:
    for node in graph.walk():
        bound = bindings(graph).get(node.index, ())
        for joined in bound:
            yield from ((a, node, b) for a, b in (*joined.into, *joined.out_of, *joined.around))
        read = node.operands if not bound else node.operands[:1] if len(bound) > 1 else ()
        yield from ((operand, node, output) for operand in read for output in node.outputs)


@once
def repetitions(graph: Graph) -> Mapping[NodeIndex, tuple[int, int]]:
    """By index of a node: which evaluation of its expression it is, from 1, and how many there are.

    A Python loop, and a function called several times, evaluate one expression of the source again and again.
    Each evaluation gives the same primitives: how often all of them are there says how many there are.
    """
    by_expression: dict[object, dict[str, list[NodeIndex]]] = {}
    for node in graph.walk():
        # What differentiation adds is no further evaluation.
        if node.source is not None and node.label and "jvp(" not in _jaxpr.scope_of(node.eqn):
            level = [(parent.index, number) for parent, number in graph.places[node.index].parents[-1:]]
            key = (*level, node.source, node.label)
            by_expression.setdefault(key, {}).setdefault(node.primitive, []).append(node.index)
    found = {}
    for by_primitive in by_expression.values():
        count = math.gcd(*map(len, by_primitive.values()))
        for indices in by_primitive.values():
            each = len(indices) // count
            found.update({index: (i // each + 1, count) for i, index in enumerate(indices)})
    return found


def reachable(sources: Iterable[Value], neighbours: Neighbours) -> dict[ValueId, Value]:
    """The values that some steps lead to, the sources included, nearest first; by id."""
    found = {value.id: value for value in sources}
    queue = list(found.values())
    for value in queue:
        for new in neighbours(value):
            if new.id not in found:
                found[new.id] = new
                queue.append(new)
    return found


def spread(
    start: Mapping[ValueId, Bits], values: Mapping[ValueId, Value], neighbours: Neighbours
) -> dict[ValueId, Bits]:
    """Propagate sets of sources along the steps of a relation, until nothing changes.

    Args:
        start: the sets to begin with, by id of the value.
        values: the values of these ids.
        neighbours: the values one step further.

    Returns:
        The set of each value that any source reaches, by id.
    """
    found, known = dict(start), dict(values)
    queue = sorted(start)  # ids grow in program order, so that nearly all values come once
    waiting = set(queue)
    while queue:
        id_ = heapq.heappop(queue)
        waiting.discard(id_)
        for new in neighbours(known[id_]):
            if _add(found, [new], [found[id_]]) and new.id not in waiting:
                known[new.id] = new
                waiting.add(new.id)
                heapq.heappush(queue, new.id)
    return found


def propagate(
    graph: Graph, start: Mapping[ValueId, Bits], transfer: Transfer | None = None
) -> dict[ValueId, Bits]:
    """Propagate sets of sources from operands to outputs: a forward data-flow analysis.

    Args:
        graph: the program.
        start: the sets to begin with, by id of the value.
        transfer: the sets of a closed node's outputs from those of its operands; by default each output gets
            all of them.

    Returns:
        The set of each value that any source reaches, by id. A carry gets what reaches it in any step.
    """
    found = dict(start)
    _forward(graph, found, transfer or (lambda node, sets: [union(sets)] * len(node.outputs)))
    return found


def propagate_back(
    graph: Graph, start: Mapping[ValueId, Bits], transfer: Transfer | None = None
) -> dict[ValueId, Bits]:
    """Propagate sets of sinks from outputs to operands: a backward data-flow analysis.

    Args:
        graph: the program.
        start: the sets to begin with, by id of the value.
        transfer: the sets of a closed node's operands from those of its outputs; by default each operand gets
            all of them.

    Returns:
        The set of each value that reaches any sink, by id.
    """
    found = dict(start)
    _backward(graph, found, transfer or (lambda node, sets: [union(sets)] * len(node.operands)))
    return found


def _forward(graph: Graph, found: dict[ValueId, Bits], transfer: Transfer) -> None:
    for node in graph.equations():
        sets = _sets(found, node.operands)
        if not node.opened:
            if any(sets):
                _add(found, node.outputs, transfer(node, sets))
            continue
        for nested in node.graphs:
            joined = binding(node, nested)
            _bind(found, joined.into)
            _forward(nested, found, transfer)
            while _bind(found, joined.around):
                _forward(nested, found, transfer)
            _bind(found, joined.out_of)
        if len(node.graphs) > 1:  # which branch is taken decides every result
            _add(found, node.outputs, sets[:1] * len(node.outputs))


def _backward(graph: Graph, found: dict[ValueId, Bits], transfer: Transfer) -> None:
    for node in reversed(list(graph.equations())):
        sets = _sets(found, node.outputs)
        if not node.opened:
            if any(sets):
                _add(found, node.operands, transfer(node, sets))
            continue
        if len(node.graphs) > 1:
            _add(found, node.operands[:1], [union(sets)])
        for nested in node.graphs:
            joined = binding(node, nested)
            _bind(found, [(outer, inner) for inner, outer in joined.out_of])
            _backward(nested, found, transfer)
            while _bind(found, [(carry, out) for out, carry in joined.around]):
                _backward(nested, found, transfer)
            _bind(found, [(inner, outer) for outer, inner in joined.into])


def union(sets: Iterable[Bits]) -> Bits:
    """The union of sets of sources."""
    return functools.reduce(operator.or_, sets, 0)


def _sets(found: Mapping[ValueId, Bits], values: Iterable[Value]) -> list[Bits]:
    return [found.get(value.id, 0) for value in values]


def _add(found: dict[ValueId, Bits], values: Iterable[Value], sets: Iterable[Bits]) -> bool:
    """Add sets to those of values; return whether anything is new."""
    new = False
    for value, some in zip(values, sets, strict=True):
        if value.id >= 0 and some & ~found.get(value.id, 0):
            found[value.id] = found.get(value.id, 0) | some
            new = True
    return new


def _bind(found: dict[ValueId, Bits], pairs: Sequence[tuple[Value, Value]]) -> bool:
    """Add the set of the first of each pair to that of the second."""
    return _add(found, [b for _, b in pairs], _sets(found, [a for a, _ in pairs]))


@dataclass(frozen=True, eq=False)
class PostDominators:
    """For each value the next one that every path to the sinks goes through.

    A value *post-dominates* another where every path from that to the sinks goes through it.

    Attributes:
        after: the immediate post-dominator of each value that reaches a sink, None for the last; by id. Values
            nearer to the sinks come first.
        values: the values, by id.
    """

    after: Mapping[ValueId, Value | None]
    values: Mapping[ValueId, Value]

    @classmethod
    def of(cls, sources: Sequence[Value], sinks: Sequence[Value], onward: Neighbours) -> "PostDominators":
        """Find the immediate post-dominators of all values between sources and sinks.

        Args:
            sources: where paths begin.
            sinks: where they end.
            onward: the values one step nearer to the sinks. There may be cycles.

        Source: Cooper, Harvey & Kennedy, A Simple, Fast Dominance Algorithm (2001).
        """
        between = reachable(sources, onward)
        edges = {id_: [new.id for new in onward(value)] for id_, value in between.items()}
        ends = {value.id for value in sinks if value.id in between}
        order = _nearest_first(ends, edges)
        rank = {id_: number for number, id_ in enumerate(order)}
        after: dict[ValueId, ValueId | None] = dict.fromkeys(ends)

        def common(a: ValueId | None, b: ValueId | None) -> ValueId | None:
            while a is not None and b is not None and a != b:
                a, b = (after[a], b) if rank[a] > rank[b] else (a, after[b])
            return a if b is not None else None

        changed = True
        while changed:  # twice, unless there are cycles
            changed = False
            for id_ in order:
                if id_ in ends:
                    continue
                known = [new for new in edges[id_] if new in after]
                found = functools.reduce(common, known[1:], known[0])
                changed |= id_ not in after or after[id_] != found
                after[id_] = found
        return cls({id_: None if (new := after[id_]) is None else between[new] for id_ in order}, between)

    def chain(self, value: Value) -> list[Value]:
        """A value, and all that every path from it goes through, as far as the last."""
        found: list[Value] = []
        following: Value | None = value if value.id in self.after else None
        while following is not None:
            found.append(following)
            following = self.after[following.id]
        return found

    def dominated(self, sources: Mapping[ValueId, Bits]) -> dict[ValueId, Bits]:
        """For each value the sources it post-dominates, by id: those whose every path goes through it."""
        found = {id_: bits for id_, bits in sources.items() if id_ in self.after}
        for id_, following in reversed(list(self.after.items())):
            if following is not None and id_ in found:
                found[following.id] = found.get(following.id, 0) | found[id_]
        return found


def _nearest_first(ends: Iterable[ValueId], edges: Mapping[ValueId, Sequence[ValueId]]) -> list[ValueId]:
    """All that leads to the ends, in reverse postorder of a depth-first search from them against the edges."""
    before: dict[ValueId, list[ValueId]] = {}
    for source, targets in edges.items():
        for target in targets:
            before.setdefault(target, []).append(source)
    order, done = [], set(ends)
    for end in ends:
        stack = [(end, iter(before.get(end, ())))]
        while stack:
            id_, sources = stack[-1]
            new = next((one for one in sources if one not in done), None)
            if new is None:
                order.append(id_)
                stack.pop()
            else:
                done.add(new)
                stack.append((new, iter(before.get(new, ()))))
    return order[::-1]
