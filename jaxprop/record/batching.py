"""What recorders wrote, put together at the end: arrays of one kind are finished as one.

A statistic of many arrays, computed for each by itself, is many small kernels, and it is their number that
costs compile time. So the parts of all arrays are stacked, finished in one go, and kept as they are: a record
is a row of a group, and is only cut out when someone asks for it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from ..core import taps
from ..core.aliases import BACK, OUT, Site
from ..core.interpreter import Plan
from ..core.types import PyTree


class Row(NamedTuple):
    """Where a record is: in which group, and in which row of it (None: the group is the record)."""

    group: int
    row: int | None


def gather(
    plan: Plan, forward: Mapping[int, PyTree], backward: Mapping[int, PyTree]
) -> tuple[list[PyTree], dict[Site, Row]]:
    """Put records into groups, and say where each is."""
    sites = _sites(plan, forward, backward)
    finish = plan.recorder.finish
    if finish is None:
        groups = list(sites.values())
        where = {site: Row(i, None) for i, site in enumerate(sites)}
    else:
        groups, where = _finished(plan, sites)
    where |= {site: where[source] for site, source in plan.shared.items() if source in where}
    return groups, where


def pick(group: PyTree, row: int) -> PyTree:
    """A record out of its group."""
    return jax.tree.map(lambda x: x[row], group)


def on_host(group: PyTree) -> PyTree:
    """A group as NumPy arrays, where it is at hand: cutting rows out of device arrays is a program for each."""
    if all(map(_at_hand, jax.tree.leaves(group))):
        return jax.device_get(group)
    return group


def _at_hand(x: Any) -> bool:
    if _jaxpr.is_tracer(x):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated


def _sites(plan: Plan, forward: Mapping[int, PyTree], backward: Mapping[int, PyTree]) -> dict[Site, PyTree]:
    decoded = {index: _decoded(record, plan.structs[index]) for index, record in backward.items()}
    found: dict[Site, PyTree] = {}
    for half, records in ((OUT, forward), (BACK, decoded)):
        for index, record in records.items():
            if not plan.recorder.per_value:
                found[half, index, None] = record
                continue
            found |= {(half, index, i): part for i, part in enumerate(record) if part is not None}
    return found


def _decoded(record: PyTree, structs: PyTree) -> PyTree:
    if not isinstance(record, tuple) or not isinstance(structs, tuple):
        return taps.decode(record, structs)
    return tuple(
        None if part is None else taps.decode(part, struct)
        for part, struct in zip(record, structs, strict=True)
    )


def _finished(plan: Plan, sites: Mapping[Site, PyTree]) -> tuple[list[PyTree], dict[Site, Row]]:
    """Stack the parts of one kind, and finish each stack."""
    stacks: dict[Any, list[tuple[list[Site], PyTree]]] = {}
    for members in _alike(plan, sites):
        arrays = jax.tree.map(lambda *parts: jnp.stack(parts), *(sites[site] for site in members))
        if _deferred(plan, members[0]):
            half = plan.recorder.forward if members[0][0] == OUT else plan.recorder.backward
            arrays = jax.vmap(half)(arrays)  # type: ignore[arg-type]
        kind = tuple((str(x.dtype), x.shape[1:]) for x in jax.tree.leaves(arrays))
        stacks.setdefault(kind, []).append((members, arrays))
    groups, where = [], {}
    for stacked in stacks.values():
        members = [site for some, _ in stacked for site in some]
        parts = jax.tree.map(lambda *xs: jnp.concatenate(xs), *(arrays for _, arrays in stacked))
        where |= {site: Row(len(groups), row) for row, site in enumerate(members)}
        steps = jax.tree.leaves(parts)[0].ndim - 1
        sizes = np.array([_size(plan, site) for site in members]).reshape(-1, *(1,) * steps)
        groups.append(plan.recorder.finish(parts, sizes))  # type: ignore[misc]
    return groups, where


def _alike(plan: Plan, sites: Mapping[Site, PyTree]) -> list[list[Site]]:
    """Sites whose parts can be stacked."""
    found: dict[Any, list[Site]] = {}
    for site, part in sites.items():
        kind = tuple(str(jax.typeof(x)) for x in jax.tree.leaves(part))
        half = site[0] if plan.recorder.forward is not plan.recorder.backward else ""
        found.setdefault((_deferred(plan, site), half, kind), []).append(site)
    return list(found.values())


def _deferred(plan: Plan, site: Site) -> bool:
    _, index, position = site
    node = plan.graph.by_index[index]
    return position is not None and plan.defers(node, node.outputs[position])


def _size(plan: Plan, site: Site) -> int:
    _, index, position = site
    shape = plan.graph.by_index[index].outputs[position or 0].shape
    return int(np.prod(shape))
