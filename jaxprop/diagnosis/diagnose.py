"""`diagnose`: find out in one call where a gradient goes wrong."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence

import jax
import numpy as np

from .._text import plural
from .._tracing import name_of, normalize_argnums
from ..core.types import Function, PyTree
from .flow.flow import flow_findings
from .measures import Field
from .nonfinite.cause_table import DEFAULT_CAUSES
from .nonfinite.causes import Cause, check_causes
from .nonfinite.findings import origin_findings
from .nonfinite.origins import find_origins
from .nonfinite.recorders import health
from .passes import Passes, Run, on_host
from .report import Report
from .thresholds import Thresholds
from .zero.blocked import blocked_findings


def diagnose(
    loss: Function,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    cotangent: PyTree | None = None,
    most: int = 12,
    thresholds: Thresholds | None = None,
    causes: Sequence[Cause] = DEFAULT_CAUSES,
) -> Callable[..., Report]:
    """Find out where a gradient goes wrong, why, and what to do about it.

    The loss is evaluated and differentiated once, in a compiled pass that tests every value for NaN and
    measures every cotangent. Only if something is found do further passes look for the operation that produced
    it, and at the numbers there. There are no callbacks, nothing is donated, and no JAX flag needs to be set.
    Keep the function that is returned: at the same shapes it does not compile again.

    Args:
        loss: an ordinary pure function. It returns a scalar, or `cotangent` is given.
        argnums: positional arguments to differentiate.
        has_aux: whether it returns a pair (value, aux).
        cotangent: the initial cotangent (seed), as in `backprop`.
        most: how many origins are described; the others are only counted.
        thresholds: beyond which a gradient is reported to vanish, to explode, ...; see `Thresholds`.
        causes: the causes of NaN and Inf to match, in order: your own before `DEFAULT_CAUSES`; see `Cause`.

    Returns:
        A function of the arguments of `loss` that returns a `Report`. Its findings of kind `origin` are the
        operations that produced a NaN or Inf, not those that merely propagated it: first those that reach the
        gradient, then those that reach the loss alone, then, as notes, NaN that is masked and reaches neither.
        They are followed by the leaves that receive no gradient and where it is blocked (see
        `blocked_gradients`), and by gradients that vanish or explode (see `gradient_flow`).

    Raises:
        TypeError: called inside a traced function, a differentiated leaf is not floating point, or `causes`
            holds something else than causes.
        ValueError: an argument was donated.

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
    causes = check_causes(causes)

    @functools.wraps(loss, updated=())
    def diagnosed(*args: PyTree, **kwargs: PyTree) -> Report:
        with jax.debug_nans(False), jax.debug_infs(False):
            return _diagnosis(passes.at(*args, **kwargs), most, thresholds, causes)

    return diagnosed


def _diagnosis(run: Run, most: int, thresholds: Thresholds | None, causes: Sequence[Cause]) -> Report:
    first = on_host(run(record=health))
    origins = find_origins(run, first)
    left = max(len(origins) - most, 0)
    findings, notes = origin_findings(run, first, origins[:most], causes, _batch_length(run), complete=not left)
    field = Field.of_health(first)
    # A cotangent that NaN reaches is not zero, whatever the path to it looks like.
    spoiled = {leaf for origin in origins for leaf in origin.leaves}
    blocked = blocked_findings(field, run, thresholds)
    findings += [found for found in blocked if not found.leaves or not spoiled.issuperset(found.leaves)]
    findings += flow_findings(field, run, thresholds)
    if left:
        notes.append(f"{plural(left, 'more origin')} not shown: pass `most={len(origins)}`.")
    return Report.of(f"diagnose {name_of(run.passes.loss)}", findings, {"nodes": len(first.names)}, notes)


def _batch_length(run: Run) -> int | None:
    """Return the length of the first axis that all arrays among the other arguments share, if they do."""
    differentiated = normalize_argnums(run.passes.argnums, len(run.args))
    rest = [arg for i, arg in enumerate(run.args) if i not in differentiated]
    lengths = Counter(np.shape(x)[0] for x in jax.tree.leaves((rest, run.kwargs)) if np.ndim(x))
    return next(iter(lengths)) if len(lengths) == 1 and 1 not in lengths else None
