"""Evaluate a program in double precision: what it computes, without custom rules and without roundings.

Equations are evaluated one by one with float64 operands: dtypes among their parameters are widened, custom
    rules and calls are inlined, nested programs are traced again. A primitive that refuses float64 is evaluated
    in its own precision and its results are widened; the fallback is recorded, since differences must then
    allow for the rounding of that precision. Run it under `jax.enable_x64(True)`.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ... import _jaxpr
from ...core.control_flow import Carriers, Recorded, open_node
from ...core.graph import Graph, Node, Value
from ...core.types import Array, Dtype, NodeIndex
from .differences import DOUBLE_EPS, is_complex

#: Values held constant: by index of the node that produces them, and position of the output.
Held: TypeAlias = Mapping[NodeIndex, Mapping[int, ArrayLike]]

#: What JAX raises where a primitive has no rule, or none for these dtypes. (`NotImplementedError` and the
#: errors of the compiler are `RuntimeError`s.)
UNSUPPORTED = (TypeError, ValueError, RuntimeError, AssertionError)


def wide_dtype(dtype: Dtype) -> Dtype:
    """Return the double precision dtype of the same kind; integers, booleans and keys stay as they are."""
    if not _jaxpr.is_inexact(dtype):
        return dtype
    return jnp.dtype("complex128" if is_complex(dtype) else "float64")


def widen(x: ArrayLike) -> Array:
    """Convert a number or an array to double precision."""
    dtype = jnp.result_type(x)
    return jnp.asarray(x, wide_dtype(dtype)) if _jaxpr.is_inexact(dtype) else x  # type: ignore[return-value]


def narrow(x: Array, aval: object) -> Array:
    """Convert an array back to the dtype it has in the program."""
    dtype = _jaxpr.dtype_of(aval)
    return jnp.asarray(x, dtype) if _jaxpr.is_inexact(dtype) else x


class DoublePrecision:
    """Evaluates equations, programs and graphs in double precision.

    Attributes:
        fallbacks: the primitives that refused float64, each with the machine epsilon it was evaluated in.
            Filled while the evaluation is traced.
        as_written: whether everything is evaluated in the precision of the program, for what does not compile
            in double precision.
    """

    def __init__(self, as_written: bool = False) -> None:
        self.as_written = as_written
        self.fallbacks: dict[str, float] = {}

    @property
    def eps(self) -> float:
        """Machine epsilon of the coarsest precision that was used."""
        return max(self.fallbacks.values(), default=DOUBLE_EPS)

    def equation(self, eqn: Any) -> Callable[..., list[Array]]:
        """Return an equation as a function of operands in double precision."""
        body = _inlined_body(eqn)
        if body is not None:
            return self.program(body)
        name = eqn.primitive.name
        if name == "reduce_precision" and not self.as_written:
            return lambda x: [x]
        if not any(_jaxpr.is_inexact(_jaxpr.dtype_of(atom.aval)) for atom in eqn.invars):
            return lambda *operands: _as_written(eqn, operands)
        bits = name == "bitcast_convert_type"  # means something else in another precision

        def evaluate(*operands: Array) -> list[Array]:
            if not (self.as_written or bits):
                try:
                    return [widen(out) for out in _jaxpr.as_function(self._widened(eqn))(*operands)]
                except UNSUPPORTED:
                    pass
            dtypes = [_jaxpr.dtype_of(var.aval) for var in (*eqn.invars, *eqn.outvars)]
            coarsest = max(float(jnp.finfo(dtype).eps) for dtype in dtypes if _jaxpr.is_inexact(dtype))
            if coarsest > DOUBLE_EPS:
                self.fallbacks[name] = max(coarsest, self.fallbacks.get(name, 0.0))
            return _as_written(eqn, operands)

        return evaluate

    def program(self, program: _jaxpr.Program) -> Callable[..., list[Array]]:
        """Return a program as a function of operands in double precision."""

        def run(*operands: Array) -> list[Array]:
            jaxpr, consts = program
            env = dict(zip(jaxpr.invars, operands, strict=True))
            env |= zip(jaxpr.constvars, map(widen, consts), strict=True)

            def read(atom: Any) -> Array:
                return widen(atom.val) if _jaxpr.is_literal(atom) else env[atom]

            for eqn in jaxpr.eqns:
                env |= zip(eqn.outvars, self.equation(eqn)(*map(read, eqn.invars)), strict=True)
            return list(map(read, jaxpr.outvars))

        return run

    def graph(self, graph: Graph, operands: Sequence[Array], held: Held) -> list[Array]:
        """Run a graph in double precision, values without a derivative held constant.

        That is the function whose derivative the gradient is: what `stop_gradient` and the like cut off does
            not move. The factors by which `jnp.linalg.solve` solves do, since its derivative goes by the
            matrix.
        """
        return self._graph(graph, operands, held)[0]

    def _graph(self, graph: Graph, operands: Sequence[Array], held: Carriers) -> tuple[list[Array], Recorded]:
        env: dict[int, Array] = {}

        def read(value: Value) -> Array:
            return widen(value.literal) if value.literal is not None else env[value.id]

        def write(node: Node, results: Sequence[Array]) -> None:
            mine = held.get(node.index, {})
            for position, (value, result) in enumerate(zip(node.outputs, results, strict=True)):
                env[value.id] = mine.get(position, result)

        for head, operand in zip(graph.heads, operands, strict=True):
            write(head, [operand])
        for node in graph.equations():
            computed = self._factors(graph, node, read)
            given = [computed[v.id] if v.id in computed else read(v) for v in node.operands]
            if node.opened and node.graphs:
                write(node, open_node(node, self._graph)(given, held)[0])
            else:
                write(node, self.equation(node.eqn)(*given))
        return list(map(read, graph.outputs)), Recorded.nothing()

    def _factors(self, graph: Graph, solve: Node, read: Callable[[Value], Array]) -> dict[int, Array]:
        """Recompute what a linear solve is cut off from, from the matrix its derivative goes by; by id."""
        positions = _jaxpr.matrix_operands(solve.eqn)
        if positions is None:
            return {}
        matrix = {value.id for i in positions if (value := solve.operands[i]).literal is None}
        computed: dict[int, Array] = {}
        for node in itertools.takewhile(lambda node: node is not solve, graph.equations()):
            cut_off = not node.active and not node.opened
            if cut_off and any(value.id in matrix or value.id in computed for value in node.operands):
                given = (computed[v.id] if v.id in computed else read(v) for v in node.operands)
                computed |= zip((v.id for v in node.outputs), self.equation(node.eqn)(*given), strict=True)
        return computed

    def _widened(self, eqn: Any) -> Any:
        """Return the equation with every dtype in its parameters widened."""
        return eqn.replace(params={key: self._widened_param(param) for key, param in eqn.params.items()})

    def _widened_param(self, param: Any) -> Any:
        if _jaxpr.is_program(param):
            return self._widened_program(param)
        if isinstance(param, np.dtype) or (isinstance(param, type) and issubclass(param, np.generic)):
            return wide_dtype(jnp.dtype(param))
        if isinstance(param, tuple | list) and any(map(_jaxpr.is_program, param)):
            items = [self._widened_param(item) for item in param]
            return type(param)(*items) if hasattr(param, "_fields") else type(param)(items)
        return param

    def _widened_program(self, param: Any) -> Any:
        program = _jaxpr.as_program(param)
        structs = [
            jax.ShapeDtypeStruct(_jaxpr.shape_of(v.aval), wide_dtype(_jaxpr.dtype_of(v.aval)))
            for v in program.jaxpr.invars
        ]
        closed = jax.make_jaxpr(self.program(program))(*structs)
        return closed if hasattr(param, "jaxpr") else closed.jaxpr


def _as_written(eqn: Any, operands: Sequence[Array]) -> list[Array]:
    """Evaluate an equation in the precision of the program, and widen its results."""
    narrowed = (narrow(x, atom.aval) for x, atom in zip(operands, eqn.invars, strict=True))
    return [widen(out) for out in _jaxpr.as_function(eqn)(*narrowed)]


def _inlined_body(eqn: Any) -> _jaxpr.Program | None:
    """Return what an equation computes, where it is no more than the program in it, else None."""
    call = _jaxpr.inlined_program(eqn)
    if call is not None:
        return call
    form = _jaxpr.opened_form(eqn)
    return form.body if isinstance(form, _jaxpr.Remat) else _jaxpr.primal_program(eqn)


def primitives_of(eqn: Any) -> frozenset[str]:
    """Return the names of the primitives an equation is computed by: those of its body, or its own."""
    body = _inlined_body(eqn)
    return frozenset({eqn.primitive.name}) if body is None else _jaxpr.primitives(body.jaxpr)


def is_jaxs_own(eqn: Any) -> bool:
    """Whether `jax.lax` exports the primitive of an equation: its rule is JAX's, not a library's."""
    name = f"{eqn.primitive.name.replace('-', '_')}_p"
    exported = (getattr(place, name, None) for place in (jax.lax, jax.lax.linalg))
    return eqn.primitive in exported or _jaxpr.matrix_operands(eqn) is not None
