"""Data given as arrays: what counts as such, batches of it on the host, and checks of it."""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Array, PyTree
from .source import Batching, order_of


def is_arrays(data: object) -> bool:
    """Return whether data is a pytree of arrays; lists and other iterables are batches."""
    if isinstance(data, list | Iterator) or callable(data):
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves)


def is_single_example(data: object) -> bool:
    """Return whether data is a pytree of plain numbers: a single example, used unmodified."""
    if isinstance(data, list | Iterator | float | int | complex) or callable(data):
        return False
    leaves = jax.tree.leaves(data)
    return bool(leaves) and all(isinstance(x, float | int | complex) or np.shape(x) == () for x in leaves)


def fits(data: PyTree, limit: int | None) -> bool:
    """Return whether data may stay on the device as a whole. Memory-mapped files never do."""
    leaves = jax.tree.leaves(data)
    if any(isinstance(x, np.memmap) for x in leaves):
        return False
    limit = _device_limit() if limit is None else limit
    return sum(x.nbytes for x in leaves if not isinstance(x, jax.Array)) <= limit


def _device_limit() -> int:
    """Half of the device's memory if it reports its memory, else 1 GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit", 2 * 2**30) // 2


def host_batches(data: PyTree, key: Array | None, batching: Batching, epoch: int) -> Iterator[PyTree]:
    """Return the batches of an epoch of arrays on the host, in the order of `ArraySource`."""
    size, batch = batching.size, batching.batch or batching.size
    order = np.arange(size) if key is None else np.asarray(order_of(key, epoch, size))
    order = np.concatenate([order, order[: batching.missing]])
    for start in range(0, batching.per_epoch * batch, batch):
        in_order = key is None and start + batch <= size
        rows = slice(start, start + batch) if in_order else order[start : start + batch]
        yield jax.tree.map(functools.partial(_rows_of, rows=rows), data)


def _rows_of(x: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    return np.asarray(x[rows])


# --- checks ----------------------------------------------------------------------------------------------


def example_count(data: PyTree, word: str = "data") -> int:
    """Return the number of examples: the length of the first axis, which all arrays have in common.

    Raises:
        ValueError: They do not, or it is zero.
    """
    leaves = [(word + jax.tree_util.keystr(path), x) for path, x in jax.tree_util.tree_leaves_with_path(data)]
    for name, x in leaves:
        if not np.shape(x):
            raise ValueError(
                f"`{name}` is a scalar, but an array of data must have the examples on its first axis. Close "
                "over what is the same for all examples."
            )
    sizes = {len(x) for _, x in leaves}
    if len(sizes) > 1:
        spelt = ", ".join(f"`{name}` {len(x)}" for name, x in leaves)
        raise ValueError(f"the arrays of `{word}` differ in their number of examples, the first axis: {spelt}.")
    if sizes == {0}:
        raise ValueError(f"`{word}` is empty: its arrays have 0 examples.")
    return sizes.pop()


def batching_of(size: int, batch: int | None, remainder: str) -> Batching:
    """Return how examples are divided into batches.

    Raises:
        ValueError: The batch size is not a positive integer, is larger than the data, or does not divide it
            although that is an error.
    """
    if batch is None:
        return Batching(size, None)
    if isinstance(batch, bool) or not isinstance(batch, int | np.integer) or batch < 1:
        raise ValueError(f"`batch_size` must be a positive number of examples, got {batch!r}.")
    if batch > size:
        raise ValueError(f"batch_size={batch} is larger than the data, which has {size} examples.")
    if size % batch and remainder == "error":
        raise ValueError(
            f"batch_size={batch} does not divide the {size} examples: {size % batch} would be left over in "
            'each epoch. Pass data=Data(..., remainder="keep"), "drop" or "pad", or a batch size that '
            f"divides, such as {_nearest_divisor(batch, size)}."
        )
    return Batching(size, int(batch), remainder)


def _nearest_divisor(batch: int, size: int) -> int:
    divisors = {d for i in range(1, math.isqrt(size) + 1) if size % i == 0 for d in (i, size // i)}
    return min(divisors, key=lambda d: (abs(math.log(d / batch)), d))


def check_finite_data(data: PyTree, where: str = "") -> None:
    """Check that there is no NaN and no infinity in the data.

    Raises:
        ValueError: There is; the message names the array and the first such element.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(data):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            continue
        index = _first_nonfinite(x)
        if index is not None:
            name = "data" + jax.tree_util.keystr(path) + (str(list(index)) if index else "")
            raise ValueError(
                f"`{name}`{f' of {where}' if where else ''} is {x[index]}, but the data must be finite. Remove "
                "such examples or fill them in."
            )


def _first_nonfinite(x: Array | np.ndarray) -> tuple[int, ...] | None:
    """The index of the first element that is not finite. Large arrays are read in pieces."""
    if not np.ndim(x):
        return None if np.isfinite(np.asarray(x).astype(complex)) else ()
    for start in range(0, len(x), 65536):
        bad = np.argwhere(~np.isfinite(np.asarray(x[start : start + 65536]).astype(complex)))
        if len(bad):
            return (int(start + bad[0][0]), *map(int, bad[0][1:]))
    return None
