"""A scene as one self-contained HTML file, which opens from `file://` and plays step by step, offline."""

import base64
import functools
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import NamedTuple

from ..palette import variables
from ..scene import Scene
from ..view import fitting

#: The scripts of the page, in the order in which they depend on one another.
SCRIPTS = (
    "dom", "math", "model", "layered", "layout", "flatten", "paths", "cards", "camera", "sheet", "narrate",
    "player", "panel", "search", "state", "controls", "main",
)  # fmt: skip
#: A page opens with boxes open level by level while at most this many cards are seen.
MOST_CARDS = 80


def page_html(scene: Scene, open: Iterable[str] | None = None) -> str:
    """Build the page of a scene: one HTML file, the same bytes for the same scene.

    It holds the scene as JSON, the style, the scripts and the layout library (dagre, MIT). A content security
    policy allows only these, by their hashes: there is no network access and no handler inside markup. Names,
    source lines and scopes enter the page as text only.

    The fragment of the address controls how it opens, joined by `&`: `#embed` (compact, for a frame in another
    page), `#theme=dark`, `#step=3`, `#node=h`, `#open=all` or `none`, `#direction=LR` or `TB`.

    Args:
        scene: what to show.
        open: ids of the boxes that are open at first; a box is seen only if those around it are open too. By
            default levels are opened while at most `MOST_CARDS` cards are seen.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     return (y_hat - y) ** 2
        >>> page = page_html(jp.draw(jp.backprop(loss)(1.0, 1.0, 2.0)).scene)
        >>> page.startswith("<!doctype html>")
        True
    """
    assets = _assets()
    is_open = sorted(fitting(scene, MOST_CARDS) if open is None else open)
    return _fill(
        assets.template,
        {
            "title": html.escape(scene.title),
            "open": html.escape(json.dumps(is_open)),
            "policy": assets.policy,
            "style": assets.style,
            "scene": embedded(scene.json()),
            "library": assets.library,
            "script": assets.script,
        },
    )


def embedded(text: str) -> str:
    """Escape JSON for a `<script>` element: nothing in it can close the element or start a comment."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


class _Assets(NamedTuple):
    template: str
    style: str
    library: str
    script: str
    policy: str


@functools.cache
def _assets() -> _Assets:
    """The parts that every page has, and the policy that allows them."""
    show = resources.files("jaxprop.show.drawing")
    pieces = [(show / "page" / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
    script = f'(() => {{\n"use strict";\n{"".join(pieces)}}})();\n'
    colours = f':root{{{variables("light")}}}:root[data-theme="dark"]{{{variables("dark")}}}'
    style = f"{colours}\n{(show / 'page' / 'style.css').read_text('utf-8')}"
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
    """Replace `{{name}}` in the template; what is put in is not searched again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
