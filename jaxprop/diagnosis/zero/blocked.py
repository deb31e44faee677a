"""`blocked_gradients`: which leaves get no gradient, and where it is blocked."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from ..._tracing import name_of, trace_abstract, trace_call
from ...core.graph import Graph, Value
from ...core.types import Function
from ..measures import Field, recorder
from ..passes import Passes
from ..report import Finding, Report
from ..thresholds import Thresholds
from .dynamic import RunPass, dynamic_findings
from .static import static_findings


def blocked_gradients(
    fun: Function,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    partial: bool = False,
    thresholds: Thresholds | None = None,
) -> Callable[..., Report]:
    """Find the leaves that get no gradient, and where it is blocked.

    First without running anything: a leaf that is never used, or whose every path to the result goes through
    `stop_gradient`, an integer, a comparison, `round`, `argmax`, or a custom rule that drops the cotangent.
    Then, if the arguments are arrays, at these arguments: leaves whose gradient is exactly zero (a dead relu, a
    saturated sigmoid, a clip, a mask, an underflow, weights of zero, contributions that cancel), relus with
    dead units, and sigmoids that are nearly flat. That is one compiled pass, which takes three numbers of every
    cotangent; a second one keeps the operands of the nodes where something was found.

    Args:
        fun: a loss, any function JAX can differentiate.
        argnums, has_aux: as in `backprop`.
        partial: whether to note what is blocked on one path of leaves that get a gradient by another.
        thresholds: from where on something is reported; see `Thresholds`.

    Returns:
        A function of the same arguments (arrays, numbers, or `jax.ShapeDtypeStruct`) that gives a `Report`.

    Raises:
        TypeError: as `backprop`.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     return jnp.sum(jnp.round(w * x))
        >>> finding, = jp.blocked_gradients(loss)(jnp.ones(2), jnp.ones(2))
        >>> finding.cause, finding.code, finding.leaves
        ('rounding', 'jnp.round(w * x)', ('w',))
    """
    limits = thresholds or Thresholds()
    passes = Passes(fun, argnums, has_aux)

    @functools.wraps(fun, updated=())
    def report(*args: Any, **kwargs: Any) -> Report:
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((args, kwargs)))
        title = f"blocked gradients of {name_of(fun)}"
        if abstract:
            return Report.of(title, static_findings(*_traced(fun, args, kwargs, argnums, has_aux), partial))
        run = passes.at(*args, **kwargs)
        field = Field.of(run(record=recorder))
        return Report.of(title, blocked_findings(field, run, limits, partial))

    return report


def blocked_findings(
    field: Field, run: RunPass, thresholds: Thresholds | None = None, partial: bool = False
) -> list[Finding]:
    """Return the findings of `blocked_gradients`, from the measures of one pass.

    Args:
        field: the measures of the pass.
        run: one more pass, `(nodes, record) -> Tape`.
        thresholds: from where on something is reported.
        partial: as in `blocked_gradients`.
    """
    found = static_findings(field.graph, field.graph.inputs, field.sinks, partial)
    lost = {name for finding in found if finding.kind == "blocked" for name in finding.leaves}
    return [*found, *dynamic_findings(field, run, thresholds or Thresholds(), lost)]


def _traced(
    fun: Function,
    args: tuple[object, ...],
    kwargs: dict[str, object],
    argnums: int | tuple[int, ...],
    has_aux: bool,
) -> tuple[Graph, list[Value], tuple[Value, ...]]:
    """The graph, its differentiated leaves, and the results that are differentiated: from shapes."""
    if has_aux:
        traced = trace_call(fun, args, kwargs, argnums, has_aux, abstract=True)
    else:
        traced = trace_abstract(fun, args, kwargs, argnums)
    pairs = zip(traced.graph.inputs, traced.differentiated, strict=True)
    leaves = [value for value, differentiated in pairs if differentiated]
    return traced.graph, leaves, traced.graph.outputs[: traced.outputs.count]
