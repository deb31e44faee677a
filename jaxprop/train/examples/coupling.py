"""Where a loss couples the examples of a batch, as batch normalization does: none has a gradient of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ... import _jaxpr
from ..._structure import Bits, propagate, propagate_back
from ..._tracing import Traced, name_of
from ...core.activity import active_values
from ...core.build import build
from ...core.graph import Graph, Node, Value
from ...core.structure import producers
from ...core.types import NodeIndex, ValueId
from ...record.aliases import REORDERING
from .batch import Batch

#: What is linear in each operand by itself: a sum over examples may pass, and stays one.
_LINEAR = frozenset(
    {"add", "add_any", "sub", "neg", "mul", "div", "dot_general", "reduce_sum", "psum", "stop_gradient", "copy"}
    | {"reshape", "squeeze", "transpose", "broadcast_in_dim", "convert_element_type", "reduce_precision"}
    | {"expand_dims", "slice", "dynamic_slice", "split", "gather", "concatenate", "pad", "rev", "select_n"}
    | {"conv_general_dilated", "real", "imag", "copy_p", "name", "optimization_barrier", "cumsum"}
)
#: What is linear in one operand only if no other operand is one of these sums.
_BILINEAR = frozenset({"mul", "dot_general", "conv_general_dilated"})
#: What runs along an axis: the parameter that says which.
_ALONG = {"cumsum": "axis", "cumprod": "axis", "cummax": "axis", "cummin": "axis", "cumlogsumexp": "axis"} | {
    "sort": "dimension"
}


def refuse_coupling(batch: Batch) -> None:
    """Check that a loss is the mean, or the sum, of terms of single examples.

    It is asked of the program alone, traced for this batch and for one example more. What cannot be decided, as
    in a loop over the examples, is let through. So is a number for the whole batch that does not depend on the
    params, such as the count of its tokens.

    Raises:
        ValueError: A value of one example depends on other examples, or the loss on all in a way that is not a
            sum.
    """
    traced = batch.traced_abstractly(batch.whole)
    found = coupling(traced, batch.traced_abstractly(batch.whole, one_more=True))
    if found is not None:
        raise ValueError(found.message(batch, traced.graph))


@dataclass(frozen=True)
class Coupling:
    """Where examples are coupled.

    Attributes:
        node: The index of the node.
        what: What it does, with `{}` for the name of a value.
        of: The id of that value, if there is one.
    """

    node: NodeIndex
    what: str
    of: ValueId | None = None

    def message(self, batch: Batch, graph: Graph) -> str:
        """Say where, in the words of the user's source, and what to do."""
        node = graph.by_index[self.node]
        of = next((_first_name(graph, value) for value in node.operands if value.id == self.of), "")
        return (
            f"`{name_of(batch.loss)}` couples the examples of a batch: {node.where} {self.what.format(of)}. So "
            "no example has a gradient of its own. Normalize within each example (layer or group "
            "normalization) or with fixed statistics. To see each example as a batch of one all the same, "
            "write that into the loss, with `jax.vmap` over its examples."
        )


def _first_name(graph: Graph, value: Value) -> str:
    """The name a value had before it was reshaped or broadcast."""
    node = producers(graph)[value.id]
    while node.primitive in REORDERING and len(node.operands) == 1:
        value = node.operands[0]
        node = producers(graph)[value.id]
    return value.name


def coupling(traced: Traced, larger: Traced) -> Coupling | None:
    """Find the first node at which examples are coupled, from a program and the same for one example more."""
    graph, other = build(traced.program), build(larger.program)
    nodes, others = ([node for node in g.walk() if node.eqn is not None] for g in (graph, other))
    if [node.primitive for node in nodes] != [node.primitive for node in others]:
        return None
    if any(_loops_over_examples(*pair) for pair in zip(nodes, others, strict=True)):
        return None
    flow = _Coupling.of(traced, graph, zip(_values(graph), _values(other), strict=True))
    return next((found for node in nodes if not node.opened and (found := flow.coupling_at(node))), None)


def _values(graph: Graph) -> Iterator[Value]:
    for node in graph.walk():
        yield from node.outputs


def _loops_over_examples(node: Node, other: Node) -> bool:
    forms = [_jaxpr.opened_form(each.eqn) for each in (node, other)]
    lengths = {form.length for form in forms if isinstance(form, _jaxpr.Scan)}
    return len(lengths) > 1


@dataclass(frozen=True)
class _Coupling:
    """What values depend on.

    Attributes:
        axes: For each value the axes that are longer with one example more.
        of_batch: Values that depend on the batch.
        needed: Values that the loss depends on.
        active: Values between the params and the loss.
    """

    axes: dict[ValueId, tuple[int, ...]]
    of_batch: dict[ValueId, Bits]
    needed: dict[ValueId, Bits]
    active: frozenset[ValueId]

    @classmethod
    def of(cls, traced: Traced, graph: Graph, pairs: Iterator[tuple[Value, Value]]) -> "_Coupling":
        axes = {value.id: _longer_axes(value, other) for value, other in pairs}
        sources = [v.id for v, point in zip(graph.inputs, traced.differentiated, strict=True) if point]
        loss = graph.outputs[0].id
        return cls(
            axes,
            propagate(graph, {value.id: 1 for value in (*graph.inputs, *graph.consts) if axes[value.id]}),
            propagate_back(graph, {loss: 1}),
            active_values(graph, sources, [loss]),
        )

    def is_mixed(self, value: Value) -> bool:
        """Whether a value is one for all examples, and made from them."""
        return value.id in self.of_batch and not self.axes[value.id]

    def is_sum(self, value: Value) -> bool:
        """Whether it is such a value, and depends on the params."""
        return self.is_mixed(value) and value.id in self.active

    def coupling_at(self, node: Node) -> Coupling | None:
        """Find what couples examples at one node."""
        outputs = [value for value in node.outputs if value.id in self.needed and value.id in self.of_batch]
        if not outputs:
            return None
        operands = [value for value in node.operands if value.literal is None]
        if any(self.axes[value.id] for value in outputs):
            return self._of_one_example(node, outputs, operands)
        return self._of_all(node, operands) if any(value.id in self.active for value in outputs) else None

    def _of_one_example(
        self, node: Node, outputs: Sequence[Value], operands: Sequence[Value]
    ) -> Coupling | None:
        for value in operands:
            if self.is_mixed(value) and (value.id in self.active or value.shape):
                return Coupling(
                    node.index, "combines each example with `{}`, computed from all of them", value.id
                )
        if any(len(self.axes[value.id]) > 1 for value in outputs):
            return Coupling(node.index, "combines each example with every other")
        along = node.params.get(_ALONG.get(node.primitive, ""))
        if along is not None and any(along in self.axes[value.id] for value in operands):
            return Coupling(node.index, "runs along the axis of the examples")
        return None

    def _of_all(self, node: Node, operands: Sequence[Value]) -> Coupling | None:
        moved = [value for value in operands if value.id in self.of_batch and value.id in self.active]
        sums = [value for value in moved if self.is_mixed(value)]
        fine = node.primitive in _LINEAR
        if node.primitive in _BILINEAR and sums:
            fine = len(moved) == 1
        if node.primitive == "div":
            fine = all(value.id != node.operands[1].id for value in sums)
        if fine:
            return None
        if sums:
            return Coupling(node.index, "is a nonlinear function of `{}`, a sum over them", sums[0].id)
        return Coupling(node.index, "reduces them, and not by a sum")


def _longer_axes(value: Value, other: Value) -> tuple[int, ...]:
    if len(value.shape) != len(other.shape):
        return (-1,)
    pairs = zip(value.shape, other.shape, strict=True)
    return tuple(axis for axis, (ours, theirs) in enumerate(pairs) if ours != theirs)
