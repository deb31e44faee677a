"""A node at a point: the local gradient of the textbooks."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .graph import Node, Value
from .types import Array, InCts, OutCts

#: A node as a function: all operands in, all outputs out.
NodeFn = Callable[..., Sequence[Any]]


def evaluate(node: Node, operands: Sequence[Any]) -> list[Any]:
    """Run one node as it stands in the program. Inputs and closed-over arrays hand on their value."""
    return list(operands if node.eqn is None else node_function(node)(*operands))


def node_function(node: Node) -> NodeFn:
    return _jaxpr.as_function(node.eqn)


@dataclass(frozen=True)
class Local:
    """A node at a point: its operands, its outputs, and the map from out_cts to in_cts there.

    This is what rules and recorders are given.

    Attributes:
        node: the node of the graph.
        operands: the numbers it reads, one for each position.
        outputs: the numbers it makes.
    """

    node: Node
    operands: tuple[Any, ...]
    outputs: tuple[Any, ...]
    _pullback: Callable[[OutCts], InCts] | None = None

    def vjp(self, out_cts: OutCts) -> InCts:
        """Apply the chain rule to the node: `in_ct[i] = sum_o out_ct[o] * d out[o] / d in[i]`.

        Args:
            out_cts: one for each output, `None` for zero. Units: of the loss per unit of the output.

        Returns:
            One for each operand; `None` where no derivative goes there.
        """
        if all(ct is None for ct in out_cts):
            return (None,) * len(self.operands)
        pullback = self._pullback or functools.partial(_pull_node, self.node, self.operands)
        return tuple(pullback(tuple(out_cts)))


def moved_operands(node: Node) -> tuple[int, ...]:
    """The positions a cotangent is sent back to: those of active operands."""
    return tuple(i for i, value in enumerate(node.operands) if value.active)


def _pull_node(node: Node, operands: tuple[Any, ...], out_cts: OutCts) -> InCts:
    if node.eqn is None:
        return out_cts
    moved = moved_operands(node)
    _, pull = jax.vjp(partial_function(node_function(node), operands, moved), *take(operands, moved))
    return scatter(pull(fill_zeros(out_cts, node)), moved, len(operands))


def take(items: Sequence[Any], positions: Sequence[int]) -> list[Any]:
    return [items[i] for i in positions]


def scatter(items: Sequence[Any], positions: Sequence[int], count: int) -> tuple[Any, ...]:
    """The inverse of `take`: None in all other positions."""
    at = dict(zip(positions, items, strict=True))
    return tuple(at.get(i) for i in range(count))


def partial_function(fun: NodeFn, operands: Sequence[Any], moved: Sequence[int]) -> NodeFn:
    """`fun` as a function of some of its operands, the others held where they are."""

    def of(*points: Any) -> list[Any]:
        full = list(operands)
        for position, point in zip(moved, points, strict=True):
            full[position] = point
        return list(fun(*full))

    return of


def fill_zeros(out_cts: OutCts, node: Node) -> list[Any]:
    """Cotangents for all outputs of a node, as `jax.vjp` wants them: zeros where there is none."""
    return [
        ct if ct is not None else zero_cotangent(value.aval)
        for ct, value in zip(out_cts, node.outputs, strict=True)
    ]


def zero_cotangent(aval: Any) -> Any:
    dtype = _jaxpr.dtype_of(aval)
    if _jaxpr.is_inexact(dtype):
        return jnp.asarray(_jaxpr.zeros(_jaxpr.struct_of(aval)))
    return np.zeros(_jaxpr.shape_of(aval), jax.dtypes.float0)


# --- the local gradient, for people ---------------------------------------------------------------

#: `LocalGradient.jacobian` refuses to build more numbers than this.
MAX_ELEMENTS = 10_000_000


@dataclass(frozen=True)
class LocalGradient:
    """The derivative of one value with respect to another it was made from, at the recorded point.

    `J[o, i] = d of[o] / d wrt[i]`: a linear map, in units of `of` per unit of `wrt`. It is built by JAX
    (`jax.vjp`, `jax.jvp`) of the operation at the recorded operands; nothing is stored but these.

    Inside a scan the map is one for each step: cotangents, tangents and results carry the step axis first.

    Attributes:
        of, wrt: names of the two values.
        shape: `of.shape + wrt.shape`, with the step axes first.
        path: the nodes between them, in program order.
        ends: the two values as they stand in the graph, `of` first.
    """

    of: str
    wrt: str
    out_shape: tuple[int, ...]
    out_dtype: Any
    in_shape: tuple[int, ...]
    steps: tuple[int, ...]
    _fun: Callable[..., Any]
    _point: Any
    _held: Any
    _held_axes: Any
    path: tuple[Node, ...]
    ends: tuple[Value, Value]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.steps, *self.out_shape, *self.in_shape)

    def vjp(self, ct: Any) -> Array:
        """Pull a cotangent of `of` back to `wrt`: `in_ct[i] = sum_o ct[o] * J[o, i]`.

        Args:
            ct: shaped like `of`.

        Returns:
            The share of the cotangent of `wrt` that comes through here, shaped like `wrt`.
        """
        ct = self._shaped(ct, self.out_shape, self.out_dtype, "cotangent", self.of)

        def pull(point: Any, held: Any, ct: Any) -> Any:
            return jax.vjp(lambda x: self._fun(x, held), point)[1](ct)[0]

        return self._mapped(pull, 1)(self._point, self._held, ct)

    def jvp(self, t: Any) -> Array:
        """Push a tangent of `wrt` forward to `of`: `out[o] = sum_i J[o, i] * t[i]`."""
        t = self._shaped(t, self.in_shape, self._point.dtype, "tangent", self.wrt)

        def push(point: Any, held: Any, t: Any) -> Any:
            return jax.jvp(lambda x: self._fun(x, held), (point,), (t,))[1]

        return self._mapped(push, 1)(self._point, self._held, t)

    def jacobian(self, max_elements: int = MAX_ELEMENTS) -> Array:
        """Build the dense Jacobian, of shape `of.shape + wrt.shape` (a plain number for scalars).

        Raises:
            ValueError: it has more than `max_elements` numbers.
        """
        size = math.prod(self.shape)
        if size > max_elements:
            raise ValueError(
                f"the Jacobian d {self.of}/d {self.wrt} has shape {self.shape}: {size:,} numbers, more than "
                f"max_elements={max_elements:,}. Ask for less: `.diagonal()` where the operation is "
                "elementwise, `.vjp(ct)` or `.jvp(t)` for a product with it, or pass a larger max_elements."
            )

        def dense(point: Any, held: Any) -> Any:
            return jax.jacrev(lambda x: self._fun(x, held), holomorphic=self._complex())(point)

        def dense_forward(point: Any, held: Any) -> Any:
            return jax.jacfwd(lambda x: self._fun(x, held), holomorphic=self._complex())(point)

        fewer_rows = math.prod(self.out_shape) <= math.prod(self.in_shape)
        return self._mapped(dense if fewer_rows else dense_forward, 0)(self._point, self._held)

    def diagonal(self) -> Array:
        """The diagonal of the Jacobian, shaped like `wrt`, where the operation is elementwise.

        Whether it is, is found out from JAX's own rule: an elementwise map sends every direction `v` to
        `diagonal * v`. Two random directions are tried, on numbers of the operation's own types.

        Raises:
            ValueError: the operation is not elementwise.
        """
        if self.out_shape != self.in_shape or not self._is_elementwise():
            raise ValueError(
                f"d {self.of}/d {self.wrt} is no diagonal: {self.of} {list(self.out_shape)} is not made from "
                f"{self.wrt} {list(self.in_shape)} element by element. Use `.jacobian()`, or `.vjp(ct)`."
            )
        return self.vjp(jnp.ones((*self.steps, *self.out_shape), self.out_dtype))

    def _is_elementwise(self) -> bool:
        if math.prod(self.out_shape) == 1:
            return True
        rng = np.random.default_rng(0)
        with jax.ensure_compile_time_eval():
            point = _stand_in(self._point, len(self.steps), rng)
            held = [_stand_in(x, axes, rng) for x, axes in zip(self._held, self._held_axes, strict=True)]
            _, pull = jax.vjp(lambda x: self._fun(x, held), point)
            diagonal = _wide(pull(jnp.ones(self.out_shape, self.out_dtype))[0])
            for _ in range(2):
                v = jnp.asarray(rng.uniform(-1, 1, self.out_shape), self.out_dtype)
                if not np.allclose(_wide(pull(v)[0]), diagonal * _wide(v), rtol=1e-2, atol=1e-6):
                    return False
        return True

    def _complex(self) -> bool:
        return bool(jnp.issubdtype(self._point.dtype, jnp.complexfloating))

    def _mapped(self, fun: Callable[..., Any], more: int) -> Callable[..., Any]:
        """Map a function of (point, held, ...) over the step axes."""
        depth = len(self.steps)
        for level in reversed(range(depth)):
            held_axes = [0 if axes > level else None for axes in self._held_axes]
            fun = jax.vmap(fun, in_axes=(0, held_axes, *(0,) * more))
        return fun

    def _shaped(self, x: Any, shape: tuple[int, ...], dtype: Any, kind: str, name: str) -> Any:
        full = (*self.steps, *shape)
        x = jnp.asarray(x, dtype)
        if x.shape != full:
            raise ValueError(
                f"the {kind} of {name} has shape {x.shape}, expected {full}: that of {name}"
                f"{', the step axes first' if self.steps else ''}."
            )
        return x

    def __float__(self) -> float:
        if self.shape != ():
            raise TypeError(
                f"d {self.of}/d {self.wrt} has shape {self.shape}: only a scalar by a scalar is a plain "
                "number. Use `.jacobian()`, `.diagonal()` or `.vjp(ct)`."
            )
        return float(self.jacobian())

    def __repr__(self) -> str:
        if self.shape == () and not _jaxpr.is_tracer(self._point):
            return f"d {self.of}/d {self.wrt} = {float(self):.6g}"
        return f"LocalGradient(d {self.of}/d {self.wrt}, shape {self.shape})"


def _stand_in(x: Any, axes: int, rng: np.random.Generator) -> Any:
    """Numbers of the type of `x`, of one step: random where they are floats, else its own where it has any."""
    shape = np.shape(x)[axes:]
    if _jaxpr.is_inexact(x.dtype):
        return jnp.asarray(rng.uniform(0.25, 0.75, shape), x.dtype)
    if not _jaxpr.is_tracer(x):
        return x[(0,) * axes] if axes else x
    if _jaxpr.is_key(x):
        return jax.random.split(jax.random.key(0), shape)
    return jnp.zeros(shape, x.dtype)


def _wide(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(x).astype(np.complex128)
