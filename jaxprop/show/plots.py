"""Plots of a tape and of a training run with matplotlib. Each takes and returns an `Axes`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import ArrayLike

from .. import _jaxpr
from ..core.selectors import Selector
from ..record.statistics import Summary
from ..record.tape import Entry, Tape
from .drawing import palette
from .drawing.text_metrics import dotted, middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL = "pip install 'jaxprop-toolkit[plots]'"
_LIGHT = palette.THEMES["light"]
_LINES = (
    _LIGHT["backward"],
    _LIGHT["forward"],
    _LIGHT["parameter"],
    _LIGHT["loss"],
    _LIGHT["bad"],
    _LIGHT["soft"],
)


def plot_gradient_flow(tape: Tape, nodes: Selector | None = None, ax: "Axes | None" = None) -> "Axes":
    """Plot gradient magnitude against depth: `|d loss / d value|`, in the order of the forward pass.

    The norm is the 2-norm of the whole array (over all steps of a scan), in units of the loss per unit of the
    value, on a logarithmic scale. Zeros are marked at the lower edge, non-finite norms at the upper edge.

    Args:
        tape: the tape; its recorder must keep cotangents or their `Summary`.
        nodes: which values; by default the differentiated arguments, in the order of their first use.
        ax: the axes to plot into; new ones by default.

    Returns:
        The `Axes`.

    Raises:
        ValueError: no cotangent was recorded for these values.
        ImportError: the extra `plots` is not installed.

    Source: Glorot and Bengio, Understanding the difficulty of training deep feedforward neural networks (2010),
    figure 7.
    """
    entries = _parameters(tape) if nodes is None else tape.find(nodes)
    norms = {entry.name: _norm_of(entry.cotangent) for entry in entries if entry.cotangent is not None}
    if not norms:
        raise ValueError("there is no gradient to plot: no cotangent was recorded for these values.")
    ax = _given_or_new(ax, max(4.0, 0.32 * len(norms) + 2))
    positions = np.arange(len(norms))
    values = np.array(list(norms.values()))
    good = np.isfinite(values) & (values > 0)
    shown = np.where(good, values, np.nan)
    ax.plot(positions, shown, "-", color=_LIGHT["weak"], linewidth=1, zorder=1)
    ax.plot(positions, shown, "o", color=_LIGHT["backward"], markersize=6, zorder=2)
    _mark(ax, positions[values == 0], 0.02, "v", "zero", _LIGHT["soft"])
    _mark(ax, positions[~np.isfinite(values)], 0.98, "X", "not finite", _LIGHT["bad"])
    if good.any():
        ax.set_yscale("log")
    ax.set_xticks(positions, _tick_labels(list(norms)), rotation=60, ha="right", fontsize=8)
    ax.set_ylabel("norm of d loss / d value")
    ax.set_xlabel("forward")
    ax.set_xlim(-0.6, len(norms) - 0.4)
    return _finished(ax, legend=not good.all())


def plot_through_time(tape: Tape, names: str | Sequence[str], ax: "Axes | None" = None) -> "Axes":
    """Plot the norm of a cotangent over the steps of a scan, to see where gradients vanish or explode.

    Args:
        tape: the tape; its recorder must keep cotangents or their `Summary`.
        names: a value inside a scan, or several of equal length. The steps of nested scans are flattened.
        ax: the axes to plot into; new ones by default.

    Returns:
        The `Axes`.

    Raises:
        KeyError: there is no such value on the tape.
        ValueError: it is not inside a scan, or its cotangent was not recorded.
        ImportError: the extra `plots` is not installed.
    """
    rows = {name: _norms_by_step(tape, name) for name in ([names] if isinstance(names, str) else names)}
    ax = _given_or_new(ax)
    for (name, norms), colour in zip(rows.items(), _cycle(), strict=False):
        steps = np.arange(len(norms))
        good = np.isfinite(norms) & (norms > 0)
        ax.plot(steps, np.where(good, norms, np.nan), ".-", color=colour, label=name, markersize=5)
        _mark(ax, steps[norms == 0], 0.02, "v", "zero", colour)
        _mark(ax, steps[~np.isfinite(norms)], 0.98, "X", "not finite", _LIGHT["bad"])
    if any((np.isfinite(norms) & (norms > 0)).any() for norms in rows.values()):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.locator_params(axis="x", integer=True)
    ax.set_ylabel("norm of d loss / d value")
    return _finished(ax, legend=True)


def plot_histogram(
    tape: Tape, name: str, what: str = "cotangent", bins: int = 60, ax: "Axes | None" = None
) -> "Axes":
    """Plot the distribution of the elements of a value or of its cotangent, with counts on a logarithmic scale.

    Args:
        tape: the tape; its recorder must keep the arrays.
        name: the name of the value.
        what: `cotangent` or `value`.
        bins: the number of bins.
        ax: the axes to plot into; new ones by default.

    Returns:
        The `Axes`.

    Raises:
        KeyError: there is no such value on the tape.
        ValueError: the tape holds only statistics of it, or nothing, or `what` is unknown.
        ImportError: the extra `plots` is not installed.
    """
    if what not in ("cotangent", "value"):
        raise ValueError(f"`what` must be 'cotangent' or 'value', got {what!r}.")
    x = getattr(tape[name], what)
    if x is None or isinstance(x, Summary):
        kept = "only statistics of it" if isinstance(x, Summary) else "none"
        raise ValueError(f"a histogram needs the {what} of {name!r}, but the tape holds {kept}.")
    numbers = _as_real(x).ravel()
    finite = numbers[np.isfinite(numbers)]
    ax = _given_or_new(ax)
    ax.hist(finite, bins=bins, color=_LIGHT["backward" if what == "cotangent" else "forward"], log=True)
    ax.axvline(0, color=_LIGHT["line"], linewidth=0.8, zorder=0)
    ax.set_xlabel(f"d loss / d {name}" if what == "cotangent" else name)
    ax.set_ylabel("count")
    ax.locator_params(axis="x", nbins=6)  # the labels of small numbers are long: more would overlap
    if len(finite) < len(numbers):
        missing = len(numbers) - len(finite)
        ax.set_title(f"{missing} of {len(numbers)} not finite", color=_LIGHT["bad"], fontsize=9)
    return _finished(ax)


def plot_history(
    history: Mapping[str, ArrayLike],
    names: Sequence[str] | None = None,
    log: bool = True,
    ax: "Axes | None" = None,
) -> "Axes":
    """Plot curves of a training run, as `fit` returns them.

    Args:
        history: numbers over time, by name; under `step`, if present, the steps at which they were taken.
        names: which curves; by default those whose name ends in `loss`, or all if there are none.
        log: whether the vertical scale is logarithmic; it is linear if a number is not positive.
        ax: the axes to plot into; new ones by default.

    Returns:
        The `Axes`.

    Raises:
        KeyError: there is no such curve.
        ValueError: a curve and the steps differ in length.
        ImportError: the extra `plots` is not installed.
    """
    steps = history.get("step")
    curves = {name: np.asarray(row, float) for name, row in history.items() if name != "step"}
    if names is None:
        names = [name for name in curves if name.split("/")[-1].endswith("loss")] or list(curves)
    missing = [name for name in names if name not in curves]
    if missing:
        raise KeyError(f"the history has no curve {missing[0]!r}. Available curves: {', '.join(curves)}.")
    ax = _given_or_new(ax)
    for name, colour in zip(names, _cycle(), strict=False):
        curve = curves[name]
        at = np.arange(len(curve)) if steps is None else np.asarray(steps)
        if len(at) != len(curve):
            raise ValueError(f"the curve {name!r} has {len(curve)} numbers, but `step` has {len(at)}.")
        known = ~np.isnan(curve)  # a loss that is evaluated every few steps has gaps
        ax.plot(at[known], curve[known], color=colour, label=name, linewidth=1.4)
    if log and all(np.nanmin(curves[name], initial=np.inf) > 0 for name in names):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    return _finished(ax, legend=True)


# --- helpers ---------------------------------------------------------------------------------------


def _given_or_new(ax: "Axes | None", wide: float = 6.4) -> "Axes":
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"plots need matplotlib, which is not installed: {INSTALL}") from error
    return pyplot.subplots(figsize=(min(wide, 16.0), 4.0), layout="constrained")[1] if ax is None else ax


def _finished(ax: "Axes", legend: bool = False) -> "Axes":
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=_LIGHT["faint"], linewidth=0.8)
    ax.set_axisbelow(True)
    if legend:
        ax.legend(frameon=False, fontsize=8)
    return ax


def _mark(ax: "Axes", positions: np.ndarray, height: float, sign: str, label: str, colour: str) -> None:
    if len(positions):
        heights = np.full(len(positions), height)
        ax.plot(
            positions, heights, sign, color=colour, label=label, markersize=6, clip_on=False,
            transform=ax.get_xaxis_transform(),
        )  # fmt: skip


def _tick_labels(names: Sequence[str]) -> list[str]:
    """The last keys of paths into arguments, unless two of them would then be the same."""
    short = [dotted(name) for name in names]
    return [middle(name, 28) for name in (short if len(set(short)) == len(short) else names)]


def _cycle() -> list[str]:
    return list(_LINES) * 16


def _parameters(tape: Tape) -> list[Entry]:
    """The differentiated arguments, in the order of their first use."""
    heads = {
        value.id: value.name for node in tape.graph.heads for value in node.outputs if node.primitive == "input"
    }
    used = dict.fromkeys(v.id for node in tape.graph.equations() for v in node.operands if v.id in heads)
    return [tape[heads[id_]] for id_ in used if heads[id_] in tape]


def _norm_of(x: ArrayLike | Summary) -> float:
    if isinstance(x, Summary):
        return float(np.sqrt(np.sum(np.asarray(x.norm, np.float64) ** 2)))
    return float(np.linalg.norm(_as_real(x).ravel()))


def _norms_by_step(tape: Tape, name: str) -> np.ndarray:
    entry = tape[name]
    steps = tape.graph.places[entry.node.index].steps
    if not steps:
        raise ValueError(f"{name!r} is not inside a scan, so it has no steps.")
    if entry.cotangent is None:
        raise ValueError(f"the cotangent of {name!r} was not recorded, or none reaches it.")
    if isinstance(entry.cotangent, Summary):
        return np.asarray(entry.cotangent.norm, np.float64).reshape(math.prod(steps))
    return np.linalg.norm(_as_real(entry.cotangent).reshape(math.prod(steps), -1), axis=1)


def _as_real(x: ArrayLike) -> np.ndarray:
    """Convert to float64 on the host; complex numbers to their absolute values."""
    if _jaxpr.is_tracer(x):
        raise ValueError("the tape holds tracers instead of numbers: plot it outside `jax.jit`.")
    array = np.asarray(jax.device_get(x))
    return np.abs(array).astype(np.float64) if array.dtype.kind == "c" else array.astype(np.float64)
