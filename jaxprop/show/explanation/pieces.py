"""Pieces of equations that stand in rows."""

from collections.abc import Sequence
from typing import Any

from ...core.graph import Value
from ...record.local_gradient import LocalGradient
from ...record.tape import Tape
from ..symbolic.names import escape, latex_name, text_cotangent, text_name
from ..symbolic.notation import Spelled, spell
from ..symbolic.text import bracketed


def name_of(name: str) -> Spelled:
    return Spelled(text_name(name), latex_name(name))


def words(text: str) -> Spelled:
    """A few words in place of a formula."""
    return Spelled(text, rf"\text{{{escape(text)}}}")


def code(text: str) -> Spelled:
    """A piece of the source in place of a formula."""
    return Spelled(text, rf"\texttt{{{escape(text)}}}")


def quotient(of: str, wrt: str) -> Spelled:
    """`dloss/dw`."""
    above, below = latex_name(of), latex_name(wrt)
    return Spelled(
        f"{text_cotangent(of)}/{text_cotangent(wrt)}", rf"\frac{{\partial {above}}}{{\partial {below}}}"
    )


def times(a: Spelled, b: Spelled) -> Spelled:
    return Spelled(f"{a.text} * {b.text}", rf"{a.latex} \cdot {b.latex}")


def closed(x: Spelled) -> Spelled:
    """A factor, in parentheses where it is a sum or a negative number."""
    if x.text.startswith("-") or (" " in x.text and not _is_call(x.text)):
        return Spelled(f"({x.text})", rf"\left({x.latex}\right)")
    return x


def _is_call(text: str) -> bool:
    """Whether a text is one call, `f(a, b)`, to its last letter."""
    name, opened, rest = text.partition("(")
    if not opened or not name.isidentifier():
        return False
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at == len(rest) - 1
    return False


def product_of(numbers: Sequence[Any]) -> Spelled:
    """`-2 * 1`: the first factor needs no parentheses."""
    return Spelled(" * ".join(_factors(numbers)), r" \cdot ".join(_factors(numbers)))


def sum_of(numbers: Sequence[Any]) -> Spelled:
    """`3 + (-1)`."""
    return Spelled(" + ".join(_factors(numbers)), " + ".join(_factors(numbers)))


def _factors(numbers: Sequence[Any]) -> list[str]:
    return [spell(n) if i == 0 else bracketed(spell(n)) for i, n in enumerate(numbers)]


def edge(tape: Tape, of: Value, wrt: Value) -> LocalGradient:
    """The local gradient of one operation, where it reads `wrt`; else of all the operations between."""
    try:
        return tape.local(of.name, wrt.name, direct=True)
    except ValueError:
        return tape.local(of.name, wrt.name)
