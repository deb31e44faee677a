"""Local gradients as formulas: `d(s**2)/ds = 2*s`, `dW = x.T @ dy`.

They are read from the program of JAX's own rule and simplified; no derivative is written by hand.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ... import _jaxpr
from ..._text import type_name
from ...core.graph import Node, Value
from ...core.local import Local
from ...record.local_gradient import LocalGradient
from .derive import Derived, Route, derive_node, derive_route, distinct, operation, route_of
from .expressions import Call, Expr, Num, Prod, Sum, Sym
from .kinds import COMPOSITE, OWN, Kind, kind_of, word_of
from .latex import latex
from .names import latex_cotangent, latex_name, text_cotangent, text_name
from .notation import Spelled
from .notation import spell as spell_short
from .text import Names, atom, bracketed, spell_number, text


@dataclass(frozen=True)
class Formula:
    """A local gradient as a formula.

    Attributes:
        text: the formula as text. The side right of `=` is a line of NumPy (names of `jax.numpy`,
            `jax.scipy.special` and `jax.lax`), where there is a closed form.
        latex: the same in LaTeX.
        kind: what kind of map it is, in a word: `elementwise`, `contraction`, `reduction`, `gather`, ...
        data: the same as plain data, JSON-able: `of`, `wrt`, their types `of_type` and `wrt_type`, `left`,
            `right`, `tree` (the right side as nested lists), and `form`:
            `local`: the right side is `d of/d wrt`, a number for each number;
            `vjp`: it is the cotangent of `wrt`, in terms of that of `of`;
            `map`: there is no closed form, and `right` is a sentence.
    """

    text: str
    latex: str
    kind: str
    data: Mapping[str, Any]

    @property
    def left(self) -> str:
        """The side left of `=`."""
        return self.data["left"]

    @property
    def right(self) -> str:
        """The side right of `=`, or the sentence that says what kind of map it is."""
        return self.data["right"]

    def __str__(self) -> str:
        return self.text

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex}$"


def formula(local: LocalGradient | Local) -> Formula | tuple[Formula | None, ...]:
    """Write a local gradient as a formula, derived from JAX's own rule.

        elementwise:  d(s**2)/ds = 2*s            a number for each number
        other maps:   dW = x.T @ dy               the cotangent of W, in terms of that of y

    Args:
        local: what `tape.local(of, wrt)` gives; or the `Local` a rule or a recorder is given: then there is one
            formula for each operand, None where no derivative goes there.

    Raises:
        TypeError: it is something else.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> tape = jp.backprop(loss)(1.0, 1.0, 2.0)
        >>> print(jp.formula(tape.local("loss", wrt="s")))
        d(s**2)/ds = 2*s
        >>> print(jp.formula(tape.local("loss", wrt="w")))
        dloss/dw = 2*s*x
    """
    if isinstance(local, Local):
        return formulas_of(local.node)
    if not isinstance(local, LocalGradient):
        raise TypeError(
            f"a formula is of a local gradient, `tape.local(of, wrt)`; got {type(local).__name__}. "
            "For a node of a graph use `jaxprop.show.formulas_of(node)`."
        )
    if len(local.path) == 1:
        found = _of_node(local.path[0], local.ends[1], local.ends[0])
        if found is not None:
            return found
    return _of_route(route_of(local.path, local.ends[1], local.ends[0]))


#: What a value is called in a formula; by default its name.
Called = Callable[[Value], str]


def _by_name(value: Value) -> str:
    return value.name


def formulas_of(node: Node, called: Called = _by_name) -> tuple[Formula | None, ...]:
    """The formulas of a node, one for each operand position; None where no derivative goes there.

    A value that stands in several positions is differentiated in all of them at once: `d(x**2)/dx = 2*x` for
    `x * x`, twice. `called` says what a value is called in them.
    """
    if node.eqn is None:
        return ()
    found = {value.id: _of_node(node, value, node.outputs[0], called) for value in distinct(node.operands)}
    return tuple(found.get(value.id) for value in node.operands)


def expression_of(node: Node) -> str | None:
    """What a node computes, as a line of NumPy; None where it has no spelling."""
    found = operation(node)
    return None if found is None else text(found, _names(node)[0])


def _of_node(node: Node, wrt: Value, of: Value, called: Called = _by_name) -> Formula | None:
    derived = derive_node(node, wrt)
    if derived is None:
        return None
    kind = OWN if _jaxpr.has_custom_rule(node.eqn) else kind_of(node.eqn.primitive.name)
    return _write(derived, (of, wrt), (called(of), called(wrt)), kind, *_names(node, None, called))


def _names(
    node: Node, numbers: Mapping[int, Any] | None = None, called: Called = _by_name
) -> tuple[Names, Names]:
    return _named({"in": distinct(node.operands), "out": node.outputs, "ct": node.outputs}, numbers, called)


def spelled_operation(
    node: Node, numbers: Mapping[int, Any] | None = None, called: Called = _by_name
) -> Spelled | None:
    """What a node computes; with `numbers`, by id of the value, these in place of the names."""
    found = operation(node)
    return None if found is None else _spelled(found, _names(node, numbers, called))


def spelled_factor(
    node: Node, wrt: Value, numbers: Mapping[int, Any] | None = None, called: Called = _by_name
) -> Spelled | None:
    """The number that a cotangent is multiplied by on its way to `wrt`; None where it is no such number."""
    derived = derive_node(node, wrt)
    if derived is None or derived.form != "local" or derived.right is None:
        return None
    return _spelled(derived.right, _names(node, numbers, called))


def _spelled(x: Expr, names: tuple[Names, Names]) -> Spelled:
    return Spelled(text(x, names[0]), latex(x, names[1]))


def _of_route(route: Route) -> Formula:
    target = route.between[-1]
    names = _named({"in": route.inputs, "mid": route.between, "out": (target,), "ct": (target,)})
    ends = (target, route.inputs[0])
    return _write(derive_route(route), ends, (target.name, route.inputs[0].name), COMPOSITE, *names)


def _named(
    groups: Mapping[str, Any], numbers: Mapping[int, Any] | None = None, called: Called = _by_name
) -> tuple[Names, Names]:
    """What symbols are called, in text and in LaTeX; or the numbers they stand for."""

    def spell(plain: Any, cotangent: Any) -> Names:
        def name(role: str, value: Value) -> str:
            if numbers is not None and role != "ct" and value.id in numbers:
                return bracketed(spell_short(numbers[value.id]))
            return (cotangent if role == "ct" else plain)(called(value))

        return Names({(role, i): name(role, v) for role, vs in groups.items() for i, v in enumerate(vs)})

    return spell(text_name, text_cotangent), spell(latex_name, latex_cotangent)


def _write(
    derived: Derived,
    ends: tuple[Value, Value],
    called: tuple[str, str],
    kind: Kind,
    names: Names,
    in_latex: Names,
) -> Formula:
    form, right = derived.form, derived.right
    of, wrt = called
    of_type, wrt_type = (type_name(value.dtype, value.shape) for value in ends)
    base = {"of": of, "wrt": wrt, "of_type": of_type, "wrt_type": wrt_type, "form": form}
    spelled = "" if right is None else text(right, names)
    if right is None or len(spelled) > _LONGEST[form]:
        base["form"] = "map"
        return _described(of, wrt, kind, base)
    if form == "local":
        left, latex_left = _quotient(derived, of, wrt, kind, names, in_latex)
    else:
        left, latex_left = text_cotangent(wrt), latex_cotangent(wrt)
    word = word_of(kind, form)
    data = base | {"kind": word, "left": left, "right": spelled, "tree": _tree(right, names)}
    return Formula(f"{left} = {spelled}", f"{latex_left} = {latex(right, in_latex)}", word, data)


#: Formulas of more letters than these say less than a sentence.
_LONGEST = {"local": 320, "vjp": 200, "map": 0}
#: Operations longer than this are called by the name of their result.
_SHORT = 12


def _quotient(
    derived: Derived, of: str, wrt: str, kind: Kind, names: Names, in_latex: Names
) -> tuple[str, str]:
    """`d(s**2)/ds`, where the operation is short; else `dy/ds`."""
    below, latex_below = text_cotangent(wrt), rf"\partial {latex_name(wrt)}"
    forward = derived.forward
    if forward is None or forward.size > _SHORT or kind is COMPOSITE or isinstance(forward, Sym | Num):
        above, latex_above = text_cotangent(of), rf"\partial {latex_name(of)}"
    else:
        spelled = text(forward, names)
        above = f"d {spelled}" if atom(forward, names) else f"d({spelled})"
        inside = latex(forward, in_latex)
        bare = isinstance(forward, Call) or (isinstance(forward, Prod) and len(forward.factors) == 1)
        latex_above = rf"\partial\,{inside}" if bare else rf"\partial\left({inside}\right)"
    return f"{above}/{below}", rf"\frac{{{latex_above}}}{{{latex_below}}}"


def _described(of: str, wrt: str, kind: Kind, base: dict[str, Any]) -> Formula:
    d_of, d_wrt = text_cotangent(of), text_cotangent(wrt)
    sentence = kind.sentence.format(d_of=d_of, wrt=text_name(wrt))
    types = f"{base['wrt_type']} -> {base['of_type']}"
    said = f"{d_wrt}: {sentence} ({kind.word}, {types})"
    shown = rf"{latex_cotangent(wrt)}: \text{{{kind.word}, {types.replace('->', 'to')}}}"
    data = base | {"kind": kind.word, "left": d_wrt, "right": sentence, "tree": None}
    return Formula(said, shown, kind.word, data)


@functools.singledispatch
def _tree(x: Expr, names: Names) -> Any:
    raise TypeError(x)


@_tree.register
def _(x: Num, names: Names) -> Any:
    return spell_number(x.value)


@_tree.register
def _(x: Sym, names: Names) -> Any:
    return names.of(x)


@_tree.register
def _(x: Sum, names: Names) -> Any:
    return ["add", *(["mul", spell_number(c), _tree(term, names)] for c, term in x.terms)]


@_tree.register
def _(x: Prod, names: Names) -> Any:
    factors = [["pow", _tree(f, names), spell_number(e)] for f, e in x.factors]
    return ["mul", spell_number(x.coefficient), *factors]


@_tree.register
def _(x: Call, names: Names) -> Any:
    params = [{name: repr(value) for name, value in x.params.items()}] if x.params else []
    return [x.fn, *(_tree(arg, names) for arg in x.args), *params]
