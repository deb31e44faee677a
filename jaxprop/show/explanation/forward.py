"""Tells the forward pass: each value from those before it."""

from collections.abc import Iterator, Sequence

import numpy as np

from ... import _jaxpr
from ...core.graph import Node, Value
from ...core.structure import joints
from ..symbolic.formula import spelled_operation
from ..symbolic.names import latex_name, text_name
from ..symbolic.notation import Spelled
from .lookup import Known
from .outline import Item
from .pieces import code, name_of, words
from .story import Row, distinct_pieces


def given(known: Known, node: Node, value: Value) -> Row:
    """An argument, or an array closed over."""
    note = "differentiated" if value.active else ""
    found = known.value(value, node)
    return Row("given", name_of(value.name), (), found.text, found.data, value.name, note=note)


def forward(known: Known, items: Sequence[Item]) -> Iterator[Row]:
    for item in items:
        if item.value is None:
            yield opening(item)
            for number, body in item.body:
                note, taken = branch(known, item, number)
                yield from note
                if taken:
                    yield from forward(known, body)
        elif item.key == "...":
            yield Row("note", note=f"... {item.count:,} more values", depth=item.depth)
        else:
            yield _made(known, item, item.value)


def _made(known: Known, item: Item, value: Value) -> Row:
    node, found = item.node, known.value(value, item.node)
    return Row(
        kind="fold" if item.count > 1 else "value",
        symbol=name_of(known.called(value)),
        formulas=distinct_pieces(_operation(known, item, value), found.text),
        value=found.text,
        data=found.data,
        name=value.name,
        source=str(node.source or ""),
        code=node.label,
        note=f"{item.count:,} operations" if item.count > 1 else "",
        depth=item.depth,
    )


def _operation(known: Known, item: Item, value: Value) -> Iterator[Spelled | None]:
    node = item.node
    if item.count > 1:
        yield code(node.label or item.key or node.primitive)
    elif node.eqn is None:
        yield words(_entering(known, node, value))
    elif node.opened:
        yield words(_leaving(known, node, value))
    else:
        operation = spelled_operation(node, None, known.called)
        operands = ", ".join(text_name(known.called(v)) for v in node.operands)
        yield operation or code(node.label or f"{node.primitive}({operands})")
        numbers = known.numbers(node)
        if operation and numbers:
            yield spelled_operation(node, numbers, known.called)


def opening(item: Item, said: str = "") -> Row:
    """The line that begins the body of a loop, a choice, a recomputed piece."""
    node = item.node
    form = _jaxpr.opened_form(node.eqn)
    if said:
        pass
    elif isinstance(form, _jaxpr.Scan):
        said = f"a loop of {form.length} steps{', last one first' if form.reverse else ''}"
    elif isinstance(form, _jaxpr.Cond):
        said = f"a choice of {len(form.branches)} branches"
    else:
        said = "run again on the way back, to save memory"
    names = [value.name for value in node.outputs if value.name]
    symbol = Spelled(", ".join(map(text_name, names)), r",\,".join(map(latex_name, names)))
    source = str(node.source or "")
    return Row("open", symbol, (words(said),), name=node.name, source=source, code=node.label, depth=item.depth)


def branch(known: Known, item: Item, number: int) -> tuple[list[Row], bool]:
    """The line that says which branch of a choice follows; and whether it was ever taken."""
    if not isinstance(_jaxpr.opened_form(item.node.eqn), _jaxpr.Cond):
        return [], True
    note, taken = f"branch {number}", known.branch_taken(item.node, number)
    if taken is None:
        return [Row("note", note=note, depth=item.depth + 1)], True
    times, of = int(np.sum(taken)), int(np.size(taken))
    if of > 1:
        note += f", taken in {times} of {of} steps"
    else:
        note += ", taken" if times else ", not taken"
    return [Row("note", note=note, depth=item.depth + 1)], times > 0


def _entering(known: Known, node: Node, value: Value) -> str:
    """Where an input of a body comes from."""
    parents = known.tape.graph.places[node.index].parents
    if not parents:
        return "an argument"
    parent, number = parents[-1]
    graph = parent.graphs[number]
    pairs = joints(parent, graph).into
    at = next((i for i, (_, inner) in enumerate(pairs) if inner.id == value.id), None)
    if at is None:
        return "closed over"
    outer, form = pairs[at][0], _jaxpr.opened_form(parent.eqn)
    first = outer.name if outer.id < 0 else text_name(known.called(outer))
    if not isinstance(form, _jaxpr.Scan) or at < form.num_consts:
        return first
    if at < form.num_consts + form.num_carry:
        last = graph.outputs[at - form.num_consts]
        return f"{text_name(known.called(last))} of the step before, {first} at first"
    return f"one of {first} for each step"


def _leaving(known: Known, node: Node, value: Value) -> str:
    """What a result of an opened node is, in terms of its body."""
    position = next(i for i, v in enumerate(node.outputs) if v.id == value.id)
    inner = [text_name(known.called(graph.outputs[position])) for graph in node.graphs]
    form = _jaxpr.opened_form(node.eqn)
    if isinstance(form, _jaxpr.Cond):
        taken = [known.branch_taken(node, number) for number in range(len(node.graphs))]
        once = [name for name, t in zip(inner, taken, strict=True) if t is None or np.any(t)]
        return " or ".join(dict.fromkeys(once or inner))
    if not inner:
        return "the result of the body"
    if isinstance(form, _jaxpr.Scan):
        return f"{inner[0]} of the last step" if position < form.num_carry else f"{inner[0]} of all steps"
    return inner[0]
