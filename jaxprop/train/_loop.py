"""The compiled inside of `fit`: many steps as one program, which stops by itself.

A chunk is a `while` on the device whose number of steps is an argument: one program serves chunks of every
length, and it ends early where the loss or a gradient is not finite, or where `until` comes true. Beside the
update stands nothing but a branch: where something is not finite the state stays as it was. Measured against
a hand-written `lax.scan` this costs nothing (`benchmarks/train.py`).
"""

from collections.abc import Callable
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


class Chunks(NamedTuple):
    """The two compiled programs: many plain steps, and one watched step.

    Both are called as (carry, source, place, count) and give (carry, landed).
    """

    plain: Callable[..., tuple[Carry, Landed]]
    watched: Callable[..., tuple[Carry, Landed]]


def make_chunks(
    step: Step,
    feed: Feed,
    until: Until | None,
    check_finite: bool,
    capacity: int,
    jit: Callable[..., Any] = jax.jit,
) -> Chunks:
    """Compile chunks of at most `capacity` steps."""

    def judge(state: State, found: Gradient, row: dict[str, Array]) -> tuple[Array, Array]:
        fine = is_finite(found) if check_finite else jnp.bool_(True)
        reached = jnp.bool_(False)
        if until is not None:
            reached = jnp.asarray(ask(until, {"step": state.step + jnp.int32(1), **row}), bool)
        return fine, jnp.where(fine, jnp.where(reached, UNTIL, RUNNING), NONFINITE).astype(jnp.int32)

    def keep_or(
        may_stop: bool, update: Callable[..., Any], fine: Array, state: State, found: Gradient, batch: Any
    ) -> Any:
        """Update, or stay where something is not finite. A branch, so that the update is made in place."""
        if not may_stop:
            return update(state, found, *batch)
        shapes = jax.eval_shape(update, state, found, *batch)

        def stay(state: State, _: Gradient) -> Any:
            if isinstance(shapes, State):
                return state
            return state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[1])

        return jax.lax.cond(fine, lambda s, f: update(s, f, *batch), stay, state, found)

    def one(carry: Carry, source: PyTree, place: Array) -> tuple[Carry, dict[str, Array]]:
        batch, order = feed.take(source, carry.order, carry.state, place)
        found = step.gradient(carry.state, *batch)
        row = row_of(found.loss, found.aux)
        fine, why = judge(carry.state, found, row)
        return Carry(keep_or(check_finite, step.update, fine, carry.state, found, batch), order, why), row

    def plain(carry: Carry, source: PyTree, place: Array, count: Array) -> tuple[Carry, Landed]:
        shapes = jax.eval_shape(one, carry, source, place)[1]
        rows = {name: jnp.zeros(capacity, s.dtype) for name, s in shapes.items()}

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

    def watched(carry: Carry, source: PyTree, place: Array, count: Array) -> tuple[Carry, Landed]:
        del count  # one
        start = carry.state
        batch, order = feed.take(source, carry.order, start, place)
        found, tape = step.opened(start, *batch)
        row = row_of(found.loss, found.aux)
        fine, why = judge(carry.state, found, row)
        # A chunk that was ahead when the run stopped does nothing.
        fine &= carry.why == RUNNING
        why = jnp.where(carry.why == RUNNING, why, carry.why)
        state, norms = keep_or(
            check_finite or until is not None, step.update_observed, fine, start, found, batch
        )
        landed = Landed({k: v[None] for k, v in row.items()}, fine.astype(jnp.int32), why)
        return Carry(state, order, why), landed._replace(watched=step.observed(tape, norms, start))

    return Chunks(jit(plain, donate_argnums=0), jit(watched, donate_argnums=0))


def is_finite(found: Gradient) -> Array:
    """Whether the loss and the whole gradient are finite: `0 * x` sums to zero unless some x is not."""
    parts = [jnp.sum(0 * x) for x in jax.tree.leaves((found.loss, found.grads))]
    return jnp.all(jnp.stack([part == 0 for part in parts]))
