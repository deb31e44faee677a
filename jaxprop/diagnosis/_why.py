"""Why a node makes what is not finite: a table of (where, test on its numbers) -> cause, sentence, cure.

The first row that fits wins; where none does, the cause is unknown, and said to be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _jaxpr
from .._graph import Graph, spell_type
from .._views import BACK, OUT
from .._wiring import makers
from ._cures import Cure, around, called, double_where, first_argument, safe_norm
from ._point import Point
from ._report import spell

Test = Callable[[Point, Graph], bool]


@dataclass(frozen=True)
class Cause:
    """One row of the table.

    Attributes:
        word: the class of the cause.
        half: on the way out or back.
        primitives: where it can be; () for everywhere.
        test: whether the numbers fit.
        why: the cause in one sentence; `{a}`, `{b}` stand for the operands' numbers, `{y}` for the result's.
        cure: how the expression is to be written, or advice.
    """

    word: str
    half: str
    primitives: tuple[str, ...]
    test: Test
    why: str
    cure: Cure | str


def explain(point: Point, graph: Graph) -> tuple[str, str, str]:
    """The class of the cause, the cause in a sentence, and the cure."""
    row = next((row for row in CAUSES if _fits(row, point, graph)), UNKNOWN)
    cure = row.cure
    if not isinstance(cure, str):
        cure = cure(point.node.label, point.node.primitive, _culprit(point))
    numbers = {name: spell(_plain(x)) for name, x in zip("ab", point.x, strict=False)}
    numbers |= {"y": spell(_plain(point.y)), "name": point.node.primitive, "operand": _operand(point)}
    numbers |= {"dtype": spell_type(point.node.dtype, ()).removesuffix("[]"), "a": numbers.get("a", "x")}
    numbers |= {"b": numbers.get("b", "p")}
    return row.word, row.why.format(**numbers) + _behind_mask(point), cure


def _fits(row: Cause, point: Point, graph: Graph) -> bool:
    if row.half != point.event.half or (row.primitives and point.node.primitive not in row.primitives):
        return False
    return bool(row.test(point, graph))


def _culprit(point: Point) -> int:
    """The operand a cure has to change: the divisor, the base, the only one."""
    return 1 if point.node.primitive in ("div", "rem") else 0


def _operand(point: Point) -> str:
    operands = point.node.operands
    return operands[min(_culprit(point), len(operands) - 1)].name if operands else point.node.name


def _behind_mask(point: Point) -> str:
    if point.event.half != BACK or point.ct is None or point.event.kind not in ("made", "from inf") or np.any(point.ct != 0):
        return ""
    return (
        " The cotangent that comes is 0, as from a mask behind it, but 0 * inf is nan: masking a result does not "
        "mask its derivative."
    )


def _plain(x: Any) -> Any:
    return float(x) if x is not None and np.ndim(x) == 0 and not np.iscomplexobj(x) else x


# --- tests on the numbers -----------------------------------------------------------------------------


def _x(test: Callable[[Any], Any], position: int = 0) -> Test:
    """A test on the number of one operand."""

    def of(point: Point, graph: Graph) -> bool:
        x = point.x[position] if position < len(point.x) else None
        return x is not None and bool(test(x))

    return of


def _ab(test: Callable[[Any, Any], Any]) -> Test:
    """A test on the numbers of two operands."""

    def of(point: Point, graph: Graph) -> bool:
        return len(point.x) > 1 and None not in point.x[:2] and bool(test(*point.x[:2]))

    return of


def _always(point: Point, graph: Graph) -> bool:
    return True


def _kind(kind: str) -> Test:
    return lambda point, graph: point.event.kind == kind


def _calls(*names: str) -> Test:
    return lambda point, graph: called(point.node.label) in names or _scoped(point, names)


def _scoped(point: Point, names: Sequence[str]) -> bool:
    return any(name in part for part in (point.node.scope, point.node.primitive) for name in names)


def _both(*tests: Test) -> Test:
    return lambda point, graph: all(test(point, graph) for test in tests)


def _is_norm(point: Point, graph: Graph) -> bool:
    """Whether the operand is a sum: of squares, as a rule."""
    if "norm" in called(point.node.label):
        return True
    maker = makers(graph).get(point.node.operands[0].id)
    while maker is not None and maker.primitive in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
        maker = makers(graph).get(maker.operands[0].id)
    return maker is not None and maker.primitive in ("reduce_sum", "dot_general")


def _power(point: Point) -> Any:
    if point.node.primitive == "integer_pow":
        return point.node.params.get("y", 0)
    return point.x[1] if len(point.x) > 1 and point.x[1] is not None else np.nan


def _custom(point: Point, graph: Graph) -> bool:
    return point.node.eqn is not None and _jaxpr.has_custom_rule(point.node.eqn)


def _all_minus_inf(point: Point, graph: Graph) -> bool:
    """Whether a whole row of an operand is minus infinity."""
    for x in point.operands:
        if np.ndim(x) and np.size(x) and np.any(np.all(np.asarray(x) == -np.inf, axis=-1)):
            return True
    return any(x is not None and np.ndim(x) == 0 and x == -np.inf for x in point.x)


def _equal_values(point: Point, graph: Graph) -> bool:
    """Whether two eigenvalues or singular values are equal, to rounding."""
    for x in point.outputs:
        if np.ndim(x) and np.isrealobj(x):
            gaps = np.abs(np.diff(np.sort(np.asarray(x, float), axis=-1), axis=-1))
            scale = np.max(np.abs(np.asarray(x, float)), initial=0.0)
            if np.size(gaps) and np.min(gaps) <= 1e-6 * max(scale, 1e-30):
                return True
    return False


def _finite_gain(point: Point, graph: Graph) -> bool:
    return point.gain is not None and bool(np.isfinite(point.gain))


def _zero_ct(point: Point, graph: Graph) -> bool:
    return point.ct is not None and bool(np.all(point.ct == 0))


def _infinite_gain(point: Point, graph: Graph) -> bool:
    return point.gain is not None and not np.isfinite(point.gain)


def _infinite(point: Point, graph: Graph) -> bool:
    """Whether the result is Inf (or a NaN a sum of them makes), of numbers that are all finite."""
    return point.event.kind == "made"


def _literal(point: Point, graph: Graph) -> bool:
    return point.event.kind == "unseen" and any(
        value.literal is not None and _jaxpr.is_inexact(value.dtype) and not np.all(np.isfinite(value.literal))
        for value in point.node.operands
    )


# --- the table ----------------------------------------------------------------------------------------


def _where(test: str, instead: str = "1.0", otherwise: str = "0.0") -> Cure:
    return lambda code, primitive, position: double_where(code, primitive, position, test, instead, otherwise)


def _instead(text: str) -> Cure:
    return lambda code, primitive, position: around(code, primitive, position, text)


def _norm_cure(code: str, primitive: str, position: int) -> str:
    return safe_norm(code) if called(code) == "norm" else double_where(code, primitive, position, "{x} > 0")


def _argument(text: str) -> Cure:
    return lambda code, primitive, position: first_argument(code, text)


def _std_cure(code: str, primitive: str, position: int) -> str:
    return f"jnp.sqrt({code.replace('std(', 'var(', 1)} + 1e-12)"


def _atan2_cure(code: str, primitive: str, position: int) -> str:
    return around(code, primitive, 1, "jnp.where({x} == 0, 1e-12, {x})")


_INSIDE = "jnp.clip({x}, -1 + 1e-6, 1 - 1e-6)"
_EXPS = ("exp", "exp2", "expm1", "cosh", "sinh")
_SOLVES = ("lu", "triangular_solve", "custom_linear_solve", "tridiagonal_solve", "qr")
_SUMS = ("dot_general", "reduce_sum", "conv_general_dilated", "cumsum", "add_any", "add", "sub", "reduce_window_sum")

CAUSES: tuple[Cause, ...] = (
    # What no node made.
    Cause("in the inputs", OUT, (), _kind("given"), "it is there before anything is computed.", "clean the data: drop or repair this entry before the step"),
    Cause("in the seed", BACK, (), _kind("seed"), "the backward pass begins with it.", "pass a finite `cotangent`"),
    Cause("overflow of a sum", BACK, (), _kind("sum"), "the cotangents sent by the readers are finite, their sum is not.", "scale the loss down, or sum in a wider dtype"),
    Cause("in the program", OUT, (), _literal, "it is written in the program.", "choose it away with the double where, or write a finite number"),
    # On the way back.
    Cause("sqrt at 0", BACK, ("sqrt",), _both(_x(lambda x: x == 0), _calls("std", "nanstd")), "the standard deviation of equal numbers is 0, and the derivative of sqrt at 0 is infinite.", _std_cure),
    Cause("norm at 0", BACK, ("sqrt",), _both(_x(lambda x: x == 0), _is_norm), "the norm of a zero vector is 0, and the derivative of sqrt at 0 is infinite.", _norm_cure),
    Cause("sqrt at 0", BACK, ("sqrt", "cbrt"), _x(lambda x: x == 0), "the derivative of {name} at 0 is infinite.", _where("{x} > 0")),
    Cause("sqrt at 0", BACK, ("sqrt",), _x(lambda x: 0 < x < 1e-30), "the derivative of sqrt at {a}, 1 / (2 sqrt(x)), overflows.", _where("{x} > 1e-30")),
    Cause("power at 0", BACK, ("pow",), lambda p, g: p.event.position == 0 and p.x[0] == 0 and _power(p) < 1, "the derivative of x**p at 0 is infinite for p < 1; here p = {b}.", _where("{x} > 0")),
    Cause("power of a negative", BACK, ("pow",), lambda p, g: p.event.position == 1 and p.x[0] < 0, "the derivative of x**p by p is x**p * log(x), and x = {a} is negative.", _where("{x} > 0")),
    Cause("power at 0", BACK, ("pow",), lambda p, g: p.x[0] == 0, "the derivative of x**p by p is x**p * log(x), and log(0) is infinite.", _where("{x} > 0")),
    Cause("arccos at 1", BACK, ("acos",), _x(lambda x: abs(x) == 1), "the derivative of arccos at {a} is infinite.", _instead(_INSIDE)),
    Cause("arcsin at 1", BACK, ("asin",), _x(lambda x: abs(x) == 1), "the derivative of arcsin at {a} is infinite.", _instead(_INSIDE)),
    Cause("arccosh at 1", BACK, ("acosh",), _x(lambda x: x == 1), "the derivative of arccosh at 1 is infinite.", _instead("jnp.maximum({x}, 1 + 1e-6)")),
    Cause("arctan2 at (0, 0)", BACK, ("atan2",), _ab(lambda a, b: a == 0 and b == 0), "the derivative of arctan2 at (0, 0) is 0 / 0.", _atan2_cure),
    Cause("degenerate eigenvalues", BACK, ("eigh", "eig"), _equal_values, "the derivative of eigenvectors holds 1 / (l_i - l_j), and two eigenvalues are equal.", "differentiate the eigenvalues alone (jnp.linalg.eigvalsh), or break the tie: add small distinct numbers to the diagonal"),
    Cause("degenerate singular values", BACK, ("svd",), _equal_values, "the derivative of singular vectors holds 1 / (s_i**2 - s_j**2), and two singular values are equal.", "differentiate the singular values alone (compute_uv=False), or break the tie: add small distinct numbers to the diagonal"),
    Cause("division by 0", BACK, ("div",), _ab(lambda a, b: abs(b) < 1e-15), "the derivative of a / b by b is -a / b**2, and b = {b} is so small that b**2 is 0.", _where("abs({x}) > 1e-12")),
    Cause("division by 0", BACK, ("integer_pow", "rsqrt"), _x(lambda x: abs(x) < 1e-12), "the derivative of {name} at {a} overflows.", _where("{x} != 0")),
    Cause("overflow of exp", BACK, _EXPS, _infinite_gain, "{name}({a}) is too large for {dtype}.", _instead("jnp.minimum({x}, 80.0)")),
    Cause("degenerate eigenvalues", BACK, ("eigh", "eig", "svd"), _always, "the derivative of a decomposition is not finite here: values are equal or zero.", "differentiate the values alone, or break the tie: add small distinct numbers to the diagonal"),
    Cause("singular matrix", BACK, (*_SOLVES, "cholesky"), _always, "the derivative needs the inverse of a matrix that has none.", "add a small multiple of the identity"),
    Cause("custom rule", BACK, (), _custom, "the custom derivative rule of `{name}` returns it, of finite operands and finite cotangents.", "mend the rule: try it alone with jax.vjp at these operands"),
    Cause("0 times inf", BACK, (), _both(_kind("from inf"), _zero_ct), "an operand is infinite, so the local gradient is.", "keep the operand finite: a large number instead of inf"),
    Cause("inf in an operand", BACK, (), _kind("from inf"), "an operand is infinite, so the local gradient is.", "keep the operand finite: a large number instead of inf"),
    Cause("overflow", BACK, ("convert_element_type", "reduce_precision"), _always, "the cotangent is too large for the dtype it is cast to.", "scale the loss down, or keep this part in float32"),
    Cause("overflow", BACK, (), _finite_gain, "local gradient and cotangent are finite, their product is too large.", "scale the loss down, or keep this part in float32"),
    Cause("0 times inf", BACK, (), _zero_ct, "the local gradient is infinite.", _where("{x} != 0")),
    # On the way out.
    Cause("softmax of all -inf", OUT, (), _both(_all_minus_inf, _calls("softmax", "log_softmax", "_softmax", "dot_product_attention")), "every entry of the row is -inf (all masked), and -inf - -inf is nan.", _argument("jnp.maximum({x}, -1e9)")),
    Cause("logsumexp of all -inf", OUT, ("log",), _both(_x(lambda x: x == 0), _calls("logsumexp", "logaddexp")), "every entry is -inf, so the sum of exponentials is 0, and the derivative of log at 0 is infinite.", _argument("jnp.maximum({x}, -1e9)")),
    Cause("log of 0", OUT, ("log", "log2"), _x(lambda x: x == 0), "log of 0 is -inf, and its derivative is infinite.", _where("{x} > 0")),
    Cause("log of 0", OUT, ("log1p",), _x(lambda x: x == -1), "log1p of -1 is -inf, and its derivative is infinite.", _where("{x} > -1")),
    Cause("log of a negative", OUT, ("log", "log2", "log1p"), _always, "log of a negative number ({a}) is nan.", lambda code, primitive, position: double_where(code, primitive, position, "{x} > -1" if primitive == "log1p" else "{x} > 0")),
    Cause("sqrt of a negative", OUT, ("sqrt", "rsqrt"), _x(lambda x: x < 0), "{name} of a negative number ({a}) is nan.", _where("{x} > 0")),
    Cause("division by 0", OUT, ("rsqrt",), _always, "1 / sqrt(0) is infinite.", _where("{x} > 0")),
    Cause("division by 0", OUT, ("div", "rem"), _x(lambda x: x == 0, 1), "{a} / 0 is {y}.", _where("{x} != 0")),
    Cause("overflow", OUT, ("div",), _ab(lambda a, b: b != 0), "{a} / {b} is too large for {dtype}.", _where("abs({x}) > 1e-12")),
    Cause("division by 0", OUT, ("pow", "integer_pow"), lambda p, g: p.x[0] == 0 and _power(p) < 0, "0 to a negative power is infinite.", _where("{x} != 0")),
    Cause("power of a negative", OUT, ("pow",), lambda p, g: p.x[0] < 0 and not np.isinf(p.y), "a negative number ({a}) to the power {b} is nan.", _where("{x} > 0")),
    Cause("overflow", OUT, ("pow", "integer_pow"), _always, "the power is too large for {dtype}; x = {a}.", "scale x down, or work with its logarithm"),
    Cause("overflow of exp", OUT, _EXPS, _always, "{name}({a}) is too large for {dtype}.", _instead("jnp.minimum({x}, 80.0)")),
    Cause("arccos outside of [-1, 1]", OUT, ("acos",), _always, "{a} lies outside of [-1, 1], as rounding makes it.", _instead(_INSIDE)),
    Cause("arcsin outside of [-1, 1]", OUT, ("asin",), _always, "{a} lies outside of [-1, 1], as rounding makes it.", _instead(_INSIDE)),
    Cause("arctanh at 1", OUT, ("atanh",), _always, "arctanh is infinite at 1 and nan beyond; here x = {a}.", _instead(_INSIDE)),
    Cause("erfinv at 1", OUT, ("erf_inv",), _always, "erfinv is infinite at 1 and nan beyond; here x = {a}.", _instead(_INSIDE)),
    Cause("arccosh below 1", OUT, ("acosh",), _always, "arccosh of {a}, below 1, is nan.", _instead("jnp.maximum({x}, 1 + 1e-6)")),
    Cause("cast overflow", OUT, ("convert_element_type", "reduce_precision"), _always, "{a} is too large for {dtype}.", "keep this part in float32 (or bfloat16, which has its range), or scale it down first"),
    Cause("index out of bounds", OUT, ("gather",), _always, "an index lies outside of the array, and jnp fills in nan.", "check the index, or say what is meant: x.at[i].get(mode='clip')"),
    Cause("not positive definite", OUT, ("cholesky",), _always, "the matrix is not positive definite.", "add a small multiple of the identity: x + 1e-6 * jnp.eye(len(x))"),
    Cause("singular matrix", OUT, _SOLVES, _always, "the matrix is singular.", "add a small multiple of the identity: x + 1e-6 * jnp.eye(len(x)), or use jnp.linalg.lstsq"),
    Cause("inf minus inf", OUT, ("sub", "add", *_SUMS), _kind("from inf"), "inf - inf is nan.", "keep both finite: a large number instead of inf"),
    Cause("0 times inf", OUT, ("mul", "dot_general"), _kind("from inf"), "0 * inf is nan.", "keep the factor finite: choose with jnp.where instead of multiplying by a mask"),
    Cause("inf divided by inf", OUT, ("div",), _kind("from inf"), "inf / inf is nan.", "subtract the maximum before the exponentials, or work with logarithms"),
    Cause("custom rule", OUT, (), _custom, "`{name}` makes it inside, of finite operands.", "call it alone at these operands"),
    Cause("a loop", OUT, ("while",), _always, "the loop makes it inside; a `while` is not opened.", "write it as jax.lax.scan or fori_loop with fixed bounds, and it is opened"),
    Cause("overflow", OUT, ("mul", *_SUMS, "cumprod", "reduce_prod", "mul_any", "scatter-add", "square"), _infinite, "the result is too large for {dtype}.", "scale the numbers down, or keep this part in float32"),
)

UNKNOWN = Cause("unknown", "", (), _always, "no known cause fits the numbers at `{name}`.", "look at the operands there: jaxprop.backprop(loss, nodes=[...])")
