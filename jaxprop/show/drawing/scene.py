"""The intermediate representation of every picture: plain frozen data, built from a `Graph` or a `Tape`.

A scene holds what a renderer needs, ready to be written: names and their LaTeX, values as text, statistics,
heat maps, formulas, source lines. It holds no arrays, and the same function at the same point gives the same
scene, byte for byte.

In JSON (`Scene.json`), numbers have at most seven significant digits; NaN and the infinities are the strings
"nan", "inf" and "-inf". Fields that are None, False, "" or empty are left out.
"""

import dataclasses
import functools
import json
import math
from dataclasses import dataclass
from typing import TypeAlias

from ...core.types import NodeIndex

#: A node and one of its outputs, or a node and the position of one of its operands.
Endpoint: TypeAlias = tuple[NodeIndex, int]

#: What JSON can hold.
Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

VERSION = 2


@dataclass(frozen=True, slots=True)
class Thumb:
    """A thumbnail of an array: a heat map of block means.

    Attributes:
        rows, cols: its size, at most 16 by 16 (1 by 32 for a vector).
        data: the block means row by row, in percent of `absmax`, from -100 to 100; None for a block that is not
            finite.
        absmax: the largest absolute block mean, in units of the array.
    """

    rows: int
    cols: int
    data: tuple[int | None, ...]
    absmax: float


@dataclass(frozen=True, slots=True)
class PerStep:
    """A value at the steps of the scans around it, as columns: one item for each step that is shown.

    Attributes:
        at: indices of the steps shown, in order; nested scans are flattened, the innermost varies fastest.
        text: the value as text, for each step.
        norm: its 2-norm at each step, in units of the value.
        nonfinite: the count of non-finite numbers at each step; empty if there are none at all.
        thumbs: a thumbnail for each step; empty for scalars.
    """

    at: tuple[int, ...]
    text: tuple[str, ...]
    norm: tuple[float, ...]
    nonfinite: tuple[int, ...] = ()
    thumbs: tuple[Thumb, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a number or an array; inside scans, of all steps together.

    Attributes:
        text: a scalar or a short vector in full, otherwise the norm: `‖·‖ 3.46`.
        norm: the 2-norm. Like `mean`, `std`, `min` and `max`, in units of the value.
        number: the value of a scalar.
        mean, std, min, max: statistics of an array.
        zeros: the fraction of elements that are exactly zero.
        nonfinite: the count of NaN and infinite elements.
        thumb: a thumbnail of an array; inside scans the first axis is time.
        steps: the value step by step, inside scans.
    """

    text: str
    norm: float | None = None
    number: float | None = None
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    zeros: float | None = None
    nonfinite: int = 0
    thumb: Thumb | None = None
    steps: PerStep | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a node.

    Attributes:
        name: its name in the graph, "" for an output that is not used.
        type: its type as JAX writes it: `f32[2,3]`, without step axes.
        shape, dtype: the type in parts.
        active: whether a cotangent can reach it.
        value: the value, if it was recorded.
        cotangent: `d loss / d value`, if it was recorded and a cotangent arrives.
        short: the name without its scope, as formulas write it; "" if that is the name itself.
        latex: the short name in LaTeX: `\\hat{y}` for `y_hat`.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    dtype: str
    active: bool
    value: Shown | None = None
    cotangent: Shown | None = None
    short: str = ""
    latex: str = ""


@dataclass(frozen=True, slots=True)
class SceneNode:
    """One operation, or one input of the program or of a body.

    Attributes:
        id: its index in the graph, in program order.
        name: the name of its first output that is used.
        primitive: the JAX primitive, or the function that has a custom rule.
        kind: `parameter` (a differentiated argument), `data` (another argument), `const` (a closed-over
            array), `op`, `loss` (a returned value), or an input of a body: `constant` (the same in every step),
            `carry`, `slice`, `operand`.
        label: its expression in the source.
        call: the operation with the names of its operands: `mul(w, 2.0)`.
        outputs: its outputs.
        active: whether a cotangent can reach any of them.
        box: the id of the box it is in.
        scope: the named scopes around it, joined by `/`.
        source: the index of its line in `Scene.sources`.
        level: the length of the longest path to it from the inputs of its graph. Nodes of equal level do not
            depend on each other.
        steps: lengths of the scans around it, outermost first.
        taken: in a branch of a `cond`, the fraction of steps in which that branch was taken (0 or 1 outside
            scans).
        constant: whether it depends on no argument and on no closed-over array. A NaN there was written by the
            user.
        rule_bytes: the size of the intermediates that its VJP stores besides operands and outputs.
    """

    id: int
    name: str
    primitive: str
    kind: str
    label: str
    call: str
    outputs: tuple[Output, ...]
    active: bool
    box: str | None = None
    scope: str = ""
    source: int | None = None
    level: int = 0
    steps: tuple[int, ...] = ()
    taken: float | None = None
    constant: bool = False
    rule_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LocalText:
    """The local gradient on an edge: `d output / d operand`.

    Attributes:
        text: the formula, "" if there is none.
        latex: the formula in LaTeX.
        kind: the kind of linear map, in a word: `elementwise`, `contraction`, ...
        number: its value, for a scalar with respect to a scalar on a tape.
    """

    text: str = ""
    latex: str = ""
    kind: str = ""
    number: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """A value between its producer and one of its consumers.

    Attributes:
        id: its index.
        source: the producer: id of the node, index of the output.
        target: the consumer: id of the node, position of the operand.
        name: the name of the value.
        kind: `data`; `enter`: from an operand of a node into its body; `leave`: from an output of the body to
            an output of its node (then `target` is that output); `carry`: to the next step of a scan.
        active: whether a cotangent flows back along it.
        local: the local gradient of the consumer with respect to this operand.
        share: the consumer's contribution to the value's cotangent. If the consumer reads the value at several
            positions, the sum of their contributions, on each of them.
    """

    id: int
    source: Endpoint
    target: Endpoint
    name: str
    kind: str
    active: bool
    local: LocalText | None = None
    share: Shown | None = None


@dataclass(frozen=True, slots=True)
class Box:
    """A group of nodes.

    Attributes:
        id: its id.
        name: its title.
        path: the full scope.
        kind: `scope`, `function` (a function of the source), `range` (consecutive nodes of a long program), or
            the body of a node: `scan`, `cond`, `checkpoint`, `while`, `custom`.
        parent: the id of the box around it.
        node: the id of the node whose body it is.
        branch: the index of the branch, for a `cond`.
        taken: as in `SceneNode`.
        length: the number of steps, for a scan.
        count: the number of nodes in it, including inner boxes.
        cotangent: the largest norm of a cotangent in it.
        nonfinite: the number of nodes in it with non-finite values or cotangents, not counting constants.
        active: whether any of its nodes is active.
        opaque: whether it is the body of a node that is differentiated as one operation (a custom rule, a
            `while`). Nothing in it was recorded; the cotangent passes through the node.
    """

    id: str
    name: str
    path: str
    kind: str
    parent: str | None = None
    node: NodeIndex | None = None
    branch: int | None = None
    taken: float | None = None
    length: int | None = None
    count: int = 0
    cotangent: float | None = None
    nonfinite: int = 0
    active: bool = False
    opaque: bool = False


@dataclass(frozen=True, slots=True)
class RuleRead:
    """A value of the forward pass that the VJP of one operation reads.

    This is a property of that operation alone, taken from the program JAX derives for it. What is live between
    the two passes of the whole program is measured by `jaxprop.residuals`.

    Attributes:
        source: the value: id of the node, index of the output.
        target: the id of the node whose VJP reads it.
        name: the name of the value.
        bytes: its size, over all steps of the scans around it.
        size: the same as text: `1.5 KiB`.
        checkpointed: whether that node is inside `jax.checkpoint`: then its policy decides whether the value
            is kept or recomputed.
    """

    source: Endpoint
    target: int
    name: str
    bytes: int
    size: str
    checkpointed: bool = False


@dataclass(frozen=True, slots=True)
class SourceText:
    """A line of the source.

    Attributes:
        file, line, function: where it is; the file without its directory.
        text: the line.
        first: the number of the first line of `context`.
        context: the line with those around it.
    """

    file: str
    line: int
    function: str
    text: str = ""
    first: int = 0
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """A program to draw: the intermediate representation that every renderer reads.

    Attributes:
        title: the name of the returned value.
        nodes: the operations in program order; those of a body follow their node.
        edges: producers and consumers.
        boxes: groups of nodes, each after the box around it.
        loss: the returned values: id of the node, index of the output.
        value: the returned value as text.
        latex: the title in LaTeX.
        reads: the values of the forward pass that the VJP of each operation reads.
        sources: the source lines.
        scale: log10 of the norms of cotangents at the two ends of the colour scale. It covers the active nodes
            and spans two to eight powers of ten; smaller norms have the colour of its lower end.
        numbers: `none` (a graph), `full` or `summary` (a tape).
        notes: what was left out, and why.
        version: the version of this format.

    Examples:
        A renderer is any function of a scene:

        >>> import jaxprop as jp
        >>> def consumers(scene):
        ...     return ", ".join(f"{edge.name} -> {edge.target[0]}" for edge in scene.edges)
        >>> print(jp.draw(jp.trace(lambda w, x: w * x)(1.0, 2.0)).to(consumers))
        w -> 2, x -> 2
    """

    title: str
    nodes: tuple[SceneNode, ...]
    edges: tuple[Edge, ...]
    boxes: tuple[Box, ...]
    loss: tuple[Endpoint, ...]
    value: str = ""
    latex: str = ""
    reads: tuple[RuleRead, ...] = ()
    sources: tuple[SourceText, ...] = ()
    scale: tuple[float, float] | None = None
    numbers: str = "none"
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def json(self, indent: int | None = None) -> str:
        """Write the scene as JSON, its keys in the order of the fields."""
        separators = (",", ":") if indent is None else None
        return json.dumps(as_data(self), ensure_ascii=False, indent=indent, separators=separators)


#: Fields that are written even if they are zero.
_ALWAYS = frozenset(
    (
        *("id", "number", "norm", "mean", "std", "min", "max", "absmax", "data", "at"),
        *("bytes", "line", "level", "source", "target", "loss", "branch", "taken"),
    )
)


def as_data(x: object) -> Json:
    """Convert a scene or a part of one to plain data: dicts, lists, strings and finite numbers."""
    if isinstance(x, bool | str | int) or x is None:
        return x
    if isinstance(x, float):
        return json_number(x)
    if isinstance(x, tuple | list):
        return [as_data(item) for item in x]
    return {
        name: as_data(value)
        for name in _fields(type(x))
        if (value := getattr(x, name)) or (name in _ALWAYS and value is not None)
    }


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def json_number(x: float) -> float | int | str:
    """Round a float to seven significant digits; NaN and infinities, which JSON lacks, become strings."""
    if not math.isfinite(x):
        return str(x)
    short = float(f"{x:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
