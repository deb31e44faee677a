"""What a tape recorded of each value, as it is shown."""

import math
from collections.abc import Sequence

import jax
import numpy as np

from ... import _jaxpr
from ...core.graph import Value
from ...core.types import NodeIndex, PyTree, Shape, Steps, ValueId
from ...record.statistics import Summary
from ...record.tape import Entry, Tape
from .arrays import show_array, show_summary
from .scene import Shown

#: Steps of a scan shown one by one: at most, and at most over all values of a scene.
MOST_STEPS, ALL_STEPS = 64, 20_000


class Records:
    """The records of a tape, on the host.

    Attributes:
        shown: value and cotangent, by the id of the value.
        values: the values themselves, by id.
        taken: the fraction of steps in which the branch around a node was taken, by index of the node.
        kind: `full` or `summary`.
        loss: the returned value as text, "" if it is not one number.
        notes: what was left out.

    Raises:
        TypeError: the tape holds tracers.
        ValueError: the tape has a batch axis, from `vmap`.
    """

    def __init__(self, tape: Tape) -> None:
        _check_concrete(tape)
        entries = list(tape)
        hosted = jax.device_get(jax.tree.map(_without_keys, [(e.value, e.cotangent, e.taken) for e in entries]))
        places = tape.graph.places
        stepped = [places[entry.node.index].steps for entry in entries if places[entry.node.index].steps]
        self._most = min(MOST_STEPS, max(8, ALL_STEPS // max(1, 2 * len(stepped))))
        self.notes = self._notes(stepped)
        self.shown: dict[ValueId, tuple[Shown | None, Shown | None]] = {}
        self.values: dict[ValueId, np.ndarray] = {}
        self.taken: dict[NodeIndex, float] = {}
        self.kind = "full"
        for entry, (value, cotangent, taken) in zip(entries, hosted, strict=True):
            out = entry.node.outputs[entry.node.names.index(entry.name)]
            steps = places[entry.node.index].steps
            if _is_numeric(value):
                self.values[out.id] = np.asarray(value)
            self.shown[out.id] = self._show(out, value, steps, entry), self._show(out, cotangent, steps, entry)
            if taken is not None:
                self.taken[entry.node.index] = float(np.mean(taken))
        self.loss = _loss_text(tape.value)

    def _notes(self, stepped: Sequence[Steps]) -> tuple[str, ...]:
        longest = max(map(math.prod, stepped), default=0)
        return (f"{self._most} of {longest} steps are shown one by one.",) if longest > self._most else ()

    def _show(self, out: Value, x: object, steps: Steps, entry: Entry) -> Shown | None:
        if isinstance(x, Summary):
            self.kind = "summary"
            axes = _step_axes(np.shape(x.norm), steps, (), entry)
            return show_summary(x, axes, self._most, scalar=out.shape == ())
        if not _is_numeric(x):
            return None
        array = np.asarray(x)
        return show_array(array, _step_axes(array.shape, steps, out.shape, entry), self._most)


def _step_axes(shape: Shape, steps: Steps, own: Shape, entry: Entry) -> int:
    """The number of step axes of a record: all, or fewer if it is the same in every step of inner scans."""
    if shape == (*steps, *own):
        return len(steps)
    for count in range(len(steps)):
        if shape == (*steps[:count], *own):
            return count
    raise ValueError(
        f"the record of {entry.name!r} has shape {shape}, expected {(*steps, *own)}: the tape went through "
        "`vmap`, so it holds one record for each example. Draw one of them: "
        "`jax.tree.map(lambda x: x[0], tape)`."
    )


def _check_concrete(tape: Tape) -> None:
    if any(map(_jaxpr.is_tracer, jax.tree.leaves(tape))):
        raise TypeError(
            "the tape holds tracers instead of numbers, because `jax.jit` or another transformation is tracing "
            "it. Return the tape from the function and draw it outside, or draw `tape.graph`."
        )


def _without_keys(x: PyTree) -> PyTree:
    """Random keys have no numbers to show."""
    return None if _jaxpr.is_key(x) else x


def _is_numeric(x: object) -> bool:
    return isinstance(x, bool | int | float | complex | np.number | np.ndarray | np.bool_)


def _loss_text(value: PyTree) -> str:
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or np.ndim(leaves[0]) or not _is_numeric(np.asarray(leaves[0])):
        return ""
    return show_array(np.asarray(leaves[0]), 0, 1).text
