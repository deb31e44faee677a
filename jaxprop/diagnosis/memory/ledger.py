"""The residuals of a function, as data and as a table."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from ..._text import byte_count, in_columns, shortened, type_name
from ...core.graph import Source
from ..report import Report, plain


@dataclass(frozen=True)
class Residual:
    """One array that is kept for the backward pass.

    Attributes:
        name: of the value, unique in the ledger; for an array of a loop, of the value in its body.
        kind: `value` (computed in the forward pass and kept: this is what costs memory), `argument` (a leaf of
            the arguments, live anyway) or `constant` (an array the function closes over).
        shape, dtype: of the whole array, step axes included.
        bytes: its size.
        times: how many steps of loops around it are kept; 1 outside of loops.
        primitive: the operation that produces it; `carry` for what enters each step of a loop.
        source: where in the user's code, None where unknown.
        code: the expression in the source.
        path: the loops and other bodies it is produced in, outermost first.
        consumers: the operations of the backward pass that read it, each `expression at file:line`. If there
            are none, JAX keeps it for nothing, and XLA drops it from a compiled gradient.
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
        """Return the residual as plain data, ready for JSON."""
        found = {key: plain(x) for key, x in vars(self).items() if key != "source"}
        return found | {"source": str(self.source) if self.source else None}


@dataclass(frozen=True)
class Ledger(Report):
    """What is kept for the backward pass, largest first.

    Figures: `kept`, bytes computed in the forward pass and kept; `arguments` and `constants`, bytes that are
        live anyway; `temporary`, bytes of temporary memory of the compiled gradient, where it was asked for.

    Attributes:
        residuals: all of them, values first.

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
        """The residuals that cost memory: values computed in the forward pass."""
        return tuple(residual for residual in self.residuals if residual.kind == "value")

    @property
    def total(self) -> int:
        """Bytes computed in the forward pass and kept for the backward pass."""
        return sum(residual.bytes for residual in self.kept)

    def __sub__(self, other: "Ledger") -> "Difference":
        """What this ledger has that the other does not, and vice versa."""
        return Difference(self, other)

    def data(self) -> dict[str, Any]:
        return super().data() | {"residuals": [residual.data() for residual in self.residuals]}

    def __str__(self) -> str:
        head = f"{self.title}: {byte_count(self.total)} kept in {len(self.kept)} arrays"
        rest = [residual for residual in self.residuals if residual.kind != "value"]
        parts = [head]
        if self.kept:
            parts.append(_residual_table(self.kept))
        if rest:
            size = byte_count(sum(residual.bytes for residual in rest))
            parts.append(f"Live anyway (arguments and constants): {size}\n{_residual_table(rest)}")
        if "temporary" in self.figures:
            parts.append(f"Temporary memory of the compiled gradient: {byte_count(self.figures['temporary'])}")
        parts += self.notes
        return "\n\n".join(parts)

    __repr__ = __str__


@dataclass(frozen=True)
class Difference:
    """The difference of two ledgers.

    Attributes:
        a, b: the ledgers.
    """

    a: Ledger
    b: Ledger

    @property
    def bytes(self) -> int:
        """Bytes that the first keeps beyond the second."""
        return self.a.total - self.b.total

    @property
    def only_a(self) -> tuple[Residual, ...]:
        """The residuals of the first only."""
        return _without(self.a.kept, self.b.kept)

    @property
    def only_b(self) -> tuple[Residual, ...]:
        """The residuals of the second only."""
        return _without(self.b.kept, self.a.kept)

    def data(self) -> dict[str, Any]:
        """Return the difference as plain data, ready for JSON."""
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
                parts.append(f"{title}: {byte_count(sum(r.bytes for r in rows))}\n{_residual_table(rows)}")
        return "\n\n".join(parts)

    __repr__ = __str__


def _without(rows: Sequence[Residual], others: Sequence[Residual]) -> tuple[Residual, ...]:
    """Rows without a counterpart among others: of the same code, shape and dtype."""
    spare = Counter(map(_likeness, others))
    found = []
    for row in rows:
        if spare[_likeness(row)]:
            spare[_likeness(row)] -= 1
        else:
            found.append(row)
    return tuple(found)


def _likeness(residual: Residual) -> Hashable:
    return residual.code or residual.name, residual.primitive, residual.shape, residual.dtype


# --- text ----------------------------------------------------------------------------------------------


def _residual_table(rows: Sequence[Residual], most: int = 40) -> str:
    cells: list[tuple[str, ...]] = [("bytes", "type", "times", "name", "produced by", "at", "read by")]
    cells += [
        (
            f"{row.bytes:,}",
            row.type,
            f"{row.times}" if row.times > 1 else "",
            row.name,
            shortened(row.code or row.primitive, 40),
            str(row.source or ""),
            shortened(_read_by(row), 40),
        )
        for row in rows[:most]
    ]
    text = in_columns(cells)
    return text + (f"\n... and {len(rows) - most} more" if len(rows) > most else "")


def _read_by(row: Residual) -> str:
    if not row.consumers:
        return "(unused: XLA drops it)"
    first, *more = row.consumers
    return first.split(" at ")[0] + (f" and {len(more)} more" if more else "")
