"""Pieces of equations."""

from collections.abc import Sequence

from ..._text import number as spell
from ...core.graph import Value
from ...record.local_gradient import LocalGradient
from ...record.tape import Tape
from ..symbolic.names import Spelled, escape, latex_name, text_cotangent, text_name
from ..symbolic.text import bracketed


def spelled_name(name: str) -> Spelled:
    return Spelled(text_name(name), latex_name(name))


def words(text: str) -> Spelled:
    """Words in place of a formula."""
    return Spelled(text, rf"\text{{{escape(text)}}}")


def code(text: str) -> Spelled:
    """Source code in place of a formula."""
    return Spelled(text, rf"\texttt{{{escape(text)}}}")


def quotient(of: str, wrt: str) -> Spelled:
    """`dloss/dw`."""
    above, below = latex_name(of), latex_name(wrt)
    return Spelled(
        f"{text_cotangent(of)}/{text_cotangent(wrt)}", rf"\frac{{\partial {above}}}{{\partial {below}}}"
    )


def times(a: Spelled, b: Spelled) -> Spelled:
    return Spelled(f"{a.text} * {b.text}", rf"{a.latex} \cdot {b.latex}")


def in_parentheses(x: Spelled) -> Spelled:
    """A factor, in parentheses if it is a sum or a negative number."""
    if x.text.startswith("-") or (" " in x.text and not _is_one_call(x.text)):
        return Spelled(f"({x.text})", rf"\left({x.latex}\right)")
    return x


def _is_one_call(text: str) -> bool:
    """Whether a text is one call, `f(a, b)`, up to its last character."""
    name, opened, rest = text.partition("(")
    if not opened or not name.isidentifier():
        return False
    depth = 1
    for at, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return at == len(rest) - 1
    return False


def product_of(numbers: Sequence[float | complex]) -> Spelled:
    """`-2 * 1`: the first factor needs no parentheses."""
    return Spelled(" * ".join(_spelled_numbers(numbers)), r" \cdot ".join(_spelled_numbers(numbers)))


def sum_of(numbers: Sequence[float | complex]) -> Spelled:
    """`3 + (-1)`."""
    return Spelled(" + ".join(_spelled_numbers(numbers)), " + ".join(_spelled_numbers(numbers)))


def _spelled_numbers(numbers: Sequence[float | complex]) -> list[str]:
    return [spell(n) if i == 0 else bracketed(spell(n)) for i, n in enumerate(numbers)]


def edge(tape: Tape, of: Value, wrt: Value) -> LocalGradient:
    """The local gradient of the one operation that consumes `wrt`, else of all operations in between."""
    try:
        return tape.local(of.name, wrt.name, direct=True)
    except ValueError:
        return tape.local(of.name, wrt.name)
