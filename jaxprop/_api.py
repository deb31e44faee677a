"""The functions people call: `trace`, `backprop`, `value_and_grad`, `grad`, `derivative`."""

import functools
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _channel, _jaxpr
from ._call import Traced, check_points, normalize_argnums, trace_call
from ._graph import Ends, Graph, Node, Selector, select, unknown_name
from ._interpret import Plan, Sweep
from ._rules import Recorder, Rule, Rules, full, match_rules
from ._source import is_library
from ._tape import Tape, _Static, loop_constants
from ._types import PyTree


def trace(fun: Callable[..., Any], argnums: int | tuple[int, ...] = 0) -> Callable[..., Graph]:
    """Trace a function to its computational graph. Runs nothing: shapes are enough.

    Args:
        fun: any function JAX can trace.
        argnums: the arguments taken as differentiated: what lies between them and the result is `active`.

    Returns:
        A function of the same arguments (arrays, numbers, or `jax.ShapeDtypeStruct`) that gives the `Graph`.

    Raises:
        TypeError: the function branches in Python on a traced value.

    Example:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> graph = jp.trace(loss)(1.0, 1.0, 2.0)
        >>> [node.name for node in graph.nodes]
        ['w', 'x', 'y', 'y_hat', 's', 'loss']
    """

    @functools.wraps(fun, updated=())
    def traced(*args: Any, **kwargs: Any) -> Graph:
        return _trace_abstract(fun, args, kwargs, argnums).graph

    return traced


def backprop(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    *,
    nodes: Selector | None = None,
    record: Recorder | None = None,
    rules: Rules = (),
    cotangent: PyTree | None = None,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Tape]:
    """Differentiate a function and keep everything in between.

    The gradient is that of `jax.grad`; beside it the tape holds values, cotangents and local gradients of the
    nodes in between. The result composes with `jax.jit`, `vmap`, `grad`, `jvp` and `shard_map`.

    Args:
        fun: a pure function, as it stands. It returns a scalar, or `cotangent` is given.
        argnums: positional arguments to differentiate.
        has_aux: whether it returns a pair (value, aux).
        nodes: what to record: a glob or globs on name, scope or primitive, or a predicate on `Node`. By default
            all that lies between the differentiated arguments and the result.
        record: what to write down there; by default value and cotangent as they are. `jaxprop.summary` keeps
            bounded statistics.
        rules: pairs (where, rule): how cotangents cross the nodes `where` picks. The first match wins.
        cotangent: the cotangent to begin with, in the structure of the result; 1.0 for a scalar.
        holomorphic: as in `jax.grad`.
        allow_int: as in `jax.grad`.

    Returns:
        A function of the same arguments that gives the `Tape`.

    Raises:
        TypeError: the result is no scalar and no `cotangent` is given; an argument cannot be differentiated; the
            function branches in Python on a traced value; a rule returns the wrong number of cotangents.
        ValueError: a selector matches nothing; a cotangent reaches a `while`; a rule returns a wrong shape.

    Example:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> tape = jp.backprop(loss)(1.0, 1.0, 2.0)
        >>> float(tape.value), float(tape.grads), float(tape["y_hat"].cotangent)
        (1.0, -2.0, -2.0)
    """
    recorder = full if record is None else record
    _check_recorder(recorder)

    @functools.wraps(fun, updated=())
    def with_tape(*args: Any, **kwargs: Any) -> Tape:
        check_points(args, argnums, fun, holomorphic, allow_int, "backprop")
        traced = _traced(fun, args, kwargs, argnums, has_aux)
        seed = _seed(fun, traced, cotangent, holomorphic)
        plan = make_plan(traced, nodes, recorder, rules)
        return _run(traced, plan, seed, argnums)

    return with_tape


def value_and_grad(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rules = (),
) -> Callable[..., tuple[Any, Any]]:
    """Return a function for value and gradient: `jax.value_and_grad`, with `rules`.

    Without rules the function is handed to JAX as it is.

    Args:
        fun, argnums, has_aux, holomorphic, allow_int: as in `jax.value_and_grad`.
        rules: as in `backprop`.

    Returns:
        A function of the same arguments: (value, gradient), or ((value, aux), gradient).

    Raises:
        TypeError, ValueError: as `backprop`.

    Example:
        >>> import jaxprop as jp
        >>> value, grad = jp.value_and_grad(lambda w: w**2)(3.0)
        >>> float(value), float(grad)
        (9.0, 6.0)
    """

    @functools.wraps(fun, updated=())
    def value_and_grad_fun(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        check_points(args, argnums, fun, holomorphic, allow_int, "value_and_grad")
        if not rules:
            return _by_jax(fun, argnums, has_aux, holomorphic, allow_int, args, kwargs)
        traced = _traced(fun, args, kwargs, argnums, has_aux)
        seed = _seed(fun, traced, None, holomorphic)
        tape = _run(traced, make_plan(traced, None, None, rules), seed, argnums)
        return ((tape.value, tape.aux) if has_aux else tape.value), tape.grads

    return value_and_grad_fun


def grad(
    fun: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rules = (),
) -> Callable[..., Any]:
    """Return a function for the gradient: `jax.grad`, with `rules`.

    Example:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2)(3.0))
        6.0
        >>> float(jp.grad(lambda w: w**2, rules=[("integer_pow", jp.rules.scale(0.5))])(3.0))
        3.0
    """
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, rules=rules)

    @functools.wraps(fun, updated=())
    def grad_fun(*args: Any, **kwargs: Any) -> Any:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return grad_fun


def derivative(
    fun: Callable[..., Any], of: str, wrt: str, *, rules: Rules = ()
) -> Callable[..., Any]:
    """Return a function for the derivative of any value with respect to any other.

        D[o, i] = d of[o] / d wrt[i], all paths between the two counted, all else held.

    Args:
        fun: a function, as it stands.
        of: name of a value of the function's own body.
        wrt: name of a value, inside a scan too: then the step axis stands first of its axes.
        rules: as in `backprop`.

    Returns:
        A function of the same arguments that gives an array of shape `of.shape + wrt.shape`: the gradient where
        `of` is a scalar.

    Raises:
        KeyError: there is no such name.
        ValueError: `of` does not depend on `wrt`, stands inside a body, or carries no derivative.

    Example:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> float(jp.derivative(loss, of="loss", wrt="y_hat")(1.0, 1.0, 2.0))
        -2.0
        >>> float(jp.derivative(loss, of="s", wrt="w")(1.0, 3.0, 2.0))
        3.0
    """

    @functools.wraps(fun, updated=())
    def derivative_fun(*args: Any, **kwargs: Any) -> Any:
        traced = _trace_abstract(fun, args, kwargs, ())
        sink, source = (_named(traced.graph, name) for name in (of, wrt))
        if sink not in traced.graph.nodes:
            raise ValueError(
                f"{of!r} stands inside a body: a derivative is taken of a value of the function itself. "
                "Return it from the body, or record it with `backprop`."
            )
        if sink is source:
            value = sink.outputs[sink.names.index(of)]
            size = int(np.prod(value.shape))
            return jnp.eye(size, dtype=value.dtype).reshape(value.shape * 2)
        return _between(traced, of, sink, wrt, source, rules)

    return derivative_fun


#: The seed of a scalar: made where the result is there, in its own type (which mesh axes it varies over).
ONE = object()

# --- how it is done ------------------------------------------------------------------------------------

_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _any_structs(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _traced(
    fun: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: Any,
    has_aux: bool,
    **options: Any,
) -> Traced:
    try:
        return trace_call(fun, args, kwargs, argnums, has_aux, **options)
    except _CONCRETE as error:
        name = getattr(fun, "__name__", type(fun).__name__)
        raise TypeError(
            f"`{name}` cannot be traced: Python asks for the number behind a differentiated value, which stands "
            "for any number here. Write the choice with `jnp.where` or `jax.lax.cond`, or leave the argument "
            f"out of `argnums`.{_users_line(error)}"
        ) from error


def _users_line(error: BaseException) -> str:
    """The innermost line of the user's own code that an error went through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not is_library(frame.filename)
    ]
    if not frames:
        return ""
    return f" It stands at {frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`."


def _trace_abstract(
    fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], argnums: Any
) -> Traced:
    """Trace with all arguments abstract; where Python branches on one that is not differentiated, it may."""
    try:
        return _traced(fun, args, kwargs, argnums, False, abstract=True)
    except TypeError:
        if _any_structs((args, kwargs)):
            raise
        return _traced(fun, args, kwargs, argnums, False)


def _check_recorder(recorder: Any) -> None:
    if not isinstance(recorder, Recorder):
        raise TypeError(
            f"`record` must be a jaxprop.Recorder, such as jaxprop.summary; got {type(recorder).__name__}. "
            "Make one with jaxprop.Recorder(forward=..., backward=...)."
        )


def make_plan(
    traced: Traced, nodes: Selector | None, recorder: Recorder | None, rules: Rules
) -> Plan:
    """Say what is to be done where.

    Raises:
        ValueError: a selector matches nothing, or a rule only what no cotangent can reach.
    """
    graph, matched = traced.graph, match_rules(traced.graph, rules)
    cut = frozenset(
        node.index
        for node in graph.walk()
        if node.index in matched and not node.active and any(v.active for v in node.operands)
    ) | _cut_nodes(graph, matched)
    if cut:
        graph = traced.build(uncut=cut)
    _check_rules_live(graph, rules)
    if recorder is None:
        return Plan(graph, rules=matched)
    watched = _watched(graph, nodes)
    indices = frozenset(node.index for node in watched)
    kept: frozenset[int] = frozenset()
    if recorder.keeps_operands:
        kept = frozenset(
            value.id
            for node in watched
            for value in (*node.operands, *node.outputs)
            if value.literal is None
        ) - {graph.by_index[i].outputs[0].id for i in loop_constants(graph)}
        # Values are kept once, by id; what is left to record is the way back.
        recorder = Recorder(None, recorder.backward, per_value=True, keeps_operands=True)
    return Plan(graph, recorder, indices, matched, kept)


def _cut_nodes(graph: Graph, matched: dict[int, Rule]) -> frozenset[int]:
    """Nodes with a rule whose own derivative is zero: the rule stands in for it."""
    return frozenset(
        node.index
        for node in graph.walk()
        if node.index in matched
        and not node.active
        and node.eqn is not None
        and any(_jaxpr.is_inexact(value.dtype) for value in node.outputs)
    )


def _check_rules_live(graph: Graph, rules: Rules) -> None:
    for where, _ in rules:
        picked = select(graph, where)
        if not any(node.active for node in picked):
            some = picked[0]
            raise ValueError(
                f"the rule for {where!r} would do nothing: no cotangent comes to {some.where}"
                f"{' and the others it picks' if len(picked) > 1 else ''}. It lies on no path from a "
                "differentiated argument to the result."
            )


def _watched(graph: Graph, nodes: Selector | None) -> list[Node]:
    constants = loop_constants(graph)
    opened = [
        node
        for node in graph.walk()
        if all(parent.opened for parent, _ in graph.places[node.index].parents)
        and node.index not in constants
        and not any(_jaxpr.is_ref(value.aval) for value in (*node.operands, *node.outputs))
        and node not in graph.fixed
    ]
    if nodes is None:
        return [node for node in opened if node.active]
    picked = {node.index for node in select(graph, nodes)}
    return [node for node in opened if node.index in picked]


def _seed(
    fun: Callable[..., Any], traced: Traced, cotangent: PyTree | None, holomorphic: bool
) -> list[Any]:
    """The cotangents to begin with, one for each output that is not aux.

    Raises:
        TypeError: the output is no scalar and there is no cotangent, or one of another structure or dtype.
        ValueError: a cotangent of another shape.
    """
    name = getattr(fun, "__name__", type(fun).__name__)
    outs = [
        _jaxpr.struct_of(var) for var in traced.program.jaxpr.outvars[: traced.outputs.count]
    ]
    if cotangent is None:
        return [_scalar_seed(name, traced, outs, holomorphic)]
    leaves, tree = jax.tree.flatten(cotangent, is_leaf=lambda x: x is None)
    if tree != traced.outputs.tree:
        raise TypeError(
            f"`cotangent` has the structure {tree}, but `{name}` returns {traced.outputs.tree}. A cotangent has "
            "the structure of what it belongs to."
        )
    return [_seed_leaf(name, ct, out) for ct, out in zip(leaves, outs, strict=True)]


def _seed_leaf(name: str, ct: Any, out: jax.ShapeDtypeStruct) -> Any:
    if ct is None or not _jaxpr.is_inexact(out.dtype):
        return None
    if np.shape(ct) != out.shape:
        raise ValueError(
            f"`cotangent` has shape {np.shape(ct)}, but `{name}` returns shape {out.shape}. A cotangent has the "
            "shape of what it belongs to."
        )
    dtype = jnp.result_type(ct)
    if dtype != out.dtype and not isinstance(ct, bool | int | float | complex):
        raise TypeError(
            f"`cotangent` is {dtype}, but `{name}` returns {out.dtype}. A cotangent has the dtype of what it "
            f"belongs to: pass `cotangent.astype({out.dtype})`."
        )
    return jnp.asarray(ct, out.dtype)


def _scalar_seed(name: str, traced: Traced, outs: list[Any], holomorphic: bool) -> Any:
    if len(outs) != 1 or outs[0].shape != ():
        shapes = ", ".join(f"{out.dtype}{list(out.shape)}" for out in outs) or "nothing"
        raise TypeError(
            f"the gradient is that of a scalar, but `{name}` returned {shapes}. Reduce it to one number, for "
            "instance with `jnp.mean` or `jnp.sum`; or pass `cotangent=`, shaped like the result, to `backprop`."
        )
    dtype = outs[0].dtype
    if jnp.issubdtype(dtype, np.complexfloating) and not holomorphic:
        raise TypeError(
            f"the gradient is that of a real number, but `{name}` returned {dtype}. For a holomorphic function "
            "pass holomorphic=True; else take `jnp.real` or `jnp.abs` of the result."
        )
    if holomorphic and not jnp.issubdtype(dtype, np.complexfloating):
        raise TypeError(
            f"holomorphic=True differentiates functions with complex results, but `{name}` returned {dtype}."
        )
    if not _jaxpr.is_inexact(dtype):
        raise TypeError(
            f"the gradient is that of a floating point number, but `{name}` returned {dtype}, which carries no "
            "derivative."
        )
    return ONE


def _run(traced: Traced, plan: Plan, seed: list[Any], argnums: Any) -> Tape:
    """Run a plan forward and back, and put the tape together."""
    outputs = traced.outputs
    sweep = Sweep(plan)
    carriers = plan.carriers()
    seeded = [i for i, ct in enumerate(seed) if ct is not None]

    def forward(points: list[Any], carriers: Any) -> Any:
        outs, written = sweep.run(plan.graph, [*points, *traced.program.consts], carriers)
        return [outs[i] for i in seeded], (outs, written)

    try:
        roots, pull, (outs, written) = jax.vjp(forward, traced.points, carriers, has_aux=True)
        for i, root in zip(seeded, roots, strict=True):
            if seed[i] is ONE:
                seed[i] = jnp.ones_like(root)
        point_cts, records = pull([seed[i] for i in seeded])
    except ValueError as error:
        if plan.guarded or not _is_while_error(error):
            raise
        guarded = Plan(plan.graph, plan.recorder, plan.watched, plan.rules, plan.kept, guarded=True)
        return _run(traced, guarded, seed, argnums)
    leaves = outputs.merge(outs)
    grads = jax.tree.unflatten(traced.point_tree, point_cts)
    return Tape(
        value=outputs.value(leaves),
        aux=outputs.aux(leaves),
        grads=grads if isinstance(argnums, tuple | list) else grads[0],
        seed=seed,
        _forward=written.records,
        _backward={
            index: _channel.decode(records[index], structs)
            for index, structs in plan.structs.items()
        },
        _values=written.values,
        _branches=written.branches,
        _static=_Static(
            graph=plan.graph,
            recorder=plan.recorder,
            rules=tuple(sorted(plan.rules.items())),
            watched=plan.watched,
            reached=frozenset(sweep.reached),
        ),
    )


def _is_while_error(error: ValueError) -> bool:
    return "Reverse-mode differentiation does not work for lax.while_loop" in str(error)


def _by_jax(
    fun: Callable[..., Any],
    argnums: Any,
    has_aux: bool,
    holomorphic: bool,
    allow_int: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Hand the function to JAX as it is; where it fails, say more than JAX does."""
    numbers = argnums if not isinstance(argnums, list) else tuple(argnums)
    both = jax.value_and_grad(fun, numbers, has_aux, holomorphic, allow_int)
    try:
        return both(*args, **kwargs)
    except _CONCRETE:
        raise
    except (TypeError, ValueError) as error:
        explained = _explain(fun, argnums, has_aux, holomorphic, args, kwargs)
        if explained is None:
            raise
        raise explained from error


def _explain(
    fun: Callable[..., Any],
    argnums: Any,
    has_aux: bool,
    holomorphic: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Exception | None:
    """The error of the opened function, where it fails by something that has a name here."""
    try:
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
    except Exception:
        return None
    try:
        seed = _seed(fun, traced, None, holomorphic)
        _run(traced, Plan(traced.graph, guarded=True), seed, argnums)
    except (TypeError, ValueError) as error:
        return error
    except Exception:
        return None
    return None


def _named(graph: Graph, name: str) -> Node:
    node = graph.by_name.get(name)
    if node is None:
        raise KeyError(unknown_name(name, graph.by_name))
    return node


def _between(
    traced: Traced, of: str, sink: Node, wrt: str, source: Node, rules: Rules
) -> Any:
    """The derivative of one value with respect to another: the cotangent of a carrier at `wrt`."""
    out = sink.outputs[sink.names.index(of)]
    into = source.outputs[source.names.index(wrt)]
    for value in (out, into):
        if not _jaxpr.is_inexact(value.dtype):
            raise ValueError(
                f"{value.name!r} is {value.dtype}, which carries no derivative: only floating point does."
            )
    graph = traced.build(ends=Ends(frozenset({into.id}), frozenset({out.id})))
    if into.literal is not None:
        raise ValueError(f"{wrt!r} is a plain Python number: make it an array, or differentiate it.")
    if not graph.by_name[of].active:
        raise ValueError(
            f"{of!r} does not depend on {wrt!r}: there is no differentiable path between them."
        )
    keeps = Recorder.each(cotangent=lambda ct: ct)
    plan = Plan(graph, keeps, frozenset({source.index}), match_rules(graph, rules))
    carriers = plan.carriers()
    position = source.names.index(wrt)

    def forward(carriers: Any) -> Any:
        cut = _with_outputs(graph, of)
        outs, _ = Sweep(Plan(cut, keeps, plan.watched, plan.rules)).run(cut, traced.operands, carriers)
        return outs[0]

    value, pull = jax.vjp(forward, carriers)

    def row(ct: Any) -> Any:
        return pull(ct)[0][source.index][position]

    size = int(np.prod(out.shape))
    if out.shape == ():
        return row(jnp.ones((), value.dtype))
    basis = jnp.eye(size, dtype=value.dtype).reshape(size, *out.shape)
    rows = jax.vmap(row)(basis)
    return rows.reshape(*out.shape, *rows.shape[1:])


def _with_outputs(graph: Graph, name: str) -> Graph:
    """The graph cut off after a value: its nodes from there on are not run."""
    from dataclasses import replace

    node = graph.by_name[name]
    value = node.outputs[node.names.index(name)]
    return replace(graph, outputs=(value,))


__all__ = ["backprop", "derivative", "grad", "normalize_argnums", "trace", "value_and_grad"]
