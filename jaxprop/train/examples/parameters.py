"""Which axis of a value counts the examples, and which nodes use a parameter."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import jax

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.local import evaluate
from ...core.types import Array
from ...record.aliases import REORDERING
from .contributions import Contribution, contribution_of

# --- which axis counts the examples ---------------------------------------------------------------

#: Stands for the axis of a value whose shape depends on the number of examples in another way.
_IRREGULAR = -1


def example_axes(graph: Graph, larger: Graph, count: int) -> Mapping[int, int | None]:
    """Return the axis that counts the examples, by value; nothing if the two programs differ in structure.

    Args:
        graph: The program for `count` examples.
        larger: The program for one example more.
        count: The number of examples.
    """
    ours, theirs = ([node for node in g.walk() if node.eqn is not None] for g in (graph, larger))
    if [node.primitive for node in ours] != [node.primitive for node in theirs]:
        return {}
    axes: dict[int, int | None] = {}
    for node, other in zip(ours, theirs, strict=True):
        pairs = zip((*node.operands, *node.outputs), (*other.operands, *other.outputs), strict=True)
        axes |= {value.id: _differing(value.shape, its.shape, count) for value, its in pairs if value.id >= 0}
    return axes


def _differing(shape: Sequence[int], other: Sequence[int], count: int) -> int | None:
    if len(shape) != len(other):
        return _IRREGULAR
    differ = [axis for axis, (ours, theirs) in enumerate(zip(shape, other, strict=True)) if ours != theirs]
    if not differ:
        return None
    return differ[0] if len(differ) == 1 and shape[differ[0]] == count else _IRREGULAR


# --- where parameters are used --------------------------------------------------------------------

#: What happens to a parameter before it is used: a node changes its layout, or a scan of this length slices it.
Move: TypeAlias = Node | int


@dataclass(frozen=True)
class ParameterView:
    """A parameter as a node sees it.

    Attributes:
        leaf: The number of the differentiated leaf.
        moves: What happened to it on the way there.
        sliced: For each scan around the node, whether its steps see slices, or all see the same array.
    """

    leaf: int
    moves: tuple[Move, ...] = ()
    sliced: tuple[bool, ...] = ()

    def inside(self, sliced: bool, length: int) -> "ParameterView":
        """Return the view inside a scan."""
        return ParameterView(self.leaf, self.moves + (length,) * sliced, (*self.sliced, sliced))

    def back(self, g: Array) -> Array:
        """Return the gradient of the parameter from that of what the node sees (axis `s`, then its own)."""
        lengths = [move for move in self.moves if isinstance(move, int)]
        g = g.reshape(*lengths, *g.shape[1:])
        depth = len(lengths)
        for move in reversed(self.moves):
            if isinstance(move, int):
                depth -= 1
                continue
            pull = functools.partial(_pull_view, move)
            for _ in range(depth):
                pull = jax.vmap(pull)
            g = pull(g)
        return g


def _pull_view(node: Node, g: Array) -> Array:
    struct = _jaxpr.struct_of(node.operands[0].aval)
    return jax.linear_transpose(lambda x: evaluate(node, [x])[0], struct)(g)[0]


class ParameterUse(NamedTuple):
    """A node that uses a parameter, and its contribution to the gradient."""

    view: ParameterView
    node: Node
    position: int
    contribution: Contribution


class _UnknownUse(Exception):
    """A node uses a parameter in a way that is not known here."""


def parameter_uses(graph: Graph, axes: Mapping[int, int | None]) -> list[list[ParameterUse] | None]:
    """Return for each differentiated leaf the nodes that use it; None if one uses it in an unknown way."""
    views = {value.id: ParameterView(leaf) for leaf, value in enumerate(graph.inputs)}
    found: list[list[ParameterUse] | None] = [[] for _ in graph.inputs]

    def visit(level: Graph) -> None:
        for node in level.equations():
            for position, value in enumerate(node.operands):
                view = views.get(value.id) if value.literal is None else None
                known = found[view.leaf] if view is not None else None
                if view is None or known is None or not node.active:
                    continue
                try:
                    known += uses_at(node, position, view)
                except _UnknownUse:
                    found[view.leaf] = None
            for nested in node.graphs if node.opened else ():
                visit(nested)
                for value in nested.outputs:
                    if value.id in views and value.active:
                        found[views[value.id].leaf] = None

    def uses_at(node: Node, position: int, view: ParameterView) -> list[ParameterUse]:
        if node.opened:
            for value, seen in _inputs_of_bodies(node, position, view):
                views[value.id] = seen
            return []
        if _changes_layout(node) and axes.get(node.outputs[0].id, _IRREGULAR) is None:
            views[node.outputs[0].id] = replace(view, moves=(*view.moves, node))
            return []
        contribution = contribution_of(node, position, axis_of)
        if contribution is None:
            raise _UnknownUse
        return [ParameterUse(view, node, position, contribution)]

    def axis_of(value: Value) -> int | None:
        axis = axes.get(value.id, _IRREGULAR)
        return None if axis == _IRREGULAR else axis

    visit(graph)
    return found


def _inputs_of_bodies(node: Node, position: int, view: ParameterView) -> list[tuple[Value, ParameterView]]:
    """The inputs of the bodies of a node that receive one of its operands."""
    form = _jaxpr.opened_form(node.eqn)
    match form:
        case _jaxpr.Scan() if form.num_consts <= position < form.num_consts + form.num_carry:
            raise _UnknownUse
        case _jaxpr.Scan():
            seen = view.inside(position >= form.num_consts, form.length)
            return [(node.graphs[0].inputs[position], seen)]
        case _jaxpr.Cond():
            return [(graph.inputs[position - 1], view) for graph in node.graphs]
        case _:
            return [(node.graphs[0].inputs[position], view)]


#: A conversion keeps each element too.
_ELEMENTS_KEPT = REORDERING | {"convert_element_type"}


def _changes_layout(node: Node) -> bool:
    """Whether a node only changes the layout of an array."""
    if node.primitive not in _ELEMENTS_KEPT:
        return False
    source, target = node.operands[0], node.outputs[0]
    return math.prod(source.shape) == math.prod(target.shape) and _jaxpr.is_inexact(target.dtype)
