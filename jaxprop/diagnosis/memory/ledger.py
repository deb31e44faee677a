"""The list of what the backward pass keeps, as data and as text."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..._text import byte_count, in_columns, type_name
from ...core.graph import Source
from ..report import Report, plain


@dataclass(frozen=True)
class Residual:
    """One array the backward pass keeps.

    Attributes:
        name: of the value; for an array of a loop, of the value in its body.
        kind: `value` (made on the way out and kept: this is what costs), `argument` (a leaf of the arguments,
            which is there anyway) or `constant` (an array the function closes over).
        shape, dtype: of the whole array, step axes included.
        bytes: its size.
        times: how many steps of loops around it are kept; 1 outside of loops.
        primitive: what makes it; `carry` for what enters each step of a loop.
        source: where in the user's code, None where unknown.
        code: the expression in the source.
        path: the loops and other bodies it is made in, outermost first.
        consumers: the operations of the backward pass that read it, each `expression at file:line`. Where there
            are none XLA drops it from a compiled gradient.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    times: int = 1
    primitive: str = ""
    source: Source | None = None
    code: str = ""
    path: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()

    @property
    def type(self) -> str:
        """Shape and dtype as JAX writes them: `f32[8,16]`."""
        return type_name(self.dtype, self.shape)

    def data(self) -> dict[str, Any]:
        """The residual as plain data, fit for JSON."""
        found = {key: plain(x) for key, x in vars(self).items() if key != "source"}
        return found | {"source": str(self.source) if self.source else None}


@dataclass(frozen=True)
class Ledger(Report):
    """What the backward pass keeps, largest first.

    Figures: `kept`, bytes made on the way out and kept; `arguments` and `constants`, bytes that are kept but
    there anyway; `temporary`, bytes of temporary memory of the compiled gradient, where it was asked for.

    Attributes:
        residuals: all of them, what costs first.

    Examples:
        >>> import jax, jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x):
        ...     h = jnp.sin(x @ w)
        ...     return jnp.sum(h)
        >>> ledger = jp.residuals(loss, compiled=False)(jnp.ones((3, 2)), jnp.ones((4, 3)))
        >>> ledger.total, [(r.name, r.kind, r.type) for r in ledger.residuals]
        (32, [('cos for h', 'value', 'f32[4,2]'), ('x', 'argument', 'f32[4,3]')])
    """

    residuals: tuple[Residual, ...] = ()

    @property
    def kept(self) -> tuple[Residual, ...]:
        """The residuals that cost memory: made on the way out."""
        return tuple(residual for residual in self.residuals if residual.kind == "value")

    @property
    def total(self) -> int:
        """Bytes made on the way out and kept for the way back."""
        return sum(residual.bytes for residual in self.kept)

    def __sub__(self, other: "Ledger") -> "Difference":
        """What this ledger keeps that the other does not, and the other way round."""
        return Difference(self, other)

    def data(self) -> dict[str, Any]:
        return super().data() | {"residuals": [residual.data() for residual in self.residuals]}

    def __str__(self) -> str:
        head = f"{self.title}: {byte_count(self.total)} kept in {len(self.kept)} arrays"
        rest = [residual for residual in self.residuals if residual.kind != "value"]
        parts = [head]
        if self.kept:
            parts.append(_table(self.kept))
        if rest:
            size = byte_count(sum(residual.bytes for residual in rest))
            parts.append(f"Kept but there anyway, arguments and constants: {size}\n{_table(rest)}")
        if "temporary" in self.figures:
            parts.append(f"Temporary memory of the compiled gradient: {byte_count(self.figures['temporary'])}")
        parts += self.notes
        return "\n\n".join(parts)

    __repr__ = __str__


@dataclass(frozen=True)
class Difference:
    """Two ledgers side by side.

    Attributes:
        a, b: the ledgers.
    """

    a: Ledger
    b: Ledger

    @property
    def bytes(self) -> int:
        """Bytes the first keeps more than the second."""
        return self.a.total - self.b.total

    @property
    def only_a(self) -> tuple[Residual, ...]:
        """What only the first keeps."""
        return _without(self.a.kept, self.b.kept)

    @property
    def only_b(self) -> tuple[Residual, ...]:
        """What only the second keeps."""
        return _without(self.b.kept, self.a.kept)

    def data(self) -> dict[str, Any]:
        """The difference as plain data, fit for JSON."""
        return {
            "bytes": self.bytes,
            "only_a": [residual.data() for residual in self.only_a],
            "only_b": [residual.data() for residual in self.only_b],
        }

    def __str__(self) -> str:
        a, b = byte_count(self.a.total), byte_count(self.b.total)
        word = "more" if self.bytes >= 0 else "less"
        parts = [f"{a} against {b}: {byte_count(abs(self.bytes))} {word}"]
        for title, rows in (("Only the first keeps", self.only_a), ("Only the second keeps", self.only_b)):
            if rows:
                parts.append(f"{title}: {byte_count(sum(r.bytes for r in rows))}\n{_table(rows)}")
        return "\n\n".join(parts)

    __repr__ = __str__


def _without(rows: Sequence[Residual], others: Sequence[Residual]) -> tuple[Residual, ...]:
    """Rows that have no like among others: same code, shape and dtype."""
    spare = Counter(map(_likeness, others))
    found = []
    for row in rows:
        if spare[_likeness(row)]:
            spare[_likeness(row)] -= 1
        else:
            found.append(row)
    return tuple(found)


def _likeness(residual: Residual) -> Any:
    return residual.code or residual.name, residual.primitive, residual.shape, residual.dtype


# --- text ----------------------------------------------------------------------------------------------


def _table(rows: Sequence[Residual], most: int = 40) -> str:
    cells: list[tuple[str, ...]] = [("bytes", "type", "times", "name", "made by", "at", "read by")]
    cells += [
        (
            f"{row.bytes:,}",
            row.type,
            f"{row.times}" if row.times > 1 else "",
            row.name,
            _short(row.code or row.primitive),
            str(row.source or ""),
            _short(_readers_text(row)),
        )
        for row in rows[:most]
    ]
    text = in_columns(cells)
    return text + (f"\n... and {len(rows) - most} more" if len(rows) > most else "")


def _readers_text(row: Residual) -> str:
    if not row.consumers:
        return "nothing"
    first, *more = row.consumers
    return first.split(" at ")[0] + (f" and {len(more)} more" if more else "")


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
