"""The leaves of a state on disk: a flat table of arrays, with a name, a type and a fingerprint for each.

A state is any pytree. On disk it is a table from the path of each leaf (`params['w1']`) to an array, so that
what is restored does not depend on container classes, and differences can be reported before an array is read.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from ..._jaxpr import is_key
from ...core.types import PyTree, Shape

#: An array of a state.
StateArray: TypeAlias = jax.Array | np.ndarray
#: A leaf of a state.
StateLeaf: TypeAlias = StateArray | jax.ShapeDtypeStruct | np.generic | bool | int | float

_SMALL = {"int2", "int4", "uint2", "uint4"}  # less than a byte each
_ODD = 0x9E3779B1  # any odd number works: the weight of each element is then odd, so invertible modulo 2**32


@dataclass(frozen=True)
class LeafRecord:
    """What is known of a leaf without its numbers.

    Attributes:
        path: Its place in the state, as JAX writes it: `opt_state[0].mu['w1']`.
        shape: Its shape; that of the key itself for a typed key.
        dtype: The name of its dtype; `key<fry>` and the like for typed keys.
        total: Its fingerprint, see `fingerprints`. Not compared by `differences`.
    """

    path: str
    shape: Shape
    dtype: str
    total: int = 0

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "LeafRecord":
        return cls(str(row["path"]), tuple(row["shape"]), str(row["dtype"]), int(row["total"]))


def with_paths(tree: PyTree) -> dict[str, StateLeaf]:
    """Return the leaves by their path.

    Raises:
        TypeError: A leaf is neither an array nor a number; the message names it.
    """
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path, leaf in found.items():
        if not isinstance(
            leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic | bool | int | float
        ):
            raise TypeError(
                f"only arrays and numbers can be saved, but {path or 'the state'} is a {type(leaf).__name__}. "
                "Remove it from the state (with Equinox: eqx.partition(model, eqx.is_array))."
            )
    return found


def leaf_record(path: str, value: StateLeaf, total: int = 0) -> LeafRecord:
    """Return the name, shape and dtype of a leaf, with its fingerprint."""
    array = np.asarray(value) if isinstance(value, bool | int | float) else value
    return LeafRecord(path, tuple(array.shape), str(array.dtype), total)


def data_of(value: StateLeaf) -> Any:
    """Return the array that is saved for a leaf: for a typed key its numbers, for a number a NumPy scalar."""
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, value) if is_key(value) else value
    if is_key(value):
        return jax.random.key_data(cast(jax.Array, value))
    return value if isinstance(value, jax.Array) else np.asarray(value)


def like(template: StateLeaf, data: StateArray) -> StateLeaf:
    """Convert an array from disk to a leaf like `template`: a key, a number of its type, or an array."""
    if is_key(template):
        return jax.random.wrap_key_data(jnp.asarray(data), impl=_impl(template))
    if isinstance(template, bool | int | float):
        return type(template)(data)
    if isinstance(template, np.generic):
        return template.dtype.type(data)
    return data


def _impl(key: StateLeaf) -> Hashable:
    """The random number generator of a key; the key may be a shape only."""
    found: list[Hashable] = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)
    return found[0]


# --- fingerprints ---------------------------------------------------------------------------------------------


def fingerprints(values: Sequence[StateArray]) -> list[int]:
    """Return one number per array, which changes if any bit of the array does.

        total = sum_i bits[i] * (2 i + 1) * odd   modulo 2**32

    `bits` are the words of the array, `i` the position of an element. Integer sums do not depend on order, so
    the number does not depend on the sharding. It is computed where the array is: nothing is gathered.
    """
    totals = [0] * len(values)
    groups: dict[frozenset[object], list[int]] = {}
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
    return [_weighted_sum(_words_of(array)) for array in arrays]


def _weighted_sum(words: jax.Array) -> jax.Array:
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    weight = (place * jnp.uint32(2) + jnp.uint32(1)) * jnp.uint32(_ODD)
    return jnp.sum(words * weight, dtype=jnp.uint32)


def _words_of(x: jax.Array) -> jax.Array:
    """The bits of an array as 32-bit words, two for an element of 64 bits."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([jnp.real(x), jnp.imag(x)], axis=-1)
    if x.dtype == jnp.bool_ or x.dtype.name in _SMALL:
        return x.astype(jnp.int32).astype(jnp.uint32)
    if x.dtype.itemsize >= 4:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]).astype(jnp.uint32)


def _host_words(x: StateArray) -> StateArray:
    """A NumPy array as its words, since its dtype may not be enabled in JAX; a JAX array unmodified."""
    if isinstance(x, jax.Array) or x.dtype == np.bool_ or x.dtype.name in _SMALL or x.dtype.itemsize < 4:
        return x
    parts = x.dtype.itemsize // 4
    words = np.ascontiguousarray(x).reshape(*x.shape, 1).view(np.uint32)
    return words.reshape(x.shape if parts == 1 else (*x.shape, parts))


# --- comparison -----------------------------------------------------------------------------------------------


def differences(saved: Sequence[LeafRecord], wanted: Sequence[LeafRecord]) -> list[str]:
    """Return one line for each leaf whose path, shape or dtype differs."""
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


def changed(saved: Sequence[LeafRecord], totals: Sequence[int]) -> list[str]:
    """Return the paths of the leaves whose numbers are not those that were saved."""
    return [leaf.path for leaf, total in zip(saved, totals, strict=True) if leaf.total != total]
