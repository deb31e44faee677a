"""`explain`: the chain rule of a function, told in three acts with its own names and numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.graph import Graph, Node, Value
from ...core.selectors import nearest
from ...record.tape import Tape
from ..symbolic.names import text_name
from .backward import backward, came, local_gradients
from .forward import forward, given
from .lookup import Known
from .outline import Item, Outline, outline, reached_from
from .paths import chain_rows, tell_path
from .renderers import RENDERERS, as_data, as_markdown, step_texts
from .story import Act, Row, Story

FORMATS = tuple(RENDERERS)


@dataclass(frozen=True)
class Explanation:
    """An explanation of a tape. `str` of it is what `format` asked for.

    Attributes:
        story: titles and rows, as data.
        format: how `str` writes it.
    """

    story: Story
    format: str = "text"

    def __str__(self) -> str:
        return self.to(self.format).rstrip("\n")

    def __repr__(self) -> str:
        return str(self)

    def to(self, format: str) -> str:
        """Write it down in one of the formats: text, markdown, latex, json."""
        return RENDERERS[_checked_format(format)](self.story)

    def data(self) -> dict[str, Any]:
        """Give it as plain data, JSON-able."""
        return as_data(self.story)

    def steps(self) -> Iterator[str]:
        """Tell it step by step: one node at a time, as text."""
        return step_texts(self.story)

    def _repr_markdown_(self) -> str:
        return as_markdown(self.story)


def explain(
    tape: Tape,
    to: str | None = None,
    format: str = "text",
    path: Sequence[str] | None = None,
    max_rows: int = 60,
) -> Explanation:
    """Explain a tape in three acts: forward pass, local gradients, backward pass.

        dloss/dw = sum over paths from w to loss of the product of the local gradients along the path

    Args:
        tape: what `jaxprop.backprop(f)(*args)` gives.
        to: name of a value: only what lies on the way from it to the result is told. By default all is.
        format: how it is written: `text`, `markdown`, `latex` (for amsmath) or `json`.
        path: names from a value to another made from it: the local gradients along this path alone, multiplied.
        max_rows: values beyond this many are folded, by statement, function or scope.

    Returns:
        An `Explanation`: `str` of it is the page, `.steps()` tells it node by node, `.to(format)` another form.
        Cotangents are in units of the result per unit of the value.

    Raises:
        KeyError: there is no value named `to`, or one that `path` names.
        ValueError: no cotangent reaches `to`; `path` is no path; there is no such format.

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
    _checked_format(format)
    if not isinstance(tape, Tape):
        raise TypeError(f"explain takes a tape, `jaxprop.backprop(f)(*args)`; got {type(tape).__name__}.")
    known = Known(tape, result_name(tape))
    story = _tell(known, to, max_rows) if path is None else tell_path(known, path)
    return Explanation(story, format)


def _checked_format(format: str) -> str:
    if format not in RENDERERS:
        raise ValueError(f"there is no format {format!r}. Formats: {', '.join(RENDERERS)}.")
    return format


def result_name(tape: Tape) -> str:
    """The name of what is differentiated; `L` where there are several results."""
    pairs = zip(tape.graph.outputs, tape.seed, strict=False)
    names = [value.name for value, seed in pairs if value.active and seed is not None]
    return names[0] if len(names) == 1 else "L"


def _tell(known: Known, to: str | None, max_rows: int) -> Story:
    graph = known.tape.graph
    start = None if to is None else _start(known, to)
    reached = reached_from(graph, start)

    def shown(value: Value) -> bool:
        own = value.id not in known.same  # not another value over again
        return own and value.name in known.held and reached(value) and (start is None or value.id != start.id)

    found = outline(graph, shown, max_rows)
    known = replace(known, brief=bool(found.folded))
    title = f"How {known.loss} depends on {text_name(to)}" if to is not None else f"How {known.loss} is made"
    heads = [(node, value) for node in (*graph.heads, *graph.fixed) for value in node.outputs]
    arguments = tuple(
        given(known, node, value) for node, value in heads if _is_given(known, node, value, start, found.items)
    )
    ends = _ends(heads, start, graph)
    acts = (_forward(known, found), _locals(known, found, reached), _backward(known, found, ends))
    numbered = tuple(act.numbered(i) for i, act in enumerate(acts, 1) if act.rows)
    end = tuple(row for _, value in ends for row in chain_rows(known, value))
    return Story(title, arguments, numbered, end)


def _start(known: Known, to: str) -> Value:
    graph = known.tape.graph
    if to not in graph:
        raise KeyError(f"there is no value named {to!r} on the tape.{nearest(to, graph.by_name)}")
    value = graph.value(to)
    if not value.active:
        inputs = [v.name for node in graph.heads for v in node.outputs if v.active]
        raise ValueError(
            f"no cotangent reaches {to!r}: {known.loss} was differentiated with respect to "
            f"{', '.join(inputs)}. Name it in `argnums=` of `backprop`."
        )
    return value


def _is_given(known: Known, node: Node, value: Value, start: Value | None, items: Sequence[Item]) -> bool:
    """Whether an argument is mentioned: all of them, or those that are read on the way."""
    if not value.name:
        return False
    if start is None:
        return value.name in known.held or value.active or bool(value.literal is not None)
    read = {v.id for item in _all(items) for v in item.node.operands}
    return value.id == start.id or (
        value.id in read and (value.name in known.held or value.literal is not None)
    )


def _all(items: Sequence[Item]) -> Iterator[Item]:
    for item in items:
        yield item
        for _, body in item.body:
            yield from _all(body)


def _ends(heads: Sequence[tuple[Node, Value]], start: Value | None, graph: Graph) -> list[tuple[Node, Value]]:
    """Where the backward pass ends: at the differentiated arguments, or at the value asked for."""
    if start is None:
        return [(node, value) for node, value in heads if value.active]
    return [(graph[start.name], start)]


def _forward(known: Known, found: Outline) -> Act:
    intro = f"{found.total:,} values, folded by {found.folded}" if found.folded else ""
    if found.folded == "middle":
        intro = f"{found.total:,} values: the first and the last"
    return Act("Forward pass: each value from those before it", intro, tuple(forward(known, found.items)))


def _locals(known: Known, found: Outline, shown: Callable[[Value], bool]) -> Act:
    rows = list(local_gradients(known, found.items, shown))
    short = any("/" not in row.symbol.text for row in rows)
    intro = f"dx stands for d{text_name(known.loss)}/dx" if short else ""
    if found.folded:
        rows, intro = _kinds(rows), f"one of each kind{'; ' + intro if intro else ''}"
    return Act("Local gradients: how each value reacts to those it is made from", intro, tuple(rows))


def _kinds(rows: Sequence[Row]) -> list[Row]:
    """One row for each kind of operation."""
    seen: dict[str, Row] = {}
    for row in rows:
        key = row.name.split("#")[0].rsplit("/", 1)[-1] + (row.note or "")
        seen.setdefault(key, row)
    return list(seen.values())


def _backward(known: Known, found: Outline, ends: Sequence[tuple[Node, Value]]) -> Act:
    rows = list(backward(known, found.items))
    for node, value in reversed(ends):
        rows += came(known, node, value, 0)
    return Act(f"Backward pass: the local gradients multiplied, from {known.loss} back", "", tuple(rows))
