"""Training data and how it is read."""

import functools
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Array, PyTree
from ..checks import check_arrays_only, check_dtypes
from ..step.state import State, donatable
from .arrays import (
    batching_of,
    check_finite_data,
    example_count,
    fits,
    host_batches,
    is_arrays,
    is_single_example,
)
from .placement import DevicePlacement
from .source import ArraySource, Batching, BatchSource, Layout
from .stream import StreamSettings, StreamSource, UniformBatches, factory_of

#: What to do with the examples that do not fill a batch.
Remainder = Literal["keep", "drop", "pad", "error"]


@dataclass(frozen=True, eq=False)
class Data:
    """Training data and how to read it.

    Pass it to `fit` as `data`: `fit(loss, params, Data((x, y), shuffle=False), batch_size=64, epochs=3)`.

    Attributes:
        source: A pytree of arrays with the examples on the first axis, or batches; see `fit`.
        batch_size: The number of examples in a batch, if `source` is arrays. By default the `batch_size` of
            `fit`.
        shuffle: Whether to read arrays in a new order in each epoch, a pure function of key and epoch.
        remainder: What to do with the examples that do not fill a batch. "keep", as data loaders do by
            default: the last batch of the epoch is shorter, and its step is a program of its own. "drop": they
            are left out (others in each epoch, if the data is shuffled). "pad": the last batch is filled up
            with examples from the beginning of the epoch, which then count twice. "error": refuse the batch
            size. What is done is shown with the progress and is in `history.notes`.
        check: Whether to look for NaN and infinities in the data before it is used.
        memory_limit: In bytes. Arrays on the host up to this size are copied to the device as a whole; larger
            ones and memory-mapped files are streamed. By default half of the device's memory, or 1 GiB if the
            device does not report its memory.

    Raises:
        ValueError: `remainder` is something else.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     return jnp.mean((w - x) ** 2)
        >>> data = jp.train.Data(jnp.arange(4.0), shuffle=False)
        >>> _, history = jp.fit(loss, 0.0, data, batch_size=2, epochs=1, progress=False)
        >>> [round(value, 2) for value in history["loss"].tolist()]
        [0.5, 6.45]
        >>> _, history = jp.fit(loss, 0.0, data, batch_size=3, epochs=1, progress=False)
        >>> history.notes
        ("batch_size=3 does not divide the 4 examples: the last batch of each epoch has 1 (remainder='keep').",)
    """

    source: object = field(repr=False)
    batch_size: int | None = None
    shuffle: bool = True
    remainder: Remainder = "keep"
    check: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.remainder not in get_args(Remainder):
            raise ValueError(
                f'Data(remainder=...) must be "keep", "drop", "pad" or "error", got {self.remainder!r}.'
            )


def data_settings(data: object, batch_size: int | None) -> Data:
    """Interpret `data` and `batch_size` of `fit`.

    Raises:
        ValueError: The batch size is given twice.
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


class Extent(NamedTuple):
    """Which part of the data a run reads.

    Attributes:
        done: The number of steps that a resumed run has done.
        steps, epochs: As in `fit`.
        saved: How the run that is resumed read its data; None if there is none.
    """

    done: int
    steps: int | None
    epochs: int | None
    saved: Layout | None = None


def open_source(data: Data, state: State, extent: Extent, placement: DevicePlacement) -> BatchSource:
    """Open data for reading: a pytree of arrays, or an iterable of batches.

    Raises:
        TypeError, ValueError: The data is empty or ragged, has a wider type than params, or does not fit the
            batch size.
    """
    source = data.source

    def check(data_: PyTree, where: str = "") -> None:
        check_arrays_only(data_, "data")
        check_dtypes(state.params, data_)
        if data.check:
            check_finite_data(data_, where)

    if data.batch_size is None and is_single_example(source):
        arrays = jax.tree.map(jnp.asarray, source)
        check(arrays)
        return ArraySource(placement.whole(arrays), Batching(1, None), None)
    settings = StreamSettings(extent.done, extent.epochs, extent.steps, placement.groups)
    if is_arrays(source):
        check_dtypes(state.params, source)
        return _open_arrays(data, state, settings, placement)
    if data.batch_size is not None:
        raise ValueError(
            f"`batch_size` is for arrays, but `data` is a {type(source).__name__}, which provides batches "
            "itself. Leave `batch_size` out, and form the batches where the data comes from."
        )
    batches = UniformBatches(factory_of(source), data.remainder, check, _saved_types(extent.saved))
    layout_of, notes_of = (lambda: batches.layout), (lambda: batches.notes)
    return StreamSource(batches, placement.stacked_own, None, settings, layout_of, notes_of)


def _open_arrays(data: Data, state: State, settings: StreamSettings, placement: DevicePlacement) -> BatchSource:
    """Open a pytree of arrays: on the device as a whole if it fits there, else as a stream."""
    source = data.source
    batching = batching_of(example_count(source), data.batch_size, data.remainder)
    key = donatable(state.key) if data.shuffle else None
    placement.check(batching.size if batching.batch is None else batching.batch)
    if fits(source, data.memory_limit):
        arrays = jax.tree.map(_on_host_or_device, source)
        check_arrays_only(arrays, "data")
        if data.check:
            check_finite_data(arrays)
        return ArraySource(placement.whole(arrays), batching, key)
    if data.check:
        check_finite_data(source)
    batches = functools.partial(host_batches, source, key, batching)
    layout_of, notes_of = (lambda: batching.layout(data.shuffle)), (lambda: batching.notes)
    return StreamSource(batches, placement.stacked, batching.per_epoch, settings, layout_of, notes_of)


def _on_host_or_device(x: Array | np.ndarray) -> Array | np.ndarray:
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _saved_types(saved: Layout | None) -> list[str] | None:
    types = None if saved is None else saved.get("batch")
    return types if isinstance(types, list) else None
