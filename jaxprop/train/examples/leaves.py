"""The gradient of one parameter for each example: a sum over the nodes that use it."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...core.types import Array, Dtype, Shape
from .forms import Built, Form, OuterProducts, Rows, by_chunks, inner, products_of_tied, squared, wide, widest
from .parameters import ParameterView, Selection


class Term(NamedTuple):
    """What one node adds to the gradient of a parameter.

    Attributes:
        view: The parameter as the node sees it.
        form: The gradient of what it sees.
    """

    view: ParameterView
    form: Form

    def weighted(self, weights: Float[Array, " b"]) -> Float[Array, "..."]:
        """Return the weighted sum, in the layout of the parameter."""
        return self.view.back(self.form.weighted(weights))

    def built(self) -> Float[Array, "b ..."]:
        """Return the gradients, in the layout of the parameter."""
        return jax.vmap(self.view.back)(self.form.built())


@dataclass(frozen=True)
class LeafGradients:
    """The gradient of a parameter for each example, as a sum of terms.

    Attributes:
        terms: What the nodes add that use it; terms of the same layout are one.
        count: The number of examples.
        shape, dtype: Of the parameter.
    """

    terms: Sequence[Term]
    count: int
    shape: Shape
    dtype: Dtype

    def squares(self) -> Float[Array, " b"]:
        """Return the squared norms, in float32 at least."""
        if not self.terms:
            return jnp.zeros(self.count, self._wide)
        products = _products_between(self.terms)
        if products is None:
            total = self._by_building(lambda g: squared(g).sum())
        else:
            total = functools.reduce(jnp.add, (*(term.form.squares() for term in self.terms), *products))
        return jnp.maximum(total, 0).astype(self._wide)  # not below zero by rounding; NaN stays NaN

    def weighted(self, weights: Float[Array, " b"]) -> Float[Array, "..."]:
        """Return the sum of the gradients, each times its weight."""
        if not self.terms:
            return jnp.zeros(self.shape, self.dtype)
        parts = [term.weighted(weights).astype(self.dtype) for term in self.terms]
        return functools.reduce(jnp.add, parts)

    def inner(self, other: "LeafGradients") -> Float[Array, "a b"]:
        """Return the inner product of each gradient with each of another batch, of the same parameter."""
        if not self.terms or not other.terms:
            return jnp.zeros((self.count, other.count), self._wide)
        size = math.prod(self.shape)
        if len(self.terms) == len(other.terms) == 1 and _key(self.terms[0]) == _key(other.terms[0]):
            found = inner(self.terms[0].form, other.terms[0].form, size)
        else:
            found = inner(self._as_built(), other._as_built(), size)
        return found.astype(self._wide)

    def _as_built(self) -> Built:
        return Built(_sum(term.built() for term in self.terms)[:, None, None])

    def _by_building(self, fun: Callable[[Array], Array]) -> Array:
        """Apply a function to the gradient of each example, a few at a time."""
        views = [term.view for term in self.terms]

        def of_one(forms: Sequence[Form]) -> Array:
            terms = map(Term, views, forms)
            return fun(_sum(term.built()[0] for term in terms))

        size = (len(views) + 1) * math.prod(self.shape)
        return by_chunks(of_one, size, [term.form for term in self.terms])

    @property
    def _wide(self) -> Dtype:
        return wide(jnp.finfo(self.dtype).dtype)


def _sum(parts: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, parts)


# --- terms in the layout of the parameter -----------------------------------------------------------


def simplified(terms: Sequence[Term]) -> list[Term]:
    """Return terms of the same sum, in the layout of the parameter where possible; those alike are one."""
    groups: dict[object, list[Term]] = {}
    for term in map(_in_layout_of_parameter, terms):
        groups.setdefault(_key(term), []).append(term)
    return [Term(alike[0].view, _concatenated([term.form for term in alike])) for alike in groups.values()]


def _key(term: Term) -> object:
    """What terms must share to be one sum over positions."""
    shapes = [(x.shape[:2], x.shape[3:]) for x in jax.tree.leaves(term.form)]
    static = jax.tree.structure(term.form)
    return term.view.moves, static, tuple(shapes)


def _concatenated(forms: Sequence[Form]) -> Form:
    """One form that sums over the positions of all."""
    if len(forms) == 1:
        return forms[0]

    def joined(*arrays: Array) -> Array:
        dtype = widest(*(x.dtype for x in arrays))
        return jnp.concatenate([x.astype(dtype) for x in arrays], 2)

    return jax.tree.map(joined, *forms)


def _in_layout_of_parameter(term: Term) -> Term:
    """The same term without the transpositions and conversions of the parameter."""
    view, form = term
    if not isinstance(form, OuterProducts):
        return term
    while view.moves and isinstance(move := view.moves[-1], Selection):
        node = move.node
        if node.primitive == "transpose":
            order = node.params["permutation"]
            axes = tuple(tuple(order[axis] for axis in group) for group in form.axes)
            form = replace(form, axes=axes, shape=node.operands[0].shape)
        elif node.primitive != "convert_element_type" or not _both_real(node):
            break
        view = replace(view, moves=view.moves[:-1])
    h, c, k = form.axes
    if c > k:  # `x` and `ct` change places, so that a product with the transpose has the same layout
        form = replace(form, x=form.ct, ct=form.x, axes=(h, k, c))
    return Term(view, form)


def _both_real(node) -> bool:
    return all(jnp.issubdtype(value.dtype, jnp.floating) for value in (node.operands[0], node.outputs[0]))


# --- products between terms -------------------------------------------------------------------------------


def _products_between(terms: Sequence[Term]) -> list[Float[Array, " b"]] | None:
    """Twice the inner product of each pair of terms that is not zero; None if one is not known."""
    found = []
    for i, one in enumerate(terms):
        for other in terms[:i]:
            if _are_disjoint(one.view, other.view):
                continue
            product = _product(one, other)
            if product is None:
                return None
            found.append(2 * product)
    return found


def _are_disjoint(one: ParameterView, other: ParameterView) -> bool:
    """Whether two nodes are known to see different elements of a parameter."""
    ours, theirs = one.region, other.region
    if ours is None or theirs is None:
        return False
    return any(not set(a) & set(b) for a, b in zip(ours, theirs, strict=True))


def _product(one: Term, other: Term) -> Float[Array, " b"] | None:
    """The inner products of two terms, example by example: of a table that is looked up and multiplied."""
    if isinstance(one.form, OuterProducts):
        one, other = other, one
    if one.view.moves != other.view.moves:
        return None
    table, product = one.form, other.form
    if not isinstance(table, Rows) or not isinstance(product, OuterProducts):
        return None
    axes = tuple(range(len(table.shape)))
    if product.axes != ((), axes[:1], axes[1:]) or product.shape != table.shape:
        return None
    return products_of_tied(table, product)
