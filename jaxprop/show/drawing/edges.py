"""The edges of a scene: from producers to consumers, and how the bodies of nodes join them."""

from collections.abc import Iterator, Mapping, Sequence

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import binding, sources
from .scene import Edge, Endpoint, LocalText, Shown


def edges_of(
    graph: Graph, local: Mapping[Endpoint, LocalText], shares: Mapping[Endpoint, Shown]
) -> Iterator[Edge]:
    """The edges in program order; those of a body follow those of its node.

    Args:
        local: local gradients, by consumer.
        shares: contributions to cotangents, by consumer.
    """
    produced = sources(graph)
    nodes = graph.by_index
    found = (connection for connection in _connections(graph) if connection[0].id in produced)
    for number, (value, target, kind) in enumerate(found):
        active = value.active and (kind not in ("data", "enter") or nodes[target[0]].active)
        is_data = kind == "data"
        yield Edge(
            number,
            producer_of(graph, value),
            target,
            value.name,
            kind,
            active,
            local.get(target) if is_data else None,
            shares.get(target) if is_data else None,
        )


def producer_of(graph: Graph, value: Value) -> Endpoint:
    """The node that produces a value, and the index of the output."""
    node, output = sources(graph)[value.id]
    return node.index, output


def graphs_in(graph: Graph) -> Iterator[Graph]:
    """A graph and all graphs nested in it."""
    yield graph
    for node in graph.walk():
        yield from node.graphs


def _connections(graph: Graph) -> Iterator[tuple[Value, Endpoint, str]]:
    """Each value with one of its consumers and the kind of edge between them."""
    for node in graph.walk():
        for position, value in enumerate(node.operands):
            yield value, (node.index, position), "data"
        for nested in node.graphs:
            yield from _connections_of_body(node, nested)


def _connections_of_body(node: Node, nested: Graph) -> Iterator[tuple[Value, Endpoint, str]]:
    heads = {head.outputs[0].id: head.index for head in nested.heads}
    if _jaxpr.opened_form(node.eqn) is not None:
        into, out_of, around = binding(node, nested)
    else:
        into, out_of, around = _joints_of_closed(node, nested), (), ()
        if len(nested.outputs) == len(node.outputs):
            out_of = tuple(zip(nested.outputs, node.outputs, strict=True))
    for outer, inner in into:
        if inner.id in heads:
            yield outer, (heads[inner.id], 0), "enter"
    for position, (inner, _) in enumerate(out_of):
        yield inner, (node.index, position), "leave"
    for inner, carry in around:
        yield inner, (heads[carry.id], 0), "carry"


def _joints_of_closed(node: Node, nested: Graph) -> tuple[tuple[Value, Value], ...]:
    """The operands of a `while` or a custom rule with the inputs of its body, if they correspond."""
    operands: Sequence[Value] = node.operands
    if node.primitive == "while":
        first, second = node.params["cond_nconsts"], node.params["body_nconsts"]
        is_body = nested is node.graphs[-1]
        consts = operands[first : first + second] if is_body else operands[:first]
        operands = (*consts, *operands[first + second :])
    if len(operands) != len(nested.inputs):
        return ()
    return tuple(zip(operands, nested.inputs, strict=True))
