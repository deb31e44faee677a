"""The local gradient between two values of one graph, at the recorded point."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import _jaxpr
from .._text import notebook_html
from ..core.graph import Node, Value
from ..core.local import evaluate
from ..core.structure import between, producers
from ..core.types import Array, Dtype, PyTree, Shape, Steps
from .kept import Kept

#: `LocalGradient.jacobian` refuses to build more numbers than this.
MAX_ELEMENTS = 10_000_000


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("point", "held"),
    meta_fields=(
        "of",
        "wrt",
        "out_shape",
        "out_dtype",
        "in_shape",
        "steps",
        "fun",
        "held_steps",
        "path",
        "ends",
    ),
)
@dataclass(frozen=True)
class LocalGradient:
    """The derivative of one value with respect to another it depends on, at the recorded point.

    `J[o, i] = d of[o] / d wrt[i]`: a linear map, in units of `of` per unit of `wrt`. It is computed by JAX
    (`jax.vjp`, `jax.jvp`) from the operation at the recorded operands; only these are stored.

    Inside a scan there is one map for each step: cotangents, tangents and results have the step axis first.

    Attributes:
        of, wrt: names of the two values.
        out_shape, out_dtype: shape and dtype of `of`.
        in_shape: shape of `wrt`.
        steps: the step axes: lengths of the scans around the two values.
        fun: `(wrt, others) -> of`, for one step.
        point: the recorded `wrt`.
        held: the other recorded values that `fun` reads.
        held_steps: how many step axes each of these has.
        path: the nodes between the two values, in program order.
        ends: the two values in the graph, `of` first.
    """

    of: str
    wrt: str
    out_shape: Shape
    out_dtype: Dtype
    in_shape: Shape
    steps: Steps
    fun: Callable[[Array, Sequence[Array]], Array]
    point: Array
    held: Sequence[Array]
    held_steps: tuple[int, ...]
    path: tuple[Node, ...]
    ends: tuple[Value, Value]

    @property
    def shape(self) -> Shape:
        """The shape of the Jacobian: step axes, `of.shape`, `wrt.shape`."""
        return (*self.steps, *self.out_shape, *self.in_shape)

    @property
    def is_traced(self) -> bool:
        """Whether its point is a tracer, inside `jit` for instance."""
        return _jaxpr.is_tracer(self.point)

    def vjp(self, ct: ArrayLike) -> Array:
        """Pull a cotangent of `of` back to `wrt`: `in_ct[i] = sum_o ct[o] * J[o, i]`.

        Args:
            ct: shaped like `of`.

        Returns:
            The contribution to the cotangent of `wrt`, shaped like `wrt`.
        """
        ct = self._shaped(ct, self.out_shape, self.out_dtype, "cotangent", self.of)
        return self._mapped(self._pull, 1)(self.point, self.held, ct)

    def jvp(self, t: ArrayLike) -> Array:
        """Push a tangent of `wrt` forward to `of`: `out[o] = sum_i J[o, i] * t[i]`."""
        t = self._shaped(t, self.in_shape, self.point.dtype, "tangent", self.wrt)

        def push(point: Array, held: Sequence[Array], t: Array) -> Array:
            return jax.jvp(lambda x: self.fun(x, held), (point,), (t,))[1]

        return self._mapped(push, 1)(self.point, self.held, t)

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
        fewer_rows = math.prod(self.out_shape) <= math.prod(self.in_shape)
        transform = jax.jacrev if fewer_rows else jax.jacfwd
        holomorphic = bool(jnp.issubdtype(self.point.dtype, jnp.complexfloating))

        def dense(point: Array, held: Sequence[Array]) -> Array:
            return transform(lambda x: self.fun(x, held), holomorphic=holomorphic)(point)

        return self._mapped(dense, 0)(self.point, self.held)

    def diagonal(self) -> Array:
        """Compute the diagonal of the Jacobian, shaped like `wrt`, where the operation is elementwise.

        Whether it is, is read from the program of JAX's own vjp: each element of the cotangent must reach the
        same element of the result and no other. That is decided without numbers, so it is the same inside
        `jit`.

        Raises:
            ValueError: the operation is not elementwise.
        """
        if self.out_shape != self.in_shape or not self._is_elementwise():
            raise ValueError(
                f"d {self.of}/d {self.wrt} is not a diagonal matrix: {self.of} {list(self.out_shape)} is "
                f"not an elementwise function of {self.wrt} {list(self.in_shape)}. Use `.jacobian()` or "
                "`.vjp(ct)`."
            )
        return self.vjp(jnp.ones((*self.steps, *self.out_shape), self.out_dtype))

    def _is_elementwise(self) -> bool:
        if math.prod(self.out_shape) == 1:
            return True
        structs = jax.tree.map(_of_one_step, [self.point, *self.held], [len(self.steps), *self.held_steps])
        ct = jax.ShapeDtypeStruct(self.out_shape, self.out_dtype)
        program = _jaxpr.trace(lambda point, held, ct: self._pull(point, held, ct), structs[0], structs[1:], ct)
        return _jaxpr.is_elementwise(program)

    def _pull(self, point: Array, held: Sequence[Array], ct: Array) -> Array:
        return jax.vjp(lambda x: self.fun(x, held), point)[1](ct)[0]

    def _mapped(self, fun: Callable[..., Array], more: int) -> Callable[..., Array]:
        """Map a function of (point, held, ...) over the step axes."""
        for level in reversed(range(len(self.steps))):
            held_axes = [0 if count > level else None for count in self.held_steps]
            fun = jax.vmap(fun, in_axes=(0, held_axes, *(0,) * more))
        return fun

    def _shaped(self, x: ArrayLike, shape: Shape, dtype: Dtype, kind: str, name: str) -> Array:
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
                f"d {self.of}/d {self.wrt} has shape {self.shape}: only the derivative of a scalar with "
                "respect to a scalar is a plain number. Use `.jacobian()`, `.diagonal()` or `.vjp(ct)`."
            )
        return float(self.jacobian())

    def _repr_html_(self) -> str:
        return notebook_html(self)

    def __repr__(self) -> str:
        if self.shape == () and not self.is_traced:
            return f"d {self.of}/d {self.wrt} = {float(self):.6g}"
        return f"LocalGradient(d {self.of}/d {self.wrt}, shape {self.shape})"


def _of_one_step(x: Array, steps: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x)[steps:], x.dtype)


def local_gradient(kept: Kept, target: Value, source: Value, direct: bool, hint: str) -> LocalGradient:
    """Compose the nodes between two values, at the values that were kept. See `Tape.local`.

    Raises:
        ValueError: they are not of one graph, `target` does not depend on `source`, or a value was not kept.
    """
    places, produced = kept.graph.places, producers(kept.graph)
    place = places[produced[target.id].index]
    if place.graph is not places[produced[source.id].index].graph:
        raise ValueError(
            f"{target.name!r} and {source.name!r} are in different bodies. A local gradient is between values "
            "of one body; use `jaxprop.derivative` across bodies."
        )
    path = between(place.graph, source, target)
    if direct:
        path = [node for node in path[-1:] if any(v.id == source.id for v in node.operands)]
    if not path:
        raise ValueError(
            f"{target.name!r} does not depend on {source.name!r}: there is no local gradient between them."
        )
    others = _read_by(path, source)
    point = kept.needed(source, path[-1], hint)
    held = [kept.needed(value, path[-1], hint) for value in others]
    _check_shape(source, point, kept.steps(source))
    if kept.steps(source) < len(place.steps):  # a constant of the loop
        point = jnp.broadcast_to(point, (*place.steps, *jnp.shape(point)))
    return LocalGradient(
        of=target.name,
        wrt=source.name,
        out_shape=target.shape,
        out_dtype=target.dtype,
        in_shape=source.shape,
        steps=place.steps,
        fun=_composed(path, target, source, others),
        point=jnp.asarray(point),
        held=held,
        held_steps=tuple(kept.steps(value) for value in others),
        path=tuple(path),
        ends=(target, source),
    )


def _read_by(path: Sequence[Node], source: Value) -> list[Value]:
    """The values that the nodes of a path read besides `source` and what they produce themselves."""
    produced = {value.id for node in path for value in node.outputs}
    read = {value.id: value for node in path for value in node.operands if value.literal is None}
    return [value for id_, value in read.items() if id_ not in produced and id_ != source.id]


def _composed(
    path: Sequence[Node], target: Value, source: Value, others: Sequence[Value]
) -> Callable[[Array, Sequence[Array]], Array]:
    """`target` as a function of `source` and of the other values that the path reads."""

    def fun(x: Array, held: Sequence[Array]) -> Array:
        env = {source.id: x} | {value.id: y for value, y in zip(others, held, strict=True)}
        for node in path:
            operands: list[PyTree] = [env.get(v.id, v.literal) for v in node.operands]
            env |= zip((value.id for value in node.outputs), evaluate(node, operands), strict=True)
        return env[target.id]

    return fun


def _check_shape(value: Value, x: Array, steps: int) -> None:
    if np.shape(x)[steps:] != value.shape or np.ndim(x) != steps + len(value.shape):
        raise ValueError(
            f"the value of {value.name!r} on this tape has shape {np.shape(x)}, but the graph has "
            f"{value.shape}: the tape went through `vmap`. Map over it: "
            "`jax.vmap(lambda tape: tape.local(...).vjp(...))(tape)`."
        )
