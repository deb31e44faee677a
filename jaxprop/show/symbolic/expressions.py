"""Expressions: immutable trees of numbers, symbols, sums, products and applied functions.

Build them with the functions of `arithmetic` and `arrays`, which simplify: `x * x` and `x**2`, `-(a - b)` and
`b - a` are one expression. Equality ignores the order of terms and factors; the order is kept for reading.
Nothing here recurses, so an expression may be as deep as it is large.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, TypeVar

import numpy as np

from ...core.types import Dtype, Shape

Number: TypeAlias = Fraction | float | complex | bool
T = TypeVar("T")

#: The size of the largest expression: its symbols, numbers and operations, counted as a tree.
LIMIT = 400


class TooLarge(Exception):
    """Raised for an expression larger than anybody would read."""


class Expr:
    """An expression; equal to another that differs only in the order of terms and factors.

    Attributes:
        shape: the shape of its value.
        size: the number of symbols, numbers and operations in it.
        parts: the expressions it is built from.
    """

    __slots__ = ("_digest", "parts", "shape", "size")

    def __init__(self, key: str, shape: Shape, parts: Sequence["Expr"], digests: Iterable[bytes]) -> None:
        self.shape, self.parts = shape, tuple(parts)
        self.size = 1 + sum(part.size for part in parts)
        if self.size > LIMIT:
            raise TooLarge
        # A digest of the structure: comparing the trees themselves would recurse.
        own = f"{type(self).__name__} {key}".encode()
        self._digest = hashlib.blake2b(b"|".join((own, *digests)), digest_size=16).digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Expr) and self._digest == other._digest)


class Num(Expr):
    """A number, exact (`Fraction`) where it is an integer or a ratio of integers."""

    __slots__ = ("value",)

    def __init__(self, value: Number) -> None:
        self.value = value
        super().__init__(f"{isinstance(value, bool)} {number_key(value)}", (), (), ())  # True differs from 1


class Sym(Expr):
    """A symbol. Its name is chosen when the expression is printed.

    Attributes:
        role: `in` for an operand, `out` for an output, `ct` for the cotangent of an output.
        index: which of them.
    """

    __slots__ = ("index", "role")

    def __init__(self, role: str, index: int, shape: Shape = ()) -> None:
        self.role, self.index = role, index
        super().__init__(f"{role} {index}", shape, (), ())


class Sum(Expr):
    """`sum_i coefficient_i * term_i`. A constant term is a multiple of `ONE`; no term is itself a sum."""

    __slots__ = ("terms",)

    def __init__(self, terms: Sequence[tuple[Number, Expr]], shape: Shape) -> None:
        self.terms = tuple(terms)
        digests = sorted(term._digest + number_key(coefficient).encode() for coefficient, term in terms)
        super().__init__("", shape, [term for _, term in terms], digests)


class Prod(Expr):
    """`coefficient * prod_i factor_i ** exponent_i`."""

    __slots__ = ("coefficient", "factors")

    def __init__(self, coefficient: Number, factors: Sequence[tuple[Expr, Number]], shape: Shape) -> None:
        self.coefficient, self.factors = coefficient, tuple(factors)
        digests = sorted(factor._digest + number_key(exponent).encode() for factor, exponent in factors)
        super().__init__(number_key(coefficient), shape, [factor for factor, _ in factors], digests)


class Apply(Expr):
    """A function applied to expressions.

    Attributes:
        fn: the name of the function.
        args: its arguments.
        params: its other arguments, which are not expressions.
        pointwise: whether each element of the result depends only on the elements at the same index.
    """

    __slots__ = ("args", "fn", "params", "pointwise")

    def __init__(
        self,
        fn: str,
        args: Sequence[Expr],
        shape: Shape,
        params: Mapping[str, Any] | None = None,
        pointwise: bool = True,
    ) -> None:
        self.fn, self.args, self.params, self.pointwise = fn, tuple(args), dict(params or {}), pointwise
        key = f"{fn} {shape} {sorted((name, repr(value)) for name, value in self.params.items())}"
        super().__init__(key, shape, self.args, (arg._digest for arg in self.args))


# --- numbers -----------------------------------------------------------------------------------------


def exact(value: object) -> Number:
    """Return a number as exactly as it can be meant: `2.0` becomes the integer 2."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, Fraction):
        return value
    if isinstance(value, complex | np.complexfloating):
        return exact(value.real) if value.imag == 0 else complex(value)
    if isinstance(value, int | np.integer):
        return Fraction(int(value))
    real = float(value)  # type: ignore[arg-type]
    return Fraction(int(real)) if math.isfinite(real) and real == int(real) and abs(real) < 1e15 else real


def num(value: object) -> Num:
    """Return a number as an expression."""
    return Num(exact(value))


def is_negative(value: Number) -> bool:
    return not isinstance(value, complex) and value < 0


def number_key(value: Number) -> str:
    """A text that is equal for equal numbers: `1/2` for 0.5 and for `Fraction(1, 2)`."""
    if isinstance(value, complex) or not math.isfinite(value):
        return repr(complex(value)) if value == value else "nan"
    numerator, denominator = value.as_integer_ratio()
    return f"{numerator}/{denominator}"


ZERO, ONE = num(0), num(1)

# --- walking -----------------------------------------------------------------------------------------


def walk(x: Expr) -> Iterator[Expr]:
    """Every expression inside `x`, `x` included, each after its own parts."""
    done: set[int] = set()
    stack = [x]
    while stack:
        here = stack[-1]
        missing = [part for part in here.parts if id(part) not in done]
        if missing:
            stack.extend(reversed(missing))
            continue
        stack.pop()
        if id(here) not in done:
            done.add(id(here))
            yield here


def fold(x: Expr, visit: Callable[[Expr, list[T]], T]) -> T:
    """Combine the results of the parts, from the leaves up: `visit(expression, results of its parts)`."""
    found: dict[int, T] = {}
    for here in walk(x):
        found[id(here)] = visit(here, [found[id(part)] for part in here.parts])
    return found[id(x)]


def dependents(x: Expr, part: Expr) -> list[Expr]:
    """The expressions inside `x` that are built from `part`, `part` excluded."""
    contains: set[int] = set()
    found = []
    for here in walk(x):
        if here == part:
            contains.add(id(here))
        elif any(id(inner) in contains for inner in here.parts):
            contains.add(id(here))
            found.append(here)
    return found


def contains(x: Expr, part: Expr) -> bool:
    return any(here == part for here in walk(x))


def is_diagonal(x: Expr, part: Expr) -> bool:
    """Whether each element of `x` depends only on the element of `part` at the same index."""
    return all(
        here.shape == part.shape and (not isinstance(here, Apply) or here.pointwise)
        for here in dependents(x, part)
    )


def is_pointwise(x: Expr) -> bool:
    """Whether `x` is built from pointwise functions and broadcasts alone."""
    return all(not isinstance(e, Apply) or e.pointwise or e.fn == "broadcast_to" for e in walk(x))


# --- reading -----------------------------------------------------------------------------------------


class Unreadable(Exception):
    """Raised where no expression stands for an equation; the argument is the name of the primitive."""


@dataclass(frozen=True)
class Equation:
    """What the reader of a primitive is given besides the operands.

    Attributes:
        primitive: the name of the primitive.
        params: its parameters, as in the jaxpr.
        shapes: the shape of each output.
        dtypes: the dtype of each output.
        operand_dtypes: the dtype of each operand.
    """

    primitive: str
    params: Mapping[str, Any]
    shapes: tuple[Shape, ...]
    dtypes: tuple[Dtype, ...]
    operand_dtypes: tuple[Dtype, ...]

    @property
    def shape(self) -> Shape:
        """The shape of the first output."""
        return self.shapes[0]


#: Turns the operands of an equation into what it computes: an expression, or one for each output.
PrimitiveReader: TypeAlias = Callable[[Sequence[Expr], Equation], Expr | Sequence[Expr]]
