"""What is kept when a run is interrupted or fails: its state and its history, attached to the exception."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Protocol

from ..._text import plural
from ..step.state import State
from .history import History


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, in which the state of the run is replaced.

    A second Ctrl-C interrupts at once. The signal handler is put back at the end of the block.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    held: list[tuple[int, FrameType | None]] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            previous(number, frame)
        held.append((number, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if held:
        previous(*held[0])


class Recoverable(Protocol):
    """A run whose state and history can be recovered.

    Attributes:
        done: The number of steps done.
    """

    done: int

    @property
    def taken(self) -> int:
        """How many steps were taken since the run was started or resumed."""
        ...

    def recover(self) -> tuple[State | None, History]:
        """Return the state, None if it was lost, and the history."""
        ...


class Rescue:
    """Attaches state and history to an exception that ends a run: `error.state`, `error.history`.

    Attributes:
        run: The run, None before it started.
    """

    def __init__(self) -> None:
        self.run: Recoverable | None = None

    def __enter__(self) -> "Rescue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None or self.run is None or self.run.taken == 0:
            return
        state, history = self.run.recover()
        with contextlib.suppress(AttributeError):  # an exception may have slots
            error.state, error.history = state, history  # type: ignore[attr-defined]
        what = "the state and the history are `error.state` and `error.history`"
        if state is None:
            what = "the history is `error.history`; the state was lost with the step that failed"
        saved = "".join(f" {note}" for note in history.notes if note.startswith("Checkpoint"))
        error.add_note(f"jaxprop: after {plural(self.run.done, 'step')}, {what}.{saved}")
