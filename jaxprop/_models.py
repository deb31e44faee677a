"""Model objects as arguments: an Equinox or NNX module is split into what is differentiated and what is held.

A module holds functions, strings and counters besides its arrays, so JAX does not differentiate with respect to
it. Each framework selects leaves (`eqx.filter_grad`, `nnx.grad`), and the same ones are differentiated here:

- Equinox: the floating point and complex arrays; the gradient is a module with None in place of the rest;
- NNX: the variables of type `nnx.Param`; the gradient is an `nnx.State`.

Neither framework is imported: a module exists only where its framework has been.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from . import _jaxpr
from .core.types import Function, PyTree


def split_models(
    fun: Function, args: tuple[PyTree, ...], kwargs: dict[str, PyTree], argnums: Collection[int]
) -> tuple[Function, tuple[PyTree, ...], dict[str, PyTree]]:
    """Return a function of differentiated leaves in place of modules, and its arguments.

    Each module in the arguments `argnums` is replaced by its differentiated leaves. The function builds the
    modules again, NNX modules everywhere, so that what it changes in them is a copy.

    Without modules all three are returned unmodified.
    """
    fixed = [i for i in range(len(args)) if i not in argnums]
    if not any(map(_has_module, (args[i] for i in argnums))) and not any(
        map(_has_nnx, (kwargs, *(args[i] for i in fixed)))
    ):
        return fun, args, kwargs
    parts = [_Split.of(arg, differentiated=i in argnums) for i, arg in enumerate(args)]
    keywords = {name: _Split.of(arg, differentiated=False) for name, arg in kwargs.items()}

    def of_parts(*moved: PyTree, **moved_keywords: PyTree) -> PyTree:
        full = [part.merge(x) for part, x in zip(parts, moved, strict=True)]
        return fun(*full, **{name: keywords[name].merge(x) for name, x in moved_keywords.items()})

    functools.update_wrapper(of_parts, fun, updated=())
    moved_keywords = {name: part.moved for name, part in keywords.items()}
    return of_parts, tuple(part.moved for part in parts), moved_keywords


@dataclass(frozen=True)
class _Split:
    """An argument with its modules taken apart.

    Attributes:
        moved: what stands for the argument: the differentiated leaves of modules, and all else.
        merge: makes the argument of it.
    """

    moved: PyTree
    merge: Callable[[PyTree], PyTree]

    @classmethod
    def of(cls, arg: PyTree, differentiated: bool) -> "_Split":
        of_module = _split_differentiated if differentiated else _split_held
        nodes, tree = jax.tree.flatten(arg, is_leaf=is_module)
        pairs = [of_module(node) if is_module(node) else (node, _same) for node in nodes]

        def merge(moved: PyTree) -> PyTree:
            parts = tree.flatten_up_to(moved)
            return tree.unflatten([make(part) for (_, make), part in zip(pairs, parts, strict=True)])

        return cls(tree.unflatten([part for part, _ in pairs]), merge)


def _same(x: PyTree) -> PyTree:
    return x


def _split_differentiated(module: Any) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    if _is_nnx(module):
        nnx = sys.modules["flax.nnx"]
        definition, params, rest = nnx.split(module, nnx.Param, ...)
        return params, lambda params: nnx.merge(definition, params, _copied(rest))
    params = jax.tree.map(lambda leaf: leaf if _is_floating_array(leaf) else None, module)
    rest = jax.tree.map(lambda leaf: None if _is_floating_array(leaf) else leaf, module)
    return params, lambda params: jax.tree.map(_either, params, rest, is_leaf=_is_none)


def _split_held(module: Any) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
    if not _is_nnx(module):
        return module, _same
    nnx = sys.modules["flax.nnx"]
    definition, state = nnx.split(module)
    return state, lambda state: nnx.merge(definition, _copied(state))


def _copied(state: PyTree) -> PyTree:
    """The same arrays in new variables, which the trace they are made in may change."""
    return jax.tree.map(_same, state)


def _either(param: PyTree, rest: PyTree) -> PyTree:
    return rest if param is None else param


def _is_none(x: object) -> bool:
    return x is None


def _is_floating_array(leaf: object) -> bool:
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return False
    return not _jaxpr.is_key(leaf) and _jaxpr.is_inexact(leaf.dtype)


def held_leaves(name: str, tree: PyTree) -> list[str]:
    """The names of the leaves of modules in an argument that are not differentiated."""
    nodes, _ = jax.tree.flatten(tree, is_leaf=is_module)
    if not any(map(is_module, nodes)):
        return []
    moved = {id(leaf) for _, leaf in named_leaves(name, _Split.of(tree, differentiated=True).moved)}
    return [each for each, leaf in named_leaves(name, tree) if id(leaf) not in moved]


# --- what is a module ---------------------------------------------------------------------------------------


def is_module(x: object) -> bool:
    """Whether `x` is an Equinox or NNX module."""
    equinox = sys.modules.get("equinox")
    return _is_nnx(x) or (equinox is not None and isinstance(x, equinox.Module) and not inspect.isclass(x))


def _is_nnx(x: object) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(x, nnx.Module)


def _is_state(x: object) -> bool:
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(x, nnx.State)


def _has_module(tree: PyTree) -> bool:
    return any(map(is_module, jax.tree.leaves(tree, is_leaf=is_module)))


def _has_nnx(tree: PyTree) -> bool:
    return any(map(_is_nnx, jax.tree.leaves(tree, is_leaf=_is_nnx)))


# --- modules as pytrees -------------------------------------------------------------------------------------


@jax.tree_util.register_pytree_node_class
class PackedModule:
    """An NNX module as a pytree that keeps what its variables share: its leaves are its arrays."""

    def __init__(self, definition: Any, state: PyTree) -> None:
        self.definition, self.state = definition, state

    def tree_flatten(self) -> tuple[tuple[PyTree], Any]:
        return (self.state,), self.definition

    @classmethod
    def tree_unflatten(cls, definition: Any, children: tuple[PyTree]) -> "PackedModule":
        return cls(definition, *children)


def pack(tree: PyTree) -> PyTree:
    """Replace NNX modules by pytrees of their arrays."""

    def packed(x: Any) -> PyTree:
        return PackedModule(*sys.modules["flax.nnx"].split(x)) if _is_nnx(x) else x

    return jax.tree.map(packed, tree, is_leaf=_is_nnx)


def unpack(tree: PyTree) -> PyTree:
    """Undo `pack`: the modules are new ones."""

    def unpacked(x: Any) -> PyTree:
        return sys.modules["flax.nnx"].merge(x.definition, x.state) if isinstance(x, PackedModule) else x

    return jax.tree.map(unpacked, tree, is_leaf=lambda x: isinstance(x, PackedModule))


# --- names --------------------------------------------------------------------------------------------------


def named_leaves(name: str, tree: PyTree) -> Iterator[tuple[str, Any]]:
    """The leaves of an argument with their paths as in code: `params['w']`, `model.blocks[0].kernel`."""
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_of_nnx):
        prefix = name + jax.tree_util.keystr(path)
        if not _is_of_nnx(node):
            yield prefix, node
            continue
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node):
            yield prefix + _attributes(inner), leaf


def _is_of_nnx(x: object) -> bool:
    return _is_nnx(x) or _is_state(x)


def _attributes(path: tuple[Any, ...]) -> str:
    """A path in an NNX module, or in its state, as attributes of the module."""
    keys = [getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path]
    if keys and keys[-1] == "value":
        keys.pop()
    return "".join(f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]" for key in keys)
