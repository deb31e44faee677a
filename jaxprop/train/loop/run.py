"""One run: chunks are dispatched one ahead of the results, and what is due happens between them."""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._text import one_line, plural
from ..checkpoint.checkpoint import CheckpointError
from ..data.placement import agree
from ..data.source import BatchGroup, BatchSource
from ..step.pure import PureStep
from ..step.state import State
from ..writers.group import WriterGroup
from .bad_step import explain_nonfinite
from .chunks import NONFINITE, UNTIL, ChunkResult, Chunks, LoopCarry
from .evaluate import Evaluate
from .history import History, HistoryBuilder, Stop
from .interrupts import interrupts_held
from .resume import Save
from .rows import flat_numbers, histograms_of, plain_array
from .schedule import Pace, Schedule
from .until import Condition, evaluate_condition
from .watched_history import step_numbers


class PendingChunk(NamedTuple):
    """A chunk that was dispatched: the number of steps before it, its data, and its result to come."""

    begin: int
    group: BatchGroup
    result: ChunkResult


@dataclass(frozen=True)
class SideEffects:
    """Everything a run does besides computing, all of it between two chunks.

    Attributes:
        writers: Take the rows.
        evaluate: Computes the means over the evaluation data.
        save: Saves a checkpoint.
        until: A condition on what was evaluated.
        log_every: Write the row of each multiple of so many steps; None: of the last step of each chunk.
        bad_step: A file for everything the loss was called with in the first bad step; None for none.
    """

    writers: WriterGroup
    evaluate: Evaluate | None = None
    save: Save | None = None
    until: Condition | None = None
    log_every: int | None = None
    bad_step: str | Path | None = None


@dataclass
class TrainingRun:
    """The part of a run that is on the host.

    Attributes:
        step: The stages of a step.
        source: Where the batches come from.
        schedule: When something is due.
        chunks: The compiled programs.
        effects: What the run does besides computing.
        carry: The newest state; its computation may not have finished.
        done: The number of steps dispatched.
        history: The history so far.
        deadline: When to stop, by `time.monotonic()`.
    """

    step: PureStep
    source: BatchSource
    schedule: Schedule
    chunks: Chunks
    effects: SideEffects
    carry: LoopCarry
    done: int
    history: HistoryBuilder
    deadline: float | None = None
    pace: Pace = field(default_factory=Pace)
    pending: deque[PendingChunk] = field(default_factory=deque)
    last: dict[str, float] = field(default_factory=dict)
    stop: Stop | None = None

    def __post_init__(self) -> None:
        self._started_at = self.done

    def go(self) -> Stop:
        """Dispatch chunks and take in their results until the run ends."""
        try:
            self._announce()
            while self.stop is None:
                self.advance()
            if self.effects.save is not None:
                self.effects.save(self.done, self.carry.state, {}, True)
            self._announce()
        except BaseException as error:
            self.abandon(error)
            raise
        return self.stop

    def _announce(self) -> None:
        """Show what is worth knowing about the data, once."""
        for note in self.source.notes:
            if note not in self.history.notes:
                self.history.notes.append(note)
                self.effects.writers.note(note)

    def result(self, stop: Stop) -> History:
        """Return the history of the run."""
        return self.history.finish(stop)

    def advance(self) -> None:
        """Dispatch a chunk, take in the result of the one before, and do what is due."""
        most = agree(self.pace.most)
        count = self.schedule.steps(self.done, most)
        group = self.source.next(self.done, count, most) if count else None
        if group is None:
            self.end(self._end_of_data(count))
            return
        self.dispatch(group)
        self.collect(but=1)
        self.do_what_is_due(group)
        if self.stop is None and self.deadline is not None and agree(time.monotonic() > self.deadline):
            self.end(Stop("seconds", self.done, f"time limit reached after {plural(self.done, 'step')}."))

    def dispatch(self, group: BatchGroup) -> None:
        """Start a chunk; returns at once."""
        chunk = self.chunks.watched if self.schedule.watches(self.done) else self.chunks.many
        with interrupts_held():  # the old state is donated: the new one must be stored
            place, count = np.int32(group.place), np.int32(group.steps)
            self.carry, result = chunk(self.carry, group.arrays, place, count)
            self.pending.append(PendingChunk(self.done, group, result))
            self.done += group.steps

    def collect(self, but: int = 0) -> None:
        """Wait for the pending chunks, except for the last `but`, and take in their results."""
        while len(self.pending) > but and self.stop is None:
            self.take_in(self.pending[0])

    def end(self, stop: Stop) -> None:
        """End the run, unless a pending chunk ended it before."""
        self.collect()
        self.stop = self.stop or stop

    def _end_of_data(self, count: int) -> Stop:
        if count == 0:
            return Stop("done", self.done, f"all {plural(self.done, 'step')} are done.")
        if self.done == 0:
            raise ValueError("`data` has no batches: there is nothing to train on.")
        if self.schedule.total is None:
            return Stop("done", self.done, f"all of the data is done, in {plural(self.done, 'step')}.")
        return Stop("data", self.done, f"the data ended after {self.done} of {self.schedule.total} steps.")

    # --- the result of a chunk -----------------------------------------------------------------------

    def take_in(self, chunk: PendingChunk, quiet: bool = False) -> None:
        """Wait for the first pending chunk, record its rows, and see whether it ended the run.

        Args:
            chunk: The first of the pending chunks.
            quiet: Whether to write nothing and diagnose nothing.
        """
        result = chunk.result
        count, status = int(result.steps), int(result.status)
        per_step = self.pace.finished(count, time.monotonic())
        rows = {name: plain_array(column) for name, column in jax.device_get(result.rows).items()}
        watched = jax.device_get(result.watched) if result.watched is not None and count else None
        numbers = None if watched is None else step_numbers(watched)
        with interrupts_held():  # a chunk is recorded once, or not at all
            self.pending.popleft()
            self.history.add({name: column[:count] for name, column in rows.items()})
            if watched is not None and numbers is not None:
                self.history.add_watched(int(watched.step), numbers)
            if status in (UNTIL, NONFINITE):
                self.done = chunk.begin + count
                self.pending.clear()
            if status == UNTIL:
                self.stop = Stop("until", self.done, f"`until` became true in step {self.done}.")
        if quiet:
            return
        self.log(chunk.begin, rows, count, per_step, {} if numbers is None else flat_numbers(numbers))
        if numbers is not None and numbers.histograms:
            self.effects.writers.write_histograms(chunk.begin + count, histograms_of(numbers))
        if status == NONFINITE:
            self.stop = self._explain(chunk, count, float(rows["loss"][count]))

    def _explain(self, chunk: PendingChunk, count: int, loss: float) -> Stop:
        place = jnp.int32(chunk.group.place + count)
        batch, _ = self.source.take(chunk.group.arrays, self.carry.order, self.carry.state, place)
        return explain_nonfinite(self.step, self.carry.state, batch, loss, self.effects.bad_step)

    def log(
        self,
        begin: int,
        rows: Mapping[str, np.ndarray],
        count: int,
        per_step: float | None,
        watched: Mapping[str, float],
    ) -> None:
        """Write the rows of a chunk that are asked for."""
        every = self.effects.log_every
        chosen = [i for i in range(count) if every and (begin + i + 1) % every == 0]
        if count and (every is None or watched):
            chosen = sorted({*chosen, count - 1})
        speed = {} if per_step is None else {"steps_per_second": 1 / per_step}
        for i in chosen:
            step = begin + i + 1
            row: dict[str, float] = {name: column[i].item() for name, column in rows.items()} | speed
            if self.schedule.per_epoch:
                row["epoch"] = step / self.schedule.per_epoch
            self.last = row
            self.effects.writers.write(step, {**row, **watched})

    # --- between chunks ------------------------------------------------------------------------------

    def do_what_is_due(self, group: BatchGroup) -> None:
        """Evaluate and save, if it is due."""
        effects = self.effects
        evaluates = effects.evaluate is not None and self.schedule.evaluates(self.done, group.ends)
        saves = effects.save is not None and self.schedule.saves(self.done)
        if evaluates or saves:
            self.collect()  # whether this state is used depends on the chunks before it
        if self.stop is not None:
            return
        row: dict[str, float] = {}
        if evaluates and effects.evaluate is not None:
            row = effects.evaluate(self.carry.state)
            self.history.evaluations.append((self.done, row))
            effects.writers.write(self.done, row)
        if effects.save is not None and (saves or row):
            effects.save(self.done, self.carry.state, {**self.last, **row}, saves)
        numbers = {"step": self.done, **self.last, **row}
        if row and effects.until is not None and evaluate_condition(effects.until, numbers):
            message = f"`until` became true in the evaluation after step {self.done}."
            self.stop = Stop("until", self.done, message)

    # --- after a failure -----------------------------------------------------------------------------

    @property
    def taken(self) -> int:
        """How many steps were taken since the run was started or resumed."""
        return self.done - self._started_at

    def abandon(self, error: BaseException) -> None:
        """After an exception: take in what was computed, and save a checkpoint if there is a place for it."""
        if jax.process_count() == 1:  # else the other processes would be waited for
            try:
                while self.pending:
                    self.take_in(self.pending[0], quiet=True)
            except Exception as other:
                self.history.notes.append(f"The last steps were lost: {one_line(other)}")
        if isinstance(error, KeyboardInterrupt):
            self.stop = Stop("interrupted", self.done, f"interrupted after {plural(self.done, 'step')}.")
        else:
            self.stop = Stop("error", self.done, f"failed after {plural(self.done, 'step')}: {one_line(error)}")
        if self.effects.save is None or self.taken == 0 or isinstance(error, CheckpointError):
            return
        if jax.process_count() > 1 or not self._is_intact():
            return
        try:
            self.effects.save(self.done, self.carry.state, {}, True)
            self.history.notes.append(f"Checkpoint {self.done} was saved.")
        except Exception as other:
            self.history.notes.append(f"Checkpoint {self.done} could not be saved: {one_line(other)}")

    def recover(self) -> tuple[State | None, History]:
        """Return the state, None if it was lost, and the history."""
        stop = self.stop or Stop("error", self.done, f"failed after {plural(self.done, 'step')}.")
        return self.carry.state if self._is_intact() else None, self.result(stop)

    def _is_intact(self) -> bool:
        """Whether the state was computed, and is as old as the history says."""
        try:
            return int(jax.block_until_ready(self.carry.state).step) == self.done and not self.pending
        except (RuntimeError, ValueError):  # lost: donated to a step that failed
            return False
