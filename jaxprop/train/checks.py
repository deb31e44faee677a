"""What is checked before anything is run, so that a mistake is named where it is made."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import optax

from .._tracing import OF_A_MODEL
from ..core.types import PyTree

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


def check_optimizer(optimizer: Any) -> optax.GradientTransformationExtraArgs:
    """Take what has optax's two functions.

    Raises:
        TypeError: it has not.
    """
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    made = callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))
    if made and not inspect.isclass(optimizer):
        return optax.with_extra_args_support(optimizer)
    if inspect.isfunction(optimizer) and (optimizer.__module__ or "").startswith("optax"):
        name = optimizer.__name__
        raise TypeError(
            f"`optimizer` is the function optax.{name}, which makes an optimizer: call it, as in "
            f"optax.{name}(1e-3)."
        )
    raise TypeError(
        f"`optimizer` must be an optax optimizer, a pair of functions `init` and `update` such as "
        f"optax.adam(1e-3); got {_spell(optimizer)}."
    )


def _spell(x: Any) -> str:
    return f"{type(x).__name__} {x!r}" if isinstance(x, str | int | float) else f"a {type(x).__name__}"


def check_float_leaves(params: PyTree) -> None:
    """Check that every leaf can be differentiated.

    Raises:
        TypeError: one cannot.
        ValueError: there are none.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("`params` holds no arrays: there is nothing to train.")
    for path, leaf in leaves:
        name = "params" + jax.tree_util.keystr(path)
        try:
            dtype = jnp.result_type(leaf)
        except (TypeError, ValueError):
            raise TypeError(
                f"`{name}` is a {type(leaf).__name__}, which is no array and cannot be trained. Keep it out of "
                f"`params` and close over it; {OF_A_MODEL}."
            ) from None
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TypeError(
                f"`{name}` is {dtype}: only floating point can be trained. Convert it to a float, or keep it "
                "out of `params` (close over it, or put it into `model_state`)."
            )


def check_pair(aux: Any, name: str) -> tuple[Any, Any]:
    """Take (model_state, aux) apart.

    Raises:
        TypeError: it is no pair.
    """
    if isinstance(aux, tuple | list) and len(aux) == 2:
        return aux[0], aux[1]
    raise TypeError(
        f"`{name}` takes `model_state` and has_aux=True: it must return (value, (new model_state, aux)), but "
        f"what stands beside the value is a {type(aux).__name__}."
    )


def check_same_types(old: PyTree, new: PyTree) -> None:
    """Check that a step gives back what it was given: the same structure, shapes and dtypes.

    Raises:
        TypeError: it does not.
    """
    before, after = (jax.tree_util.tree_leaves_with_path(tree) for tree in (old, new))
    trees = jax.tree.structure(old), jax.tree.structure(new)
    if trees[0] != trees[1]:
        raise TypeError(
            "one step changes the structure of the state: "
            f"{_first_difference(before, after)}. What the loss returns as model_state must have the "
            "structure it was given, and so must the optimizer's state."
        )
    for (path, was), (_, now) in zip(before, after, strict=True):
        if (jnp.shape(was), was.dtype) != (jnp.shape(now), now.dtype):
            raise TypeError(
                f"one step turns `state{jax.tree_util.keystr(path)}` from {_type(was)} into {_type(now)}, so "
                "the next would be another program. Make the types agree where it is computed; often data are "
                "of a wider dtype than params."
            )


def _first_difference(before: list[Any], after: list[Any]) -> str:
    was, now = ({jax.tree_util.keystr(path) for path, _ in side} for side in (before, after))
    gone, come = sorted(was - now), sorted(now - was)
    parts = [f"`state{gone[0]}` is gone"] if gone else []
    parts += [f"`state{come[0]}` is new"] if come else []
    return " and ".join(parts) or "its containers are of other types"


def _type(x: Any) -> str:
    return f"{x.dtype}{list(jnp.shape(x))}"


def check_dtypes(params: PyTree, data: PyTree) -> None:
    """Check that data is of no wider type than params: all would be computed in it.

    Raises:
        TypeError: it is.
    """
    widths = [jnp.finfo(x.dtype).bits for x in jax.tree.leaves(params)]
    for path, x in jax.tree_util.tree_leaves_with_path(data):
        dtype = getattr(x, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
            continue
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if jnp.finfo(dtype).bits > max(widths):
            name = "data" + jax.tree_util.keystr(path)
            narrow = max((x.dtype for x in jax.tree.leaves(params)), key=lambda d: jnp.finfo(d).bits)
            raise TypeError(
                f"`{name}` is {dtype}, params are {narrow}: JAX would compute the whole loss in {dtype}. "
                f"Convert the data once, `.astype({narrow})`, or the params."
            )
