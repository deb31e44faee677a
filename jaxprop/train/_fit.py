"""The loop: chunks of steps are planned here, run on the device, and landed here."""

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from .._rules import Rules
from .._types import PyTree
from ._checks import check_dtypes, check_until
from ._data import Feed, Group, Reading, as_batch, is_arrays, open_feed
from ._evaluate import Evaluation, eval_function
from ._history import History, Recording, Stop, numbers_of, plain
from ._loop import NONFINITE, RUNNING, UNTIL, Carry, Chunks, Landed, make_chunks
from ._step import State, Step, make_step, own
from ._watch import Watch

#: The longest chunk: its numbers are kept on the device until it lands.
CAPACITY = 8192
#: How long a chunk should take, in seconds: progress is seen about twice as often as every second.
CHUNK_SECONDS = 0.2


# --- planning: pure --------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """When what is due, in steps done.

    Attributes:
        total: steps in all; None for no end.
        eval_every: evaluate whenever so many more are done; None for the ends of epochs; 0 for never.
        save_every: the same for checkpoints, 0 for never.
        watch_every: the step after each multiple of this is watched, 0 for never.
        per_epoch: steps in an epoch, None where unknown.
    """

    total: int | None
    eval_every: int | None = 0
    save_every: int = 0
    watch_every: int = 0
    per_epoch: int | None = None

    def watches(self, done: int) -> bool:
        return self.watch_every > 0 and done % self.watch_every == 0

    def steps(self, done: int, most: int) -> int:
        """How many steps the next chunk may have: it ends where something is due."""
        if self.watches(done):
            return 1
        periods = (
            self.eval_every or (self.per_epoch if self.eval_every is None else 0),
            self.save_every,
            self.watch_every,
        )
        ends = [most, *(period - done % period for period in periods if period)]
        if self.total is not None:
            ends.append(self.total - done)
        return max(0, min(ends))

    def evaluates(self, done: int, epoch_ends: bool) -> bool:
        if self.eval_every == 0:
            return False
        return done == self.total or (epoch_ends if self.eval_every is None else done % self.eval_every == 0)

    def saves(self, done: int) -> bool:
        return self.save_every > 0 and (done % self.save_every == 0 or done == self.total)


@dataclass
class Pace:
    """How many steps a chunk should have, learned from how long they take."""

    most: int = 1
    _last: float | None = None

    def landed(self, count: int, now: float) -> float | None:
        """Take note of a landed chunk; gives seconds per step. The first one, which was compiled, is left out."""
        since, self._last = None if self._last is None else now - self._last, now
        if since is None or not count:
            return None
        wanted = int(CHUNK_SECONDS * count / max(since, 1e-9))
        self.most = max(1, min(wanted, 4 * self.most, CAPACITY))
        return since / count


# --- the run ---------------------------------------------------------------------------------------------


class Flight(NamedTuple):
    """A chunk on its way: where it began, its data, and what comes of it."""

    begin: int
    group: Group
    landed: Landed


@dataclass
class Run:
    """One call of `fit`: chunks are sent off one ahead of what is landed."""

    step: Step
    feed: Feed
    plan: Plan
    chunks: Chunks
    carry: Carry
    done: int
    recording: Recording
    tell: Callable[[int, Mapping[str, Any]], None]
    evaluate: Callable[[State], dict[str, Any]] | None = None
    save: Callable[[int, State, dict[str, Any]], None] | None = None
    log_every: int | None = None
    deadline: float | None = None
    pace: Pace = field(default_factory=Pace)
    flights: deque[Flight] = field(default_factory=deque)
    stop: Stop | None = None
    evaluated_until: Callable[[Mapping[str, Any]], Any] | None = None

    def go(self) -> Stop:
        while self.stop is None:
            count = self.plan.steps(self.done, self.pace.most)
            if count == 0:
                self.land_all()
                return self.stop or Stop("done", self.done, f"all {self.done} steps are done.")
            group = self.feed.next(self.done, count)
            if group is None:
                self.land_all()
                return self.stop or self.out_of_data()
            self.send(group)
            self.land_all(but=1)
            if self.stop is None:
                self.due(group)
            if self.stop is None and self.deadline is not None and time.monotonic() > self.deadline:
                self.land_all()
                self.stop = self.stop or Stop("seconds", self.done, f"the time is up after {self.done} steps.")
        return self.stop

    def send(self, group: Group) -> None:
        """Start a chunk. Returns at once."""
        chunk = self.chunks.watched if self.plan.watches(self.done) else self.chunks.plain
        self.carry, landed = chunk(self.carry, group.source, np.int32(group.place), np.int32(group.count))
        self.flights.append(Flight(self.done, group, landed))
        self.done += group.count

    def land_all(self, but: int = 0) -> None:
        """Wait for the chunks under way, but for the last ones, and take in what they say."""
        while len(self.flights) > but:
            flight = self.flights.popleft()
            self.land(flight)
            if self.stop is not None:
                self.flights.clear()  # they did nothing

    def land(self, flight: Flight) -> None:
        landed = flight.landed
        count, why = int(landed.count), int(landed.why)
        per_step = self.pace.landed(count, time.monotonic())
        rows = jax.device_get(landed.rows)
        piece = self.recording.add(rows, count)
        watched = None
        if landed.watched is not None and count:
            watched = jax.device_get(landed.watched)
            self.recording.watched.append(watched)
        self.log(flight.begin, piece, count, per_step, watched)
        if why == UNTIL:
            self.done = flight.begin + count
            self.stop = Stop("until", self.done, f"`until` came true at step {self.done}.")
        elif why == NONFINITE:
            self.done = flight.begin + count
            bad = float(plain(rows["loss"])[count])
            self.stop = find_nonfinite(self.step, self.feed, self.carry, flight, count, bad)

    def log(
        self, begin: int, piece: Mapping[str, np.ndarray], count: int, per_step: float | None, watched: Any
    ) -> None:
        """Tell of the rows that are asked for; of the last of the chunk where nothing is said."""
        if self.log_every is None:
            told = [count - 1] if count else []
        else:
            told = [i for i in range(count) if (begin + i + 1) % self.log_every == 0]
        more = {} if per_step is None else {"steps_per_second": 1 / per_step}
        if watched is not None:
            more |= numbers_of(watched)
            told = told or [count - 1]
        if self.plan.per_epoch:
            more["epoch"] = (begin + count) / self.plan.per_epoch
        for i in told:
            self.tell(begin + i + 1, {name: column[i].item() for name, column in piece.items()} | more)

    def due(self, group: Group) -> None:
        """What is due between two chunks."""
        evaluates = self.evaluate is not None and self.plan.evaluates(self.done, group.ends)
        saves = self.save is not None and self.plan.saves(self.done)
        if not (evaluates or saves):
            return
        self.land_all()
        if self.stop is not None:
            return
        row: dict[str, Any] = {}
        if evaluates and self.evaluate is not None:
            row = {name: float(x) for name, x in jax.device_get(self.evaluate(self.carry.state)).items()}
            self.recording.evaluations.append((self.done, row))
            self.tell(self.done, row)
            if self.evaluated_until is not None and self.evaluated_until({"step": self.done, **row}):
                self.stop = Stop(
                    "until", self.done, f"`until` came true at the evaluation after step {self.done}."
                )
        if saves and self.save is not None:
            self.save(self.done, self.carry.state, row)

    def out_of_data(self) -> Stop:
        total = self.plan.total
        asked = "" if total is None else f" of the {total} asked for"
        return Stop(
            "data" if total is not None else "done",
            self.done,
            f"the data ended after {self.done} steps{asked}.",
        )


def find_nonfinite(step: Step, feed: Feed, carry: Carry, flight: Flight, count: int, loss: float) -> Stop:
    """Say what was not finite: the step is run once more, with a look inside."""
    state, group = carry.state, flight.group
    number = flight.begin + count
    batch, _ = feed.take(group.source, carry.order, state, np.int32(group.place + count))
    found, tape = jax.jit(step.opened if step.watch else lambda s, *b: (step.gradient(s, *b), None))(
        state, *batch
    )
    root = step.root
    grads, params = (
        tuple(
            root + jax.tree_util.keystr(path)
            for path, x in jax.tree_util.tree_leaves_with_path(tree)
            if not np.isfinite(np.asarray(x).astype(complex)).all()
        )
        for tree in (found.grads, state.params)
    )
    node = None if tape is None else _first_nonfinite(tape)
    text = f"step {number} was not taken: its loss is {loss}"
    if np.isfinite(loss):
        text += ", but its gradient is not finite"
    if grads:
        text += (
            f"; not finite is the gradient of {', '.join(grads[:3])}{' and others' if len(grads) > 3 else ''}"
        )
    if params:
        text += f"; {', '.join(params[:3])} already held such numbers, so the update before made them"
    if node:
        text += f"; the first value that is not finite is {node}"
    return Stop("nonfinite", number, text + ". The state is that before it.", loss, grads, node)


def _first_nonfinite(tape: Any) -> str | None:
    for side, entries in (("value", tape), ("cotangent", reversed(tape))):
        for entry in entries:
            count = getattr(getattr(entry, side), "nonfinite", 0)
            if np.any(np.asarray(count) > 0):
                place = f" ({entry.node.source})" if entry.node.source else ""
                return (
                    f"`{entry.name}`{place}" if side == "value" else f"the cotangent of `{entry.name}`{place}"
                )
    return None


# --- the call --------------------------------------------------------------------------------------------


def fit(
    loss: Callable[..., Any],
    params: PyTree,
    data: Any,
    *,
    optimizer: Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    until: Callable[[Mapping[str, Any]], Any] | None = None,
    batch_size: int | None = None,
    key: Any = None,
    shuffle: bool = True,
    drop_last: bool = False,
    model_state: PyTree = None,
    has_aux: bool = False,
    rules: Rules = (),
    watch: Watch | None = None,
    eval_data: Any = None,
    eval_fn: Callable[..., Any] | None = None,
    eval_every: int | None = None,
    check_finite: bool = True,
    check_data: bool = False,
    memory_limit: int | None = None,
    checkpoint: Any = None,
    resume: bool = False,
    sharding: Any = None,
    writers: Sequence[Any] = (),
    log_every: int | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Train: run the step over data until it is done.

    Example:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x, y):
        ...     return jnp.mean((w * x - y) ** 2)
        >>> x = jnp.linspace(-1.0, 1.0, 8)
        >>> state, history = jp.fit(loss, 0.0, (x, 2 * x), steps=300, optimizer=optax.sgd(0.1), progress=False)
        >>> round(float(state.params), 3), history["loss"].shape
        (2.0, (300,))
    """
    step = make_step(loss, optimizer, has_aux=has_aux, rules=rules, watch=watch)
    check_budget(steps, epochs, seconds, until)
    state = step.init(params, key, model_state)
    done = 0
    place = jax.device_put
    # <- durable: placement of state and data, restored state
    reading = Reading(
        batch_size, shuffle and batch_size is not None, drop_last, check_data, memory_limit, epochs
    )
    check_dtypes(state.params, data)
    feed = open_feed(data, own(state.key), reading, done, place)
    total = total_of(steps, epochs, feed.per_epoch)
    evaluate = None
    if eval_data is not None:
        function, pair = eval_function(loss, eval_fn, has_aux)
        evaluate = Evaluation(function, pair, eval_data, batch_size, place)
    during, after = check_until(until, step, evaluate is not None)
    chunks = make_chunks(step, feed, during, check_finite, CAPACITY if total is None else min(CAPACITY, total))
    plan = Plan(
        total,
        eval_every=0 if evaluate is None else eval_period(eval_every, total, feed.per_epoch),
        save_every=0,
        watch_every=0 if watch is None else watch.every,
        per_epoch=feed.per_epoch,
    )

    def tell(step: int, row: Mapping[str, Any]) -> None:
        for writer in writers:
            writer.write(step, row)

    run = Run(
        step,
        feed,
        plan,
        chunks,
        Carry(state, feed.order(done), np.int32(RUNNING)),
        done,
        Recording(done),
        tell,
        evaluate=evaluate,
        log_every=log_every,
        deadline=None if seconds is None else time.monotonic() + seconds,
        evaluated_until=after,
    )
    try:
        stop = run.go()
    finally:
        feed.close()
        for writer in writers:
            writer.close()
    if stop.reason in ("nonfinite", "data"):
        warnings.warn(stop.message, RuntimeWarning, stacklevel=2)
    return run.carry.state, run.recording.finish(stop)


def check_budget(steps: Any, epochs: Any, seconds: Any, until: Any) -> None:
    """Check that the run is asked to end, and not before it began."""
    if steps is None and epochs is None and seconds is None and until is None:
        raise ValueError("say when to stop: steps=, epochs=, seconds=, or until=.")
    for name, number in (("steps", steps), ("epochs", epochs)):
        if number is None:
            continue
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(f"{name}={number!r} trains nothing: it is a whole number, 1 or more.")


def total_of(steps: int | None, epochs: int | None, per_epoch: int | None) -> int | None:
    """Steps in all, as far as that is known beforehand."""
    known = [steps] if steps is not None else []
    if epochs is not None and per_epoch is not None:
        known.append(epochs * per_epoch)
    return min(known, default=None)


def eval_period(asked: int | None, total: int | None, per_epoch: int | None) -> int | None:
    """How often to evaluate: every epoch, unless an epoch is one step: then about a hundred times."""
    if asked is not None:
        return asked
    if per_epoch != 1:
        return None
    return 100 if total is None else max(1, total // 100)


_ = (as_batch, is_arrays)
