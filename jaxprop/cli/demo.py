"""`jaxprop demo`."""

import argparse

from . import digits
from .command import FINE, Command, Console


def _configure(parser: argparse.ArgumentParser) -> None:
    """It takes nothing."""


def _run(options: argparse.Namespace, console: Console) -> int:
    digits.run(console.out)
    return FINE


demo = Command(
    name="demo",
    help="open the backward pass of one line, and of a network on real digits",
    examples="jaxprop demo",
    configure=_configure,
    run=_run,
)
