"""Structural equality of what JAX rebuilds at every trace: programs and the functions in them.

Two traces of one function are two programs that compute the same. To be certain of it, only what is known to
decide is compared: functions are equal if their code and everything they close over is, custom rules if their
derivatives are equal programs, and unknown objects only if they are identical. A wrong "no" costs a
compilation; a wrong "yes" would cost a wrong number.
"""

import dataclasses
import functools
import types
from typing import Any

import numpy as np

from . import _jaxpr

_DEPTH = 12


class _Identity:
    """An object that equals only itself."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


def fingerprint(x: Any, depth: int = _DEPTH) -> Any:
    """A hashable value that is equal for two things only if they compute the same."""
    if x is None or isinstance(x, bool | int | float | complex | str | bytes | type):
        return type(x).__name__, repr(x) if isinstance(x, float | complex) else x
    if depth == 0:
        return _Identity(x)
    down = functools.partial(fingerprint, depth=depth - 1)
    if isinstance(x, np.generic | np.ndarray) or _jaxpr.is_numpy_wrapper(x):
        array = np.asarray(x)
        if array.size <= 64 and array.dtype != object:
            return "array", array.dtype.str, array.shape, array.tobytes()
        return _Identity(x)
    if _jaxpr.is_program(x):
        return _program(_jaxpr.as_program(x), depth)
    if isinstance(x, tuple | list):
        return type(x).__name__, tuple(map(down, x))
    if isinstance(x, dict):
        return "dict", tuple((repr(key), down(value)) for key, value in x.items())
    if _jaxpr.is_equation(x):
        return _equation(x, depth)
    if isinstance(x, functools.partial):
        return "partial", down(x.func), down(x.args), down(x.keywords)
    if isinstance(x, types.FunctionType):
        cells = tuple(down(_contents(cell)) for cell in x.__closure__ or ())
        globals_ = _Identity(x.__globals__)  # the same code in two modules is two functions
        return "function", x.__code__, globals_, cells, down(x.__defaults__), down(x.__kwdefaults__)
    if isinstance(x, types.MethodType):
        return "method", down(x.__func__), down(x.__self__)
    if _is_record(x):
        fields = tuple(down(getattr(x, field.name)) for field in dataclasses.fields(x))
        return "record", type(x), fields
    return _by_equality(x)


def _is_record(x: Any) -> bool:
    """Whether an object is its fields and nothing else: so JAX wraps callbacks, again at each trace."""
    params = getattr(type(x), "__dataclass_params__", None)
    if params is None or not params.frozen:
        return False
    held = set(getattr(x, "__dict__", ())).union(*(vars(kind).get("__slots__", ()) for kind in type(x).__mro__))
    return held <= {"__weakref__", *(field.name for field in dataclasses.fields(x))}


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _by_equality(x: Any) -> Any:
    try:
        hash(x)
    except TypeError:
        return _Identity(x)
    return x


def _equation(eqn: Any, depth: int, differentiated: bool = False) -> Any:
    name = eqn.primitive.name
    if not _jaxpr.has_custom_rule(eqn):
        params = tuple((key, fingerprint(p, depth - 1)) for key, p in sorted(eqn.params.items()))
        return name, params
    bodies = tuple(_program(body, depth - 1) for body in _jaxpr.nested_programs(eqn))
    if differentiated:
        return name, bodies
    if _jaxpr.has_reverse_rule(eqn):
        # Its forward half must not be traced again: libraries keep state in it (a store that is filled once).
        return name, _Identity(eqn)
    # Its rule is another function at each trace. Its derivative is a program: compare that.
    try:
        rule = _jaxpr.derivative_program(eqn)
    except Exception:
        return name, _Identity(eqn)
    return name, bodies, _program(rule, depth - 1, differentiated=True)


def _program(program: Any, depth: int, differentiated: bool = False) -> Any:
    if depth <= 0:
        return _Identity(program)
    numbers: dict[Any, int] = {}

    def atom(x: Any) -> Any:
        if _jaxpr.is_literal(x):
            return fingerprint(x.val, depth - 1), str(x.aval)
        return numbers.setdefault(x, len(numbers)), str(x.aval)

    jaxpr, consts = program
    heads = tuple(map(atom, (*jaxpr.invars, *jaxpr.constvars)))
    body = tuple(
        (
            _equation(e, depth, differentiated),
            tuple(map(atom, e.invars)),
            tuple(map(atom, e.outvars)),
        )
        for e in jaxpr.eqns
    )
    held = tuple(fingerprint(const, depth - 1) for const in consts)
    return heads, body, tuple(map(atom, jaxpr.outvars)), held
