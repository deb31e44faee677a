"""Where batches come from: arrays that stay on the device, or a stream read one group of batches ahead."""

import functools
import inspect
import itertools
import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._types import Array, PyTree

#: What a loss takes after the params.
Batch: TypeAlias = tuple[Any, ...]

#: Folded into the key of a run to get the key of its orders, so that none is also the key of a step.
_ORDERS = 0xFFFFFFFF
#: Where a chunk has so many steps, streamed batches go to the device in groups; of so many, and so many bytes.
_GROUP_FROM, _GROUP_MOST, _GROUP_BYTES = 16, 64, 32 * 2**20


class Group(NamedTuple):
    """Batches at hand for a chunk.

    Attributes:
        source: arrays on the device that `Feed.take` takes them from.
        place: where in `source` the first one stands.
        count: how many there are.
        ends: whether an epoch ends with the last of them.
    """

    source: PyTree
    place: int
    count: int
    ends: bool = False


class Point(Protocol):
    """Where a run stands: its `State`."""

    @property
    def step(self) -> Array: ...

    @property
    def key(self) -> Array: ...


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


# --- arrays on the device ------------------------------------------------------------------------------


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
        order = jax.lax.cond(
            number == 0, lambda order: order_of(at.key, epoch, self.size), lambda order: order, order
        )
        rows = jax.lax.dynamic_slice_in_dim(order, start, self.batch)
        pick = lambda x: x.at[rows].get(mode="promise_in_bounds", unique_indices=True)  # noqa: E731
        return as_batch(jax.tree.map(pick, source)), order

    def close(self) -> None:
        pass


# --- streams ---------------------------------------------------------------------------------------------


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
    """

    batches: Callable[[int], Iterator[PyTree]]
    place: Callable[[PyTree], PyTree] = jax.device_put
    per_epoch: int | None = None
    skip: int = 0
    epochs: int | None = None
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
        count = min(most, group.count)
        rest = group.count - count
        self._group = group._replace(place=group.place + count, count=rest) if rest else None
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
        if self._ahead < _GROUP_FROM:
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


# --- what `data` may be ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How data is to be read: the arguments of `fit` that say so."""

    batch_size: int | None
    shuffle: bool
    drop_last: bool
    check: bool
    memory_limit: int | None
    epochs: int | None


def open_feed(data: Any, key: Array, reading: Reading, skip: int, place: Callable[[PyTree], PyTree]) -> Feed:
    """Make a feed of data: a pytree of arrays, or an iterable of batches.

    Raises:
        TypeError, ValueError: the data is empty, ragged, or does not go with the batch size.
    """
    if is_arrays(data):
        size = check_arrays(data)
        batch = check_batch_size(reading.batch_size, size, reading.drop_last)
        if reading.check:
            check_numbers(data)
        if fits(data, reading.memory_limit):
            arrays = place(jax.tree.map(_whole, data))
            return Resident(arrays, size, batch, key if reading.shuffle else None)
        batch = size if batch is None else batch
        rows = functools.partial(_rows, data, key if reading.shuffle else None, size, batch)
        return Streamed(rows, place, size // batch, skip, reading.epochs)
    if reading.batch_size is not None:
        raise ValueError(
            f"batch_size={reading.batch_size} is for arrays; `data` is a {type(data).__name__}, which gives "
            "batches as they are. Leave batch_size out, and batch where the data comes from."
        )
    batches = functools.partial(_checked, _factory(data), reading.drop_last, reading.check)
    return Streamed(batches, place, None, skip, reading.epochs)


def is_arrays(data: Any) -> bool:
    """Whether data is a pytree of arrays; lists and other iterables are batches."""
    if isinstance(data, list | Iterator) or callable(data):
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves)


def _whole(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)


def fits(data: PyTree, limit: int | None) -> bool:
    """Whether data may stay on the device as a whole. Memory-mapped files never do."""
    leaves = jax.tree.leaves(data)
    if any(isinstance(x, np.memmap) for x in leaves):
        return False
    limit = _device_limit() if limit is None else limit
    return sum(x.nbytes for x in leaves if not isinstance(x, jax.Array)) <= limit


def _device_limit() -> int:
    """Half of the device's memory where it says what it has, else 1 GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 2 * 2**30) // 2


def _rows(data: PyTree, key: Array | None, size: int, batch: int, epoch: int) -> Iterator[PyTree]:
    order = None if key is None else np.asarray(order_of(key, epoch, size))
    for start in range(0, size - batch + 1, batch):
        rows = slice(start, start + batch) if order is None else order[start : start + batch]
        yield jax.tree.map(lambda x, rows=rows: np.asarray(x[rows]), data)


def _factory(data: Any) -> Callable[[int], Iterator[PyTree]]:
    """What gives the batches of an epoch: a function is called for them, an iterable begun again."""
    if callable(data) and not isinstance(data, Iterable):
        parameters = _parameters(data)
        return lambda epoch: iter(data(epoch) if parameters else data())
    if isinstance(data, Iterator):
        # It cannot be begun again: there is one epoch of it.
        return lambda epoch: data if epoch == 0 else iter(())
    if isinstance(data, Iterable):
        return lambda epoch: iter(data)
    raise TypeError(
        f"`data` must be a pytree of arrays with one leading axis in common, an iterable of batches, or a function "
        f"that gives one; got {type(data).__name__}."
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
    return (jax.tree.map(_as_array, batch) for batch in _factory(data)(0))


def _checked(
    factory: Callable[[int], Iterator[PyTree]], drop_last: bool, check: bool, epoch: int
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
                f"batch {number} of epoch {epoch} has the shapes {_spell(mine)}, the first has {_spell(shape)}: each "
                "shape is a program of its own. Make the batches equal, or pass drop_last=True to leave such "
                "batches out."
            )
        if check:
            check_numbers(batch, f"batch {number} of epoch {epoch}")
        yield batch


def _as_array(x: Any) -> Any:
    return x if isinstance(x, jax.Array | np.ndarray) else np.asarray(x)


def _spell(shapes: list[Any]) -> str:
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in shapes)


# --- checks ----------------------------------------------------------------------------------------------


def check_arrays(data: PyTree, word: str = "data") -> int:
    """The leading axis that arrays have in common.

    Raises:
        ValueError: there is none, or it is empty.
    """
    leaves = [(word + jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(data)]
    for name, x in leaves:
        if not np.shape(x):
            raise ValueError(
                f"`{name}` is a scalar: an array of data has the examples on its first axis. Close over what is "
                "the same for all examples."
            )
    sizes = {len(x) for _, x in leaves}
    if len(sizes) > 1:
        spelt = ", ".join(f"`{name}` {len(x)}" for name, x in leaves)
        raise ValueError(f"the arrays of `{word}` differ in their number of examples, the first axis: {spelt}.")
    if sizes == {0}:
        raise ValueError(f"`{word}` is empty: its arrays have 0 examples.")
    return sizes.pop()


def check_batch_size(batch: int | None, size: int, drop_last: bool) -> int | None:
    """Check the batch size against the number of examples.

    Raises:
        ValueError: it does not divide it, or is no positive number.
    """
    if batch is None:
        return None
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise ValueError(f"batch_size is a number of examples, 1 or more; got {batch!r}.")
    if batch > size:
        raise ValueError(f"batch_size={batch} is more than the {size} examples there are.")
    rest = size % batch
    if rest and not drop_last:
        raise ValueError(
            f"batch_size={batch} does not divide the {size} examples: {rest} would be left over in each epoch. Pass "
            "drop_last=True to leave them out (others each epoch, since the data is shuffled), or take a batch "
            f"size that divides, such as {_nearest_divisor(batch, size)}."
        )
    return int(batch)


def _nearest_divisor(batch: int, size: int) -> int:
    divisors = {d for i in range(1, math.isqrt(size) + 1) if size % i == 0 for d in (i, size // i)}
    return min(divisors, key=lambda d: (abs(math.log(d / batch)), d))


def check_numbers(data: PyTree, where: str = "") -> None:
    """Check that there is no NaN and no infinity in the data.

    Raises:
        ValueError: there is, with the array and the first example that has it.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(data):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            continue
        for start in range(0, len(x), 65536):
            fine = np.isfinite(np.asarray(x[start : start + 65536]).astype(complex))
            bad = np.argwhere(~fine)
            if len(bad):
                index = [int(start + bad[0][0]), *map(int, bad[0][1:])]
                name = "data" + jax.tree_util.keystr(path)
                raise ValueError(
                    f"`{name}{index}`{f' of {where}' if where else ''} is {np.asarray(x)[tuple(index)]}: the data is "
                    f"not finite. {len(np.unique(bad[:, 0]))} of the examples looked at have such numbers; leave "
                    "them out or fill them in."
                )
