"""What was not finite in a step that was not taken."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._tape import Tape
from .._types import PyTree
from ._checks import listed
from ._history import Stop
from ._step import State, Step


def find_nonfinite(step: Step, state: State, batch: tuple[Any, ...], loss: float) -> Stop:
    """Say what was not finite: the gradient is taken once more, with a look inside where nodes are watched."""
    number = int(state.step)
    look = step.opened if step.watch is not None else lambda *args: (step.gradient(*args), None)
    found, tape = jax.jit(look)(state, *batch)
    grads, params = (_nonfinite(step.root, tree) for tree in (found.grads, state.params))
    node = None if tape is None else _first_nonfinite(tape)
    parts = [
        f"after {number} steps the loss is {loss}"
        + (" but its gradient is not finite" if np.isfinite(loss) else "")
    ]
    if grads:
        parts.append(f"not finite is the gradient of {listed(grads, 3)}")
    if params:
        parts.append(f"the update before left {listed(params, 3)} not finite")
    if node:
        parts.append(f"the first that is not finite is {node}")
    text = "; ".join(parts) + ". The step was not taken: the state is the one before it."
    return Stop("nonfinite", number, text, loss, grads, node)


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


def _first_nonfinite(tape: Tape) -> str | None:
    """The first value on the way out, else the first cotangent on the way back, whose `Summary` says so."""
    for side, entries in (("value", iter(tape)), ("cotangent", reversed(tape))):
        for entry in entries:
            if np.any(np.asarray(getattr(getattr(entry, side), "nonfinite", 0)) > 0):
                what = f"`{entry.name}`" if side == "value" else f"the cotangent of `{entry.name}`"
                return what + (f" at {entry.node.source}" if entry.node.source else "")
    return None
