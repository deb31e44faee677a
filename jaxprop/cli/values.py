"""Read values from the command line: numbers, lists, dicts, files, types."""

import ast
import json
import re
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .._text import suggestion
from ..core.types import Array, PyTree
from .command import CommandError

_TYPE = re.compile(r"(bool|(?P<kind>f|bf|i|u|c)(?P<bits>4|8|16|32|64|128))\[(?P<dims>[\d\s,]*)\]")
_KINDS = {"f": "float", "bf": "bfloat", "i": "int", "u": "uint", "c": "complex"}


def read_value(text: str, name: str, shapes: bool = False) -> PyTree:
    """Read a value: a number, a list (an array), a tuple or dict of values, a file, or (`shapes`) a type.

    Raises:
        CommandError: it is none of these; the message names the argument and says how to write it.
    """
    file, _, key = text.partition(".npz:")
    if key or text.endswith((".npz", ".npy")):
        return _read_file(f"{file}.npz" if key else text, key, name)
    if type_ := _TYPE.fullmatch(text):
        if shapes:
            return _read_type(type_, name)
        raise CommandError(
            f"{name}={text} is a type, but this command needs numbers. `jaxprop trace` accepts types."
        )
    return _lists_as_arrays(_python_literal(text, name), name)


def _python_literal(text: str, name: str) -> object:
    special = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
    if text.lower() in special:
        return special[text.lower()]
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    hint = f" Put text in quotes: {name}='\"{text}\"'." if re.fullmatch(r"[\w-]+", text) else ""
    raise CommandError(
        f"{name}={text} is not a value: write a number, a list, a dict, a .npy or .npz file.{hint}"
    )


def _lists_as_arrays(x: object, name: str) -> PyTree:
    """Convert lists to arrays, inside tuples and dicts too."""
    if isinstance(x, dict):
        return {key: _lists_as_arrays(value, f"{name}[{key!r}]") for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(_lists_as_arrays(value, f"{name}[{i}]") for i, value in enumerate(x))
    if not isinstance(x, list):
        return x
    try:
        array = np.array(x)
    except ValueError:
        raise CommandError(f"{name} is not an array: its rows have different lengths.") from None
    if array.dtype.kind not in "biufc":
        holds = "text" if array.dtype.kind in "US" else "something else"
        raise CommandError(f"{name} is not an array of numbers: it holds {holds}.")
    return jnp.asarray(array)


def _read_type(text: re.Match[str], name: str) -> jax.ShapeDtypeStruct:
    dtype = "bool" if text["kind"] is None else f"{_KINDS[text['kind']]}{text['bits']}"
    shape = tuple(int(dim) for dim in text["dims"].split(",") if dim.strip())
    try:
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    except TypeError:
        raise CommandError(f"{name}={text[0]}: there is no type {dtype}.") from None


def _read_file(file: str, key: str, name: str) -> Array | dict[str, Array]:
    """The array of a .npy file or under a key of a .npz file; without a key all arrays of the .npz file."""
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
        raise CommandError(f"{name}: there is no array {key!r} in {file}.{suggestion(key, arrays)}")
    return arrays[key]
