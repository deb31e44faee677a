"""Pictures: golden files byte for byte, no clipped text, no injected markup, every option."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import weakref
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import pictures
import pytest

import jaxprop as jp
from jaxprop._text import notebook_html
from jaxprop.show.drawing import layout as _layout
from jaxprop.show.drawing import local_gradients
from jaxprop.show.drawing.text_metrics import escape, middle, shorten, width

GOLDEN = Path(__file__).parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def tapes():
    return {name: make() for name, make in pictures.TAPES.items()}


@pytest.mark.parametrize("ending", ["svg", "dot", "mmd", "json", "me.json"])
@pytest.mark.parametrize("name", pictures.TAPES)
def test_golden_files(name, ending, tapes, tmp_path):
    """To write them again: `JAXPROP_GOLDEN=write pytest tests/test_draw.py`."""
    made = jp.draw(tapes[name]).save(tmp_path / f"{name}.{ending}").read_bytes()
    kept = GOLDEN / f"{name}.{ending}"
    if os.environ.get("JAXPROP_GOLDEN") == "write":
        kept.write_bytes(made)
    assert made == kept.read_bytes(), f"{kept.name} differs from what is drawn now"


def boxes_of(svg):
    """The texts of an SVG with upper bounds of their extent, as (text, left, right, bottom), and its size."""
    root = ET.fromstring(svg)
    sizes = {"name": 13, "type": 10.5, "call": 11, "number": 12, "local": 10.5, "share": 10.5, "title": 17}
    found = []

    def visit(element, dx, dy):
        if moved := re.fullmatch(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", "")):
            dx, dy = dx + float(moved[1]), dy + float(moved[2])
        if element.tag == f"{SVG}text":
            kind = element.get("class", "").split(" ")[0]
            wide = width(element.text or "", sizes[kind]) if kind in sizes else 0
            start = {"middle": wide / 2, "end": wide}.get(element.get("text-anchor"), 0)
            left = float(element.get("x")) - start + dx
            found.append((element.text, left, left + wide, float(element.get("y")) + dy))
        for child in element:
            visit(child, dx, dy)

    visit(root, 0.0, 0.0)
    return found, float(root.get("width")), float(root.get("height"))


@pytest.mark.parametrize("direction", ["down", "right"])
@pytest.mark.parametrize("name", pictures.TAPES)
def test_no_text_is_clipped(name, direction, tapes):
    texts, wide, high = boxes_of(jp.draw(tapes[name], direction=direction).svg())
    assert len(texts) > 10
    for text, left, right, bottom in texts:
        assert left >= 0 and right <= wide and 0 < bottom < high, text


def test_cards_do_not_overlap(tapes):
    root = ET.fromstring(jp.draw(tapes["recurrent"]).svg())
    plates = [
        tuple(float(rect.get(key)) for key in ("x", "y", "width", "height"))
        for group in root.iter(f"{SVG}g")
        if (group.get("class") or "").startswith("card") and group.find(f"{SVG}title") is not None
        for rect in group.findall(f"{SVG}rect")
        if rect.get("class") == "plate"
    ]
    assert len(plates) > 15
    for i, (x, y, w, h) in enumerate(plates):
        for x2, y2, w2, h2 in plates[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_markup_stays_text():
    def evil(x):
        with jax.named_scope("<script>alert(1)</script>&\"'"):
            y = jnp.sin(x) * 2.0 * x
        return jnp.where(y < 3, y, x * len('<b>&]]>\\"`|}'))

    drawing = jp.draw(jp.backprop(evil)(1.0))
    ET.fromstring(drawing.svg())
    for text in (drawing.svg(), drawing.html().split("</head>")[-1], drawing._repr_html_()):
        assert "<script>alert" not in text
    assert escape("a\x00\ud800<") == "a\ufffd\ufffd&lt;"


def test_themes_and_formats(tapes):
    light, dark, auto = (jp.draw(tapes["worked"], theme=theme).svg() for theme in ("light", "dark", "auto"))
    assert "prefers-color-scheme" in auto and "prefers-color-scheme" not in light
    assert light.split("</style>")[1] == dark.split("</style>")[1]  # themes differ in their style only
    assert jp.draw(tapes["worked"])._repr_svg_() == light
    assert "<svg" in jp.draw(tapes["worked"])._repr_html_()


def test_collapse():
    def f(x):
        for i in range(3):
            with jax.named_scope(f"block{i}"):
                x = jnp.sin(x) * 2.0
                with jax.named_scope("inner"):
                    x = jnp.cos(x) + 1.0
        return x

    tape = jp.backprop(f)(1.0)

    def cards(**options):
        view = jp.draw(tape, **options).view
        return len(view.nodes), len(view.closed), len(view.open)

    assert cards() == cards(collapse=False) == (13, 0, 6)
    assert cards(collapse=0) == cards(collapse=True) == (0, 3, 0)
    assert cards(collapse=1) == (7, 3, 3)
    assert cards(collapse="block1") == (9, 1, 4)
    assert cards(collapse=["*inner"]) == (7, 3, 3)
    closed = jp.draw(tape, collapse=0)
    assert closed.view.notes == ("13 of 13 nodes are inside 3 boxes drawn closed.",)
    assert [(line.source, line.target) for line in closed.view.lines] == [("b0", "b2"), ("b2", "b4")]
    with pytest.raises(KeyError, match="no box is named 'blok1'. Nearest names: block1"):
        jp.draw(tape, collapse="blok1")
    with pytest.raises(
        TypeError,
        match="`collapse` must be None, a number of levels, True, False, a glob or a list of globs, got",
    ):
        jp.draw(tape, collapse=[1.5])


def test_only_what_depends_on_one_value(tapes):
    drawing = jp.draw(tapes["hidden"], to="params['w2']")
    names = {node.name for node in drawing.view.nodes}
    assert {"params['w2']", "head/y_hat", "head/residual", "hidden"} - names <= {"head/y_hat", "head/residual"}
    assert "params['w1']" not in names and "x" not in names and len(names) >= 4
    assert drawing.view.notes[-1] == "Only the nodes between params['w2'] and hidden are drawn."
    with pytest.raises(KeyError, match="there is no value named 'w3' in the graph."):
        jp.draw(tapes["hidden"], to="w3")


def test_large_graphs_are_drawn_collapsed():
    def chain(x):
        for _ in range(1000):
            x = jnp.sin(x)
        return x

    drawing = jp.draw(jp.trace(chain)(1.0))
    assert len(drawing.view.nodes) + len(drawing.view.closed) <= 150
    assert "nodes are inside" in drawing.view.notes[0] and "nodes are inside" in drawing.svg()


def test_a_picture_too_large_is_refused():
    def chain(x, w):
        for _ in range(300):
            x = jnp.sin(x) * w
        return x

    with pytest.raises(
        RuntimeError, match="a picture of 602 cards .* would take minutes to lay out. Draw fewer cards: "
    ):
        jp.draw(jp.trace(chain, argnums=(0, 1))(1.0, 1.0), collapse=False).svg()


def test_deep_nesting():
    """Nested scopes, deeper than the recursion limit of Python and than dagre can lay out."""

    def deep(x):
        with contextlib.ExitStack() as stack:
            for i in range(1_200):
                stack.enter_context(jax.named_scope(f"s{i}"))
                x = jnp.sin(x) * 2.0
        return x

    drawing = jp.draw(jp.trace(deep)(1.0), collapse=False)
    assert len(drawing.view.open) == 1_200
    assert drawing.dot().count("subgraph") == drawing.mermaid().count("subgraph") == 1_200
    assert drawing.dot().count("{") == drawing.dot().count("}")
    with pytest.raises(
        RuntimeError, match="a picture of 2,401 cards with frames nested so deep would take minutes"
    ):
        drawing.svg()


@pytest.mark.parametrize("what", ["a jitted helper", "a custom_jvp rule", "a custom_vjp rule"])
def test_arrays_of_the_user_are_not_kept(what, monkeypatch):
    # Formulas have a cache of their own.
    monkeypatch.setattr(local_gradients, "formulas_of", lambda node, called: ())

    def closed_over():
        big = jnp.ones(1_000_000)

        @jax.jit
        def jitted(w):
            return jnp.sum(big * w)

        jvp_ruled = jax.custom_jvp(jnp.sin)
        jvp_ruled.defjvp(lambda p, t: (jnp.sin(*p), t[0] * big[0]))
        vjp_ruled = jax.custom_vjp(jnp.sin)
        vjp_ruled.defvjp(lambda w: (jnp.sin(w), None), lambda _, ct: (ct * big[0],))
        fun = {"a jitted helper": jitted, "a custom_jvp rule": jvp_ruled, "a custom_vjp rule": vjp_ruled}[what]
        drawing = jp.draw(jp.backprop(lambda w: fun(w) ** 2)(1.5))
        assert drawing.svg() and drawing.html() and drawing.dot()
        return weakref.ref(big)

    ref = closed_over()
    gc.collect()
    assert ref() is None


def test_open_loops_are_wired_through(tapes):
    view = jp.draw(tapes["recurrent"]).view
    names = {str(node.id): node.name for node in view.nodes}
    wires = {(names[line.source], names[line.target]) for line in view.lines}
    assert ("xs", "step/x") in wires and ("w", "step/w") in wires  # into the body
    assert any(source == "h" and not target.startswith("step/") for source, target in wires)  # and out of it
    assert not any(node.primitive in ("scan", "cond") for node in view.nodes)
    closed = jp.draw(tapes["recurrent"], collapse=True).view
    assert [node.primitive for node in closed.nodes].count("scan") == 1


def test_wrong_arguments(tapes, tmp_path, monkeypatch):
    drawing = jp.draw(tapes["worked"])
    with pytest.raises(
        ValueError,
        match=r"unsupported file extension '.png'; supported extensions: .svg, .html, .dot, .gv, .mmd, .json, .me.json.",
    ):
        drawing.save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="theme='blue' is unknown; available: 'light', 'dark', 'auto'."):
        jp.draw(tapes["worked"], theme="blue")
    with pytest.raises(ValueError, match="direction='up' is unknown; available: 'down', 'right'."):
        jp.draw(tapes["worked"], direction="up")
    monkeypatch.setitem(__import__("sys").modules, "py_mini_racer", None)
    _layout._engine.cache_clear()
    with pytest.raises(ImportError, match=re.escape("not installed: pip install 'jaxprop-toolkit[show]'.")):
        jp.draw(tapes["worked"]).svg()
    assert jp.draw(tapes["worked"]).mermaid().startswith("flowchart TD")
    assert "y_hat" in jp.draw(tapes["worked"]).dot()
    assert "<pre" in notebook_html(tapes["worked"])  # then a notebook shows the table
    _layout._engine.cache_clear()


def test_a_format_of_ones_own(tapes, tmp_path):
    drawing = jp.draw(tapes["worked"])

    def names(scene):
        assert isinstance(scene, jp.show.Scene)
        return " ".join(node.name for node in scene.nodes)

    assert drawing.to(names) == "w x y y_hat s loss"
    assert drawing.save(tmp_path / "x.names", format=names).read_text() == "w x y y_hat s loss"
    assert drawing.to("dot") == drawing.dot() == drawing.save(tmp_path / "x", format="dot").read_text()
    assert jp.draw(tapes["worked"], to="y_hat").to(names) == "y_hat s loss"
    with pytest.raises(
        ValueError, match="unknown format 'png'; available: svg, html, dot, mermaid, json, or a function of a"
    ):
        drawing.to("png")
    with pytest.raises(
        TypeError, match="a format is a name or a function from a `jaxprop.show.Scene` to a string, got int."
    ):
        drawing.to(3)
    with pytest.raises(
        TypeError,
        match=re.escape("the renderer `bytes_of` must return a string (the text of the file), got bytes."),
    ):
        drawing.to(bytes_of)


def bytes_of(scene):
    return b""


def test_no_cards_no_picture():
    view = jp.draw(jp.trace(lambda x: 1.0)(2.0))
    ET.fromstring(view.svg())


@pytest.mark.parametrize("show", ["graph", "tape", "entry", "local", "array entry", "array local"])
def test_notebook_display(show, tapes):
    tape = tapes["hidden"]
    shown = {
        "graph": tape.graph,
        "tape": tape,
        "entry": tapes["worked"]["w"],
        "local": tapes["worked"].local("loss", wrt="s"),
        "array entry": tape["h"],
        "array local": tape.local("h", wrt="z1"),
    }[show]
    text = notebook_html(shown)
    expected = {"entry": ">-2<", "local": r"2\,s", "array entry": "relu"}.get(
        show, "<svg" if show[0] in "gt" else ""
    )
    assert expected in text


def test_notebooks_find_how_to_show_each_class(tapes):
    tape = tapes["worked"]
    for shown in (tape, tape.graph, tape["w"], tape.local("loss", wrt="s")):
        assert shown._repr_html_() == notebook_html(shown)


def test_a_traced_tape_is_shown_as_text():
    texts = []

    @jax.jit
    def traced(x):
        texts.append(notebook_html(jp.backprop(jnp.sin)(x)))
        return x

    traced(1.0)
    assert texts[0].startswith("<pre") and "Tape(value=" in texts[0]


def test_an_array_without_treescope(tapes, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "jaxprop-map" in notebook_html(tapes["hidden"]["h"])


def test_texts_are_cut():
    assert shorten("a  b\nc", 10) == "a b c" and shorten("abcdefgh", 5) == "abcd…"
    assert middle("params['blocks'][0]['w']", 12) == "para…][0]['w']"[:4] + "…" + "[0]['w']"[-7:]
    assert width("ab", 10) == pytest.approx(12.06) and width("日", 10) == pytest.approx(12.06)


def test_first_drawn_under_an_event_loop_that_is_closed_later():
    code = (
        "import asyncio, jaxprop as jp\n"
        "tape = jp.backprop(lambda w: w**2)(1.0)\n"
        "async def first(): return jp.draw(tape).svg()\n"
        "assert asyncio.run(first()) == jp.draw(tape).svg()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.slow
@pytest.mark.outside
def test_in_a_real_notebook():
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    code = "import jaxprop as jp\ntape = jp.backprop(lambda w: (w * 2.0 - 1.0) ** 2)(1.0)\n"
    cells = [
        code + last for last in ("tape", "tape.graph", "tape['w']", "jp.draw(tape)", "tape.local('mul', 'w')")
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbclient.NotebookClient(notebook, timeout=120).execute()
    outputs = [cell.outputs[-1].data for cell in notebook.cells]
    assert all("text/html" in data for data in outputs)
    assert "image/svg+xml" in outputs[3] and "<svg" in outputs[0]["text/html"]
