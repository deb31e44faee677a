"""List what is kept of the forward pass for the backward pass, by node and in bytes."""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import jax

from ... import _jaxpr
from ..._structure import bindings, consumers, reachable
from ..._text import byte_count, plural, type_name
from ..._tracing import Traced, check_points, name_of, trace_call
from ...core.build import build
from ...core.graph import Graph, Node, Value
from ...core.structure import producers
from ...core.types import Array, Function
from ...naming.labels import Naming, named
from .ledger import Ledger, Residual

#: The transpose of a function at a point: cotangents of its results to those of its arguments.
Pullback: TypeAlias = Callable[[list[Array]], tuple[Array, ...]]

_KINDS = ("value", "argument", "constant")


def residuals(
    fun: Function,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    compiled: bool = True,
) -> Callable[..., Ledger]:
    """List the residuals of a function: bytes, producer and consumers of each.

    They are the arrays JAX passes from one half of `jax.vjp` to the other. Each is followed to what produces
    it, into loops and checkpoints, and to the operations of the backward pass that read it. An array that is an
    argument or a constant is listed separately: it costs nothing more. Nothing is run.

    Args:
        fun: as in `backprop`, like `argnums` and `has_aux`.
        compiled: whether to compile the gradient too, and report how much temporary memory XLA allocates. That
            is of the same order, not the same number: XLA fuses, recomputes cheap operations, and needs memory
            for values that live within one pass. Where those dominate a note names the largest.

    Returns:
        A function of the same arguments (arrays, or `jax.ShapeDtypeStruct` for those differentiated) that
        gives the `Ledger`.

    Raises:
        TypeError, ValueError: as `backprop`.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     return jnp.sum(jnp.sin(x @ w))
        >>> ledger = jp.residuals(loss, compiled=False)(jnp.ones((3, 2)), jnp.ones((4, 3)))
        >>> ledger.total
        32
    """
    name = name_of(fun)

    @functools.wraps(fun, updated=())
    def listed(*args: Any, **kwargs: Any) -> Ledger:
        check_points(args, argnums, fun, False, False, "residuals")
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
        halves = _Halves(traced)
        found = halves.residuals()
        figures = {
            "kept": _total_bytes(found, "value"),
            "arguments": _total_bytes(found, "argument"),
            "constants": _total_bytes(found, "constant"),
        }
        if compiled:
            figures |= _compiled_memory(traced)
        return Ledger(f"residuals {name}", (), figures, tuple(_notes(halves, found, figures)), found)

    return listed


def assert_residuals(
    fun: Function,
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    max_bytes: int,
) -> Callable[..., None]:
    """Assert that no more than `max_bytes` are kept for the backward pass: `residuals`, for a test suite.

    Args:
        fun: as in `backprop`, like `argnums` and `has_aux`.
        max_bytes: the most that may be computed in the forward pass and kept; arguments and constants do not
            count.

    Returns:
        A function of the same arguments that returns None.

    Raises:
        AssertionError: more is kept; the message names the largest residual.

    Examples:
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
            f"{largest.bytes:,} bytes. Put `jax.checkpoint` around what produces it, or choose another policy."
            f"\n\n{ledger}"
        )

    return asserted


# --- the two halves of a derivative --------------------------------------------------------------------------


def _differentiated(
    traced: Traced,
) -> tuple[Callable[[Sequence[Array]], tuple[list[Array], Pullback]], list[jax.ShapeDtypeStruct]]:
    """The function by its vjp, `points -> (results, pullback)`, and the types of the cotangents it takes."""
    body = _jaxpr.program_function(traced.program)
    results = traced.program.jaxpr.outvars[: traced.outputs.count]
    kept = [i for i, var in enumerate(results) if _jaxpr.is_inexact(_jaxpr.dtype_of(var.aval))]

    def of(*points: Array) -> tuple[list[Array], list[Array]]:
        outs = body(*points)
        return [outs[i] for i in kept], outs

    def run(points: Sequence[Array]) -> tuple[list[Array], Pullback]:
        _, pull, outs = jax.vjp(of, *points, has_aux=True)
        return outs, pull

    return run, [_jaxpr.struct_of(results[i]) for i in kept]


class _Halves:
    """Both halves of the derivative as graphs, and what goes from one to the other.

    Attributes:
        forward: the graph of the forward half, whose last outputs are the residuals.
        backward: the graph of the backward half, whose first inputs are the residuals.
        kept: the residuals, as outputs of the forward half.
    """

    def __init__(self, traced: Traced) -> None:
        forward, backward = _trace_halves(traced)
        constants = _constants_of(traced, forward, tuple(traced.naming.constants))
        self.forward = named(build(forward), replace(traced.naming, constants=constants, scalars={}))
        inputs = [f"residual[{i}]" for i in range(len(backward.jaxpr.invars))]
        self.backward = named(build(backward), Naming(inputs, home=traced.naming.home))
        self.kept = self.forward.outputs[len(traced.program.jaxpr.outvars) :]
        self._names = _names(traced.graph, self.forward)

    def residuals(self) -> tuple[Residual, ...]:
        """All residuals, each array once, values first and the largest first."""
        positions: dict[int, list[int]] = {}
        for position, value in enumerate(self.kept):
            if value.literal is None:
                positions.setdefault(value.id, []).append(position)
        found = [self._residual(self.kept[some[0]], some) for some in positions.values()]
        known = [residual for residual in found if residual is not None]
        return _with_unique_names(sorted(known, key=lambda r: (_KINDS.index(r.kind), -r.bytes)))

    def _residual(self, value: Value, positions: Sequence[int]) -> Residual | None:
        size = _size_in_bytes(value)
        if size is None:
            return None
        node, inner, times = _origin(self.forward, value)
        place = self.forward.places[node.index]
        kind = "value"
        if node.eqn is None and node in self.forward.heads:
            known = node.primitive == "input" or not inner.name.startswith("const")
            kind = "argument" if known else "constant"
        return Residual(
            name=self._names.get(node.index, inner.name),
            kind=kind,
            shape=value.shape,
            dtype=str(value.dtype),
            bytes=size,
            times=times,
            primitive="carry" if node.eqn is None and place.parents else node.primitive,
            source=node.source or (place.parents[-1][0].source if place.parents else None),
            code=" ".join(node.label.split()),
            path=tuple(parent.name for parent, _ in place.parents),
            consumers=_consumers(self.backward, [self.backward.inputs[i] for i in positions]),
        )

    def transients(self) -> list[tuple[int, str, str, Value, Node]]:
        """The values that live within one pass, largest first: bytes, pass, expression, value, node."""
        kept = {value.id for value in self.kept}
        found = []
        for name, graph in (("forward", self.forward), ("backward", self.backward)):
            leaving = {value.id for value in graph.outputs} | kept
            for node in graph.walk():
                if node.eqn is None or node.graphs:
                    continue
                for value in node.outputs:
                    size = _size_in_bytes(value)
                    if size and value.id not in leaving:
                        code = " ".join(node.label.split()) or node.primitive
                        found.append((size, name, code, value, node))
        return sorted(found, key=lambda item: -item[0])


def _trace_halves(traced: Traced) -> tuple[_jaxpr.Program, _jaxpr.Program]:
    run, cts = _differentiated(traced)
    structure: list[Any] = []
    structs: list[jax.ShapeDtypeStruct] = []

    def forward(*points: Array) -> tuple[list[Array], list[Array]]:
        outs, pull = run(points)
        leaves, tree = jax.tree.flatten(pull)
        structure[:], structs[:] = [tree], map(_jaxpr.struct_of, leaves)
        return outs, leaves

    program = _jaxpr.trace(forward, *traced.points)

    def backward(leaves: list[Array], cts: list[Array]) -> tuple[Array, ...]:
        return jax.tree.unflatten(structure[0], leaves)(cts)

    return program, _jaxpr.trace(backward, structs, cts)


def _constants_of(traced: Traced, forward: _jaxpr.Program, names: Sequence[str | None]) -> list[str | None]:
    """Names of the constants of the forward half: those of the function, known by identity."""
    known = {id(const): name for const, name in zip(traced.program.consts, names, strict=False)}
    return [known.get(id(const)) for const in forward.consts]


def _names(original: Graph, forward: Graph) -> Mapping[int, str]:
    """The name of each node of the forward half: its own in the program, or that of the value it is derived
    for.

    Where JAX differentiates an operation it adds others, from the same line: `cos for h`.
    """
    own: dict[Hashable, list[str]] = {}
    last: dict[Hashable, str] = {}
    for node in original.walk():
        if node.eqn is not None and not (node.opened and node.graphs):
            own.setdefault((_source_key(node), node.primitive, node.shape), []).append(node.name)
            last[_source_key(node)] = node.name
    named = {}
    for node in forward.walk():
        if node.eqn is None:
            continue
        mine = own.get((_source_key(node), node.primitive, node.shape))
        if mine:
            named[node.index] = mine.pop(0)
        elif _source_key(node) in last and node.source is not None:
            named[node.index] = f"{node.primitive} for {last[_source_key(node)]}"
    return named


def _source_key(node: Node) -> Hashable:
    return str(node.source), node.label, node.scope


def _with_unique_names(found: Sequence[Residual]) -> tuple[Residual, ...]:
    """Number the residuals that share a name: `mul for h`, `mul for h#2`."""
    taken = {residual.name for residual in found}
    seen: set[str] = set()
    unique = []
    for residual in found:
        name = residual.name
        if name in seen:
            base = name.partition("#")[0]
            name = next(new for i in itertools.count(2) if (new := f"{base}#{i}") not in taken)
            taken.add(name)
        seen.add(name)
        unique.append(replace(residual, name=name))
    return tuple(unique)


def _origin(graph: Graph, value: Value) -> tuple[Node, Value, int]:
    """The node that produces a value, inside of loops and branches too; how many steps of it are kept."""
    times = 1
    node = producers(graph)[value.id]
    while node.graphs and node.opened:
        form = _jaxpr.opened_form(node.eqn)
        position = next(i for i, out in enumerate(node.outputs) if out.id == value.id)
        choices = [nested.outputs[position] for nested in node.graphs]
        computed = (out for out in choices if out.literal is None and producers(graph)[out.id].eqn is not None)
        inner = next(computed, choices[0])
        if inner.literal is not None:
            break
        if isinstance(form, _jaxpr.Scan) and position >= form.num_carry:
            times *= form.length
        value, node = inner, producers(graph)[inner.id]
    return node, value, times


def _size_in_bytes(value: Value) -> int | None:
    """Bytes of an array; None of what has no size (references)."""
    if value.dtype is None or value.dtype == _jaxpr.float0:
        return None
    return math.prod(value.shape) * value.dtype.itemsize


def _consumers(graph: Graph, values: Sequence[Value]) -> tuple[str, ...]:
    """The operations of the backward half that read a residual, inside of loops too."""

    def inside(value: Value) -> Iterator[Value]:
        for node, _ in consumers(graph).get(value.id, ()):
            for joined in bindings(graph).get(node.index, ()):
                yield from (inner for outer, inner in joined.into if outer.id == value.id)

    found: dict[str, None] = {}
    results = {value.id for value in graph.outputs}
    for value in reachable(values, inside).values():
        if value.id in results:
            found["the gradient itself"] = None
        for node, position in consumers(graph).get(value.id, ()):
            entered = node.opened and any(
                outer is node.operands[position]
                for joined in bindings(graph)[node.index]
                for outer, _ in joined.into
            )
            if not entered:
                code = " ".join(node.label.split()) or node.primitive
                found[f"{code} at {node.source}" if node.source else code] = None
    return tuple(found)


# --- compiled
# --------------------------------------------------------------------------------------------------


def _compiled_memory(traced: Traced) -> Mapping[str, int]:
    """The temporary memory XLA allocates for the compiled gradient, if it reports any."""
    run, cts = _differentiated(traced)

    def gradient(points: list[Array], cts: list[Array]) -> tuple[list[Array], tuple[Array, ...]]:
        outs, pull = run(points)
        return outs, pull(cts)

    stats = jax.jit(gradient).lower(traced.points, cts).compile().memory_analysis()
    return {} if stats is None else {"temporary": int(stats.temp_size_in_bytes)}


def _notes(halves: _Halves, found: Sequence[Residual], figures: Mapping[str, int]) -> Iterator[str]:
    unused = [residual for residual in found if residual.kind == "value" and not residual.consumers]
    if unused:
        size = byte_count(sum(residual.bytes for residual in unused))
        yield (
            f"{size} in {plural(len(unused), 'array')} are kept by `jax.vjp`, but no operation of the backward "
            "pass reads them: a compiled gradient drops them."
        )
    temporary, kept = figures.get("temporary", 0), figures["kept"]
    if temporary <= 2 * kept:
        return
    large = [item for item in halves.transients() if item[0] > (temporary - kept) / 20][:3]
    if large:
        named = (f"`{code}` {_type(value)}{_at(node)} ({word} pass)" for _, word, code, value, node in large)
        yield (
            f"The compiled gradient needs {byte_count(temporary)} of temporary memory, more than the "
            f"residuals: values that live within one pass. The largest: {'; '.join(dict.fromkeys(named))}."
        )


def _type(value: Value) -> str:
    return type_name(value.dtype, value.shape)


def _at(node: Node) -> str:
    return f" at {node.source}" if node.source else ""


def _total_bytes(found: Sequence[Residual], kind: str) -> int:
    return sum(residual.bytes for residual in found if residual.kind == kind)
