"""The numbers of a step as a flat row, as writers take it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import PyTree
from ...record.statistics import Summary
from ..watch.histogram import Histogram, over_steps
from .watched_history import StepNumbers, growth


def plain_array(x: np.ndarray) -> np.ndarray:
    """Return an array of a dtype that NumPy has itself."""
    x = np.asarray(x)
    return x if x.dtype.kind in "fiub" and x.dtype.itemsize >= 4 else x.astype(np.float32)


def flat_numbers(numbers: StepNumbers) -> dict[str, float]:
    """Return what was watched in one step as flat names and numbers: `h/cotangent/norm`, `params['w']/ratio`.

    What is NaN because it was not recorded or is undefined (the ratio to a parameter that is zero, the mean of
    an empty array) is left out.
    """
    row: dict[str, float] = {}
    for name, sides in numbers.values.items():
        for side, record in sides._asdict().items():
            found = _of_summary(record) if isinstance(record, Summary) else _real_scalars(record)
            row |= {"/".join(filter(None, (name, side, last))): x for last, x in found.items()}
        if isinstance(sides.cotangent, Summary) and not np.isnan(factor := growth(sides.cotangent.norm)):
            row[f"{name}/cotangent/growth"] = float(factor)
    for name, attention in numbers.attention.items():
        row[f"{name}/attention/logit"] = float(np.max(attention.logit))
        row[f"{name}/attention/entropy"] = float(np.mean(attention.entropy))
    for group, norms in (("", numbers.leaves), ("per_example/", numbers.per_example)):
        for path, leaf in norms.items():
            row |= {f"{path}/{group}{kind}": float(x) for kind, x in leaf._asdict().items() if not np.isnan(x)}
    return row


def histograms_of(numbers: StepNumbers) -> dict[str, Histogram]:
    """Return the histograms of a step by name, those of all steps of a scan as one."""
    return {name: over_steps(found) for name, found in numbers.histograms.items()}


def _of_summary(s: Summary) -> dict[str, float]:
    """The statistics that have a value: those of an empty array are NaN although no number in it is."""
    numbers = {name: float(x) for name, x in _over_scan_steps(s)._asdict().items()}
    return {name: x for name, x in numbers.items() if x == x or numbers["nonfinite"] > 0}


def _real_scalars(record: PyTree) -> dict[str, float]:
    """The real numbers in what a recorder returned, by their path."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(record):
        dtype = getattr(leaf, "dtype", np.dtype(type(leaf)))
        if np.ndim(leaf) == 0 and any(map(jnp.issubdtype, [dtype] * 3, [jnp.floating, jnp.integer, jnp.bool_])):
            found[jax.tree_util.keystr(path, simple=True, separator="/")] = float(np.asarray(leaf))
    return found


def _over_scan_steps(s: Summary) -> Summary:
    """The summary of all steps of a scan together. All arrays have one size, so it is exact."""
    if not np.ndim(s.norm):
        return s
    whole: dict[str, Any] = {
        "norm": np.sqrt(np.sum(np.square(s.norm))),
        "rms": np.sqrt(np.mean(np.square(s.rms))),
        "mean": np.mean(s.mean),
        "min": np.min(s.min),
        "max": np.max(s.max),
        "zeros": np.mean(s.zeros),
        "nonfinite": np.sum(s.nonfinite),
    }
    return Summary(**whole)
