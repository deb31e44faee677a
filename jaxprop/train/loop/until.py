"""Conditions that end a run early."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from ...core.types import Array

#: A function of the row of a step that says whether the run ends with this step.
Condition: TypeAlias = Callable[[Mapping[str, Any]], Any]

_NOT_TRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


@dataclass(frozen=True)
class Until:
    """What ends a run before its steps or epochs are done.

    Pass it to `fit` as `until`; `until=condition` is short for `Until(condition)`.

    Attributes:
        condition: A function of the row of a step, such as `lambda row: row["loss"] < 1e-6`. The step for
            which it is true is the last. It is evaluated in every step, inside the compiled program; if it
            reads a name that starts with `eval_`, after every evaluation.
        seconds: The time limit.
        nonfinite: Whether to stop before a step whose loss or gradient is not finite. That step is then
            diagnosed: `history.stop.report` says which operation produced the NaN, where and why (see
            `diagnose`).
        save_bad_step: A file such as "bad_step.npz" for everything the loss was called with in that step. To
            call it again: `args, kwargs = jaxprop.diagnosis.load_reproduction(file)`, then `loss(*args,
            **kwargs)`.

    Raises:
        TypeError: `condition` is not a function.
        ValueError: `seconds` is not positive.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x):
        ...     return (w - x) ** 2
        >>> until = jp.train.Until(jp.train.below("loss", 0.5), seconds=60.0)
        >>> _, history = jp.fit(loss, 1.0, (0.0,), steps=1000, until=until, progress=False)
        >>> history.stop.reason, history.stop.step
        ('until', 19)
    """

    condition: Condition | None = None
    seconds: float | None = None
    nonfinite: bool = True
    save_bad_step: str | Path | None = None

    def __post_init__(self) -> None:
        if self.condition is not None and not callable(self.condition):
            raise TypeError(
                "`until` must be a function of the row of a step, such as `lambda row: row['loss'] < 1e-6`, "
                f"or a jaxprop.train.Until; got {self.condition!r}."
            )
        if self.seconds is not None and (isinstance(self.seconds, bool) or not self.seconds > 0):
            raise ValueError(f"`seconds` must be a positive number, got {self.seconds!r}.")


def as_until(until: Condition | Until | None) -> Until:
    """Interpret `until` of `fit`: None, an `Until`, or a condition."""
    return until if isinstance(until, Until) else Until(until)


def below(name: str, limit: float) -> Condition:
    """Return the condition that a number is below a limit: `fit(..., until=below("loss", 1e-6))`.

    Args:
        name: A name in the row of a step: `loss`, a scalar of `aux`, or a name that starts with `eval_`.
        limit: In units of the number.

    Examples:
        >>> import jaxprop as jp
        >>> bool(jp.train.below("loss", 0.5)({"loss": 0.4}))
        True
    """

    def is_below(row: Mapping[str, Any]) -> Any:
        return row[name] < limit

    return is_below


class NameRecorder(Mapping[str, Array]):
    """A row that has every name, and records which were read."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Array:
        self.names.append(name)
        return jnp.float32(1)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __contains__(self, name: object) -> bool:
        return True


def split_condition(condition: Condition | None, evaluates: bool) -> tuple[Condition | None, Condition | None]:
    """Return a condition as (evaluated in every step on the device, evaluated after each evaluation).

    Raises:
        ValueError: It reads `eval_...`, but nothing is evaluated.
        TypeError: It needs the concrete value of a traced array.
    """
    if condition is None:
        return None, None
    row = NameRecorder()
    failed: Exception | None = None
    try:
        jax.eval_shape(lambda: jnp.asarray(condition(row), bool))
    except _NOT_TRACEABLE as error:
        failed = error
    evaluated = [name for name in row.names if name.startswith("eval_")]
    if not evaluated and failed is not None:
        raise TypeError(
            "`until` is evaluated in every step, inside the compiled program, where Python cannot branch on "
            "its result. Write it with `&`, `|`, `~` and `jnp.where` on the row, without `and`, `or`, `if` "
            "and `float()`."
        ) from failed
    if evaluated and not evaluates:
        raise ValueError(f"`until` reads {evaluated[0]!r}, but nothing is evaluated: pass `evaluation`.")
    return (None, condition) if evaluated else (condition, None)


def evaluate_condition(condition: Condition, row: Mapping[str, Array | float]) -> Array | bool:
    """Return whether the run ends.

    Raises:
        KeyError: The condition reads a name that is not in the row.
    """
    try:
        return condition(row)
    except KeyError as error:
        raise KeyError(
            f"`until` reads {error.args[0]!r}, but the row of a step has {', '.join(row)}."
        ) from error
