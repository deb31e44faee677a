"""The accused node at the very place: its operands, its local gradient, the cotangent that came."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.graph import Node
from ...core.local import Local
from ...record.aliases import BACK
from ...record.tape import Tape
from .events import Event
from .origin_test import ELEMENTWISE


@dataclass(frozen=True)
class Point:
    """A node at the step and element of an event.

    Attributes:
        event: what happened there.
        operands, outputs: its arrays at that step.
        cts: the cotangents that came to its outputs, None where none came.
        sent: what it sent back to its operands; () on the way out.
        x: for each operand, its number at the element, None where the operation is not elementwise there.
        y: the output's number at the element.
        ct: the cotangent that came to that element, None where there is none.
        gain: the local gradient of the element by the operand at fault, None where not elementwise.
    """

    event: Event
    operands: tuple[Any, ...]
    outputs: tuple[Any, ...]
    cts: tuple[Any, ...]
    sent: tuple[Any, ...]
    x: tuple[Any, ...]
    y: Any
    ct: Any
    gain: Any

    @property
    def node(self) -> Node:
        return self.event.node


def point_of(event: Event, tape: Tape) -> Point:
    """Look up an event on a tape that keeps values as they are."""
    node = event.node
    operands = tuple(_at_step(tape, value, event.step) for value in node.operands)
    outputs = tuple(_at_step(tape, value, event.step) for value in node.outputs)
    cts = tuple(_ct_at_step(tape, value, event.step) for value in node.outputs)
    element = event.element
    shape = event.value.shape
    out = next((i for i, value in enumerate(node.outputs) if value.shape == shape), None)
    on_way_back = event.half == BACK and event.kind in ("made", "from inf")
    position = event.position if not on_way_back else out
    elementwise = node.primitive in ELEMENTWISE
    sent = _sent(node, operands, outputs, cts) if on_way_back else ()
    return Point(
        event,
        operands,
        outputs,
        cts,
        sent,
        x=tuple(_number(x, element, shape) if elementwise else None for x in operands),
        y=_number(outputs[position], element, shape) if position is not None else None,
        ct=_number(cts[position], element, shape) if position is not None else None,
        gain=_gain(node, operands, outputs, event, out) if on_way_back and elementwise else None,
    )


def _at_step(tape: Tape, value: Any, step: tuple[int, ...]) -> Any:
    return tape.value_of(value, step)


def _ct_at_step(tape: Tape, value: Any, step: tuple[int, ...]) -> Any:
    if not value.name or value.name not in tape:
        return None
    ct = tape[value.name].cotangent
    return None if ct is None else ct[step]


def _sent(node: Node, operands: Any, outputs: Any, cts: Any) -> tuple[Any, ...]:
    # As JAX arrays: a rule of the user's own may use plain operators, and NumPy would warn of what is sought.
    sent = Local(node, *_as_arrays((operands, outputs))).vjp(_as_arrays(cts))
    return tuple(None if ct is None else np.asarray(ct) for ct in sent)


def _as_arrays(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def _gain(node: Node, operands: Any, outputs: Any, event: Event, out: int | None) -> Any:
    """`d out[element] / d operand[element]`, where shapes agree."""
    if out is None or node.operands[event.position].shape != node.outputs[out].shape:
        return None
    one = np.zeros(node.outputs[out].shape, node.outputs[out].dtype)
    one[event.element] = 1
    cts = tuple(one if i == out else None for i in range(len(node.outputs)))
    sent = Local(node, *_as_arrays((operands, outputs))).vjp(_as_arrays(cts))
    return np.asarray(sent[event.position])[event.element]


def _number(x: Any, element: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """The number that is read for an element of the result; None where shapes do not broadcast."""
    own = np.shape(x)
    if x is None or (own and len(own) != len(shape)):
        return None
    if any(mine not in (1, its) for mine, its in zip(own, shape, strict=False)):
        return None
    return np.asarray(x)[tuple(0 if mine == 1 else i for mine, i in zip(own, element, strict=False))]
