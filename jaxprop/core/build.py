"""From a jaxpr to a `Graph`: every variable gets an id, every equation an index, calls are inlined."""

import itertools
from collections.abc import Iterator, Sequence

from .. import _jaxpr
from .._text import type_name
from .graph import LITERAL, Call, Graph, Node, Value
from .types import Array, NodeIndex, ValueId

_Env = dict[_jaxpr.Atom, Value]


def build(program: _jaxpr.Program) -> Graph:
    """Build the graph of a traced program, complete but for names, places in the source and activity.

    Calls (`jit`) are inlined under their own scope; the bodies of `scan`, `cond`, `while`, `jax.checkpoint`
    and of custom rules become nested graphs of the node that holds them.
    """
    builder = _Builder()
    consts = tuple(builder.value(var) for var in program.jaxpr.constvars)
    return builder.graph(program, consts, "", True)


class _Builder:
    """Numbers values and nodes in program order."""

    def __init__(self) -> None:
        self.ids: Iterator[int] = itertools.count()
        self.indices: Iterator[int] = itertools.count()

    def value(self, var: _jaxpr.Variable) -> Value:
        id_ = ValueId(next(self.ids))
        shape, dtype = _jaxpr.shape_of(var.aval), _jaxpr.dtype_of(var.aval)
        return Value(f"v{id_}", shape, dtype, False, id_, aval=var.aval)

    def index(self) -> NodeIndex:
        return NodeIndex(next(self.indices))

    def graph(self, program: _jaxpr.Program, consts: tuple[Value, ...], scope: str, opened: bool) -> Graph:
        """Build one level. `consts` are the closed-over arrays that are values; else they are literals."""
        jaxpr = program.jaxpr
        inputs = tuple(self.value(var) for var in jaxpr.invars)
        env: _Env = dict(zip(jaxpr.invars, inputs, strict=True))
        env |= dict(zip(jaxpr.constvars, consts, strict=True)) if consts else _literals(program)
        kinds = ("input",) * len(inputs) + ("const",) * len(consts)
        heads = tuple(
            Node(self.index(), kind, "", "", None, (), (value,))
            for kind, value in zip(kinds, (*inputs, *consts), strict=True)
        )
        items = self.items(jaxpr, env, scope, opened)
        outputs = tuple(_read(env, atom) for atom in jaxpr.outvars)
        return Graph(inputs, consts, outputs, items, heads, jaxpr=jaxpr)

    def items(self, jaxpr: _jaxpr.Jaxpr, env: _Env, scope: str, opened: bool) -> tuple[Node | Call, ...]:
        """Build the equations of a jaxpr, reading and writing `env`."""
        items: list[Node | Call] = []
        for eqn in jaxpr.eqns:
            inside = _jaxpr.join_scopes(scope, _jaxpr.scope_of(eqn))
            operands = tuple(_read(env, atom) for atom in eqn.invars)
            call = _jaxpr.inlined_program(eqn)
            if call is None:
                item = self.node(eqn, operands, inside, opened)
                outputs = item.outputs
            else:
                named = _jaxpr.join_scopes(inside, str(eqn.params.get("name") or ""))
                body: _Env = dict(zip(call.jaxpr.invars, operands, strict=True)) | _literals(call)
                inner = self.items(call.jaxpr, body, named, opened)
                outputs = tuple(_read(body, atom) for atom in call.jaxpr.outvars)
                item = Call(inner, operands, outputs, eqn)
            env.update(zip(eqn.outvars, outputs, strict=True))
            items.append(item)
        return tuple(items)

    def node(self, eqn: _jaxpr.Equation, operands: tuple[Value, ...], scope: str, opened: bool) -> Node:
        index = self.index()
        outputs = tuple(self.value(var) for var in eqn.outvars)
        form = _jaxpr.opened_form(eqn)
        bodies: Sequence[_jaxpr.Program] = _jaxpr.bodies_of(eqn)
        opens = opened and form is not None
        graphs = tuple(self.graph(body, (), scope, opens) for body in bodies)
        return Node(
            index, _jaxpr.display_primitive(eqn), scope, "", None, operands, outputs, graphs, opens, eqn
        )


def _literals(program: _jaxpr.Program) -> _Env:
    """The arrays that a nested program closes over."""
    pairs = zip(program.jaxpr.constvars, program.consts, strict=True)
    return {var: _literal(const, var.aval) for var, const in pairs}


def _literal(number: Array, aval: _jaxpr.Aval) -> Value:
    shape, dtype = _jaxpr.shape_of(aval), _jaxpr.dtype_of(aval)
    name = f"{number}" if shape == () else type_name(dtype, shape)
    return Value(name, shape, dtype, False, LITERAL, number, aval)


def _read(env: _Env, atom: _jaxpr.Atom) -> Value:
    return _literal(atom.val, atom.aval) if _jaxpr.is_literal(atom) else env[atom]
