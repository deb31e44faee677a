"""Checkpoints, by Orbax: written in the background, whole or not at all, read back bit for bit.

One checkpoint is one directory, named by its step, with two items in it: `state`, a flat table of arrays,
and `about`, a small JSON file that says what the arrays are, with a fingerprint for each. `about` is read and
compared first, so what does not fit is named before an array is read. What was read is compared with its
fingerprint, so a damaged file never becomes a wrong number.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from warnings import warn

import jax
import jax.numpy as jnp
import numpy as np

from ..._text import listed
from ...core.types import PyTree
from .leaves import Leaf, changed, data_of, differences, fingerprints, leaf_of, like, with_paths
from .manifest import sealed, unsealed

_HALF = ".orbax-checkpoint-tmp"  # what Orbax calls a checkpoint until it is whole
_NOTHING = "(nothing)"  # stands in an empty table
_SHOWN = 8  # lines or names in a message
_LONGEST = 300  # characters of somebody else's message
_INSTALL = "Checkpoints are written by Orbax, which is not installed: pip install 'jaxprop-toolkit[train]'"


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names it. What is on disk was left as it is."""


@dataclass(frozen=True)
class Checkpoint:
    """Say where checkpoints go, how often, and which are kept.

    Args:
        directory: where they lie, one directory for each step; made if it is not there. May be a bucket
            (`gs://...`). Under several processes it must be the same place for all.
        every: steps from one to the next.
        keep: how many of the newest are kept.
        best: name of a metric, such as "eval_loss"; the checkpoint where it was best is kept as well. `fit`
            saves after an evaluation too where it is the best so far.
        mode: whether the best is the smallest or the greatest.

    Raises:
        ValueError: `every` or `keep` is below one, or `mode` is neither "min" nor "max".

    Examples:
        >>> Checkpoint("runs/digits", every=500, keep=2, best="eval_loss")
        Checkpoint(directory='runs/digits', every=500, keep=2, best='eval_loss', mode='min')
    """

    directory: str | os.PathLike[str]
    every: int = 1000
    keep: int = 3
    best: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self):
        for name in ("every", "keep"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"Checkpoint needs {name} to be an integer of at least 1, got {number!r}.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"Checkpoint needs mode to be 'min' or 'max', got {self.mode!r}.")

    @property
    def place(self) -> str:
        """The directory as an absolute path; a bucket's address as it is."""
        place = os.fspath(self.directory)
        return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def open_store(settings: Checkpoint, *, resume: bool = False) -> "Store":
    """Open the directory of `settings` for writing, and for reading when `resume` is true.

    Nothing on disk is changed, except that what a killed run left half-written is cleared away.

    Args:
        resume: whether what lies there is to be gone on with. Where nothing lies there, both mean the same.

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: `resume` is false and there are checkpoints; the place is a file; what lies there was
            not written by this library.

    Examples:
        >>> import tempfile, jax.numpy as jnp
        >>> state = {"w": jnp.ones(3)}
        >>> with open_store(Checkpoint(tempfile.mkdtemp())) as store:
        ...     store.save(10, state, {"epoch": 2})
        ...     store.wait()
        ...     restored, progress = store.restore(state)
        ...     store.latest(), restored["w"].tolist(), progress
        (10, [1.0, 1.0, 1.0], {'epoch': 2})
    """
    policy = _Keep(settings.keep, settings.mode)
    return Store(settings, _manager_of(settings, policy, resume), policy)


@dataclass(frozen=True)
class _Keep:
    """Which checkpoints stay: the last few, and the best. Asked by Orbax after each save."""

    last: int
    mode: str
    scores: dict[int, float] = field(default_factory=dict)

    def best(self, steps: Iterable[int]) -> int | None:
        """The step with the best score; the first where several have it."""
        sign = 1 if self.mode == "min" else -1
        return min(
            (step for step in steps if step in self.scores),
            key=lambda s: (sign * self.scores[s], s),
            default=None,
        )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [each.step for each in checkpoints]
        kept = {*steps[-self.last :], self.best(steps)}
        return [step in kept for step in steps]


class Store:
    """The checkpoints of one directory. Made by `open_store`."""

    def __init__(self, settings: Checkpoint, manager: Any, policy: _Keep):
        self.settings = settings
        self._manager = manager
        self._policy = policy
        self._newest: int | None = manager.latest_step()
        if settings.best is not None:
            for step in self.steps():
                self._judged(step, self._metrics(step))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps whose checkpoints are there, in order."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, None where there is none."""
        return self._newest

    def best(self) -> int | None:
        """Step of the checkpoint whose metric `best` is best, None where none has it."""
        return self._policy.best(self.steps())

    def is_better(self, metrics: Mapping[str, Any]) -> bool:
        """Whether the metric `best` is better than in every checkpoint there is."""
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
        progress: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint in the background. The arrays may be donated as soon as this returns.

        Waits for the one before it. A step that is the newest there is not written again.

        Args:
            step: names it.
            state: pytree of arrays, PRNG keys (typed or raw) and numbers.
            progress: NumPy arrays, and what JSON holds.
            metrics: among them the one that `best` names.

        Raises:
            TypeError: a leaf of the state is no array and no number.
            CheckpointError: this one, or the one before it, could not be written.
        """
        if step == self._newest:
            return
        table = with_paths(state)
        data = {path: data_of(leaf) for path, leaf in table.items()}
        totals = fingerprints(list(data.values()))
        leaves = [
            Leaf(path, leaf.shape, leaf.dtype, total)
            for (path, leaf), total in zip(_described(table).items(), totals, strict=True)
        ]
        arrays = {key: value for key, value in (progress or {}).items() if isinstance(value, np.ndarray)}
        plain = {key: value for key, value in (progress or {}).items() if key not in arrays}
        about = sealed(step, leaves, arrays, plain, self._judged(step, metrics or {}))
        ocp = _orbax()
        saved = {"state": _not_empty(data), "progress": _not_empty(arrays)}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(saved), about=ocp.args.JsonSave(about))
        with _naming(f"Checkpoint {step} in {self.settings.place} could not be written"):
            self._manager.save(step, args=items, force=True)
        self._newest = step

    def restore(self, template: PyTree, step: int | None = None) -> tuple[PyTree, dict[str, Any]]:
        """Read a checkpoint back: the state, where and what `template` is, and what was saved as progress.

        Args:
            template: a state as it is to come back: structure, shapes, dtypes and devices are taken from it. It
                may hold `jax.ShapeDtypeStruct`s. The devices need not be those it was written from.
            step: which; the newest where None.

        Raises:
            CheckpointError: there is none; its leaves are not those of the template, by path, shape or dtype;
                or it is damaged: files are missing, cut short, or hold other bytes than were written.
        """
        step = self._chosen(step)
        name = f"Checkpoint {step} in {self.settings.place}"
        about = self._about(step, name)
        table = with_paths(template)
        saved = [Leaf.of_json(row) for row in about["leaves"]]
        _refuse_other(name, differences(saved, list(_described(table).values())))
        data, progress = self._arrays(step, name, table, about)
        in_order = [data[leaf.path] for leaf in saved] + list(progress.values())
        of_progress = [Leaf.of_json(row) for row in about["arrays"]]
        wrong = changed([*saved, *of_progress], fingerprints(in_order))
        if wrong:
            raise CheckpointError(
                f"{name} is damaged: the numbers of {listed(wrong)} are not those that were saved. "
                f"{self._advice(step)}"
            )
        leaves = [like(leaf, data[path]) for path, leaf in table.items()]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), {**about["plain"], **progress}

    def wait(self) -> None:
        """Wait until what was saved is on disk."""
        with _naming(f"Checkpoint {self._newest} in {self.settings.place} could not be written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until what was saved is on disk, and let go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    # --- what lies behind ------------------------------------------------------------------------

    def _judged(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The metric `best` of a checkpoint, where it is there and finite; it is remembered."""
        name = self.settings.best
        if name is None or name not in metrics or not np.isfinite(metrics[name]):
            return {}
        self._policy.scores[step] = float(metrics[name])
        return {name: float(metrics[name])}

    def _metrics(self, step: int) -> dict[str, float]:
        """The metrics of a checkpoint on disk; none where they cannot be told."""
        try:
            return self._about(step, "")["metrics"]
        except CheckpointError:
            return {}  # it says what is wrong when it is restored

    def _chosen(self, step: int | None) -> int:
        if step is None:
            step = self._newest
        if step is None:
            raise CheckpointError(f"There is no checkpoint in {self.settings.place}: nothing to restore.")
        if step not in self._manager.all_steps():
            raise CheckpointError(
                f"There is no checkpoint {step} in {self.settings.place}; there are {listed(self.steps())}."
            )
        return step

    def _about(self, step: int, name: str) -> dict[str, Any]:
        ocp = _orbax()
        items = ocp.args.Composite(about=ocp.args.JsonRestore())
        with _naming(f"{name} is damaged", self._advice(step)):
            read = self._manager.restore(step, args=items)["about"]
            return unsealed(read)

    def _arrays(
        self, step: int, name: str, table: Mapping[str, Any], about: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        ocp = _orbax()
        on_host = ocp.RestoreArgs(restore_type=np.ndarray)
        wanted = {path: data_of(leaf) for path, leaf in table.items()}
        rows = {row["path"]: tuple(row["shape"]) for row in about["arrays"]}
        args = {
            "state": {path: _restore_args(ocp, leaf) for path, leaf in wanted.items() if leaf.size},
            "progress": {key: on_host for key, shape in rows.items() if 0 not in shape},
        }
        args = {group: _not_empty_args(each, on_host) for group, each in args.items()}
        item = jax.tree.map(lambda _: 0, args, is_leaf=lambda x: isinstance(x, ocp.RestoreArgs))
        items = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=item, restore_args=args))
        with _naming(f"{name} is damaged", self._advice(step)):
            read = self._manager.restore(step, args=items)["state"]
        data = {path: _placed(leaf, read["state"].get(path)) for path, leaf in wanted.items()}
        empty = {row["path"]: np.zeros(row["shape"], row["dtype"]) for row in about["arrays"]}
        return data, {key: read["progress"].get(key, empty[key]) for key in rows}

    def _advice(self, step: int) -> str:
        before = [each for each in self.steps() if each < step]
        to_do = f"to go on from {before[-1]}, move it away" if before else "move it away to start anew"
        return f"It was left as it is; {to_do}."


def _orbax() -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return ocp


def _manager_of(settings: Checkpoint, policy: "_Keep", resume: bool) -> Any:
    """Orbax's manager of the directory, once it is sure that what lies there is ours to go on with."""
    ocp = _orbax()
    from etils import epath  # comes with Orbax; a path on disk or in a bucket

    place = epath.Path(settings.place)
    steps, halves = _look(place)
    _refuse_foreign(place, steps)
    if steps and not resume:
        raise CheckpointError(
            f"{place} holds {_checkpoints(steps)} already. Go on from there with resume=True, "
            "or name another directory: nothing is overwritten."
        )
    half = max(halves, default=-1)
    if half > max(steps, default=-1) and jax.process_index() == 0:
        instead = f"going on from checkpoint {max(steps)}" if steps else "starting anew"
        warn(
            f"Checkpoint {half} in {place} is incomplete: the run ended while it was being written. "
            f"It is skipped, {instead}.",
            stacklevel=4,
        )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=bool(halves),
        save_root_metadata=False,
        # Made in the background, a directory that cannot be made keeps the process from ending for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with _naming(f"The checkpoints in {place} cannot be read", "They were left as they are."):
        return ocp.CheckpointManager(place, options=options)


def _look(place: Any) -> tuple[list[int], list[int]]:
    """Steps of the checkpoints in a directory, and of those left half-written."""
    if not place.exists():
        return [], []
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file; checkpoints need a directory.")
    names = [each.name for each in place.iterdir()]
    whole = sorted(int(name) for name in names if name.isdecimal())
    halves = sorted(
        int(name.split(".")[0]) for name in names if name.split(".")[0].isdecimal() and _HALF in name
    )
    return whole, halves


def _refuse_foreign(place: Any, steps: Sequence[int]) -> None:
    """The newest checkpoint says by what it holds whether this library wrote it."""
    if steps and not (place / str(steps[-1]) / "about").exists():
        raise CheckpointError(
            f"Checkpoint {steps[-1]} in {place} was not written by jaxprop, or is damaged: there is no 'about' "
            "in it. It was left as it is; name another directory."
        )


def _refuse_other(name: str, found: Sequence[str]) -> None:
    if not found:
        return
    shown = "".join(f"\n  {line}" for line in found[:_SHOWN])
    more = f"\n  and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise CheckpointError(
        f"{name} is of another state. What differs:{shown}{more}\n"
        "It was left as it is. Resume with the parameters and the optimizer it was written with, "
        "or name another directory."
    )


class _naming:
    """Turn whatever goes wrong inside into a `CheckpointError` that says what it was about."""

    def __init__(self, what: str, advice: str = ""):
        self._what, self._advice = what, advice

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            reason = " ".join(str(error).split(" [tensorstore_spec")[0].split()) or type(error).__name__
            reason = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} ..."
            raise CheckpointError(f"{self._what}: {reason.rstrip('.')}. {self._advice}".rstrip()) from error


# --- arrays to and from Orbax ---------------------------------------------------------------------------------


def _described(table: Mapping[str, Any]) -> dict[str, Leaf]:
    return {path: leaf_of(path, leaf) for path, leaf in table.items()}


def _not_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    """What can be written: Orbax takes no array without elements and no empty table."""
    return {path: value for path, value in data.items() if value.size} or {_NOTHING: np.zeros(1, np.int8)}


def _not_empty_args(args: dict[str, Any], on_host: Any) -> dict[str, Any]:
    return args or {_NOTHING: on_host}


def _restore_args(ocp: Any, leaf: Any) -> Any:
    """Where a leaf is to come back: on the template's devices where it is bound to some, else on the host."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or not getattr(leaf, "committed", True):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding)


def _placed(template: Any, data: Any) -> Any:
    if data is None:  # without elements, so never written
        data = np.zeros(template.shape, template.dtype)
    if isinstance(template, np.ndarray) or isinstance(data, jax.Array):
        return data
    return jnp.array(data)


def _checkpoints(steps: Sequence[int]) -> str:
    return f"checkpoint {steps[0]}" if len(steps) == 1 else f"checkpoints {listed(steps)}"
