"""Who names the line where a NaN is made, and what asking costs.

The programs are those of `tests/nan_cases.py`, taken from real reports. `line` means: the line at fault stands
in what the tool says, wherever. The step of a loop and the element of an array `jaxprop` alone tells; `all`
means that these are right as well, and nothing else is accused.
"""

import json
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import checkify

import jaxprop as jp

from . import torch_hooks
from .models import Model
from .timing import in_turns, ratios

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from nan_cases import CASES, marked_lines  # noqa: E402

COLUMNS = {
    "case": "case",
    "reference": "reference",
    "origins": "origins|d",
    "jaxprop": "jaxprop",
    "eager": "debug_nans, eager",
    "jit": "debug_nans, jit",
    "checkify": "checkify",
    "torch": "detect_anomaly",
}
COST = {
    "model": "model",
    "what": "what",
    "run_ms": "ms|.3f",
    "run": "over the plain step|.2f",
}


def compare(quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each case."""
    torch = _torch(quick)["cases"] if torch_hooks.available() else {}
    for case in CASES[::6] if quick else CASES:
        row = {"case": case.name, "reference": case.reference, "origins": len(case.origins)}
        row["jaxprop"] = _by_jaxprop(case)
        row["eager"] = _by_debug_nans(case, jax.grad(case.loss))
        row["jit"] = _by_debug_nans(case, jax.jit(jax.grad(case.loss)))
        row["checkify"] = _by_checkify(case)
        if case.name in torch:
            said = torch[case.name]
            row["torch"] = "line" if said["line"] else "no line" if said["message"] else "silent"
        yield row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often each named a line at fault."""
    found = {"case": f"{len(rows)} cases"}
    for tool in ("jaxprop", "eager", "jit", "checkify", "torch"):
        answers = [row[tool] for row in rows if tool in row]
        found[tool] = f"{sum(answer.startswith(('line', 'all')) for answer in answers)} of {len(answers)}"
    return found


def _by_jaxprop(case: Any) -> str:
    """`all` where each origin is named with line, step, element and cause, and nothing else is."""
    report = jp.diagnose(case.loss)(case.bad)
    found = {
        (f.cause, f.element, f.step, f.source.line if f.source else None) for f in report if f.kind == "origin"
    }
    lines = marked_lines(case.loss) or [None]
    wanted = {(e.cause, e.element, e.step, line) for e, line in zip(case.origins, lines, strict=True)}
    return "all" if found == wanted else f"WRONG: {found}"


def _by_debug_nans(case: Any, gradient: Any) -> str:
    try:
        with jax.debug_nans(True):
            jax.block_until_ready(gradient(case.bad))
    except FloatingPointError as error:
        return _shows(case, "".join(traceback.format_exception(error)))
    except Exception as error:  # what else it may raise is its own affair
        return type(error).__name__
    return "silent"


def _by_checkify(case: Any) -> str:
    checked = checkify.checkify(jax.jit(jax.grad(case.loss)), errors=checkify.float_checks)
    try:
        error, _ = checked(case.bad)
    except Exception as error:
        return type(error).__name__
    message = error.get()
    return "silent" if message is None else _shows(case, message)


def _shows(case: Any, text: str) -> str:
    spellings = ('nan_cases.py", line {}', "nan_cases.py:{}")
    shown = any(
        form.format(line) + end in text
        for form in spellings
        for line in marked_lines(case.loss)
        for end in ",:\n "
    )
    return "line" if shown else "no line"


def _torch(quick: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.torch_nans", *["--quick"] * quick]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def cost(name: str, model: Model, budget: float) -> Iterator[dict[str, Any]]:
    """A plain gradient step, `diagnose` and `debug_nans`, in turns, all compiled before."""
    plain = jax.jit(jax.value_and_grad(model.loss))
    watched = jax.jit(jax.value_and_grad(model.loss))
    diagnosed = jp.diagnose(model.loss)

    def under_debug_nans() -> Any:
        with jax.debug_nans(True):
            return watched(*model.args)

    jobs = {
        "jax.value_and_grad": lambda: plain(*model.args),
        "diagnose, all of it": lambda: diagnosed(*model.args) and None,
        "jax_debug_nans": under_debug_nans,
    }
    samples = in_turns(list(jobs.values()), budget)
    for what, row, (run, _) in zip(jobs, samples, ratios(samples), strict=True):
        yield {"model": name, "what": what, "run_ms": 1e3 * float(np.median(row)), "run": run}


def torch_cost(quick: bool) -> Iterator[dict[str, Any]]:
    """A plain step in PyTorch, and one under `detect_anomaly`."""
    for model, row in _torch(quick)["cost"].items():
        yield {"model": model, "what": "torch, plain step", "run_ms": row["ms"], "run": 1.0}
        yield {
            "model": model,
            "what": "torch, detect_anomaly",
            "run_ms": row["ms"] * row["run"],
            "run": row["run"],
        }
