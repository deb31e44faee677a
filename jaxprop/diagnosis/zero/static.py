"""Findings on gradients that are blocked in the program itself. Nothing is run: shapes are enough."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..._text import sentence
from ...core.graph import Graph, Node, Value
from ..report import Finding, at
from .reachability import BlockedEdge, BlockedLeaf, blocked_leaves, partly_blocked
from .wording import Advice, explain_edge, explain_unused, quoted, receives, repetition

#: Causes that do no harm: nothing was meant to flow there.
HARMLESS = frozenset({"never used", "state"})


def static_findings(
    graph: Graph, leaves: Sequence[Value], sinks: Sequence[Value], partial: bool = False
) -> list[Finding]:
    """Report every leaf that no cotangent can reach, and where its paths to the result are blocked.

    Args:
        graph: the program.
        leaves: the values differentiated.
        sinks: the values whose derivative is asked for: the results without the auxiliary ones.
        partial: whether to note what is blocked on one path of leaves that get a gradient by another.
    """
    lost = blocked_leaves(graph, leaves, sinks)
    everything = bool(leaves) and len(lost) == len(leaves)
    found = [_finding(graph, group, everything) for group in _groups(graph, lost)]
    if partial:
        found += [_note(graph, edge, some) for edge, some in _one_a_line(partly_blocked(graph, leaves, sinks))]
    return found


@dataclass(eq=False)
class _BlockedGroup:
    """Leaves that are blocked at the same lines, for the same cause.

    Attributes:
        advice: why.
        node: the node named for it, None where nothing reads them.
        lines: all lines at which their paths are blocked, that of the node first.
        names: the leaves.
    """

    advice: Advice
    node: Node | None
    lines: tuple[str, ...]
    names: list[str] = field(default_factory=list)


def _groups(graph: Graph, lost: Sequence[BlockedLeaf]) -> list[_BlockedGroup]:
    explained: dict[object, _BlockedGroup] = {}
    groups: dict[object, _BlockedGroup] = {}
    for one in lost:
        key = one.edges or (one.leaf, one.readers)
        if key not in explained:
            explained[key] = _explain_leaf(graph, one)
        group = explained[key]
        group = groups.setdefault((group.lines, group.advice.cause), group)
        group.names.append(one.leaf.name)
    return list(groups.values())


def _explain_leaf(graph: Graph, one: BlockedLeaf) -> _BlockedGroup:
    if one.edges:
        edge = _most_telling(one.edges, graph)
        node, advice = edge.node, explain_edge(edge, graph)
    else:
        advice, node = explain_unused(one, graph)
    nodes = ([] if node is None else [node]) + [edge.node for edge in one.edges]
    return _BlockedGroup(advice, node, tuple(dict.fromkeys(map(_place_of, nodes))))


def _finding(graph: Graph, group: _BlockedGroup, everything: bool) -> Finding:
    cause, why, fix = group.advice
    others = group.lines[1:]
    also = f" Their other paths are blocked as well, at {', '.join(others)}." if others else ""
    return Finding(
        kind="blocked",
        severity="error" if everything else "note" if cause in HARMLESS else "warning",
        message=f"{receives(group.names)} no gradient: {_reason(graph, group)}.",
        **(at(graph, group.node) if group.node is not None else {}),
        cause=cause,
        why=sentence(why) + also,
        fix=sentence(fix),
        leaves=tuple(group.names),
    )


def _reason(graph: Graph, group: _BlockedGroup) -> str:
    cause, them = group.advice.cause, "them" if len(group.names) > 1 else "it"
    unused = {
        "only in aux": "used for the auxiliary output only",
        "state": "carried to the auxiliary output as state",
        "never used": "never used",
        "unused result": f"the result does not depend on what is computed from {them}",
        "derivative only": f"the derivative in the loss does not depend on {them}",
    }
    if cause in unused or group.node is None:
        return unused.get(cause, cause)
    return f"blocked by {quoted(group.node)}{repetition(graph, group.node)} ({cause})"


def _note(graph: Graph, edge: BlockedEdge, leaves: Sequence[Value]) -> Finding:
    cause, why, fix = explain_edge(edge, graph)
    names = tuple(leaf.name for leaf in leaves)
    return Finding(
        kind="blocked in part",
        severity="note",
        message=f"{receives(names)} a gradient, but none through {quoted(edge.node)}.",
        **at(graph, edge.node),
        cause=cause,
        why=sentence(why),
        fix=sentence(fix),
        leaves=names,
    )


def _one_a_line(edges: Sequence[tuple[BlockedEdge, list[Value]]]) -> list[tuple[BlockedEdge, list[Value]]]:
    """One edge for each line, with the leaves of all of them."""
    found: dict[str, tuple[BlockedEdge, dict[Value, None]]] = {}
    for edge, leaves in edges:
        found.setdefault(_place_of(edge.node), (edge, {}))[1].update(dict.fromkeys(leaves))
    return [(edge, list(leaves)) for edge, leaves in found.values()]


def _most_telling(edges: Sequence[BlockedEdge], graph: Graph) -> BlockedEdge:
    """The first edge, but of several on one line the one with the clearest explanation."""
    line = [edge for edge in edges if _place_of(edge.node) == _place_of(edges[0].node)]
    vague = ("comparison", "integer", "no derivative")
    return min(line, key=lambda e: (explain_edge(e, graph).cause in vague, e.node.primitive == "sign"))


def _place_of(node: Node) -> str:
    return str(node.source or node.name)
