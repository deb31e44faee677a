"""Attention, found by its structure: a softmax whose result is contracted along the same axis."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._structure import consumers
from ...core.graph import Graph, Node, Value
from ...core.local import Local
from ...core.recorders import Forward
from ...core.structure import producers
from ...core.types import Array, NodeIndex
from ...record.aliases import FORWARD, REORDERING
from ...record.batching import Besides
from ...record.statistics import real
from ...record.tape import Tape


class Attention(NamedTuple):
    """What is watched of one attention, over all its batches and heads.

    Attributes:
        logit: The largest logit, after scaling and masking. It grows without bound where training is unstable.
        entropy: The mean over the queries of the entropy of their weights, in nats. Between 0, where each query
            attends to one key, and the logarithm of the number of keys, where it attends to all alike.
        keys: The number of keys.
    """

    logit: Float[np.ndarray, "*steps"]
    entropy: Float[np.ndarray, "*steps"]
    keys: Float[np.ndarray, "*steps"]


class AttentionSite(NamedTuple):
    """Where an attention is in a graph.

    Attributes:
        weights: The node whose result are the weights: the division of the softmax.
        largest: The node that computes the largest logit of each query.
        axis: The axis of the weights that counts the keys.
    """

    weights: Node
    largest: Node
    axis: int

    @property
    def name(self) -> str:
        """The name of the weights."""
        return self.weights.name


def attention_sites(graph: Graph) -> Iterator[AttentionSite]:
    """Find every softmax along one axis whose result is contracted along that axis."""
    for node in graph.walk():
        is_open = all(parent.opened for parent, _ in graph.places[node.index].parents)
        if node.primitive == "div" and is_open and (found := _softmax(graph, node)) is not None:
            largest, axis = found
            if _is_contracted(graph, node.outputs[0], axis):
                yield AttentionSite(node, largest, axis)


def _softmax(graph: Graph, node: Node) -> tuple[Node, int] | None:
    """Of `exp(x - max) / sum(exp(x - max))`: the node of the maximum, and the axis."""
    top, total = (_source(graph, value, REORDERING) for value in node.operands)
    if top is None or total is None or top.primitive != "exp" or total.primitive != "reduce_sum":
        return None
    axes = total.params["axes"]
    if len(axes) != 1 or _source(graph, total.operands[0], REORDERING) is not top:
        return None
    shifted = _source(graph, top.operands[0], frozenset())
    if shifted is None or shifted.primitive != "sub":
        return None
    largest = _source(
        graph, shifted.operands[1], REORDERING | {"stop_gradient", "max", "select_n", "is_finite"}
    )
    if largest is None or largest.primitive != "reduce_max":
        return None
    return largest, int(axes[0])


def _source(graph: Graph, value: Value, through: frozenset[str]) -> Node | None:
    """The node that a value comes from, through some primitives: along their last operand that is a value."""
    made = producers(graph)
    while value.literal is None and value.id in made:
        node = made[value.id]
        operands = [operand for operand in node.operands if operand.literal is None]
        if node.primitive not in through or not operands:
            return node
        value = operands[-1]
    return None


#: Elementwise: the axes stay where they are.
_ELEMENTWISE = frozenset(
    {"convert_element_type", "mul", "div", "select_n", "add", "name", "copy", "reduce_precision"}
)
_DEPTH = 8


def _is_contracted(graph: Graph, value: Value, axis: int, depth: int = 0) -> bool:
    """Whether a value reaches a matrix product that contracts this axis of it."""
    return depth < _DEPTH and any(
        _contracts(graph, node, position, axis, depth) for node, position in consumers(graph).get(value.id, ())
    )


def _contracts(graph: Graph, node: Node, position: int, axis: int, depth: int) -> bool:
    if node.primitive == "dot_general":
        return axis in node.params["dimension_numbers"][0][position]
    target = _moved_axis(node, position, axis)
    return target is not None and _is_contracted(graph, node.outputs[0], target, depth + 1)


def _moved_axis(node: Node, position: int, axis: int) -> int | None:
    """Where an axis of an operand is in the result of an operation that keeps it."""
    source, target = node.operands[position].shape, node.outputs[0].shape if node.outputs else ()
    if node.primitive in _ELEMENTWISE:
        return axis if source == target else None
    if node.primitive == "transpose":
        return tuple(node.params["permutation"]).index(axis)
    if node.primitive == "broadcast_in_dim":
        return int(node.params["broadcast_dimensions"][axis])
    if node.primitive in ("reshape", "squeeze", "expand_dims"):
        before = math.prod(source[:axis])
        fits = (i for i, n in enumerate(target) if n == source[axis] and math.prod(target[:i]) == before)
        return next(fits, None)
    return None


# --- recorded -----------------------------------------------------------------------------------------


def attention_halves(site: AttentionSite, forward: Mapping[NodeIndex, Forward]) -> dict[NodeIndex, Forward]:
    """Return what is recorded in the forward pass at the two nodes of an attention.

    Args:
        site: The attention.
        forward: What is recorded of outputs anyway, by index of the node.
    """

    def entropy(local: Local) -> Array:
        p = real(local.outputs[0])
        return jnp.mean(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), site.axis))

    def largest(local: Local) -> Array:
        return jnp.max(real(local.outputs[0]))

    def half(node: Node, number: Callable[[Local], Array]) -> Forward:
        usual = forward.get(node.index)
        return lambda local: Besides(None if usual is None else usual(local), number(local))

    return {
        site.weights.index: half(site.weights, entropy),
        site.largest.index: half(site.largest, largest),
    }


def attention_on(tape: Tape) -> dict[str, Attention]:
    """Read what was recorded of each attention, by the name of its weights."""
    found = {}
    for site in attention_sites(tape.graph):
        entropy, logit = (tape.record_at(node.index, FORWARD) for node in (site.weights, site.largest))
        if entropy is not None and logit is not None:
            keys = np.full(np.shape(logit), site.weights.shape[site.axis], np.float32)
            found[site.name] = Attention(np.asarray(logit), np.asarray(entropy), keys)
    return found
