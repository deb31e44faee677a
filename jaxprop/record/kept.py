"""The values that a pass kept unchanged, by id."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.graph import Graph, Node, Value
from ..core.structure import outside, producers
from ..core.types import Array, ValueId


@dataclass(frozen=True)
class Kept:
    """Values as they were in the forward pass. Inside scans they have the step axes first.

    Attributes:
        graph: the graph they belong to.
        values: the arrays, by id of the value.
    """

    graph: Graph
    values: Mapping[ValueId, Array]

    def value(self, value: Value) -> Array | None:
        """A value, None where it was not kept. What is constant in a loop is kept outside of it."""
        found = self._holder(value)
        if found is None:
            return None
        return found.literal if found.literal is not None else self.values[found.id]

    def steps(self, value: Value) -> int:
        """How many step axes a value has as it is kept."""
        found = self._holder(value)
        if found is None or found.literal is not None:
            return 0
        return len(self.graph.places[producers(self.graph)[found.id].index].steps)

    def at(self, value: Value, step: tuple[int, ...]) -> Array | None:
        """A value at one step of the loops around it, outermost loop first; None where it was not kept."""
        x, steps = self.value(value), self.steps(value)
        return x[step[:steps]] if step and steps and x is not None else x

    def needed(self, value: Value, consumer: Node, hint: str) -> Array:
        """A value that a local gradient cannot be computed without.

        Raises:
            ValueError: it was not kept; `hint` says what to do.
        """
        x = self.value(value)
        if x is None:
            raise ValueError(
                f"the local gradient of {consumer.where} needs the value of {value.name!r}, which was not "
                f"recorded; {hint}"
            )
        return x

    def _holder(self, value: Value) -> Value | None:
        """The value under which it is kept: itself, or the value outside of a loop that it stands for."""
        while value.literal is None and value.id not in self.values:
            if value.id not in outside(self.graph):
                return None
            value = outside(self.graph)[value.id]
        return value
