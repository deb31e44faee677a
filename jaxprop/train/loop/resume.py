"""What a checkpoint holds of a run beside its state: the history so far."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..checkpoint.checkpoint import Checkpoint, Store
from ..step.step import State
from .history import Recording

_COLUMN = "column/"


def settings_of(checkpoint: Any, resume: bool) -> Checkpoint | None:
    """What `checkpoint=` of `fit` means: None, a `Checkpoint`, or a directory.

    Raises:
        TypeError: it is something else.
        ValueError: a run is to be resumed, and it is not said from where.
    """
    if checkpoint is None:
        if resume:
            raise ValueError(
                "resume=True goes on from a checkpoint, and checkpoint= does not say where they are."
            )
        return None
    if isinstance(checkpoint, Checkpoint):
        return checkpoint
    if isinstance(checkpoint, str | os.PathLike):
        return Checkpoint(checkpoint)
    raise TypeError(
        f"`checkpoint` is a directory or a jaxprop.train.Checkpoint, got {type(checkpoint).__name__}."
    )


def take_up(store: Store | None, state: State) -> tuple[State, Recording]:
    """The state and the history a run begins with: those of the newest checkpoint, else new ones."""
    if store is None or store.latest() is None:
        return state, Recording(0)
    state, progress = store.restore(state)
    return state, _recording_of(progress)


def save_to(store: Store, recording: Recording) -> Callable[[int, State, Mapping[str, Any], bool], None]:
    """What saves a state, with the history up to it, when it is due or the best so far."""

    def save(step: int, state: State, row: Mapping[str, Any], due: bool) -> None:
        _check_name(store.settings.best, row)
        if due or store.is_better(row):
            store.save(step, state, _progress_of(recording), row)

    return save


def check_best(settings: Checkpoint | None, evaluates: bool) -> None:
    """Check that what the best checkpoint is judged by will be there.

    Raises:
        ValueError: it is of an evaluation, and nothing is evaluated.
    """
    best = None if settings is None else settings.best
    if best is not None and best.startswith("eval_") and not evaluates:
        raise ValueError(f"Checkpoint(best={best!r}) is judged by an evaluation: pass `evaluation`.")


def _check_name(best: str | None, row: Mapping[str, Any]) -> None:
    evaluated = any(name.startswith("eval_") for name in row)
    if best is None or best in row or not row or (best.startswith("eval_") and not evaluated):
        return
    raise ValueError(f"Checkpoint(best={best!r}) names no number of this run; there are {', '.join(row)}.")


def _progress_of(recording: Recording) -> dict[str, Any]:
    names = recording.pieces[0] if recording.pieces else {}
    columns = {_COLUMN + name: np.concatenate([piece[name] for piece in recording.pieces]) for name in names}
    return {**columns, "evaluations": [[step, row] for step, row in recording.evaluations]}


def _recording_of(progress: Mapping[str, Any]) -> Recording:
    columns = {
        name.removeprefix(_COLUMN): array for name, array in progress.items() if name.startswith(_COLUMN)
    }
    evaluations = [(step, row) for step, row in progress["evaluations"]]
    return Recording(0, [columns] if columns else [], evaluations)
