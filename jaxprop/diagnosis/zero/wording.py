"""Words for what stops a gradient: a class of cause, why it is so, and what to do.

The tables here only put a name to what JAX's own rules (or the numbers) have already said. What is not in
them is reported as well, in plainer words.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import joints
from .reachability import Cut, Lost


class Words(NamedTuple):
    """What is said of a cause: its class, why, and the fix."""

    cause: str
    why: str
    fix: str


_COMPARISONS = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "is_finite", "lt_to", "le_to"})
_ROUNDING = frozenset({"round", "floor", "ceil", "sign", "trunc", "nextafter"})
_SEARCHES = frozenset({"argmax", "argmin", "top_k", "approx_top_k", "sort", "argsort"})
#: Functions that make a sample out of probabilities, by the scope they are traced under.
_SAMPLERS = ("bernoulli", "categorical", "poisson", "binomial", "choice", "multinomial", "geometric")

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
#: Functions that cut off one side, likewise.
RECTIFYING: Mapping[str, str] = {
    "relu": "relu",
    "max": "maximum",
    "min": "minimum",
    "clamp": "clip",
    "relu6": "relu6",
}


def saturating(node: Node) -> str:
    """The name of the function that flattens out, of which a node is the part that does; "" for others."""
    if node.primitive == "exp" and "softmax" in node.scope.rpartition("/")[2]:
        return "softmax"
    return SATURATING.get(node.primitive, "")


def words_of_cut(cut: Cut, graph: Graph) -> Words:
    """What is said of a cut that is in the program itself."""
    found = _words(cut)
    use = use_of(cut, graph)
    return found._replace(why=f"{found.why[:-1]}; {use}.") if use else found


def _words(cut: Cut) -> Words:
    node, name = cut.node, cut.node.primitive
    operand = node.operands[cut.position].name
    if cut.dropped:
        return Words(
            "custom rule",
            f"the backward half of the custom rule of `{name}` makes nothing of the cotangent it is given.",
            f"return a cotangent for `{operand}` from it: `return (ct,)` for a straight-through rule.",
        )
    sampler = next((word for word in _SAMPLERS if word in node.scope or f".{word}(" in node.label), None)
    if sampler is not None and name != "stop_gradient":
        return Words(
            "sampling",
            f"a sample of `{sampler}` jumps from one value to another: its derivative is zero wherever it "
            "has one.",
            "sample a smooth relaxation (Gumbel softmax), or use the score function: "
            "`jax.lax.stop_gradient(reward) * log_prob(sample)`.",
        )
    return _by_primitive(cut, name, operand)


def _by_primitive(cut: Cut, name: str, operand: str) -> Words:
    node = cut.node
    dtype = node.outputs[cut.output].dtype
    if name == "stop_gradient":
        return Words(
            "stop_gradient",
            "`stop_gradient` lets the value through and no cotangent.",
            "take it away if the gradient is wanted; if it is not, leave the leaf out of what is "
            "differentiated.",
        )
    if name == "convert_element_type":
        return Words(
            "cast",
            f"a cast to {dtype} cuts the gradient: {dtype} numbers carry no cotangent.",
            f"keep `{operand}` floating point for the way on, and cast only what is an index.",
        )
    if name in _COMPARISONS:
        return Words(
            "comparison",
            "a comparison says yes or no: it has no derivative, whatever is chosen by it.",
            "make the choice smooth: `jax.nn.sigmoid((a - b) / width)` in place of `a > b`.",
        )
    if name in _ROUNDING:
        return Words(
            "rounding",
            f"`{name}` is constant between its jumps: its derivative is zero wherever it has one.",
            f"go straight through it: `{_straight(node, operand)}`.",
        )
    if name in _SEARCHES:
        return Words(
            "argmax" if name.startswith("arg") else "index",
            f"`{name}` gives a position, an integer: it does not change when its operand moves a little.",
            "weigh by `jax.nn.softmax(x / temperature)` in place of picking one, or train on the scores "
            "themselves "
            "(cross entropy).",
        )
    if name == "while":
        return Words(
            "loop count",
            "the value only decides how often a loop runs.",
            "run a fixed number of steps with `jax.lax.scan`, and weigh each smoothly.",
        )
    if _jaxpr.is_inexact(dtype):
        return Words(
            "no derivative",
            f"the derivative of `{name}` by `{operand}` is zero: so says JAX's own rule.",
            "use an operation that has one, or give it a rule: "
            f'`jp.grad(loss, rules=[("{node.name}", jp.rules.straight_through())])`.',
        )
    return Words(
        "integer",
        f"`{name}` makes {dtype} numbers, and those carry no cotangent.",
        f"keep `{operand}` floating point for the way on.",
    )


def _straight(node: Node, operand: str) -> str:
    """The expression with the identity put in for its derivative."""
    text, short = node.label, operand.rpartition("/")[2]
    if not text or text.isidentifier():
        text = f"jnp.{node.primitive}({short})"
    x = short if short in text else "x"
    return f"{x} + jax.lax.stop_gradient({text} - {x})"


def words_of_unused(lost: Lost) -> Words:
    """What is said of a leaf nothing of which gets to the result."""
    fix = "use it, or leave it out of what is differentiated."
    if lost.aux:
        return Words(
            "only in aux", "it is read for the auxiliary output only, which is not differentiated.", fix
        )
    if not lost.readers:
        return Words("never used", "nothing reads it.", fix)
    reader = lost.readers[0]
    place = f" at {reader.source}" if reader.source else ""
    text = reader.label or reader.name
    return Words(
        "thrown away", f"`{text}`{place} reads it, and nothing made from that gets to the result.", fix
    )


# --- what becomes of it -------------------------------------------------------------------------------


def use_of(cut: Cut, graph: Graph) -> str:
    """What the value behind a cut is used for, where that is a choice: "" where it is used as a number."""
    start = cut.node.outputs[cut.output]
    if _jaxpr.is_inexact(start.dtype):
        return ""
    uses = dict.fromkeys(_uses(start, graph))
    return " and ".join(uses)


def _uses(start: Value, graph: Graph) -> Iterator[str]:
    seen, queue = {start.id}, [start]
    for value in queue:
        for node, position in _readers(graph, value):
            said = _use(node, position)
            if said:
                yield said
                continue
            for out in _handed_on(node, position):
                if out.id not in seen and not _jaxpr.is_inexact(out.dtype):
                    seen.add(out.id)
                    queue.append(out)


def _readers(graph: Graph, value: Value) -> Iterator[tuple[Node, int]]:
    for node in graph.walk():
        for position, operand in enumerate(node.operands):
            if operand.id == value.id:
                yield node, position


def _handed_on(node: Node, position: int) -> Iterator[Value]:
    if not node.opened:
        yield from node.outputs
        return
    operand = node.operands[position]
    for nested in node.graphs:
        joined = joints(node, nested)
        yield from (inner for outer, inner in joined.into if outer.id == operand.id)
        yield from node.outputs


def _use(node: Node, position: int) -> str:
    name = node.label or node.name
    if name.count("\n") or len(name) > 40:
        name = node.name
    if node.primitive == "select_n" and position == 0 and _jaxpr.is_inexact(node.dtype):
        return f"it only chooses between values in `{name}`"
    if node.primitive == "cond" and position == 0:
        return f"it only chooses the branch of `{node.name}`"
    if node.primitive == "while":
        return f"it only decides how often `{node.name}` runs"
    if node.primitive in ("gather", "dynamic_slice") and position > 0:
        return f"it is only an index in `{name}`"
    if node.primitive.startswith("scatter") and position == 1:
        return f"it is only an index in `{name}`"
    return ""
