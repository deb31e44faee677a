"""One backward pass that records the factors of every example's gradient, and what is computed from them.

Where a parameter is used by nodes that are known (`contributions`), the operand and the cotangent are recorded,
or the gradients themselves where they take no more memory. Norms come from these; and once the weights that
follow from the norms are known, so does the weighted sum, without a second pass (Bu, Wang, Zha and Karypis
2022, arXiv:2210.00038). For other parameters the gradients are computed by `jax.vmap`, a few examples at a
time.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..._backprop import plan_at, run
from ..._seed import seed_of
from ...core.build import build
from ...core.local import Local
from ...core.recorders import Recorder
from ...core.rules import Rule
from ...core.types import Array, NodeIndex, OutCts, PyTree
from ...record.tape import Tape
from .batch import Batch
from .contributions import MatrixProduct, squeezed_rule
from .forms import Built, Form, by_chunks, squared, wide
from .leaves import LeafGradients, Term, simplified
from .parameters import ParameterUse, ParameterView, example_axes, parameter_uses

#: The gradients of all examples are kept in place of their factors if they take at most this many times the
#: memory: then they are built once, and norms and sums of them cost next to nothing.
KEPT_AT_MOST = 2.0


class Reduced(NamedTuple):
    """What is wanted of the gradients of a leaf if only their norms are.

    Attributes:
        parts: Squared norms, perhaps in parts.
        total: The sum of the gradients, in the layout of what the node sees; None if they were not built.
        view: The parameter as the node sees it.
    """

    parts: Float[Array, "*steps batch"]
    total: Array | None
    view: ParameterView

    def squares(self) -> Float[Array, " batch"]:
        """Return the squared norms."""
        return self.parts.sum(tuple(range(self.parts.ndim - 1)))

    def sum(self) -> Array | None:
        """Return the gradient of the whole batch, if it is known."""
        if self.total is None:
            return None
        steps = self.parts.ndim - 1
        return self.view.back(self.total.reshape(-1, *self.total.shape[steps:]))


@dataclass(frozen=True, eq=False)
class Gradients:
    """The gradients of the mean loss and of its examples; the latter are scaled by 1 / B, as in the mean.

    Attributes:
        batch: The examples.
        value, aux, losses: What the loss returned: the mean, and of each example.
        grads: The gradient of the mean.
        known: For each leaf of the params, its gradient for each example, or what is wanted of it; None if its
            use is not known.
    """

    batch: Batch
    value: Float[Array, ""]
    aux: PyTree
    losses: Float[Array, " batch"]
    grads: PyTree
    known: Sequence["LeafGradients | Reduced | None"]

    @functools.cached_property
    def squares(self) -> list[Float[Array, " batch"]]:
        """For each leaf the squared norms."""
        found = [None if x is None else x.squares() for x in self.known]
        unknown = [i for i, x in enumerate(found) if x is None]
        by_vmap = dict(zip(unknown, _squares_by_vmap(self.batch, unknown), strict=True))
        return [by_vmap[i] if x is None else x for i, x in enumerate(found)]

    def weighted(self, weights: Sequence[Float[Array, " batch"]]) -> list[Array]:
        """Return for each leaf the sum of the gradients, each times its weight.

        Raises:
            ValueError: `gradients_of` was told that none is wanted.
        """
        unknown = [i for i, x in enumerate(self.known) if x is None]
        by_vmap = dict(zip(unknown, _weighted_by_gradient(self.batch, unknown, weights), strict=True))
        return [
            by_vmap[i] if x is None else _kept(x).weighted(w)
            for i, (x, w) in enumerate(zip(self.known, weights, strict=True))
        ]


def gradients_of(batch: Batch, adds: bool) -> Gradients:
    """Run the loss once for the whole batch, and record the gradients of its examples.

    Args:
        batch: The examples.
        adds: Whether a weighted sum of the gradients is wanted, or their inner products; else only their norms.
    """
    traced = batch.traced(batch.mean)
    larger = build(batch.traced_abstractly(batch.mean, one_more=True).program)
    uses = parameter_uses(traced.graph, example_axes(traced.graph, larger, batch.size))
    known = [use for found in uses for use in found or ()]
    rules = {use.node.index: rule for use in known if (rule := _rule_of(use)) is not None}
    nodes = {use.node.index: use.node for use in known}
    recorder = _recorder([record for found in uses if found for record in _records_of(found, adds)])
    tape = run(
        traced, plan_at(traced.graph, list(nodes.values()), recorder, rules), seed_of(traced, None, False), 0
    )
    losses, aux = tape.aux
    pairs = zip(uses, batch.params_leaves, strict=True)
    gradients = [None if found is None else _found(found, tape, leaf, batch.size) for found, leaf in pairs]
    # Where the gradients of examples were added already, XLA leaves out the gradient of the batch.
    sums = [found.sum() if isinstance(found, Reduced) else None for found in gradients]
    pairs = zip(sums, jax.tree.leaves(tape.grads), strict=True)
    grads = [g if total is None else total.astype(g.dtype) for total, g in pairs]
    return Gradients(batch, tape.value, aux, losses, batch.as_params(grads), gradients)


def _kept(found: LeafGradients | Reduced) -> LeafGradients:
    if isinstance(found, Reduced):
        raise ValueError("only norms were asked for: sums need gradients_of(batch, adds=True).")
    return found


def _rule_of(use: ParameterUse) -> Rule | None:
    found = use.contribution
    return squeezed_rule(found) if isinstance(found, MatrixProduct) else None


# --- what is recorded where a parameter is used -----------------------------------------------------

#: What is recorded of a form at the node: itself, the gradients, or squared norms.
Record: TypeAlias = Callable[[Form], PyTree]


def _factors(form: Form) -> Form:
    return form


def _built(form: Form) -> Built:
    return Built(_with_slices(form).built())  # its axis `s`, of length one, serves as `f`


def _squares(form: Form) -> tuple[Float[Array, " batch"], None]:
    return _with_slices(form).squares(), None


def _squares_and_sum(form: Form) -> tuple[Float[Array, " batch"], Array]:
    built = _with_slices(form).built()
    return Built(built[:, :, None]).squares(), built[:, 0].sum(0)


def _with_slices(form: Form) -> Form:
    """A form as it is recorded, with the axis `s`."""
    return jax.tree.map(lambda x: x[:, None], form)


def _records_of(uses: Sequence[ParameterUse], adds: bool) -> list[tuple[ParameterUse, Record]]:
    """Choose what is recorded at the nodes that use one parameter, from sizes alone."""
    summed_later = any(not all(use.view.sliced) for use in uses)  # over the steps of a scan
    sizes = [use.contribution.sizes for use in uses]
    small = all(size.built <= KEPT_AT_MOST * size.factors for size in sizes)
    record: Record = _factors
    if len(uses) == 1 and not summed_later and not adds:
        record = _squares_and_sum if small else _squares
    elif small and not summed_later:
        record = _built
    return [(use, record) for use in uses]


def _recorder(records: Sequence[tuple[ParameterUse, Record]]) -> Recorder:
    by_node: dict[NodeIndex, list[tuple[ParameterUse, Record]]] = {}
    for use, record in records:
        by_node.setdefault(use.node.index, []).append((use, record))

    def backward(local: Local, out_cts: OutCts) -> dict[int, PyTree]:
        (ct,) = out_cts  # these nodes have one output, and are recorded only where a cotangent arrives
        assert ct is not None
        return {
            use.position: record(use.contribution.form(local, ct)) for use, record in by_node[local.node.index]
        }

    return Recorder(backward=backward)


def _found(uses: Sequence[ParameterUse], tape: Tape, leaf: Array, count: int) -> LeafGradients | Reduced:
    """The gradient of one leaf for each example, or its norms where no more was recorded."""
    terms = []
    for use in uses:
        record = tape.record_at(use.node.index)
        if record is None:  # no cotangent arrived
            continue
        found = record[use.position]
        if isinstance(found, tuple):
            parts, total = found
            return Reduced(parts, total, use.view)
        terms.append(Term(use.view, jax.tree.map(functools.partial(_unfolded, use.view.sliced), found)))
    dtype = jnp.result_type(leaf)
    return LeafGradients(simplified(terms), count, np.shape(leaf), dtype)


def _unfolded(sliced: Sequence[bool], x: Array) -> Float[Array, "b s f ..."]:
    """What was recorded inside of scans: steps that see slices are axis `s`, the others are positions."""
    depth, slices = len(sliced), sum(sliced)
    order = [i for i, each in enumerate(sliced) if each] + [i for i, each in enumerate(sliced) if not each]
    x = jnp.transpose(x, (depth, *order, *range(depth + 1, x.ndim)))
    steps = x.shape[1 : 1 + depth]
    s, repeated = math.prod(steps[:slices]), math.prod(steps[slices:])
    return x.reshape(x.shape[0], s, repeated * x.shape[1 + depth], *x.shape[2 + depth :])


# --- parameters that are used in an unknown way ------------------------------------------------------


def _squares_by_vmap(batch: Batch, which: Sequence[int]) -> list[Float[Array, " batch"]]:
    """The squared norms from the gradients themselves."""
    if not which:
        return []
    size = sum(np.size(batch.params_leaves[i]) for i in which)

    def of_one(example: list[Array]) -> list[Array]:
        return [squared(g).sum() for g in _gradient_of_one(batch, which, example)]

    return [squares / batch.size**2 for squares in by_chunks(of_one, size, _mapped_leaves(batch))]


def _gradient_of_one(batch: Batch, which: Sequence[int], example: Sequence[Array]) -> list[Array]:
    """The gradient of some leaves for one example."""
    rest = iter(example)
    full = [
        leaf if axis is None else next(rest)[0] for leaf, axis in zip(batch.leaves, batch.axes, strict=True)
    ]

    def loss_of(some: Sequence[Array]) -> Array:
        return batch.one(_with_leaves(batch, which, some), full)[0]

    return jax.grad(loss_of)([batch.params_leaves[i] for i in which])


def _mapped_leaves(batch: Batch) -> list[Array]:
    """The arrays of a batch that differ between examples, the examples on the first axis."""
    return [
        jnp.moveaxis(jnp.asarray(leaf), axis, 0)
        for leaf, axis in zip(batch.leaves, batch.axes, strict=True)
        if axis is not None
    ]


def _with_leaves(batch: Batch, which: Sequence[int], some: Sequence[Array]) -> PyTree:
    """The params with other arrays in place of some leaves."""
    merged = list(batch.params_leaves)
    for i, leaf in zip(which, some, strict=True):
        merged[i] = leaf
    return batch.as_params(merged)


def _weighted_by_gradient(
    batch: Batch, which: Sequence[int], weights: Sequence[Float[Array, " batch"]]
) -> list[Array]:
    """The weighted sums as gradients of the weighted loss: one more backward pass for each kind of weights."""
    found: dict[int, Array] = {}
    for alike in {id(weights[i]): [j for j in which if weights[j] is weights[i]] for i in which}.values():

        def loss_of(some: list[Array], alike: list[int] = alike) -> Array:
            return batch.weighted_mean(_with_leaves(batch, alike, some), weights[alike[0]])

        found |= zip(alike, jax.grad(loss_of)([batch.params_leaves[i] for i in alike]), strict=True)
    return [found[i] for i in which]


# --- inner products -----------------------------------------------------------------------------------


def inner_products(one: Batch, other: Batch) -> Float[Array, "a b"]:
    """Return the inner products of the gradients of each example of one batch with each of another."""
    ours, theirs = gradients_of(one, adds=True), gradients_of(other, adds=True)
    scale = one.size * other.size
    unknown = [i for i, pair in enumerate(zip(ours.known, theirs.known, strict=True)) if None in pair]
    parts = [
        scale * x.inner(y)
        for x, y in zip(ours.known, theirs.known, strict=True)
        if isinstance(x, LeafGradients) and isinstance(y, LeafGradients)
    ]
    if unknown:
        parts.append(_inner_by_tangents(one, other, unknown))
    dtype = wide(*(part.dtype for part in parts))
    return functools.reduce(jnp.add, (part.astype(dtype) for part in parts))


def _inner_by_tangents(one: Batch, other: Batch, which: Sequence[int]) -> Float[Array, "a b"]:
    """The inner products with one gradient at a time: how the other losses change along it."""

    def losses(some: list[Array]) -> Float[Array, " b"]:
        return other.mean(_with_leaves(other, which, some), *other.leaves)[1][0]

    point = [jnp.asarray(other.params_leaves[i]) for i in which]

    def with_all(example: list[Array]) -> Float[Array, " b"]:
        g = [jnp.conj(x) for x in _gradient_of_one(one, which, example)]
        return jax.jvp(losses, (point,), (g,))[1]

    size = other.size * sum(np.size(x) for x in point)
    return by_chunks(with_all, size, _mapped_leaves(one))
