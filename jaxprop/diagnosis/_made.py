"""Who makes a NaN or Inf, and who only hands it on: a test at each node, inside the compiled pass.

A node makes a non-finite number where it still does when the non-finite numbers it is given are replaced by
harmless ones. The same question is asked of its vjp: with the operands replaced, with the cotangents replaced,
with both. What is written down are a few integers for each node.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .._graph import Node, Value
from .._local import Local, evaluate
from .._rules import Recorder
from .._types import OutCts

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


class Out(NamedTuple):
    """Counts at one output of a node, on the way out. `_at`: flat index of the first.

    Attributes:
        bad: numbers that are not finite.
        nan: those of them that are NaN.
        up: those of them that are plus infinity.
        made: those made here, from finite numbers.
        from_inf: NaNs made here, from Inf.
    """

    bad: Any
    bad_at: Any
    nan: Any
    up: Any
    made: Any
    made_at: Any
    from_inf: Any
    from_inf_at: Any


class Back(NamedTuple):
    """Counts in what a node sends back to one operand. `_at`: flat index of the first.

    Attributes:
        sent: numbers that are not finite.
        by_ct: not finite with harmless operands too: the cotangents that came do it.
        by_value: not finite with harmless cotangents too: the operands do it.
        made: not finite with both harmless: made here.
        fresh: those of `made` where the output of the node is finite: nothing was to be seen on the way out.
        from_inf: made here from an operand that is Inf, the output no NaN.
    """

    sent: Any
    by_ct: Any
    by_value: Any
    made: Any
    fresh: Any
    fresh_at: Any
    from_inf: Any
    from_inf_at: Any


def is_float(value: Value) -> bool:
    return _jaxpr.is_inexact(value.dtype)


def float_outputs(node: Node) -> tuple[int, ...]:
    """Positions of the outputs that are written down."""
    return tuple(i for i, value in enumerate(node.outputs) if is_float(value))


def asked_operands(node: Node) -> tuple[int, ...]:
    """Positions of the operands whose cotangents are written down."""
    if not _tested(node) or not node.active:
        return ()
    return tuple(i for i, value in enumerate(node.operands) if value.active and is_float(value))


def _tested(node: Node) -> bool:
    """Whether a node is tested: no head, no opened form (its body is), nothing with an effect."""
    return node.eqn is not None and not (node.opened and node.graphs) and not node.eqn.effects


# --- on the way out ------------------------------------------------------------------------------


def _forward(local: Local) -> Any:
    node = local.node
    harmless, no_nan = _outputs_of_others(local)
    rows = []
    for i in float_outputs(node):
        x = local.outputs[i]
        bad = ~jnp.isfinite(x)
        made = bad & ~jnp.isfinite(harmless[i])
        from_inf = jnp.isnan(x) & jnp.isnan(no_nan[i]) & ~made
        nan, up = jnp.isnan(x), bad & (jnp.real(x) > 0)
        rows.append([*_both(bad), _count(nan), _count(up), *_both(made), *_both(from_inf)])
    return _pack(rows, len(Out._fields))


def _outputs_of_others(local: Local) -> tuple[Sequence[Any], Sequence[Any]]:
    """What the node makes with harmless operands, and with harmless numbers in place of NaN alone."""
    node = local.node
    nothing = [jnp.zeros_like(x) if is_float(v) else x for x, v in zip(local.outputs, node.outputs, strict=True)]
    if not _tested(node):
        return nothing, nothing
    if node.primitive in _WHOLE:
        clean = _all_finite(node.operands, local.operands)
        return [jnp.where(clean, x, n) for x, n in zip(local.outputs, nothing, strict=True)], nothing
    harmless = evaluate(node, _replaced(node, local.operands, _not_finite))
    return harmless, evaluate(node, _replaced(node, local.operands, jnp.isnan))


# --- on the way back ------------------------------------------------------------------------------


def _backward(local: Local, out_cts: OutCts) -> Any:
    node = local.node
    positions = asked_operands(node)
    if not positions:
        return _pack([], len(Back._fields))
    sent = local.vjp(out_cts)
    calm_cts = tuple(None if ct is None else _calm(ct, _not_finite) for ct in out_cts)
    by_ct, by_value, made, from_inf = _others_sent(local, out_cts, calm_cts, sent)
    rows = []
    for i in positions:
        if sent[i] is None:
            rows.append([jnp.int32(0)] * len(Back._fields))
            continue
        bad = _not_finite(sent[i])
        made_here = bad & _not_finite(made[i])
        fresh = made_here & _unseen(local, i, jnp.isfinite)
        infinite = bad & _not_finite(from_inf[i]) & ~made_here & _unseen(local, i, _not_nan)
        counts = [bad, bad & _not_finite(by_ct[i]), bad & _not_finite(by_value[i]), made_here]
        rows.append([*map(_count, counts), *_both(fresh), *_both(infinite)])
    return _pack(rows, len(Back._fields))


def _others_sent(local: Local, out_cts: OutCts, calm_cts: OutCts, sent: Any) -> tuple[Any, Any, Any, Any]:
    """What the node sends back with harmless operands, cotangents, both; with Inf alone left in the operands."""
    node = local.node
    if node.primitive in _WHOLE:
        return _whole_sent(local, out_cts, sent)
    calm = Local(node, tuple(_replaced(node, local.operands, _not_finite)), local.outputs)
    no_nan = Local(node, tuple(_replaced(node, local.operands, jnp.isnan)), local.outputs)
    return calm.vjp(out_cts), local.vjp(calm_cts), calm.vjp(calm_cts), no_nan.vjp(calm_cts)


def _whole_sent(local: Local, out_cts: OutCts, sent: Any) -> tuple[Any, Any, Any, Any]:
    values = _all_finite(local.node.operands, local.operands)
    cts = jnp.all(jnp.stack([jnp.all(jnp.isfinite(ct)) for ct in out_cts if ct is not None]))

    def where(condition: Any) -> list[Any]:
        return [None if x is None else jnp.where(condition, x, jnp.zeros_like(x)) for x in sent]

    return where(~cts), where(~values), where(values & cts), where(jnp.bool_(False))


def _unseen(local: Local, position: int, fine: Callable[[Any], Any]) -> Any:
    """Where the outputs are fine, so that nothing was to be seen on the way out.

    Element by element where shapes agree, else as a whole.
    """
    shape = np.shape(local.operands[position])
    found: Any = jnp.bool_(True)
    for i in float_outputs(local.node):
        x = local.outputs[i]
        good = fine(x)
        found = found & (good if np.shape(x) == shape else jnp.all(good))
    return found


# --- small things ---------------------------------------------------------------------------------


def _not_finite(x: Any) -> Any:
    return ~jnp.isfinite(x)


def _not_nan(x: Any) -> Any:
    return ~jnp.isnan(x)


def _calm(x: Any, where: Callable[[Any], Any], instead: float = _HARMLESS) -> Any:
    return jnp.where(where(x), jnp.asarray(instead, jnp.result_type(x)), x)


def _replaced(node: Node, operands: Sequence[Any], where: Callable[[Any], Any]) -> list[Any]:
    instead = _OTHERWISE.get(node.primitive, _HARMLESS)
    return [
        _calm(x, where, instead) if is_float(value) else x
        for x, value in zip(operands, node.operands, strict=True)
    ]


def _all_finite(values: Sequence[Value], numbers: Sequence[Any]) -> Any:
    found = [jnp.all(jnp.isfinite(x)) for x, value in zip(numbers, values, strict=True) if is_float(value)]
    return jnp.all(jnp.stack(found)) if found else jnp.bool_(True)


def _count(mask: Any) -> Any:
    return jnp.sum(mask, dtype=jnp.int32)


def _first(mask: Any) -> Any:
    return jnp.argmax(jnp.ravel(mask)).astype(jnp.int32) if mask.size else jnp.int32(0)


def _both(mask: Any) -> tuple[Any, Any]:
    return _count(mask), _first(mask)


def _pack(rows: list[list[Any]], width: int) -> Any:
    return jnp.stack([jnp.stack(row) for row in rows]) if rows else jnp.zeros((0, width), jnp.int32)


#: Write down, at every node, how many numbers are not finite, and how many of them it made itself. The record
#: of a half is an integer array of shape (steps..., outputs or operands, fields).
made = Recorder(_forward, _backward)
