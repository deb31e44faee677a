"""What the backward pass keeps of the forward pass, by node and in bytes."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from ... import _jaxpr
from ..._tracing import Traced, check_points, name_of, trace_call
from ...core.build import build
from ...core.graph import Graph, Node, Value
from ...core.structure import producers
from ...naming.labels import Naming
from ...naming.labels import named as name_values
from .ledger import Ledger, Residual


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
        fun: as in `backprop`, and so `argnums` and `has_aux`.
        compiled: whether to compile the gradient too, and say how much temporary memory XLA gives it. That is
            of the same size, not the same number: XLA fuses, recomputes cheap operations, and needs memory for
            the operations themselves.

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
        fun: as in `backprop`, and so `argnums` and `has_aux`.
        max_bytes: the most that may be made on the way out and kept; arguments and constants do not count.

    Returns:
        A function of the same arguments that returns None.

    Raises:
        AssertionError: it keeps more; the message names the largest.

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
            f"{largest.bytes:,} bytes. Put `jax.checkpoint` around what makes it, or choose another policy."
            f"\n\n{ledger}"
        )

    return asserted


# --- how it is done ------------------------------------------------------------------------------------


def _ledger(traced: Traced) -> tuple[Residual, ...]:
    """Trace both halves of the derivative, and follow what goes from one to the other."""
    forward, backward, count = _halves(traced)
    constants = _constants_of(traced, forward, tuple(traced.naming.constants))
    ahead = name_values(build(forward), replace(traced.naming, constants=constants, scalars={}))
    named = _original_names(traced.graph, ahead)
    inputs = [f"residual[{i}]" for i in range(len(backward.jaxpr.invars))]
    behind = name_values(build(backward), Naming(inputs, home=traced.naming.home))
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


def _differentiated(traced: Traced) -> tuple[Callable[..., Any], list[Any]]:
    """The function by its vjp, `points -> (results, pull)`, and the types of the cotangents `pull` takes."""
    body = _jaxpr.program_function(traced.program)
    results = traced.program.jaxpr.outvars[: traced.outputs.count]
    kept = [i for i, var in enumerate(results) if _jaxpr.is_inexact(_jaxpr.dtype_of(var.aval))]

    def of(*points: Any) -> Any:
        outs = body(*points)
        return [outs[i] for i in kept], outs

    def run(points: Sequence[Any]) -> Any:
        _, pull, outs = jax.vjp(of, *points, has_aux=True)
        return outs, pull

    return run, [_jaxpr.struct_of(results[i]) for i in kept]


def _halves(traced: Traced) -> tuple[_jaxpr.Program, _jaxpr.Program, int]:
    """The forward half, whose last results are the residuals; the backward half, which takes them first."""
    run, cts = _differentiated(traced)
    seen: list[Any] = []

    def forward(*points: Any) -> Any:
        outs, pull = run(points)
        leaves, tree = jax.tree.flatten(pull)
        seen[:] = [tree, [_jaxpr.struct_of(leaf) for leaf in leaves]]
        return outs, leaves

    ahead = _jaxpr.trace(forward, *traced.points)
    tree, structs = seen

    def backward(leaves: list[Any], cts: list[Any]) -> Any:
        return jax.tree.unflatten(tree, leaves)(cts)

    return ahead, _jaxpr.trace(backward, structs, cts), len(traced.program.jaxpr.outvars)


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
    node = producers(graph)[value.id]
    while node.graphs and node.opened:
        form = _jaxpr.opened_form(node.eqn)
        position = next(i for i, out in enumerate(node.outputs) if out.id == value.id)
        choices = [nested.outputs[position] for nested in node.graphs]
        inner = next((out for out in choices if out.literal is None and _is_made(graph, out)), choices[0])
        if inner.literal is not None:
            break
        if isinstance(form, _jaxpr.Scan) and position >= form.num_carry:
            times *= form.length
        value, node = inner, producers(graph)[inner.id]
    return node, value, times


def _is_made(graph: Graph, value: Value) -> bool:
    return producers(graph)[value.id].eqn is not None


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
    run, cts = _differentiated(traced)

    def gradient(points: list[Any], cts: list[Any]) -> Any:
        outs, pull = run(points)
        return outs, pull(cts)

    stats = jax.jit(gradient).lower(traced.points, cts).compile().memory_analysis()
    return {} if stats is None else {"temporary": int(stats.temp_size_in_bytes)}


def _bytes(found: Sequence[Residual], kind: str) -> int:
    return sum(residual.bytes for residual in found if residual.kind == kind)
