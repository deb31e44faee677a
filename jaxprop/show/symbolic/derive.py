"""Derives local gradients as expressions, from the program of JAX's own rule."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from ... import _jaxpr
from ..._fingerprint import fingerprint
from ...core.graph import Node, Value
from ...core.local import evaluate
from .expressions import ONE, Call, Expr, Num, Sym, TooLarge, contains, diagonal, narrow, spread
from .reader import Unreadable, read


@dataclass(frozen=True)
class Derived:
    """A derivative as expressions of symbols without names.

    Attributes:
        form: `local`: a number for each number, `d of/d wrt = right`; `vjp`: the cotangent of `wrt` is `right`;
            `map`: there is no closed form.
        forward: the operation itself, where it can be written.
        right: the derivative.
    """

    form: str
    forward: Expr | None
    right: Expr | None


#: A function of the differentiated value and of those held, with all results.
_Fun = Callable[..., Sequence[Any]]
_MAP = Derived("map", None, None)
#: Custom rules are opened up to so many equations: beyond, nobody wants to read them.
_OPENED = 40


def distinct(values: Sequence[Value]) -> list[Value]:
    """Values without repetition, plain numbers left out."""
    return list({value.id: value for value in values if value.id >= 0}.values())


def derive_node(node: Node, wrt: Value) -> Derived | None:
    """The derivative of the results of a node with respect to one value it reads; None where there is none."""
    inputs = distinct(node.operands)
    position = next(i for i, value in enumerate(inputs) if value.id == wrt.id)
    if not _jaxpr.is_inexact(wrt.dtype) or not any(_jaxpr.is_inexact(v.dtype) for v in node.outputs):
        return None
    return _derive_cached(_Key(node, position), position)


def operation(node: Node) -> Expr | None:
    """What a node computes, as an expression of its operands; None where there is no spelling."""
    if node.eqn is None or node.opened or len(node.outputs) != 1:
        return None
    return _operation_cached(_Key(node, -1))


@functools.lru_cache(maxsize=2048)
def _operation_cached(key: "_Key") -> Expr | None:
    node = key.node
    inputs = distinct(node.operands)
    try:
        structs = [_struct(v) for v in inputs]
        leaves = [Sym("in", i, v.shape) for i, v in enumerate(inputs)]
        return _forward(_function_of(node, inputs), structs, leaves, 1)[0]
    except (TypeError, ValueError, NotImplementedError, AssertionError):
        return None


def _function_of(node: Node, inputs: Sequence[Value]) -> _Fun:
    """A node as a function of the distinct values it reads."""

    def fun(*values: Any) -> Sequence[Any]:
        at = dict(zip((value.id for value in inputs), values, strict=True))
        return list(evaluate(node, [at[v.id] if v.id >= 0 else v.literal for v in node.operands]))

    return fun


class _Key:
    """What decides the derivative of a node: compared by structure, so that one answer serves all its like."""

    def __init__(self, node: Node, position: int) -> None:
        self.node = node
        numbers: dict[int, int] = {}
        operands = tuple(
            (numbers.setdefault(v.id, len(numbers)), v.shape, str(v.dtype))
            if v.id >= 0
            else fingerprint(v.literal)
            for v in node.operands
        )
        own: Any = id(node.eqn) if _jaxpr.has_custom_rule(node.eqn) else fingerprint(node.eqn)
        self.key = own, operands, position
        self.hash = hash(self.key)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.key == other.key


@functools.lru_cache(maxsize=2048)
def _derive_cached(key: _Key, position: int) -> Derived:
    return _derive_one(key.node, position)


def _derive_one(node: Node, position: int) -> Derived:
    if node.opened or not _may_open(node):
        return _MAP
    inputs = distinct(node.operands)
    return _derive(_function_of(node, inputs), [_struct(v) for v in inputs], position)


def _may_open(node: Node) -> bool:
    """Whether the rule of a node may be run: those of libraries that keep state in it are left alone."""
    if not _jaxpr.has_reverse_rule(node.eqn):
        return True
    bodies = _jaxpr.nested_programs(node.eqn)
    equations = [eqn for body in bodies for eqn in body.jaxpr.eqns]
    return len(equations) <= _OPENED and not any(map(_holds_loop, equations))


def _holds_loop(eqn: Any) -> bool:
    form = _jaxpr.opened_form(eqn)
    return _jaxpr.is_while(eqn) or isinstance(form, _jaxpr.Scan | _jaxpr.Cond)


def _struct(value: Value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _derive(
    fun: _Fun, structs: list[jax.ShapeDtypeStruct], position: int, names: dict[Expr, Expr] | None = None
) -> Derived:
    leaves = [Sym("in", i, s.shape) for i, s in enumerate(structs)]
    try:
        outputs = jax.eval_shape(lambda *values: list(fun(*values)), *structs)
        forward = _forward(fun, structs, leaves, len(outputs))
        local = _local(fun, structs, leaves, position, outputs)
        if local is not None and names:  # the factors of a chain in the order of the way back
            ones = [spread(ONE, structs[position].shape)]
            local = narrow(_pulled(fun, structs, leaves, position, outputs, names, ones))
        if local is not None:
            return Derived("local", forward[0], local)
        known = {x: Sym("out", i, x.shape) for i, x in enumerate(forward) if x is not None}
        known = {x: name for x, name in known.items() if not isinstance(x, Sym | Num)} | (names or {})
        return Derived("vjp", forward[0], _pulled(fun, structs, leaves, position, outputs, known))
    except (Unreadable, TooLarge):
        return _MAP
    except (TypeError, ValueError, NotImplementedError, AssertionError, RecursionError):
        return _MAP  # JAX has no rule for it, or not outside of its mesh


def _forward(
    fun: _Fun, structs: list[jax.ShapeDtypeStruct], leaves: list[Sym], count: int
) -> list[Expr | None]:
    try:
        program = _jaxpr.trace(lambda *values: list(fun(*values)), *structs)
        return list(read(program, leaves, opened=False))
    except (Unreadable, TooLarge):
        return [None] * count


#: What is not linear over complex numbers, or not in one number: a product with a number cannot say it.
_NOT_HOLOMORPHIC = frozenset({"real", "imag", "conj", "abs", "complex"})


def _local(
    fun: _Fun,
    structs: list[jax.ShapeDtypeStruct],
    leaves: list[Sym],
    position: int,
    outputs: list[Any],
) -> Expr | None:
    """The number each number is multiplied by; None where the map is not one of number by number."""
    point = structs[position]
    if len(outputs) != 1 or outputs[0].shape != point.shape or outputs[0].dtype != point.dtype:
        return None

    def push(values: list[Any], t: Any) -> Any:
        def of(x: Any) -> Any:
            return fun(*(x if i == position else v for i, v in enumerate(values)))[0]

        return jax.jvp(of, (values[position],), (t,))[1]

    program = _jaxpr.trace(push, structs, point)
    t = Sym("t", 0, point.shape)
    try:
        (pushed,) = read(program, [*leaves, t])
        if point.shape != () and not diagonal(pushed, t):
            return None
        if _jaxpr.is_inexact(point.dtype) and "complex" in str(point.dtype) and not _holomorphic(pushed, t):
            return None
        (right,) = read(program, [*leaves, spread(ONE, point.shape)])
    except (Unreadable, TooLarge):
        return None
    return narrow(right)


def _holomorphic(x: Expr, t: Expr) -> bool:
    if x == t or not contains(x, t):
        return True
    return not (isinstance(x, Call) and x.fn in _NOT_HOLOMORPHIC) and all(_holomorphic(p, t) for p in x.parts)


def _pulled(
    fun: _Fun,
    structs: list[jax.ShapeDtypeStruct],
    leaves: list[Sym],
    position: int,
    outputs: list[Any],
    known: dict[Expr, Expr],
    cts: list[Expr] | None = None,
) -> Expr:
    """The cotangent that is sent back."""
    moved = [i for i, out in enumerate(outputs) if _jaxpr.is_inexact(out.dtype)]

    def pull(values: list[Any], cts: list[Any]) -> Any:
        def of(x: Any) -> Any:
            results = fun(*(x if i == position else v for i, v in enumerate(values)))
            return [results[i] for i in moved]

        return jax.vjp(of, values[position])[1](cts)[0]

    program = _jaxpr.trace(pull, structs, [outputs[i] for i in moved])
    cts = cts or [Sym("ct", i, outputs[i].shape) for i in moved]
    return read(program, [*leaves, *cts], known)[0]


# --- several operations ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """The operations between two values, and the values that they read beside.

    Attributes:
        nodes: the operations, in program order.
        inputs: the value in front, then those that are held.
        between: the values made on the way, the last one at the end.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    between: tuple[Value, ...]


def route_of(nodes: Sequence[Node], source: Value, target: Value) -> Route:
    made = {value.id: value for node in nodes for value in node.outputs}
    read_ = [v for node in nodes for v in node.operands if v.id not in made and v.id != source.id]
    between = [value for value in made.values() if value.id != target.id]
    return Route(tuple(nodes), (source, *distinct(read_)), (*between, target))


def derive_route(route: Route) -> Derived:
    """The derivative of the end of a route with respect to its beginning, values between under their names."""
    target = route.between[-1]
    if any(node.opened or not _may_open(node) for node in route.nodes):
        return _MAP

    def fun(*values: Any) -> Sequence[Any]:
        env = dict(zip((value.id for value in route.inputs), values, strict=True))
        for node in route.nodes:
            operands = [env[v.id] if v.id >= 0 else v.literal for v in node.operands]
            env |= zip((v.id for v in node.outputs), evaluate(node, operands), strict=True)
        return [env[target.id]]

    try:
        names = _names_between(route)
    except (Unreadable, TooLarge):
        names = {}
    return _derive(fun, [_struct(v) for v in route.inputs], 0, names)


def _names_between(route: Route) -> dict[Expr, Expr]:
    """What each value on the way stands for, one operation deep."""
    symbols: dict[int, Expr] = {v.id: Sym("in", i, v.shape) for i, v in enumerate(route.inputs)}
    symbols |= {v.id: Sym("mid", i, v.shape) for i, v in enumerate(route.between)}
    names: dict[Expr, Expr] = {}
    for node in route.nodes:
        inputs = distinct(node.operands)
        leaves = [symbols[v.id] for v in inputs]
        found = read(_jaxpr.trace(_function_of(node, inputs), *map(_struct, inputs)), leaves, opened=False)
        for expr, value in zip(found, node.outputs, strict=True):
            if not isinstance(expr, Sym | Num):
                names[expr] = symbols[value.id]
    return names
