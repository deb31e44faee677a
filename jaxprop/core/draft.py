"""A program before its values have names: every variable of it, and of those nested in it, has a number."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import _jaxpr
from ..naming import assign


@dataclass(frozen=True, eq=False)
class Fixed:
    """A number or an array that stands in the program itself."""

    val: Any
    aval: Any
    id: int = -1  # of a plain number among the arguments


@dataclass
class Draft:
    """A node before its values have names. Operands are numbers of values, or `Fixed`."""

    index: int
    seen: assign.Sight
    scope: str
    operands: tuple[Any, ...]
    outputs: tuple[int, ...]
    levels: tuple["Level", ...]
    opened: bool


@dataclass
class DraftCall:
    items: list["Draft | DraftCall"]
    operands: tuple[Any, ...]
    outputs: tuple[Any, ...]
    eqn: Any


@dataclass
class Level:
    """A program before its values have names. `head` is the index of the node of its first input."""

    head: int
    inputs: tuple[int, ...]
    consts: tuple[int, ...]
    outputs: tuple[Any, ...]
    items: list[Draft | DraftCall]
    program: _jaxpr.Program

    @functools.cached_property
    def drafts(self) -> list[Draft]:
        return list(_flat(self.items))


def _flat(items: list[Draft | DraftCall]) -> Iterator[Draft]:
    for item in items:
        if isinstance(item, DraftCall):
            yield from _flat(item.items)
        else:
            yield item


class Numbering:
    """First pass: numbers the variables of a program and of those nested in it."""

    def __init__(self, home: str | None, function: str | None, scalars: Mapping[str, Any]) -> None:
        self.home, self.function = home, function
        self.avals: list[Any] = []
        self.count = 0
        self.scalars: dict[str, Fixed] = {}
        for name, number in scalars.items():
            aval = _jaxpr.aval_of(number)
            self.avals.append(aval)
            self.scalars[name] = Fixed(number, aval, len(self.avals) - 1)

    def take(self, count: int) -> int:
        """Reserve indices of nodes, in program order."""
        self.count += count
        return self.count - count

    def new(self, var: Any) -> int:
        self.avals.append(var.aval)
        return len(self.avals) - 1

    def level(
        self,
        program: _jaxpr.Program,
        scope: str = "",
        opened: bool = True,
        outermost: bool = False,
    ) -> Level:
        jaxpr = program.jaxpr
        inputs = tuple(self.new(var) for var in jaxpr.invars)
        env: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        consts: tuple[int, ...] = ()
        if outermost:
            consts = tuple(self.new(var) for var in jaxpr.constvars)
            env.update(zip(jaxpr.constvars, consts, strict=True))
        else:
            env.update(_fixed(program))
        head = self.take(len(inputs) + len(consts))
        items = self.items(jaxpr, env, scope, (), opened)
        outputs = tuple(_read(env, atom) for atom in jaxpr.outvars)
        return Level(head, inputs, consts, outputs, items, program)

    def items(
        self,
        jaxpr: Any,
        env: dict[Any, Any],
        scope: str,
        around: tuple[_jaxpr.Frame, ...],
        opened: bool,
    ) -> list[Draft | DraftCall]:
        items: list[Draft | DraftCall] = []
        for eqn in jaxpr.eqns:
            seen = assign.sight(eqn, jaxpr, around, self.home)
            inside = assign.clean_scope(scope, _jaxpr.scope_of(eqn))
            operands = tuple(_read(env, atom) for atom in eqn.invars)
            if self.scalars:
                operands = self.scalars_known(seen, operands)
            call = _jaxpr.inlined_program(eqn)
            if call is None:
                index = self.take(1)
                outputs = tuple(env.setdefault(var, self.new(var)) for var in eqn.outvars)
                levels, opens = self.nested(eqn, inside, opened)
                items.append(Draft(index, seen, inside, operands, outputs, levels, opens))
                continue
            body_env = {**dict(zip(call.jaxpr.invars, operands, strict=True)), **_fixed(call)}
            name = assign.clean_scope(inside, str(eqn.params.get("name") or ""))
            body = self.items(call.jaxpr, body_env, name, seen.raw, opened)
            results = tuple(_read(body_env, atom) for atom in call.jaxpr.outvars)
            env.update(zip(eqn.outvars, results, strict=True))
            items.append(DraftCall(body, operands, results, eqn))
        return items

    def scalars_known(self, seen: assign.Sight, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """Know plain numbers among the arguments again, by their name in the expression and their value."""
        words = assign.words(seen, self.function)
        found = {self.scalars[word] for word in words if word in self.scalars}

        def known(operand: Any) -> Any:
            if not isinstance(operand, Fixed) or _jaxpr.shape_of(operand.aval) != ():
                return operand
            dtype = _jaxpr.dtype_of(operand.aval)
            same = [f for f in found if _jaxpr.same_number(f.val, operand.val, dtype)]
            return Fixed(operand.val, operand.aval, same[0].id) if len(same) == 1 else operand

        return tuple(map(known, operands))

    def nested(self, eqn: Any, scope: str, opened: bool) -> tuple[tuple[Level, ...], bool]:
        form = _jaxpr.opened_form(eqn)
        if form is None:
            programs = _jaxpr.nested_programs(eqn)
        else:
            programs = form.branches if isinstance(form, _jaxpr.Cond) else (form.body,)
        opens = opened and form is not None
        return tuple(self.level(program, scope, opens) for program in programs), opens


def _fixed(program: _jaxpr.Program) -> dict[Any, Fixed]:
    pairs = zip(program.jaxpr.constvars, program.consts, strict=True)
    return {var: Fixed(const, var.aval) for var, const in pairs}


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return Fixed(atom.val, atom.aval) if _jaxpr.is_literal(atom) else env[atom]


# --- how nested programs join those around them -------------------------------------------------------


def into(draft: Draft, level: Level) -> Iterator[tuple[Any, int]]:
    """Pairs (operand of the node, input of its nested program)."""
    skip = 1 if isinstance(_jaxpr.opened_form(draft.seen.eqn), _jaxpr.Cond) else 0
    return zip(draft.operands[skip:], level.inputs, strict=True)


def out_of(draft: Draft, level: Level) -> Iterator[tuple[Any, int]]:
    """Pairs (output of the nested program, output of the node)."""
    return zip(level.outputs, draft.outputs, strict=True)


def around(draft: Draft, level: Level) -> Iterator[tuple[Any, int]]:
    """Pairs (output of the nested program, input it becomes in the next step)."""
    form = _jaxpr.opened_form(draft.seen.eqn)
    if not isinstance(form, _jaxpr.Scan):
        return iter(())
    carries = level.inputs[form.num_consts :][: form.num_carry]
    return zip(level.outputs, carries, strict=False)
