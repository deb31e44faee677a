"""Batches from anywhere: read by a thread, one group ahead of the device."""

import functools
import inspect
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array, PyTree
from ._feed import Batch, Group, Point, as_batch

#: Where a chunk has so many steps, streamed batches go to the device in groups; of so many, and so many bytes.
_GROUP_FROM, _GROUP_MOST, _GROUP_BYTES = 16, 64, 32 * 2**20


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
        groups: whether batches go to the device in groups where steps are short. How many is seen from the
            clock, so processes that share the work do without.
    """

    batches: Callable[[int], Iterator[PyTree]]
    place: Callable[[PyTree], PyTree] = jax.device_put
    per_epoch: int | None = None
    skip: int = 0
    epochs: int | None = None
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
        return Group(group.source, group.place, count, group.ends and not rest)

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
        first, skip = divmod(self.skip, self.per_epoch) if self.per_epoch else (0, self.skip)
        for epoch in itertools.count(first) if self.epochs is None else range(first, self.epochs):
            batches = _with_last(self.batches(epoch))
            empty = True
            for batch, last in batches:
                empty = False
                if skip:
                    skip -= 1
                    continue
                room = self._room(batch)
                members = [(batch, last), *itertools.islice(batches, room - 1)]
                stack = functools.partial(_stack, room)
                source = self.place(jax.tree.map(stack, *(member for member, _ in members)))
                yield Group(source, 0, len(members), members[-1][1])
            if empty:
                return

    def _room(self, batch: PyTree) -> int:
        """Batches in a group: one, or where steps are short as many as there is room for. Each is a program."""
        if not self.groups or self._ahead < _GROUP_FROM:
            return 1
        size = max(1, sum(x.nbytes for x in jax.tree.leaves(batch)))
        return max(1, min(_GROUP_MOST, _GROUP_BYTES // size))


def _with_last(items: Iterator[PyTree]) -> Iterator[tuple[PyTree, bool]]:
    """Each item, and whether it is the last."""
    held = next(items, None)
    while held is not None:
        item, held = held, next(items, None)
        yield item, held is None


def _stack(room: int, *xs: Any) -> Any:
    """Batches in a new array with room for so many: the reader's own may be filled anew by who gave them."""
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
        make: Callable[..., Iterable[PyTree]] = data
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
    check: Callable[[PyTree, str], None] | None,
    epoch: int,
) -> Iterator[PyTree]:
    """The batches of an epoch as arrays, all of one shape."""
    shape = None
    for number, batch in enumerate(factory(epoch)):
        batch = jax.tree.map(_as_array, batch)
        mine = [(np.shape(x), x.dtype) for x in jax.tree.leaves(batch)]
        shape = mine if shape is None else shape
        if mine != shape:
            if drop_last:
                continue
            raise ValueError(
                f"batch {number} of epoch {epoch} has the shapes {_spell(mine)}, the first {_spell(shape)}: "
                "each shape is a program of its own. Make the batches equal, or pass drop_last=True to leave "
                "such batches out."
            )
        if check is not None:
            check(batch, f"batch {number} of epoch {epoch}")
        yield batch


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


def _spell(shapes: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes)
