"""The compiled inside of `fit`: many steps as one program, which stops by itself.

A chunk is a `while` on the device whose number of steps is an argument: one program serves chunks of every
length, and it ends early where the loss or a gradient is not finite, or where `until` comes true. Beside the
update stands nothing but a branch: where something is not finite the state stays as it was. Measured against
a hand-written `lax.scan` this costs nothing (`benchmarks/train.py`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._types import Array, PyTree
from ._feed import Feed
from ._step import Gradient, State, Step, row_of
from ._until import Until, ask
from ._watch import Watched

#: Why a chunk ended: it ran to its end, `until` came true, or something was not finite.
RUNNING, UNTIL, NONFINITE = 0, 1, 2


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


@dataclass(frozen=True, eq=False)
class Chunks:
    """The two compiled programs of a run: many plain steps (`many`), and one watched step (`watched`).

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
    until: Until | None
    check_finite: bool
    capacity: int
    jit: Callable[..., Any] = jax.jit

    @functools.cached_property
    def many(self) -> Callable[..., tuple[Carry, Landed]]:
        return self.jit(self.take_many, donate_argnums=0)

    @functools.cached_property
    def watched(self) -> Callable[..., tuple[Carry, Landed]]:
        return self.jit(self.take_watched, donate_argnums=0)

    def take_one(self, carry: Carry, source: PyTree, place: Array) -> tuple[Carry, dict[str, Array]]:
        """Take a step, or stay where something is not finite."""
        state = carry.state
        batch, order = self.feed.take(source, carry.order, state, place)
        found = self.step.gradient(state, *batch)
        row = row_of(found.loss, found.aux)
        fine, why = self.judge(state, found, row)
        if self.check_finite:
            # A branch, so that the update is made in place, and costs what it costs without.
            update = lambda state, found: self.step.update(state, found, *batch)  # noqa: E731
            state = jax.lax.cond(fine, update, lambda state, found: state, state, found)
        else:
            state = self.step.update(state, found, *batch)
        return Carry(state, order, why), row

    def take_many(self, carry: Carry, source: PyTree, place: Array, count: Array) -> tuple[Carry, Landed]:
        """Take `count` steps, or as many as go well."""
        one = jax.jit(self.take_one)  # traced once: for the types of the row, and for the loop
        types = jax.eval_shape(one, carry, source, place)[1]
        rows = {name: jnp.zeros(self.capacity, row.dtype) for name, row in types.items()}

        def more(loop: Any) -> Array:
            done, carry, _ = loop
            return (done < count) & (carry.why == RUNNING)

        def body(loop: Any) -> Any:
            done, carry, rows = loop
            carry, row = one(carry, source, place + done)
            rows = {name: rows[name].at[done].set(row[name]) for name in rows}
            return done + (carry.why != NONFINITE).astype(jnp.int32), carry, rows

        done, carry, rows = jax.lax.while_loop(more, body, (jnp.int32(0), carry, rows))
        return carry, Landed(rows, done, carry.why)

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


def is_finite(found: Gradient) -> Array:
    """Whether the loss and the whole gradient are finite: `0 * x` sums to zero unless some x is not."""
    parts = [jnp.sum(0 * x) for x in jax.tree.leaves((found.loss, found.grads))]
    return jnp.all(jnp.stack([part == 0 for part in parts]))
