"""Value and gradient in a loop of the user's own, watched on a schedule."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _api, _jaxpr
from ..._tracing import argument_names, normalize_argnums
from ...core.rules import Rules
from ...core.types import Argnums, Array, Function, PyTree
from ..examples.per_example import per_example
from .norms import NOTHING, float_leaves, of_examples, of_gradient
from .recorded import recorded_pass
from .watch import Watch
from .watched import UNWATCHED, Watched, without_results

#: What `value_and_grad` of a call returns, and what was watched.
Seen = tuple[PyTree, Watched]


def value_and_grad(
    fun: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rules = (),
    watch: Watch | None = None,
) -> Callable[..., Any]:
    """Return a function for value and gradient: `jax.value_and_grad`, with `rules` and watching.

    Without either the function is passed to JAX unmodified.

    With `watch` the returned function takes the count of the step as well, and returns what it saw:
    `(value, grads), seen = vg(params, batch, step=step)`. Where the step is not due, nothing is computed for
    it: if `step` is traced, as in a jitted step, by a branch on the device; if it is a number, by choosing
    the program. `seen` is a pytree (`jaxprop.train.Watched`): return it from your compiled step, and collect
    it with `jaxprop.History`. `seen.with_update(params, new_params)` adds the update as applied.

    Args:
        fun: as in `jax.value_and_grad`, and so `argnums`, `has_aux`, `holomorphic`, `allow_int`.
        rules: as in `backprop`.
        watch: what to record of the inside, and how often.

    Returns:
        A function of the same arguments: (value, gradient), or ((value, aux), gradient). With `watch` it
            takes a keyword `step` too, a count or whether the step is due, and returns a pair of that and
            `Watched`.

    Raises:
        TypeError, ValueError: as `backprop`.

    Examples:
        >>> import jaxprop as jp
        >>> value, grad = jp.value_and_grad(lambda w: w**2)(3.0)
        >>> float(value), float(grad)
        (9.0, 6.0)
        >>> def loss(w, x):
        ...     h = w * x
        ...     return h**2
        >>> vg = jp.value_and_grad(loss, watch=jp.Watch("h", every=100))
        >>> for step in range(3):
        ...     (value, grad), seen = vg(3.0, 2.0, step=step)
        ...     if seen:
        ...         print(step, float(seen["h"].cotangent.norm))
        0 12.0
    """
    options = {"holomorphic": holomorphic, "allow_int": allow_int}
    plain = _api.value_and_grad(fun, argnums, has_aux, **options, rules=rules)
    if watch is None:
        return plain

    def recorded(step: Array, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> Seen:
        tape = recorded_pass(watch, fun, args, kwargs, argnums, has_aux, rules, **options)
        value = (tape.value, tape.aux) if has_aux else tape.value
        chosen = normalize_argnums(argnums, len(args))
        params, grads = float_leaves([args[i] for i in chosen]), float_leaves(tape.grads)
        statistics = of_gradient(watch, params, grads) if params else NOTHING
        if watch.per_example:
            statistics |= of_examples(per_example(fun, chosen[0], has_aux)(*args, **kwargs))
        records = without_results(tape) if watch.records_nodes else None
        paths = _leaf_paths(fun, args, chosen)
        return (value, tape.grads), Watched(jnp.bool_(True), step, records, statistics, paths, watch)

    @functools.wraps(fun, updated=())
    def watched(*args: PyTree, step: Any = None, **kwargs: PyTree) -> Seen:
        if step is None:
            raise TypeError(
                "`value_and_grad` with `watch` takes the count of the step: vg(..., step=step), or whether to "
                "watch it: step=True."
            )
        if _jaxpr.is_tracer(step):
            return _in_branches(watch, recorded, plain, step, (args, kwargs))
        is_due = bool(step) if isinstance(step, bool | np.bool_) else int(step) % watch.every == 0
        if is_due:
            return recorded(jnp.int32(step), args, kwargs)
        return plain(*args, **kwargs), UNWATCHED

    return watched


def _leaf_paths(fun: Function, args: Sequence[PyTree], chosen: Sequence[int]) -> tuple[str, ...]:
    names = argument_names(fun, len(args))
    return tuple(
        names[i] + jax.tree_util.keystr(path)
        for i in chosen
        for path, leaf in jax.tree_util.tree_leaves_with_path(args[i])
        if _jaxpr.is_inexact(jnp.result_type(leaf))
    )


def _in_branches(
    watch: Watch, recorded: Callable[..., Seen], plain: Function, step: Array, call: PyTree
) -> Seen:
    """Decide on the device. The branch that does not watch returns zeros in place of what it did not see."""
    leaves, tree = jax.tree.flatten(call)
    moving = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)]

    def whole(arrays: Sequence[Array]) -> PyTree:
        full = list(leaves)
        for i, array in zip(moving, arrays, strict=True):
            full[i] = array
        return jax.tree.unflatten(tree, full)

    @jax.jit  # for its cache: traced once, for the types and for the branch
    def watched(step: Array, arrays: Sequence[Array]) -> Seen:
        return recorded(step, *whole(arrays))

    def unwatched(step: Array, arrays: Sequence[Array]) -> Seen:
        args, kwargs = whole(arrays)
        return plain(*args, **kwargs), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), seen)

    arrays = [leaves[i] for i in moving]
    count = step.astype(jnp.int32)
    _, seen = jax.eval_shape(watched, count, arrays)
    is_due = step if step.dtype == bool else count % watch.every == 0
    return jax.lax.cond(is_due, watched, unwatched, count, arrays)
