"""Exports are accepted by the programs they are for."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pictures
import pytest

import jaxprop as jp

pytestmark = pytest.mark.outside

#: Where `npm install mermaid jsdom` was run.
MERMAID = Path(os.environ.get("JAXPROP_MERMAID", Path(__file__).parents[1] / "node_modules"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PARSE = """
import { readFileSync } from "fs";
import { JSDOM } from "jsdom";
globalThis.window = new JSDOM("<body></body>").window;
globalThis.document = window.document;
const mermaid = (await import("mermaid")).default;
for (const file of process.argv.slice(2)) console.log((await mermaid.parse(readFileSync(file, "utf8"))).diagramType);
"""


def evil(x):
    """A function whose labels hold the special characters of the three languages."""
    y = x * len("<b>&amp;\\\"`|}{][)(#;%%-->\\n\n'end")
    end = y + 1.0
    return end * end


@pytest.fixture(scope="module")
def drawings():
    tapes = {name: make() for name, make in pictures.TAPES.items()} | {"evil": jp.backprop(evil)(1.0)}
    return {name: jp.draw(tape) for name, tape in tapes.items()} | {
        "closed": jp.draw(tapes["recurrent"], collapse=True),
        "graph": jp.draw(tapes["hidden"].graph),
    }


@pytest.mark.skipif(shutil.which("dot") is None, reason="NOT CHECKED: Graphviz is not installed")
def test_graphviz_reads_dot(drawings):
    for drawing in drawings.values():
        ran = subprocess.run(
            ["dot", "-Tplain"], input=drawing.dot(), capture_output=True, text=True, timeout=60
        )
        assert ran.returncode == 0 and not ran.stderr, ran.stderr
        nodes = [line for line in ran.stdout.splitlines() if line.startswith("node ")]
        edges = [line for line in ran.stdout.splitlines() if line.startswith("edge ")]
        assert len(nodes) == len(drawing.view.nodes) + len(drawing.view.closed)
        assert len(edges) == len(drawing.view.lines)


@pytest.mark.skipif(
    shutil.which("node") is None or not (MERMAID / "mermaid").exists(),
    reason="NOT CHECKED: needs node and `npm install mermaid jsdom` (JAXPROP_MERMAID says where)",
)
def test_mermaid_parses(drawings, tmp_path):
    (tmp_path / "node_modules").symlink_to(MERMAID)
    (tmp_path / "parse.mjs").write_text(PARSE)
    files = [drawing.save(tmp_path / f"{name}.mmd") for name, drawing in drawings.items()]
    ran = subprocess.run(
        ["node", "parse.mjs", *map(str, files)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["flowchart-v2"] * len(files)


def test_model_explorer_takes_graphs_and_node_data(drawings, tmp_path):
    """Read strictly into the classes of Model Explorer: no field is missing or unknown."""
    dacite = pytest.importorskip("dacite", reason="NOT CHECKED: ai-edge-model-explorer is not installed")
    builder = pytest.importorskip("model_explorer.graph_builder")
    data = pytest.importorskip("model_explorer.node_data_builder")
    for name, drawing in drawings.items():
        path = drawing.save(tmp_path / f"{name}.me.json")
        collection = json.loads(path.read_text())
        (graph,) = (
            dacite.from_dict(builder.Graph, item, dacite.Config(strict=True)) for item in collection["graphs"]
        )
        ids = {node.id for node in graph.nodes}
        assert len(ids) == len(drawing.scene.nodes)
        assert all(edge.sourceNodeId in ids for node in graph.nodes for edge in node.incomingEdges)
        overlay = json.loads((tmp_path / f"{name}.data.json").read_text())
        (results,) = (
            dacite.from_dict(data.GraphNodeData, item, dacite.Config(strict=True)) for item in overlay.values()
        )
        assert list(overlay) == [graph.id] and set(results.results) <= ids
        assert bool(results.results) == (drawing.scene.numbers != "none")


SERVE = """
import sys, model_explorer
config = model_explorer.config()
config.add_model_from_path(sys.argv[1])
config.add_node_data_from_path(sys.argv[2])
model_explorer.visualize_from_config(config, port=int(sys.argv[3]), no_open_in_browser=True)
"""


@pytest.fixture
def explorer(drawings, tmp_path):
    """The address of a Model Explorer that serves one of the drawings."""
    pytest.importorskip("model_explorer", reason="NOT CHECKED: ai-edge-model-explorer is not installed")
    path = drawings["recurrent"].save(tmp_path / "net.me.json")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-u", "-c", SERVE, str(path), str(path.with_name("net.data.json")), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            yield next(line.split()[-1] for line in server.stdout if "http://" in line)
        finally:
            server.terminate()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="NOT CHECKED: Chromium is not installed")
def test_model_explorer_opens_what_is_exported(explorer, drawings):
    sync_api = pytest.importorskip("playwright.sync_api", reason="NOT CHECKED: Playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(explorer)
        page.get_by_text("log10 norm of the cotangent").first.wait_for(timeout=60_000)
        text = page.inner_text("body")
        browser.close()
    assert f"{len(drawings['recurrent'].scene.nodes)} nodes" in text
    assert "Aggregated stats" in text
