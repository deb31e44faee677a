"""The computational graph of a traced function: frozen nodes with names, nested where the program is.

`build` turns a program into a `Graph`. Calls (`jit`) are inlined under their own scope; the bodies of `scan`,
`cond`, `while`, `jax.checkpoint` and of custom rules become nested graphs of the node that holds them.
"""

import difflib
import fnmatch
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

from . import _jaxpr, _names
from ._same import fingerprint
from ._source import Source

#: A glob, several globs (on a node's name, scope or primitive), or a predicate on `Node`.
Selector: TypeAlias = str | Sequence[str] | Callable[["Node"], bool]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the program: what one variable stands for.

    Attributes:
        name: its unique name in the whole graph; the number itself for a literal.
        shape: its shape, without the step axes it has inside a scan.
        dtype: its dtype.
        active: whether a cotangent can reach it: it lies between a differentiated argument and the output.
        id: its number in the graph, -1 for a literal.
        literal: the number, for a literal.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any
    active: bool
    id: int
    literal: Any = field(default=None, compare=False)
    aval: Any = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"Value({self.name}: {spell_type(self.dtype, self.shape)})"


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the program.

    Attributes:
        index: its number in the graph, in program order.
        primitive: the JAX primitive; the function's name for a custom rule; `input` or `const`.
        scope: named scopes, module names and inlined calls around it, joined by `/`.
        label: the expression in the source it stems from, "" where the source is unknown.
        source: file, line and function in the user's code, or None.
        operands: the values it reads, in the order of its positions.
        outputs: the values it makes.
        graphs: nested graphs: the body of a scan, the branches of a cond, ...
        opened: whether the nested graphs take part in the sweep (scan, cond, remat) or are only shown.
        params: the parameters of the primitive, as text.
    """

    index: int
    primitive: str
    scope: str
    label: str
    source: Source | None
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    graphs: tuple["Graph", ...] = ()
    opened: bool = False
    eqn: Any = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of the first output that is kept."""
        return next((value.name for value in self.outputs if value.name), self.primitive)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.outputs)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outputs[0].shape if self.outputs else ()

    @property
    def dtype(self) -> Any:
        return self.outputs[0].dtype if self.outputs else None

    @property
    def active(self) -> bool:
        """Whether a cotangent can reach any of its outputs."""
        return any(value.active for value in self.outputs)

    @property
    def params(self) -> Mapping[str, Any]:
        return {} if self.eqn is None else dict(self.eqn.params)

    @property
    def where(self) -> str:
        """`name` and the place in the source, for messages."""
        place = f" at {self.source.file}:{self.source.line}" if self.source else ""
        return f"`{self.name}` ({self.primitive}){place}"

    def __repr__(self) -> str:
        return f"Node({self.name} = {self.primitive}({', '.join(v.name for v in self.operands)}))"


@dataclass(frozen=True, slots=True)
class Call:
    """A call that means no more than its body (`jit`): run as one piece where nobody looks inside.

    Attributes:
        items: the operations of its body, which read and make the values of the graph around it.
        operands: the values it reads.
        outputs: the values it makes; None where a result is a literal.
    """

    items: tuple["Node | Call", ...]
    operands: tuple[Value, ...]
    outputs: tuple[Value, ...]
    eqn: Any = field(compare=False, repr=False)

    @property
    def nodes(self) -> Iterator[Node]:
        return flatten(self.items)


def flatten(items: Iterable["Node | Call"]) -> Iterator[Node]:
    """The operations among items, calls inlined."""
    stack = [iter(items)]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
        elif isinstance(item, Call):
            stack.append(iter(item.items))
        else:
            yield item


@dataclass(frozen=True, eq=False)
class Graph:
    """A program as nodes in program order. Immutable; equal and hashed by structure.

    Attributes:
        inputs: the values of the arguments, or of the operands of a nested graph.
        consts: the values of closed-over arrays.
        outputs: the values returned.
        items: the operations, calls not yet inlined. `nodes` is what one usually wants.
        heads: the nodes of inputs and consts.
        fixed: nodes of arguments that are plain numbers, read as literals.
    """

    inputs: tuple[Value, ...]
    consts: tuple[Value, ...]
    outputs: tuple[Value, ...]
    items: tuple[Node | Call, ...]
    heads: tuple[Node, ...]
    fixed: tuple[Node, ...] = ()

    @functools.cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Inputs, closed-over arrays, then the operations of this level, calls inlined."""
        return (*self.heads, *self.fixed, *self.equations())

    def equations(self) -> Iterator[Node]:
        """The operations of this level, calls inlined."""
        return flatten(self.items)

    def walk(self) -> Iterator[Node]:
        """All nodes in program order, each before those of the graphs nested in it."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.walk()

    @functools.cached_property
    def by_name(self) -> Mapping[str, Node]:
        return {name: node for node in self.walk() for name in node.names if name}

    @functools.cached_property
    def by_index(self) -> Mapping[int, Node]:
        return {node.index: node for node in self.walk()}

    @functools.cached_property
    def indices(self) -> frozenset[int]:
        """The numbers of all nodes, nested ones included."""
        return frozenset(self.by_index)

    @functools.cached_property
    def places(self) -> Mapping[int, "Place"]:
        """Where each node stands among the nested graphs, by index."""
        return dict(_places(self, (), ()))

    def __getitem__(self, name: str) -> Node:
        if name not in self.by_name:
            raise KeyError(unknown_name(name, self.by_name))
        return self.by_name[name]

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __len__(self) -> int:
        return sum(1 for _ in self.walk())

    def __iter__(self) -> Iterator[Node]:
        return self.walk()

    def find(self, selector: Selector) -> tuple[Node, ...]:
        """The nodes a selector picks, in program order.

        Raises:
            ValueError: the selector picks nothing.
        """
        return select(self, selector)

    @functools.cached_property
    def _identity(self) -> tuple[Any, ...]:
        params = tuple(fingerprint(node.eqn) for node in self.walk())
        return self.inputs, self.consts, self.outputs, tuple(self.walk()), params

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Graph) and hash(self) == hash(other) and (
            self._identity == other._identity
        )

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.inputs, self.consts, self.outputs, tuple(self.walk())))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        active = sum(node.active for node in self.walk())
        return f"Graph({len(self)} nodes, {active} active)"

    def __str__(self) -> str:
        return table(self)


class Place(NamedTuple):
    """Where a node stands among nested graphs.

    Attributes:
        graph: the graph it belongs to.
        steps: the step axes its values gain: lengths of the opened scans around it, outermost first.
        parents: pairs (node, number of its nested graph), outermost first.
    """

    graph: Graph
    steps: tuple[int, ...]
    parents: tuple[tuple[Node, int], ...]


def _places(
    graph: Graph, steps: tuple[int, ...], parents: tuple[tuple[Node, int], ...]
) -> Iterator[tuple[int, Place]]:
    place = Place(graph, steps, parents)
    for node in graph.nodes:
        yield node.index, place
        form = _jaxpr.opened_form(node.eqn) if node.opened else None
        inner = (*steps, form.length) if isinstance(form, _jaxpr.Scan) else steps
        for number, nested in enumerate(node.graphs):
            yield from _places(nested, inner, (*parents, (node, number)))


# --- selecting -----------------------------------------------------------------------------------


def unknown_name(name: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    return f"there is no value named {name!r} in the graph.{nearest(name, names)}"


def nearest(name: str, names: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    if close:
        return " Nearest names: " + ", ".join(close) + "."
    some = ", ".join(itertools.islice(names, 8))
    return f" Names there are: {some}{', ...' if len(names) > 8 else ''}."


def matches(selector: Selector, node: Node) -> bool:
    """Whether a selector picks a node."""
    if callable(selector):
        return bool(selector(node))
    patterns = (selector,) if isinstance(selector, str) else selector
    texts = (*node.names, node.scope, node.primitive)
    return any(_glob(pattern)(text) for pattern in patterns for text in texts if text)


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> Callable[[str], Any]:
    # `params['w']` is a name, not a set of characters: brackets stand for themselves.
    escaped = "".join(f"[{char}]" if char == "[" else char for char in pattern)
    return re.compile(fnmatch.translate(escaped)).match


def select(graph: Graph, selector: Selector) -> tuple[Node, ...]:
    _check_selector(selector)
    found = tuple(node for node in graph.walk() if matches(selector, node))
    if found:
        return found
    if callable(selector):
        raise ValueError(f"the selector {selector!r} picks no node of the graph.")
    patterns = [selector] if isinstance(selector, str) else list(selector)
    hint = nearest(patterns[0], graph.by_name) if patterns else ""
    raise ValueError(
        f"the selector {selector!r} matches nothing: no node has such a name, scope or primitive.{hint}"
    )


def _check_selector(selector: Any) -> None:
    if callable(selector) or isinstance(selector, str):
        return
    if isinstance(selector, Sequence) and all(isinstance(pattern, str) for pattern in selector):
        return
    raise TypeError(
        f"a selector is a glob, a list of globs, or a predicate on `Node`; got {selector!r}."
    )


# --- building ------------------------------------------------------------------------------------


class Argument(NamedTuple):
    """An input of the program: its name and whether it is differentiated."""

    name: str
    differentiated: bool


@dataclass(frozen=True, eq=False)
class _Fixed:
    """A number or an array that stands in the program itself."""

    val: Any
    aval: Any
    id: int = -1  # of a plain number among the arguments


@dataclass
class _Draft:
    """A node before its values have names. Operands are numbers of values, or `_Fixed`."""

    index: int
    seen: _names.Sight
    scope: str
    operands: tuple[Any, ...]
    outputs: tuple[int, ...]
    levels: tuple["_Level", ...]
    opened: bool


@dataclass
class _DraftCall:
    items: list["_Draft | _DraftCall"]
    operands: tuple[Any, ...]
    outputs: tuple[Any, ...]
    eqn: Any


@dataclass
class _Level:
    """A program before its values have names. `head` is the index of the node of its first input."""

    head: int
    inputs: tuple[int, ...]
    consts: tuple[int, ...]
    outputs: tuple[Any, ...]
    items: list[_Draft | _DraftCall]
    program: _jaxpr.Program

    @functools.cached_property
    def drafts(self) -> list[_Draft]:
        return list(_flat(self.items))


def _flat(items: list[_Draft | _DraftCall]) -> Iterator[_Draft]:
    for item in items:
        if isinstance(item, _DraftCall):
            yield from _flat(item.items)
        else:
            yield item


class Ends(NamedTuple):
    """What a derivative is taken between, where this is not from the arguments to the results.

    Attributes:
        sources: ids of the values differentiated.
        sinks: ids of the values whose derivative is asked for.
    """

    sources: frozenset[int]
    sinks: frozenset[int]


def build(
    program: _jaxpr.Program,
    arguments: Sequence[Argument],
    constants: Sequence[str | None] = (),
    function: str | None = None,
    home: str | None = None,
    scalars: Mapping[str, Any] | None = None,
    *,
    uncut: frozenset[int] = frozenset(),
    ends: Ends | None = None,
) -> Graph:
    """Build the graph of a program.

    Args:
        program: the traced program.
        arguments: one for each of its inputs.
        constants: names of the arrays it closes over, None where one has none.
        function: the name of the traced function.
        home: the file it stands in.
        scalars: arguments that are plain Python numbers. They stand in the program as literals, and are known
            again by the source: `x` in `w * x`.
        uncut: indices of nodes whose own rule sends nothing back, but another rule stands in for it.
        ends: what lies between these is active; by default what lies between the differentiated arguments
            and the results.
    """
    numbering = _Numbering(home, function, scalars or {})
    top = numbering.level(program, outermost=True)
    names = _name_values(top, arguments, constants, function, numbering.scalars)
    names |= {fixed.id: name for name, fixed in numbering.scalars.items()}
    if ends is None:
        pairs = zip(top.inputs, arguments, strict=True)
        sources = frozenset(id_ for id_, argument in pairs if argument.differentiated)
        ends = Ends(sources, frozenset(id_ for id_ in top.outputs if isinstance(id_, int)))
    active = _Activity(numbering.avals, uncut, ends).of(top)
    freezer = _Freezer(numbering.avals, names, active)
    graph = freezer.graph(top)
    if not numbering.scalars:
        return graph
    scalars = (freezer.scalar(fixed) for fixed in numbering.scalars.values())
    heads = (
        Node(numbering.take(1), "input", "", "", None, (), (value,)) for value in scalars
    )
    return replace(graph, fixed=tuple(heads))


class _Numbering:
    """First pass: numbers the variables of a program and of those nested in it."""

    def __init__(
        self, home: str | None, function: str | None, scalars: Mapping[str, Any]
    ) -> None:
        self.home, self.function = home, function
        self.avals: list[Any] = []
        self.count = 0
        self.scalars: dict[str, _Fixed] = {}
        for name, number in scalars.items():
            aval = _jaxpr.aval_of(number)
            self.avals.append(aval)
            self.scalars[name] = _Fixed(number, aval, len(self.avals) - 1)

    def take(self, count: int) -> int:
        """Reserve indices of nodes, in program order."""
        self.count += count
        return self.count - count

    def new(self, var: Any) -> int:
        self.avals.append(var.aval)
        return len(self.avals) - 1

    def level(
        self,
        program: _jaxpr.Program,
        scope: str = "",
        opened: bool = True,
        outermost: bool = False,
    ) -> _Level:
        jaxpr = program.jaxpr
        inputs = tuple(self.new(var) for var in jaxpr.invars)
        env: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        consts: tuple[int, ...] = ()
        if outermost:
            consts = tuple(self.new(var) for var in jaxpr.constvars)
            env.update(zip(jaxpr.constvars, consts, strict=True))
        else:
            env.update(_fixed(program))
        head = self.take(len(inputs) + len(consts))
        items = self.items(jaxpr, env, scope, (), opened)
        outputs = tuple(_read(env, atom) for atom in jaxpr.outvars)
        return _Level(head, inputs, consts, outputs, items, program)

    def items(
        self,
        jaxpr: Any,
        env: dict[Any, Any],
        scope: str,
        around: tuple[_jaxpr.Frame, ...],
        opened: bool,
    ) -> list[_Draft | _DraftCall]:
        items: list[_Draft | _DraftCall] = []
        for eqn in jaxpr.eqns:
            seen = _names.sight(eqn, around, self.home)
            inside = _names.clean_scope(scope, _jaxpr.scope_of(eqn))
            operands = tuple(_read(env, atom) for atom in eqn.invars)
            if self.scalars:
                operands = self.scalars_known(seen, operands)
            call = _jaxpr.inlined_program(eqn)
            if call is None:
                index = self.take(1)
                outputs = tuple(env.setdefault(var, self.new(var)) for var in eqn.outvars)
                levels, opens = self.nested(eqn, inside, opened)
                items.append(_Draft(index, seen, inside, operands, outputs, levels, opens))
                continue
            body_env = {**dict(zip(call.jaxpr.invars, operands, strict=True)), **_fixed(call)}
            name = _names.clean_scope(inside, str(eqn.params.get("name") or ""))
            body = self.items(call.jaxpr, body_env, name, seen.raw, opened)
            results = tuple(_read(body_env, atom) for atom in call.jaxpr.outvars)
            env.update(zip(eqn.outvars, results, strict=True))
            items.append(_DraftCall(body, operands, results, eqn))
        return items

    def scalars_known(self, seen: _names.Sight, operands: tuple[Any, ...]) -> tuple[Any, ...]:
        """Know plain numbers among the arguments again, by their name in the expression and their value."""
        words = _names.words(seen, self.function)
        found = {self.scalars[word] for word in words if word in self.scalars}

        def known(operand: Any) -> Any:
            if not isinstance(operand, _Fixed) or _jaxpr.shape_of(operand.aval) != ():
                return operand
            dtype = _jaxpr.dtype_of(operand.aval)
            same = [f for f in found if _jaxpr.same_number(f.val, operand.val, dtype)]
            return _Fixed(operand.val, operand.aval, same[0].id) if len(same) == 1 else operand

        return tuple(map(known, operands))

    def nested(self, eqn: Any, scope: str, opened: bool) -> tuple[tuple[_Level, ...], bool]:
        form = _jaxpr.opened_form(eqn)
        if form is None:
            programs = _jaxpr.nested_programs(eqn)
        else:
            programs = form.branches if isinstance(form, _jaxpr.Cond) else (form.body,)
        opens = opened and form is not None
        return tuple(self.level(program, scope, opens) for program in programs), opens


def _fixed(program: _jaxpr.Program) -> dict[Any, _Fixed]:
    pairs = zip(program.jaxpr.constvars, program.consts, strict=True)
    return {var: _Fixed(const, var.aval) for var, const in pairs}


def _read(env: dict[Any, Any], atom: Any) -> Any:
    return _Fixed(atom.val, atom.aval) if _jaxpr.is_literal(atom) else env[atom]


def _name_values(
    top: _Level,
    arguments: Sequence[Argument],
    constants: Sequence[str | None],
    function: str | None,
    scalars: Iterable[str],
) -> dict[int, str]:
    """Second pass: a unique name for each value."""
    unique = _names.Unique()
    for name in scalars:
        unique(name)
    names = {
        id_: unique(argument.name) for id_, argument in zip(top.inputs, arguments, strict=True)
    }
    given = [*constants, *(None,) * (len(top.consts) - len(constants))]
    names |= {id_: unique(name or "const") for id_, name in zip(top.consts, given, strict=True)}

    # Outer programs first: where a body and the code around it both have an `h`, the outer is plain `h`.
    queue: list[tuple[_Level, str | None]] = [(top, function)]
    for level, root in queue:
        assigned = _names.assigned_names([draft.seen for draft in level.drafts], root)
        for draft, found in zip(level.drafts, assigned, strict=True):
            primitive = _jaxpr.display_primitive(draft.seen.eqn)
            fallback = _names.fallback_name(draft.seen, draft.scope, primitive, function)
            several = len(draft.outputs) > 1
            for position, id_ in enumerate(draft.outputs):
                plain = f"{fallback}[{position}]" if several else fallback
                dropped = _jaxpr.is_dropped(draft.seen.eqn.outvars[position])
                names[id_] = "" if dropped else unique(found[position] or plain)
            for nested in draft.levels:
                queue.append((nested, None))
                for id_, name in zip(nested.inputs, _input_names(nested, primitive), strict=True):
                    names[id_] = unique(name)
    return names


def _input_names(level: _Level, primitive: str) -> list[str]:
    """Names of the inputs of a nested program: its function's arguments, under the function's name."""
    function = level.program.function_name
    prefix = function if function and function.isidentifier() else primitive
    names = level.program.argument_names or ("",) * len(level.inputs)
    return [f"{prefix}/{name or f'in[{i}]'}" for i, name in enumerate(names)]


# --- activity --------------------------------------------------------------------------------------


class _Activity:
    """Which values lie between the sources and the sinks of a derivative."""

    def __init__(self, avals: list[Any], uncut: frozenset[int], ends: Ends) -> None:
        self.avals, self.uncut, self.ends = avals, uncut, ends
        self.perturbed: set[Any] = set(ends.sources)
        self.reaching: set[Any] = set(ends.sinks)

    def of(self, top: _Level) -> set[int]:
        self.perturb(top)
        self.reach(top)
        return {id_ for id_ in self.perturbed & self.reaching if self.carries(id_)}

    def carries(self, id_: int) -> bool:
        aval = self.avals[id_]
        return _jaxpr.is_ref(aval) or _jaxpr.is_inexact(_jaxpr.dtype_of(aval))

    def perturb(self, level: _Level) -> None:
        """Add the values of a program whose tangents are not zero, as JAX's own rules have it."""
        for draft in level.drafts:
            moved = tuple(operand in self.perturbed for operand in draft.operands)
            if not any(moved) and not draft.levels:
                continue
            if draft.opened:
                self.perturb_nested(draft)
                continue
            if not any(moved):
                continue
            if draft.index in self.uncut:
                zero: tuple[bool, ...] = (False,) * len(draft.outputs)
            else:
                zero = _jaxpr.zero_tangents(draft.seen.eqn, moved)
            pairs = zip(draft.outputs, zero, strict=True)
            self.perturbed.update(id_ for id_, none in pairs if not none and self.carries(id_))
            # What is written into a reference comes out of it again.
            self.perturbed.update(
                id_
                for id_ in draft.operands
                if isinstance(id_, int) and _jaxpr.is_ref(self.avals[id_])
            )

    def perturb_nested(self, draft: _Draft) -> None:
        for level in draft.levels:
            self.perturbed.update(
                inner
                for outer, inner in _into(draft, level)
                if outer in self.perturbed and self.carries(inner)
            )
            self.perturb(level)
            # A carry that is moved in one step is moved in the next.
            while new := {
                into
                for out, into in _around(draft, level)
                if out in self.perturbed and into not in self.perturbed
            }:
                self.perturbed |= new
                self.perturb(level)
            self.perturbed.update(
                outer for inner, outer in _out_of(draft, level) if inner in self.perturbed
            )
        if draft.index in self.uncut:
            self.perturbed.update(id_ for id_ in draft.outputs if self.carries(id_))

    def reach(self, level: _Level) -> None:
        """Add the values of a program on which a sink depends."""
        for draft in reversed(level.drafts):
            if draft.opened:
                self.reach_nested(draft)
            elif draft.seen.eqn.effects or any(id_ in self.reaching for id_ in draft.outputs):
                self.reaching.update(draft.operands)

    def reach_nested(self, draft: _Draft) -> None:
        for level in draft.levels:
            self.reaching.update(
                inner for inner, outer in _out_of(draft, level) if outer in self.reaching
            )
            self.reach(level)
            while new := {
                out
                for out, into in _around(draft, level)
                if into in self.reaching and out not in self.reaching
            }:
                self.reaching |= new
                self.reach(level)
            self.reaching.update(
                outer for outer, inner in _into(draft, level) if inner in self.reaching
            )


def _into(draft: _Draft, level: _Level) -> Iterator[tuple[Any, int]]:
    """Pairs (operand of the node, input of its nested program)."""
    skip = 1 if isinstance(_jaxpr.opened_form(draft.seen.eqn), _jaxpr.Cond) else 0
    return zip(draft.operands[skip:], level.inputs, strict=True)


def _out_of(draft: _Draft, level: _Level) -> Iterator[tuple[Any, int]]:
    """Pairs (output of the nested program, output of the node)."""
    return zip(level.outputs, draft.outputs, strict=True)


def _around(draft: _Draft, level: _Level) -> Iterator[tuple[Any, int]]:
    """Pairs (output of the nested program, input it becomes in the next step)."""
    form = _jaxpr.opened_form(draft.seen.eqn)
    if not isinstance(form, _jaxpr.Scan):
        return iter(())
    carries = level.inputs[form.num_consts :][: form.num_carry]
    return zip(level.outputs, carries, strict=False)


# --- freezing --------------------------------------------------------------------------------------


class _Freezer:
    """Third pass: frozen nodes, numbered in program order."""

    def __init__(self, avals: list[Any], names: dict[int, str], active: set[int]) -> None:
        self.avals, self.names, self.active = avals, names, active

    @functools.lru_cache(maxsize=None)  # noqa: B019
    def value(self, id_: int) -> Value:
        aval = self.avals[id_]
        return Value(
            name=self.names[id_],
            shape=_jaxpr.shape_of(aval),
            dtype=_jaxpr.dtype_of(aval),
            active=id_ in self.active,
            id=id_,
            aval=aval,
        )

    def atom(self, atom: Any) -> Value:
        if isinstance(atom, int):
            return self.value(atom)
        if atom.id >= 0:
            return self.scalar(atom)
        shape = _jaxpr.shape_of(atom.aval)
        name = f"{atom.val}" if shape == () else spell_type(_jaxpr.dtype_of(atom.aval), shape)
        return Value(name, shape, _jaxpr.dtype_of(atom.aval), False, -1, atom.val, atom.aval)

    def scalar(self, fixed: _Fixed) -> Value:
        dtype = _jaxpr.dtype_of(fixed.aval)
        return Value(self.names[fixed.id], (), dtype, False, fixed.id, fixed.val, fixed.aval)

    def graph(self, level: _Level) -> Graph:
        kinds = ("input",) * len(level.inputs) + ("const",) * len(level.consts)
        heads = tuple(
            Node(level.head + i, kind, "", "", None, (), (self.value(id_),))
            for i, (kind, id_) in enumerate(zip(kinds, level.inputs + level.consts, strict=True))
        )
        return Graph(
            inputs=tuple(map(self.value, level.inputs)),
            consts=tuple(map(self.value, level.consts)),
            outputs=tuple(map(self.atom, level.outputs)),
            items=self.items(level.items),
            heads=heads,
        )

    def items(self, drafts: list[_Draft | _DraftCall]) -> tuple[Node | Call, ...]:
        return tuple(
            self.call(draft) if isinstance(draft, _DraftCall) else self.node(draft)
            for draft in drafts
        )

    def call(self, draft: _DraftCall) -> Call:
        return Call(
            items=self.items(draft.items),
            operands=tuple(map(self.atom, draft.operands)),
            outputs=tuple(map(self.atom, draft.outputs)),
            eqn=draft.eqn,
        )

    def node(self, draft: _Draft) -> Node:
        label, source = _names.label_and_source(draft.seen)
        return Node(
            index=draft.index,
            primitive=_jaxpr.display_primitive(draft.seen.eqn),
            scope=draft.scope,
            label=label,
            source=source,
            operands=tuple(map(self.atom, draft.operands)),
            outputs=tuple(map(self.value, draft.outputs)),
            graphs=tuple(map(self.graph, draft.levels)),
            opened=draft.opened,
            eqn=draft.seen.eqn,
        )


# --- text ------------------------------------------------------------------------------------------

_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def spell_type(dtype: Any, shape: tuple[int, ...]) -> str:
    """Write a type as JAX does: `f32[2,3]`."""
    text = re.sub(
        r"^(bfloat|float|uint|int|complex)(?=\d)", lambda m: _SHORT[m[1]], str(dtype or "ref")
    )
    return f"{text}[{','.join(map(str, shape))}]"


def table(graph: Graph) -> str:
    """The graph as a table: one row a node, nested graphs indented."""
    rows = [("node", "type", "operation", "source", "")]
    rows += _rows(graph, 0)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    outputs = ", ".join(value.name for value in graph.outputs)
    return "\n".join((*lines, f"returns {outputs}"))


def _rows(graph: Graph, depth: int) -> Iterator[tuple[str, str, str, str, str]]:
    indent = "  " * depth
    for node in graph.nodes:
        operation = node.primitive
        if node.operands:
            operation += f"({', '.join(value.name for value in node.operands)})"
        yield (
            indent + ", ".join(name or "_" for name in node.names),
            ", ".join(spell_type(value.dtype, value.shape) for value in node.outputs),
            operation if len(operation) <= 60 else operation[:57] + "...",
            str(node.source or ""),
            "active" if node.active else "",
        )
        for nested in node.graphs:
            yield from _rows(nested, depth + 1)
