"""How graphs, tapes, entries and local gradients look in a notebook.

They know nothing of it themselves: `display` hands them their looks when the package is put together.
"""

import importlib
import importlib.util
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import _jaxpr
from .._text import type_name
from ..core.graph import Graph
from ..record.local_gradient import LocalGradient
from ..record.statistics import Summary
from ..record.tape import Entry, Tape
from .drawing.arrays import heat_map as thumb_of
from .drawing.arrays import show_array, show_summary
from .drawing.card import heat_map, map_size
from .drawing.draw import draw
from .drawing.palette import rules
from .drawing.text_metrics import MONO_FONTS, escape
from .symbolic.formula import formula

#: A Jacobian of more numbers than this is not computed just to be looked at.
MOST_NUMBERS = 4096


def display() -> Mapping[type, Callable[[Any], str]]:
    """For each class: what its objects are shown as, in HTML."""
    return {Graph: picture_html, Tape: picture_html, Entry: entry_html, LocalGradient: local_html}


def hand_down() -> None:
    """Give the classes their look in notebooks."""
    for kind, look in display().items():
        kind._repr_html_ = look  # type: ignore[attr-defined]


def picture_html(what: Graph | Tape) -> str:
    """A picture; a table where the extra `show` is missing, or where there are no numbers to draw."""
    try:
        return draw(what)._repr_html_()
    except (ImportError, TypeError, ValueError):
        return _pre(repr(what) if isinstance(what, Tape) and _is_traced(what) else str(what))


def _is_traced(tape: Tape) -> bool:
    return _jaxpr.is_tracer(tape.value) or any(map(_jaxpr.is_tracer, _leaves(tape.value)))


def _leaves(x: Any) -> list[Any]:
    return list(x) if isinstance(x, tuple | list) else [x]


def entry_html(entry: Entry) -> str:
    """Name, type, place in the source, then value and cotangent."""
    value = entry.node.outputs[entry.node.names.index(entry.name)]
    node = entry.node
    head = f"<b>{escape(entry.name)}</b> {escape(type_name(value.dtype, value.shape))}"
    said = escape(
        " ".join(filter(None, (node.label or node.primitive, f"({node.source})" if node.source else "")))
    )
    rows = [
        f"<tr><th>{word}</th><td>{_array_html(x)}</td></tr>"
        for word, x in (("value", entry.value), ("∂", entry.cotangent))
    ]
    return f'<div style="font-family:{MONO_FONTS}">{head}<br/>{said}<table>{"".join(rows)}</table></div>'


def local_html(local: LocalGradient) -> str:
    """Its formula, and the numbers of its Jacobian where they are few."""
    latex = formula(local).latex  # type: ignore[union-attr]
    parts = [f"<div>$\\displaystyle {escape(latex)}$</div>"]
    if math.prod(local.shape) <= MOST_NUMBERS and not local.is_traced:
        parts.append(_array_html(local.jacobian()))
    return f"<div>{''.join(parts)}</div>"


def _array_html(x: Any) -> str:
    """A number as it is, an array by treescope where it is installed, else by statistics and a heat map."""
    if x is None:
        return "none"
    if _jaxpr.is_tracer(x) or any(map(_jaxpr.is_tracer, _leaves(x))):
        return escape(str(x))
    if isinstance(x, Summary):
        steps = np.ndim(x.norm)
        return escape(show_summary(x, steps, 2, scalar=False).text)
    if not _jaxpr.is_inexact(getattr(x, "dtype", None)):
        return escape(str(x))
    array = np.asarray(x)
    if array.ndim and importlib.util.find_spec("treescope") is not None:
        treescope: Any = importlib.import_module("treescope")
        with warnings.catch_warnings():  # it looks through all of NumPy when first used
            warnings.simplefilter("ignore", DeprecationWarning)
            return treescope.render_array(array.astype(np.float32))._repr_html_()
    shown = show_array(array, 0, 1)
    return escape(shown.text) + (_map_html(array) if array.size > 1 else "")


def _map_html(array: np.ndarray[Any, Any]) -> str:
    thumb = thumb_of(np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64))
    w, h = map_size(thumb)
    style = "".join(f".jaxprop-map {selector}{{{rule}}}" for selector, rule in rules("light").items())
    return (
        '<br/><svg xmlns="http://www.w3.org/2000/svg" class="jaxprop-map" '
        f'width="{w * 2:g}" height="{h * 2:g}" viewBox="0 0 {w:g} {h:g}">'
        f"<style>{style}.jaxprop-map .rim{{fill:none}}</style>{heat_map(thumb, 0, 0)}</svg>"
    )


def _pre(text: str) -> str:
    return f'<pre style="line-height:1.3">{escape(text)}</pre>'
