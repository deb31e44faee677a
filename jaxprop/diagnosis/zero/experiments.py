"""Diagnose why nothing gets through a node, by experiments on its recorded operands.

The causes are told apart by experiments that hold for any operation, not by the name of the primitive: do the
contributions of several consumers cancel, is the cotangent too small for its dtype, does another operand
multiply by zero, does the derivative come back when the operand is moved a little, or far. The name of the
primitive only chooses the words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.graph import Node, Value
from ...core.local import evaluate
from ...core.types import Array, Dtype
from ...record.tape import Tape
from .reachability import is_users
from .wording import RECTIFYING, Advice, saturating

Kind: TypeAlias = Literal["zero", "dead", "saturated"]


@dataclass(frozen=True)
class Suspect:
    """A node that a cotangent reaches, and does not (or hardly) get through.

    Attributes:
        kind: `zero` where nothing gets through, `dead` where nothing for some units, `saturated` where little.
        node: the node.
        output: position of the output the cotangent reaches.
        position: position of the operand it does not reach.
        amount: of `dead` the fraction of units that get nothing, of `saturated` the local gain.
    """

    kind: Kind
    node: Node
    output: int
    position: int
    amount: float = 0.0

    @property
    def operand(self) -> Value:
        return self.node.operands[self.position]


@dataclass(frozen=True)
class ZeroCause:
    """Why nothing gets through a node.

    Attributes:
        advice: the class of the cause, why, and the fix.
        numbers: what was measured.
        factor: position of the operand that multiplies by zero, where there is one.
    """

    advice: Advice
    numbers: Mapping[str, float | str] = field(default_factory=dict)
    factor: int | None = None

    @property
    def name(self) -> str:
        return self.advice.cause


@dataclass(frozen=True, eq=False)
class Experiment:
    """A node with the operands of one step, and the cotangent that reaches it."""

    tape: Tape
    suspect: Suspect
    operands: tuple[Array, ...]
    ct: Array

    @classmethod
    def of(cls, tape: Tape, suspect: Suspect) -> "Experiment":
        """Read a tape that keeps values and cotangents at the node.

        In a loop the step of the greatest cotangent is taken.
        """
        node = suspect.node
        steps = tape.graph.places[node.index].steps
        ct = np.asarray(tape[node.names[suspect.output]].cotangent)
        step: tuple[int, ...] = ()
        if steps:
            sizes = np.abs(ct.astype(np.float32)).reshape(*steps, -1).max(axis=-1, initial=0)
            step = tuple(int(i) for i in np.unravel_index(np.argmax(sizes), steps))
        operands = (jnp.asarray(tape.value_of(value, step)) for value in node.operands)
        return cls(tape, suspect, tuple(operands), jnp.asarray(ct[step]))

    def with_ones(self) -> "Experiment":
        """The same with a cotangent of ones: whether anything can get through."""
        return Experiment(self.tape, self.suspect, self.operands, jnp.ones_like(self.ct))

    @property
    def node(self) -> Node:
        return self.suspect.node

    @property
    def operand(self) -> Array:
        return self.operands[self.suspect.position]

    @property
    def name(self) -> str:
        """The name of the operand that nothing reaches."""
        return self.suspect.operand.name

    def in_ct(
        self,
        *,
        operand: Array | None = None,
        others: Mapping[int, Array] | None = None,
        ct: Array | None = None,
    ) -> Array:
        """The cotangent of the operand, with other numbers in the place of some."""
        x = self.operand if operand is None else operand
        return self.pull(x, others or {}, self.ct if ct is None else ct, self.run)

    def lets_through(
        self,
        *,
        operand: Array | None = None,
        others: Mapping[int, Array] | None = None,
        ct: Array | None = None,
    ) -> bool:
        """Whether anything gets through, with other numbers in the place of some."""
        return bool(jnp.any(self.in_ct(operand=operand, others=others, ct=ct) != 0))

    def run(self, operands: Sequence[Array]) -> Array:
        return evaluate(self.node, operands)[self.suspect.output]

    def pull(
        self, x: Array, others: Mapping[int, Array], ct: Array, run: Callable[[Sequence[Array]], Array]
    ) -> Array:
        full = [others.get(i, operand) for i, operand in enumerate(self.operands)]

        def of(x: Array) -> Array:
            return run([x if i == self.suspect.position else operand for i, operand in enumerate(full)])

        return jax.vjp(of, x)[1](ct)[0]


def cause_of(experiment: Experiment) -> ZeroCause:
    """Find out why no cotangent gets through a node."""
    looks = (
        *(_empty, _branch, _overflow, _rule, _cancelled, _underflow),
        *(_never_selected, _zero_factor, _stationary, _flat_part),
    )
    for look in looks:
        found = look(experiment)
        if found is not None:
            return found
    advice = Advice(
        "zero derivative",
        f"the derivative of `{experiment.node.primitive}` with respect to `{experiment.name}` is zero at these "
        "operands.",
        "look at the operands of the node: `jp.backprop(loss, nodes=[...])` records them.",
    )
    return ZeroCause(advice)


#: The class of the cause where the contributions of all consumers cancel exactly.
CANCELLATION = "exact cancellation"

#: The class of the cause at an optimum.
STATIONARY = "stationary"


def _empty(experiment: Experiment) -> ZeroCause | None:
    if all(0 not in np.shape(x) for x in experiment.operands):
        return None
    return ZeroCause(
        Advice("empty", "it has no elements: an empty batch, or an empty slice.", "leave such batches out.")
    )


def _branch(experiment: Experiment) -> ZeroCause | None:
    if experiment.node.primitive != "cond":
        return None
    taken = int(experiment.operands[0])
    advice = Advice(
        "branch not taken",
        f"it is read in another branch than {taken}, the one taken.",
        "nothing, if the branch is meant to be rare; otherwise look at what selects it.",
    )
    return ZeroCause(advice, {"branch taken": taken})


def _rule(experiment: Experiment) -> ZeroCause | None:
    """A custom rule of the user's, where JAX derives something from its primal."""
    node = experiment.node
    if node.eqn is None or not _jaxpr.has_custom_rule(node.eqn) or not is_users(node):
        return None
    if experiment.lets_through():
        return None
    (body, *_) = _jaxpr.nested_programs(node.eqn)

    def primal(operands: Sequence[Array]) -> Array:
        return _jaxpr.run(body, operands)[experiment.suspect.output]

    derived = experiment.pull(experiment.operand, {}, experiment.ct, primal)
    also = " The derivative of its primal is not zero." if bool(jnp.any(derived != 0)) else ""
    advice = Advice(
        "custom rule",
        f"the custom rule of `{node.primitive}` returned zero for a cotangent that is not zero.{also}",
        "look at its backward half: what it returns must be computed from the cotangent it is given.",
    )
    return ZeroCause(advice)


def _cancelled(experiment: Experiment) -> ZeroCause | None:
    """A contribution that is not zero: another consumer of the same value sends its opposite."""
    in_ct = experiment.in_ct()
    if not bool(jnp.any(in_ct != 0)):
        return None
    advice = Advice(
        CANCELLATION,
        f"the contributions to the cotangent of `{experiment.name}` are not zero, and their sum is.",
        "nothing, if the result does not depend on it: the gradient is truly zero.",
    )
    return ZeroCause(advice, {"contribution": float(jnp.linalg.norm(jnp.ravel(in_ct)))})


def _overflow(experiment: Experiment) -> ZeroCause | None:
    """Infinite operands with a finite derivative: 1 / inf is zero."""
    x = experiment.operand
    if not _jaxpr.is_inexact(x.dtype) or bool(jnp.any(jnp.isfinite(x))) or x.size == 0:
        return None
    advice = Advice(
        "overflow",
        f"`{experiment.name}` exceeds the range of {x.dtype} ({float(jnp.finfo(x.dtype).max):.1e}): it is "
        f"infinite, and the derivative of `{experiment.node.primitive}` there is zero.",
        f"divide by the greatest element first{_or_in(_wider_range(x.dtype))}.",
    )
    return ZeroCause(advice, _range(experiment))


def _underflow(experiment: Experiment) -> ZeroCause | None:
    dtype = experiment.operand.dtype
    top = jnp.max(jnp.abs(experiment.ct))
    if not bool(jnp.isfinite(top)) or bool(top == 0) or not experiment.lets_through(ct=experiment.ct / top):
        return None
    advice = Advice(
        "underflow",
        f"the product is below the smallest normal {dtype} ({float(jnp.finfo(dtype).tiny):.1e}) and is "
        "flushed to zero.",
        f"scale the loss up by a power of two and the gradient down again{_or_in(_wider_range(dtype))}.",
    )
    return ZeroCause(advice, {"|out_ct|": float(top), "dtype": str(dtype)})


def _wider_range(dtype: Dtype) -> str:
    """The dtypes with a wider range, as words; never the one in use."""
    return "bfloat16 or float32" if jnp.dtype(dtype).itemsize < 4 and dtype != jnp.bfloat16 else "float64"


def _or_in(dtypes: str) -> str:
    return f", or compute this part in {dtypes}"


def _never_selected(experiment: Experiment) -> ZeroCause | None:
    if experiment.node.primitive != "select_n" or experiment.suspect.position == 0:
        return None
    taken = np.asarray(experiment.operands[0]).astype(int) == experiment.suspect.position - 1
    advice = Advice(
        "where never taken",
        "the condition selects the other side for every element.",
        "look at the condition; if it should be smooth, weight the two sides: `w * a + (1 - w) * b`.",
    )
    return ZeroCause(advice, {"selected": float(np.mean(taken))})


def _zero_factor(experiment: Experiment) -> ZeroCause | None:
    """Another operand that is zero where the cotangent is not: with ones in its place something passes."""
    for i, x in enumerate(experiment.operands):
        if i == experiment.suspect.position or not _jaxpr.is_inexact(x.dtype) or not bool(jnp.any(x == 0)):
            continue
        if not experiment.lets_through(others={i: jnp.where(x == 0, jnp.ones_like(x), x)}):
            continue
        return _factor(experiment.node.operands[i], i, _mean(x == 0))
    return None


def _factor(value: Value, position: int, zeros: float) -> ZeroCause:
    where = "which is zero everywhere" if zeros == 1 else "which is zero wherever a cotangent arrives"
    if value.literal is not None:
        why = f"it is multiplied by {value.name}, a constant of the program."
        fix = "remove the term, or give it a weight."
    else:
        why = f"it is multiplied by `{value.name}`, {where}."
        fix = f"look at where `{value.name}` comes from: a mask, an input, or weights initialised to zero."
    return ZeroCause(Advice("zero factor", why, fix), {"zeros": zeros}, position)


def _stationary(experiment: Experiment) -> ZeroCause | None:
    """A point where the derivative is zero, and is not a little further on, to both sides."""
    x = experiment.operand
    little = jnp.asarray(1e-3 * max(1.0, float(jnp.max(jnp.abs(x)))), x.dtype)
    if not all(experiment.lets_through(operand=moved) for moved in (x + little, x - little)):
        return None
    advice = Advice(
        STATIONARY,
        f"`{experiment.name}` is exactly where the derivative of `{experiment.node.primitive}` is zero: at an "
        "optimum of the loss, or on a ridge.",
        "nothing, at an optimum; otherwise start next to it (random instead of zero).",
    )
    return ZeroCause(advice, _range(experiment))


def _flat_part(experiment: Experiment) -> ZeroCause | None:
    """A flat part of a function that is not flat elsewhere."""
    name = experiment.node.primitive
    if function := saturating(experiment.node) or ("exp" if name in ("exp", "exp2") else ""):
        advice = Advice(
            "saturated",
            f"far {'below' if function == 'exp' else 'from'} zero {function} is flat: in "
            f"{experiment.operand.dtype} its derivative is zero.",
            "make its input smaller: scale the inputs or the weights before it, or normalise.",
        )
        return ZeroCause(advice, _range(experiment))
    if name.startswith("relu") or name in ("max", "min") and _other_is_zero(experiment):
        return ZeroCause(_DEAD_RELU, {"positive": _mean(experiment.operand > 0), **_range(experiment)})
    if name in RECTIFYING:
        advice = Advice(
            "clipped",
            "every element is outside the bounds, where the value is constant.",
            "keep it inside the bounds (tanh, a sigmoid), or let the cotangent through: "
            f'`jp.grad(loss, rules=[("{experiment.node.name}", jp.rules.straight_through())])`.',
        )
        return ZeroCause(advice, _range(experiment))
    return None


_DEAD_RELU = Advice(
    "dead relu",
    "every element of its input is zero or less, where a relu is flat.",
    "use a lower learning rate, a smaller or positive initial bias, or `jax.nn.leaky_relu` or `jax.nn.gelu`.",
)


def explain_dead(suspect: Suspect) -> Advice:
    """Explain a node at which some units are dead."""
    if suspect.node.primitive in ("clamp", "min"):
        return Advice(
            "clipped",
            "for every example of the batch these units are past the bound, where the value is constant.",
            "keep them inside the bounds (tanh, a sigmoid), or widen the bounds.",
        )
    return Advice(
        "dead relu",
        "they are above zero for no example of the batch: they get no gradient, and stay as they are.",
        _DEAD_RELU.fix,
    )


def explain_saturated(suspect: Suspect) -> Advice:
    """Explain a node that lets little through."""
    return Advice(
        "saturated",
        f"the input of the {saturating(suspect.node)} is so large that it is nearly flat there.",
        "make its input smaller: scale the inputs or the weights before it, or normalise.",
    )


def _other_is_zero(experiment: Experiment) -> bool:
    others = (x for i, x in enumerate(experiment.operands) if i != experiment.suspect.position)
    return any(not bool(jnp.any(x != 0)) for x in others)


def _range(experiment: Experiment) -> dict[str, float]:
    x = np.asarray(experiment.operand)
    if jnp.issubdtype(x.dtype, np.complexfloating):
        return {"greatest |operand|": float(np.max(np.abs(x)))}
    return {"least operand": float(np.min(x)), "greatest operand": float(np.max(x))}


def _mean(x: Array) -> float:
    return float(jnp.mean(x.astype(jnp.float32)))
