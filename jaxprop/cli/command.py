"""Commands, the terminal they read from and write to, and how they fail."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

#: Exit codes: no findings; findings, or wrong answers; the command line itself was wrong.
FINE, FOUND, USAGE = 0, 1, 2


class CommandError(Exception):
    """An error the user can fix: shown as one line, without a traceback."""


@dataclass(frozen=True)
class Terminal:
    """Where a command reads and writes.

    Attributes:
        out: the stream of the results.
        err: the stream of messages about them.
        read: prompts for a line; returns None at the end of the input.
        interactive: whether both input and output are connected to a person.
        colour: whether to use colours: the output is a terminal, and `NO_COLOR` is not set.
        width: in columns.
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
        """Colour a text, if colours are used."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self.colour and text else text


_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
        name: what the user types.
        help: one line, for the list of commands.
        examples: command lines that run unmodified in a checkout, shown below the help.
        configure: adds the arguments of the command to a parser.
        run: runs the command; returns the exit code.
        description: a few sentences; defaults to `help`.
    """

    name: str
    help: str
    examples: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Terminal], int]
    description: str = ""


def terminal() -> Terminal:
    """The standard streams of this process."""
    is_terminal = _is_terminal(sys.stdout)
    return Terminal(
        out=sys.stdout,
        err=sys.stderr,
        read=_read_line,
        interactive=is_terminal and _is_terminal(sys.stdin),
        colour=is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        width=_width(),
    )


def _is_terminal(stream: TextIO) -> bool:
    return bool(getattr(stream, "isatty", bool)())


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return 100


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt)
    except EOFError:
        return None


# --- output ------------------------------------------------------------------------------------------


def add_output(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """Add `--format` (the first is the default) and `-o`."""
    parser.add_argument("--format", choices=formats, help=f"output format (default: {formats[0]})")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="write to a file; its extension selects the format"
    )


_EXTENSIONS = {".txt": "text", ".md": "markdown", ".tex": "latex", ".mmd": "mermaid"}


def format_of(options: argparse.Namespace, formats: tuple[str, ...]) -> str:
    """The format given by `--format`, else by the extension of the file, else the first."""
    if options.format is not None:
        return options.format
    if options.output is None:
        return formats[0]
    extension = Path(options.output).suffix
    named = _EXTENSIONS.get(extension, extension.removeprefix("."))
    return named if named in formats else formats[0]


def write_result(text: str, options: argparse.Namespace, console: Terminal) -> None:
    """Write a result to the file given by `-o`, else to the terminal."""
    text = text.rstrip("\n")
    if options.output in (None, "-"):
        console.say(text)
        return
    try:
        Path(options.output).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise cannot_write(options.output, error) from error
    console.note(f"wrote {options.output}")


def cannot_write(file: str, error: OSError) -> CommandError:
    """The error of a file that cannot be written."""
    return CommandError(f"cannot write {file}: {error.strerror or error}.")
