"""What jaxprop costs the process: its import, what it keeps, and how its tools grow with depth."""

import ctypes
import gc
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

import jaxprop as jp

from .timing import seconds

IMPORT = {"what": "import", "seconds": "seconds|.2f"}
MEMORY = {"functions": "functions|d", "resident": "resident MB|.0f", "live": "live arrays|d"}
DEPTH = {
    "layers": "layers|d",
    "nodes": "nodes|d",
    "gradient_ms": "gradient, compiled, ms|.2f",
    "first_s": "first call, s|.2f",
    "second_s": "second call, s|.2f",
    "per_node_us": "second call, us per node|.0f",
}

BASE, OURS = "import jax, optax", "import jax, optax, jaxprop"


def imports(times: int) -> Iterator[dict[str, Any]]:
    """Seconds to start Python and import, in turns; the last row is what jaxprop adds."""
    taken: dict[str, list[float]] = {BASE: [], OURS: []}
    for _ in range(times):
        for statement, row in taken.items():
            row.append(
                seconds(lambda s=statement: subprocess.run([sys.executable, "-c", s], check=True) and None)
            )
    yield from ({"what": statement, "seconds": statistics.median(row)} for statement, row in taken.items())
    added = [ours - base for base, ours in zip(*taken.values(), strict=True)]
    yield {"what": "what jaxprop adds", "seconds": statistics.median(added)}


TOOLS = {
    "backprop": jp.backprop,
    "summary": lambda loss: jp.backprop(loss, record=jp.summary),
    "diagnose": jp.diagnose,
    "blocked_gradients": jp.blocked_gradients,
    "gradient_flow": jp.gradient_flow,
    "check": jp.check,
    "residuals": jp.residuals,
    "precision": lambda loss: jp.precision(loss, jnp.bfloat16),
}


def memory(functions: int) -> Iterator[dict[str, Any]]:
    """Resident memory while fresh functions, each closing over an array of its own, go through every tool."""
    x = jnp.linspace(0.1, 1.0, 8)
    for done in range(1, functions + 1):
        _use_every_tool(done, x)
        if done in {functions // 4, functions // 2, functions}:
            yield {"functions": done, "resident": _resident(), "live": len(jax.live_arrays())}


def _use_every_tool(number: int, x: jax.Array) -> None:
    held = jnp.full((8,), float(number))

    def loss(w: jax.Array) -> jax.Array:
        h = jnp.tanh(w * x + held)
        return jnp.sum(h**2)

    for tool in TOOLS.values():
        str(tool(loss)(x))
    str(jp.explain(jp.backprop(loss)(x)))
    jp.draw(jp.backprop(loss)(x)).svg()


def _resident() -> float:
    """Resident memory in MB, after the C library has given back what is free."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def depth(layers: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    """`diagnose` of MLPs of many layers that Python unrolls: what it costs beside the compiled gradient."""
    for count in layers:
        loss, params, x = _mlp(count)
        gradient = jax.jit(jax.grad(loss))
        jax.block_until_ready(gradient(params, x))
        diagnosed = jp.diagnose(loss)
        first = seconds(lambda tool=diagnosed, args=(params, x): tool(*args) and None)
        second = statistics.median(
            seconds(lambda tool=diagnosed, args=(params, x): tool(*args) and None) for _ in range(5)
        )
        nodes = len(jp.trace(loss)(params, x).nodes)
        yield {
            "layers": count,
            "nodes": nodes,
            "gradient_ms": 1e3 * seconds(lambda f=gradient, args=(params, x): f(*args), 20),
            "first_s": first,
            "second_s": second,
            "per_node_us": 1e6 * second / nodes,
        }


def _mlp(layers: int):
    keys = jax.random.split(jax.random.key(0), layers)
    params = [{"w": jax.random.normal(key, (16, 16)) / 4, "b": jnp.zeros(16)} for key in keys]

    def loss(params, x):
        for layer in params:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return jnp.mean(x**2)

    return loss, params, jax.random.normal(keys[0], (8, 16))
