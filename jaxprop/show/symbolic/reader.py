"""Read a program as expressions: each equation becomes the expression it stands for.

Only the primitives themselves are known here. Their derivatives are read from the programs of JAX's own rules.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ... import _jaxpr
from ...core.types import Shape
from .arithmetic import apply, broadcast, negate, power
from .contractions import CONTRACTIONS
from .elementwise import ELEMENTWISE
from .expressions import Apply, Equation, Expr, PrimitiveReader, TooLarge, Unreadable, is_pointwise
from .literals import literal
from .shapes import REDUCTIONS, SHAPES

#: How each primitive is read. Pass `{**PRIMITIVES, "my_p": read_my_p}` to read more.
PRIMITIVES: Mapping[str, PrimitiveReader] = MappingProxyType(
    {**ELEMENTWISE, **REDUCTIONS, **SHAPES, **CONTRACTIONS}
)


class Style(NamedTuple):
    """How expressions are written.

    Attributes:
        primitives: the reader of each primitive.
        known: shorter ways to write expressions, such as the name of a value.
        opened: whether short functions with a rule of their own are written out, or appear under their name.
    """

    primitives: Mapping[str, PrimitiveReader] = PRIMITIVES
    known: Mapping[Expr, Expr] = MappingProxyType({})
    opened: bool = True


def read(program: _jaxpr.Program, leaves: Sequence[Expr], style: Style) -> list[Expr]:
    """Return the outputs of a program as expressions of its arguments.

    Args:
        program: the program.
        leaves: one expression for each argument.
        style: how they are written.

    Raises:
        Unreadable: an output depends on an equation that no expression stands for.
        TooLarge: an output is larger than anybody would read.
    """
    reader = _ProgramReader(program, leaves, style)
    return [reader.atom(atom) for atom in program.jaxpr.outvars]


class _ProgramReader:
    def __init__(self, program: _jaxpr.Program, leaves: Sequence[Expr], style: Style) -> None:
        self.style = style
        self.producer = {var: eqn for eqn in program.jaxpr.eqns for var in eqn.outvars}
        self.read: dict[Hashable, Expr] = dict(zip(program.jaxpr.invars, leaves, strict=True))
        for var, const in zip(program.jaxpr.constvars, program.consts, strict=True):
            if np.ndim(const) == 0:
                self.read[var] = literal(const)

    def atom(self, atom: Any) -> Expr:
        if _jaxpr.is_literal(atom):
            return broadcast(literal(atom.val), _jaxpr.shape_of(atom.aval))
        stack = [atom]
        while stack:
            var = stack[-1]
            if var in self.read:
                stack.pop()
                continue
            if var not in self.producer:
                raise Unreadable("const")
            eqn = self.producer[var]
            missing = [a for a in _operands(eqn) if not _jaxpr.is_literal(a) and a not in self.read]
            if missing:
                stack.extend(missing)
            else:
                found = _read_equation(eqn, [self.atom(a) for a in _operands(eqn)], self.style)
                for out, x in zip(eqn.outvars, found, strict=True):
                    self.read[out] = self.style.known.get(x, x)
        return self.read[atom]


def _operands(eqn: Any) -> Sequence[Any]:
    return () if eqn.primitive.name == "zeros_like" else eqn.invars


def _read_equation(eqn: Any, operands: list[Expr], style: Style) -> Sequence[Expr]:
    name = eqn.primitive.name
    body = _jaxpr.inlined_program(eqn)
    if body is not None:
        return read(body, operands, style)
    if _jaxpr.has_custom_rule(eqn):
        return _read_custom(eqn, operands, style)
    if name not in style.primitives:
        raise Unreadable(name)
    equation = Equation(
        name,
        eqn.params,
        tuple(_jaxpr.shape_of(var.aval) for var in eqn.outvars),
        tuple(_jaxpr.dtype_of(var.aval) for var in eqn.outvars),
        tuple(_jaxpr.dtype_of(atom.aval) for atom in eqn.invars),
    )
    return _checked(style.primitives[name](operands, equation), equation)


def _checked(found: object, equation: Equation) -> Sequence[Expr]:
    """What a reader returned, one expression for each output."""
    outputs = [found] if isinstance(found, Expr) else found
    if not isinstance(outputs, Sequence) or not all(isinstance(x, Expr) for x in outputs):
        raise TypeError(
            f"the reader of `{equation.primitive}` returned {type(found).__name__}, expected an expression, or "
            "one for each of several outputs. Build it with the functions of `jaxprop.show.symbolic`."
        )
    if len(outputs) != len(equation.shapes):
        raise ValueError(
            f"the reader of `{equation.primitive}` returned {len(outputs)} expressions, expected "
            f"{len(equation.shapes)}: one for each output."
        )
    return [_of_shape(x, shape, equation) for x, shape in zip(outputs, equation.shapes, strict=True)]


def _of_shape(x: Expr, shape: Shape, equation: Equation) -> Expr:
    if x.shape == ():
        return broadcast(x, shape)
    if x.shape != shape:
        raise ValueError(
            f"the reader of `{equation.primitive}` returned an expression of shape {x.shape}, "
            f"expected {shape}, the shape of the output."
        )
    return x


def checked_primitives(primitives: Mapping[str, PrimitiveReader]) -> Mapping[str, PrimitiveReader]:
    """Refuse what is not a mapping from names of primitives to functions."""
    if primitives is PRIMITIVES:
        return primitives
    if not isinstance(primitives, Mapping):
        raise TypeError(
            "`primitives` must be a mapping from the names of primitives to their readers, such as "
            f"{{**jaxprop.show.PRIMITIVES, 'my_p': read_my_p}}; got {type(primitives).__name__}."
        )
    for name, reader in primitives.items():
        if not isinstance(name, str) or not callable(reader):
            raise TypeError(
                f"the reader of {name!r} in `primitives` must be a function (operands, equation) -> expression "
                f"under the name of the primitive; got {type(reader).__name__}."
            )
    return primitives


# --- functions with a rule of their own ------------------------------------------------------------------

#: Functions inside JAX that are computed in parts for accuracy, and what they compute.
_EXACT_FORMS: dict[str, Callable[[Expr], Expr]] = {
    "exp_neg_sq": lambda x: apply("exp", negate(power(x, Fraction(2))))
}
#: Functions with a rule of their own are written out up to this size.
_SHORT = 12


def _read_custom(eqn: Any, operands: list[Expr], style: Style) -> list[Expr]:
    """A call of a function with a rule of its own: under its name, or written out."""
    name, body = _jaxpr.display_primitive(eqn), _jaxpr.nested_programs(eqn)[0]
    shape = _jaxpr.shape_of(eqn.outvars[0].aval)
    if name in _EXACT_FORMS and body.is_jaxs_own:
        return [_EXACT_FORMS[name](*operands)]
    if len(eqn.outvars) != 1 or not name.isidentifier() or name.startswith("custom_"):
        return read(body, operands, style)
    try:
        (opened,) = read(body, operands, style)
    except (Unreadable, TooLarge):
        return [Apply(name, operands, shape, {"own": True}, pointwise=False)]
    pointwise = all(x.shape in ((), shape) for x in operands) and is_pointwise(opened)
    named = Apply(name, operands, shape, {"own": True}, pointwise=pointwise)
    return [opened if style.opened and named not in style.known and opened.size <= _SHORT else named]
