"""Which records are the same, because one array has the elements of another in another order."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from .. import _jaxpr
from ..core.graph import Graph, Node, Value
from ..core.structure import sources
from ..core.types import NodeIndex, Position

#: The two halves of a record.
FORWARD, BACKWARD = "forward", "backward"


class Site(NamedTuple):
    """Where something is recorded.

    Attributes:
        half: in the forward or in the backward pass.
        node: index of the node.
        output: position of the output; None for the node as a whole.
    """

    half: str
    node: NodeIndex
    output: Position | None


_FIRST = Position(0)

#: Primitives that only reorder or reshape the elements of an array.
REORDERING = frozenset(
    {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "copy", "copy_p"}
)
#: The cotangent of an operand is that of the output, element by element.
_PASSING = {"add": (0, 1), "add_any": (0, 1), "sub": (0,)}


#: Indices of nodes.
_Nodes: TypeAlias = frozenset[NodeIndex]


def shared_sites(graph: Graph, watched: _Nodes, ruled: _Nodes) -> Mapping[Site, Site]:
    """For each site whose record is that of another: that other, which shares none itself."""
    direct = dict(_of_values(graph, watched)) | dict(_of_cotangents(graph, watched, ruled))

    def root(site: Site) -> Site:
        while site in direct:
            site = direct[site]
        return site

    return {site: root(site) for site in direct}


def _of_values(graph: Graph, watched: _Nodes) -> Iterator[tuple[Site, Site]]:
    made = sources(graph)
    for level in graph.levels():
        for node in level.equations():
            if node.index not in watched or not (_is_view(node) or node.primitive == "stop_gradient"):
                continue
            source = made.get(node.operands[0].id)
            if source is not None and source[0].index in watched:
                yield Site(FORWARD, node.index, _FIRST), Site(FORWARD, source[0].index, source[1])


def _of_cotangents(graph: Graph, watched: _Nodes, ruled: _Nodes) -> Iterator[tuple[Site, Site]]:
    made = sources(graph)
    for level in graph.levels():
        readers = Counter(value.id for node in level.equations() for value in node.operands)
        readers.update(value.id for value in level.outputs)
        for node in level.equations():
            if node.index not in watched or node.index in ruled or not node.active:
                continue
            for position in (0,) if _is_view(node) else _PASSING.get(node.primitive, ()):
                value = node.operands[position]
                source = made.get(value.id)
                if readers[value.id] != 1 or source is None or source[0].index not in watched:
                    continue
                if value.active and _same_elements(value, node.outputs[0]):
                    yield Site(BACKWARD, source[0].index, source[1]), Site(BACKWARD, node.index, _FIRST)


def _is_view(node: Node) -> bool:
    return node.primitive in REORDERING and _same_elements(node.operands[0], node.outputs[0])


def _same_elements(a: Value, b: Value) -> bool:
    return a.dtype == b.dtype and math.prod(a.shape) == math.prod(b.shape) and _jaxpr.is_inexact(a.dtype)
