"""What the source says about a place in it: the expression that stands there and what it is bound to.

A frame of a traced equation holds a code object and the offset of an instruction. The standard library turns
the offset into line and columns, `ast` turns these into an expression. Where the source is missing (`exec`),
or was edited since it was imported, there is no answer, never a wrong one.
"""

import ast
import functools
import itertools
import linecache
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import TypeAlias

from ._jaxpr import Frame

#: What stands left of an assignment: a name, several of them, or None where nothing is kept.
Target: TypeAlias = "str | tuple[Target, ...] | None"
#: A position inside nested tuples, lists and dicts.
Path: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """What becomes of the value of an expression.

    Attributes:
        target: what it is assigned to; None where it is returned.
        path: where in the assigned or returned value it stands.
        returned: the path in the value the function returns under which the assigned name comes back,
            as (path, whether the assignment stands in a loop); None where it does not.
    """

    target: Target
    path: Path
    returned: tuple[Path, bool] | None


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of the user's source."""

    text: str
    binding: Binding | None
    words: tuple[str, ...] = ()  # plain names among its direct parts


@dataclass(frozen=True, slots=True)
class Source:
    """A place in the user's source: file, line, and the function around it."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}"


def place_of(frame: Frame) -> Source:
    """File and line of a frame."""
    code = frame.code
    position = _position(frame)
    return Source(code.co_filename, position[0] or code.co_firstlineno, code.co_name)


@functools.lru_cache(maxsize=65536)
def expression_at(frame: Frame) -> Expression | None:
    """The expression whose evaluation had reached this instruction, or None where the source is unknown."""
    position = _position(frame)
    tree = _tree(frame.code.co_filename)
    if tree is None or None in position or not tree.holds(frame.code):
        return None
    node = tree.expressions.get(position)
    if node is None:
        return None
    text = ast.get_source_segment(tree.text, node) or ""
    words = tuple(part.id for part in ast.iter_child_nodes(node) if isinstance(part, ast.Name))
    return Expression(" ".join(text.split()), tree.binding(node), words)


# --- which files are the user's ------------------------------------------------------------------

_HERE = os.path.dirname(os.path.abspath(__file__))
_LIBRARIES = tuple(
    {
        os.path.abspath(path) + os.sep
        for key in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(key))
    }
) + (_HERE + os.sep,)


@functools.lru_cache(maxsize=4096)
def package_root(file: str) -> str:
    """The folder of the top-level package of an installed file; the file itself elsewhere."""
    path = os.path.abspath(file)
    inside = [root for root in _LIBRARIES if path.startswith(root)]
    if not inside:
        return path
    root = max(inside, key=len)
    return root + path[len(root) :].split(os.sep)[0]


@functools.lru_cache(maxsize=4096)
def is_library(file: str) -> bool:
    """Whether a file belongs to an installed package or to Python, rather than to the user."""
    if file.startswith("<"):
        return file.startswith("<frozen")
    path = os.path.abspath(file)
    return path.startswith(_LIBRARIES) or f"{os.sep}site-packages{os.sep}" in path


# --- the syntax tree of a file --------------------------------------------------------------------

_Position: TypeAlias = tuple[int | None, int | None, int | None, int | None]


@functools.lru_cache(maxsize=65536)
def _position(frame: Frame) -> _Position:
    """Line, end line, column and end column of the instruction a frame had reached."""
    return next(itertools.islice(frame.code.co_positions(), frame.lasti // 2, None))


class _Tree:
    """A parsed file: expressions by position, parents by node, and the code it compiles to."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        root = ast.parse(text)
        self.parents: dict[ast.AST, ast.AST] = {}
        self.expressions: dict[tuple[int | None, ...], ast.expr | ast.AugAssign] = {}
        for node in ast.walk(root):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, ast.expr | ast.AugAssign):
                where = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
                self.expressions.setdefault(where, node)
        self._codes = set(_signatures(compile(text, file, "exec", dont_inherit=True)))
        self._held: dict[CodeType, bool] = {}

    def holds(self, code: CodeType) -> bool:
        """Whether the file, as it stands now, is what `code` was compiled from."""
        if code not in self._held:
            self._held[code] = _signature(code) in self._codes
        return self._held[code]

    def binding(self, node: ast.expr | ast.AugAssign) -> Binding | None:
        """Follow a value outwards through literals that hold it, to the statement that keeps it."""
        if isinstance(node, ast.AugAssign):  # `h += x` adds and assigns in one
            return self._assigned(node, node.target, [])
        path: list[int | str] = []
        child: ast.AST = node
        while (parent := self.parents.get(child)) is not None:
            if isinstance(parent, ast.Tuple | ast.List):
                path.insert(0, parent.elts.index(child))  # type: ignore[arg-type]
            elif isinstance(parent, ast.Dict) and child in parent.values:
                key = parent.keys[parent.values.index(child)]  # type: ignore[arg-type]
                if not isinstance(key, ast.Constant):
                    return None
                path.insert(0, repr(key.value))
            elif isinstance(parent, ast.IfExp) and child is not parent.test:
                pass
            elif isinstance(parent, ast.Return | ast.Lambda):
                return Binding(None, tuple(path), None)
            elif isinstance(parent, ast.NamedExpr):
                return self._assigned(parent, parent.target, path)
            elif isinstance(parent, ast.Assign) and len(parent.targets) == 1:
                return self._assigned(parent, parent.targets[0], path)
            elif isinstance(parent, ast.AugAssign | ast.AnnAssign) and child is parent.value:
                return self._assigned(parent, parent.target, path)
            else:
                return None
            child = parent
        return None

    def _assigned(self, statement: ast.AST, target: ast.expr, path: list[int | str]) -> Binding:
        pattern = _target(target)
        name = _at(pattern, tuple(path))
        returned = self._returned(statement, name[0]) if name and not name[1] else None
        return Binding(pattern, tuple(path), returned)

    def _returned(self, statement: ast.AST, name: str) -> tuple[Path, bool] | None:
        """Where in its function's return value a name comes back that `statement` assigns."""
        chain = list(_ancestors(statement, self.parents))
        function = next((a for a in chain if isinstance(a, ast.FunctionDef)), None)
        if function is None:
            return None
        in_loop = any(isinstance(a, ast.For | ast.While) for a in chain[: chain.index(function)])
        after = statement.end_lineno  # type: ignore[attr-defined]
        own = [n for n in _own_nodes(function) if getattr(n, "lineno", 0) > after]
        own.sort(key=lambda n: (n.lineno, n.col_offset))  # type: ignore[attr-defined]
        for node in own:
            if isinstance(node, ast.Return) and node.value is not None:
                return (path, in_loop) if (path := _find(node.value, name)) is not None else None
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
                return None
        return None


@functools.lru_cache(maxsize=4096)
def _tree_of_text(text: str, file: str) -> _Tree | None:
    try:
        return _Tree(text, file)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _tree(file: str) -> _Tree | None:
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    return _tree_of_text("".join(lines), file) if lines else None


def _signature(code: CodeType) -> tuple[object, ...]:
    return code.co_name, code.co_firstlineno, code.co_code, tuple(code.co_positions())


def _signatures(code: CodeType) -> Iterator[tuple[object, ...]]:
    stack = [code]
    while stack:
        code = stack.pop()
        yield _signature(code)
        stack.extend(const for const in code.co_consts if isinstance(const, CodeType))


def _ancestors(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while (node := parents.get(node)) is not None:  # type: ignore[assignment]
        yield node


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions inside it."""
    stack = list(ast.iter_child_nodes(function))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            stack.extend(ast.iter_child_nodes(node))


def _target(node: ast.expr) -> Target:
    if isinstance(node, ast.Tuple | ast.List):
        if any(isinstance(element, ast.Starred) for element in node.elts):
            return None
        return tuple(_target(element) for element in node.elts)
    text = ast.unparse(node)
    return None if text == "_" else text


def _at(target: Target, path: Path) -> tuple[str, Path] | None:
    """The name a position of an assigned value goes to, and what of the path is left over."""
    for taken, step in enumerate(path):
        if isinstance(target, str):
            return target, path[taken:]
        if target is None or not isinstance(step, int) or step >= len(target):
            return None
        target = target[step]
    return (target, ()) if isinstance(target, str) else None


name_at = _at


def _find(value: ast.expr, name: str) -> Path | None:
    """The path at which a plain name stands in a returned expression."""
    if isinstance(value, ast.Name):
        return () if value.id == name else None
    items: list[tuple[int | str, ast.expr]] = []
    if isinstance(value, ast.Tuple | ast.List):
        items = list(enumerate(value.elts))
    elif isinstance(value, ast.Dict):
        items = [
            (repr(key.value), element)
            for key, element in zip(value.keys, value.values, strict=True)
            if isinstance(key, ast.Constant)
        ]
    found = ((step, _find(element, name)) for step, element in items)
    return next(((step, *rest) for step, rest in found if rest is not None), None)


def spell(name: str, path: Path) -> str:
    """Write a name with what of a path is left: `out` and `("'a'", 0)` give `out['a'][0]`."""
    return name + "".join(itertools.chain.from_iterable(("[", str(step), "]") for step in path))
