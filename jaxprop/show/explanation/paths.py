"""The chain rule multiplied out: local gradients multiplied along a path, and summed over paths."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...core.graph import Graph, Node, Value
from ...core.selectors import nearest
from ...record.tape import Tape
from ..symbolic.formula import formula
from ..symbolic.names import latex_name, text_name
from ..symbolic.notation import Spelled, spell
from .lookup import Known
from .pieces import edge, product_of, quotient, sum_of
from .story import Act, Row, Story, distinct_pieces
from .values import describe

#: More paths than these are not written out, nor longer ones.
_PATHS, _LONG = 4, 12


def chain_rows(known: Known, start: Value) -> Iterator[Row]:
    """`dloss/dw = dloss/ds * ds/dw = -2 * 1 = -2`, for every path of scalars from a value to the result."""
    graph, tape = known.tape.graph, known.tape
    target = next((value for value in graph.outputs if value.name == known.loss), None)
    if target is None or target.id == start.id or not tape.is_full or tape.ruled:
        return
    paths = _paths(graph, start, target)
    if not paths:
        return
    products = [_along(tape, path) for path in paths]
    if any(product is None for product in products):
        return
    total = describe(tape[start.name].cotangent)
    symbol = known.d(start)
    if len(paths) == 1 and len(paths[0]) == 2:
        return  # one step is no chain
    if len(paths) == 1:
        said = distinct_pieces(products[0][0], total.text)  # type: ignore[index]
        yield Row("chain", symbol, said, total.text, total.data, start.name)
        return
    parts = [product[1] for product in products]  # type: ignore[index]
    said = Spelled(f"the sum over {len(paths)} paths", rf"\text{{the sum over {len(paths)} paths}}")
    yield Row("chain", symbol, (said, sum_of(parts)), total.text, total.data, start.name)
    for path, product in zip(paths, products, strict=True):
        route = Spelled(
            " -> ".join(text_name(v.name) for v in path), r" \to ".join(latex_name(v.name) for v in path)
        )
        yield Row("share", route, product[0], spell(product[1]), product[1], depth=1)  # type: ignore[index]


def _paths(graph: Graph, start: Value, target: Value) -> list[list[Value]]:
    """The paths of scalars from `start` to `target`, [] where there is an array or a body, or too many."""
    made = {value.id: node for node in graph.equations() for value in node.outputs}
    found: list[list[Value]] = []
    stack = [[target]]
    work = 0
    while stack:
        path = stack.pop()
        work += 1
        first = path[0]
        if first.id == start.id:
            found.append(path)
            continue
        node = made.get(first.id)
        if work > 400 or len(path) > _LONG:
            return []
        if node is None:
            continue
        if not _is_scalar(node) and node.active:
            return []
        operands = {v.id: v for v in node.operands if v.active}
        stack.extend([v, *path] for v in reversed(operands.values()))
    return found if len(found) <= _PATHS else []


def _is_scalar(node: Node) -> bool:
    return (
        not node.opened
        and len(node.outputs) == 1
        and all(v.shape == () for v in (*node.outputs, *node.operands))
    )


def _along(tape: Tape, path: Sequence[Value]) -> tuple[tuple[Spelled, ...], Any] | None:
    """The local gradients along a path, as symbols and as numbers; and their product."""
    pairs = [(of, wrt) for wrt, of in zip(path[:-1], path[1:], strict=True)][::-1]
    try:
        numbers = [describe(edge(tape, of, wrt).jacobian()).number for of, wrt in pairs]
    except (KeyError, ValueError, TypeError):
        return None
    if any(number is None for number in numbers):
        return None
    fractions = [quotient(of.name, wrt.name) for of, wrt in pairs]
    symbols = Spelled(" * ".join(f.text for f in fractions), r" \cdot ".join(f.latex for f in fractions))
    return ((symbols,) if len(pairs) == 1 else (symbols, product_of(numbers))), _product(numbers)


def _product(numbers: Sequence[Any]) -> Any:
    return describe(np.prod(np.array(numbers))).number


# --- one path, asked for by name -----------------------------------------------------------------------


def tell_path(known: Known, names: Sequence[str]) -> Story:
    """The local gradients along a path of names, multiplied.

    Raises:
        ValueError: the path has fewer than two names, or a value is not made from the one before it.
        KeyError: there is no such name.
    """
    tape, graph = known.tape, known.tape.graph
    if isinstance(names, str) or len(names) < 2:
        raise ValueError(f'a path is two names or more, such as path=["w", "y_hat", "loss"]; got {names!r}.')
    for name in names:
        if name not in graph:
            raise KeyError(f"the path names {name!r}, which is not in the graph.{nearest(name, graph.by_name)}")
    if not tape.is_full:
        raise ValueError("local gradients need values as they are: record the tape with record=None.")
    values = [graph.value(name) for name in names]
    if tape.grads is not None and _made_from(graph, values[-1], values[0]):
        values.reverse()
    pairs = [(of, wrt) for wrt, of in zip(values[:-1], values[1:], strict=True)][::-1]
    rows = tuple(_path_row(tape, of, wrt) for of, wrt in pairs)
    shown = " -> ".join(text_name(value.name) for value in values)
    act = Act("Local gradients along the path", "", rows).numbered(1)
    return Story(f"The path {shown}", (), (act,), tuple(_path_end(known, values, pairs)))


def _made_from(graph: Graph, late: Value, early: Value) -> bool:
    """Whether the names were given from the result back."""
    order = {value.id: i for i, node in enumerate(graph.walk()) for value in node.outputs}
    return order.get(late.id, 0) < order.get(early.id, 0)


def _path_row(tape: Tape, of: Value, wrt: Value) -> Row:
    local = edge(tape, of, wrt)
    spelled = formula(local)
    assert not isinstance(spelled, tuple)
    _, _, right = spelled.latex.partition(" = ")
    said = Spelled(spelled.right, right or rf"\text{{{spelled.kind}}}")
    symbol = quotient(of.name, wrt.name)
    found = describe(local.jacobian(), local.steps) if local.out_shape == local.in_shape == () else None
    source = str(local.path[-1].source or "")
    if found is not None:
        return Row("local", symbol, (said,), found.text, found.data, of.name, source)
    through = "" if len(local.path) == 1 else f", through {len(local.path)} operations"
    note = f"a map from {list(local.in_shape)} to {list(local.out_shape)}{through}"
    if spelled.data["form"] != "local":
        symbol = Spelled(spelled.left, rf"\mathrm{{d}}{latex_name(wrt.name)}")
    return Row("local", symbol, (said,), name=of.name, source=source, note=note)


def _path_end(known: Known, values: Sequence[Value], pairs: Sequence[tuple[Value, Value]]) -> Iterator[Row]:
    """What comes through along the path."""
    tape = known.tape
    end, start = values[-1], values[0]
    symbol = quotient(end.name, start.name)
    note = "along this path"
    along = _along(tape, values)
    if along is not None:
        formulas, product = along
        yield Row("chain", symbol, formulas, spell(product), product, start.name, note=note)
        return
    ct = tape[end.name].cotangent
    if ct is None:
        yield Row("note", note=f"no cotangent comes to {text_name(end.name)}")
        return
    steps = tape.graph.places[tape.graph[end.name].index].steps
    for of, wrt in pairs:
        ct = edge(tape, of, wrt).vjp(ct)
        found = describe(ct, steps)
        through = Spelled(f"to {text_name(wrt.name)}", rf"\text{{to }} {latex_name(wrt.name)}")
        yield Row("share", through, (), found.text, found.data, wrt.name, depth=1)
    whole = tape[start.name].cotangent if start.name in tape.names else None
    if whole is not None and np.shape(whole) == np.shape(ct):
        part, all_ = (float(np.linalg.norm(np.asarray(x).astype(complex).ravel())) for x in (ct, whole))
        yield Row("note", note=f"norm {spell(part)} comes along this path, {spell(all_)} along all of them")
