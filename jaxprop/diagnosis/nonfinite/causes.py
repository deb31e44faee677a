"""Causes of NaN and Inf: what the evidence must look like, the cause in a sentence, and the fix."""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ... import _jaxpr
from ...core.graph import Node
from ...core.structure import producers
from ...naming.syntax import is_library
from .events import Kind
from .evidence import Evidence
from .expressions import called
from .probe import moves
from .stable_forms import StableForm

#: Decides whether a cause fits the evidence.
Predicate: TypeAlias = Callable[[Evidence], bool]

#: What may stand in braces in the sentences of a cause.
FIELDS = ("a", "b", "y", "operation", "dtype", "wider")


@dataclass(frozen=True)
class Cause:
    """One reason why an operation produces NaN or Inf, and what to do about it.

    Causes are matched in order, and the first that fits is reported. They are passed to `diagnose`, your own
    before the default ones: `jp.diagnose(loss, causes=(mine, *DEFAULT_CAUSES))`.

    Attributes:
        name: the class of the cause, in a few words, such as `log of 0`; it becomes `Finding.cause`.
        matches: a predicate on the `Evidence`.
        why: the cause in one sentence. `{a}` and `{b}` are replaced by the numbers of the operands, `{y}` by
            that of the result, `{operation}` by the primitive, `{dtype}` by the dtype.
        fix: what to do, in words, with the same replacements; `{wider}` names a dtype of larger range. It is
            printed if no stable form passes its trial.
        forms: stable forms to try, the best first. The first that fits the expression in the source, and whose
            value and gradient are right at the numbers of this run, is printed as code.

    Raises:
        TypeError: an attribute has the wrong type.
        ValueError: a sentence has an unknown replacement.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> from jaxprop.diagnosis import DEFAULT_CAUSES, Cause
        >>> empty_bin = Cause(
        ...     name="empty bin",
        ...     matches=lambda evidence: evidence.primitive == "log" and "histogram" in evidence.code,
        ...     why="a bin of the histogram is empty.",
        ...     fix="use wider bins, or add a pseudocount",
        ... )
        >>> def entropy(histogram):
        ...     return -jnp.sum(jnp.log(histogram))
        >>> diagnosed = jp.diagnose(entropy, causes=(empty_bin, *DEFAULT_CAUSES))
        >>> diagnosed(jnp.array([3.0, 0.0]))[0].cause
        'empty bin'
    """

    name: str
    matches: Predicate
    why: str
    fix: str
    forms: tuple[StableForm, ...] = ()

    def __post_init__(self) -> None:
        for field in ("name", "why", "fix"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(
                    f"`{field}` of a cause must be a str, got {type(getattr(self, field)).__name__}."
                )
        if not callable(self.matches):
            raise TypeError(
                f"`matches` of the cause {self.name!r} must be a function of the evidence that returns a bool, "
                f"got {type(self.matches).__name__}."
            )
        for form in self.forms:
            if not isinstance(form, StableForm):
                raise TypeError(
                    f"`forms` of the cause {self.name!r} must hold `jaxprop.diagnosis.StableForm`s, got "
                    f"{type(form).__name__}."
                )
        for text in (self.why, self.fix):
            for _, name, _, _ in string.Formatter().parse(text):
                if name is not None and name not in FIELDS:
                    raise ValueError(
                        f"the sentence {text!r} of the cause {self.name!r} has the unknown replacement "
                        f"{{{name}}}; available: {', '.join(f'{{{field}}}' for field in FIELDS)}. Double the "
                        "braces to print them."
                    )


def check_causes(causes: object) -> tuple[Cause, ...]:
    """Check the `causes` of `diagnose`.

    Raises:
        TypeError: it is not a sequence, or an entry is not a `Cause`.
    """
    if not isinstance(causes, Sequence) or isinstance(causes, str):
        raise TypeError(
            "`causes` must be a sequence of `jaxprop.diagnosis.Cause`, such as `(mine, *DEFAULT_CAUSES)`; got "
            f"{type(causes).__name__}."
        )
    for i, cause in enumerate(causes):
        if not isinstance(cause, Cause):
            raise TypeError(
                f"`causes[{i}]` must be a `jaxprop.diagnosis.Cause`, got {type(cause).__name__}. Wrap a "
                "function in one: `Cause(name=..., matches=function, why=..., fix=...)`."
            )
    return tuple(causes)


# --- predicates ------------------------------------------------------------------------------------


def all_of(*predicates: Predicate) -> Predicate:
    """All of the predicates hold."""
    return lambda evidence: all(predicate(evidence) for predicate in predicates)


def any_of(*predicates: Predicate) -> Predicate:
    """One of the predicates holds."""
    return lambda evidence: any(predicate(evidence) for predicate in predicates)


def forward(*primitives: str) -> Predicate:
    """The bad number begins in the forward pass, at one of these primitives; at any if none is given."""
    return lambda evidence: not evidence.backward and (not primitives or evidence.primitive in primitives)


def backward(*primitives: str) -> Predicate:
    """The bad number begins in the backward pass, at one of these primitives; at any if none is given."""
    return lambda evidence: evidence.backward and (not primitives or evidence.primitive in primitives)


def begins(*kinds: Kind) -> Predicate:
    """The bad number begins in one of these ways."""
    return lambda evidence: evidence.kind in kinds


def operand(test: Callable[[Any], object], position: int = 0) -> Predicate:
    """The number of one operand passes a test."""

    def of(evidence: Evidence) -> bool:
        x = evidence.x[position] if position < len(evidence.x) else None
        return x is not None and bool(test(x))

    return of


def operands(test: Callable[[Any, Any], object]) -> Predicate:
    """The numbers of the first two operands pass a test."""

    def of(evidence: Evidence) -> bool:
        if len(evidence.x) < 2:
            return False
        a, b = evidence.x[:2]
        return a is not None and b is not None and bool(test(a, b))

    return of


def in_call(*names: str) -> Predicate:
    """The source calls a function of one of these names there, or the node is inside of one."""
    return lambda evidence: called(evidence.code) in names or evidence.has_scope(*names)


def is_masked(evidence: Evidence) -> bool:
    """Whether the bad number does not reach the loss: the forward pass masks it."""
    return not evidence.reaches_loss


def is_norm(evidence: Evidence) -> bool:
    """Whether the operand is a sum: of squares, as a rule."""
    producer = _before_moves(evidence)
    return "norm" in called(evidence.code) or (
        producer is not None and producer.primitive in ("reduce_sum", "dot_general")
    )


def _before_moves(evidence: Evidence) -> Node | None:
    """The node that produces the first operand, seen through reshapes and the like."""
    producer = evidence.producer(0)
    while producer is not None and producer.operands and moves(producer):
        producer = producers(evidence.graph).get(producer.operands[0].id)
    return producer


def is_divisor(evidence: Evidence) -> bool:
    """Whether the result is divided by, seen through reshapes and the like."""
    level = evidence.graph.places[evidence.node.index].graph
    results = {value.id for value in evidence.node.outputs}
    for node in level.equations():
        if moves(node) and node.operands and node.operands[0].id in results:
            results.update(value.id for value in node.outputs)
        elif node.primitive == "div" and node.operands[1].id in results:
            return True
    return False


def exponent(evidence: Evidence) -> float:
    """The exponent of a power; NaN if there is none."""
    if evidence.primitive == "integer_pow":
        return float(evidence.node.params.get("y", 0))
    p = evidence.x[1] if len(evidence.x) > 1 else None
    return np.nan if p is None else float(np.real(p))


def has_custom_rule(evidence: Evidence) -> bool:
    """Whether the operation has a custom derivative rule."""
    return evidence.node.eqn is not None and _jaxpr.has_custom_rule(evidence.node.eqn)


def has_library_rule(evidence: Evidence) -> bool:
    """Whether the operation has a custom derivative rule that an installed library defines."""
    if not has_custom_rule(evidence):
        return False
    assert evidence.node.eqn is not None
    program = _jaxpr.primal_program(evidence.node.eqn)
    file = None if program is None else program.function_file
    return file is not None and is_library(file)


def has_row_of_minus_inf(evidence: Evidence) -> bool:
    """Whether a whole row of an operand is minus infinity."""
    for x in evidence.operands:
        if x is not None and np.ndim(x) and np.size(x) and np.any(np.all(np.asarray(x) == -np.inf, axis=-1)):
            return True
    return any(x is not None and np.ndim(x) == 0 and x == -np.inf for x in evidence.x)


def has_equal_values(evidence: Evidence) -> bool:
    """Whether two eigenvalues or singular values are equal, to rounding."""
    for x in evidence.outputs:
        if x is not None and np.ndim(x) and np.isrealobj(x):
            values = np.asarray(x, float)
            gaps = np.abs(np.diff(np.sort(values, axis=-1), axis=-1))
            scale = float(np.max(np.abs(values), initial=0.0))
            if np.size(gaps) and np.min(gaps) <= 1e-6 * max(scale, 1e-30):
                return True
    return False


def has_zero_cotangent(evidence: Evidence) -> bool:
    """Whether the incoming cotangent is zero at the element."""
    return evidence.ct is not None and bool(np.all(evidence.ct == 0))


def has_gain(test: Callable[[Any], object]) -> Predicate:
    """The local gradient at the element passes a test."""
    return lambda evidence: evidence.gain is not None and bool(test(evidence.gain))


def has_constant_inf(evidence: Evidence) -> bool:
    """Whether an infinite operand is a constant, such as a mask."""
    for position, x in enumerate(evidence.operands):
        producer = evidence.producer(position)
        if x is not None and np.any(np.isinf(x)) and (producer is None or producer.primitive == "const"):
            return True
    return False


def is_literal(evidence: Evidence) -> bool:
    """Whether a number that is not finite is written in the program."""
    return evidence.kind == "unexamined" and any(
        value.literal is not None and _jaxpr.is_inexact(value.dtype) and not np.all(np.isfinite(value.literal))
        for value in evidence.node.operands
    )


def is_differentiated(evidence: Evidence) -> bool:
    """Whether the value in question is differentiated."""
    return any(value.active for value in evidence.node.outputs)
