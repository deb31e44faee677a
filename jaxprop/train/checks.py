"""Checks of what a user passes, made before anything runs so that a mistake is reported where it was made."""

import dataclasses
import difflib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._models import held_leaves
from .._tracing import OF_A_MODEL
from ..core.types import Array, PyTree

#: Leaves of a tree with their paths, as `jax.tree_util.tree_leaves_with_path` returns them.
Leaves: TypeAlias = list[tuple[jax.tree_util.KeyPath, Array]]

_PACKAGE = __name__.partition(".")[0] + "."

P = ParamSpec("P")
T = TypeVar("T")


def explains_keywords(**groups: type) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a function so that an unknown keyword is explained.

    Args:
        groups: By parameter, the dataclass of settings that it takes.
    """
    fields = {name: [each.name for each in dataclasses.fields(group)] for name, group in groups.items()}

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            for keyword in kwargs:
                if keyword not in parameters:
                    raise TypeError(_unknown_keyword(function.__name__, keyword, parameters, fields, groups))
            return function(*args, **kwargs)

        return checked

    return decorate


def _unknown_keyword(
    function: str, keyword: str, parameters: list[str], fields: dict[str, list[str]], groups: dict[str, type]
) -> str:
    for name, names in fields.items():
        if keyword in names:
            group = groups[name].__name__
            return (
                f"`{function}` has no parameter `{keyword}`: it is a field of jaxprop.train.{group}, so pass "
                f"{name}={group}(..., {keyword}=...)."
            )
    close = difflib.get_close_matches(keyword, parameters, n=1)
    meant = f" Did you mean `{close[0]}`?" if close else ""
    more = "; ".join(f"{name}={groups[name].__name__}({', '.join(names)})" for name, names in fields.items())
    return (
        f"`{function}` has no parameter `{keyword}`.{meant} Available: {', '.join(parameters)}. Further "
        f"settings are fields in jaxprop.train: {more}."
    )


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn with the position of the user's call: the first frame outside of this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def check_optimizer(optimizer: object) -> optax.GradientTransformation:
    """Return an optimizer as optax's pair of functions.

    Raises:
        TypeError: It does not have both functions.
    """
    if isinstance(optimizer, optax.MultiSteps):
        return optimizer.gradient_transformation()
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    init, update = getattr(optimizer, "init", None), getattr(optimizer, "update", None)
    if callable(init) and callable(update) and not inspect.isclass(optimizer):
        return optax.GradientTransformationExtraArgs(cast(Any, init), cast(Any, update))
    if inspect.isfunction(optimizer) and (optimizer.__module__ or "").startswith("optax"):
        name = optimizer.__name__
        raise TypeError(
            f"`optimizer` is the function optax.{name}, which makes an optimizer. Call it, as in "
            f"optax.{name}(1e-3)."
        )
    got = f"{type(optimizer).__name__} {optimizer!r}" if isinstance(optimizer, str | int | float) else None
    raise TypeError(
        "`optimizer` must be an optax optimizer, a pair of functions `init` and `update` such as "
        f"optax.adam(1e-3); got {got or f'an object of type {type(optimizer).__name__}'}."
    )


def check_float_leaves(params: PyTree) -> None:
    """Check that every leaf of the params can be differentiated.

    Raises:
        TypeError: One cannot.
        ValueError: There are none.
    """
    held = held_leaves("params", params)
    if held:
        raise TypeError(
            f"`params` holds a module with leaves that are not trained, such as `{held[0]}`. Keep them out of "
            f"`params`: {OF_A_MODEL}, and pass state that training changes as `model_state`."
        )
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("`params` holds no arrays: there is nothing to train.")
    for path, leaf in leaves:
        name = "params" + jax.tree_util.keystr(path)
        if not is_jax_type(leaf):
            raise TypeError(
                f"`{name}` is a {type(leaf).__name__}, which is not an array and cannot be trained. Keep it "
                f"out of `params` and close over it; {OF_A_MODEL}."
            )
        dtype = jax.typeof(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            spelt = "float0" if dtype == jax.dtypes.float0 else dtype
            raise TypeError(
                f"`{name}` has dtype {spelt}, but only floating point can be trained. Convert it to a float, "
                "or keep it out of `params` (close over it, or put it into `model_state`)."
            )


def check_arrays_only(tree: PyTree, word: str) -> None:
    """Check that every leaf of an argument is an array or a number.

    Raises:
        TypeError: One is not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_jax_type(leaf):
            raise TypeError(
                f"`{word}{jax.tree_util.keystr(path)}` is a {type(leaf).__name__}, but must be an array of "
                f"numbers. Keep it out of `{word}` and close over it; {OF_A_MODEL}."
            )


def check_outputs(tree: PyTree, function: str, word: str) -> None:
    """Check that every leaf of an output of a user's function is an array or a number.

    Raises:
        TypeError: One is not.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not is_jax_type(leaf):
            raise TypeError(
                f"`{function}` returned `{word}{jax.tree_util.keystr(path)}` of type {_kind_of(leaf)}, but "
                "only arrays and numbers can leave a compiled function. Leave it out."
            )


def is_jax_type(x: object) -> bool:
    """Return whether JAX can compute with `x`: an array or a number."""
    try:
        jax.typeof(x)
    except (TypeError, ValueError):
        return False
    return True


def _kind_of(x: object) -> str:
    return f"{type(x).__name__} (dtype {x.dtype})" if isinstance(x, np.ndarray) else type(x).__name__


def check_pair(result: PyTree, name: str) -> tuple[PyTree, PyTree]:
    """Take (model_state, aux) apart.

    Raises:
        TypeError: It is not a pair.
    """
    if isinstance(result, tuple | list) and len(result) == 2:
        return result[0], result[1]
    raise TypeError(
        f"`{name}` takes `model_state` and has_aux=True, so it must return (value, (new model_state, aux)); "
        f"its second result is a {type(result).__name__}."
    )


def check_same_types(old: PyTree, new: PyTree) -> None:
    """Check that a step returns a state like the one it was given: the same structure, shapes and dtypes.

    Raises:
        TypeError: It does not.
    """
    before, after = (jax.tree_util.tree_leaves_with_path(tree) for tree in (old, new))
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise TypeError(
            f"one step changes the structure of the state: {_first_difference(before, after)}. The model_state "
            "that the loss returns must have the structure of the one it was given, and so must the "
            "optimizer's state."
        )
    for (path, was), (_, now) in zip(before, after, strict=True):
        if (jnp.shape(was), was.dtype) != (jnp.shape(now), now.dtype):
            raise TypeError(
                f"one step turns `state{jax.tree_util.keystr(path)}` from {_type(was)} into {_type(now)}, so "
                "the next step would be another program. Make the types agree where it is computed; often the "
                "data have a wider dtype than the params."
            )


def _first_difference(before: Leaves, after: Leaves) -> str:
    was, now = ({jax.tree_util.keystr(path) for path, _ in side} for side in (before, after))
    gone, come = sorted(was - now), sorted(now - was)
    parts = [f"`state{gone[0]}` is gone"] if gone else []
    parts += [f"`state{come[0]}` is new"] if come else []
    return " and ".join(parts) or "its containers have other types"


def _type(x: Array) -> str:
    return f"{x.dtype}{list(jnp.shape(x))}"


def check_dtypes(params: PyTree, data: PyTree) -> None:
    """Check that no array of the data is wider than the params: everything would be computed in its dtype.

    Raises:
        TypeError: One is.
    """
    dtypes = [x.dtype for x in jax.tree.leaves(params)]
    widest = max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)
    for path, x in jax.tree_util.tree_leaves_with_path(data):
        dtype = getattr(x, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            continue
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if jnp.finfo(dtype).bits > jnp.finfo(widest).bits:
            raise TypeError(
                f"`data{jax.tree_util.keystr(path)}` is {dtype}, but the params are {widest}: JAX would "
                f"compute the whole loss in {dtype}. Convert the data once, `.astype({widest})`, or the params."
            )
