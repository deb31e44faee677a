"""What a command is, what it may say to its user, and how it fails."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

#: Exit codes: all is well; something was found, or an answer was wrong; the call itself was wrong.
FINE, FOUND, USAGE = 0, 1, 2


class CommandError(Exception):
    """Something the user can mend: one clear line, no traceback."""


@dataclass(frozen=True)
class Console:
    """Where a command reads and writes.

    Attributes:
        out: for results.
        err: for what is said about them.
        read: asks the user for a line; None at the end of the input.
        interactive: whether a person sits there: both input and output are a terminal.
        colour: whether colours are wanted: the output is a terminal, and `NO_COLOR` is not set.
        width: columns of the terminal.
    """

    out: TextIO
    err: TextIO
    read: Callable[[str], str | None]
    interactive: bool
    colour: bool
    width: int = 100

    def say(self, text: str = "") -> None:
        """Write a line of the result."""
        print(text, file=self.out)

    def note(self, text: str) -> None:
        """Write a line about the result."""
        print(text, file=self.err)

    def paint(self, text: str, style: str) -> str:
        """Colour a text where colours are wanted."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and text else text


_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as it is called.
        help: one line, for the list of commands.
        examples: lines that work as they stand in a checkout, shown below the help.
        configure: adds its arguments to a parser.
        run: does it; returns the exit code.
        description: what it does, in a few sentences; the one line where there is none.
    """

    name: str
    help: str
    examples: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Console], int]
    description: str = ""


def console() -> Console:
    """The console of this process, as it stands now."""
    terminal = _is_terminal(sys.stdout)
    return Console(
        out=sys.stdout,
        err=sys.stderr,
        read=_read,
        interactive=terminal and _is_terminal(sys.stdin),
        colour=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        width=_width(),
    )


def _is_terminal(stream: TextIO) -> bool:
    return bool(getattr(stream, "isatty", bool)())


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 100


def _read(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None


# --- what several commands share -------------------------------------------------------------------


def add_output(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """Add `--format` (the first is the default) and `-o`."""
    parser.add_argument("--format", choices=formats, help=f"form of the output (default: {formats[0]})")
    parser.add_argument("-o", "--output", metavar="FILE", help="write to a file; its ending sets the format")


_ENDINGS = {".txt": "text", ".md": "markdown", ".tex": "latex", ".mmd": "mermaid"}


def format_of(options: argparse.Namespace, formats: tuple[str, ...]) -> str:
    """The format asked for: by name, by the ending of the file, else the first."""
    if options.format is not None:
        return options.format
    if options.output is None:
        return formats[0]
    ending = Path(options.output).suffix
    named = _ENDINGS.get(ending, ending.removeprefix("."))
    return named if named in formats else formats[0]


def deliver(text: str, options: argparse.Namespace, console: Console) -> None:
    """Write a result to where it was asked for."""
    text = text.rstrip("\n")
    if options.output in (None, "-"):
        console.say(text)
        return
    try:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {options.output}: {error.strerror or error}.") from error
    console.note(f"wrote {options.output}")
