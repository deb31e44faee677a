"""What the VJP of each operation reads of the forward pass, one operation at a time.

This is not the memory of the whole program: JAX and XLA share, recompute and fuse across operations.
`jaxprop.residuals` measures that.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax

from ... import _jaxpr
from ..._text import byte_count
from ...core.graph import Graph, Node, Value
from ...core.local import active_operands, node_function, partial_function
from ...core.structure import sources
from ...core.types import Array, NodeIndex
from .local_gradients import structure_of
from .scene import RuleRead


class _Reads(NamedTuple):
    """What a VJP reads: positions of operands, indices of outputs, and bytes of intermediates of its own."""

    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    bytes: int


def rule_reads(graph: Graph) -> tuple[tuple[RuleRead, ...], dict[NodeIndex, int]]:
    """List what the VJP of each active operation reads.

    Returns:
        The values, and the bytes of the other intermediates each VJP stores, by index of the node.
    """
    made = sources(graph)
    known: dict[Hashable, _Reads] = {}
    found: list[RuleRead] = []
    others: dict[NodeIndex, int] = {}
    for node in graph.walk():
        parents = [parent for parent, _ in graph.places[node.index].parents]
        if node.eqn is None or not node.active or node.opened or not all(parent.opened for parent in parents):
            continue
        key = structure_of(node)
        if key not in known:
            known[key] = _traced_reads(node)
        reads = known[key]
        checkpointed = any(isinstance(_jaxpr.opened_form(parent.eqn), _jaxpr.Remat) for parent in parents)
        values = [node.operands[i] for i in reads.operands] + [node.outputs[i] for i in reads.outputs]
        for value in dict.fromkeys(v for v in values if v.id in made):
            producer, output = made[value.id]
            size = _size_of(value) * math.prod(graph.places[producer.index].steps)
            source = (producer.index, output)
            found.append(RuleRead(source, node.index, value.name, size, byte_count(size), checkpointed))
        if reads.bytes:
            others[node.index] = reads.bytes * math.prod(graph.places[node.index].steps)
    return tuple(found), others


def _size_of(value: Value) -> int:
    return math.prod(value.shape) * getattr(value.dtype, "itemsize", 0)


def _traced_reads(node: Node) -> _Reads:
    """Trace the forward half of a VJP on shapes, and see which of its residuals are operands or outputs."""
    moved = active_operands(node)

    def forward(*operands: Array) -> tuple[Sequence[Array], list[Array]]:
        fun = partial_function(node_function(node), operands, moved)
        outs, pull = jax.vjp(fun, *(operands[i] for i in moved))
        return outs, [x for x in jax.tree.leaves(pull) if hasattr(x, "dtype")]

    program = _jaxpr.trace(forward, *(_jaxpr.struct_of(value.aval) for value in node.operands))
    invars, results = program.jaxpr.invars, program.jaxpr.outvars
    outputs, kept = results[: len(node.outputs)], results[len(node.outputs) :]
    from_operands, from_outputs, others = set(), set(), 0
    for atom in dict.fromkeys(atom for atom in kept if not _jaxpr.is_literal(atom)):
        if atom in invars:
            from_operands.add(invars.index(atom))
        elif atom in outputs:
            from_outputs.add(outputs.index(atom))
        elif atom not in program.jaxpr.constvars:
            others += math.prod(_jaxpr.shape_of(atom.aval)) * getattr(_jaxpr.dtype_of(atom.aval), "itemsize", 0)
    return _Reads(tuple(sorted(from_operands)), tuple(sorted(from_outputs)), others)
