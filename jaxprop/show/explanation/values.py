"""Describe numbers and arrays in a few words, and as plain data."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ... import _jaxpr
from ..._text import number as spell
from ..._text import type_name
from ...record.statistics import Summary
from .story import Json

#: Arrays with up to this many elements are written out.
_WHOLE = 6
#: The number of elements shown of longer ones.
_FIRST = 3


class Described(NamedTuple):
    """A value in words.

    Attributes:
        text: the value, or a description of it.
        data: the same as plain data, JSON-able.
        number: the value itself if it is one number, else None.
    """

    text: str
    data: Json
    number: float | complex | None = None


NOTHING = Described("", None)


def describe(x: Any, steps: Sequence[int] = (), brief: bool = False) -> Described:
    """Describe a value.

    Args:
        x: a number, an array, statistics of one, or None.
        steps: the lengths of the loops whose axes come first.
        brief: whether to leave out the first elements of an array.
    """
    if x is None:
        return NOTHING
    if isinstance(x, Summary):
        return _describe_summary(x, len(steps))
    if _jaxpr.is_tracer(x):
        return Described(f"{type_name(x.dtype, x.shape)} (traced)", {"traced": True, "shape": list(x.shape)})
    if _jaxpr.is_key(x):
        return Described("key", {"type": "key", "shape": list(np.shape(x))})
    if not isinstance(x, int | float | complex) and not hasattr(x, "dtype"):
        return Described(type(x).__name__, {"type": type(x).__name__})
    array = np.asarray(x)
    if array.dtype == _jaxpr.float0 or (array.dtype.kind == "V" and array.dtype.names is not None):
        return NOTHING
    if array.shape == ():
        found = _python_number(array)
        return Described(spell(found), _json_number(found), found)
    depth = len(steps)
    if depth and array.ndim == depth:
        return Described(f"per step {_elements(array.ravel())}", _array_data(array) | {"steps": list(steps)})
    if depth:
        return _describe_steps(array, depth)
    return Described(_describe_array(array, brief), _array_data(array))


def has_only_finite(x: Any) -> bool:
    """Whether a recorded value has only finite elements; True where that is unknown."""
    if isinstance(x, Summary):
        return _jaxpr.is_tracer(x.nonfinite) or not np.any(np.asarray(x.nonfinite))
    if x is None or _jaxpr.is_tracer(x) or not _jaxpr.is_inexact(getattr(x, "dtype", None)):
        return True
    return bool(np.isfinite(_in_double(np.asarray(x))).all())


def _python_number(array: np.ndarray) -> float | complex:
    if array.dtype.kind == "V" or array.dtype.name in ("bfloat16", "float16"):
        return float(array.astype(np.float32))
    return array.item()


def _json_number(x: float | complex) -> Json:
    if isinstance(x, complex):
        return {"real": _json_number(x.real), "imag": _json_number(x.imag)}
    return spell(x) if isinstance(x, float) and not math.isfinite(x) else x


def _in_double(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _array_norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(_in_double(array).ravel()))


def _elements(flat: np.ndarray) -> str:
    """The first elements of an array, in four digits."""
    if len(flat) <= _WHOLE:
        return f"[{', '.join(spell(x, 4) for x in _in_double(flat))}]"
    *first, last = (spell(x, 4) for x in _in_double(flat[[*range(_FIRST), -1]]))
    return f"[{', '.join(first)}, ..., {last}]"


def _describe_array(array: np.ndarray, brief: bool) -> str:
    kind = type_name(array.dtype, array.shape)
    if array.size == 0:
        return f"{kind}, empty"
    if array.size <= _WHOLE and array.ndim == 1:
        return _elements(array) + _nonfinite_note(array)
    if array.dtype.kind == "b":
        return f"{kind}, {int(array.sum())} of {array.size} true"
    first = "" if brief else f", {_elements(array.ravel())}"
    return f"{kind}, norm {spell(_array_norm(array), 4)}{first}{_nonfinite_note(array)}"


def _nonfinite_note(array: np.ndarray) -> str:
    count = int(np.size(array) - np.isfinite(_in_double(array)).sum())
    return f" ({count} non-finite)" if count else ""


def _describe_steps(array: np.ndarray, depth: int) -> Described:
    inner = array.shape[depth:]
    rows = array.reshape(-1, *inner)
    norms = _elements(np.array([_array_norm(row) for row in rows]))
    text = f"{len(rows)} steps of {type_name(array.dtype, inner)}, norms {norms}{_nonfinite_note(array)}"
    return Described(text, _array_data(array) | {"steps": list(array.shape[:depth])})


def _array_data(array: np.ndarray) -> dict[str, Json]:
    first = _in_double(array.ravel()[:_WHOLE])
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "norm": _json_number(_array_norm(array)),
        "first": [_json_number(v.item()) for v in first],
    }


def _describe_summary(x: Summary, depth: int) -> Described:
    if _jaxpr.is_tracer(x.norm):
        return Described("statistics (traced)", {"traced": True})
    if depth and np.ndim(x.norm):
        norms = np.asarray(x.norm).ravel()
        return Described(
            f"norms per step {_elements(norms)}", {"norms": [_json_number(float(v)) for v in norms]}
        )
    numbers: dict[str, float] = {name: np.asarray(value).item() for name, value in x._asdict().items()}
    text = f"norm {spell(numbers['norm'])}, mean {spell(numbers['mean'])}, "
    text += f"{spell(numbers['min'])} to {spell(numbers['max'])}"
    text += f" ({int(numbers['nonfinite'])} non-finite)" if numbers["nonfinite"] else ""
    return Described(text, {name: _json_number(value) for name, value in numbers.items()})
