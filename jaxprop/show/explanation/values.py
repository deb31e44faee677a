"""Numbers and arrays in a few words, and as plain data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import _jaxpr
from ..._text import type_name
from ...record.statistics import Summary
from ..symbolic.notation import spell

#: Arrays of up to so many numbers are written out.
_WHOLE = 6
#: Of longer ones so many are shown.
_FIRST = 3


class Described(NamedTuple):
    """A value in words.

    Attributes:
        text: the value, or what it is like.
        data: the same as plain data, JSON-able.
        number: the value itself where it is one number, else None.
    """

    text: str
    data: Any
    number: float | complex | None = None


NOTHING = Described("", None)


def describe(x: Any, steps: Sequence[int] = (), brief: bool = False) -> Described:
    """Describe a value; with `steps`, one with the axes of loops first; `brief`, without first numbers."""
    if x is None:
        return NOTHING
    if isinstance(x, Summary):
        return _of_summary(x, len(steps))
    if _jaxpr.is_tracer(x):
        return Described(f"{type_name(x.dtype, x.shape)} (traced)", {"traced": True, "shape": list(x.shape)})
    dtype = getattr(x, "dtype", None)
    if dtype is None and not isinstance(x, int | float | complex):
        return Described(type(x).__name__, {"type": type(x).__name__})
    if _jaxpr.is_key(x):
        return Described("key", {"type": "key", "shape": list(np.shape(x))})
    array = np.asarray(x)
    if array.dtype == _jaxpr.float0 or array.dtype.kind == "V" and array.dtype.names is not None:
        return NOTHING
    if array.shape == ():
        number = _plain(array)
        return Described(spell(number), _json(number), number)
    depth = len(steps)
    if depth and array.ndim == depth:
        return Described(_listed(array.ravel(), "by step "), _data(array) | {"steps": list(steps)})
    if depth:
        return _by_step(array, depth)
    return Described(_of_array(array, brief), _data(array))


def _plain(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind == "V" or array.dtype.name in ("bfloat16", "float16"):
        return float(array.astype(np.float32))
    return array.item()


def _json(x: Any) -> Any:
    if isinstance(x, complex):
        return {"real": _json(x.real), "imag": _json(x.imag)}
    return spell(x) if isinstance(x, float) and not math.isfinite(x) else x


def _wide(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if array.dtype.kind in "fc" and array.dtype.itemsize >= 4:
        return array
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _norm(array: np.ndarray[Any, Any]) -> float:
    wide = _wide(array)
    return float(np.linalg.norm(wide.astype(np.complex128 if wide.dtype.kind == "c" else np.float64).ravel()))


def _listed(flat: np.ndarray[Any, Any], word: str = "") -> str:
    wide = _wide(flat)
    if len(wide) <= _WHOLE:
        return f"{word}[{', '.join(map(_short, wide))}]"
    return f"{word}[{', '.join(map(_short, wide[:_FIRST]))}, ..., {_short(wide[-1])}]"


def _short(x: Any) -> str:
    """One of many numbers: four digits."""
    x = x.item()
    return f"{x.real:.4g}{x.imag:+.4g}j" if isinstance(x, complex) else f"{x:.4g}"


def _of_array(array: np.ndarray[Any, Any], brief: bool) -> str:
    kind = type_name(array.dtype, array.shape)
    if array.size == 0:
        return f"{kind}, empty"
    if array.size <= _WHOLE and array.ndim == 1:
        return _listed(array) + _bad(array)
    if array.dtype.kind == "b":
        return f"{kind}, {int(array.sum())} of {array.size} true"
    first = "" if brief else f", {_listed(array.ravel())}"
    return f"{kind}, norm {_norm(array):.4g}{first}{_bad(array)}"


def _bad(array: np.ndarray[Any, Any]) -> str:
    wide = _wide(array)
    count = int(np.size(wide) - np.isfinite(wide).sum())
    return f" ({count} not finite)" if count else ""


def _by_step(array: np.ndarray[Any, Any], depth: int) -> Described:
    inner = array.shape[depth:]
    rows = array.reshape(-1, *inner)
    norms = np.array([_norm(row) for row in rows])
    text = f"{len(rows)} steps of {type_name(array.dtype, inner)}, {_listed(norms, 'norms ')}{_bad(array)}"
    return Described(text, _data(array) | {"steps": list(array.shape[:depth])})


def _data(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat = _wide(array.ravel())
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "norm": _json(_norm(array)),
        "first": [_json(v.item()) for v in flat[:_WHOLE]],
    }


def _of_summary(x: Summary, depth: int) -> Described:
    if _jaxpr.is_tracer(x.norm):
        return Described("statistics (traced)", {"traced": True})
    if depth and np.ndim(x.norm):
        norms = np.asarray(x.norm).ravel()
        return Described(_listed(norms, "norms by step "), {"norms": [_json(float(v)) for v in norms]})
    numbers = {name: np.asarray(value).item() for name, value in x._asdict().items()}
    text = f"norm {spell(numbers['norm'])}, mean {spell(numbers['mean'])}, "
    text += f"{spell(numbers['min'])} to {spell(numbers['max'])}"
    text += f" ({int(numbers['nonfinite'])} not finite)" if numbers["nonfinite"] else ""
    return Described(text, {name: _json(value) for name, value in numbers.items()})
