"""The interface of writers, which store the rows of a run.

A row is a flat mapping from names to numbers ("loss", "steps_per_second", "h/cotangent/norm").
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Writer(Protocol):
    """Anything that takes rows: an object with these two methods. It need not inherit from this class.

    A writer that also has a method `resume(step)` is told, before the first row of a resumed run, the step
    after which the run continues: rows of later steps were written by the run that was killed, and will be
    written again. One that has a method `write_histograms(step, histograms)` gets histograms by name too, as
    `jaxprop.train.Histogram`, with `Watch(histograms=...)`.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> class Last:
        ...     def write(self, step, row):
        ...         self.row = {"step": step, **row}
        ...
        ...     def close(self): ...
        >>> last = Last()
        >>> isinstance(last, jp.train.Writer)
        True
        >>> _ = jp.fit(lambda w, x: (w - x) ** 2, 0.0, (1.0,), steps=3, writers=[last], progress=False)
        >>> last.row["step"], round(last.row["loss"], 3)
        (3, 0.922)
    """

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Take the numbers of one step."""
        ...

    def close(self) -> None:
        """Release what was opened. No row comes after it."""
        ...


def resume_at(writers: Iterable[Writer], step: int) -> None:
    """Tell each writer that has a method `resume` that the run continues after `step`."""
    for writer in writers:
        resume = getattr(writer, "resume", None)
        if resume is not None:
            resume(step)


def number_of(name: str, value: object) -> bool | int | float:
    """Return a number of a row as a Python number.

    Raises:
        TypeError: It is not a single real number.
    """
    array = np.asarray(value)
    if array.size == 1 and array.dtype != object and not np.issubdtype(array.dtype, np.complexfloating):
        plain = array.item() if array.dtype.kind in "biuf" else _extended_float(array)
        if isinstance(plain, bool | int | float):
            return plain
    raise TypeError(f"a row holds single real numbers, but {name!r} is {_description(value)}.")


def _extended_float(array: np.ndarray) -> float | None:
    """Types that NumPy does not have itself (bfloat16) as float."""
    try:
        return float(array.astype(np.float64).item())
    except (TypeError, ValueError):
        return None


def _description(value: object) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    return f"{value!r}" if isinstance(value, str) else f"of type {type(value).__name__}"
