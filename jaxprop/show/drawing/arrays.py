"""What a picture shows of a number or an array: a text, statistics, a small heat map. NumPy on the host."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .scene import Shown, Steps, Thumb

#: Largest heat maps: of a matrix, of a vector, of one step of a scan.
MATRIX, VECTOR, STEP = (16, 16), (1, 32), (8, 8)
#: Vectors are written out up to this length, and while they take so many characters.
SHORT, SHORT_TEXT = 4, 24


def text_of(x: complex | float) -> str:
    """A number with four significant digits."""
    if isinstance(x, complex):
        return f"{x:.4g}"
    return f"{x:.4g}" if x else "0"


def norm_text(norm: float) -> str:
    return f"‖·‖ {text_of(norm)}"


def show_array(x: np.ndarray[Any, Any], steps: int, most: int) -> Shown:
    """What to show of an array whose first `steps` axes count steps; `most` steps one by one."""
    x = _plain(x)
    if x.ndim == 0:
        return show_number(x)
    wide = np.abs(x) if x.dtype.kind == "c" else x
    finite = np.isfinite(wide)
    nonfinite = int(x.size - np.count_nonzero(finite))
    stats = _statistics(wide)
    return Shown(
        text=_text(x, stats["norm"], steps),
        nonfinite=nonfinite,
        thumb=heat_map(wide) if x.size > 1 else None,
        steps=_steps(x, wide, steps, most) if steps else None,
        **stats,
    )


def show_number(x: Any) -> Shown:
    value = x.item() if hasattr(x, "item") else x
    if isinstance(value, complex):
        size = abs(value)
        return Shown(text_of(value), norm=size, nonfinite=int(not math.isfinite(size)))
    value = float(value)
    return Shown(text_of(value), norm=abs(value), number=value, nonfinite=int(not math.isfinite(value)))


def show_summary(summary: Any, steps: int, most: int, scalar: bool) -> Shown:
    """What to show of a `Summary`, whose fields have one number for each step."""
    fields = {name: np.asarray(part, np.float64) for name, part in summary._asdict().items()}
    if not steps:
        plain = {name: float(part) for name, part in fields.items()}
        count = int(plain["nonfinite"])
        if scalar:
            return Shown(text_of(plain["mean"]), norm=plain["norm"], number=plain["mean"], nonfinite=count)
        return Shown(
            norm_text(plain["norm"]),
            norm=plain["norm"],
            mean=plain["mean"],
            min=plain["min"],
            max=plain["max"],
            zeros=plain["zeros"],
            std=_spread(plain["rms"], plain["mean"]),
            nonfinite=count,
        )
    flat = {name: part.reshape(-1) for name, part in fields.items()}
    norm = float(np.sqrt(np.sum(flat["norm"] ** 2)))
    mean = float(np.mean(flat["mean"]))
    at = chosen(flat["norm"].size, most)
    bad = tuple(int(flat["nonfinite"][i]) for i in at)
    return Shown(
        norm_text(norm),
        norm=norm,
        mean=mean,
        std=_spread(float(np.sqrt(np.mean(flat["rms"] ** 2))), mean),
        min=float(np.min(flat["min"])),
        max=float(np.max(flat["max"])),
        zeros=float(np.mean(flat["zeros"])),
        nonfinite=int(np.sum(flat["nonfinite"])),
        steps=Steps(
            at=at,
            text=tuple(text_of(float(flat["mean"][i])) if scalar else norm_text(flat["norm"][i]) for i in at),
            norm=tuple(float(flat["norm"][i]) for i in at),
            nonfinite=bad if any(bad) else (),
        ),
    )


def chosen(length: int, most: int) -> tuple[int, ...]:
    """Which of `length` steps are shown: at most `most`, evenly, the first and the last among them."""
    if length <= most:
        return tuple(range(length))
    return tuple(dict.fromkeys(round(i * (length - 1) / (most - 1)) for i in range(most)))


def heat_map(x: np.ndarray[Any, Any], limit: tuple[int, int] | None = None) -> Thumb:
    """Block means of an array, seen as a matrix: its last axis are the columns."""
    matrix = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    rows, cols = limit or (MATRIX if matrix.shape[0] > 1 else VECTOR)
    means = _block_means(_block_means(matrix, rows, 0), cols, 1)
    finite = np.isfinite(means)
    absmax = float(np.max(np.abs(means), initial=0.0, where=finite))
    scaled = np.rint(np.where(finite, means, 0) / (absmax or 1.0) * 100).astype(int).ravel().tolist()
    data = (v if good else None for v, good in zip(scaled, finite.ravel().tolist(), strict=True))
    return Thumb(*means.shape, data=tuple(data), absmax=absmax)


def _plain(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32, float64, complex: what NumPy reduces well."""
    if x.dtype.kind == "c" or x.dtype in (np.float32, np.float64):
        return x
    return x.astype(np.float64 if x.dtype.kind in "iu" else np.float32)


def _statistics(x: np.ndarray[Any, Any]) -> dict[str, float]:
    if not x.size:
        return {"norm": 0.0}
    with np.errstate(all="ignore"):
        flat = x.ravel().astype(np.float64)
        mean = float(np.mean(flat))
        return {
            "norm": _norm(flat),
            "mean": mean,
            "std": _norm(flat - mean) / math.sqrt(x.size),
            "min": float(np.min(flat)),
            "max": float(np.max(flat)),
            "zeros": 1.0 - np.count_nonzero(flat) / x.size,
        }


def _norm(flat: np.ndarray[Any, Any]) -> float:
    """The 2-norm, in float64: squares of float32 neither overflow nor vanish there."""
    wide = flat.astype(np.float64, copy=False)
    return float(np.sqrt(np.dot(wide, wide)))


def _spread(rms: float, mean: float) -> float:
    square = rms**2 - mean**2
    return math.sqrt(square) if square > 0 else (0.0 if square <= 0 else square)


def _text(x: np.ndarray[Any, Any], norm: float, steps: int) -> str:
    if x.size <= SHORT and x.ndim == 1 and not steps:
        text = f"[{', '.join(map(text_of, x.tolist()))}]"
        if len(text) <= SHORT_TEXT:
            return text
    return norm_text(norm)


def _steps(x: np.ndarray[Any, Any], wide: np.ndarray[Any, Any], steps: int, most: int) -> Steps:
    flat = x.reshape(math.prod(x.shape[:steps]), *x.shape[steps:])
    wide = wide.reshape(flat.shape)
    at = chosen(len(flat), most)
    norms = [_norm(wide[i].ravel()) for i in at]
    bad = tuple(int(wide[i].size - np.count_nonzero(np.isfinite(wide[i]))) for i in at)
    scalar = flat.ndim == 1
    return Steps(
        at=at,
        text=tuple(
            text_of(flat[i].item()) if scalar else _text(flat[i], n, 0) for i, n in zip(at, norms, strict=True)
        ),
        norm=tuple(norms),
        nonfinite=bad if any(bad) else (),
        thumbs=() if scalar or not wide[0].size > 1 else tuple(heat_map(wide[i], STEP) for i in at),
    )


def _block_means(matrix: np.ndarray[Any, Any], most: int, axis: int) -> np.ndarray[Any, Any]:
    """Means of at most `most` blocks along an axis, of nearly equal length."""
    length = matrix.shape[axis]
    if length <= most:
        return matrix.astype(np.float64)
    starts = [i * length // most for i in range(most)]
    counts = np.diff([*starts, length])
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(matrix, starts, axis=axis, dtype=np.float64)
    return sums / (counts[:, None] if axis == 0 else counts)


def largest(items: Sequence[Shown | None]) -> float | None:
    """The largest finite norm among what is shown."""
    norms = [x.norm for x in items if x is not None and x.norm is not None and math.isfinite(x.norm)]
    return max(norms, default=None)
