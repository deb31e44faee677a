"""The compiled inside of `fit`: many steps as one program, which stops by itself.

A chunk is a `while` on the device whose number of steps is an argument: one program serves chunks of every
length, and it ends early where the loss or a gradient is not finite, or where `until` comes true. Where
something is not finite the state stays as it was: by a branch around the update, which then costs what it costs
without; or, where the state is a few numbers and a branch is as long as the step, by keeping the state before
it. Measured against a hand-written `lax.scan` this costs nothing (`benchmarks/train.py`). Which kind of chunk a
run has is seen from its program and its state, never from the clock: the numbers are the same in every run.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.types import Array, PyTree
from ..data.feed import Feed
from ..step.step import Gradient, State, Step, row_of
from ..step.watch import Watched
from .until import Condition, ask

#: Why a chunk ended: it ran to its end, `until` came true, or something was not finite.
RUNNING, UNTIL, NONFINITE = 0, 1, 2

#: What XLA for CPUs runs many times slower inside a loop or a branch (jax-ml/jax#12868).
_SLOW_IN_LOOPS = frozenset({"conv_general_dilated"})

#: Bytes of a state that is copied faster than a branch is taken.
_FEW = 64

#: Types of the numbers of a step, by name.
Types: TypeAlias = Mapping[str, jax.ShapeDtypeStruct]


class Carry(NamedTuple):
    """What goes from step to step. Donated from chunk to chunk.

    Attributes:
        state: the training state.
        order: in which order the data is read in this epoch, None where it is not shuffled.
        why: `RUNNING`, or why the run stopped: a chunk that begins with something else does nothing.
    """

    state: State
    order: Array | None
    why: Array


class Landed(NamedTuple):
    """What a chunk says of itself.

    Attributes:
        rows: one column for each number of a step, as long as a chunk may be; the first `steps` are filled.
            Where something was not finite, the row after them is that of the step that was not taken.
        steps: how many were taken.
        why: as in `Carry`.
        watched: what was watched, of a chunk of one watched step.
    """

    rows: dict[str, Array]
    steps: Array
    why: Array
    watched: Watched | None = None


@dataclass(eq=False)
class Chunks:
    """The compiled programs of a run: many plain steps (`many`), and one watched step (`watched`).

    Both are called as (carry, source, place, count) and give (carry, landed); the carry is donated.

    Attributes:
        step: what a step is.
        feed: where its batches come from.
        until: a condition on the row of each step, after which the run ends.
        check_finite: whether a step that is not finite is left out, and ends the run.
        capacity: how many steps a chunk may have.
        jit: how a program is compiled.
    """

    step: Step
    feed: Feed
    until: Condition | None
    check_finite: bool
    capacity: int
    jit: Callable[..., Any] = jax.jit
    _many: Callable[..., tuple[Carry, Landed]] | None = None

    def many(self, carry: Carry, source: PyTree, place: int, count: int) -> tuple[Carry, Landed]:
        """Take `count` steps, or as many as go well."""
        if self._many is None:
            kept = self.check_finite and _bytes(carry.state) <= _FEW
            # Compiled for its cache: traced once, for the types of the row and for the program.
            take = jax.jit(self.try_one if kept else functools.partial(self.take_one, looped=True))
            traced = take.trace(carry, source, jnp.int32(place))
            types = traced.out_info[1]
            loops = not (_on_cpu() and _SLOW_IN_LOOPS & _jaxpr.primitives(traced.jaxpr))
            self._many = self._in_a_loop(types, take, kept) if loops else self._one_by_one(types)
        return self._many(carry, source, np.int32(place), np.int32(count))

    @functools.cached_property
    def watched(self) -> Callable[..., tuple[Carry, Landed]]:
        return self.jit(self.take_watched, donate_argnums=0)

    def _in_a_loop(
        self, types: Types, take: Callable[..., tuple[Carry, dict[str, Array]]], kept: bool
    ) -> Callable[..., tuple[Carry, Landed]]:
        """A chunk as one program: a loop on the device. `kept`: `take` goes on, the state before it is kept."""

        def take_many(carry: Carry, source: PyTree, place: Array, count: Array) -> tuple[Carry, Landed]:
            def more(loop: Any) -> Array:
                tried, carry, _, _ = loop
                return (tried < count) & (carry.why == RUNNING)

            def body(loop: Any) -> Any:
                tried, carry, _, rows = loop
                new, row = take(carry, source, place + tried)
                return tried + 1, new, carry.state if kept else None, _put(rows, tried, row)

            start = (jnp.int32(0), carry, carry.state if kept else None, _empty(types, self.capacity))
            tried, carry, before, rows = jax.lax.while_loop(more, body, start)
            # Only the last step can be one that was not taken.
            failed = carry.why == NONFINITE
            if kept:
                carry = carry._replace(state=jax.lax.cond(failed, lambda: before, lambda: carry.state))
            return carry, Landed(rows, tried - failed.astype(jnp.int32), carry.why)

        return self.jit(take_many, donate_argnums=0)

    def _one_by_one(self, types: Types) -> Callable[..., tuple[Carry, Landed]]:
        """A chunk as a program for each step, sent off from here. Numbers gather on the device all the same."""

        def take_into(
            carry: Carry, rows: dict[str, Array], done: Array, source: PyTree, place: Array
        ) -> tuple[Carry, Any]:
            running = carry.why == RUNNING
            carry, row = self.take_one(carry, source, place + done, looped=False)
            # A step after the last changes nothing, and says what was said before.
            rows = _put(rows, done, row)
            taken = running & (carry.why != NONFINITE)
            return carry, (rows, done + taken.astype(jnp.int32), carry.why)

        program = self.jit(take_into, donate_argnums=(0, 1, 2))

        def chunk(carry: Carry, source: PyTree, place: Any, count: Any) -> tuple[Carry, Landed]:
            rows, why = _empty(types, self.capacity, np), carry.why
            done: Any = np.int32(0)
            for _ in range(count):
                carry, (rows, done, why) = program(carry, rows, done, source, place)
            return carry, Landed(rows, done, why)

        return chunk

    def take_one(
        self, carry: Carry, source: PyTree, place: Array, looped: bool
    ) -> tuple[Carry, dict[str, Array]]:
        """Take a step; or stay, where something is not finite or, outside of a loop, the run has stopped."""
        state, running = carry.state, carry.why == RUNNING
        batch, order, found, row, fine, why = self._look(carry, source, place)
        if self.may_stop and not looped:
            fine, why = fine & running, jnp.where(running, why, carry.why)
        if self.check_finite or (self.may_stop and not looped):
            # A branch, so that the update is made in place, and costs what it costs without.
            update = lambda state, found: self.step.update(state, found, *batch)  # noqa: E731
            state = jax.lax.cond(fine, update, lambda state, found: state, state, found)
        else:
            state = self.step.update(state, found, *batch)
        return Carry(state, order, why), row

    def try_one(self, carry: Carry, source: PyTree, place: Array) -> tuple[Carry, dict[str, Array]]:
        """Take a step, whatever comes of it: the caller has kept the state before."""
        batch, order, found, row, _, why = self._look(carry, source, place)
        return Carry(self.step.update(carry.state, found, *batch), order, why), row

    def _look(self, carry: Carry, source: PyTree, place: Array) -> Any:
        """The batch and the order after it, the gradient, the row, and what `judge` says."""
        batch, order = self.feed.take(source, carry.order, carry.state, place)
        found = self.step.gradient(carry.state, *batch)
        row = row_of(found.loss, found.aux)
        return batch, order, found, row, *self.judge(carry.state, found, row)

    @property
    def may_stop(self) -> bool:
        return self.check_finite or self.until is not None

    def take_watched(self, carry: Carry, source: PyTree, place: Array, count: Array) -> tuple[Carry, Landed]:
        """Take one step, watched. One that was sent off when the run had stopped does nothing."""
        del count
        state, running = carry.state, carry.why == RUNNING
        batch, order = self.feed.take(source, carry.order, state, place)
        found, tape = self.step.opened(state, *batch)
        row = row_of(found.loss, found.aux)
        fine, why = self.judge(state, found, row)
        fine, why = fine & running, jnp.where(running, why, carry.why)

        def update(state: State, found: Gradient) -> Any:
            return self.step.update_observed(state, found, *batch)

        def stay(state: State, found: Gradient) -> Any:
            norms = jax.eval_shape(update, state, found)[1]
            return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), norms)

        new, norms = jax.lax.cond(fine, update, stay, state, found)
        rows = {name: x[None] for name, x in row.items()}
        watched = self.step.observed(tape, norms, state)
        return Carry(new, order, why), Landed(rows, fine.astype(jnp.int32), why, watched)

    def judge(self, state: State, found: Gradient, row: dict[str, Array]) -> tuple[Array, Array]:
        """Whether a step may be taken, and why the run ends with it."""
        fine = is_finite(found) if self.check_finite else jnp.bool_(True)
        reached = jnp.bool_(False)
        if self.until is not None:
            reached = jnp.asarray(ask(self.until, {"step": state.step + jnp.int32(1), **row}), bool)
        why = jnp.where(fine, jnp.where(reached, UNTIL, RUNNING), NONFINITE)
        return fine, why.astype(jnp.int32)


def _bytes(state: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _empty(types: Types, capacity: int, numpy: Any = jnp) -> dict[str, Array]:
    return {name: numpy.zeros(capacity, struct.dtype) for name, struct in types.items()}


def _put(rows: dict[str, Array], at: Array, row: dict[str, Array]) -> dict[str, Array]:
    """Write the row of a step, at a place that is there."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=at, axis=0)
    return {name: put(rows[name], row[name]) for name in rows}


def is_finite(found: Gradient) -> Array:
    """Whether the loss and the whole gradient are finite: `0 * x` sums to zero unless some x is not."""
    parts = [jnp.sum(0 * x) == 0 for x in jax.tree.leaves((found.loss, found.grads))]
    return functools.reduce(jnp.logical_and, parts)
