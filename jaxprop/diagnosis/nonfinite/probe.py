"""Which nodes produce a NaN or Inf, and which only propagate it: a probe at each node, in the compiled pass.

A node produces a non-finite number if it still does when the non-finite numbers among its operands are replaced
by harmless ones. The same question is asked of its vjp: with harmless operands, with harmless cotangents, and
with both. A few integers are recorded for each node.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
from ...core.types import Array, InCts, OutCts, Position, Shape

#: Replaces a number that is not finite: in the domain of nearly every function.
_HARMLESS = 0.5
_HARMLESS_FOR = {"acosh": 1.5}

#: Nodes judged as a whole: they produce a non-finite number only if all of their operands are finite. With a
#: harmless number in it a matrix may be singular, and a `while` may not terminate.
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

#: Nodes that move elements or select among them: they produce nothing, forward or backward.
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
#: Nodes whose in_cts depend on the out_cts alone, whatever their operands are.
_PASSING = _MOVING | {"add", "add_any", "reduce_sum", "sub"}

#: Nodes of which each output element depends on the same elements of the operands alone.
_ELEMENTWISE = """
    abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type cos cosh
    digamma div erf erf_inv erfc exp exp2 expm1 floor imag integer_pow lgamma log log1p log2 logistic
    max min mul neg nextafter pow real reduce_precision rem round rsqrt select_n sign sin sinh sqrt
    square sub tan tanh
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())


class OutputProbe(NamedTuple):
    """What is recorded of one output of a node in the forward pass.

    Attributes ending in `_at` are the flat index of the first such element.

    Attributes:
        nonfinite: whether any element is NaN or Inf.
        nan: whether any element is NaN.
        positive_inf: whether any element is plus infinity.
        produced: whether any is produced here, from finite numbers.
        propagated: whether any is not.
        nan_from_inf: whether a NaN is produced here, from Inf.
        total: how many elements are produced here, from finite numbers or from Inf.
    """

    nonfinite: np.ndarray
    nan: np.ndarray
    positive_inf: np.ndarray
    produced: np.ndarray
    propagated: np.ndarray
    nan_from_inf: np.ndarray
    nonfinite_at: np.ndarray
    produced_at: np.ndarray
    nan_from_inf_at: np.ndarray
    total: np.ndarray


class CotangentProbe(NamedTuple):
    """What is recorded of the in_ct of one operand.

    Attributes ending in `_at` are the flat index of the first such element.

    Attributes:
        nonfinite: whether any element is NaN or Inf.
        by_cts: whether any still is with harmless operands: the out_cts cause it.
        by_operands: whether any still is with harmless out_cts: the operands cause it.
        produced: whether any still is with both harmless, so that it is produced here, where the node produces
            nothing bad in the forward pass.
        nan_from_inf: whether a NaN is produced here from an operand that is Inf, where no output is NaN.
        total: how many elements are produced here, from finite numbers or from Inf.
    """

    nonfinite: np.ndarray
    by_cts: np.ndarray
    by_operands: np.ndarray
    produced: np.ndarray
    nan_from_inf: np.ndarray
    by_operands_at: np.ndarray
    produced_at: np.ndarray
    nan_from_inf_at: np.ndarray
    total: np.ndarray


def is_float(value: Value) -> bool:
    """Whether a value is real or complex floating point."""
    return _jaxpr.is_inexact(value.dtype)


def float_outputs(node: Node) -> tuple[Position, ...]:
    """Return the positions of the outputs that are recorded."""
    return tuple(Position(i) for i, value in enumerate(node.outputs) if is_float(value))


def probed_operands(node: Node) -> tuple[Position, ...]:
    """Return the positions of the operands whose cotangents are recorded."""
    if not _is_probed(node) or not node.active or passes_cotangents(node):
        return ()
    return tuple(Position(i) for i, value in enumerate(node.operands) if value.active and is_float(value))


def moves(node: Node) -> bool:
    """Whether a node only moves elements: it produces nothing, forward or backward."""
    return node.primitive in _MOVING


def passes_cotangents(node: Node) -> bool:
    """Whether the in_cts of a node depend on its out_cts alone."""
    return node.primitive in _PASSING


def _is_probed(node: Node) -> bool:
    """Whether a node is an operation without effects, and not a form whose body is probed in its place."""
    return node.eqn is not None and not (node.opened and node.graphs) and not node.eqn.effects


# --- the forward pass ----------------------------------------------------------------------------


def _probe_outputs(local: Local) -> Array:
    node = local.node
    harmless = _outputs_of_harmless(local)
    rows = []
    for i in float_outputs(node):
        x = local.outputs[i]
        bad, nan = ~jnp.isfinite(x), jnp.isnan(x)
        up = bad & (jnp.real(x) > 0)
        if harmless is None:
            none = jnp.zeros_like(bad)
            rows.append(_packed((bad, nan, up, none, bad, none), (bad, none, none), none))
            continue
        produced = bad & ~jnp.isfinite(harmless[i])
        from_inf = nan & ~produced & ~_nan_among_operands(local, np.shape(x))
        flags = (bad, nan, up, produced, bad & ~produced, from_inf)
        rows.append(_packed(flags, (bad, produced, from_inf), produced | from_inf))
    return _stacked_rows(rows, 5)


def _outputs_of_harmless(local: Local) -> Sequence[Array] | None:
    """Evaluate the node at harmless operands; None if it can produce nothing."""
    node = local.node
    if not _is_probed(node) or moves(node):
        return None
    if node.primitive in _WHOLE:
        clean = _all_finite(node.operands, local.operands)
        return [jnp.where(clean, x, jnp.zeros_like(x)) for x in local.outputs]
    return evaluate(node, _harmless_operands(node, local.operands))


def _nan_among_operands(local: Local, shape: Shape) -> Array:
    """Where an operand is NaN: elementwise if the node is elementwise, else as a whole."""
    found = jnp.zeros((), bool)
    for x, value in zip(local.operands, local.node.operands, strict=True):
        if is_float(value):
            nan = jnp.isnan(x)
            found = found | (nan if _corresponds(local.node, x, shape) else jnp.any(nan))
    return found


# --- the backward pass ---------------------------------------------------------------------------


def _probe_cotangents(local: Local, out_cts: OutCts) -> Array:
    node = local.node
    positions = probed_operands(node)
    if not positions:
        return _stacked_rows([], 5)
    found = _cotangents(local, out_cts)
    no_nan = [~jnp.isnan(local.outputs[i]) for i in float_outputs(node)]
    rows = []
    for i in positions:
        ct = found.in_cts[i]
        if ct is None:
            rows.append(jnp.zeros(5, jnp.float32))
            continue
        bad = ~jnp.isfinite(ct)
        shape = np.shape(ct)
        produced_here, by_operands = (
            bad & _is_bad(found.by_neither[i]),
            bad & _is_bad(found.by_operands[i]),
        )
        produced = produced_here & _everywhere(node, found.nothing_shows, shape)
        from_inf = by_operands & ~produced_here & ~_nan_among_operands(local, shape)
        from_inf = from_inf & _everywhere(node, no_nan, shape)
        flags = (bad, bad & _is_bad(found.by_cts[i]), by_operands, produced, from_inf)
        rows.append(_packed(flags, (by_operands, produced, from_inf), produced | from_inf))
    return _stacked_rows(rows, 5)


class _Cotangents(NamedTuple):
    """The in_cts of a node, as they are and with harmless numbers.

    Attributes:
        in_cts: as they are.
        by_cts: with harmless operands.
        by_operands: with harmless out_cts.
        by_neither: with both harmless.
        nothing_shows: for each output of floats, where it produces nothing bad in the forward pass.
    """

    in_cts: InCts
    by_cts: InCts
    by_operands: InCts
    by_neither: InCts
    nothing_shows: Sequence[Array]


def _cotangents(local: Local, out_cts: OutCts) -> _Cotangents:
    node = local.node
    outputs = [local.outputs[i] for i in float_outputs(node)]
    if node.primitive in _WHOLE:
        in_cts = local.vjp(out_cts)
        return _Cotangents(
            in_cts, *_in_cts_as_a_whole(local, out_cts, in_cts), list(map(jnp.isfinite, outputs))
        )
    harmless_cts = tuple(None if ct is None else _harmless(ct) for ct in out_cts)
    _, pull = _with_pullback(node, local.operands)
    harmless, pull_harmless = _with_pullback(node, _harmless_operands(node, local.operands))
    pairs = zip(outputs, (harmless[i] for i in float_outputs(node)), strict=True)
    return _Cotangents(
        pull(out_cts),
        pull_harmless(out_cts),
        pull(harmless_cts),
        pull_harmless(harmless_cts),
        [jnp.isfinite(x) | jnp.isfinite(calm) for x, calm in pairs],
    )


def _with_pullback(node: Node, operands: Sequence[Array]) -> tuple[Sequence[Array], Callable[[OutCts], InCts]]:
    moved = active_operands(node)
    outputs, pull = jax.vjp(partial_function(node_function(node), operands, moved), *take(operands, moved))
    return outputs, lambda cts: scatter(pull(fill_zeros(cts, node)), moved, len(operands))


def _in_cts_as_a_whole(local: Local, out_cts: OutCts, in_cts: InCts) -> tuple[InCts, InCts, InCts]:
    operands_finite = _all_finite(local.node.operands, local.operands)
    cts_finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(ct)) for ct in out_cts if ct is not None]))

    def where(condition: Array) -> InCts:
        return [None if x is None else jnp.where(condition, x, jnp.zeros_like(x)) for x in in_cts]

    return where(~cts_finite), where(~operands_finite), where(operands_finite & cts_finite)


def _everywhere(node: Node, masks: Sequence[Array], shape: Shape) -> Array:
    """Combine masks of the outputs: elementwise if the node is elementwise, else as a whole."""
    found = jnp.ones((), bool)
    for mask in masks:
        found = found & (mask if _corresponds(node, mask, shape) else jnp.all(mask))
    return found


# --- helpers ---------------------------------------------------------------------------------------


def _is_bad(ct: Array | None) -> Array:
    return jnp.zeros((), bool) if ct is None else ~jnp.isfinite(ct)


def _harmless(x: Array, instead: float = _HARMLESS) -> Array:
    return jnp.where(jnp.isfinite(x), x, jnp.asarray(instead, jnp.result_type(x)))


def _harmless_operands(node: Node, operands: Sequence[Array]) -> list[Array]:
    instead = _HARMLESS_FOR.get(node.primitive, _HARMLESS)
    return [
        _harmless(x, instead) if is_float(value) else x
        for x, value in zip(operands, node.operands, strict=True)
    ]


def _corresponds(node: Node, x: Array, shape: Shape) -> bool:
    """Whether elements of `x` correspond one to one to those of an array of this shape."""
    return np.shape(x) == shape and node.primitive in ELEMENTWISE


def _all_finite(values: Sequence[Value], numbers: Sequence[Array]) -> Array:
    found = [jnp.all(jnp.isfinite(x)) for x, value in zip(numbers, values, strict=True) if is_float(value)]
    return jnp.all(jnp.stack(found)) if found else jnp.ones((), bool)


#: Integers below are exact in float32.
_EXACT = 2**24


def _packed(flags: Sequence[Array], firsts: Sequence[Array], counted: Array) -> Array:
    """Reduce flags to whether any is up, masks to their first index, and one mask to its count, all at once.

    One kernel instead of a dozen: compile time depends on their number. Floats while they are exact, since
    cotangents are floats.
    """
    size, shape = np.size(counted), np.shape(counted)
    dtype = jnp.float32 if size < _EXACT else jnp.int32
    none = np.asarray(max(size, 1), dtype)
    index = jnp.arange(size, dtype=dtype).reshape(shape)
    parts = [flag.astype(np.int32) << bit for bit, flag in enumerate(flags)]
    columns = [functools.reduce(jnp.bitwise_or, parts), *(jnp.where(mask, index, none) for mask in firsts)]

    def join(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
        return (a[0] | b[0], *map(jax.lax.min, a[1:-1], b[1:-1]), a[-1] + b[-1])

    start = (np.int32(0), *(none for _ in firsts), np.asarray(0, dtype))
    code, *rest = jax.lax.reduce((*columns, counted.astype(dtype)), start, join, tuple(range(len(shape))))
    return jnp.stack([code.astype(dtype), *rest])


def _stacked_rows(rows: list[Array], width: int) -> Array:
    if len({row.dtype for row in rows}) > 1:
        rows = [row.astype(np.int32) for row in rows]
    return jnp.stack(rows) if rows else jnp.zeros((0, width), jnp.float32)


def read_output(row: np.ndarray) -> OutputProbe:
    """Read what was recorded of an output; the fields have the step axes of `row`."""
    row = row.astype(np.int64)
    return OutputProbe(*_flags(row, 6), *np.moveaxis(row[..., 1:], -1, 0))


def read_cotangent(row: np.ndarray) -> CotangentProbe:
    """Read what was recorded of the in_ct of an operand."""
    row = row.astype(np.int64)
    return CotangentProbe(*_flags(row, 5), *np.moveaxis(row[..., 1:], -1, 0))


def _flags(row: np.ndarray, count: int) -> list[np.ndarray]:
    return [(row[..., 0] >> bit) & 1 != 0 for bit in range(count)]


#: Record at every node how many numbers are not finite, and how many of them it produced. The record of a half
#: is an integer array of shape (steps..., outputs or operands, numbers): see `read_output`.
probe = Recorder(_probe_outputs, _probe_cotangents)
