"""The terminal: how far a run is."""

import importlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Protocol, TextIO

from .writer import number_of


class Console:
    """Show the progress of a run: loss, steps per second, time left.

    A progress bar if the stream is a terminal and rich is installed; otherwise lines, at most one every `pause`
    seconds, so that a log file stays readable.

    Args:
        total: The number of steps of the whole run, if it is known; without it no time left is shown.
        show: Names that are shown besides the loss if a row has them; names that start with `eval_` always are.
        pause: The minimum number of seconds between lines. Not used for the bar.
        stream: Where to write; `sys.stderr` by default.

    Examples:
        >>> import sys
        >>> console = Console(total=100, pause=0.0, stream=sys.stdout)
        >>> console.write(50, {"loss": 0.25, "steps_per_second": 10.0})
        step 50/100  loss 0.25  10.0 steps/s  0:05 left
        >>> console.close()
    """

    def __init__(
        self,
        total: int | None = None,
        *,
        show: Sequence[str] = (),
        pause: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.total = total
        self._names = ("loss", *show)
        self._pause = pause
        self._stream = stream
        self._view: _Display | None = None
        self._start: tuple[int, float] | None = None
        self._step = -1
        self._row: dict[str, float] = {}

    def note(self, text: str) -> None:
        """Show a sentence about the run."""
        print(text, file=self._stream or sys.stderr, flush=True)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Show the row, or hold it back if one was shown just now. Rows of one step are shown as one."""
        if self._view is None:
            self._view = _open_view(self._stream or sys.stderr, self.total, self._pause)
        shown = [name for name in row if name in self._names or name.startswith("eval_")]
        numbers = {name: number_of(name, row[name]) for name in shown}
        self._row = {**self._row, **numbers} if step == self._step else numbers
        self._step = step
        speed = float(row["steps_per_second"]) if "steps_per_second" in row else self._speed(step)
        self._view.show(step, _numbers_of_row(self._row), speed)

    def close(self) -> None:
        """Show the last row, and end the bar."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def _speed(self, step: int) -> float:
        """Steps per second since the first row, before which the run was compiled; 0 for the first row."""
        if self._start is None:
            self._start = (step, time.monotonic())
        start, then = self._start
        return (step - start) / max(time.monotonic() - then, 1e-9)


class _Display(Protocol):
    def show(self, step: int, numbers: str, speed: float) -> None: ...
    def close(self) -> None: ...


def _open_view(stream: TextIO, total: int | None, pause: float) -> _Display:
    if getattr(stream, "isatty", lambda: False)():
        try:
            console, progress = map(importlib.import_module, ("rich.console", "rich.progress"))
            return _Bar(console, progress, stream, total)
        except ImportError:
            return _Lines(stream, total, min(pause, 1.0))
    return _Lines(stream, total, pause)


class _Lines:
    """One line for a row; a row that comes too soon waits, and the last one is always shown."""

    def __init__(self, stream: TextIO, total: int | None, pause: float) -> None:
        self._stream, self._total, self._pause = stream, total, pause
        self._due = -math.inf
        self._waiting = ""

    def show(self, step: int, numbers: str, speed: float) -> None:
        of = f"/{self._total}" if self._total else ""
        left = f"  {time_left(self._total, step, speed)} left" if self._total else ""
        pace = f"  {speed:,.1f} steps/s{left}" if speed > 0 else ""
        self._waiting = f"step {step}{of}  {numbers}{pace}"
        if time.monotonic() >= self._due:
            self._flush()

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        if self._waiting:
            print(self._waiting, file=self._stream, flush=True)
            self._waiting = ""
            self._due = time.monotonic() + self._pause


class _Bar:
    """A progress bar by rich."""

    def __init__(self, console: ModuleType, progress: ModuleType, stream: TextIO, total: int | None) -> None:
        columns = (
            progress.TextColumn("step {task.completed:,.0f}{task.fields[of]}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[numbers]}"),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TextColumn("{task.fields[left]}"),
        )
        self._total = total
        self._bar = progress.Progress(*columns, console=console.Console(file=stream), refresh_per_second=4)
        of = f"/{total:,}" if total else ""
        self._task = self._bar.add_task("", total=total, of=of, numbers="", speed="", left="")
        self._bar.start()

    def show(self, step: int, numbers: str, speed: float) -> None:
        left = f"{time_left(self._total, step, speed)} left" if self._total else ""
        pace = f"{speed:,.1f} steps/s" if speed > 0 else ""
        self._bar.update(self._task, completed=step, numbers=numbers, speed=pace, left=left if pace else "")

    def close(self) -> None:
        self._bar.stop()


def _numbers_of_row(row: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items())


def time_left(total: int, step: int, speed: float) -> str:
    """Return hours, minutes and seconds to the end; `?` while the speed is not known."""
    if not speed > 0:
        return "?"
    seconds = round(max(total - step, 0) / speed)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
