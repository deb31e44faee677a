"""Activity: which values lie between what is differentiated and the output."""

from typing import Any, NamedTuple

from .. import _jaxpr
from .draft import Draft, Level, around, into, out_of


class Ends(NamedTuple):
    """What a derivative is taken between, where this is not from the arguments to the results.

    Attributes:
        sources: ids of the values differentiated.
        sinks: ids of the values whose derivative is asked for.
    """

    sources: frozenset[int]
    sinks: frozenset[int]


class Activity:
    """Which values lie between the sources and the sinks of a derivative."""

    def __init__(self, avals: list[Any], uncut: frozenset[int], ends: Ends) -> None:
        self.avals, self.uncut, self.ends = avals, uncut, ends
        self.perturbed: set[Any] = set(ends.sources)
        self.reaching: set[Any] = set(ends.sinks)

    def of(self, top: Level) -> set[int]:
        self.perturb(top)
        self.reach(top)
        return {id_ for id_ in self.perturbed & self.reaching if self.carries(id_)}

    def carries(self, id_: int) -> bool:
        aval = self.avals[id_]
        return _jaxpr.is_ref(aval) or _jaxpr.is_inexact(_jaxpr.dtype_of(aval))

    def perturb(self, level: Level) -> None:
        """Add the values of a program whose tangents are not zero, as JAX's own rules have it."""
        for draft in level.drafts:
            moved = tuple(operand in self.perturbed for operand in draft.operands)
            if not any(moved) and not draft.levels:
                continue
            if draft.opened:
                self.perturb_nested(draft)
                continue
            if not any(moved):
                continue
            if draft.index in self.uncut:
                zero: tuple[bool, ...] = (False,) * len(draft.outputs)
            else:
                zero = _jaxpr.zero_tangents(draft.seen.eqn, moved)
            pairs = zip(draft.outputs, zero, strict=True)
            self.perturbed.update(id_ for id_, none in pairs if not none and self.carries(id_))
            # What is written into a reference comes out of it again.
            self.perturbed.update(
                id_ for id_ in draft.operands if isinstance(id_, int) and _jaxpr.is_ref(self.avals[id_])
            )

    def perturb_nested(self, draft: Draft) -> None:
        for level in draft.levels:
            self.perturbed.update(
                inner for outer, inner in into(draft, level) if outer in self.perturbed and self.carries(inner)
            )
            self.perturb(level)
            # A carry that is moved in one step is moved in the next.
            while new := {
                into
                for out, into in around(draft, level)
                if out in self.perturbed and into not in self.perturbed
            }:
                self.perturbed |= new
                self.perturb(level)
            self.perturbed.update(outer for inner, outer in out_of(draft, level) if inner in self.perturbed)
        if draft.index in self.uncut:
            self.perturbed.update(id_ for id_ in draft.outputs if self.carries(id_))

    def reach(self, level: Level) -> None:
        """Add the values of a program on which a sink depends."""
        for draft in reversed(level.drafts):
            if draft.opened:
                self.reach_nested(draft)
            elif self.passes(draft):
                self.reaching.update(draft.operands)

    def passes(self, draft: Draft) -> bool:
        """Whether a cotangent can cross a node: an output has a tangent, and a sink depends on it."""
        if any(isinstance(id_, int) and _jaxpr.is_ref(self.avals[id_]) for id_ in draft.operands):
            return True  # what a reference holds is not followed
        return any(id_ in self.reaching and id_ in self.perturbed for id_ in draft.outputs)

    def reach_nested(self, draft: Draft) -> None:
        for level in draft.levels:
            self.reaching.update(
                inner
                for inner, outer in out_of(draft, level)
                if outer in self.reaching and outer in self.perturbed
            )
            self.reach(level)
            while new := {
                out for out, into in around(draft, level) if into in self.reaching and out not in self.reaching
            }:
                self.reaching |= new
                self.reach(level)
            self.reaching.update(outer for outer, inner in into(draft, level) if inner in self.reaching)
