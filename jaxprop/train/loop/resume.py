"""What a checkpoint of a run holds besides its state: the history so far, and how the data is read."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from ..checkpoint.checkpoint import Checkpoint, CheckpointError
from ..checkpoint.store import Store
from ..data.source import BatchSource, Layout
from ..step.state import State
from .history import HistoryBuilder
from .watched_history import WatchedColumns

#: How a run starts: from nothing, as a continuation of the newest checkpoint, or from its state alone.
Resume: TypeAlias = bool | Literal["state"]

#: Saves a state: (step, state, row, due). `due` is false after an evaluation, which may be the best so far.
Save: TypeAlias = Callable[[int, State, Mapping[str, float], bool], None]

_COLUMN, _WATCHED = "column/", "watched/"


def checkpoint_settings(
    checkpoint: Checkpoint | str | os.PathLike[str] | None, resume: Resume
) -> Checkpoint | None:
    """Interpret `checkpoint` of `fit`: None, a `Checkpoint`, or a directory.

    Raises:
        TypeError: It is something else.
        ValueError: `resume` is neither a boolean nor "state"; or a run is to be resumed, but `checkpoint` is
            not given.
    """
    if not isinstance(resume, bool) and resume != "state":
        raise ValueError(f'`resume` must be True, False or "state", got {resume!r}.')
    if checkpoint is None:
        if resume:
            raise ValueError(f"resume={resume!r} continues from a checkpoint, but `checkpoint` is not given.")
        return None
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, str | os.PathLike):
        return Checkpoint(checkpoint)
    raise TypeError(
        f"`checkpoint` must be a directory or a jaxprop.train.Checkpoint, got {type(checkpoint).__name__}."
    )


def check_best(settings: Checkpoint | None, evaluates: bool) -> None:
    """Check that the metric of the best checkpoint will be computed.

    Raises:
        ValueError: It comes from an evaluation, but nothing is evaluated.
    """
    best = None if settings is None else settings.best
    if best is not None and best.startswith("eval_") and not evaluates:
        raise ValueError(f"Checkpoint(best={best!r}) needs an evaluation: pass `evaluation`.")


@dataclass(frozen=True)
class Beginning:
    """What a run starts from.

    Attributes:
        state: The state.
        history: The history up to it.
        data: How the run that is resumed read its data; None if there is none, or it does not matter.
        name: The checkpoint.
    """

    state: State
    history: HistoryBuilder
    data: Layout | None = None
    name: str = ""

    def check_data(self, source: BatchSource) -> None:
        """Check that the data continues where the run that is resumed left off.

        Raises:
            CheckpointError: It is read in another order.
        """
        if self.data is None:
            return
        now = source.layout
        differing = [name for name in self.data if name != "batch" and self.data[name] != now.get(name)]
        if differing or self.data.keys() != now.keys():
            shown = differing or sorted(self.data.keys() ^ now.keys())
            changes = "; ".join(f"{name} was {self.data.get(name)}, now {now.get(name)}" for name in shown)
            raise CheckpointError(
                f"{self.name} belongs to a run that reads its data in another order: {changes}. Pass the data "
                'as before, or resume="state" to continue from the state with the data as it is now.'
            )


def begin(store: Store | None, state: State, resume: Resume) -> Beginning:
    """Return the state and the history of the newest checkpoint if there is one, else new ones."""
    step = None if store is None else store.latest()
    if store is None or step is None:
        return Beginning(state, HistoryBuilder())
    state, progress = store.restore(state)
    data = progress.get("data") if resume is True else None
    name = f"checkpoint {step} in {store.settings.path}"
    return Beginning(state, _history_of(progress), cast("Layout | None", data), name)


def saver(store: Store, history: HistoryBuilder, source: BatchSource) -> Save:
    """Return a function that saves a state, with the history up to it, if it is due or the best so far."""

    def save(step: int, state: State, row: Mapping[str, float], due: bool) -> None:
        _check_name(store.settings.best, row)
        if due or store.is_better(row):
            store.save(step, state, {**_progress_of(history), "data": source.layout}, row)

    return save


def _check_name(best: str | None, row: Mapping[str, float]) -> None:
    evaluated = any(name.startswith("eval_") for name in row)
    if best is None or best in row or not row or (best.startswith("eval_") and not evaluated):
        return
    raise ValueError(f"Checkpoint(best={best!r}) is not a number of this run; available: {', '.join(row)}.")


def _progress_of(history: HistoryBuilder) -> dict[str, object]:
    return {
        **{_COLUMN + name: column for name, column in history.columns().items()},
        **{_WATCHED + name: stack for name, stack in history.watched.arrays().items()},
        "watched": history.watched.layout(),
        "evaluations": [[step, row] for step, row in history.evaluations],
    }


def _history_of(progress: Mapping[str, Any]) -> HistoryBuilder:
    columns, stacks = (_with_prefix(progress, prefix) for prefix in (_COLUMN, _WATCHED))
    watched = progress.get("watched")
    return HistoryBuilder(
        [columns] if columns else [],
        [(step, row) for step, row in progress["evaluations"]],
        WatchedColumns() if watched is None else WatchedColumns.restored(watched, stacks),
    )


def _with_prefix(progress: Mapping[str, Any], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): array for name, array in progress.items() if name.startswith(prefix)}
