"""`jaxprop diagnose`, `check`, `precision` and `residuals`: exit code 1 if there are findings."""

import argparse

import jax.numpy as jnp

from .. import diagnosis
from ..diagnosis import Report
from . import loading
from .command import FINE, FOUND, Command, CommandError, Terminal, add_output, format_of, write_result

FORMATS = ("text", "json")


def _add_common(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser)
    add_output(parser, FORMATS)
    parser.add_argument(
        "--json", dest="format", action="store_const", const="json", help="same as --format json"
    )


def _write_report(report: Report, options: argparse.Namespace, to: Terminal) -> int:
    text = str(report) if format_of(options, FORMATS) == "text" else report.json()
    write_result(text, options, to)
    return FINE if report.ok else FOUND


# --- diagnose ----------------------------------------------------------------------------------------


def _diagnose(options: argparse.Namespace, console: Terminal) -> int:
    return _write_report(loading.load(options).apply(diagnosis.diagnose), options, console)


diagnose = Command(
    name="diagnose",
    help="find where a gradient goes wrong, why, and how to fix it",
    examples="""
jaxprop diagnose examples/worked.py:loss w=1. x=1. y=2.
jaxprop diagnose model.py:loss --args arguments --json
""",
    configure=_add_common,
    run=_diagnose,
)

# --- check -------------------------------------------------------------------------------------------


def _add_check(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--nodes", metavar="GLOB", help="check only these nodes, by name, scope or primitive")
    parser.add_argument(
        "--expected",
        metavar="GLOB",
        action="append",
        default=[],
        help="nodes whose rule is not a derivative, by design",
    )
    parser.add_argument(
        "--directions", type=int, default=2, help="random directions for each operand (default: 2)"
    )
    parser.add_argument("--steps", type=int, default=3, help="loop steps to check (default: 3)")
    parser.add_argument("--no-total", action="store_true", help="do not check the gradient as a whole")


def _check(options: argparse.Namespace, console: Terminal) -> int:
    settings = {
        "nodes": options.nodes,
        "expected": tuple(options.expected),
        "directions": options.directions,
        "steps": options.steps,
        "total": not options.no_total,
    }
    return _write_report(loading.load(options).apply(diagnosis.check, **settings), options, console)


check = Command(
    name="check",
    help="compare every derivative rule with finite differences, and custom rules with their primal",
    examples="""
jaxprop check examples/worked.py:loss w=1. x=1. y=2.
jaxprop check model.py:loss --args arguments --expected round_through
""",
    configure=_add_check,
    run=_check,
)

# --- precision ---------------------------------------------------------------------------------------

_DTYPES = ("bfloat16", "float16", "float32")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="bfloat16", help="the dtype to try (default: bfloat16)"
    )
    parser.add_argument(
        "--reference",
        choices=("float32", "float64"),
        help="the dtype to compare with (default: the next higher)",
    )
    parser.add_argument("--params-only", action="store_true", help="convert only the differentiated arguments")
    parser.add_argument("--tolerance", type=float, help="the largest relative difference to accept")


def _precision(options: argparse.Namespace, console: Terminal) -> int:
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
    return _write_report(report, options, console)


precision = Command(
    name="precision",
    help="find what a lower precision loses: digits, underflow, overflow; and which loss scale helps",
    examples="""
jaxprop precision examples/worked.py:loss w=1. x=1. y=2. --dtype float16
""",
    configure=_add_precision,
    run=_precision,
)

# --- residuals ---------------------------------------------------------------------------------------


def _add_residuals(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument("--max-bytes", metavar="N", help="exit with 1 if more is kept: 65536, 64KiB, 1.5GiB")
    parser.add_argument(
        "--no-compile", action="store_true", help="do not compile the gradient to measure its memory"
    )


def _residuals(options: argparse.Namespace, console: Terminal) -> int:
    limit = None if options.max_bytes is None else _read_bytes(options.max_bytes)
    ledger = loading.load(options).apply(diagnosis.residuals, compiled=not options.no_compile)
    code = _write_report(ledger, options, console)
    if limit is not None and ledger.total > limit:
        console.note(f"{ledger.total:,} bytes are kept, more than --max-bytes={limit:,}")
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
            f"--max-bytes requires a number of bytes, such as 65536, 64KiB or 1.5GiB; got {text!r}."
        ) from None


residuals = Command(
    name="residuals",
    help="list what is kept from the forward pass for the backward pass, in bytes",
    examples="""
jaxprop residuals examples/worked.py:loss w=1. x=1. y=2.
jaxprop residuals model.py:loss --args arguments --max-bytes 2GiB
""",
    configure=_add_residuals,
    run=_residuals,
)
