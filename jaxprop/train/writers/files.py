"""Writers that write files: JSON lines and CSV."""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TextIO

from .writer import number_of


class JSONL:
    """Write each row as one line of JSON: `{"step": 10, "loss": 0.25}`.

    Every line has been passed to the operating system when `write` returns, so a killed run loses no row. A
    resumed run removes an incomplete last line and the rows that will be written again. Numbers that are not
    finite are written as `NaN`, `Infinity` and `-Infinity`, which Python's `json` reads.

    Args:
        path: The file; missing directories are created.
        overwrite: Whether to overwrite an existing file. A resumed run continues it either way.

    Raises:
        FileExistsError: At the first row, if the file holds rows and the run is not resumed.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self._file = _LineFile(path, overwrite)

    def resume(self, step: int) -> None:
        """Continue the file after `step`."""
        self._file.reopen(lambda line: _step_of_json(line, step))

    def write(self, step: int, row: Mapping[str, float]) -> None:
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

    A name that appears later gets a new column; cells without a number are empty. Every row has been passed to
    the operating system when `write` returns. A resumed run removes an incomplete last line and the rows that
    will be written again.

    Args:
        path: The file; missing directories are created.
        overwrite: Whether to overwrite an existing file. A resumed run continues it either way.

    Raises:
        FileExistsError: At the first row, if the file holds rows and the run is not resumed.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        self._file = _LineFile(path, overwrite)
        self._columns: list[str] = []

    def resume(self, step: int) -> None:
        """Continue the file after `step`."""
        self._file.reopen(lambda line: _step_of_csv(line, step))
        head = self._file.first_line()
        self._columns = next(csv.reader([head])) if head else []

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Append one line; first rewrite the file if the row has a new name."""
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


def _csv_line(cells: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _widen(text: str, columns: Sequence[str]) -> str:
    """A table with new columns at its end: every row gains empty cells."""
    rows = list(csv.reader(io.StringIO(text)))[1:]
    return "".join(_csv_line([*row, *[""] * (len(columns) - len(row))]) for row in [columns, *rows])


class _LineFile:
    """A text file to which lines are appended; it is complete at every moment except for its last line."""

    def __init__(self, path: str | os.PathLike[str], overwrite: bool) -> None:
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
        """Replace the whole text by `change` of it, atomically."""
        if self._open is None:
            self._begin()
        self.close()
        changed = self._path.with_name(self._path.name + ".new")
        changed.write_text(change(self._path.read_text(encoding="utf-8")), encoding="utf-8", newline="")
        os.replace(changed, self._path)
        self._start("a")

    def reopen(self, keeps: Callable[[bytes], bool]) -> None:
        """Open for appending, truncated before the first line that is incomplete or not to be kept."""
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
                f"{self._path} holds rows of another run. Resume that run, choose another file, or pass "
                "overwrite=True."
            )
        self._start("w")

    def _start(self, mode: Literal["a", "w"]) -> None:
        self._open = open(self._path, mode, encoding="utf-8", newline="")  # noqa: SIM115 (closed by `close`)
