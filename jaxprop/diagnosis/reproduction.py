"""The first bad step of a training run: what went wrong, and the arguments needed to reproduce it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from ..core.types import Function, PyTree
from .diagnose import diagnose
from .report import Json, Report

_STRUCTURE = "structure"
_Arrays: TypeAlias = list[np.ndarray]


def explain_bad_step(
    loss: Function,
    *args: PyTree,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    save: str | Path | None = None,
    **kwargs: PyTree,
) -> Report:
    """Diagnose the training step that went wrong, and save what is needed to reproduce it.

    Call it with the state *before* the step. That state must not have been donated to the step: keep a copy of
    the last good one, or donate only to the update.

    Args:
        loss: the loss that the step differentiates.
        args, kwargs: what the step called it with: parameters before the step, the batch, ...
        argnums, has_aux: as in `diagnose`.
        save: a file for the arguments, such as `bad_step.npz`; see `load_reproduction`.

    Returns:
        The report of `diagnose`, with a note that names the file.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> from jaxprop.diagnosis import explain_bad_step
        >>> def loss(params, batch):
        ...     return jnp.mean(jnp.log(params["scale"] * batch))
        >>> report = explain_bad_step(loss, {"scale": jnp.float32(2.0)}, jnp.array([1.0, 0.0]))
        >>> report[0].cause, report[0].leaves
        ('log of 0', ("params['scale']",))
    """
    # Saved first: what cannot be diagnosed here can perhaps be diagnosed elsewhere.
    path = None if save is None else save_reproduction(save, *args, **kwargs)
    report = diagnose(loss, argnums, has_aux)(*args, **kwargs)
    if path is None:
        return report
    load = f"args, kwargs = jaxprop.diagnosis.load_reproduction({str(path)!r})"
    note = f"The arguments of this step are in {path}: `{load}`."
    return Report.of(report.title, report.findings, report.figures, (*report.notes, note))


def save_reproduction(path: str | Path, *args: PyTree, **kwargs: PyTree) -> Path:
    """Save the arguments of a call: arrays bit by bit, their structure as JSON. Nothing is pickled.

    Args:
        path: a file; `.npz` is appended if it is missing.
        args, kwargs: arrays and plain values in dicts, lists, tuples, or any other pytree.

    Returns:
        The file written.
    """
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    arrays: _Arrays = []
    structure = _describe((list(args), kwargs), arrays)
    text = np.frombuffer(json.dumps(structure).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{_STRUCTURE: text}, **{f"leaf{i}": x for i, x in enumerate(arrays)})  # type: ignore[arg-type]
    return path


def load_reproduction(
    path: str | Path, like: PyTree | None = None
) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    """Load the arguments of a call saved by `save_reproduction`.

    Args:
        path: the file.
        like: `(args, kwargs)` of the same structure, for pytrees other than dicts, lists and tuples (modules of
            Flax or Equinox, optimizer states): its leaves are replaced. Without it such a tree is returned as a
            dict from path to leaf.

    Returns:
        The positional and the keyword arguments: `loss(*args, **kwargs)` runs the bad step again.

    Raises:
        ValueError: the file was not written by `save_reproduction`, or `like` has another structure.

    Examples:
        >>> import tempfile, pathlib, jax.numpy as jnp
        >>> from jaxprop.diagnosis import load_reproduction, save_reproduction
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "bad_step"
        >>> path = save_reproduction(file, {"w": jnp.ones(2)}, training=True)
        >>> load_reproduction(path)
        (({'w': Array([1., 1.], dtype=float32)},), {'training': True})
    """
    with np.load(path, allow_pickle=False) as file:
        if _STRUCTURE not in file:
            raise ValueError(f"{path} was not written by `save_reproduction`: it has no structure.")
        structure = json.loads(file[_STRUCTURE].tobytes().decode())
        args, kwargs = _rebuild(structure, lambda i: file[f"leaf{i}"], like is None)
    if like is None:
        return tuple(args), kwargs
    leaves, wanted = jax.tree.leaves((args, kwargs)), jax.tree.structure(like)
    if wanted.num_leaves != len(leaves):
        raise ValueError(
            f"`like` has {wanted.num_leaves} leaves, but {path} holds {len(leaves)}: pass `(args, kwargs)` as "
            "the loss was called with them."
        )
    args, kwargs = jax.tree.unflatten(wanted, leaves)
    return tuple(args), kwargs


# --- the structure, as JSON ---------------------------------------------------------------------------


def _describe(x: PyTree, arrays: _Arrays) -> Json:
    """Describe a tree as JSON: arrays by their number in the file, plain values as themselves."""
    if x is None or isinstance(x, bool | int | float | str):
        return {"plain": x if not isinstance(x, float) else x.hex(), "float": isinstance(x, float)}
    if isinstance(x, Mapping) and all(isinstance(key, str) for key in x):
        return {"dict": {key: _describe(value, arrays) for key, value in x.items()}}
    if type(x) in (list, tuple):
        return {type(x).__name__: [_describe(item, arrays) for item in x]}
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return _describe_array(x, arrays)
    paths = jax.tree_util.tree_leaves_with_path(x)
    if len(paths) == 1 and paths[0][1] is x:
        return {"text": repr(x)}
    return {"tree": [[jax.tree_util.keystr(path), _describe(leaf, arrays)] for path, leaf in paths]}


def _describe_array(x: Any, arrays: _Arrays) -> Json:
    key = None
    if _jaxpr.is_key(x):
        key, x = str(jax.random.key_impl(x)), jax.random.key_data(x)
    array: np.ndarray = np.asarray(x)
    name = array.dtype.name
    if array.dtype.kind == "V":  # bfloat16 and the like, of which NumPy saves the bits
        array = array.view(f"u{array.dtype.itemsize}")
    arrays.append(array)
    return {"array": len(arrays) - 1, "dtype": name, "key": key}


def _rebuild(x: Any, read: Callable[[int], np.ndarray], named: bool) -> Any:
    """Invert `_describe`. Other trees become dicts by path if `named`, else lists of their leaves."""
    match x:
        case {"plain": value, "float": is_float}:
            return float.fromhex(value) if is_float else value
        case {"dict": items}:
            return {key: _rebuild(value, read, named) for key, value in items.items()}
        case {"list": items}:
            return [_rebuild(item, read, named) for item in items]
        case {"tuple": items}:
            return tuple(_rebuild(item, read, named) for item in items)
        case {"tree": items}:
            leaves = {path: _rebuild(leaf, read, named) for path, leaf in items}
            return leaves if named else list(leaves.values())
        case {"array": number, "dtype": name, "key": key}:
            array = jnp.asarray(read(number).view(jnp.dtype(name)))
            return array if key is None else jax.random.wrap_key_data(array, impl=key)
        case {"text": text}:
            return text
    raise ValueError(f"the file has an unknown structure: {x!r}.")
