"""The page: its size and the time to write it; in Chromium, the time to the first picture and per frame."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

import jaxprop as jp
from jaxprop.show.drawing.build import scene_of
from jaxprop.show.drawing.formats.html import page_html

from .models import MODELS

COLUMNS = {
    "what": "graph",
    "nodes": "nodes|d",
    "scene_ms": "scene ms|.0f",
    "page_ms": "page ms|.0f",
    "kb": "file kB|.0f",
    "first_ms": "first picture ms|.0f",
    "frame_ms": "frame, moving ms|.1f",
    "open_ms": "open all ms|.0f",
    "open_frame_ms": "frame, all open ms|.1f",
}

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

# Time between animation frames while the sheet is dragged and zoomed.
_FRAMES = """async () => {
    const times = [];
    let last = await new Promise(requestAnimationFrame);
    for (let i = 0; i < 60; i += 1) {
        if (i % 3) jaxprop.sheet.pan(i < 30 ? -25 : 25, i % 2 ? 14 : -14);
        else jaxprop.sheet.zoom(i < 30 ? 1.06 : 1 / 1.06, { x: 500, y: 300 });
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    return times.sort((a, b) => a - b)[30];
}"""
_FIRST = "performance.getEntriesByName('jaxprop: first picture')[0].startTime"
_OPEN = """() => {
    const start = performance.now();
    jaxprop.openAll(true);
    jaxprop.sheet.draw();
    return performance.now() - start;
}"""


def available() -> str | None:
    """The path of Chromium, if it and playwright are installed."""
    try:
        import playwright.sync_api  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def measure(quick: bool = False, chromium: str | None = None) -> Iterator[dict[str, object]]:
    """One row for each chain, with numbers, and one for a six-layer transformer."""
    for what, make in _graphs(quick):
        jax.clear_caches()
        tape = jax.block_until_ready(make())
        start = time.perf_counter()
        scene = scene_of(tape)
        built = time.perf_counter()
        page = page_html(scene)
        row = {
            "what": what,
            "nodes": len(scene.nodes),
            "scene_ms": 1e3 * (built - start),
            "page_ms": 1e3 * (time.perf_counter() - built),
            "kb": len(page.encode()) / 1e3,
        }
        yield row | (_in_browser(page, chromium, 1 if quick else 5) if chromium else {})


def _graphs(quick: bool) -> Iterator[tuple[str, Callable[[], jp.Tape]]]:
    for size in (10, 100) if quick else (10, 100, 1_000, 10_000):
        yield "chain", lambda size=size: jp.backprop(_chain(size))(jnp.ones(4, jnp.float32))
    model = MODELS["transformer"](quick=quick)
    yield "transformer", lambda: jax.jit(jp.backprop(model.loss, record=jp.summary))(*model.args)


def _chain(size: int) -> Callable[[jax.Array], jax.Array]:
    def loss(x):
        h = x
        for _ in range(size - 2):
            h = jnp.sin(h)
        return jnp.sum(h)

    return loss


def _in_browser(page: str, chromium: str, times: int) -> dict[str, float]:
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    rows = []
    with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
        file = Path(directory) / "page.html"
        file.write_text(page, "utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for _ in range(times):
            tab = browser.new_page(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
            tab.goto(file.as_uri())
            tab.wait_for_selector(".item, .far-card", state="attached")
            first, frame = tab.evaluate(_FIRST), tab.evaluate(_FRAMES)
            opened = tab.evaluate(_OPEN)
            rows.append(
                {
                    "first_ms": first,
                    "frame_ms": frame,
                    "open_ms": opened,
                    "open_frame_ms": tab.evaluate(_FRAMES),
                }
            )
            tab.close()
        browser.close()
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}
