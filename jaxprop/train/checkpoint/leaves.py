"""The leaves of a state, as they go to disk: a flat table of arrays, with a name, a type and a sum for each.

A state is any pytree. On disk it is a table from the path of each leaf (`params['w1']`) to an array, so that
what comes back depends on no container class, and what differs can be named before an array is read.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._jaxpr import is_key
from ...core.types import PyTree

_SMALL = {"int2", "int4", "uint2", "uint4"}  # less than a byte each
_ODD = 0x9E3779B1  # any odd number does: the weight of each element is then odd, so invertible modulo 2**32


@dataclass(frozen=True)
class Leaf:
    """What is known of a leaf without its numbers.

    Attributes:
        path: where it is in the state, as JAX writes it: `opt_state[0].mu['w1']`.
        shape: of the leaf; of the key itself where it is a typed key.
        dtype: its name; `key<fry>` and the like for typed keys.
        total: its fingerprint, see `fingerprints`. Not compared by `differences`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    total: int = 0

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> "Leaf":
        return cls(str(row["path"]), tuple(row["shape"]), str(row["dtype"]), int(row["total"]))


def with_paths(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path; a leaf that is no array and no number is an error that names it."""
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path, leaf in found.items():
        if not isinstance(
            leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic | bool | int | float
        ):
            raise TypeError(
                f"A state to be saved holds arrays and numbers; {path or 'the state'} is a "
                f"{type(leaf).__name__}. Take it out of the state "
                "(with Equinox: eqx.partition(model, eqx.is_array))."
            )
    return found


def leaf_of(path: str, value: Any) -> Leaf:
    """Name, shape and dtype of one leaf."""
    if not hasattr(value, "dtype"):
        value = np.asarray(value)
    return Leaf(path, tuple(value.shape), str(value.dtype))


def data_of(value: Any) -> Any:
    """The array a leaf goes to disk as: the numbers of a typed key, a NumPy scalar for a plain number."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, value) if is_key(value) else value
    if is_key(value):
        return jax.random.key_data(value)
    return value if isinstance(value, jax.Array) else np.asarray(value)


def like(template: Any, data: Any) -> Any:
    """What came from disk, as the leaf `template` is: a key of its kind, a number of its type, an array."""
    if is_key(template):
        return jax.random.wrap_key_data(jnp.asarray(data), impl=_impl(template))
    if isinstance(template, bool | int | float):
        return type(template)(data)
    if isinstance(template, np.generic):
        return template.dtype.type(data)
    return data


def _impl(key: Any) -> Any:
    """Which generator a key is of; the key may be a shape only."""
    found: list[Any] = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)
    return found[0]


# --- fingerprints ---------------------------------------------------------------------------------------------


def fingerprints(values: Sequence[Any]) -> list[int]:
    """One number per array, which changes when a bit of the array does.

        total = sum_i bits[i] * (2 i + 1) * odd   modulo 2**32

    `bits` are the words of the array, `i` the place of an element. Integer sums do not depend on order, so the
    number is the same however the array lies on devices. It is taken where the array is: nothing is gathered.
    """
    totals = [0] * len(values)
    groups: dict[frozenset[Any], list[int]] = {}
    for i, value in enumerate(values):
        if value.size:
            devices = value.sharding.device_set if isinstance(value, jax.Array) else ()
            groups.setdefault(frozenset(devices), []).append(i)
    for places in groups.values():
        sums = jax.device_get(_totals([_host_words(values[i]) for i in places]))
        for i, total in zip(places, sums, strict=True):
            totals[i] = int(total)
    return totals


@jax.jit
def _totals(arrays: list[jax.Array]) -> list[jax.Array]:
    return [_total(_words(array)) for array in arrays]


def _total(words: jax.Array) -> jax.Array:
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    weight = (place * jnp.uint32(2) + jnp.uint32(1)) * jnp.uint32(_ODD)
    return jnp.sum(words * weight, dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as 32-bit words; a number of 64 bits becomes two."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
    if x.dtype == jnp.bool_ or x.dtype.name in _SMALL:
        return x.astype(jnp.int32).astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]).astype(jnp.uint32)


def _host_words(x: Any) -> Any:
    """A NumPy array as its words, since it may have a type JAX has not switched on; a JAX array as it is."""
    if isinstance(x, jax.Array) or x.dtype == np.bool_ or x.dtype.name in _SMALL or x.dtype.itemsize < 4:
        return x
    parts = x.dtype.itemsize // 4
    words = np.ascontiguousarray(x).reshape(*x.shape, 1).view(np.uint32)
    return words.reshape(x.shape if parts == 1 else (*x.shape, parts))


# --- comparison -----------------------------------------------------------------------------------------------


def differences(saved: Sequence[Leaf], wanted: Sequence[Leaf]) -> list[str]:
    """One line for each leaf that is not the same on both sides, by path, shape or dtype."""
    there, here = {leaf.path: leaf for leaf in saved}, {leaf.path: leaf for leaf in wanted}
    found = []
    for path in [*there, *(path for path in here if path not in there)]:
        name = path or "the state itself"
        if path not in here:
            found.append(f"{name}: {there[path]} in the checkpoint, not in the state")
        elif path not in there:
            found.append(f"{name}: not in the checkpoint, {here[path]} in the state")
        elif str(there[path]) != str(here[path]):
            found.append(f"{name}: {there[path]} in the checkpoint, {here[path]} in the state")
    return found


def changed(saved: Sequence[Leaf], totals: Sequence[int]) -> list[str]:
    """Paths of the leaves whose numbers are not those that were saved."""
    return [leaf.path for leaf, total in zip(saved, totals, strict=True) if leaf.total != total]
