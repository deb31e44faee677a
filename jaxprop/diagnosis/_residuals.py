"""What the backward pass keeps of the forward pass, by node and in bytes."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from .. import _jaxpr
from .._build import Argument, build
from .._call import Traced, check_points, name_of, trace_call
from .._graph import Graph, Node, Value, align, spell_type
from .._source import Source
from .._wiring import makers
from ._report import Report, plain


@dataclass(frozen=True)
class Residual:
    """One array the backward pass keeps.

    Attributes:
        name: of the value; for an array of a loop, of the value in its body.
        kind: `value` (made on the way out and kept: this is what costs), `argument` (a leaf of the arguments,
            which is there anyway) or `constant` (an array the function closes over).
        shape, dtype: of the whole array, step axes included.
        bytes: its size.
        times: how many steps of loops around it are kept; 1 outside of loops.
        primitive: what makes it; `carry` for what enters each step of a loop.
        source: where in the user's code, None where unknown.
        code: the expression in the source.
        path: the loops and other bodies it is made in, outermost first.
        consumers: the operations of the backward pass that read it, each `expression at file:line`. Where there
            are none XLA drops it from a compiled gradient.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    times: int = 1
    primitive: str = ""
    source: Source | None = None
    code: str = ""
    path: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Shape and dtype as JAX writes them: `f32[8,16]`."""
        return spell_type(self.dtype, self.shape)

    def data(self) -> dict[str, Any]:
        """The residual as plain data, fit for JSON."""
        found = {key: plain(x) for key, x in vars(self).items() if key != "source"}
        return found | {"source": str(self.source) if self.source else None}


@dataclass(frozen=True)
class Ledger(Report):
    """What the backward pass keeps, largest first.

    Figures: `kept`, bytes made on the way out and kept; `arguments` and `constants`, bytes that are kept but
    there anyway; `temporary`, bytes of temporary memory of the compiled gradient, where it was asked for.

    Attributes:
        residuals: all of them, what costs first.

    Example:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     h = jnp.sin(x @ w)
        ...     return jnp.sum(h)
        >>> ledger = jp.residuals(loss, compiled=False)(jnp.ones((3, 2)), jnp.ones((4, 3)))
        >>> ledger.total, [(r.name, r.kind, r.type) for r in ledger.residuals]
        (32, [('cos for h', 'value', 'f32[4,2]'), ('x', 'argument', 'f32[4,3]')])
    """

    residuals: tuple[Residual, ...] = ()

    @property
    def kept(self) -> tuple[Residual, ...]:
        """The residuals that cost memory: made on the way out."""
        return tuple(residual for residual in self.residuals if residual.kind == "value")

    @property
    def total(self) -> int:
        """Bytes made on the way out and kept for the way back."""
        return sum(residual.bytes for residual in self.kept)

    def __sub__(self, other: "Ledger") -> "Difference":
        """What this ledger keeps that the other does not, and the other way round."""
        return Difference(self, other)

    def data(self) -> dict[str, Any]:
        return super().data() | {"residuals": [residual.data() for residual in self.residuals]}

    def __str__(self) -> str:
        head = f"{self.title}: {bytes_of(self.total)} kept in {len(self.kept)} arrays"
        rest = [residual for residual in self.residuals if residual.kind != "value"]
        parts = [head]
        if self.kept:
            parts.append(_table(self.kept))
        if rest:
            size = bytes_of(sum(residual.bytes for residual in rest))
            parts.append(f"Kept but there anyway, arguments and constants: {size}\n{_table(rest)}")
        if "temporary" in self.figures:
            parts.append(f"Temporary memory of the compiled gradient: {bytes_of(self.figures['temporary'])}")
        parts += self.notes
        return "\n\n".join(parts)

    __repr__ = __str__


@dataclass(frozen=True)
class Difference:
    """Two ledgers side by side.

    Attributes:
        a, b: the ledgers.
    """

    a: Ledger
    b: Ledger

    @property
    def bytes(self) -> int:
        """Bytes the first keeps more than the second."""
        return self.a.total - self.b.total

    @property
    def only_a(self) -> tuple[Residual, ...]:
        """What only the first keeps."""
        return _without(self.a.kept, self.b.kept)

    @property
    def only_b(self) -> tuple[Residual, ...]:
        """What only the second keeps."""
        return _without(self.b.kept, self.a.kept)

    def data(self) -> dict[str, Any]:
        """The difference as plain data, fit for JSON."""
        return {
            "bytes": self.bytes,
            "only_a": [residual.data() for residual in self.only_a],
            "only_b": [residual.data() for residual in self.only_b],
        }

    def __str__(self) -> str:
        a, b = bytes_of(self.a.total), bytes_of(self.b.total)
        word = "more" if self.bytes >= 0 else "less"
        parts = [f"{a} against {b}: {bytes_of(abs(self.bytes))} {word}"]
        for title, rows in (("Only the first keeps", self.only_a), ("Only the second keeps", self.only_b)):
            if rows:
                parts.append(f"{title}: {bytes_of(sum(r.bytes for r in rows))}\n{_table(rows)}")
        return "\n\n".join(parts)

    __repr__ = __str__


def residuals(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    compiled: bool = True,
) -> Callable[..., Ledger]:
    """List what the backward pass keeps of the forward pass: bytes, producer, consumers.

    They are the arrays JAX hands from one half of `jax.vjp` to the other. Each is followed to what
    makes it, into loops and checkpoints, and to those of the backward pass that read it. An array that is an
    argument or a constant is shown apart: it costs nothing more. Nothing is run.

    Args:
        fun, argnums, has_aux: as in `backprop`.
        compiled: whether to compile the gradient too, and say how much temporary memory XLA gives it. That is
            of the same size, not the same number: XLA fuses, recomputes cheap operations, and needs memory for
            the operations themselves.

    Returns:
        A function of the same arguments (arrays, or `jax.ShapeDtypeStruct` for those differentiated) that
        gives the `Ledger`.

    Raises:
        TypeError, ValueError: as `backprop`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     return jnp.sum(jnp.tanh(x @ w))
        >>> ledger = jp.residuals(loss, compiled=False)(jnp.ones((3, 2)), jnp.ones((4, 3)))
        >>> ledger.total
        32
    """
    name = name_of(fun)

    @functools.wraps(fun, updated=())
    def listed(*args: Any, **kwargs: Any) -> Ledger:
        check_points(args, argnums, fun, False, False, "residuals")
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
        found = _ledger(traced)
        figures = {
            "kept": _bytes(found, "value"),
            "arguments": _bytes(found, "argument"),
            "constants": _bytes(found, "constant"),
        }
        if compiled:
            figures |= _compiled_memory(traced)
        return Ledger(f"residuals {name}", (), figures, (), found)

    return listed


def assert_residuals(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    max_bytes: int,
) -> Callable[..., None]:
    """Assert that the backward pass keeps no more than so many bytes: `residuals`, for a test suite.

    Args:
        fun, argnums, has_aux: as in `backprop`.
        max_bytes: the most that may be made on the way out and kept; arguments and constants do not count.

    Returns:
        A function of the same arguments that returns None.

    Raises:
        AssertionError: it keeps more; the message names the largest.

    Example:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> jp.assert_residuals(lambda w: jnp.sum(jnp.sin(w)), max_bytes=40)(jnp.ones(10))
    """
    listed = residuals(fun, argnums, has_aux, compiled=False)

    @functools.wraps(fun, updated=())
    def asserted(*args: Any, **kwargs: Any) -> None:
        ledger = listed(*args, **kwargs)
        if ledger.total <= max_bytes:
            return
        largest = ledger.kept[0]
        place = f" at {largest.source}" if largest.source else ""
        raise AssertionError(
            f"the backward pass of `{name_of(fun)}` keeps {ledger.total:,} bytes, more than "
            f"max_bytes={max_bytes:,}. The largest is `{largest.name}`, {largest.type}{place}: "
            f"{largest.bytes:,} bytes. Put `jax.checkpoint` around what makes it, or choose another policy."
            f"\n\n{ledger}"
        )

    return asserted


# --- how it is done ------------------------------------------------------------------------------------


def _ledger(traced: Traced) -> tuple[Residual, ...]:
    """Trace both halves of the derivative, and follow what goes from one to the other."""
    forward, backward, count = _halves(traced)
    constants = tuple(traced.describe["constants"])
    described = {**traced.describe, "constants": _constants_of(traced, forward, constants), "scalars": {}}
    ahead = build(forward, **described)
    named = _original_names(traced.graph, ahead)
    arguments = [Argument(f"residual[{i}]", False) for i in range(len(backward.jaxpr.invars))]
    behind = build(backward, arguments, home=traced.describe["home"])
    kept = ahead.outputs[count:]
    seen: dict[int, list[int]] = {}
    for position, value in enumerate(kept):
        if value.literal is None:
            seen.setdefault(value.id, []).append(position)
    found = [
        _residual(ahead, named, kept[positions[0]], _consumers(behind, [behind.inputs[i] for i in positions]))
        for positions in seen.values()
    ]
    found = [residual for residual in found if residual is not None]
    return tuple(sorted(found, key=lambda residual: (_KINDS.index(residual.kind), -residual.bytes)))


_KINDS = ("value", "argument", "constant")


def _halves(traced: Traced) -> tuple[_jaxpr.Program, _jaxpr.Program, int]:
    """The forward half, whose last results are the residuals; the backward half, which takes them first."""
    body = _jaxpr.program_function(traced.program)
    kept = [
        i
        for i, var in enumerate(traced.program.jaxpr.outvars[: traced.outputs.count])
        if _jaxpr.is_inexact(_jaxpr.dtype_of(var.aval))
    ]
    seen: list[Any] = []

    def forward(*points: Any) -> Any:
        def of(*points: Any) -> Any:
            outs = body(*points)
            return [outs[i] for i in kept], outs

        _, pull, outs = jax.vjp(of, *points, has_aux=True)
        leaves, tree = jax.tree.flatten(pull)
        seen[:] = [tree, [_jaxpr.struct_of(leaf) for leaf in leaves]]
        return outs, leaves

    ahead = _jaxpr.trace(forward, *traced.points)
    tree, structs = seen

    def backward(leaves: list[Any], cts: list[Any]) -> Any:
        return jax.tree.unflatten(tree, leaves)(cts)

    cts = [_jaxpr.struct_of(traced.program.jaxpr.outvars[i]) for i in kept]
    behind = _jaxpr.trace(backward, structs, cts)
    return ahead, behind, len(traced.program.jaxpr.outvars)


def _constants_of(traced: Traced, forward: _jaxpr.Program, names: Sequence[str | None]) -> list[str | None]:
    """Names of the constants of the forward half: those of the function, known by identity."""
    known = {id(const): name for const, name in zip(traced.program.consts, names, strict=False)}
    return [known.get(id(const)) for const in forward.consts]


def _original_names(original: Graph, ahead: Graph) -> Mapping[int, str]:
    """The name of each node of the forward half: its own in the program, or what it was derived for.

    Where JAX differentiates an operation it writes others beside it, from the same line: `cos for h`.
    """
    own: dict[Any, list[str]] = {}
    last: dict[Any, str] = {}
    for node in original.walk():
        if node.eqn is not None and not (node.opened and node.graphs):
            own.setdefault((_place(node), node.primitive, node.shape), []).append(node.name)
            last[_place(node)] = node.name
    named = {}
    for node in ahead.walk():
        if node.eqn is None:
            continue
        mine = own.get((_place(node), node.primitive, node.shape))
        if mine:
            named[node.index] = mine.pop(0) if len(mine) > 1 else mine[0]
        elif _place(node) in last and node.source is not None:
            named[node.index] = f"{node.primitive} for {last[_place(node)]}"
    return named


def _place(node: Node) -> Any:
    return str(node.source), node.label, node.scope


def _residual(
    graph: Graph, named: Mapping[int, str], value: Value, consumers: tuple[str, ...]
) -> Residual | None:
    size = _size(value)
    if size is None:
        return None
    node, inner, times = _origin(graph, value)
    place = graph.places[node.index]
    kind = "value"
    if node.eqn is None and node in graph.heads:
        known = node.primitive == "input" or not inner.name.startswith("const")
        kind = "argument" if known else "constant"
    return Residual(
        name=named.get(node.index, inner.name),
        kind=kind,
        shape=value.shape,
        dtype=str(value.dtype),
        bytes=size,
        times=times,
        primitive="carry" if node.eqn is None and place.parents else node.primitive,
        source=node.source or (place.parents[-1][0].source if place.parents else None),
        code=" ".join(node.label.split()),
        path=tuple(parent.name for parent, _ in place.parents),
        consumers=consumers,
    )


def _origin(graph: Graph, value: Value) -> tuple[Node, Value, int]:
    """The node that makes a value, inside of loops and branches too; how many steps of it are kept."""
    times = 1
    node = makers(graph)[value.id]
    while node.graphs and node.opened:
        form = _jaxpr.opened_form(node.eqn)
        position = next(i for i, out in enumerate(node.outputs) if out.id == value.id)
        choices = [nested.outputs[position] for nested in node.graphs]
        inner = next((out for out in choices if out.literal is None and _is_made(graph, out)), choices[0])
        if inner.literal is not None:
            break
        if isinstance(form, _jaxpr.Scan) and position >= form.num_carry:
            times *= form.length
        value, node = inner, makers(graph)[inner.id]
    return node, value, times


def _is_made(graph: Graph, value: Value) -> bool:
    return makers(graph)[value.id].eqn is not None


def _size(value: Value) -> int | None:
    """Bytes of an array; None of what has no size (references, keys count by their bits)."""
    if value.dtype is None or value.dtype == _jaxpr.float0:
        return None
    return math.prod(value.shape) * value.dtype.itemsize


def _consumers(graph: Graph, values: Sequence[Value]) -> tuple[str, ...]:
    """The operations of the backward half that read a residual, inside of loops too."""
    found: dict[str, None] = {}
    for value in values:
        for node in _readers(graph, value):
            code = " ".join(node.label.split()) or node.primitive
            found[f"{code} at {node.source}" if node.source else code] = None
    return tuple(found)


def _readers(graph: Graph, value: Value) -> Iterator[Node]:
    for node in graph.equations():
        positions = [i for i, operand in enumerate(node.operands) if operand.id == value.id]
        if not positions:
            continue
        inner = [
            nested.inputs[i - (len(node.operands) - len(nested.inputs))]
            for nested in node.graphs
            for i in positions
            if node.opened and i >= len(node.operands) - len(nested.inputs)
        ]
        if not inner:
            yield node
        for nested in node.graphs:
            for own in inner:
                if any(own is one for one in nested.inputs):
                    yield from _readers(nested, own)


def _compiled_memory(traced: Traced) -> Mapping[str, int]:
    """The memory XLA gives the compiled gradient, where it says so."""
    body = _jaxpr.program_function(traced.program)
    kept = [
        i
        for i, var in enumerate(traced.program.jaxpr.outvars[: traced.outputs.count])
        if _jaxpr.is_inexact(_jaxpr.dtype_of(var.aval))
    ]

    def gradient(points: list[Any], cts: list[Any]) -> Any:
        def of(*points: Any) -> Any:
            outs = body(*points)
            return [outs[i] for i in kept], outs

        _, pull, outs = jax.vjp(of, *points, has_aux=True)
        return outs, pull(cts)

    cts = [_jaxpr.struct_of(traced.program.jaxpr.outvars[i]) for i in kept]
    stats = jax.jit(gradient).lower(traced.points, cts).compile().memory_analysis()
    return {} if stats is None else {"temporary": int(stats.temp_size_in_bytes)}


def _bytes(found: Sequence[Residual], kind: str) -> int:
    return sum(residual.bytes for residual in found if residual.kind == kind)


def _without(rows: Sequence[Residual], others: Sequence[Residual]) -> tuple[Residual, ...]:
    """Rows that have no like among others: same code, shape and dtype."""
    spare = Counter(map(_likeness, others))
    found = []
    for row in rows:
        if spare[_likeness(row)]:
            spare[_likeness(row)] -= 1
        else:
            found.append(row)
    return tuple(found)


def _likeness(residual: Residual) -> Any:
    return residual.code or residual.name, residual.primitive, residual.shape, residual.dtype


# --- text ----------------------------------------------------------------------------------------------

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def bytes_of(count: int) -> str:
    """A number of bytes as people write it: `1.5 MiB`."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} bytes" if unit == 0 else f"{size:.1f} {_UNITS[unit]}"


def _table(rows: Sequence[Residual], most: int = 40) -> str:
    cells: list[tuple[str, ...]] = [("bytes", "type", "times", "name", "made by", "at", "read by")]
    cells += [
        (
            f"{row.bytes:,}",
            row.type,
            f"{row.times}" if row.times > 1 else "",
            row.name,
            _short(row.code or row.primitive),
            str(row.source or ""),
            _short(_readers_text(row)),
        )
        for row in rows[:most]
    ]
    text = align(cells)
    return text + (f"\n... and {len(rows) - most} more" if len(rows) > most else "")


def _readers_text(row: Residual) -> str:
    if not row.consumers:
        return "nothing"
    first, *more = row.consumers
    return first.split(" at ")[0] + (f" and {len(more)} more" if more else "")


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
