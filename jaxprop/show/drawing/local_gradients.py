"""The local gradients on the edges of a scene: formulas, and numbers for scalars."""

from collections.abc import Hashable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..._fingerprint import fingerprint
from ...core.graph import Graph, Node, Value
from ...core.local import active_operands, node_function, partial_function
from ...core.types import Array, ValueId
from ..symbolic.formula import formulas_of
from .scene import Endpoint, LocalText

#: Numbers are computed for at most this many kinds of operation: they are one compiled program.
MOST_KINDS = 64


def local_texts(graph: Graph, numbers: Mapping[Endpoint, float]) -> dict[Endpoint, LocalText]:
    """The local gradient with respect to each active operand: its formula, and its number if there is one."""
    found = {}
    for node in graph.walk():
        if not node.active or node.opened:
            continue
        for position, formula in enumerate(formulas_of(node, short_name)):
            if formula is not None and node.operands[position].active:
                number = numbers.get((node.index, position))
                found[node.index, position] = LocalText(formula.text, formula.latex, formula.kind, number)
    return found


def short_name(value: Value) -> str:
    """A value's name without its scope."""
    return value.name if "[" in value.name else value.name.rsplit("/", 1)[-1]


def local_numbers(graph: Graph, values: Mapping[ValueId, np.ndarray]) -> dict[Endpoint, float]:
    """Compute `d output / d operand` for scalars outside scans, with JAX, in one program.

    Args:
        values: recorded values on the host, by id.
    """
    kinds: dict[Hashable, list[tuple[Node, list[np.ndarray]]]] = {}
    for node in graph.walk():
        operands = _scalar_operands(node, graph, values)
        if operands is not None:
            kinds.setdefault(structure_of(node), []).append((node, operands))
    groups = list(kinds.values())[:MOST_KINDS]
    if not groups:
        return {}
    stacked = [[np.stack(column) for column in zip(*(o for _, o in group), strict=True)] for group in groups]

    def slopes_of_all(stacked: Sequence[Sequence[Array]]) -> list[Sequence[Array]]:
        return [_slopes(group[0][0], columns) for group, columns in zip(groups, stacked, strict=True)]

    found: dict[Endpoint, float] = {}
    for group, slopes in zip(groups, jax.device_get(jax.jit(slopes_of_all)(stacked)), strict=True):
        for position, column in zip(active_operands(group[0][0]), slopes, strict=True):
            found |= {(node.index, position): float(x) for (node, _), x in zip(group, column, strict=True)}
    return found


def structure_of(node: Node) -> Hashable:
    """A key that is equal for two nodes only if they compute the same function of their operands.

    It may hold objects of the user, so it must not outlive the call that builds a scene.
    """
    types = tuple((str(value.dtype), value.shape) for value in node.operands)
    params = tuple((name, fingerprint(param)) for name, param in sorted(node.params.items()))
    return node.primitive, types, active_operands(node), params


def _scalar_operands(node: Node, graph: Graph, values: Mapping[ValueId, np.ndarray]) -> list[np.ndarray] | None:
    """The operands of a node that maps real scalars to one real scalar; None if one of them is not known."""
    if node.eqn is None or not node.active or node.opened or graph.places[node.index].steps:
        return None
    if len(node.outputs) != 1 or not all(_is_real_scalar(value) for value in (*node.outputs, *node.operands)):
        return None
    found = [values.get(v.id) if v.literal is None else v.literal for v in node.operands]
    if any(x is None for x in found):
        return None
    return [np.asarray(x, v.dtype) for x, v in zip(found, node.operands, strict=True)]


def _is_real_scalar(value: Value) -> bool:
    return value.shape == () and value.dtype is not None and jnp.issubdtype(value.dtype, jnp.floating)


def _slopes(node: Node, columns: Sequence[Array]) -> Sequence[Array]:
    moved = active_operands(node)

    def of(operands: Sequence[Array]) -> Sequence[Array]:
        fun = partial_function(node_function(node), operands, moved)
        outs, pull = jax.vjp(fun, *(operands[i] for i in moved))
        return pull([jnp.ones_like(out) for out in outs])

    return jax.vmap(of)(list(columns))
