"""What stands on the edges of a scene: local gradients, shares of a cotangent, what the backward pass keeps."""

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._fingerprint import fingerprint
from ...core.graph import Graph, Node, Value
from ...core.local import active_operands, node_function, partial_function
from ...record.tape import Tape
from ..symbolic.formula import Formula, formulas_of
from .arrays import show_array
from .scene import LocalText, Residual, Shown

#: Shares asked of the tape, over all values read in several places: each runs a few operations.
MOST_SHARES = 256
#: Kinds of operation whose local gradients are computed as numbers: they are one compiled program.
MOST_KINDS = 64

#: An operand: number of its node, and position.
Site = tuple[int, int]


# --- local gradients -------------------------------------------------------------------------------


def local_texts(graph: Graph, numbers: Mapping[Site, float]) -> dict[Site, LocalText]:
    """The local gradient at each active operand: formula and, where there is one, number."""
    found = {}
    for node in graph.walk():
        if not node.active or node.opened:
            continue
        for position, formula in enumerate(formulas_of(node, short_name)):
            if formula is not None and node.operands[position].active:
                found[node.index, position] = _text(formula, numbers.get((node.index, position)))
    return found


def _text(formula: Formula, number: float | None) -> LocalText:
    return LocalText(formula.text, formula.latex, formula.kind, number)


def short_name(value: Value) -> str:
    """A value's name without its scope."""
    return value.name if "[" in value.name else value.name.rsplit("/", 1)[-1]


def local_numbers(graph: Graph, values: Mapping[int, Any]) -> dict[Site, float]:
    """`d output / d operand` for scalars of scalars outside scans, by JAX, those of one kind together.

    Args:
        values: recorded values by their id, on the host.
    """
    kinds: dict[Any, list[tuple[Node, list[Any]]]] = {}
    for node in graph.walk():
        operands = _scalar_operands(node, graph, values)
        if operands is not None:
            kinds.setdefault(_kind(node), []).append((node, operands))
    groups = list(kinds.values())[:MOST_KINDS]
    if not groups:
        return {}
    stacked = [[np.stack(column) for column in zip(*(o for _, o in group), strict=True)] for group in groups]

    def all_of_them(stacked: Any) -> Any:
        return [_slopes(group[0][0], columns) for group, columns in zip(groups, stacked, strict=True)]

    found: dict[Site, float] = {}
    for group, slopes in zip(groups, jax.device_get(jax.jit(all_of_them)(stacked)), strict=True):
        for position, column in zip(active_operands(group[0][0]), slopes, strict=True):
            found |= {(node.index, position): float(x) for (node, _), x in zip(group, column, strict=True)}
    return found


def _scalar_operands(node: Node, graph: Graph, values: Mapping[int, Any]) -> list[Any] | None:
    """The operands of a node that maps real scalars to one real scalar, where they are all known."""
    if node.eqn is None or not node.active or node.opened or graph.places[node.index].steps:
        return None
    if len(node.outputs) != 1 or not all(_is_real_scalar(value) for value in (*node.outputs, *node.operands)):
        return None
    found = [values.get(v.id) if v.literal is None else v.literal for v in node.operands]
    if any(x is None for x in found):
        return None
    return [np.asarray(x, v.dtype) for x, v in zip(found, node.operands, strict=True)]


def _is_real_scalar(value: Value) -> bool:
    return value.shape == () and value.dtype is not None and jnp.issubdtype(value.dtype, jnp.floating)


def _kind(node: Node) -> Any:
    dtypes = tuple(str(value.dtype) for value in node.operands)
    return node.primitive, dtypes, active_operands(node), _params(node)


def _params(node: Node) -> Any:
    return tuple((name, fingerprint(param)) for name, param in sorted(node.params.items()))


def _slopes(node: Node, columns: Sequence[Any]) -> Any:
    moved = active_operands(node)

    def of(operands: Sequence[Any]) -> Any:
        fun = partial_function(node_function(node), operands, moved)
        outs, pull = jax.vjp(fun, *(operands[i] for i in moved))
        return pull([jnp.ones_like(out) for out in outs])

    return jax.vmap(of)(list(columns))


# --- shares ----------------------------------------------------------------------------------------


def shares(tape: Tape, shown: Mapping[int, tuple[Shown | None, Shown | None]]) -> tuple[dict[Site, Shown], int]:
    """What each reader of a value sends back, and for how many values this was not asked of the tape.

    Where one reads, it is the cotangent itself. A node that reads a value in several positions has the share of
    all of them at each.
    """
    graph = tape.graph
    readers: dict[int, list[Site]] = {}
    for node in graph.walk():
        if node.active and not node.opened:
            for position, value in enumerate(node.operands):
                if value.active:
                    readers.setdefault(value.id, []).append((node.index, position))
    counts = Counter(value.id for node in graph.walk() for value in node.operands if node.active)
    counts.update(value.id for level in _levels(graph) for value in level.outputs)
    found: dict[Site, Shown] = {}
    asked = left = 0
    values = {value.id: value for node in graph.walk() for value in node.outputs}
    for id_, sites in readers.items():
        whole = shown.get(id_, (None, None))[1]
        if whole is None:
            continue
        if counts[id_] == 1:
            found[sites[0]] = _plain(whole)
        elif asked + len(sites) <= MOST_SHARES:
            asked += len(sites)
            found |= _asked(tape, values[id_], sites)
        else:
            left += 1
    return found, left


def _asked(tape: Tape, value: Value, sites: Sequence[Site]) -> dict[Site, Shown]:
    try:
        parts = tape.shares(value.name)
    except ValueError:  # the tape did not record what this takes: then nothing is said
        return {}
    graph = tape.graph
    steps = len(graph.places[graph[value.name].index].steps)
    found = {}
    for index, position in sites:
        node = graph.by_index[index]
        part = parts.get(node.name or node.primitive)
        if part is not None:
            array = np.asarray(part)
            found[index, position] = _plain(show_array(array, min(steps, array.ndim), 2))
    return found


def _plain(shown: Shown) -> Shown:
    return Shown(shown.text, norm=shown.norm, number=shown.number, nonfinite=shown.nonfinite)


def _levels(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.walk():
        yield from node.graphs


# --- residuals -------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """What the backward half of a node reads of its forward half.

    Attributes:
        operands: positions of operands.
        outputs: numbers of outputs.
        bytes: of what its rule computes besides.
    """

    operands: tuple[int, ...]
    outputs: tuple[int, ...]
    bytes: int


def residuals(graph: Graph) -> tuple[tuple[Residual, ...], dict[int, int], int]:
    """What the backward pass keeps, as the rules of JAX have it.

    Returns:
        The values kept, for whom; by node: bytes of what its rule computes besides; and the bytes of all, each
        value once. What XLA computes again, or shares, it decides later.
    """
    made = {value.id: (node.index, i) for node in graph.walk() for i, value in enumerate(node.outputs)}
    again = _recomputed(graph)
    found: list[Residual] = []
    besides: dict[int, int] = {}
    once: dict[Site, int] = {}
    for node in graph.walk():
        if node.eqn is None or not node.active or node.opened or node.index not in again:
            continue
        kept = _kept(node)
        steps = math.prod(graph.places[node.index].steps)
        recomputed = again[node.index]
        values = [node.operands[i] for i in kept.operands] + [node.outputs[i] for i in kept.outputs]
        for value in dict.fromkeys(v for v in values if v.id in made):
            size = _bytes(value) * math.prod(graph.places[made[value.id][0]].steps)
            found.append(Residual(made[value.id], node.index, value.name, size, recomputed))
            if not recomputed:
                once[made[value.id]] = size
        if kept.bytes and not recomputed:
            besides[node.index] = kept.bytes * steps
    return tuple(found), besides, sum(once.values()) + sum(besides.values())


def _recomputed(graph: Graph) -> dict[int, bool]:
    """The nodes that take part in the sweep, and whether they are computed again on the way back."""
    found = {}
    for node in graph.walk():
        parents = [parent for parent, _ in graph.places[node.index].parents]
        if all(parent.opened for parent in parents):
            found[node.index] = any(parent.primitive == "checkpoint" for parent in parents)
    return found


def _bytes(value: Value) -> int:
    size = getattr(value.dtype, "itemsize", 0)
    return math.prod(value.shape) * size


def _kept(node: Node) -> Kept:
    shapes = tuple((str(v.dtype), v.shape) for v in node.operands)
    key = node.primitive, shapes, active_operands(node), _params(node)
    return _kept_by_kind(_ByKey(key, node))


class _ByKey:
    """A node that equals another one of its kind."""

    def __init__(self, key: Any, node: Node) -> None:
        self.key, self.node = key, node

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByKey) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key[:3])


@functools.lru_cache(maxsize=2048)
def _kept_by_kind(item: _ByKey) -> Kept:
    """Ask JAX: trace the forward half on shapes, and see which of the residuals are operands or outputs."""
    node = item.node
    moved = active_operands(node)

    def forward(*operands: Any) -> Any:
        outs, pull = jax.vjp(
            partial_function(node_function(node), operands, moved), *(operands[i] for i in moved)
        )
        return outs, [x for x in jax.tree.leaves(pull) if hasattr(x, "dtype")]

    program = _jaxpr.trace(forward, *(_jaxpr.struct_of(atom) for atom in node.eqn.invars))
    invars, results = program.jaxpr.invars, program.jaxpr.outvars
    outputs, kept = results[: len(node.outputs)], results[len(node.outputs) :]
    from_operands, from_outputs, rest = set(), set(), 0
    for atom in dict.fromkeys(atom for atom in kept if not _jaxpr.is_literal(atom)):
        if atom in invars:
            from_operands.add(invars.index(atom))
        elif atom in outputs:
            from_outputs.add(outputs.index(atom))
        elif atom not in program.jaxpr.constvars:
            rest += math.prod(_jaxpr.shape_of(atom.aval)) * getattr(_jaxpr.dtype_of(atom.aval), "itemsize", 0)
    return Kept(tuple(sorted(from_operands)), tuple(sorted(from_outputs)), rest)
