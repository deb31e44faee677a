"""Where parameters meet the examples: which axis of a value counts them, and which nodes read a parameter."""

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
from .contributions import Part, part_of

# --- which axis counts the examples ---------------------------------------------------------------

#: Of a value that differs with the number of examples in another way than by one axis that counts them.
_ODD = -1


def example_axes(graph: Graph, twin: Graph, count: int) -> Mapping[int, int | None]:
    """The axis that counts examples, by id of a value; nothing where the two programs are not alike."""
    ours, theirs = ([node for node in g.walk() if node.eqn is not None] for g in (graph, twin))
    if [node.primitive for node in ours] != [node.primitive for node in theirs]:
        return {}
    axes: dict[int, int | None] = {}
    for node, other in zip(ours, theirs, strict=True):
        pairs = zip((*node.operands, *node.outputs), (*other.operands, *other.outputs), strict=True)
        axes |= {value.id: _differing(value.shape, its.shape, count) for value, its in pairs if value.id >= 0}
    return axes


def _differing(shape: Sequence[int], other: Sequence[int], count: int) -> int | None:
    if len(shape) != len(other):
        return _ODD
    differ = [axis for axis, (ours, theirs) in enumerate(zip(shape, other, strict=True)) if ours != theirs]
    if not differ:
        return None
    return differ[0] if len(differ) == 1 and shape[differ[0]] == count else _ODD


# --- where parameters are read --------------------------------------------------------------------

#: A parameter on its way to the node that reads it: the same numbers laid out in another way by a node, or one
#: slice of it for each step of a scan of this length.
Move: TypeAlias = Node | int


@dataclass(frozen=True)
class View:
    """A parameter as a node sees it.

    Attributes:
        leaf: number of the differentiated leaf.
        moves: how it came there.
        sliced: for each scan around, whether its steps see slices, or one and the same.
    """

    leaf: int
    moves: tuple[Move, ...] = ()
    sliced: tuple[bool, ...] = ()

    def inside(self, sliced: bool, length: int) -> "View":
        return View(self.leaf, self.moves + (length,) * sliced, (*self.sliced, sliced))

    def back(self, g: Array) -> Array:
        """Lay out a gradient of what the node sees (axes `s`, then its own) as one of the parameter."""
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


class Reading(NamedTuple):
    """A node that reads a parameter, and how it is taken apart."""

    view: View
    node: Node
    position: int
    part: Part


class _Unknown(Exception):
    """A node reads parameters in a way nothing is known about."""


def readings_of(graph: Graph, axes: Mapping[int, int | None]) -> list[list[Reading] | None]:
    """For each differentiated leaf all that reads it; None where something does in a way not known."""
    views = {value.id: View(leaf) for leaf, value in enumerate(graph.inputs)}
    found: list[list[Reading] | None] = [[] for _ in graph.inputs]

    def visit(level: Graph) -> None:
        for node in level.equations():
            for position, value in enumerate(node.operands):
                view = views.get(value.id) if value.literal is None else None
                known = found[view.leaf] if view is not None else None
                if view is None or known is None or not node.active:
                    continue
                try:
                    known += _read_by(node, position, view)
                except _Unknown:
                    found[view.leaf] = None
            for nested in node.graphs if node.opened else ():
                visit(nested)
                for value in nested.outputs:
                    if value.id in views and value.active:
                        found[views[value.id].leaf] = None

    def _read_by(node: Node, position: int, view: View) -> list[Reading]:
        if node.opened:
            for value, seen in _entered(node, position, view):
                views[value.id] = seen
            return []
        if _is_view(node) and axes.get(node.outputs[0].id, _ODD) is None:
            views[node.outputs[0].id] = replace(view, moves=(*view.moves, node))
            return []
        part = part_of(node, position, axis_of)
        if part is None:
            raise _Unknown
        return [Reading(view, node, position, part)]

    def axis_of(value: Value) -> int | None:
        axis = axes.get(value.id, _ODD)
        return None if axis == _ODD else axis

    visit(graph)
    return found


def _entered(node: Node, position: int, view: View) -> list[tuple[Value, View]]:
    """The inputs of the bodies of a node that are one of its operands."""
    form = _jaxpr.opened_form(node.eqn)
    match form:
        case _jaxpr.Scan() if form.num_consts <= position < form.num_consts + form.num_carry:
            raise _Unknown
        case _jaxpr.Scan():
            seen = view.inside(position >= form.num_consts, form.length)
            return [(node.graphs[0].inputs[position], seen)]
        case _jaxpr.Cond():
            return [(graph.inputs[position - 1], view) for graph in node.graphs]
        case _:
            return [(node.graphs[0].inputs[position], view)]


#: A conversion hands each number on as well.
_LAYOUTS = REORDERING | {"convert_element_type"}


def _is_view(node: Node) -> bool:
    """Whether a node only lays numbers out in another way."""
    if node.primitive not in _LAYOUTS:
        return False
    source, target = node.operands[0], node.outputs[0]
    return math.prod(source.shape) == math.prod(target.shape) and _jaxpr.is_inexact(target.dtype)
