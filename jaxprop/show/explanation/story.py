"""The intermediate form of an explanation: frozen rows, which renderers write down."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..symbolic.notation import EMPTY, Spelled


def distinct_pieces(pieces: Iterable[Spelled | None], value: str = "") -> tuple[Spelled, ...]:
    """Pieces of one equation, without those that say again what the one before, or the value, says."""
    found: list[Spelled] = []
    for piece in pieces:
        if piece and (not found or piece.text != found[-1].text):
            found.append(piece)
    while found and found[-1].text == value:
        found.pop()
    return tuple(found)


@dataclass(frozen=True)
class Row:
    """One line of an explanation: `symbol = formula = numbers = value`.

    Attributes:
        kind: `given`, `value`, `open` (a loop, a branch), `fold`, `local`, `seed`, `cotangent`, `share`, `sum`,
            `chain`, `note`.
        symbol: what is said something of.
        formulas: what it equals, one after the other: `2*s`, `2*(-1)`.
        value: the number, or what the array is like.
        data: the value as plain data, JSON-able.
        name: the name on the tape, "" where there is none.
        source: `file.py:12`.
        code: the expression in the source.
        note: a few words beside.
        depth: how far it is indented.
        number: `2.1`, given when acts are put together; "" for rows without one.
    """

    kind: str
    symbol: Spelled = EMPTY
    formulas: tuple[Spelled, ...] = ()
    value: str = ""
    data: Any = None
    name: str = ""
    source: str = ""
    code: str = ""
    note: str = ""
    depth: int = 0
    number: str = ""


#: Rows that are counted.
_COUNTED = frozenset({"value", "open", "fold", "local", "seed", "cotangent"})


@dataclass(frozen=True)
class Act:
    """One act: forward pass, local gradients, backward pass."""

    title: str
    intro: str
    rows: tuple[Row, ...]

    def numbered(self, act: int) -> "Act":
        """The act with its rows numbered: 1.1, 1.2, ..."""
        return replace(self, rows=tuple(_numbered(self.rows, act)))


def _numbered(rows: tuple[Row, ...], act: int) -> Iterator[Row]:
    count = 0
    for row in rows:
        if row.kind in _COUNTED:
            count += 1
            row = replace(row, number=f"{act}.{count}")
        yield row


@dataclass(frozen=True)
class Step:
    """One step of an explanation that is told row by row: an act's title, and the rows to show now."""

    act: Act
    rows: tuple[Row, ...]
    first: bool


@dataclass(frozen=True)
class Story:
    """A whole explanation.

    Attributes:
        title: what is explained.
        given: the arguments.
        acts: the three acts, or the one of a path.
        end: the rows that sum it up.
    """

    title: str
    given: tuple[Row, ...]
    acts: tuple[Act, ...]
    end: tuple[Row, ...] = ()

    def steps(self) -> Iterator[Step]:
        """One row at a time, with those that hang on it (shares, bodies of loops)."""
        for act in self.acts:
            first = True
            for rows in _grouped(act.rows):
                yield Step(act, rows, first)
                first = False


def _grouped(rows: tuple[Row, ...]) -> Iterator[tuple[Row, ...]]:
    group: list[Row] = []
    for row in rows:
        if row.number and group:
            yield tuple(group)
            group = []
        group.append(row)
    if group:
        yield tuple(group)
