"""`jaxprop diagnose`, `check`, `precision` and `residuals`: exit code 1 where something is found."""

import argparse
from typing import Any

import jax.numpy as jnp

from .. import diagnosis
from ..diagnosis import Report
from . import loading
from .command import FINE, FOUND, Command, CommandError, Console, add_output, deliver, format_of

FORMATS = ("text", "json")


def _configure(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser)
    add_output(parser, FORMATS)
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="the same as --format json"
    )


def _deliver(report: Report, options: argparse.Namespace, console: Console) -> int:
    text = str(report) if format_of(options, FORMATS) == "text" else report.json()
    deliver(text, options, console)
    return FINE if report.ok else FOUND


# --- diagnose ----------------------------------------------------------------------------------------


def _diagnose(options: argparse.Namespace, console: Console) -> int:
    return _deliver(loading.load(options).apply(diagnosis.diagnose), options, console)


diagnose = Command(
    name="diagnose",
    help="say where a gradient goes wrong, why, and what to do",
    examples="""
jaxprop diagnose examples/worked.py:loss w=1. x=1. y=2.
jaxprop diagnose model.py:loss --args arguments --json
""",
    configure=_configure,
    run=_diagnose,
)

# --- check -------------------------------------------------------------------------------------------


def _configure_check(parser: argparse.ArgumentParser) -> None:
    _configure(parser)
    parser.add_argument("--nodes", metavar="GLOB", help="check these nodes only, by name, scope or primitive")
    parser.add_argument(
        "--expected",
        metavar="GLOB",
        action="append",
        default=[],
        help="nodes whose rule is no derivative by design",
    )
    parser.add_argument(
        "--directions", type=int, default=2, help="random directions for each operand (default: 2)"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of a loop that are looked at (default: 3)")
    parser.add_argument("--no-total", action="store_true", help="leave the gradient as a whole alone")


def _check(options: argparse.Namespace, console: Console) -> int:
    settings: dict[str, Any] = {
        "nodes": options.nodes,
        "expected": tuple(options.expected),
        "directions": options.directions,
        "steps": options.steps,
        "total": not options.no_total,
    }
    return _deliver(loading.load(options).apply(diagnosis.check, **settings), options, console)


check = Command(
    name="check",
    help="hold every rule of a gradient against differences, and custom rules against their primal",
    examples="""
jaxprop check examples/worked.py:loss w=1. x=1. y=2.
jaxprop check model.py:loss --args arguments --expected round_through
""",
    configure=_configure_check,
    run=_check,
)

# --- precision ---------------------------------------------------------------------------------------

_DTYPES = ("bfloat16", "float16", "float32")


def _configure_precision(parser: argparse.ArgumentParser) -> None:
    _configure(parser)
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="bfloat16", help="the precision tried (default: bfloat16)"
    )
    parser.add_argument(
        "--reference", choices=("float32", "float64"), help="what it is held against (default: the next higher)"
    )
    parser.add_argument("--params-only", action="store_true", help="convert the differentiated arguments only")
    parser.add_argument("--tolerance", type=float, help="relative difference that is no finding")


def _precision(options: argparse.Namespace, console: Console) -> int:
    reference = options.reference or ("float64" if options.dtype == "float32" else "float32")
    call = loading.load(options)
    report = diagnosis.precision(
        call.fun,
        jnp.dtype(options.dtype),
        call.argnums,
        reference=jnp.dtype(reference),
        cast="params" if options.params_only else "all",
        tolerance=options.tolerance,
    )(*call.args, **call.kwargs)
    return _deliver(report, options, console)


precision = Command(
    name="precision",
    help="say what a lower precision loses: digits, underflow, overflow; and which scale of the loss helps",
    examples="""
jaxprop precision examples/worked.py:loss w=1. x=1. y=2. --dtype float16
""",
    configure=_configure_precision,
    run=_precision,
)

# --- residuals ---------------------------------------------------------------------------------------


def _configure_residuals(parser: argparse.ArgumentParser) -> None:
    _configure(parser)
    parser.add_argument("--max-bytes", metavar="N", help="exit with 1 if more is kept: 65536, 64KiB, 1.5GiB")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the gradient for its memory")


def _residuals(options: argparse.Namespace, console: Console) -> int:
    most = None if options.max_bytes is None else _read_bytes(options.max_bytes)
    ledger = loading.load(options).apply(diagnosis.residuals, compiled=not options.no_compile)
    code = _deliver(ledger, options, console)
    if most is not None and ledger.total > most:
        console.note(f"{ledger.total:,} bytes are kept, more than --max-bytes={most:,}")
        return FOUND
    return code


_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def _read_bytes(text: str) -> int:
    number = text.rstrip("KMGTBkmgtbi")
    unit = text[len(number) :].lower()
    try:
        return int(float(number) * _UNITS[unit])
    except (KeyError, ValueError):
        raise CommandError(
            f"--max-bytes is a number of bytes, such as 65536, 64KiB or 1.5GiB; got {text!r}."
        ) from None


residuals = Command(
    name="residuals",
    help="list what the backward pass keeps of the forward pass, in bytes",
    examples="""
jaxprop residuals examples/worked.py:loss w=1. x=1. y=2.
jaxprop residuals model.py:loss --args arguments --max-bytes 2GiB
""",
    configure=_configure_residuals,
    run=_residuals,
)
