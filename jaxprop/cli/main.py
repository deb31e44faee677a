"""The entry point: find the command, run it, turn failures into one line and an exit code."""

import argparse
import contextlib
import os
import re
import sys
import traceback
from collections.abc import Sequence

import jax

from .. import __version__
from ..naming.syntax import is_library
from .command import USAGE, Command, CommandError, Terminal, terminal
from .demo import demo
from .diagnosis import check, diagnose, precision, residuals
from .draw import draw_
from .explain import explain_
from .quiz import quiz_
from .trace import trace

#: All commands, in the order of the help.
COMMANDS: tuple[Command, ...] = (
    *(explain_, draw_, trace, quiz_),
    *(diagnose, check, precision, residuals),
    demo,
)

#: Exit codes of a process ended by a signal, as shells report them: 128 + SIGINT, 128 + SIGPIPE.
INTERRUPTED, BROKEN_PIPE = 130, 141

_EPILOG = """\
A target is FILE.py:FUNCTION or MODULE:FUNCTION. Its arguments follow, by name or by position: numbers, lists
(read as arrays), dicts and tuples of them, .npy and .npz files. For details: `jaxprop COMMAND --help`.

exit codes: 0 no findings, 1 findings or wrong answers, 2 the command line is wrong or the function fails"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    try:
        try:
            return _main(argv)
        finally:  # `--help` and wrong options exit from inside
            sys.stdout.flush()
    except BrokenPipeError:  # the reader is gone, as in `jaxprop ... | head`
        _discard_output()
        return BROKEN_PIPE


def _discard_output() -> None:
    """Point the standard output at the null device, so that Python's flush at exit does not fail."""
    with contextlib.suppress(OSError, ValueError):  # the stream is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    options = _parse(parser, argv)
    if options.command is None:
        parser.print_help()
        return USAGE
    console = terminal()
    try:
        with jax.enable_x64(True) if getattr(options, "x64", False) else contextlib.nullcontext():
            return options.run(options, console)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        console.note("")
        return INTERRUPTED
    except Exception as error:
        if getattr(options, "debug", False):
            traceback.print_exc(file=console.err)
        else:
            _report_error(error, console)
        return USAGE


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; arguments of the function may also follow options."""
    options, rest = parser.parse_known_args(argv)
    arguments = getattr(options, "arguments", None)
    unknown = [text for text in rest if text.startswith("-") and not _NUMBER.match(text)]
    if unknown or (rest and arguments is None):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.arguments = [*(arguments or ()), *rest]
    return options


_NUMBER = re.compile(r"-[\d.]")


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="jaxprop",
        description="Opens the backward pass of JAX: inspect every intermediate value and gradient.",
        epilog=_EPILOG,
        formatter_class=form,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"jaxprop {__version__} (JAX {jax.__version__}, {jax.default_backend()})",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in COMMANDS:
        own = commands.add_parser(
            command.name,
            help=command.help,
            description=command.description or f"{command.help[:1].upper()}{command.help[1:]}.",
            epilog=f"examples:\n{_indent(command.examples)}",
            formatter_class=form,
        )
        command.configure(own)
        own.add_argument("--debug", action="store_true", help="show the traceback of an error")
        own.set_defaults(run=command.run)
    return parser


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip().splitlines())


def _report_error(error: Exception, console: Terminal) -> None:
    """Report in one line what went wrong, and where in the user's own code."""
    head = console.paint("jaxprop:", "red")
    if isinstance(error, CommandError):
        console.note(f"{head} {error}")
        return
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    first = " ".join(text.split("\n\n")[0].split())
    place = _user_location(error)
    console.note(f"{head} {type(error).__name__}: {first or 'no message'}{place} (--debug shows the traceback)")


def _user_location(error: BaseException) -> str:
    """The innermost line of the user's own code, unless the message already names it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    if not frames or f"{frames[-1].filename}:{frames[-1].lineno}" in str(error):
        return ""
    last = frames[-1]
    line = f": `{last.line}`" if last.line else ""
    return f" [{last.filename}:{last.lineno}, in {last.name}{line}]"
