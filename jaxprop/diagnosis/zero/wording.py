"""Describe what blocks a gradient: the class of the cause, why, and what to do.

The tables only name what JAX's own rules (or the numbers) have already decided. An operation that is in none of
them is reported as well, in more general words.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ... import _jaxpr
from ..._structure import consumers, reachable, repetitions, successors
from ..._text import plural
from ...core.graph import Graph, Node, Value
from ...core.structure import producers
from .reachability import BlockedEdge, BlockedLeaf, dropped_operands


class Advice(NamedTuple):
    """The class of a cause, why it is so, and the fix."""

    cause: str
    why: str
    fix: str


# --- tables ----------------------------------------------------------------------------------------------

#: Functions that flatten out, by primitive or by the name of the function a custom rule belongs to.
SATURATING: Mapping[str, str] = {
    "logistic": "sigmoid",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "erf": "erf",
    "erfc": "erfc",
    "_softmax": "softmax",
    "softmax": "softmax",
    "atan": "arctan",
    "soft_sign": "soft_sign",
}
#: Functions that are constant on one side, likewise.
RECTIFYING: Mapping[str, str] = {
    "relu": "relu",
    "max": "maximum",
    "min": "minimum",
    "clamp": "clip",
    "relu6": "relu6",
}
#: Functions that are linear but for kinks: their second derivative is zero.
_PIECEWISE_LINEAR: Mapping[str, str] = {
    **RECTIFYING,
    **{name: name for name in ("abs", "leaky_relu", "hard_tanh", "hard_sigmoid", "maximum", "minimum", "clip")},
}
#: Functions that draw a sample from probabilities, by the scope they are traced under.
_SAMPLERS = ("bernoulli", "categorical", "poisson", "binomial", "choice", "multinomial", "geometric")

_COMPARISON = Advice(
    "comparison",
    "a comparison is piecewise constant: it has no derivative, whatever it selects.",
    "make the choice smooth: `jax.nn.sigmoid((a - b) / width)` in place of `a > b`.",
)
_ROUNDING = Advice(
    "rounding",
    "`{name}` is piecewise constant: its derivative is zero almost everywhere.",
    "use a straight-through estimator: `{straight}`.",
)
_SEARCH = Advice(
    "index",
    "`{name}` returns a position, an integer: a small change of its operand does not change it.",
    "weight by `jax.nn.softmax(x / temperature)` instead of selecting one, or train on the scores themselves "
    "(cross entropy).",
)
_BY_PRIMITIVE: Mapping[str, Advice] = {
    "stop_gradient": Advice(
        "stop_gradient",
        "`stop_gradient` passes the value on and drops the cotangent.",
        "remove it if the gradient is wanted; otherwise leave the leaf out of `argnums`.",
    ),
    "convert_element_type": Advice(
        "cast",
        "the value is cast to {dtype}, and {dtype} values carry no cotangent.",
        "keep `{operand}` floating point, and cast only what is an index.",
    ),
    "while": Advice(
        "loop count",
        "the value only decides how many steps a loop runs.",
        "run a fixed number of steps with `jax.lax.scan`, and weight each smoothly.",
    ),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "is_finite", "lt_to", "le_to"), _COMPARISON),
    **dict.fromkeys(("round", "floor", "ceil", "sign", "trunc", "nextafter"), _ROUNDING),
    **dict.fromkeys(("argmax", "argmin", "argsort"), _SEARCH._replace(cause="argmax")),
    **dict.fromkeys(("top_k", "approx_top_k", "sort"), _SEARCH),
}
_NO_DERIVATIVE = Advice(
    "no derivative",
    "according to JAX's differentiation rule the derivative of `{name}` with respect to `{operand}` is zero.",
    "use an operation that has a derivative, or give it a rule: "
    '`jp.grad(loss, rules=[("{node}", jp.rules.straight_through())])`.',
)
_INTEGER = Advice(
    "integer",
    "`{name}` returns {dtype} values, which carry no cotangent.",
    "keep `{operand}` floating point from here on.",
)
_ORDERS = ("", "first", "second", "third", "fourth")


def saturating(node: Node) -> str:
    """The name of the function that flattens out at a node, "" for other nodes."""
    if node.primitive == "exp" and "softmax" in node.scope.rpartition("/")[2]:
        return "softmax"
    return SATURATING.get(node.primitive, "")


# --- phrases -----------------------------------------------------------------------------------------------


def quoted(node: Node) -> str:
    """The expression of a node where it is short, else its name; in backticks."""
    text = " ".join(node.label.split())
    return f"`{text}`" if text and len(text) <= 60 else f"`{node.name}`"


def subject(names: Sequence[str]) -> str:
    """Leaves, as the subject of a sentence."""
    if len(names) <= 3:
        return " and ".join(f"`{name}`" for name in names)
    return f"`{names[0]}` and {len(names) - 1} other leaves"


def receives(names: Sequence[str]) -> str:
    return f"{subject(names)} {'receive' if len(names) > 1 else 'receives'}"


def repetition(graph: Graph, node: Node) -> str:
    """Which evaluation of its expression a node is, where a Python loop or several calls repeat it."""
    which, count = repetitions(graph).get(node.index, (1, 1))
    return f" (pass {which} of {count})" if count > 1 else ""


# --- blocked edges -----------------------------------------------------------------------------------------


def explain_edge(edge: BlockedEdge, graph: Graph) -> Advice:
    """Explain an edge that is blocked in the program itself."""
    found = _advice_on(edge, graph)
    use = _use_of(edge, graph)
    return found._replace(why=f"{found.why[:-1]}; {use}.") if use else found


def _advice_on(edge: BlockedEdge, graph: Graph) -> Advice:
    node, name = edge.node, edge.node.primitive
    operand = node.operands[edge.position].name
    if edge.dropped:
        return _dropping_rule(node, node.operands[edge.position], dropped_operands(graph)[node.index])
    sampler = next((word for word in _SAMPLERS if word in node.scope or f".{word}(" in node.label), None)
    if sampler is not None and name != "stop_gradient":
        return Advice(
            "sampling",
            f"a sample of `{sampler}` is piecewise constant in its parameters: its derivative is zero almost "
            "everywhere.",
            "sample a smooth relaxation (Gumbel softmax), or use the score function: "
            "`jax.lax.stop_gradient(reward) * log_prob(sample)`.",
        )
    order = _order_of_derivative(node)
    if order and name in _BY_PRIMITIVE and (function := _piecewise_linear(node, graph)):
        return _zero_derivative(function, order + 1)
    dtype = node.outputs[edge.output].dtype
    otherwise = _NO_DERIVATIVE if _jaxpr.is_inexact(dtype) else _INTEGER
    found = _BY_PRIMITIVE.get(name, otherwise)
    given = {"name": name, "operand": operand, "dtype": dtype, "node": node.name}
    straight = _straight_through(node, operand) if found is _ROUNDING else ""
    return Advice(found.cause, found.why.format(**given), found.fix.format(**given, straight=straight))


def _straight_through(node: Node, operand: str) -> str:
    """The expression with the derivative of the identity."""
    text, short = node.label, operand.rpartition("/")[2]
    if not text or text.isidentifier():
        text = f"jnp.{node.primitive}({short})"
    x = short if short in text else "x"
    return f"{x} + jax.lax.stop_gradient({text} - {x})"


def _dropping_rule(node: Node, operand: Value, dead: frozenset[int]) -> Advice:
    """A custom rule that drops cotangents: what it should return, for as many arguments as it has."""
    name = node.primitive
    if not _jaxpr.has_reverse_rule(node.eqn):
        return Advice(
            "custom rule",
            f"the JVP rule of `{name}` returns a tangent that does not depend on that of `{operand.name}`.",
            f"compute the output tangent from the tangent `t` of `{operand.name}`: "
            "`return primal_out, slope * t`, where `slope` is a surrogate derivative.",
        )
    why = f"the backward half of the custom rule of `{name}` does not use the cotangent it is given."
    fix = f"return a cotangent for `{operand.name}` that is computed from `ct`"
    revived = [value.active and position in dead for position, value in enumerate(node.operands)]
    values = [value for value, some in zip(node.operands, revived, strict=True) if some]
    types = {(value.shape, str(value.dtype)) for value in values}
    out = node.outputs[0]
    if len(node.outputs) > 1 or types != {(out.shape, str(out.dtype))}:
        count = plural(len(revived), "argument")
        return Advice("custom rule", why, f"{fix}, of shape {operand.shape}; the rule has {count}.")
    parts = ["ct" if some else f"ct_{i}" for i, some in enumerate(revived)]
    parts = ["None" if i in dead and part != "ct" else part for i, part in enumerate(parts)]
    returned = f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    as_before = [f"`{part}`" for part in parts if part.startswith("ct_")]
    also = f" ({' and '.join(as_before)} as before)" if as_before else ""
    return Advice("custom rule", why, f"{fix}: `return {returned}`{also} for a straight-through rule.")


# --- derivatives inside the loss ---------------------------------------------------------------------------


def _order_of_derivative(node: Node) -> int:
    """How often the program differentiates what a node computes: 2 inside `jax.grad(jax.grad(u))`."""
    return 0 if node.eqn is None else _jaxpr.scope_of(node.eqn).count("jvp(")


def _piecewise_linear(node: Node, graph: Graph) -> str:
    """The piecewise linear function that a node computes, or whose derivative it does; "" for other nodes."""
    found = re.search(rf"\b({'|'.join(_PIECEWISE_LINEAR)})\b", node.label)
    if found:
        return found[0]
    alike = (other for other in graph.walk() if (other.source, other.label) == (node.source, node.label))
    primitives = (other.primitive for other in (node, *(alike if node.label else ())))
    return next((_PIECEWISE_LINEAR[name] for name in primitives if name in _PIECEWISE_LINEAR), "")


def _zero_derivative(function: str, order: int) -> Advice:
    return Advice(
        f"{_ordinal(order)} derivative",
        f"the loss contains a derivative: its gradient needs the {_ordinal(order)} derivative of `{function}`, "
        "which is piecewise linear, so that is zero.",
        "use a smooth activation in its place: `jnp.tanh`, `jax.nn.softplus` or `jax.nn.silu`.",
    )


def _ordinal(order: int) -> str:
    return _ORDERS[order] if order < len(_ORDERS) else f"{order}th"


def explain_unused(blocked: BlockedLeaf, graph: Graph) -> tuple[Advice, Node | None]:
    """Explain a leaf of which nothing reaches the result; with the node that reads it, None where none does."""
    fix = "use the value in the result, or leave it out of `argnums`."
    reader = next(iter(blocked.readers), None)
    if blocked.state:
        why = "the auxiliary output holds the next value: this is state, which is not differentiated."
        return Advice("state", why, "leave it out of `argnums`."), reader
    if blocked.aux:
        why = "only the auxiliary output depends on the value, and that is not differentiated."
        return Advice("only in aux", why, fix), reader
    if reader is None:
        return Advice("never used", "no operation reads the value.", fix), None
    order = _order_of_derivative(reader)
    if order:
        return _explain_derivative(blocked.leaf, reader, order, graph)
    place = f" at {reader.source}" if reader.source else ""
    why = f"the result does not depend on {quoted(reader)}{place}, where the value is read."
    return Advice("unused result", why, fix), reader


def _explain_derivative(leaf: Value, reader: Node, order: int, graph: Graph) -> tuple[Advice, Node]:
    """Explain a leaf that a derivative taken inside the loss does not depend on."""
    step = successors(graph)
    dependent = reachable([leaf], lambda value: (new for _, new in step.get(value.id, ())))
    if order > 1:
        for node in (producers(graph)[id_] for id_ in dependent if id_ != leaf.id):
            if function := _piecewise_linear(node, graph):
                return _zero_derivative(function, order), node
    why = f"the loss contains a {_ordinal(order)} derivative, and that does not depend on the value."
    fix = "add a term with the function itself to the loss, or leave the value out of `argnums`."
    return Advice("derivative only", why, fix), reader


# --- what the value behind a blocked edge is used for --------------------------------------------------------


def _use_of(edge: BlockedEdge, graph: Graph) -> str:
    """What the value is used for, where that is a choice: "" where it is used as a number."""
    start = edge.node.outputs[edge.output]
    return "" if _jaxpr.is_inexact(start.dtype) else " and ".join(dict.fromkeys(_uses(start, graph)))


def _uses(start: Value, graph: Graph) -> list[str]:
    found: list[str] = []
    step, reads = successors(graph), consumers(graph)

    def onward(value: Value) -> Iterator[Value]:
        uses = {node.index: _use(node, position) for node, position in reads.get(value.id, ())}
        found.extend(filter(None, uses.values()))
        for node, new in step.get(value.id, ()):
            if not uses.get(node.index) and not _jaxpr.is_inexact(new.dtype):
                yield new

    reachable([start], onward)
    return found


def _use(node: Node, position: int) -> str:
    name = node.label or node.name
    if name.count("\n") or len(name) > 40:
        name = node.name
    if node.primitive == "select_n" and position == 0 and _jaxpr.is_inexact(node.dtype):
        return f"it only selects between values in `{name}`"
    if node.primitive == "cond" and position == 0:
        return f"it only selects the branch of `{node.name}`"
    if node.primitive == "while":
        return f"it only decides how many steps `{node.name}` runs"
    indexes = node.primitive in ("gather", "dynamic_slice") and position > 0
    if indexes or (node.primitive.startswith("scatter") and position == 1):
        return f"it is only an index in `{name}`"
    return ""
