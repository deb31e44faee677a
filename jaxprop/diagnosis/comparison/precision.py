"""What a lower precision does to a gradient: whether it is still right, and where its digits are lost."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._api import backprop
from ..._text import listed, shortened
from ..._tracing import check_points, name_of
from ...core.graph import Node
from ...core.structure import consumers
from ...core.types import Dtype, Function, PyTree
from ...record.tape import Tape
from ..compiled import jit_with_structure
from ..passes import as_numpy
from ..report import Finding, Report, Severity, at
from ..zero.wording import quoted, repetition
from .alignment import Recorded, align
from .compare import Comparison, Pair, compare_aligned
from .deviations import Deviation, Floors, eps_of, norm_of
from .scaling import Scaled, advice, scale_table, try_scales, wider_than, window_of

#: A gradient that is off by more than this fraction of its norm is wrong for certain.
HALF = 0.5

#: How often the reference is run again with its arguments moved by one rounding.
PERTURBATIONS = 2


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
        references = _references(run, take, high)
        low_args, low_kwargs = take(low)
        try:
            tape = run(*low_args, **low_kwargs)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(_does_not_run(fun, low, error)) from error
        aligned = align(tape, references[0])
        compared = compare_aligned(tape, aligned, allowed, _measured_floors(aligned, references[1:]))
        gradient = _Gradient.of(tape, references)
        scales = try_scales(fun, argnums, has_aux, low_args, low_kwargs, tape, compared)
        window, scale = window_of(scales)
        causes = _Causes(tape, compared, gradient, allowed, low, high)
        findings = causes.findings(advice(scales, window, scale, low))
        figures: dict[str, Any] = {
            "compared": len(compared.pairs),
            "tolerance": allowed,
            "gradient": gradient.total,
        }
        if scales:
            figures["scale"] = scale
        if window is not None:
            figures["window"] = list(window)
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
        return jnp.asarray(x, dtype) if _is_floating(x) else x

    cast = tuple(jax.tree.map(leaf, arg) if i in chosen else arg for i, arg in enumerate(args))
    return cast, jax.tree.map(leaf, kwargs) if keywords else kwargs


def _is_floating(x: object) -> bool:
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)  # type: ignore[attr-defined]


# --- the reference, and its own errors -----------------------------------------------------------------------


def _references(run: Callable[..., Tape], take: Callable[..., Any], high: np.dtype) -> list[Tape]:
    """The reference, and the same with its arguments moved by one rounding."""
    doubles = jax.dtypes.canonicalize_dtype(np.float64) == np.float64
    with jax.enable_x64(high.itemsize > 4 or doubles):
        args, kwargs = take(high)
        points = [(args, kwargs), *(_moved((args, kwargs), seed) for seed in range(PERTURBATIONS))]
        return [as_numpy(run(*args, **kwargs)) for args, kwargs in points]


def _moved(tree: PyTree, seed: int) -> PyTree:
    """Move each element of the floating point leaves by one rounding, up or down."""
    rng = np.random.default_rng(seed)

    def leaf(x: Any) -> Any:
        if not _is_floating(x):
            return x
        signs = rng.choice([-1.0, 1.0], np.shape(x))
        return jnp.asarray(x * jnp.asarray(1 + eps_of(x.dtype) * signs, x.dtype), x.dtype)

    return jax.tree.map(leaf, tree)


def _measured_floors(aligned: Sequence[tuple[Recorded, Recorded]], moved: Sequence[Tape]) -> Floors:
    """The errors of the reference: how far it changes with the last bit of the arguments."""
    forward, backward = [], []
    for _, other in aligned:
        again = [Recorded(tape, other.names, other.node, other.value, other.steps) for tape in moved]
        forward.append(_change(other.forward(), [one.forward() for one in again], other.value.dtype))
        backward.append(_change(other.backward(), [one.backward() for one in again], other.value.dtype))
    return Floors(forward, backward)


def _change(x: Any, others: Sequence[Any], dtype: Dtype) -> float:
    if x is None or not eps_of(dtype):
        return 0.0
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        changes = [norm_of(np.asarray(other) - x) for other in others if other is not None]
    return 4 * max([eps_of(dtype) * norm_of(x), *filter(np.isfinite, changes)])


@dataclass(frozen=True)
class _Gradient:
    """The gradient in the lower precision against the reference's.

    Attributes:
        relative: relative error by leaf.
        excess: the same, less what the reference's own error explains; infinite where it is not finite.
        total: relative error of the whole gradient.
    """

    relative: Mapping[str, float]
    excess: Mapping[str, float]
    total: float

    @classmethod
    def of(cls, tape: Tape, references: Sequence[Tape]) -> "_Gradient":
        names = [value.name for value in tape.graph.inputs]
        low, high, *moved = [
            [np.asarray(x).astype(np.float64) for x in jax.tree.leaves(one.grads)]
            for one in (tape, *references)
        ]
        with np.errstate(all="ignore"):
            offs = [norm_of(a - b) for a, b in zip(low, high, strict=True)]
        sizes = [norm_of(b) for b in high]
        whole = norm_of(np.array(sizes))
        relative, excess = {}, {}
        for i, (name, off, size) in enumerate(zip(names, offs, sizes, strict=False)):
            floor = _change(high[i], [other[i] for other in moved], references[0].graph.inputs[i].dtype)
            relative[name] = _ratio(off, size)
            # A gradient that is truly zero is round-off in both: it is judged by the whole gradient.
            excess[name] = _ratio(max(0.0, off - floor), whole if size <= floor else size)
        return cls(relative, excess, _ratio(norm_of(np.array(offs)), whole))

    def wrong(self, allowed: float) -> tuple[str, ...]:
        """The leaves whose gradient is off by more than is allowed; twice that if the whole is not."""
        most = allowed if self.total > allowed else 2 * allowed
        return tuple(name for name, excess in self.excess.items() if not excess <= most)


def _ratio(off: float, size: float) -> float:
    if not np.isfinite(off):
        return np.inf
    return off / size if size else float(off > 0)


# --- findings ------------------------------------------------------------------------------------------------


class _Causes:
    """Where the digits of a gradient are lost."""

    def __init__(
        self,
        tape: Tape,
        compared: Comparison,
        gradient: _Gradient,
        allowed: float,
        low: np.dtype,
        high: np.dtype,
    ) -> None:
        self.tape, self.compared, self.gradient = tape, compared, gradient
        self.allowed, self.low, self.high = allowed, low, high
        self.wrong = gradient.wrong(allowed)
        self.result_is_wrong = any(
            pair.forward is not None and not pair.forward.excess <= allowed
            for pair in compared.pairs
            if pair.name in {value.name for value in tape.graph.outputs[: len(tape.seed)]}
        )

    def findings(self, fix: str) -> list[Finding]:
        found = [*self.overflow(), *self.underflow(fix)]
        if self.wrong or self.result_is_wrong:
            found += self.digits()
        located = any(finding.severity != "note" for finding in found)
        return found if located or not self.wrong else [*found, self.accumulated()]

    def at(self, pair: Pair) -> dict[str, Any]:
        return {**at(self.tape.graph, self.node(pair)), "node": pair.name}

    def node(self, pair: Pair) -> Node:
        return self.tape.graph[pair.name]

    @property
    def severity(self) -> Severity:
        return "error" if self.gradient.total > HALF else "warning"

    @property
    def effect(self) -> str:
        """What it does to the gradient, as a sentence."""
        if not self.wrong:
            return "The result is off, and the gradient is not."
        worst = max(self.wrong, key=lambda name: self.gradient.excess[name])
        names = listed([f"`{name}`" for name in self.wrong], 3)
        error = self.gradient.relative[worst]
        how = "not finite" if not np.isfinite(error) else f"off by {error:.2g} of its norm"
        return f"The gradient of {names} is {how}."

    def overflow(self) -> list[Finding]:
        """The first value, and the first cotangent, that is infinite in the lower precision alone."""
        sides = (
            ("value", [(pair, pair.forward) for pair in self.compared.pairs]),
            ("cotangent", [(pair, pair.backward) for pair in reversed(self.compared.pairs)]),
        )
        for word, pairs in sides:
            for pair, side in pairs:
                if side is not None and side.nonfinite:
                    return [self.overflown(word, pair, side)]
        return []

    def overflown(self, word: str, pair: Pair, side: Deviation) -> Finding:
        wider = " or ".join(reversed(wider_than(self.low)))
        return Finding(
            "overflow",
            "error",
            f"the {word} of `{pair.name}` is not finite in {self.low}, at {side.nonfinite} of {side.size} "
            "elements.",
            **self.at(pair),
            element=side.element,
            cause="overflow",
            why=f"The range of {self.low} ends at {float(jnp.finfo(self.low).max):.4g}.",
            fix=f"Compute it in {wider}, or make the numbers smaller before it.",
            numbers={"low": side.a, "reference": side.b},
        )

    def underflow(self, fix: str) -> list[Finding]:
        """The first node of the backward pass whose cotangent becomes zero in part."""
        hit = [
            (pair, side)
            for pair in reversed(self.compared.pairs)
            if (side := pair.backward) is not None and side.vanished and not side.nonfinite
        ]
        if not any(side.underflown for _, side in hit):
            return []  # what vanishes has cancelled
        first, side = next((pair, side) for pair, side in hit if side.underflown)
        leaves = [pair.name for pair, _ in hit if self.node(pair).primitive == "input"]
        total = sum(side.vanished for _, side in hit)
        return [
            Finding(
                "underflow",
                self.severity if self.wrong else "note",
                f"the cotangent of `{first.name}` underflows in {self.low}: {side.vanished} of {side.size} "
                f"elements are zero that are not in the reference; {total} elements in {len(hit)} values.",
                **self.at(first),
                element=side.element,
                cause="underflow",
                why=f"The smallest positive {self.low} is {float(jnp.finfo(self.low).smallest_subnormal):.2g}. "
                f"{self.effect if self.wrong else 'The gradient as a whole is right.'}",
                fix=fix,
                numbers={"low": side.a, "reference": side.b, "subnormal": side.subnormal},
                leaves=tuple(leaves),
            )
        ]

    def digits(self, most: int = 3) -> list[Finding]:
        """The nodes at which digits are lost, one or more."""
        found = []
        for pair in self.compared.pairs:
            for word, side in (("value", pair.forward), ("cotangent", pair.backward)):
                if side is None or side.nonfinite or side.underflown or side.excess <= self.allowed:
                    continue
                if side.lost >= 1:
                    found.append((side.lost, self.lost(word, pair, side)))
        return [finding for _, finding in sorted(found, key=lambda item: -item[0])[:most]]

    def lost(self, word: str, pair: Pair, side: Deviation) -> Finding:
        node = self.node(pair)
        cause, why = self.cancellation(word, pair, node)
        return Finding(
            "digits",
            self.severity,
            f"the {word} of `{pair.name}`{repetition(self.tape.graph, node)} loses {side.lost:.1f} digits in "
            f"{self.low}, and has {side.digits:.1f} left.",
            **self.at(pair),
            element=side.element,
            cause=cause,
            why=f"{why} {self.effect}".strip(),
            fix=self.fix(word, pair, node, cause),
            numbers={"relative": side.relative, "low": side.a, "reference": side.b},
            leaves=self.wrong,
        )

    def cancellation(self, word: str, pair: Pair, node: Node) -> tuple[str, str]:
        """Whether a sum cancels: of two operands, or of the contributions to a cotangent."""
        if word == "value":
            cancels = node.primitive in ("sub", "add", "reduce_sum", "dot_general")
            why = f"What {quoted(node)} adds nearly cancels: the rounding of its operands is what is left."
            return ("cancellation", why) if cancels else ("rounding", "")
        value = self.tape.graph.value(pair.name)
        readers = dict.fromkeys(reader for reader, _ in consumers(self.tape.graph).get(value.id, ()))
        active = [reader for reader in readers if reader.active]
        if len(active) < 2:
            return "rounding", ""
        names = " and ".join(dict.fromkeys(map(quoted, active[:3])))
        return "cancellation", f"The contributions of {names} to it nearly cancel."

    def fix(self, word: str, pair: Pair, node: Node, cause: str) -> str:
        if cause == "cancellation" and word == "value":
            names = listed([f"`{v.name}`" for v in node.operands if v.literal is None], 2)
            return f"Compute {names} in {self.high} already: what is rounded to {self.low} before is lost."
        if cause == "cancellation":
            return (
                "Write the contributions as one expression whose parts do not cancel (`jnp.var`, `log1p`, "
                f"`expm1`), or compute `{pair.name}` and what reads it in {self.high}."
            )
        return f"Compute it in {self.high}: `x.astype(jnp.{self.high})` before, `.astype(x.dtype)` after."

    def accumulated(self) -> Finding:
        return Finding(
            "digits",
            "warning",
            f"the gradient differs in {self.low} from {self.high} by {self.gradient.total:.2g} of its norm.",
            cause="rounding",
            why=f"No single node loses a digit: the rounding of many adds up. {self.effect}",
            fix=f"Keep sums and parameters in {self.high} (mixed precision), or run all of it in {self.high}.",
            numbers={name: self.gradient.relative[name] for name in self.wrong[:4]},
            leaves=self.wrong,
        )
