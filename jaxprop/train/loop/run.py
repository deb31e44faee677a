"""One run: chunks are sent off one ahead of what is landed, and between them is done what is due."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..data.feed import Feed, Group
from ..data.placement import agree
from ..step.step import State, Step
from .bad_step import find_nonfinite
from .chunks import NONFINITE, UNTIL, Carry, Chunks, Landed
from .history import Recording, Stop, numbers_of, plain
from .schedule import Pace, Plan
from .until import Condition, ask


class Flight(NamedTuple):
    """A chunk on its way: after how many steps it began, its data, and what will come of it."""

    begin: int
    group: Group
    landed: Landed


@dataclass(frozen=True)
class Effects:
    """What a run does to the world outside, all of it between two chunks.

    Attributes:
        tell: `(step, row)` to writers.
        evaluate: the means over the evaluation data, from a state.
        save: `(step, state, row, due)` to a checkpoint; asked after an evaluation too, when none is due.
        until: a condition on what was evaluated.
        log_every: tell of each multiple of so many steps; None: of the last step of each chunk.
        bad_step: a file for what the loss was called with in the first bad step; None: none.
    """

    tell: Callable[[int, Mapping[str, Any]], None]
    evaluate: Callable[[State], dict[str, Any]] | None = None
    save: Callable[[int, State, Mapping[str, Any], bool], None] | None = None
    until: Condition | None = None
    log_every: int | None = None
    bad_step: str | Path | None = None


@dataclass
class Run:
    """The state of a run on the host."""

    step: Step
    feed: Feed
    plan: Plan
    chunks: Chunks
    effects: Effects
    carry: Carry
    done: int
    deadline: float | None
    recording: Recording
    pace: Pace = field(default_factory=Pace)
    flights: deque[Flight] = field(default_factory=deque)
    last: dict[str, Any] = field(default_factory=dict)
    stop: Stop | None = None

    def go(self) -> Stop:
        """Send and land chunks until the run ends."""
        while self.stop is None:
            most = agree(self.pace.most)
            count = self.plan.steps(self.done, most)
            group = self.feed.next(self.done, count, most) if count else None
            if group is None:
                self.end(self.ended(count))
                continue
            self.send(group)
            self.land(but=1)
            self.attend(group)
            if self.deadline is not None and agree(time.monotonic() > self.deadline):
                self.end(Stop("seconds", self.done, f"the time was up after {self.done} steps."))
        return self.stop

    def send(self, group: Group) -> None:
        """Start a chunk; returns at once."""
        chunk = self.chunks.watched if self.plan.watches(self.done) else self.chunks.many
        self.carry, landed = chunk(self.carry, group.source, group.place, group.steps)
        self.flights.append(Flight(self.done, group, landed))
        self.done += group.steps

    def land(self, but: int = 0) -> None:
        """Wait for the chunks on their way, but for the last ones, and take in what they say."""
        while len(self.flights) > but and self.stop is None:
            self.take_in(self.flights.popleft())

    def end(self, stop: Stop) -> None:
        """End the run, unless what is on its way ended it before."""
        self.land()
        self.stop = self.stop or stop

    def ended(self, count: int) -> Stop:
        if count == 0:
            return Stop("done", self.done, f"all {self.done} steps are done.")
        if self.done == 0:
            raise ValueError("`data` gave no batches: there is nothing to train on.")
        if self.plan.total is None:
            return Stop("done", self.done, f"all of the data is done, in {self.done} steps.")
        return Stop("data", self.done, f"the data ended after {self.done} of {self.plan.total} steps.")

    # --- a chunk landed --------------------------------------------------------------------------------

    def take_in(self, flight: Flight) -> None:
        """Wait for a chunk, write down its rows, and see whether it ended the run."""
        landed = flight.landed
        count, why = int(landed.steps), int(landed.why)
        per_step = self.pace.landed(count, time.monotonic())
        rows = {name: plain(column) for name, column in jax.device_get(landed.rows).items()}
        watched = jax.device_get(landed.watched) if landed.watched is not None and count else None
        if watched is not None:
            self.recording.watched.append(watched)
        self.recording.add({name: column[:count] for name, column in rows.items()}, count)
        self.log(flight.begin, rows, count, per_step, {} if watched is None else numbers_of(watched))
        if why in (UNTIL, NONFINITE):
            self.done = flight.begin + count
        if why == UNTIL:
            self.stop = Stop("until", self.done, f"`until` came true with step {self.done}.")
        elif why == NONFINITE:
            place = flight.group.place + count
            batch, _ = self.feed.take(flight.group.source, self.carry.order, self.carry.state, jnp.int32(place))
            loss = float(rows["loss"][count])
            self.stop = find_nonfinite(self.step, self.carry.state, batch, loss, self.effects.bad_step)

    def log(
        self,
        begin: int,
        rows: Mapping[str, np.ndarray],
        count: int,
        per_step: float | None,
        watched: Mapping[str, float],
    ) -> None:
        """Tell of the steps of a chunk that are asked for."""
        every = self.effects.log_every
        told = [i for i in range(count) if every and (begin + i + 1) % every == 0]
        if count and (every is None or watched):
            told = sorted({*told, count - 1})
        speed = {} if per_step is None else {"steps_per_second": 1 / per_step}
        for i in told:
            step = begin + i + 1
            row: dict[str, Any] = {name: column[i].item() for name, column in rows.items()} | speed
            if self.plan.per_epoch:
                row["epoch"] = step / self.plan.per_epoch
            self.last = row
            self.effects.tell(step, {**row, **watched})

    # --- between chunks ----------------------------------------------------------------------------------

    def attend(self, group: Group) -> None:
        """Do what is due: evaluate, save."""
        effects = self.effects
        evaluates = effects.evaluate is not None and self.plan.evaluates(self.done, group.ends)
        saves = effects.save is not None and self.plan.saves(self.done)
        if evaluates or saves:
            self.land()  # a state is only spoken of when it is known to be one
        if self.stop is not None:
            return
        row: dict[str, float] = {}
        if evaluates and effects.evaluate is not None:
            row = {name: float(x) for name, x in jax.device_get(effects.evaluate(self.carry.state)).items()}
            self.recording.evaluations.append((self.done, row))
            effects.tell(self.done, row)
        if effects.save is not None and (saves or row):
            effects.save(self.done, self.carry.state, {**self.last, **row}, saves)
        if row and effects.until is not None and ask(effects.until, {"step": self.done, **self.last, **row}):
            self.stop = Stop("until", self.done, f"`until` came true at the evaluation after step {self.done}.")
