"""Where batches come from: the interface, and the plain source, arrays that stay on the device."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Int

from ...core.types import Array, PyTree
from ..step.state import State

#: What a loss takes after the params.
Batch: TypeAlias = tuple[PyTree, ...]
#: The examples of an epoch in the order in which they are read.
Order: TypeAlias = Int[Array, " example"]
#: How a source reads its data, as JSON: saved in checkpoints, compared when a run is resumed.
Layout: TypeAlias = dict[str, int | bool | str | list[str] | None]

#: Folded into the key of a run to get the key of its orders, so that none is also the key of a step.
_ORDERS = 0xFFFFFFFF


class BatchGroup(NamedTuple):
    """Batches ready for a chunk.

    Attributes:
        arrays: Arrays on the device that `BatchSource.take` takes the batches from.
        place: The position of the first batch in `arrays`.
        steps: The number of batches.
        ends: Whether an epoch ends with the last of them.
    """

    arrays: PyTree
    place: int
    steps: int
    ends: bool = False


class BatchSource(Protocol):
    """A source of batches. `take` is traced into the compiled chunk; the rest runs on the host."""

    @property
    def per_epoch(self) -> int | None:
        """The number of steps in an epoch; None if it is not known beforehand."""

    @property
    def layout(self) -> Layout:
        """How the data is read."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about examples that are left out or read twice."""
        ...

    def next(self, done: int, most: int, ahead: int) -> BatchGroup | None:
        """Return batches for the steps after `done`, at most `most`; None if there are no more.

        `ahead` is how many steps a chunk may have if nothing cuts it short: what is worth reading at once.
        """
        ...

    def order(self, done: int) -> Order | None:
        """Return the order in which the data is read at a step, for the state of the first chunk."""
        ...

    def take(
        self, arrays: PyTree, order: Order | None, at: State, place: Int[Array, ""]
    ) -> tuple[Batch, Order | None]:
        """Return the batch of a step, and the order from there on."""
        ...

    def close(self) -> None:
        """Release threads and files."""


def order_of(key: Array, epoch: int | Int[Array, ""], size: int) -> Order:
    """Return the order in which an epoch reads its data: a pure function of key and epoch.

    `jax.random.permutation(fold_in(fold_in(key, 0xFFFFFFFF), epoch), size)`.
    """
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, _ORDERS), epoch), size)


def as_batch(data: PyTree) -> Batch:
    """Return what a loss takes after the params: a tuple is several arguments, everything else is one."""
    return data if type(data) is tuple else (data,)


@dataclass(frozen=True, eq=False)
class ShardedSource:
    """A source whose batches are split over devices.

    Attributes:
        source: Where the batches come from.
        split: Shards the rows of a batch; traced.
    """

    source: BatchSource
    split: Callable[[Batch], Batch]

    @property
    def per_epoch(self) -> int | None:
        return self.source.per_epoch

    @property
    def layout(self) -> Layout:
        return self.source.layout

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def next(self, done: int, most: int, ahead: int) -> BatchGroup | None:
        return self.source.next(done, most, ahead)

    def order(self, done: int) -> Order | None:
        return self.source.order(done)

    def take(
        self, arrays: PyTree, order: Order | None, at: State, place: Int[Array, ""]
    ) -> tuple[Batch, Order | None]:
        batch, order = self.source.take(arrays, order, at, place)
        return self.split(batch), order

    def close(self) -> None:
        self.source.close()


class Batching(NamedTuple):
    """How examples are divided into batches.

    Attributes:
        size: The number of examples.
        batch: The number of examples in a batch; None for all of them, unmodified.
        remainder: What is done with the examples that do not fill a batch: "keep", "drop" or "pad".
    """

    size: int
    batch: int | None
    remainder: str = "keep"

    @property
    def rest(self) -> int:
        """The number of examples that do not fill a batch."""
        return 0 if self.batch is None else self.size % self.batch

    @property
    def missing(self) -> int:
        """How many examples the last batch of an epoch is filled up with."""
        return self.batch - self.rest if self.batch and self.rest and self.remainder == "pad" else 0

    @property
    def full(self) -> int:
        """The number of batches of full size in an epoch."""
        return 1 if self.batch is None else self.size // self.batch + (self.missing > 0)

    @property
    def short(self) -> int:
        """The number of examples in the shorter last batch of an epoch; 0 if there is none."""
        return self.rest if self.remainder == "keep" else 0

    @property
    def per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return self.full + (self.short > 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about examples that do not fill a batch."""
        if not self.rest:
            return ()
        told = {
            "keep": f"the last batch of each epoch has {self.rest}",
            "drop": f"{self.rest} are left out of each epoch",
            "pad": f"the last batch of each epoch is filled up with {self.missing} of the same epoch",
        }
        divides = f"batch_size={self.batch} does not divide the {self.size} examples"
        return (f"{divides}: {told[self.remainder]} (remainder={self.remainder!r}).",)

    def layout(self, shuffle: bool) -> Layout:
        """Return how the data is read."""
        return {
            "examples": self.size,
            "batch_size": self.batch,
            "shuffle": shuffle,
            "remainder": self.remainder if self.rest else None,
        }


def padded_order(batching: Batching, key: Array, epoch: int | Int[Array, ""]) -> Order:
    """Return the order of an epoch, and after it the examples that the last batch is filled up with."""
    order = order_of(key, epoch, batching.size)
    return jnp.concatenate([order, order[: batching.missing]]) if batching.missing else order


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LastBatch:
    """Arrays of which only the last, shorter batch of an epoch is taken: its type makes it another program."""

    arrays: PyTree


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Arrays that stay on the device: batches are cut out there.

    Attributes:
        arrays: A pytree of arrays with the examples on the first axis.
        batching: How they are divided into batches.
        key: Shuffles each epoch; None keeps the order.
    """

    arrays: PyTree
    batching: Batching
    key: Array | None

    @property
    def per_epoch(self) -> int:
        return self.batching.per_epoch

    @property
    def layout(self) -> Layout:
        return self.batching.layout(self.key is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.batching.notes

    def next(self, done: int, most: int, ahead: int) -> BatchGroup:
        if self.batching.short:
            left = self.batching.full - done % self.per_epoch
            if left == 0:
                return BatchGroup(LastBatch(self.arrays), 0, 1, True)
            most = min(most, left)
        return BatchGroup(self.arrays, 0, most, (done + most) % self.per_epoch == 0)

    def order(self, done: int) -> Order | None:
        if self.key is None or self.batching.batch is None:
            return None
        draw = jax.jit(padded_order, static_argnums=0)
        return draw(self.batching, self.key, done // self.per_epoch)

    def take(
        self, arrays: PyTree, order: Order | None, at: State, place: Int[Array, ""]
    ) -> tuple[Batch, Order | None]:
        size = self.batching.batch
        if size is None:
            return as_batch(arrays), order
        epoch, number = at.step // self.per_epoch, at.step % self.per_epoch
        start = number * size
        if isinstance(arrays, LastBatch):
            arrays, size = arrays.arrays, self.batching.short
        if order is None and not self.batching.missing:
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
            return as_batch(jax.tree.map(cut, arrays)), None
        if order is None:
            rows = (start + jnp.arange(size)) % self.batching.size
            return as_batch(jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), arrays)), None
        assert at.key is not None
        order = self._order_at(number, epoch, at.key, order)
        rows = jax.lax.dynamic_slice_in_dim(order, start, size)
        unique = not self.batching.missing
        pick = lambda x: x.at[rows].get(mode="promise_in_bounds", unique_indices=unique)  # noqa: E731
        return as_batch(jax.tree.map(pick, arrays)), order

    def _order_at(self, number: Array, epoch: Array, key: Array, order: Order) -> Order:
        """The first step of an epoch draws its order, the others keep it."""
        draw = functools.partial(padded_order, self.batching, key, epoch)
        return jax.lax.cond(number == 0, lambda order: draw(), lambda order: order, order)

    def close(self) -> None:
        pass
