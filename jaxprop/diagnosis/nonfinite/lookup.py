"""Why a node makes what is not finite: the cause in words, and the fix, looked up in the table."""

from typing import Any

import numpy as np

from ..._text import type_name
from ...core.graph import Graph
from ...record.aliases import BACK
from ..report import spell
from .causes import CAUSES, UNKNOWN, Cause
from .evidence import Point


def explain(point: Point, graph: Graph) -> tuple[str, str, str]:
    """The class of the cause, the cause in a sentence, and the fix."""
    row = next((row for row in CAUSES if _fits(row, point, graph)), UNKNOWN)
    fix = row.fix
    if not isinstance(fix, str) and any(map(np.iscomplexobj, point.operands)):
        fix = "keep away from the singular point: complex numbers have no order to choose by"
    elif not isinstance(fix, str):
        fix = fix(point.node.label, point.node.primitive, _culprit(point))
    numbers = {name: spell(_plain(x)) for name, x in zip("ab", point.x, strict=False)}
    numbers |= {"y": spell(_plain(point.y)), "name": point.node.primitive, "operand": _operand(point)}
    numbers |= {"dtype": type_name(point.node.dtype, ()).removesuffix("[]"), "a": numbers.get("a", "x")}
    numbers |= {"b": numbers.get("b", "p")}
    return row.word, row.why.format(**numbers) + _behind_mask(point), fix


def _fits(row: Cause, point: Point, graph: Graph) -> bool:
    if row.half != point.event.half or (row.primitives and point.node.primitive not in row.primitives):
        return False
    return bool(row.test(point, graph))


def _culprit(point: Point) -> int:
    """The operand a fix has to change: the divisor, the base, the only one."""
    return 1 if point.node.primitive in ("div", "rem") else 0


def _operand(point: Point) -> str:
    operands = point.node.operands
    return operands[min(_culprit(point), len(operands) - 1)].name if operands else point.node.name


def _behind_mask(point: Point) -> str:
    if (
        point.event.half != BACK
        or point.ct is None
        or point.event.kind not in ("made", "from inf")
        or np.any(point.ct != 0)
    ):
        return ""
    return (
        " The cotangent that comes is 0, as from a mask behind it, but 0 * inf is nan: masking a result does "
        "not mask its derivative."
    )


def _plain(x: Any) -> Any:
    return float(x) if x is not None and np.ndim(x) == 0 and not np.iscomplexobj(x) else x
