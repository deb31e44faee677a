"""What `data` may be: a pytree of arrays, or an iterable of batches."""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Array, PyTree
from ..checks import check_dtypes
from ..step.step import State, own
from .feed import Feed, Resident, order_of
from .placement import Places
from .stream import Streamed, checked, factory_of


@dataclass(frozen=True, eq=False)
class Data:
    """Training data and how to read it.

    Pass it to `fit` as `data`: `fit(loss, params, Data((x, y), shuffle=False), batch_size=64, epochs=3)`.

    Attributes: source: A pytree of arrays with the examples on the first axis, or batches; see `fit`.
        batch_size: The number of examples in a batch, if `source` is arrays. By default the `batch_size` of
        `fit`. shuffle: Whether to read arrays in a new order in each epoch, a pure function of key and epoch.
        drop_last: Whether to leave out the examples that do not fill a batch; otherwise they are an error.
        check: Whether to look for NaN and infinities in the data before it is used. memory_limit: In bytes.
        Arrays on the host up to this size are copied to the device as a whole; larger ones
            and memory-mapped files are streamed. By default half of the device's memory, or 1 GiB if the device
            does not report its memory.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     return jnp.mean((w - x) ** 2)
        >>> data = jp.train.Data(jnp.arange(4.0), shuffle=False)
        >>> _, history = jp.fit(loss, 0.0, data, batch_size=2, epochs=1, progress=False)
        >>> [round(value, 2) for value in history["loss"].tolist()]
        [0.5, 6.45]
    """

    source: Any = field(repr=False)
    batch_size: int | None = None
    shuffle: bool = True
    drop_last: bool = False
    check: bool = False
    memory_limit: int | None = None


def as_data(data: Any, batch_size: int | None) -> Data:
    """Interpret `data` and `batch_size` of `fit`.

    Raises:
        ValueError: the batch size is given twice.
    """
    if not isinstance(data, Data):
        return Data(data, batch_size)
    if batch_size is None:
        return data
    if data.batch_size is not None:
        raise ValueError(
            f"the batch size is given twice: Data(batch_size={data.batch_size}) and batch_size={batch_size}. "
            "Pass one of them."
        )
    return replace(data, batch_size=batch_size)


class Budget(NamedTuple):
    """How much data a run reads: the `steps` and `epochs` of `fit`."""

    steps: int | None
    epochs: int | None


def open_feed(reading: Data, state: State, budget: Budget, skip: int, places: Places) -> Feed:
    """Make a feed of data: a pytree of arrays, or an iterable of batches.

    Raises:
        TypeError, ValueError: the data is empty, ragged, of a wider type than params, or does not go with the
            batch size.
    """
    data = reading.source
    key = own(state.key) if reading.shuffle else None

    def check(data: PyTree, where: str = "") -> None:
        check_dtypes(state.params, data)
        if reading.check:
            check_numbers(data, where)

    if reading.batch_size is None and is_one_case(data):
        data = jax.tree.map(jnp.asarray, data)
        check(data)
        return Resident(places.whole(data), 1, None, None)
    if is_arrays(data):
        size = check_arrays(data)
        batch = check_batch_size(reading.batch_size, size, reading.drop_last)
        check(data)
        if fits(data, reading.memory_limit):
            places.check(size if batch is None else batch)
            return Resident(places.whole(jax.tree.map(_whole, data)), size, batch, key)
        batch = size if batch is None else batch
        rows = functools.partial(_rows, data, key, size, batch)
        places.check(batch)
        stream = functools.partial(Streamed, rows, places.stacked, size // batch)
        return stream(skip, budget.epochs, budget.steps, places.groups)
    if reading.batch_size is not None:
        raise ValueError(
            f"batch_size={reading.batch_size} is for arrays; `data` is a {type(data).__name__}, which gives "
            "batches as they are. Leave batch_size out, and batch where the data comes from."
        )
    batches = functools.partial(checked, factory_of(data), reading.drop_last, check)
    stream = functools.partial(Streamed, batches, places.own_stacked, None)
    return stream(skip, budget.epochs, budget.steps, places.groups)


def is_arrays(data: Any) -> bool:
    """Whether data is a pytree of arrays; lists and other iterables are batches."""
    if isinstance(data, list | Iterator) or callable(data):
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves)


def is_one_case(data: Any) -> bool:
    """Whether data is a pytree of plain numbers: one case, as it stands."""
    if isinstance(data, list | Iterator | float | int | complex) or callable(data):
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(isinstance(x, float | int | complex) or np.shape(x) == () for x in leaves)


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
                f"`{name}` is a scalar: an array of data has the examples on its first axis. Close over what "
                "is the same for all examples."
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
            f"batch_size={batch} does not divide the {size} examples: {rest} would be left over in each epoch. "
            "Pass data=Data(..., drop_last=True) to leave them out (others each epoch, where the data is "
            f"shuffled), or take a batch size that divides, such as {_nearest_divisor(batch, size)}."
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
                    f"`{name}{index}`{f' of {where}' if where else ''} is {x[tuple(index)]}: the data is not "
                    "finite. Leave such examples out, or fill them in."
                )
