"""Read products of arrays as sums over index letters, and find the `a @ b` that says the same."""

import string
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from .arithmetic import broadcast, multiply, power
from .arrays import apply_array, permuted, reduce, reshape
from .expressions import Apply, Equation, Expr, Num, Number, PrimitiveReader, Prod, Unreadable

# --- building ----------------------------------------------------------------------------------------


def einsum(args: Sequence[Expr], inputs: Sequence[str], output: str) -> Expr:
    """Sum products over index letters. Transposes of the operands go to their letters, scalars to the front."""
    bare: list[Expr] = []
    letters: list[str] = []
    scalars: list[Expr] = []
    for arg, own in zip(args, inputs, strict=True):
        while isinstance(arg, Apply) and arg.fn == "transpose":
            order: Sequence[int] = arg.params["order"]
            own = "".join(own[order.index(i)] for i in range(len(order)))
            arg = arg.args[0]
        scalars += [power(f, e) for f, e in _scalar_factors(arg)]
        bare.append(_without_scalars(arg))
        letters.append(own)
    if scalars:
        return multiply(*scalars, einsum(bare, letters, output))
    sizes = {c: n for arg, own in zip(bare, letters, strict=True) for c, n in zip(own, arg.shape, strict=True)}
    summed = set("".join(letters)) - set(output)
    if not summed and not (len(output) == 2 and all(len(own) == 1 for own in letters)):
        return multiply(*(_aligned(arg, own, output) for arg, own in zip(bare, letters, strict=True)))
    if not output and len(summed) > 1 and len(set(letters)) == 1:
        return reduce("sum", multiply(*bare), range(len(summed)))
    rename = dict(zip(dict.fromkeys("".join(letters)), string.ascii_letters, strict=False))
    spec = ",".join("".join(rename[c] for c in own) for own in letters)
    spec += "->" + "".join(rename[c] for c in output)
    return apply_array("einsum", bare, tuple(sizes[c] for c in output), spec=spec)


def _scalar_factors(x: Expr) -> list[tuple[Expr, Number]]:
    if not isinstance(x, Prod) or x.shape == ():
        return []
    own: list[tuple[Expr, Number]] = [] if x.coefficient == 1 else [(Num(x.coefficient), Fraction(1))]
    return own + [(f, e) for f, e in x.factors if f.shape == ()]


def _without_scalars(x: Expr) -> Expr:
    if not isinstance(x, Prod) or x.shape == ():
        return x
    return broadcast(multiply(*(power(f, e) for f, e in x.factors if f.shape != ())), x.shape)


def _aligned(x: Expr, letters: str, output: str) -> Expr:
    """An operand with its axes where the output has their letters."""
    x = transpose(x, [letters.index(c) for c in output if c in letters])
    sizes = iter(x.shape)
    shape = tuple(next(sizes) if c in letters else 1 for c in output)
    first = next((i for i, c in enumerate(output) if c in letters), len(shape))
    return reshape(x, shape[first:])  # NumPy adds leading axes by itself


def transpose(x: Expr, order: Sequence[int]) -> Expr:
    """Permute the axes of an array; an einsum permutes its output letters."""
    if isinstance(x, Apply) and x.fn == "einsum":
        inputs, output, _ = index_letters(x)
        return einsum(x.args, inputs, "".join(output[i] for i in order))
    return permuted(x, order)


# --- reading -----------------------------------------------------------------------------------------


def _dot_general(operands: Sequence[Expr], equation: Equation) -> Expr:
    (over_a, over_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    a, b = operands
    letters = iter(string.ascii_letters)
    left = [""] * len(a.shape)
    right = [""] * len(b.shape)
    for i, j in (*zip(batch_a, batch_b, strict=True), *zip(over_a, over_b, strict=True)):
        left[i] = right[j] = next(letters)
    left = [letter or next(letters) for letter in left]
    right = [letter or next(letters) for letter in right]
    batch = "".join(left[i] for i in batch_a)
    free_a = "".join(c for i, c in enumerate(left) if i not in (*batch_a, *over_a))
    free_b = "".join(c for i, c in enumerate(right) if i not in (*batch_b, *over_b))
    return einsum(operands, ["".join(left), "".join(right)], batch + free_a + free_b)


def _triangular_solve(operands: Sequence[Expr], equation: Equation) -> Expr:
    if equation.params["conjugate_a"]:
        raise Unreadable("triangular_solve")
    flags = {name: equation.params[name] for name in ("left_side", "lower", "transpose_a", "unit_diagonal")}
    return apply_array("triangular_solve", operands, equation.shape, **flags)


CONTRACTIONS: dict[str, PrimitiveReader] = {
    "dot_general": _dot_general,
    "triangular_solve": _triangular_solve,
}

# --- spelling ----------------------------------------------------------------------------------------

#: A side of `a @ b`, and whether it is transposed.
Side: TypeAlias = tuple[Expr, bool]


class IndexLetters(NamedTuple):
    """The index letters of an einsum: of each operand, of the output, and those summed over."""

    inputs: Sequence[str]
    output: str
    summed: str


def index_letters(x: Apply) -> IndexLetters:
    inputs, output = str(x.params["spec"]).split("->")
    summed = "".join(c for c in dict.fromkeys(inputs.replace(",", "")) if c not in output)
    return IndexLetters(inputs.split(","), output, summed)


def as_matmul(x: Apply) -> tuple[Side, Side] | None:
    """The sides of the `a @ b` that equals an einsum, None where there is none."""
    letters, output, _ = index_letters(x)
    if len(letters) != 2:
        return None
    for first, second in ((0, 1), (1, 0)):
        for turn_a in (False, True):
            for turn_b in (False, True):
                a, b = _turned(letters[first], turn_a), _turned(letters[second], turn_b)
                if a is not None and b is not None and _matmul_output(a, b) == output:
                    return (x.args[first], turn_a), (x.args[second], turn_b)
    return None


def as_outer(x: Apply) -> tuple[Expr, ...]:
    """The sides of the outer product of two vectors that equals an einsum; () where it is not one."""
    return {"a,b->ab": x.args, "a,b->ba": x.args[::-1]}.get(str(x.params["spec"]), ())


def _turned(letters: str, turn: bool) -> str | None:
    if not turn:
        return letters
    return letters[:-2] + letters[-1] + letters[-2] if len(letters) >= 2 else None


def _matmul_output(a: str, b: str) -> str | None:
    """The index letters of `a @ b`, None where NumPy would compute something else."""
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
