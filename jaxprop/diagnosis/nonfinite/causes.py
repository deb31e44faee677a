"""The table of causes: where, and with which numbers, to what is to blame, said in a sentence, and the fix.

The first row that fits wins; where none does, the cause is unknown, and said to be.
"""

from dataclasses import dataclass

from ...record.aliases import BACK, OUT
from .predicates import (
    Test,
    all_minus_inf,
    always,
    both,
    calls,
    custom,
    equal_values,
    finite_gain,
    infinite,
    infinite_gain,
    is_norm,
    kind,
    literal,
    negative_base,
    one,
    power,
    two,
    zero_ct,
)
from .rewrites import Fix, around, called, double_where, first_argument, safe_norm


@dataclass(frozen=True)
class Cause:
    """One row of the table.

    Attributes:
        word: the class of the cause.
        half: on the way out or back.
        primitives: where it can be; () for everywhere.
        test: whether the numbers fit.
        why: the cause in one sentence; `{a}`, `{b}` stand for the operands' numbers, `{y}` for the result's.
        fix: how the expression is to be written, or advice.
    """

    word: str
    half: str
    primitives: tuple[str, ...]
    test: Test
    why: str
    fix: Fix | str


# --- the table ----------------------------------------------------------------------------------------


def _where(test: str, instead: str = "1.0", otherwise: str = "0.0") -> Fix:
    return lambda code, primitive, position: double_where(code, primitive, position, test, instead, otherwise)


def _instead(text: str) -> Fix:
    return lambda code, primitive, position: around(code, primitive, position, text)


def _norm_fix(code: str, primitive: str, position: int) -> str:
    return safe_norm(code) if called(code) == "norm" else double_where(code, primitive, position, "{x} > 0")


def _argument(text: str) -> Fix:
    return lambda code, primitive, position: first_argument(code, text)


def _std_fix(code: str, primitive: str, position: int) -> str:
    return f"jnp.sqrt({code.replace('std(', 'var(', 1)} + 1e-12)"


def _atan2_fix(code: str, primitive: str, position: int) -> str:
    return around(code, primitive, 1, "jnp.where({x} == 0, 1e-12, {x})")


_INSIDE = "jnp.clip({x}, -1 + 1e-6, 1 - 1e-6)"
_EXPS = ("exp", "exp2", "expm1", "cosh", "sinh")
_SOLVES = ("lu", "triangular_solve", "custom_linear_solve", "tridiagonal_solve", "qr")
_SUMS = (
    "dot_general",
    "reduce_sum",
    "conv_general_dilated",
    "cumsum",
    "add_any",
    "add",
    "sub",
    "reduce_window_sum",
)

CAUSES: tuple[Cause, ...] = (
    # What no node made.
    Cause(
        "in the inputs",
        OUT,
        (),
        kind("given"),
        "it is there before anything is computed.",
        "clean the data: drop or repair this entry before the step",
    ),
    Cause(
        "in the seed", BACK, (), kind("seed"), "the backward pass begins with it.", "pass a finite `cotangent`"
    ),
    Cause(
        "overflow of a sum",
        BACK,
        (),
        kind("sum"),
        "the cotangents sent by the readers are finite, their sum is not.",
        "scale the loss down, or sum in a wider dtype",
    ),
    Cause(
        "in the program",
        OUT,
        (),
        literal,
        "it is written in the program.",
        "choose it away with the double where, or write a finite number",
    ),
    # On the way back.
    Cause(
        "sqrt at 0",
        BACK,
        ("sqrt",),
        both(one(lambda x: x == 0), calls("std", "nanstd")),
        "the standard deviation of equal numbers is 0, and the derivative of sqrt at 0 is infinite.",
        _std_fix,
    ),
    Cause(
        "norm at 0",
        BACK,
        ("sqrt",),
        both(one(lambda x: x == 0), is_norm),
        "the norm of a zero vector is 0, and the derivative of sqrt at 0 is infinite.",
        _norm_fix,
    ),
    Cause(
        "sqrt at 0",
        BACK,
        ("sqrt", "cbrt"),
        one(lambda x: x == 0),
        "the derivative of {name} at 0 is infinite.",
        _where("{x} > 0"),
    ),
    Cause(
        "sqrt at 0",
        BACK,
        ("sqrt",),
        one(lambda x: 0 < x < 1e-30),
        "the derivative of sqrt at {a}, 1 / (2 sqrt(x)), overflows.",
        _where("{x} > 1e-30"),
    ),
    Cause(
        "power at 0",
        BACK,
        ("pow",),
        lambda p, g: p.event.position == 0 and p.x[0] == 0 and power(p) < 1,
        "the derivative of x**p at 0 is infinite for p < 1; here p = {b}.",
        _where("{x} > 0"),
    ),
    Cause(
        "power of a negative",
        BACK,
        ("pow",),
        lambda p, g: p.event.position == 1 and p.x[0] < 0,
        "the derivative of x**p by p is x**p * log(x), and x = {a} is negative.",
        _where("{x} > 0"),
    ),
    Cause(
        "power at 0",
        BACK,
        ("pow",),
        lambda p, g: p.x[0] == 0,
        "the derivative of x**p by p is x**p * log(x), and log(0) is infinite.",
        _where("{x} > 0"),
    ),
    Cause(
        "arccos at 1",
        BACK,
        ("acos",),
        one(lambda x: abs(x) == 1),
        "the derivative of arccos at {a} is infinite.",
        _instead(_INSIDE),
    ),
    Cause(
        "arcsin at 1",
        BACK,
        ("asin",),
        one(lambda x: abs(x) == 1),
        "the derivative of arcsin at {a} is infinite.",
        _instead(_INSIDE),
    ),
    Cause(
        "arccosh at 1",
        BACK,
        ("acosh",),
        one(lambda x: x == 1),
        "the derivative of arccosh at 1 is infinite.",
        _instead("jnp.maximum({x}, 1 + 1e-6)"),
    ),
    Cause(
        "arctan2 at (0, 0)",
        BACK,
        ("atan2",),
        two(lambda a, b: a == 0 and b == 0),
        "the derivative of arctan2 at (0, 0) is 0 / 0.",
        _atan2_fix,
    ),
    Cause(
        "degenerate eigenvalues",
        BACK,
        ("eigh", "eig"),
        equal_values,
        "the derivative of eigenvectors holds 1 / (l_i - l_j), and two eigenvalues are equal.",
        "differentiate the eigenvalues alone (jnp.linalg.eigvalsh), or break the tie: "
        "add small distinct numbers to the diagonal",
    ),
    Cause(
        "degenerate singular values",
        BACK,
        ("svd",),
        equal_values,
        "the derivative of singular vectors holds 1 / (s_i**2 - s_j**2), and two singular values are equal.",
        "differentiate the singular values alone (compute_uv=False), or break the tie: "
        "add small distinct numbers to the diagonal",
    ),
    Cause(
        "division by 0",
        BACK,
        ("div",),
        two(lambda a, b: abs(b) < 1e-15),
        "the derivative of a / b by b is -a / b**2, and b = {b} is so small that b**2 is 0.",
        _where("abs({x}) > 1e-12"),
    ),
    Cause(
        "division by 0",
        BACK,
        ("integer_pow", "rsqrt"),
        one(lambda x: abs(x) < 1e-12),
        "the derivative of {name} at {a} overflows.",
        _where("{x} != 0"),
    ),
    Cause(
        "overflow of exp",
        BACK,
        _EXPS,
        infinite_gain,
        "{name}({a}) is too large for {dtype}.",
        _instead("jnp.minimum({x}, 80.0)"),
    ),
    Cause(
        "degenerate eigenvalues",
        BACK,
        ("eigh", "eig", "svd"),
        always,
        "the derivative of a decomposition is not finite here: values are equal or zero.",
        "differentiate the values alone, or break the tie: add small distinct numbers to the diagonal",
    ),
    Cause(
        "singular matrix",
        BACK,
        (*_SOLVES, "cholesky"),
        always,
        "the derivative needs the inverse of a matrix that has none.",
        "add a small multiple of the identity",
    ),
    Cause(
        "custom rule",
        BACK,
        (),
        custom,
        "the custom derivative rule of `{name}` returns it, of finite operands and finite cotangents.",
        "mend the rule: try it alone with jax.vjp at these operands",
    ),
    Cause(
        "0 times inf",
        BACK,
        (),
        both(kind("from inf"), zero_ct),
        "an operand is infinite, so the local gradient is.",
        "keep the operand finite: a large number instead of inf",
    ),
    Cause(
        "inf in an operand",
        BACK,
        (),
        kind("from inf"),
        "an operand is infinite, so the local gradient is.",
        "keep the operand finite: a large number instead of inf",
    ),
    Cause(
        "overflow",
        BACK,
        ("convert_element_type", "reduce_precision"),
        always,
        "the cotangent is too large for the dtype it is cast to.",
        "scale the loss down, or keep this part in float32",
    ),
    Cause(
        "overflow",
        BACK,
        (),
        finite_gain,
        "local gradient and cotangent are finite, their product is too large.",
        "scale the loss down, or keep this part in float32",
    ),
    Cause("0 times inf", BACK, (), zero_ct, "the local gradient is infinite.", _where("{x} != 0")),
    # On the way out.
    Cause(
        "softmax of all -inf",
        OUT,
        (),
        both(all_minus_inf, calls("softmax", "log_softmax", "_softmax", "dot_product_attention")),
        "every entry of the row is -inf (all masked), and -inf - -inf is nan.",
        _argument("jnp.maximum({x}, -1e9)"),
    ),
    Cause(
        "logsumexp of all -inf",
        OUT,
        ("log",),
        both(one(lambda x: x == 0), calls("logsumexp", "logaddexp")),
        "every entry is -inf, so the sum of exponentials is 0, and the derivative of log at 0 is infinite.",
        _argument("jnp.maximum({x}, -1e9)"),
    ),
    Cause(
        "log of 0",
        OUT,
        ("log", "log2"),
        one(lambda x: x == 0),
        "log of 0 is -inf, and its derivative is infinite.",
        _where("{x} > 0"),
    ),
    Cause(
        "log of 0",
        OUT,
        ("log1p",),
        one(lambda x: x == -1),
        "log1p of -1 is -inf, and its derivative is infinite.",
        _where("{x} > -1"),
    ),
    Cause(
        "log of a negative",
        OUT,
        ("log", "log2", "log1p"),
        always,
        "log of a negative number ({a}) is nan.",
        lambda code, primitive, position: double_where(
            code, primitive, position, "{x} > -1" if primitive == "log1p" else "{x} > 0"
        ),
    ),
    Cause(
        "sqrt of a negative",
        OUT,
        ("sqrt", "rsqrt"),
        one(lambda x: x < 0),
        "{name} of a negative number ({a}) is nan.",
        _where("{x} > 0"),
    ),
    Cause("division by 0", OUT, ("rsqrt",), always, "1 / sqrt(0) is infinite.", _where("{x} > 0")),
    Cause(
        "division by 0", OUT, ("div", "rem"), one(lambda x: x == 0, 1), "{a} / 0 is {y}.", _where("{x} != 0")
    ),
    Cause(
        "overflow",
        OUT,
        ("div",),
        two(lambda a, b: b != 0),
        "{a} / {b} is too large for {dtype}.",
        _where("abs({x}) > 1e-12"),
    ),
    Cause(
        "division by 0",
        OUT,
        ("pow", "integer_pow"),
        lambda p, g: p.x[0] == 0 and power(p) < 0,
        "0 to a negative power is infinite.",
        _where("{x} != 0"),
    ),
    Cause(
        "power of a negative",
        OUT,
        ("pow",),
        negative_base,
        "a negative number ({a}) to the power {b} is nan.",
        _where("{x} > 0"),
    ),
    Cause(
        "overflow",
        OUT,
        ("pow", "integer_pow"),
        always,
        "the power is too large for {dtype}; x = {a}.",
        "scale x down, or work with its logarithm",
    ),
    Cause(
        "overflow of exp",
        OUT,
        _EXPS,
        always,
        "{name}({a}) is too large for {dtype}.",
        _instead("jnp.minimum({x}, 80.0)"),
    ),
    Cause(
        "arccos outside of [-1, 1]",
        OUT,
        ("acos",),
        always,
        "{a} lies outside of [-1, 1], as rounding makes it.",
        _instead(_INSIDE),
    ),
    Cause(
        "arcsin outside of [-1, 1]",
        OUT,
        ("asin",),
        always,
        "{a} lies outside of [-1, 1], as rounding makes it.",
        _instead(_INSIDE),
    ),
    Cause(
        "arctanh at 1",
        OUT,
        ("atanh",),
        always,
        "arctanh is infinite at 1 and nan beyond; here x = {a}.",
        _instead(_INSIDE),
    ),
    Cause(
        "erfinv at 1",
        OUT,
        ("erf_inv",),
        always,
        "erfinv is infinite at 1 and nan beyond; here x = {a}.",
        _instead(_INSIDE),
    ),
    Cause(
        "arccosh below 1",
        OUT,
        ("acosh",),
        always,
        "arccosh of {a}, below 1, is nan.",
        _instead("jnp.maximum({x}, 1 + 1e-6)"),
    ),
    Cause(
        "cast overflow",
        OUT,
        ("convert_element_type", "reduce_precision"),
        always,
        "{a} is too large for {dtype}.",
        "keep this part in float32 (or bfloat16, which has its range), or scale it down first",
    ),
    Cause(
        "index out of bounds",
        OUT,
        ("gather",),
        always,
        "an index lies outside of the array, and jnp fills in nan.",
        "check the index, or say what is meant: x.at[i].get(mode='clip')",
    ),
    Cause(
        "not positive definite",
        OUT,
        ("cholesky",),
        always,
        "the matrix is not positive definite.",
        "add a small multiple of the identity: x + 1e-6 * jnp.eye(len(x))",
    ),
    Cause(
        "singular matrix",
        OUT,
        _SOLVES,
        always,
        "the matrix is singular.",
        "add a small multiple of the identity: x + 1e-6 * jnp.eye(len(x)), or use jnp.linalg.lstsq",
    ),
    Cause(
        "inf minus inf",
        OUT,
        ("sub", "add", *_SUMS),
        kind("from inf"),
        "inf - inf is nan.",
        "keep both finite: a large number instead of inf",
    ),
    Cause(
        "0 times inf",
        OUT,
        ("mul", "dot_general"),
        kind("from inf"),
        "0 * inf is nan.",
        "keep the factor finite: choose with jnp.where instead of multiplying by a mask",
    ),
    Cause(
        "inf divided by inf",
        OUT,
        ("div",),
        kind("from inf"),
        "inf / inf is nan.",
        "subtract the maximum before the exponentials, or work with logarithms",
    ),
    Cause(
        "custom rule",
        OUT,
        (),
        custom,
        "`{name}` makes it inside, of finite operands.",
        "call it alone at these operands",
    ),
    Cause(
        "a loop",
        OUT,
        ("while",),
        always,
        "the loop makes it inside; a `while` is not opened.",
        "write it as jax.lax.scan or fori_loop with fixed bounds, and it is opened",
    ),
    Cause(
        "overflow",
        OUT,
        ("mul", *_SUMS, "cumprod", "reduce_prod", "mul_any", "scatter-add", "square"),
        infinite,
        "the result is too large for {dtype}.",
        "scale the numbers down, or keep this part in float32",
    ),
)

UNKNOWN = Cause(
    "unknown",
    "",
    (),
    always,
    "no known cause fits the numbers at `{name}`.",
    "look at the operands there: jaxprop.backprop(loss, nodes=[...])",
)
