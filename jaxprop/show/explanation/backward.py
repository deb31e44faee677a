"""The rows of the local gradients and of the backward pass, in the order of the backward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ... import _jaxpr
from ..._text import listed
from ...core.graph import Node, Value
from ...core.structure import binding
from ...core.types import Array
from ...record.contributions import Shares
from ..symbolic.derive import Statement
from ..symbolic.names import Spelled, latex_cotangent, text_name
from .forward import branch, opening
from .lookup import Consumer, Lookup, is_copy
from .outline import OutlineItem
from .pieces import in_parentheses, product_of, quotient, spelled_name, sum_of, times, words
from .story import StoryRow, distinct_pieces
from .values import Described, describe

#: Contributions are said to cancel if less than this fraction of their size remains.
_CANCELLED = 0.5

# --- local gradients -------------------------------------------------------------------------------------


def local_gradients(
    lookup: Lookup, items: Sequence[OutlineItem], shown: Callable[[Value], bool]
) -> Iterator[StoryRow]:
    """The local gradients of all nodes."""
    for item in reversed(items):
        for number, body in reversed(item.body):
            if branch(lookup, item, number)[1]:
                yield from local_gradients(lookup, body, shown)
        node = item.node
        if item.value is None or item.is_gap or not _has_gradients(node):
            continue
        if item.value.id != next((v.id for v in node.outputs if v.name in lookup.recorded), None):
            continue  # shown with another output of the node
        statement = lookup.statements.of(node)
        for wrt in statement.inputs:
            if wrt.active and shown(lookup.original(wrt)):
                row = _local_row(lookup, statement, wrt, item.depth)
                if row is not None:
                    yield row


def _has_gradients(node: Node) -> bool:
    return node.eqn is not None and not node.opened and node.active and not is_copy(node)


def _local_row(lookup: Lookup, statement: Statement, wrt: Value, depth: int) -> StoryRow | None:
    node = statement.nodes[-1]
    found = lookup.formulas.of(statement, wrt)
    if found is None:
        return None
    left, right = Spelled(found.left, found.latex.partition(" = ")[0]), _right_side(found.right, found.latex)
    row = _Row("local", lookup, node, depth)
    form, fraction = found.data["form"], quotient(lookup.called(node.outputs[0]), lookup.called(wrt))
    if node.index in lookup.tape.ruled:
        return row.made(fraction, (words("replaced by a rule"),))
    if form != "local":  # `dx = ...` is one contribution of several if `x` has other consumers
        notes = [found.kind] if len(statement.nodes) == 1 else []
        if len(lookup.consumers(lookup.original(wrt))) > 1:
            notes.append(f"through {text_name(lookup.called(statement.outputs[0]))}")
        d_wrt = Spelled(found.left, latex_cotangent(lookup.called(wrt)))
        return row.made(d_wrt, (right if form == "vjp" else words(found.right),), note=", ".join(notes))
    slope, numbers = lookup.slope(statement, wrt), lookup.numbers(statement)
    with_numbers = lookup.formulas.factor(statement, wrt, numbers) if numbers else None
    pieces = [left, right, with_numbers]
    note = "elementwise" if wrt.shape and not slope.text else ""
    if lookup.has_other_paths(statement, wrt):  # `dloss/da` is the sum over all paths
        note = "through this statement alone" if left.text == fraction.text else note
        fraction = left
    if left.text == fraction.text:
        pieces = pieces[1:]
    return row.made(fraction, distinct_pieces(pieces, slope.text), slope, note)


def _right_side(text: str, latex: str) -> Spelled:
    return Spelled(text, latex.partition(" = ")[2])


class _Row(NamedTuple):
    """What all rows of one operation have in common."""

    kind: str
    lookup: Lookup
    node: Node
    depth: int

    def made(
        self,
        symbol: Spelled,
        formulas: tuple[Spelled, ...] = (),
        value: Described | None = None,
        note: str = "",
        name: str | None = None,
    ) -> StoryRow:
        text, data = (value.text, value.data) if value is not None else ("", None)
        node, name = self.node, self.node.name if name is None else name
        source = str(node.source or "")
        return StoryRow(
            self.kind, symbol, formulas, text, data, name, source, node.label, note, depth=self.depth
        )


# --- the backward pass -----------------------------------------------------------------------------------


def backward(lookup: Lookup, items: Sequence[OutlineItem]) -> Iterator[StoryRow]:
    for item in reversed(items):
        if item.value is None:
            yield from _body_rows(lookup, item)
        elif item.is_gap:
            yield StoryRow("note", note=f"... {item.count:,} more cotangents", depth=item.depth)
        elif item.value.active:
            yield from cotangent_rows(lookup, item.node, item.value, item.depth, item.count > 1)


def _body_rows(lookup: Lookup, item: OutlineItem) -> Iterator[StoryRow]:
    scan = isinstance(_jaxpr.opened_form(item.node.eqn), _jaxpr.Scan)
    yield opening(item, "the steps of the loop in reverse" if scan else "")
    for number, body in reversed(item.body):
        note, taken = branch(lookup, item, number)
        yield from note
        if taken:
            yield from backward(lookup, body)


def cotangent_rows(
    lookup: Lookup, node: Node, value: Value, depth: int, folded: bool = False
) -> Iterator[StoryRow]:
    """The cotangent of a value, and the contributions it is the sum of."""
    cotangent, symbol = lookup.cotangent(value, node), lookup.d(value)
    row = _Row("cotangent", lookup, node, depth)
    consumers, seeded = lookup.consumers(value), _is_seeded(lookup, value)
    leaving = _contributions_of_next_step_or_result(lookup, node, value)
    count = len(consumers) + len(leaving) + seeded
    if not cotangent.text and value.name in lookup.recorded:
        yield row.made(symbol, note="no cotangent: it is zero", name=value.name)
    elif count == 1 and seeded:
        yield row._replace(kind="seed").made(symbol, (), cotangent, "seed", value.name)
    elif count == 1 and consumers:
        formulas = distinct_pieces(_contribution(lookup, consumers[0]), cotangent.text)
        yield row.made(symbol, formulas, cotangent, name=value.name)
    elif count == 1:
        yield row.made(symbol, (leaving[0],), cotangent, name=value.name)
    elif count:
        yield from _fan_out(row, value, consumers, count, cotangent, folded)
    else:
        yield row.made(symbol, (), cotangent, name=value.name)


def _is_seeded(lookup: Lookup, value: Value) -> bool:
    outputs = zip(lookup.tape.graph.outputs, lookup.tape.seed, strict=False)
    return any(output.id == value.id and seed is not None for output, seed in outputs)


def _contributions_of_next_step_or_result(lookup: Lookup, node: Node, value: Value) -> list[Spelled]:
    """The contributions to a value that is an output of the body it is in."""
    parents = lookup.tape.graph.places[node.index].parents
    if not parents:
        return []
    parent, number = parents[-1]
    found, form = [], _jaxpr.opened_form(parent.eqn)
    for position, (inner, outer) in enumerate(binding(parent, parent.graphs[number]).out_of):
        if lookup.original(inner).id != value.id and inner.id != value.id:
            continue
        if isinstance(form, _jaxpr.Scan) and position < form.num_carry:
            found.append(words("the cotangent of the next step's carry"))
        elif outer.active:
            d = lookup.d(outer)
            per_step = Spelled(f"{d.text}, one slice per step", rf"{d.latex}\text{{, one slice per step}}")
            found.append(per_step if isinstance(form, _jaxpr.Scan) else d)
    return found


def _contribution(lookup: Lookup, consumer: Consumer) -> Iterator[Spelled | None]:
    """What one consumer contributes to the cotangent of a value, as formulas."""
    node, value, statement = consumer.node, consumer.read, consumer.statement
    if node.index in lookup.tape.ruled:
        yield words(f"from the rule given for {text_name(lookup.called(node.outputs[0]))}")
        return
    if node.opened:
        over = ", summed over its steps" if isinstance(_jaxpr.opened_form(node.eqn), _jaxpr.Scan) else ""
        outputs = ", ".join(text_name(v.name) for v in node.outputs if v.name)
        yield words(f"from the body of {outputs}{over}")
        return
    factor = lookup.formulas.factor(statement, value)
    ct = lookup.d(consumer.out)
    is_loss = consumer.out.name == lookup.loss and lookup.cotangent(consumer.out, node).number == 1
    if factor is None or len(node.outputs) != 1:
        found = lookup.formulas.of(statement, value, seed=is_loss)
        if found is not None:
            exact = found.data["form"] == "vjp"
            yield _right_side(found.right, found.latex) if exact else words(found.right)
        return
    if is_loss:  # `dloss/dloss * dloss/ds` says nothing
        numbers = lookup.numbers(statement)
        yield factor
        yield lookup.formulas.factor(statement, value, numbers) if numbers else None
    elif value.shape != ():
        yield ct if factor.text == "1" else times(ct, in_parentheses(factor))
    else:
        yield times(ct, quotient(lookup.called(consumer.out), lookup.called(value)))
        incoming, slope = lookup.cotangent(consumer.out, node).number, lookup.slope(statement, value).number
        yield None if incoming is None or slope is None else product_of([incoming, slope])


# --- fan-out -----------------------------------------------------------------------------------------


def _fan_out(
    row: _Row, value: Value, consumers: Sequence[Consumer], count: int, cotangent: Described, folded: bool
) -> Iterator[StoryRow]:
    """A cotangent that is a sum, then its contributions."""
    lookup, symbol, depth = row.lookup, row.lookup.d(value), row.depth + 1
    contributions = None if folded else _shares(lookup, value)
    if contributions is None:
        unknown = (
            "" if lookup.tape.is_full else "; their contributions are unknown: only statistics were recorded"
        )
        names = [text_name(lookup.called(consumer.out)) for consumer in consumers]
        note = f"consumed by {listed(names, 4)}{unknown}"
        yield row.made(symbol, (words(f"the sum of {count} contributions"),), cotangent, note, value.name)
        return
    by_name = {name: consumer for consumer in consumers for name in consumer.through[:1]}
    contributions = _by_statement(contributions, consumers)
    parts = {
        name: describe(share, lookup.steps(row.node), lookup.brief) for name, share in contributions.items()
    }
    if len(parts) == 1:  # the others contribute nothing
        (name,) = parts
        consumer = by_name.get(name)
        formulas = _contribution(lookup, consumer) if consumer else (_through(lookup, name, None),)
        yield row.made(symbol, distinct_pieces(formulas, cotangent.text), cotangent, name=value.name)
        return
    said = words(f"the sum of {len(parts)} contributions")
    numbers = [part.number for part in parts.values() if part.number is not None]
    total = sum_of(numbers) if len(numbers) == len(parts) else None
    yield row.made(symbol, distinct_pieces([said, total], cotangent.text), cotangent, name=value.name)
    for name, part in parts.items():
        consumer = by_name.get(name)
        formulas = distinct_pieces(_contribution(lookup, consumer) if consumer else (), part.text)
        symbol = _through(lookup, name, consumer)
        yield StoryRow("share", symbol, formulas, part.text, part.data, name, depth=depth)
    remaining = _remaining(contributions)
    if remaining < _CANCELLED:
        note = f"the contributions cancel: {100 * remaining:.2g} % of their size remains"
        yield StoryRow("sum", note=note, depth=depth)


def _shares(lookup: Lookup, value: Value) -> Shares | None:
    if not lookup.tape.is_full:
        return None
    try:
        return lookup.tape.shares(value.name)
    except (ValueError, KeyError):
        return None


def _by_statement(shares: Mapping[str, Array], consumers: Sequence[Consumer]) -> dict[str, Array]:
    """Contributions of operations, added up by statement under the name of the first of them."""
    first = {name: consumer.through[0] for consumer in consumers for name in consumer.through}
    found: dict[str, Array] = {}
    for name, share in shares.items():
        key = first.get(name, name)
        found[key] = found[key] + share if key in found else share
    return found


def _through(lookup: Lookup, name: str, consumer: Consumer | None) -> Spelled:
    if consumer is None:  # the next step, or the result
        return words(f"through the {name}")
    spelled = spelled_name(lookup.called(consumer.out))
    return Spelled(f"through {spelled.text}", rf"\text{{through }} {spelled.latex}")


def _remaining(shares: Mapping[str, object]) -> float:
    """How much remains of contributions after they are added, element by element: 1 if nothing cancels."""
    parts = list(shares.values())
    if any(map(_jaxpr.is_tracer, parts)):
        return 1.0
    arrays = [np.asarray(part) for part in parts]
    kind = np.complex128 if any(map(np.iscomplexobj, arrays)) else np.float64
    arrays = [array.astype(kind) for array in arrays]
    size = sum(float(np.abs(array).sum()) for array in arrays)
    total = float(np.abs(sum(arrays)).sum())
    return total / size if np.isfinite(size) and size > 0 else 1.0
