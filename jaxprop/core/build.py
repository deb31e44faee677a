"""From a traced program to a `Graph`: number the variables, name the values, find what is active, freeze."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from .. import _jaxpr
from .._text import type_name
from ..naming import assign
from ..naming.syntax import Source
from .activity import Activity, Ends
from .draft import Draft, DraftCall, Fixed, Level, Numbering, into
from .graph import Call, Graph, Node, Value


class Argument(NamedTuple):
    """An input of the program: its name and whether it is differentiated."""

    name: str
    differentiated: bool


def build(
    program: _jaxpr.Program,
    arguments: Sequence[Argument],
    constants: Sequence[str | None] = (),
    function: str | None = None,
    home: str | None = None,
    scalars: Mapping[str, Any] | None = None,
    *,
    uncut: frozenset[int] = frozenset(),
    ends: Ends | None = None,
) -> Graph:
    """Build the graph of a program.

    Args:
        program: the traced program.
        arguments: one for each of its inputs.
        constants: names of the arrays it closes over, None where one has none.
        function: the name of the traced function.
        home: the file it stands in.
        scalars: arguments that are plain Python numbers. They stand in the program as literals, and are known
            again by the source: `x` in `w * x`.
        uncut: indices of nodes whose own rule sends nothing back, but another rule stands in for it.
        ends: what lies between these is active; by default what lies between the differentiated arguments
            and the results.
    """
    numbering = Numbering(home, function, scalars or {})
    top = numbering.level(program, outermost=True)
    names = _name_values(top, arguments, constants, function, numbering.scalars)
    names |= {fixed.id: name for name, fixed in numbering.scalars.items()}
    if ends is None:
        pairs = zip(top.inputs, arguments, strict=True)
        sources = frozenset(id_ for id_, argument in pairs if argument.differentiated)
        ends = Ends(sources, frozenset(id_ for id_ in top.outputs if isinstance(id_, int)))
    active = Activity(numbering.avals, uncut, ends).of(top)
    freezer = _Freezer(numbering.avals, names, active)
    graph = freezer.graph(top)
    if not numbering.scalars:
        return graph
    numbers = map(freezer.scalar, numbering.scalars.values())
    heads = (Node(numbering.take(1), "input", "", "", None, (), (value,)) for value in numbers)
    return replace(graph, fixed=tuple(heads))


def _name_values(
    top: Level,
    arguments: Sequence[Argument],
    constants: Sequence[str | None],
    function: str | None,
    scalars: Iterable[str],
) -> dict[int, str]:
    """Second pass: a unique name for each value."""
    unique = assign.Unique()
    for name in scalars:
        unique(name)
    names = {id_: unique(argument.name) for id_, argument in zip(top.inputs, arguments, strict=True)}
    given = [*constants, *(None,) * (len(top.consts) - len(constants))]
    names |= {id_: unique(name or "const") for id_, name in zip(top.consts, given, strict=True)}

    # Outer programs first: where a body and the code around it both have an `h`, the outer is plain `h`.
    queue: list[tuple[Level, str | None, bool]] = [(top, function, False)]
    for level, root, derived in queue:
        assigned = assign.assigned_names([draft.seen for draft in level.drafts], root, derived)
        for draft, found in zip(level.drafts, assigned, strict=True):
            primitive = _jaxpr.display_primitive(draft.seen.eqn)
            fallback = assign.fallback_name(draft.seen, draft.scope, primitive, function)
            several = len(draft.outputs) > 1
            for position, id_ in enumerate(draft.outputs):
                plain = f"{fallback}[{position}]" if several else fallback
                dropped = _jaxpr.is_dropped(draft.seen.eqn.outvars[position])
                names[id_] = "" if dropped else unique(found[position] or plain)
            for nested in draft.levels:
                queue.append((nested, None, derived or bool(draft.seen.deriving)))
                for id_, name in zip(nested.inputs, _input_names(nested, draft, primitive, names), strict=True):
                    names[id_] = unique(name)
    return names


def _input_names(level: Level, draft: Draft, primitive: str, names: Mapping[int, str]) -> list[str]:
    """Names of the inputs of a nested program: its function's arguments, under the function's name.

    What it closes over has the name it has outside.
    """
    outside: dict[int, str] = {}
    if draft.opened:
        outside = {inner: names[outer] for outer, inner in into(draft, level) if outer in names}
    function = level.program.function_name
    prefix = function if function and function.isidentifier() else primitive
    given = level.program.argument_names or ("",) * len(level.inputs)
    return [
        f"{prefix}/{name or outside.get(id_) or f'in[{i}]'}"
        for i, (id_, name) in enumerate(zip(level.inputs, given, strict=True))
    ]


class _Freezer:
    """Third pass: frozen nodes, numbered in program order."""

    def __init__(self, avals: list[Any], names: dict[int, str], active: set[int]) -> None:
        self.avals, self.names, self.active = avals, names, active

    @functools.cache  # noqa: B019
    def value(self, id_: int) -> Value:
        aval = self.avals[id_]
        return Value(
            name=self.names[id_],
            shape=_jaxpr.shape_of(aval),
            dtype=_jaxpr.dtype_of(aval),
            active=id_ in self.active,
            id=id_,
            aval=aval,
        )

    def atom(self, atom: Any) -> Value:
        if isinstance(atom, int):
            return self.value(atom)
        if atom.id >= 0:
            return self.scalar(atom)
        shape = _jaxpr.shape_of(atom.aval)
        name = f"{atom.val}" if shape == () else type_name(_jaxpr.dtype_of(atom.aval), shape)
        return Value(name, shape, _jaxpr.dtype_of(atom.aval), False, -1, atom.val, atom.aval)

    def scalar(self, fixed: Fixed) -> Value:
        dtype = _jaxpr.dtype_of(fixed.aval)
        return Value(self.names[fixed.id], (), dtype, False, fixed.id, fixed.val, fixed.aval)

    def graph(self, level: Level, source: Source | None = None) -> Graph:
        """`source` is the place of the node around, for what has none of its own."""
        kinds = ("input",) * len(level.inputs) + ("const",) * len(level.consts)
        heads = tuple(
            Node(level.head + i, kind, "", "", None, (), (self.value(id_),))
            for i, (kind, id_) in enumerate(zip(kinds, level.inputs + level.consts, strict=True))
        )
        return Graph(
            inputs=tuple(map(self.value, level.inputs)),
            consts=tuple(map(self.value, level.consts)),
            outputs=tuple(map(self.atom, level.outputs)),
            items=self.items(level.items, source),
            heads=heads,
        )

    def items(self, drafts: list[Draft | DraftCall], source: Source | None) -> tuple[Node | Call, ...]:
        return tuple(
            self.call(draft, source) if isinstance(draft, DraftCall) else self.node(draft, source)
            for draft in drafts
        )

    def call(self, draft: DraftCall, source: Source | None) -> Call:
        return Call(
            items=self.items(draft.items, source),
            operands=tuple(map(self.atom, draft.operands)),
            outputs=tuple(map(self.atom, draft.outputs)),
            eqn=draft.eqn,
        )

    def node(self, draft: Draft, around: Source | None) -> Node:
        label, own = assign.label_and_source(draft.seen)
        source = own or around
        return Node(
            index=draft.index,
            primitive=_jaxpr.display_primitive(draft.seen.eqn),
            scope=draft.scope,
            label=label,
            source=source,
            operands=tuple(map(self.atom, draft.operands)),
            outputs=tuple(map(self.value, draft.outputs)),
            graphs=tuple(self.graph(level, source) for level in draft.levels),
            opened=draft.opened,
            eqn=draft.seen.eqn,
        )
