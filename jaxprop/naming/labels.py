"""Names, expressions and places in the source for a graph: tables by id, put into a copy of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .. import _jaxpr
from ..core.graph import LITERAL, Call, Graph, Node, Source, Value, annotate
from ..core.structure import binding
from ..core.types import Array, NodeIndex, ValueId
from .assign import Sight, Unique, assigned_names, fallback_name, label_and_source, sight, words


@dataclass(frozen=True)
class Naming:
    """What a call of the user's function tells about names.

    Attributes:
        inputs: the names of the inputs of the program: paths in the arguments.
        constants: the names of the arrays it closes over, None where one has none.
        function: the name of the traced function.
        home: the file it is defined in.
        scalars: arguments that are plain Python numbers. The program holds them as literals; the source tells
            which literal is which: `x` in `w * x`.
    """

    inputs: Sequence[str]
    constants: Sequence[str | None] = ()
    function: str | None = None
    home: str | None = None
    scalars: Mapping[str, Array] = field(default_factory=dict)


def named(graph: Graph, naming: Naming) -> Graph:
    """Give the values of a graph their names, and its nodes their expressions and places in the source."""
    sights = dict(_sights(graph, graph.jaxpr, (), naming.home))
    scalars = _scalar_values(graph, naming.scalars)
    unique = Unique()
    scalars = {name: replace(value, name=unique(name)) for name, value in scalars.items()}
    names, held = _value_names(graph, naming, sights, unique)
    places = dict(_places(graph, sights, None))
    known = any(label for label, _ in places.values())  # else nothing can be said of variables

    def of_value(value: Value) -> Value:
        if value.id == LITERAL:
            return value
        return replace(value, name=names[value.id], anonymous=known and value.id not in held)

    def of_node(node: Node) -> Node:
        if node.eqn is None:
            return node
        operands = node.operands
        if scalars:
            operands = _with_scalars(operands, words(sights[node.index], naming.function), scalars)
        label, source = places[node.index]
        return replace(node, operands=operands, label=label, source=source)

    result = annotate(graph, of_value, of_node)
    first = len(graph)
    fixed = (
        Node(NodeIndex(first + i), "input", "", "", None, (), (value,))
        for i, value in enumerate(scalars.values())
    )
    return replace(result, fixed=tuple(fixed))


def _sights(
    graph: Graph, jaxpr: object, around: tuple[_jaxpr.Frame, ...], home: str | None
) -> Iterator[tuple[NodeIndex, Sight]]:
    """What naming sees of each node, by index; the frames of inlined calls come after those of their bodies."""

    def of_items(items: Sequence[Node | Call], jaxpr: object, around: tuple[_jaxpr.Frame, ...]) -> Iterator:
        for item in items:
            seen = sight(item.eqn, jaxpr, around, home)
            if isinstance(item, Call):
                body = _jaxpr.inlined_program(item.eqn)
                assert body is not None
                yield from of_items(item.items, body.jaxpr, seen.raw)
                continue
            yield item.index, seen
            for nested in item.graphs:
                yield from _sights(nested, nested.jaxpr, (), home)

    yield from of_items(graph.items, jaxpr, around)


# --- names ----------------------------------------------------------------------------------------------


def _value_names(
    graph: Graph, naming: Naming, sights: Mapping[NodeIndex, Sight], unique: Unique
) -> tuple[dict[ValueId, str], set[ValueId]]:
    """Find a unique name for each value, and which of them variables, arguments or bodies hold."""
    names = {value.id: unique(name) for value, name in zip(graph.inputs, naming.inputs, strict=True)}
    given = [*naming.constants, *(None,) * (len(graph.consts) - len(naming.constants))]
    names |= {value.id: unique(name or "const") for value, name in zip(graph.consts, given, strict=True)}
    held = set(names)

    # Outer programs first: where a body and the code around it both have an `h`, the outer one is plain `h`.
    queue: list[tuple[Graph, str | None, bool]] = [(graph, naming.function, False)]
    for level, root, derived in queue:
        nodes = tuple(level.equations())
        assigned = assigned_names([sights[node.index] for node in nodes], root, derived)
        for node, found in zip(nodes, assigned, strict=True):
            seen = sights[node.index]
            fallback = fallback_name(seen, node.scope, node.primitive, naming.function)
            for position, value in enumerate(node.outputs):
                plain = f"{fallback}[{position}]" if len(node.outputs) > 1 else fallback
                dropped = _jaxpr.is_dropped(seen.eqn.outvars[position])
                names[value.id] = "" if dropped else unique(found[position] or plain)
                if found[position] and not dropped:
                    held.add(value.id)
            for nested in node.graphs:
                queue.append((nested, None, derived or bool(seen.deriving)))
                inner = _input_names(nested, node, names)
                names |= {value.id: unique(name) for value, name in zip(nested.inputs, inner, strict=True)}
                held.update(value.id for value in nested.inputs)
    return names, held


def _input_names(nested: Graph, node: Node, names: Mapping[ValueId, str]) -> list[str]:
    """Name the inputs of a nested graph: its function's arguments, under the function's name.

    What the function closes over has the name it has outside.
    """
    outside: dict[ValueId, str] = {}
    if node.opened:
        outside = {
            inner.id: names[outer.id] for outer, inner in binding(node, nested).into if outer.id in names
        }
    program = _jaxpr.as_program(nested.jaxpr)
    function = program.function_name
    prefix = function if function and function.isidentifier() else node.primitive
    given = program.argument_names or ("",) * len(nested.inputs)
    return [
        f"{prefix}/{name or outside.get(value.id) or f'in[{i}]'}"
        for i, (value, name) in enumerate(zip(nested.inputs, given, strict=True))
    ]


def _places(
    graph: Graph, sights: Mapping[NodeIndex, Sight], around: Source | None
) -> Iterator[tuple[NodeIndex, tuple[str, Source | None]]]:
    """Expression and place of each node; what has no place of its own has that of the node around it."""
    for node in graph.equations():
        label, own = label_and_source(sights[node.index])
        source = own or around
        yield node.index, (label, source)
        for nested in node.graphs:
            yield from _places(nested, sights, source)


# --- plain numbers among the arguments --------------------------------------------------------------------


def _scalar_values(graph: Graph, scalars: Mapping[str, Array]) -> dict[str, Value]:
    """A value for each plain number among the arguments, with ids after those of the graph."""
    first = 1 + max((value.id for node in graph.walk() for value in node.outputs), default=-1)
    found = {}
    for i, (name, number) in enumerate(scalars.items()):
        aval = _jaxpr.aval_of(number)
        dtype = _jaxpr.dtype_of(aval)
        found[name] = Value(name, (), dtype, False, ValueId(first + i), number, aval)
    return found


def _with_scalars(
    operands: tuple[Value, ...], written: Sequence[str], scalars: Mapping[str, Value]
) -> tuple[Value, ...]:
    """Recognize arguments among literal operands, by their name in the expression and by their value."""
    candidates = [scalars[word] for word in dict.fromkeys(written) if word in scalars]

    def known(operand: Value) -> Value:
        if operand.id != LITERAL or operand.shape != ():
            return operand
        same = [v for v in candidates if _jaxpr.same_number(v.literal, operand.literal, operand.dtype)]
        if len(same) != 1:
            return operand
        found = same[0]
        return replace(operand, name=found.name, id=found.id)

    return tuple(map(known, operands))
