"""Rows of a loop of the user's own: on the device for a while, then written and kept."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from ..watch.watched import Watched
from ..writers.group import WriterGroup
from ..writers.writer import number_of
from .rows import flat_numbers, histograms_of
from .watched_history import StepNumbers, WatchedColumns, WatchedHistory, step_numbers


class AddedRow(NamedTuple):
    """What was added: the count of a step or several, and their numbers."""

    step: ArrayLike
    numbers: Mapping[str, ArrayLike]
    seen: Watched | None


class OpenRows:
    """The rows of a run that goes on.

    Args:
        writers: Take the rows.
        every: How many of them are read from the device at once.
    """

    def __init__(self, writers: WriterGroup, every: int) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"History(every=...) must be a positive number of rows, got {every!r}.")
        self._writers, self._every = writers, every
        self._waiting: list[AddedRow] = []
        self._rows: dict[int, dict[str, float]] = {}
        self._watched = WatchedColumns()

    def add(self, row: AddedRow) -> None:
        """Add a row, or several stacked ones."""
        same = bool(self._waiting) and isinstance(row.step, int) and self._waiting[-1].step == row.step
        if not same and len(self._waiting) >= self._every:
            self._flush()
        self._waiting.append(row)

    def columns(self) -> dict[str, np.ndarray]:
        """Return a column for each name, NaN where a row has no such number."""
        self._flush()
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        steps = {"step": np.array(list(self._rows), np.int64)} if self._rows else {}
        return steps | {
            name: np.array([row.get(name, np.nan) for row in self._rows.values()]) for name in names
        }

    def watched(self) -> WatchedHistory:
        """Return what was watched."""
        self._flush()
        return self._watched.history()

    def close(self) -> None:
        """Write what waits, and close the writers."""
        self._flush()
        self._writers.close()

    def _flush(self) -> None:
        """Read what waits from the device, write it and keep it."""
        waiting, self._waiting = self._waiting, []
        written: dict[int, dict[str, float]] = {}
        seen: dict[int, StepNumbers] = {}
        for step, numbers, watched in _on_host(waiting):
            row = written.setdefault(step, {})
            row |= {name: float(number_of(name, x)) for name, x in numbers.items()}
            if watched is not None:
                seen[step] = step_numbers(watched)
        for step, row in written.items():
            self._rows.setdefault(step, {}).update(row)
            if step in seen:
                self._watched.add(step, seen[step])
                row |= flat_numbers(seen[step])
            self._writers.write(step, row)
            if step in seen and seen[step].histograms:
                self._writers.write_histograms(step, histograms_of(seen[step]))


def _on_host(rows: Sequence[AddedRow]) -> Iterator[tuple[int, Mapping[str, np.ndarray], Watched | None]]:
    """The rows one by one, as NumPy arrays; of what was watched, only what was due is read."""
    due = jax.device_get([None if row.seen is None else row.seen.on for row in rows])
    wanted = [row._replace(seen=row.seen if np.any(on) else None) for row, on in zip(rows, due, strict=True)]
    for step, numbers, seen in jax.device_get(wanted):
        if np.ndim(step) == 0:
            yield int(step), numbers, seen
            continue
        for i, one in enumerate(np.asarray(step)):
            at = jax.tree.map(lambda x, i=i: np.asarray(x)[i], (dict(numbers), seen))
            yield int(one), at[0], at[1] if at[1] is not None and at[1].on else None
