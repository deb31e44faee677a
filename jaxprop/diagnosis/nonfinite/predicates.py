"""Questions about the accused node and its numbers: the tests in the table of causes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ... import _jaxpr
from ...core.graph import Graph
from ...core.structure import producers
from .evidence import Point
from .rewrites import called

Test: TypeAlias = Callable[[Point, Graph], bool]

# --- tests on the numbers -----------------------------------------------------------------------------


def one(test: Callable[[Any], Any], position: int = 0) -> Test:
    """A test on the number of one operand."""

    def of(point: Point, graph: Graph) -> bool:
        x = point.x[position] if position < len(point.x) else None
        return x is not None and bool(test(x))

    return of


def two(test: Callable[[Any, Any], Any]) -> Test:
    """A test on the numbers of two operands."""

    def of(point: Point, graph: Graph) -> bool:
        return len(point.x) > 1 and None not in point.x[:2] and bool(test(*point.x[:2]))

    return of


def always(point: Point, graph: Graph) -> bool:
    return True


def kind(kind: str) -> Test:
    return lambda point, graph: point.event.kind == kind


def calls(*names: str) -> Test:
    return lambda point, graph: called(point.node.label) in names or scoped(point, names)


def scoped(point: Point, names: Sequence[str]) -> bool:
    return any(name in part for part in (point.node.scope, point.node.primitive) for name in names)


def both(*tests: Test) -> Test:
    return lambda point, graph: all(test(point, graph) for test in tests)


def is_norm(point: Point, graph: Graph) -> bool:
    """Whether the operand is a sum: of squares, as a rule."""
    if "norm" in called(point.node.label):
        return True
    maker = producers(graph).get(point.node.operands[0].id)
    while maker is not None and maker.primitive in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
        maker = producers(graph).get(maker.operands[0].id)
    return maker is not None and maker.primitive in ("reduce_sum", "dot_general")


def power(point: Point) -> Any:
    if point.node.primitive == "integer_pow":
        return point.node.params.get("y", 0)
    return point.x[1] if len(point.x) > 1 and point.x[1] is not None else np.nan


def negative_base(point: Point, graph: Graph) -> bool:
    return point.x[0] < 0 and not np.isinf(point.y)


def custom(point: Point, graph: Graph) -> bool:
    return point.node.eqn is not None and _jaxpr.has_custom_rule(point.node.eqn)


def all_minus_inf(point: Point, graph: Graph) -> bool:
    """Whether a whole row of an operand is minus infinity."""
    for x in point.operands:
        if np.ndim(x) and np.size(x) and np.any(np.all(np.asarray(x) == -np.inf, axis=-1)):
            return True
    return any(x is not None and np.ndim(x) == 0 and x == -np.inf for x in point.x)


def equal_values(point: Point, graph: Graph) -> bool:
    """Whether two eigenvalues or singular values are equal, to rounding."""
    for x in point.outputs:
        if np.ndim(x) and np.isrealobj(x):
            gaps = np.abs(np.diff(np.sort(np.asarray(x, float), axis=-1), axis=-1))
            scale = np.max(np.abs(np.asarray(x, float)), initial=0.0)
            if np.size(gaps) and np.min(gaps) <= 1e-6 * max(scale, 1e-30):
                return True
    return False


def finite_gain(point: Point, graph: Graph) -> bool:
    return point.gain is not None and bool(np.isfinite(point.gain))


def zero_ct(point: Point, graph: Graph) -> bool:
    return point.ct is not None and bool(np.all(point.ct == 0))


def infinite_gain(point: Point, graph: Graph) -> bool:
    return point.gain is not None and not np.isfinite(point.gain)


def infinite(point: Point, graph: Graph) -> bool:
    """Whether the result is Inf (or a NaN a sum of them makes), of numbers that are all finite."""
    return point.event.kind == "made"


def literal(point: Point, graph: Graph) -> bool:
    return point.event.kind == "unseen" and any(
        value.literal is not None and _jaxpr.is_inexact(value.dtype) and not np.all(np.isfinite(value.literal))
        for value in point.node.operands
    )
