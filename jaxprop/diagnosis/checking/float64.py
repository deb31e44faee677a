"""A program in double precision: what it computes, without the rules and the roundings people put on it.

Equations are evaluated one by one with float64 operands: dtypes among their parameters are widened, custom
rules and calls are inlined, programs within are traced anew. What cannot be had in double precision is computed
as it stands, and its results are widened. To be run under `jax.enable_x64(True)`.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.control_flow import Carriers, Recorded, open_node
from ...core.graph import Graph, Node
from ...core.types import NodeIndex

#: Values held where they are, by index of the node that makes them and number of its output.
Held = Mapping[NodeIndex, Mapping[int, Any]]


def wide_dtype(dtype: Any) -> Any:
    """The double precision dtype of its kind; integers, booleans and keys stay."""
    if not _jaxpr.is_inexact(dtype):
        return dtype
    return jnp.dtype("complex128" if jnp.issubdtype(dtype, np.complexfloating) else "float64")


def widen(x: Any) -> Any:
    """A number or an array in double precision."""
    dtype = jnp.result_type(x)
    return jnp.asarray(x, wide_dtype(dtype)) if _jaxpr.is_inexact(dtype) else x


def narrow(x: Any, aval: Any) -> Any:
    """The inverse of `widen`: an array in the dtype it has in the program."""
    dtype = _jaxpr.dtype_of(aval)
    return jnp.asarray(x, dtype) if _jaxpr.is_inexact(dtype) else x


def wide_equation(eqn: Any) -> Callable[..., list[Any]]:
    """An equation as a function of operands in double precision."""
    body = _body(eqn)
    if body is not None:
        return lambda *operands: wide_program(body)(*operands)
    if eqn.primitive.name == "reduce_precision":
        return lambda x: [x]

    def as_it_stands(*operands: Any) -> list[Any]:
        narrowed = (narrow(x, atom.aval) for x, atom in zip(operands, eqn.invars, strict=True))
        return [widen(out) for out in _jaxpr.as_function(eqn)(*narrowed)]

    if not any(_jaxpr.is_inexact(_jaxpr.dtype_of(atom.aval)) for atom in eqn.invars):
        return as_it_stands
    if eqn.primitive.name == "bitcast_convert_type":
        return as_it_stands

    def in_double(*operands: Any) -> list[Any]:
        try:
            return [widen(out) for out in _jaxpr.as_function(_widened(eqn))(*operands)]
        except Exception:  # whatever a primitive has against another dtype
            return as_it_stands(*operands)

    return in_double


def wide_program(program: _jaxpr.Program) -> Callable[..., list[Any]]:
    """A program as a function of operands in double precision."""

    def run(*operands: Any) -> list[Any]:
        jaxpr, consts = program
        env = dict(zip(jaxpr.invars, operands, strict=True))
        env |= zip(jaxpr.constvars, map(widen, consts), strict=True)

        def read(atom: Any) -> Any:
            return widen(atom.val) if _jaxpr.is_literal(atom) else env[atom]

        for eqn in jaxpr.eqns:
            env |= zip(eqn.outvars, wide_equation(eqn)(*map(read, eqn.invars)), strict=True)
        return list(map(read, jaxpr.outvars))

    return run


def wide_graph(graph: Graph, operands: Sequence[Any], held: Held) -> list[Any]:
    """Run a graph in double precision, values that carry no derivative held where they were.

    So it is the function whose derivative the gradient is: what `stop_gradient` and the like cut off stands
    still; but for the factors by which `jnp.linalg.solve` solves, since its derivative goes by the matrix.
    """
    return _sweep(graph, operands, held)[0]


def _sweep(graph: Graph, operands: Sequence[Any], held: Carriers) -> tuple[list[Any], Recorded]:
    env: dict[int, Any] = {}

    def read(value: Any) -> Any:
        return widen(value.literal) if value.literal is not None else env[value.id]

    def write(node: Any, results: Sequence[Any]) -> None:
        mine = held.get(node.index, {})
        for position, (value, result) in enumerate(zip(node.outputs, results, strict=True)):
            env[value.id] = mine.get(position, result)

    for head, operand in zip(graph.heads, operands, strict=True):
        write(head, [operand])

    for node in graph.equations():
        made = _factors(graph, node, read)
        given = [made[value.id] if value.id in made else read(value) for value in node.operands]
        if node.opened and node.graphs:
            write(node, open_node(node, _sweep)(given, held)[0])
        else:
            write(node, wide_equation(node.eqn)(*given))
    return list(map(read, graph.outputs)), Recorded.nothing()


def _factors(graph: Graph, solve: Node, read: Callable[[Any], Any]) -> dict[int, Any]:
    """What a linear solve is cut off from, made anew of what its derivative goes by; by id of the value."""
    positions = _jaxpr.matrix_operands(solve.eqn)
    if positions is None:
        return {}
    matrix = {value.id for i in positions if (value := solve.operands[i]).literal is None}
    made: dict[int, Any] = {}
    for node in itertools.takewhile(lambda node: node is not solve, graph.equations()):
        cut_off = not node.active and not node.opened
        if cut_off and any(value.id in matrix or value.id in made for value in node.operands):
            given = (made[value.id] if value.id in made else read(value) for value in node.operands)
            made |= zip((value.id for value in node.outputs), wide_equation(node.eqn)(*given), strict=True)
    return made


def _body(eqn: Any) -> _jaxpr.Program | None:
    """What an equation computes, where it is no more than the program in it, else None."""
    call = _jaxpr.inlined_program(eqn)
    if call is not None:
        return call
    form = _jaxpr.opened_form(eqn)
    if isinstance(form, _jaxpr.Remat):
        return form.body
    return _jaxpr.primal_program(eqn)


def _widened(eqn: Any) -> Any:
    """The equation, every dtype in its parameters widened."""
    return eqn.replace(params={key: _widened_param(param) for key, param in eqn.params.items()})


def _widened_param(param: Any) -> Any:
    if _jaxpr.is_program(param):
        return _widened_program(param)
    if isinstance(param, np.dtype) or (isinstance(param, type) and issubclass(param, np.generic)):
        return wide_dtype(jnp.dtype(param))
    if isinstance(param, tuple | list) and any(map(_jaxpr.is_program, param)):
        items = [_widened_param(item) for item in param]
        return type(param)(*items) if hasattr(param, "_fields") else type(param)(items)
    return param


def _widened_program(param: Any) -> Any:
    program = _jaxpr.as_program(param)
    structs = [
        jax.ShapeDtypeStruct(_jaxpr.shape_of(v.aval), wide_dtype(_jaxpr.dtype_of(v.aval)))
        for v in program.jaxpr.invars
    ]
    closed = jax.make_jaxpr(wide_program(program))(*structs)
    return closed if hasattr(param, "jaxpr") else closed.jaxpr


# --- differences ---------------------------------------------------------------------------------


class Slope(NamedTuple):
    """How an output changes along a direction, by differences.

    Attributes:
        value: `(f(x + h t) - f(x - h t)) / 2 h`, zero where it is not smooth.
        doubt: how far two steps differ in it.
        smooth: where the two sides agree, so that there is a derivative.
    """

    value: Any
    doubt: Any
    smooth: Any


#: The steps of the differences, relative to the size of the point, in double precision.
STEPS = (1e-4, 1e-5)


def along(
    fun: Callable[..., Sequence[Any]],
    points: Sequence[Any],
    tangents: Sequence[Any],
    steps: tuple[float, float] = STEPS,
) -> list[Any]:
    """Values of `fun` on both sides of `points`, for `slope`: axes direction and offset come first.

    Tangents have the directions on the first axis. One loop over all of it, so that `fun` is compiled once.
    """
    count = len(tangents[0])
    offsets = _offsets(steps)

    def at(offset: Any, number: Any) -> Sequence[Any]:
        moved = (x + jnp.asarray(offset, x.dtype) * t[number] for x, t in zip(points, tangents, strict=True))
        return fun(*moved)

    every = jnp.asarray(np.tile(offsets, count)), jnp.asarray(np.repeat(np.arange(count), len(offsets)))
    values = jax.lax.map(lambda pair: at(*pair), every)
    return [value.reshape(count, len(offsets), *value.shape[1:]) for value in values]


def _offsets(steps: tuple[float, float]) -> Any:
    long, short = steps
    return np.array([0.0, long, -long, short, -short])


def slope(values: Any, steps: tuple[float, float] = STEPS) -> Slope:
    """Central differences of an output along one direction, at two steps.

    Where the one-sided ones part, and do not come together as the step gets smaller, there is a kink or a jump,
    and no derivative.
    """
    long, short = steps
    at, far, far_back, near, near_back = np.asarray(values)
    with np.errstate(all="ignore"):
        slope_far, slope = (far - far_back) / (2 * long), (near - near_back) / (2 * short)
        jump_far = np.abs(far + far_back - 2 * at) / long
        jump = np.abs(near + near_back - 2 * at) / short
        noise = 16 * 2.0**-52 * np.max(np.abs(at), initial=0.0, where=np.isfinite(at)) / short
        size = np.maximum(np.abs(near - at), np.abs(at - near_back)) / short
        smooth = (jump <= 1e-4 * size + noise) | (jump <= 2 * (short / long) * jump_far + noise)
        smooth &= np.isfinite(slope) & np.isfinite(slope_far)
        doubt = np.where(smooth, np.abs(slope - slope_far) + noise, 0)
    return Slope(np.where(smooth, slope, 0), doubt, smooth)


def size_of(x: Any) -> float:
    """The root mean square of an array, 1 where it is zero."""
    values = np.abs(np.asarray(x, dtype=np.complex128))
    finite = values[np.isfinite(values)]
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return rms if math.isfinite(rms) and rms > 0 else 1.0
