"""The numbers a program reads at its nodes: one forward run, nothing else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ... import _jaxpr
from ..._tracing import Traced
from ...core.graph import Graph, Node, Value
from ...core.interpreter import Interpreter, Plan
from ...core.structure import makers, outside


@dataclass(frozen=True, eq=False)
class Points:
    """Where a program is: values by id, with the step axes of the loops they stand in.

    Attributes:
        graph: the program.
        outputs: what it returns.
        values: kept values, by id.
        branches: branches taken, by index of the `cond`.
    """

    graph: Graph
    outputs: list[Any]
    values: dict[int, Any]
    branches: dict[int, Any]

    @classmethod
    def of(cls, traced: Traced, graph: Graph, values: Iterable[Value]) -> "Points":
        """Run a traced call forward and keep these values."""
        kept = frozenset(inner.id for value in values for inner in _and_outside(graph, value))
        plan = Plan(graph, kept=kept)

        def run(operands: list[Any]) -> Any:
            outputs, written = Interpreter(plan).run(graph, operands, {})
            return outputs, written.values, written.branches

        return cls(graph, *jax.jit(run)(traced.operands))

    def value(self, value: Value, step: Sequence[int]) -> Any:
        """A value at one step of the loops around its reader."""
        while value.literal is None and value.id not in self.values:
            value = outside(self.graph)[value.id]
        if value.literal is not None:
            return np.asarray(value.literal, _jaxpr.dtype_of(value.aval))
        depth = len(self.graph.places[makers(self.graph)[value.id].index].steps)
        return self.values[value.id][tuple(step[:depth])]

    def operands(self, node: Node, step: Sequence[int] = ()) -> list[Any]:
        """What a node reads at a step."""
        return [self.value(value, step) for value in node.operands]

    def steps(self, node: Node, most: int) -> list[tuple[int, ...]]:
        """Steps at which a node was run: all of them, or `most` from the first to the last."""
        place = self.graph.places[node.index]
        run = np.ones(place.steps, bool)
        for parent, number in place.parents:
            if parent.index in self.branches:
                index = np.asarray(self.branches[parent.index])
                run &= (index == number).reshape(index.shape + (1,) * (run.ndim - index.ndim))
        taken = np.argwhere(run)
        if len(taken) > most:
            taken = taken[np.unique(np.linspace(0, len(taken) - 1, most).round().astype(int))]
        return [tuple(int(i) for i in step) for step in taken]

    def held(self, values: Iterable[Value]) -> dict[int, dict[int, Any]]:
        """Kept values that carry no derivative, by index of their node and number of the output."""
        found: dict[int, dict[int, Any]] = {}
        for value in values:
            if value.literal is None and value.id in self.values:
                node = makers(self.graph)[value.id]
                position = next(i for i, out in enumerate(node.outputs) if out.id == value.id)
                found.setdefault(node.index, {})[position] = self.values[value.id]
        return found


def _and_outside(graph: Graph, value: Value) -> Iterable[Value]:
    """The value as it can be kept: a loop's constant stands outside of the loop."""
    while value.id in outside(graph):
        value = outside(graph)[value.id]
    if value.literal is None:
        yield value
