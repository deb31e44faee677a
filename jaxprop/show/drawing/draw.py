"""`draw`: a picture of a graph or a tape, in every format."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ..._text import shortened
from ...core.graph import Graph
from ...record.tape import Tape
from .build import scene_of
from .formats.dot import dot_of
from .formats.html import page_html
from .formats.mermaid import mermaid_of
from .formats.model_explorer import explorer_data, explorer_graphs
from .formats.svg import svg_of
from .scene import Json, Scene
from .view import Collapse, SceneView, view_of

#: A format of the user: a function from the scene to the text of a file.
Renderer: TypeAlias = Callable[[Scene], str]

_THEMES = ("light", "dark", "auto")
_DIRECTIONS = ("down", "right")


@dataclass(frozen=True)
class Drawing:
    """A picture that a notebook shows, and that can be saved or written as text in many formats.

    Attributes:
        scene: what is drawn, as plain data.
        view: which boxes of it are open and which closed.
        theme: `light`, `dark`, or `auto` to follow the system.
        direction: the direction of the forward pass, `down` or `right`.
        collapse: the argument of `draw`.
    """

    scene: Scene
    view: SceneView
    theme: str = "light"
    direction: str = "down"
    collapse: Collapse = None

    def svg(self) -> str:
        """Write the picture as SVG: sharp in print, with selectable text, the same bytes every time.

        Raises:
            ImportError: the extra `show` is not installed.
            RuntimeError: there are too many cards for one picture.
        """
        return self._svg

    @functools.cached_property
    def _svg(self) -> str:
        return svg_of(self.view, self.theme, self.direction)

    def html(self) -> str:
        """Write the whole scene as an interactive page that plays the backward pass, in one file, offline."""
        is_open = None if self.collapse is None else [box.id for box in self.view.open]
        return page_html(self.scene, is_open)

    def dot(self) -> str:
        """Write the picture in the language of Graphviz, which lays it out."""
        return dot_of(self.view)

    def mermaid(self) -> str:
        """Write the picture as a Mermaid flowchart, which GitHub draws from Markdown."""
        return mermaid_of(self.view)

    def json(self) -> str:
        """Write the whole scene as JSON, in the form documented at `jaxprop.show.Scene`."""
        return self.scene.json(indent=1) + "\n"

    def model_explorer(self) -> tuple[dict[str, Json], dict[str, Json]]:
        """Convert the whole scene for Model Explorer: a graph collection, and norms of cotangents."""
        return explorer_graphs(self.scene), explorer_data(self.scene)

    def to(self, format: str | Renderer) -> str:
        """Write the picture in a format: one of these, or one of yours.

        Args:
            format: `svg`, `html`, `dot`, `mermaid` or `json`, as the methods of these names; or a function from
                the `Scene` to a text.

        Raises:
            ValueError: there is no format of this name.
            TypeError: `format` is not a name or a function, or the function does not return a string.

        Examples:
            >>> import jaxprop as jp
            >>> drawing = jp.draw(jp.trace(lambda w, x: w * x)(1.0, 2.0))
            >>> drawing.to(lambda scene: ", ".join(node.name for node in scene.nodes))
            'w, x, mul'
        """
        if isinstance(format, str):
            formats = self._formats
            if format not in formats:
                raise ValueError(
                    f"unknown format {shortened(format, 40)!r}; available: {', '.join(formats)}, or a function "
                    "of a `jaxprop.show.Scene`."
                )
            return formats[format]()
        if not callable(format):
            raise TypeError(
                "a format is a name or a function from a `jaxprop.show.Scene` to a string, "
                f"got {type(format).__name__}."
            )
        text = format(self.scene)
        if not isinstance(text, str):
            name = getattr(format, "__name__", repr(format))
            raise TypeError(
                f"the renderer `{name}` must return a string (the text of the file), got {type(text).__name__}."
            )
        return text

    @property
    def _formats(self) -> Mapping[str, Callable[[], str]]:
        return {
            "svg": self.svg, "html": self.html, "dot": self.dot, "mermaid": self.mermaid, "json": self.json,
        }  # fmt: skip

    def save(self, path: str | os.PathLike[str], format: str | Renderer | None = None) -> Path:
        """Write the picture to a file.

        Without `format`, the file extension decides: `.svg` picture; `.html` interactive page; `.dot` or `.gv`
        Graphviz; `.mmd` Mermaid; `.me.json` Model Explorer, with its node data in a second file `.data.json`;
        any other `.json` the scene as data.

        Args:
            format: a format of `to`, for any file name.

        Returns:
            The path of the file.

        Raises:
            ValueError: the file extension or the format is not supported.
            TypeError: as `to`.
            ImportError: for `.svg`, the extra `show` is not installed.
        """
        path = Path(path)
        if format is None and path.name.endswith(".me.json"):
            graphs, data = self.model_explorer()
            _write(path.with_name(path.name.removesuffix(".me.json") + ".data.json"), _as_json(data))
            return _write(path, _as_json(graphs))
        if format is None and path.suffix not in _EXTENSIONS:
            found = f"file extension {path.suffix!r}" if path.suffix else f"file name {path.name!r}"
            raise ValueError(
                f"unsupported {found}; supported extensions: {', '.join((*_EXTENSIONS, '.me.json'))}. "
                "Pass `format=` to write another kind of file."
            )
        return _write(path, self.to(_EXTENSIONS[path.suffix] if format is None else format))

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_html_(self) -> str:
        """Wide pictures scroll on a screen and shrink on paper, so that an export does not clip them."""
        return f'<div class="jaxprop-drawing"><style>{_NOTEBOOK_STYLE}</style>{self.svg()}</div>'

    def __repr__(self) -> str:
        cards = len(self.view.nodes) + len(self.view.closed)
        return f"Drawing({self.scene.title}: {cards} cards for {len(self.scene.nodes)} nodes)"


_EXTENSIONS = {
    ".svg": "svg", ".html": "html", ".dot": "dot", ".gv": "dot", ".mmd": "mermaid", ".json": "json",
}  # fmt: skip
_NOTEBOOK_STYLE = (
    ".jaxprop-drawing{overflow-x:auto}.jaxprop-drawing>svg{display:block;max-width:none}"
    "@media print{.jaxprop-drawing{overflow:visible}.jaxprop-drawing>svg{max-width:100%;height:auto}}"
)


def draw(
    what: Graph | Tape,
    collapse: Collapse = None,
    to: str | None = None,
    theme: str = "light",
    direction: str = "down",
) -> Drawing:
    """Draw a function: the values of its forward pass, local gradients, the cotangents of its backward pass.

    A card is an operation: its name, its type and its expression in your source; below, its value and, after ∂,
    its cotangent `d loss / d value`, in units of the loss per unit of the value, coloured by its norm on a
    logarithmic scale. Arrays are shown by their 2-norm and a heat map of block means. An edge is labelled with
    the local gradient and, after ↑, with the consumer's contribution to the cotangent. Scopes, modules, loops
    and branches are frames.

    Args:
        what: a `Graph` from `jaxprop.trace` (no numbers) or a `Tape` from `jaxprop.backprop`.
        collapse: which frames are closed, that is, drawn as one card. None: levels are opened while the picture
            has at most 150 cards, and a note says what is inside closed ones; a number: that many levels are
            open; True: all are closed; False: none is; a glob or a list of globs on names and scopes: these are
            closed.
        to: the name of a value: only the nodes between it and the result are drawn.
        theme: `light`, `dark`, or `auto`.
        direction: the direction of the forward pass, `down` or `right`.

    Raises:
        TypeError: `what` is neither, or it holds tracers.
        ValueError: the theme or direction is unknown, or the tape went through `vmap`.
        KeyError: there is no value named `to`, or no frame that `collapse` matches.

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
            raise ValueError(f"{name}={value!r} is unknown; available: {', '.join(map(repr, known))}.")
    view = view_of(scene_of(what), collapse, to)
    return Drawing(view.scene, view, theme, direction, collapse)


def _as_json(data: Mapping[str, Json]) -> str:
    return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path
