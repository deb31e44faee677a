"""Names that a person recognizes, for every value of a program.

The first that applies: a `checkpoint_name`; the variable that the value is assigned to in the source (the
caller's if a helper returns it); the path of an argument; else scope and primitive. Names are unique in the
whole graph (`h`, `h#2`, ...) and the same in every run: they depend on the program and its source alone.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from .. import _jaxpr
from ..core.graph import Source
from .syntax import (
    Expression,
    Path,
    Target,
    expression_at,
    is_library,
    is_own,
    name_at,
    package_root,
    place_of,
    spell,
)

_JAX = package_root(jax.__file__)


class Sight(NamedTuple):
    """What naming sees of an equation.

    Attributes:
        eqn: the equation.
        raw: its frames, innermost first, including those of the calls around it.
        own: how many of these are its own.
        user: those in the user's own code.
        at: the positions of these in `raw`.
        deriving: the positions in `raw` of those that differentiate what they call.
    """

    eqn: Any
    raw: tuple[_jaxpr.Frame, ...]
    own: int
    user: tuple[_jaxpr.Frame, ...]
    at: tuple[int, ...]
    deriving: tuple[int, ...]

    @property
    def outside(self) -> int | None:
        """The depth of the first user frame that receives not the value but a derivative of it."""
        inner = next((i for i in self.deriving if self.at and i > self.at[0]), None)
        return None if inner is None else next((d for d, i in enumerate(self.at) if i > inner), None)

    @property
    def transposed(self) -> bool:
        """Whether the equation is known to belong to a backward pass."""
        return "transpose(" in _jaxpr.scope_of(self.eqn)


def sight(eqn: Any, jaxpr: Any, around: tuple[_jaxpr.Frame, ...], home: str | None) -> Sight:
    """Collect the frames of an equation; `around` are those of the calls it was inlined from.

    `home` is the file of the traced function: its package counts as the user's, installed or not, except JAX.
    """
    own = _jaxpr.frames(eqn, jaxpr)
    raw = (*own, *around)
    root = package_root(home) if home else None

    def is_users(frame: _jaxpr.Frame) -> bool:
        file = frame.code.co_filename
        return not is_library(file) or (root not in (None, _JAX) and package_root(file) == root)

    at = tuple(index for index, frame in enumerate(raw) if is_users(frame))
    deriving = tuple(index for index, frame in enumerate(raw) if _derives(frame))
    return Sight(eqn, raw, len(own), tuple(raw[index] for index in at), at, deriving)


def _derives(frame: _jaxpr.Frame) -> bool:
    return frame.code.co_name in _jaxpr.DERIVATIVE_WRAPPERS and is_library(frame.code.co_filename)


def label_and_source(seen: Sight) -> tuple[str, Source | None]:
    """The user's expression that an equation comes from, and its place in the source."""
    if not seen.user:
        return "", None
    expression = expression_at(seen.user[0])
    return (expression.text if expression else ""), place_of(seen.user[0])


def assigned_names(
    level: Sequence[Sight], function: str | None, derived: bool = False
) -> list[list[str | None]]:
    """The assigned name of each output of each equation of one program, None if there is none.

    `function` names a value that the program returns unassigned. A `derived` program is not what the user wrote
    but its derivative: which of its equations computes the expression cannot be known.
    """
    taken: set[Any] = set()
    names: list[list[str | None]] = [[None] * len(seen.eqn.outvars) for seen in level]
    results = [False] * len(level) if derived else _results(level)
    # From the last one: of the iterations of a loop, a helper returns the value of the last.
    for index in reversed(range(len(level))):
        given = _jaxpr.checkpoint_name(level[index].eqn)
        if given is not None:
            names[index] = [given]
        elif results[index]:
            names[index] = _outputs_named(level[index], _follow(level[index], taken, function))
    return names


def _results(level: Sequence[Sight]) -> list[bool]:
    """Whether an equation is the last one of an evaluation of its expression.

    Consecutive equations from one place in the user's code come from one evaluation, or from several in a loop:
    then they repeat. A derivative mixes values with residuals: there only a single equation is surely a value.
    """
    last = [False] * len(level)
    done: set[Any] = set()
    for start, stop in reversed(list(_runs([(seen.user, seen.transposed) for seen in level]))):
        seen = level[start]
        if not seen.user:
            continue
        if seen.outside is not None:
            last[start] = stop == start + 1 and not seen.transposed
        elif _may_repeat(seen):
            keys = [(other.raw, other.eqn.primitive.name) for other in level[start:stop]]
            period = _period(keys)
            for end in range(start + period, stop + 1, period):
                last[end - 1] = True
        else:
            last[stop - 1] = seen.user not in done
            done.add(seen.user)
    return last


def _may_repeat(seen: Sight) -> bool:
    """Whether one call of the function may reach this place several times: in a loop, or by a callback."""
    for inner, outer in itertools.pairwise(seen.at):
        between = seen.raw[inner + 1 : outer]
        if between and not any(frame.code.co_name in _jaxpr.CALL_ONCE for frame in between):
            return True
    return any(expression is None or expression.in_loop for expression in map(expression_at, seen.user))


def _runs(items: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Runs (start, stop) of equal items."""
    start = 0
    for index in range(1, len(items) + 1):
        if index == len(items) or items[index] != items[start]:
            yield start, index
            start = index


def _period(items: Sequence[Any]) -> int:
    """The length of the shortest sequence that the items are whole repetitions of.

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
    """An assignment that a value reaches: its target, and the path of the value in it."""

    target: Target
    path: Path


def _follow(seen: Sight, taken: set[Any], function: str | None) -> _Found | None:
    """Follow a value outward from frame to frame; the outermost assignment is its name."""
    found: _Found | None = None
    path: Path = ()
    outside = seen.outside
    if outside is not None and seen.at[outside] > seen.own:
        return None  # the call is differentiated as a whole: no equation is its value
    for depth, frame in enumerate(seen.user[:outside]):
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
    # The frames of what was traced separately, and inserted later, end before those of the function itself.
    if found is None and function and not path and outside is None and is_own(seen.raw[-1].code.co_filename):
        return _Found(function, ())
    return found


def _outputs_named(seen: Sight, found: _Found | None) -> list[str | None]:
    """Spread an assignment over the outputs of an equation."""
    count = len(seen.eqn.outvars)
    if found is None:
        return [None] * count
    called = _called(seen)
    if not _jaxpr.nested_programs(seen.eqn) or (called not in _jaxpr.RESULT_PATHS and called != "fori_loop"):
        return (
            _spread(found.target, found.path, count)
            if count == 1 or called in _jaxpr.RESULT_PATHS
            else [None] * count
        )
    paths = _paths_of_results(seen, called) or _paths_of_carries(seen, called)
    if (
        paths is None or len(paths) != count
    ):  # a differentiated loop may pass on more than its function returned
        return [None] * count if seen.deriving else _spread(found.target, found.path, count)
    ats = [None if path is None else name_at(found.target, (*found.path, *path)) for path in paths]
    return [None if at is None else spell(*at) for at in ats]


_STEP = re.compile(r"""(\.\w+)|\[('[^']*'|"[^"]*"|[^\]]*)\]""")


def _steps(text: str) -> Path:
    """`['a'][0].w` as a path."""
    return tuple(field or (int(item) if item.isdigit() else item) for field, item in _STEP.findall(text))


def _paths_of_results(seen: Sight, called: str) -> list[Path | None] | None:
    """The paths of the outputs of an equation in the result of the call, from what its body returns.

    JAX removes from a loop or a cond what is only passed through, so the outputs cannot be counted. None if JAX
    did not keep the paths.
    """
    texts = _jaxpr.result_paths(_jaxpr.nested_programs(seen.eqn)[0])
    if len(texts) != len(seen.eqn.outvars) or not all(texts):
        return None
    result = (
        _jaxpr.FORI_RESULT_PATHS[seen.eqn.primitive.name]
        if called == "fori_loop"
        else _jaxpr.RESULT_PATHS[called]
    )
    paths = (_steps(text.removeprefix("result")) for text in texts)
    return [path[len(result) :] if path[: len(result)] == result else None for path in paths]


def _paths_of_carries(seen: Sight, called: str) -> list[Path | None] | None:
    """The same from what the body of a loop takes, for loops under `vmap`; None for what is not a loop."""
    form, count = _jaxpr.opened_form(seen.eqn), len(seen.eqn.outvars)
    if not isinstance(form, _jaxpr.Scan) and not _jaxpr.is_while(seen.eqn):
        return None
    if isinstance(form, _jaxpr.Scan):
        first, carries = form.num_consts, form.num_carry
    else:
        first, carries = -count, count
    names = (_jaxpr.nested_programs(seen.eqn)[0].argument_names or ("",) * count)[first:][:carries]
    known = [_steps(name) if name else None for name in names]
    if called == "fori_loop":
        counters = _jaxpr.FORI_COUNTERS[seen.eqn.primitive.name]
        return [None] * counters + known[counters:]
    inside = [None if path is None else (0, *path) if called == "scan" else path for path in known]
    stacked: Path = (1,) if called == "scan" else ()
    return inside + [stacked if count - carries == 1 else None] * (count - carries)


def _called(seen: Sight) -> str | None:
    """The name of the JAX function that the user's code calls there, None if it is not JAX's."""
    inner = (
        frame for frame in reversed(seen.raw[: seen.at[0]]) if frame.code.co_name not in _jaxpr.CALL_WRAPPERS
    )
    frame = next(inner, None)
    if frame is None or package_root(frame.code.co_filename) != _JAX:
        return None
    return frame.code.co_name


def _spread(target: Target, path: Path, count: int) -> list[str | None]:
    """Names for `count` values at one path of an assignment."""
    at = name_at(target, path)
    if at is not None:
        name, rest = at
        if count == 1:
            return [spell(name, rest)]
        return [spell(name, (*rest, i)) for i in range(count)]
    names = [name_at(target, (*path, i)) for i in range(count)]
    if name_at(target, (*path, count)) is not None:  # more names than values: which is which cannot be known
        return [None] * count
    return [spell(*at) if at else None for at in names]


# --- scopes and unique names -----------------------------------------------------------------------

#: Before Python 3.12 these have frames of their own.
_COMPREHENSIONS = frozenset({"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"})


def fallback_name(seen: Sight, scope: str, primitive: str, root: str | None) -> str:
    """Scope and primitive; without a scope, the user's function (or the called class) and the primitive."""
    if not scope:
        codes = (frame.code for frame in seen.user)
        code = next((code for code in codes if code.co_name not in _COMPREHENSIONS), None)
        function = code.co_name if code else ""
        if code and function == "__call__":
            function = code.co_qualname.split(".")[-2:][0]
        if function.isidentifier() and function != root:
            scope = function
    return f"{scope}/{primitive}" if scope else primitive


class Unique:
    """Makes names unique: `h`, `h#2`, `h#3`."""

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
    """The plain names in the expression of an equation, if that is in the traced function itself."""
    if not seen.user or seen.user[0].code.co_name != function:
        return ()
    expression = expression_at(seen.user[0])
    return expression.words if expression else ()
