"""`jaxprop quiz`."""

import argparse

from .. import _api
from ..show import Quiz, quiz
from . import loading
from .command import FINE, FOUND, Command, CommandError, Terminal


def _add_quiz(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser)
    parser.add_argument(
        "--count", type=int, default=10, metavar="N", help="ask at most N questions (default: 10)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="choose the same questions again")


def _quiz(options: argparse.Namespace, console: Terminal) -> int:
    call = loading.load(options)
    tape = call.apply(_api.backprop)
    try:
        exercises = quiz(tape, count=options.count, seed=options.seed)
    except ValueError as error:
        raise CommandError(str(error)) from error
    console.say("Answer with a number, a fraction or an expression (2*-1). h: hint, s: solution, q: quit.")
    _ask_all(exercises, console)
    console.say()
    console.say(f"{exercises.right} of {len(exercises)} right on the first try.")
    return FINE if exercises.right == len(exercises) else FOUND


def _ask_all(exercises: Quiz, console: Terminal) -> None:
    asked = None
    while not exercises.done:
        if exercises.question is not asked:
            asked = exercises.question
            console.say()
            console.say(exercises.ask())
        answer = console.read("> ")
        if answer is None or answer.strip().lower() in ("q", "quit"):
            return
        said = answer.strip().lower()
        if said in ("h", "hint"):
            console.say(console.paint(exercises.hint(), "cyan"))
        elif said in ("s", "skip", "solution"):
            console.say(exercises.skip())
        elif said:
            verdict = exercises.answer(answer)
            style = {True: "green", False: "red", None: "yellow"}[verdict.right]
            console.say(console.paint(str(verdict), style))


quiz_ = Command(
    name="quiz",
    help="exercises: work out the numbers of the backward pass of your own function",
    examples="""
jaxprop quiz examples/worked.py:loss w=1. x=1. y=2.
jaxprop quiz examples/worked.py:loss w=3. x=2. y=1. --seed 1 --count 5
""",
    configure=_add_quiz,
    run=_quiz,
)
