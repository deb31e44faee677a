"""`jax.jit` for functions that return a tape, without leaving the tape's program in JAX's caches."""

import functools
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

from .. import _jaxpr
from ..core.types import Array, PyTree

T = TypeVar("T")


def jit_with_structure(fun: Callable[..., T]) -> Callable[..., T]:
    """Compile a function, keeping the structure of what it returns with the compiled function.

    JAX keeps the structures of results in a cache of the process. That of a tape holds the graph, hence the
    arrays that the function closes over: they would outlive it.

    Args:
        fun: a function of arrays that returns any pytree.

    Returns:
        The compiled function.
    """
    structures: dict[Hashable, Any] = {}

    @jax.jit
    def leaves_of(*args: PyTree, **kwargs: PyTree) -> list[Array]:
        leaves, structures[_types(args, kwargs)] = jax.tree.flatten(fun(*args, **kwargs))
        return leaves

    @functools.wraps(fun, updated=())
    def compiled(*args: PyTree, **kwargs: PyTree) -> T:
        leaves = leaves_of(*args, **kwargs)
        return jax.tree.unflatten(structures[_types(args, kwargs)], leaves)

    return compiled


def _types(args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> Hashable:
    leaves, tree = jax.tree.flatten((args, kwargs))
    avals = map(_jaxpr.aval_of, leaves)
    return tree, tuple((_jaxpr.shape_of(aval), str(_jaxpr.dtype_of(aval))) for aval in avals)
