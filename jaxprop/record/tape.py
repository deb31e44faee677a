"""The record of one forward and backward pass. Reading it evaluates nothing but local gradients."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from .._text import in_columns, notebook_html, type_name
from ..core.graph import Graph, Node, Value, inner_operations
from ..core.interpreter import Plan
from ..core.rules import Rule
from ..core.selectors import Selector, select
from ..core.structure import producers, statements_with
from ..core.types import Array, NodeIndex, Position, PyTree, ValueId
from .aliases import BACKWARD, FORWARD, Site
from .batching import Row, on_host, pick
from .brief import brief, size
from .contributions import Contributions, Shares
from .kept import Kept
from .local_gradient import LocalGradient, local_gradient


@dataclass(frozen=True)
class Entry:
    """What a tape holds of one value.

    Inside a scan every array has the step axis first (outer scans first).

    Attributes:
        name: the value's name.
        node: the node of the graph that produces it.
        value: the value itself, or what the recorder recorded of it; None where it was not recorded.
        cotangent: `d loss / d value`, summed over all its consumers, in units of the loss per unit of the
            value; or what the recorder recorded of it. None where no cotangent arrives.
        forward, backward: all that the recorder recorded at the node in the forward and in the backward pass.
        taken: inside a branch of a `cond`, whether the branch was taken (one for each step inside a scan);
            values and cotangents of a branch that was not taken are zeros. None elsewhere.
    """

    name: str
    node: Node
    value: PyTree
    cotangent: PyTree
    forward: PyTree
    backward: PyTree
    taken: Array | None = None

    def _repr_html_(self) -> str:
        return notebook_html(self)

    def __repr__(self) -> str:
        return f"Entry({self.name}: value={brief(self.value)}, cotangent={brief(self.cotangent)})"


@dataclass(frozen=True)
class Static:
    """The part of a tape that is not arrays: compared by structure, so that tapes cross jit boundaries.

    Attributes:
        graph: the program.
        rules: the rules of the pass, by index of the node.
        watched: indices of the nodes that were recorded.
        where: where each record is.
        is_full: whether values and cotangents were kept unchanged.
    """

    graph: Graph
    rules: tuple[tuple[NodeIndex, Rule], ...]
    watched: frozenset[NodeIndex]
    where: tuple[tuple[Site, Row], ...]
    is_full: bool


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Tape:
    """The record of one forward and backward pass.

    A pytree: it can be returned from `jax.jit` and passed to a jitted function. Iterating gives entries in
    forward order, `reversed` in backward order.

    Attributes:
        value: what the function returned, without `aux`.
        aux: its auxiliary data, None without `has_aux`.
        grads: the gradient, in the structure of the differentiated arguments, as `jax.grad` gives it.
        seed: the cotangents of the outputs that the backward pass started from.
    """

    value: PyTree
    aux: PyTree
    grads: PyTree
    seed: Sequence[Array | None]
    _records: list[PyTree]
    _values: dict[ValueId, Array]
    _branches: dict[NodeIndex, Array]
    _static: Static = field(repr=False)

    _CHILDREN = ("value", "aux", "grads", "seed", "_records", "_values", "_branches")

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[object, PyTree], ...], Static]:
        keys = (jax.tree_util.GetAttrKey(name.lstrip("_")) for name in self._CHILDREN)
        children = (getattr(self, name) for name in self._CHILDREN)
        return tuple(zip(keys, children, strict=True)), self._static

    def tree_flatten(self) -> tuple[tuple[PyTree, ...], Static]:
        return tuple(getattr(self, name) for name in self._CHILDREN), self._static

    @classmethod
    def tree_unflatten(cls, static: Static, children: Sequence[PyTree]) -> "Tape":
        return cls(*children, _static=static)

    @property
    def graph(self) -> Graph:
        """The computational graph."""
        return self._static.graph

    @property
    def is_full(self) -> bool:
        """Whether values and cotangents were kept unchanged: local gradients and shares need them."""
        return self._static.is_full

    @property
    def ruled(self) -> frozenset[NodeIndex]:
        """Indices of the nodes whose cotangents propagated by a rule in place of the chain rule."""
        return frozenset(index for index, _ in self._static.rules)

    # --- entries -------------------------------------------------------------------------------------

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the recorded values, in forward order."""
        return tuple(
            value.name
            for node in self.graph.walk()
            for value in node.outputs
            if value.name and self._holds(node, value)
        )

    @functools.cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self.names)

    def _holds(self, node: Node, value: Value) -> bool:
        return node.index in self._static.watched or value.id in self._values or value.id in self._numbers

    @functools.cached_property
    def _numbers(self) -> frozenset[ValueId]:
        """Ids of the plain numbers among the arguments that the recorded nodes read."""
        nodes = (self.graph.by_index[index] for index in self._static.watched) if self.is_full else ()
        return frozenset(v.id for node in nodes for v in node.operands if v.literal is not None and v.id >= 0)

    def __getitem__(self, name: str) -> Entry:
        value = self.graph.value(name)
        node = self.graph[name]
        kept = self.value_of(value)
        if node.index not in self._static.watched and kept is None and value.literal is None:
            raise KeyError(
                f"{name!r} is in the graph but was not recorded: "
                + (
                    "it is not matched by `nodes=`."
                    if value.active
                    else "no cotangent can reach it. Name it in `nodes=` to record its value."
                )
            )
        position = Position(node.names.index(name))
        forward, backward = (self._record_of(half, node.index, position) for half in (FORWARD, BACKWARD))
        of_value, of_cotangent = (self._record(half, node.index, position) for half in (FORWARD, BACKWARD))
        return Entry(
            name=name,
            node=node,
            value=of_value if kept is None else kept,
            cotangent=of_cotangent,
            forward=kept if forward is None else forward,
            backward=backward,
            taken=self._taken(node),
        )

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Entry]:
        return (self[name] for name in self.names)

    def __reversed__(self) -> Iterator[Entry]:
        return (self[name] for name in reversed(self.names))

    def find(self, selector: Selector) -> list[Entry]:
        """The entries of the nodes a selector matches, in forward order."""
        matched = {node.index for node in select(self.graph, selector)}
        return [entry for entry in self if entry.node.index in matched]

    def _repr_html_(self) -> str:
        return notebook_html(self)

    def __repr__(self) -> str:
        return f"Tape(value={brief(self.value)}, {len(self)} entries)"

    def __str__(self) -> str:
        return self.table()

    def table(self, operations: bool = False) -> str:
        """Write the tape as a table: numbers for scalars, norms for arrays.

        Args:
            operations: whether to show every recorded operation. By default the statements are shown: an
                operation without a variable is part of the statement that reads it.
        """
        shown = [entry for entry in self if operations or not self._is_inside(entry.node)]
        rows = [("value", "type", "|value|", "|cotangent|", "expression", "source")]
        for entry in shown:
            value = self.graph.value(entry.name)
            rows.append(
                (
                    entry.name,
                    type_name(value.dtype, value.shape),
                    size(entry.value),
                    size(entry.cotangent),
                    entry.node.expression or entry.node.primitive,
                    str(entry.node.source or ""),
                )
            )
        hidden = len(self) - len(shown)
        return in_columns(rows) + (f"\n{inner_operations(hidden)}" if hidden else "")

    def _is_inside(self, node: Node) -> bool:
        """Whether a node is part of recorded statements that it does not end."""
        ends = statements_with(self.graph).get(node.index, ())
        return bool(ends) and all(s.node is not node and s.node.index in self._static.watched for s in ends)

    # --- records, values and cotangents ----------------------------------------------------------------

    def record_at(self, index: NodeIndex, half: str = BACKWARD) -> PyTree:
        """What was recorded at the node of this index as a whole, in the backward or in the forward pass."""
        return self._record(half, index, None)

    def _record_of(self, half: str, index: NodeIndex, position: Position) -> PyTree:
        """The record of an output; where the recorder records nodes as a whole, that of the node."""
        record = self._record(half, index, position)
        return self._record(half, index, None) if record is None else record

    def _record(self, half: str, index: NodeIndex, position: Position | None) -> PyTree:
        """A record; None where nothing was recorded or no cotangent arrived."""
        row = self._where.get(Site(half, index, position))
        if row is None:
            return None
        if row.row is None:
            return self._records[row.group]
        if row.group not in self._hosted:
            self._hosted[row.group] = on_host(self._records[row.group])
        return pick(self._hosted[row.group], row.row)

    @functools.cached_property
    def _where(self) -> Mapping[Site, Row]:
        return dict(self._static.where)

    @functools.cached_property
    def _hosted(self) -> dict[int, PyTree]:
        """Groups of records that were read, on the host."""
        return {}

    def value_of(self, value: Value, step: tuple[int, ...] = ()) -> Array | None:
        """A value as the forward pass kept it; None where it was not kept.

        Args:
            value: a value of the graph.
            step: of the loops around it, outermost first, which step; by default all of them are returned.
        """
        return self._kept.at(value, step)

    def cotangent_of(self, value: Value, step: tuple[int, ...] = ()) -> Array | None:
        """A cotangent as the backward pass kept it, `step` as in `value_of`; None where none arrives.

        Raises:
            ValueError: it was not recorded.
        """
        node = producers(self.graph)[value.id]
        position = Position([v.id for v in node.outputs].index(value.id))
        ct = self._record(BACKWARD, node.index, position)
        if ct is None and value.active and node.index not in self._static.watched:
            raise ValueError(f"the cotangent of {value.name!r} was not recorded; add it to `nodes=`.")
        return ct[step] if step and ct is not None else ct

    @functools.cached_property
    def _kept(self) -> Kept:
        return Kept(self.graph, self._values)

    def _taken(self, node: Node) -> Array | None:
        """Whether the branches around a node were taken, one for each step; None outside of branches."""
        place = self.graph.places[node.index]
        taken = None
        for parent, number in place.parents:
            index = self._branches.get(parent.index)
            if index is None:
                continue
            mine = jnp.asarray(index) == number
            mine = mine.reshape(mine.shape + (1,) * (len(place.steps) - mine.ndim))
            taken = mine if taken is None else taken & mine
        return taken

    # --- local gradients -----------------------------------------------------------------------------

    def local(self, of: str, wrt: str, direct: bool = False) -> LocalGradient:
        """The local gradient `d of / d wrt` at the recorded point.

        `wrt` is an operand of `of`, or further back in the same graph: then the nodes between them are
            composed,
        along all paths from the one to the other.

        Args:
            of: name of the value that is differentiated.
            wrt: name of the value it is differentiated with respect to.
            direct: count only the operation that produces `of`, which reads `wrt` itself: the edge of the
                graph.

        Raises:
            KeyError: there is no such name.
            ValueError: `of` does not depend on `wrt`; they are in different bodies; or values between them were
                not recorded.

        Examples:
            >>> import jaxprop as jp
            >>> def loss(w, x, y):
            ...     y_hat = w * x
            ...     s = y_hat - y
            ...     return s**2
            >>> tape = jp.backprop(loss)(1.0, 1.0, 2.0)
            >>> tape.local("loss", wrt="s")
            d loss/d s = -2
        """
        target, source = self.graph.value(of), self.graph.value(wrt)
        return local_gradient(self._kept, target, source, direct, self._hint)

    def shares(self, name: str) -> Shares:
        """The contributions to the cotangent of a value, by the node that reads it. They sum to the cotangent.

            ct[h] = sum over consumers c of out_cts[c] . (d c / d h)

        The result of the function itself counts as a consumer, `output`; inside a body so does what leaves it:
        `next step` for a carry, `output` for the rest.

        Raises:
            KeyError: there is no such name.
            ValueError: cotangents were not kept (only `record=None` keeps them), or none reaches the value.
        """
        value = self.graph.value(name)
        if not self.is_full:
            raise ValueError("shares need values and cotangents unchanged: use record=None.")
        plan = Plan(self.graph, rules=dict(self._static.rules))
        of = Contributions(plan, self._kept, self.cotangent_of, self._taken, self.seed, self._hint)
        return of.to(value)

    @property
    def _hint(self) -> str:
        """What to do where a value was not kept."""
        if self.is_full:
            return "name it in `nodes=`."
        return "`record=` keeps no operands: use record=None."
