"""`explain`: the chain rule of a function in three acts, with its own names and numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..._text import suggestion
from ...core.graph import Graph, Node, Value
from ...record.tape import Tape
from ..symbolic.expressions import PrimitiveReader
from ..symbolic.names import text_name
from ..symbolic.reader import PRIMITIVES
from .backward import backward, cotangent_rows, local_gradients
from .forward import forward, given
from .lookup import Lookup, lookup_in, result_name
from .outline import Outline, OutlineItem, depends_on, outline
from .paths import chain_rows, path_story
from .renderers import Renderer, as_data, as_markdown, checked_format, rendered, step_texts
from .story import Act, Json, Story, StoryRow


@dataclass(frozen=True)
class Explanation:
    """An explanation of a tape; `str` renders it.

    Attributes:
        story: its titles and rows, as data.
        format: how `str` renders it: the name of a format, or a function of the story.
    """

    story: Story
    format: str | Renderer = "text"

    def __str__(self) -> str:
        return self.to(self.format).rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def to(self, format: str | Renderer) -> str:
        """Render it.

        Args:
            format: `text`, `markdown`, `latex`, `json`, or a function of the `Story` that returns a string.
        """
        return rendered(self.story, format)

    def data(self) -> dict[str, Json]:
        """Return it as plain data, JSON-able."""
        return as_data(self.story)

    def steps(self) -> Iterator[str]:
        """Render it step by step: one operation at a time, as text."""
        return step_texts(self.story)

    def _repr_markdown_(self) -> str:
        return as_markdown(self.story)


def explain(
    tape: Tape,
    to: str | None = None,
    format: str | Renderer = "text",
    path: Sequence[str] | None = None,
    max_rows: int = 60,
    primitives: Mapping[str, PrimitiveReader] = PRIMITIVES,
    operations: bool = False,
) -> Explanation:
    """Explain a tape in three acts: forward pass, local gradients, backward pass.

        dloss/dw = sum over paths from w to loss of the product of the local gradients along the path

    Args:
        tape: a tape, `jaxprop.backprop(f)(*args)`.
        to: the name of a value, to explain only how the result depends on it; everything by default.
        format: how `str` renders it: `text`, `markdown`, `latex` (for amsmath), `json`, or a function of the
            `jaxprop.show.Story` that returns a string.
        path: names of values, each computed from the one before it, to multiply the local gradients along this
            path alone.
        max_rows: more values than this are folded, by statement, function or scope.
        primitives: how each primitive is read, as in `jaxprop.formula`.
        operations: whether to show every operation. By default anonymous intermediates, such as the product in
            `z = w * x + b`, are part of the statement that uses them.

    Returns:
        An `Explanation`: `str` renders it, `.steps()` renders one operation at a time, `.to(format)` another
        format. Cotangents are in units of the result per unit of the value.

    Raises:
        KeyError: the tape has no value named `to`, or the graph none of a name in `path`.
        ValueError: no cotangent reaches `to`; the names in `path` are not a path; there is no such format.
        TypeError: `tape`, `format` or `primitives` is something else.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     s = y_hat - y
        ...     return s**2
        >>> tape = jp.backprop(loss)(1.0, 1.0, 2.0)
        >>> print(str(jp.explain(tape, to="w")).splitlines()[-1].strip())
        dloss/dw  = dloss/ds * ds/dy_hat * dy_hat/dw  = -2 * 1 * 1 = -2
    """
    if not callable(format):
        checked_format(format)
    if not isinstance(tape, Tape):
        raise TypeError(f"`explain` takes a tape, `jaxprop.backprop(f)(*args)`; got {type(tape).__name__}.")
    start = None if to is None or path is not None else _start(tape, to)
    lookup = lookup_in(tape, primitives, operations, start)
    story = _whole_story(lookup, start, max_rows) if path is None else path_story(lookup, path)
    return Explanation(story, format)


def _whole_story(lookup: Lookup, start: Value | None, max_rows: int) -> Story:
    graph = lookup.tape.graph
    depends = depends_on(graph, start)

    def shown(value: Value) -> bool:
        own = value.id not in lookup.copies and value.id not in lookup.statements.folded
        return (
            own and value.name in lookup.recorded and depends(value) and (start is None or value.id != start.id)
        )

    found = outline(graph, shown, max_rows)
    lookup = replace(lookup, brief=bool(found.folded))
    title = f"How {lookup.loss} is computed"
    if start is not None:
        title = f"How {lookup.loss} depends on {text_name(start.name)}"
    inputs = [(node, value) for node in (*graph.heads, *graph.fixed) for value in node.outputs]
    arguments = tuple(
        given(lookup, node, value) for node, value in inputs if _is_given(lookup, value, start, found.items)
    )
    ends = _ends(inputs, start, graph)
    acts = (_forward_act(lookup, found), _local_act(lookup, found, depends), _backward_act(lookup, found, ends))
    numbered = tuple(act.numbered(i) for i, act in enumerate(acts, 1) if act.rows)
    end = tuple(row for _, value in ends for row in chain_rows(lookup, value))
    return Story(title, arguments, numbered, end)


def _start(tape: Tape, to: str) -> Value:
    graph = tape.graph
    if to not in graph:
        raise KeyError(f"the tape has no value named {to!r}.{suggestion(to, graph.by_name)}")
    value = graph.value(to)
    if not value.active:
        inputs = [v.name for node in graph.heads for v in node.outputs if v.active]
        raise ValueError(
            f"no cotangent reaches {to!r}: {result_name(tape)} was differentiated with respect to "
            f"{', '.join(inputs)}. Include it in `argnums=` of `backprop`."
        )
    return value


def _is_given(lookup: Lookup, value: Value, start: Value | None, items: Sequence[OutlineItem]) -> bool:
    """Whether an argument is listed: all of them, or those that the explained operations read."""
    if not value.name:
        return False
    if start is None and (value.active or value.name in lookup.recorded or value.literal is not None):
        return True
    read = {v.id for item in _with_bodies(items) for v in lookup.statements.of(item.node).inputs}
    return value.id in read or (start is not None and value.id == start.id)


def _with_bodies(items: Sequence[OutlineItem]) -> Iterator[OutlineItem]:
    for item in items:
        yield item
        for _, body in item.body:
            yield from _with_bodies(body)


def _ends(inputs: Sequence[tuple[Node, Value]], start: Value | None, graph: Graph) -> list[tuple[Node, Value]]:
    """Where the backward pass ends: at the differentiated arguments, or at the value asked for."""
    if start is None:
        return [(node, value) for node, value in inputs if value.active]
    return [(graph[start.name], start)]


# --- the acts ----------------------------------------------------------------------------------------


def _forward_act(lookup: Lookup, found: Outline) -> Act:
    intro = f"{found.total:,} values, folded by {found.folded}" if found.folded else ""
    if found.folded == "middle":
        intro = f"the first and the last of {found.total:,} values"
    rows = tuple(forward(lookup, found.items))
    return Act("Forward pass: values, in the order they are computed", intro, rows)


def _local_act(lookup: Lookup, found: Outline, shown: Callable[[Value], bool]) -> Act:
    rows = list(local_gradients(lookup, found.items, shown))
    short = any("/" not in row.symbol.text for row in rows)
    intro = f"dx stands for d{text_name(lookup.loss)}/dx" if short else ""
    if found.folded:
        rows, intro = _one_of_each_kind(rows), f"one of each kind{'; ' + intro if intro else ''}"
    return Act("Local gradients: how each value changes with its operands", intro, tuple(rows))


def _one_of_each_kind(rows: Sequence[StoryRow]) -> list[StoryRow]:
    seen: dict[str, StoryRow] = {}
    for row in rows:
        seen.setdefault(row.name.split("#")[0].rsplit("/", 1)[-1] + row.note, row)
    return list(seen.values())


def _backward_act(lookup: Lookup, found: Outline, ends: Sequence[tuple[Node, Value]]) -> Act:
    rows = list(backward(lookup, found.items))
    for node, value in reversed(ends):
        rows += cotangent_rows(lookup, node, value, 0)
    title = f"Backward pass: from {lookup.loss} back, multiplying local gradients"
    return Act(title, "", tuple(rows))
