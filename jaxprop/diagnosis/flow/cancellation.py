"""Cancellation: values whose consumers send large cotangents that nearly add up to zero."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..._structure import consumers
from ...core.graph import Graph, Node, Value
from ...core.local import Local
from ...core.recorders import Recorder
from ...core.structure import once, producers
from ...core.types import Array, OutCts, ValueId
from ...record.tape import Tape
from ..measures import Field, measure


class FanOut(NamedTuple):
    """A value with several consumers.

    Attributes:
        value: the value.
        contributions: its consumers, with the norm of what each contributes to its cotangent.
        norm: the norm of their sum.
    """

    value: Value
    contributions: tuple[tuple[Node, float], ...]
    norm: float

    @property
    def cancellation(self) -> float:
        """`|sum of contributions| / sum of |contributions|`, between 0 (they cancel) and 1."""
        parts = sum(norm for _, norm in self.contributions)
        return self.norm / parts if parts > 0 else 1.0


def _norms_of_contributions(local: Local, out_cts: OutCts) -> Sequence[Array | np.ndarray]:
    """The norm of the cotangent a node sends to each active operand, 0 where it sends none."""
    in_cts = local.vjp(out_cts)
    active = [i for i, value in enumerate(local.node.operands) if value.active]
    return [np.zeros((), np.float32) if (ct := in_cts[i]) is None else measure(ct).norm for i in active]


#: Records the norms of all contributions of a node.
recorder = Recorder(backward=_norms_of_contributions)


@once
def consumers_of_fan_outs(graph: Graph) -> Mapping[ValueId, Sequence[tuple[Node, int]]]:
    """The values with several consumers, by id; without those that a loop or a branch reads, and results."""
    leaving = {value.id for node in graph.walk() for nested in node.graphs for value in nested.outputs}
    leaving.update(value.id for value in graph.outputs)
    found = {}
    for id_, readers in consumers(graph).items():
        active = [(node, i) for node, i in readers if node.active and node.operands[i].active]
        if len(active) > 1 and id_ not in leaving and not any(node.opened for node, _ in active):
            found[id_] = active
    return found


def fan_outs(field: Field, tape: Tape) -> Iterator[FanOut]:
    """Read a tape that `recorder` wrote at the consumers of all values with several."""
    made_by = producers(field.graph)
    for id_, readers in consumers_of_fan_outs(field.graph).items():
        value = next(value for value in made_by[id_].outputs if value.id == id_)
        if value in field:
            parts = [(node, _contribution(tape, node, position)) for node, position in readers]
            yield FanOut(value, tuple(parts), field.norm(value))


def _contribution(tape: Tape, node: Node, position: int) -> float:
    record = tape[node.name].backward
    if record is None:
        return 0.0
    active = [i for i, value in enumerate(node.operands) if value.active]
    norms = np.asarray(record[active.index(position)], np.float64)
    return float(np.sqrt(np.sum(norms**2)))
