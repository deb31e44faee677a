"""Questions about a tape: what they ask, the right answer, and the mistakes people make."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

from ... import _jaxpr
from ..._text import number as spell
from ...core.graph import Node, Value
from ...core.types import Shape, ValueId
from ..symbolic.derive import Statement
from ..symbolic.names import text_cotangent, text_name
from .lookup import Consumer, Lookup, is_copy
from .pieces import product_of, quotient, sum_of


@dataclass(frozen=True)
class Slip:
    """A wrong answer people give, and what to tell them."""

    answer: float | Shape
    said: str


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: `value`, `local gradient`, `cotangent` or `shape`.
        name: the value it is about.
        text: the question.
        expected: the right answer: a number, or a shape.
        solution: how the answer is worked out.
        hint: the formula, without the result.
        mistakes: wrong answers that reveal what was mixed up.
        names: the names an answer may use, and their values.
    """

    kind: str
    name: str
    text: str
    expected: float | Shape
    solution: str
    hint: str
    mistakes: tuple[Slip, ...]
    names: tuple[tuple[str, float], ...] = ()


def questions(lookup: Lookup) -> Iterator[Question]:
    """All questions about a tape, in the order of the three acts."""
    nodes = [node for node in lookup.tape.graph.equations() if _is_asked(lookup, node)]
    statements = [statement for statement in map(lookup.statements.of, nodes) if _is_real(statement)]
    for statement in statements:
        yield from _about_value(lookup, statement)
    for statement in reversed(statements):
        yield from _about_local_gradients(lookup, statement)
    seen: set[int] = set()
    for statement in reversed(statements):
        for value in statement.inputs:
            if value.active and value.id not in seen:
                seen.add(value.id)
                yield from _about_cotangent(lookup, value)


def _is_asked(lookup: Lookup, node: Node) -> bool:
    plain = node.active and not node.opened and not is_copy(node) and len(node.outputs) == 1
    return plain and node.name in lookup.recorded and node.outputs[0].id not in lookup.statements.folded


def _is_real(statement: Statement) -> bool:
    """Whether no input or output is complex: an answer is one real number."""
    values = (*statement.inputs, *statement.outputs)
    return not any(_jaxpr.is_complex(value.dtype) for value in values)


def _is_real_number(x: float | complex | None) -> TypeGuard[float]:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _input_values(lookup: Lookup, statement: Statement) -> list[tuple[str, float]]:
    numbers = lookup.numbers(statement) or {}
    operands = [(text_name(lookup.called(v)), numbers.get(v.id)) for v in statement.inputs]
    return [
        (name, float(number))
        for name, number in operands
        if number is not None and not isinstance(number, complex)
    ]


def _assignments(names: Sequence[tuple[str, float]]) -> str:
    return " and ".join(f"{name} = {spell(value)}" for name, value in names)


# --- values --------------------------------------------------------------------------------------------


def _about_value(lookup: Lookup, statement: Statement) -> Iterator[Question]:
    value = statement.outputs[0]
    right = lookup.value(value, statement.nodes[-1]).number
    numbers = lookup.numbers(statement)
    operation = lookup.formulas.operation(statement)
    if not _is_real_number(right) or not numbers or operation is None:
        return
    with_numbers = lookup.formulas.operation(statement, numbers)
    name, names = text_name(value.name), _input_values(lookup, statement)
    mistakes = [Slip(-right, "wrong sign.")]
    mistakes += [Slip(number, f"that is {other} itself, before the operation.") for other, number in names]
    yield Question(
        kind="value",
        name=value.name,
        text=f"Forward pass. {name} = {operation.text}, with {_assignments(names)}. What is {name}?",
        expected=right,
        solution=f"{name} = {operation.text} = {with_numbers.text if with_numbers else ''} = {spell(right)}",
        hint=f"{name} = {with_numbers.text if with_numbers else operation.text}",
        mistakes=tuple(mistakes),
        names=tuple(names),
    )


# --- local gradients -----------------------------------------------------------------------------------


def _about_local_gradients(lookup: Lookup, statement: Statement) -> Iterator[Question]:
    operation = lookup.formulas.operation(statement)
    if operation is None:
        return
    out, names = statement.outputs[0], _input_values(lookup, statement)
    name = text_name(out.name)
    operands = [v for v in statement.inputs if v.active]
    slopes = {v.id: lookup.slope(statement, v).number for v in operands}
    for wrt in operands:
        right, factor = slopes[wrt.id], lookup.formulas.factor(statement, wrt)
        if factor is None:
            yield from _about_shape(lookup, statement, wrt)
        elif _is_real_number(right) and names:
            fraction = quotient(out.name, lookup.called(wrt)).text
            with_numbers = lookup.formulas.factor(statement, wrt, lookup.numbers(statement))
            steps = [factor.text, with_numbers.text if with_numbers else "", spell(right)]
            alone = ", for this statement alone?" if lookup.has_other_paths(statement, wrt) else "?"
            assigned = f"{name} = {operation.text}, with {_assignments(names)}"
            yield Question(
                kind="local gradient",
                name=out.name,
                text=f"Local gradient. {assigned}. What is {fraction}{alone}",
                expected=right,
                solution=f"{fraction} = {' = '.join(dict.fromkeys(step for step in steps if step))}",
                hint=f"{fraction} = {factor.text}",
                mistakes=tuple(_local_mistakes(lookup, statement, wrt, right, slopes)),
                names=tuple(names),
            )


def _local_mistakes(
    lookup: Lookup,
    statement: Statement,
    wrt: Value,
    right: float,
    slopes: Mapping[ValueId, float | complex | None],
) -> Iterator[Slip]:
    node, out = statement.nodes[-1], statement.outputs[0]
    yield Slip(-right, "wrong sign.")
    for other in statement.inputs:
        slope = slopes.get(other.id)
        if other.id != wrt.id and _is_real_number(slope):
            fraction = quotient(out.name, lookup.called(other)).text
            yield Slip(slope, f"that is {fraction}, with respect to the other operand.")
    ct = lookup.cotangent(out, node).number
    if _is_real_number(ct):
        whole, incoming = lookup.d(wrt).text, lookup.d(out).text
        yield Slip(right * ct, f"that is already multiplied by {incoming}: it contributes to {whole}.")
    value = lookup.value(out, node).number
    if _is_real_number(value):
        yield Slip(value, f"that is the value of {text_name(out.name)}, not how fast it changes.")
    if right:
        yield Slip(1 / right, "that is the reciprocal.")


def _about_shape(lookup: Lookup, statement: Statement, wrt: Value) -> Iterator[Question]:
    formula = lookup.formulas.of(statement, wrt)
    if formula is None or formula.data["form"] != "vjp" or not wrt.shape:
        return
    name, out = text_name(lookup.called(wrt)), statement.outputs[0]
    d_of, d_wrt = text_cotangent(out.name), text_cotangent(lookup.called(wrt))
    shapes = {text_name(lookup.called(v)): v.shape for v in (*statement.inputs, out)}
    others = ", ".join(f"{other} {shape_text(shape)}" for other, shape in shapes.items() if other != name)
    mistakes = [Slip(out.shape, f"that is the shape of {d_of}; a cotangent has the shape of its own value.")]
    if len(wrt.shape) > 1:
        mistakes.append(Slip(wrt.shape[::-1], "that is the shape of its transpose."))
    yield Question(
        kind="shape",
        name=wrt.name,
        text=f"Shapes. {formula.text}, with {others}. What is the shape of {d_wrt}?",
        expected=wrt.shape,
        solution=f"{d_wrt} has the shape of {name}: {shape_text(wrt.shape)}",
        hint=f"{d_wrt} has the shape of {name}",
        mistakes=tuple(m for m in mistakes if m.answer != wrt.shape),
    )


def shape_text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


# --- cotangents ----------------------------------------------------------------------------------------


class _Contribution(NamedTuple):
    """What one consumer contributes: its own cotangent times its local gradient, with their names."""

    consumer: Consumer
    ct: float
    slope: float
    d_out: str
    local: str

    @property
    def number(self) -> float:
        return self.ct * self.slope


def _about_cotangent(lookup: Lookup, value: Value) -> Iterator[Question]:
    right = lookup.cotangent(value, lookup.producer(value)).number
    consumers = lookup.consumers(value)
    if not _is_real_number(right) or not consumers or any(c.node.opened for c in consumers):
        return
    if len(consumers) == 1 and consumers[0].node.name == lookup.loss:
        return  # its local gradient is the answer
    parts = [part for c in consumers if (part := _contribution_of(lookup, c)) is not None]
    if len(parts) < len(consumers) or any(c.node.index in lookup.tape.ruled for c in consumers):
        return
    total = sum(part.number for part in parts)
    if abs(total - right) > 1e-3 * max(abs(right), *(abs(part.number) for part in parts)):
        return  # there is another contribution: a seed, a loop
    d, symbols = lookup.d(value).text, " + ".join(f"{part.d_out} * {part.local}" for part in parts)
    numbers = " + ".join(product_of([part.ct, part.slope]).text for part in parts)
    worked = f"{symbols} = {numbers}"
    if len(parts) > 1:
        worked += f" = {sum_of([part.number for part in parts]).text}"
    yield Question(
        kind="cotangent",
        name=value.name,
        text=f"Backward pass. {_given_parts(lookup, parts)} What is {d}?",
        expected=right,
        solution=f"{d} = {worked} = {spell(right)}",
        hint=f"{d} = {symbols}",
        mistakes=tuple(_cotangent_mistakes(parts, right)),
        names=tuple(pair for part in parts for pair in ((part.d_out, part.ct), (part.local, part.slope))),
    )


def _contribution_of(lookup: Lookup, consumer: Consumer) -> _Contribution | None:
    node, out = consumer.node, consumer.out
    if len(node.outputs) != 1:
        return None
    ct, slope = lookup.cotangent(out, node).number, lookup.slope(consumer.statement, consumer.read).number
    if not _is_real_number(ct) or not _is_real_number(slope):
        return None
    local = quotient(out.name, lookup.called(consumer.read)).text
    return _Contribution(consumer, ct, slope, lookup.d(out).text, local)


def _given_parts(lookup: Lookup, parts: Sequence[_Contribution]) -> str:
    said = []
    for part in parts:
        is_result = part.consumer.out.name == lookup.loss and len(parts) > 1
        alone = ", for this statement alone" if is_result else ""
        said.append(f"{part.d_out} = {spell(part.ct)} and {part.local} = {spell(part.slope)}{alone}")
    name = text_name(lookup.called(parts[0].consumer.read))
    consumed = f"{name} is used {len(parts)} times. " if len(parts) > 1 else ""
    return f"{consumed}{'; '.join(said)}."


def _cotangent_mistakes(parts: Sequence[_Contribution], right: float) -> Iterator[Slip]:
    yield Slip(-right, "wrong sign.")
    if len(parts) > 1:
        for i, part in enumerate(parts):
            name = text_name(part.consumer.out.name)
            missing = " and ".join(spell(other.number) for j, other in enumerate(parts) if j != i)
            yield Slip(
                part.number, f"that is the contribution through {name} alone; add the others, {missing}."
            )
        yield Slip(math.prod(part.number for part in parts), "contributions are added, not multiplied.")
    for part in parts:
        yield Slip(
            part.slope, f"that is the local gradient {part.local}; multiply it by the cotangent {part.d_out}."
        )
        yield Slip(
            part.ct, f"that is the cotangent {part.d_out}; multiply it by the local gradient {part.local}."
        )
        yield Slip(part.ct + part.slope, "along a path local gradients are multiplied, not added.")
