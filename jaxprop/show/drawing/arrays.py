"""What a picture shows of a number or an array: a text, statistics, a thumbnail. NumPy on the host."""

import math
from collections.abc import Sequence

import numpy as np

from ...record.statistics import Summary
from .scene import PerStep, Shown, Thumb

#: Largest thumbnails, in rows and columns: of a matrix, of a vector, of one step of a scan.
MATRIX, VECTOR, STEP = (16, 16), (1, 32), (8, 8)
#: Vectors up to this length are written in full, if that takes at most `SHORT_TEXT` characters.
SHORT, SHORT_TEXT = 4, 24


def text_of(x: complex | float) -> str:
    """Write a number with four significant digits."""
    if isinstance(x, complex):
        return f"{x:.4g}"
    return f"{x:.4g}" if x else "0"


def norm_text(norm: float) -> str:
    return f"‖·‖ {text_of(norm)}"


def show_array(x: np.ndarray, steps: int, most: int) -> Shown:
    """Describe an array whose first `steps` axes count steps; show at most `most` steps one by one."""
    x = _as_float(x)
    if x.ndim == 0:
        return show_number(x.item())
    real = np.abs(x) if x.dtype.kind == "c" else x
    nonfinite = int(x.size - np.count_nonzero(np.isfinite(real)))
    stats = _statistics(real)
    return Shown(
        text=_array_text(x, stats["norm"], steps),
        nonfinite=nonfinite,
        thumb=thumbnail(real) if x.size > 1 else None,
        steps=_each_step(x, real, steps, most) if steps else None,
        **stats,
    )


def show_number(x: complex | float) -> Shown:
    """Describe a scalar."""
    if isinstance(x, complex):
        size = abs(x)
        return Shown(text_of(x), norm=size, nonfinite=int(not math.isfinite(size)))
    x = float(x)
    return Shown(text_of(x), norm=abs(x), number=x, nonfinite=int(not math.isfinite(x)))


def show_summary(summary: Summary, steps: int, most: int, scalar: bool) -> Shown:
    """Describe an array by its `Summary`, whose fields have one number for each step."""
    fields = {name: np.asarray(part, np.float64) for name, part in summary._asdict().items()}
    if steps:
        return _summary_of_steps({name: part.reshape(-1) for name, part in fields.items()}, most, scalar)
    x = {name: float(part) for name, part in fields.items()}
    count = int(x["nonfinite"])
    if scalar:
        return Shown(text_of(x["mean"]), norm=x["norm"], number=x["mean"], nonfinite=count)
    return Shown(
        norm_text(x["norm"]),
        norm=x["norm"],
        mean=x["mean"],
        std=_std(x["rms"], x["mean"]),
        min=x["min"],
        max=x["max"],
        zeros=x["zeros"],
        nonfinite=count,
    )


def _summary_of_steps(x: dict[str, np.ndarray], most: int, scalar: bool) -> Shown:
    norm = float(np.sqrt(np.sum(x["norm"] ** 2)))
    mean = float(np.mean(x["mean"]))
    at = chosen(x["norm"].size, most)
    bad = tuple(int(x["nonfinite"][i]) for i in at)
    return Shown(
        norm_text(norm),
        norm=norm,
        mean=mean,
        std=_std(float(np.sqrt(np.mean(x["rms"] ** 2))), mean),
        min=float(np.min(x["min"])),
        max=float(np.max(x["max"])),
        zeros=float(np.mean(x["zeros"])),
        nonfinite=int(np.sum(x["nonfinite"])),
        steps=PerStep(
            at=at,
            text=tuple(text_of(float(x["mean"][i])) if scalar else norm_text(x["norm"][i]) for i in at),
            norm=tuple(float(x["norm"][i]) for i in at),
            nonfinite=bad if any(bad) else (),
        ),
    )


def chosen(length: int, most: int) -> tuple[int, ...]:
    """Choose at most `most` of `length` steps, evenly spaced, the first and the last among them."""
    if length <= most:
        return tuple(range(length))
    return tuple(dict.fromkeys(round(i * (length - 1) / (most - 1)) for i in range(most)))


def thumbnail(x: np.ndarray, limit: tuple[int, int] | None = None) -> Thumb:
    """Compute block means of an array, as a matrix whose columns are its last axis."""
    matrix = x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x.reshape(1, -1)
    rows, cols = limit or (MATRIX if matrix.shape[0] > 1 else VECTOR)
    means = _block_means(_block_means(matrix, rows, 0), cols, 1)
    finite = np.isfinite(means)
    absmax = float(np.max(np.abs(means), initial=0.0, where=finite))
    scaled = np.rint(np.where(finite, means, 0) / (absmax or 1.0) * 100).astype(int).ravel().tolist()
    data = (v if good else None for v, good in zip(scaled, finite.ravel().tolist(), strict=True))
    return Thumb(*means.shape, data=tuple(data), absmax=absmax)


def largest(items: Sequence[Shown | None]) -> float | None:
    """The largest finite norm of the items; None if there is none."""
    norms = [x.norm for x in items if x is not None and x.norm is not None and math.isfinite(x.norm)]
    return max(norms, default=None)


def _as_float(x: np.ndarray) -> np.ndarray:
    """Convert to float32, float64 or complex: NumPy cannot reduce bfloat16, and overflows in float16."""
    if x.dtype.kind == "c" or x.dtype in (np.float32, np.float64):
        return x
    return x.astype(np.float64 if x.dtype.kind in "iu" else np.float32)


def _statistics(x: np.ndarray) -> dict[str, float]:
    if not x.size:
        return {"norm": 0.0}
    with np.errstate(all="ignore"):
        flat = x.ravel().astype(np.float64)
        mean = float(np.mean(flat))
        return {
            "norm": _two_norm(flat),
            "mean": mean,
            "std": _two_norm(flat - mean) / math.sqrt(x.size),
            "min": float(np.min(flat)),
            "max": float(np.max(flat)),
            "zeros": 1.0 - np.count_nonzero(flat) / x.size,
        }


def _two_norm(flat: np.ndarray) -> float:
    """The 2-norm, in float64: there squares of float32 numbers neither overflow nor underflow."""
    wide = flat.astype(np.float64, copy=False)
    return float(np.sqrt(np.dot(wide, wide)))


def _std(rms: float, mean: float) -> float:
    variance = rms**2 - mean**2
    return math.sqrt(variance) if variance > 0 else (0.0 if variance <= 0 else variance)


def _array_text(x: np.ndarray, norm: float, steps: int) -> str:
    if x.size <= SHORT and x.ndim == 1 and not steps:
        text = f"[{', '.join(map(text_of, x.tolist()))}]"
        if len(text) <= SHORT_TEXT:
            return text
    return norm_text(norm)


def _each_step(x: np.ndarray, real: np.ndarray, steps: int, most: int) -> PerStep:
    flat = x.reshape(math.prod(x.shape[:steps]), *x.shape[steps:])
    real = real.reshape(flat.shape)
    at = chosen(len(flat), most)
    norms = [_two_norm(real[i].ravel()) for i in at]
    bad = tuple(int(real[i].size - np.count_nonzero(np.isfinite(real[i]))) for i in at)
    scalar = flat.ndim == 1
    return PerStep(
        at=at,
        text=tuple(
            text_of(flat[i].item()) if scalar else _array_text(flat[i], n, 0)
            for i, n in zip(at, norms, strict=True)
        ),
        norm=tuple(norms),
        nonfinite=bad if any(bad) else (),
        thumbs=() if scalar or not real[0].size > 1 else tuple(thumbnail(real[i], STEP) for i in at),
    )


def _block_means(matrix: np.ndarray, most: int, axis: int) -> np.ndarray:
    """Means of at most `most` blocks of nearly equal length along an axis."""
    length = matrix.shape[axis]
    if length <= most:
        return matrix.astype(np.float64)
    starts = [i * length // most for i in range(most)]
    counts = np.diff([*starts, length])
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(matrix, starts, axis=axis, dtype=np.float64)
    return sums / (counts[:, None] if axis == 0 else counts)
