"""When something is due in a run: computed from step counts alone."""

from dataclasses import dataclass
from typing import NamedTuple

#: The longest chunk, in steps: its numbers stay on the device until it has finished.
CAPACITY = 32_768
#: How long a chunk should take, in seconds. One is always in flight, so what is shown is at most twice as old.
CHUNK_SECONDS = 0.2
#: The number of evaluations in a run whose epochs are single steps.
EVALUATIONS = 100


class Schedule(NamedTuple):
    """When something is due, counted in steps done.

    Attributes:
        total: The number of steps in all, None for no end.
        eval_every: Evaluate after each multiple of it; None: at the end of each epoch; 0: never.
        save_every: Save a checkpoint after each multiple of it; 0: never.
        watch_every: Watch the step after each multiple of it; 0: never.
        per_epoch: The number of steps in an epoch, None if it is not known.
    """

    total: int | None
    eval_every: int | None = 0
    save_every: int = 0
    watch_every: int = 0
    per_epoch: int | None = None

    def watches(self, done: int) -> bool:
        """Return whether the next step is watched."""
        return self.watch_every > 0 and done % self.watch_every == 0

    def steps(self, done: int, most: int) -> int:
        """Return how many steps the next chunk has: it ends when something is due. 0 at the end of the run."""
        evaluations = self.per_epoch if self.eval_every is None else self.eval_every
        periods = [period for period in (evaluations, self.save_every, self.watch_every) if period]
        ends = [1 if self.watches(done) else most, *(period - done % period for period in periods)]
        if self.total is not None:
            ends.append(self.total - done)
        return max(0, min(ends))

    def evaluates(self, done: int, epoch_ends: bool) -> bool:
        """Return whether an evaluation is due."""
        if self.eval_every == 0:
            return False
        return done == self.total or (epoch_ends if self.eval_every is None else done % self.eval_every == 0)

    def saves(self, done: int) -> bool:
        """Return whether a checkpoint is due."""
        return self.save_every > 0 and (done % self.save_every == 0 or done == self.total)


@dataclass
class Pace:
    """How many steps a chunk should have, learned from how long steps take."""

    most: int = 1
    _last: float | None = None

    def finished(self, count: int, now: float) -> float | None:
        """Note a finished chunk. Returns seconds per step, None for the first chunk, which was compiled."""
        since, self._last = None if self._last is None else now - self._last, now
        if since is None or count == 0:
            return None
        wanted = int(CHUNK_SECONDS * count / max(since, 1e-9))
        self.most = max(1, min(wanted, 4 * self.most, CAPACITY))
        return since / count


def total_steps(steps: int | None, epochs: int | None, per_epoch: int | None) -> int | None:
    """Return the number of steps in all, as far as it is known beforehand."""
    known = [steps] if steps is not None else []
    if epochs is not None and per_epoch is not None:
        known.append(epochs * per_epoch)
    return min(known, default=None)


def eval_period(asked: int | None, total: int | None, per_epoch: int | None) -> int | None:
    """Return how often to evaluate: each epoch, or about a hundred times if an epoch is a single step."""
    if asked is not None or per_epoch != 1:
        return asked
    return EVALUATIONS if total is None else max(1, total // EVALUATIONS)


def check_budget(steps: int | None, epochs: int | None, ends: bool) -> None:
    """Check that something ends the run, after at least one step.

    Args:
        steps, epochs: As in `fit`.
        ends: Whether a condition or a time limit ends it.

    Raises:
        ValueError: Nothing does, or a number is not a positive integer.
    """
    given = {"steps": steps, "epochs": epochs}
    if not ends and all(number is None for number in given.values()):
        raise ValueError("nothing says when to stop: pass `steps`, `epochs` or `until`.")
    for name, number in given.items():
        if number is not None and (isinstance(number, bool) or not hasattr(number, "__index__") or number <= 0):
            raise ValueError(f"`{name}` must be a positive integer, got {number!r}.")
