"""A step that was not taken because something was not finite: what it was, and which operation produced it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..._text import listed, one_line, plural
from ...core.types import PyTree
from ...diagnosis import Report, explain_bad_step
from ..data.source import Batch
from ..step.pure import PureStep
from ..step.state import State
from .history import Stop


def explain_nonfinite(
    step: PureStep, state: State, batch: Batch, loss: float, save: str | Path | None = None
) -> Stop:
    """Diagnose a step whose loss or gradient was not finite.

    Args:
        step: The stages of a step.
        state: The state before it.
        batch: Its batch.
        loss: Its loss.
        save: A file for everything the loss was called with.
    """
    number = int(state.step)
    grads = jax.jit(step.gradient)(state, *batch).grads
    leaves, params = (_nonfinite_leaves(step.objective.root, tree) for tree in (grads, state.params))
    report, obstacle = _diagnosed(step, state, batch, save)
    parts = [
        f"after {plural(number, 'step')} the loss is {loss}"
        + (" but its gradient is not finite" if np.isfinite(loss) else "")
    ]
    if leaves:
        parts.append(f"the gradient of {listed(leaves, 3)} is not finite")
    if params:
        parts.append(f"the previous update left {listed(params, 3)} not finite")
    origin = "" if report is None else _first_origin(report)
    text = f"{'; '.join(parts)}. The step was not taken: the state is the one before it.{origin}{obstacle}"
    return Stop("nonfinite", number, text, loss, leaves, report)


def _diagnosed(
    step: PureStep, state: State, batch: Batch, save: str | Path | None
) -> tuple[Report | None, str]:
    """The report, or why there is none. A diagnosis that fails must not cost the run its state."""
    loss, keywords = step.objective.loss, step.objective.keywords(state)
    args = (state.params, *batch)
    if not all(map(_is_local, jax.tree.leaves((args, keywords)))):
        return None, " It was not diagnosed, because other processes hold some of the arrays."
    try:
        return explain_bad_step(loss, *args, has_aux=step.objective.paired, save=save, **keywords), ""
    except Exception as error:
        return None, f" It could not be diagnosed: {one_line(error)}"


def _first_origin(report: Report) -> str:
    for found in report:
        if found.kind == "origin" and found.severity == "error":
            place = f" ({found.place})" if found.place else ""
            return f" {found.message[:-1]}{place}. For more, see `history.stop.report`."
    return ""


def _is_local(x: object) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable


def _nonfinite_leaves(root: str, tree: PyTree) -> tuple[str, ...]:
    return tuple(
        root + jax.tree_util.keystr(path)
        for path, finite in jax.tree_util.tree_leaves_with_path(_finite_flags(tree))
        if not finite
    )


@jax.jit
def _finite_flags(tree: PyTree) -> PyTree:
    """One flag for each array, however it is sharded."""
    return jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)
