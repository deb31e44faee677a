"""The functions people call: `trace`, `backprop`, `value_and_grad`, `grad`, `derivative`."""

import functools
from collections.abc import Callable

import jax

from ._backprop import derivative_between, make_plan, run
from ._seed import seed_of
from ._tracing import CONCRETE, check_points, trace_abstract, trace_call
from .core.graph import Graph
from .core.recorders import Recorder
from .core.rules import Rules
from .core.selectors import Selector
from .core.types import Argnums, Function, PyTree
from .record.tape import Tape


def trace(fun: Function, argnums: Argnums = 0) -> Callable[..., Graph]:
    """Trace a function to its computational graph. Nothing is evaluated: shapes are enough.

    Args:
        fun: any function JAX can trace.
        argnums: the arguments that count as differentiated: what is between them and the result is `active`.

    Returns:
        A function of the same arguments (arrays, numbers, or `jax.ShapeDtypeStruct`) that returns the `Graph`.

    Raises:
        TypeError: the function branches in Python on a traced value.

    Examples:
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
    def traced(*args: PyTree, **kwargs: PyTree) -> Graph:
        return trace_abstract(fun, args, kwargs, argnums).graph

    return traced


def backprop(
    fun: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    nodes: Selector | None = None,
    record: Recorder | None = None,
    rules: Rules = (),
    cotangent: PyTree | None = None,
    holomorphic: bool = False,
    allow_int: bool = False,
) -> Callable[..., Tape]:
    """Differentiate a function and keep every intermediate value, local gradient and cotangent.

    The gradient is that of `jax.grad`; besides it the tape has the values, cotangents and local gradients of
    the
    intermediate nodes. The result composes with `jax.jit`, `vmap`, `grad`, `jvp` and `shard_map`: what is on a
    tape can be differentiated in its turn.

    Args:
        fun: an ordinary pure function. It returns a scalar, or `cotangent` is given.
        argnums: positional arguments to differentiate.
        has_aux: whether it returns a pair (value, aux).
        nodes: which nodes to record: a glob or globs on name, scope or primitive, or a predicate on `Node`. By
            default every node on a path from a differentiated argument to the result; with `record=` those of
            them whose value a variable holds (`Graph.statements`).
        record: what to record at these nodes; by default the unmodified value and cotangent. `jaxprop.summary`
            records a few statistics instead.
        rules: pairs (where, rule): how cotangents propagate through the nodes that `where` matches. The first
            match wins. A rule for a node it names also replaces a derivative that is zero (`round`,
            `stop_gradient`); `*` means the nodes that the chain rule propagates through.
        cotangent: the initial cotangent (seed), in the structure of the result; 1.0 for a scalar.
        holomorphic: as in `jax.grad`.
        allow_int: as in `jax.grad`.

    Returns:
        A function of the same arguments that gives the `Tape`.

    Raises:
        TypeError: the result is not a scalar and no `cotangent` is given; an argument cannot be
            differentiated; the function branches in Python on a traced value; a rule returns the wrong
            number of cotangents.
        ValueError: a selector matches nothing; a cotangent reaches a `while`; a rule returns a wrong shape.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> tape = jp.backprop(loss)(1.0, 1.0, 2.0)
        >>> float(tape.value), float(tape.grads), float(tape["y_hat"].cotangent)
        (1.0, -2.0, -2.0)
    """
    recorder = None if record is None else _checked_recorder(record)

    @functools.wraps(fun, updated=())
    def with_tape(*args: PyTree, **kwargs: PyTree) -> Tape:
        check_points(args, argnums, fun, holomorphic, allow_int, "backprop")
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
        seed = seed_of(traced, cotangent, holomorphic)
        plan = make_plan(traced, nodes, recorder, rules)
        return run(traced, plan, seed, argnums)

    return with_tape


def value_and_grad(
    fun: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rules = (),
) -> Callable[..., tuple[PyTree, PyTree]]:
    """Return a function for value and gradient: `jax.value_and_grad`, with `rules`.

    Without rules the function is passed to JAX unmodified.

    Args:
        fun: as in `jax.value_and_grad`, and so `argnums`, `has_aux`, `holomorphic`, `allow_int`.
        rules: as in `backprop`.

    Returns:
        A function of the same arguments: (value, gradient), or ((value, aux), gradient).

    Raises:
        TypeError, ValueError: as `backprop`.

    Examples:
        >>> import jaxprop as jp
        >>> value, grad = jp.value_and_grad(lambda w: w**2)(3.0)
        >>> float(value), float(grad)
        (9.0, 6.0)
    """

    @functools.wraps(fun, updated=())
    def value_and_grad_fun(*args: PyTree, **kwargs: PyTree) -> tuple[PyTree, PyTree]:
        check_points(args, argnums, fun, holomorphic, allow_int, "value_and_grad")
        if not rules:
            return _by_jax(fun, argnums, has_aux, holomorphic, allow_int, args, kwargs)
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
        seed = seed_of(traced, None, holomorphic)
        tape = run(traced, make_plan(traced, None, Recorder(), rules), seed, argnums)
        return ((tape.value, tape.aux) if has_aux else tape.value), tape.grads

    return value_and_grad_fun


def grad(
    fun: Function,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    rules: Rules = (),
) -> Function:
    """Return a function for the gradient: `jax.grad`, with `rules`.

    Examples:
        >>> import jaxprop as jp
        >>> float(jp.grad(lambda w: w**2)(3.0))
        6.0
        >>> float(jp.grad(lambda w: w**2, rules=[("integer_pow", jp.rules.scale(0.5))])(3.0))
        3.0
    """
    both = value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, rules=rules)

    @functools.wraps(fun, updated=())
    def grad_fun(*args: PyTree, **kwargs: PyTree) -> PyTree:
        value, gradient = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return grad_fun


def derivative(fun: Function, of: str, wrt: str, *, rules: Rules = ()) -> Function:
    """Return a function for the derivative of any value with respect to any other.

        D[o, i] = d of[o] / d wrt[i], over all paths between the two, everything else held fixed.

    Args:
        fun: an unmodified function.
        of: name of a value of the function's own body.
        wrt: name of a value. If it is inside a scan, the step axis is the first of its axes.
        rules: as in `backprop`.

    Returns:
        A function of the same arguments that gives an array of shape `of.shape + wrt.shape`: the gradient where
        `of` is a scalar.

    Raises:
        KeyError: there is no such name.
        ValueError: `of` does not depend on `wrt`, is defined inside a nested body, or is not differentiable.

    Examples:
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
    def derivative_fun(*args: PyTree, **kwargs: PyTree) -> PyTree:
        traced = trace_abstract(fun, args, kwargs, ())
        graph = traced.graph
        if graph[of] not in graph.nodes:
            raise ValueError(
                f"{of!r} is defined inside a nested body (scan/cond/checkpoint), and `derivative` "
                "differentiates values of the function itself. "
                "Return it from the body, or record it with `backprop`."
            )
        return derivative_between(traced, of, wrt, rules)

    return derivative_fun


# --- helpers ------------------------------------------------------------------------------------


def _checked_recorder(recorder: object) -> Recorder:
    if not isinstance(recorder, Recorder):
        raise TypeError(
            f"`record` must be a jaxprop.Recorder, such as jaxprop.summary; got {type(recorder).__name__}. "
            "Make one with jaxprop.Recorder(forward=..., backward=...)."
        )
    return recorder


def _by_jax(
    fun: Function,
    argnums: Argnums,
    has_aux: bool,
    holomorphic: bool,
    allow_int: bool,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
) -> PyTree:
    """Pass the unmodified function to JAX; where that fails, explain more than JAX does."""
    numbers = argnums if not isinstance(argnums, list) else tuple(argnums)
    both = jax.value_and_grad(fun, numbers, has_aux, holomorphic, allow_int)
    try:
        return both(*args, **kwargs)
    except CONCRETE:
        raise
    except (TypeError, ValueError) as error:
        explained = _explained_error(fun, argnums, has_aux, holomorphic, args, kwargs)
        if explained is None:
            raise
        raise explained from error


def _explained_error(
    fun: Function,
    argnums: Argnums,
    has_aux: bool,
    holomorphic: bool,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
) -> Exception | None:
    """The error of our own pass, if it fails for a reason that it can name."""
    try:
        traced = trace_call(fun, args, kwargs, argnums, has_aux)
    except Exception:
        return None
    try:
        seed = seed_of(traced, None, holomorphic)
        run(traced, make_plan(traced, (), Recorder(), ()), seed, argnums)
    except (TypeError, ValueError) as error:
        return error
    except Exception:
        return None
    return None
