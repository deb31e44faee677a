"""The level of reading above operations: statements, the values of the program's own variables.

In `z = w * x + b` the product has no variable: it is part of the statement `z`, together with the sum. A
program is read as statements first, and as operations where somebody asks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from .types import NodeIndex, ValueId

#: A value without a variable that several statements read is repeated in each up to this many operations;
#: beyond, it is a statement of its own.
REPEATED = 3


class FoldedValue(Protocol):
    """What folding asks of a value: a `Value` has it."""

    @property
    def id(self) -> ValueId: ...
    @property
    def anonymous(self) -> bool: ...


V = TypeVar("V", bound=FoldedValue)
V_co = TypeVar("V_co", bound=FoldedValue, covariant=True)


class FoldedNode(Protocol[V_co]):
    """What folding asks of a node: a `Node` has it."""

    @property
    def index(self) -> NodeIndex: ...
    @property
    def operands(self) -> tuple[V_co, ...]: ...
    @property
    def outputs(self) -> tuple[V_co, ...]: ...
    @property
    def opened(self) -> bool: ...


N = TypeVar("N", bound=FoldedNode[Any])


@dataclass(frozen=True, slots=True)
class Statement(Generic[N, V]):
    """One or several operations read as one: `z = w * x + b`.

    Attributes:
        nodes: the operations, in program order. The last one computes the outputs.
        operands: the distinct values it reads: those of other statements, inputs, closed-over arrays.
        outputs: the values it computes.
        intermediates: the values in between, which have no variable.
    """

    nodes: tuple[N, ...]
    operands: tuple[V, ...]
    outputs: tuple[V, ...]
    intermediates: tuple[V, ...] = ()

    @property
    def node(self) -> N:
        """The operation that computes the outputs: it has the statement's name, expression and place."""
        return self.nodes[-1]

    def __repr__(self) -> str:
        names = ", ".join(str(getattr(value, "name", value.id)) for value in self.outputs)
        return f"Statement({names}: {len(self.nodes)} operations)"


def compose(nodes: Sequence[N], outputs: Iterable[V]) -> Statement[N, V]:
    """Read nodes, in program order, as one statement that computes `outputs`."""
    outputs = tuple(outputs)
    produced = {value.id: value for node in nodes for value in node.outputs}
    read = {value.id: value for node in nodes for value in node.operands if value.id >= 0}
    kept = {value.id for value in outputs}
    return Statement(
        tuple(nodes),
        tuple(value for id_, value in read.items() if id_ not in produced),
        outputs,
        tuple(value for id_, value in produced.items() if id_ not in kept),
    )


def fold(nodes: Sequence[N], outputs: Iterable[FoldedValue]) -> tuple[Statement[N, Any], ...]:
    """Fold the operations of one level into its statements, in program order.

    An operation whose values have no variable is part of the statements that read it. It is a statement of
    its own where its value leaves the level, where it has a body that is differentiated through, or where it is
    long and several statements read it. An operation that nothing reads is part of none.
    """
    members: dict[NodeIndex, list[N]] = {}
    heads = _heads(nodes, {value.id for value in outputs})
    for node in nodes:
        for head in heads[node.index]:
            members.setdefault(head, []).append(node)
    return tuple(compose(members[i], members[i][-1].outputs) for i in sorted(members))


def _heads(nodes: Sequence[N], leaving: set[ValueId]) -> dict[NodeIndex, frozenset[NodeIndex]]:
    """By index of a node: the last nodes of the statements it is part of."""
    sizes = _sizes(nodes)
    readers: dict[ValueId, list[NodeIndex]] = {}
    for node in nodes:
        for value in node.operands:
            readers.setdefault(value.id, []).append(node.index)
    heads: dict[NodeIndex, frozenset[NodeIndex]] = {}
    for node in reversed(nodes):
        into = frozenset(head for value in node.outputs for i in readers.get(value.id, ()) for head in heads[i])
        own = is_head(node) or any(value.id in leaving for value in node.outputs)
        own = own or (len(into) > 1 and sizes[node.index] > REPEATED)
        heads[node.index] = frozenset((node.index,)) if own else into
    return heads


def is_head(node: FoldedNode[Any]) -> bool:
    """Whether a node ends a statement wherever it is: a variable holds its value, or it has a body."""
    return node.opened or not node.outputs or not all(value.anonymous for value in node.outputs)


def _sizes(nodes: Iterable[N]) -> dict[NodeIndex, int]:
    """How many operations the expression of each node has, written out up to values that have a variable."""
    of_value: dict[ValueId, int] = {}
    sizes: dict[NodeIndex, int] = {}
    for node in nodes:
        inside = sum(of_value.get(id_, 0) for id_ in {value.id for value in node.operands})
        sizes[node.index] = min(1 + inside, 2 * REPEATED)
        if not is_head(node):
            of_value.update((value.id, sizes[node.index]) for value in node.outputs)
    return sizes
