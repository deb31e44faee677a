"""The operations of a program as they are written in the source: `jnp.log(p)`, `x / y`, `p[i]`.

One operation of the source is a run of nodes with one label: `jnp.std(x)` is a dozen. Here the run is joined to
the expression: which value of the program each argument stands for.
"""

import ast
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...core.graph import Graph, Node, Value
from ...core.structure import once, producers
from ...core.types import ValueId
from .probe import is_float, moves

#: How a primitive is written in the source, where one expression is one primitive.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "acos": ("arccos",),
    "acosh": ("arccosh",),
    "add": ("+",),
    "asin": ("arcsin",),
    "atan": ("arctan",),
    "atan2": ("arctan2",),
    "atanh": ("arctanh",),
    "cbrt": ("cbrt",),
    "cos": ("cos",),
    "cosh": ("cosh",),
    "div": ("/",),
    "erf_inv": ("erfinv",),
    "exp": ("exp",),
    "exp2": ("exp2",),
    "expm1": ("expm1",),
    "integer_pow": ("**", "square", "reciprocal", "integer_pow"),
    "log": ("log",),
    "log1p": ("log1p",),
    "log2": ("log2",),
    "logistic": ("sigmoid",),
    "mul": ("*",),
    "neg": ("neg",),
    "pow": ("**",),
    "rem": ("%",),
    "rsqrt": ("rsqrt",),
    "sin": ("sin",),
    "sinh": ("sinh",),
    "sqrt": ("sqrt", "**"),
    "square": ("square", "**"),
    "sub": ("-",),
    "tan": ("tan",),
    "tanh": ("tanh",),
}
_OPERATORS: Mapping[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.Mod: "%",
    ast.Pow: "**",
    ast.MatMult: "@",
    ast.USub: "neg",
}
#: Other spellings of a name.
_SYNONYMS: Mapping[str, str] = {
    "acos": "arccos",
    "acosh": "arccosh",
    "add": "+",
    "asin": "arcsin",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "div": "/",
    "divide": "/",
    "erf_inv": "erfinv",
    "expit": "sigmoid",
    "float_power": "**",
    "fmod": "%",
    "logistic": "sigmoid",
    "mod": "%",
    "mul": "*",
    "multiply": "*",
    "negative": "neg",
    "pow": "**",
    "power": "**",
    "remainder": "%",
    "sub": "-",
    "subtract": "-",
    "true_divide": "/",
}
#: Functions whose second positional argument is the axis.
_AXIS_SECOND = frozenset({"sum", "mean", "max", "std", "var", "softmax", "log_softmax", "logsumexp"})
_MODULES = frozenset({"jnp", "np", "numpy", "jax", "lax", "nn", "linalg", "special", "scipy", "jsp", "optax"})


@functools.lru_cache(512)
def parse(code: str) -> ast.expr | None:
    """Parse an expression; None if the text is not one. The tree is shared: copy it before changing it."""
    try:
        return ast.parse(code.strip(), mode="eval").body
    except SyntaxError:
        return None


@dataclass(frozen=True)
class Written:
    """An operation as it is written: its name, its arguments, and the keywords that are given."""

    name: str
    arguments: tuple[ast.expr, ...]
    keywords: Mapping[str, ast.expr]


def written(tree: ast.expr | None) -> Written | None:
    """Read an expression as one operation: a call, a method, an operator or an index. None for anything else.

    Examples:
        >>> import ast
        >>> [ast.unparse(argument) for argument in written(parse("x / jnp.sum(x, axis=1)")).arguments]
        ['x', 'jnp.sum(x, axis=1)']
        >>> written(parse("p.sum(-1)")).name
        'sum'
    """
    match tree:
        case ast.BinOp(left, operator, right):
            return Written(_OPERATORS.get(type(operator), "?"), (left, right), {})
        case ast.UnaryOp(ast.USub(), operand):
            return Written("neg", (operand,), {})
        case ast.Subscript(value):
            return Written("[]", (value,), {})
        case ast.Call(function, positional, keywords):
            if any(isinstance(x, ast.Starred) for x in positional) or any(k.arg is None for k in keywords):
                return None
            name, receiver = _name_and_receiver(function)
            arguments = [*receiver, *positional]
            named = {keyword.arg: keyword.value for keyword in keywords if keyword.arg is not None}
            if name in _AXIS_SECOND and len(arguments) == 2:
                named["axis"] = arguments.pop()
            return Written(_SYNONYMS.get(name, name), tuple(arguments), named)
    return None


def _name_and_receiver(function: ast.expr) -> tuple[str, list[ast.expr]]:
    """The last name of a function; for a method also the object it is called on."""
    if not isinstance(function, ast.Attribute):
        return getattr(function, "id", ""), []
    root = function.value
    while isinstance(root, ast.Attribute):
        root = root.value
    of_module = isinstance(root, ast.Name) and root.id in _MODULES
    method = function.attr in ("sum", "mean", "std", "var", "max", "reshape", "astype", "squeeze")
    return function.attr, [function.value] if method and not of_module else []


def called(code: str) -> str:
    """Return the last name of the function that is called, `norm` for `jnp.linalg.norm(x)`; "" if none is."""
    tree = parse(code)
    return _name_and_receiver(tree.func)[0] if isinstance(tree, ast.Call) else ""


# --- joined to the program -------------------------------------------------------------------------


@dataclass(frozen=True)
class Operation:
    """An operation of the source, joined to the program.

    Attributes:
        tree: the expression.
        written: its name and arguments.
        values: the value each argument stands for; None for a number, or where it is not known.
        nodes: the nodes it becomes, in program order; the last produces the result.
        result: the value it produces.
    """

    tree: ast.expr
    written: Written
    values: tuple[Value | None, ...]
    nodes: tuple[Node, ...]
    result: Value

    @property
    def root(self) -> Node:
        """The node that produces the result."""
        return self.nodes[-1]

    @property
    def is_selection(self) -> bool:
        """Whether it only takes elements of its first argument: `p[i]`, `p.reshape(3)`."""
        taking = ("gather", "dynamic_slice")
        return bool(self.values) and all(
            moves(node) or node.primitive in taking or not is_float(node.outputs[0]) for node in self.nodes
        )


def operation_of(graph: Graph, node: Node) -> Operation | None:
    """Join the expression a node comes from to the program; None if that cannot be done without doubt."""
    tree = parse(node.label) if node.label else None
    shape = written(tree)
    if tree is None or shape is None:
        return None
    nodes = _run_around(graph, node, shape)
    made = {value.id for member in nodes for value in member.outputs}
    used = _used_outside(graph, nodes)
    if len(used) != 1 or not nodes[-1].outputs or used[0].id not in {v.id for v in nodes[-1].outputs}:
        return None
    read = {
        value.id: value
        for member in nodes
        for value in member.operands
        if value.id not in made and value.literal is None
    }
    values = _values_of_arguments(graph, shape, nodes, read)
    return Operation(tree, shape, values, nodes, used[0])


def _run_around(graph: Graph, node: Node, shape: Written) -> tuple[Node, ...]:
    """The nodes around one that come from the same evaluation of the same expression."""
    level = _operations_of_level(graph.places[node.index].graph)
    first = last = next(i for i, other in enumerate(level) if other.index == node.index)

    def belongs(other: Node) -> bool:
        return (other.label, other.source) == (node.label, node.source)

    if shape.name in SPELLINGS.get(node.primitive, ()):
        # One primitive: its root. The same primitive before it is an earlier evaluation of the same line.
        while first > 0 and belongs(level[first - 1]) and level[first - 1].primitive != node.primitive:
            first -= 1
        return level[first : last + 1]
    while first > 0 and belongs(level[first - 1]):
        first -= 1
    while last + 1 < len(level) and belongs(level[last + 1]):
        last += 1
    return level[first : last + 1]


@once
def _operations_of_level(graph: Graph) -> tuple[Node, ...]:
    return tuple(graph.equations())


def consuming_nodes(graph: Graph) -> Mapping[int, tuple[Node, ...]]:
    """The nodes of one level that read a value, by id of the value."""
    return _consumers_in_level(graph)


@once
def _consumers_in_level(graph: Graph) -> Mapping[int, tuple[Node, ...]]:
    found: dict[int, dict[int, Node]] = {}
    for node in graph.equations():
        for value in node.operands:
            found.setdefault(value.id, {})[node.index] = node
    return {id_: tuple(nodes.values()) for id_, nodes in found.items()}


def _used_outside(graph: Graph, nodes: Sequence[Node]) -> list[Value]:
    level = graph.places[nodes[0].index].graph
    inside = {node.index for node in nodes}
    returned = {value.id for value in level.outputs}
    return [
        value
        for node in nodes
        for value in node.outputs
        if value.id in returned or any(c.index not in inside for c in consuming_nodes(level).get(value.id, ()))
    ]


def _values_of_arguments(
    graph: Graph, shape: Written, nodes: Sequence[Node], read: Mapping[ValueId, Value]
) -> tuple[Value | None, ...]:
    by_position = _by_position(shape, nodes)
    if by_position is not None:
        return by_position
    texts = [ast.unparse(argument) for argument in shape.arguments]
    left = dict(read)
    found: dict[int, Value] = {}
    for i, text in enumerate(texts):
        alike = [value for value in left.values() if text in _texts_of(graph, value)]
        if len(alike) == 1:
            found[i] = left.pop(alike[0].id)
    floats = [value for value in left.values() if is_float(value)]
    unknown = [
        i
        for i, argument in enumerate(shape.arguments)
        if i not in found and not isinstance(argument, ast.Constant)
    ]
    if len(floats) == len(unknown) == 1:
        found[unknown[0]] = floats[0]
    return tuple(found.get(i) for i in range(len(texts)))


def _by_position(shape: Written, nodes: Sequence[Node]) -> tuple[Value | None, ...] | None:
    """For an expression that is one primitive: its operands, before they were broadcast or cast."""
    root = nodes[-1]
    if shape.name not in SPELLINGS.get(root.primitive, ()):
        return None
    inside = {value.id: node for node in nodes for value in node.outputs}

    def before_moves(value: Value) -> Value | None:
        while value.id in inside and (moves(inside[value.id]) or inside[value.id].primitive in _CASTS):
            value = inside[value.id].operands[0]
        return None if value.literal is not None or value.id in inside else value

    operands = list(map(before_moves, root.operands))
    return tuple(operands[i] if i < len(operands) else None for i in range(len(shape.arguments)))


_CASTS = ("convert_element_type",)


def _texts_of(graph: Graph, value: Value) -> Iterator[str]:
    """The texts that stand for a value in the source: its variable, and the expression it comes from."""
    yield variable_of(value)
    producer = producers(graph).get(value.id)
    if producer is not None and (tree := parse(producer.label)) is not None:
        yield ast.unparse(tree)


def variable_of(value: Value) -> str:
    """Return the name of a value without the number that tells it from others of that name."""
    return re.sub(r"#\d+$", "", value.name)
