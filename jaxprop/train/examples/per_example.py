"""Norms of the gradients of single examples, from one backward pass for all of them."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._backprop import plan_at, run
from ..._seed import seed_of
from ..._tracing import check_points, name_of, trace_call
from ...core.graph import Graph
from ...core.local import Local
from ...core.recorders import Recorder
from ...core.rules import Rule
from ...core.types import Array, OutCts, PyTree
from ...record.tape import Tape
from .contributions import Factors, Part, Product, by_chunks, thin
from .parameters import Reading, example_axes, readings_of


class PerExample(NamedTuple):
    """What single examples have to say.

    Attributes:
        value: mean of the losses, in units of the loss.
        grads: gradient of `value`, in the structure of the differentiated argument.
        losses: loss of each example, shape `[batch]`.
        norms: for each differentiated leaf, the 2-norms of the gradients of `losses`, shape `[batch]`.
        aux: the auxiliary data of each example, examples on the first axis; None without `has_aux`.
    """

    value: Array
    grads: PyTree
    losses: Array
    norms: PyTree
    aux: PyTree = None

    @property
    def norm(self) -> Array:
        """2-norm of the whole gradient of each example: shape `[batch]`."""
        return jnp.sqrt(_total(norm**2 for norm in jax.tree.leaves(self.norms)))

    def noise_scale(self) -> Array:
        """Estimate the gradient noise scale, in examples: the batch size at which noise equals signal.

            B_simple = tr(S) / |G|**2

        with `tr(S)` the variance of the gradients of single examples and `|G|**2` the squared norm of the true
        gradient, both without bias: `tr(S) = B / (B - 1) * (mean |g_b|**2 - |mean g_b|**2)` and
        `|G|**2 = |mean g_b|**2 - tr(S) / B`. From one batch it is a rough number: average numerator and
        denominator over steps. Not positive where the batch shows no signal; NaN for a single example.

        Source: McCandlish, Kaplan, Amodei 2018, arXiv:1812.06162, section 2.2 and appendix A.1.

        Examples:
            >>> import jax.numpy as jnp, jaxprop as jp
            >>> found = jp.per_example(lambda w, x: jnp.sum(w * x))(1.0, jnp.array([1.0, 3.0]))
            >>> round(float(found.noise_scale()), 4)  # g = 1, 3: tr(S) = 2, |G|**2 = 4 - 1
            0.6667
        """
        mean = _total(jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(self.grads))
        noise, signal = noise_and_signal(self.norm**2, mean)
        return noise / signal


def noise_and_signal(squares: Array, mean: Array) -> tuple[Array, Array]:
    """Estimate `tr(S)` and `|G|**2` without bias, see `PerExample.noise_scale`; NaN for a single example.

    Args:
        squares: squared norms of the gradients of single examples, on the last axis.
        mean: squared norm of the mean of these gradients.
    """
    count = squares.shape[-1]
    noise = (squares.mean(-1) - mean) * (count / (count - 1) if count > 1 else math.nan)
    return noise, mean - noise / count


def _total(parts: Iterator[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


def per_example(
    loss: Callable[..., Any], argnums: int = 0, has_aux: bool = False, in_axes: Any = 0
) -> Callable[..., PerExample]:
    """Return a function for the norm of every example's gradient, beside the gradient of their mean.

        norms[leaf][b] = |d loss(params, batch[b:b+1]) / d leaf|

    The loss runs once for the batch, each example seeing itself as a batch of one (so batch normalisation
    normalises over one). Where a parameter is read by matrix products, convolutions, look-ups of rows and by
    being spread over examples, inside scans, `cond` and `jax.checkpoint` too, the norms are taken from
    operands and cotangents, and no example's gradient is built, or only a few at a time. For other leaves it is
    `jax.vmap` of the gradient, a few examples at a time: the same numbers, slower.

    Args:
        loss: `loss(params, *batch)`, a scalar. Keyword arguments are the same for all examples.
        argnums: the argument to differentiate; all other positional arguments are the batch.
        has_aux: whether the loss returns a pair (value, aux).
        in_axes: which axis of the batch counts the examples, as in `jax.vmap`: one number, or one for each of
            its arguments; None for an argument that is the same for all.

    Returns:
        A function of the same arguments that gives a `PerExample`. Compile it with `jax.jit`.

    Raises:
        TypeError: as `backprop`.
        ValueError: the arrays of the batch do not have one number of examples, or there is none.

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
    def norms_of(*args: Any, **kwargs: Any) -> PerExample:
        check_points(args, argnums, loss, False, False, "per_example")
        position = range(len(args))[argnums]
        params, batch = args[position], [arg for i, arg in enumerate(args) if i != position]
        leaves, tree = jax.tree.flatten(batch)
        axes = _axes(in_axes, batch)
        count = _count(loss, leaves, axes)

        def one(params: PyTree, example: list[Any]) -> Any:
            batch = [
                x if axis is None else jnp.expand_dims(x, axis) for x, axis in zip(example, axes, strict=True)
            ]
            full = jax.tree.unflatten(tree, batch)
            result = loss(*full[:position], params, *full[position:], **kwargs)
            return result if has_aux else (result, None)

        def mean(params: PyTree, *leaves: Any) -> Any:
            losses, aux = jax.vmap(one, in_axes=(None, axes))(params, list(leaves))
            _check_scalar(loss, losses)
            return jnp.mean(losses), (losses, aux)

        return _norms_of(mean, one, params, Examples(leaves, axes, count))

    return norms_of


def _check_scalar(loss: Any, losses: Any) -> None:
    if jnp.ndim(losses) != 1:
        raise TypeError(
            f"`{name_of(loss)}` returned shape {jnp.shape(losses)[1:]} for a batch of one example, expected a "
            "scalar: the norm of a gradient is that of one number. Return the mean or the sum."
        )


class Examples(NamedTuple):
    """The leaves of a batch, the axis of each that counts the examples, and how many there are."""

    leaves: list[Any]
    axes: list[int | None]
    size: int


def _axes(in_axes: Any, batch: list[Any]) -> list[int | None]:
    """One axis for each leaf of the batch."""
    given = list(in_axes) if isinstance(in_axes, tuple | list) else [in_axes] * len(batch)
    if len(given) != len(batch):
        raise ValueError(
            f"`in_axes` has {len(given)} entries, but the batch {len(batch)} arguments: one for each."
        )
    spread = jax.tree.map(
        lambda axis, part: [axis] * len(jax.tree.leaves(part)), given, batch, is_leaf=lambda x: x is None
    )
    return [axis for axes in spread for axis in axes]


def _count(loss: Any, leaves: Sequence[Any], axes: Sequence[int | None]) -> int:
    sizes = {
        np.shape(leaf)[axis] if -np.ndim(leaf) <= axis < np.ndim(leaf) else None
        for leaf, axis in zip(leaves, axes, strict=True)
        if axis is not None
    }
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves) or "no arrays"
        raise ValueError(
            f"`{name_of(loss)}` was called with a batch of {shapes}: every array of it needs the same number "
            "of examples, at least one, on its first axis, or on that of `in_axes`. Pass what is the same for "
            "all examples by keyword."
        )
    return sizes.pop()  # type: ignore[return-value]


def _norms_of(mean: Any, one: Any, params: PyTree, batch: Examples) -> PerExample:
    count = batch.size
    traced = trace_call(mean, (params, *batch.leaves), {}, 0, True)
    readings = readings_of(traced.graph, example_axes(traced.graph, _twin(mean, params, batch), count))
    known = [reading for found in readings for reading in found or ()]
    rules = {reading.node.index: rule for reading in known if (rule := _thin(reading)) is not None}
    nodes = {reading.node.index: reading.node for reading in known}
    plan = plan_at(traced.graph, list(nodes.values()), _recorder(known), rules)
    tape = run(traced, plan, seed_of(traced, None, False), 0)
    losses, aux = tape.aux
    leaves, tree = jax.tree.flatten(params)
    # The gradient is that of the mean: there the cotangents of an example carry 1/B.
    squares: list[Any] = [
        None if found is None else count**2 * _squares(found, tape, leaf, count)
        for found, leaf in zip(readings, leaves, strict=True)
    ]
    unknown = [i for i, square in enumerate(squares) if square is None]
    for i, square in zip(unknown, _by_vmap(one, params, batch, unknown), strict=True):
        squares[i] = square
    norms = jax.tree.unflatten(tree, [jnp.sqrt(square) for square in squares])
    return PerExample(tape.value, tape.grads, losses, norms, aux)


def _thin(reading: Reading) -> Rule | None:
    part = reading.part
    return thin(reading.node, part) if isinstance(part, Product) else None


def _twin(mean: Any, params: PyTree, batch: Examples) -> Graph:
    """The same program for one example more: what differs in shape between the two counts the examples."""

    def like(x: Any, axis: int | None) -> Any:
        if axis is None:
            return x
        aval = jax.typeof(x)
        shape = list(aval.shape)
        shape[axis] += 1
        return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=aval.weak_type)

    more = [like(x, axis) for x, axis in zip(batch.leaves, batch.axes, strict=True)]
    return trace_call(mean, (params, *more), {}, 0, True, abstract=True).graph


# --- what is read, and what comes of it ------------------------------------------------------------


def _recorder(readings: Sequence[Reading]) -> Recorder:
    """Write down, where parameters are read, what each example's gradient is made of."""
    by_node: dict[int, dict[int, Part]] = {}
    for reading in readings:
        by_node.setdefault(reading.node.index, {})[reading.position] = reading.part

    def backward(local: Local, out_cts: OutCts) -> PyTree:
        (ct,) = out_cts  # the only one: called where one comes
        assert ct is not None
        return {position: dict(part.read(local, ct)) for position, part in by_node[local.node.index].items()}

    return Recorder(backward=backward)


def _squares(readings: Sequence[Reading], tape: Tape, leaf: Any, count: int) -> Array:
    """Squared norms of each example's gradient of one leaf."""
    dtype = jnp.finfo(jnp.result_type(leaf)).dtype
    parts = [(reading, factors) for reading in readings if (factors := _factors(reading, tape)) is not None]
    if not parts:
        return jnp.zeros(count, dtype)
    if len(parts) == 1:
        ((reading, factors),) = parts
        return reading.part.squares(factors).astype(dtype)
    names, arrays = zip(*(zip(*factors.items(), strict=True) for _, factors in parts), strict=True)

    def built(*flat: Array) -> Array:
        rest = iter(flat)
        g = _total(
            reading.view.back(reading.part.gradient({name: next(rest)[None] for name in its})[0])
            for (reading, _), its in zip(parts, names, strict=True)
        )
        return jnp.sum(jnp.abs(g) ** 2)

    flat = [array for its in arrays for array in its]
    return by_chunks(built, len(parts) * np.size(leaf), *flat).astype(dtype)


def _factors(reading: Reading, tape: Tape) -> Factors | None:
    """What was written down there, axes `b, s, f, ...`; None where no cotangent came."""
    record = tape.record_at(reading.node.index)
    if record is None:
        return None
    sliced = reading.view.sliced
    order = [i for i, each in enumerate(sliced) if each] + [i for i, each in enumerate(sliced) if not each]
    slices = sum(sliced)

    def unfold(x: Array) -> Array:
        depth = len(sliced)
        x = jnp.transpose(x, (depth, *order, *range(depth + 1, x.ndim)))
        steps = x.shape[1 : 1 + depth]
        s, repeated = math.prod(steps[:slices]), math.prod(steps[slices:])
        return x.reshape(x.shape[0], s, repeated * x.shape[1 + depth], *x.shape[2 + depth :])

    return {name: unfold(x) for name, x in record[reading.position].items()}


def _by_vmap(one: Any, params: PyTree, batch: Examples, which: Sequence[int]) -> list[Array]:
    """Squared norms by the gradients themselves, for the leaves nothing is known about."""
    if not which:
        return []
    leaves, tree = jax.tree.flatten(params)
    mapped = [i for i, axis in enumerate(batch.axes) if axis is not None]

    def squares(*example: Any) -> list[Array]:
        full = list(batch.leaves)
        for i, x in zip(mapped, example, strict=True):
            full[i] = x

        def of(some: list[Any]) -> Any:
            all_of_them = list(leaves)
            for i, leaf in zip(which, some, strict=True):
                all_of_them[i] = leaf
            return one(jax.tree.unflatten(tree, all_of_them), full)[0]

        grads = jax.grad(of)([leaves[i] for i in which])
        return [jnp.sum(jnp.abs(g) ** 2) for g in grads]

    size = sum(np.size(leaves[i]) for i in which)
    examples = [jnp.moveaxis(jnp.asarray(batch.leaves[i]), batch.axes[i] or 0, 0) for i in mapped]
    return by_chunks(squares, size, *examples)
