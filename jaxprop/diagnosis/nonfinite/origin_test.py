"""Who makes a NaN or Inf, and who only hands it on: a test at each node, inside the compiled pass.

A node makes a non-finite number where it still does when the non-finite numbers it is given are replaced by
harmless ones. The same question is asked of its vjp: with the operands replaced, with the cotangents replaced,
with both. What is written down are a few integers for each node.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.graph import Node, Value
from ...core.local import (
    Local,
    active_operands,
    evaluate,
    fill_zeros,
    node_function,
    partial_function,
    scatter,
    take,
)
from ...core.recorders import Recorder
from ...core.types import OutCts

#: What stands in for a number that is not finite: in the domain of nearly every function.
_HARMLESS = 0.5
_OTHERWISE = {"acosh": 1.5}

#: Nodes judged as a whole: they make what is not finite only where all they are given is finite. A harmless
#: number in a matrix says nothing (it may be singular), and a `while` may not end.
_WHOLE = frozenset(
    {
        "cholesky",
        "cholesky_update",
        "custom_linear_solve",
        "eig",
        "eigh",
        "geqrf",
        "hessenberg",
        "householder_product",
        "igamma",
        "igamma_grad_a",
        "igammac",
        "lu",
        "polygamma",
        "qr",
        "random_gamma_grad",
        "regularized_incomplete_beta",
        "schur",
        "svd",
        "symmetric_product",
        "triangular_solve",
        "tridiagonal",
        "tridiagonal_solve",
        "while",
        "zeta",
    }
)

#: Nodes that move numbers, or choose among them: they make nothing, and send back what comes.
_MOVING = frozenset(
    {
        "broadcast_in_dim",
        "concatenate",
        "copy",
        "copy_p",
        "expand_dims",
        "neg",
        "optimization_barrier",
        "pad",
        "reshape",
        "rev",
        "select_n",
        "slice",
        "split",
        "squeeze",
        "stack",
        "stop_gradient",
        "transpose",
    }
)
#: Nodes that send back what comes, whatever their operands are.
_PASSING = _MOVING | {"add", "add_any", "reduce_sum", "sub"}

#: Nodes whose output, element by element, is made from the same elements of their operands.
_ELEMENTWISE = """
    abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh
    digamma div erf erf_inv erfc exp exp2 expm1 floor imag integer_pow lgamma log log1p log2 logistic
    max min mul neg nextafter pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt
    square sub tan tanh
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())


class Out(NamedTuple):
    """What is said of one output of a node, on the way out. `_at`: flat index of the first.

    Attributes:
        bad: whether a number is not finite.
        nan: whether one is NaN.
        up: whether one is plus infinity.
        made: whether one is made here, from finite numbers.
        carried: whether one is not.
        from_inf: whether a NaN is made here, from Inf.
        begun: how many are made here, from Inf or not.
    """

    bad: Any
    nan: Any
    up: Any
    made: Any
    carried: Any
    from_inf: Any
    bad_at: Any
    made_at: Any
    from_inf_at: Any
    begun: Any


class Back(NamedTuple):
    """What is said of what a node sends back to one operand. `_at`: flat index of the first.

    Attributes:
        sent: whether a number is not finite.
        by_ct: whether one is not with harmless operands too: the cotangents that came do it.
        by_value: whether one is not with harmless cotangents too: the operands do it.
        fresh: whether one is not with both harmless, so that it is made here, where the output of the node is
            finite: nothing was to be seen on the way out.
        from_inf: whether one is made here from an operand that is Inf, where the output is no NaN.
        begun: how many are made here, from Inf or not.
    """

    sent: Any
    by_ct: Any
    by_value: Any
    fresh: Any
    from_inf: Any
    fresh_at: Any
    from_inf_at: Any
    begun: Any


def is_float(value: Value) -> bool:
    return _jaxpr.is_inexact(value.dtype)


def float_outputs(node: Node) -> tuple[int, ...]:
    """Positions of the outputs that are written down."""
    return tuple(i for i, value in enumerate(node.outputs) if is_float(value))


def asked_operands(node: Node) -> tuple[int, ...]:
    """Positions of the operands whose cotangents are written down."""
    if not _tested(node) or not node.active or passes_on(node):
        return ()
    return tuple(i for i, value in enumerate(node.operands) if value.active and is_float(value))


def moves(node: Node) -> bool:
    """Whether a node makes nothing, on either way."""
    return node.primitive in _MOVING


def passes_on(node: Node) -> bool:
    """Whether what a node sends back depends on the cotangents that come alone."""
    return node.primitive in _PASSING


def _tested(node: Node) -> bool:
    """Whether a node is tested: no head, no opened form (its body is), nothing with an effect."""
    return node.eqn is not None and not (node.opened and node.graphs) and not node.eqn.effects


# --- on the way out ------------------------------------------------------------------------------


def _forward(local: Local) -> Any:
    node = local.node
    harmless = _outputs_of_harmless(local)
    rows = []
    for i in float_outputs(node):
        x = local.outputs[i]
        bad, nan = _not_finite(x), jnp.isnan(x)
        up = bad & (jnp.real(x) > 0)
        if harmless is None:
            none = jnp.zeros_like(bad)
            rows.append(_packed((bad, nan, up, none, bad, none), (bad, none, none), none))
            continue
        made = bad & _not_finite(harmless[i])
        from_inf = nan & ~made & ~_nan_given(local, np.shape(x))
        rows.append(
            _packed((bad, nan, up, made, bad & ~made, from_inf), (bad, made, from_inf), made | from_inf)
        )
    return _stacked(rows, 5)


def _outputs_of_harmless(local: Local) -> Sequence[Any] | None:
    """What the node makes with harmless operands; None where it makes nothing."""
    node = local.node
    if not _tested(node) or moves(node):
        return None
    if node.primitive in _WHOLE:
        clean = _all_finite(node.operands, local.operands)
        return [jnp.where(clean, x, jnp.zeros_like(x)) for x in local.outputs]
    return evaluate(node, _replaced(node, local.operands))


def _nan_given(local: Local, shape: tuple[int, ...]) -> Any:
    """Where an operand is NaN: element by element where the node is elementwise, else as a whole."""
    found: Any = jnp.bool_(False)
    for x, value in zip(local.operands, local.node.operands, strict=True):
        if is_float(value):
            nan = jnp.isnan(x)
            found = found | (nan if _alike(local.node, x, shape) else jnp.any(nan))
    return found


# --- on the way back ------------------------------------------------------------------------------


def _backward(local: Local, out_cts: OutCts) -> Any:
    node = local.node
    positions = asked_operands(node)
    if not positions:
        return _stacked([], 4)
    sent, by_ct, by_value, made = _sent(local, out_cts)
    rows = []
    for i in positions:
        if sent[i] is None:
            rows.append(jnp.zeros(4, jnp.float32))
            continue
        bad = _not_finite(sent[i])
        made_here, by_values = bad & _not_finite(made[i]), bad & _not_finite(by_value[i])
        fresh = made_here & _unseen(local, i, jnp.isfinite)
        nan_given = _nan_given(local, np.shape(sent[i]))
        infinite = by_values & ~made_here & ~nan_given & _unseen(local, i, _not_nan)
        flags = (bad, bad & _not_finite(by_ct[i]), by_values, fresh, infinite)
        rows.append(_packed(flags, (fresh, infinite), fresh | infinite))
    return _stacked(rows, 4)


def _sent(local: Local, out_cts: OutCts) -> tuple[Any, Any, Any, Any]:
    """What the node sends back; the same with harmless operands, with harmless cotangents, with both."""
    node = local.node
    if node.primitive in _WHOLE:
        sent = local.vjp(out_cts)
        return (sent, *_whole_sent(local, out_cts, sent))
    calm_cts = tuple(None if ct is None else _calm(ct) for ct in out_cts)
    pull, pull_calm = _pullback(node, local.operands), _pullback(node, _replaced(node, local.operands))
    return pull(out_cts), pull_calm(out_cts), pull(calm_cts), pull_calm(calm_cts)


def _pullback(node: Node, operands: Sequence[Any]) -> Callable[[OutCts], Sequence[Any]]:
    moved = active_operands(node)
    _, pull = jax.vjp(partial_function(node_function(node), operands, moved), *take(operands, moved))
    return lambda cts: scatter(pull(fill_zeros(cts, node)), moved, len(operands))


def _whole_sent(local: Local, out_cts: OutCts, sent: Any) -> tuple[Any, Any, Any]:
    values = _all_finite(local.node.operands, local.operands)
    cts = jnp.all(jnp.stack([jnp.all(jnp.isfinite(ct)) for ct in out_cts if ct is not None]))

    def where(condition: Any) -> list[Any]:
        return [None if x is None else jnp.where(condition, x, jnp.zeros_like(x)) for x in sent]

    return where(~cts), where(~values), where(values & cts)


def _unseen(local: Local, position: int, fine: Callable[[Any], Any]) -> Any:
    """Where the outputs are fine, so that nothing was to be seen on the way out.

    Element by element where the node is elementwise, else as a whole.
    """
    shape = np.shape(local.operands[position])
    found: Any = jnp.bool_(True)
    for i in float_outputs(local.node):
        x = local.outputs[i]
        good = fine(x)
        found = found & (good if _alike(local.node, x, shape) else jnp.all(good))
    return found


# --- small things ---------------------------------------------------------------------------------


def _not_finite(x: Any) -> Any:
    return ~jnp.isfinite(x)


def _not_nan(x: Any) -> Any:
    return ~jnp.isnan(x)


def _calm(x: Any, instead: float = _HARMLESS) -> Any:
    return jnp.where(jnp.isfinite(x), x, jnp.asarray(instead, jnp.result_type(x)))


def _replaced(node: Node, operands: Sequence[Any]) -> list[Any]:
    """The operands with harmless numbers in place of those that are not finite."""
    instead = _OTHERWISE.get(node.primitive, _HARMLESS)
    return [
        _calm(x, instead) if is_float(value) else x for x, value in zip(operands, node.operands, strict=True)
    ]


def _alike(node: Node, x: Any, shape: tuple[int, ...]) -> bool:
    """Whether elements of `x` belong to those of an array of this shape, one to one."""
    return np.shape(x) == shape and node.primitive in ELEMENTWISE


def _all_finite(values: Sequence[Value], numbers: Sequence[Any]) -> Any:
    found = [jnp.all(jnp.isfinite(x)) for x, value in zip(numbers, values, strict=True) if is_float(value)]
    return jnp.all(jnp.stack(found)) if found else jnp.bool_(True)


#: Integers below are exact in float32.
_EXACT = 2**24


def _packed(flags: Sequence[Any], firsts: Sequence[Any], counted: Any) -> Any:
    """Which flags are up anywhere, the first index of some, the count of one: all in one reduction.

    One kernel instead of a dozen: it is their number that costs compile time. Floats, where they are exact:
    cotangents are floats.
    """
    size, shape = np.size(counted), np.shape(counted)
    dtype: Any = np.float32 if size < _EXACT else np.int32
    none = np.asarray(max(size, 1), dtype)
    index = jnp.arange(size, dtype=dtype).reshape(shape)
    parts = [flag.astype(np.int32) << bit for bit, flag in enumerate(flags)]
    columns = [functools.reduce(jnp.bitwise_or, parts), *(jnp.where(mask, index, none) for mask in firsts)]

    def join(a: Any, b: Any) -> Any:
        return (a[0] | b[0], *map(jax.lax.min, a[1:-1], b[1:-1]), a[-1] + b[-1])

    start = (np.int32(0), *(none for _ in firsts), np.asarray(0, dtype))
    code, *rest = jax.lax.reduce((*columns, counted.astype(dtype)), start, join, tuple(range(len(shape))))
    return jnp.stack([code.astype(dtype), *rest])


def _stacked(rows: list[Any], width: int) -> Any:
    if len({row.dtype for row in rows}) > 1:
        rows = [row.astype(np.int32) for row in rows]
    return jnp.stack(rows) if rows else jnp.zeros((0, width), jnp.float32)


def read_out(row: np.ndarray[Any, Any]) -> Out:
    """Read what was written down of an output; the fields have the step axes of `row`."""
    row = row.astype(np.int64)
    return Out(*_flags(row, 6), *np.moveaxis(row[..., 1:], -1, 0))


def read_back(row: np.ndarray[Any, Any]) -> Back:
    """Read what was written down of what is sent to an operand."""
    row = row.astype(np.int64)
    return Back(*_flags(row, 5), *np.moveaxis(row[..., 1:], -1, 0))


def _flags(row: np.ndarray[Any, Any], count: int) -> list[np.ndarray[Any, Any]]:
    return [(row[..., 0] >> bit) & 1 != 0 for bit in range(count)]


#: Write down, at every node, how many numbers are not finite, and how many of them it made itself. The record
#: of a half is an integer array of shape (steps..., outputs or operands, numbers): see `read_out`, `read_back`.
made = Recorder(_forward, _backward)
