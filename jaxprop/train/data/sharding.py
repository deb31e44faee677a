"""How a run is laid out on several devices: which array goes where. JAX does the work.

Everything is expressed as a mesh and `NamedSharding`s. The compiled step is the same program on one device and
on thousands: XLA partitions it by the sharding of its inputs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from ..._jaxpr import is_key
from ..._text import listed
from ...core.types import Array, PyTree
from ..checks import warn_user


@dataclass(frozen=True, eq=False)
class Placement:
    """How a state and its batches are laid out on the devices of a mesh.

    Made by `data_parallel`, `fully_sharded` or `explicit_sharding`.

    Attributes:
        mesh: The devices.
        axes: The axes of the mesh over which the rows of a batch are split.
        layout: A function from a state, or its shapes, to a `PartitionSpec` for each of its leaves.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    layout: Callable[[PyTree], PyTree]

    @property
    def parts(self) -> int:
        """The number of parts a batch is split into."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def shardings(self, state: PyTree) -> PyTree:
        """Return a `NamedSharding` for each leaf of a state, for `in_shardings` of `jax.jit`."""
        return jax.tree.map(self._named, self.layout(state), is_leaf=lambda x: isinstance(x, P))

    def state(self, state: PyTree) -> PyTree:
        """Return the state on the devices, as a copy: donating it leaves the given arrays intact.

        Under several processes each must pass the same numbers.
        """
        return jax.tree.map(_device_copy, state, self.shardings(state))

    def whole(self, data: PyTree) -> PyTree:
        """Return arrays whole on every device. Under several processes each must pass the same numbers."""
        return jax.tree.map(lambda leaf: _device_copy(leaf, self._named(P())), data)

    def batch(self, batch: PyTree, *, leading: int = 0, own: bool = True) -> PyTree:
        """Return a batch on the devices, its rows split over `axes`.

        Args:
            batch: A pytree of arrays whose axis `leading` counts rows. A leaf without such an axis is copied
                whole to every device.
            leading: The number of axes before it: 1 for a stack of batches, one for each step.
            own: Under several processes, whether each passes its own rows, and the batch is all of them in the
                order of processes; otherwise every process passes the whole batch.

        Raises:
            ValueError: The number of rows is not a multiple of the devices they are split over.
        """
        return jax.tree.map(lambda leaf: self._put_rows(leaf, leading, own), batch)

    def split(self, batch: PyTree) -> PyTree:
        """Inside a compiled function: constrain a batch to the sharding that `batch` gives it."""
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, self._rows(leaf, 0)), batch)

    def hold(self, state: PyTree) -> PyTree:
        """Inside a compiled function: constrain a state to the sharding that `state` gives it."""
        return jax.lax.with_sharding_constraint(state, self.shardings(state))

    def check(self, rows: int) -> None:
        """Raise ValueError if a batch of this many rows, of all processes together, cannot be split."""
        if rows % self.parts:
            near = max(rows // self.parts, 1) * self.parts
            raise ValueError(
                f"a batch of {rows} rows cannot be split evenly over the {self.parts} devices of mesh axis "
                f"{_in_quotes(self.axes)}. Choose a batch size that is a multiple of {self.parts}, such as "
                f"{near}."
            )

    def _named(self, spec: P) -> NamedSharding:
        return NamedSharding(self.mesh, spec)

    def _rows(self, leaf: ArrayLike, leading: int) -> NamedSharding:
        return self._named(P() if jnp.ndim(leaf) <= leading else P(*[None] * leading, self.axes))

    def _put_rows(self, leaf: ArrayLike, leading: int, own: bool) -> Array:
        sharding = self._rows(leaf, leading)
        if jnp.ndim(leaf) <= leading:
            return _device_copy(leaf, sharding)
        shared = sharding.is_fully_addressable or not own
        self.check(jnp.shape(leaf)[leading] * (1 if shared else jax.process_count()))
        if sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if not own:
            return _device_copy(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))


def data_parallel(mesh: Mesh | None = None, *, axis: str | Sequence[str] | None = None) -> Placement:
    """Split each batch over devices; keep the whole state on every device.

    Gradients are then sums over devices, which XLA adds to the program.

    Args:
        mesh: The devices; by default all devices, along one axis `data`. Its axes are treated as `Auto`: the
            loss needs no sharding annotations.
        axis: The axes of the mesh to split over; by default `data`, or the only axis.

    Raises:
        ValueError: The mesh has no such axis, or has several and `axis` is not given.

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
    """Split each batch over devices, and the state too: each device keeps a part of each array.

    An array is split along the longest of its axes whose length is a multiple of the number of devices. XLA
    gathers a parameter where it is used and scatters its gradient, so a device never holds the whole state.

    Args:
        mesh: As in `data_parallel`.
        axis: As in `data_parallel`.
        least: Arrays with fewer elements are kept whole, since splitting them saves nothing.

    Raises:
        ValueError: As in `data_parallel`.

    Warns:
        UserWarning: An array of at least `least` elements has no axis that can be split evenly; it is kept
            whole.

    Examples:
        >>> placement = fully_sharded()
        >>> state = placement.state({"w": np.ones((64, 784)), "b": np.ones(64)})
        >>> tuple(state["w"].sharding.spec), tuple(state["b"].sharding.spec)
        ((None, 'data'), ())

    Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020).
    """
    mesh, axes = _mesh_and_axes(mesh, axis)
    parts = math.prod(mesh.shape[each] for each in axes)
    reported: set[str] = set()

    def layout(state: PyTree) -> PyTree:
        kept: dict[str, str] = {}

        def spec(path: jax.tree_util.KeyPath, leaf: ArrayLike) -> P:
            shape = jnp.shape(leaf)
            if is_key(leaf) or math.prod(shape) < max(least, parts):
                return P()
            even = [i for i, length in enumerate(shape) if length % parts == 0]
            if not even:
                kept[jax.tree_util.keystr(path)] = f"{jnp.result_type(leaf)}{list(shape)}"
                return P()
            longest = max(even, key=lambda i: (shape[i], -i))
            return P(*[None] * longest, axes)

        specs = jax.tree_util.tree_map_with_path(spec, state)
        new = {path: kind for path, kind in kept.items() if path not in reported}
        reported.update(new)
        if new and jax.process_index() == 0:
            warn_user(
                f"kept whole on every device, because no axis can be split evenly over {parts} devices: "
                f"{listed([f'{path} {kind}' for path, kind in new.items()])}."
            )
        return specs

    return Placement(mesh, axes, layout)


def explicit_sharding(params: PyTree, batch: NamedSharding | None = None) -> Placement:
    """Place parameters by explicit `NamedSharding`s.

    What the optimizer keeps for a parameter is sharded like the parameter: an array of the state whose path
    ends with the path of a parameter, and which has its shape. Everything else is kept whole.

    Args:
        params: A `NamedSharding` for each parameter, or for each subtree of them, or one for all.
        batch: The sharding of a batch, of which only the first axis counts. By default rows are split over the
            axis `data` of the mesh, or its first axis.

    Raises:
        ValueError: There is no sharding in `params`, the shardings belong to several meshes, or `params` does
            not match the parameters of a state.
        TypeError: A leaf is not a `NamedSharding`.
    """
    named = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, NamedSharding))
    for each in named:
        if not isinstance(each, NamedSharding):
            raise TypeError(
                "`sharding` must be a Mesh, a Placement, or a pytree of NamedShardings; got "
                f"{type(each).__name__}."
            )
    meshes = {each.mesh for each in [*named, *([batch] if batch is not None else [])]}
    if len(meshes) != 1:
        raise ValueError(f"explicit shardings must belong to one mesh, got {len(meshes)}.")
    mesh = named[0].mesh
    if batch is not None:
        first = batch.spec[0] if len(batch.spec) else ()
        axes = (first,) if isinstance(first, str) else tuple(first or ())
    else:
        axes = ("data" if "data" in mesh.axis_names else mesh.axis_names[0],)
    return Placement(mesh, axes, lambda state: _specs_like_params(params, state))


#: What `sharding` of `fit` may be.
Sharding: TypeAlias = Placement | Mesh | NamedSharding | PyTree[NamedSharding]


def placement_of(sharding: Sharding) -> Placement:
    """Interpret `sharding` of `fit`: a Placement, a mesh (`data_parallel`), or explicit shardings."""
    if isinstance(sharding, Placement):
        return sharding
    return data_parallel(sharding) if isinstance(sharding, Mesh) else explicit_sharding(sharding)


# --- helpers ------------------------------------------------------------------------------------------------


def _mesh_and_axes(mesh: Mesh | None, axis: str | Sequence[str] | None) -> tuple[Mesh, tuple[str, ...]]:
    if mesh is None:
        mesh = Mesh(np.array(jax.devices()), ("data",))
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    if axis is None and ("data" in mesh.axis_names or len(mesh.axis_names) == 1):
        axis = "data" if "data" in mesh.axis_names else mesh.axis_names[0]
    if axis is None:
        raise ValueError(
            f"the mesh has axes {_in_quotes(mesh.axis_names)}. Pass the one over which the batch is split, "
            f"such as axis={mesh.axis_names[0]!r}."
        )
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    unknown = [each for each in axes if each not in mesh.axis_names]
    if unknown:
        raise ValueError(
            f"the mesh has no axis {_in_quotes(unknown)}; available: {_in_quotes(mesh.axis_names)}."
        )
    return mesh, axes


def _device_copy(leaf: ArrayLike, sharding: NamedSharding) -> Array:
    """A copy on the devices: donating it leaves the given array intact."""
    if is_key(leaf):
        data = _device_copy(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(jnp.array(leaf, copy=True), sharding)
    host = np.asarray(leaf)
    dtype = jnp.result_type(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index].astype(dtype))


def _specs_like_params(params: PyTree, state: PyTree) -> PyTree:
    """The specs of a state whose parameters have the shardings `params`."""
    is_sharding = lambda x: isinstance(x, NamedSharding)  # noqa: E731
    own = state.params if hasattr(state, "params") else state
    try:
        full = jax.tree.broadcast(params, own, is_leaf=is_sharding)
    except ValueError as error:
        raise ValueError(f"the explicit shardings do not match the parameters: {error}") from error
    paths = jax.tree_util.tree_leaves_with_path(own)
    table = {
        path: (jnp.shape(leaf), sharding.spec)
        for (path, leaf), sharding in zip(paths, jax.tree.leaves(full, is_leaf=is_sharding), strict=True)
    }

    def spec(path: jax.tree_util.KeyPath, leaf: ArrayLike) -> P:
        for start in range(len(path) + 1):  # the longest suffix first
            shape, found = table.get(path[start:], (None, P()))
            if shape == jnp.shape(leaf) and not is_key(leaf):
                return found
        return P()

    return jax.tree_util.tree_map_with_path(spec, state)


def _in_quotes(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
