"""The chain rule multiplied out: products of local gradients along paths, and their sum."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..._text import number as spell
from ..._text import suggestion
from ...core.graph import Graph, Value
from ...core.structure import producers
from ...record.tape import Tape
from ..symbolic.derive import Statement
from ..symbolic.names import Spelled, latex_name, text_name
from .lookup import Lookup
from .pieces import edge, product_of, quotient, sum_of
from .story import Act, Story, StoryRow, distinct_pieces
from .values import Described, describe

#: At most this many paths are written out, and none longer than this.
_MOST_PATHS, _LONGEST_PATH = 4, 12
#: The search is given up after this many partial paths.
_MOST_WORK = 400


def chain_rows(lookup: Lookup, start: Value) -> Iterator[StoryRow]:
    """`dloss/dw = dloss/ds * ds/dw = -2 * 1 = -2`, for every path of scalars from a value to the result."""
    graph, tape = lookup.tape.graph, lookup.tape
    target = next((value for value in graph.outputs if value.name == lookup.loss), None)
    if target is None or target.id == start.id or not tape.is_full or tape.ruled:
        return
    paths = _scalar_paths(lookup, start, target)

    def slope(of: Value, wrt: Value) -> Described:
        return lookup.slope(lookup.statements.of(producers(graph)[of.id]), wrt)

    products = [product for path in paths if (product := _product_along(path, slope)) is not None]
    if not paths or len(products) < len(paths) or (len(paths) == 1 and len(paths[0]) == 2):
        return  # one step is not a chain
    total = describe(tape[start.name].cotangent)
    symbol = lookup.d(start)
    if len(paths) == 1:
        formulas = distinct_pieces(products[0][0], total.text)
        yield StoryRow("chain", symbol, formulas, total.text, total.data, start.name)
        return
    said = Spelled(f"the sum over {len(paths)} paths", rf"\text{{the sum over {len(paths)} paths}}")
    formulas = (said, sum_of([product for _, product in products]))
    yield StoryRow("chain", symbol, formulas, total.text, total.data, start.name)
    for path, (formulas, product) in zip(paths, products, strict=True):
        found = describe(product)
        yield StoryRow("share", _path_text(path), formulas, found.text, found.data, depth=1)


def _path_text(path: Sequence[Value]) -> Spelled:
    text, latex = (map(name, (value.name for value in path)) for name in (text_name, latex_name))
    return Spelled(" -> ".join(text), r" \to ".join(latex))


def _scalar_paths(lookup: Lookup, start: Value, target: Value) -> list[list[Value]]:
    """The paths of scalars from `start` to `target`; none if there is an array or a body, or too many."""
    produced = producers(lookup.tape.graph)
    found: list[list[Value]] = []
    stack, work = [[target]], 0
    while stack:
        path = stack.pop()
        work += 1
        first = path[0]
        if first.id == start.id:
            found.append(path)
            continue
        if work > _MOST_WORK or len(path) > _LONGEST_PATH:
            return []
        node = produced[first.id]
        if node.eqn is None:
            continue
        statement = lookup.statements.of(node)
        if not _is_scalar(statement) and node.active:
            return []
        stack.extend([v, *path] for v in reversed(statement.inputs) if v.active)
    return found if len(found) <= _MOST_PATHS else []


def _is_scalar(statement: Statement) -> bool:
    node = statement.nodes[-1]
    values = (*statement.inputs, *node.outputs, *node.operands)
    return not node.opened and len(node.outputs) == 1 and all(v.shape == () for v in values)


def _product_along(
    path: Sequence[Value], slope: Callable[[Value, Value], Described]
) -> tuple[tuple[Spelled, ...], float | complex] | None:
    """The local gradients along a path, as symbols and as numbers; and their product."""
    pairs = [(of, wrt) for wrt, of in zip(path[:-1], path[1:], strict=True)][::-1]
    try:
        numbers = [slope(of, wrt).number for of, wrt in pairs]
    except (KeyError, ValueError, TypeError):
        return None
    known = [number for number in numbers if number is not None]
    if len(known) < len(numbers):
        return None
    fractions = [quotient(of.name, wrt.name) for of, wrt in pairs]
    symbols = Spelled(" * ".join(f.text for f in fractions), r" \cdot ".join(f.latex for f in fractions))
    formulas = (symbols,) if len(pairs) == 1 else (symbols, product_of(known))
    return formulas, np.prod(np.array(known)).item()


# --- one path, asked for by name -----------------------------------------------------------------------


def path_story(lookup: Lookup, names: Sequence[str]) -> Story:
    """The local gradients along a path of names, multiplied.

    Raises:
        ValueError: the path has fewer than two names, or a value does not depend on the one before it.
        KeyError: a name is not in the graph.
    """
    tape, graph = lookup.tape, lookup.tape.graph
    values = _checked_path(tape, names)
    if tape.grads is not None and _is_earlier(graph, values[-1], values[0]):
        values.reverse()
    pairs = [(of, wrt) for wrt, of in zip(values[:-1], values[1:], strict=True)][::-1]
    rows = tuple(_path_row(lookup, of, wrt) for of, wrt in pairs)
    act = Act("Local gradients along the path", "", rows).numbered(1)
    return Story(f"The path {_path_text(values).text}", (), (act,), tuple(_path_end(lookup, values, pairs)))


def _checked_path(tape: Tape, names: Sequence[str]) -> list[Value]:
    graph = tape.graph
    if isinstance(names, str) or len(names) < 2:
        raise ValueError(
            f'`path` must hold at least two names, such as path=["w", "y_hat", "loss"]; got {names!r}.'
        )
    for name in names:
        if name not in graph:
            raise KeyError(
                f"`path` holds {name!r}, which is not in the graph.{suggestion(name, graph.by_name)}"
            )
    if not tape.is_full:
        raise ValueError(
            "the local gradients along a path are computed from values, but the tape holds statistics of them: "
            "record it with record=None."
        )
    return [graph.value(name) for name in names]


def _is_earlier(graph: Graph, a: Value, b: Value) -> bool:
    """Whether `a` comes before `b` in program order: then the path was given backwards."""
    order = {value.id: i for i, node in enumerate(graph.walk()) for value in node.outputs}
    return order.get(a.id, 0) < order.get(b.id, 0)


def _path_row(lookup: Lookup, of: Value, wrt: Value) -> StoryRow:
    local = edge(lookup.tape, of, wrt)
    spelled = lookup.formulas.of_local(local)
    _, _, right = spelled.latex.partition(" = ")
    said = Spelled(spelled.right, right or rf"\text{{{spelled.kind}}}")
    symbol = quotient(of.name, wrt.name)
    source = str(local.path[-1].source or "")
    if local.out_shape == local.in_shape == ():
        found = describe(local.jacobian(), local.steps)
        return StoryRow("local", symbol, (said,), found.text, found.data, of.name, source)
    through = "" if len(local.path) == 1 else f", through {len(local.path)} operations"
    note = f"a map from {list(local.in_shape)} to {list(local.out_shape)}{through}"
    if spelled.data["form"] != "local":
        symbol = Spelled(spelled.left, rf"\mathrm{{d}}{latex_name(wrt.name)}")
    return StoryRow("local", symbol, (said,), name=of.name, source=source, note=note)


def _path_end(
    lookup: Lookup, values: Sequence[Value], pairs: Sequence[tuple[Value, Value]]
) -> Iterator[StoryRow]:
    """The product along the path; for arrays, the cotangent propagated along it."""
    tape = lookup.tape
    end, start = values[-1], values[0]
    product = _product_along(values, lambda of, wrt: describe(edge(tape, of, wrt).jacobian()))
    if product is not None:
        formulas, found = product[0], describe(product[1])
        symbol = quotient(end.name, start.name)
        yield StoryRow("chain", symbol, formulas, found.text, found.data, start.name, note="along this path")
        return
    ct = tape[end.name].cotangent
    if ct is None:
        yield StoryRow("note", note=f"no cotangent reaches {text_name(end.name)}")
        return
    steps = tape.graph.places[tape.graph[end.name].index].steps
    for of, wrt in pairs:
        ct = edge(tape, of, wrt).vjp(ct)
        found = describe(ct, steps)
        to = Spelled(f"to {text_name(wrt.name)}", rf"\text{{to }} {latex_name(wrt.name)}")
        yield StoryRow("share", to, (), found.text, found.data, wrt.name, depth=1)
    whole = tape[start.name].cotangent if start.name in tape.names else None
    if whole is not None and np.shape(whole) == np.shape(ct):
        along, total = (float(np.linalg.norm(np.asarray(x).astype(complex).ravel())) for x in (ct, whole))
        yield StoryRow("note", note=f"norm {spell(along)} along this path, {spell(total)} along all paths")
