"""One self-contained HTML file of a scene: opens from `file://`, plays step by step, needs no network."""

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import NamedTuple

from ..scene import Scene

#: The page's own scripts, in the order in which they build on one another.
SCRIPTS = (
    "dom",
    "math",
    "model",
    "layout",
    "cards",
    "view",
    "narrate",
    "player",
    "panel",
    "search",
    "state",
    "controls",
    "main",
)


def page_html(scene: Scene, open: Iterable[str] | None = None) -> str:
    """Build the page of a scene: one HTML file, the same bytes for the same scene.

    Everything is inside: the scene as JSON, the style, the scripts and the layout library (dagre, MIT). A
    content security policy allows just these, by their hashes: no network, no handlers inside markup. Names,
    sources and scopes are data and reach the page as text only.

    The end of the address chooses how it opens: `#embed` (compact, for a frame in another page), `#theme=dark`,
    `#step=3`, `#node=h`, `#open=all` or `none`, `#direction=LR` or `TB`; several are joined by `&`.

    Args:
        scene: what to show.
        open: ids of the boxes that are open at first (a box is seen where those around it are open too); by
            default all of a small graph, of a large one only what lies alone on the sheet.

    Examples:
        >>> import jaxprop as jp
        >>> from jaxprop.show.drawing.build import scene_of
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     return (y_hat - y) ** 2
        >>> page = page_html(scene_of(jp.backprop(loss)(1.0, 1.0, 2.0)))
        >>> page.startswith("<!doctype html>")
        True
    """
    assets = _assets()
    return _fill(
        assets.template,
        {
            "title": html.escape(scene.title),
            "open": "" if open is None else f' data-open="{html.escape(json.dumps(sorted(open)))}"',
            "policy": assets.policy,
            "style": assets.style,
            "scene": embedded(scene.json()),
            "library": assets.library,
            "script": assets.script,
        },
    )


def embedded(text: str) -> str:
    """JSON as it may stand inside `<script>`: nothing in it can close the element or begin a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


class _Assets(NamedTuple):
    template: str
    style: str
    library: str
    script: str
    policy: str


@functools.cache
def _assets() -> _Assets:
    """The parts that are the same in every page, and the policy that allows them."""
    show = resources.files("jaxprop.show.drawing")
    pieces = [(show / "page" / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    script = f'(() => {{\n"use strict";\n{"".join(pieces)}}})();\n'
    style = (show / "page" / "style.css").read_text("utf-8")
    licence = (show / "assets" / "dagre.LICENSE").read_text("utf-8").strip()
    library = f"/*! dagre\n{licence}\n*/\n{(show / 'assets' / 'dagre.min.js').read_text('utf-8')}"
    policy = (
        f"default-src 'none'; script-src {_hash(library)} {_hash(script)}; style-src {_hash(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _Assets((show / "page" / "page.html").read_text("utf-8"), style, library, script, policy)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _fill(template: str, parts: Mapping[str, str]) -> str:
    """The template with `{{name}}` replaced; what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
