"""Derive local gradients as expressions, from the program of JAX's own rule."""

import enum
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np

from ... import _jaxpr
from ..._fingerprint import fingerprint
from ...core.graph import Node, Value
from ...core.local import evaluate
from ...core.types import Array
from .arithmetic import as_polynomial, broadcast, unbroadcast
from .expressions import (
    ONE,
    Apply,
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


#: A function of the differentiated value and of the others; it returns all outputs.
ValueFunction: TypeAlias = Callable[..., Sequence[Array]]
NO_FORMULA = Derivative("map", None, None)
#: Custom rules are opened up to this many equations: nobody wants to read more.
_MOST_EQUATIONS = 40


def distinct(values: Sequence[Value]) -> list[Value]:
    """Values without repetition, literals left out."""
    return list({value.id: value for value in values if value.id >= 0}.values())


# --- remembering -------------------------------------------------------------------------------------


class Derivations:
    """Derives operations and remembers what it found, so that one answer serves all operations alike.

    What depends on structure alone is shared by the whole process. An operation that only its own equation
    identifies (a custom rule) is remembered by this object, for as long as the caller keeps the graph.
    """

    def __init__(self, primitives: Mapping[str, PrimitiveReader] = PRIMITIVES) -> None:
        self.primitives = primitives
        self._own: dict[Hashable, object] = {}

    def derivative(self, node: Node, wrt: Value) -> Derivative | None:
        """The derivative of the outputs of a node with respect to one of its operands, None if it has none."""
        inputs = distinct(node.operands)
        position = next(i for i, value in enumerate(inputs) if value.id == wrt.id)
        if not _jaxpr.is_inexact(wrt.dtype) or not any(_jaxpr.is_inexact(v.dtype) for v in node.outputs):
            return None
        if _jaxpr.has_reverse_rule(node.eqn) and not wrt.active:
            return None  # JAX refuses to differentiate it with respect to what it closes over
        if node.opened or not _may_open(node) or any(v.dtype is None for v in inputs):
            return NO_FORMULA
        problem = _Problem(_function_of(node, inputs), [_struct(v) for v in inputs], position, self.primitives)
        return self._remembered(node, ("derivative", position), problem.derivative)

    def operation(self, node: Node) -> Expr | None:
        """What a node computes, as an expression of its operands; None where no expression stands for it."""
        inputs = distinct(node.operands)
        if node.eqn is None or node.opened or len(node.outputs) != 1 or any(v.dtype is None for v in inputs):
            return None
        problem = _Problem(_function_of(node, inputs), [_struct(v) for v in inputs], 0, self.primitives)
        return self._remembered(node, ("operation",), lambda: (problem.forward or [None])[0])

    def composed(self, composition: "Composition", named: Callable[[Value], bool]) -> Derivative:
        """The derivative of the end of a composition with respect to its start.

        Intermediates that are `named` appear under their names, all others are written out.
        """
        if any(node.opened or not _may_open(node) for node in composition.nodes):
            return NO_FORMULA
        structs = [_struct(v) for v in composition.inputs]
        problem = _Problem(composition.function, structs, 0, self.primitives)
        return problem.derivative(self._intermediates(composition, named))

    def _intermediates(self, composition: "Composition", named: Callable[[Value], bool]) -> dict[Expr, Expr]:
        """Expressions of the intermediates, and the symbols to write in their place."""
        written: dict[int, Expr] = {v.id: Sym("in", i, v.shape) for i, v in enumerate(composition.inputs)}
        symbols = {v.id: Sym("mid", i, v.shape) for i, v in enumerate(composition.intermediates)}
        names: dict[Expr, Expr] = {}
        for node in composition.nodes:
            inputs = distinct(node.operands)
            program = _traced(_function_of(node, inputs), *map(_struct, inputs))
            if program is None:
                return {}
            leaves = [written[v.id] for v in inputs]
            try:
                closed, opened = (
                    read(program, leaves, Style(self.primitives, opened=o)) for o in (False, True)
                )
            except (Unreadable, TooLarge):
                return {}
            for value, expr, other in zip(node.outputs, closed, opened, strict=True):
                written[value.id] = other
                if named(value) and not isinstance(expr, Sym | Num):
                    names |= dict.fromkeys((expr, other), symbols[value.id])
                    written[value.id] = symbols[value.id]
        return names

    def _remembered(self, node: Node, question: tuple[Hashable, ...], answer: Callable[[], T]) -> T:
        structure = _structure_of(node)
        shared = structure is not None and self.primitives is PRIMITIVES
        memory = _SHARED if shared else self._own
        key = question, id(node.eqn) if structure is None else structure
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


def _structure_of(node: Node) -> Hashable | None:
    """A key that is equal for nodes that compute the same, and that keeps nothing of the program alive."""
    if _jaxpr.has_custom_rule(node.eqn):
        return None
    numbers: dict[int, int] = {}
    operands = tuple(
        (numbers.setdefault(v.id, len(numbers)), v.shape, str(v.dtype)) if v.id >= 0 else fingerprint(v.literal)
        for v in node.operands
    )
    try:
        return weakref.ref(node.eqn.primitive), _without_references((fingerprint(node.eqn), operands))
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


# --- operations as functions ---------------------------------------------------------------------------


def _function_of(node: Node, inputs: Sequence[Value]) -> ValueFunction:
    """A node as a function of the distinct values it reads."""

    def fun(*values: Array) -> list[Array]:
        at = dict(zip((value.id for value in inputs), values, strict=True))
        return list(evaluate(node, [at[v.id] if v.id >= 0 else v.literal for v in node.operands]))

    return fun


@dataclass(frozen=True)
class Composition:
    """The operations between two values.

    Attributes:
        nodes: the operations, in program order.
        inputs: the value at the start, then the others that are read.
        intermediates: the values in between, and the one at the end as the last.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    intermediates: tuple[Value, ...]

    def function(self, *values: Array) -> list[Array]:
        """The operations as one function of the inputs."""
        env: dict[int, Any] = dict(zip((value.id for value in self.inputs), values, strict=True))
        for node in self.nodes:
            operands = [env[v.id] if v.id >= 0 else v.literal for v in node.operands]
            env |= zip((v.id for v in node.outputs), evaluate(node, operands), strict=True)
        return [env[self.intermediates[-1].id]]


def composition_of(nodes: Sequence[Node], source: Value, target: Value) -> Composition:
    produced = {value.id: value for node in nodes for value in node.outputs}
    others = [v for node in nodes for v in node.operands if v.id not in produced and v.id != source.id]
    between = [value for value in produced.values() if value.id != target.id]
    return Composition(tuple(nodes), (source, *distinct(others)), (*between, target))


def _may_open(node: Node) -> bool:
    """Whether the rule of a node may be run. Some libraries keep state in theirs."""
    if not _jaxpr.has_reverse_rule(node.eqn):
        return True
    equations = [eqn for body in _jaxpr.nested_programs(node.eqn) for eqn in body.jaxpr.eqns]
    return len(equations) <= _MOST_EQUATIONS and not any(map(_has_loop, equations))


def _has_loop(eqn: Any) -> bool:
    return _jaxpr.is_while(eqn) or isinstance(_jaxpr.opened_form(eqn), _jaxpr.Scan | _jaxpr.Cond)


def _struct(value: Value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _traced(fun: Callable[..., Any], *structs: Any) -> _jaxpr.Program | None:
    """The program of a function; None where JAX has no rule for it, or none outside its mesh."""
    try:
        return _jaxpr.trace(fun, *structs)
    except (TypeError, ValueError, NotImplementedError, AssertionError, RecursionError):
        return None


# --- deriving ----------------------------------------------------------------------------------------

#: Functions that are not complex differentiable: no factor stands for their derivative.
_NOT_HOLOMORPHIC = frozenset({"real", "imag", "conj", "abs", "complex"})


@dataclass(frozen=True)
class _Problem:
    """A function, shapes and dtypes of its arguments, and the argument to differentiate with respect to."""

    fun: ValueFunction
    structs: Sequence[jax.ShapeDtypeStruct]
    position: int
    primitives: Mapping[str, PrimitiveReader]

    @cached_property
    def leaves(self) -> list[Expr]:
        return [Sym("in", i, s.shape) for i, s in enumerate(self.structs)]

    @cached_property
    def program(self) -> _jaxpr.Program | None:
        return _traced(lambda *values: list(self.fun(*values)), *self.structs)

    @cached_property
    def outputs(self) -> list[jax.ShapeDtypeStruct]:
        assert self.program is not None
        return [_jaxpr.struct_of(atom) for atom in self.program.jaxpr.outvars]

    @cached_property
    def forward(self) -> list[Expr] | None:
        if self.program is None:
            return None
        try:
            return list(read(self.program, self.leaves, Style(self.primitives, opened=False)))
        except (Unreadable, TooLarge):
            return None

    def derivative(self, names: Mapping[Expr, Expr] | None = None) -> Derivative:
        """The derivative; expressions that are keys of `names` are written as the values of it."""
        if self.program is None:
            return NO_FORMULA
        forward = None if self.forward is None else self.forward[0]
        local = self._local()
        if local is not None and names:  # the factors of a chain in the order of the backward pass
            ones = broadcast(ONE, self.structs[self.position].shape)
            pulled = self._pulled(names, [ones])
            local = local if pulled is None else unbroadcast(pulled)
        if local is not None:
            return Derivative("local", forward, as_polynomial(local, self.leaves[self.position]))
        known = {x: Sym("out", i, x.shape) for i, x in enumerate(self.forward or ())}
        known = {x: name for x, name in known.items() if not isinstance(x, Sym | Num)} | dict(names or {})
        pulled = self._pulled(known)
        return NO_FORMULA if pulled is None else Derivative("vjp", forward, pulled)

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
            found = self.fun(*(x if i == self.position else v for i, v in enumerate(values)))
            return [found[i] for i in outputs]

        return of


def _is_holomorphic(x: Expr, t: Expr) -> bool:
    return not any(isinstance(e, Apply) and e.fn in _NOT_HOLOMORPHIC for e in dependents(x, t))
