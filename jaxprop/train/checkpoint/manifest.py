"""The JSON file next to the arrays of a checkpoint: what they are, and a checksum of what it says."""

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .leaves import LeafRecord, fingerprints

FORMAT = "jaxprop checkpoint 1"


class About(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        leaves: The leaves of the state.
        arrays: The arrays of the progress.
        plain: The rest of the progress.
        metrics: The metric by which the best checkpoint is chosen.
    """

    leaves: list[LeafRecord]
    arrays: list[LeafRecord]
    plain: dict[str, object]
    metrics: dict[str, float]

    def empty_arrays(self) -> dict[str, np.ndarray]:
        """Return an array of the shape and dtype of each array of the progress, without memory of its own."""
        return {each.path: np.broadcast_to(np.zeros((), each.dtype), each.shape) for each in self.arrays}


def sealed(
    step: int,
    leaves: Sequence[LeafRecord],
    arrays: Mapping[str, np.ndarray],
    plain: Mapping[str, object],
    metrics: Mapping[str, float],
) -> dict[str, object]:
    """Return the content of `about`, with a checksum."""
    records = [
        LeafRecord(key, value.shape, str(value.dtype), total)
        for (key, value), total in zip(arrays.items(), fingerprints(list(arrays.values())), strict=True)
    ]
    content = {
        "format": FORMAT,
        "step": step,
        "leaves": [leaf.to_json() for leaf in leaves],
        "arrays": [record.to_json() for record in records],
        "plain": {key: _to_json(key, value) for key, value in plain.items()},
        "metrics": dict(metrics),
    }
    return {"content": content, "crc32": _checksum(content)}


def unsealed(about: Any) -> About:
    """Return the content of `about`.

    Raises:
        ValueError: It is damaged, or has another format.
    """
    if not isinstance(about, dict) or "content" not in about:
        raise ValueError("its 'about' has no content")
    content = about["content"]
    if about.get("crc32") != _checksum(content):
        raise ValueError("its 'about' is not what was saved")
    if content.get("format") != FORMAT:
        raise ValueError(f"its format is {content.get('format')!r}, but this version reads {FORMAT!r}")
    leaves, arrays = ([LeafRecord.from_json(row) for row in content[name]] for name in ("leaves", "arrays"))
    return About(leaves, arrays, content["plain"], content["metrics"])


def _checksum(content: object) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _to_json(key: str, value: object) -> object:
    """A value as JSON restores it; NumPy's numbers become Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise TypeError(
            f"progress can hold NumPy arrays and values that JSON can represent, but {key!r} is a "
            f"{type(value).__name__}."
        ) from error
