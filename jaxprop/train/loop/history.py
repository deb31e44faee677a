"""The result of a run: a column for each number, one row for each step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import PyTree
from ...diagnosis import Report
from ...record.statistics import Summary
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

    `pandas.DataFrame(history)` works. The columns are `step` (the number of steps done, including this one),
    `loss` (at the params before the step), the scalars of `aux`, and `eval_...` with an evaluation: these are
    computed at the params after the step, and NaN where nothing was evaluated.

    Attributes:
        stop: Why the run ended.
        watched: What was watched, as arrays over the watched steps. Printing it shows a table.
        notes: Sentences about the run, such as what was done with examples that do not fill a batch.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        stop: Stop,
        watched: WatchedHistory,
        notes: tuple[str, ...] = (),
    ) -> None:
        self._columns = dict(columns)
        self.stop = stop
        self.watched = watched
        self.notes = notes

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise KeyError(f"the history has no column {name!r}; available: {', '.join(self._columns)}.")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        steps = len(self._columns.get("step", ()))
        return f"History({steps} steps, {self.stop.reason}; {', '.join(self._columns)})"


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
        return History(columns, stop, self.watched.history(), tuple(self.notes))


def plain_array(x: np.ndarray) -> np.ndarray:
    """Return an array of a dtype that NumPy has itself."""
    x = np.asarray(x)
    return x if x.dtype.kind in "fiub" and x.dtype.itemsize >= 4 else x.astype(np.float32)


def flat_numbers(numbers: StepNumbers) -> dict[str, float]:
    """Return what was watched in one step as flat names and numbers: `h/cotangent/norm`, `params['w']/ratio`.

    What is NaN because it was not recorded or is undefined (the ratio to a parameter that is zero, the mean of
    an empty array) is left out.
    """
    row: dict[str, float] = {}
    for name, sides in numbers.values.items():
        for side, record in sides._asdict().items():
            found = _of_summary(record) if isinstance(record, Summary) else _real_scalars(record)
            row |= {"/".join(filter(None, (name, side, last))): x for last, x in found.items()}
    for group, norms in (("", numbers.leaves), ("per_example/", numbers.per_example)):
        for path, leaf in norms.items():
            row |= {f"{path}/{group}{kind}": float(x) for kind, x in leaf._asdict().items() if not np.isnan(x)}
    return row


def _of_summary(s: Summary) -> dict[str, float]:
    """The statistics that have a value: those of an empty array are NaN although no number in it is."""
    numbers = {name: float(x) for name, x in _over_scan_steps(s)._asdict().items()}
    return {name: x for name, x in numbers.items() if x == x or numbers["nonfinite"] > 0}


def _real_scalars(record: PyTree) -> dict[str, float]:
    """The real numbers in what a recorder returned, by their path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(record):
        dtype = getattr(leaf, "dtype", np.dtype(type(leaf)))
        if np.ndim(leaf) == 0 and any(map(jnp.issubdtype, [dtype] * 3, [jnp.floating, jnp.integer, jnp.bool_])):
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = float(np.asarray(leaf))
    return found


def _over_scan_steps(s: Summary) -> Summary:
    """The summary of all steps of a scan together. All arrays have one size, so it is exact."""
    if not np.ndim(s.norm):
        return s
    whole: dict[str, Any] = {
        "norm": np.sqrt(np.sum(np.square(s.norm))),
        "rms": np.sqrt(np.mean(np.square(s.rms))),
        "mean": np.mean(s.mean),
        "min": np.min(s.min),
        "max": np.max(s.max),
        "zeros": np.mean(s.zeros),
        "nonfinite": np.sum(s.nonfinite),
    }
    return Summary(**whole)
