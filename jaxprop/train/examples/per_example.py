"""Norms of the gradients of single examples, from one backward pass for the whole batch."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._backprop import plan_at, run
from ..._seed import seed_of
from ..._tracing import check_points, name_of, trace_call
from ...core.graph import Graph
from ...core.local import Local
from ...core.recorders import Recorder
from ...core.rules import Rule
from ...core.types import Array, Function, OutCts, PyTree
from ...record.tape import Tape
from .contributions import Contribution, Factors, MatrixProduct, by_chunks, squeezed_rule
from .parameters import ParameterUse, example_axes, parameter_uses


class PerExample(NamedTuple):
    """Losses and gradient norms of single examples.

    Attributes:
        value: The mean of the losses.
        grads: The gradient of `value`, in the structure of the differentiated argument.
        losses: The loss of each example.
        norms: For each differentiated leaf, the 2-norms of the gradients of `losses`.
        aux: The auxiliary output of each example, with the examples on the first axis; None without `has_aux`.
    """

    value: Float[Array, ""]
    grads: PyTree
    losses: Float[Array, " batch"]
    norms: PyTree[Float[Array, " batch"]]
    aux: PyTree = None

    @property
    def norm(self) -> Float[Array, " batch"]:
        """The 2-norm of the whole gradient of each example."""
        return jnp.sqrt(_sum_all(norm**2 for norm in jax.tree.leaves(self.norms)))

    def noise_scale(self) -> Float[Array, ""]:
        """Estimate the gradient noise scale, in examples: the batch size at which noise equals signal.

            B_simple = tr(S) / |G|**2

        where `tr(S)` is the variance of the gradients of single examples and `|G|**2` the squared norm of the
        true
        gradient, both estimated without bias: `tr(S) = B / (B - 1) * (mean |g_b|**2 - |mean g_b|**2)` and
        `|G|**2 = |mean g_b|**2 - tr(S) / B`. From a single batch the estimate is rough: average numerator and
        denominator over steps. It is not positive if the batch shows no signal, and NaN for a single example.

        Source: McCandlish, Kaplan, Amodei 2018, arXiv:1812.06162, section 2.2 and appendix A.1.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> found = jp.per_example(lambda w, x: jnp.sum(w * x))(1.0, jnp.array([1.0, 3.0]))
            >>> round(float(found.noise_scale()), 4)  # g = 1, 3: tr(S) = 2, |G|**2 = 4 - 1
            0.6667
        """
        mean = _sum_all(jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(self.grads))
        noise, signal = noise_and_signal(self.norm**2, mean)
        return noise / signal


def noise_and_signal(
    squares: Float[Array, "*leaf batch"], mean: Float[Array, "*leaf"]
) -> tuple[Float[Array, "*leaf"], Float[Array, "*leaf"]]:
    """Estimate `tr(S)` and `|G|**2` without bias, see `PerExample.noise_scale`; NaN for a single example.

    Args:
        squares: Squared norms of the gradients of single examples.
        mean: Squared norm of the mean of these gradients.
    """
    count = squares.shape[-1]
    noise = (squares.mean(-1) - mean) * (count / (count - 1) if count > 1 else math.nan)
    return noise, mean - noise / count


def _sum_all(parts: Iterator[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


def per_example(
    loss: Function, argnums: int = 0, has_aux: bool = False, in_axes: PyTree = 0
) -> Callable[..., PerExample]:
    """Return a function for the norm of every example's gradient, besides the gradient of their mean.

        norms[leaf][b] = |d loss(params, batch[b:b+1]) / d leaf|

    The loss runs once for the whole batch, but each example sees itself as a batch of one (so batch
    normalization normalizes over one example). Where a parameter is used by matrix products, convolutions,
    embedding lookups and broadcasting, also inside `scan`, `cond` and `jax.checkpoint`, the norms are computed
    from operands and cotangents, and the gradients of single examples are never built, or only a few at a
    time. For other leaves they are computed by `jax.vmap` of the gradient, a few examples at a time: the same
    numbers, slower.

    Args:
        loss: `loss(params, *batch)`, a scalar. Keyword arguments are the same for all examples.
        argnums: The argument to differentiate; all other positional arguments are the batch.
        has_aux: Whether the loss returns a pair (value, aux).
        in_axes: Which axis of the batch counts the examples, as in `jax.vmap`: one number, or one for each
            argument of the batch; None for an argument that is the same for all.

    Returns:
        A function of the same arguments that returns a `PerExample`. Compile it with `jax.jit`.

    Raises:
        TypeError: As `backprop`.
        ValueError: The arrays of the batch differ in their number of examples, or there are none.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x, y):
        ...     return jnp.mean((x @ w - y) ** 2)
        >>> x, y = jnp.array([[3.0, 4.0], [0.0, 1.0]]), jnp.array([1.0, -1.0])
        >>> jp.per_example(loss)(jnp.zeros(2), x, y).norms.tolist()  # 2 * |residual| * |x|
        [10.0, 2.0]

    Source: Goodfellow 2015, arXiv:1510.01799; `BatchL2Grad` of BackPACK (Dangel et al. 2020).
    """

    @functools.wraps(loss, updated=())
    def norms_of(*args: PyTree, **kwargs: PyTree) -> PerExample:
        check_points(args, argnums, loss, False, False, "per_example")
        position = range(len(args))[argnums]
        params, batch = args[position], [arg for i, arg in enumerate(args) if i != position]
        leaves, tree = jax.tree.flatten(batch)
        axes = _axes_of_batch(in_axes, batch)
        count = _example_count(loss, leaves, axes)

        def one(params: PyTree, example: list[Array]) -> tuple[PyTree, PyTree]:
            batch = [
                x if axis is None else jnp.expand_dims(x, axis) for x, axis in zip(example, axes, strict=True)
            ]
            full = jax.tree.unflatten(tree, batch)
            result = loss(*full[:position], params, *full[position:], **kwargs)
            return result if has_aux else (result, None)

        def mean(params: PyTree, *leaves: Array) -> tuple[Array, tuple[Array, PyTree]]:
            losses, aux = jax.vmap(one, in_axes=(None, axes))(params, list(leaves))
            _check_scalar(loss, losses)
            return jnp.mean(losses), (losses, aux)

        return _norms_of(mean, one, params, Examples(leaves, axes, count))

    return norms_of


def _check_scalar(loss: Function, losses: Array) -> None:
    if jnp.ndim(losses) != 1:
        raise TypeError(
            f"`{name_of(loss)}` must return a scalar, but it returned shape {jnp.shape(losses)[1:]} for a "
            "batch of one example. Return the mean or the sum."
        )


class Examples(NamedTuple):
    """The leaves of a batch, the axis of each that counts the examples, and how many there are."""

    leaves: list[Array]
    axes: list[int | None]
    size: int


def _axes_of_batch(in_axes: PyTree, batch: list[PyTree]) -> list[int | None]:
    """One axis for each leaf of the batch."""
    given = list(in_axes) if isinstance(in_axes, tuple | list) else [in_axes] * len(batch)
    if len(given) != len(batch):
        raise ValueError(
            f"`in_axes` has {len(given)} entries, but the batch has {len(batch)} arguments. Pass one for each."
        )
    spread = jax.tree.map(
        lambda axis, part: [axis] * len(jax.tree.leaves(part)), given, batch, is_leaf=lambda x: x is None
    )
    return [axis for axes in spread for axis in axes]


def _example_count(loss: Function, leaves: Sequence[Array], axes: Sequence[int | None]) -> int:
    sizes = {
        np.shape(leaf)[axis] if -np.ndim(leaf) <= axis < np.ndim(leaf) else 0
        for leaf, axis in zip(leaves, axes, strict=True)
        if axis is not None
    }
    if len(sizes) != 1 or 0 in sizes:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves) or "no arrays"
        raise ValueError(
            f"`{name_of(loss)}` was called with a batch of {shapes}, but every array of a batch needs the same "
            "number of examples, at least one, on its first axis or on that given by `in_axes`. Pass what is "
            "the same for all examples by keyword."
        )
    return sizes.pop()


def _norms_of(mean: Function, one: Function, params: PyTree, batch: Examples) -> PerExample:
    count = batch.size
    traced = trace_call(mean, (params, *batch.leaves), {}, 0, True)
    larger = _with_one_more(mean, params, batch)
    uses = parameter_uses(traced.graph, example_axes(traced.graph, larger, count))
    known = [use for found in uses for use in found or ()]
    rules = {use.node.index: rule for use in known if (rule := _rule_of(use)) is not None}
    nodes = {use.node.index: use.node for use in known}
    plan = plan_at(traced.graph, list(nodes.values()), _recorder(known), rules)
    tape = run(traced, plan, seed_of(traced, None, False), 0)
    losses, aux = tape.aux
    leaves, tree = jax.tree.flatten(params)
    unknown = [i for i, found in enumerate(uses) if found is None]
    squares = dict(zip(unknown, _squares_by_vmap(one, params, batch, unknown), strict=True))
    for i, (found, leaf) in enumerate(zip(uses, leaves, strict=True)):
        if found is not None:
            # The gradient is that of the mean, in which the cotangents of an example are scaled by 1/B.
            squares[i] = count**2 * _squares(found, tape, leaf, count)
    norms = jax.tree.unflatten(tree, [jnp.sqrt(squares[i]) for i in range(len(leaves))])
    return PerExample(tape.value, tape.grads, losses, norms, aux)


def _rule_of(use: ParameterUse) -> Rule | None:
    found = use.contribution
    return squeezed_rule(use.node, found) if isinstance(found, MatrixProduct) else None


def _with_one_more(mean: Function, params: PyTree, batch: Examples) -> Graph:
    """The same program for one example more: axes whose length differs between the two count the examples."""

    def longer(x: Array, axis: int | None) -> Array | jax.ShapeDtypeStruct:
        if axis is None:
            return x
        aval = jax.typeof(x)
        shape = list(aval.shape)
        shape[axis] += 1
        return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)

    more = [longer(x, axis) for x, axis in zip(batch.leaves, batch.axes, strict=True)]
    return trace_call(mean, (params, *more), {}, 0, True, abstract=True).graph


# --- factors recorded, and squared norms computed from them -----------------------------------------


def _recorder(uses: Sequence[ParameterUse]) -> Recorder:
    """Record, where parameters are used, the factors of each example's gradient."""
    by_node: dict[int, dict[int, Contribution]] = {}
    for use in uses:
        by_node.setdefault(use.node.index, {})[use.position] = use.contribution

    def backward(local: Local, out_cts: OutCts) -> PyTree:
        (ct,) = out_cts  # these nodes have one output, and are recorded only where a cotangent arrives
        assert ct is not None
        return {position: dict(of.factors(local, ct)) for position, of in by_node[local.node.index].items()}

    return Recorder(backward=backward)


def _squares(uses: Sequence[ParameterUse], tape: Tape, leaf: Array, count: int) -> Float[Array, " batch"]:
    """The squared norm of each example's gradient of one leaf."""
    dtype = jnp.finfo(jnp.result_type(leaf)).dtype
    parts = [(use, factors) for use in uses if (factors := _recorded_factors(use, tape)) is not None]
    if not parts:
        return jnp.zeros(count, dtype)
    if len(parts) == 1:
        ((use, factors),) = parts
        return use.contribution.squares(factors).astype(dtype)
    names, arrays = zip(*(zip(*factors.items(), strict=True) for _, factors in parts), strict=True)

    def built(*flat: Array) -> Array:
        rest = iter(flat)
        g = _sum_all(
            use.view.back(use.contribution.gradient({name: next(rest)[None] for name in its})[0])
            for (use, _), its in zip(parts, names, strict=True)
        )
        return jnp.sum(jnp.abs(g) ** 2)

    flat = [array for its in arrays for array in its]
    return by_chunks(built, len(parts) * np.size(leaf), *flat).astype(dtype)


def _recorded_factors(use: ParameterUse, tape: Tape) -> Factors | None:
    """The factors recorded there, with axes `b, s, f, ...`; None if no cotangent arrived."""
    record = tape.record_at(use.node.index)
    if record is None:
        return None
    sliced = use.view.sliced
    order = [i for i, each in enumerate(sliced) if each] + [i for i, each in enumerate(sliced) if not each]
    slices = sum(sliced)

    def unfold(x: Array) -> Array:
        depth = len(sliced)
        x = jnp.transpose(x, (depth, *order, *range(depth + 1, x.ndim)))
        steps = x.shape[1 : 1 + depth]
        s, repeated = math.prod(steps[:slices]), math.prod(steps[slices:])
        return x.reshape(x.shape[0], s, repeated * x.shape[1 + depth], *x.shape[2 + depth :])

    return {name: unfold(x) for name, x in record[use.position].items()}


def _squares_by_vmap(
    one: Function, params: PyTree, batch: Examples, which: Sequence[int]
) -> list[Float[Array, " batch"]]:
    """The squared norms from the gradients themselves, for leaves that are used in an unknown way."""
    if not which:
        return []
    leaves, tree = jax.tree.flatten(params)
    mapped = [i for i, axis in enumerate(batch.axes) if axis is not None]

    def squares(*example: Array) -> list[Array]:
        full = list(batch.leaves)
        for i, x in zip(mapped, example, strict=True):
            full[i] = x

        def loss_of(some: list[Array]) -> Array:
            merged = list(leaves)
            for i, leaf in zip(which, some, strict=True):
                merged[i] = leaf
            return one(jax.tree.unflatten(tree, merged), full)[0]

        grads = jax.grad(loss_of)([leaves[i] for i in which])
        return [jnp.sum(jnp.abs(g) ** 2) for g in grads]

    size = sum(np.size(leaves[i]) for i in which)
    examples = [jnp.moveaxis(jnp.asarray(batch.leaves[i]), batch.axes[i] or 0, 0) for i in mapped]
    return by_chunks(squares, size, *examples)
