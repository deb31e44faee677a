"""`diagnose`: one call that says where a gradient goes wrong."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .._tracing import name_of, normalize_argnums
from ..core.types import PyTree
from .flow.findings import flow_findings
from .measures import Field
from .nonfinite.findings import accused, origin_findings
from .nonfinite.origins import find_origins
from .nonfinite.recorders import health
from .passes import Passes, Run, on_host
from .report import Report
from .thresholds import Thresholds
from .zero.blocked import blocked_findings


def diagnose(
    loss: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    cotangent: PyTree | None = None,
    most: int = 12,
    thresholds: Thresholds | None = None,
) -> Callable[..., Report]:
    """Say where a gradient goes wrong, why, and what to do.

    The loss is run and differentiated once, in a compiled pass that asks every value whether it holds a NaN,
    and every cotangent how large it is. Only where something is found further passes ask who made it, and look
    at the numbers there. No callbacks, nothing donated, nothing to switch on in JAX. Keep the function that is
    returned: at the same shapes it does not compile again.

    Args:
        loss: a pure function, as it stands. It returns a scalar, or `cotangent` is given.
        argnums: positional arguments to differentiate.
        has_aux: whether it returns a pair (value, aux).
        cotangent: the cotangent to begin with, as in `backprop`.
        most: how many origins are spelled out; of the rest only the number is told.
        thresholds: from where on a gradient is said to vanish, to explode, ...; see `Thresholds`.

    Returns:
        A function of the arguments of `loss` that gives a `Report`. Its findings of kind `origin` are the nodes
        that made a NaN or Inf, not those that carried it on: first those that reach the gradient, then those
        that reach the loss alone, then, as notes, a NaN that is masked and reaches neither. After them come
        the leaves that get no gradient and where it is cut (see `blocked`), and gradients that vanish or
        explode (see `flow`).

    Raises:
        TypeError: called inside a traced function, or a differentiated leaf is no float.
        ValueError: an argument was donated and is gone.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(x):
        ...     root = jnp.where(x > 0, jnp.sqrt(x), 0.0)
        ...     return jnp.sum(root)
        >>> report = jp.diagnose(loss)(jnp.array([4.0, 0.0]))
        >>> finding = report[0]
        >>> finding.primitive, finding.element, finding.cause
        ('sqrt', (1,), 'sqrt at 0')
        >>> finding.fix
        'jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)'
    """
    passes = Passes(loss, argnums, has_aux, cotangent)

    @functools.wraps(loss, updated=())
    def diagnosed(*args: Any, **kwargs: Any) -> Report:
        with jax.debug_nans(False), jax.debug_infs(False):
            return _report(passes.at(*args, **kwargs), most, thresholds)

    return diagnosed


def _report(run: Run, most: int, thresholds: Thresholds | None) -> Report:
    first = on_host(run(record=health))
    origins = find_origins(run, first)
    shown = origins[:most]
    findings = origin_findings(shown, on_host(run(nodes=accused(shown))), _batch_length(run)) if shown else []
    field = Field.of_health(first)
    # What a NaN reaches is not zero, whatever the way there looks like.
    spoiled = {leaf for origin in origins for leaf in origin.leaves}
    blocked = blocked_findings(field, run, thresholds)
    findings += [found for found in blocked if not found.leaves or not spoiled.issuperset(found.leaves)]
    findings += flow_findings(field, run, thresholds)
    left = len(origins) - len(shown)
    notes = [f"{left} more {'origins are' if left > 1 else 'origin is'} left out."] if left else []
    return Report.of(f"diagnose {name_of(run.passes.loss)}", findings, {"nodes": len(first.names)}, notes)


def _batch_length(run: Run) -> int | None:
    """The length of the first axis that all arrays among the arguments not differentiated share."""
    differentiated = normalize_argnums(run.passes.argnums, len(run.args))
    rest = [arg for i, arg in enumerate(run.args) if i not in differentiated]
    lengths = Counter(np.shape(x)[0] for x in jax.tree.leaves((rest, run.kwargs)) if np.ndim(x))
    return next(iter(lengths)) if len(lengths) == 1 and 1 not in lengths else None
