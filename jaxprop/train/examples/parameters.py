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


class Selection(NamedTuple):
    """A node that reorders the elements of a parameter, or selects some: its output of this position."""

    node: Node
    output: int


#: What happens to a parameter before it is used: elements are selected, or a scan of this length slices it.
Move: TypeAlias = Selection | int


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

    @property
    def region(self) -> tuple[range, ...] | None:
        """Which elements the node sees, along each axis of the parameter; None if it is not known."""
        first = self.moves[0] if self.moves else None
        return _kept_by(first) if isinstance(first, Selection) else None

    def back(self, g: Array) -> Array:
        """Return the gradient of the parameter from that of what the node sees (axis `s`, then its own)."""
        lengths = [move for move in self.moves if isinstance(move, int)]
        g = g.reshape(*lengths, *g.shape[1:])
        depth = len(lengths)
        for move in reversed(self.moves):
            if isinstance(move, int):
                depth -= 1
                continue
            pull = functools.partial(_pull_back, move)
            for _ in range(depth):
                pull = jax.vmap(pull)
            g = pull(g)
        return g


def _pull_back(move: Selection, g: Array) -> Array:
    node, output = move
    struct, out = _jaxpr.struct_of(node.operands[0].aval), _jaxpr.struct_of(node.outputs[output].aval)
    return jax.linear_transpose(lambda x: evaluate(node, [x])[output], struct)(g.astype(out.dtype))[0]


def _kept_by(move: Selection) -> tuple[range, ...] | None:
    node, output = move
    shape, params = node.operands[0].shape, node.params
    if node.primitive == "slice":
        strides = params["strides"] or (1,) * len(shape)
        bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        return tuple(range(*bound) for bound in bounds)
    if node.primitive == "split":
        start = int(sum(params["sizes"][:output]))
        kept = range(start, start + int(params["sizes"][output]))
        return tuple(kept if i == params["axis"] else range(n) for i, n in enumerate(shape))
    return None


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
        if _selects_elements(node) and all(axes.get(out.id, _IRREGULAR) is None for out in node.outputs):
            for i, out in enumerate(node.outputs):
                views[out.id] = replace(view, moves=(*view.moves, Selection(node, i)))
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


def _selects_elements(node: Node) -> bool:
    """Whether each element of what a node returns is a different one of what it is given."""
    if node.primitive in ("slice", "split"):
        return True
    if node.primitive not in _ELEMENTS_KEPT:
        return False
    source, target = node.operands[0], node.outputs[0]
    return math.prod(source.shape) == math.prod(target.shape) and _jaxpr.is_inexact(target.dtype)
