"""Names that a person recognises, for every value of a program.

The first that applies: a `checkpoint_name`; the variable the value is assigned to in the source, the caller's
where a helper returns it; the path of an argument; else scope and primitive. Names are unique in the whole
graph (`h`, `h#2`, ...), and the same from run to run: they depend on the program and its source alone.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from . import _jaxpr
from ._source import (
    Expression,
    Path,
    Source,
    Target,
    expression_at,
    is_library,
    name_at,
    package_root,
    place_of,
    spell,
)

#: Functions through which the value of an inner function does not come back: they return its derivative.
_DERIVING = frozenset({"grad_f", "value_and_grad_f", "vjp", "jvp", "linearize", "jacfun", "hessian"})
#: Primitives whose outputs stand in the order in which the user's call returns them.
_ORDERED = frozenset({"while", "cond", "custom_jvp_call", "custom_vjp_call", "top_k", "sort"})


class Sight(NamedTuple):
    """What naming sees of an equation.

    Attributes:
        eqn: the equation.
        raw: its frames, innermost first, those of the calls around it included.
        user: those of them that stand in the user's own code.
    """

    eqn: Any
    raw: tuple[_jaxpr.Frame, ...]
    user: tuple[_jaxpr.Frame, ...]


def sight(eqn: Any, around: tuple[_jaxpr.Frame, ...], home: str | None) -> Sight:
    """Gather the frames of an equation; `around` are those of the calls it was inlined from.

    `home` is a file of the traced function: its package counts as the user's, installed or not.
    """
    raw = (*_jaxpr.frames(eqn), *around)
    root = package_root(home) if home else None
    user = tuple(
        frame
        for frame in raw
        if not is_library(frame.code.co_filename)
        or (root is not None and package_root(frame.code.co_filename) == root)
    )
    return Sight(eqn, raw, user)


def label_and_source(seen: Sight) -> tuple[str, Source | None]:
    """The user's expression an equation stems from, and where it stands."""
    if not seen.user:
        return "", None
    expression = expression_at(seen.user[0])
    return (expression.text if expression else ""), place_of(seen.user[0])


def assigned_names(level: Sequence[Sight], function: str | None) -> list[list[str | None]]:
    """The assigned name of each output of each equation of one program, None where there is none.

    `function` names a value that the program returns unassigned.
    """
    taken: set[Any] = set()
    names: list[list[str | None]] = [[None] * len(seen.eqn.outvars) for seen in level]
    results = _results(level)
    # From the last on: of the passes of a loop, the last is the one whose value a helper returns.
    for index in reversed(range(len(level))):
        given = _jaxpr.checkpoint_name(level[index].eqn)
        if given is not None:
            names[index] = [given]
        elif results[index]:
            names[index] = _outputs_named(level[index], _follow(level[index], taken, function))
    return names


def _results(level: Sequence[Sight]) -> list[bool]:
    """Whether an equation is the last of those that one evaluation of its expression gave rise to.

    Equations that follow one another from one place in the user's code stem from one evaluation, or from
    several, in a loop: then they repeat.
    """
    last = [False] * len(level)
    for start, stop in _runs([seen.user for seen in level]):
        keys = [(seen.raw, seen.eqn.primitive.name) for seen in level[start:stop]]
        period = _period(keys)
        for end in range(start + period, stop + 1, period):
            last[end - 1] = True
    return last


def _runs(items: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Stretches (start, stop) of equal items."""
    start = 0
    for index in range(1, len(items) + 1):
        if index == len(items) or items[index] != items[start]:
            yield start, index
            start = index


def _period(items: Sequence[Any]) -> int:
    """The length of the shortest stretch that the items are whole repetitions of.

    Source: Knuth, Morris & Pratt, Fast Pattern Matching in Strings (1977): the prefix function.
    """
    prefix = [0] * len(items)
    matched = 0
    for index in range(1, len(items)):
        while matched and items[index] != items[matched]:
            matched = prefix[matched - 1]
        matched += items[index] == items[matched]
        prefix[index] = matched
    period = len(items) - prefix[-1]
    return period if len(items) % period == 0 else len(items)


class _Found(NamedTuple):
    """An assignment a value comes to: its pattern, and the place of the value in it."""

    target: Target
    path: Path


def _follow(seen: Sight, taken: set[Any], function: str | None) -> _Found | None:
    """Follow a value outwards from frame to frame; the outermost assignment is its name."""
    found: _Found | None = None
    path: Path = ()
    for depth, frame in enumerate(seen.user):
        if depth and _derived_between(seen, seen.user[depth - 1], frame):
            return found
        expression: Expression | None = expression_at(frame)
        binding = expression.binding if expression else None
        if binding is None:
            return found
        path = (*binding.path, *path)
        if binding.target is None:  # returned as it is
            continue
        found = _Found(binding.target, path)
        if binding.returned is None:
            return found
        back, in_loop = binding.returned
        if in_loop:
            claim = (seen.user[depth:], found)
            if claim in taken:
                return found
            taken.add(claim)
        path = back
    if found is None and function and not path:
        return _Found(function, ())
    return found


def _derived_between(seen: Sight, inner: _jaxpr.Frame, outer: _jaxpr.Frame) -> bool:
    between = seen.raw[seen.raw.index(inner) : seen.raw.index(outer)]
    return any(frame.code.co_name in _DERIVING for frame in between)


def _outputs_named(seen: Sight, found: _Found | None) -> list[str | None]:
    """Spread an assignment over the outputs of an equation."""
    eqn = seen.eqn
    count = len(eqn.outvars)
    if found is None:
        return [None] * count
    form = _jaxpr.opened_form(eqn)
    if isinstance(form, _jaxpr.Scan):
        groups = (form.num_carry, count - form.num_carry)
        spread: list[str | None] = []
        for index, size in enumerate(groups):
            spread += _spread(found.target, (*found.path, index), size)
        return spread
    if count == 1:
        at = name_at(found.target, found.path)
        return [spell(*at) if at else None]
    if eqn.primitive.name in _ORDERED or form is not None:
        return _spread(found.target, found.path, count)
    return [None] * count


def _spread(target: Target, path: Path, count: int) -> list[str | None]:
    """Names for `count` values that stand under one position of an assignment."""
    at = name_at(target, path)
    if at is not None:
        name, rest = at
        if count == 1:
            return [spell(name, rest)]
        return [spell(name, (*rest, i)) for i in range(count)]
    names = [name_at(target, (*path, i)) for i in range(count)]
    if name_at(target, (*path, count)) is not None:  # more names than values: no telling which is which
        return [None] * count
    return [spell(*at) if at else None for at in names]


# --- scopes and unique names -----------------------------------------------------------------------

_WRAPPED = re.compile(r"\b[A-Za-z_]+\(([^()]*)\)")


def clean_scope(*parts: str) -> str:
    """Join name stacks, without the marks of the transformations (`jvp(...)`) they went through."""
    scope = "/".join(part for part in parts if part)
    while _WRAPPED.search(scope):
        scope = _WRAPPED.sub(r"\1", scope)
    return "/".join(part for part in scope.split("/") if part)


def fallback_name(seen: Sight, scope: str, primitive: str, root: str | None) -> str:
    """Scope and primitive; without a scope, the user's function and primitive."""
    if not scope and seen.user:
        function = seen.user[0].code.co_name
        if function.isidentifier() and function != root:
            scope = function
    return f"{scope}/{primitive}" if scope else primitive


class Unique:
    """Hands out each name once: `h`, `h#2`, `h#3`."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._next: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        candidate = name
        while candidate in self._seen:
            self._next[name] = self._next.get(name, 1) + 1
            candidate = f"{name}#{self._next[name]}"
        self._seen.add(candidate)
        return candidate


def words(seen: Sight, function: str | None) -> tuple[str, ...]:
    """The plain names an equation's expression is made of, where it stands in the traced function itself."""
    if not seen.user or seen.user[0].code.co_name != function:
        return ()
    expression = expression_at(seen.user[0])
    return expression.words if expression else ()
