"""Where `fit` puts its state, its data and its compiled chunks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...core.types import Function, PyTree
from ..step.state import State
from .sharding import Placement, Sharding, placement_of
from .source import BatchSource, ShardedSource


class Jit(Protocol):
    """Compiles a function, as `jax.jit`."""

    def __call__(self, function: Function, /, *, donate_argnums: int | Sequence[int]) -> Function: ...


@dataclass(frozen=True)
class DevicePlacement:
    """Where `fit` puts things. Without a placement everything is on the default device.

    Attributes:
        placement: None for one device.
    """

    placement: Placement | None = None

    @property
    def groups(self) -> bool:
        """Whether the size of a group may depend on the clock; not where several processes must do the same."""
        return jax.process_count() == 1

    def check(self, rows: int) -> None:
        """Raise ValueError if a batch of this size cannot be split."""
        if self.placement is not None:
            self.placement.check(rows)

    def state(self, state: State) -> State:
        """Return a state on the devices."""
        return state if self.placement is None else self.placement.state(state)

    def whole(self, data: PyTree) -> PyTree:
        """Return arrays that every process has, on every device."""
        return jax.device_put(data) if self.placement is None else self.placement.whole(data)

    def stacked(self, group: PyTree, short: bool = False) -> PyTree:
        """Return a stack of batches that every process has whole; a shorter batch is split if it can be."""
        if self.placement is None or (short and not self._divides(group, axis=1)):
            return self.whole(group)
        return self.placement.batch(group, leading=1, own=False)

    def stacked_own(self, group: PyTree, short: bool = False) -> PyTree:
        """Return a stack of batches of which every process has its own rows."""
        if jax.process_count() == 1:
            return self.stacked(group, short)
        return self.whole(group) if self.placement is None else self.placement.batch(group, leading=1)

    def source(self, source: BatchSource) -> BatchSource:
        """Return a source whose batches are split."""
        return source if self.placement is None else ShardedSource(source, self.split)

    def split(self, batch: PyTree) -> PyTree:
        """Inside a compiled function: split a batch over devices, if it can be split evenly."""
        if self.placement is None or not self._divides(batch, axis=0):
            return batch
        return self.placement.split(batch)

    def _divides(self, batch: PyTree, axis: int) -> bool:
        assert self.placement is not None
        rows = {jnp.shape(leaf)[axis] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf) > axis}
        return not any(n % self.placement.parts for n in rows)

    def jit(self, state: State) -> Jit:
        """Return `jax.jit` for functions of (carry, ...) -> (carry, result).

        The state keeps its sharding, everything else is whole on every device. `carry` is a named tuple whose
        first field is the state.
        """
        if self.placement is None:
            return jax.jit
        whole = NamedSharding(self.placement.mesh, P())
        kept = self.placement.shardings(state)

        def jit(function: Function, /, *, donate_argnums: int | Sequence[int]) -> Function:
            def constrained(carry: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree]:
                carry, result = function(carry, *rest)
                constrain = jax.lax.with_sharding_constraint
                spread = jax.tree.map(lambda x: constrain(x, whole), (carry[1:], result))
                return type(carry)(constrain(carry[0], kept), *spread[0]), spread[1]

            return jax.jit(constrained, donate_argnums=donate_argnums)

        return jit


def device_placement(sharding: Sharding | None) -> DevicePlacement:
    """Interpret `sharding` of `fit`.

    Raises:
        ValueError: There are several processes, and it does not say how they share the work.
    """
    if sharding is not None:
        return DevicePlacement(placement_of(sharding))
    if jax.process_count() > 1:
        raise ValueError(
            f"there are {jax.process_count()} processes, but `sharding` does not say how they share the work. "
            "Pass sharding=jaxprop.train.data_parallel()."
        )
    return DevicePlacement()


def agree(number: int) -> int:
    """Return the number of the first process, on every process: what each reads from its own clock differs."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
