"""A node at a point: its operands, its outputs, and its vjp there. The local gradient of the textbooks."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .graph import Node, Value
from .types import Array, InCts, OutCts

T = TypeVar("T")

#: A node as a function: all operands in, all outputs out.
NodeFunction: TypeAlias = Callable[..., Sequence[Array]]


@dataclass(frozen=True)
class Local:
    """A node at a point: its operands, its outputs, and the map from out_cts to in_cts there.

    This is what rules and recorders are given.

    Attributes:
        node: the node of the graph.
        operands: the arrays it reads, by position.
        outputs: the arrays it produces.
    """

    node: Node
    operands: tuple[Array, ...]
    outputs: tuple[Array, ...]
    _pullback: Callable[[OutCts], InCts] | None = None

    def vjp(self, out_cts: OutCts) -> InCts:
        """Apply the chain rule to the node: `in_ct[i] = sum_o out_ct[o] * d out[o] / d in[i]`.

        Args:
            out_cts: one cotangent for each output, `None` for zero. Units: of the loss per unit of the output.

        Returns:
            One cotangent for each operand; `None` for an operand without derivative.
        """
        if all(ct is None for ct in out_cts):
            return (None,) * len(self.operands)
        pullback = self._pullback or functools.partial(_pull_node, self.node, self.operands)
        return tuple(pullback(tuple(out_cts)))


def node_function(node: Node) -> NodeFunction:
    """A node as a function of its operands."""
    assert node.eqn is not None, f"{node.name} is not an operation"
    return _jaxpr.as_function(node.eqn)


def evaluate(node: Node, operands: Sequence[Array]) -> list[Array]:
    """Evaluate one node exactly as JAX does. Inputs and closed-over arrays return their value."""
    return list(operands if node.eqn is None else node_function(node)(*operands))


def active_operands(node: Node) -> tuple[int, ...]:
    """The positions that cotangents are propagated to."""
    return tuple(i for i, value in enumerate(node.operands) if value.active)


def _pull_node(node: Node, operands: tuple[Array, ...], out_cts: OutCts) -> InCts:
    if node.eqn is None:
        return out_cts
    positions = active_operands(node)
    of = partial_function(node_function(node), operands, positions)
    _, pull = jax.vjp(of, *take(operands, positions))
    return scatter(pull(fill_zeros(out_cts, node)), positions, len(operands))


def partial_function(fun: NodeFunction, operands: Sequence[Array], positions: Sequence[int]) -> NodeFunction:
    """`fun` as a function of the operands at `positions`, the others held fixed."""

    def of(*points: Array) -> list[Array]:
        full = list(operands)
        for position, point in zip(positions, points, strict=True):
            full[position] = point
        return list(fun(*full))

    return of


def take(items: Sequence[T], positions: Sequence[int]) -> list[T]:
    """The items at these positions."""
    return [items[i] for i in positions]


def scatter(items: Sequence[T], positions: Sequence[int], count: int) -> tuple[T | None, ...]:
    """The inverse of `take`: put items at these positions of a tuple, None elsewhere."""
    at = dict(zip(positions, items, strict=True))
    return tuple(at.get(i) for i in range(count))


def fill_zeros(out_cts: OutCts, node: Node) -> list[Array | np.ndarray]:
    """Cotangents for all outputs of a node, as `jax.vjp` takes them: zeros in the place of None."""
    return [
        ct if ct is not None else zero_cotangent(value) for ct, value in zip(out_cts, node.outputs, strict=True)
    ]


def zero_cotangent(value: Value) -> Array | np.ndarray:
    """A zero cotangent of a value; of dtype float0 for an integer."""
    if _jaxpr.is_inexact(value.dtype):
        return jnp.asarray(_jaxpr.zeros(_jaxpr.struct_of(value.aval)))
    return np.zeros(value.shape, _jaxpr.float0)
