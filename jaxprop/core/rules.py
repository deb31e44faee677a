"""Rules: how cotangents propagate through a node."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .._text import plural, type_name
from .graph import Graph
from .local import Local
from .selectors import Selector, select
from .types import Array, InCts, NodeIndex, OutCts

#: How cotangents propagate through a node. The default is the chain rule, `local.vjp(out_cts)`.
Rule: TypeAlias = Callable[[Local, OutCts], InCts]
Rules: TypeAlias = Sequence[tuple[Selector, Rule]]


def match_rules(graph: Graph, rules: Rules) -> dict[NodeIndex, Rule]:
    """Find the rule of each node that has one: the first that matches.

    Raises:
        TypeError: `rules` is not a list of pairs of a selector and a function of `(local, out_cts)`.
        ValueError: a selector matches no node.
    """
    found: dict[NodeIndex, Rule] = {}
    if isinstance(rules, Mapping):
        raise TypeError(
            "`rules` is a list of pairs, `[(where, rule), ...]`, because the first match wins; got a dict."
        )
    for entry in rules:
        if not (isinstance(entry, tuple | list) and len(entry) == 2 and callable(entry[1])):
            raise TypeError(
                f"`rules` is a list of pairs (where, rule), a rule being a function "
                f"(local, out_cts) -> in_cts; got {entry!r}."
            )
        where, rule = entry
        _check_signature(rule)
        for node in select(graph, where):
            found.setdefault(node.index, rule)
    return found


def _check_signature(rule: Rule) -> None:
    name = getattr(rule, "__name__", repr(rule))
    try:
        signature = inspect.signature(rule)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(None, None)
    except TypeError:
        shown = f"({', '.join(signature.parameters)})"
        made = f" If `{name}` makes a rule, call it: `{name}(...)`." if inspect.isfunction(rule) else ""
        raise TypeError(
            f"a rule is a function (local, out_cts) -> in_cts, but `{name}` has the parameters {shown}.{made}"
        ) from None


def check_in_cts(in_cts: object, local: Local) -> tuple[Array | None, ...]:
    """Compare what a rule returned with what it must return.

    Raises:
        TypeError: wrong number, or wrong dtype.
        ValueError: wrong shape.
    """
    node = local.node
    count = len(local.operands)
    if not isinstance(in_cts, tuple | list):
        raise TypeError(
            f"the rule for {node.where} returned {_kind(in_cts)}, expected a tuple of cotangents, one "
            f"for each operand ({count}); `None` for an operand without cotangent."
        )
    if len(in_cts) != count:
        raise TypeError(
            f"the rule for {node.where} returned {plural(len(in_cts), 'cotangent')}, expected {count} (one for "
            f"each operand: {', '.join(value.name for value in node.operands) or node.name}). Return `None` "
            "for an operand without cotangent."
        )
    return tuple(None if ct is None else _check_one(ct, position, local) for position, ct in enumerate(in_cts))


def _kind(x: object) -> str:
    return "an array" if isinstance(x, jax.Array) else type(x).__name__


def _check_one(ct: Array, position: int, local: Local) -> Array | None:
    node, operand = local.node, local.operands[position]
    value = (node.operands or node.outputs)[position]
    dtype = _jaxpr.dtype_of(value.aval)
    if getattr(ct, "dtype", None) == _jaxpr.float0:
        return None
    if not _jaxpr.is_inexact(dtype):
        raise TypeError(
            f"the rule for {node.where} returned a cotangent for operand {position}, `{value.name}`, which is "
            f"{dtype} and has no cotangent. Return `None` for it."
        )
    if np.shape(ct) != np.shape(operand):
        raise ValueError(
            f"the rule for {node.where} returned a cotangent of shape {np.shape(ct)} for operand {position}, "
            f"`{value.name}`, which has shape {np.shape(operand)}. A cotangent has the shape of its primal."
        )
    if isinstance(ct, bool | int | float | complex):
        return jnp.asarray(ct, dtype)
    if not hasattr(ct, "dtype"):
        raise TypeError(
            f"the rule for {node.where} returned {_kind(ct)} as the cotangent of operand {position}, "
            f"`{value.name}`, expected an array. Convert it with `jnp.asarray`."
        )
    if ct.dtype != dtype:
        raise TypeError(
            f"the rule for {node.where} returned a cotangent of type {type_name(ct.dtype, np.shape(ct))} for "
            f"operand {position}, `{value.name}`, which is {type_name(dtype, np.shape(operand))}. "
            "A cotangent has the dtype of its primal: convert it in the rule."
        )
    return ct
