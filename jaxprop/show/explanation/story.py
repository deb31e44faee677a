"""The intermediate form of an explanation: frozen rows, from which every format is rendered."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..symbolic.names import EMPTY, Spelled

#: Plain data, JSON-able.
Json: TypeAlias = "None | bool | int | float | str | Sequence[Json] | Mapping[str, Json]"


def distinct_pieces(pieces: Iterable[Spelled | None], value: str = "") -> tuple[Spelled, ...]:
    """Leave out pieces of an equation that repeat the one before, or the value."""
    found: list[Spelled] = []
    for piece in pieces:
        if piece and (not found or piece.text != found[-1].text):
            found.append(piece)
    while found and found[-1].text == value:
        found.pop()
    return tuple(found)


@dataclass(frozen=True)
class StoryRow:
    """One row of an explanation: `symbol = formula = formula with numbers = value`.

    Attributes:
        kind: what the row says:
            `given`: the value of an argument;
            `value`, `fold`: the value of one operation, or of several folded into one;
            `open`: the start of the body of a loop, a branch or a recomputed function;
            `local`: a local gradient;
            `seed`, `cotangent`: the initial cotangent, any other cotangent;
            `share`: the contribution of one consumer or of one path to the cotangent above it;
            `chain`: local gradients multiplied along a path;
            `sum`, `note`: a remark, in `note`.
        symbol: the left side.
        formulas: the expressions it equals, one after the other: `2*s`, `2*(-1)`.
        value: the number, or a description of the array.
        data: the value as plain data, JSON-able.
        name: the name on the tape, "" if there is none.
        source: `file.py:12`.
        code: the expression in the source.
        note: a remark.
        depth: how far the row is indented.
        number: `2.1`; "" for rows that are not numbered.
    """

    kind: str
    symbol: Spelled = EMPTY
    formulas: tuple[Spelled, ...] = ()
    value: str = ""
    data: Json = None
    name: str = ""
    source: str = ""
    code: str = ""
    note: str = ""
    depth: int = 0
    number: str = ""


#: The kinds of row that are numbered.
_NUMBERED = frozenset({"value", "open", "fold", "local", "seed", "cotangent"})


@dataclass(frozen=True)
class Act:
    """One part of an explanation: the forward pass, the local gradients, or the backward pass.

    Attributes:
        title: its title.
        intro: a remark under the title, "" if there is none.
        rows: its rows.
    """

    title: str
    intro: str
    rows: tuple[StoryRow, ...]

    def numbered(self, act: int) -> "Act":
        """Number the rows: 1.1, 1.2, ..."""
        count, rows = 0, []
        for row in self.rows:
            count += row.kind in _NUMBERED
            rows.append(replace(row, number=f"{act}.{count}") if row.kind in _NUMBERED else row)
        return replace(self, rows=tuple(rows))

    def steps(self) -> Iterator[tuple[StoryRow, ...]]:
        """The rows in groups: a numbered row, then those that belong to it."""
        group: list[StoryRow] = []
        for row in self.rows:
            if row.number and group:
                yield tuple(group)
                group = []
            group.append(row)
        if group:
            yield tuple(group)


@dataclass(frozen=True)
class Story:
    """A whole explanation. A renderer is a function of it: `jaxprop.explain(tape).to(render)`.

    Attributes:
        title: what is explained.
        given: the arguments.
        acts: the three acts, or the one act of a path.
        end: the rows that multiply the chain rule out.
    """

    title: str
    given: tuple[StoryRow, ...]
    acts: tuple[Act, ...]
    end: tuple[StoryRow, ...] = ()
