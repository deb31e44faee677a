"""Batches from anywhere, read by a thread, one group ahead of the device."""

import functools
import inspect
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ..._text import plural
from ...core.types import Array, PyTree
from ..checkpoint.checkpoint import CheckpointError
from ..step.state import State
from .source import Batch, BatchGroup, Layout, as_batch

#: An array of a batch, on the host or on a device.
HostArray: TypeAlias = np.ndarray | jax.Array
#: The batches of an epoch.
EpochBatches: TypeAlias = Callable[[int], Iterator[PyTree]]

#: From this many steps in a chunk on, streamed batches go to the device in groups.
_GROUP_FROM = 128
#: A group has at most this many batches, and this many bytes.
_GROUP_STEPS, _GROUP_BYTES = 64, 32 * 2**20


class EndOfStream(NamedTuple):
    """The end of a stream, by itself or by an error."""

    error: BaseException | None


class StreamSettings(NamedTuple):
    """Which part of a stream is read, and how it goes to the device.

    Attributes:
        skip: The number of batches to skip: the steps that a resumed run has done.
        epochs: The number of epochs; None for no end.
        steps: The number of batches to read in all, those skipped included; None for no end.
        groups: Whether batches go to the device in groups if steps are short. The size of a group depends on
            the clock, so several processes that share the work do without.
    """

    skip: int = 0
    epochs: int | None = None
    steps: int | None = None
    groups: bool = True


@dataclass(eq=False)
class StreamSource:
    """Batches read by a thread, one group ahead of the device.

    Attributes:
        batches: The batches of an epoch; all have the same types, except for shorter ones.
        place: Puts a group on devices; also given whether its only batch is a shorter one.
        per_epoch: The number of steps in an epoch, if it is known.
        settings: Which part of the stream is read.
        layout_of: Returns how the data is read, as far as it is known.
        notes_of: Returns sentences about examples that are left out or read twice.
    """

    batches: EpochBatches
    place: Callable[[PyTree, bool], PyTree]
    per_epoch: int | None
    settings: StreamSettings
    layout_of: Callable[[], Layout]
    notes_of: Callable[[], tuple[str, ...]]
    _ahead: int = 1
    _group: BatchGroup | None = None
    _queue: "queue.Queue[BatchGroup | EndOfStream]" = field(default_factory=lambda: queue.Queue(maxsize=1))
    _closed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def layout(self) -> Layout:
        return self.layout_of()

    @property
    def notes(self) -> tuple[str, ...]:
        return self.notes_of()

    def next(self, done: int, most: int, ahead: int) -> BatchGroup | None:
        self._ahead = ahead
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, daemon=True, name="jaxprop-data")
            self._thread.start()
        group = self._group
        if group is None:
            item = self._queue.get()
            if isinstance(item, EndOfStream):
                self._queue.put(item)
                if item.error is not None:
                    raise item.error
                return None
            group = item
        count = min(most, group.steps)
        rest = group.steps - count
        self._group = group._replace(place=group.place + count, steps=rest) if rest else None
        cut = BatchGroup(group.arrays, group.place, count, group.ends and not rest)
        return _alone(cut) if most == 1 else cut

    def order(self, done: int) -> None:
        return None

    def take(self, arrays: PyTree, order: Array | None, at: State, place: Int[Array, ""]) -> tuple[Batch, None]:
        cut = functools.partial(jax.lax.dynamic_index_in_dim, index=place, keepdims=False)
        return as_batch(jax.tree.map(cut, arrays)), None

    def close(self) -> None:
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get_nowait()  # a reader that waits for room continues, and sees that it is closed
            except queue.Empty:
                self._thread.join(0.01)

    # --- the thread ------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for group in self._groups():
                self._put(group)
                if self._closed.is_set():
                    return
            self._put(EndOfStream(None))
        except BaseException as error:  # raised where the batches are asked for
            self._put(EndOfStream(error))

    def _put(self, item: BatchGroup | EndOfStream) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _groups(self) -> Iterator[BatchGroup]:
        batches, pushed_back = self._rest(), list[EpochBatch]()

        def following() -> EpochBatch | None:
            return pushed_back.pop() if pushed_back else next(batches, None)

        full: list[str] | None = None
        while (first := following()) is not None:
            types = batch_types(first.data)
            full = types if full is None else full
            room = self._room(first.data) if types == full else 1
            members = [first]
            try:
                while len(members) < room and not members[-1].ends and (item := following()) is not None:
                    if batch_types(item.data) != types:
                        pushed_back.append(item)
                        break
                    members.append(item)
            except BaseException:
                yield self._group_of(members, room, types != full)  # what was read before the error is used
                raise
            yield self._group_of(members, room, types != full)

    def _group_of(self, members: Sequence["EpochBatch"], room: int, short: bool) -> BatchGroup:
        stack = functools.partial(_stacked_batches, room)
        arrays = self.place(jax.tree.map(stack, *(member.data for member in members)), short)
        return BatchGroup(arrays, 0, len(members), members[-1].ends)

    def _rest(self) -> Iterator["EpochBatch"]:
        """The batches of all epochs that are still to come."""
        skip, per_epoch = self.settings.skip, self.per_epoch
        first, skip = divmod(skip, per_epoch) if per_epoch else (0, skip)
        left = None if self.settings.steps is None else self.settings.steps - (self.settings.skip - skip)
        epochs = self.settings.epochs
        for epoch in itertools.count(first) if epochs is None else range(first, epochs):
            count = 0
            for count, item in enumerate(_with_end(itertools.islice(self.batches(epoch), left)), 1):
                if count > skip:
                    yield item
            skip -= min(count, skip)
            left = None if left is None else left - count
            if count == 0:
                return

    def _room(self, batch: PyTree) -> int:
        """How many batches a group has room for: one, or more if steps are short."""
        if not self.settings.groups or self._ahead < _GROUP_FROM:
            return 1
        size = max(1, sum(x.nbytes for x in jax.tree.leaves(batch)))
        return max(1, min(_GROUP_STEPS, _GROUP_BYTES // size))


class EpochBatch(NamedTuple):
    """A batch, and whether its epoch ends with it."""

    data: PyTree
    ends: bool


def _with_end(items: Iterator[PyTree]) -> Iterator[EpochBatch]:
    held = next(items, None)
    while held is not None:
        try:
            following = next(items, None)
        except BaseException:
            yield EpochBatch(held, False)  # what was read before the error is used
            raise
        yield EpochBatch(held, following is None)
        held = following


def _alone(group: BatchGroup) -> BatchGroup:
    """A group of one batch as if it had been read alone, so that a single step needs no other program."""
    if len(jax.tree.leaves(group.arrays)[0]) == 1:
        return group
    return group._replace(arrays=_cut_one(group.arrays, group.place), place=0)


@jax.jit
def _cut_one(arrays: PyTree, place: Array) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, place, 1), arrays)


def _stacked_batches(room: int, *xs: HostArray) -> HostArray:
    """Batches in one array, with room for `room` of them."""
    if room == 1:
        return xs[0][None]
    if isinstance(xs[0], jax.Array):
        return jnp.stack([*xs, *xs[-1:] * (room - len(xs))])
    stacked = np.empty((room, *np.shape(xs[0])), xs[0].dtype)
    for place in range(room):
        stacked[place] = xs[min(place, len(xs) - 1)]
    return stacked


# --- iterables of batches ----------------------------------------------------------------------------------


def factory_of(data: object) -> EpochBatches:
    """Return a function for the batches of an epoch: a function is called for them, an iterable started again.

    Raises:
        TypeError: `data` is neither.
    """
    if isinstance(data, Iterator):
        # It cannot be started again: there is one epoch of it.
        return lambda epoch: data if epoch == 0 else iter(())
    if isinstance(data, Iterable):
        return lambda epoch: iter(data)
    if callable(data):
        make = cast(Callable[..., Iterable[PyTree]], data)
        takes_epoch = _required_parameters(make) > 0
        return lambda epoch: iter(make(epoch) if takes_epoch else make())
    raise TypeError(
        "`data` must be a pytree of arrays with the examples on the first axis, an iterable of batches, or a "
        f"function that returns one; got {type(data).__name__}."
    )


def _required_parameters(function: Callable[..., object]) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )


def batches_of(data: object) -> Iterator[PyTree]:
    """Return the batches of one epoch of an iterable, of any shapes."""
    return (jax.tree.map(as_array, batch) for batch in factory_of(data)(0))


def as_array(x: HostArray) -> HostArray:
    """Return an array as it is, and anything else as a NumPy array."""
    return x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


def batch_types(batch: PyTree) -> list[str]:
    """Return the types of the arrays of a batch: `float32[32, 4]`."""
    return [f"{x.dtype}{list(np.shape(x))}" for x in jax.tree.leaves(batch)]


@dataclass(eq=False)
class UniformBatches:
    """The batches of an iterable as arrays, all of the same types except for shorter ones.

    Attributes:
        factory: The batches of an epoch.
        remainder: What is done with a shorter batch, as in `Data`.
        check: Checks a batch, given the batch and where it is.
        saved: The types of the batches of the run that is resumed.
    """

    factory: EpochBatches
    remainder: str
    check: Callable[[PyTree, str], None]
    saved: list[str] | None = None
    _first: PyTree = None
    _short: int = 0

    @property
    def layout(self) -> Layout:
        """How the data is read, as far as it is known: the types of a batch."""
        types = self.saved if self._first is None else batch_types(self._first)
        return {"batch": types}

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence about batches that were shorter."""
        told = {
            "drop": "left out",
            "pad": "filled up from the first batch of the run",
            "keep": "used as they are",
        }
        if not self._short:
            return ()
        batches = plural(self._short, "batch was", "batches were")
        return (f"{batches} shorter than the first and {told[self.remainder]} (remainder={self.remainder!r}).",)

    def __call__(self, epoch: int) -> Iterator[PyTree]:
        """Return the batches of an epoch."""
        for number, given in enumerate(self.factory(epoch)):
            batch, where = jax.tree.map(_own_array, given), f"batch {number} of epoch {epoch}"
            if self._first is None:
                self._begin(batch)
            if batch_types(batch) != batch_types(self._first):
                self._refuse(batch, where)
                self._short += 1
                if self.remainder == "drop":
                    continue
                batch = jax.tree.map(_filled_up, batch, self._first) if self.remainder == "pad" else batch
            self.check(batch, where)
            yield batch

    def _begin(self, batch: PyTree) -> None:
        types = batch_types(batch)
        if self.saved is not None and self.saved != types:
            raise CheckpointError(
                f"the run that is resumed read batches of {', '.join(self.saved)}, but the first batch is now "
                f"{', '.join(types)}: the data would continue elsewhere. Pass batches of the same shape, or "
                'resume="state" to continue from the state with the data as it is now.'
            )
        self._first = batch

    def _refuse(self, batch: PyTree, where: str) -> None:
        """Raise ValueError unless a batch is like the first, only shorter."""
        types, expected = (", ".join(batch_types(each)) for each in (batch, self._first))
        differ = f"{where} has the types {types}, but the first batch {expected}."
        if not _only_shorter(batch, self._first):
            raise ValueError(
                f"{differ} Only the number of examples may be smaller, as in the last batch of an epoch: each "
                "shape needs a program of its own. Make the batches equal."
            )
        if self.remainder == "error":
            raise ValueError(
                f'{differ} Make the batches equal, or pass data=Data(..., remainder="keep"), "drop" or "pad".'
            )


def _only_shorter(batch: PyTree, first: PyTree) -> bool:
    """Whether a batch is like another, except that it has fewer examples."""
    if jax.tree.structure(batch) != jax.tree.structure(first):
        return False
    pairs = list(zip(jax.tree.leaves(batch), jax.tree.leaves(first), strict=True))
    if any((x.dtype, np.ndim(x), np.shape(x)[1:]) != (y.dtype, np.ndim(y), np.shape(y)[1:]) for x, y in pairs):
        return False
    lengths = {(len(x), len(y)) for x, y in pairs if np.ndim(y)}
    return len(lengths) == 1 and all(0 < ours < theirs for ours, theirs in lengths)


def _filled_up(x: HostArray, first: HostArray) -> HostArray:
    """A shorter array with examples of the first batch at its end."""
    if not np.ndim(x):
        return x
    more = first[: len(first) - len(x)]
    if isinstance(x, jax.Array):
        return jnp.concatenate([x, jnp.asarray(more)])
    return np.concatenate([x, np.asarray(more)])


def _own_array(x: HostArray) -> HostArray:
    """A copy: a loader may fill the same array again and again."""
    return x if isinstance(x, jax.Array) else np.array(x)
