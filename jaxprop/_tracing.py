"""A call of a user's function, traced: which arguments are differentiated, what it returned, its graph."""

import functools
import inspect
import numbers
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import _jaxpr
from ._models import named_leaves, split_models
from ._text import plural
from .core.activity import active_values
from .core.build import build
from .core.graph import Graph, with_activity
from .core.types import Argnums, Array, Function, NodeIndex, PyTree, ValueId
from .naming.labels import Naming, named
from .naming.syntax import is_library


class Argument(NamedTuple):
    """An input of the program: its name and whether it is differentiated."""

    name: str
    differentiated: bool


@dataclass(frozen=True, eq=False)
class Traced:
    """A function traced at its arguments.

    Attributes:
        program: the traced program. Its inputs are the differentiated leaves; the rest is closed over.
        points: the differentiated leaves.
        point_tree: their structure.
        outputs: how the results are put together.
        name: the name of the function.
        differentiated: for each input of the program, whether it is differentiated.
        naming: what the call tells about names.
    """

    program: _jaxpr.Program
    points: list[Array]
    point_tree: Any
    outputs: "Outputs"
    name: str
    differentiated: tuple[bool, ...]
    naming: Naming

    @functools.cached_property
    def graph(self) -> Graph:
        """The graph; active is what is between the differentiated arguments and the results."""
        return self.graph_with(uncut=frozenset())

    @functools.cached_property
    def _named(self) -> Graph:
        return named(build(self.program), self.naming)

    def graph_with(self, uncut: frozenset[NodeIndex]) -> Graph:
        """The graph in which some nodes count as differentiable although their derivative is zero."""
        graph = self._named
        pairs = zip(graph.inputs, self.differentiated, strict=True)
        sources = [value.id for value, differentiated in pairs if differentiated]
        return with_activity(graph, active_values(graph, sources, [v.id for v in graph.outputs], uncut))

    def graph_between(self, source: ValueId, sink: ValueId) -> Graph:
        """The graph in which active is what is between two values."""
        graph = self._named
        return with_activity(graph, active_values(graph, [source], [sink]))

    @property
    def operands(self) -> list[Array]:
        """The values of all heads of the graph."""
        return [*self.points, *self.program.consts]


@dataclass(frozen=True)
class Outputs:
    """The results of the function: traced leaves, and those that are not arrays."""

    tree: Any
    aux_tree: Any
    count: int  # number of traced leaves that are not aux
    fixed: Mapping[int, Any]  # leaves that were not traced, by position
    total: int

    def value(self, leaves: Sequence[Array]) -> PyTree:
        return jax.tree.unflatten(self.tree, leaves[: self.tree.num_leaves])

    def aux(self, leaves: Sequence[Array]) -> PyTree:
        if self.aux_tree is None:
            return None
        return jax.tree.unflatten(self.aux_tree, leaves[self.tree.num_leaves :])

    def merge(self, traced: Sequence[Array]) -> list[Array]:
        rest = iter(traced)
        return [self.fixed[i] if i in self.fixed else next(rest) for i in range(self.total)]


def name_of(fun: Function) -> str:
    """The name of a function, for messages."""
    fun = unwrapped(fun)
    return getattr(fun, "__name__", type(fun).__name__)


def unwrapped(fun: Function) -> PyTree:
    """The function a person wrote, beneath `jit`, `functools.wraps`, `functools.partial` and methods."""
    fun = inspect.unwrap(fun)
    while isinstance(fun, functools.partial):
        fun = inspect.unwrap(fun.func)
    return getattr(fun, "__func__", fun)


def normalize_argnums(argnums: Argnums, count: int) -> tuple[int, ...]:
    """Check `argnums` against the number of positional arguments."""
    given: Sequence[int] = argnums if isinstance(argnums, Sequence) else (argnums,)
    if not all(isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in given):
        raise TypeError(f"`argnums` must be an integer or a tuple of integers, got {argnums!r}.")
    positions = tuple(int(i) + count if i < 0 else int(i) for i in given)
    for i, position in zip(given, positions, strict=True):
        if not 0 <= position < count:
            raise ValueError(
                f"`argnums={argnums!r}` refers to positional argument {i}, but the function was called with "
                f"{plural(count, 'positional argument')}. Pass differentiated arguments by position."
            )
    if len(set(positions)) != len(positions):
        raise ValueError(f"`argnums={argnums!r}` names an argument twice.")
    return positions


def _trace_call(
    fun: Function,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    abstract: bool = False,
) -> Traced:
    """Trace a call.

    Only differentiated arguments are traced; the others stay concrete, so Python may branch on them, as under
    `jax.grad`. With `abstract` all arguments are traced.
    """
    if not callable(fun):
        raise TypeError(f"expected a function to differentiate, got {type(fun).__name__}.")
    differentiated = normalize_argnums(argnums, len(args))
    names = argument_names(fun, len(args))
    split, moved_args, moved_kwargs = split_models(fun, args, kwargs, differentiated)
    chosen = tuple(range(len(args))) if abstract else differentiated
    inputs = _Inputs([(names[i], moved_args[i], i in differentiated) for i in chosen])
    if abstract:
        inputs = _Inputs([*inputs.given, *((name, arg, False) for name, arg in moved_kwargs.items())])
    box: list[Outputs] = []

    def flat(*leaves: Array) -> list[Array]:
        filled = inputs.fill(leaves)
        full = dict(enumerate(moved_args)) | dict(zip(chosen, filled, strict=False))
        keywords = moved_kwargs | dict(zip(moved_kwargs, filled[len(chosen) :], strict=False))
        outputs, traced = _outputs(fun, split(*full.values(), **keywords), has_aux)
        box.append(outputs)
        return traced

    arguments, points = inputs.arguments, inputs.points
    if abstract:
        _check_structs(arguments, points)
    program = _jaxpr.trace(flat, *points)
    code = unwrapped(fun)
    function = getattr(code, "__name__", None)
    naming = Naming(
        inputs=tuple(argument.name for argument in arguments),
        constants=_constant_names(program.consts, args, kwargs, names),
        function=function if function and function.isidentifier() else None,
        home=getattr(getattr(code, "__code__", None), "co_filename", None),
        scalars={} if abstract else _scalars(args, kwargs, names, chosen),
    )
    moved = tuple(argument.differentiated for argument in arguments)
    return Traced(program, points, inputs.tree, box[-1], name_of(fun), moved, naming)


def _check_structs(arguments: Sequence[Argument], points: Sequence[Array]) -> None:
    """Refuse types that JAX would silently replace."""
    for argument, point in zip(arguments, points, strict=True):
        if not isinstance(point, jax.ShapeDtypeStruct) or _jaxpr.is_key(point):
            continue
        dtype = jax.dtypes.canonicalize_dtype(point.dtype)
        if dtype != point.dtype:
            raise TypeError(
                f"`{argument.name}` is given as {point.dtype}, which JAX would downcast to {dtype} because x64 "
                "is disabled. Set `jax.config.update('jax_enable_x64', True)` at startup, or pass "
                f"{dtype}."
            )


@dataclass(frozen=True)
class _Inputs:
    """The arguments that are traced.

    All leaves of a differentiated argument are traced; of another only its arrays and numbers are, and its
    functions, strings and the like are held.

    Attributes:
        given: name, argument, and whether it is differentiated.
    """

    given: Sequence[tuple[str, PyTree, bool]]

    @functools.cached_property
    def tree(self) -> Any:
        """The structure of the arguments, as a tuple."""
        return jax.tree.structure(tuple(arg for _, arg, _ in self.given))

    @functools.cached_property
    def _leaves(self) -> list[tuple[Argument, Any, bool]]:
        """Each leaf with its name, and whether it is traced."""
        return [
            (Argument(leaf_name, differentiated), leaf, differentiated or is_arraylike(leaf))
            for name, arg, differentiated in self.given
            for leaf_name, leaf in named_leaves(name, arg)
        ]

    @property
    def arguments(self) -> list[Argument]:
        return [argument for argument, _, traced in self._leaves if traced]

    @property
    def points(self) -> list[Array]:
        return [leaf for _, leaf, traced in self._leaves if traced]

    def fill(self, points: Sequence[Array]) -> tuple[PyTree, ...]:
        """Return the arguments with other leaves in place of those that are traced."""
        rest = iter(points)
        return self.tree.unflatten([next(rest) if traced else leaf for _, leaf, traced in self._leaves])


def is_arraylike(leaf: object) -> bool:
    """Whether a leaf is an array, the shape of one, or a number."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct | numbers.Number)


def argument_names(fun: Function, count: int) -> list[str]:
    """The names of the positional parameters; `args[2]` for those of `*args`."""
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):
        return [f"args[{i}]" for i in range(count)]
    names: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}[{i}]" for i in range(count - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    return (names + [f"args[{i}]" for i in range(len(names), count)])[:count]


def _all_leaves(args: tuple[PyTree, ...], kwargs: dict[str, PyTree], names: list[str]) -> list[tuple[str, Any]]:
    pairs = (*zip(names, args, strict=True), *kwargs.items())
    return [found for name, arg in pairs for found in named_leaves(name, arg)]


def leaf_names(fun: Function, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> list[str]:
    """The paths of all leaves of a call's arguments: `params['w']`, `batch['x']`."""
    return [name for name, _ in _all_leaves(args, kwargs, argument_names(fun, len(args)))]


def _constant_names(
    consts: Sequence[Array], args: tuple[PyTree, ...], kwargs: dict[str, PyTree], names: list[str]
) -> list[str | None]:
    """Names of closed-over arrays that are leaves of arguments, recognized by identity."""
    by_identity = {_array_identity(leaf): name for name, leaf in reversed(_all_leaves(args, kwargs, names))}
    return [by_identity.get(_array_identity(const)) for const in consts]


def _array_identity(x: object) -> PyTree:
    """What identifies an array: JAX wraps one of NumPy in another object around the same memory."""
    if not isinstance(x, np.ndarray) and not _jaxpr.is_numpy_wrapper(x):
        return id(x)
    array = np.asarray(x)
    if array.size == 0:
        return id(x)
    return array.__array_interface__["data"][0], array.shape, array.strides, array.dtype.str


def _scalars(
    args: tuple[PyTree, ...], kwargs: dict[str, PyTree], names: list[str], chosen: tuple[int, ...]
) -> dict[str, Any]:
    """Plain Python numbers among the arguments, which are literals in the program."""
    fixed = {name: arg for i, (name, arg) in enumerate(zip(names, args, strict=True)) if i not in chosen}
    return {
        name: arg
        for name, arg in {**fixed, **kwargs}.items()
        if isinstance(arg, float | int | np.number) and not isinstance(arg, bool)
    }


def _outputs(fun: Any, result: PyTree, has_aux: bool) -> tuple[Outputs, list[Array]]:
    aux_tree, aux_leaves = None, []
    if has_aux:
        if not (isinstance(result, tuple | list) and len(result) == 2):
            raise TypeError(
                f"with has_aux=True the function must return a pair (value, aux), got {type(result).__name__}."
            )
        result, aux = result
        aux_leaves, aux_tree = jax.tree.flatten(aux)
    leaves, tree = jax.tree.flatten(result)
    everything = [*leaves, *aux_leaves]
    fixed = {i: leaf for i, leaf in enumerate(everything) if i >= len(leaves) and not _jaxpr.is_tracer(leaf)}
    traced = [leaf for i, leaf in enumerate(everything) if i not in fixed]
    return Outputs(tree, aux_tree, len(leaves), fixed, len(everything)), traced


def check_points(
    args: tuple[PyTree, ...],
    argnums: Argnums,
    fun: Function,
    holomorphic: bool,
    allow_int: bool,
    word: str,
) -> None:
    """Check that the differentiated arguments can be differentiated.

    Raises:
        TypeError: a leaf is an integer, a boolean, or not an array; complex without `holomorphic` is left to
            JAX.
    """
    names = argument_names(fun, len(args))
    differentiated = normalize_argnums(argnums, len(args))
    _, args, _ = split_models(fun, args, {}, differentiated)
    for position in differentiated:
        for name, leaf in named_leaves(names[position], args[position]):
            _check_point(name, leaf, holomorphic, allow_int, word)


#: What to do with a model object that holds functions and the like besides its arrays.
OF_A_MODEL = (
    "from a model object, split off the arrays (`eqx.partition(model, eqx.is_inexact_array)`, "
    "`nnx.split(model, nnx.Param, ...)`)"
)


def _check_point(name: str, leaf: object, holomorphic: bool, allow_int: bool, word: str) -> None:
    try:
        dtype = jnp.result_type(leaf)
    except (TypeError, ValueError):
        model = f"; {OF_A_MODEL}" if callable(leaf) else ""
        raise TypeError(
            f"`{name}` has type {type(leaf).__name__}, which is not an array and cannot be differentiated. "
            f"Leave it out of `argnums`, or close over it{model}."
        ) from None
    if holomorphic and not jnp.issubdtype(dtype, np.complexfloating):
        raise TypeError(
            f"holomorphic=True requires complex arguments, but `{name}` is {dtype}. Drop holomorphic=True, or "
            "make the argument complex."
        )
    if not _jaxpr.is_inexact(dtype) and not allow_int:
        raise TypeError(
            f"`{name}` is {dtype}: only real and complex floating-point arguments can be differentiated. "
            "Leave it out of `argnums`, convert it to a float, or pass allow_int=True to "
            f"{word} to get a gradient of dtype float0."
        )


# --- tracing a call, with errors that say where -----------------------------------------------------

CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


def _any_structs(tree: PyTree) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def trace_call(
    fun: Function,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
    argnums: Argnums,
    has_aux: bool,
    **options: Any,
) -> Traced:
    try:
        return _trace_call(fun, args, kwargs, argnums, has_aux, **options)
    except CONCRETE as error:
        raise TypeError(
            f"`{name_of(fun)}` cannot be traced: it needs a concrete value where only a tracer is available. "
            "Python control flow, `float()` or NumPy was applied to a differentiated value. Use `jnp.where`, "
            f"`jax.lax.cond` or `jax.numpy`, or leave the argument out of `argnums`.{_users_line(error)}"
        ) from error


def _users_line(error: BaseException) -> str:
    """The innermost line of the user's own code in the traceback of an error."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    if not frames:
        return ""
    return f" The line is {frames[-1].filename}:{frames[-1].lineno}: `{frames[-1].line}`."


def trace_abstract(
    fun: Function, args: tuple[PyTree, ...], kwargs: dict[str, PyTree], argnums: Argnums
) -> Traced:
    """Trace with all arguments abstract, or, where Python branches on one, only the differentiated ones."""
    try:
        return trace_call(fun, args, kwargs, argnums, False, abstract=True)
    except TypeError:
        if _any_structs((args, kwargs)):
            raise
        return trace_call(fun, args, kwargs, argnums, False)
