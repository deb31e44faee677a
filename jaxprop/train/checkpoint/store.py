"""Checkpoints: written in the background, whole or not at all, restored bit for bit.

One checkpoint is one directory, named by its step, with two items in it: `state`, a flat table of arrays, and
`about`, a small JSON file that says what the arrays are, with a fingerprint for each. `about` is read and
compared first, so that a mismatch is reported before an array is read. What was read is compared with its
fingerprint, so a damaged file never becomes a wrong number.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ..._text import listed
from ...core.types import PyTree
from .checkpoint import Checkpoint, CheckpointError
from .leaves import changed, data_of, differences, fingerprints, leaf_record, like, with_paths
from .manifest import About, sealed, unsealed
from .orbax import (
    KeepNewestAndBest,
    Manager,
    checkpoint_errors,
    open_manager,
    read_about,
    read_arrays,
    save_arguments,
)

_SHOWN = 8  # differences in a message


def open_store(settings: Checkpoint, *, resume: bool = False) -> "Store":
    """Open the directory of `settings` for writing, and for reading if `resume` is true.

    Nothing on disk is changed, except that what a killed run left half-written is removed.

    Args:
        settings: Where checkpoints go.
        resume: Whether to continue with the checkpoints in the directory. If there are none, both mean the
            same.

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: `resume` is false and there are checkpoints; the path is a file; or the checkpoints
            were not written by this library.

    Examples:
        >>> import tempfile, jax.numpy as jnp, jaxprop as jp
        >>> state = {"w": jnp.ones(3)}
        >>> with open_store(jp.train.Checkpoint(tempfile.mkdtemp())) as store:
        ...     store.save(10, state, {"epoch": 2})
        ...     store.wait()
        ...     restored, progress = store.restore(state)
        ...     store.latest(), restored["w"].tolist(), progress
        (10, [1.0, 1.0, 1.0], {'epoch': 2})
    """
    policy = KeepNewestAndBest(settings.keep, settings.mode)
    return Store(settings, open_manager(settings, policy, resume), policy)


class Store:
    """The checkpoints of one directory. Made by `open_store`."""

    def __init__(self, settings: Checkpoint, manager: Manager, policy: KeepNewestAndBest) -> None:
        self.settings = settings
        self._manager = manager
        self._policy = policy
        self._newest: int | None = manager.latest_step()
        if settings.best is not None:
            for step in self.steps():
                self._note_score(step, self._metrics(step))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Return the step of the newest complete checkpoint, None if there is none."""
        return self._newest

    def best(self) -> int | None:
        """Return the step of the checkpoint with the best metric, None if none has the metric."""
        return self._policy.best(self.steps())

    def is_better(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the metric `best` is better than in every checkpoint."""
        name = self.settings.best
        if name is None or name not in metrics or not np.isfinite(metrics[name]):
            return False
        best = self.best()
        sign = 1 if self.settings.mode == "min" else -1
        return best is None or sign * float(metrics[name]) < sign * self._policy.scores[best]

    def save(
        self,
        step: int,
        state: PyTree,
        progress: Mapping[str, object] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Write a checkpoint in the background. The arrays may be donated as soon as this returns.

        Waits for the previous one. If the newest checkpoint already is of this step, nothing is written.

        Args:
            step: The name of the checkpoint.
            state: A pytree of arrays, PRNG keys (typed or raw) and numbers.
            progress: NumPy arrays, and values that JSON can represent.
            metrics: Among them the one that `best` names.

        Raises:
            TypeError: A leaf of the state is neither an array nor a number.
            CheckpointError: This checkpoint, or the previous one, could not be written.
        """
        if step == self._newest:
            return
        table = with_paths(state)
        data = {path: data_of(leaf) for path, leaf in table.items()}
        totals = fingerprints(list(data.values()))
        records = list(map(leaf_record, table.keys(), table.values(), totals))
        arrays = {key: value for key, value in (progress or {}).items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in (progress or {}).items() if key not in arrays}
        about = sealed(step, records, arrays, plain, self._note_score(step, metrics or {}))
        with checkpoint_errors(f"checkpoint {step} in {self.settings.path} could not be written"):
            self._manager.save(step, args=save_arguments(data, arrays, about), force=True)
        self._newest = step

    def restore(self, template: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, object]]:
        """Read a checkpoint: the state, and what was saved as progress.

        Args:
            template: A state like the one to be restored: it gives structure, shapes, dtypes and devices, and
                may hold `jax.ShapeDtypeStruct`s. The devices need not be those it was written from.
            step: Which checkpoint; the newest by default.

        Raises:
            CheckpointError: There is no checkpoint; its leaves differ from those of the template in path,
                shape or dtype; or it is damaged: files are missing, truncated, or hold other bytes than were
                written.
        """
        step = self._chosen(step)
        name = f"checkpoint {step} in {self.settings.path}"
        about = self._about(step, name)
        table = with_paths(template)
        saved = about.leaves
        _refuse_other(name, differences(saved, [leaf_record(path, leaf) for path, leaf in table.items()]))
        with checkpoint_errors(f"{name} is damaged", self._advice(step)):
            wanted = {path: data_of(leaf) for path, leaf in table.items()}
            data, progress = read_arrays(self._manager, step, wanted, about.empty_arrays())
        in_order = [data[record.path] for record in saved] + list(progress.values())
        wrong = changed([*saved, *about.arrays], fingerprints(in_order))
        if wrong:
            raise CheckpointError(
                f"{name} is damaged: the numbers of {listed(wrong)} are not those that were saved. "
                f"{self._advice(step)}"
            )
        leaves = [like(leaf, data[path]) for path, leaf in table.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), {**about.plain, **progress}

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk."""
        with checkpoint_errors(f"checkpoint {self._newest} in {self.settings.path} could not be written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until the last checkpoint is on disk, and release the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    # --- helpers -------------------------------------------------------------------------------------

    def _note_score(self, step: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Remember the metric `best` of a checkpoint and return it, if it is there and finite."""
        name = self.settings.best
        if name is None or name not in metrics or not np.isfinite(metrics[name]):
            return {}
        self._policy.scores[step] = float(metrics[name])
        return {name: float(metrics[name])}

    def _metrics(self, step: int) -> Mapping[str, float]:
        """The metrics of a checkpoint on disk; none if it cannot be read."""
        try:
            return self._about(step, "").metrics
        except CheckpointError:
            return {}  # reported when it is restored

    def _chosen(self, step: int | None) -> int:
        if step is None:
            step = self._newest
        if step is None:
            raise CheckpointError(f"there is no checkpoint in {self.settings.path} to restore.")
        if step not in self._manager.all_steps():
            raise CheckpointError(
                f"there is no checkpoint {step} in {self.settings.path}; available: {listed(self.steps())}."
            )
        return step

    def _about(self, step: int, name: str) -> About:
        with checkpoint_errors(f"{name} is damaged", self._advice(step)):
            return unsealed(read_about(self._manager, step))

    def _advice(self, step: int) -> str:
        before = [each for each in self.steps() if each < step]
        to_do = f"to continue from {before[-1]}, remove it" if before else "remove it to start over"
        return f"It was left unchanged; {to_do}."


def _refuse_other(name: str, found: Sequence[str]) -> None:
    if not found:
        return
    shown = "".join(f"\n  {line}" for line in found[:_SHOWN])
    more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise CheckpointError(
        f"{name} belongs to another state. Differences:{shown}{more}\nIt was left unchanged. Resume with the "
        "parameters and the optimizer it was written with, or choose another directory."
    )
