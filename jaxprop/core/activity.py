"""Activity: which values are on a path from what is differentiated to the output."""

from collections.abc import Iterable, Sequence

from .. import _jaxpr
from .graph import Graph, Node, Value
from .structure import binding
from .types import NodeIndex, ValueId


def active_values(
    graph: Graph,
    sources: Iterable[ValueId],
    sinks: Iterable[ValueId],
    uncut: frozenset[NodeIndex] = frozenset(),
) -> frozenset[ValueId]:
    """Find the values that depend on a source with a nonzero tangent, and that a sink depends on.

    Args:
        sources: ids of the differentiated values.
        sinks: ids of the values whose derivative is requested.
        uncut: nodes that count as differentiable although JAX's rule says that their tangents are zero.
    """
    values = {value.id: value for node in graph.walk() for value in node.outputs}
    carrying = {id_ for id_ in sources if _carries(values[id_])}
    spread = _Spread(values, uncut, carrying, set(sinks))
    spread.forward(graph)
    spread.backward(graph)
    return frozenset(id_ for id_ in spread.perturbed & spread.needed if _carries(values[id_]))


def _carries(value: Value) -> bool:
    """Whether a value can carry a tangent at all."""
    return _jaxpr.is_ref(value.aval) or _jaxpr.is_inexact(value.dtype)


class _Spread:
    """Perturbations spread forward through a graph, needs spread backward."""

    def __init__(
        self,
        values: dict[ValueId, Value],
        uncut: frozenset[NodeIndex],
        perturbed: set[ValueId],
        needed: set[ValueId],
    ) -> None:
        self.values, self.uncut = values, uncut
        self.perturbed, self.needed = perturbed, needed

    def forward(self, graph: Graph) -> None:
        """Add the values whose tangents are not zero, according to JAX's own rules."""
        for node in graph.equations():
            if node.opened:
                self.forward_nested(node)
                continue
            moved = tuple(value.id in self.perturbed for value in node.operands)
            if not any(moved):
                continue
            zero: Sequence[bool] = (False,) * len(node.outputs)
            if node.index not in self.uncut and node.eqn is not None:
                zero = _jaxpr.zero_tangents(node.eqn, moved)
            pairs = zip(node.outputs, zero, strict=True)
            self.perturbed.update(value.id for value, none in pairs if not none and _carries(value))
            # What is written into a reference can be read from it again.
            self.perturbed.update(value.id for value in node.operands if _jaxpr.is_ref(value.aval))

    def forward_nested(self, node: Node) -> None:
        for nested in node.graphs:
            bound = binding(node, nested)
            self.perturbed.update(
                inner.id for outer, inner in bound.into if outer.id in self.perturbed and _carries(inner)
            )
            self.forward(nested)
            # A carry that is perturbed in one step is perturbed in the next.
            while new := _across(bound.around, self.perturbed):
                self.perturbed |= new
                self.forward(nested)
            self.perturbed.update(outer.id for inner, outer in bound.out_of if inner.id in self.perturbed)
        if node.index in self.uncut:
            self.perturbed.update(value.id for value in node.outputs if _carries(value))

    def backward(self, graph: Graph) -> None:
        """Add the values on which a sink depends."""
        for node in reversed(list(graph.equations())):
            if node.opened:
                self.backward_nested(node)
            elif self.propagates(node):
                self.needed.update(value.id for value in node.operands)

    def propagates(self, node: Node) -> bool:
        """Whether a cotangent can pass a node: an output has a tangent, and a sink depends on it."""
        if any(_jaxpr.is_ref(value.aval) for value in node.operands):
            return True  # the contents of a reference are not followed
        return any(value.id in self.needed and value.id in self.perturbed for value in node.outputs)

    def backward_nested(self, node: Node) -> None:
        for nested in node.graphs:
            bound = binding(node, nested)
            self.needed.update(
                inner.id
                for inner, outer in bound.out_of
                if outer.id in self.needed and outer.id in self.perturbed
            )
            self.backward(nested)
            while new := _across(((into, out) for out, into in bound.around), self.needed):
                self.needed |= new
                self.backward(nested)
            self.needed.update(outer.id for outer, inner in bound.into if inner.id in self.needed)


def _across(pairs: Iterable[tuple[Value, Value]], marked: set[ValueId]) -> set[ValueId]:
    """The second of each pair whose first is marked, where it is not marked yet."""
    return {to.id for from_, to in pairs if from_.id in marked and to.id not in marked}
