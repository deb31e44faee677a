"""Reads a program as expressions: each equation becomes the expression it stands for.

What a primitive is called is kept here, its derivative is not: that is read from the program of JAX's own rule.
"""

import math
import string
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from ... import _jaxpr
from .expressions import (
    ONE,
    ZERO,
    Call,
    Expr,
    Num,
    Prod,
    Shape,
    Sum,
    TooLarge,
    add,
    apply,
    compare,
    divide,
    exact,
    multiply,
    narrow,
    negate,
    number,
    power,
    raised,
    spread,
    subtract,
    where,
)


class Unreadable(Exception):
    """An equation that has no spelling here; its argument is the primitive."""


def read(
    program: _jaxpr.Program,
    leaves: Sequence[Expr],
    known: Mapping[Expr, Expr] | None = None,
    opened: bool = True,
) -> list[Expr]:
    """The results of a program as expressions of its arguments.

    Args:
        program: the program.
        leaves: one expression for each argument.
        known: shorter ways to write expressions, such as the name of a value.
        opened: whether short functions with a rule of their own are written out, or stand under their name.

    Raises:
        Unreadable: a result depends on an equation that has no spelling.
        TooLarge: a result is too long to be read.
    """
    reader = _Reader(program, leaves, _Manner(known or {}, opened))
    return [reader.atom(atom) for atom in program.jaxpr.outvars]


class _Manner(NamedTuple):
    """How expressions are written: see `read`."""

    known: Mapping[Expr, Expr]
    opened: bool


class _Reader:
    def __init__(self, program: _jaxpr.Program, leaves: Sequence[Expr], manner: _Manner) -> None:
        self.manner = manner
        self.maker = {var: eqn for eqn in program.jaxpr.eqns for var in eqn.outvars}
        self.read: dict[Any, Expr] = dict(zip(program.jaxpr.invars, leaves, strict=True))
        for var, const in zip(program.jaxpr.constvars, program.consts, strict=True):
            if np.ndim(const) == 0:
                self.read[var] = literal(const)

    def atom(self, atom: Any) -> Expr:
        if _jaxpr.is_literal(atom):
            return spread(literal(atom.val), _jaxpr.shape_of(atom.aval))
        stack = [atom]  # programs are deep: no recursion
        while stack:
            var = stack[-1]
            if var in self.read:
                stack.pop()
                continue
            if var not in self.maker:
                raise Unreadable("const")
            eqn = self.maker[var]
            missing = [
                a for a in eqn.invars if not _jaxpr.is_literal(a) and a not in self.read and not _is_zeros(eqn)
            ]
            if missing:
                stack.extend(missing)
            else:
                self.equation(eqn)
        return self.read[atom]

    def equation(self, eqn: Any) -> None:
        operands = [] if _is_zeros(eqn) else [self.atom(a) for a in eqn.invars]
        for var, found in zip(eqn.outvars, _equation(eqn, operands, self.manner), strict=True):
            self.read[var] = self.manner.known.get(found, found)


def _is_zeros(eqn: Any) -> bool:
    return eqn.primitive.name == "zeros_like"


def _equation(eqn: Any, operands: list[Expr], manner: _Manner) -> list[Expr]:
    name, shape = eqn.primitive.name, _jaxpr.shape_of(eqn.outvars[0].aval)
    body = _jaxpr.inlined_program(eqn)
    if body is not None:
        return read(body, operands, *manner)
    if _jaxpr.has_custom_rule(eqn):
        return _custom(eqn, operands, shape, manner)
    if name == "convert_element_type":
        return [_convert(eqn, operands[0])]
    if name == "split":
        return _split(eqn, operands[0])
    if name == "optimization_barrier":
        return operands
    if name not in _READ or len(eqn.outvars) != 1:
        raise Unreadable(name)
    if name == "div" and not _jaxpr.is_inexact(_jaxpr.dtype_of(eqn.outvars[0].aval)):
        raise Unreadable("integer div")
    found = _READ[name](operands, eqn.params, shape)
    return [spread(found, shape) if found.shape == () else found]


#: Functions inside of JAX that work bit by bit to be exact, and what they are.
_JAXS_OWN: dict[str, Callable[..., Expr]] = {
    "exp_neg_sq": lambda x: apply("exp", negate(power(x, Fraction(2))))
}
#: Functions with a rule of their own are written out up to this size.
_SHORT = 12


def _custom(eqn: Any, operands: list[Expr], shape: Shape, manner: _Manner) -> list[Expr]:
    """A call of a function with a rule of its own: under its name, or written out."""
    name, body = _jaxpr.display_primitive(eqn), _jaxpr.nested_programs(eqn)[0]
    if name in _JAXS_OWN and body.is_jaxs_own:
        return [_JAXS_OWN[name](*operands)]
    if len(eqn.outvars) != 1 or not name.isidentifier() or name.startswith("custom_"):
        return read(body, operands, *manner)
    try:
        (opened,) = read(body, operands, *manner)
    except (Unreadable, TooLarge):
        return [Call(name, operands, shape, {"own": True}, pointwise=False)]
    pointwise = all(x.shape in ((), shape) for x in operands) and _all_pointwise(opened)
    named = Call(name, operands, shape, {"own": True}, pointwise=pointwise)
    return [opened if manner.opened and named not in manner.known and opened.size <= _SHORT else named]


def _all_pointwise(x: Expr) -> bool:
    return (not isinstance(x, Call) or x.pointwise or x.fn == "broadcast_to") and all(
        map(_all_pointwise, x.parts)
    )


# --- numbers -------------------------------------------------------------------------------------------


def literal(value: Any) -> Expr:
    """A number of the program as a person would write it: 0.1, 1/3, 2/sqrt(pi)."""
    dtype = np.asarray(value).dtype
    kind = np.asarray(value).item() if dtype.kind in "biufc" else float(np.asarray(value, np.float64))
    if dtype.kind == "V" or dtype.name in ("bfloat16", "float16", "float32"):
        kind = float(str(np.asarray(value)[()])) if dtype.kind != "c" else kind
    if isinstance(kind, bool | int | complex) or not math.isfinite(kind):
        return Num(exact(kind))
    if len(str(kind).strip("-0").replace(".", "")) < 7 or kind == int(kind):
        return Num(exact(kind))
    return _constant(kind, dtype) or Num(exact(kind))


def _constant(value: float, dtype: Any) -> Expr | None:
    """A famous number, or a quotient of small whole numbers, where this is its nearest float."""

    def same(x: float) -> bool:
        return bool(np.asarray(x, dtype) == np.asarray(value, dtype))

    for known, spell in _CONSTANTS:
        for factor in map(Fraction, (1, -1, 2, -2, 0.5, -0.5)):
            if same(known * float(factor)):
                return multiply(Num(factor), spell)
    for below in (3, 6, 7, 9, 11, 12):
        if same(round(value * below) / below):
            return Num(Fraction(round(value * below), below))
    return None


_PI = apply("pi")


def _root(x: Expr) -> Expr:
    return apply("sqrt", x)


_CONSTANTS: list[tuple[float, Expr]] = [
    (math.pi, _PI),
    (1 / math.pi, divide(ONE, _PI)),
    (math.sqrt(math.pi), _root(_PI)),
    (1 / math.sqrt(math.pi), divide(ONE, _root(_PI))),
    (math.sqrt(2), _root(number(2))),
    (1 / math.sqrt(2), divide(ONE, _root(number(2)))),
    (math.sqrt(2 / math.pi), _root(divide(number(2), _PI))),
    (math.sqrt(2 * math.pi), _root(multiply(number(2), _PI))),
    (1 / math.sqrt(2 * math.pi), divide(ONE, _root(multiply(number(2), _PI)))),
    (math.log(2), apply("log", number(2))),
    (1 / math.log(2), divide(ONE, apply("log", number(2)))),
    (math.log(10), apply("log", number(10))),
    (1 / math.log(10), divide(ONE, apply("log", number(10)))),
]


# --- equations -----------------------------------------------------------------------------------------

_Rule = Callable[[list[Expr], Mapping[str, Any], Shape], Expr]


def _convert(eqn: Any, x: Expr) -> Expr:
    """A change of type: nothing to see, but where truth becomes a number or a fraction is cut off."""
    before, after = (_jaxpr.dtype_of(v.aval) for v in (eqn.invars[0], eqn.outvars[0]))
    truth = np.dtype(bool)
    if before == truth and after != truth and not isinstance(narrow(x), Num):
        return where(x, ONE, ZERO)
    inner = narrow(x)
    if isinstance(inner, Num):
        value = inner.value
        if after == truth:
            return spread(Num(bool(value)), x.shape)
        if before == truth:
            return spread(number(int(value)), x.shape)  # type: ignore[arg-type]
        if not isinstance(value, Fraction) and not _jaxpr.is_inexact(after):
            return spread(Num(exact(math.trunc(value))), x.shape)  # type: ignore[arg-type]
        return x
    if _jaxpr.is_inexact(before) and not _jaxpr.is_inexact(after):
        return apply("bool" if after == truth else "trunc", x)
    if "complex" in str(before) and "complex" not in str(after):
        return apply("real", x)
    return x


def _split(eqn: Any, x: Expr) -> list[Expr]:
    axis, at, found = eqn.params["axis"], 0, []
    for size in eqn.params["sizes"]:
        start = tuple(at if i == axis else 0 for i in range(len(x.shape)))
        limit = tuple(at + size if i == axis else n for i, n in enumerate(x.shape))
        found.append(slice_of(x, start, limit, None))
        at += size
    return found


def _same(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return ops[0]


def _named(fn: str) -> _Rule:
    return lambda ops, params, shape: apply(fn, *ops)


def _compared(fn: str) -> _Rule:
    return lambda ops, params, shape: compare(fn, *ops)


def _integer_pow(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return power(ops[0], exact(params["y"]))


def _select_n(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    if len(ops) != 3:
        raise Unreadable("select_n")
    condition, no, yes = ops
    return where(condition, yes, no)


def _clamp(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    low, x, high = ops
    return apply("clip", x, low, high)


def _logic(fn: str) -> _Rule:
    def rule(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
        truths = [x.value for x in map(narrow, ops) if isinstance(x, Num)]
        other = [x for x in ops if not isinstance(narrow(x), Num)]
        if len(truths) == 1 and isinstance(truths[0], bool) and fn in ("and", "or"):
            return other[0] if truths[0] == (fn == "and") else spread(Num(truths[0]), shape)
        return apply(fn, *ops)

    return rule


def _not(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    x = narrow(ops[0])
    if isinstance(x, Num) and isinstance(x.value, bool):
        return spread(Num(not x.value), shape)
    if isinstance(x, Call) and x.fn == "not":
        return spread(x.args[0], shape)
    return apply("not", ops[0])


# --- arrays --------------------------------------------------------------------------------------------


def _array(fn: str, args: Sequence[Expr], shape: Shape, **params: Any) -> Expr:
    return Call(fn, args, shape, params, pointwise=False)


def reshape(x: Expr, shape: Shape) -> Expr:
    """The same numbers in another shape."""
    if x.shape == shape:
        return x
    inner = narrow(x)
    if inner.shape == () and (isinstance(inner, Num) or inner is not x):
        return spread(inner, shape)
    if isinstance(x, Call) and x.fn == "reshape":
        return reshape(x.args[0], shape)
    if tuple(n for n in shape if n != 1) == tuple(n for n in x.shape if n != 1):
        within = _reshaped_within(x, shape)
        if within is not None:
            return within
    return _array("reshape", [x], shape)


def _reshaped_within(x: Expr, shape: Shape) -> Expr | None:
    """Axes put into each factor, each term: `(a / b)[:, None]` is `a[:, None] / b[:, None]`."""
    if not isinstance(x, Prod | Sum) or any(part.shape not in ((), x.shape) for part in x.parts):
        return None

    def put(part: Expr) -> Expr:
        return part if part.shape == () else reshape(part, shape)

    if isinstance(x, Prod):
        return multiply(Num(x.coefficient), *(power(put(factor), e) for factor, e in x.factors))
    return add(*(multiply(Num(c), put(term)) for c, term in x.terms))


def _reshape(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    order = params.get("dimensions")
    return reshape(ops[0] if order is None else transpose(ops[0], order), shape)


def transpose(x: Expr, order: Sequence[int]) -> Expr:
    """Axes in another order."""
    order = tuple(int(i) for i in order)
    shape = tuple(x.shape[i] for i in order)
    if order == tuple(range(len(order))):
        return x
    inner = narrow(x)
    if inner.shape == ():
        return spread(inner, shape)
    if isinstance(x, Call) and x.fn == "transpose":
        return transpose(x.args[0], [x.params["order"][i] for i in order])
    if isinstance(x, Call) and x.fn == "einsum":
        inputs, output = x.params["spec"].split("->")
        return einsum(x.args, inputs.split(","), "".join(output[i] for i in order))
    return _array("transpose", [x], shape, order=order)


def _broadcast_in_dim(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    x, dims = ops[0], params["broadcast_dimensions"]
    if len(ops) != 1:
        raise Unreadable("broadcast_in_dim")
    expanded = [1] * len(shape)
    for size, axis in zip(x.shape, dims, strict=True):
        expanded[axis] = size
    first = min(dims, default=len(shape))  # NumPy adds axes in front by itself
    return spread(reshape(x, tuple(expanded[first:])), shape)


def _reduction(fn: str) -> _Rule:
    def rule(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
        return reduce(fn, ops[0], params["axes"])

    return rule


def reduce(fn: str, x: Expr, axes: Sequence[int]) -> Expr:
    """A reduction over some axes."""
    axes = tuple(int(a) for a in axes)
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if not axes:
        return x
    inner = narrow(x)
    if inner.shape == () and fn == "sum":
        count = math.prod(x.shape[a] for a in axes)
        return spread(multiply(number(count), inner), shape)
    if isinstance(x, Call) and x.fn == "where" and x.args[1:] == (ONE, ZERO) and fn == "sum":
        x = spread(x.args[0], x.shape)
    return _array(fn, [x], shape, axes=axes, whole=len(axes) == len(x.shape))


def _argument(fn: str) -> _Rule:
    def rule(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
        return _array(fn, ops, shape, axis=int(params["axes"][0]))

    return rule


def _cumulative(fn: str) -> _Rule:
    def rule(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
        axis = params["axis"]
        x = flip(ops[0], (axis,)) if params["reverse"] else ops[0]
        found = _array(fn, [x], shape, axis=axis)
        return flip(found, (axis,)) if params["reverse"] else found

    return rule


def flip(x: Expr, axes: Sequence[int]) -> Expr:
    """Some axes read backwards."""
    axes = tuple(axes)
    if isinstance(x, Call) and x.fn == "flip" and x.params["axes"] == axes:
        return x.args[0]
    return _array("flip", [x], x.shape, axes=axes) if axes and narrow(x).shape != () else x


def _rev(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return flip(ops[0], params["dimensions"])


def slice_of(x: Expr, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None) -> Expr:
    """A part of an array."""
    steps = tuple(strides or (1,) * len(x.shape))
    shape = tuple(len(range(*span)) for span in zip(start, limit, steps, strict=True))
    if shape == x.shape and set(steps) <= {1}:
        return x
    if narrow(x).shape == ():
        return spread(narrow(x), shape)
    return _array("slice", [x], shape, start=tuple(start), limit=tuple(limit), steps=steps)


def _slice(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return slice_of(ops[0], params["start_indices"], params["limit_indices"], params["strides"])


def _pad(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    x, value = ops[0], narrow(ops[1])
    config = [tuple(map(int, row)) for row in params["padding_config"]]
    low, high, inside = zip(*config, strict=True) if shape else ((), (), ())
    if value != ZERO:
        if any(inside) or min((*low, *high), default=0) < 0:
            raise Unreadable("pad")
        return _array("pad", [x, value], shape, width=tuple(zip(low, high, strict=True)))
    if min((*low, *high), default=0) < 0:
        if any(inside):
            raise Unreadable("pad")
        cut = slice_of(
            x,
            [max(-a, 0) for a in low],
            [n - max(-b, 0) for n, b in zip(x.shape, high, strict=True)],
            None,
        )
        width = tuple((max(a, 0), max(b, 0)) for a, b in zip(low, high, strict=True))
        return _array("pad", [cut], shape, width=width) if any(map(any, width)) else cut
    if not any(inside):
        width = tuple(zip(low, high, strict=True))
        return _array("pad", [x], shape, width=width) if any(map(any, width)) else x
    steps = tuple(i + 1 for i in inside)
    limit = tuple(a + (n - 1) * s + 1 if n else a for a, n, s in zip(low, x.shape, steps, strict=True))
    return _array("place", [x], shape, start=low, limit=limit, steps=steps)


def _concatenate(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return _array("concatenate", ops, shape, axis=int(params["dimension"]))


def _iota(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    axis = params["dimension"]
    line = _array("arange", [], (shape[axis],), size=shape[axis])
    return spread(reshape(line, (shape[axis],) + (1,) * (len(shape) - axis - 1)), shape)


def _dynamic_slice(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return _array("dynamic_slice", ops, shape, sizes=tuple(params["slice_sizes"]))


def _dynamic_update_slice(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    return _array("dynamic_update_slice", ops, shape)


def _triangular_solve(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    if params["conjugate_a"]:
        raise Unreadable("triangular_solve")
    names = ("left_side", "lower", "transpose_a", "unit_diagonal")
    return _array("triangular_solve", ops, shape, **{name: params[name] for name in names})


# --- products of arrays --------------------------------------------------------------------------------


def _dot_general(ops: list[Expr], params: Mapping[str, Any], shape: Shape) -> Expr:
    (over_a, over_b), (batch_a, batch_b) = params["dimension_numbers"]
    a, b = ops
    letters = iter(string.ascii_letters)
    left = [""] * len(a.shape)
    right = [""] * len(b.shape)
    for i, j in (*zip(batch_a, batch_b, strict=True), *zip(over_a, over_b, strict=True)):
        left[i] = right[j] = next(letters)
    left = [letter or next(letters) for letter in left]
    right = [letter or next(letters) for letter in right]
    batch = "".join(left[i] for i in batch_a)
    free_a = "".join(c for i, c in enumerate(left) if i not in (*batch_a, *over_a))
    free_b = "".join(c for i, c in enumerate(right) if i not in (*batch_b, *over_b))
    return einsum(ops, ["".join(left), "".join(right)], batch + free_a + free_b)


def _aligned(x: Expr, letters: str, output: str) -> Expr:
    """An operand with its axes where the letters of the result have them."""
    x = transpose(x, [letters.index(c) for c in output if c in letters])
    sizes = iter(x.shape)
    shape = tuple(next(sizes) if c in letters else 1 for c in output)
    first = next((i for i, c in enumerate(output) if c in letters), len(shape))
    return reshape(x, shape[first:])  # NumPy adds axes in front by itself


def einsum(args: Sequence[Expr], inputs: Sequence[str], output: str) -> Expr:
    """A sum of products over index letters; transposes of the operands are taken into them."""
    bare, letters = [], []
    for arg, own in zip(args, inputs, strict=True):
        while isinstance(arg, Call) and arg.fn == "transpose":
            order = arg.params["order"]
            own = "".join(own[order.index(i)] for i in range(len(order)))
            arg = arg.args[0]
        bare.append(arg)
        letters.append(own)
    sizes = {c: n for arg, own in zip(bare, letters, strict=True) for c, n in zip(own, arg.shape, strict=True)}
    summed = set("".join(letters)) - set(output)
    if not summed and not (len(output) == 2 and all(len(own) == 1 for own in letters)):
        return multiply(*(_aligned(arg, own, output) for arg, own in zip(bare, letters, strict=True)))
    if not output and len(summed) > 1 and len(set(letters)) == 1:
        return reduce("sum", multiply(*bare), range(len(summed)))
    rename = dict(zip(dict.fromkeys("".join(letters)), string.ascii_letters, strict=False))
    spec = ",".join("".join(rename[c] for c in own) for own in letters)
    spec += "->" + "".join(rename[c] for c in output)
    return _array("einsum", bare, tuple(sizes[c] for c in output), spec=spec)


#: How a primitive is read. Names are those of `jax.numpy`, `jax.scipy.special`, `jax.nn`, `jax.lax`.
_READ: dict[str, _Rule] = {
    "add": lambda ops, params, shape: add(*ops),
    "add_any": lambda ops, params, shape: add(*ops),
    "sub": lambda ops, params, shape: subtract(*ops),
    "mul": lambda ops, params, shape: multiply(*ops),
    "div": lambda ops, params, shape: divide(*ops),
    "neg": lambda ops, params, shape: negate(*ops),
    "pow": lambda ops, params, shape: raised(*ops),
    "square": lambda ops, params, shape: power(ops[0], Fraction(2)),
    "one_minus_square": lambda ops, params, shape: subtract(ONE, power(ops[0], Fraction(2))),
    "rsqrt": lambda ops, params, shape: divide(ONE, apply("sqrt", *ops)),
    "exp2": lambda ops, params, shape: raised(number(2), ops[0]),
    "integer_pow": _integer_pow,
    "select_n": _select_n,
    "clamp": _clamp,
    "and": _logic("and"),
    "or": _logic("or"),
    "xor": _logic("xor"),
    "not": _not,
    "dot_general": _dot_general,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": lambda ops, params, shape: reshape(ops[0], shape),
    "expand_dims": lambda ops, params, shape: reshape(ops[0], shape),
    "transpose": lambda ops, params, shape: transpose(ops[0], params["permutation"]),
    "reduce_sum": _reduction("sum"),
    "reduce_max": _reduction("max"),
    "reduce_min": _reduction("min"),
    "reduce_prod": _reduction("prod"),
    "reduce_and": _reduction("all"),
    "reduce_or": _reduction("any"),
    "argmax": _argument("argmax"),
    "argmin": _argument("argmin"),
    "cumsum": _cumulative("cumsum"),
    "cumprod": _cumulative("cumprod"),
    "cummax": _cumulative("cummax"),
    "cummin": _cumulative("cummin"),
    "cumlogsumexp": _cumulative("cumlogsumexp"),
    "rev": _rev,
    "slice": _slice,
    "pad": _pad,
    "concatenate": _concatenate,
    "iota": _iota,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "triangular_solve": _triangular_solve,
    "zeros_like": lambda ops, params, shape: spread(ZERO, shape),
    "full": lambda ops, params, shape: spread(ops[0], shape),
}
_READ |= {fn: _compared(fn) for fn in ("eq", "ne", "lt", "le", "gt", "ge")}
_READ |= dict.fromkeys(
    (
        "copy",
        "copy_p",
        "name",
        "stop_gradient",
        "sharding_constraint",
        "device_put",
        "layout_constraint",
        "pvary",
        "pcast",
        "mutable_array",
        "reshard",
    ),
    _same,
)
#: Functions of one number at a time, by primitive.
FUNCTIONS = {
    "abs": "abs",
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "bessel_i0e": "i0e",
    "bessel_i1e": "i1e",
    "cbrt": "cbrt",
    "ceil": "ceil",
    "complex": "complex",
    "conj": "conj",
    "cos": "cos",
    "cosh": "cosh",
    "digamma": "digamma",
    "erf": "erf",
    "erf_inv": "erfinv",
    "erfc": "erfc",
    "exp": "exp",
    "expm1": "expm1",
    "floor": "floor",
    "igamma": "gammainc",
    "igamma_grad_a": "igamma_grad_a",
    "igammac": "gammaincc",
    "imag": "imag",
    "is_finite": "isfinite",
    "lgamma": "gammaln",
    "log": "log",
    "log1p": "log1p",
    "log2": "log2",
    "logistic": "sigmoid",
    "max": "maximum",
    "min": "minimum",
    "nextafter": "nextafter",
    "polygamma": "polygamma",
    "random_gamma_grad": "random_gamma_grad",
    "real": "real",
    "regularized_incomplete_beta": "betainc",
    "rem": "fmod",
    "round": "round",
    "sign": "sign",
    "sin": "sin",
    "sinh": "sinh",
    "sqrt": "sqrt",
    "tan": "tan",
    "tanh": "tanh",
    "zeta": "zeta",
}
_READ |= {primitive: _named(fn) for primitive, fn in FUNCTIONS.items()}


def head(x: Expr) -> str:
    """The operation an expression ends with, as a word."""
    return x.fn if isinstance(x, Call) else "product" if isinstance(x, Prod) else type(x).__name__.lower()
