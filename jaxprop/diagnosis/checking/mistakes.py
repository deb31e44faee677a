"""What is wrong with a rule, said in words: the rule's answer beside the derivative."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .float64 import size_of, slope, widen
from .node_check import Subject, Verdict, double, measured

#: At most so many elements are looked at one by one.
ELEMENTS = 256


@dataclass(frozen=True)
class Told:
    """The worst element, and what kind of mistake it looks like."""

    summary: str
    cause: str
    why: str
    fix: str
    element: tuple[int, ...] | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)


def explain(subject: Subject, verdict: Verdict, operands: list[Any]) -> Told:
    """Compare what the rule sends to an operand with its derivative, element by element."""
    if verdict.crooked and not verdict.wrong:
        return Told(
            "its forward and its reverse mode differ",
            "not linear",
            "A jvp rule must be linear in the tangent: its reverse mode is the transpose of it.",
            "Write the tangent of the output as a product with the tangent of the input, nothing added to it.",
        )
    which = subject.moved.index(verdict.position)
    got = double(verdict.in_ct)
    references = _derivatives(subject, verdict, operands)
    right, indices = references[which], np.arange(got.size)
    if right is None:
        right, indices = _by_differences(subject, verdict, operands, which)
    got_here = got.ravel()[indices]
    right = right.ravel()
    difference = np.abs(got_here - right)
    difference = np.where(np.isfinite(difference), difference, np.inf)
    if not difference.size:
        return Told("it differs", "differs", "", "Hold it against `jax.vjp` of the primal.")
    worst = int(np.argmax(difference))
    element = tuple(int(i) for i in np.unravel_index(indices[worst], got.shape))
    scale = max(float(np.max(np.abs(right), initial=0.0)), 1e-300)
    off = difference > 3 * subject.tolerance * scale
    cause, summary, why = _cause(subject, verdict, operands, which, got_here, right, indices, references, off)
    numbers = {
        "sent back": _scalar(got_here[worst]),
        "derivative": _scalar(right[worst]),
        "operand": _scalar(np.asarray(operands[verdict.position]).ravel()[indices[worst]]),
        "elements wrong": f"{int(off.sum())} of {len(indices)}",
    }
    return Told(summary, cause, why, _CURES.get(cause, _CURE), element if got.ndim else None, numbers)


_CURE = "Hold the rule against `jax.vjp` of the primal, which needs no rule of your own."
_CURES = {
    "zero": "Remove the `stop_gradient`, the cast or the zeros in the rule.",
    "not linear": "Multiply by the cotangent; do not square, clip or normalise it.",
    "operands": "Return the cotangents in the order of the operands.",
}


def _cause(
    subject: Subject,
    verdict: Verdict,
    operands: list[Any],
    which: int,
    got: Any,
    right: Any,
    indices: Any,
    references: list[Any],
    off: Any,
) -> tuple[str, str, str]:
    """The first of the usual mistakes that fits."""

    def same(a: Any, b: Any) -> bool:
        return _close(a, b, 3 * subject.tolerance)

    if not np.isfinite(got).all():
        return "not finite", "it is not finite", "The derivative is finite here."
    if not _linear(subject, verdict, operands, which):
        return "not linear", "it is not linear in the cotangent", "Twice the cotangent gives no twice as much."
    if not np.abs(got).any():
        return "zero", "it is zero", "Nothing is sent back to this operand."
    for ct in (double(ct).ravel() for ct in verdict.cts if ct is not None):
        if got.size == ct.size and same(got, ct):
            why = "It takes the node for the identity."
            return "straight-through", "it hands on the cotangent as it is", why
        if got.size == ct.size and same(got, -ct):
            why = "A gradient reversal, it seems."
            return "reversal", "it hands on the cotangent with its sign turned", why
    ratio = _ratio(got, right)
    if ratio is not None and same(got, ratio * right):
        if abs(ratio + 1) < 1e-2:
            return "sign", "its sign is wrong", "It is -1 times the derivative."
        return "factor", f"it is {ratio:.4g} times the derivative", "A constant factor."
    for other, reference in enumerate(references):
        if other == which or reference is None or reference.size != got.size:
            continue
        if same(got, reference.ravel()):
            name = subject.node.operands[subject.moved[other]].name
            return "operands", f"it is the cotangent of `{name}`", "The cotangents stand in a wrong order."
    shape = np.shape(operands[verdict.position])
    square = len(indices) == math.prod(shape) and len(shape) >= 2 and shape[-1] == shape[-2]
    if square and same(got.reshape(shape), np.swapaxes(right.reshape(shape), -1, -2)):
        return "transposed", "it is transposed", "Its last two axes are exchanged."
    return _some_elements(subject, verdict, operands, got, right, indices, off)


def _some_elements(
    subject: Subject, verdict: Verdict, operands: list[Any], got: Any, right: Any, indices: Any, off: Any
) -> tuple[str, str, str]:
    if off.any() and not off.all():
        x = np.real(double(operands[verdict.position])).ravel()[indices]
        for fits, words in ((x < 0, "negative"), (x > 0, "positive"), (x == 0, "zero")):
            if fits.any() and not fits.all() and np.array_equal(off, fits):
                return "some elements", f"it is wrong where the operand is {words}", "Elsewhere it is right."
        return (
            "some elements",
            f"it is wrong at {int(off.sum())} of {len(off)} elements",
            "Elsewhere it is right.",
        )
    relative = float(np.linalg.norm(got - right) / max(np.linalg.norm(right), 1e-300))
    return "differs", f"it is off by {relative:.2g} of its norm", ""


def _linear(subject: Subject, verdict: Verdict, operands: list[Any], which: int) -> bool:
    cts = [ct for ct in verdict.cts if ct is not None]
    try:
        twice = subject.pull(operands, [jnp.asarray(2 * np.asarray(ct), ct.dtype) for ct in cts])[which]
    except Exception:
        return True
    return _close(double(twice), 2 * double(verdict.in_ct), 3 * subject.tolerance)


def _close(a: Any, b: Any, tolerance: float) -> bool:
    scale = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return bool(np.linalg.norm(np.asarray(a) - np.asarray(b)) <= tolerance * scale)


def _ratio(got: Any, right: Any) -> float | None:
    square = float(np.real(np.vdot(right, right)))
    return float(np.real(np.vdot(right, got))) / square if square > 0 else None


def _derivatives(subject: Subject, verdict: Verdict, operands: list[Any]) -> list[Any]:
    """What JAX derives from the program of the node, for each operand; None where that cannot be trusted."""
    nothing = [None] * len(subject.moved)
    if not verdict.agree:
        return nothing
    try:
        with jax.enable_x64(True):
            cts = [widen(double(ct)) for ct in verdict.cts if ct is not None]
            found = [double(x) for x in subject.pull_wide(operands, cts)]
    except Exception:  # a loop of unknown length in it, say
        return nothing
    return [x if np.isfinite(x).all() else None for x in found]


def _by_differences(subject: Subject, verdict: Verdict, operands: list[Any], which: int) -> tuple[Any, Any]:
    """The derivative by differences at some elements, all where they are few."""
    x = double(operands[verdict.position])
    indices = np.unique(np.linspace(0, x.size - 1, min(x.size, ELEMENTS)).round().astype(int))
    size = size_of(x)
    ts = np.zeros((len(indices), x.size), x.dtype)
    ts[np.arange(len(indices)), indices] = size
    tangents = [ts.reshape(-1, *x.shape) if i == which else None for i in range(len(subject.moved))]
    values, _ = measured(subject, operands, tangents)[which]
    total = np.zeros(len(indices), x.dtype)
    for ct, value in zip((ct for ct in verdict.cts if ct is not None), values, strict=True):
        changes = np.stack([slope(x).value.ravel() for x in value])
        total = total + changes @ double(ct).ravel()
    return total / size, indices


def _scalar(x: Any) -> Any:
    return complex(x) if np.iscomplexobj(x) else float(x)
