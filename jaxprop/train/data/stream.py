"""Batches from anywhere: read by a thread, one group ahead of the device."""

import functools
import inspect
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Array, PyTree
from .feed import Batch, Group, Point, as_batch

#: Where a chunk has so many steps, streamed batches go to the device in groups; of so many, and so many bytes.
_GROUP_FROM, _GROUP_MOST, _GROUP_BYTES = 128, 64, 32 * 2**20


class _End(NamedTuple):
    """The stream ended, by itself or by an error."""

    error: BaseException | None


@dataclass(eq=False)
class Streamed:
    """Batches read by a thread, one group ahead of the device.

    Attributes:
        batches: `(epoch) -> iterator` of batches, from the first.
        place: how a group is put on devices.
        per_epoch: steps in an epoch, where it is known.
        skip: batches to pass over: the steps a resumed run has done.
        epochs: how many epochs there are; None for no end.
        steps: how many batches are to be read in all, those passed over included; None for no end.
        groups: whether batches go to the device in groups where steps are short. How many is seen from the
            clock, so processes that share the work do without.
    """

    batches: Callable[[int], Iterator[PyTree]]
    place: Callable[[PyTree], PyTree] = jax.device_put
    per_epoch: int | None = None
    skip: int = 0
    epochs: int | None = None
    steps: int | None = None
    groups: bool = True
    _ahead: int = 1
    _group: Group | None = None
    _queue: Any = field(default_factory=lambda: queue.Queue(maxsize=1))
    _closed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def next(self, done: int, most: int, ahead: int) -> Group | None:
        self._ahead = ahead
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, daemon=True, name="jaxprop-data")
            self._thread.start()
        group = self._group
        if group is None:
            group = self._queue.get()
            if isinstance(group, _End):
                self._queue.put(group)
                if group.error is not None:
                    raise group.error
                return None
        count = min(most, group.steps)
        rest = group.steps - count
        self._group = group._replace(place=group.place + count, steps=rest) if rest else None
        cut = Group(group.source, group.place, count, group.ends and not rest)
        return _alone(cut) if most == 1 else cut

    def order(self, done: int) -> None:
        return None

    def take(self, source: PyTree, order: Array | None, at: Point, place: Array) -> tuple[Batch, None]:
        cut = functools.partial(jax.lax.dynamic_index_in_dim, index=place, keepdims=False)
        return as_batch(jax.tree.map(cut, source)), None

    def close(self) -> None:
        self._closed.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get_nowait()  # a reader that waits for room goes on, and sees that it is over
            except queue.Empty:
                self._thread.join(0.01)

    # --- the thread ------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for group in self._groups():
                self._put(group)
                if self._closed.is_set():
                    return
            self._put(_End(None))
        except BaseException as error:  # told where the batches are asked for
            self._put(_End(error))

    def _put(self, item: Any) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _groups(self) -> Iterator[Group]:
        batches = self._rest()
        for batch, last in batches:
            room = self._room(batch)
            members = [(batch, last)]
            while len(members) < room and not members[-1][1]:
                members += itertools.islice(batches, 1)
            source = jax.tree.map(functools.partial(_stack, room), *(member for member, _ in members))
            yield Group(self.place(source), 0, len(members), members[-1][1])

    def _rest(self) -> Iterator[tuple[PyTree, bool]]:
        """The batches of all epochs that are still to come, each with whether it is the last of its epoch."""
        first, skip = divmod(self.skip, self.per_epoch) if self.per_epoch else (0, self.skip)
        left = None if self.steps is None else self.steps - (self.skip - skip)
        for epoch in itertools.count(first) if self.epochs is None else range(first, self.epochs):
            count = 0
            for count, item in enumerate(_with_last(itertools.islice(self.batches(epoch), left)), 1):
                if count > skip:
                    yield item
            skip -= min(count, skip)
            left = None if left is None else left - count
            if count == 0:
                return

    def _room(self, batch: PyTree) -> int:
        """Batches in a group: one, or where steps are short as many as there is room for. Each is a program."""
        if not self.groups or self._ahead < _GROUP_FROM:
            return 1
        size = max(1, sum(x.nbytes for x in jax.tree.leaves(batch)))
        return max(1, min(_GROUP_MOST, _GROUP_BYTES // size))


def _alone(group: Group) -> Group:
    """A group of one batch as if it had been read alone: no other program for a single step."""
    if len(jax.tree.leaves(group.source)[0]) == 1:
        return group
    return group._replace(source=_cut_one(group.source, group.place), place=0)


@jax.jit
def _cut_one(source: PyTree, place: Array) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, place, 1), source)


def _with_last(items: Iterator[PyTree]) -> Iterator[tuple[PyTree, bool]]:
    """Each item, and whether it is the last."""
    held = next(items, None)
    while held is not None:
        item, held = held, next(items, None)
        yield item, held is None


def _stack(room: int, *xs: Any) -> Any:
    """Batches in one array, with room for so many."""
    if room == 1:
        return xs[0][None]
    if isinstance(xs[0], jax.Array):
        return jnp.stack([*xs, *xs[-1:] * (room - len(xs))])
    stacked = np.empty((room, *np.shape(xs[0])), xs[0].dtype)
    for place in range(room):
        stacked[place] = xs[min(place, len(xs) - 1)]
    return stacked


# --- iterables of batches ----------------------------------------------------------------------------------


def factory_of(data: Any) -> Callable[[int], Iterator[PyTree]]:
    """What gives the batches of an epoch: a function is called for them, an iterable begun again."""
    if isinstance(data, Iterator):
        # It cannot be begun again: there is one epoch of it.
        return lambda epoch: data if epoch == 0 else iter(())
    if isinstance(data, Iterable):
        return lambda epoch: iter(data)
    if callable(data):
        make = cast(Callable[..., Iterable[PyTree]], data)
        takes_epoch = _parameters(make) > 0
        return lambda epoch: iter(make(epoch) if takes_epoch else make())
    raise TypeError(
        "`data` must be a pytree of arrays with one leading axis in common, an iterable of batches, or a "
        f"function that gives one; got {type(data).__name__}."
    )


def _parameters(function: Any) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0
    return sum(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    )


def batches_of(data: Any) -> Iterator[PyTree]:
    """The batches of one epoch of an iterable, of whatever shapes."""
    return (jax.tree.map(_as_array, batch) for batch in factory_of(data)(0))


def checked(
    factory: Callable[[int], Iterator[PyTree]],
    drop_last: bool,
    check: Callable[[PyTree, str], None],
    epoch: int,
) -> Iterator[PyTree]:
    """The batches of an epoch as arrays, all of one shape."""
    shape = None
    for number, batch in enumerate(factory(epoch)):
        batch = jax.tree.map(_own_array, batch)
        mine = [(np.shape(x), x.dtype) for x in jax.tree.leaves(batch)]
        shape = mine if shape is None else shape
        if mine != shape:
            if drop_last:
                continue
            raise ValueError(
                f"batch {number} of epoch {epoch} has the shapes {_spell(mine)}, the first {_spell(shape)}: "
                "each shape is a program of its own. Make the batches equal, or pass data=Data(..., "
                "drop_last=True) to leave such batches out."
            )
        check(batch, f"batch {number} of epoch {epoch}")
        yield batch


def _own_array(x: Any) -> Any:
    """A copy: who gives batches may fill the same array again and again."""
    return x if isinstance(x, jax.Array) else np.array(x)


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


def _spell(shapes: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes)
