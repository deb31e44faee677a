"""Where a gradient is cut for good: found from the program alone, before anything is run.

A value is *moved* by a leaf where JAX's own forward rules say that its tangent is not zero, and *touched* by it
where it is made from it at all. A cut is an output that is touched and not moved, of a node with an operand
that is moved: there the tangent dies. Sets of leaves are the bits of a Python integer, so one walk answers for
all leaves at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import joints
from ...naming.syntax import is_library

#: A set of leaves: bit i stands for leaf i.
Leaves: TypeAlias = int


@dataclass(frozen=True)
class Cut:
    """Where the tangents of some leaves die.

    Attributes:
        node: the node that lets nothing through.
        output: which of its outputs.
        position: the operand the leaves come by.
        dropped: whether a custom rule drops the cotangent, rather than JAX's own rule.
    """

    node: Node
    output: int
    position: int
    dropped: bool = False


@dataclass(frozen=True)
class Lost:
    """A leaf that gets no gradient.

    Attributes:
        leaf: the leaf.
        cuts: where its tangent dies on the way to the result; empty where nothing made from it gets there.
        readers: the nodes that read it, where there are no cuts.
        aux: whether it reaches an output that is only auxiliary.
    """

    leaf: Value
    cuts: tuple[Cut, ...]
    readers: tuple[Node, ...] = ()
    aux: bool = False


def lost_leaves(graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value]) -> list[Lost]:
    """The leaves no cotangent can reach, each with the cuts on its way to the sinks."""
    return _lost(_Walk.over(graph, leaves, sinks), leaves, sinks)


def partial_cuts(
    graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value]
) -> list[tuple[Cut, list[Value]]]:
    """The cuts on some way of leaves that do get a gradient by another way."""
    walk = _Walk.over(graph, leaves, sinks)
    alive = _mask(walk.moved, sinks)
    found = [
        (cut, [leaf for i, leaf in enumerate(leaves) if bits & alive >> i & 1]) for cut, bits in walk.cuts()
    ]
    return [(cut, some) for cut, some in found if some]


def last_cuts(graph: Graph, cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """The cuts that no other cut comes after: with the earlier ones mended, these would still cut.

    `softmax` stops the gradient of its maximum, on one way; the `argmax` after it ends all ways.
    """
    if len(cuts) < 2:
        return tuple(cuts)
    walk = _Walk(graph)
    for i, cut in enumerate(cuts):
        made = cut.node.outputs[cut.output].id
        walk.touched[made] = walk.touched.get(made, 0) | 1 << i
    walk.forward(graph)
    before = [_mask(walk.touched, cut.node.operands) for cut in cuts]

    def overtaken(i: int) -> bool:
        return any(bits >> i & 1 and not before[i] >> j & 1 for j, bits in enumerate(before) if j != i)

    return tuple(cut for i, cut in enumerate(cuts) if not overtaken(i))


def _lost(walk: "_Walk", leaves: Sequence[Value], sinks: Sequence[Value]) -> list[Lost]:
    alive = _mask(walk.moved, sinks)
    dead = [(i, leaf) for i, leaf in enumerate(leaves) if not alive >> i & 1]
    if not dead:
        return []
    cuts = list(walk.cuts())
    beside = _mask(walk.touched, [out for out in walk.graph.outputs if out not in sinks])
    found = []
    for i, leaf in dead:
        mine = tuple(cut for cut, bits in cuts if bits >> i & 1)
        readers = () if mine else tuple(_readers(walk.graph, leaf))
        found.append(Lost(leaf, mine, readers, bool(not mine and beside >> i & 1)))
    return found


def _readers(graph: Graph, leaf: Value) -> Iterator[Node]:
    return (node for node in graph.equations() if any(value.id == leaf.id for value in node.operands))


def _mask(of: dict[int, Leaves], values: Sequence[Value]) -> Leaves:
    found = 0
    for value in values:
        found |= of.get(value.id, 0)
    return found


@dataclass(eq=False)
class _Walk:
    """The forward walk: which leaves move a value, which touch it; and which values the sinks are made from."""

    graph: Graph
    moved: dict[int, Leaves] = field(default_factory=dict)
    touched: dict[int, Leaves] = field(default_factory=dict)
    needed: set[int] = field(default_factory=set)
    rules: dict[int, frozenset[int]] = field(default_factory=dict)

    @classmethod
    def over(cls, graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value]) -> "_Walk":
        walk = cls(graph)
        for i, leaf in enumerate(leaves):
            walk.touched[leaf.id] = 1 << i
            walk.moved[leaf.id] = 1 << i if _carries(leaf) else 0
        walk.forward(graph)
        walk.needed.update(value.id for value in sinks if value.id >= 0)
        walk.backward(graph)
        return walk

    # --- forward -------------------------------------------------------------------------------------

    def forward(self, graph: Graph) -> None:
        for node in graph.equations():
            touched = _mask(self.touched, node.operands)
            if not touched:
                continue
            if node.opened:
                self.enter(node)
                continue
            self.add(self.touched, node.outputs, [touched] * len(node.outputs))
            self.add(self.moved, node.outputs, self.crossing(node))

    def add(self, to: dict[int, Leaves], values: Sequence[Value], masks: Sequence[Leaves]) -> bool:
        """Add leaves to values; say whether any was new."""
        new = False
        for value, mask in zip(values, masks, strict=True):
            if mask & ~to.get(value.id, 0):
                to[value.id] = to.get(value.id, 0) | mask
                new = True
        return new

    def join(self, pairs: Sequence[tuple[Value, Value]]) -> bool:
        """Hand on what is known of the first of each pair to the second."""
        sources, targets = [a for a, _ in pairs], [b for _, b in pairs]
        new = [
            self.add(of, targets, [of.get(value.id, 0) for value in sources])
            for of in (self.touched, self.moved)
        ]
        return any(new)

    def enter(self, node: Node) -> None:
        for nested in node.graphs:
            joined = joints(node, nested)
            self.join(joined.into)
            self.forward(nested)
            # What a step moves, the next step starts from.
            while self.join(joined.around):
                self.forward(nested)
            self.join(joined.out_of)
        if len(node.graphs) > 1:  # which branch is taken decides every output
            index = self.touched.get(node.operands[0].id, 0)
            self.add(self.touched, node.outputs, [index] * len(node.outputs))

    def crossing(self, node: Node) -> list[Leaves]:
        """For each output, the leaves whose tangent crosses the node, as JAX's own rule has it."""
        if any(_jaxpr.is_ref(value.aval) for value in (*node.operands, *node.outputs)):
            return [_mask(self.moved, node.operands)] * len(
                node.outputs
            )  # what a reference holds is not followed
        masks = [self.moved.get(value.id, 0) for value in node.operands]
        masks = [0 if i in self.dropped(node) else mask for i, mask in enumerate(masks)]
        found = [0] * len(node.outputs)
        for leaves in _classes(masks):
            moved = tuple(bool(mask & leaves) for mask in masks)
            zero = self.zero(node, moved)
            found = [mask | (0 if none else leaves) for mask, none in zip(found, zero, strict=True)]
        return [mask if _carries(value) else 0 for mask, value in zip(found, node.outputs, strict=True)]

    def zero(self, node: Node, moved: tuple[bool, ...]) -> Sequence[bool]:
        if len(node.operands) == 1 and all(value.active for value in node.outputs):
            return (False,) * len(node.outputs)  # JAX was asked when the graph was built
        return _jaxpr.zero_tangents(node.eqn, moved)

    def dropped(self, node: Node) -> frozenset[int]:
        """Positions whose cotangent a custom rule of the user's drops."""
        if node.index not in self.rules:
            self.rules[node.index] = _dropped_by_rule(node)
        return self.rules[node.index]

    # --- backward ------------------------------------------------------------------------------------

    def backward(self, graph: Graph) -> None:
        for node in reversed(list(graph.equations())):
            if not any(value.id in self.needed for value in node.outputs):
                continue
            if node.opened:
                self.leave(node)
            else:
                self.need(node.operands)

    def need(self, values: Sequence[Value]) -> None:
        self.needed.update(value.id for value in values if value.id >= 0)

    def leave(self, node: Node) -> None:
        if len(node.graphs) > 1:
            self.need(node.operands[:1])
        for nested in node.graphs:
            joined = joints(node, nested)
            self.need([inner for inner, outer in joined.out_of if outer.id in self.needed])
            self.backward(nested)
            while new := [a for a, b in joined.around if b.id in self.needed and a.id not in self.needed]:
                self.need(new)
                if all(value.id < 0 for value in new):
                    break
                self.backward(nested)
            self.need([outer for outer, inner in joined.into if inner.id in self.needed])

    # --- cuts ----------------------------------------------------------------------------------------

    def cuts(self) -> Iterator[tuple[Cut, Leaves]]:
        """The cuts on the way to the sinks, in program order, and the leaves each cuts."""
        for node in self.graph.walk():
            if node.eqn is None or node.opened or not _mask(self.moved, node.operands):
                continue
            dropped = self.dropped(node)
            for position, operand in enumerate(node.operands):
                mask = self.moved.get(operand.id, 0)
                for output, value in enumerate(node.outputs):
                    bits = mask & ~self.moved.get(value.id, 0)
                    if bits and value.id in self.needed:
                        yield Cut(node, output, position, position in dropped), bits


def _carries(value: Value) -> bool:
    return _jaxpr.is_ref(value.aval) or _jaxpr.is_inexact(value.dtype)


def _classes(masks: Sequence[Leaves]) -> list[Leaves]:
    """Leaves parted into classes that come by the same operands."""
    found: list[Leaves] = []
    rest = 0
    for mask in masks:
        rest |= mask
    if rest:
        found = [rest]
    for mask in set(masks):
        parts = [part for leaves in found for part in (leaves & mask, leaves & ~mask)]
        found = [part for part in parts if part]
    return found


def _dropped_by_rule(node: Node) -> frozenset[int]:
    if not _jaxpr.has_custom_rule(node.eqn) or not is_users(node):
        return frozenset()
    try:
        return _jaxpr.dead_positions(node.eqn)
    except Exception:  # a rule that cannot be traced by itself: what it does shows when it runs
        return frozenset()


def is_users(node: Node) -> bool:
    """Whether a custom rule stands in the user's own code. The rules of libraries are taken as right."""
    programs = _jaxpr.nested_programs(node.eqn)
    file = programs[0].function_file if programs else None
    return file is not None and not is_library(file)
