"""What a source of batches is, and the plain one: arrays that stay on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

from ...core.types import Array, PyTree

#: What a loss takes after the params.
Batch: TypeAlias = tuple[Any, ...]

#: Folded into the key of a run to get the key of its orders, so that none is also the key of a step.
_ORDERS = 0xFFFFFFFF


class Group(NamedTuple):
    """Batches at hand for a chunk.

    Attributes:
        source: arrays on the device that `Feed.take` takes them from.
        place: where in `source` the first one stands.
        steps: how many there are.
        ends: whether an epoch ends with the last of them.
    """

    source: PyTree
    place: int
    steps: int
    ends: bool = False


class Point(Protocol):
    """Where a run stands: its `State`."""

    @property
    def step(self) -> Array: ...

    @property
    def key(self) -> Any: ...


class Feed(Protocol):
    """A source of batches. `take` is traced into the compiled chunk; the rest runs on the host."""

    @property
    def per_epoch(self) -> int | None:
        """Steps in an epoch; None where that is not known beforehand."""

    def next(self, done: int, most: int, ahead: int) -> Group | None:
        """At most `most` batches for the steps after `done`; None when there are no more.

        `ahead` is how many a chunk may have where nothing cuts it short: what is worth reading at once.
        """
        ...

    def order(self, done: int) -> Array | None:
        """The order in which the data is read at a step, for the carry of the first chunk."""
        ...

    def take(self, source: PyTree, order: Array | None, at: Point, place: Array) -> tuple[Batch, Array | None]:
        """The batch of a step, and the order from there on."""
        ...

    def close(self) -> None:
        """Let go of threads and files."""


def order_of(key: Array, epoch: Any, size: int) -> Array:
    """The order in which an epoch reads its data: a pure function of key and epoch.

    `jax.random.permutation(fold_in(fold_in(key, 0xFFFFFFFF), epoch), size)`.
    """
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, _ORDERS), epoch), size)


def as_batch(data: PyTree) -> Batch:
    """What a loss takes after the params: a tuple is several arguments, all else is one."""
    return data if type(data) is tuple else (data,)


@dataclass(frozen=True, eq=False)
class Split:
    """A feed whose batches lie split over devices.

    Attributes:
        feed: where they come from.
        split: puts the rows of a batch where they belong; traced.
    """

    feed: Feed
    split: Callable[[Batch], Batch]

    @property
    def per_epoch(self) -> int | None:
        return self.feed.per_epoch

    def next(self, done: int, most: int, ahead: int) -> Group | None:
        return self.feed.next(done, most, ahead)

    def order(self, done: int) -> Array | None:
        return self.feed.order(done)

    def take(self, source: PyTree, order: Array | None, at: Point, place: Array) -> tuple[Batch, Array | None]:
        batch, order = self.feed.take(source, order, at, place)
        return self.split(batch), order

    def close(self) -> None:
        self.feed.close()


@dataclass(frozen=True, eq=False)
class Resident:
    """Arrays that stay on the device: batches are cut out there.

    Attributes:
        arrays: a pytree of arrays with one leading axis in common.
        size: its length.
        batch: examples in a batch; None for all of them, as they are.
        key: shuffles each epoch; None leaves the order.
    """

    arrays: PyTree
    size: int
    batch: int | None
    key: Array | None

    @property
    def per_epoch(self) -> int:
        return 1 if self.batch is None else self.size // self.batch

    def next(self, done: int, most: int, ahead: int) -> Group:
        return Group(self.arrays, 0, most, (done + most) % self.per_epoch == 0)

    def order(self, done: int) -> Array | None:
        if self.key is None or self.batch is None:
            return None
        return jax.jit(order_of, static_argnums=2)(self.key, done // self.per_epoch, self.size)

    def take(self, source: PyTree, order: Array | None, at: Point, place: Array) -> tuple[Batch, Array | None]:
        if self.batch is None:
            return as_batch(source), order
        epoch, number = at.step // self.per_epoch, at.step % self.per_epoch
        start = number * self.batch
        if order is None:
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=self.batch)
            return as_batch(jax.tree.map(cut, source)), None
        # The first step of an epoch draws its order.
        order = self._order_at(number, epoch, at.key, order)
        rows = jax.lax.dynamic_slice_in_dim(order, start, self.batch)
        pick = lambda x: x.at[rows].get(mode="promise_in_bounds", unique_indices=True)  # noqa: E731
        return as_batch(jax.tree.map(pick, source)), order

    def _order_at(self, number: Array, epoch: Array, key: Array, order: Array) -> Array:
        """The first step of an epoch draws its order, the others go on with it."""
        draw = lambda order: order_of(key, epoch, self.size)  # noqa: E731
        return jax.lax.cond(number == 0, draw, lambda order: order, order)

    def close(self) -> None:
        pass
