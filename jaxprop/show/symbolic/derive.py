"""Derive local gradients as expressions, from the program of JAX's own rule."""

import enum
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import jax
import numpy as np

from ... import _jaxpr
from ..._fingerprint import fingerprint
from ...core.graph import Node, Value
from ...core.local import evaluate
from ...core.types import Array
from .arithmetic import apply, as_polynomial, broadcast, unbroadcast
from .expressions import (
    ONE,
    Apply,
    Equation,
    Expr,
    Num,
    PrimitiveReader,
    Sym,
    TooLarge,
    Unreadable,
    dependents,
    is_diagonal,
)
from .reader import PRIMITIVES, Style, read
from .textbook import in_terms_of, recognised, symbols_first

T = TypeVar("T")


@dataclass(frozen=True)
class Derivative:
    """A derivative as expressions whose symbols have no names yet.

    Attributes:
        form: `local`: elementwise, `d of/d wrt = right`; `vjp`: the cotangent of `wrt` is `right`; `map`: there
            is no closed form.
        forward: the operation itself, where it can be written.
        right: the derivative.
    """

    form: str
    forward: Expr | None
    right: Expr | None


NO_FORMULA = Derivative("map", None, None)
#: Custom rules are opened up to this many equations: nobody wants to read more.
_MOST_EQUATIONS = 40


def distinct(values: Sequence[Value]) -> list[Value]:
    """Values without repetition, literals left out."""
    return list({value.id: value for value in values if value.id >= 0}.values())


@dataclass(frozen=True)
class Statement:
    """One or several operations read as one: a function of the values they read.

    Attributes:
        nodes: the operations, in program order.
        inputs: the distinct values they read from outside.
        outputs: the values computed.
        intermediates: the other values in between.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    intermediates: tuple[Value, ...] = ()

    @property
    def is_readable(self) -> bool:
        """Whether its program may be traced: bodies of control flow and long custom rules are left alone."""
        values = (*self.inputs, *self.outputs, *self.intermediates)
        return not any(v.dtype is None for v in values) and not any(
            node.opened or not _may_open(node) for node in self.nodes
        )

    def function(self, *values: Array) -> list[Array]:
        """Evaluate the outputs from the inputs."""
        env: dict[int, Any] = dict(zip((value.id for value in self.inputs), values, strict=True))
        for node in self.nodes:
            operands: list[Any] = [env[v.id] if v.id >= 0 else v.literal for v in node.operands]
            env |= zip((v.id for v in node.outputs), evaluate(node, operands), strict=True)
        return [env[value.id] for value in self.outputs]


def statement_of(node: Node) -> Statement:
    """A single operation."""
    return Statement((node,), tuple(distinct(node.operands)), node.outputs)


def composition_of(nodes: Sequence[Node], target: Value) -> Statement:
    """Several operations, in program order, the last of which computes `target`."""
    produced = {value.id: value for node in nodes for value in node.outputs}
    inputs = distinct([v for node in nodes for v in node.operands if v.id not in produced])
    between = tuple(value for value in produced.values() if value.id != target.id)
    return Statement(tuple(nodes), tuple(inputs), (target,), between)


def _may_open(node: Node) -> bool:
    """Whether the rule of a node may be run. Some libraries keep state in theirs."""
    if not _jaxpr.has_reverse_rule(node.eqn):
        return True
    equations = [eqn for body in _jaxpr.nested_programs(node.eqn) for eqn in body.jaxpr.eqns]
    return len(equations) <= _MOST_EQUATIONS and not any(map(_has_loop, equations))


def _has_loop(eqn: Any) -> bool:
    return _jaxpr.is_while(eqn) or isinstance(_jaxpr.opened_form(eqn), _jaxpr.Scan | _jaxpr.Cond)


# --- remembering -------------------------------------------------------------------------------------


class Derivations:
    """Derives statements and remembers what it found, so that one answer serves all statements alike.

    What depends on structure alone is shared by the whole process. A statement that only its own equations
    identify (a custom rule) is remembered by this object, for as long as the caller keeps the graph.
    """

    def __init__(self, primitives: Mapping[str, PrimitiveReader] = PRIMITIVES) -> None:
        self.primitives = primitives
        self._own: dict[Hashable, object] = {}

    def derivative(
        self, statement: Statement, wrt: Value, named: Callable[[Value], bool] | None = None
    ) -> Derivative | None:
        """The derivative with respect to one of the inputs, None if there is none.

        Intermediates that are `named` appear under their names; all others are written out.
        """
        if not _jaxpr.is_inexact(wrt.dtype) or not any(_jaxpr.is_inexact(v.dtype) for v in statement.outputs):
            return None
        if not wrt.active and any(_jaxpr.has_reverse_rule(node.eqn) for node in statement.nodes):
            return None  # JAX refuses to differentiate it with respect to what it closes over
        if not statement.is_readable:
            return NO_FORMULA
        position = next(i for i, value in enumerate(statement.inputs) if value.id == wrt.id)
        problem = _Problem(statement, position, self.primitives)
        if named is not None:
            return problem.derivative(self._names(statement, named))
        return self._remembered(statement, ("derivative", position), problem.derivative)

    def operation(self, statement: Statement) -> Expr | None:
        """What is computed, as an expression of the inputs; None where no expression stands for it."""
        if any(node.eqn is None for node in statement.nodes) or len(statement.outputs) != 1:
            return None
        if not statement.is_readable:
            return None
        problem = _Problem(statement, 0, self.primitives)
        return self._remembered(statement, ("operation",), lambda: problem.shown)

    def _names(self, statement: Statement, named: Callable[[Value], bool]) -> dict[Expr, Expr]:
        """Expressions of the intermediates, and the symbols to write in their place."""
        written: dict[int, Expr] = {v.id: Sym("in", i, v.shape) for i, v in enumerate(statement.inputs)}
        intermediates = (*statement.intermediates, *statement.outputs)
        symbols = {v.id: Sym("mid", i, v.shape) for i, v in enumerate(intermediates)}
        names: dict[Expr, Expr] = {}
        for one in map(statement_of, statement.nodes):
            program, leaves = (
                _traced(one.function, *map(_struct, one.inputs)),
                [written[v.id] for v in one.inputs],
            )
            if program is None:
                return {}
            try:
                closed, opened = (
                    read(program, leaves, Style(self.primitives, opened=o)) for o in (False, True)
                )
            except (Unreadable, TooLarge):
                return {}
            for value, expr, other in zip(one.outputs, closed, opened, strict=True):
                written[value.id] = other
                if named(value) and not isinstance(expr, Sym | Num):
                    names |= dict.fromkeys((expr, other), symbols[value.id])
                    written[value.id] = symbols[value.id]
        return names

    def _remembered(self, statement: Statement, question: tuple[Hashable, ...], answer: Callable[[], T]) -> T:
        structure = _structure_of(statement)
        shared = structure is not None and self.primitives is PRIMITIVES
        memory = _SHARED if shared else self._own
        own = tuple((id(node.eqn), *(v.id for v in node.operands)) for node in statement.nodes)
        key = question, own if structure is None else structure
        if key not in memory:
            while len(_SHARED) >= _MOST_SHARED:
                _SHARED.pop(next(iter(_SHARED)), None)
            memory[key] = answer()
        return memory[key]  # type: ignore[return-value]


#: Expressions by the structure of an operation. Neither keys nor answers keep arrays or equations alive.
_SHARED: dict[Hashable, object] = {}
_MOST_SHARED = 4096


class _NoStructure(Exception):
    """Raised for a node that only its own equation identifies."""


def _structure_of(statement: Statement) -> Hashable | None:
    """A key that is equal for statements that compute the same, and that keeps nothing of the program alive."""
    if any(_jaxpr.has_custom_rule(node.eqn) for node in statement.nodes):
        return None
    numbers: dict[int, int] = {value.id: i for i, value in enumerate(statement.inputs)}

    def structure(value: Value) -> Hashable:
        if value.id < 0:
            return fingerprint(value.literal)
        return numbers.setdefault(value.id, len(numbers)), value.shape, str(value.dtype)

    nodes = tuple(
        (fingerprint(n.eqn), tuple(map(structure, n.operands)), tuple(map(structure, n.outputs)))
        for n in statement.nodes
    )
    primitives = tuple(weakref.ref(node.eqn.primitive) for node in statement.nodes if node.eqn is not None)
    outputs = tuple(map(structure, statement.outputs))
    try:
        return primitives, _without_references((nodes, outputs))
    except _NoStructure:
        return None


def _without_references(key: object) -> Hashable:
    """A fingerprint with weak references in place of objects.

    Raises:
        _NoStructure: an object in it cannot be referred to weakly.
    """
    if key is None or isinstance(key, bool | int | float | complex | str | bytes | np.dtype | enum.Enum):
        return key
    if isinstance(key, tuple):
        return tuple(map(_without_references, key))
    try:
        return weakref.ref(key)
    except TypeError:
        raise _NoStructure from None


# --- deriving ----------------------------------------------------------------------------------------

#: Functions that are not complex differentiable: no factor stands for their derivative.
_NOT_HOLOMORPHIC = frozenset({"real", "imag", "conj", "abs", "complex"})


def _struct(value: Value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _traced(fun: Callable[..., Any], *structs: Any) -> _jaxpr.Program | None:
    """The program of a function; None where JAX has no rule for it, or none outside its mesh."""
    try:
        return _jaxpr.trace(fun, *structs)
    except (TypeError, ValueError, NotImplementedError, AssertionError, RecursionError):
        return None


@dataclass(frozen=True)
class _Problem:
    """A statement to derive, and the position of the input to differentiate with respect to."""

    statement: Statement
    position: int
    primitives: Mapping[str, PrimitiveReader]

    @cached_property
    def structs(self) -> list[jax.ShapeDtypeStruct]:
        return [_struct(value) for value in self.statement.inputs]

    @cached_property
    def leaves(self) -> list[Expr]:
        return [Sym("in", i, s.shape) for i, s in enumerate(self.structs)]

    @cached_property
    def program(self) -> _jaxpr.Program | None:
        return _traced(self.statement.function, *self.structs)

    @cached_property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        assert self.program is not None
        return [_jaxpr.struct_of(atom) for atom in self.program.jaxpr.outvars]

    @cached_property
    def forward(self) -> list[Expr] | None:
        """The outputs, as they enter the algebra."""
        return self._read_forward(self.primitives)

    @cached_property
    def shown(self) -> Expr | None:
        """The first output as it is shown: `stop_gradient` equals its operand, but has another derivative."""
        found = self._read_forward({**self.primitives, "stop_gradient": _stop_gradient})
        return None if found is None else recognised(found[0])

    def _read_forward(self, primitives: Mapping[str, PrimitiveReader]) -> list[Expr] | None:
        if self.program is None:
            return None
        try:
            return list(read(self.program, self.leaves, Style(primitives, opened=False)))
        except (Unreadable, TooLarge):
            return None

    def derivative(self, names: Mapping[Expr, Expr] | None = None) -> Derivative:
        """The derivative; expressions that are keys of `names` are written as the values of it."""
        if self.program is None:
            return NO_FORMULA
        local = self._local()
        if local is not None and names:  # the factors of a chain in the order of the backward pass
            ones = broadcast(ONE, self.structs[self.position].shape)
            pulled = self._pulled(names, [ones])
            local = local if pulled is None else unbroadcast(pulled)
        if local is not None:
            return self._derivative("local", as_polynomial(local, self.leaves[self.position]))
        known = {x: Sym("out", i, x.shape) for i, x in enumerate(self.forward or ())}
        known = {x: name for x, name in known.items() if not isinstance(x, Sym | Num)} | dict(names or {})
        pulled = self._pulled(known)
        return NO_FORMULA if pulled is None else self._derivative("vjp", pulled)

    def _derivative(self, form: str, right: Expr) -> Derivative:
        if self.forward is not None:
            right = in_terms_of(Sym("out", 0, self.forward[0].shape), self.forward[0], right)
        right = symbols_first(right) if form == "local" else right
        return Derivative(form, self.shown, recognised(right))

    def _local(self) -> Expr | None:
        """The factor of each element, None where the map is not elementwise."""
        point = self.structs[self.position]
        if (
            len(self.outputs) != 1
            or self.outputs[0].shape != point.shape
            or self.outputs[0].dtype != point.dtype
        ):
            return None

        def push(values: Sequence[Array], tangent: Array) -> Array:
            return jax.jvp(self._along(values, [0]), (values[self.position],), (tangent,))[1][0]

        program = _traced(push, self.structs, point)
        if program is None:
            return None
        tangent = Sym("t", 0, point.shape)
        try:
            (pushed,) = read(program, [*self.leaves, tangent], Style(self.primitives))
            if point.shape != () and not is_diagonal(pushed, tangent):
                return None
            if "complex" in str(point.dtype) and not _is_holomorphic(pushed, tangent):
                return None
            (right,) = read(program, [*self.leaves, broadcast(ONE, point.shape)], Style(self.primitives))
        except (Unreadable, TooLarge):
            return None
        return unbroadcast(right)

    def _pulled(self, known: Mapping[Expr, Expr], cts: Sequence[Expr] | None = None) -> Expr | None:
        """The cotangent of the argument, from those of the outputs."""
        inexact = [i for i, out in enumerate(self.outputs) if _jaxpr.is_inexact(out.dtype)]

        def pull(values: Sequence[Array], cts: Sequence[Array]) -> Array:
            return jax.vjp(self._along(values, inexact), values[self.position])[1](cts)[0]

        program = _traced(pull, self.structs, [self.outputs[i] for i in inexact])
        if program is None:
            return None
        cts = cts or [Sym("ct", i, self.outputs[i].shape) for i in inexact]
        try:
            return read(program, [*self.leaves, *cts], Style(self.primitives, known))[0]
        except (Unreadable, TooLarge):
            return None

    def _along(self, values: Sequence[Array], outputs: Sequence[int]) -> Callable[[Array], list[Array]]:
        """The function of the differentiated argument alone, with some of its outputs."""

        def of(x: Array) -> list[Array]:
            found = self.statement.function(*(x if i == self.position else v for i, v in enumerate(values)))
            return [found[i] for i in outputs]

        return of


def _stop_gradient(operands: Sequence[Expr], equation: Equation) -> Expr:
    return apply("stop_gradient", *operands)


def _is_holomorphic(x: Expr, t: Expr) -> bool:
    return not any(isinstance(e, Apply) and e.fn in _NOT_HOLOMORPHIC for e in dependents(x, t))
