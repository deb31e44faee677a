"""The two seams: rules say how cotangents cross a node, recorders what is written down there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np

from .. import _jaxpr
from .._text import type_name
from .graph import Graph, Selector, select
from .local import Local
from .types import InCts, OutCts, PyTree

#: How cotangents cross a node. The default is the chain rule, `local.vjp(out_cts)`.
Rule: TypeAlias = Callable[[Local, OutCts], InCts]
Rules: TypeAlias = Sequence[tuple[Selector, Rule]]


@dataclass(frozen=True)
class Recorder:
    """What is written down at a node: one half on the way out, one on the way back.

    Two halves, so that a statistic of a value is taken when the value is there, and nothing is kept for the
    way back that the backward half does not read.

    Attributes:
        forward: `local -> pytree`; None writes nothing.
        backward: `(local, out_cts) -> pytree`; `out_cts` holds one for each output, None where no cotangent
            comes. It is only called where one comes.
        per_value: the halves take one value, one cotangent at a time (see `Recorder.each`).
        finish: `(parts, sizes) -> record`, where `parts` is what a half wrote, of many arrays at once: stacked
            on the first axis, `sizes` their numbers of elements. None keeps the parts.
        deferred: outside of loops, arrays of at most so many elements are carried along as they are, and the
            halves run once for all of one size: the fewer reductions, the shorter the compilation.
        order_free: what is written does not depend on the order of the elements, so a reshaped or transposed
            array shares the record of the array it is a view of.
        keeps_operands: the operands are kept as well, so that local gradients can be had afterwards.
    """

    forward: Callable[..., PyTree] | None = None
    backward: Callable[..., PyTree] | None = None
    per_value: bool = False
    finish: Callable[[PyTree, Any], PyTree] | None = None
    deferred: int = 0
    order_free: bool = False
    keeps_operands: bool = False

    @classmethod
    def each(
        cls,
        value: Callable[[Any], PyTree] | None = None,
        cotangent: Callable[[Any], PyTree] | None = None,
    ) -> "Recorder":
        """Record a function of every value and of every cotangent.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> largest = jp.Recorder.each(cotangent=lambda ct: jnp.max(jnp.abs(ct)))
            >>> tape = jp.backprop(lambda w: jnp.sum(3.0 * w), record=largest)(jnp.ones(2))
            >>> float(tape["w"].cotangent)
            3.0
        """
        return cls(value, cotangent, per_value=True)


def _same(x: Any) -> Any:
    return x


#: Keeps values and cotangents as they are, and the operands for local gradients.
full = Recorder(_same, _same, per_value=True, keeps_operands=True)


def match_rules(graph: Graph, rules: Rules) -> dict[int, Rule]:
    """The rule of each node that has one: the first that matches.

    Raises:
        ValueError: a selector matches no node.
    """
    found: dict[int, Rule] = {}
    for entry in rules:
        if not (isinstance(entry, tuple | list) and len(entry) == 2 and callable(entry[1])):
            raise TypeError(
                f"`rules` is a list of pairs (where, rule), a rule being a function "
                f"(local, out_cts) -> in_cts; got {entry!r}."
            )
        where, rule = entry
        for node in select(graph, where):
            found.setdefault(node.index, rule)
    return found


def check_in_cts(in_cts: Any, local: Local) -> tuple[Any, ...]:
    """Hold what a rule returned against what it must return.

    Raises:
        TypeError: wrong number, or wrong dtype.
        ValueError: wrong shape.
    """
    node = local.node
    count = len(local.operands)
    if not isinstance(in_cts, tuple | list):
        raise TypeError(
            f"the rule for {node.where} returned {_kind(in_cts)}, expected a tuple of cotangents, one "
            f"for each operand ({count}); None for an operand that gets none."
        )
    if len(in_cts) != count:
        raise TypeError(
            f"the rule for {node.where} returned {len(in_cts)} cotangents, expected {count} (one for each "
            f"operand: {', '.join(value.name for value in node.operands) or node.name}). Return `None` in the "
            "place of an operand that gets no cotangent."
        )
    return tuple(None if ct is None else _check_one(ct, position, local) for position, ct in enumerate(in_cts))


def _kind(x: Any) -> str:
    return "an array" if isinstance(x, jax.Array) else type(x).__name__


def _check_one(ct: Any, position: int, local: Local) -> Any:
    node, operand = local.node, local.operands[position]
    value = (node.operands or node.outputs)[position]
    dtype = _jaxpr.dtype_of(value.aval)
    if getattr(ct, "dtype", None) == _jaxpr.float0:
        return None
    if not _jaxpr.is_inexact(dtype):
        raise TypeError(
            f"the rule for {node.where} returned a cotangent for operand {position}, `{value.name}`, which is "
            f"{dtype} and has none. Return `None` in its place."
        )
    if np.shape(ct) != np.shape(operand):
        raise ValueError(
            f"the rule for {node.where} returned a cotangent of shape {np.shape(ct)} for operand {position}, "
            f"`{value.name}`, which has shape {np.shape(operand)}. A cotangent has the shape of its primal."
        )
    if isinstance(ct, bool | int | float | complex):
        return np.asarray(ct, dtype)
    if ct.dtype != dtype:
        raise TypeError(
            f"the rule for {node.where} returned a cotangent of type {type_name(ct.dtype, np.shape(ct))} for "
            f"operand {position}, `{value.name}`, which is {type_name(dtype, np.shape(operand))}. "
            "A cotangent has the dtype of its primal: convert it in the rule."
        )
    return ct
