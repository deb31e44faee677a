"""The part of Orbax that is used: opening a directory, and arrays to and from disk."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np

from ..._text import listed, shortened
from ..checks import warn_user
from .checkpoint import Checkpoint, CheckpointError
from .leaves import StateArray

if TYPE_CHECKING:
    from etils import epath


_HALF = ".orbax-checkpoint-tmp"  # in the name of a checkpoint until it is complete
_NOTHING = "(nothing)"  # the only key of an empty table
_REASON = 300  # characters of another library's message
_INSTALL = "Checkpoints are written by Orbax, which is not installed: pip install 'jaxprop-toolkit[train]'"


def orbax() -> ModuleType:
    """Import Orbax's module for checkpoints.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError(_INSTALL) from error
    return ocp


class SavedStep(Protocol):
    """A checkpoint, as Orbax describes it to a preservation policy."""

    @property
    def step(self) -> int: ...


@dataclass(frozen=True)
class KeepNewestAndBest:
    """Which checkpoints are kept: the newest few, and the best. Orbax asks after each save."""

    newest: int
    mode: str
    scores: dict[int, float] = field(default_factory=dict)

    def best(self, steps: Iterable[int]) -> int | None:
        """Return the step with the best score; the first of them if several have it."""
        sign = 1 if self.mode == "min" else -1
        scored = (step for step in steps if step in self.scores)
        return min(scored, key=lambda step: (sign * self.scores[step], step), default=None)

    def should_preserve(self, checkpoints: Sequence[SavedStep], *, context: object) -> list[bool]:
        steps = [each.step for each in checkpoints]
        kept = {*steps[-self.newest :], self.best(steps)}
        return [step in kept for step in steps]


class Manager(Protocol):
    """What is used of `orbax.checkpoint.CheckpointManager`."""

    def latest_step(self) -> int | None: ...
    def all_steps(self) -> Sequence[int]: ...
    def save(self, step: int, *, args: object, force: bool) -> bool: ...
    def restore(self, step: int, *, args: object) -> Mapping[str, object]: ...
    def wait_until_finished(self) -> None: ...
    def close(self) -> None: ...


def open_manager(settings: Checkpoint, policy: KeepNewestAndBest, resume: bool) -> Manager:
    """Open a directory, once it is certain that its contents are this library's.

    Raises:
        ImportError: Orbax is not installed.
        CheckpointError: There are checkpoints and `resume` is false; the path is a file; or the checkpoints
            were not written by this library.
    """
    ocp = orbax()
    from etils import epath  # installed with Orbax; a path on disk or in a bucket

    path = epath.Path(settings.path)
    steps, halves = _steps_on_disk(path)
    _refuse_foreign(path, steps)
    if steps and not resume:
        found = f"checkpoint {steps[0]}" if len(steps) == 1 else f"checkpoints {listed(steps)}"
        raise CheckpointError(
            f"{path} already contains {found}. Continue from there with resume=True, or choose another "
            "directory: nothing is overwritten."
        )
    _warn_of_incomplete(path, steps, halves)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=bool(halves),
        save_root_metadata=False,
        # A directory that cannot be created in the background blocks the end of the process for minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    with checkpoint_errors(f"the checkpoints in {path} cannot be read", "They were left unchanged."):
        return ocp.CheckpointManager(path, options=options)


def _steps_on_disk(path: "epath.Path") -> tuple[list[int], list[int]]:
    """Steps of the checkpoints in a directory, and of those that are incomplete."""
    if not path.exists():
        return [], []
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, but checkpoints need a directory.")
    names = [each.name for each in path.iterdir()]
    whole = sorted(int(name) for name in names if name.isdecimal())
    halves = sorted(
        int(name.split(".")[0]) for name in names if name.split(".")[0].isdecimal() and _HALF in name
    )
    return whole, halves


def _refuse_foreign(path: "epath.Path", steps: Sequence[int]) -> None:
    """What the newest checkpoint contains shows whether this library wrote it."""
    if steps and not (path / str(steps[-1]) / "about").exists():
        raise CheckpointError(
            f"checkpoint {steps[-1]} in {path} was not written by jaxprop, or is damaged: it does not contain "
            "'about'. It was left unchanged; choose another directory."
        )


def _warn_of_incomplete(path: "epath.Path", steps: Sequence[int], halves: Sequence[int]) -> None:
    half = max(halves, default=-1)
    if half > max(steps, default=-1) and jax.process_index() == 0:
        instead = f"continuing from checkpoint {max(steps)}" if steps else "starting over"
        warn_user(
            f"checkpoint {half} in {path} is incomplete: the run ended while it was being written. It is "
            f"skipped, {instead}."
        )


@contextlib.contextmanager
def checkpoint_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn an error inside into a `CheckpointError` that says which checkpoint it concerns."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split(" [tensorstore_spec")[0].split()) or type(error).__name__
        text = f"{what}: {shortened(reason, _REASON).rstrip('.')}. {advice}"
        raise CheckpointError(text.rstrip()) from error


# --- arrays to and from disk ------------------------------------------------------------------------------


def save_arguments(
    state: Mapping[str, StateArray], progress: Mapping[str, StateArray], about: Mapping[str, object]
) -> object:
    """Return what Orbax is to write."""
    ocp = orbax()
    tables = {"state": _without_empty(state), "progress": _without_empty(progress)}
    return ocp.args.Composite(state=ocp.args.PyTreeSave(tables), about=ocp.args.JsonSave(about))


def read_about(manager: Manager, step: int) -> object:
    """Read the JSON file of a checkpoint."""
    ocp = orbax()
    return manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]


def read_arrays(
    manager: Manager, step: int, wanted: Mapping[str, StateArray], progress: Mapping[str, np.ndarray]
) -> tuple[dict[str, StateArray], dict[str, np.ndarray]]:
    """Read the arrays of a checkpoint.

    Args:
        manager: Orbax's manager of the directory.
        step: Which checkpoint.
        wanted: For each array of the state, an array of its shape, dtype and devices.
        progress: For each array of the progress, an array of its shape and dtype.
    """
    ocp = orbax()
    on_host = ocp.RestoreArgs(restore_type=np.ndarray)
    args = {
        "state": {path: _restore_args(leaf) for path, leaf in wanted.items() if leaf.size},
        "progress": {key: on_host for key, array in progress.items() if array.size},
    }
    args = {name: table or {_NOTHING: on_host} for name, table in args.items()}
    item = jax.tree.map(lambda _: 0, args, is_leaf=lambda x: isinstance(x, ocp.RestoreArgs))
    items = ocp.args.Composite(state=ocp.args.PyTreeRestore(item=item, restore_args=args))
    read = cast("Mapping[str, Mapping[str, StateArray]]", manager.restore(step, args=items)["state"])
    data = {path: _placed(leaf, read["state"].get(path)) for path, leaf in wanted.items()}
    return data, {key: np.asarray(read["progress"].get(key, empty)) for key, empty in progress.items()}


def _without_empty(table: Mapping[str, StateArray]) -> dict[str, StateArray]:
    """What can be written: Orbax accepts neither arrays without elements nor an empty table."""
    return {path: value for path, value in table.items() if value.size} or {_NOTHING: np.zeros(1, np.int8)}


def _restore_args(leaf: StateArray) -> object:
    """Where to restore a leaf: on the devices to which the template is committed, else on the host."""
    ocp = orbax()
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or not getattr(leaf, "committed", True):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding)


def _placed(template: StateArray, data: StateArray | None) -> StateArray:
    if data is None:  # without elements, so never written
        data = np.zeros(template.shape, template.dtype)
    if isinstance(template, np.ndarray) or isinstance(data, jax.Array):
        return data
    return jnp.array(data)
