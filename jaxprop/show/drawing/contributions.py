"""The contributions to a cotangent on the edges of a scene: what each consumer of a value propagates to it."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ...core.graph import Value
from ...core.types import ValueId
from ...record.tape import Tape
from .arrays import show_array
from .edges import graphs_in
from .scene import Endpoint, Shown

#: At most this many contributions are computed, over all values with several consumers.
MOST_SHARES = 256


def contributions(
    tape: Tape, shown: Mapping[ValueId, tuple[Shown | None, Shown | None]]
) -> tuple[dict[Endpoint, Shown], int]:
    """The contribution of each consumer of each value, and the number of values for which it was left out.

    With a single consumer, it is the cotangent itself. A consumer that reads a value at several positions has
    the sum of their contributions at each of them.

    Args:
        shown: value and cotangent, by id of the value.
    """
    graph = tape.graph
    consumers: dict[ValueId, list[Endpoint]] = {}
    for node in graph.walk():
        if node.active and not node.opened:
            for position, value in enumerate(node.operands):
                if value.active:
                    consumers.setdefault(value.id, []).append((node.index, position))
    counts = Counter(value.id for node in graph.walk() for value in node.operands if node.active)
    counts.update(value.id for level in graphs_in(graph) for value in level.outputs)
    values = {value.id: value for node in graph.walk() for value in node.outputs}
    found: dict[Endpoint, Shown] = {}
    computed = left_out = 0
    for id_, ends in consumers.items():
        cotangent = shown.get(id_, (None, None))[1]
        if cotangent is None:
            continue
        if counts[id_] == 1:
            found[ends[0]] = _brief_form(cotangent)
        elif computed + len(ends) <= MOST_SHARES:
            computed += len(ends)
            found |= _computed(tape, values[id_], ends)
        else:
            left_out += 1
    return found, left_out


def _computed(tape: Tape, value: Value, ends: Sequence[Endpoint]) -> dict[Endpoint, Shown]:
    try:
        shares = tape.shares(value.name)
    except ValueError:  # the tape does not hold the operands this needs
        return {}
    graph = tape.graph
    steps = len(graph.places[graph[value.name].index].steps)
    found = {}
    for index, position in ends:
        node = graph.by_index[index]
        share = shares.get(node.name or node.primitive)
        if share is not None:
            array = np.asarray(share)
            found[index, position] = _brief_form(show_array(array, min(steps, array.ndim), 2))
    return found


def _brief_form(shown: Shown) -> Shown:
    return Shown(shown.text, norm=shown.norm, number=shown.number, nonfinite=shown.nonfinite)
