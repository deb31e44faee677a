"""A stable form matched in the program: the code to write, and the function that computes it."""

import ast
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ...core.graph import Graph, Node, Value
from ...core.local import evaluate
from ...core.structure import producers
from ...core.types import Array, NodeIndex, ValueId
from .expressions import Operation, consuming_nodes, operation_of, parse, variable_of, written
from .probe import moves
from .stable_forms import StableForm, constants_for

#: How many operations after the node in question an expression that holds it may end.
_DEEPEST = 5
#: Sub-expressions longer than this are named where they are used more than once.
_LONG = 16
#: Selections between the parts of an expression that are looked through: `log(p[i])`.
_MOST_SELECTIONS = 3


@dataclass(frozen=True)
class Rewrite:
    """A stable form in place of an expression of the program.

    Attributes:
        form: the row of the table.
        code: what to write, one line of Python.
        replaced: the expression it replaces.
        root: the node that produces the value of that expression.
        result: that value.
        inputs: the values of the program it is computed from, all of the graph the root is in.
        function: computes the new result from them.
        original: computes the result of the expression that is replaced, as it is written in the source.
        nodes: indices of the nodes that the expression consists of.
        replays: whether the function evaluates nodes of the program, so that shapes are fixed.
    """

    form: StableForm
    code: str
    replaced: str
    root: Node
    result: Value
    inputs: tuple[Value, ...]
    function: Callable[..., Array]
    original: Callable[..., Array]
    nodes: frozenset[NodeIndex]
    replays: bool


@dataclass(frozen=True)
class _Binding:
    """What the names in a form stand for.

    Attributes:
        values: the value of each name, where it is one of the program.
        trees: the expression of each name.
        nodes: indices of the nodes that are replaced.
        selections: operations to apply to the result: `[i]` in `log(p[i])`.
        operation: what `f` stands for.
        root: the operation whose result is replaced.
        argument: the number of the argument of `f` that `x` stands for.
    """

    values: Mapping[str, Value] = field(default_factory=dict)
    trees: Mapping[str, ast.expr] = field(default_factory=dict)
    nodes: frozenset[NodeIndex] = frozenset()
    selections: tuple[Operation, ...] = ()
    operation: Operation | None = None
    root: Operation | None = None
    argument: int = 0


def rewrites(form: StableForm, graph: Graph, node: Node, position: int = 0) -> Iterator[Rewrite]:
    """Find the expressions around a node that a form can replace, the smallest first.

    Args:
        form: the row of the table.
        graph: the program.
        node: a node that the expression must contain.
        position: of the operand that `x` stands for in `f(x)`.
    """
    for operation, binding in _bindings(form, graph, node, position):
        yield _rewrite(form, operation, binding)


def replaceable(form: StableForm, graph: Graph, node: Node, position: int = 0) -> frozenset[NodeIndex]:
    """Return the indices of the nodes of all expressions that `rewrites` finds."""
    return frozenset().union(*(binding.nodes for _, binding in _bindings(form, graph, node, position)))


def _bindings(
    form: StableForm, graph: Graph, node: Node, position: int
) -> Iterator[tuple[Operation, _Binding]]:
    pattern = parse_form(form.broken)
    of_node = operation_of(graph, node)
    shape = written(pattern)
    if shape is not None and shape.name == "f":
        binding = None if of_node is None else _bind_function(of_node, node, position)
        if of_node is not None and binding is not None:
            yield of_node, binding
        return
    for operation in _around(graph, of_node):
        for binding in _matches(graph, pattern, operation, _Binding(root=operation)):
            if node.index in binding.nodes and _is_plain(binding):
                yield operation, binding


def parse_form(code: str) -> ast.expr:
    """Parse an expression of a stable form.

    Raises:
        ValueError: it is not a Python expression.
    """
    tree = parse(code)
    if tree is None:
        raise ValueError(f"a stable form consists of two Python expressions, but {code!r} is not one.")
    return tree


def _bind_function(operation: Operation, node: Node, position: int) -> _Binding | None:
    """Bind `f(x)` to an operation as it is written, and `x` to the argument that an operand comes from."""
    argument = _argument_of(operation, node, position)
    x = operation.values[argument] if operation.values else None
    if x is None or operation.values.count(x) > 1:
        return None
    nodes = frozenset(member.index for member in operation.nodes)
    return _Binding(
        {"x": x}, {"x": operation.written.arguments[argument]}, nodes, (), operation, operation, argument
    )


def _argument_of(operation: Operation, node: Node, position: int) -> int:
    """The number of the argument that an operand comes from; of the first if it comes from several."""
    producers = {value.id: member for member in operation.nodes for value in member.outputs}
    value = node.operands[position] if position < len(node.operands) else None
    while value is not None and value not in operation.values:
        producer = producers.get(value.id)
        value = producer.operands[0] if producer is not None and moves(producer) else None
    return 0 if value is None else operation.values.index(value)


def _around(graph: Graph, operation: Operation | None) -> Iterator[Operation]:
    """The operation, and those that its result goes into, nearest first."""
    seen: set[int] = set()
    front = [] if operation is None else [operation]
    for _ in range(_DEEPEST):
        following: list[Operation] = []
        for current in front:
            if current.result.id in seen:
                continue
            seen.add(current.result.id)
            yield current
            level = graph.places[current.root.index].graph
            onward = (operation_of(graph, user) for user in consuming_nodes(level).get(current.result.id, ()))
            following += [found for found in onward if found is not None]
        front = following


# --- matching --------------------------------------------------------------------------------------


def _matches(graph: Graph, pattern: ast.expr, operation: Operation, binding: _Binding) -> Iterator[_Binding]:
    """Match an operation and its arguments, in each order if it commutes."""
    wanted, found = written(pattern), operation.written
    if wanted is None or not _same_name(pattern, operation):
        return
    names = {keyword: tree.id for keyword, tree in wanted.keywords.items() if isinstance(tree, ast.Name)}
    if not found.keywords.keys() <= names.keys():
        return
    trees = {**binding.trees, **{names[keyword]: tree for keyword, tree in found.keywords.items()}}
    binding = replace(binding, trees=trees, nodes=binding.nodes.union(node.index for node in operation.nodes))
    parts, arguments = wanted.arguments, list(zip(found.arguments, operation.values, strict=True))
    if _is_square(pattern):
        parts, arguments = parts[:1], arguments[:1]
    if len(parts) != len(arguments):
        return
    for order in [arguments, arguments[::-1]] if wanted.name in ("+", "*") else [arguments]:
        matched = [binding]
        for part, (tree, value) in zip(parts, order, strict=True):
            matched = [
                longer
                for one in matched
                for longer in _match_argument(graph, part, tree, value, one, operation)
            ]
        yield from matched


def _same_name(pattern: ast.expr, operation: Operation) -> bool:
    wanted, found = written(pattern), operation.written
    if not _is_square(pattern):
        return wanted is not None and wanted.name == found.name
    if found.name == "*":
        return operation.values[0] is not None and operation.values[0] == operation.values[1]
    return found.name == "square" or (found.name == "**" and _is_number(found.arguments[1], 2))


def _is_square(pattern: ast.expr) -> bool:
    return isinstance(pattern, ast.BinOp) and isinstance(pattern.op, ast.Pow) and _is_number(pattern.right, 2)


def _is_number(tree: ast.expr, number: object) -> bool:
    return isinstance(tree, ast.Constant) and tree.value == number


def _match_argument(
    graph: Graph, pattern: ast.expr, tree: ast.expr, value: Value | None, binding: _Binding, around: Operation
) -> Iterator[_Binding]:
    if isinstance(pattern, ast.Constant):
        yield from [binding] if _is_number(tree, pattern.value) else []
        return
    if isinstance(pattern, ast.Name):
        bound = _bind_name(graph, pattern.id, tree, value, binding, around)
        yield from [] if bound is None else [bound]
        return
    taken: list[Operation] = []
    operation = _producing_operation(graph, value)
    while operation is not None and operation.is_selection and len(taken) < _MOST_SELECTIONS:
        taken.append(operation)
        operation = _producing_operation(graph, operation.values[0])
    if operation is None or not _in_one_function(operation, around):
        return
    if taken and (binding.selections or around is not binding.root or around.written.name not in _ELEMENTWISE):
        return
    selected = frozenset(node.index for one in taken for node in one.nodes)
    binding = replace(binding, selections=binding.selections + tuple(taken), nodes=binding.nodes | selected)
    yield from _matches(graph, pattern, operation, binding)


#: Operations that commute with taking elements: `log(p[i])` is `log(p)[i]`.
_ELEMENTWISE = ("exp", "log", "log1p", "sqrt")


def _producing_operation(graph: Graph, value: Value | None) -> Operation | None:
    producer = None if value is None else producers(graph).get(value.id)
    return None if producer is None else operation_of(graph, producer)


def _bind_name(
    graph: Graph, name: str, tree: ast.expr, value: Value | None, binding: _Binding, around: Operation
) -> _Binding | None:
    """Bind a name of a form to an argument; None if it is bound to another, or means another elsewhere."""
    if name in binding.trees:
        known = binding.values.get(name)
        same = known == value if value is not None else ast.unparse(tree) == ast.unparse(binding.trees[name])
        return binding if same else None
    if (value is None and not isinstance(tree, ast.Constant)) or not _means_the_same(
        graph, tree, around, binding
    ):
        return None
    values = binding.values if value is None else {**binding.values, name: value}
    return replace(binding, values=values, trees={**binding.trees, name: tree})


def _in_one_function(operation: Operation, other: Operation) -> bool:
    a, b = operation.root.source, other.root.source
    return a is not None and b is not None and (a.file, a.function) == (b.file, b.function)


def _means_the_same(graph: Graph, tree: ast.expr, around: Operation, binding: _Binding) -> bool:
    """Whether an expression has the same value at the root: part of it, or its names are assigned once."""
    if binding.root is None or ast.unparse(around.tree) in ast.unparse(binding.root.tree):
        return True
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    level = graph.places[around.root.index].graph
    assigned = [variable_of(value) for node in level.nodes for value in node.outputs if value.name]
    return all(assigned.count(name) < 2 for name in names)


def _is_plain(binding: _Binding) -> bool:
    """Whether the keywords and numbers of an expression are written out: only then can it be evaluated."""
    try:
        for name, tree in binding.trees.items():
            if name not in binding.values:
                ast.literal_eval(tree)
    except ValueError:
        return False
    return True


# --- writing it out, and computing it --------------------------------------------------------------


def _rewrite(form: StableForm, operation: Operation, binding: _Binding) -> Rewrite:
    template = parse_form(form.stable)
    constants = constants_for(np.dtype(operation.result.dtype))
    inputs = _inputs(binding)
    return Rewrite(
        form=form,
        code=_code(template, binding, constants),
        replaced=ast.unparse(operation.tree),
        root=operation.root,
        result=operation.result,
        inputs=inputs,
        function=_as_function(template, binding, constants, inputs),
        original=_as_function(parse_form(form.broken), binding, constants, inputs),
        nodes=binding.nodes,
        replays=binding.operation is not None or bool(binding.selections),
    )


class _Substitute(ast.NodeTransformer):
    """Put expressions in place of the names of a form. Keywords that are not given are dropped.

    Attributes:
        trees: the expression for each name.
        short: names for expressions that are long and used more than once.
        function: what `f` is written as, given its argument.
    """

    def __init__(
        self,
        trees: Mapping[str, ast.expr],
        short: Mapping[str, str],
        function: Callable[[ast.expr], ast.expr] | None,
        given: frozenset[str],
    ) -> None:
        self.trees, self.short, self.function, self.given = trees, short, function, given
        self.named: set[str] = set()

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id not in self.trees:
            return node
        tree = copy.deepcopy(self.trees[node.id])
        if node.id not in self.short:
            return tree
        name = ast.Name(self.short[node.id])
        if node.id in self.named:
            return name
        self.named.add(node.id)  # visited in the order of evaluation
        return ast.NamedExpr(name, tree)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        node.keywords = [keyword for keyword in node.keywords if not self._is_missing(keyword.value)]
        self.generic_visit(node)
        is_function = isinstance(node.func, ast.Name) and node.func.id == "f"
        return self.function(node.args[0]) if is_function and self.function is not None else node

    def _is_missing(self, tree: ast.expr) -> bool:
        return isinstance(tree, ast.Name) and tree.id in ("axis", "keepdims") and tree.id not in self.given


def _code(template: ast.expr, binding: _Binding, constants: Mapping[str, str]) -> str:
    """Write the stable expression with the user's own sub-expressions."""
    used = [node.id for node in ast.walk(template) if isinstance(node, ast.Name)]
    long = [
        name for name, tree in binding.trees.items() if used.count(name) > 1 and len(ast.unparse(tree)) > _LONG
    ]
    trees = {**{name: ast.Name(text) for name, text in constants.items()}, **binding.trees}
    taken = {
        node.id for tree in (template, *trees.values()) for node in ast.walk(tree) if isinstance(node, ast.Name)
    }
    free = [name for name in ("a", "b", "u", "v", "operand", "other") if name not in taken]
    function = None
    if binding.operation is not None:
        function = functools.partial(_with_argument, binding.operation, binding.argument)
    short = dict(zip(long, free, strict=False))
    tree = _Substitute(trees, short, function, frozenset(binding.trees)).visit(copy.deepcopy(template))
    for selection in reversed(binding.selections):
        tree = _with_argument(selection, 0, tree)
    return ast.unparse(ast.fix_missing_locations(tree))


def _with_argument(operation: Operation, number: int, argument: ast.expr) -> ast.expr:
    """The expression of an operation with another argument in place of one of its own."""
    return copy.deepcopy(operation.tree, {id(operation.written.arguments[number]): argument})


def _inputs(binding: _Binding) -> tuple[Value, ...]:
    """The values of the program that the stable form reads."""
    replayed = [*binding.selections, *([binding.operation] if binding.operation is not None else [])]
    nodes = [node for operation in replayed for node in operation.nodes]
    own = {value.id for node in nodes for value in node.outputs}
    own |= {one.values[0].id for one in binding.selections if one.values[0] is not None}
    read = {value.id: value for node in nodes for value in node.operands if value.literal is None}
    needed = {id_: value for id_, value in read.items() if id_ not in own}
    return tuple((needed | {value.id: value for value in binding.values.values()}).values())


def _as_function(
    template: ast.expr, binding: _Binding, constants: Mapping[str, str], inputs: tuple[Value, ...]
) -> Callable[..., Array]:
    """The stable form as a function of the values that it reads. What is printed is what is evaluated."""
    given = frozenset(binding.trees)
    tree = _Substitute({}, {}, None, given).visit(copy.deepcopy(template))
    code = compile(ast.fix_missing_locations(ast.Expression(tree)), "<stable form>", "eval")
    plain = {name: ast.literal_eval(tree) for name, tree in binding.trees.items() if name not in binding.values}
    numbers = {name: float(text) for name, text in constants.items()}

    def function(*arrays: Array) -> Array:
        env = {value.id: x for value, x in zip(inputs, arrays, strict=True)}
        scope = {**numbers, **plain, **{name: env[value.id] for name, value in binding.values.items()}}
        if binding.operation is not None:
            scope["f"] = functools.partial(_replayed, binding.operation, binding.argument, env)
        result = eval(code, {"jnp": jnp, "jax": jax, **scope})
        for selection in reversed(binding.selections):
            result = _replayed(selection, 0, env, result)
        return result

    return function


def _replayed(operation: Operation, number: int, env: Mapping[ValueId, Array], argument: Array) -> Array:
    """Evaluate an operation of the program with another argument in place of one of its own."""
    values = dict(env)
    if (replaced := operation.values[number]) is not None:
        values[replaced.id] = argument
    for node in operation.nodes:
        operands = [v.literal if v.literal is not None else values[v.id] for v in node.operands]
        values.update(zip((value.id for value in node.outputs), evaluate(node, operands), strict=True))
    return values[operation.result.id]
