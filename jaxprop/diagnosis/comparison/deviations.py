"""How far two arrays are apart, how much of that rounding explains, and at which node digits are lost."""

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ..._structure import consumers, evaluation_order, predecessors, successors
from ...core.graph import Graph, Value
from ...core.structure import producers
from ...core.types import Dtype, ValueId
from .alignment import TapeValue

Aligned: TypeAlias = Sequence[tuple[TapeValue, TapeValue]]
Arrays: TypeAlias = Sequence[tuple[np.ndarray | None, np.ndarray | None]]

#: Elementwise operations and movements: they cannot cancel, and keep the relative error of their operands.
NO_CANCELLATION = frozenset(  # fmt: skip
    {
        "mul",
        "div",
        "neg",
        "abs",
        "integer_pow",
        "square",
        "sqrt",
        "rsqrt",
        "cbrt",
        "exp",
        "convert_element_type",
        "reshape",
        "broadcast_in_dim",
        "transpose",
        "squeeze",
        "expand_dims",
        "select_n",
        "max",
        "min",
        "clamp",
        "reduce_max",
        "reduce_min",
        "slice",
        "dynamic_slice",
        "gather",
        "concatenate",
        "copy",
        "relu",
        "sort",
        "pad",
        "rev",
        "real",
        "imag",
    }
)


class Side(enum.Enum):
    """Values, or cotangents."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True)
class Deviation:
    """How far two arrays are apart.

    Attributes:
        relative: `|a - b| / |b|` in 2-norms.
        excess: the same, less what rounding of the reference explains: this is judged.
        digits: `-log10(relative)`: decimal digits they share; 16 at most.
        ulps: `relative` in units of the spacing of the less precise dtype at 1.
        lost: digits lost at this very node: fewer than the worst of what it is computed from, of those the
            dtype has.
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


def eps_of(dtype: Dtype) -> float:
    """Machine epsilon of a floating point dtype, 0 of others."""
    return float(jnp.finfo(dtype).eps) if dtype is not None and _jaxpr.is_inexact(dtype) else 0.0


def digits_of(dtype: Dtype) -> float:
    """The decimal digits a floating point dtype has."""
    return -math.log10(eps_of(dtype) / 2)


def norm_of(x: np.ndarray) -> float:
    """The 2-norm of an array."""
    with np.errstate(all="ignore"):
        return float(np.linalg.norm(x.ravel()))


# --- what rounding explains --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floors:
    """The errors of the reference itself, by pair: what is smaller than that says nothing.

    Attributes:
        forward: of the values, in their units.
        backward: of the cotangents.
    """

    forward: Sequence[float]
    backward: Sequence[float]


def forward_floors(aligned: Aligned, arrays: Arrays) -> list[float]:
    """Estimate the rounding errors of the reference's values from the sizes of their operands.

    A sum errs by the precision times its greatest operand, whatever is left of it; a product of what is
    uncertain is uncertain.
    """
    return _floors(aligned, arrays, Side.FORWARD)


def backward_floors(aligned: Aligned, arrays: Arrays) -> list[float]:
    """Estimate the rounding errors of the reference's cotangents, likewise.

    A cotangent is a sum where its value has several consumers, is broadcast, or enters a complex product.
    """
    return _floors(aligned, arrays, Side.BACKWARD)


def _floors(aligned: Aligned, arrays: Arrays, side: Side) -> list[float]:
    norms = {
        one.value.id: norm_of(b) for (one, _), (_, b) in zip(aligned, arrays, strict=True) if b is not None
    }
    order = range(len(aligned)) if side is Side.FORWARD else range(len(aligned) - 1, -1, -1)
    relative: dict[ValueId, float] = {}
    found = [0.0] * len(aligned)
    for i in order:
        one, other = aligned[i]
        norm = norms.get(one.value.id)
        if norm is None:
            continue
        graph = one.tape.graph
        before, scale = _sources(graph, one.value, norms, side)
        floor = 4 * eps_of(other.value.dtype) * scale
        inherited = min((relative[id_] for id_ in before if id_ in relative), default=0.0)
        found[i] = max(floor, inherited * norm)
        relative[one.value.id] = min(found[i] / norm, 1.0) if norm > 0 else 1.0
    return found


def _sources(
    graph: Graph, value: Value, norms: Mapping[ValueId, float], side: Side
) -> tuple[list[ValueId], float]:
    """The values that one is computed from, and the scale of the sum that it is."""
    if side is Side.FORWARD:
        node = producers(graph).get(value.id)
        before = [new.id for _, new in predecessors(graph).get(value.id, ())]
        sums = node is not None and node.eqn is not None and node.primitive not in NO_CANCELLATION
    else:
        nexts = [new for _, new in successors(graph).get(value.id, ()) if new.active]
        before = [new.id for new in nexts]
        # A complex product is a sum of products too, and its real part may cancel.
        sums = len(nexts) > 1 or any(
            np.prod(new.shape) > np.prod(value.shape) or _jaxpr.is_complex(new.dtype) for new in nexts
        )
    scale = max((norms.get(id_, 0.0) for id_ in before), default=0.0)
    return before, scale if sums else 0.0


# --- deviations --------------------------------------------------------------------------------------------


def deviations(
    aligned: Aligned,
    arrays: Arrays,
    floors: Sequence[float],
    side: Side,
    forward: Sequence[Deviation | None] = (),
) -> list[Deviation | None]:
    """Measure how far each pair of arrays is apart; None where they are not floating point.

    Args:
        aligned: the pairs of values.
        arrays: their values or cotangents, in double precision.
        floors: what the reference's own rounding explains.
        side: which of the two.
        forward: the deviations of the values, for those of the cotangents: a derivative reads them.
    """
    found: list[Deviation | None] = []
    for (one, other), (a, b), floor in zip(aligned, arrays, floors, strict=True):
        found.append(None if a is None or b is None else _deviation(a, b, one, other, floor))
    return _with_losses(aligned, found, side, forward)


def _deviation(a: np.ndarray, b: np.ndarray, one: TapeValue, other: TapeValue, floor: float) -> Deviation:
    both = np.isfinite(a) & np.isfinite(b)
    difference = np.where(both, np.abs(np.where(both, a, 0) - np.where(both, b, 0)), 0)
    bad = ~np.isfinite(a) & np.isfinite(b)
    size, off = norm_of(np.where(both, b, 0)), norm_of(difference)
    relative = off / size if size else float(off > 0)
    eps = max(eps_of(one.value.dtype), eps_of(other.value.dtype))
    if size <= floor:  # the reference is round-off: so may the other be, in its own precision
        floor *= 8 * max(1.0, eps / eps_of(other.value.dtype))
    excess = max(0.0, off - floor) / size if size else float(off > floor)
    if bad.any():
        relative = excess = math.inf
    worst = int(np.argmax(np.where(bad, np.inf, difference))) if a.size else 0
    small = float(jnp.finfo(one.value.dtype).smallest_normal)
    return Deviation(
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


# --- where digits are lost ---------------------------------------------------------------------------------


def _with_losses(
    aligned: Aligned, sides: Sequence[Deviation | None], side: Side, forward: Sequence[Deviation | None]
) -> list[Deviation | None]:
    """Fill in the digits lost at the node itself: compared with the worst of what it is computed from."""
    if not aligned:
        return []
    graph = aligned[0][0].tape.graph
    digits = _by_id(aligned, sides)
    read = _by_id(aligned, forward) if forward else {}
    before = _digits_before(graph, digits, side, read)
    result: list[Deviation | None] = []
    for (one, _), deviation in zip(aligned, sides, strict=True):
        least = before.get(one.value.id)
        if deviation is None or least is None:
            result.append(deviation)
            continue
        had, has = min(least, digits_of(one.value.dtype)), digits[one.value.id]
        result.append(replace(deviation, lost=max(0.0, had - has)))
    return result


def _by_id(aligned: Aligned, sides: Sequence[Deviation | None]) -> dict[ValueId, float]:
    """Digits by id of the value. What differs by no more than the reference's own error has lost none."""
    return {
        one.value.id: 16.0 if deviation.excess == 0 else deviation.digits
        for (one, _), deviation in zip(aligned, sides, strict=True)
        if deviation is not None
    }


def _digits_before(
    graph: Graph, digits: Mapping[ValueId, float], side: Side, read: Mapping[ValueId, float]
) -> dict[ValueId, float]:
    """The fewest digits of what each value is computed from, looking through what was not compared.

    A cotangent is computed from the cotangents of what its consumers return, and from the values they read.
    """
    known: dict[ValueId, float] = {}
    found: dict[ValueId, float] = {}
    nodes = list(evaluation_order(graph))
    for node in nodes if side is Side.FORWARD else reversed(nodes):
        for value in node.outputs:
            least = _least(_before(graph, value, side), digits, known)
            if side is Side.BACKWARD:
                least = min([least, *_read_by_consumers(graph, value, read)], default=math.inf)
            if math.isfinite(least):
                found[value.id] = least
            known[value.id] = digits.get(value.id, least)
    return found


def _before(graph: Graph, value: Value, side: Side) -> Iterable[ValueId]:
    steps = predecessors(graph) if side is Side.FORWARD else successors(graph)
    return (new.id for _, new in steps.get(value.id, ()))


def _least(ids: Iterable[ValueId], digits: Mapping[ValueId, float], known: Mapping[ValueId, float]) -> float:
    return min((digits.get(id_, known.get(id_, math.inf)) for id_ in ids), default=math.inf)


def _read_by_consumers(graph: Graph, value: Value, read: Mapping[ValueId, float]) -> list[float]:
    found = []
    for node, _ in consumers(graph).get(value.id, ()):
        if not node.opened:
            ids = (v.id for v in (*node.operands, *node.outputs))
            found += [read[id_] for id_ in ids if id_ in read]
    return found
