"""Questions about a tape: what they ask, what is right, and which mistakes people make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ...core.graph import Node, Value
from ..symbolic.derive import distinct
from ..symbolic.formula import formulas_of, spelled_factor, spelled_operation
from ..symbolic.names import text_cotangent, text_name
from ..symbolic.notation import spell
from .lookup import Known, Reader, is_same
from .pieces import product_of, quotient, sum_of
from .values import describe


@dataclass(frozen=True)
class Mistake:
    """A wrong answer people give, and what to say to it."""

    answer: Any
    said: str


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: `value`, `local gradient`, `cotangent` or `shape`.
        name: the value it is about.
        text: the question.
        expected: the right answer: a number, or a shape.
        solution: how it is worked out.
        hint: the formula, without the result.
        mistakes: wrong answers that say what was mixed up.
        names: what may stand in an answer under its name.
    """

    kind: str
    name: str
    text: str
    expected: Any
    solution: str
    hint: str
    mistakes: tuple[Mistake, ...]
    names: tuple[tuple[str, float], ...] = ()


def questions(known: Known) -> Iterator[Question]:
    """All that can be asked of a tape, in the order of the three acts."""
    nodes = [n for n in known.tape.graph.equations() if n.active and not n.opened and not is_same(n)]
    nodes = [node for node in nodes if len(node.outputs) == 1 and node.name in known.held]
    nodes = [node for node in nodes if _asks_real(node)]
    for node in nodes:
        yield from _of_value(known, node)
    for node in reversed(nodes):
        yield from _of_locals(known, node)
    seen: set[int] = set()
    for node in reversed(nodes):
        for value in distinct(node.operands):
            if value.active and value.id not in seen:
                seen.add(value.id)
                yield from _of_cotangent(known, value)


def _asks_real(node: Node) -> bool:
    """An answer is one real number."""
    return not any(
        jnp.issubdtype(value.dtype, jnp.complexfloating) for value in (*node.operands, *node.outputs)
    )


def _called(known: Known, node: Node) -> list[tuple[str, float]]:
    numbers = known.numbers(node) or {}
    return [
        (text_name(known.called(v)), float(numbers[v.id])) for v in distinct(node.operands) if v.id in numbers
    ]


def _with(names: Sequence[tuple[str, float]]) -> str:
    return " and ".join(f"{name} = {spell(value)}" for name, value in names)


def _is_real(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


# --- values --------------------------------------------------------------------------------------------


def _of_value(known: Known, node: Node) -> Iterator[Question]:
    value = node.outputs[0]
    right: Any = known.value(value, node).number
    numbers = known.numbers(node)
    operation = spelled_operation(node, None, known.called)
    if not _is_real(right) or not numbers or operation is None:
        return
    filled = spelled_operation(node, numbers, known.called)
    name, names = text_name(value.name), _called(known, node)
    mistakes = [Mistake(-right, "the sign is the wrong way round.")]
    mistakes += [Mistake(number, f"that is {other} itself, before the operation.") for other, number in names]
    yield Question(
        kind="value",
        name=value.name,
        text=f"Forward pass. {name} = {operation.text}, with {_with(names)}. What is {name}?",
        expected=right,
        solution=f"{name} = {operation.text} = {filled.text if filled else ''} = {spell(right)}",
        hint=f"{name} = {filled.text if filled else operation.text}",
        mistakes=tuple(mistakes),
        names=tuple(names),
    )


# --- local gradients -----------------------------------------------------------------------------------


def _of_locals(known: Known, node: Node) -> Iterator[Question]:
    operation = spelled_operation(node, None, known.called)
    if operation is None:
        return
    name = text_name(node.name)
    operands = [v for v in distinct(node.operands) if v.active]
    slopes = {v.id: known.slope(node, v).number for v in operands}
    names = _called(known, node)
    for wrt in operands:
        right = slopes[wrt.id]
        factor = spelled_factor(node, wrt, None, known.called)
        if factor is None:
            yield from _of_shape(known, node, wrt)
        elif _is_real(right) and names:
            fraction = quotient(node.name, known.called(wrt)).text
            numbers = known.numbers(node)
            filled = spelled_factor(node, wrt, numbers, known.called) if numbers else None
            steps = [factor.text, filled.text if filled else "", spell(right)]
            solution = f"{fraction} = {' = '.join(dict.fromkeys(step for step in steps if step))}"
            text = f"Local gradient. {name} = {operation.text}, with {_with(names)}. What is {fraction}"
            text += ", by this operation alone?" if known.by_other_ways(node, wrt) else "?"
            mistakes = tuple(_local_mistakes(known, node, wrt, slopes))
            yield Question(
                "local gradient",
                node.name,
                text,
                right,
                solution,
                f"{fraction} = {factor.text}",
                mistakes,
                tuple(names),
            )


def _local_mistakes(known: Known, node: Node, wrt: Value, slopes: dict[int, Any]) -> Iterator[Mistake]:
    right = slopes[wrt.id]
    yield Mistake(-right, "the sign is the wrong way round.")
    for other in distinct(node.operands):
        if other.id != wrt.id and _is_real(slopes.get(other.id)):
            said = quotient(node.name, known.called(other)).text
            yield Mistake(slopes[other.id], f"that is {said}, by the other operand.")
    ct = known.cotangent(node.outputs[0], node).number
    if _is_real(ct):
        whole = known.d(wrt).text
        yield Mistake(right * ct, f"that is multiplied with what comes back already: it belongs to {whole}.")
    value = known.value(node.outputs[0], node).number
    if _is_real(value):
        yield Mistake(value, f"that is the value of {text_name(node.name)}, not how fast it changes.")
    if right:
        yield Mistake(1 / right, "it is upside down.")


def _of_shape(known: Known, node: Node, wrt: Value) -> Iterator[Question]:
    formula = next(
        f for f, v in zip(formulas_of(node, known.called), node.operands, strict=True) if v.id == wrt.id
    )
    if formula is None or formula.data["form"] != "vjp" or not wrt.shape:
        return
    name, out = text_name(known.called(wrt)), node.outputs[0]
    d_of, d_wrt = text_cotangent(out.name), text_cotangent(known.called(wrt))
    shapes = {text_name(known.called(v)): v.shape for v in (*distinct(node.operands), out)}
    told = ", ".join(f"{other} {_spelled(shape)}" for other, shape in shapes.items() if other != name)
    mistakes = [Mistake(out.shape, f"that is the shape of {d_of}; a cotangent has the shape of its own value.")]
    if len(wrt.shape) > 1:
        mistakes.append(Mistake(wrt.shape[::-1], "that is the shape of its transpose."))
    yield Question(
        kind="shape",
        name=wrt.name,
        text=f"Shapes. {formula.text}, with {told}. What is the shape of {d_wrt}?",
        expected=wrt.shape,
        solution=f"{d_wrt} has the shape of {name}: {_spelled(wrt.shape)}",
        hint=f"{d_wrt} has the shape of {name}",
        mistakes=tuple(m for m in mistakes if m.answer != wrt.shape),
    )


def _spelled(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


# --- cotangents ----------------------------------------------------------------------------------------


def _of_cotangent(known: Known, value: Value) -> Iterator[Question]:
    node = known.maker(value)
    right: Any = known.cotangent(value, node).number
    readers = known.readers(value)
    if not _is_real(right) or not readers or any(reader.node.opened for reader in readers):
        return
    if len(readers) == 1 and readers[0].node.name == known.loss:
        return  # its local gradient is the answer
    parts = [_part(known, reader) for reader in readers]
    if any(part is None for part in parts) or any(r.node.index in known.tape.ruled for r in readers):
        return
    shares = [ct * slope for ct, slope in parts]  # type: ignore[misc]
    if abs(sum(shares) - right) > 1e-3 * max(abs(right), *map(abs, shares)):
        return  # something comes another way: a seed, a loop
    d, names = known.d(value).text, _names_of_parts(known, readers, parts)
    yield Question(
        kind="cotangent",
        name=value.name,
        text=f"Backward pass. {_told(known, readers, parts)} What is {d}?",
        expected=right,
        solution=f"{d} = {_worked(known, readers, parts, shares)} = {spell(right)}",
        hint=f"{d} = " + " + ".join(_product(known, reader) for reader in readers),
        mistakes=tuple(_cotangent_mistakes(known, readers, parts, shares, right)),
        names=names,
    )


def _part(known: Known, reader: Reader) -> tuple[float, float] | None:
    if len(reader.node.outputs) != 1:
        return None
    ct = known.cotangent(reader.node.outputs[0], reader.node).number
    slope = known.slope(reader.node, reader.read).number
    return (ct, slope) if _is_real(ct) and _is_real(slope) else None  # type: ignore[return-value]


def _product(known: Known, reader: Reader) -> str:
    out = reader.node.outputs[0]
    return f"{known.d(out).text} * {quotient(out.name, known.called(reader.read)).text}"


def _names_of_parts(
    known: Known, readers: Sequence[Reader], parts: Sequence[Any]
) -> tuple[tuple[str, float], ...]:
    found = []
    for reader, (ct, slope) in zip(readers, parts, strict=True):
        out = reader.node.outputs[0]
        found += [(known.d(out).text, ct), (quotient(out.name, known.called(reader.read)).text, slope)]
    return tuple(found)


def _told(known: Known, readers: Sequence[Reader], parts: Sequence[Any]) -> str:
    said = []
    for reader, (ct, slope) in zip(readers, parts, strict=True):
        out = reader.node.outputs[0]
        came = f"{known.d(out).text} = {spell(ct)}"
        local = f"{quotient(out.name, known.called(reader.read)).text} = {spell(slope)}"
        by = ", by the operation alone" if out.name == known.loss and len(readers) > 1 else ""
        said.append(f"{came} and {local}{by}")
    read = (
        f"{text_name(known.called(readers[0].read))} is read {len(readers)} times. " if len(readers) > 1 else ""
    )
    return f"{read}{'; '.join(said)}."


def _worked(known: Known, readers: Sequence[Reader], parts: Sequence[Any], shares: Sequence[float]) -> str:
    symbols = " + ".join(_product(known, reader) for reader in readers)
    numbers = " + ".join(product_of(part).text for part in parts)
    return f"{symbols} = {numbers}" + (f" = {sum_of(shares).text}" if len(shares) > 1 else "")


def _cotangent_mistakes(
    known: Known, readers: Sequence[Reader], parts: Sequence[Any], shares: Sequence[float], right: float
) -> Iterator[Mistake]:
    yield Mistake(-right, "the sign is the wrong way round.")
    if len(readers) > 1:
        for i, (reader, own) in enumerate(zip(readers, shares, strict=True)):
            name = text_name(reader.node.outputs[0].name)
            missing = " and ".join(spell(s) for j, s in enumerate(shares) if j != i)
            yield Mistake(
                own, f"that is the share through {name} alone; what comes otherwise, {missing}, is added."
            )
        yield Mistake(float(_prod(shares)), "shares are added, not multiplied.")
    for reader, (ct, slope) in zip(readers, parts, strict=True):
        out = reader.node.outputs[0]
        local, came = quotient(out.name, known.called(reader.read)).text, known.d(out).text
        yield Mistake(slope, f"that is the local gradient {local}; multiply it with what comes back, {came}.")
        yield Mistake(ct, f"that is what comes back, {came}; multiply it with the local gradient {local}.")
        yield Mistake(ct + slope, "along a path local gradients are multiplied, not added.")


def _prod(numbers: Sequence[float]) -> Any:
    found = 1.0
    for number in numbers:
        found *= number
    return describe(found).number
