"""Cancellation: where the shares of a cotangent are large, and their sum is not."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...core.graph import Graph, Node, Value
from ...core.local import Local
from ...core.recorders import Recorder
from ...core.types import OutCts, PyTree
from ...record.tape import Tape
from ..measures import Field, active_readers, measure


class Fan(NamedTuple):
    """A value read more than once.

    Attributes:
        value: the value.
        readers: the nodes that read it, with the norm of the share that each sends back.
        norm: the norm of their sum.
    """

    value: Value
    readers: tuple[tuple[Node, float], ...]
    norm: float

    @property
    def cancellation(self) -> float:
        """`|sum of shares| / sum of |shares|`, between 0 (they cancel out) and 1."""
        parts = sum(share for _, share in self.readers)
        return self.norm / parts if parts > 0 else 1.0


def _norms_of_shares(local: Local, out_cts: OutCts) -> PyTree:
    """The norm of what a node sends back to each operand, 0 where it sends nothing."""
    in_cts = local.vjp(out_cts)
    moved = [i for i, value in enumerate(local.node.operands) if value.active]
    return [measure(in_cts[i]).norm if in_cts[i] is not None else np.zeros((), np.float32) for i in moved]


#: Records the norms of all shares a node sends back.
recorder = Recorder(backward=_norms_of_shares)


def fans_of(graph: Graph) -> dict[int, list[tuple[Node, int]]]:
    """The values several nodes read, with their readers; those that a loop or a branch reads are left out."""
    leaving = Counter(value.id for node in graph.walk() for nested in node.graphs for value in nested.outputs)
    leaving.update(value.id for value in graph.outputs)
    return {
        id_: some
        for id_, some in active_readers(graph).items()
        if len(some) > 1 and id_ not in leaving and not any(node.opened for node, _ in some)
    }


def fans(field: Field, tape: Tape) -> Iterator[Fan]:
    """Read a tape that `recorder` wrote at the readers of all values with several."""
    values: Mapping[int, Value] = {value.id: value for node in field.graph.walk() for value in node.outputs}
    for id_, some in fans_of(field.graph).items():
        if values[id_] not in field:
            continue
        shares = [(node, _share(tape, node, position)) for node, position in some]
        yield Fan(values[id_], tuple(shares), field.norm(values[id_]))


def _share(tape: Tape, node: Node, position: int) -> float:
    record = tape[node.name].backward
    if record is None:
        return 0.0
    moved = [i for i, value in enumerate(node.operands) if value.active]
    norms: Any = np.asarray(record[moved.index(position)], np.float64)
    return float(np.sqrt(np.sum(norms**2)))
