"""`draw`: a picture of a graph or a tape, in every format."""

import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.graph import Graph
from ...record.tape import Tape
from .build import scene_of
from .formats.dot import dot_of
from .formats.html import page_html
from .formats.mermaid import mermaid_of
from .formats.model_explorer import explorer_data, explorer_graphs
from .formats.svg import svg_of
from .scene import Scene
from .view import View, view_of

#: What `collapse` may be.
Collapse = None | bool | int | str | Sequence[str]
_THEMES = ("light", "dark", "auto")
_DIRECTIONS = ("down", "right")


@dataclass(frozen=True)
class Drawing:
    """A picture that can be shown in a notebook, saved, and asked for as text.

    Attributes:
        scene: what is drawn, as plain data.
        view: which part of it: boxes open and closed.
        theme: `light`, `dark`, or `auto`: as the reader's system has it.
        direction: where the forward pass goes, `down` or `right`.
    """

    scene: Scene
    view: View
    theme: str = "light"
    direction: str = "down"

    def svg(self) -> str:
        """The picture as SVG: sharp on paper, selectable text, the same bytes each time.

        Raises:
            ImportError: the extra `show` is not installed; the message has the line that installs it.
        """
        return self._svg

    @functools.cached_property
    def _svg(self) -> str:
        return svg_of(self.view, self.theme, self.direction)

    def html(self) -> str:
        """The whole scene as one page: opens from `file://`, plays the backward pass, needs no network."""
        return page_html(self.scene)

    def dot(self) -> str:
        """The picture in the language of Graphviz, its layout left to `dot`."""
        return dot_of(self.view)

    def mermaid(self) -> str:
        """The picture in the language of Mermaid, as GitHub draws it from Markdown."""
        return mermaid_of(self.view)

    def json(self) -> str:
        """The whole scene as JSON, documented at `jaxprop.show.Scene`."""
        return self.scene.json(indent=1) + "\n"

    def model_explorer(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The whole scene for Model Explorer: its graph collection, and norms of cotangents as node data."""
        return explorer_graphs(self.scene), explorer_data(self.scene)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the picture; the ending says in which format.

        `.svg` picture; `.html` interactive page; `.dot` or `.gv` Graphviz; `.mmd` Mermaid; `.me.json` Model
        Explorer, with its node data beside it in `.data.json`; any other `.json` the scene as data.

        Returns:
            The path of the file.

        Raises:
            ValueError: the ending is none of these.
            ImportError: for `.svg`, the extra `show` is not installed.
        """
        path = Path(path)
        if path.name.endswith(".me.json"):
            graphs, data = self.model_explorer()
            _write(path.with_name(path.name.removesuffix(".me.json") + ".data.json"), _plain(data))
            return _write(path, _plain(graphs))
        formats: Mapping[str, Callable[[], str]] = {
            ".svg": self.svg, ".html": self.html, ".dot": self.dot, ".gv": self.dot, ".mmd": self.mermaid,
            ".json": self.json,
        }  # fmt: skip
        if path.suffix not in formats:
            raise ValueError(
                f"{path.name!r} says no format: its ending is {path.suffix or 'missing'!r}. "
                "Endings there are: .svg, .html, .dot, .gv, .mmd, .json, .me.json."
            )
        return _write(path, formats[path.suffix]())

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_html_(self) -> str:
        """Wide pictures scroll instead of shrinking until nothing can be read."""
        return f'<div style="overflow:auto;max-height:85vh">{self.svg()}</div>'

    def __repr__(self) -> str:
        cards = len(self.view.nodes) + len(self.view.closed)
        return f"Drawing({self.scene.title}: {cards} cards for {len(self.scene.nodes)} nodes)"


def draw(
    what: Graph | Tape,
    collapse: Collapse = None,
    to: str | None = None,
    theme: str = "light",
    direction: str = "down",
) -> Drawing:
    """Draw a function: forward values, local gradients on the edges, cotangents on the way back.

    A card is an operation: name, type, its expression in your source; below it the value and, after ∂, the
    cotangent `d loss / d value`, in units of the loss per unit of the value, coloured by its norm on a
    logarithmic scale. Arrays show their 2-norm and a heat map of block means. On an edge stands the local
    gradient, and after ↑ what its reader sends back. Scopes, modules, loops and branches are frames.

    Args:
        what: a `Graph` of `jaxprop.trace` (no numbers) or a `Tape` of `jaxprop.backprop`.
        collapse: which frames are drawn closed, as one card. None: so many levels are open as fit into 150
            cards, and the picture says what is inside; a number: so many levels are open; True: none; False:
            all; a glob or a list of globs on names and scopes: these are closed.
        to: the name of a value: only what lies between it and the result is drawn.
        theme: `light`, `dark`, or `auto`.
        direction: where the forward pass goes: `down` or `right`.

    Raises:
        TypeError: `what` is neither, or holds tracers.
        ValueError: there is no such theme or direction, or the tape went through `vmap`.
        KeyError: there is no value named `to`, no frame that `collapse` names.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> picture = jp.draw(jp.backprop(loss)(1.0, 1.0, 2.0))
        >>> picture
        Drawing(loss: 6 cards for 6 nodes)
        >>> print(picture.mermaid())
        flowchart TD
        ...
          n0 -->|"−2"| n1
        ...
    """
    for name, value, known in (("theme", theme, _THEMES), ("direction", direction, _DIRECTIONS)):
        if value not in known:
            raise ValueError(f"{name}={value!r} is none of {', '.join(map(repr, known))}.")
    scene = scene_of(what)
    return Drawing(scene, view_of(scene, collapse, to), theme, direction)


def _plain(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
