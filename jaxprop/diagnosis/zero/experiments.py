"""Why nothing gets through a node: tried out on the numbers it stood at.

The causes are told apart by experiments that hold for any operation, not by the name of the primitive: is the
cotangent too small for its type; does another operand multiply by zero; does the derivative come back when the
operand is moved a little, or far. The name of the primitive only chooses the words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.graph import Node
from ...core.local import evaluate
from ...record.tape import Tape
from .reachability import is_users
from .suspects import Suspect
from .wording import RECTIFYING, Words, saturating


@dataclass(frozen=True)
class Cause:
    """Why nothing gets through a node.

    Attributes:
        words: the class of the cause, why, and the fix.
        numbers: what was seen.
        factor: the operand that multiplies by zero, where there is one.
    """

    words: Words
    numbers: Mapping[str, Any] = field(default_factory=dict)
    factor: int | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """A node at the numbers of one step, with the cotangent that came to it."""

    tape: Tape
    suspect: Suspect
    operands: tuple[Any, ...]
    ct: Any

    @classmethod
    def of(cls, tape: Tape, suspect: Suspect) -> "Point":
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

    @property
    def node(self) -> Node:
        return self.suspect.node

    @property
    def operand(self) -> Any:
        return self.operands[self.suspect.position]

    def lets_through(
        self, *, operand: Any = None, others: Mapping[int, Any] | None = None, ct: Any = None
    ) -> bool:
        """Whether anything gets through with other numbers in the place of some."""
        x = self.operand if operand is None else operand
        return bool(jnp.any(self.pull(x, others or {}, self.ct if ct is None else ct, self.run) != 0))

    def run(self, operands: Sequence[Any]) -> Any:
        return evaluate(self.node, operands)[self.suspect.output]

    def pull(self, x: Any, others: Mapping[int, Any], ct: Any, run: Callable[[Sequence[Any]], Any]) -> Any:
        full = [others.get(i, operand) for i, operand in enumerate(self.operands)]

        def of(x: Any) -> Any:
            return run([x if i == self.suspect.position else operand for i, operand in enumerate(full)])

        return jax.vjp(of, x)[1](ct)[0]


def cause_of(point: Point) -> Cause:
    """Find out why no cotangent gets through a node."""
    for look in (_empty, _branch, _overflow, _rule, _underflow, _never_chosen, _factor, _stationary, _flat):
        found = look(point)
        if found is not None:
            return found
    words = Words(
        "zero derivative",
        f"at these numbers the derivative of `{point.node.primitive}` by `{point.suspect.operand.name}` "
        "is zero.",
        "look at the operands of the node: `jp.backprop(loss, nodes=[...])` records them.",
    )
    return Cause(words)


def _empty(point: Point) -> Cause | None:
    if all(0 not in np.shape(x) for x in point.operands):
        return None
    words = Words(
        "empty", "there are no numbers in it: an empty batch, or an empty slice.", "leave such batches out."
    )
    return Cause(words)


def _branch(point: Point) -> Cause | None:
    if point.node.primitive != "cond":
        return None
    taken = int(point.operands[0])
    words = Words(
        "branch not taken",
        f"it is read in another branch than {taken}, the one taken.",
        "nothing, if the branch is meant to be rare; else look at what decides it.",
    )
    return Cause(words, {"branch taken": taken})


def _rule(point: Point) -> Cause | None:
    """A custom rule of the user's, where autodiff of its own primal gives something."""
    node = point.node
    if node.eqn is None or not _jaxpr.has_custom_rule(node.eqn) or not is_users(node):
        return None
    (body, *_) = _jaxpr.nested_programs(node.eqn)

    def primal(operands: Sequence[Any]) -> Any:
        return _jaxpr.run(body, operands)[point.suspect.output]

    by_autodiff = point.pull(point.operand, {}, point.ct, primal)
    also = " Autodiff of the function itself gives something." if bool(jnp.any(by_autodiff != 0)) else ""
    words = Words(
        "custom rule",
        f"the custom rule of `{node.primitive}` returned zero for a cotangent that was not.{also}",
        "look at its backward half: what it returns must be made from the cotangent it is given.",
    )
    return Cause(words)


def _overflow(point: Point) -> Cause | None:
    """Infinite operands with a finite derivative: 1 / inf is zero."""
    x = point.operand
    if not _jaxpr.is_inexact(x.dtype) or bool(jnp.any(jnp.isfinite(x))) or x.size == 0:
        return None
    most = float(jnp.finfo(x.dtype).max)
    words = Words(
        "overflow",
        f"`{point.suspect.operand.name}` is more than {x.dtype} can hold ({most:.1e}): it is infinite, and the "
        f"derivative of `{point.node.primitive}` there is zero.",
        "compute this part in float32, or divide by the greatest element before.",
    )
    return Cause(words, _range(point))


def _underflow(point: Point) -> Cause | None:
    dtype = point.operand.dtype
    top = jnp.max(jnp.abs(point.ct))
    if not bool(jnp.isfinite(top)) or bool(top == 0) or not point.lets_through(ct=point.ct / top):
        return None
    words = Words(
        "underflow",
        f"the product is smaller than {dtype} can hold ({float(jnp.finfo(dtype).tiny):.1e}) and becomes zero.",
        "scale the loss up by a power of two and the gradient down again, or compute this in bfloat16 or "
        "float32.",
    )
    return Cause(words, {"|ct| that came": float(top), "dtype": str(dtype)})


def _never_chosen(point: Point) -> Cause | None:
    node = point.node
    if node.primitive != "select_n" or point.suspect.position == 0:
        return None
    taken = np.asarray(point.operands[0]).astype(int) == point.suspect.position - 1
    words = Words(
        "where never taken",
        "the condition picks the other side for every element.",
        "look at the condition; if it should be smooth, weigh the two sides: `w * a + (1 - w) * b`.",
    )
    return Cause(words, {"chosen": float(np.mean(taken))})


def _factor(point: Point) -> Cause | None:
    """Another operand that is zero where the cotangent is not: with ones in its place something comes."""
    for i, x in enumerate(point.operands):
        if i == point.suspect.position or not _jaxpr.is_inexact(x.dtype) or not bool(jnp.any(x == 0)):
            continue
        if not point.lets_through(others={i: jnp.where(x == 0, jnp.ones_like(x), x)}):
            continue
        value = point.node.operands[i]
        zeros = _share(x == 0)
        where = "which is zero throughout" if zeros == 1 else "which is zero wherever a cotangent comes"
        if value.literal is not None:
            words = Words(
                "zero factor",
                f"it is multiplied by {value.name}, a number that stands in the program.",
                "take the term away, or give it a weight.",
            )
        else:
            words = Words(
                "zero factor",
                f"it is multiplied by `{value.name}`, {where}.",
                f"look at where `{value.name}` comes from: a mask, an input, or weights that begin at zero.",
            )
        return Cause(words, {"zeros": zeros}, i)
    return None


def _stationary(point: Point) -> Cause | None:
    """A point where the derivative is zero and is not a little further on, to both sides."""
    x = point.operand
    little = jnp.asarray(1e-3 * max(1.0, float(jnp.max(jnp.abs(x)))), x.dtype)
    ways = [point.lets_through(operand=moved) for moved in (x + little, x - little)]
    if all(ways):
        words = Words(
            "stationary",
            f"`{point.suspect.operand.name}` stands just where the derivative of `{point.node.primitive}` "
            "is zero: "
            "the loss is at an optimum, or on a ridge between two.",
            "nothing, at an optimum; else begin a little beside it (random in place of zero).",
        )
        return Cause(words, _range(point))
    return None


def _flat(point: Point) -> Cause | None:
    """A flat part of a function that is not flat elsewhere."""
    name = point.node.primitive
    if said := saturating(point.node) or ("exp" if name in ("exp", "exp2") else ""):
        words = Words(
            "saturated",
            f"far {'below' if said == 'exp' else 'from'} zero {said} is flat: in {point.operand.dtype} "
            "its derivative is zero there.",
            "make what goes into it smaller: scale the inputs or the weights before it, or normalise.",
        )
        return Cause(words, _range(point))
    if name.startswith("relu") or name in ("max", "min") and _other_is_zero(point):
        return Cause(_DEAD_RELU, {"positive": _share(point.operand > 0), **_range(point)})
    if name in RECTIFYING:
        words = Words(
            "clipped",
            "every element is outside of the bounds, and past a bound the value is constant.",
            "keep it inside of the bounds (tanh, a sigmoid), or let the cotangent through: "
            f'`jp.grad(loss, rules=[("{point.node.name}", jp.rules.straight_through())])`.',
        )
        return Cause(words, _range(point))
    return None


_DEAD_RELU = Words(
    "dead relu",
    "every element that goes into it is zero or less, and there a relu is flat.",
    "a lower learning rate, a smaller or positive bias at the start, or `jax.nn.leaky_relu` or `jax.nn.gelu`.",
)


def words_of_dead(suspect: Suspect) -> Words:
    """What is said where only some units are dead."""
    if suspect.node.primitive in ("clamp", "min"):
        return Words(
            "clipped",
            "for every example of the batch these units are past the bound, where the value is constant.",
            "keep them inside of the bounds (tanh, a sigmoid), or widen the bounds.",
        )
    return Words(
        "dead relu",
        "for no example of the batch they are above zero: they get no gradient, and so they stay as they are.",
        _DEAD_RELU.fix,
    )


def words_of_saturated(suspect: Suspect) -> Words:
    said = saturating(suspect.node)
    return Words(
        "saturated",
        f"what goes into the {said} is so large that it is nearly flat there.",
        "make what goes into it smaller: scale the inputs or the weights before it, or normalise.",
    )


def _other_is_zero(point: Point) -> bool:
    return any(i != point.suspect.position and not bool(jnp.any(x != 0)) for i, x in enumerate(point.operands))


def _range(point: Point) -> dict[str, float]:
    x = np.asarray(point.operand)
    if jnp.issubdtype(x.dtype, np.complexfloating):
        return {"greatest |operand|": float(np.max(np.abs(x)))}
    return {"least operand": float(np.min(x)), "greatest operand": float(np.max(x))}


def _share(x: Any) -> float:
    return float(jnp.mean(x.astype(jnp.float32)))
