"""What a lower precision does to a gradient: whether it is still right, and where its digits are lost."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._api import backprop
from ..._text import shortened
from ..._tracing import check_points, name_of
from ...core.types import Dtype, Function, PyTree
from ...record.tape import Tape
from ..compiled import jit_with_structure
from ..report import Report
from .alignment import align
from .compare import Comparison, compare_aligned
from .digit_loss import DigitLoss
from .references import GradientError, is_floating, measured_floors, run_references
from .scaling import Scaled, advice, scale_table, try_scales, window_of


@dataclass(frozen=True)
class Precision(Report):
    """A run in a lower precision, compared with the reference.

    Attributes:
        comparison: every value, low against reference.
        scales: what scaling the loss does, by scale.
        window: the least and the greatest scale at which nothing under- or overflows; None where there is none.
        scale: the scale advised: the middle of the window, 1 where nothing is to be gained.
        gradient: relative error of the gradient with respect to each leaf, by name: `|low - reference| /
            |reference|` in 2-norms.
    """

    comparison: Comparison | None = None
    scales: tuple[Scaled, ...] = ()
    window: tuple[float, float] | None = None
    scale: float = 1.0
    gradient: Mapping[str, float] | None = None

    def data(self) -> dict[str, Any]:
        return super().data() | {
            "comparison": None if self.comparison is None else self.comparison.data(),
            "scales": [vars(scaled) for scaled in self.scales],
            "window": self.window and list(self.window),
            "scale": self.scale,
            "gradient": dict(self.gradient or {}),
        }

    def __str__(self) -> str:
        parts = [super().__str__()]
        if self.comparison is not None:
            pairs = self.comparison.worst()
            parts.append(f"Farthest from the reference\n{self.comparison.table(pairs)}")
        if any(not scaled.clean for scaled in self.scales):
            parts.append(f"The loss scaled\n{scale_table(self.scales)}")
        return "\n\n".join(parts)

    __repr__ = __str__


def precision(
    fun: Function,
    dtype: Any,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    reference: Any = jnp.float32,
    cast: str = "all",
    tolerance: float | None = None,
) -> Callable[..., Precision]:
    """Run a function in a lower precision and compare its gradient with that of a higher one.

    The floating point leaves of the arguments are converted; the function is run unmodified. Integers, booleans
    and keys stay what they are. First the gradients themselves are compared. If they differ, every value and
    every cotangent is, to find the node at which the digits are lost: by cancellation, rounding, underflow or
    overflow. For cotangents that underflow it reports the scales of the loss at which none do.

    A value that is truly zero is round-off in both precisions. So the reference is run again with its arguments
    moved by one rounding: what changes by as much as it is says nothing.

    Args:
        fun: as in `backprop`, like `argnums` and `has_aux`.
        dtype: the lower precision, such as `jnp.bfloat16` or `jnp.float16`.
        reference: the higher one, `jnp.float32` or `jnp.float64`.
        cast: which leaves are converted: `all`, or `params`, those of the differentiated arguments.
        tolerance: relative difference from the reference that is not a finding; by default 0.1 for bfloat16,
            0.02 for float16.

    Returns:
        A function of the same arguments that gives a `Precision`.

    Raises:
        TypeError, ValueError: as `backprop`; a dtype is not a floating point one, or the reference is not the
            higher.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w):
        ...     h = 1e-3 * w
        ...     return jnp.mean(h**2)
        >>> found = jp.precision(loss, jnp.float16)(jnp.full(1000, 1e-2))
        >>> [finding.kind for finding in found]
        ['underflow']
        >>> found.scale >= found.window[0] > 1.0
        True

    Source: Micikevicius et al., Mixed Precision Training (2018), section 3.2.
    """
    low, high = jnp.dtype(dtype), jnp.dtype(reference)
    _check_dtypes(low, high)
    if cast not in ("all", "params"):
        raise ValueError(f"`cast` is 'all' or 'params', got {cast!r}.")
    allowed = _ALLOWED.get(low.name, 1e-3) if tolerance is None else tolerance
    run = jit_with_structure(backprop(fun, argnums, has_aux))

    @functools.wraps(fun, updated=())
    def measured(*args: Any, **kwargs: Any) -> Precision:
        check_points(args, argnums, fun, False, False, "precision")
        chosen = _chosen(args, argnums) if cast == "params" else range(len(args))
        take = functools.partial(_cast, args, kwargs, chosen, cast == "all")
        references = run_references(run, take, high)
        low_args, low_kwargs = take(low)
        tape = _run_low(fun, run, low, low_args, low_kwargs)
        aligned = align(tape, references[0])
        compared = compare_aligned(tape, aligned, allowed, measured_floors(aligned, references[1:]))
        gradient = GradientError.of(tape, references)
        scales = try_scales(fun, argnums, has_aux, low_args, low_kwargs, tape, compared)
        window, scale = window_of(scales)
        causes = DigitLoss(tape, compared, gradient, allowed, low, high)
        findings = causes.findings(advice(scales, window, scale, low))
        figures = {"compared": len(compared.pairs), "tolerance": allowed, "gradient": gradient.total}
        figures |= {"scale": scale} if scales else {}
        figures |= {} if window is None else {"window": list(window)}
        return Precision(
            f"precision {name_of(fun)}, {low.name} against {high.name}",
            tuple(findings),
            figures,
            comparison=compared,
            scales=scales,
            window=window,
            scale=scale,
            gradient=gradient.relative,
        )

    return measured


_ALLOWED: Mapping[str, float] = {"bfloat16": 0.1, "float16": 0.02, "float32": 1e-4}


def _run_low(
    fun: Function,
    run: Callable[..., Tape],
    dtype: Dtype,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
) -> Tape:
    try:
        return run(*args, **kwargs)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise TypeError(_does_not_run(fun, dtype, error)) from error


def _does_not_run(fun: Function, dtype: Dtype, error: Exception) -> str:
    said = shortened(" ".join(str(error).split()).rstrip("."), 203)
    return (
        f"`{name_of(fun)}` does not run in {dtype}: {said}. Some operation does not take {dtype}, or meets "
        "another dtype. Convert around it, `x.astype(jnp.float32)`, as mixed precision does; or cast the "
        "parameters alone, cast='params'."
    )


def _check_dtypes(low: np.dtype, high: np.dtype) -> None:
    for name, dtype in (("dtype", low), ("reference", high)):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"`{name}` must be a floating point dtype, got {dtype}.")
    if float(jnp.finfo(high).eps) >= float(jnp.finfo(low).eps):
        raise ValueError(f"the reference must be more precise: {high} is not more precise than {low}.")


def _chosen(args: tuple[PyTree, ...], argnums: int | tuple[int, ...]) -> list[int]:
    numbers = argnums if isinstance(argnums, tuple | list) else (argnums,)
    return [int(i) % len(args) for i in numbers]


def _cast(
    args: tuple[PyTree, ...], kwargs: dict[str, PyTree], chosen: Sequence[int], keywords: bool, dtype: np.dtype
) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    def leaf(x: Any) -> Any:
        if isinstance(x, float):
            return jnp.asarray(x, dtype)
        return jnp.asarray(x, dtype) if is_floating(x) else x

    cast = tuple(jax.tree.map(leaf, arg) if i in chosen else arg for i, arg in enumerate(args))
    return cast, jax.tree.map(leaf, kwargs) if keywords else kwargs
