"""Writers: where the rows of a run go. The protocol, the terminal, and files.

A row is a flat mapping from names to numbers ("loss", "steps_per_second", "h/cotangent/norm"). Writers for
other people's trackers are in `_trackers`.
"""

import contextlib
import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class Writer(Protocol):
    """What takes rows. Anything with these two methods is a writer.

    A writer that also has `resume(step)` is told, before the first row of a resumed run, after which step the
    run goes on: rows of later steps were written by the run that was killed, and will come again.
    """

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Let go of what was opened. No row comes after it."""
        ...


def resume_at(writers: Iterable[Writer], step: int) -> None:
    """Tell each writer that can be told that the run goes on after `step`."""
    for writer in writers:
        resume = getattr(writer, "resume", None)
        if resume is not None:
            resume(step)


@contextlib.contextmanager
def telling(
    writers: Sequence[Writer], progress: bool, total: int | None, resumed: int | None
) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
    """A function that tells every writer, and the terminal with `progress`; in the end all are closed.

    Under several processes the first one tells for all.

    Args:
        total: steps of the whole run, where it is known.
        resumed: the step after which a resumed run goes on; None for a new one.
    """
    shown = [*writers, Console(total)] if progress else list(writers)
    told = shown if jax.process_index() == 0 else []

    def tell(step: int, row: Mapping[str, Any]) -> None:
        for writer in told:
            writer.write(step, row)

    with contextlib.ExitStack() as opened:
        for writer in shown:
            opened.callback(writer.close)
        if resumed is not None:
            resume_at(told, resumed)
        yield tell


def number_of(name: str, value: Any) -> bool | int | float:
    """A number of a row as Python's own.

    Raises:
        TypeError: it is no single real number.
    """
    array = np.asarray(value)
    if array.size == 1 and array.dtype != object and not np.issubdtype(array.dtype, np.complexfloating):
        plain = array.item() if array.dtype.kind in "biuf" else _widened(array)
        if isinstance(plain, bool | int | float):
            return plain
    raise TypeError(f"A row holds single real numbers; {name!r} is {_kind(value)}.")


def _widened(array: np.ndarray) -> Any:
    """Types NumPy does not have itself (bfloat16) as float."""
    try:
        return float(array.astype(np.float64).item())
    except (TypeError, ValueError):
        return None


def _kind(value: Any) -> str:
    if getattr(value, "ndim", 0):
        return f"an array of shape {value.shape}"
    return f"{value!r}" if isinstance(value, str) else f"a {type(value).__name__}"


# --- the terminal ---------------------------------------------------------------------------------------------


class Console:
    """Show how far a run is: loss, steps per second, time left.

    A progress bar where the stream is a terminal and rich is installed; lines elsewhere, at most one each
    `pause` seconds, so that a log file stays readable.

    Args:
        total: steps of the whole run, where it is known; without it there is no time left.
        show: names shown beside the loss where a row has them; those that start with `eval_` are shown anyway.
        pause: least seconds from one line to the next. Not used for the bar.
        stream: where to; `sys.stderr` where None.

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
    ):
        self.total = total
        self._names = ("loss", *show)
        self._pause = pause
        self._stream = stream
        self._view: Any = None
        self._start: tuple[int, float] | None = None
        self._step = -1
        self._row: dict[str, Any] = {}

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Show the row, or keep it back if one was shown just now. Rows of one step are shown as one."""
        if self._view is None:
            self._view = _open_view(self._stream or sys.stderr, self.total, self._pause)
        shown = [name for name in row if name in self._names or name.startswith("eval_")]
        numbers = {name: number_of(name, row[name]) for name in shown}
        self._row = {**self._row, **numbers} if step == self._step else numbers
        self._step = step
        speed = float(row["steps_per_second"]) if "steps_per_second" in row else self._speed(step)
        self._view.show(step, _numbers(self._row), speed)

    def close(self) -> None:
        """Show the last row, and end the bar."""
        if self._view is not None:
            self._view.close()
            self._view = None

    def _speed(self, step: int) -> float:
        """Steps per second since the first row: before it the run was being compiled. 0 for that row."""
        if self._start is None:
            self._start = (step, time.monotonic())
        start, then = self._start
        return (step - start) / max(time.monotonic() - then, 1e-9)


def _open_view(stream: TextIO, total: int | None, pause: float) -> "_Bar | _Lines":
    if getattr(stream, "isatty", lambda: False)():
        try:
            import rich.console
            import rich.progress
        except ImportError:
            return _Lines(stream, total, min(pause, 1.0))
        return _Bar(rich, stream, total)
    return _Lines(stream, total, pause)


class _Lines:
    """One line for a row; a row that comes too soon waits, and the last one is always shown."""

    def __init__(self, stream: TextIO, total: int | None, pause: float):
        self._stream, self._total, self._pause = stream, total, pause
        self._due = -math.inf
        self._waiting = ""

    def show(self, step: int, numbers: str, speed: float) -> None:
        of = f"/{self._total}" if self._total else ""
        left = f"  {_left(self._total, step, speed)} left" if self._total else ""
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
    """rich's progress bar."""

    def __init__(self, rich: Any, stream: TextIO, total: int | None):
        columns = (
            rich.progress.TextColumn("step {task.completed:,.0f}{task.fields[of]}"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[numbers]}"),
            rich.progress.TextColumn("{task.fields[speed]}"),
            rich.progress.TextColumn("{task.fields[left]}"),
        )
        console = rich.console.Console(file=stream)
        self._total = total
        self._bar = rich.progress.Progress(*columns, console=console, refresh_per_second=4)
        of = f"/{total:,}" if total else ""
        self._task = self._bar.add_task("", total=total, of=of, numbers="", speed="", left="")
        self._bar.start()

    def show(self, step: int, numbers: str, speed: float) -> None:
        left = f"{_left(self._total, step, speed)} left" if self._total else ""
        pace = f"{speed:,.1f} steps/s" if speed > 0 else ""
        self._bar.update(self._task, completed=step, numbers=numbers, speed=pace, left=left if pace else "")

    def close(self) -> None:
        self._bar.stop()


def _numbers(row: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in row.items())


def _left(total: int, step: int, speed: float) -> str:
    """Hours, minutes and seconds to the end; `?` while the speed is not known."""
    if not speed > 0:
        return "?"
    seconds = round(max(total - step, 0) / speed)
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


# --- files ----------------------------------------------------------------------------------------------------


class JSONL:
    """Write each row as one line of JSON: `{"step": 10, "loss": 0.25}`.

    Every line is handed to the system when `write` returns, so a killed run loses no row. A resumed run cuts a
    torn last line and the rows that will come again. Numbers that are not finite are written as `NaN`,
    `Infinity` and `-Infinity`, which Python's `json` reads.

    Args:
        path: the file; directories on the way are made.
        overwrite: whether a file that is there is begun anew. A resumed run goes on with it either way.

    Raises:
        FileExistsError: at the first row, if the file holds rows and the run is not a resumed one.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False):
        self._file = _File(path, overwrite)

    def resume(self, step: int) -> None:
        """Go on with the file after `step`."""
        self._file.go_on(lambda line: _step_of_json(line, step))

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Append one line."""
        numbers = {name: number_of(name, value) for name, value in row.items()}
        self._file.append(json.dumps({"step": step, **numbers}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step_of_json(line: bytes, last: int) -> bool:
    try:
        return json.loads(line)["step"] <= last
    except (ValueError, KeyError, TypeError):
        return False


class CSV:
    """Write rows as a table with one column for each name, `step` first.

    A name that comes up later gets a column of its own; cells that have no number are empty. Every row is
    handed to the system when `write` returns. A resumed run cuts a torn last line and the rows that will come
    again.

    Args:
        path: the file; directories on the way are made.
        overwrite: whether a file that is there is begun anew. A resumed run goes on with it either way.

    Raises:
        FileExistsError: at the first row, if the file holds rows and the run is not a resumed one.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False):
        self._file = _File(path, overwrite)
        self._columns: list[str] = []

    def resume(self, step: int) -> None:
        """Go on with the file after `step`."""
        self._file.go_on(lambda line: _step_of_csv(line, step))
        head = self._file.first_line()
        self._columns = next(csv.reader([head])) if head else []

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Append one line; first rewrite the file where the row has a new name."""
        numbers = {"step": step, **{name: number_of(name, value) for name, value in row.items()}}
        new = [name for name in numbers if name not in self._columns]
        if new:
            self._columns += new
            self._file.rewrite(lambda text: _widen(text, self._columns))
        self._file.append(_csv_line([numbers.get(name, "") for name in self._columns]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _step_of_csv(line: bytes, last: int) -> bool:
    first = line.split(b",")[0].strip()
    return first == b"step" or (first.isdigit() and int(first) <= last)


def _csv_line(cells: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _widen(text: str, columns: Sequence[str]) -> str:
    """A table under a header that has grown at its end: every row gains empty cells."""
    rows = list(csv.reader(io.StringIO(text)))[1:]
    return "".join(_csv_line([*row, *[""] * (len(columns) - len(row))]) for row in [columns, *rows])


class _File:
    """A text file of lines that only grows at its end, and is whole at every moment but the last line."""

    def __init__(self, path: str | os.PathLike[str], overwrite: bool):
        self._path = Path(path)
        self._overwrite = overwrite
        self._open: TextIO | None = None

    def append(self, text: str) -> None:
        if self._open is None:
            self._begin()
        assert self._open is not None
        self._open.write(text)
        self._open.flush()

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Put `change` of the whole text in the file's place, in one move."""
        if self._open is None:
            self._begin()
        self.close()
        beside = self._path.with_name(self._path.name + ".new")
        beside.write_text(change(self._path.read_text(encoding="utf-8")), encoding="utf-8", newline="")
        os.replace(beside, self._path)
        self._start("a")

    def go_on(self, keeps: Callable[[bytes], bool]) -> None:
        """Open for appending, cut after the last line before the first that is torn or not to be kept."""
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab+") as file:
            file.seek(0)
            end = 0
            for line in file:
                if not line.endswith(b"\n") or not keeps(line):
                    break
                end += len(line)
            file.truncate(end)
        self._start("a")

    def first_line(self) -> str:
        with open(self._path, encoding="utf-8", newline="") as file:
            return file.readline().rstrip("\n")

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def _begin(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._overwrite and self._path.exists() and self._path.stat().st_size:
            raise FileExistsError(
                f"{self._path} holds rows of another run. Resume that run, name another file, "
                "or pass overwrite=True to begin it anew."
            )
        self._start("w")

    def _start(self, mode: Literal["a", "w"]) -> None:
        self._open = open(self._path, mode, encoding="utf-8", newline="")  # noqa: SIM115 (closed by `close`)
