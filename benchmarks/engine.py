"""The cost of recording the backward pass, relative to the jitted `jax.value_and_grad`.

Everything is measured in one process, in turns. `jax again` is the same program a second time: its deviation
from 1.00 is the noise.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import jaxprop as jp

from .models import Model
from .timing import in_turns, ratios, seconds

COLUMNS = {
    "model": "model",
    "what": "what is recorded",
    "entries": "entries|d",
    "run_ms": "ms|.3f",
    "run": "run|.2f",
    "flops": "flops|.2f",
    "bytes": "bytes|.2f",
    "temp": "temp memory|.2f",
    "temp_mb": "temp MB|.2f",
    "out_mb": "out MB|.2f",
    "trace_s": "trace s|.2f",
    "compile_s": "trace+compile s|.2f",
    "compile": "trace+compile|.2f",
}

GROWTH = {
    "equations": "equations|d",
    "make_jaxpr": "jax.make_jaxpr|.1f",
    "trace": "jp.trace|.1f",
    "grad": "jax.value_and_grad|.1f",
    "backprop": "jp.backprop|.1f",
    "lower_grad": "lower jax.value_and_grad|.1f",
    "lower_backprop": "lower jp.backprop|.1f",
    "lower_summary": "lower, summary|.1f",
}


def variants(model: Model) -> dict[str, Callable[[], Callable[..., Any]]]:
    """What is compared, the base first; each builds a new function, so that nothing is cached."""
    loss, watch = model.loss, model.watch
    made = {
        "jax.value_and_grad": lambda: jax.value_and_grad(loss),
        "jax again": lambda: jax.value_and_grad(loss),
        "nothing": lambda: jp.value_and_grad(loss),
        "summary": lambda: jp.backprop(loss, record=jp.summary),
        "full": lambda: jp.backprop(loss),
    }
    if watch:
        rules = [(watch, jp.rules.scale(1.0))]
        made["scan: one rule"] = lambda: jp.value_and_grad(loss, rules=rules)
        made["scan: one summary"] = lambda: jp.backprop(loss, nodes=watch, record=jp.summary)
    return made


def measure(name: str, model: Model, budget: float, compiles: int) -> Iterator[dict[str, Any]]:
    """One row for each variant: ratios to the first."""
    made = variants(model)
    compiled, trace_times, compile_times = _compile(list(made.values()), model.args, compiles)
    samples = in_turns([_call(program, model.args) for program in compiled], budget)
    base = _costs(compiled[0])
    for what, program, row, (run, run_min), traced, took in zip(
        made, compiled, samples, ratios(samples), trace_times, compile_times, strict=True
    ):
        costs = _costs(program)
        yield {
            "model": name,
            "what": what,
            "entries": _entries(program, model.args),
            "run_ms": 1e3 * statistics.median(row),
            "run": run,
            "run_min": run_min,
            **{key: _over(costs[key], base[key]) for key in ("flops", "bytes", "temp")},
            "temp_mb": costs["temp"] / 1e6,
            "out_mb": costs["out"] / 1e6,
            "trace_s": statistics.median(traced),
            "compile_s": statistics.median(took),
            "compile": statistics.median(t / b for t, b in zip(took, compile_times[0], strict=True)),
            "samples": len(row),
        }


def growth(sizes: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """Microseconds per equation on chains of `sizes` equations: constant if the cost is linear."""
    x = jnp.ones(4, jnp.float32)
    for size in sizes:
        loss = _chain(size)
        jobs = {
            "make_jaxpr": lambda f=loss: jax.make_jaxpr(f)(x),
            "trace": lambda f=loss: jp.trace(f)(x),
            "grad": lambda f=loss: jax.value_and_grad(f)(x),
            "backprop": lambda f=loss: jp.backprop(f)(x),
            "lower_grad": lambda f=loss: jax.jit(jax.value_and_grad(f)).lower(x),
            "lower_backprop": lambda f=loss: jax.jit(jp.backprop(f)).lower(x),
            "lower_summary": lambda f=loss: jax.jit(jp.backprop(f, record=jp.summary)).lower(x),
        }
        times: dict[str, list[float]] = {job: [] for job in jobs}
        for _ in range(max(1, min(3, 2000 // size))):
            for job, function in jobs.items():
                times[job].append(_first_call(function) / size)
        yield {"equations": size, **{j: 1e6 * statistics.median(t) for j, t in times.items()}}


def _chain(size):
    def loss(x):
        h = x
        for _ in range(size - 1):
            h = jnp.sin(h)
        return jnp.sum(h)

    return loss


def _first_call(function):
    """Seconds for a call with empty JAX caches; the result need not hold arrays."""
    jax.clear_caches()
    return seconds(lambda: function() and None)


def _compile(makers, args, repeats):
    """The compiled programs; for each, seconds of tracing alone, and of tracing and compiling together.

    The first round is discarded: it fills caches outside JAX that all variants share.
    """
    compiled = [None] * len(makers)
    traced, both = [[] for _ in makers], [[] for _ in makers]
    for turn in range(repeats + 1):
        for i in range(len(makers)):
            which = (i + turn) % len(makers)
            jax.clear_caches()
            start = time.perf_counter()
            lowered = jax.jit(makers[which]()).lower(*args)
            middle = time.perf_counter()
            compiled[which] = lowered.compile()
            if turn:
                traced[which].append(middle - start)
                both[which].append(time.perf_counter() - start)
    return compiled, traced, both


def _call(program, args):
    return lambda: program(*args)


def _costs(program):
    cost, memory = program.cost_analysis(), program.memory_analysis()
    return {
        "flops": cost.get("flops", 0.0),
        "bytes": cost.get("bytes accessed", 0.0),
        "temp": memory.temp_size_in_bytes,
        "out": memory.output_size_in_bytes,
    }


def _entries(program, args):
    """The number of recorded values: 0 if the result is not a tape."""
    result = program(*args)
    return 0 if isinstance(result, tuple) else len(result)


def _over(a, b):
    return 1.0 if a == b else a / b if b else float("inf")
