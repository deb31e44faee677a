"""Plots of a tape and of a run, with matplotlib: each takes and returns an `Axes`."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import _jaxpr
from ..core.selectors import Selector
from ..record.statistics import Summary
from ..record.tape import Entry, Tape
from .drawing import palette
from .drawing.text_metrics import middle

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


def plot_gradient_flow(tape: Tape, nodes: Selector | None = None, ax: Any = None) -> Any:
    """Plot how large gradients are by depth: `|d loss / d value|`, in the order of the forward pass.

    The norm is the 2-norm of the whole array (all steps of a scan together), in units of the loss per unit of
    the value, on a logarithmic scale. Zeros stand at the lower edge, non-finite norms at the upper one, each
    with a sign of its own.

    Args:
        tape: of any recorder that keeps cotangents or their `Summary`.
        nodes: whose; by default the differentiated arguments, in the order in which they are first read.
        ax: where to plot; a new one by default.

    Returns:
        The `Axes`.

    Raises:
        ValueError: no cotangent was recorded there.
        ImportError: the extra `plots` is not installed.

    Source: the usual picture of He et al. 2015, Glorot and Bengio 2010 (figure 7).
    """
    entries = _parameters(tape) if nodes is None else tape.find(nodes)
    norms = {entry.name: _norm(entry.cotangent) for entry in entries if entry.cotangent is not None}
    if not norms:
        raise ValueError("no cotangent was recorded of these values, so there is no gradient to plot.")
    ax = _axes(ax, max(4.0, 0.32 * len(norms) + 2))
    places = np.arange(len(norms))
    values = np.array(list(norms.values()))
    good = np.isfinite(values) & (values > 0)
    shown = np.where(good, values, np.nan)
    ax.plot(places, shown, "-", color=_LIGHT["weak"], linewidth=1, zorder=1)
    ax.plot(places, shown, "o", color=_LIGHT["backward"], markersize=6, zorder=2)
    _mark(ax, places[values == 0], 0.02, "v", "zero", _LIGHT["soft"])
    _mark(ax, places[~np.isfinite(values)], 0.98, "X", "not finite", _LIGHT["bad"])
    if good.any():
        ax.set_yscale("log")
    ax.set_xticks(places, [_short(name) for name in norms], rotation=60, ha="right", fontsize=8)
    ax.set_ylabel("norm of d loss / d value")
    ax.set_xlabel("forward")
    ax.set_xlim(-0.6, len(norms) - 0.4)
    return _finished(ax, legend=not good.all())


def plot_through_time(tape: Tape, names: str | Sequence[str], ax: Any = None) -> Any:
    """Plot the norm of a cotangent over the steps of a scan: where gradients vanish or explode through time.

    Args:
        names: a value inside a scan, or several of one length. Of nested scans the steps are counted through.
        ax: where to plot; a new one by default.

    Raises:
        KeyError: there is no such value on the tape.
        ValueError: it is not inside a scan, or no cotangent was recorded of it.
        ImportError: the extra `plots` is not installed.
    """
    rows = {name: _norms_by_step(tape, name) for name in ([names] if isinstance(names, str) else names)}
    ax = _axes(ax)
    for (name, norms), colour in zip(rows.items(), _cycle(), strict=False):
        steps = np.arange(len(norms))
        good = np.isfinite(norms) & (norms > 0)
        ax.plot(steps, np.where(good, norms, np.nan), ".-", color=colour, label=name, markersize=5)
        _mark(ax, steps[norms == 0], 0.02, "v", "zero", colour)
        _mark(ax, steps[~np.isfinite(norms)], 0.98, "X", "not finite", _LIGHT["bad"])
    if any((np.isfinite(norms) & (norms > 0)).any() for norms in rows.values()):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("norm of d loss / d value")
    return _finished(ax, legend=True)


def plot_histogram(tape: Tape, name: str, what: str = "cotangent", bins: int = 60, ax: Any = None) -> Any:
    """Plot the distribution of the numbers of a value or of its cotangent; counts on a logarithmic scale.

    Args:
        name: of the value.
        what: `cotangent` or `value`.
        bins: how many bins.
        ax: where to plot; a new one by default.

    Raises:
        KeyError: there is no such value on the tape.
        ValueError: the tape holds statistics of it only, or nothing, or `what` is neither.
        ImportError: the extra `plots` is not installed.
    """
    if what not in ("cotangent", "value"):
        raise ValueError(f"what={what!r} is neither 'cotangent' nor 'value'.")
    x = getattr(tape[name], what)
    if x is None or isinstance(x, Summary):
        kept = "statistics only" if isinstance(x, Summary) else "none"
        raise ValueError(f"a histogram needs the numbers of the {what} of {name!r}; the tape holds {kept}.")
    numbers = _real(x).ravel()
    finite = numbers[np.isfinite(numbers)]
    ax = _axes(ax)
    ax.hist(finite, bins=bins, color=_LIGHT["backward" if what == "cotangent" else "forward"], log=True)
    ax.axvline(0, color=_LIGHT["line"], linewidth=0.8, zorder=0)
    ax.set_xlabel(f"d loss / d {name}" if what == "cotangent" else name)
    ax.set_ylabel("count")
    ax.locator_params(axis="x", nbins=6)  # small numbers are long: more would run into one another
    if len(finite) < len(numbers):
        missing = len(numbers) - len(finite)
        ax.set_title(f"{missing} of {len(numbers)} not finite", color=_LIGHT["bad"], fontsize=9)
    return _finished(ax)


def plot_history(
    history: Mapping[str, Any], names: Sequence[str] | None = None, log: bool = True, ax: Any = None
) -> Any:
    """Plot curves of a run, as `fit` returns them.

    Args:
        history: names to numbers over time; under `step`, if there, at which steps.
        names: which curves; by default all whose name ends in `loss`, or all, if there are none.
        log: whether the vertical scale is logarithmic; where a number is not positive it is not.
        ax: where to plot; a new one by default.

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
        raise KeyError(f"the history has no curve {missing[0]!r}. Curves there are: {', '.join(curves)}.")
    ax = _axes(ax)
    for name, colour in zip(names, _cycle(), strict=False):
        curve = curves[name]
        at = np.arange(len(curve)) if steps is None else np.asarray(steps)
        if len(at) != len(curve):
            raise ValueError(f"the curve {name!r} has {len(curve)} numbers, `step` has {len(at)}.")
        known = ~np.isnan(curve)  # a loss that is measured now and then has gaps
        ax.plot(at[known], curve[known], color=colour, label=name, linewidth=1.4)
    if log and all(np.nanmin(curves[name], initial=np.inf) > 0 for name in names):
        ax.set_yscale("log")
    ax.set_xlabel("step")
    return _finished(ax, legend=True)


# --- helpers ---------------------------------------------------------------------------------------


def _axes(ax: Any, wide: float = 6.4) -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(f"plots are drawn with matplotlib, which is not installed: {INSTALL}") from error
    return pyplot.subplots(figsize=(min(wide, 16.0), 4.0), layout="constrained")[1] if ax is None else ax


def _finished(ax: Any, legend: bool = False) -> Any:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color=_LIGHT["faint"], linewidth=0.8)
    ax.set_axisbelow(True)
    if legend:
        ax.legend(frameon=False, fontsize=8)
    return ax


def _mark(ax: Any, places: Any, height: float, sign: str, label: str, colour: str) -> None:
    if len(places):
        heights = np.full(len(places), height)
        ax.plot(
            places, heights, sign, color=colour, label=label, markersize=6, clip_on=False,
            transform=ax.get_xaxis_transform(),
        )  # fmt: skip


def _short(name: str) -> str:
    """`params['blocks'][0]['w']` as `blocks.0.w`; other names as they are, without their middle."""
    keys = re.findall(r"\['?([^\]']+)'?\]", name)
    return middle(".".join(keys) if keys and "/" not in name else name, 28)


def _cycle() -> list[str]:
    return list(_LINES) * 16


def _parameters(tape: Tape) -> list[Entry]:
    """The differentiated arguments, in the order in which they are first read."""
    heads = {
        value.id: value.name for node in tape.graph.heads for value in node.outputs if node.primitive == "input"
    }
    read = dict.fromkeys(v.id for node in tape.graph.equations() for v in node.operands if v.id in heads)
    return [tape[heads[id_]] for id_ in read if heads[id_] in tape]


def _norm(x: Any) -> float:
    if isinstance(x, Summary):
        return float(np.sqrt(np.sum(np.asarray(x.norm, np.float64) ** 2)))
    return float(np.linalg.norm(_real(x).ravel()))


def _norms_by_step(tape: Tape, name: str) -> np.ndarray[Any, Any]:
    entry = tape[name]
    steps = math.prod(tape.graph.places[entry.node.index].steps)
    if not tape.graph.places[entry.node.index].steps:
        raise ValueError(f"{name!r} is not inside a scan, so it has no steps.")
    if entry.cotangent is None:
        raise ValueError(f"no cotangent of {name!r} was recorded, or none comes to it.")
    if isinstance(entry.cotangent, Summary):
        return np.asarray(entry.cotangent.norm, np.float64).reshape(steps)
    return np.linalg.norm(_real(entry.cotangent).reshape(steps, -1), axis=1)


def _real(x: Any) -> np.ndarray[Any, Any]:
    """Numbers as float64 on the host, complex ones by their size."""
    if _jaxpr.is_tracer(x):
        raise ValueError("the tape holds tracers, no numbers yet: plot it outside of `jax.jit`.")
    array = np.asarray(jax.device_get(x))
    return np.abs(array).astype(np.float64) if array.dtype.kind == "c" else array.astype(np.float64)
