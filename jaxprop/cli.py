"""The command line."""

import argparse
import sys
from collections.abc import Sequence

import jax

from . import __version__, _demo


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="jaxprop", description="Opens the backward pass of JAX: see every value and gradient in between."
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"jaxprop {__version__} (JAX {jax.__version__}, {jax.default_backend()})",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("demo", help="open the backward pass of one line, and of a network on real digits")
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    _demo.run(sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
