"""One self-contained HTML file of a scene: it opens from `file://`, plays step by step and asks nothing of the network."""

import base64
import functools
import hashlib
import html
from importlib import resources

from ._scene import Scene

#: The page's own scripts, in the order they build on one another.
SCRIPTS = ("dom", "math", "model", "layout", "cards", "view", "narrate", "player", "panel", "search", "main")


def page_html(scene: Scene) -> str:
    """Build the page of a scene: one HTML file, the same bytes for the same scene.

    Everything is inside: the scene as JSON, style, scripts and the layout library (dagre, MIT). A content
    security policy allows these scripts by their hashes, and nothing else: no network, no inline handlers.
    Names, sources and docstrings are data and reach the page as text only.

    Example:
        >>> import jaxprop as jp
        >>> from jaxprop.show._build import scene_of
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     return (y_hat - y) ** 2
        >>> page = page_html(scene_of(jp.backprop(loss)(1.0, 1.0, 2.0)))
        >>> page.startswith("<!doctype html>")
        True
    """
    parts = _assets()
    return parts.template.format_map(
        {
            "title": html.escape(scene.title),
            "policy": parts.policy,
            "style": parts.style,
            "library": parts.library,
            "script": parts.script,
            "scene": embedded(scene.json()),
        }
    )
