"""All writers of a run as one."""

import contextlib
from collections.abc import Mapping, Sequence

import jax

from ..watch.histogram import Histogram
from .console import Console
from .writer import Writer, resume_at


class WriterGroup:
    """Several writers as one. Under several processes only the first one writes.

    Args:
        writers: The writers; all of them are closed at the end.
        console: Shows the progress; None for none.
    """

    def __init__(self, writers: Sequence[Writer], console: Console | None) -> None:
        self._all: list[Writer] = [*writers, *([] if console is None else [console])]
        self._writing = self._all if jax.process_index() == 0 else []
        self._console = console if self._writing else None

    def __enter__(self) -> "WriterGroup":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Show a sentence about the run on the console."""
        if self._console is not None:
            self._console.note(text)

    def resume(self, step: int) -> None:
        """Tell the writers that the run continues after `step`."""
        resume_at(self._writing, step)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Pass the row to every writer."""
        for writer in self._writing:
            writer.write(step, row)

    def write_histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """Pass histograms to every writer that takes them."""
        for writer in self._writing:
            write = getattr(writer, "write_histograms", None)
            if write is not None:
                write(step, histograms)

    def close(self) -> None:
        """Close every writer, also if closing one of them fails."""
        with contextlib.ExitStack() as stack:
            for writer in self._all:
                stack.callback(writer.close)
