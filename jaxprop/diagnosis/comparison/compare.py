"""Find where two runs of a program diverge: the first node, forward and backward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ... import _jaxpr
from ..._text import in_columns, listed
from ...record.tape import Tape
from ..report import Finding, Report, at, plain
from .alignment import TapeValue, align
from .deviations import Deviation, Floors, Side, backward_floors, deviations, forward_floors

#: Relative differences that are rounding, by the less precise dtype of the two.
TOLERANCE: Mapping[str, float] = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Pair:
    """One value on two tapes.

    Attributes:
        name, other: its names there.
        forward: how far the values are apart; None where they are not floating point.
        backward: how far the cotangents are apart; None where none arrives.
    """

    name: str
    other: str
    forward: Deviation | None
    backward: Deviation | None


@dataclass(frozen=True)
class Comparison(Report):
    """Two tapes, value by value.

    Attributes:
        pairs: in forward order.
        unmatched: recorded names of the first tape without a counterpart.
    """

    pairs: tuple[Pair, ...] = ()
    unmatched: tuple[str, ...] = ()

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for pair in self.pairs:
            if pair.name == key:
                return pair
        raise KeyError(f"{key!r} was not compared. Available names: {listed([p.name for p in self.pairs])}.")

    def worst(self, count: int = 10) -> tuple[Pair, ...]:
        """The pairs farthest apart, forward or backward."""
        return tuple(sorted(self.pairs, key=_distance, reverse=True)[:count])

    def data(self) -> dict[str, Any]:
        return super().data() | {
            "pairs": [
                {
                    "name": pair.name,
                    "other": pair.other,
                    "forward": pair.forward and plain(vars(pair.forward)),
                    "backward": pair.backward and plain(vars(pair.backward)),
                }
                for pair in self.pairs
            ],
            "unmatched": list(self.unmatched),
        }

    def __str__(self) -> str:
        return f"{super().__str__()}\n\nFarthest apart\n{self.table(self.worst())}"

    __repr__ = __str__

    def table(self, pairs: Sequence[Pair] | None = None) -> str:
        """Write the figures as text, one row a value; all of them in forward order by default."""
        rows: list[tuple[str, ...]] = [
            ("value", "forward", "digits", "lost here", "cotangent", "digits", "lost here", "zeroed")
        ]
        for pair in self.pairs if pairs is None else pairs:
            back = pair.backward
            zeroed = f"{back.vanished} of {back.size}" if back is not None and back.vanished else ""
            name = pair.name if pair.name == pair.other else f"{pair.name} ({pair.other})"
            rows.append((name, *_cells(pair.forward), *_cells(pair.backward), zeroed))
        return in_columns(rows)


def _cells(deviation: Deviation | None) -> tuple[str, str, str]:
    if deviation is None:
        return "", "", ""
    lost = f"{deviation.lost:.1f}" if deviation.lost > 0.05 else ""
    return f"{deviation.relative:.1e}", f"{deviation.digits:.1f}", lost


def _distance(pair: Pair) -> tuple[float, float]:
    known = [side for side in (pair.forward, pair.backward) if side is not None]
    return max((side.excess for side in known), default=0.0), max((side.lost for side in known), default=0.0)


def compare(a: Tape, b: Tape, *, tolerance: float | None = None) -> Comparison:
    """Find where two tapes diverge: the first node in the forward pass, and the first in the backward pass.

        relative = |a - b| / |b|        (2-norms, over all steps of a loop)

    Values are matched by name and order, then by what they are computed from: the programs may differ in
    conversions, `jit`, `jax.checkpoint`, or a loop that is unrolled. The second tape is the reference. What its
    own rounding explains does not count: a value that is truly zero comes out as round-off on both.

    Args:
        a: a tape with values and cotangents (`record=None`).
        b: another, the reference.
        tolerance: the relative difference that counts as diverging; by default what rounding of the less
            precise dtype of the two explains.

    Returns:
        A `Comparison`: one finding for each direction in which they diverge, and figures for every value.

    Raises:
        TypeError: a tape was recorded with another recorder.
        ValueError: the tapes have no value in common.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, slope):
        ...     h = w * 2.0
        ...     y = jnp.where(h > 0, h, slope * h)
        ...     return jnp.sum(y**2)
        >>> w = jnp.array([1.0, -1.0])
        >>> found = jp.compare(jp.backprop(loss)(w, 0.1), jp.backprop(loss)(w, 0.2))
        >>> [(finding.kind, finding.node) for finding in found]
        [('forward', 'slope'), ('backward', 'y')]
    """
    for tape in (a, b):
        if not tape.is_full:
            raise TypeError("compare needs values and cotangents unreduced: record them with record=None.")
    aligned = align(a, b)
    if not aligned:
        raise ValueError("the two tapes have no value in common: no name, shape and operation is on both.")
    return compare_aligned(a, aligned, tolerance)


def compare_aligned(
    a: Tape,
    aligned: Sequence[tuple[TapeValue, TapeValue]],
    tolerance: float | None,
    floors: Floors | None = None,
) -> Comparison:
    """Compare two tapes whose values are paired.

    Args:
        a: the first tape.
        aligned: pairs of its values and the reference's, in forward order.
        tolerance: as in `compare`.
        floors: what the reference's own rounding explains, where it was measured.
    """
    allowed = _tolerance(aligned) if tolerance is None else tolerance
    values = [(_floating(one.forward()), _floating(other.forward())) for one, other in aligned]
    cotangents = [(_floating(one.backward()), _floating(other.backward())) for one, other in aligned]
    floors = floors or Floors(forward_floors(aligned, values), backward_floors(aligned, cotangents))
    forward = deviations(aligned, values, floors.forward, Side.FORWARD)
    backward = deviations(aligned, cotangents, floors.backward, Side.BACKWARD, forward)
    pairs = tuple(
        Pair(one.name, other.name, there, back)
        for (one, other), there, back in zip(aligned, forward, backward, strict=True)
    )
    findings = [
        *_divergence(aligned, forward, allowed, "forward"),
        *_divergence(aligned, backward, allowed, "backward"),
    ]
    matched = {name for one, _ in aligned for name in one.names}
    unmatched = tuple(name for name in a.names if name not in matched)
    figures = {"compared": len(pairs), "without counterpart": len(unmatched), "tolerance": allowed}
    title = ", ".join(value.name for value in a.graph.outputs[:1])
    return Comparison(f"compare {title}", tuple(findings), figures, (), pairs, unmatched)


def _tolerance(aligned: Sequence[tuple[TapeValue, TapeValue]]) -> float:
    dtypes = [one.value.dtype for pair in aligned for one in pair]
    names = {str(jnp.finfo(dtype).dtype) for dtype in dtypes if _jaxpr.is_inexact(dtype)}
    return max((TOLERANCE.get(name, 0.1) for name in names), default=TOLERANCE["float64"])


def _floating(x: ArrayLike | None) -> np.ndarray | None:
    """An array in double precision; None where it is not floating point."""
    if x is None or not _jaxpr.is_inexact(jnp.result_type(x)):
        return None
    x = np.asarray(x)
    return x.astype(np.complex128 if np.issubdtype(x.dtype, np.complexfloating) else np.float64)


def _divergence(
    aligned: Sequence[tuple[TapeValue, TapeValue]],
    sides: Sequence[Deviation | None],
    tolerance: float,
    direction: str,
) -> list[Finding]:
    order = range(len(aligned)) if direction == "forward" else reversed(range(len(aligned)))
    for i in order:
        side = sides[i]
        if side is None or side.excess <= tolerance:
            continue
        one = aligned[i][0]
        what = "values" if direction == "forward" else "cotangents"
        depth = len(one.steps)
        return [
            Finding(
                direction,
                "warning",
                f"in the {direction} pass the {what} diverge at `{one.name}`: {_extent(side)}.",
                **{**at(one.tape.graph, one.node), "node": one.name},
                step=side.element[:depth],
                element=side.element[depth:],
                cause="diverges",
                numbers={
                    "relative": side.relative,
                    "tolerance": tolerance,
                    "ulps": side.ulps,
                    "first": side.a,
                    "second": side.b,
                },
            )
        ]
    return []


def _extent(side: Deviation) -> str:
    if side.nonfinite:
        return f"{side.nonfinite} of {side.size} elements are NaN or infinite in the first only"
    return f"they differ by {side.relative:.2g} of the norm of the second"
