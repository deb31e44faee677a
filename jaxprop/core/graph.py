"""The computational graph of a traced function: frozen nodes with names, nested where the program is.

`build` turns a program into a `Graph`. Calls (`jit`) are inlined under their own scope; the bodies of `scan`,
`cond`, `while`, `jax.checkpoint` and of custom rules become nested graphs of the node that holds them.
"""

import difflib
import fnmatch
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from .. import _jaxpr
from .._fingerprint import fingerprint
from .._text import in_columns, type_name
from ..naming.syntax import Source

#: A glob, several globs (on a node's name, scope or primitive), or a predicate on `Node`.
Selector: TypeAlias = str | Sequence[str] | Callable[["Node"], bool]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the program: what one variable stands for.

    Attributes:
        name: its unique name in the whole graph; the number itself for a literal.
        shape: its shape, without the step axes it has inside a scan.
        dtype: its dtype.
        active: whether a cotangent can reach it: it lies between a differentiated argument and the output.
        id: its number in the graph, -1 for a literal.
        literal: the number, for a literal.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    active: bool
    id: int
    literal: Any = field(default=None, compare=False)
    aval: Any = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"Value({self.name}: {type_name(self.dtype, self.shape)})"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the program.

    Attributes:
        index: its number in the graph, in program order.
        primitive: the JAX primitive; the function's name for a custom rule; `input` or `const`.
        scope: named scopes, module names and inlined calls around it, joined by `/`.
        label: the expression in the source it stems from, "" where the source is unknown.
        source: file, line and function in the user's code, or None.
        operands: the values it reads, in the order of its positions.
        outputs: the values it makes.
        graphs: nested graphs: the body of a scan, the branches of a cond, ...
        opened: whether the nested graphs take part in the sweep (scan, cond, remat) or are only shown.
        params: the parameters of the primitive, as text.
    """

    index: int
    primitive: str
    scope: str
    label: str
    source: Source | None
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graphs: tuple["Graph", ...] = ()
    opened: bool = False
    eqn: Any = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the first output that is kept."""
        return next((value.name for value in self.outputs if value.name), self.primitive)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.outputs)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outputs[0].shape if self.outputs else ()

    @property
    def dtype(self) -> Any:
        return self.outputs[0].dtype if self.outputs else None

    @property
    def active(self) -> bool:
        """Whether a cotangent can reach any of its outputs."""
        return any(value.active for value in self.outputs)

    @property
    def params(self) -> Mapping[str, Any]:
        return {} if self.eqn is None else dict(self.eqn.params)

    @property
    def where(self) -> str:
        """`name` and the place in the source, for messages."""
        place = f" at {self.source.file}:{self.source.line}" if self.source else ""
        return f"`{self.name}` ({self.primitive}){place}"

    def __repr__(self) -> str:
        return f"Node({self.name} = {self.primitive}({', '.join(v.name for v in self.operands)}))"


@dataclass(frozen=True, slots=True)
class Call:
    """A call that means no more than its body (`jit`): run as one piece where nobody looks inside.

    Attributes:
        items: the operations of its body, which read and make the values of the graph around it.
        operands: the values it reads.
        outputs: the values it makes; None where a result is a literal.
    """

    items: tuple["Node | Call", ...]
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    eqn: Any = field(compare=False, repr=False)

    @property
    def nodes(self) -> Iterator[Node]:
        return flatten(self.items)


def flatten(items: Iterable["Node | Call"]) -> Iterator[Node]:
    """The operations among items, calls inlined."""
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
        fixed: nodes of arguments that are plain numbers, read as literals.
    """

    inputs: tuple[Value, ...]
    consts: tuple[Value, ...]
    outputs: tuple[Value, ...]
    items: tuple[Node | Call, ...]
    heads: tuple[Node, ...]
    fixed: tuple[Node, ...] = ()

    @functools.cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Inputs, closed-over arrays, then the operations of this level, calls inlined."""
        return (*self.heads, *self.fixed, *self.equations())

    def equations(self) -> Iterator[Node]:
        """The operations of this level, calls inlined."""
        return flatten(self.items)

    def walk(self) -> Iterator[Node]:
        """All nodes in program order, each before those of the graphs nested in it."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.walk()

    @functools.cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {name: node for node in self.walk() for name in node.names if name}

    @functools.cached_property
    def by_index(self) -> Mapping[int, Node]:
        return {node.index: node for node in self.walk()}

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        """The numbers of all nodes, nested ones included."""
        return frozenset(self.by_index)

    @functools.cached_property
    def places(self) -> Mapping[int, "Place"]:
        """Where each node stands among the nested graphs, by index."""
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
        return sum(1 for _ in self.walk())

    def __iter__(self) -> Iterator[Node]:
        return self.walk()

    def find(self, selector: Selector) -> tuple[Node, ...]:
        """The nodes a selector picks, in program order.

        Raises:
            ValueError: the selector picks nothing.
        """
        return select(self, selector)

    @functools.cached_property
    def _identity(self) -> tuple[Any, ...]:
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

    def __str__(self) -> str:
        return table(self)


class Place(NamedTuple):
    """Where a node stands among nested graphs.

    Attributes:
        graph: the graph it belongs to.
        steps: the step axes its values gain: lengths of the opened scans around it, outermost first.
        parents: pairs (node, number of its nested graph), outermost first.
    """

    graph: Graph
    steps: tuple[int, ...]
    parents: tuple[tuple[Node, int], ...]


def _places(
    graph: Graph, steps: tuple[int, ...], parents: tuple[tuple[Node, int], ...]
) -> Iterator[tuple[int, Place]]:
    place = Place(graph, steps, parents)
    for node in graph.nodes:
        yield node.index, place
        form = _jaxpr.opened_form(node.eqn) if node.opened else None
        inner = (*steps, form.length) if isinstance(form, _jaxpr.Scan) else steps
        for number, nested in enumerate(node.graphs):
            yield from _places(nested, inner, (*parents, (node, number)))


# --- selecting -----------------------------------------------------------------------------------


def unknown_name(name: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    return f"there is no value named {name!r} in the graph.{nearest(name, names)}"


def nearest(name: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return " Nearest names: " + ", ".join(close) + "."
    some = ", ".join(itertools.islice(names, 8))
    return f" Names there are: {some}{', ...' if len(names) > 8 else ''}."


def matches(selector: Selector, node: Node) -> bool:
    """Whether a selector picks a node."""
    if callable(selector):
        return bool(selector(node))
    patterns = (selector,) if isinstance(selector, str) else selector
    texts = (*node.names, node.scope, node.primitive)
    return any(_glob(pattern)(text) for pattern in patterns for text in texts if text)


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> Callable[[str], Any]:
    # `params['w']` is a name, not a set of characters: brackets stand for themselves.
    escaped = "".join(f"[{char}]" if char == "[" else char for char in pattern)
    return re.compile(fnmatch.translate(escaped)).match


def select(graph: Graph, selector: Selector) -> tuple[Node, ...]:
    _check_selector(selector)
    found = tuple(node for node in graph.walk() if matches(selector, node))
    if found:
        return found
    if callable(selector):
        raise ValueError(f"the selector {selector!r} picks no node of the graph.")
    patterns = [selector] if isinstance(selector, str) else list(selector)
    hint = nearest(patterns[0], graph.by_name) if patterns else ""
    raise ValueError(
        f"the selector {selector!r} matches nothing: no node has such a name, scope or primitive.{hint}"
    )


def _check_selector(selector: Any) -> None:
    if callable(selector) or isinstance(selector, str):
        return
    if isinstance(selector, Sequence) and all(isinstance(pattern, str) for pattern in selector):
        return
    raise TypeError(f"a selector is a glob, a list of globs, or a predicate on `Node`; got {selector!r}.")


# --- text ------------------------------------------------------------------------------------------


def table(graph: Graph) -> str:
    """The graph as a table: one row a node, nested graphs indented."""
    rows = [("node", "type", "operation", "source", ""), *_rows(graph, 0)]
    outputs = ", ".join(value.name for value in graph.outputs)
    return f"{in_columns(rows)}\nreturns {outputs}"


def _rows(graph: Graph, depth: int) -> Iterator[tuple[str, str, str, str, str]]:
    indent = "  " * depth
    for node in graph.nodes:
        operation = node.primitive
        if node.operands:
            operation += f"({', '.join(value.name for value in node.operands)})"
        yield (
            indent + ", ".join(name or "_" for name in node.names),
            ", ".join(type_name(value.dtype, value.shape) for value in node.outputs),
            operation if len(operation) <= 60 else operation[:57] + "...",
            str(node.source or ""),
            "active" if node.active else "",
        )
        for nested in node.graphs:
            yield from _rows(nested, depth + 1)
