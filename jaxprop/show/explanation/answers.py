"""Read the answers people give: numbers, fractions, small expressions, shapes."""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import SupportsFloat

#: Operators an answer may use.
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    name: getattr(math, name) for name in ("sqrt", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh")
}
_CONSTANTS = {"pi": math.pi, "e": math.e}


class UnreadableAnswer(ValueError):
    """Raised for an answer that is not a number or a shape; the message says why."""


def read_number(answer: SupportsFloat | str, names: Mapping[str, float] | None = None) -> float:
    """Read a number: `-2`, `1/3`, `2*-1`, `2*s`, `1 - tanh(0.5)**2`.

    Args:
        answer: a number, or text.
        names: the names it may use, and their values.

    Raises:
        UnreadableAnswer: it is something else.
    """
    if not isinstance(answer, str):
        return float(answer)
    text = answer.strip().replace("−", "-").replace("×", "*").replace("·", "*").replace("^", "**")  # noqa: RUF001
    for name in sorted((name for name in names or {} if "/" in name), key=len, reverse=True):  # `dloss/ds`
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", f"({(names or {})[name]!r})", text)
    try:
        tree = ast.parse(text, mode="eval")
        found = float(_value(tree.body, {**_CONSTANTS, **(names or {})}))
    except UnreadableAnswer:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError):
        raise UnreadableAnswer(f"{answer!r} is not a number. Write -2, 0.5, 1/3 or 2*-1.") from None
    except (ZeroDivisionError, OverflowError):
        raise UnreadableAnswer(f"{answer!r} is undefined.") from None
    return found


def _value(node: ast.AST, names: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, names)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _value(inner, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left, names), _value(right, names)
            if isinstance(op, ast.Pow) and (abs(b) > 100 or abs(a) > 1e6):
                raise OverflowError
            return _OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_value(inner, names))
        case _:
            text = ast.unparse(node)
            if text in names:
                return names[text]
            known = ", ".join(name for name in names if name not in _CONSTANTS)
            raise UnreadableAnswer(f"unknown name {text!r}{'; available: ' + known if known else ''}.")


def read_shape(answer: Iterable[int] | str) -> tuple[int, ...]:
    """Read a shape: `(3, 4)`, `3,4`, `3x4`, `[3, 4]`; `()` for a scalar.

    Raises:
        UnreadableAnswer: it is something else.
    """
    if not isinstance(answer, str):
        return tuple(int(n) for n in answer)
    text = answer.strip().strip("()[]").replace("x", ",").replace("×", ",")  # noqa: RUF001
    parts: Sequence[str] = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() for part in parts):
        raise UnreadableAnswer(f"{answer!r} is not a shape. Write (3, 4).")
    return tuple(map(int, parts))


def is_same_number(answer: float, expected: float) -> bool:
    """Whether an answer is right to about three digits."""
    if math.isnan(expected) or math.isinf(expected):
        return answer == expected or (math.isnan(answer) and math.isnan(expected))
    return math.isclose(answer, expected, rel_tol=2e-3, abs_tol=1e-9)
