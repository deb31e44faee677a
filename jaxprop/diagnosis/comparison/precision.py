"""What a lower precision does to a gradient: digits lost, underflow, overflow, and whether a scale fixes it."""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _api
from ..._text import in_columns
from ..._tracing import check_points, name_of
from ...core.recorders import Recorder
from ...core.types import Array
from ...record.tape import Tape
from ..passes import as_numpy
from ..report import Finding, Report, at
from .compare import Comparison, Pair, compare

#: Powers of two tried as a scale of the loss.
POWERS = tuple(range(0, 25))


@dataclass(frozen=True)
class Scaled:
    """The backward pass with the loss scaled.

    Attributes:
        scale: the factor.
        underflow: elements of cotangents that are zero, and are not in the reference.
        nonfinite: elements of cotangents that are NaN or infinite.
        worst: the greatest fraction of one cotangent that underflows.
    """

    scale: float
    underflow: int
    nonfinite: int

    worst: float

    @property
    def clean(self) -> bool:
        """Whether nothing is lost: one element in fifty of a value may cancel out."""
        return self.worst <= 0.02 and not self.nonfinite


@dataclass(frozen=True)
class Precision(Report):
    """A run in a lower precision beside the reference.

    Attributes:
        comparison: every value, low against reference.
        scales: what scaling the loss does, by scale.
        window: the least and the greatest scale at which nothing under- or overflows; None where there is none.
        scale: the scale advised: the middle of the window, 1 where nothing is to be gained.
    """

    comparison: Comparison | None = None
    scales: tuple[Scaled, ...] = ()
    window: tuple[float, float] | None = None
    scale: float = 1.0

    def data(self) -> dict[str, Any]:
        return super().data() | {
            "comparison": None if self.comparison is None else self.comparison.data(),
            "scales": [vars(scaled) for scaled in self.scales],
            "window": self.window and list(self.window),
            "scale": self.scale,
        }

    def __str__(self) -> str:
        parts = [super().__str__()]
        if self.comparison is not None:
            pairs = self.comparison.worst()
            parts.append(f"Farthest from the reference\n{self.comparison.table(pairs)}")
        if any(not scaled.clean for scaled in self.scales):
            parts.append(f"The loss scaled\n{_scale_table(self.scales)}")
        return "\n\n".join(parts)

    __repr__ = __str__


def precision(
    fun: Callable[..., Any],
    dtype: Any,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    reference: Any = jnp.float32,
    cast: str = "all",
    tolerance: float | None = None,
) -> Callable[..., Precision]:
    """Run a function in a lower precision and hold it against a higher one, node by node.

    The floating point leaves of the arguments are converted; the function is run as it stands. Integers,
    booleans and keys stay what they are. Said are: where digits are lost (at the node itself, not handed on),
    which cotangents underflow to zero, what overflows; and for which scales of the loss neither happens.

    Args:
        fun: as in `backprop`, and so `argnums` and `has_aux`.
        dtype: the lower precision, such as `jnp.bfloat16` or `jnp.float16`.
        reference: the higher one, `jnp.float32` or `jnp.float64`.
        cast: which leaves are converted: `all`, or `params`, those of the differentiated arguments.
        tolerance: relative difference from the reference that is no finding; by default 0.1 for bfloat16,
            0.02 for float16.

    Returns:
        A function of the same arguments that gives a `Precision`.

    Raises:
        TypeError, ValueError: as `backprop`; a dtype is no floating point one, or the reference is not the
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

    @functools.wraps(fun, updated=())
    def measured(*args: Any, **kwargs: Any) -> Precision:
        check_points(args, argnums, fun, False, False, "precision")
        chosen = _chosen(args, argnums) if cast == "params" else range(len(args))
        take = functools.partial(_cast, args, kwargs, chosen, cast == "all")
        doubles = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
        with jax.enable_x64(high.itemsize > 4 or doubles):
            wide = jax.jit(_api.backprop(fun, argnums, has_aux))(*take(high)[0], **take(high)[1])
            wide = as_numpy(wide)
        low_args, low_kwargs = take(low)
        try:
            tape = jax.jit(_api.backprop(fun, argnums, has_aux))(*low_args, **low_kwargs)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(_does_not_run(fun, low, error)) from error
        compared = compare(tape, wide, tolerance=allowed)
        scales = _scales(fun, argnums, has_aux, low_args, low_kwargs, tape, compared)
        window, scale = _window(scales)
        findings = _findings(tape, compared, allowed, low.name, _advice(scales, window, scale))
        figures = {"compared": len(compared.pairs), "tolerance": allowed}
        if scales:
            figures["scale"] = scale
        if window is not None:
            figures["window"] = list(window)
        title = f"precision {name_of(fun)}, {low.name} against {high.name}"
        return Precision(title, tuple(findings), figures, (), compared, scales, window, scale)

    return measured


_ALLOWED: Mapping[str, float] = {"bfloat16": 0.1, "float16": 0.02, "float32": 1e-4}


def _does_not_run(fun: Callable[..., Any], dtype: Any, error: Exception) -> str:
    said = " ".join(str(error).split()).rstrip(".")
    said = said if len(said) <= 200 else f"{said[:200]}..."
    return (
        f"`{name_of(fun)}` does not run in {dtype}: {said}. Something in it takes no {dtype}, or meets another "
        "dtype there. Convert around it, `x.astype(jnp.float32)`, as mixed precision does; or cast the "
        "parameters alone, cast='params'."
    )


def _check_dtypes(low: Any, high: Any) -> None:
    for name, dtype in (("dtype", low), ("reference", high)):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"`{name}` must be a floating point dtype, got {dtype}.")
    if float(jnp.finfo(high).eps) >= float(jnp.finfo(low).eps):
        raise ValueError(f"the reference must be more precise: {high} is not more precise than {low}.")


def _chosen(args: tuple[Any, ...], argnums: Any) -> list[int]:
    numbers = argnums if isinstance(argnums, tuple | list) else (argnums,)
    return [int(i) % len(args) for i in numbers]


def _cast(
    args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Sequence[int], keywords: bool, dtype: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def leaf(x: Any) -> Any:
        if isinstance(x, float):
            return jnp.asarray(x, dtype)
        floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, dtype) if floating else x

    cast = tuple(jax.tree.map(leaf, arg) if i in chosen else arg for i, arg in enumerate(args))
    return cast, jax.tree.map(leaf, kwargs) if keywords else kwargs


# --- scaling the loss ------------------------------------------------------------------------------


def _count(ct: Array) -> tuple[Array, Array]:
    zeros = jnp.sum(ct == 0, dtype=jnp.int32)
    return zeros, jnp.sum(~jnp.isfinite(ct), dtype=jnp.int32)


def _scales(
    fun: Callable[..., Any],
    argnums: Any,
    has_aux: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tape: Tape,
    compared: Comparison,
) -> tuple[Scaled, ...]:
    """The backward pass from other seeds, where something underflows: compiled once, run for powers of two."""
    if not any(pair.backward is not None and pair.backward.underflown for pair in compared.pairs):
        return ()
    if jax.tree.structure(tape.value) != jax.tree.structure(0.0) or jnp.shape(tape.value) != ():
        return ()
    dtype = tape.value.dtype
    record = Recorder.each(cotangent=_count)
    names = [pair.name for pair in compared.pairs if pair.backward is not None]

    @jax.jit
    def run(seed: Any, args: Any, kwargs: Any) -> Any:
        scaled = _api.backprop(fun, argnums, has_aux, record=record, cotangent=seed)(*args, **kwargs)
        counts = [scaled[name].cotangent for name in names]
        return [jnp.stack([jnp.sum(x) for x in count]) for count in counts if count is not None]

    true_zeros = [
        pair.backward.zeros - pair.backward.vanished for pair in compared.pairs if pair.backward is not None
    ]
    sizes = np.array([pair.backward.size for pair in compared.pairs if pair.backward is not None])
    found = []
    for power in POWERS:
        if 2.0**power > float(jnp.finfo(dtype).max):
            break
        counts = np.array(run(jnp.asarray(2.0**power, dtype), args, kwargs)).reshape(-1, 2)
        lost = np.maximum(counts[:, 0] - np.array(true_zeros), 0)
        worst = float(np.max(lost / np.maximum(sizes, 1), initial=0.0))
        found.append(Scaled(2.0**power, int(lost.sum()), int(counts[:, 1].sum()), worst))
    return tuple(found)


def _window(scales: Sequence[Scaled]) -> tuple[tuple[float, float] | None, float]:
    """The scales at which all is well, and the one to take."""
    if not scales:
        return None, 1.0
    clean = [scaled.scale for scaled in scales if scaled.clean]
    if scales[0].clean:
        return (clean[0], clean[-1]), 1.0
    if clean:
        return (clean[0], clean[-1]), 2.0 ** round((math.log2(clean[0]) + math.log2(clean[-1])) / 2)
    finite = [scaled for scaled in scales if not scaled.nonfinite]
    if not finite:
        return None, 1.0
    best = min(finite, key=lambda scaled: (scaled.underflow, scaled.scale))
    return None, best.scale if best.underflow < scales[0].underflow else 1.0


def _advice(scales: Sequence[Scaled], window: tuple[float, float] | None, scale: float) -> str:
    if not scales:
        return "Scale the loss, and divide the gradient by the scale in float32."
    how = "differentiate `scale * loss`, and divide the gradient by it in float32"
    if window is not None and scale > 1.0:
        first, last = (f"2**{round(math.log2(x))}" for x in window)
        return f"Scale the loss by 2**{round(math.log2(scale))}: {how}. From {first} to {last} nothing is lost."
    if scale > 1.0:
        least = min(scaled.underflow for scaled in scales if not scaled.nonfinite)
        return (
            f"A scale helps but does not fix: with 2**{round(math.log2(scale))} {least} of "
            f"{scales[0].underflow} elements are still lost. Compute this part in float32 or bfloat16."
        )
    return "A scale of the loss does not fix it. Compute this part in float32, or all of it in bfloat16."


# --- what is said --------------------------------------------------------------------------------------


def _findings(tape: Tape, compared: Comparison, tolerance: float, dtype: str, advice: str) -> list[Finding]:
    found = [*_overflow(tape, compared, dtype), *_underflow(tape, compared, dtype, advice)]
    return found + _digits(tape, compared, tolerance, dtype)


def _at(tape: Tape, pair: Pair) -> dict[str, Any]:
    return {**at(tape.graph, tape.graph[pair.name]), "node": pair.name}


def _overflow(tape: Tape, compared: Comparison, dtype: str) -> list[Finding]:
    """The first value, and the first cotangent, that is infinite in the lower precision alone."""
    sides = (
        ("value", [(pair, pair.forward) for pair in compared.pairs]),
        ("cotangent", [(pair, pair.backward) for pair in reversed(compared.pairs)]),
    )
    for word, pairs in sides:
        for pair, side in pairs:
            if side is not None and side.nonfinite:
                return [
                    Finding(
                        "overflow",
                        "error",
                        f"the {word} of `{pair.name}` is not finite in {dtype}, at {side.nonfinite} of "
                        f"{side.size} elements.",
                        **_at(tape, pair),
                        element=side.element,
                        cause="overflow",
                        why=f"{dtype} ends at {float(jnp.finfo(dtype).max):.4g}.",
                        fix="Compute it in float32 or bfloat16, or make the numbers smaller before it.",
                        numbers={"low": side.a, "reference": side.b},
                    )
                ]
    return []


def _underflow(tape: Tape, compared: Comparison, dtype: str, advice: str) -> list[Finding]:
    """The first node on the way back whose cotangent becomes zero in part, and the leaves it dies with."""
    hit = [pair for pair in reversed(compared.pairs) if pair.backward is not None and pair.backward.vanished]
    hit = [pair for pair in hit if not pair.backward.nonfinite]  # type: ignore[union-attr]
    if not any(pair.backward.underflown for pair in hit):  # type: ignore[union-attr]
        return []  # what vanishes has cancelled out
    first = hit[0]
    side = first.backward
    assert side is not None
    leaves = [pair.name for pair in hit if tape.graph[pair.name].primitive == "input"]
    total = sum(pair.backward.vanished for pair in hit if pair.backward is not None)
    return [
        Finding(
            "underflow",
            "warning",
            f"the cotangent of `{first.name}` underflows in {dtype}: {side.vanished} of {side.size} elements "
            f"are zero that are not in the reference; {total} elements in {len(hit)} values in all.",
            **_at(tape, first),
            element=side.element,
            cause="underflow",
            why=f"The smallest number of {dtype} is {float(jnp.finfo(dtype).smallest_subnormal):.2g}.",
            fix=advice,
            numbers={"low": side.a, "reference": side.b, "subnormal": side.subnormal},
            leaves=tuple(leaves),
        )
    ]


def _digits(tape: Tape, compared: Comparison, tolerance: float, dtype: str, most: int = 3) -> list[Finding]:
    """The nodes at which digits are lost, a whole one and more."""
    found = []
    for pair in compared.pairs:
        for word, side in (("value", pair.forward), ("cotangent", pair.backward)):
            if side is None or side.nonfinite or side.underflown or side.excess <= tolerance or side.lost < 1:
                continue
            finding = Finding(
                "digits",
                "warning",
                f"the {word} of `{pair.name}` loses {side.lost:.1f} digits in {dtype}, and has "
                f"{side.digits:.1f} left.",
                **_at(tape, pair),
                element=side.element,
                cause="cancellation" if tape.graph[pair.name].primitive in ("sub", "add") else "rounding",
                fix="Compute it in float32: `x.astype(jnp.float32)` before, `.astype(x.dtype)` after.",
                numbers={"relative": side.relative, "low": side.a, "reference": side.b},
            )
            found.append((side.lost, finding))
    return [finding for _, finding in sorted(found, key=lambda item: -item[0])[:most]]


def _scale_table(scales: Sequence[Scaled]) -> str:
    """One row for each run of scales that fare alike."""
    rows = [("scale", "underflow", "not finite")]
    for (underflow, nonfinite), alike in itertools.groupby(scales, lambda s: (s.underflow, s.nonfinite)):
        powers = [f"2**{round(math.log2(s.scale))}" for s in alike]
        rows.append((" to ".join(dict.fromkeys((powers[0], powers[-1]))), f"{underflow}", f"{nonfinite}"))
    return in_columns(rows)
