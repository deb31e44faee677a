"""Local gradients as formulas: `d(s**2)/ds = 2*s`, `dW = x.T @ dy`.

They are read from the program of JAX's own rule and simplified; no derivative is written by hand.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from ... import _jaxpr
from ..._text import number, type_name
from ...core.graph import Node, Value
from ...core.local import Local
from ...core.types import ValueId
from ...record.local_gradient import LocalGradient
from .derive import NO_FORMULA, Derivations, Derivative, Statement, composition_of, statement_of
from .expressions import ONE, Apply, Expr, Num, PrimitiveReader, Prod, Sum, Sym, fold
from .kinds import COMPOSITE, OWN, Kind, kind_of, word_of
from .latex import latex
from .names import Spelled, latex_cotangent, latex_name, text_cotangent, text_name
from .reader import PRIMITIVES, checked_primitives
from .text import Names, bracketed, exact_number, is_atom, text
from .textbook import replace


@dataclass(frozen=True)
class Formula:
    """A local gradient as a formula.

    Attributes:
        text: the formula as text. Where there is a closed form, the right side is a line of NumPy (names of
            `jax.numpy`, `jax.scipy.special` and `jax.lax`).
        latex: the formula in LaTeX.
        kind: the kind of map, in a word: `elementwise`, `contraction`, `reduction`, `gather`, ...
        data: the same as plain data, JSON-able: `of`, `wrt`, their types `of_type` and `wrt_type`, `left`,
            `right`, `tree` (the right side as nested lists), and `form`:
            `local`: the right side is `d of/d wrt`, elementwise;
            `vjp`: the right side is the cotangent of `wrt`, in terms of the cotangent of `of`;
            `map`: there is no closed form, and `right` is a sentence.
    """

    text: str
    latex: str
    kind: str
    data: Mapping[str, Any]

    @property
    def left(self) -> str:
        """The left side of the formula."""
        return self.data["left"]

    @property
    def right(self) -> str:
        """The right side of the formula, or the sentence that describes the map."""
        return self.data["right"]

    def __str__(self) -> str:
        return self.text

    def _repr_latex_(self) -> str:
        return f"$\\displaystyle {self.latex}$"


def formula(
    local: LocalGradient | Local, primitives: Mapping[str, PrimitiveReader] = PRIMITIVES
) -> Formula | tuple[Formula | None, ...]:
    """Write a local gradient as a formula, derived from JAX's own rule.

        elementwise:  d(s**2)/ds = 2*s            the factor of each element
        other maps:   dW = x.T @ dy               the cotangent of W, in terms of that of y

    Args:
        local: a local gradient, `tape.local(of, wrt)`; or the `Local` that a rule or a recorder is given.
        primitives: how each primitive is read, by its name. To read one more, pass
            `{**jaxprop.show.PRIMITIVES, "my_p": read_my_p}`.

    Returns:
        The formula. For a `Local`, one formula for each operand, `None` where no derivative goes.

    Raises:
        TypeError: `local` or `primitives` is something else, or a reader does not return an expression.
        ValueError: a reader returns an expression of the wrong shape.

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
    formulas = Formulas(primitives=checked_primitives(primitives))
    if isinstance(local, Local):
        return formulas.of_node(local.node)
    if not isinstance(local, LocalGradient):
        raise TypeError(
            f"`formula` takes a local gradient, `tape.local(of, wrt)`; got {type(local).__name__}. "
            "For a node of a graph use `jaxprop.show.formulas_of(node)`."
        )
    return formulas.of_local(local)


def formulas_of(
    node: Node,
    called: Callable[[Value], str] | None = None,
    primitives: Mapping[str, PrimitiveReader] = PRIMITIVES,
) -> tuple[Formula | None, ...]:
    """Return the formulas of a node, one for each operand position; `None` where no derivative goes.

    A value in several positions is differentiated in all of them at once: `d(x**2)/dx = 2*x` for `x * x`.

    Args:
        node: a node of a graph.
        called: the name to write for a value; its own by default.
        primitives: how each primitive is read, as in `formula`.
    """
    return Formulas(called, checked_primitives(primitives)).of_node(node)


def expression_of(node: Node, primitives: Mapping[str, PrimitiveReader] = PRIMITIVES) -> str | None:
    """Return what a node computes, as a line of NumPy; `None` where no expression stands for it."""
    found = Formulas(primitives=checked_primitives(primitives)).operation(statement_of(node))
    return None if found is None else found.text


def has_own_name(node: Node, value: Value) -> bool:
    """Whether an output of a node has a name from the source, not one made from its primitive."""
    base = value.name.rsplit("/", 1)[-1].partition("#")[0].partition("[")[0]
    return bool(base) and base != node.primitive


#: Numbers to write in place of names, by id of the value.
Numbers: TypeAlias = Mapping[ValueId, float | complex]

#: Formulas with more letters than this are less clear than a sentence.
_LONGEST = {"local": 320, "vjp": 200, "map": 0}
#: Operations up to this size are written out: `d(s**2)/ds`; larger ones as `dy/ds`.
_SHORT = 12


class Formulas:
    """Writes statements and their local gradients, under names of one's choice."""

    def __init__(
        self,
        called: Callable[[Value], str] | None = None,
        primitives: Mapping[str, PrimitiveReader] = PRIMITIVES,
    ) -> None:
        self._called = called or (lambda value: value.name)
        self._derivations = Derivations(primitives)

    def of_node(self, node: Node) -> tuple[Formula | None, ...]:
        """The formulas of a node, one for each operand position."""
        if node.eqn is None:
            return ()
        statement = statement_of(node)
        found = {value.id: self.of(statement, value) for value in statement.inputs}
        return tuple(found.get(value.id) for value in node.operands)

    def of(
        self, statement: Statement, wrt: Value, of: Value | None = None, seed: bool = False
    ) -> Formula | None:
        """The formula of a statement with respect to one input, None where no derivative goes.

        With `seed`, the cotangent of the output is 1.
        """
        derivative = self._derivations.derivative(statement, wrt)
        if derivative is None:
            return None
        right = self._with_output(statement, derivative)
        if seed and right is not None:
            right = replace(right, {Sym("ct", 0): ONE})
        derivative = Derivative(derivative.form, derivative.forward, right)
        return self._written(statement, derivative, of or statement.outputs[0], wrt, _kind_of(statement))

    def of_local(self, local: LocalGradient) -> Formula:
        """The formula of a local gradient, through all the operations in between."""
        of, wrt = local.ends
        if len(local.path) == 1:
            found = self.of(statement_of(local.path[0]), wrt, of)
            if found is not None:
                return found
        statement = composition_of(local.path, of)
        producers = {value.id: node for node in statement.nodes for value in node.outputs}
        found = self._composed(statement, of, wrt, lambda value: has_own_name(producers[value.id], value))
        if found.data["form"] == "map":  # too long to write the others out
            found = self._composed(statement, of, wrt, lambda value: True)
        return found

    def operation(self, statement: Statement, numbers: Numbers | None = None) -> Spelled | None:
        """What a statement computes; with `numbers`, these in place of the names."""
        found = self._derivations.operation(statement)
        return None if found is None else self._spelled(found, statement, numbers)

    def factor(self, statement: Statement, wrt: Value, numbers: Numbers | None = None) -> Spelled | None:
        """The factor that multiplies a cotangent on its way to `wrt`.

        None where the map is not elementwise, or the factor is too long to read.
        """
        derivative = self._derivations.derivative(statement, wrt)
        if derivative is None or derivative.form != "local":
            return None
        right = self._with_output(statement, derivative)
        if right is None or (numbers is not None and not _are_known(right, statement, numbers)):
            return None
        found = self._spelled(right, statement, numbers)
        return found if len(found.text) <= _LONGEST["local"] else None

    def _with_output(self, statement: Statement, derivative: Derivative) -> Expr | None:
        """The derivative, under the name of the output where it is written more than once: `a*(1 - a)`."""
        right, forward, out = derivative.right, derivative.forward, statement.outputs[0]
        if right is None or not isinstance(forward, Apply) or not has_own_name(statement.nodes[-1], out):
            return right
        if fold(right, lambda x, counts: 1 if x == forward else sum(counts)) < 2:
            return right
        return replace(right, {forward: Sym("out", 0, out.shape)})

    def _composed(self, statement: Statement, of: Value, wrt: Value, named: Callable[[Value], bool]) -> Formula:
        derivative = self._derivations.derivative(statement, wrt, named) or NO_FORMULA
        derivative = Derivative(derivative.form, None, derivative.right)  # `dloss/dw`, not `d(...)/dw`
        return self._written(statement, derivative, of, wrt, COMPOSITE)

    def _written(
        self, statement: Statement, derivative: Derivative, of: Value, wrt: Value, kind: Kind
    ) -> Formula:
        of_type, wrt_type = (type_name(value.dtype, value.shape) for value in (of, wrt))
        of_end, wrt_end = _FormulaEnd(self._called(of), of_type), _FormulaEnd(self._called(wrt), wrt_type)
        return _Equation(derivative, of_end, wrt_end, kind, self._names(statement, None)).written()

    def _spelled(self, x: Expr, statement: Statement, numbers: Numbers | None) -> Spelled:
        if isinstance(x, Sym) and numbers is not None:  # a number alone needs no parentheses
            alone = number(numbers[_roles(statement)[x.role][x.index].id])
            return Spelled(alone, alone)
        names = self._names(statement, numbers)
        return Spelled(text(x, names.text), latex(x, names.latex))

    def _names(self, statement: Statement, numbers: Numbers | None) -> "_Names":
        """The names of symbols, in text and in LaTeX; or the numbers they stand for."""
        roles = _roles(statement)

        def names(plain: Callable[[str], str], cotangent: Callable[[str], str]) -> Names:
            def name(role: str, index: int) -> str:
                value = roles[role][index]
                if numbers is not None and role != "ct" and value.id in numbers:
                    return bracketed(number(numbers[value.id]))
                return (cotangent if role == "ct" else plain)(self._called(value))

            return Names(_NamesOnDemand(name))

        return _Names(names(text_name, text_cotangent), names(latex_name, latex_cotangent))


class _NamesOnDemand(dict[tuple[str, int], str]):
    """Names made when they are first asked for: most symbols are never written."""

    def __init__(self, name: Callable[[str, int], str]) -> None:
        super().__init__()
        self.name = name

    def __missing__(self, key: tuple[str, int]) -> str:
        self[key] = self.name(*key)
        return self[key]


class _Names(NamedTuple):
    text: Names
    latex: Names


class _FormulaEnd(NamedTuple):
    """The value at one end of a local gradient: its name and its type."""

    name: str
    type: str


def _kind_of(statement: Statement) -> Kind:
    node, *others = statement.nodes
    if others:
        return COMPOSITE
    return OWN if _jaxpr.has_custom_rule(node.eqn) else kind_of(node.primitive)


def _roles(statement: Statement) -> Mapping[str, Sequence[Value]]:
    """The values that symbols stand for, by their role."""
    intermediates = (*statement.intermediates, *statement.outputs)
    return {"in": statement.inputs, "mid": intermediates, "out": statement.outputs, "ct": statement.outputs}


def _are_known(x: Expr, statement: Statement, numbers: Numbers) -> bool:
    """Whether every symbol of an expression has a number."""
    roles = _roles(statement)

    def visit(e: Expr, known: list[bool]) -> bool:
        return all(known) if not isinstance(e, Sym) else roles[e.role][e.index].id in numbers

    return fold(x, visit)


class _Equation(NamedTuple):
    """Everything a formula is written from."""

    derivative: Derivative
    of: _FormulaEnd
    wrt: _FormulaEnd
    kind: Kind
    names: _Names

    def written(self) -> Formula:
        form, _, right = self.derivative.form, self.derivative.forward, self.derivative.right
        spelled = "" if right is None else text(right, self.names.text)
        if right is None or len(spelled) > _LONGEST[form]:
            return self.described()
        if form == "local":
            left = self.quotient()
        else:
            left = Spelled(text_cotangent(self.wrt.name), latex_cotangent(self.wrt.name))
        word = word_of(self.kind, form)
        tree = _tree(right, self.names.text)
        data = self.base(form) | {"kind": word, "left": left.text, "right": spelled, "tree": tree}
        shown = f"{left.latex} = {latex(right, self.names.latex)}"
        return Formula(f"{left.text} = {spelled}", shown, word, data)

    def base(self, form: str) -> dict[str, object]:
        (of, of_type), (wrt, wrt_type) = self.of, self.wrt
        return {"of": of, "wrt": wrt, "of_type": of_type, "wrt_type": wrt_type, "form": form}

    def quotient(self) -> Spelled:
        """`d(s**2)/ds` where the operation is short, else `dy/ds`."""
        below, latex_below = text_cotangent(self.wrt.name), rf"\partial {latex_name(self.wrt.name)}"
        forward = self.derivative.forward
        if forward is None or forward.size > _SHORT or isinstance(forward, Sym | Num):
            above, latex_above = text_cotangent(self.of.name), rf"\partial {latex_name(self.of.name)}"
        else:
            spelled, inside = text(forward, self.names.text), latex(forward, self.names.latex)
            above = f"d {spelled}" if is_atom(forward, self.names.text) else f"d({spelled})"
            bare = isinstance(forward, Apply) or (isinstance(forward, Prod) and len(forward.factors) == 1)
            latex_above = rf"\partial\,{inside}" if bare else rf"\partial\left({inside}\right)"
        return Spelled(f"{above}/{below}", rf"\frac{{{latex_above}}}{{{latex_below}}}")

    def described(self) -> Formula:
        """A sentence in place of a closed form."""
        wrt, kind = self.wrt.name, self.kind
        d_of, d_wrt = text_cotangent(self.of.name), text_cotangent(wrt)
        sentence = kind.sentence.format(d_of=d_of, wrt=text_name(wrt))
        types = f"{self.wrt.type} -> {self.of.type}"
        shown = rf"{latex_cotangent(wrt)}: \text{{{kind.word}, {types.replace('->', 'to')}}}"
        data = self.base("map") | {"kind": kind.word, "left": d_wrt, "right": sentence, "tree": None}
        return Formula(f"{d_wrt}: {sentence} ({kind.word}, {types})", shown, kind.word, data)


#: An expression as nested lists: a symbol or a number as text, else the function, arguments and parameters.
_Tree: TypeAlias = str | list[object]


def _tree(x: Expr, names: Names) -> _Tree:
    def visit(x: Expr, parts: list[_Tree]) -> _Tree:
        match x:
            case Num():
                return exact_number(x.value)
            case Sym():
                return names.of(x)
            case Sum():
                return ["add", *(["mul", exact_number(c), p] for (c, _), p in zip(x.terms, parts, strict=True))]
            case Prod():
                powers = (["pow", p, exact_number(e)] for (_, e), p in zip(x.factors, parts, strict=True))
                return ["mul", exact_number(x.coefficient), *powers]
            case Apply():
                params = [{name: repr(value) for name, value in x.params.items()}] if x.params else []
                return [x.fn, *parts, *params]
        raise TypeError(x)

    return fold(x, visit)
