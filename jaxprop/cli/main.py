"""The entry: finds the command, runs it, turns whatever fails into one line and an exit code."""

import argparse
import re
import sys
import traceback
from collections.abc import Sequence

import jax

from .. import __version__
from ..naming.syntax import is_library
from .command import USAGE, Command, CommandError, Console, console
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

_EPILOG = """\
A target is FILE.py:FUNCTION or MODULE:FUNCTION. Its arguments follow by name or in order: numbers, lists (read
as arrays), dicts and tuples of them, .npy and .npz files. `jaxprop COMMAND --help` says more.

exit codes: 0 fine, 1 something was found or an answer was wrong, 2 the call was wrong"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = _parser()
    options = _parse(parser, argv)
    if options.command is None:
        parser.print_help()
        return USAGE
    on = console()
    try:
        with jax.enable_x64(True) if getattr(options, "x64", False) else _AsItIs():
            code = options.run(options, on)
        on.out.flush()
        return code
    except BrokenPipeError:  # `jaxprop ... | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        on.note("")
        return 130
    except Exception as error:
        if getattr(options, "debug", False):
            traceback.print_exc(file=on.err)
        else:
            _report(error, on)
        return USAGE


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse; arguments of the function may stand after options too."""
    options, rest = parser.parse_known_args(argv)
    arguments = getattr(options, "arguments", None)
    unknown = [text for text in rest if text.startswith("-") and not _NUMBER.match(text)]
    if unknown or (rest and arguments is None):
        parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.arguments = [*arguments, *rest]  # type: ignore[misc]
    return options


_NUMBER = re.compile(r"-[\d.]")


class _AsItIs:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="jaxprop",
        description="Opens the backward pass of JAX: see every value and gradient in between.",
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


def _report(error: Exception, on: Console) -> None:
    """Say in one line what went wrong, and where in the user's own code."""
    head = on.paint("jaxprop:", "red")
    if isinstance(error, CommandError):
        on.note(f"{head} {error}")
        return
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    first = " ".join(text.split("\n\n")[0].split())
    place = _place(error)
    on.note(f"{head} {type(error).__name__}: {first or 'no message'}{place} (--debug shows the traceback)")


def _place(error: BaseException) -> str:
    """The innermost place of the user's own code, unless the message names one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    if not frames or f"{frames[-1].filename}:{frames[-1].lineno}" in str(error):
        return ""
    last = frames[-1]
    line = f": `{last.line}`" if last.line else ""
    return f" [{last.filename}:{last.lineno}, in {last.name}{line}]"
