"""Values as they are written on the command line: numbers, lists, dicts, files, types."""

import ast
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.selectors import nearest
from .command import CommandError

_TYPE = re.compile(r"(f|bf|i|u|c)(4|8|16|32|64|128)\[([\d\s,]*)\]|bool\[([\d\s,]*)\]")
_KINDS = {"f": "float", "bf": "bfloat", "i": "int", "u": "uint", "c": "complex"}


def read_value(text: str, name: str, shapes: bool = False) -> Any:
    """Read a value: a number, a list (an array), a tuple or dict of values, a file, or (`shapes`) a type.

    Raises:
        CommandError: it is none of these; the message says which argument, and how it is written.
    """
    file, _, key = text.partition(".npz:")
    if key or text.endswith((".npz", ".npy")):
        return _read_file(f"{file}.npz" if key else text, key, name)
    if _TYPE.fullmatch(text):
        if shapes:
            return _read_type(text, name)
        raise CommandError(f"{name}={text} is a type; numbers are needed here. `jaxprop trace` takes types.")
    return _arrays(_literal(text, name), name)


def _literal(text: str, name: str) -> Any:
    special = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
    if text.lower() in special:
        return float(special[text.lower()])
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    hint = f" Text is written in quotes: {name}='\"{text}\"'." if re.fullmatch(r"[\w-]+", text) else ""
    raise CommandError(f"{name}={text} is no value: write a number, a list, a dict, a .npy or .npz file.{hint}")


def _arrays(x: Any, name: str) -> Any:
    """Lists as arrays, inside tuples and dicts too."""
    if isinstance(x, dict):
        return {key: _arrays(value, f"{name}[{key!r}]") for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(_arrays(value, f"{name}[{i}]") for i, value in enumerate(x))
    if not isinstance(x, list):
        return x
    try:
        array = np.array(x)
    except ValueError:
        raise CommandError(f"{name} is no array: its rows have different lengths.") from None
    if array.dtype.kind not in "biufc":
        raise CommandError(f"{name} is no array of numbers: it holds {_kind(array)}.")
    return jnp.asarray(array)


def _read_type(text: str, name: str) -> jax.ShapeDtypeStruct:
    kind, bits, dims, bool_dims = _TYPE.fullmatch(text).groups()  # type: ignore[union-attr]
    dtype = "bool" if kind is None else f"{_KINDS[kind]}{bits}"
    shape = tuple(int(dim) for dim in (dims if kind else bool_dims).split(",") if dim.strip())
    try:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    except TypeError:
        raise CommandError(f"{name}={text}: there is no type {dtype}.") from None


def _read_file(file: str, key: str, name: str) -> Any:
    if not Path(file).is_file():
        raise CommandError(f"{name}: there is no file {file}.")
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return jnp.asarray(found)
        arrays = {entry: jnp.asarray(found[entry]) for entry in found.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{name}: {file} cannot be read as NumPy arrays: {error}.") from None
    if not key:
        return arrays
    if key not in arrays:
        raise CommandError(f"{name}: there is no array {key!r} in {file}.{nearest(key, arrays)}")
    return arrays[key]


def _kind(array: np.ndarray) -> str:
    return "text" if array.dtype.kind in "US" else "something else"
