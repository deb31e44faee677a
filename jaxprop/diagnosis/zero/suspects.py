"""Where cotangents die at these numbers: read off the measures of one pass."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ...core.graph import Node, Value
from ...core.structure import makers
from ..measures import Field, is_number
from ..thresholds import Thresholds
from .wording import RECTIFYING, saturating

Kind: TypeAlias = Literal["zero", "dead", "saturated"]


@dataclass(frozen=True)
class Suspect:
    """A node that a cotangent comes to, and does not (or hardly) get through.

    Attributes:
        kind: `zero` where nothing comes out, `dead` where some units get nothing, `saturated` where little.
        node: the node.
        output: the output the cotangent comes to.
        position: the operand nothing comes to.
        amount: of `dead` the fraction of units that die here, of `saturated` the local gain.
    """

    kind: Kind
    node: Node
    output: int
    position: int
    amount: float = 0.0

    @property
    def operand(self) -> Value:
        return self.node.operands[self.position]


def zero_leaves(field: Field) -> dict[Value, tuple[Suspect, ...]]:
    """The leaves whose gradient is exactly zero, each with the nodes where it becomes so."""
    zero = [leaf for leaf in field.graph.inputs if leaf.active and 0 not in leaf.shape and field.top(leaf) == 0]
    return {leaf: tuple(_where_zero(field, leaf)) for leaf in zero}


def _where_zero(field: Field, leaf: Value) -> Iterator[Suspect]:
    """Walk from the leaf to the result, as long as cotangents are zero."""
    seen, queue = {leaf.id}, [leaf]
    for value in queue:
        onward: list[Value] = []
        for node, position in field.readers.get(value.id, ()):
            if node.opened:
                onward += [inner for inner in field.entering(node, position) if inner.active]
                continue
            for output, made in enumerate(node.outputs):
                if not made.active:
                    continue
                if field.top(made) in (0, None):
                    onward.append(made)
                else:
                    yield Suspect("zero", node, output, position)
        for node, made in field.leaving.get(value.id, ()):
            if field.top(made) in (0, None):
                onward.append(made)
            elif made in node.outputs:  # a branch that was not taken
                yield Suspect("zero", node, node.outputs.index(made), _entry(field, node, seen))
        for new in onward:
            if new.id not in seen:
                seen.add(new.id)
                queue.append(new)


def _entry(field: Field, node: Node, seen: set[int]) -> int:
    """The operand by which the walk came into an opened node."""
    positions = [i for i, operand in enumerate(node.operands) if operand.id in seen]
    return positions[0] if positions else 0


def dead_units(field: Field, thresholds: Thresholds) -> Iterator[Suspect]:
    """Rectifiers at which most units get no cotangent, though it comes to them.

    Where the field counts elements, so is said what fraction of elements dies there: about as much, or more.
    """
    for node, output, position in _gates(field, lambda node, x: _rectifies(field, node, x)):
        made, operand = node.outputs[output], node.operands[position]
        if is_number(operand) or operand.shape[-1] < 2:
            continue
        before, after = field.dead(operand), field.dead(made)
        died = (before - after) / (1 - after) if after < 1 else 0.0
        if died >= thresholds.dead and field.top(operand) != 0:
            yield Suspect("dead", node, output, position, died)


def saturated(field: Field, thresholds: Thresholds) -> Iterator[Suspect]:
    """Sigmoids and the like through which next to nothing of the cotangent gets.

    That of a cross entropy written as `log(sigmoid(z))` is small at the sigmoid too, because the logarithm
    made it large before: so what leaves the node is held against what came to the nodes after it as well.
    """
    for node, output, position in _gates(field, lambda node, _: bool(saturating(node))):
        made, operand = node.outputs[output], node.operands[position]
        if is_number(operand) or len(field.readers.get(operand.id, ())) != 1 or field.top(operand) == 0:
            continue
        later = [out for reader, _ in field.readers.get(made.id, ()) for out in reader.outputs if out in field]
        before = min([field.norm(made), *(field.norm(out) for out in later if not is_number(out))])
        gain = field.norm(operand) / before if before > 0 else 1.0
        if gain < thresholds.saturated:
            yield Suspect("saturated", node, output, position, gain)


def _gates(field: Field, wanted: Callable[[Node, Value], bool]) -> Iterator[tuple[Node, int, int]]:
    """Wanted nodes that were measured on both sides, with the operand that has the shape of the result."""
    for node in field.graph.walk():
        if not node.active or node.opened or len(node.outputs) != 1:
            continue
        made = node.outputs[0]
        for position, operand in enumerate(node.operands):
            if not (operand.active and operand.shape == made.shape and operand in field and made in field):
                continue
            if len(field.readers[operand.id]) == 1 and wanted(node, operand):
                yield node, 0, position


def _rectifies(field: Field, node: Node, operand: Value) -> bool:
    """Whether a node cuts off one side: `relu(x)`, `maximum(x, 0)`, `where(x > 0, x, 0)`."""
    if node.primitive in RECTIFYING:  # the greater of two layers is none
        return sum(value.active for value in node.operands) == 1
    if node.primitive != "select_n" or len(node.operands) != 3:
        return False
    chooser = makers(field.graph).get(node.operands[0].id)
    return chooser is not None and any(value.id == operand.id for value in chooser.operands)
