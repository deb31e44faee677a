"""Describe the mistake of a wrong rule: what it sends back, what the derivative is, what kind of error."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np

from .differences import coarse_slope, fine_slope, size_of, to_double
from .float64 import UNSUPPORTED
from .node_check import MOST_DOUBT, Judgement
from .rule_functions import Operands, RuleError, RuleFunctions

#: At most this many elements are compared one by one.
ELEMENTS = 256


@dataclass(frozen=True)
class WrongRule:
    """What is wrong with a rule.

    Attributes:
        summary: the end of the sentence "the rule is not the derivative: ...".
        cause: the kind of mistake, a short word.
        why: the same as a sentence, "" where the summary says it all.
        fix: what to do.
        element: the worst element of the operand.
        numbers: what the rule sends to it, and what the derivative is there.
    """

    summary: str
    cause: str
    why: str
    fix: str
    element: tuple[int, ...] | None = None
    numbers: Mapping[str, object] = field(default_factory=dict)


_FIX = "Compare the rule with `jax.vjp` of the primal, which needs no rule of your own."
_FIXES = {
    "zero": "Remove the `stop_gradient`, the cast or the zeros in the rule.",
    "not linear": "Multiply by the cotangent; do not square, clip or normalise it.",
    "operands": "Return the cotangents in the order of the operands.",
}


def describe_mistake(rule: RuleFunctions, judgement: Judgement, operands: Operands) -> WrongRule:
    """Compare what a wrong rule sends to an operand with its derivative, element by element."""
    if judgement.not_transposed and not judgement.wrong:
        return WrongRule(
            "the JVP is not the transpose of the VJP",
            "not linear",
            "A JVP rule must be linear in the tangent: JAX transposes it for reverse mode.",
            "Write the output tangent as a product with the input tangent, with nothing added to it.",
        )
    evidence = _Evidence.of(rule, judgement, operands)
    if not evidence.got.size:
        return WrongRule("it differs", "differs", "", _FIX)
    cause, summary, why = _classify(evidence)
    worst = int(np.argmax(evidence.difference))
    operand = np.asarray(operands[judgement.position])
    index = evidence.indices[worst]
    numbers = {
        "sent back": _scalar(evidence.got[worst]),
        "derivative": _scalar(evidence.right[worst]),
        "operand": _scalar(operand.ravel()[index]),
        "elements wrong": f"{int(evidence.off.sum())} of {len(evidence.indices)}",
    }
    element = tuple(int(i) for i in np.unravel_index(index, operand.shape)) if operand.ndim else None
    return WrongRule(summary, cause, why, _FIXES.get(cause, _FIX), element, numbers)


@dataclass(frozen=True, eq=False)
class _Evidence:
    """What a rule sends to an operand, and the derivative, at the elements that are compared.

    Attributes:
        rule, judgement, operands: as in `describe_mistake`.
        which: the operand, as a number among those that are moved.
        indices: the elements, as positions in the flat array.
        got: what the rule sends there.
        right: the derivative there.
        references: the derivatives with respect to all moved operands; None where JAX derives none.
    """

    rule: RuleFunctions
    judgement: Judgement
    operands: Operands
    which: int
    indices: np.ndarray
    got: np.ndarray
    right: np.ndarray
    references: list[np.ndarray | None]

    @classmethod
    def of(cls, rule: RuleFunctions, judgement: Judgement, operands: Operands) -> "_Evidence":
        which = rule.moved.index(judgement.position)
        references = _derivatives(rule, judgement, operands)
        got, derived = to_double(judgement.in_ct).ravel(), references[which]
        if derived is not None:
            return cls(rule, judgement, operands, which, np.arange(got.size), got, derived.ravel(), references)
        right, indices = _by_differences(rule, judgement, operands, which)
        return cls(rule, judgement, operands, which, indices, got[indices], right.ravel(), references)

    @property
    def difference(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            difference = np.abs(self.got - self.right)
        return np.where(np.isfinite(difference), difference, np.inf)

    @property
    def off(self) -> np.ndarray:
        """Where the rule is wrong."""
        greatest = float(np.max(np.abs(self.right), initial=0.0))
        return self.difference > 3 * self.rule.tolerance * greatest

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.operands[self.judgement.position])

    def same(self, a: np.ndarray, b: np.ndarray) -> bool:
        scale = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
        allowed = 3 * min(max(self.rule.tolerance, self.judgement.allowed), MOST_DOUBT)
        return bool(np.linalg.norm(a - b) <= allowed * scale)


#: The kind of a mistake, the end of the sentence that says so, and why.
_Class = tuple[str, str, str]


def _classify(evidence: _Evidence) -> _Class:
    """Return the first of the usual mistakes that fits."""
    looks = (_not_finite, _not_linear, _zero, _identity, _multiple, _other_operand, _transposed, _elements)
    for look in looks:
        found = look(evidence)
        if found is not None:
            return found
    greatest = float(np.linalg.norm(evidence.right))
    if greatest == 0:
        size = float(np.linalg.norm(evidence.got))
        return "differs", f"it has norm {size:.2g}, where the derivative is zero", ""
    relative = float(np.linalg.norm(evidence.got - evidence.right)) / greatest
    return "differs", f"it is off by {relative:.2g} of its norm", ""


def _not_finite(evidence: _Evidence) -> _Class | None:
    if np.isfinite(evidence.got).all():
        return None
    return "not finite", "it is not finite", "The derivative is finite here."


def _not_linear(evidence: _Evidence) -> _Class | None:
    cts = [ct for ct in evidence.judgement.cts if ct is not None]
    try:
        doubled = [jnp.asarray(2 * ct, ct.dtype) for ct in cts]
        twice = evidence.rule.pull(evidence.operands, doubled)[evidence.which]
    except RuleError:  # it takes these cotangents only
        return None
    if evidence.same(to_double(twice), 2 * to_double(evidence.judgement.in_ct)):
        return None
    return (
        "not linear",
        "it is not linear in the cotangent",
        "Doubling the cotangent does not double the result.",
    )


def _zero(evidence: _Evidence) -> _Class | None:
    if np.abs(evidence.got).any():
        return None
    return "zero", "it is zero", "The rule sends no cotangent to this operand."


def _identity(evidence: _Evidence) -> _Class | None:
    got = evidence.got
    for ct in (to_double(ct).ravel() for ct in evidence.judgement.cts if ct is not None):
        if got.size != ct.size:
            continue
        if evidence.same(got, ct):
            why = "It treats the node as the identity."
            return "straight-through", "it passes the cotangent through unchanged", why
        if evidence.same(got, -ct):
            return "reversal", "it passes the cotangent through with the opposite sign", "A gradient reversal."
    return None


def _multiple(evidence: _Evidence) -> _Class | None:
    got, right = evidence.got, evidence.right
    square = float(np.real(np.vdot(right, right)))
    ratio = float(np.real(np.vdot(right, got))) / square if square > 0 else None
    if ratio is None or not evidence.same(got, ratio * right):
        return None
    if abs(ratio + 1) < 1e-2:
        return "sign", "its sign is wrong", "It is -1 times the derivative."
    return "factor", f"it is {ratio:.4g} times the derivative", "It is off by a constant factor."


def _other_operand(evidence: _Evidence) -> _Class | None:
    for other, reference in enumerate(evidence.references):
        if other == evidence.which or reference is None or reference.size != evidence.got.size:
            continue
        if evidence.same(evidence.got, reference.ravel()):
            name = evidence.rule.node.operands[evidence.rule.moved[other]].name
            return "operands", f"it is the cotangent of `{name}`", "The cotangents are in the wrong order."
    return None


def _transposed(evidence: _Evidence) -> _Class | None:
    shape = evidence.shape
    if len(evidence.indices) != math.prod(shape) or len(shape) < 2 or shape[-1] != shape[-2]:
        return None
    if not evidence.same(evidence.got.reshape(shape), np.swapaxes(evidence.right.reshape(shape), -1, -2)):
        return None
    return "transposed", "it is transposed", "Its last two axes are exchanged."


def _elements(evidence: _Evidence) -> _Class | None:
    off = evidence.off
    if not off.any() or off.all():
        return None
    why = "All other elements are correct."
    x = np.real(to_double(evidence.operands[evidence.judgement.position])).ravel()[evidence.indices]
    for fits, word in ((x < 0, "negative"), (x > 0, "positive"), (x == 0, "zero")):
        if fits.any() and not fits.all() and np.array_equal(off, fits):
            return "some elements", f"it is wrong where the operand is {word}", why
    return "some elements", f"it is wrong at {int(off.sum())} of {len(off)} elements", why


# --- the derivative --------------------------------------------------------------------------------------


def _derivatives(rule: RuleFunctions, judgement: Judgement, operands: Operands) -> list[np.ndarray | None]:
    """Return what JAX derives from the node's program, for each operand; None where that does not count."""
    nothing: list[np.ndarray | None] = [None] * len(rule.moved)
    if not judgement.agree:
        return nothing
    try:
        found = rule.pull_wide(operands, [to_double(ct) for ct in judgement.cts if ct is not None])
    except UNSUPPORTED:  # a `while_loop` in it
        return nothing
    return [x if np.isfinite(x).all() else None for x in map(to_double, found)]


def _by_differences(
    rule: RuleFunctions, judgement: Judgement, operands: Operands, which: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the derivative by differences at some elements, all where they are few."""
    x = to_double(operands[judgement.position])
    indices = np.unique(np.linspace(0, x.size - 1, min(x.size, ELEMENTS)).round().astype(int))
    size = size_of(x)
    ts = np.zeros((len(indices), x.size), x.dtype)
    ts[np.arange(len(indices)), indices] = size
    tangents: list[np.ndarray | None] = [None] * len(rule.moved)
    tangents[which] = ts.reshape(-1, *x.shape)
    sides = (rule.coarse_sides if judgement.coarse else rule.fine_sides)(operands, tangents)[which]
    assert sides is not None
    total = np.zeros(len(indices), x.dtype)
    for ct, value in zip((ct for ct in judgement.cts if ct is not None), sides.values, strict=True):
        changes = np.stack([_slope(rule, judgement.coarse, one).ravel() for one in value])
        total = total + changes @ to_double(ct).ravel()
    return total / size, indices


def _slope(rule: RuleFunctions, coarse: bool, values: np.ndarray) -> np.ndarray:
    return coarse_slope(values).value if coarse else fine_slope(values, rule.steps).value


def _scalar(x: np.ndarray) -> complex | float:
    return complex(x) if np.iscomplexobj(x) else float(x)
