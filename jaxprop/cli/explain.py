"""`jaxprop explain`."""

import argparse

from .. import _api
from ..show import Explanation, explain
from . import loading
from .command import FINE, Command, CommandError, Terminal, add_output, format_of, write_result

FORMATS = ("text", "markdown", "latex", "json")


def _add_explain(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser)
    parser.add_argument("--to", metavar="NAME", help="explain only how the result depends on this value")
    parser.add_argument(
        "--path", metavar="NAMES", help="multiply the local gradients along one path: w,y_hat,loss"
    )
    parser.add_argument(
        "--max-rows", type=int, default=60, metavar="N", help="fold values beyond N (default: 60)"
    )
    parser.add_argument("--step", action="store_true", help="one operation at a time: Enter continues, q quits")
    add_output(parser, FORMATS)


def _explain(options: argparse.Namespace, console: Terminal) -> int:
    call = loading.load(options)
    tape = call.apply(_api.backprop)
    path = options.path.split(",") if options.path else None
    form = format_of(options, FORMATS)
    try:
        told = explain(tape, to=options.to, format=form, path=path, max_rows=options.max_rows)
    except KeyError as error:
        raise CommandError(str(error.args[0])) from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    if options.step:
        _tell(told, console)
    else:
        write_result(told.to(form), options, console)
    return FINE


def _tell(told: Explanation, console: Terminal) -> None:
    """Print it step by step; without a terminal, all at once."""
    console.say(console.paint(told.story.title, "bold"))
    for text in told.steps():
        console.say()
        console.say(text)
        if console.interactive:
            answer = console.read(console.paint("(Enter) ", "dim"))
            if answer is None or answer.strip().lower() in ("q", "quit"):
                return


explain_ = Command(
    name="explain",
    help="explain the forward pass, the local gradients and the backward pass of a function",
    examples="""
jaxprop explain examples/worked.py:loss w=1. x=1. y=2.
jaxprop explain examples/worked.py:loss 1. 1. 2. --to y_hat --step
jaxprop explain examples/worked.py:loss w=1. x=1. y=2. --path w,y_hat,s,loss
jaxprop explain model.py:loss --args make_batch --wrt params --format markdown -o chain.md
""",
    configure=_add_explain,
    run=_explain,
)
