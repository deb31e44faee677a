"""What a recorder records at each node, and how the records are put together: those of one kind as one array.

A `Statistic` of many arrays, computed for each by itself, is many small kernels, and it is their number that
costs compile time. So the parts of all arrays are stacked, finished at once, and kept as they are: a record
is a row of a group, and is only cut out when somebody reads it.
"""

import functools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from ..core.graph import Graph, Node, Value
from ..core.local import Local
from ..core.recorders import Backward, EachCotangent, EachValue, Forward, PerOutput, Recorder, Tapped, tapped
from ..core.taps import decode
from ..core.types import Array, NodeIndex, OutCts, Position, PyTree
from .aliases import BACKWARD, FORWARD, Site, shared_sites
from .statistics import Statistic

#: Outside of loops, arrays of at most this many elements are carried to the end as they are, and measured there
#: together with all of their size: the fewer reductions, the shorter the compilation.
DEFERRED = 4096

_Parts: TypeAlias = tuple[Callable[[Array], PyTree] | None, ...]


class Besides(NamedTuple):
    """What is recorded of the outputs of a node, if anything, and something of the node as a whole besides."""

    outputs: PerOutput | None
    whole: PyTree


class Row(NamedTuple):
    """Where a record is: in which group, and in which row of it (None: the group is the record)."""

    group: int
    row: int | None


@dataclass(frozen=True)
class Recording:
    """A recorder at the watched nodes of a graph.

    Attributes:
        forward, backward: what a `Plan` is given, by index of the node.
        statistics: the statistic of each half that has one.
        shared: records that are those of another site.
    """

    graph: Graph
    forward: Mapping[NodeIndex, Forward] = field(default_factory=dict)
    backward: Mapping[NodeIndex, Tapped] = field(default_factory=dict)
    statistics: Mapping[str, Statistic] = field(default_factory=dict)
    shared: Mapping[Site, Site] = field(default_factory=dict)

    def gather(
        self,
        forward: Mapping[NodeIndex, PyTree],
        backward: Mapping[NodeIndex, PyTree],
        arrived: set[tuple[NodeIndex, Position]],
    ) -> tuple[list[PyTree], dict[Site, Row]]:
        """Put records into groups, and tell where each is.

        Args:
            forward, backward: what was recorded, by index of the node.
            arrived: (index, position) of the outputs a cotangent arrived at; elsewhere nothing was recorded.
        """
        decoded = {i: decode(record, self.backward[i].struct) for i, record in backward.items()}
        sites = dict(_sites(FORWARD, forward)) | dict(_arrived(_sites(BACKWARD, decoded), arrived))
        plain = {s: x for s, x in sites.items() if s.output is None or s.half not in self.statistics}
        groups = list(plain.values())
        where = {site: Row(i, None) for i, site in enumerate(plain)}
        for members, parts in self._stacks({s: part for s, part in sites.items() if s not in plain}):
            where |= {site: Row(len(groups), row) for row, site in enumerate(members)}
            groups.append(self._finish(members, parts))
        where |= {site: where[source] for site, source in self.shared.items() if source in where}
        return groups, where

    def _stacks(self, sites: Mapping[Site, PyTree]) -> list[tuple[list[Site], PyTree]]:
        """Stack the parts of one statistic and one type."""
        alike: dict[tuple[Statistic, bool, tuple[str, ...]], list[Site]] = {}
        for site, part in sites.items():
            types = tuple(str(jax.typeof(x)) for x in jax.tree.leaves(part))
            kind = self.statistics[site.half], is_deferred(self.graph, site), types
            alike.setdefault(kind, []).append(site)
        stacks: dict[Hashable, list[tuple[list[Site], PyTree]]] = {}
        for (statistic, deferred, _), members in alike.items():
            parts = jax.tree.map(lambda *xs: jnp.stack(xs), *(sites[site] for site in members))
            if deferred:
                parts = jax.vmap(statistic.measure)(parts)
            types = tuple((str(x.dtype), x.shape[1:]) for x in jax.tree.leaves(parts))
            stacks.setdefault((statistic, types), []).append((members, parts))
        return [_joined(stack) for stack in stacks.values()]

    def _finish(self, members: Sequence[Site], parts: PyTree) -> PyTree:
        steps = jax.tree.leaves(parts)[0].ndim - 1
        sizes = [math.prod(_value_at(self.graph, site).shape) for site in members]
        return self.statistics[members[0].half].finish(parts, np.array(sizes).reshape(-1, *(1,) * steps))


def _joined(stack: list[tuple[list[Site], PyTree]]) -> tuple[list[Site], PyTree]:
    members = [site for some, _ in stack for site in some]
    return members, jax.tree.map(lambda *xs: jnp.concatenate(xs), *(parts for _, parts in stack))


def _sites(half: str, records: Mapping[NodeIndex, PyTree]) -> Iterator[tuple[Site, PyTree]]:
    """The records of one half: one for each output where they are a `PerOutput`, else one for the node."""
    for index, record in records.items():
        if isinstance(record, Besides):
            yield Site(half, index, None), record.whole
            yield from _sites(half, {} if record.outputs is None else {index: record.outputs})
        elif isinstance(record, PerOutput):
            yield from (
                (Site(half, index, Position(i)), x) for i, x in enumerate(record.parts) if x is not None
            )
        else:
            yield Site(half, index, None), record


def _arrived(
    sites: Iterator[tuple[Site, PyTree]], arrived: set[tuple[NodeIndex, Position]]
) -> Iterator[tuple[Site, PyTree]]:
    nodes = {index for index, _ in arrived}
    for site, record in sites:
        if site.node in nodes if site.output is None else (site.node, site.output) in arrived:
            yield site, record


def _value_at(graph: Graph, site: Site) -> Value:
    return graph.by_index[site.node].outputs[site.output or 0]


# --- a recorder at the nodes of a graph ------------------------------------------------------------------


def recording(
    recorder: Recorder, graph: Graph, nodes: Sequence[Node], ruled: frozenset[NodeIndex] = frozenset()
) -> Recording:
    """Prepare a recorder for the nodes it watches. `ruled` are the indices of nodes with a rule."""
    statistics: dict[str, Statistic] = {}
    for half, fun in ((FORWARD, recorder.forward), (BACKWARD, recorder.backward)):
        if isinstance(fun, EachValue | EachCotangent) and isinstance(fun.fun, Statistic):
            statistics[half] = fun.fun
    free = {half for half, statistic in statistics.items() if statistic.order_free}
    watched = frozenset(node.index for node in nodes)
    pairs = shared_sites(graph, watched, ruled).items() if free else ()
    shared = {site: source for site, source in pairs if site.half in free}

    def parts_of(node: Node, half: str, fun: Callable[[Array], PyTree]) -> _Parts:
        """What is recorded of each output of a node."""
        if half not in statistics:
            return tuple(fun if _jaxpr.is_number(value.dtype) else None for value in node.outputs)
        sites = [Site(half, node.index, Position(i)) for i in range(len(node.outputs))]
        return tuple(
            None
            if site in shared or not _jaxpr.is_number(value.dtype)
            else jnp.ravel
            if is_deferred(graph, site)
            else statistics[half].measure
            if value.active
            else functools.partial(_measure_constant, statistics[half])
            for site, value in zip(sites, node.outputs, strict=True)
        )

    def forward_at(node: Node, half: Forward) -> Forward:
        if isinstance(half, EachValue):
            return functools.partial(_record_values, parts_of(node, FORWARD, half.fun))
        return half

    struct_of = functools.cache(_jaxpr.eval_shape)

    def backward_at(node: Node, half: Backward) -> Tapped:
        if isinstance(half, EachCotangent):
            return _tap_each(node, parts_of(node, BACKWARD, half.fun), struct_of)
        return tapped(node, half)

    forward: dict[NodeIndex, Forward] = {}
    backward: dict[NodeIndex, Tapped] = {}
    if recorder.forward is not None:
        forward = {node.index: forward_at(node, recorder.forward) for node in nodes}
    if recorder.backward is not None:
        backward = {node.index: backward_at(node, recorder.backward) for node in nodes if node.active}
    return Recording(graph, forward, backward, statistics, shared)


def is_deferred(graph: Graph, site: Site) -> bool:
    """Whether an array is carried to the end as it is, and measured there together with its like."""
    value = _value_at(graph, site)
    small = math.prod(value.shape) <= DEFERRED
    return small and not graph.places[site.node].steps and _jaxpr.is_whole(value.aval)


def _measure_constant(statistic: Statistic, x: Array) -> PyTree:
    """Measure what may be a constant of the program, which XLA would do at compile time, element by element."""
    return statistic.measure(jax.lax.optimization_barrier(x))


def _record_values(parts: _Parts, local: Local) -> PerOutput:
    return PerOutput([part and part(x) for part, x in zip(parts, local.outputs, strict=True)])


def _record_cotangents(parts: _Parts, local: Local, out_cts: OutCts) -> PerOutput:
    pairs = zip(parts, out_cts, strict=True)
    return PerOutput([None if part is None or ct is None else part(ct) for part, ct in pairs])


def _tap_each(node: Node, parts: _Parts, struct_of: Callable[..., PyTree]) -> Tapped:
    """What `tapped` finds for a half that looks at one cotangent at a time, types asked once for each."""
    struct = [
        struct_of(part, _jaxpr.struct_of(value.aval)) if part is not None and value.active else None
        for part, value in zip(parts, node.outputs, strict=True)
    ]
    primals = [_jaxpr.struct_of(value.aval) for value in (*(node.operands or node.outputs), *node.outputs)]
    return Tapped(functools.partial(_record_cotangents, parts), PerOutput(struct), primals)


# --- reading ----------------------------------------------------------------------------------------------


def pick(group: PyTree, row: int) -> PyTree:
    """Cut a record out of its group."""
    return jax.tree.map(lambda x: x[row], group)


def on_host(group: PyTree) -> PyTree:
    """A group as NumPy arrays if it is addressable: cutting a row out of a device array is a program each."""
    if all(map(_is_addressable, jax.tree.leaves(group))):
        return jax.device_get(group)
    return group


def _is_addressable(x: object) -> bool:
    if _jaxpr.is_tracer(x):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
