"""Recorders: what is recorded at a node, in the forward and in the backward pass."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax

from .. import _jaxpr
from .graph import Node
from .local import Local
from .types import Array, OutCts, PyTree

Forward: TypeAlias = Callable[[Local], PyTree]
Backward: TypeAlias = Callable[[Local, OutCts], PyTree]


@dataclass(frozen=True)
class Recorder:
    """What is recorded at a node: a function for the forward pass and one for the backward pass.

    There are two, so that a statistic of a value is computed when the value is available, and nothing is kept
    for the backward pass that the backward function does not read.

    Attributes:
        forward: `local -> pytree`; None records nothing.
        backward: `(local, out_cts) -> pytree`; `out_cts` holds one cotangent for each output, None where none
            arrives. It is called only where one arrives.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> gain = jp.Recorder(backward=lambda local, out_cts: jnp.linalg.norm(out_cts[0]))
        >>> tape = jp.backprop(lambda w: jnp.sum(3.0 * w), record=gain)(jnp.ones(4))
        >>> float(tape["w"].backward)
        6.0
    """

    forward: Forward | None = None
    backward: Backward | None = None

    @classmethod
    def each(
        cls,
        value: Callable[[Array], PyTree] | None = None,
        cotangent: Callable[[Array], PyTree] | None = None,
    ) -> "Recorder":
        """Record a function of every value and of every cotangent; random keys are left out.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> largest = jp.Recorder.each(cotangent=lambda ct: jnp.max(jnp.abs(ct)))
            >>> tape = jp.backprop(lambda w: jnp.sum(3.0 * w), record=largest)(jnp.ones(2))
            >>> float(tape["w"].cotangent)
            3.0
        """
        return cls(
            None if value is None else EachValue(value),
            None if cotangent is None else EachCotangent(cotangent),
        )


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class PerOutput:
    """A record for each output of a node, None where there is none. A tuple could be a user's record."""

    parts: Sequence[PyTree]

    def tree_flatten(self) -> tuple[tuple[PyTree, ...], None]:
        return tuple(self.parts), None

    @classmethod
    def tree_unflatten(cls, _: None, parts: Sequence[PyTree]) -> "PerOutput":
        return cls(parts)


@dataclass(frozen=True)
class EachValue:
    """Apply a function to every output of a node, in the forward pass."""

    fun: Callable[[Array], PyTree]

    def __call__(self, local: Local) -> PerOutput:
        return PerOutput([None if _jaxpr.is_key(x) else self.fun(x) for x in local.outputs])


@dataclass(frozen=True)
class EachCotangent:
    """Apply a function to every cotangent that arrives at a node."""

    fun: Callable[[Array], PyTree]

    def __call__(self, local: Local, out_cts: OutCts) -> PerOutput:
        return PerOutput([None if ct is None else self.fun(ct) for ct in out_cts])


class Tapped(NamedTuple):
    """The backward function of a recorder at one node.

    Attributes:
        write: the function.
        struct: types of what it records.
        unread: for each operand and each output its type, if the function does not read the array: then it is
            not kept, and the function is given the type. None if it is read.
    """

    write: Backward
    struct: PyTree
    unread: Sequence[jax.ShapeDtypeStruct | None]


def tapped(node: Node, backward: Backward) -> Tapped:
    """Find out what the backward function of a recorder records and reads at a node, by tracing it on types."""
    operands = [_jaxpr.struct_of(value.aval) for value in node.operands or node.outputs]
    outputs = [_jaxpr.struct_of(value.aval) for value in node.outputs]
    cts = tuple(struct if value.active else None for struct, value in zip(outputs, node.outputs, strict=True))

    def write(primals: list[list[Array]], cts: OutCts) -> PyTree:
        operands, outputs = primals
        return backward(Local(node, tuple(operands), tuple(outputs)), cts)

    struct, read = _jaxpr.traced_reads(write, [operands, outputs], cts)
    unread = [None if used else leaf for leaf, used in zip((*operands, *outputs), read, strict=True)]
    return Tapped(backward, struct, unread)
