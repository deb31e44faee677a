"""What is known about an origin: the node at the step and element in question, its numbers, what it spoils."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ...core.graph import Graph, Node, Value
from ...core.local import Local
from ...core.structure import producers
from ...record.aliases import BACKWARD
from ...record.tape import Tape
from .events import Event, Kind
from .origins import Origin
from .probe import ELEMENTWISE

#: A number of an array, as NumPy gives it; None where there is none, or no single one.
Number: TypeAlias = np.generic | None


@dataclass(frozen=True)
class Evidence:
    """What is known about the place where a NaN or Inf first appears: what a `Cause` is matched against.

    Arrays are those of the step in question. *Its number* is the one at the element in question, where the
    operation is elementwise.

    Attributes:
        graph: the program.
        node: the operation.
        kind: how the bad number begins: `produced` from finite numbers, `from inf`, `masked` (a NaN in the data
            that the forward pass masks, and the backward pass multiplies by 0), `sum` (of cotangents), `input`,
            `seed`, or `unexamined`.
        backward: whether it begins in the backward pass.
        position: of the output in question; in the backward pass of the operand whose cotangent is bad.
        element: index into the array; () for a scalar.
        step: the step of each loop around the node, outermost first.
        operands: the arrays the node reads.
        outputs: the arrays it produces.
        out_cts: the cotangents of its outputs; None where none arrives.
        in_cts: the cotangents of its operands; () in the forward pass.
        x: the number of each operand; None where the operation is not elementwise.
        y: the number of the output.
        ct: the number of the output's cotangent.
        gain: the derivative of `y` with respect to the operand at fault, in the backward pass.
        leaves: paths of the differentiated leaves whose gradient is spoiled.
        reaches_loss: whether the value of the loss is spoiled; otherwise the forward pass masks the bad number.
    """

    graph: Graph
    node: Node
    kind: Kind
    backward: bool
    position: int
    element: tuple[int, ...]
    step: tuple[int, ...]
    operands: tuple[np.ndarray | None, ...]
    outputs: tuple[np.ndarray | None, ...]
    out_cts: tuple[np.ndarray | None, ...]
    in_cts: tuple[np.ndarray | None, ...]
    x: tuple[Number, ...]
    y: Number
    ct: Number
    gain: Number
    leaves: tuple[str, ...]
    reaches_loss: bool

    @property
    def primitive(self) -> str:
        """The primitive of the node; the function's name for a custom rule."""
        return self.node.primitive

    @property
    def code(self) -> str:
        """The expression in the source; "" if unknown."""
        return self.node.label

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the value in question."""
        at_operand = self.backward and self.in_cts
        value = (self.node.operands if at_operand else self.node.outputs)[self.position]
        return np.dtype(value.dtype)

    def producer(self, position: int) -> Node | None:
        """Return the node that produces an operand; None for a literal."""
        return producers(self.graph).get(self.node.operands[position].id)

    def has_scope(self, *names: str) -> bool:
        """Whether the primitive, or a function or named scope around it, has one of these in its name."""
        return any(name in part for part in (self.node.scope, self.node.primitive) for name in names)


def evidence_of(origin: Origin, tape: Tape) -> Evidence:
    """Collect what is known about an origin.

    Args:
        origin: the event, and what it spoils.
        tape: a tape that keeps values as they are at its node.
    """
    event, node = origin.event, origin.event.node
    operands = tuple(value_at(tape, value, event.step) for value in node.operands)
    outputs = tuple(value_at(tape, value, event.step) for value in node.outputs)
    out_cts = tuple(cotangent_at(tape, value, event.step) for value in node.outputs)
    shape = event.value.shape
    out = next((i for i, value in enumerate(node.outputs) if value.shape == shape), None)
    position = out if event.at_operand else event.position
    elementwise = node.primitive in ELEMENTWISE
    return Evidence(
        graph=tape.graph,
        node=node,
        kind=event.kind,
        backward=event.half == BACKWARD,
        position=event.position,
        element=event.element,
        step=event.step,
        operands=operands,
        outputs=outputs,
        out_cts=out_cts,
        in_cts=_in_cts(node, operands, outputs, out_cts) if event.at_operand else (),
        x=tuple(_number_at(x, event.element, shape) if elementwise else None for x in operands),
        y=None if position is None else _number_at(outputs[position], event.element, shape),
        ct=None if position is None else _number_at(out_cts[position], event.element, shape),
        gain=_gain(event, operands, outputs, out) if event.at_operand and elementwise else None,
        leaves=origin.leaves,
        reaches_loss=origin.reaches_loss,
    )


def value_at(tape: Tape, value: Value, step: tuple[int, ...]) -> Any:
    """Return a value at a step of the loops around it; None if it was not recorded."""
    return tape.value_of(value, step)


def cotangent_at(tape: Tape, value: Value, step: tuple[int, ...]) -> Any:
    """Return the cotangent of a value at a step; None if none arrives."""
    if not value.name or value.name not in tape:
        return None
    ct = tape[value.name].cotangent
    return None if ct is None else ct[step]


def _in_cts(
    node: Node,
    operands: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    out_cts: Sequence[np.ndarray | None],
) -> tuple[np.ndarray | None, ...]:
    # As JAX arrays: a custom rule may use plain operators, and NumPy would warn of what is being looked for.
    arrays, cts = jax.tree.map(jnp.asarray, ((tuple(operands), tuple(outputs)), tuple(out_cts)))
    in_cts = Local(node, *arrays).vjp(cts)
    return tuple(None if ct is None else np.asarray(ct) for ct in in_cts)


def _gain(
    event: Event,
    operands: Sequence[np.ndarray | None],
    outputs: Sequence[np.ndarray | None],
    out: int | None,
) -> Number:
    """Compute `d out[element] / d operand[element]`; None if the shapes differ."""
    node = event.node
    if out is None or node.operands[event.position].shape != node.outputs[out].shape:
        return None
    one = np.zeros(node.outputs[out].shape, node.outputs[out].dtype)
    one[event.element] = 1
    cts = tuple(one if i == out else None for i in range(len(node.outputs)))
    in_ct = _in_cts(node, operands, outputs, cts)[event.position]
    return None if in_ct is None else in_ct[event.element]


def _number_at(x: np.ndarray | None, element: tuple[int, ...], shape: tuple[int, ...]) -> Number:
    """Return the number that is read for an element of the result; None if the shapes do not broadcast."""
    if x is None:
        return None
    own = np.shape(x)
    if own and len(own) != len(shape):
        return None
    if any(mine not in (1, its) for mine, its in zip(own, shape, strict=False)):
        return None
    return np.asarray(x)[tuple(0 if mine == 1 else i for mine, i in zip(own, element, strict=False))]
