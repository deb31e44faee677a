"""Conditions that end a run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

#: From the row of a step to whether the run is to end with it.
Until: TypeAlias = Callable[[Mapping[str, Any]], Any]

_TRACED = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


@dataclass(frozen=True)
class below:  # noqa: N801  # read as a function: until=below("loss", 1e-6)
    """End a run when a number falls below a limit: `fit(..., until=jaxprop.train.below("loss", 1e-6))`.

    Attributes:
        name: a name in the row of a step: `loss`, a scalar of `aux`, or `eval_...`, which is looked at where it
            is evaluated.
        limit: the limit, in units of the number.

    Examples:
        >>> import jaxprop as jp
        >>> bool(jp.train.below("loss", 0.5)({"loss": 0.4}))
        True
    """

    name: str
    limit: float

    def __call__(self, row: Mapping[str, Any]) -> Any:
        return row[self.name] < self.limit


class _Asked(Mapping[str, Any]):
    """A row that has every name, and remembers which were asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.names.append(name)
        return jnp.float32(1)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __contains__(self, name: object) -> bool:
        return True


def split_until(until: Until | None, evaluates: bool) -> tuple[Until | None, Until | None]:
    """Where `until` is asked: (in every step, on the device; after each evaluation, on the host).

    Raises:
        ValueError: it reads `eval_...`, and nothing is evaluated.
        TypeError: it asks for the number behind a traced value.
    """
    if until is None:
        return None, None
    asked = _Asked()
    failed: Exception | None = None
    try:
        jax.eval_shape(lambda: jnp.asarray(until(asked), bool))
    except _TRACED as error:
        failed = error
    evaluated = [name for name in asked.names if name.startswith("eval_")]
    if not evaluated and failed is not None:
        raise TypeError(
            "`until` is asked in every step, inside the compiled program, where Python cannot branch: write "
            "it with `&`, `|`, `~` and `jnp.where` on the row, without `and`, `or`, `if` and `float()`."
        ) from failed
    if evaluated and not evaluates:
        raise ValueError(f"`until` reads {evaluated[0]!r}, and nothing is evaluated: pass eval_data.")
    return (None, until) if evaluated else (until, None)


def ask(until: Until, row: Mapping[str, Any]) -> Any:
    """Whether the run is to end.

    Raises:
        KeyError: it asks for what the row has not.
    """
    try:
        return until(row)
    except KeyError as error:
        raise KeyError(
            f"`until` asks for {error.args[0]!r}; the row of a step has {', '.join(row)}."
        ) from error
