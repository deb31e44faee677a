"""Where a run lies on many devices. JAX does the work; what is here says which array goes where, in one place.

Everything is said with a mesh and `NamedSharding`s. The compiled step is the same program on one device and on
thousands: XLA splits it by how its inputs lie.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from warnings import warn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..._jaxpr import is_key
from ..._text import listed
from ...core.types import PyTree


@dataclass(frozen=True, eq=False)
class Placement:
    """How a state and its batches lie on the devices of a mesh.

    Made by `data_parallel`, `fully_sharded` or `explicit_sharding`.

    Attributes:
        mesh: the devices.
        axes: names of the mesh's axes over which rows of a batch are split.
        layout: from a state, or its shapes, to a `PartitionSpec` for each of its leaves.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    layout: Callable[[PyTree], PyTree]

    @property
    def parts(self) -> int:
        """Into how many parts a batch is split."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def shardings(self, state: PyTree) -> PyTree:
        """A `NamedSharding` for each leaf of a state, for `jax.jit(in_shardings=..., out_shardings=...)`."""
        return jax.tree.map(self._named, self.layout(state), is_leaf=lambda x: isinstance(x, P))

    def state(self, state: PyTree) -> PyTree:
        """The state on the devices, in arrays of its own: the given ones may be used on.

        Under several processes each gives the same numbers.
        """
        return jax.tree.map(_put, state, self.shardings(state))

    def whole(self, data: PyTree) -> PyTree:
        """Arrays on every device, whole. Under several processes each gives the same numbers."""
        return jax.tree.map(lambda leaf: _put(leaf, self._named(P())), data)

    def batch(self, batch: PyTree, *, leading: int = 0, own: bool = True) -> PyTree:
        """A batch on the devices, its rows split over `axes`.

        Args:
            batch: pytree of arrays whose axis `leading` counts rows. What has no such axis goes whole to all.
            leading: how many axes come before it: 1 for a stack of batches, one for each step.
            own: under several processes, whether each gives its own rows, and the batch is all of them in the
                order of processes; else every process gives the whole batch.

        Raises:
            ValueError: the rows do not divide by the devices they are split over.
        """
        return jax.tree.map(lambda leaf: self._put_rows(leaf, leading, own), batch)

    def split(self, batch: PyTree) -> PyTree:
        """Inside a compiled function: have the rows of a batch lie as `batch` would put them."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self._rows(leaf, 0)), batch)

    def hold(self, state: PyTree) -> PyTree:
        """Inside a compiled function: have a state lie as `state` would put it."""
        return jax.lax.with_sharding_constraint(state, self.shardings(state))

    def check(self, rows: int) -> None:
        """Raise ValueError where a batch of so many rows, of all processes together, cannot be split."""
        if rows % self.parts:
            near = max(rows // self.parts, 1) * self.parts
            raise ValueError(
                f"A batch of {rows} rows does not divide by the {self.parts} devices of mesh axis "
                f"{_quoted(self.axes)}. Choose a batch size that is a multiple of {self.parts}, such as {near}."
            )

    def _named(self, spec: P) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _rows(self, leaf: Any, leading: int) -> NamedSharding:
        return self._named(P() if jnp.ndim(leaf) <= leading else P(*[None] * leading, self.axes))

    def _put_rows(self, leaf: Any, leading: int, own: bool) -> jax.Array:
        sharding = self._rows(leaf, leading)
        if jnp.ndim(leaf) <= leading:
            return _put(leaf, sharding)
        shared = sharding.is_fully_addressable or not own
        self.check(jnp.shape(leaf)[leading] * (1 if shared else jax.process_count()))
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if not own:
            return _put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))


def data_parallel(mesh: Mesh | None = None, *, axis: str | Sequence[str] | None = None) -> Placement:
    """Split each batch over devices; keep the whole state on every one.

    Gradients are then sums over devices, which XLA adds to the program.

    Args:
        mesh: the devices; all there are where None, along one axis `data`. Its axes are taken as `Auto`: the
            loss needs no sharding in it.
        axis: over which axes of the mesh; `data` where None, or the only one there is.

    Raises:
        ValueError: the mesh has no such axis, or has several and it is not said which.

    Examples:
        >>> placement = data_parallel()
        >>> placement.batch(np.arange(16.0)).is_fully_replicated
        False
        >>> placement.state({"w": np.ones(3)})["w"].is_fully_replicated
        True
    """
    mesh, axes = _mesh_and_axes(mesh, axis)
    return Placement(mesh, axes, lambda state: jax.tree.map(lambda _: P(), state))


def fully_sharded(
    mesh: Mesh | None = None, *, axis: str | Sequence[str] | None = None, least: int = 1024
) -> Placement:
    """Split each batch over devices, and the state too: each keeps a part of each array.

    An array is split along the longest of its axes that divides by the devices. XLA gathers a parameter where
    it is read and scatters its gradient, so a device never holds the whole state.

    Args:
        mesh: as for `data_parallel`.
        axis: as for `data_parallel`.
        least: arrays with fewer elements are kept whole: splitting them saves nothing.

    Raises:
        ValueError: as for `data_parallel`.

    Warns:
        UserWarning: an array of at least `least` elements has no axis that divides; it is kept whole.

    Examples:
        >>> placement = fully_sharded()
        >>> state = placement.state({"w": np.ones((64, 784)), "b": np.ones(64)})
        >>> tuple(state["w"].sharding.spec), tuple(state["b"].sharding.spec)
        ((None, 'data'), ())

    Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020).
    """
    mesh, axes = _mesh_and_axes(mesh, axis)
    parts = math.prod(mesh.shape[each] for each in axes)
    said: set[str] = set()

    def layout(state: PyTree) -> PyTree:
        kept: dict[str, str] = {}

        def spec(path: Any, leaf: Any) -> P:
            shape = jnp.shape(leaf)
            if is_key(leaf) or math.prod(shape) < max(least, parts):
                return P()
            fits = [i for i, length in enumerate(shape) if length % parts == 0]
            if not fits:
                kept[jax.tree_util.keystr(path)] = f"{jnp.result_type(leaf)}{list(shape)}"
                return P()
            longest = max(fits, key=lambda i: (shape[i], -i))
            return P(*[None] * longest, axes)

        specs = jax.tree_util.tree_map_with_path(spec, state)
        new = {path: kind for path, kind in kept.items() if path not in said}
        said.update(new)
        if new and jax.process_index() == 0:
            warn(
                f"Kept whole on every device, since no axis divides by {parts}: "
                f"{listed([f'{path} {kind}' for path, kind in new.items()])}.",
                stacklevel=4,
            )
        return specs

    return Placement(mesh, axes, layout)


def explicit_sharding(params: PyTree, batch: NamedSharding | None = None) -> Placement:
    """Put parameters where given `NamedSharding`s say.

    What the optimizer keeps for a parameter lies as the parameter does: an array of the state whose path ends
    with the path of a parameter, and which has its shape. Everything else is kept whole.

    Args:
        params: a `NamedSharding` for each parameter, or for each subtree of them, or one for all.
        batch: how a batch lies; only its first axis counts. Where None, rows are split over the axis `data` of
            the mesh, or its first.

    Raises:
        ValueError: there is no sharding in it, the shardings are of several meshes, or `params` does not fit
            the parameters of a state.
        TypeError: a leaf is no NamedSharding.
    """
    named = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, NamedSharding))
    for each in named:
        if not isinstance(each, NamedSharding):
            raise TypeError(
                "sharding= takes a Mesh, a Placement, or NamedShardings by hand; this is a "
                f"{type(each).__name__}."
            )
    meshes = {each.mesh for each in [*named, *([batch] if batch is not None else [])]}
    if len(meshes) != 1:
        raise ValueError(f"Shardings by hand need one mesh, got {len(meshes)}.")
    mesh = named[0].mesh
    if batch is not None:
        first = batch.spec[0] if len(batch.spec) else ()
        axes = (first,) if isinstance(first, str) else tuple(first or ())
    else:
        axes = ("data" if "data" in mesh.axis_names else mesh.axis_names[0],)
    return Placement(mesh, axes, lambda state: _follow(params, state))


def placement_of(sharding: Any) -> Placement:
    """What `sharding=` of `fit` means: a Placement, a mesh (`data_parallel`), or shardings."""
    if isinstance(sharding, Placement):
        return sharding
    return data_parallel(sharding) if isinstance(sharding, Mesh) else explicit_sharding(sharding)


# --- what lies behind -----------------------------------------------------------------------------------------


def _mesh_and_axes(mesh: Mesh | None, axis: str | Sequence[str] | None) -> tuple[Mesh, tuple[str, ...]]:
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()), ("data",))
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    if axis is None and ("data" in mesh.axis_names or len(mesh.axis_names) == 1):
        axis = "data" if "data" in mesh.axis_names else mesh.axis_names[0]
    if axis is None:
        raise ValueError(
            f"The mesh has axes {_quoted(mesh.axis_names)}: say over which the batch is split, "
            f"axis={mesh.axis_names[0]!r}."
        )
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    unknown = [each for each in axes if each not in mesh.axis_names]
    if unknown:
        raise ValueError(f"The mesh has no axis {_quoted(unknown)}; it has {_quoted(mesh.axis_names)}.")
    return mesh, axes


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array of its own on the devices: donating it leaves the given one alone."""
    if is_key(leaf):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(jnp.array(leaf, copy=True), sharding)
    host = np.asarray(leaf)
    dtype = jnp.result_type(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index].astype(dtype))


def _follow(params: PyTree, state: PyTree) -> PyTree:
    """Specs of a state whose parameters lie as `params` says."""
    is_sharding = lambda x: isinstance(x, NamedSharding)  # noqa: E731
    own = state.params if hasattr(state, "params") else state
    try:
        full = jax.tree.broadcast(params, own, is_leaf=is_sharding)
    except ValueError as error:
        raise ValueError(f"The shardings given by hand do not fit the parameters: {error}") from error
    paths = jax.tree_util.tree_leaves_with_path(own)
    table = {
        path: (jnp.shape(leaf), sharding.spec)
        for (path, leaf), sharding in zip(paths, jax.tree.leaves(full, is_leaf=is_sharding), strict=True)
    }

    def spec(path: Any, leaf: Any) -> P:
        for start in range(len(path) + 1):  # the longest end first
            shape, found = table.get(path[start:], (None, P()))
            if shape == jnp.shape(leaf) and not is_key(leaf):
                return found
        return P()

    return jax.tree_util.tree_map_with_path(spec, state)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
