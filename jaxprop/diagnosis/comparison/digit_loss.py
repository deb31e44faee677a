"""Findings on the digits of a gradient: at which node they are lost, and by what."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._structure import consumers
from ..._text import listed
from ...core.graph import Node
from ...record.tape import Tape
from ..report import Finding, Severity, at
from ..zero.wording import quoted, repetition
from .compare import Comparison, Pair
from .deviations import Deviation
from .references import GradientError
from .scaling import wider_than

#: A gradient that is off by more than this fraction of its norm is wrong for certain.
HALF = 0.5


class DigitLoss:
    """Where the digits of a gradient are lost."""

    def __init__(
        self,
        tape: Tape,
        compared: Comparison,
        gradient: GradientError,
        allowed: float,
        low: np.dtype,
        high: np.dtype,
    ) -> None:
        self.tape, self.compared, self.gradient = tape, compared, gradient
        self.allowed, self.low, self.high = allowed, low, high
        self.wrong = gradient.wrong(allowed)
        self.result_is_wrong = any(
            pair.forward is not None and not pair.forward.excess <= allowed
            for pair in compared.pairs
            if pair.name in {value.name for value in tape.graph.outputs[: len(tape.seed)]}
        )

    def findings(self, fix: str) -> list[Finding]:
        found = [*self.overflow(), *self.underflow(fix)]
        if self.wrong or self.result_is_wrong:
            found += self.digits()
        located = any(finding.severity != "note" for finding in found)
        return found if located or not self.wrong else [*found, self.accumulated()]

    def at(self, pair: Pair) -> dict[str, Any]:
        return {**at(self.tape.graph, self.node(pair)), "node": pair.name}

    def node(self, pair: Pair) -> Node:
        return self.tape.graph[pair.name]

    @property
    def severity(self) -> Severity:
        return "error" if self.gradient.total > HALF else "warning"

    @property
    def effect(self) -> str:
        """What it does to the gradient, as a sentence."""
        if not self.wrong:
            return "The result is off, and the gradient is not."
        worst = max(self.wrong, key=lambda name: self.gradient.excess[name])
        names = listed([f"`{name}`" for name in self.wrong], 3)
        error = self.gradient.relative[worst]
        how = "not finite" if not np.isfinite(error) else f"off by {error:.2g} of its norm"
        return f"The gradient of {names} is {how}."

    def overflow(self) -> list[Finding]:
        """The first value, and the first cotangent, that is infinite in the lower precision alone."""
        sides = (
            ("value", [(pair, pair.forward) for pair in self.compared.pairs]),
            ("cotangent", [(pair, pair.backward) for pair in reversed(self.compared.pairs)]),
        )
        for word, pairs in sides:
            for pair, side in pairs:
                if side is not None and side.nonfinite:
                    return [self.overflown(word, pair, side)]
        return []

    def overflown(self, word: str, pair: Pair, side: Deviation) -> Finding:
        wider = " or ".join(reversed(wider_than(self.low)))
        return Finding(
            "overflow",
            "error",
            f"the {word} of `{pair.name}` is not finite in {self.low}, at {side.nonfinite} of {side.size} "
            "elements.",
            **self.at(pair),
            element=side.element,
            cause="overflow",
            why=f"The range of {self.low} ends at {float(jnp.finfo(self.low).max):.4g}.",
            fix=f"Compute it in {wider}, or make the numbers smaller before it.",
            numbers={"low": side.a, "reference": side.b},
        )

    def underflow(self, fix: str) -> list[Finding]:
        """The first node of the backward pass whose cotangent becomes zero in part."""
        hit = [
            (pair, side)
            for pair in reversed(self.compared.pairs)
            if (side := pair.backward) is not None and side.vanished and not side.nonfinite
        ]
        if not any(side.underflown for _, side in hit):
            return []  # what vanishes has cancelled
        first, side = next((pair, side) for pair, side in hit if side.underflown)
        leaves = [pair.name for pair, _ in hit if self.node(pair).primitive == "input"]
        total = sum(side.vanished for _, side in hit)
        return [
            Finding(
                "underflow",
                self.severity if self.wrong else "note",
                f"the cotangent of `{first.name}` underflows in {self.low}: {side.vanished} of {side.size} "
                f"elements are zero that are not in the reference; {total} elements in {len(hit)} values.",
                **self.at(first),
                element=side.element,
                cause="underflow",
                why=f"The smallest positive {self.low} is {float(jnp.finfo(self.low).smallest_subnormal):.2g}. "
                f"{self.effect if self.wrong else 'The gradient as a whole is right.'}",
                fix=fix,
                numbers={"low": side.a, "reference": side.b, "subnormal": side.subnormal},
                leaves=tuple(leaves),
            )
        ]

    def digits(self, most: int = 3) -> list[Finding]:
        """The nodes at which digits are lost, one or more."""
        found = []
        for pair in self.compared.pairs:
            for word, side in (("value", pair.forward), ("cotangent", pair.backward)):
                if side is None or side.nonfinite or side.underflown or side.excess <= self.allowed:
                    continue
                if side.lost >= 1:
                    found.append((side.lost, self.lost(word, pair, side)))
        return [finding for _, finding in sorted(found, key=lambda item: -item[0])[:most]]

    def lost(self, word: str, pair: Pair, side: Deviation) -> Finding:
        node = self.node(pair)
        cause, why = self.cancellation(word, pair, node)
        return Finding(
            "digits",
            self.severity,
            f"the {word} of `{pair.name}`{repetition(self.tape.graph, node)} loses {side.lost:.1f} digits in "
            f"{self.low}, and has {side.digits:.1f} left.",
            **self.at(pair),
            element=side.element,
            cause=cause,
            why=f"{why} {self.effect}".strip(),
            fix=self.fix(word, pair, node, cause),
            numbers={"relative": side.relative, "low": side.a, "reference": side.b},
            leaves=self.wrong,
        )

    def cancellation(self, word: str, pair: Pair, node: Node) -> tuple[str, str]:
        """Whether a sum cancels: of two operands, or of the contributions to a cotangent."""
        if word == "value":
            cancels = node.primitive in ("sub", "add", "reduce_sum", "dot_general")
            why = f"What {quoted(node)} adds nearly cancels: the rounding of its operands is what is left."
            return ("cancellation", why) if cancels else ("rounding", "")
        value = self.tape.graph.value(pair.name)
        readers = dict.fromkeys(reader for reader, _ in consumers(self.tape.graph).get(value.id, ()))
        active = [reader for reader in readers if reader.active]
        if len(active) < 2:
            return "rounding", ""
        names = " and ".join(dict.fromkeys(map(quoted, active[:3])))
        return "cancellation", f"The contributions of {names} to it nearly cancel."

    def fix(self, word: str, pair: Pair, node: Node, cause: str) -> str:
        if cause == "cancellation" and word == "value":
            names = listed([f"`{v.name}`" for v in node.operands if v.literal is None], 2)
            return f"Compute {names} in {self.high} already: what is rounded to {self.low} before is lost."
        if cause == "cancellation":
            return (
                "Write the contributions as one expression whose parts do not cancel (`jnp.var`, `log1p`, "
                f"`expm1`), or compute `{pair.name}` and what reads it in {self.high}."
            )
        return f"Compute it in {self.high}: `x.astype(jnp.{self.high})` before, `.astype(x.dtype)` after."

    def accumulated(self) -> Finding:
        return Finding(
            "digits",
            "warning",
            f"the gradient differs in {self.low} from {self.high} by {self.gradient.total:.2g} of its norm.",
            cause="rounding",
            why=f"No single node loses a digit: the rounding of many adds up. {self.effect}",
            fix=f"Keep sums and parameters in {self.high} (mixed precision), or run all of it in {self.high}.",
            numbers={name: self.gradient.relative[name] for name in self.wrong[:4]},
            leaves=self.wrong,
        )
