"""Fair timing: everything warmed up, in turns, short runs, medians."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax


def seconds(function: Callable[[], Any], times: int = 1) -> float:
    """Seconds per call, over `times` calls in a row, each waited for."""
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(function())
    return (time.perf_counter() - start) / times


def in_turns(
    functions: Sequence[Callable[[], Any]], budget: float, least: int = 5, most: int = 60
) -> list[list[float]]:
    """Seconds per call of every function, one row of samples for each, measured in turns.

    The order within a turn is random, because what follows a loop in Python starts slowly, and it must not
    always be the same function. A sample is a run of calls of at least 5 ms in total; short calls are warmed
    up by one run that is not counted. `budget` is in seconds, for all functions; at least `least` samples are
    taken in any case.
    """
    for function in functions:
        seconds(function)
    once = [seconds(function) for function in functions]
    times = [max(1, min(1000, round(0.005 / max(t, 1e-7)))) for t in once]
    cost = sum(t * n for t, n in zip(once, times, strict=True))
    samples: list[list[float]] = [[] for _ in functions]
    gc.collect()
    draw = random.Random(0)
    for _ in range(max(least, min(most, round(budget / max(cost, 1e-9))))):
        for which in draw.sample(range(len(functions)), len(functions)):
            if times[which] > 1:
                seconds(functions[which])
            samples[which].append(seconds(functions[which], times[which]))
    return samples


def ratios(samples: list[list[float]]) -> list[tuple[float, float]]:
    """For each row relative to the first: the median of the ratios, turn by turn, and the ratio of minima."""
    base = samples[0]
    return [
        (
            statistics.median(t / b for t, b in zip(row, base, strict=True)),
            min(row) / min(base),
        )
        for row in samples
    ]


def table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    """A Markdown table of `rows`; `columns` maps a key to `heading|format`."""
    heads = [title.split("|")[0] for title in columns.values()]
    cells = [[_cell(row.get(key), title.partition("|")[2]) for key, title in columns.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    left = [not columns[key].partition("|")[2] for key in columns]
    rule = ["-" * w if a else "-" * (w - 1) + ":" for w, a in zip(widths, left, strict=True)]
    return "\n".join(
        "| "
        + " | ".join(c.ljust(w) if a else c.rjust(w) for c, w, a in zip(line, widths, left, strict=True))
        + " |"
        for line in [heads, rule, *cells]
    )


def _cell(value, form):
    if value is None:
        return ""
    return format(value, form) if form and not isinstance(value, str) else str(value)
