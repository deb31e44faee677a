"""Norms of the cotangents of carries, through the steps of a loop."""

import math
from dataclasses import dataclass

import numpy as np

from ... import _jaxpr
from ..._structure import PostDominators
from ...core.graph import Graph, Node, Value
from ...core.structure import binding
from ..measures import Field
from .chains import Segment, along_depth, segments_by_steps

#: Loops of fewer steps have no growth to speak of.
FEWEST_STEPS = 3


@dataclass(frozen=True)
class Carries:
    """The carries of a loop through which gradients flow.

    Attributes:
        node: the loop.
        body: its body.
        form: the parts of its equation.
        into: what each step starts from, as values of the body.
        out: what each step hands to the next, as values of the body.
        last: what leaves the loop.
    """

    node: Node
    body: Graph
    form: _jaxpr.Scan
    into: tuple[Value, ...]
    out: tuple[Value, ...]
    last: tuple[Value, ...]

    @classmethod
    def of(cls, node: Node) -> "Carries | None":
        """Return the active carries of a loop, None where it has none."""
        form = _jaxpr.opened_form(node.eqn) if node.opened else None
        if not isinstance(form, _jaxpr.Scan):
            return None
        (body,) = node.graphs
        around = binding(node, body).around
        active = [i for i, (_, value) in enumerate(around) if value.active]
        if not active:
            return None
        return cls(
            node=node,
            body=body,
            form=form,
            into=tuple(around[i][1] for i in active),
            out=tuple(around[i][0] for i in active),
            last=tuple(node.outputs[i] for i in active),
        )


@dataclass(frozen=True)
class Loop:
    """What a loop does to the gradient that crosses it.

    Attributes:
        node: name of the loop.
        norms: `|ct|` of the carries before each step and after the last, in the order of time; infinite where
            it overflows.
        growth: factor by which the norm changes per step back: the fit of a straight line to its logarithm,
            over the steps where it is finite; dimensionless; NaN where there are fewer than three.
        gains: the gain of each step on a cotangent that comes from the end, by power steps (see
            `gains_of_steps`), in the order of time; () where they were not estimated.
    """

    node: str
    norms: tuple[float, ...]
    growth: float
    gains: tuple[float, ...] = ()

    @property
    def ratio(self) -> float:
        """`|ct before the first step| / |ct after the last that gets one|`, dimensionless.

        Where the cotangent overflows: that of the first step where it is finite, by that of the last.
        """
        some = [norm for norm in self.norms if 0 < norm < math.inf]
        if not some:
            return math.exp(min(self.log_gain, 700.0)) if math.isfinite(self.log_gain) else 1.0
        first = self.norms[0] if math.isfinite(self.norms[0]) else some[0]
        return first / some[-1]

    @property
    def gain(self) -> float:
        """The gain of a step: the geometric mean of all, NaN where it was not estimated."""
        return math.exp(self.log_gain / len(self.gains)) if self.gains else math.nan

    @property
    def log_gain(self) -> float:
        """The logarithm of the product of all gains, NaN where it was not estimated."""
        gains = np.array(self.gains)
        if not gains.size or not (np.isfinite(gains) & (gains > 0)).all():
            return math.nan
        return float(np.sum(np.log(gains)))

    @property
    def overflows(self) -> bool:
        """Whether the cotangent is not finite before some step."""
        return not all(map(math.isfinite, self.norms))

    def data(self) -> dict[str, object]:
        return {"node": self.node, "norms": self.norms, "growth": self.growth, "gains": self.gains}


def loops(field: Field) -> list[tuple[Carries, Loop]]:
    """Find the loops that carry gradients from step to step."""
    found = []
    for node in field.graph.walk():
        carries = Carries.of(node) if node.active else None
        if carries is None or carries.form.length < FEWEST_STEPS:
            continue
        norms = _norms_in_time(field, carries)
        if norms is not None and np.any(norms > 0):
            norms = np.where(np.isnan(norms), np.inf, norms)
            found.append((carries, Loop(node.name, tuple(map(float, norms)), growth_of(norms))))
    return found


def _norms_in_time(field: Field, carries: Carries) -> np.ndarray | None:
    """Norms of the carries together before each step, and after the last; steps of loops around it together."""
    known = [value for value in carries.into if value in field]
    if not known:
        return None
    before = np.sqrt(np.sum([_collapsed(field.norms(value)) ** 2 for value in known], axis=0))
    before = before[::-1] if carries.form.reverse else before
    after = [field.norm(value) for value in carries.last if value in field]
    return np.append(before, np.sqrt(np.sum(np.square(after)))) if after else before


def _collapsed(norms: np.ndarray) -> np.ndarray:
    """Norms by step of this loop: those of the loops around it together."""
    wide = np.asarray(norms, np.float64)
    return np.sqrt(np.sum(wide.reshape(-1, wide.shape[-1]) ** 2, axis=0))


def growth_of(norms: np.ndarray | list[float]) -> float:
    """Fit the factor by which norms change per step back.

    log norm[t] = a - t * log(growth)      (least squares, over the steps that get a finite cotangent)

    It is 1 where fewer than three norms are positive, NaN where fewer than three are finite.
    """
    norms = np.asarray(norms, np.float64)
    steps = np.flatnonzero((norms > 0) & np.isfinite(norms))
    if len(steps) < FEWEST_STEPS:
        return 1.0 if np.isfinite(norms).all() else math.nan
    slope = np.polyfit(steps, np.log(norms[steps]), 1)[0]
    return float(np.exp(-slope))


def segments_of_step(field: Field, carries: Carries) -> list[Segment]:
    """The segments of one step of a loop, with the geometric mean of their gains over all steps."""
    tree = PostDominators.of(carries.into, carries.out, along_depth(field.graph))
    longest = max((tree.chain(value) for value in carries.into), key=len, default=[])
    return segments_by_steps(longest, field)
