"""The result of a run: a column for each number, one row for each step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.typing import ArrayLike

from ..._text import plural
from ...diagnosis import Report
from ..watch.watched import Watched
from ..writers.group import WriterGroup
from ..writers.writer import Writer
from .open_rows import AddedRow, OpenRows
from .watched_history import StepNumbers, WatchedColumns, WatchedHistory


@dataclass(frozen=True)
class Stop:
    """Why a run ended.

    Attributes:
        reason: "done" (all steps), "until", "nonfinite", "seconds", "data" (the data ended early),
            "interrupted" (Ctrl-C) or "error".
        step: The number of steps done.
        message: One sentence.
        loss: The loss of the step that was not taken, if something was not finite.
        leaves: The paths of the leaves of the gradient that were not finite.
        report: What `jaxprop.diagnose` reports for that step; None if everything was finite, or if the step
            could not be diagnosed.
    """

    reason: str
    step: int
    message: str
    loss: float | None = None
    leaves: tuple[str, ...] = ()
    report: Report | None = None


class History(Mapping[str, np.ndarray]):
    """The numbers of a run: a mapping from names to NumPy columns of one length, a row for each step.

    `pandas.DataFrame(history)` works. `fit` returns one. Its columns are `step` (the number of steps done,
    including this one), `loss` (at the params before the step), the scalars of `aux`, and `eval_...` with an
    evaluation: these are computed at the params after the step, and NaN where nothing was evaluated.

    In a loop of your own, make an empty one and `add` to it:

        with jp.History(writers=[CSV("log.csv")]) as history:
            for step, batch in enumerate(batches):
                ...
                history.add(step, {"loss": value}, seen)

    Args:
        writers: Objects with `write(step, row)` and `close()`, as in `fit`; each row is written.
        every: The number of rows that are waited for at once: until then they stay on the device, so that
            adding one does not wait for its step.

    Attributes:
        stop: Why the run ended; None in a loop of your own.
        notes: Sentences about the run, such as what was done with examples that do not fill a batch.

    Examples:
        >>> import jaxprop as jp
        >>> history = jp.History()
        >>> for step in range(3):
        ...     history.add(step, {"loss": 1.0 / (step + 1)})
        >>> history["loss"].round(2).tolist()
        [1.0, 0.5, 0.33]
    """

    def __init__(self, writers: Sequence[Writer] = (), *, every: int = 50) -> None:
        self.stop: Stop | None = None
        self.notes: tuple[str, ...] = ()
        self._columns: dict[str, np.ndarray] = {}
        self._watched: WatchedHistory | None = None
        self._open = OpenRows(WriterGroup(writers, None), every)

    @classmethod
    def of_run(
        cls, columns: Mapping[str, np.ndarray], stop: Stop, watched: WatchedHistory, notes: Sequence[str]
    ) -> "History":
        """Return the history of a run that has ended."""
        history = cls()
        history._columns, history._watched = dict(columns), watched
        history.stop, history.notes = stop, tuple(notes)
        return history

    def add(self, step: ArrayLike, numbers: Mapping[str, ArrayLike], seen: Watched | None = None) -> None:
        """Add the numbers of a step; several calls with one step make one row.

        Args:
            step: The count of the step. An array of counts, if `numbers` and `seen` come stacked from
                `jax.lax.scan`.
            numbers: Numbers by name.
            seen: What was watched, by `value_and_grad` or by a step.

        Raises:
            ValueError: The history is that of a run by `fit`.
        """
        if self.stop is not None:
            raise ValueError("this history is complete: it is that of a run by `fit`. Make one with History().")
        self._open.add(AddedRow(step, numbers, seen))

    @property
    def watched(self) -> WatchedHistory:
        """What was watched, as arrays over the watched steps. Printing it shows a table."""
        return self._open.watched() if self._watched is None else self._watched

    def close(self) -> None:
        """Write what was added, and close the writers."""
        self._open.close()

    def __enter__(self) -> "History":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self) -> dict[str, np.ndarray]:
        return self._columns or self._open.columns()

    def __getitem__(self, name: str) -> np.ndarray:
        columns = self._all()
        if name not in columns:
            raise KeyError(f"the history has no column {name!r}; available: {', '.join(columns)}.")
        return columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        columns = self._all()
        how = "" if self.stop is None else f", {self.stop.reason}"
        return f"History({plural(len(columns.get('step', ())), 'step')}{how}; {', '.join(columns)})"


@dataclass
class HistoryBuilder:
    """A history while the run goes on: columns in pieces.

    Attributes:
        pieces: The columns of each chunk.
        evaluations: (step, numbers) of each evaluation.
        watched: What was watched.
        notes: Sentences about the run.
    """

    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    watched: WatchedColumns = field(default_factory=WatchedColumns)
    notes: list[str] = field(default_factory=list)

    def add(self, rows: dict[str, np.ndarray]) -> None:
        """Append the rows of a chunk."""
        if len(rows["loss"]):
            self.pieces.append(rows)

    def add_watched(self, step: int, numbers: StepNumbers) -> None:
        """Append what was watched in a step."""
        if not self.watched.add(step, numbers):
            self.notes.append(
                f"What was watched before step {step} is left out: other numbers are watched since the run was "
                "resumed."
            )

    def columns(self) -> dict[str, np.ndarray]:
        """Return the columns so far, without evaluations."""
        names = self.pieces[0] if self.pieces else {}
        return {name: np.concatenate([piece[name] for piece in self.pieces]) for name in names}

    def finish(self, stop: Stop) -> History:
        """Return the history."""
        found = self.columns() or {"loss": np.zeros(0)}
        length = len(found["loss"])
        columns: dict[str, np.ndarray] = {"step": np.arange(1, length + 1)}
        columns |= {name: found[name] for name in sorted(found, key=lambda name: (name != "loss", name))}
        for step, row in self.evaluations:
            for name, number in row.items():
                columns.setdefault(name, np.full(length, np.nan))[step - 1] = number
        return History.of_run(columns, stop, self.watched.history(), self.notes)
