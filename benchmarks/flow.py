"""Cost of `blocked_gradients`, `gradient_flow` and `diagnose`, as ratios to a plain gradient step.

The functions are kept and called again at the same shapes, as in training, so nothing is compiled again. The
first call traces and compiles, with empty caches; its ratio is to the first call of the plain step.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

import jaxprop as jp
from jaxprop.diagnosis.measures import recorder

from .models import Model
from .timing import in_turns, ratios

COLUMNS = {
    "model": "model",
    "what": "what",
    "run_ms": "ms|.3f",
    "run": "run|.2f",
    "first_s": "first call s|.2f",
    "first": "first call|.2f",
    "findings": "findings|d",
}


def measure(name: str, model: Model, budget: float) -> Iterator[dict[str, Any]]:
    """One row for each question: ratios over the plain step."""
    made = _made(model)
    functions, firsts = {}, {}
    for what, make in made.items():
        jax.clear_caches()
        functions[what] = make()
        start = time.perf_counter()
        jax.block_until_ready(_arrays(functions[what](*model.args)))
        firsts[what] = time.perf_counter() - start
    calls = [_call(function, model.args) for function in functions.values()]
    samples = in_turns(calls, budget)
    base = next(iter(firsts.values()))
    for (what, function), row, (run, run_min) in zip(functions.items(), samples, ratios(samples), strict=True):
        found = function(*model.args)
        yield {
            "model": name,
            "what": what,
            "run_ms": 1e3 * statistics.median(row),
            "run": run,
            "run_min": run_min,
            "first_s": firsts[what],
            "first": firsts[what] / base,
            "findings": len(found) if isinstance(found, jp.Report) else None,
        }


def _made(model: Model) -> dict[str, Callable[[], Callable[..., Any]]]:
    """What is compared, the base first; each builds a new function."""
    loss = model.loss
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.args)
    return {
        "jax.value_and_grad": lambda: jax.jit(jax.value_and_grad(loss)),
        "three numbers of every cotangent": lambda: jax.jit(jp.backprop(loss, record=recorder)),
        "blocked_gradients, from shapes": lambda: lambda *_: jp.blocked_gradients(loss)(*shapes),
        "blocked_gradients": lambda: jp.blocked_gradients(loss),
        "gradient_flow, without power steps": lambda: jp.gradient_flow(loss, power_steps=0),
        "diagnose": lambda: jp.diagnose(loss),
    }


def _call(function: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: _arrays(function(*args))


def _arrays(result: Any) -> Any:
    """The arrays to wait for: a report is complete when it is returned."""
    return None if isinstance(result, jp.Report) else result
