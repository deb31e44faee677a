"""Cost of `check` and `residuals`, and residuals compared with the memory XLA allocates.

`check` compiles two small programs for each kind of node; a second call of the same function compiles none of
them.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

import jaxprop as jp

from .models import Model
from .timing import seconds

COLUMNS = {
    "model": "model",
    "nodes": "nodes|d",
    "kinds": "kinds|d",
    "step_ms": "gradient ms|.2f",
    "check_s": "check s|.2f",
    "again_s": "again s|.2f",
    "suspects": "suspects|d",
    "worst": "worst error|.1e",
    "total": "total error|.1e",
}

RESIDUALS = {
    "model": "model",
    "arrays": "arrays|d",
    "kept_mb": "kept MB|.3f",
    "arguments_mb": "arguments MB|.3f",
    "temp_mb": "temp MB of XLA|.3f",
    "share": "kept / temp|.2f",
    "seconds": "s|.2f",
}


def measure(name: str, model: Model) -> dict[str, Any]:
    """One row: `check`, and a step of the plain gradient."""
    gradient = jax.jit(jax.value_and_grad(model.loss))
    seconds(lambda: gradient(*model.args))
    step = min(seconds(lambda: gradient(*model.args)) for _ in range(5))
    checked = jp.check(model.loss)
    report, first = _timed(lambda: checked(*model.args))
    _, again = _timed(lambda: checked(*model.args))
    return {
        "model": name,
        "nodes": report.figures["nodes"],
        "kinds": report.figures["kinds"],
        "step_ms": 1e3 * step,
        "check_s": first,
        "again_s": again,
        "suspects": len(report),
        "worst": report.figures["worst"],
        "total": report.figures.get("total"),
    }


def residuals(name: str, model: Model) -> Iterator[dict[str, Any]]:
    """Rows: what the backward pass keeps, unmodified and with everything recomputed."""
    for what, loss in ((name, model.loss), (f"{name}, checkpoint", jax.checkpoint(model.loss))):
        traced, took = _timed(lambda loss=loss: jp.residuals(loss, compiled=False)(*model.args))
        temporary = jp.residuals(loss)(*model.args).figures.get("temporary")
        yield {
            "model": what,
            "arrays": len(traced.kept),
            "kept_mb": traced.total / 1e6,
            "arguments_mb": traced.figures["arguments"] / 1e6,
            "temp_mb": None if temporary is None else temporary / 1e6,
            "share": traced.total / temporary if temporary else None,
            "seconds": took,
        }


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(), time.perf_counter() - start
