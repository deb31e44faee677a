"""Tells the local gradients and the backward pass, in the order of the way back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ... import _jaxpr
from ...core.graph import Node, Value
from ...core.structure import joints
from ...record.contributions import Shares
from ..symbolic.derive import distinct
from ..symbolic.formula import Formula, formulas_of, spelled_factor
from ..symbolic.names import latex_cotangent, text_name
from ..symbolic.notation import Spelled
from .forward import branch, opening
from .lookup import Known, Reader, is_same
from .outline import Item
from .pieces import closed, name_of, product_of, quotient, sum_of, times, words
from .story import Row, distinct_pieces
from .values import describe

# --- local gradients -------------------------------------------------------------------------------------


def local_gradients(known: Known, items: Sequence[Item], shown: Callable[[Value], bool]) -> Iterator[Row]:
    """The local gradients of all nodes, in the order of the way back."""
    for item in reversed(items):
        for number, body in reversed(item.body):
            if branch(known, item, number)[1]:
                yield from local_gradients(known, body, shown)
        node = item.node
        if item.value is None or item.key == "..." or not _has_gradients(node):
            continue
        if item.value.id != next((v.id for v in node.outputs if v.name in known.held), None):
            continue  # said with another output
        for wrt in distinct(node.operands):
            if wrt.active and shown(known.root(wrt)):
                yield from _local(known, item, wrt)


def _has_gradients(node: Node) -> bool:
    return node.eqn is not None and not node.opened and node.active and not is_same(node)


def _local(known: Known, item: Item, wrt: Value) -> Iterator[Row]:
    node = item.node
    found = _formula(known, node, wrt)
    if found is None:
        return
    base: dict[str, Any] = {
        "kind": "local",
        "name": node.name,
        "source": str(node.source or ""),
        "code": node.label,
        "depth": item.depth,
    }
    fraction = quotient(known.called(node.outputs[0]), known.called(wrt))
    left, _, right = found.latex.partition(" = ")
    form = found.data["form"]
    if node.index in known.tape.ruled:
        yield Row(symbol=fraction, formulas=(words("a rule was given in its place"),), **base)
    elif form == "vjp":
        yield Row(
            symbol=Spelled(found.left, left), formulas=(Spelled(found.right, right),), note=found.kind, **base
        )
    elif form == "map":
        symbol = Spelled(found.left, latex_cotangent(known.called(wrt)))
        yield Row(symbol=symbol, formulas=(words(found.right),), note=found.kind, **base)
    else:
        slope, numbers = known.slope(node, wrt), known.numbers(node)
        with_numbers = spelled_factor(node, wrt, numbers, known.called) if numbers else None
        parts = [Spelled(found.left, left), Spelled(found.right, right), with_numbers]
        if known.by_other_ways(node, wrt):  # `dloss/da` is said of all ways together
            fraction = parts.pop(0)
        elif parts[0].text == fraction.text:  # type: ignore[union-attr]
            parts.pop(0)
        note = "" if slope.text else "number by number" if wrt.shape else ""
        formulas = distinct_pieces(parts, slope.text)
        yield Row(symbol=fraction, formulas=formulas, value=slope.text, data=slope.data, note=note, **base)


def _formula(known: Known, node: Node, wrt: Value) -> Formula | None:
    pairs = zip(formulas_of(node, known.called), node.operands, strict=True)
    return next(formula for formula, value in pairs if value.id == wrt.id)


# --- the backward pass -----------------------------------------------------------------------------------


def backward(known: Known, items: Sequence[Item]) -> Iterator[Row]:
    for item in reversed(items):
        if item.value is None:
            yield from _body(known, item)
        elif item.key == "...":
            yield Row("note", note=f"... {item.count:,} more cotangents", depth=item.depth)
        elif item.value.active:
            yield from came(known, item.node, item.value, item.depth, item.count > 1)


def _body(known: Known, item: Item) -> Iterator[Row]:
    scan = isinstance(_jaxpr.opened_form(item.node.eqn), _jaxpr.Scan)
    yield opening(item, "back through the loop, step by step from its other end" if scan else "")
    for number, body in reversed(item.body):
        note, taken = branch(known, item, number)
        yield from note
        if taken:
            yield from backward(known, body)


def came(known: Known, node: Node, value: Value, depth: int, folded: bool = False) -> Iterator[Row]:
    """What comes to a value on the way back, and from whom."""
    found = known.cotangent(value, node)
    base: dict[str, Any] = {
        "symbol": known.d(value),
        "value": found.text,
        "data": found.data,
        "name": value.name,
        "source": str(node.source or ""),
        "code": node.label,
        "depth": depth,
    }
    readers, out, seeded = known.readers(value), _leaves(known, node, value), _is_seeded(known, value)
    count = len(readers) + len(out) + seeded
    if not found.text and value.name in known.held:
        yield Row("cotangent", note="no cotangent comes", **base)
    elif count == 1 and seeded:
        yield Row("seed", note="to begin with", **base)
    elif count == 1 and readers:
        yield Row("cotangent", formulas=distinct_pieces(share(known, readers[0]), found.text), **base)
    elif count == 1:
        yield Row("cotangent", formulas=(out[0],), **base)
    elif count:
        yield from _fan_out(known, node, value, readers, count, base, folded)
    else:
        yield Row("cotangent", **base)


def _is_seeded(known: Known, value: Value) -> bool:
    outputs = zip(known.tape.graph.outputs, known.tape.seed, strict=False)
    return any(output.id == value.id and seed is not None for output, seed in outputs)


def _leaves(known: Known, node: Node, value: Value) -> list[Spelled]:
    """What comes to a value as a result of the body it stands in."""
    parents = known.tape.graph.places[node.index].parents
    if not parents:
        return []
    parent, number = parents[-1]
    found, form = [], _jaxpr.opened_form(parent.eqn)
    for position, (inner, outer) in enumerate(joints(parent, parent.graphs[number]).out_of):
        if known.root(inner).id != value.id and inner.id != value.id:
            continue
        if isinstance(form, _jaxpr.Scan) and position < form.num_carry:
            found.append(words("what comes to the carry of the next step"))
        elif outer.active:
            d = known.d(outer)
            step = isinstance(form, _jaxpr.Scan)
            found.append(
                Spelled(f"{d.text}, of each step", rf"{d.latex}\text{{, of each step}}") if step else d
            )
    return found


def share(known: Known, reader: Reader) -> Iterator[Spelled | None]:
    """What one reader sends back to a value, as formulas."""
    node, value = reader.node, reader.read
    if node.index in known.tape.ruled:
        yield words(f"by the rule given for {text_name(known.called(node.outputs[0]))}")
        return
    if node.opened:
        over = ", summed over its steps" if isinstance(_jaxpr.opened_form(node.eqn), _jaxpr.Scan) else ""
        made = ", ".join(text_name(v.name) for v in node.outputs if v.name)
        yield words(f"out of the body of {made}{over}")
        return
    factor = spelled_factor(node, value, None, known.called)
    if factor is None or len(node.outputs) != 1:
        found = _formula(known, node, value)
        if found is not None:
            exact = found.data["form"] == "vjp"
            yield Spelled(found.right, found.latex.partition(" = ")[2]) if exact else words(found.right)
        return
    ct = known.d(node.outputs[0])
    if value.shape != ():
        yield ct if factor.text == "1" else times(ct, closed(factor))
        return
    yield from _scalar_share(known, node, value, factor, ct)


def _scalar_share(
    known: Known, node: Node, value: Value, factor: Spelled, ct: Spelled
) -> Iterator[Spelled | None]:
    if node.outputs[0].name == known.loss:  # `dloss/dloss * dloss/ds` says nothing
        numbers = known.numbers(node)
        yield factor
        yield spelled_factor(node, value, numbers, known.called) if numbers else None
        return
    yield times(ct, quotient(known.called(node.outputs[0]), known.called(value)))
    came_in = known.cotangent(node.outputs[0], node).number
    slope = known.slope(node, value).number
    yield None if came_in is None or slope is None else product_of([came_in, slope])


def _fan_out(
    known: Known,
    node: Node,
    value: Value,
    readers: Sequence[Reader],
    count: int,
    base: Mapping[str, Any],
    folded: bool,
) -> Iterator[Row]:
    shares = None if folded else _shares(known, value)
    said = words(f"the sum of {count if shares is None else len(shares)} shares")
    if shares is None:
        note = "" if known.tape.is_full else "; only statistics were recorded, so its shares are not known"
        yield Row("cotangent", formulas=(said,), note=f"read by {_listed(known, readers)}{note}", **base)
        return
    parts = [describe(part, known.steps(node), known.brief) for part in shares.values()]
    numbers = [part.number for part in parts]
    numeric = sum_of(numbers) if all(number is not None for number in numbers) else None
    depth = base["depth"] + 1
    by_name = {reader.through.name or reader.through.primitive: reader for reader in readers}
    if len(shares) == 1:  # from the others nothing comes
        reader = by_name.get(next(iter(shares)))
        how = share(known, reader) if reader else (_through(known, next(iter(shares)), None),)
        yield Row("cotangent", formulas=distinct_pieces(how, base["value"]), **base)
        return
    yield Row("cotangent", formulas=distinct_pieces([said, numeric], base["value"]), **base)
    for (name, _), part in zip(shares.items(), parts, strict=True):
        reader = by_name.get(name)
        how = distinct_pieces(share(known, reader) if reader else (), part.text)
        yield Row("share", _through(known, name, reader), how, part.text, part.data, name, depth=depth)
    yield from _cancelling(shares, depth)


def _shares(known: Known, value: Value) -> Shares | None:
    if not known.tape.is_full:
        return None
    try:
        return known.tape.shares(value.name)
    except (ValueError, KeyError):
        return None


def _through(known: Known, name: str, reader: Reader | None) -> Spelled:
    if reader is None:  # the next step, or the result
        return words(f"through the {name}")
    spelled = name_of(known.called(reader.node.outputs[0]))
    return Spelled(f"through {spelled.text}", rf"\text{{through }} {spelled.latex}")


def _listed(known: Known, readers: Sequence[Reader]) -> str:
    names = [text_name(known.called(reader.node.outputs[0])) for reader in readers]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _cancelling(shares: Shares, depth: int) -> Iterator[Row]:
    """How far the shares cancel, where they do."""
    left = np.asarray(shares.cancellation)
    if left.size and np.all(np.isfinite(left)) and float(np.min(left)) < 0.995:
        where = "" if left.ndim == 0 else " at the worst step"
        percent = f"{100 * float(np.min(left)):.2g}"
        yield Row("sum", note=f"the shares cancel: {percent} % of their size is left{where}", depth=depth)
