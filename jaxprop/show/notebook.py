"""How graphs, tapes, entries and local gradients are shown in a notebook.

Their `_repr_html_` calls `_text.notebook_html`, which is dispatched on the type; this file registers what it
does for each of them.
"""

import importlib
import importlib.util
import math
import warnings
from typing import Protocol

import numpy as np

from .. import _jaxpr
from .._text import notebook_html, type_name
from ..core.graph import Graph
from ..record.local_gradient import LocalGradient
from ..record.statistics import Summary
from ..record.tape import Entry, Tape
from .drawing.arrays import show_array, show_summary, thumbnail
from .drawing.card import heat_map, map_size
from .drawing.draw import draw
from .drawing.palette import rules
from .drawing.text_metrics import MONO_FONTS, escape
from .symbolic.formula import Formula, formula

#: Larger Jacobians are not computed for display.
MOST_NUMBERS = 4096

_AS_TEXT = notebook_html.dispatch(object)


@notebook_html.register
def graph_html(graph: Graph) -> str:
    """A picture; the table if the extra `show` is not installed or the picture would be too large."""
    return _picture_html(graph)


@notebook_html.register
def tape_html(tape: Tape) -> str:
    """A picture, as of a graph; for a tape that is being traced, its one-line summary."""
    if any(map(_jaxpr.is_tracer, _leaves(tape.value))):
        return _AS_TEXT(repr(tape))
    return _picture_html(tape)


@notebook_html.register
def entry_html(entry: Entry) -> str:
    """The name, the type and the source line, then value and cotangent."""
    node = entry.node
    out = node.outputs[node.names.index(entry.name)]
    head = f"<b>{escape(entry.name)}</b> {escape(type_name(out.dtype, out.shape))}"
    origin = escape(
        " ".join(filter(None, (node.label or node.primitive, f"({node.source})" if node.source else "")))
    )
    rows = [
        f"<tr><th>{word}</th><td>{_array_html(x)}</td></tr>"
        for word, x in (("value", entry.value), ("∂", entry.cotangent))
    ]
    return f'<div style="font-family:{MONO_FONTS}">{head}<br/>{origin}<table>{"".join(rows)}</table></div>'


@notebook_html.register
def local_gradient_html(local: LocalGradient) -> str:
    """The formula, and the Jacobian if it is small."""
    written = formula(local)
    latex = written.latex if isinstance(written, Formula) else ""
    parts = [f"<div>$\\displaystyle {escape(latex)}$</div>"]
    if math.prod(local.shape) <= MOST_NUMBERS and not local.is_traced:
        parts.append(_array_html(local.jacobian()))
    return f"<div>{''.join(parts)}</div>"


def _picture_html(what: Graph | Tape) -> str:
    try:
        return draw(what)._repr_html_()
    except (ImportError, RuntimeError, TypeError, ValueError):
        return _AS_TEXT(what)


def _leaves(x: object) -> list[object]:
    return list(x) if isinstance(x, tuple | list) else [x]


def _array_html(x: object) -> str:
    """A scalar as text; an array by treescope if that is installed, else by its statistics and a heat map."""
    if x is None:
        return "none"
    if any(map(_jaxpr.is_tracer, [x, *_leaves(x)])):
        return escape(str(x))
    if isinstance(x, Summary):
        return escape(show_summary(x, np.ndim(x.norm), 2, scalar=False).text)
    if not _jaxpr.is_inexact(getattr(x, "dtype", None)):
        return escape(str(x))
    array = np.asarray(x)
    if array.ndim and importlib.util.find_spec("treescope") is not None:
        return _treescope_html(array)
    return escape(show_array(array, 0, 1).text) + (_map_html(array) if array.size > 1 else "")


class _Shows(Protocol):
    def _repr_html_(self) -> str: ...


def _treescope_html(array: np.ndarray) -> str:
    treescope = importlib.import_module("treescope")
    with warnings.catch_warnings():  # on first use it imports modules of NumPy that are deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        figure: _Shows = treescope.render_array(array.astype(np.float32))
        return figure._repr_html_()


def _map_html(array: np.ndarray) -> str:
    thumb = thumbnail(np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64))
    w, h = map_size(thumb)
    style = "".join(f".jaxprop-map {selector}{{{rule}}}" for selector, rule in rules("light").items())
    return (
        '<br/><svg xmlns="http://www.w3.org/2000/svg" class="jaxprop-map" '
        f'width="{w * 2:g}" height="{h * 2:g}" viewBox="0 0 {w:g} {h:g}">'
        f"<style>{style}.jaxprop-map .rim{{fill:none}}</style>{heat_map(thumb, 0, 0)}</svg>"
    )
