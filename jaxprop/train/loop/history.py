"""What a run leaves behind: a column for each number, one row for each step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ...core.types import PyTree
from ...diagnosis import Report
from ...record.statistics import Summary
from ..step.watch import Leaf, Singly, Watched


@dataclass(frozen=True)
class Stop:
    """Why a run ended.

    Attributes:
        reason: "done" (the steps asked for), "until", "nonfinite", "seconds", or "data" (there was no more).
        step: how many steps were done.
        message: one sentence.
        loss: the loss of the step that was not taken, where something was not finite.
        leaves: paths of the leaves of the gradient that were not finite.
        report: what `jaxprop.diagnose` says of that step; None where nothing went wrong, or it could not be
            asked.
    """

    reason: str
    step: int
    message: str
    loss: float | None = None
    leaves: tuple[str, ...] = ()
    report: Report | None = None


class History(Mapping[str, np.ndarray]):
    """The numbers of a run: a mapping from names to NumPy columns of one length, a row for each step.

    `pandas.DataFrame(history)` works as it is. Columns: `step` (how many steps were done with this one), `loss`
    (at the params before it), the scalars of `aux`, and `eval_...` where `eval_data` was given: those are of
    the params after the step, NaN where nothing was evaluated.

    Attributes:
        stop: why the run ended.
        watched: what was watched, as arrays over the watched steps.
    """

    def __init__(self, columns: Mapping[str, np.ndarray], stop: Stop, watched: "WatchedHistory") -> None:
        self._columns = dict(columns)
        self.stop = stop
        self.watched = watched

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._columns:
            raise KeyError(f"the history has no column {name!r}: there are {', '.join(self._columns)}.")
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        steps = len(self._columns.get("step", ()))
        return f"History({steps} steps, {self.stop.reason}; {', '.join(self._columns)})"


@dataclass(frozen=True)
class Track:
    """What was watched of one value, with an axis of watched steps in front.

    Attributes:
        value: statistics of the value (a `Summary` of arrays), or what the recorder wrote.
        cotangent: the same of its cotangent, None where none comes.
    """

    value: Any
    cotangent: Any


class WatchedHistory(Mapping[str, Track]):
    """What was watched in a run: `history.watched["h"].cotangent.norm` is an array over the watched steps.

    Attributes:
        steps: counts of the watched steps.
    """

    def __init__(self, records: Sequence[Watched]) -> None:
        self._records = list(records)
        self.steps = np.array([int(record.step) for record in self._records], np.int64)

    def __getitem__(self, name: str) -> Track:
        if not self._records:
            raise KeyError(f"{name!r} was not watched: pass watch=jaxprop.Watch(...).")
        entries = [record[name] for record in self._records]
        return Track(_stacked([e.value for e in entries]), _stacked([e.cotangent for e in entries]))

    def __iter__(self) -> Iterator[str]:
        return iter(self._records[0] if self._records else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def leaves(self) -> Mapping[str, Leaf]:
        """Norms by leaf of the params, as arrays over the watched steps."""
        return _columns(Leaf, [record.leaves for record in self._records])

    @property
    def examples(self) -> Mapping[str, Singly]:
        """Single examples by leaf of the params, over the watched steps; with `Watch(examples=True)`."""
        return _columns(Singly, [record.examples for record in self._records])


def _columns(kind: Callable[..., Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {path: kind(*np.transpose([row[path] for row in rows])) for path in (rows[0] if rows else ())}


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *xs: np.stack([np.asarray(x) for x in xs]), *trees)


@dataclass
class Recording:
    """A history being written: columns in pieces."""

    start: int
    pieces: list[dict[str, np.ndarray]] = field(default_factory=list)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    watched: list[Watched] = field(default_factory=list)

    def add(self, rows: dict[str, np.ndarray], count: int) -> None:
        if count:
            self.pieces.append(rows)

    def finish(self, stop: Stop) -> History:
        length = sum(len(piece["loss"]) for piece in self.pieces)
        columns: dict[str, np.ndarray] = {"step": np.arange(self.start + 1, self.start + length + 1)}
        names = self.pieces[0] if self.pieces else ("loss",)
        for name in sorted(names, key=lambda name: (name != "loss", name)):
            columns[name] = np.concatenate([piece[name] for piece in self.pieces]) if length else np.zeros(0)
        for step, row in self.evaluations:
            for name, number in row.items():
                column = columns.setdefault(name, np.full(length, np.nan))
                if step > self.start:
                    column[step - self.start - 1] = number
        return History(columns, stop, WatchedHistory(self.watched))


def plain(x: Any) -> np.ndarray:
    """A NumPy array of a type NumPy has itself."""
    x = np.asarray(x)
    return x if x.dtype.kind in "fiub" and x.dtype.itemsize >= 4 else x.astype(np.float32)


def numbers_of(watched: Watched) -> dict[str, float]:
    """What was watched in one step as flat names and numbers: `h/cotangent/norm`, `params['w']/ratio`."""
    row: dict[str, float] = {}
    for name, entry in watched.items():
        for side, record in (("value", entry.value), ("cotangent", entry.cotangent)):
            if isinstance(record, Summary):
                record = _over_steps(record)._asdict()
            for path, leaf in jax.tree_util.tree_leaves_with_path(record):
                if np.ndim(leaf) == 0:
                    last = jax.tree_util.keystr(path, simple=True, separator="/")
                    row["/".join(filter(None, (name, side, last)))] = float(np.asarray(leaf))
    for path, leaf in watched.leaves.items():
        row |= {f"{path}/{kind}": float(x) for kind, x in leaf._asdict().items() if not np.isnan(x)}
    for path, leaf in watched.examples.items():
        row |= {f"{path}/examples/{kind}": float(x) for kind, x in leaf._asdict().items() if not np.isnan(x)}
    return row


def _over_steps(s: Summary) -> Summary:
    """The summary of all steps of a loop together. All have one size, so it is exact."""
    whole: Any = {
        "norm": np.sqrt(np.sum(np.square(s.norm))),
        "rms": np.sqrt(np.mean(np.square(s.rms))),
        "mean": np.mean(s.mean),
        "min": np.min(s.min),
        "max": np.max(s.max),
        "zeros": np.mean(s.zeros),
        "nonfinite": np.sum(s.nonfinite),
    }
    return Summary(**whole)
