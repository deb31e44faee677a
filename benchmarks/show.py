"""Pictures: time and file size for chains of 10 to 10,000 nodes, compared with torchviz and `dot`.

python -m benchmarks --part show [--quick]
"""

import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp

import jaxprop as jp
from jaxprop.show.drawing.build import scene_of

T = TypeVar("T")
COLUMNS = {
    "nodes": "nodes|d",
    "what": "what",
    "seconds": "seconds|.3f",
    "kb": "file kB|.0f",
    "shown": "cards|d",
    "note": "note",
}
SIZES, QUICK = (10, 100, 1_000, 10_000), (10, 100)
#: Larger pictures are not drawn with all boxes open.
OPEN = 100
#: Time limit for one run of torchviz, in seconds.
PATIENCE = 120


def chain(w: jax.Array, x: jax.Array, nodes: int) -> jax.Array:
    """A chain of `nodes` scalar operations; every second one reads the parameter."""
    for i in range(nodes):
        x = x * w if i % 2 else jnp.sin(x)
    return x


def measure(quick: bool) -> Iterator[dict[str, object]]:
    """Rows of the table: jaxprop in every format, then torchviz."""
    jp.draw(jp.backprop(chain)(0.9, 0.5, 2)).svg()  # start the layout engine
    for nodes in QUICK if quick else SIZES:
        tape = jp.backprop(lambda w, x, n=nodes: chain(w, x, n))(0.9, 0.5)
        scene, took = _timed(lambda tape=tape: scene_of(tape))
        yield {"nodes": nodes, "what": "scene (data of all pictures)", "seconds": took, "kb": _kb(scene.json())}
        drawing = jp.draw(tape)
        for what, make in (("SVG", drawing.svg), ("HTML page", drawing.html), ("DOT", drawing.dot)):
            text, took = _timed(make)
            yield {"nodes": nodes, "what": what, "seconds": took, "kb": _kb(text), "shown": _cards(drawing)}
        if nodes <= OPEN:
            wide = jp.draw(tape, collapse=False)
            text, took = _timed(wide.svg)
            yield {
                "nodes": nodes,
                "what": "SVG, all open",
                "seconds": took,
                "kb": _kb(text),
                "shown": _cards(wide),
            }
        yield {"nodes": nodes, "what": "torchviz + dot, SVG", **_torchviz(nodes)}


def _timed(make: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return make(), time.perf_counter() - start


def _kb(text: str) -> float:
    return len(text.encode()) / 1024


def _cards(drawing: jp.show.Drawing) -> int:
    return len(drawing.view.nodes) + len(drawing.view.closed)


# --- torchviz, in a process of its own ---------------------------------------------------------------


def _torchviz(nodes: int) -> dict[str, object]:
    missing = [name for name in ("torch", "torchviz") if importlib.util.find_spec(name) is None]
    if shutil.which("dot") is None:
        missing.append("dot")
    if missing:
        return {"note": f"NOT MEASURED: no {', '.join(missing)}"}
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.show", str(nodes)],
            capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"note": f"no result after {PATIENCE} s"}
    if ran.returncode:
        return {"note": ran.stderr.strip().splitlines()[-1][:60]}
    return json.loads(ran.stdout)


def _draw_with_torchviz(nodes: int) -> dict[str, object]:
    import torch
    import torchviz

    w, x = torch.tensor(0.9, requires_grad=True), torch.tensor(0.5)
    for i in range(nodes):
        x = x * w if i % 2 else torch.sin(x)
    x = x + 0 * w

    def draw() -> bytes:
        return torchviz.make_dot(x, params={"w": w}).pipe(format="svg")

    svg, took = _timed(draw)
    return {"seconds": took, "kb": len(svg) / 1024, "shown": svg.count(b'class="node"')}


if __name__ == "__main__":
    print(json.dumps(_draw_with_torchviz(int(sys.argv[1]))))
