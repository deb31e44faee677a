"""Selectors: which nodes a glob, a list of globs, or a predicate on `Node` picks."""

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias, TypeVar

from .._text import suggestion


class Selectable(Protocol):
    """What a glob is matched against: a `Node` has these."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def scope(self) -> str: ...
    @property
    def primitive(self) -> str: ...


#: A glob, several globs (on a node's name, scope or primitive), or a predicate on `Node`.
Selector: TypeAlias = str | Sequence[str] | Callable[..., bool]

N = TypeVar("N", bound=Selectable)


def select(nodes: Iterable[N], selector: Selector) -> tuple[N, ...]:
    """Find the nodes that a selector matches, in their order: `select(graph, "h*")`.

    Raises:
        TypeError: it is not a selector.
        ValueError: it matches no node.
    """
    _check(selector)
    nodes = tuple(nodes)
    found = tuple(node for node in nodes if matches(selector, node))
    if found:
        return found
    if callable(selector):
        raise ValueError(f"the selector {selector!r} matches no node of the graph.")
    patterns = [selector] if isinstance(selector, str) else list(selector)
    names = [name for node in nodes for name in node.names if name]
    hint = suggestion(patterns[0], names) if patterns else ""
    raise ValueError(
        f"the selector {selector!r} matches no node: none has such a name, scope or primitive.{hint}"
    )


def matches(selector: Selector, node: Selectable) -> bool:
    """Tell whether a selector matches a node."""
    if callable(selector):
        return bool(selector(node))
    patterns = (selector,) if isinstance(selector, str) else selector
    texts = (*node.names, node.scope, node.primitive)
    return any(_glob(pattern)(text) for pattern in patterns for text in texts if text)


def unknown_name(name: str, names: Iterable[str]) -> str:
    """Write the message for a name that is not in the graph."""
    return f"there is no value named {name!r} in the graph.{suggestion(name, names)}"


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> Callable[[str], object]:
    # `params['w']` is a name, not a set of characters: brackets are matched literally.
    escaped = "".join(f"[{char}]" if char == "[" else char for char in pattern)
    return re.compile(fnmatch.translate(escaped)).match


def _check(selector: object) -> None:
    if callable(selector) or isinstance(selector, str):
        return
    if isinstance(selector, Sequence) and all(isinstance(pattern, str) for pattern in selector):
        return
    raise TypeError(f"a selector is a glob, a list of globs, or a predicate on `Node`; got {selector!r}.")
