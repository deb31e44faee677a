"""Time to explain a tape, by its number of nodes, and to write the formulas of all its nodes.

A chain of equations stands for a program without scopes; the explanation is folded as it is for a reader.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp

import jaxprop as jp
from jaxprop.show import formulas_of

COLUMNS = {
    "nodes": "nodes|d",
    "explain_first": "explain, first ms|.1f",
    "explain": "explain ms|.1f",
    "lines": "lines|d",
    "formulas": "formulas of all nodes ms|.1f",
}


def measure(quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each size: the median of three runs; the first explanation is run once."""
    for nodes in (10, 100) if quick else (10, 100, 1_000, 10_000):
        tape = jp.backprop(_chain(nodes))(0.5)
        first, _ = _timed(lambda tape=tape: str(jp.explain(tape)), 1)
        again, text = _timed(lambda tape=tape: str(jp.explain(tape)))
        formulas, _ = _timed(lambda tape=tape: [formulas_of(node) for node in tape.graph.nodes])
        yield {
            "nodes": len(tape.graph),
            "explain_first": first,
            "explain": again,
            "lines": text.count("\n") + 1,
            "formulas": formulas,
        }


def _chain(nodes: int) -> Callable[[Any], Any]:
    def loss(x: Any) -> Any:
        for _ in range(nodes // 2):
            x = jnp.sin(x) * 1.01
        return x

    return loss


def _timed(call: Callable[[], Any], rounds: int = 3) -> tuple[float, Any]:
    """Milliseconds, and the result."""
    times, made = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        made = call()
        times.append(1e3 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2], made
