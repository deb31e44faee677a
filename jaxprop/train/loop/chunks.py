"""The compiled part of `fit`: many steps as one program, which stops by itself.

A chunk is a `while` loop on the device whose number of steps is an argument: one program serves chunks of
every length, and it ends early if the loss or a gradient is not finite, or if `until` becomes true. If
something is not finite the state stays unchanged: by a branch around the update, which then costs the same as
without; or, if the state is a few numbers and a branch takes as long as the step, by keeping the previous
state. Compared with a hand-written `lax.scan` this costs nothing (`benchmarks/train.py`). Which kind of chunk a
run uses depends on its program and its state, never on the clock: the numbers are the same in every run.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from ... import _jaxpr
from ...core.types import Array, PyTree
from ..data.placement import Jit
from ..data.source import Batch, BatchSource, Order
from ..step.pure import PureStep
from ..step.state import Gradient, State
from ..watch.norms import LeafStatistics
from ..watch.watched import Watched
from .until import Condition, evaluate_condition

#: Why a chunk ended: it ran to its end, `until` became true, or something was not finite.
RUNNING, UNTIL, NONFINITE = 0, 1, 2

#: What XLA for CPUs runs many times slower inside a loop or a branch (jax-ml/jax#12868).
_SLOW_IN_LOOPS = frozenset({"conv_general_dilated"})

#: A state of at most this many bytes is copied faster than a branch is executed.
_SMALL_STATE = 64

#: The numbers of a step by name; in a chunk one column for each.
Row: TypeAlias = dict[str, Array]
#: The types of the numbers of a step.
RowTypes: TypeAlias = Mapping[str, jax.ShapeDtypeStruct]
Scalar: TypeAlias = Int[Array, ""]
#: A count, on the host or on the device.
Count: TypeAlias = Scalar | np.int32


class LoopCarry(NamedTuple):
    """What is passed from step to step, and donated from chunk to chunk.

    Attributes:
        state: The training state.
        order: The order in which the data is read in this epoch, None if it is not shuffled.
        status: `RUNNING`, or why the run stopped: a chunk that starts with anything else does nothing.
    """

    state: State
    order: Order | None
    status: Scalar


class ChunkResult(NamedTuple):
    """What a chunk reports.

    Attributes:
        rows: One column for each number of a step, as long as a chunk may be; the first `steps` rows are
            filled. If something was not finite, the next row is that of the step that was not taken.
        steps: How many steps were taken.
        status: As in `LoopCarry`.
        watched: What was watched, for a chunk of one watched step.
    """

    rows: Row
    steps: Count
    status: Scalar
    watched: Watched | None = None


#: A chunk: (carry, arrays, place, count) -> (carry, result). The carry is donated.
Chunk: TypeAlias = Callable[[LoopCarry, PyTree, Count, Count], tuple[LoopCarry, ChunkResult]]
#: The steps tried so far, the carry, the state before the last step if it is kept, and the rows so far.
Loop: TypeAlias = tuple[Scalar, LoopCarry, State | None, Row]


class Judged(NamedTuple):
    """A step that was computed but not taken: its batch, the order after it, its gradient, its numbers.

    Attributes:
        fine: Whether the step may be taken.
        status: Why the run ends with it, or `RUNNING`.
    """

    batch: Batch
    order: Order | None
    gradient: Gradient
    row: Row
    fine: Bool[Array, ""]
    status: Scalar


@dataclass(eq=False)
class Chunks:
    """The compiled programs of a run: `many` plain steps, and one `watched` step.

    Attributes:
        step: The stages of a step.
        source: Where its batches come from.
        until: A condition on the row of each step, after which the run ends.
        check_finite: Whether a step that is not finite is left out, and ends the run.
        capacity: How many steps a chunk may have.
        jit: Compiles a program.
    """

    step: PureStep
    source: BatchSource
    until: Condition | None
    check_finite: bool
    capacity: int
    jit: Jit = jax.jit
    _many: Chunk | None = None

    def many(
        self, carry: LoopCarry, arrays: PyTree, place: Count, count: Count
    ) -> tuple[LoopCarry, ChunkResult]:
        """Take `count` steps, or as many as are fine."""
        if self._many is None:
            self._many = self._compile(carry, arrays, place)
        return self._many(carry, arrays, place, count)

    @functools.cached_property
    def watched(self) -> Chunk:
        """Take one step, watched."""
        return self.jit(self.take_watched, donate_argnums=0)

    def _compile(self, carry: LoopCarry, arrays: PyTree, place: Count) -> Chunk:
        keeps_previous = self.check_finite and _byte_size(carry.state) <= _SMALL_STATE
        # Jitted for its cache: traced once, for the types of the row and for the program.
        one = self.take_anyway if keeps_previous else functools.partial(self.take_if_fine, looped=True)
        take = jax.jit(one)
        traced = take.trace(carry, arrays, jnp.int32(place))
        types: RowTypes = traced.out_info[1]
        if jax.default_backend() == "cpu" and _SLOW_IN_LOOPS & _jaxpr.primitives(traced.jaxpr):
            return self._one_by_one(types)
        return self._in_a_loop(types, take, keeps_previous)

    def _in_a_loop(
        self, types: RowTypes, take: Callable[..., tuple[LoopCarry, Row]], keeps_previous: bool
    ) -> Chunk:
        """A chunk as one program: a loop on the device."""

        def take_many(
            carry: LoopCarry, arrays: PyTree, place: Scalar, count: Scalar
        ) -> tuple[LoopCarry, ChunkResult]:
            def more(loop: Loop) -> Bool[Array, ""]:
                tried, carry, _, _ = loop
                return (tried < count) & (carry.status == RUNNING)

            def body(loop: Loop) -> Loop:
                tried, carry, _, rows = loop
                new, row = take(carry, arrays, place + tried)
                return tried + 1, new, carry.state if keeps_previous else None, _with_row(rows, tried, row)

            kept = carry.state if keeps_previous else None
            start = (jnp.int32(0), carry, kept, _empty_rows(types, self.capacity))
            tried, carry, previous, rows = jax.lax.while_loop(more, body, start)
            # Only the last step can be one that was not taken.
            failed = carry.status == NONFINITE
            if keeps_previous:
                carry = carry._replace(state=jax.lax.cond(failed, lambda: previous, lambda: carry.state))
            return carry, ChunkResult(rows, tried - failed.astype(jnp.int32), carry.status)

        return self.jit(take_many, donate_argnums=0)

    def _one_by_one(self, types: RowTypes) -> Chunk:
        """A chunk as one program per step, dispatched from here. The numbers still accumulate on the device."""

        def take_into(
            carry: LoopCarry, rows: Row, done: Scalar, arrays: PyTree, place: Scalar
        ) -> tuple[LoopCarry, tuple[Row, Scalar, Scalar]]:
            running = carry.status == RUNNING
            carry, row = self.take_if_fine(carry, arrays, place + done, looped=False)
            # A step after the last changes nothing, and its row is overwritten or not read.
            rows = _with_row(rows, done, row)
            taken = running & (carry.status != NONFINITE)
            return carry, (rows, done + taken.astype(jnp.int32), carry.status)

        program = self.jit(take_into, donate_argnums=(0, 1, 2))

        def chunk(
            carry: LoopCarry, arrays: PyTree, place: Count, count: Count
        ) -> tuple[LoopCarry, ChunkResult]:
            rows, status, done = _empty_rows(types, self.capacity, np), carry.status, np.int32(0)
            for _ in range(int(count)):
                carry, (rows, done, status) = program(carry, rows, done, arrays, place)
            return carry, ChunkResult(rows, done, status)

        return chunk

    # --- one step ------------------------------------------------------------------------------------

    def take_if_fine(
        self, carry: LoopCarry, arrays: PyTree, place: Scalar, looped: bool
    ) -> tuple[LoopCarry, Row]:
        """Take a step, unless something is not finite or, outside of a loop, the run has stopped."""
        state, running = carry.state, carry.status == RUNNING
        found = self._judged(carry, arrays, place)
        may_have_stopped = not looped and (self.check_finite or self.until is not None)
        if may_have_stopped:
            found = _only_if(running, found, carry.status)
        if self.check_finite or may_have_stopped:
            # A branch, so that the update is made in place, and costs the same as without.
            update = lambda state, gradient: self.step.update(state, gradient, *found.batch)  # noqa: E731
            state = jax.lax.cond(found.fine, update, lambda state, gradient: state, state, found.gradient)
        else:
            state = self.step.update(state, found.gradient, *found.batch)
        return LoopCarry(state, found.order, found.status), found.row

    def take_anyway(self, carry: LoopCarry, arrays: PyTree, place: Scalar) -> tuple[LoopCarry, Row]:
        """Take a step even if it is not finite: the caller keeps the previous state."""
        found = self._judged(carry, arrays, place)
        state = self.step.update(carry.state, found.gradient, *found.batch)
        return LoopCarry(state, found.order, found.status), found.row

    def _judged(self, carry: LoopCarry, arrays: PyTree, place: Scalar) -> Judged:
        batch, order = self.source.take(arrays, carry.order, carry.state, place)
        gradient = self.step.gradient(carry.state, *batch)
        row = gradient.row
        return Judged(batch, order, gradient, row, *self.judge(carry.state, gradient, row))

    def take_watched(
        self, carry: LoopCarry, arrays: PyTree, place: Scalar, count: Scalar
    ) -> tuple[LoopCarry, ChunkResult]:
        """Take one step, watched. If the run has stopped before, it does nothing."""
        del count
        state = carry.state
        batch, order = self.source.take(arrays, carry.order, state, place)
        gradient, tape = self.step.recorded_gradient(state, *batch)
        row = gradient.row
        judged = Judged(batch, order, gradient, row, *self.judge(state, gradient, row))
        found = _only_if(carry.status == RUNNING, judged, carry.status)

        def update(state: State, gradient: Gradient) -> tuple[State, LeafStatistics]:
            return self.step.watched_update(state, gradient, *batch)

        def stay(state: State, gradient: Gradient) -> tuple[State, LeafStatistics]:
            types = jax.eval_shape(update, state, gradient)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), types)

        new, statistics = jax.lax.cond(found.fine, update, stay, state, gradient)
        rows = {name: x[None] for name, x in row.items()}
        watched = self.step.report(tape, statistics, state)
        result = ChunkResult(rows, found.fine.astype(jnp.int32), found.status, watched)
        return LoopCarry(new, order, found.status), result

    def judge(self, state: State, gradient: Gradient, row: Row) -> tuple[Bool[Array, ""], Scalar]:
        """Return whether a step may be taken, and why the run ends with it."""
        fine = is_finite_gradient(gradient) if self.check_finite else jnp.bool_(True)
        reached = jnp.bool_(False)
        if self.until is not None:
            answer = evaluate_condition(self.until, {"step": state.step + jnp.int32(1), **row})
            reached = jnp.asarray(answer, bool)
        status = jnp.where(fine, jnp.where(reached, UNTIL, RUNNING), NONFINITE)
        return fine, status.astype(jnp.int32)


def _only_if(running: Bool[Array, ""], found: Judged, status: Scalar) -> Judged:
    """A step that is not taken either if the run has stopped before."""
    return found._replace(fine=found.fine & running, status=jnp.where(running, found.status, status))


def _byte_size(state: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _empty_rows(types: RowTypes, capacity: int, numpy: ModuleType = jnp) -> Row:
    return {name: numpy.zeros(capacity, struct.dtype) for name, struct in types.items()}


def _with_row(rows: Row, at: Scalar, row: Row) -> Row:
    """The columns with the row of a step written at an index within bounds."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=at, axis=0)
    return {name: put(rows[name], row[name]) for name in rows}


def is_finite_gradient(found: Gradient) -> Bool[Array, ""]:
    """Return whether the loss and the whole gradient are finite: `0 * x` sums to zero unless some x is not."""
    parts = [jnp.sum(0 * x) == 0 for x in jax.tree.leaves((found.loss, found.grads))]
    return functools.reduce(jnp.logical_and, parts)
