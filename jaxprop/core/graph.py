"""The computational graph of a traced function: values and nodes, nested where the program is nested.

A `Graph` is complete as `core.build` makes it from a jaxpr: values are told apart by their ids, nodes by their
indices. Names, places in the source and activity are tables by id, made elsewhere and put in by `annotate`,
which returns another graph.
"""

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from .. import _jaxpr
from .._fingerprint import fingerprint
from .._text import in_columns, notebook_html, plural, shortened, type_name
from .selectors import Selector, select, unknown_name
from .statements import Statement, fold
from .types import Array, Dtype, NodeIndex, Shape, Steps, ValueId

#: The id of a literal that is written in the program.
LITERAL = ValueId(-1)


@dataclass(frozen=True, slots=True)
class Source:
    """A place in the user's source: file, line, and the function around it."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the program: what one variable of the jaxpr stands for.

    Attributes:
        name: its unique name in the whole graph; the number itself for a literal.
        shape: its shape, without the step axes it has inside a scan.
        dtype: its dtype.
        active: whether a cotangent can reach it: it is on a path from a differentiated argument to the output.
        id: identifies it in the graph; -1 for a literal.
        literal: the number, for a literal.
        aval: JAX's own type of it.
        anonymous: whether it is known that no variable holds it: its name is made from scope and primitive.
    """

    name: str
    shape: Shape
    dtype: Dtype
    active: bool
    id: ValueId
    literal: Array | None = field(default=None, compare=False)
    aval: _jaxpr.Aval | None = field(default=None, compare=False, repr=False)
    anonymous: bool = False

    def __repr__(self) -> str:
        return f"Value({self.name}: {type_name(self.dtype, self.shape)})"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the program.

    Attributes:
        index: its number in the graph, in program order.
        primitive: the JAX primitive; the function's name for a custom rule; `input` or `const`.
        scope: named scopes, module names and inlined calls around it, joined by `/`.
        label: the expression in the source it comes from, "" where the source is unknown.
        source: file, line and function in the user's code, or None.
        operands: the values it reads, by position.
        outputs: the values it produces.
        graphs: nested graphs: the body of a scan, the branches of a cond, ...
        opened: whether the nested graphs are differentiated through (scan, cond, remat) or only shown.
        eqn: the equation of the jaxpr; None for an input or a constant.
    """

    index: NodeIndex
    primitive: str
    scope: str
    label: str
    source: Source | None
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graphs: tuple["Graph", ...] = ()
    opened: bool = False
    eqn: _jaxpr.Equation | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the first output that is used."""
        return next((value.name for value in self.outputs if value.name), self.primitive)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its outputs, "" for one that is dropped."""
        return tuple(value.name for value in self.outputs)

    @property
    def shape(self) -> Shape:
        """The shape of its first output."""
        return self.outputs[0].shape if self.outputs else ()

    @property
    def dtype(self) -> Dtype:
        """The dtype of its first output."""
        return self.outputs[0].dtype if self.outputs else None

    @property
    def active(self) -> bool:
        """Whether a cotangent can reach any of its outputs."""
        return any(value.active for value in self.outputs)

    @property
    def expression(self) -> str:
        """The expression in the source it comes from, else the primitive with its operands."""
        if self.label or not self.operands:
            return self.label
        return f"{self.primitive}({', '.join(value.name for value in self.operands)})"

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the primitive."""
        return {} if self.eqn is None else dict(self.eqn.params)

    @property
    def where(self) -> str:
        """Its name and its place in the source, for messages."""
        place = f" at {self.source.file}:{self.source.line}" if self.source else ""
        return f"`{self.name}` ({self.primitive}){place}"

    def __repr__(self) -> str:
        return f"Node({self.name} = {self.primitive}({', '.join(v.name for v in self.operands)}))"


@dataclass(frozen=True, slots=True)
class Call:
    """A call that means no more than its body (`jit`): evaluated as one piece where nobody looks inside.

    Attributes:
        items: the operations of its body, on the values of the graph around it.
        operands: the values it reads.
        outputs: the values it produces.
        eqn: the equation of the jaxpr.
    """

    items: tuple["Node | Call", ...]
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    eqn: _jaxpr.Equation = field(compare=False, repr=False)

    @property
    def nodes(self) -> Iterator[Node]:
        """The operations of its body, calls inlined."""
        return flatten(self.items)


def flatten(items: Iterable[Node | Call]) -> Iterator[Node]:
    """Inline the calls among operations."""
    stack = [iter(items)]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
        elif isinstance(item, Call):
            stack.append(iter(item.items))
        else:
            yield item


@dataclass(frozen=True, eq=False)
class Graph:
    """A program as nodes in program order. Immutable; equal and hashed by structure.

    Attributes:
        inputs: the values of the arguments, or of the operands of a nested graph.
        consts: the values of closed-over arrays.
        outputs: the values returned.
        items: the operations, calls not yet inlined. `nodes` is what one usually wants.
        heads: the nodes of inputs and consts.
        fixed: the nodes of arguments that are plain numbers, which the program holds as literals.
        jaxpr: the jaxpr it was built from.
    """

    inputs: tuple[Value, ...]
    consts: tuple[Value, ...]
    outputs: tuple[Value, ...]
    items: tuple[Node | Call, ...]
    heads: tuple[Node, ...]
    fixed: tuple[Node, ...] = ()
    jaxpr: _jaxpr.Jaxpr | None = field(default=None, repr=False)
    answers: dict[Callable[..., Any], Any] = field(default_factory=dict, repr=False)  # see `structure.once`

    @functools.cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Inputs, closed-over arrays, then the operations of this level, calls inlined."""
        return (*self.heads, *self.fixed, *self.equations())

    def equations(self) -> Iterator[Node]:
        """The operations of this level, calls inlined."""
        return flatten(self.items)

    @functools.cached_property
    def statements(self) -> tuple["Statement[Node, Value]", ...]:
        """This level as statements, in program order: each value that a variable holds, with the anonymous
        operations between it and the values it is computed from folded into it.

        Where no source is known every operation is a statement.
        """
        return fold(tuple(self.equations()), self.outputs)

    def levels(self) -> Iterator["Graph"]:
        """This graph and all graphs nested in it, outermost first."""
        yield self
        for node in self.nodes:
            for nested in node.graphs:
                yield from nested.levels()

    @functools.cached_property
    def stated(self) -> frozenset[NodeIndex]:
        """Indices of the nodes shown first: inputs, constants, and those that end statements."""
        heads = (node.index for level in self.levels() for node in (*level.heads, *level.fixed))
        ends = (statement.node.index for level in self.levels() for statement in level.statements)
        return frozenset((*heads, *ends))

    def walk(self) -> Iterator[Node]:
        """All nodes in program order, each before those of the graphs nested in it."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.walk()

    @functools.cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The node that produces the value of each name."""
        return {name: node for node in self.walk() for name in node.names if name}

    @functools.cached_property
    def by_index(self) -> Mapping[NodeIndex, Node]:
        """Each node by its index."""
        return {node.index: node for node in self.walk()}

    @functools.cached_property
    def indices(self) -> frozenset[NodeIndex]:
        """The indices of all nodes, nested ones included."""
        return frozenset(self.by_index)

    @functools.cached_property
    def places(self) -> Mapping[NodeIndex, "Place"]:
        """Where each node is among the nested graphs, by index."""
        return dict(_places(self, (), ()))

    def __getitem__(self, name: str) -> Node:
        if name not in self.by_name:
            raise KeyError(unknown_name(name, self.by_name))
        return self.by_name[name]

    def value(self, name: str) -> Value:
        """The value of this name, in this graph or one nested in it."""
        node = self[name]
        return node.outputs[node.names.index(name)]

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __len__(self) -> int:
        return len(self.by_index)

    def __iter__(self) -> Iterator[Node]:
        return self.walk()

    def find(self, selector: Selector) -> tuple[Node, ...]:
        """The nodes a selector matches, in program order.

        Raises:
            ValueError: the selector matches no node.
        """
        return select(self, selector)

    @functools.cached_property
    def _identity(self) -> tuple[object, ...]:
        params = tuple(
            (fingerprint(node.eqn), *(fingerprint(value.literal) for value in node.operands))
            for node in self.walk()
        )
        return self.inputs, self.consts, self.outputs, tuple(self.walk()), params

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Graph) and hash(self) == hash(other) and (self._identity == other._identity)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.inputs, self.consts, self.outputs, tuple(self.walk())))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        active = sum(node.active for node in self.walk())
        return f"Graph({len(self)} nodes, {active} active)"

    def _repr_html_(self) -> str:
        return notebook_html(self)

    def __str__(self) -> str:
        return self.table()

    def table(self, operations: bool = False) -> str:
        """Write the graph as a table: its statements, or with `operations` every operation.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> def neuron(w, b, x):
            ...     z = w * x + b
            ...     return jnp.tanh(z)
            >>> graph = jp.trace(neuron)(0.5, 1.0, 2.0)
            >>> [statement.node.name for statement in graph.statements]
            ['z', 'neuron']
        """
        rows = [("value", "type", "expression", "source", ""), *_rows(self, self, 0, operations)]
        returned = f"returns {', '.join(value.name for value in self.outputs)}"
        hidden = len(self) - len(self.stated)
        if operations or not hidden:
            return f"{in_columns(rows)}\n{returned}"
        return f"{in_columns(rows)}\n{returned}\n{inner_operations(hidden)}"


def inner_operations(count: int) -> str:
    """What is written under a table that leaves operations out."""
    return f"{plural(count, 'operation')} inside these statements: .table(operations=True)"


def _rows(graph: Graph, root: Graph, depth: int, operations: bool) -> Iterator[tuple[str, ...]]:
    indent = "  " * depth
    for node in graph.nodes:
        if not operations and node.index not in root.stated:
            continue
        called = f"{node.primitive}({', '.join(value.name for value in node.operands)})"
        yield (
            indent + ", ".join(name or "_" for name in node.names),
            ", ".join(type_name(value.dtype, value.shape) for value in node.outputs),
            shortened(called if operations and node.operands else node.expression or node.primitive, 60),
            str(node.source or ""),
            "active" if node.active else "",
        )
        for nested in node.graphs:
            if operations or node.opened:
                yield from _rows(nested, root, depth + 1, operations)


class Place(NamedTuple):
    """Where a node is among nested graphs.

    Attributes:
        graph: the graph it belongs to.
        steps: the step axes its values gain: lengths of the opened scans around it, outermost first.
        parents: pairs (node, number of its nested graph), outermost first.
    """

    graph: Graph
    steps: Steps
    parents: tuple[tuple[Node, int], ...]


def _places(
    graph: Graph, steps: Steps, parents: tuple[tuple[Node, int], ...]
) -> Iterator[tuple[NodeIndex, Place]]:
    place = Place(graph, steps, parents)
    for node in graph.nodes:
        yield node.index, place
        form = _jaxpr.opened_form(node.eqn) if node.opened else None
        inner = (*steps, form.length) if isinstance(form, _jaxpr.Scan) else steps
        for number, nested in enumerate(node.graphs):
            yield from _places(nested, inner, (*parents, (node, number)))


# --- another graph of the same program ------------------------------------------------------------


def annotate(
    graph: Graph,
    of_value: Callable[[Value], Value],
    of_node: Callable[[Node], Node] = lambda node: node,
) -> Graph:
    """Rebuild a graph with other details: the same ids and indices, the same wiring.

    Args:
        of_value: from a value to the value that replaces it; called once for each id.
        of_node: from a node, its values replaced already, to the node that replaces it.
    """
    known: dict[ValueId, Value] = {}

    def value(old: Value) -> Value:
        if old.literal is not None or old.id == LITERAL:
            return of_value(old)
        if old.id not in known:
            known[old.id] = of_value(old)
        return known[old.id]

    def values(old: Iterable[Value]) -> tuple[Value, ...]:
        return tuple(map(value, old))

    def item(old: Node | Call) -> Node | Call:
        if isinstance(old, Call):
            return Call(tuple(map(item, old.items)), values(old.operands), values(old.outputs), old.eqn)
        return node(old)

    def node(old: Node) -> Node:
        graphs = tuple(map(level, old.graphs))
        return of_node(replace(old, operands=values(old.operands), outputs=values(old.outputs), graphs=graphs))

    def level(old: Graph) -> Graph:
        heads = tuple(map(node, old.heads))
        return Graph(
            inputs=values(old.inputs),
            consts=values(old.consts),
            items=tuple(map(item, old.items)),
            outputs=values(old.outputs),
            heads=heads,
            fixed=tuple(map(node, old.fixed)),
            jaxpr=old.jaxpr,
        )

    return level(graph)


def with_activity(graph: Graph, active: frozenset[ValueId]) -> Graph:
    """The same graph with other active values."""
    return annotate(graph, lambda value: replace(value, active=value.id in active))
