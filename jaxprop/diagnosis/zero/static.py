"""Findings on gradients cut off in the program itself. Nothing is run: shapes are enough."""

import functools
from collections.abc import Sequence

from ..._text import sentence
from ...core.graph import Graph, Node, Value
from ..report import Finding, at
from .reachability import Cut, Lost, last_cuts, lost_leaves, partial_cuts
from .wording import Words, words_of_cut, words_of_unused


@functools.lru_cache(maxsize=16)
def static_findings(
    graph: Graph, leaves: tuple[Value, ...], sinks: tuple[Value, ...], partial: bool = False
) -> tuple[Finding, ...]:
    """Say of every leaf that no cotangent can reach where the way to the result is cut.

    Args:
        graph: the program.
        leaves: the values differentiated.
        sinks: the values whose derivative is asked for: the results without the auxiliary ones.
        partial: whether to note the cuts on one way of leaves that get a gradient by another way.
    """
    lost = lost_leaves(graph, leaves, sinks)
    everything = bool(leaves) and len(lost) == len(leaves)
    found = [_finding(graph, group, everything) for group in _groups(graph, lost)]
    if partial:
        found += [_note(graph, cut, some) for cut, some in _one_a_line(partial_cuts(graph, leaves, sinks))]
    return tuple(found)


def _groups(graph: Graph, lost: Sequence[Lost]) -> list[list[Lost]]:
    """Leaves that die at the same cuts, together."""
    groups: dict[object, list[Lost]] = {}
    for one in lost:
        last = last_cuts(graph, one.cuts)
        key = tuple(cut.node.index for cut in last) or (one.aux, tuple(node.index for node in one.readers))
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _finding(graph: Graph, group: Sequence[Lost], everything: bool) -> Finding:
    names = tuple(one.leaf.name for one in group)
    first = group[0]
    cuts = last_cuts(graph, first.cuts)
    cut = _most_telling(cuts, graph) if cuts else None
    node = cut.node if cut is not None else next(iter(first.readers), None)
    words = words_of_cut(cut, graph) if cut is not None else words_of_unused(first)
    others = [other for other in _places(cuts) if cut is None or other != _place(cut.node)]
    also = f" Other ways are cut as well, at {', '.join(others)}." if others else ""
    return Finding(
        kind="blocked",
        severity="error" if everything else "note" if words.cause == "never used" else "warning",
        message=f"{_gets(names)} no gradient: {_said(cut, words)}.",
        **(at(graph, node) if node is not None else {}),
        cause=words.cause,
        why=sentence(words.why) + also,
        fix=sentence(words.fix),
        leaves=names,
    )


def _note(graph: Graph, cut: Cut, leaves: Sequence[Value]) -> Finding:
    words = words_of_cut(cut, graph)
    names = tuple(leaf.name for leaf in leaves)
    return Finding(
        kind="blocked in part",
        severity="note",
        message=f"{_gets(names)} a gradient, but none by way of {text_of(cut.node)}.",
        **at(graph, cut.node),
        cause=words.cause,
        why=sentence(words.why),
        fix=sentence(words.fix),
        leaves=names,
    )


def _one_a_line(cuts: Sequence[tuple[Cut, list[Value]]]) -> list[tuple[Cut, list[Value]]]:
    found: dict[str, tuple[Cut, list[Value]]] = {}
    for cut, leaves in cuts:
        found.setdefault(_place(cut.node), (cut, leaves))
    return list(found.values())


def _most_telling(cuts: Sequence[Cut], graph: Graph) -> Cut:
    """The first cut, but of several on one line the one that has the clearest words."""
    line = [cut for cut in cuts if _place(cut.node) == _place(cuts[0].node)]
    dull = ("comparison", "integer", "no derivative")
    return min(line, key=lambda cut: (words_of_cut(cut, graph).cause in dull, cut.node.primitive == "sign"))


def _said(cut: Cut | None, words: Words) -> str:
    if cut is None:
        return {
            "only in aux": "used for the auxiliary output only",
            "never used": "never used",
            "thrown away": "what is made from it is thrown away",
        }[words.cause]
    return f"{text_of(cut.node)} cuts it off ({words.cause})"


def text_of(node: Node) -> str:
    """The expression of a node where it is short, else its name; in quotes."""
    text = " ".join(node.label.split())
    return f"`{text}`" if text and len(text) <= 60 else f"`{node.name}`"


def subject(names: Sequence[str]) -> str:
    """Leaves, as the subject of a sentence."""
    if len(names) <= 3:
        return " and ".join(f"`{name}`" for name in names)
    return f"`{names[0]}` and {len(names) - 1} other leaves"


def _gets(names: Sequence[str]) -> str:
    return f"{subject(names)} {'get' if len(names) > 1 else 'gets'}"


def _place(node: Node) -> str:
    return str(node.source or node.name)


def _places(cuts: Sequence[Cut]) -> list[str]:
    return list(dict.fromkeys(_place(cut.node) for cut in cuts))
