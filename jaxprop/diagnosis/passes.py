"""Compiled passes over a loss: one for each thing recorded, kept for the next call at the same shapes."""

import functools
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from .. import _jaxpr
from .._api import backprop
from .._tracing import CONCRETE, leaf_names, normalize_argnums
from ..core.recorders import Recorder
from ..core.selectors import Selector
from ..core.types import PyTree
from ..record.tape import Tape


class Passes:
    """Compiled passes over one loss.

    Arrays among the arguments are traced; plain integers, texts and the like stay what they are, as under
    `jax.grad`. Where Python asks for the numbers in an argument that is not differentiated, that argument is
    built into the program, and the pass is compiled anew for each call.

    Attributes:
        loss: the function, as it stands.
        argnums, has_aux, cotangent: as in `backprop`.
    """

    def __init__(
        self, loss: Callable[..., Any], argnums: Any = 0, has_aux: bool = False, cotangent: PyTree = None
    ) -> None:
        if not callable(loss):
            raise TypeError(f"expected a loss function, got {type(loss).__name__}.")
        self.loss, self.argnums, self.has_aux, self.cotangent = loss, argnums, has_aux, cotangent
        self._compiled: dict[Hashable, Callable[..., Tape]] = {}

    def at(self, *args: Any, **kwargs: Any) -> "Run":
        """The passes at some arguments."""
        _check_readable(args, kwargs)
        return Run(self, args, kwargs)

    def tape(
        self, args: Any, kwargs: Any, nodes: Selector | frozenset[int] | None, record: Recorder | None
    ) -> Tape:
        """Run one pass. The tape holds no `aux`."""
        try:
            return self._tape(args, kwargs, nodes, record, self._is_array)
        except TypeError as error:
            if not isinstance(error.__cause__, CONCRETE):
                raise
        points = {
            id(leaf) for i in normalize_argnums(self.argnums, len(args)) for leaf in jax.tree.leaves(args[i])
        }
        return self._tape(args, kwargs, nodes, record, lambda leaf: id(leaf) in points, keep=False)

    @staticmethod
    def _is_array(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array | np.ndarray | np.generic | float | complex)

    def _tape(
        self, args: Any, kwargs: Any, nodes: Any, record: Any, traced: Callable[[Any], bool], keep: bool = True
    ) -> Tape:
        leaves, tree = jax.tree.flatten((args, kwargs))
        dynamic = [leaf for leaf in leaves if traced(leaf)]
        fixed = tuple((i, leaf) for i, leaf in enumerate(leaves) if not traced(leaf))
        if not (keep and _hashable(fixed)):
            return self._compile(tree, fixed, nodes, record)(dynamic)
        key = (tree, tuple((i, type(leaf), leaf) for i, leaf in fixed), nodes, record)
        if key not in self._compiled:
            self._compiled[key] = self._compile(tree, fixed, nodes, record)
        return self._compiled[key](dynamic)

    def _compile(self, tree: Any, fixed: Any, nodes: Any, record: Any) -> Callable[..., Tape]:
        picked = (lambda node: node.index in nodes) if isinstance(nodes, frozenset) else nodes
        opened = backprop(
            self.loss, self.argnums, self.has_aux, nodes=picked, record=record, cotangent=self.cotangent
        )

        @jax.jit
        def run(dynamic: list[Any]) -> Tape:
            rest, held = iter(dynamic), dict(fixed)
            leaves = [held[i] if i in held else next(rest) for i in range(tree.num_leaves)]
            args, kwargs = jax.tree.unflatten(tree, leaves)
            return replace(opened(*args, **kwargs), aux=None)

        return run


class Run:
    """Passes at one point: the loss, with arguments."""

    def __init__(self, passes: Passes, args: Any, kwargs: Any) -> None:
        self.passes, self.args, self.kwargs = passes, args, kwargs

    def __call__(self, nodes: Selector | frozenset[int] | None = None, record: Recorder | None = None) -> Tape:
        """Run one more pass: `nodes` is a selector, or a set of indices of nodes."""
        return self.passes.tape(self.args, self.kwargs, nodes, record)

    @functools.cached_property
    def leaf_names(self) -> frozenset[str]:
        """The paths of the leaves of all arguments."""
        return frozenset(leaf_names(self.passes.loss, self.args, self.kwargs))


def on_host(tape: Tape) -> Tape:
    """The tape with its records as NumPy arrays, so that reading many of them is cheap; gradients left out."""
    return as_numpy(replace(tape, grads=None, aux=None))


def as_numpy(tree: PyTree) -> PyTree:
    """A tree with NumPy arrays; random keys, which NumPy does not have, stay."""
    return jax.tree.map(lambda x: x if _jaxpr.is_key(x) else np.asarray(x), tree)


def _hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def _check_readable(args: Any, kwargs: Any) -> None:
    """Refuse arguments that hold no numbers.

    Raises:
        TypeError: called inside a traced function.
        ValueError: a buffer was given away.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        name = jax.tree_util.keystr(path)
        if _jaxpr.is_tracer(leaf):
            raise TypeError(
                "`diagnose` reads numbers, and inside `jax.jit`, `jax.vmap` or `jax.grad` there are none yet. "
                "Call it outside, on the loss itself: it compiles its own pass."
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"the argument leaf {name} was donated to a compiled function and is gone. Diagnose before the "
                "step that takes it, or keep a copy (`jax.tree.map(jnp.copy, state)`)."
            )
