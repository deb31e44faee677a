"""When what is due: pure, from the counts alone."""

from dataclasses import dataclass
from typing import NamedTuple

#: The longest chunk, in steps: its numbers stay on the device until it lands.
CAPACITY = 32_768
#: How long a chunk should take, in seconds: one is always on its way, so news is at most twice as old.
CHUNK_SECONDS = 0.2
#: Evaluations in a run whose epochs are single steps.
EVALUATIONS = 100


class Plan(NamedTuple):
    """When what is due, counted in steps done.

    Attributes:
        total: steps in all, None for no end.
        eval_every: evaluate after each multiple of it; None: at the end of each epoch; 0: never.
        save_every: save a checkpoint after each multiple of it; 0: never.
        watch_every: the step after each multiple of it is watched; 0: never.
        per_epoch: steps in an epoch, None where that is not known.
    """

    total: int | None
    eval_every: int | None = 0
    save_every: int = 0
    watch_every: int = 0
    per_epoch: int | None = None

    def watches(self, done: int) -> bool:
        """Whether the next step is a watched one."""
        return self.watch_every > 0 and done % self.watch_every == 0

    def steps(self, done: int, most: int) -> int:
        """How many steps the next chunk has: it ends where something is due. 0 at the end of the run."""
        evaluations = self.per_epoch if self.eval_every is None else self.eval_every
        periods = [period for period in (evaluations, self.save_every, self.watch_every) if period]
        ends = [1 if self.watches(done) else most, *(period - done % period for period in periods)]
        if self.total is not None:
            ends.append(self.total - done)
        return max(0, min(ends))

    def evaluates(self, done: int, epoch_ends: bool) -> bool:
        """Whether an evaluation is due after so many steps."""
        if self.eval_every == 0:
            return False
        return done == self.total or (epoch_ends if self.eval_every is None else done % self.eval_every == 0)

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        return self.save_every > 0 and (done % self.save_every == 0 or done == self.total)


@dataclass
class Pace:
    """How many steps a chunk should have, learned from how long they take."""

    most: int = 1
    _last: float | None = None

    def landed(self, count: int, now: float) -> float | None:
        """Take note of a chunk that landed; gives seconds per step, nothing for the first, that compiled."""
        since, self._last = None if self._last is None else now - self._last, now
        if since is None or count == 0:
            return None
        wanted = int(CHUNK_SECONDS * count / max(since, 1e-9))
        self.most = max(1, min(wanted, 4 * self.most, CAPACITY))
        return since / count


def total_of(steps: int | None, epochs: int | None, per_epoch: int | None) -> int | None:
    """Steps in all, as far as that is known beforehand."""
    known = [steps] if steps is not None else []
    if epochs is not None and per_epoch is not None:
        known.append(epochs * per_epoch)
    return min(known, default=None)


def eval_period(asked: int | None, total: int | None, per_epoch: int | None) -> int | None:
    """How often to evaluate: each epoch, or about a hundred times where an epoch is a single step."""
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
