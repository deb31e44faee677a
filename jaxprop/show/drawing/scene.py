"""The one intermediate form of all pictures: plain frozen data, made from a `Graph` or a `Tape`, JSON-able.

A scene holds everything a renderer may want and nothing it has to compute. It is the same, byte for byte, for
the same function at the same point.

Numbers in JSON have at most seven significant digits; NaN and infinities are the strings "nan", "inf", "-inf".
What is None, False, "" or empty is left out.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VERSION = 1


@dataclass(frozen=True, slots=True)
class Thumb:
    """A small heat map of an array: block means.

    Attributes:
        rows, cols: its size, at most 16 by 16 (1 by 32 for a vector).
        data: row by row, in percent of `absmax`, from -100 to 100; None where a block is not finite.
        absmax: the largest absolute block mean, in units of the array.
    """

    rows: int
    cols: int
    data: tuple[int | None, ...]
    absmax: float


@dataclass(frozen=True, slots=True)
class Steps:
    """A value at steps of the scans around it, as columns: one item for each step shown.

    Attributes:
        at: numbers of the steps shown, first to last; of nested scans counted through, the inner fastest.
        text: what to write for each.
        norm: 2-norm at each, in units of the value.
        nonfinite: count of non-finite numbers at each; empty where there are none at all.
        thumbs: a heat map of each, where there is room.
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
        text: a number as it is, the first entries of a short vector, else the norm: `‖·‖ 3.46`.
        norm: 2-norm. This, mean, std, min and max are in units of the value.
        number: the number, of a scalar.
        mean, std, min, max: of an array.
        zeros: fraction of exact zeros.
        nonfinite: count of NaN and infinite numbers.
        thumb: a heat map, of an array (over its steps: the first axis is time).
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
    steps: Steps | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """One value a node makes.

    Attributes:
        name: its name in the graph, "" for one that nobody keeps.
        type: its type as JAX writes it: `f32[2,3]`, without step axes.
        shape, dtype: the same in parts.
        active: whether a cotangent can reach it.
        value: the value, where it was recorded.
        cotangent: `d loss / d value`, where it was recorded and one comes.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    dtype: str
    active: bool
    value: Shown | None = None
    cotangent: Shown | None = None


@dataclass(frozen=True, slots=True)
class SceneNode:
    """One operation.

    Attributes:
        id: its number in the graph, in program order.
        name: the name of its first output that is kept.
        primitive: the JAX primitive, or the function of a custom rule.
        kind: `parameter` (an argument one differentiates by), `data` (another argument), `const` (a closed-over
            array), `op`, `loss` (what is returned), or in a body `constant`, `carry`, `slice`, `operand`.
        label: its expression in the source.
        call: the operation with names and literals in place: `mul(w, 2.0)`.
        outputs: the values it makes.
        active: whether a cotangent can reach it.
        box: the box it lies in.
        scope: named scopes around it, joined by `/`.
        source: its place in `Scene.sources`.
        level: the longest way to it from the inputs of its graph. Nodes of one level may run in parallel.
        steps: lengths of the scans around it, outermost first.
        taken: in a branch of a `cond`: the fraction of steps in which it was taken (1 or 0 outside scans).
        keeps: bytes the backward pass keeps of its forward pass beside operands and outputs.
        constant: it depends on no argument: a NaN there is meant, not found.
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
    keeps: int = 0
    constant: bool = False


@dataclass(frozen=True, slots=True)
class LocalText:
    """A local gradient on an edge: `d output / d operand`.

    Attributes:
        text: as a formula, "" where there is none.
        latex: the same for LaTeX.
        kind: what sort of map it is.
        number: for a scalar of a scalar, where the tape has the numbers.
    """

    text: str = ""
    latex: str = ""
    kind: str = ""
    number: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """A value on its way from where it is made to where it is read.

    Attributes:
        id: its number.
        source: node and number of its output.
        target: node and position of its operand.
        name: the name of the value.
        kind: `data`; `enter`: from an operand of a node into its body; `leave`: from a result of the body to an
            output of its node (then `target` names that output); `carry`: to the next step.
        active: whether a cotangent flows back along it.
        local: the local gradient of the target by this operand.
        share: what this reader sends back: its part of the value's cotangent; from all positions together
            where it reads the value in several.
    """

    id: int
    source: tuple[int, int]
    target: tuple[int, int]
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
        name: what to write on it.
        path: the full scope.
        kind: `scope`, `function` (a function of the source), `range` (neighbours in program order), or the
            inside of a node: `scan`, `cond`, `checkpoint`, `while`, `custom`.
        parent: the box it lies in.
        node: the node it is the inside of.
        branch: the number of the branch, of a `cond`.
        taken: as of `SceneNode`.
        length: number of steps, of a scan.
        count: number of nodes in it, those of inner boxes included.
        cotangent: the largest norm of a cotangent in it.
        nonfinite: number of nodes in it that hold non-finite values or cotangents, constants aside.
        active: whether any of its nodes is.
    """

    id: str
    name: str
    path: str
    kind: str
    parent: str | None = None
    node: int | None = None
    branch: int | None = None
    taken: float | None = None
    length: int | None = None
    count: int = 0
    cotangent: float | None = None
    nonfinite: int = 0
    active: bool = False


@dataclass(frozen=True, slots=True)
class Residual:
    """A value the backward pass of a node reads, kept from the forward pass.

    Attributes:
        source: node and number of the output that is kept.
        target: the node whose vjp reads it.
        name: the name of the value.
        bytes: its size, all steps of scans around it together.
        recomputed: whether it is not kept but computed again (`jax.checkpoint`).
    """

    source: tuple[int, int]
    target: int
    name: str
    bytes: int
    recomputed: bool = False


@dataclass(frozen=True, slots=True)
class SourceText:
    """A place in the source.

    Attributes:
        file, line, function: where; the file by its last part.
        text: the line.
        context: the lines around it: number of the first, and the lines.
    """

    file: str
    line: int
    function: str
    text: str = ""
    first: int = 0
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """A program to draw.

    Attributes:
        title: the name of what it returns.
        nodes: operations in program order, those of bodies after their node.
        edges: who reads what.
        boxes: groups, each after the one it lies in.
        loss: nodes and outputs returned.
        value: the value returned, as text.
        residuals: what the backward pass keeps.
        kept_bytes: size of all that it keeps, each value once.
        sources: places in the source.
        scale: log10 of the norms of cotangents at the ends of the scale of colours: it holds those of active
            nodes, spans at least two powers of ten, and at most eight (smaller norms are shown at its end).
        numbers: whether there are any: `none` (a graph), `full` or `summary`.
        notes: what was left out, and why.
    """

    title: str
    nodes: tuple[SceneNode, ...]
    edges: tuple[Edge, ...]
    boxes: tuple[Box, ...]
    loss: tuple[tuple[int, int], ...]
    value: str = ""
    residuals: tuple[Residual, ...] = ()
    kept_bytes: int = 0
    sources: tuple[SourceText, ...] = ()
    scale: tuple[float, float] | None = None
    numbers: str = "none"
    notes: tuple[str, ...] = ()
    version: int = VERSION

    def json(self, indent: int | None = None) -> str:
        """The scene as JSON, keys in the order of the fields."""
        separators = (",", ":") if indent is None else None
        return json.dumps(as_data(self), ensure_ascii=False, indent=indent, separators=separators)


#: Zero is something to say, as is the first line, node or level: these fields are kept even when falsy.
_ALWAYS = frozenset(
    (
        *("id", "number", "norm", "mean", "std", "min", "max", "absmax", "data", "at"),
        *("bytes", "line", "level", "source", "target", "loss", "branch", "taken"),
    )
)


def as_data(x: Any) -> Any:
    """Plain data of a scene or a part of one: dicts, lists, strings and finite numbers."""
    if isinstance(x, bool | str | int) or x is None:
        return x
    if isinstance(x, float):
        return number(x)
    if isinstance(x, tuple | list):
        return [as_data(item) for item in x]
    if isinstance(x, Mapping):
        return {key: as_data(value) for key, value in x.items()}
    return {
        name: as_data(value)
        for name in _fields(type(x))
        if (value := getattr(x, name)) or (name in _ALWAYS and value is not None)
    }


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def number(x: float) -> float | int | str:
    """A float with seven significant digits, or its name where JSON knows no such number."""
    if not math.isfinite(x):
        return str(x)
    short = float(f"{x:.7g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
