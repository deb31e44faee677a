"""Where checkpoints go, how often, and which are kept."""

import os
from dataclasses import dataclass
from typing import Literal


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names it. What is on disk is left unchanged."""


@dataclass(frozen=True)
class Checkpoint:
    """Where checkpoints go, how often they are written, and which are kept.

    Attributes:
        directory: The directory, with one subdirectory for each checkpoint; created if it does not exist. May
            be a bucket (`gs://...`). Under several processes it must be the same place for all.
        every: The number of steps between checkpoints.
        keep: How many of the newest checkpoints to keep.
        best: The name of a metric, such as "eval_loss"; the checkpoint with the best value is kept as well.
            `fit` also saves after an evaluation that is the best so far.
        mode: Whether the best value is the smallest or the largest.

    Raises:
        ValueError: `every` or `keep` is not a positive integer, or `mode` is neither "min" nor "max".

    Examples:
        >>> Checkpoint("runs/digits", every=500, keep=2, best="eval_loss")
        Checkpoint(directory='runs/digits', every=500, keep=2, best='eval_loss', mode='min')
    """

    directory: str | os.PathLike[str]
    every: int = 1000
    keep: int = 3
    best: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"Checkpoint({name}=...) must be a positive integer, got {number!r}.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"Checkpoint(mode=...) must be 'min' or 'max', got {self.mode!r}.")

    @property
    def path(self) -> str:
        """The directory as an absolute path; a bucket's address unmodified."""
        path = os.fspath(self.directory)
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))
