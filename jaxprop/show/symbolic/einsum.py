"""Products of arrays: when an einsum is said by `@` and `.T`."""

from collections.abc import Sequence

from .expressions import Call, Expr

#: A side of `a @ b`, and whether it is transposed.
Side = tuple[Expr, bool]


def as_matmul(x: Call) -> tuple[Side, Side] | None:
    """The sides of the `a @ b` that says the same as an einsum; None where there is none."""
    inputs, output = x.params["spec"].split("->")
    letters = inputs.split(",")
    if len(letters) != 2:
        return None
    for first, second in ((0, 1), (1, 0)):
        for turn_a in (False, True):
            for turn_b in (False, True):
                a, b = _turned(letters[first], turn_a), _turned(letters[second], turn_b)
                if a is not None and b is not None and _matmul(a, b) == output:
                    return (x.args[first], turn_a), (x.args[second], turn_b)
    return None


def outer_sides(x: Call) -> tuple[Expr, ...]:
    """The sides of the outer product of two vectors that an einsum is; () where it is none."""
    sides = {"a,b->ab": x.args, "a,b->ba": x.args[::-1]}
    return sides.get(x.params["spec"], ())


def _turned(letters: str, turn: bool) -> str | None:
    if not turn:
        return letters
    return letters[:-2] + letters[-1] + letters[-2] if len(letters) >= 2 else None


def _matmul(a: str, b: str) -> str | None:
    """The index letters of `a @ b`; None where NumPy would multiply something else."""
    if not a or not b:
        return None
    if len(b) == 1:
        return a[:-1] if a[-1] == b and b not in a[:-1] else None
    if len(a) == 1:
        return b[:-2] + b[-1] if b[-2] == a and a not in b[:-2] + b[-1] else None
    summed, row, column = a[-1], a[-2], b[-1]
    if summed != b[-2] or len({summed, row, column}) < 3:
        return None
    if len(b) == 2:
        return a[:-1] + column if not {summed, column} & set(a[:-2]) else None
    return a[:-1] + column if a[:-2] == b[:-2] else None


def index_sum(spec: str) -> tuple[Sequence[str], str, str]:
    """The letters of each operand, of the result, and those summed over."""
    inputs, output = spec.split("->")
    letters = inputs.split(",")
    return letters, output, "".join(c for c in dict.fromkeys("".join(letters)) if c not in output)
