"""A node and the rule in force at it, as compiled functions.

They are the rule, the primal on both sides of a point, and the derivatives JAX makes of the primal's own
program.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ... import _jaxpr
from ..._fingerprint import fingerprint
from ..._text import one_line
from ...core.graph import Node
from ...core.local import Local, active_operands, node_function, partial_function, scatter, take
from ...core.rules import Rule, check_in_cts
from ...core.types import Array, Dtype, NodeIndex
from .differences import COARSE_OFFSETS, StepSizes, along, steps_for
from .float64 import UNSUPPORTED, DoublePrecision, is_jaxs_own, primitives_of, widen

#: Relative differences allowed between a rule and differences, by the dtype the rule computes in: well above
#: what rounding explains, well below the error of a wrong rule.
TOLERANCE = {"float64": 1e-6, "float32": 2e-4, "float16": 1e-2, "bfloat16": 5e-2}

#: Primitives that round on purpose: a program with one of them is a quantizer, and its derivative is zero.
ROUNDING = frozenset({"round", "floor", "ceil", "sign"})

#: Primitives of a loop.
LOOPS = frozenset({"while", "scan"})

Arrays: TypeAlias = list[np.ndarray]
Operands: TypeAlias = Sequence[ArrayLike]
Function: TypeAlias = Callable[..., Sequence[Array]]


def tolerance_of(dtypes: Sequence[Dtype]) -> float:
    """Return the tolerance of the least precise of some dtypes."""
    real = {jnp.finfo(dtype).dtype.name for dtype in dtypes if _jaxpr.is_inexact(dtype)}
    return max((TOLERANCE.get(name, 0.1) for name in real), default=TOLERANCE["float64"])


class RuleError(Exception):
    """The rule itself failed."""


class Sides(NamedTuple):
    """The primal on both sides of a point, moved along one operand.

    Attributes:
        values: one array for each kept output, of shape `(directions, offsets, *shape)`.
        pushed: the tangents JAX derives from the primal's program, of shape `(directions, *shape)`; None where
            it derives none.
    """

    values: Arrays
    pushed: Arrays | None


@dataclass(frozen=True, eq=False)
class RuleFunctions:
    """A node and its rule as functions, compiled once for all nodes that do the same.

    Attributes:
        node: one of the nodes.
        rule: the rule given in place of the chain rule, None for JAX's own.
    """

    node: Node
    rule: Rule | None = None
    _precision: list[DoublePrecision] = field(default_factory=lambda: [DoublePrecision()])
    _compiled: dict[tuple[bool, tuple[float, ...]], Function] = field(default_factory=dict)

    # --- what is differentiated ------------------------------------------------------------------

    @functools.cached_property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """For each operand that is moved, all positions it is read in.

        They move together: `jax.lax.custom_root(f, ...)` reads what `f` closes over once for the solution and
            once for the derivative.
        """
        found: dict[int, list[int]] = {}
        for i in active_operands(self.node):
            value = self.node.operands[i]
            if _jaxpr.is_inexact(value.dtype):
                found.setdefault(value.id if value.literal is None else -1 - i, []).append(i)
        return tuple(map(tuple, found.values()))

    @functools.cached_property
    def moved(self) -> tuple[int, ...]:
        """Positions of the operands that are moved; one that is read more than once counts at its first."""
        return tuple(places[0] for places in self.places)

    @functools.cached_property
    def kept(self) -> tuple[int, ...]:
        """Positions of the outputs that a cotangent reaches."""
        return tuple(i for i, v in enumerate(self.node.outputs) if v.active and _jaxpr.is_inexact(v.dtype))

    @functools.cached_property
    def tolerance(self) -> float:
        values = [self.node.operands[i] for i in self.moved] + [self.node.outputs[i] for i in self.kept]
        return tolerance_of([value.dtype for value in values])

    def _of_moved(self, fun: Callable[..., Sequence[Array]], operands: Operands) -> Function:
        """A function of all operands as a function of the moved ones; of its outputs those that are kept."""

        def of(*points: Array) -> list[Array]:
            full = list(operands)
            for places, point in zip(self.places, points, strict=True):
                for place in places:
                    full[place] = point
            return take(fun(*full), self.kept)

        return of

    # --- what kind of node -----------------------------------------------------------------------

    @property
    def has_custom_rule(self) -> bool:
        return self.rule is not None or _jaxpr.custom_form(self.node.eqn) is not None

    @functools.cached_property
    def derivable(self) -> bool:
        """Whether what JAX derives from the node's program is independent of the rule, or JAX's own.

        Of a primitive of a library it is that library's rule once more, which proves nothing.
        """
        return _jaxpr.custom_form(self.node.eqn) is not None or is_jaxs_own(self.node.eqn)

    @functools.cached_property
    def _primitives(self) -> frozenset[str]:
        return primitives_of(self.node.eqn)

    @property
    def stops_gradients(self) -> bool:
        """Whether the program cuts a gradient on purpose, so that its derivative is not its slope."""
        return "stop_gradient" in self._primitives

    @property
    def may_iterate(self) -> bool:
        """Whether the program may be a piecewise constant iteration: not a primitive, not a quantizer."""
        return _jaxpr.custom_form(self.node.eqn) is not None and not self._primitives & ROUNDING

    @property
    def has_loop(self) -> bool:
        return bool(self._primitives & LOOPS)

    # --- in the precision of the program ---------------------------------------------------------

    def _function(self, operands: Operands) -> Function:
        return self._of_moved(node_function(self.node), operands)

    @functools.cached_property
    def _pull(self) -> Callable[[Operands, Operands], list[Array]]:
        def by_jax(operands: Operands, cts: Operands) -> list[Array]:
            _, pull = jax.vjp(self._function(operands), *take(operands, self.moved))
            return list(pull(list(cts)))

        def by_rule(operands: Operands, cts: Operands) -> list[Array]:
            outputs = tuple(node_function(self.node)(*operands))
            local = Local(self.node, tuple(map(jnp.asarray, operands)), outputs)
            full = scatter(cts, self.kept, len(outputs))
            in_cts = check_in_cts(self.rule(local, full), local)  # type: ignore[misc]
            return [self._sum(in_cts, places, operands) for places in self.places]

        return jax.jit(by_jax if self.rule is None else by_rule)

    @staticmethod
    def _sum(in_cts: Sequence[Array | None], places: tuple[int, ...], operands: Operands) -> Array:
        cts = [ct for i in places if (ct := in_cts[i]) is not None]
        return functools.reduce(jnp.add, cts) if cts else jnp.zeros_like(operands[places[0]])

    def pull(self, operands: Operands, cts: Operands) -> list[Array]:
        """Apply the rule: cotangents of the kept outputs to cotangents of the moved operands.

        Raises:
            RuleError: the rule fails.
        """
        try:
            return self._pull(list(operands), list(cts))
        except Exception as error:  # the rule is a user's code, which may raise anything
            raise RuleError(one_line(error)) from error

    @functools.cached_property
    def push(self) -> Callable[[Operands, Operands], list[Array]] | None:
        """The node's own forward rule; None where a `custom_vjp` or a given rule has none."""
        if self.rule is not None or _jaxpr.custom_form(self.node.eqn) != "custom_jvp":
            return None  # that of a primitive is applied in double precision

        def run(operands: Operands, tangents: Operands) -> list[Array]:
            return jax.jvp(self._function(operands), take(operands, self.moved), list(tangents))[1]

        return jax.jit(run)

    # --- in double precision ---------------------------------------------------------------------

    @property
    def precision(self) -> DoublePrecision:
        """How the primal is evaluated: in double precision, or in its own where that does not compile."""
        return self._precision[-1]

    @property
    def steps(self) -> StepSizes:
        """The steps of fine differences, in the precision the primal is evaluated in."""
        return steps_for(self.precision.eps)

    def _wide_function(self, operands: Operands) -> Function:
        return self._of_moved(self.precision.equation(self.node.eqn), [widen(x) for x in operands])

    @functools.cached_property
    def _pull_wide(self) -> Callable[[Operands, Operands], list[Array]]:
        def run(operands: Operands, cts: Operands) -> list[Array]:
            points = [widen(x) for x in take(operands, self.moved)]
            return list(jax.vjp(self._wide_function(operands), *points)[1](list(cts)))

        return jax.jit(run)

    def pull_wide(self, operands: Operands, cts: Arrays) -> Arrays:
        """Return the cotangents JAX derives from the primal's program, in double precision.

        Raises:
            UNSUPPORTED: JAX derives none.
        """
        with jax.enable_x64(True):
            return [np.asarray(x) for x in self._pull_wide(list(operands), [jnp.asarray(ct) for ct in cts])]

    def pull_in_double(self, operands: Operands, cts: Operands) -> Arrays:
        """Apply the rule itself in double precision: what it gives without its own rounding.

        Raises:
            UNSUPPORTED: the rule cannot be traced, or does not run.
        """
        program = _jaxpr.as_program(jax.make_jaxpr(self._pull)(list(operands), list(cts)))
        with jax.enable_x64(True):
            return jax.jit(DoublePrecision().program(program))(*map(widen, (*operands, *cts)))

    def fine_sides(self, operands: Operands, tangents: Sequence[np.ndarray | None]) -> list[Sides | None]:
        """Evaluate the primal at the steps of fine differences, along directions of each moved operand.

        Args:
            operands: the operands of the node.
            tangents: for each moved operand its directions on the first axis; None leaves the operand out.

        Raises:
            UNSUPPORTED: the primal does not run in double precision, nor in its own.
        """
        steps = self.steps
        found = self._sides(operands, tangents, steps.offsets)
        # A fallback to another precision is known once the evaluation is traced: it needs larger steps.
        return found if self.steps == steps else self._sides(operands, tangents, self.steps.offsets)

    def coarse_sides(self, operands: Operands, tangents: Sequence[np.ndarray | None]) -> list[Sides | None]:
        """Evaluate the primal at the steps of coarse differences."""
        return self._sides(operands, tangents, COARSE_OFFSETS)

    def _sides(
        self, operands: Operands, tangents: Sequence[np.ndarray | None], offsets: np.ndarray
    ) -> list[Sides | None]:
        try:
            return self._run_sides(operands, tangents, offsets)
        except UNSUPPORTED:
            if self.precision.as_written:
                raise
        self._precision.append(DoublePrecision(as_written=True))
        return self._run_sides(operands, tangents, offsets)

    def _run_sides(
        self, operands: Operands, tangents: Sequence[np.ndarray | None], offsets: np.ndarray
    ) -> list[Sides | None]:
        key = (self.precision.as_written, tuple(offsets))
        if key not in self._compiled:
            self._compiled[key] = jax.jit(functools.partial(self._evaluate_sides, offsets))
        with jax.enable_x64(True):
            found = self._compiled[key](
                list(operands), [None if t is None else jnp.asarray(t) for t in tangents]
            )
            return jax.tree.map(np.asarray, list(found))

    def _evaluate_sides(
        self, offsets: np.ndarray, operands: Operands, tangents: Sequence[Array | None]
    ) -> list[Sides | None]:
        of = self._wide_function(operands)
        points = [widen(x) for x in take(operands, self.moved)]
        found: list[Sides | None] = []
        for which, ts in enumerate(tangents):
            if ts is None:
                found.append(None)
                continue
            alone = partial_function(of, points, (which,))
            found.append(Sides(along(alone, [points[which]], [ts], offsets), _pushed(alone, points[which], ts)))  # type: ignore[arg-type]
        return found


def _pushed(of: Function, point: Array, ts: Array) -> list[Array] | None:
    try:
        return jax.lax.map(lambda t: list(jax.jvp(of, (point,), (t,))[1]), ts)
    except UNSUPPORTED:  # JAX derives nothing from this program
        return None


# --- nodes that do the same are compiled once --------------------------------------------------------------


class Alike:
    """A node and its rule, equal to those that do the same."""

    def __init__(self, node: Node, rule: Rule | None) -> None:
        types = tuple((v.shape, str(v.dtype), v.active) for v in (*node.operands, *node.outputs))
        ids = [value.id for value in node.operands]
        repeated = tuple(map(ids.index, ids))  # which operands are one value
        self.node, self.rule, self.key = node, rule, (fingerprint(node.eqn), types, repeated)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alike) and self.rule is other.rule and self.key == other.key

    def __hash__(self) -> int:
        return hash((self.key[1:], id(self.rule)))

    @property
    def lasts(self) -> bool:
        """Whether another trace gives the same again. A `custom_vjp` is a new object in each."""
        return _jaxpr.custom_form(self.node.eqn) != "custom_vjp"


def functions_of(
    nodes: Sequence[Node], rules: Mapping[NodeIndex, Rule], compiled: dict[Alike, RuleFunctions]
) -> dict[NodeIndex, RuleFunctions]:
    """The functions of each node, by index; those that the next call can use again are added to `compiled`."""
    once: dict[Alike, RuleFunctions] = {}
    found = {}
    for node in nodes:
        alike = Alike(node, rules.get(node.index))
        kept = compiled if alike.lasts else once
        if alike not in kept:
            kept[alike] = RuleFunctions(node, alike.rule)
        found[node.index] = kept[alike]
    return found
