"""What the source code says about a position in it: the expression there, and what it is bound to.

A frame of a traced equation holds a code object and the offset of an instruction. The standard library turns
the offset into line and columns, and `ast` turns these into an expression. If the source is missing (`exec`),
or was edited after it was imported, there is no answer, never a wrong one.
"""

import ast
import functools
import itertools
import linecache
import os
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import TypeAlias

from .._jaxpr import Frame
from ..core.graph import Source

#: The left side of an assignment: a name, several of them, or None if the value is discarded.
Target: TypeAlias = "str | tuple[Target, ...] | None"
#: A path into nested tuples, lists and dicts: an index, a key as it is written (`'w'`), or `.field`.
Path: TypeAlias = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class NameBinding:
    """What the value of an expression is bound to.

    Attributes:
        target: what it is assigned to; None if it is returned.
        path: where it is in the assigned or returned value.
        returned: if the function returns the assigned name: the path at which the returned value has it, and
            whether the assignment is in a loop; else None.
    """

    target: Target
    path: Path
    returned: tuple[Path, bool] | None


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression of the user's source."""

    text: str
    binding: NameBinding | None
    words: tuple[str, ...] = ()  # plain names among its direct parts
    in_loop: bool = False  # whether one run of its function may evaluate it several times


def place_of(frame: Frame) -> Source:
    """File and line of a frame."""
    code = frame.code
    line = _position(frame)[0]
    return Source(code.co_filename, line or code.co_firstlineno, code.co_name)


@functools.lru_cache(maxsize=8192)
def expression_at(frame: Frame) -> Expression | None:
    """The expression that this instruction evaluates, or None if the source is unknown."""
    position = _position(frame)
    tree = _tree(frame.code.co_filename)
    if tree is None or None in position or not tree.holds(frame):
        return None
    node = tree.expressions.get(position)
    if node is None:
        return None
    text = tree.segment(position)
    words = tuple(part.id for part in ast.iter_child_nodes(node) if isinstance(part, ast.Name))
    return Expression(text, tree.binding(node), words, tree.in_loop(node))


# --- which files are the user's ------------------------------------------------------------------

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    {
        os.path.abspath(path) + os.sep
        for key in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(key))
    }
) + (_HERE + os.sep,)


@functools.lru_cache(maxsize=4096)
def package_root(file: str) -> str:
    """The folder of the top-level package of an installed file; for other files the file itself."""
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


def is_own(file: str) -> bool:
    """Whether a file belongs to this package."""
    return os.path.abspath(file).startswith(_HERE + os.sep)


# --- the syntax tree of a file --------------------------------------------------------------------

_Position: TypeAlias = tuple[int | None, int | None, int | None, int | None]


def _position(frame: Frame) -> _Position:
    """Line, end line, column and end column of the instruction of a frame."""
    return _positions(_whole(frame))[frame.lasti // 2]


def _whole(frame: Frame) -> Frame:
    """The code of a frame, as a key: code objects themselves are slow to hash."""
    return Frame(frame.code, 0)


@functools.lru_cache(maxsize=4096)
def _positions(whole: Frame) -> Sequence[_Position]:
    return list(whole.code.co_positions())


class _Tree:
    """A parsed file: expressions by position, parents by node, and the code it compiles to."""

    def __init__(self, text: str, file: str) -> None:
        root = ast.parse(text)
        self._lines = [line.encode() for line in text.split("\n")]  # columns count bytes
        self.parents: dict[ast.AST, ast.AST] = {}
        self.expressions: dict[tuple[int | None, ...], ast.expr | ast.AugAssign] = {}
        for node in ast.walk(root):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, ast.expr | ast.AugAssign):
                where = (node.lineno, node.end_lineno, node.col_offset, node.end_col_offset)
                self.expressions.setdefault(where, node)
        self._root, self._file = root, file
        self._codes = set(_signatures(compile(text, file, "exec", dont_inherit=True)))
        self._held: dict[Frame, bool] = {}
        self._flows: dict[ast.AST, _Flow] = {}

    def holds(self, frame: Frame) -> bool:
        """Whether the code of a frame was compiled from this text of the file."""
        whole = _whole(frame)
        if whole not in self._held:
            signature = _signature(frame.code)
            self._held[whole] = signature in self._codes or signature in self._codes_alone
        return self._held[whole]

    @functools.cached_property
    def _codes_alone(self) -> set[tuple[object, ...]]:
        """The code that each statement compiles to on its own, as in a notebook.

        It may differ: how `jnp.sin(x)` is compiled depends on whether `jnp` is imported in the same unit.
        """
        units = (ast.Module([statement], []) for statement in self._root.body)
        codes = (compile(unit, self._file, "exec", dont_inherit=True) for unit in units)
        return {signature for code in codes for signature in _signatures(code)}

    def segment(self, position: _Position) -> str:
        """The text at a position, on one line."""
        line, end_line, column, end_column = position
        lines = self._lines[line - 1 : end_line]  # type: ignore[operator]
        lines[-1] = lines[-1][:end_column]
        lines[0] = lines[0][column:]
        return " ".join(b" ".join(lines).decode(errors="replace").split())

    def in_loop(self, node: ast.AST) -> bool:
        """Whether a node is in a loop or a comprehension of its own function."""
        child = node
        for parent in _ancestors(node, self.parents):
            if isinstance(parent, _FUNCTIONS):
                return False
            if isinstance(parent, _LOOPS) and child is not getattr(parent, "iter", None):
                return True
            if isinstance(parent, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                return True
            child = parent
        return False

    def binding(self, node: ast.expr | ast.AugAssign) -> NameBinding | None:
        """Follow a value outward through the literals that contain it, to the statement that binds it."""
        if isinstance(node, ast.AugAssign):  # `h += x` adds and assigns in one
            return self._assigned(node, node.target, [])
        path: list[int | str] = []
        child: ast.AST = node
        for parent in _ancestors(node, self.parents):
            if isinstance(parent, ast.Tuple | ast.List | ast.Dict):
                step = next((step for step, item in _items(parent) if item is child), None)
                if step is None:
                    return None
                path.insert(0, step)
            elif isinstance(parent, ast.IfExp) and child is not parent.test:
                pass
            elif isinstance(parent, ast.Return | ast.Lambda):
                return NameBinding(None, tuple(path), None) if self._comes_back(parent) else None
            elif isinstance(parent, ast.Assign) and child is parent.value:
                plain = (target for target in parent.targets if isinstance(target, ast.Name))
                return self._assigned(parent, next(plain, parent.targets[0]), path)
            elif isinstance(parent, ast.AnnAssign | ast.NamedExpr) and child is parent.value:
                return self._assigned(parent, parent.target, path)
            else:
                return None
            child = parent
        return None

    def _assigned(self, statement: ast.AST, target: ast.expr, path: list[int | str]) -> NameBinding:
        pattern = _target(target)
        name = name_at(pattern, tuple(path))
        returned = self._returned(statement, name[0]) if name and not name[1] else None
        return NameBinding(pattern, tuple(path), returned)

    def _returned(self, statement: ast.AST, name: str) -> tuple[Path, bool] | None:
        """Where the return value of a function has a name that `statement` assigns.

        None if the name may be assigned again before, or if another return may be reached first.
        """
        chain = [statement, *_ancestors(statement, self.parents)]
        function = next((a for a in chain if isinstance(a, _FUNCTIONS)), None)
        if not isinstance(function, ast.FunctionDef) or self._flow(function).yields:
            return None
        loop = next((a for a in chain[chain.index(function) :: -1] if isinstance(a, _LOOPS)), None)
        paths: list[Path | None] = []
        for node in self._flow(function).after(statement, name, loop):
            surely = self._surely(node, chain)
            if surely is None:
                continue
            if isinstance(node, ast.Name):
                return None
            if isinstance(node, ast.Return):
                paths.append(_find(node.value, name) if node.value is not None else None)
                if surely:
                    break
        if not paths or paths[0] is None or any(path != paths[0] for path in paths):
            return None
        return paths[0], loop is not None

    def _surely(self, node: ast.AST, chain: list[ast.AST]) -> bool | None:
        """Whether a node is always executed after a statement before it; None if never.

        `chain` is the statement and everything around it.
        """
        surely = _start(node) > _start(chain[0])
        child = node
        for parent in _ancestors(node, self.parents):
            if parent in chain:
                side = chain[chain.index(parent) - 1]
                never = isinstance(parent, ast.If) and _branch(parent, child) != _branch(parent, side)
                return None if never else surely
            surely = surely and not isinstance(parent, _CHOICES)
            child = parent
        return surely

    def _flow(self, function: ast.AST) -> "_Flow":
        if function not in self._flows:
            self._flows[function] = _Flow(function)
        return self._flows[function]

    def _comes_back(self, end: ast.Return | ast.Lambda) -> bool:
        """Whether a call returns this value itself, rather than a generator or a coroutine of it."""
        function = next(a for a in (end, *_ancestors(end, self.parents)) if isinstance(a, _FUNCTIONS))
        return not isinstance(function, ast.AsyncFunctionDef) and not self._flow(function).yields


class _Flow:
    """What a function assigns and returns, in the order of the text."""

    def __init__(self, function: ast.AST) -> None:
        self.yields = False
        self.returns: list[ast.AST] = []
        self.stores: dict[str, list[ast.AST]] = {}
        for node in _own_nodes(function):
            if isinstance(node, ast.Yield | ast.YieldFrom):
                self.yields = True
            elif isinstance(node, ast.Return):
                self.returns.append(node)
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                self.stores.setdefault(node.id, []).append(node)

    def after(self, statement: ast.AST, name: str, loop: ast.AST | None) -> list[ast.AST]:
        """The returns that a function may reach after a statement, and the assignments to a name.

        `loop` is the outermost loop around the statement: a return above it may be reached after it.
        """
        end = statement.end_lineno, statement.end_col_offset  # type: ignore[attr-defined]
        begin = _start(loop) if loop is not None else end
        found = [node for node in self.returns if _start(node) >= begin]
        found += [node for node in self.stores.get(name, ()) if _start(node) >= end]
        return sorted(found, key=_start)


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
#: Statements that may skip a part of their body.
_CHOICES = (*_LOOPS, ast.If, ast.Try, ast.TryStar, ast.Match)


#: Files whose syntax trees are kept at the same time.
_MOST_FILES = 64
_trees: dict[str, tuple[list[str], _Tree | None]] = {}


def _tree(file: str) -> _Tree | None:
    """The syntax tree of a file, parsed again when the file changes."""
    linecache.checkcache(file)
    lines = linecache.getlines(file)
    if not lines:
        return None
    kept = _trees.get(file)
    if kept is None or kept[0] is not lines:  # linecache returns the same list until the file changes
        if len(_trees) >= _MOST_FILES:
            _trees.pop(next(iter(_trees)))
        kept = _trees[file] = lines, _parse("".join(lines), file)
    return kept[1]


def _parse(text: str, file: str) -> _Tree | None:
    try:
        return _Tree(text, file)
    except (SyntaxError, ValueError, RecursionError):
        return None


def _signature(code: CodeType) -> tuple[object, ...]:
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    consts = tuple(c.co_name if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
    return code.co_name, code.co_firstlineno, code.co_code, tuple(code.co_positions()), names, consts


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
    """All nodes of a function except those of functions inside it."""
    stack = list(ast.iter_child_nodes(function))
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, _FUNCTIONS):
            stack.extend(ast.iter_child_nodes(node))


def _start(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def _branch(choice: ast.AST, child: ast.AST) -> str:
    """The field of a statement that has one of its parts: `body`, `orelse`, ..."""
    for field, value in ast.iter_fields(choice):
        if child is value or (isinstance(value, list) and any(child is part for part in value)):
            return field
    return ""


def _items(node: ast.AST) -> Iterator[tuple[int | str, ast.expr]]:
    """The elements of a tuple, list or dict whose position is known from the text alone."""
    if isinstance(node, ast.Tuple | ast.List):
        known = itertools.takewhile(lambda element: not isinstance(element, ast.Starred), node.elts)
        yield from enumerate(known)
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant):
                yield repr(key.value), value


def _target(node: ast.expr) -> Target:
    if isinstance(node, ast.Tuple | ast.List):
        # What follows a star has no known position.
        return tuple(_target(element) for _, element in _items(node))  # type: ignore[arg-type]
    text = ast.unparse(node)
    return None if text == "_" else text


def name_at(target: Target, path: Path) -> tuple[str, Path] | None:
    """The name that a path into an assigned value is bound to, and the rest of the path."""
    for taken, step in enumerate(path):
        if isinstance(target, str):
            return target, path[taken:]
        if target is None or not isinstance(step, int) or step >= len(target):
            return None
        target = target[step]
    return (target, ()) if isinstance(target, str) else None


def _find(value: ast.expr, name: str) -> Path | None:
    """The path of a plain name in a returned expression."""
    if isinstance(value, ast.Name):
        return () if value.id == name else None
    found = ((step, _find(element, name)) for step, element in _items(value))
    return next(((step, *rest) for step, rest in found if rest is not None), None)


def spell(name: str, path: Path) -> str:
    """Write a name with a path: `out` and `("'a'", 0, ".w")` become `out['a'][0].w`."""
    steps = (step if isinstance(step, str) and step.startswith(".") else f"[{step}]" for step in path)
    return name + "".join(steps)
