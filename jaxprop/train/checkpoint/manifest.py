"""The small JSON file beside the arrays of a checkpoint: what they are, and a sum over what it says."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .leaves import Leaf, fingerprints

FORMAT = "jaxprop checkpoint 1"


def sealed(
    step: int,
    leaves: Sequence[Leaf],
    arrays: Mapping[str, Any],
    plain: Mapping[str, Any],
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """The content of `about`, with a sum over it."""
    rows = [
        Leaf(key, value.shape, str(value.dtype), total).as_json()
        for (key, value), total in zip(arrays.items(), fingerprints(list(arrays.values())), strict=True)
    ]
    content = {
        "format": FORMAT,
        "step": step,
        "leaves": [leaf.as_json() for leaf in leaves],
        "arrays": rows,
        "plain": {key: as_json(key, value) for key, value in plain.items()},
        "metrics": dict(metrics),
    }
    return {"content": content, "crc32": _crc(content)}


def unsealed(about: Any) -> dict[str, Any]:
    """The content of `about`, where it is whole."""
    if not isinstance(about, dict) or "content" not in about:
        raise ValueError("its 'about' does not say what it holds")
    if about.get("crc32") != _crc(about["content"]):
        raise ValueError("its 'about' is not what was saved")
    if about["content"].get("format") != FORMAT:
        raise ValueError(f"its format is {about['content'].get('format')!r}, this version reads {FORMAT!r}")
    return about["content"]


def _crc(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def as_json(key: str, value: Any) -> Any:
    """A value as JSON gives it back; NumPy's numbers become Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(
            f"Progress holds NumPy arrays and what JSON holds; {key!r} is a {type(value).__name__}."
        ) from error
