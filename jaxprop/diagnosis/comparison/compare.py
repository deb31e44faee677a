"""Where two runs of a program part: the first node, forward and backward."""

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._text import in_columns
from ...core.graph import Graph
from ...core.types import ValueId
from ...record.tape import Tape
from ..report import Finding, Report, at, plain
from .alignment import Item, align

#: Relative differences that are rounding, by the less precise dtype of the two.
TOLERANCE: Mapping[str, float] = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Apart:
    """How far two arrays are apart.

    Attributes:
        relative: `|a - b| / |b|` in 2-norms.
        excess: the same, less what round-off of the numbers it is made from explains: this is judged.
        digits: `-log10(relative)`: decimal digits they share; 16 at most.
        ulps: `relative` in units of the spacing of the less precise dtype at 1.
        lost: digits lost at this very node: fewer than the worst it was made from.
        element: the element farthest apart; index into the array, step axes first.
        a, b: the numbers there.
        nonfinite: how many elements are NaN or infinite in the first and not in the second.
        vanished: how many are zero in the first and not in the second.
        underflown: how many of those are, in the second, below the smallest normal number of the first's dtype.
        zeros: how many are zero in the first.
        subnormal: how many are subnormal in the first.
        size: how many elements there are.
    """

    relative: float
    excess: float
    digits: float
    ulps: float
    lost: float
    element: tuple[int, ...]
    a: float | complex
    b: float | complex
    nonfinite: int
    vanished: int
    underflown: int
    zeros: int
    subnormal: int
    size: int


@dataclass(frozen=True)
class Pair:
    """One value on two tapes.

    Attributes:
        name, other: its names there.
        forward: how far the values are apart.
        backward: how far the cotangents are apart; None where none comes.
    """

    name: str
    other: str
    forward: Apart | None
    backward: Apart | None


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
        raise KeyError(
            f"{key!r} is not compared. Names there are: {', '.join(p.name for p in self.pairs[:8])}."
        )

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
        """The figures as text, one row a value; all of them in forward order by default."""
        rows: list[tuple[str, ...]] = [
            ("value", "forward", "digits", "lost here", "cotangent", "digits", "lost here", "zeroed")
        ]
        for pair in self.pairs if pairs is None else pairs:
            back = pair.backward
            zeroed = f"{back.vanished} of {back.size}" if back is not None and back.vanished else ""
            name = pair.name if pair.name == pair.other else f"{pair.name} ({pair.other})"
            rows.append((name, *_cells(pair.forward), *_cells(pair.backward), zeroed))
        return in_columns(rows)


def _cells(apart: Apart | None) -> tuple[str, str, str]:
    if apart is None:
        return "", "", ""
    return f"{apart.relative:.1e}", f"{apart.digits:.1f}", f"{apart.lost:.1f}" if apart.lost > 0.05 else ""


def _distance(pair: Pair) -> float:
    return max(
        (x.excess for x in (pair.forward, pair.backward) if x is not None),
        default=0.0,
    )


def compare(a: Tape, b: Tape, *, tolerance: float | None = None) -> Comparison:
    """Find where two tapes part: the first node on the way out, and the first on the way back.

        relative = |a - b| / |b|        (2-norms, over all steps of a loop)

    Values are matched by name and order, then by what they are made from: programs may differ in conversions,
    `jit`, `jax.checkpoint`, or a loop written out. The second tape is the reference.

    Args:
        a: a tape with values and cotangents (`record=None`).
        b: another, the reference.
        tolerance: the relative difference that counts as parting; by default what rounding of the less precise
            dtype of the two explains.

    Returns:
        A `Comparison`: one finding for each direction in which they part, and figures for every value.

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
            raise TypeError("compare needs values and cotangents as they are: record them with record=None.")
    aligned = align(a, b)
    if not aligned:
        raise ValueError("the two tapes have no value in common: no name, shape and operation is on both.")
    allowed = _tolerance(aligned) if tolerance is None else tolerance
    sources = _operands_of(a.graph)
    forward = _side(aligned, [(one.forward(), other.forward()) for one, other in aligned], sources)
    backward = _side(aligned, [(one.backward(), other.backward()) for one, other in aligned], None)
    forward = _with_losses(aligned, forward, sources)
    backward = _with_losses(aligned, backward, _readers_of(a.graph))
    pairs = tuple(
        Pair(one.name, other.name, there, back)
        for (one, other), there, back in zip(aligned, forward, backward, strict=True)
    )
    findings = [
        *_parting(aligned, forward, allowed, "forward"),
        *_parting(aligned, backward, allowed, "backward"),
    ]
    matched = {name for one, _ in aligned for name in one.names}
    unmatched = tuple(name for name in a.names if name not in matched)
    figures = {"compared": len(pairs), "without counterpart": len(unmatched), "tolerance": allowed}
    return Comparison(f"compare {_title(a)}", tuple(findings), figures, (), pairs, unmatched)


def _title(tape: Tape) -> str:
    return ", ".join(value.name for value in tape.graph.outputs[:1])


def _tolerance(aligned: Sequence[tuple[Item, Item]]) -> float:
    names = {str(jnp.finfo(i.value.dtype).dtype) for pair in aligned for i in pair if _is_float(i)}
    return max((TOLERANCE.get(name, 0.1) for name in names), default=TOLERANCE["float64"])


def _is_float(item: Item) -> bool:
    return _jaxpr.is_inexact(item.value.dtype)


# --- figures -------------------------------------------------------------------------------------------


def _side(
    aligned: Sequence[tuple[Item, Item]],
    arrays: Sequence[tuple[Any, Any]],
    sources: Mapping[ValueId, list[ValueId]] | None,
) -> list[Apart | None]:
    """How far each pair is apart.

    What is zero in truth comes out as round-off: it is judged by the scale of what it is made from (`sources`),
    a cotangent by the greatest of all.
    """
    wide = [None if a is None or b is None or not _floats(a, b) else (_wide(a), _wide(b)) for a, b in arrays]
    norms = {
        one.value.id: _norm(pair[1]) for (one, _), pair in zip(aligned, wide, strict=True) if pair is not None
    }
    greatest = max((norm for norm in norms.values() if math.isfinite(norm)), default=0.0)
    found: list[Apart | None] = []
    for (one, other), pair in zip(aligned, wide, strict=True):
        if pair is None:
            found.append(None)
            continue
        eps = max(float(jnp.finfo(item.value.dtype).eps) for item in (one, other))
        scale = greatest
        if sources is not None:
            scale = max((norms.get(id_, 0.0) for id_ in sources.get(one.value.id, ())), default=0.0)
        found.append(_apart(*pair, jnp.finfo(one.value.dtype), eps, 4 * eps * scale))
    return found


def _floats(a: Any, b: Any) -> bool:
    return _jaxpr.is_inexact(jnp.result_type(a)) and _jaxpr.is_inexact(jnp.result_type(b))


def _wide(x: Any) -> Any:
    x = np.asarray(x)
    return x.astype(np.complex128 if np.issubdtype(x.dtype, np.complexfloating) else np.float64)


def _norm(x: Any) -> float:
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(x.ravel()))


def _apart(a: Any, b: Any, info: Any, eps: float, rounding: float) -> Apart:
    both = np.isfinite(a) & np.isfinite(b)
    difference = np.where(both, np.abs(np.where(both, a, 0) - np.where(both, b, 0)), 0)
    bad = ~np.isfinite(a) & np.isfinite(b)
    size, off = _norm(np.where(both, b, 0)), _norm(difference)
    relative = off / size if size else float(off > 0)
    excess = max(0.0, off - rounding) / size if size else float(off > rounding)
    if bad.any():
        relative = excess = math.inf
    worst = int(np.argmax(np.where(bad, np.inf, difference))) if a.size else 0
    small = float(info.smallest_normal)
    return Apart(
        relative=relative,
        excess=excess,
        digits=_digits(relative),
        ulps=relative / eps,
        lost=0.0,
        element=tuple(int(i) for i in np.unravel_index(worst, a.shape)) if a.size else (),
        a=a.ravel()[worst].item() if a.size else 0.0,
        b=b.ravel()[worst].item() if a.size else 0.0,
        nonfinite=int(bad.sum()),
        vanished=int(((a == 0) & (b != 0)).sum()),
        underflown=int(((a == 0) & (b != 0) & (np.abs(b) < small)).sum()),
        zeros=int((a == 0).sum()),
        subnormal=int(((a != 0) & (np.abs(a) < small)).sum()),
        size=a.size,
    )


def _digits(relative: float) -> float:
    if relative == 0:
        return 16.0
    return max(0.0, min(16.0, -math.log10(relative))) if math.isfinite(relative) else 0.0


def _operands_of(graph: Graph) -> Mapping[ValueId, list[ValueId]]:
    """For each value the ids of those it is made from; an opened form's results are those of its body."""
    found: dict[ValueId, list[ValueId]] = defaultdict(list)
    for node in graph.walk():
        for value in node.outputs:
            found[value.id] += [operand.id for operand in node.operands]
            for nested in node.graphs:
                found[value.id] += [out.id for out in nested.outputs]
        for nested in node.graphs:
            for value in nested.inputs:
                found[value.id] += [operand.id for operand in node.operands]
    return found


def _readers_of(graph: Graph) -> Mapping[ValueId, list[ValueId]]:
    found: dict[ValueId, list[ValueId]] = defaultdict(list)
    for value, operands in _operands_of(graph).items():
        for operand in operands:
            found[operand].append(value)
    return found


def _with_losses(
    aligned: Sequence[tuple[Item, Item]],
    sides: Sequence[Apart | None],
    from_: Mapping[ValueId, list[ValueId]],
) -> list[Apart | None]:
    """Fill in the digits lost at the node itself: against the worst of what it is made from."""
    digits = {
        one.value.id: side.digits for (one, _), side in zip(aligned, sides, strict=True) if side is not None
    }

    @functools.cache
    def before(id_: ValueId, depth: int = 6) -> float | None:
        """Digits of the worst that this is made from, looking through what was not compared."""
        seen = []
        for source in from_.get(id_, ()):
            found = digits.get(source)
            if found is None and depth:
                found = before(source, depth - 1)
            if found is not None:
                seen.append(found)
        return min(seen, default=None)

    result: list[Apart | None] = []
    for (one, _), side in zip(aligned, sides, strict=True):
        least = before(one.value.id)
        if side is None or least is None:
            result.append(side)
            continue
        result.append(Apart(**{**vars(side), "lost": max(0.0, least - side.digits)}))
    return result


# --- what is said --------------------------------------------------------------------------------------


def _parting(
    aligned: Sequence[tuple[Item, Item]], sides: Sequence[Apart | None], tolerance: float, direction: str
) -> list[Finding]:
    order = range(len(aligned)) if direction == "forward" else reversed(range(len(aligned)))
    for i in order:
        side = sides[i]
        if side is None or side.excess <= tolerance:
            continue
        one, other = aligned[i]
        what = "values" if direction == "forward" else "cotangents"
        depth = len(one.steps)
        return [
            Finding(
                direction,
                "warning",
                f"on the way {'out' if direction == 'forward' else 'back'} the {what} part at `{one.name}`: "
                f"{_size(side)}.",
                **{**at(one.tape.graph, one.node), "node": one.name},
                step=side.element[:depth],
                element=side.element[depth:],
                cause="parts",
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


def _size(side: Apart) -> str:
    if side.nonfinite:
        return f"{side.nonfinite} of {side.size} elements are NaN or infinite in the first only"
    return f"they differ by {side.relative:.2g} of the norm of the second"
