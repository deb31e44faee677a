"""What was not finite in a step that was not taken, and who made it so."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._text import listed
from ...core.types import PyTree
from ...diagnosis import Report, explain_bad_step
from ..step.step import State, Step
from .history import Stop


def find_nonfinite(
    step: Step, state: State, batch: tuple[Any, ...], loss: float, save: str | Path | None = None
) -> Stop:
    """Say what was not finite and who made it; `save` is a file for what the loss was called with."""
    number = int(state.step)
    found = jax.jit(step.gradient)(state, *batch)
    grads, params = (_nonfinite(step.root, tree) for tree in (found.grads, state.params))
    report, hindered = _diagnosed(step, state, batch, save)
    parts = [
        f"after {number} step{'s' * (number != 1)} the loss is {loss}"
        + (" but its gradient is not finite" if np.isfinite(loss) else "")
    ]
    if grads:
        parts.append(f"not finite is the gradient of {listed(grads, 3)}")
    if params:
        parts.append(f"the update before left {listed(params, 3)} not finite")
    said = "" if report is None else _first_origin(report)
    text = f"{'; '.join(parts)}. The step was not taken: the state is the one before it.{said}{hindered}"
    return Stop("nonfinite", number, text, loss, grads, report)


def _diagnosed(
    step: Step, state: State, batch: tuple[Any, ...], save: str | Path | None
) -> tuple[Report | None, str]:
    """The report, or what was in its way. A run that has found its way here must not lose its state to it."""
    args, kwargs = (state.params, *batch), step.extras(state)
    if not all(map(_at_hand, jax.tree.leaves((args, kwargs)))):
        return None, " It was not diagnosed: other processes hold some of the arrays."
    try:
        return explain_bad_step(step.loss, *args, has_aux=step.paired, save=save, **kwargs), ""
    except Exception as error:
        lines = str(error).splitlines() or [""]
        return None, f" It could not be diagnosed: {type(error).__name__}: {lines[0]}"


def _first_origin(report: Report) -> str:
    for found in report:
        if found.kind == "origin" and found.severity == "error":
            place = f" ({found.place})" if found.place else ""
            return f" {found.message[:-1]}{place}. `history.stop.report` says more."
    return ""


def _at_hand(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _nonfinite(root: str, tree: PyTree) -> tuple[str, ...]:
    return tuple(
        root + jax.tree_util.keystr(path)
        for path, fine in jax.tree_util.tree_leaves_with_path(_finite(tree))
        if not fine
    )


@jax.jit
def _finite(tree: PyTree) -> PyTree:
    """One flag for each array, wherever its parts lie."""
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)
