"""What `fit` asks of a placement: where its state, its data and its compiled chunks lie."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ...core.types import PyTree
from .feed import Feed, Split
from .sharding import Placement, placement_of


@dataclass(frozen=True)
class Places:
    """What `fit` asks of a placement. Without one everything lies on the default device.

    Attributes:
        placement: None for one device.
    """

    placement: Placement | None = None

    @property
    def groups(self) -> bool:
        """Whether what is sent off may depend on the clock: several processes must do the same."""
        return jax.process_count() == 1

    def check(self, rows: int) -> None:
        """Raise ValueError where a batch cannot be split."""
        if self.placement is not None:
            self.placement.check(rows)

    def state(self, state: PyTree) -> PyTree:
        """A state on the devices."""
        return state if self.placement is None else self.placement.state(state)

    def whole(self, data: PyTree) -> PyTree:
        """Arrays that every process has, on every device."""
        return jax.device_put(data) if self.placement is None else self.placement.whole(data)

    def stacked(self, group: PyTree) -> PyTree:
        """A stack of batches that every process has whole."""
        if self.placement is None:
            return jax.device_put(group)
        return self.placement.batch(group, leading=1, own=False)

    def own_stacked(self, group: PyTree) -> PyTree:
        """A stack of batches of which every process has its own rows."""
        if self.placement is None:
            return jax.device_put(group)
        return self.placement.batch(group, leading=1)

    def feed(self, feed: Feed) -> Feed:
        """A feed whose batches are split."""
        return feed if self.placement is None else Split(feed, self.split)

    def split(self, batch: PyTree) -> PyTree:
        """Inside a compiled function: a batch split over devices, where its rows divide."""
        if self.placement is None:
            return batch
        rows = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
        return batch if any(n % self.placement.parts for n in rows) else self.placement.split(batch)

    def jit(self, state: PyTree) -> Callable[..., Any]:
        """`jax.jit` for functions of (carry, ...) -> (carry, news): a state keeps its place, all else is whole.

        `carry` is a named tuple whose first field is the state.
        """
        if self.placement is None:
            return jax.jit
        whole = NamedSharding(self.placement.mesh, P())
        kept = self.placement.shardings(state)

        def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
            def held(carry: Any, *rest: Any) -> Any:
                carry, news = function(carry, *rest)
                hold = jax.lax.with_sharding_constraint
                spread = jax.tree.map(lambda x: hold(x, whole), (carry[1:], news))
                return type(carry)(hold(carry[0], kept), *spread[0]), spread[1]

            return jax.jit(held, **options)

        return jit


def places_of(sharding: Any) -> Places:
    """What `sharding=` of `fit` means.

    Raises:
        ValueError: there are several processes, and it is not said how they share the work.
    """
    if sharding is not None:
        return Places(placement_of(sharding))
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes run, and sharding= does not say how they share the work: "
            "pass sharding=jaxprop.train.data_parallel()."
        )
    return Places()


def agree(number: int) -> int:
    """The number of the first process, on every process: what each reads from its own clock differs."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))
