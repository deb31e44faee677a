"""The rows of the forward pass: each value from the values it is computed from."""

from collections.abc import Iterator, Sequence

import numpy as np

from ... import _jaxpr
from ..._text import type_name
from ...core.graph import Node, Value
from ...core.structure import binding
from ..symbolic.names import Spelled, latex_name, text_name
from .lookup import Lookup
from .outline import OutlineItem
from .pieces import code, spelled_name, words
from .story import StoryRow, distinct_pieces


def given(lookup: Lookup, node: Node, value: Value) -> StoryRow:
    """An argument, or an array closed over."""
    found = lookup.value(value, node)
    note = "differentiated" if value.active else "" if found.text else type_name(value.dtype, value.shape)
    return StoryRow("given", spelled_name(value.name), (), found.text, found.data, value.name, note=note)


def forward(lookup: Lookup, items: Sequence[OutlineItem]) -> Iterator[StoryRow]:
    for item in items:
        if item.value is None:
            yield opening(item)
            for number, body in item.body:
                note, taken = branch(lookup, item, number)
                yield from note
                if taken:
                    yield from forward(lookup, body)
        elif item.is_gap:
            yield StoryRow("note", note=f"... {item.count:,} more values", depth=item.depth)
        else:
            yield _value_row(lookup, item, item.value)


def _value_row(lookup: Lookup, item: OutlineItem, value: Value) -> StoryRow:
    node, found = item.node, lookup.value(value, item.node)
    return StoryRow(
        kind="fold" if item.count > 1 else "value",
        symbol=spelled_name(lookup.called(value)),
        formulas=distinct_pieces(_operation(lookup, item, value), found.text),
        value=found.text,
        data=found.data,
        name=value.name,
        source=str(node.source or ""),
        code=node.label,
        note=f"{item.count:,} operations" if item.count > 1 else "",
        depth=item.depth,
    )


def _operation(lookup: Lookup, item: OutlineItem, value: Value) -> Iterator[Spelled | None]:
    node = item.node
    if item.count > 1:
        yield code(node.label or item.key or node.primitive)
    elif node.eqn is None:
        yield words(_input_of_body(lookup, node, value))
    elif node.opened:
        yield words(_output_of_body(lookup, node, value))
    else:
        statement = lookup.statements.of(node)
        operation = lookup.formulas.operation(statement)
        operands = ", ".join(text_name(lookup.called(v)) for v in node.operands)
        yield operation or code(node.label or f"{node.primitive}({operands})")
        numbers = lookup.numbers(statement)
        if operation and numbers:
            yield lookup.formulas.operation(statement, numbers)


# --- bodies ------------------------------------------------------------------------------------------


def opening(item: OutlineItem, said: str = "") -> StoryRow:
    """The row above the body of a loop, a branch, a recomputed function."""
    node = item.node
    form = _jaxpr.opened_form(node.eqn)
    if said:
        pass
    elif isinstance(form, _jaxpr.Scan):
        said = f"a loop of {form.length} steps{', from last to first' if form.reverse else ''}"
    elif isinstance(form, _jaxpr.Cond):
        said = f"one of {len(form.branches)} branches"
    else:
        said = "recomputed in the backward pass to save memory"
    names = [value.name for value in node.outputs if value.name]
    symbol = Spelled(", ".join(map(text_name, names)), r",\,".join(map(latex_name, names)))
    source = str(node.source or "")
    return StoryRow(
        "open", symbol, (words(said),), name=node.name, source=source, code=node.label, depth=item.depth
    )


def branch(lookup: Lookup, item: OutlineItem, number: int) -> tuple[list[StoryRow], bool]:
    """The row above a branch, and whether the branch was ever taken."""
    if not isinstance(_jaxpr.opened_form(item.node.eqn), _jaxpr.Cond):
        return [], True
    note, taken = f"branch {number}", lookup.branch_taken(item.node, number)
    if taken is None:
        return [StoryRow("note", note=note, depth=item.depth + 1)], True
    times, of = int(np.sum(taken)), int(np.size(taken))
    if of > 1:
        note += f", taken in {times} of {of} steps"
    else:
        note += ", taken" if times else ", not taken"
    return [StoryRow("note", note=note, depth=item.depth + 1)], times > 0


def _input_of_body(lookup: Lookup, node: Node, value: Value) -> str:
    """Where an input of a body comes from."""
    parents = lookup.tape.graph.places[node.index].parents
    if not parents:
        return "an argument"
    parent, number = parents[-1]
    body = parent.graphs[number]
    pairs = binding(parent, body).into
    at = next((i for i, (_, inner) in enumerate(pairs) if inner.id == value.id), None)
    if at is None:
        return "closed over"
    outer, form = pairs[at][0], _jaxpr.opened_form(parent.eqn)
    first = outer.name if outer.id < 0 else text_name(lookup.called(outer))
    if not isinstance(form, _jaxpr.Scan) or at < form.num_consts:
        return first
    if at < form.num_consts + form.num_carry:
        last = body.outputs[at - form.num_consts]
        return f"{text_name(lookup.called(last))} of the previous step, initially {first}"
    return f"one slice of {first} per step"


def _output_of_body(lookup: Lookup, node: Node, value: Value) -> str:
    """What an output of an opened node is, in terms of its body."""
    position = next(i for i, v in enumerate(node.outputs) if v.id == value.id)
    inner = [text_name(lookup.called(body.outputs[position])) for body in node.graphs]
    form = _jaxpr.opened_form(node.eqn)
    if isinstance(form, _jaxpr.Cond):
        taken = [lookup.branch_taken(node, number) for number in range(len(node.graphs))]
        candidates = [name for name, t in zip(inner, taken, strict=True) if t is None or np.any(t)]
        return " or ".join(dict.fromkeys(candidates or inner))
    if not inner:
        return "the result of the body"
    if isinstance(form, _jaxpr.Scan):
        return f"{inner[0]} of the last step" if position < form.num_carry else f"{inner[0]} of every step"
    return inner[0]
