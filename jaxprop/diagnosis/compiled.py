"""`jax.jit` for functions of any arguments that return a tape, without leaving its program in JAX's caches."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np

from .. import _jaxpr
from .._models import pack, unpack
from ..core.types import Array, PyTree

T = TypeVar("T")
#: How many programs are kept, one for each structure and each set of static arguments. A call of `diagnose`
#: that finds something runs five.
MOST_PROGRAMS = 16


def is_array(leaf: object) -> bool:
    """Whether a leaf of the arguments is traced; integers, strings and the like are static."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex)


def jit_with_structure(
    fun: Callable[..., T], is_traced: Callable[[object], bool] = is_array
) -> Callable[..., T]:
    """Compile a function, keeping the structure of what it returns with the compiled function.

    JAX keeps the structures of results in a cache of the process. That of a tape holds the graph, hence the
    arrays that the function closes over: they would outlive it.

    Args:
        fun: a function of any arguments, model objects among them, that returns any pytree.
        is_traced: which leaves of the arguments are traced. The others are static: they are what they are, and
            the function is compiled for each of their values.

    Returns:
        The compiled function. It keeps the `MOST_PROGRAMS` programs used last.
    """
    programs: OrderedDict[Hashable, _Program[T]] = OrderedDict()

    @functools.wraps(fun, updated=())
    def compiled(*args: PyTree, **kwargs: PyTree) -> T:
        leaves, tree = jax.tree.flatten(pack((args, kwargs)))
        static = {i: leaf for i, leaf in enumerate(leaves) if not is_traced(leaf)}
        traced = [leaf for i, leaf in enumerate(leaves) if i not in static]
        key = (tree, tuple((i, type(leaf), leaf) for i, leaf in static.items()))
        if not is_hashable(key):
            return _Program(fun, tree, static)(traced)
        if key not in programs:
            programs[key] = _Program(fun, tree, static)
            while len(programs) > MOST_PROGRAMS:
                programs.popitem(last=False)
        programs.move_to_end(key)
        return programs[key](traced)

    return compiled


class _Program(Generic[T]):
    """A function compiled for arguments of one structure, as a function of the traced leaves."""

    def __init__(self, fun: Callable[..., T], tree: Any, static: Mapping[int, object]) -> None:
        self._structures: dict[Hashable, Any] = {}

        def leaves_of(traced: Sequence[Array]) -> list[Array]:
            rest = iter(traced)
            filled = [static[i] if i in static else next(rest) for i in range(tree.num_leaves)]
            args, kwargs = unpack(tree.unflatten(filled))
            leaves, self._structures[_types(traced)] = jax.tree.flatten(fun(*args, **kwargs))
            return leaves

        self._leaves_of = jax.jit(leaves_of)

    def __call__(self, traced: Sequence[Array]) -> T:
        leaves = self._leaves_of(traced)
        return jax.tree.unflatten(self._structures[_types(traced)], leaves)


def _types(leaves: Sequence[Array]) -> Hashable:
    avals = map(_jaxpr.aval_of, leaves)
    return tuple((_jaxpr.shape_of(aval), str(_jaxpr.dtype_of(aval))) for aval in avals)


def is_hashable(x: object) -> bool:
    """Whether `x` can be a key; arrays and what holds them cannot."""
    try:
        hash(x)
    except TypeError:
        return False
    return True
