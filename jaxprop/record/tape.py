"""The record of one forward and backward pass. It runs nothing but what local gradients ask for."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .._text import in_columns, type_name
from ..core.aliases import BACK, OUT, Site
from ..core.graph import Graph, Node, Place, Selector, Value, select
from ..core.interpreter import Plan, Sweep
from ..core.local import LocalGradient, evaluate
from ..core.rules import Recorder, Rule
from ..core.structure import between, makers, outside
from ..core.types import Array, PyTree
from .batching import Row, on_host, pick


@dataclass(frozen=True)
class Entry:
    """What a tape holds of one value.

    Inside a scan every array carries the step axis first (outer scans first).

    Attributes:
        name: the value's name.
        node: the node of the graph that makes it.
        value: the value itself, or what the recorder wrote of it; None where it was not recorded.
        cotangent: `d loss / d value`, summed over all its readers, in units of the loss per unit of the value;
            or what the recorder wrote of it. None where no cotangent comes.
        forward, backward: all that the recorder wrote at the node on the way out, and on the way back.
        taken: inside a branch of a `cond`, whether the branch was taken (one for each step inside a scan);
            values and cotangents of a branch not taken are zeros. None elsewhere.
    """

    name: str
    node: Node
    value: Any
    cotangent: Any
    forward: PyTree
    backward: PyTree
    taken: Any = None

    def __repr__(self) -> str:
        return f"Entry({self.name}: value={_brief(self.value)}, cotangent={_brief(self.cotangent)})"


def _type_of(entry: Entry) -> tuple[Any, tuple[int, ...]]:
    value = entry.node.outputs[entry.node.names.index(entry.name)]
    return value.dtype, value.shape


def _size(x: Any) -> str:
    """A number as it is, an array by its norm, a `Summary` by the norm in it; nothing for what is not there."""
    x = getattr(x, "norm", x)
    if x is None or _jaxpr.is_tracer(x) or not hasattr(x, "dtype") and not isinstance(x, float | int):
        return ""
    if _jaxpr.is_key(x):
        return "key"
    if np.ndim(x) == 0:
        return f"{np.asarray(x).item():.6g}"
    return f"{float(np.linalg.norm(np.asarray(x).astype(complex).ravel())):.6g} (norm)"


def _brief(x: Any) -> str:
    if x is None:
        return "None"
    if isinstance(x, jax.Array) and not _jaxpr.is_tracer(x) and x.ndim == 0:
        return f"{x}"
    if isinstance(x, jax.Array):
        return f"{x.dtype}{list(x.shape)}"
    return type(x).__name__


class Shares(Mapping[str, Any]):
    """The parts of a value's cotangent, by reader. They sum to it.

    Attributes:
        total: their sum, the cotangent of the value.
        cancellation: `|sum of shares| / sum of |shares|` in 2-norms, between 0 (they cancel out) and 1 (they
            all point one way). One for each step inside a scan.
    """

    def __init__(self, shares: Mapping[str, Any], steps: int) -> None:
        self._shares = dict(shares)
        self._steps = steps

    def __getitem__(self, reader: str) -> Any:
        if reader not in self._shares:
            raise KeyError(f"{reader!r} does not read the value. Readers: {', '.join(self._shares)}.")
        return self._shares[reader]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shares)

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def total(self) -> Any:
        return functools.reduce(jnp.add, self._shares.values())

    @property
    def cancellation(self) -> Any:
        def norm(x: Any) -> Any:
            axes = tuple(range(self._steps, jnp.ndim(x)))
            return jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=axes))

        parts = functools.reduce(jnp.add, map(norm, self._shares.values()))
        return jnp.where(parts > 0, norm(self.total) / jnp.where(parts > 0, parts, 1), 1.0)

    def __repr__(self) -> str:
        parts = ", ".join(f"{reader}: {_brief(share)}" for reader, share in self.items())
        return f"Shares({parts})"


@dataclass(frozen=True)
class Static:
    """The part of a tape that is no array: compared by structure, so that tapes cross jit boundaries."""

    graph: Graph
    recorder: Recorder
    rules: tuple[tuple[int, Rule], ...]
    watched: frozenset[int]
    where: tuple[tuple[Site, Row], ...]


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Tape:
    """The record of one forward and backward pass.

    A pytree: it can be returned from `jax.jit` and handed to a jitted function. Iterating gives entries in
    forward order, `reversed` in backward order.

    Attributes:
        value: what the function returned, without `aux`.
        aux: its auxiliary data, None without `has_aux`.
        grads: the gradient, in the structure of the differentiated arguments, as `jax.grad` gives it.
        seed: the cotangents of the outputs the backward pass began with.
    """

    value: Any
    aux: Any
    grads: Any
    seed: Any
    _records: list[PyTree]
    _values: dict[int, Any]
    _branches: dict[int, Any]
    _static: Static = field(repr=False)

    _CHILDREN = ("value", "aux", "grads", "seed", "_records", "_values", "_branches")

    def tree_flatten_with_keys(self) -> Any:
        keys = (jax.tree_util.GetAttrKey(name.lstrip("_")) for name in self._CHILDREN)
        children = (getattr(self, name) for name in self._CHILDREN)
        return tuple(zip(keys, children, strict=True)), self._static

    def tree_flatten(self) -> Any:
        return tuple(getattr(self, name) for name in self._CHILDREN), self._static

    @classmethod
    def tree_unflatten(cls, static: Static, children: Any) -> "Tape":
        return cls(*children, _static=static)

    @property
    def graph(self) -> Graph:
        """The computational graph."""
        return self._static.graph

    @property
    def is_full(self) -> bool:
        """Whether values and cotangents were kept as they are: local gradients and shares need them."""
        return self._static.recorder.keeps_operands

    @property
    def ruled(self) -> frozenset[int]:
        """Indices of the nodes whose cotangents crossed by a rule in place of the chain rule."""
        return frozenset(index for index, _ in self._static.rules)

    # --- looking up ----------------------------------------------------------------------------------

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the recorded values, in forward order."""
        return tuple(
            value.name
            for node in self.graph.walk()
            for value in node.outputs
            if value.name and self._holds(node, value)
        )

    def _holds(self, node: Node, value: Value) -> bool:
        return node.index in self._static.watched or value.id in self._values or value.id in self._numbers

    @functools.cached_property
    def _numbers(self) -> frozenset[int]:
        """Ids of the plain numbers among the arguments that the recorded nodes read."""
        if not self._static.recorder.keeps_operands:
            return frozenset()
        return frozenset(
            value.id
            for index in self._static.watched
            for value in self.graph.by_index[index].operands
            if value.literal is not None and value.id >= 0
        )

    def __getitem__(self, name: str) -> Entry:
        node = self.graph[name]
        position = node.names.index(name)
        value = node.outputs[position]
        seen = node.index in self._static.watched
        kept = self._value_of(value)
        if not seen and kept is None and value.literal is None:
            raise KeyError(
                f"{name!r} is in the graph but was not recorded: "
                + (
                    "`nodes=` does not pick it."
                    if value.active
                    else "no cotangent can reach it. Name it in `nodes=` to record its value."
                )
            )
        site = position if self._static.recorder.per_value else None
        forward = self._record(OUT, node.index, site)
        backward = self._record(BACK, node.index, site)
        if site is not None and kept is not None:
            forward = kept
        return Entry(
            name=name,
            node=node,
            value=forward if site is not None else kept,
            cotangent=backward if site is not None else None,
            forward=forward,
            backward=backward,
            taken=self._taken(node),
        )

    @functools.cached_property
    def _where(self) -> Mapping[Site, Row]:
        return dict(self._static.where)

    def record_at(self, index: int) -> PyTree:
        """What a recorder of whole nodes wrote on the way back at the node of this number."""
        return self._record(BACK, index, None)

    def _record(self, half: str, index: int, position: int | None) -> PyTree:
        """What the recorder wrote there, None where it wrote nothing or no cotangent came."""
        row = self._where.get((half, index, position))
        if row is None:
            return None
        if row.row is None:
            return self._records[row.group]
        if row.group not in self._hosted:
            self._hosted[row.group] = on_host(self._records[row.group])
        return pick(self._hosted[row.group], row.row)

    @functools.cached_property
    def _hosted(self) -> dict[int, PyTree]:
        """Groups of records that were read, as they are on the host."""
        return {}

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Entry]:
        return (self[name] for name in self.names)

    def __reversed__(self) -> Iterator[Entry]:
        return (self[name] for name in reversed(self.names))

    def find(self, selector: Selector) -> list[Entry]:
        """The entries of the nodes a selector picks, in forward order."""
        picked = {node.index for node in select(self.graph, selector)}
        return [entry for entry in self if entry.node.index in picked]

    def __repr__(self) -> str:
        return f"Tape(value={_brief(self.value)}, {len(self)} entries)"

    def __str__(self) -> str:
        """The tape as a table: numbers for scalars, norms for arrays."""
        rows = [("value", "type", "|value|", "|cotangent|", "operation", "source")]
        rows += [
            (
                entry.name,
                type_name(*_type_of(entry)),
                _size(entry.value),
                _size(entry.cotangent),
                entry.node.label or entry.node.primitive,
                str(entry.node.source or ""),
            )
            for entry in self
        ]
        return in_columns(rows)

    # --- values --------------------------------------------------------------------------------------

    def _value_of(self, value: Value) -> Any:
        """A value as it was, where it was kept: else None. A loop's constant stands outside the loop."""
        if value.literal is not None:
            return value.literal
        if value.id in self._values:
            return self._values[value.id]
        outer = self._outside(value)
        return None if outer is None else self._value_of(outer)

    def _outside(self, value: Value) -> Value | None:
        return outside(self.graph).get(value.id)

    def _axes_of(self, value: Value) -> int:
        """How many step axes a kept value has."""
        if value.literal is not None:
            return 0
        if value.id in self._values:
            return len(self.graph.places[self._maker(value).index].steps)
        outer = self._outside(value)
        return 0 if outer is None else self._axes_of(outer)

    def _maker(self, value: Value) -> Node:
        return makers(self.graph)[value.id]

    def _taken(self, node: Node) -> Any:
        steps = self.graph.places[node.index].steps
        taken = None
        for parent, number in self.graph.places[node.index].parents:
            index = self._branches.get(parent.index)
            if index is None:
                continue
            mine = jnp.asarray(index) == number
            mine = mine.reshape(mine.shape + (1,) * (len(steps) - mine.ndim))
            taken = mine if taken is None else taken & mine
        return taken

    # --- local gradients -----------------------------------------------------------------------------

    def local(self, of: str, wrt: str, direct: bool = False) -> LocalGradient:
        """The local gradient `d of / d wrt` at the recorded point.

        `wrt` is an operand of `of`, or further back in the same graph: then the nodes between are composed, all
        ways from the one to the other counted.

        Args:
            of: name of the value differentiated.
            wrt: name of the value it is differentiated by.
            direct: count only the operation that makes `of`, which reads `wrt` itself: the edge of the graph.

        Raises:
            KeyError: there is no such name.
            ValueError: `of` is not made from `wrt`; they stand in different bodies; or values between them were
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
        place = self.graph.places[self._maker(target).index]
        if place.graph is not self.graph.places[self._maker(source).index].graph:
            raise ValueError(
                f"{of!r} and {wrt!r} stand in different bodies. A local gradient joins values of one body; use "
                "`jaxprop.derivative` across bodies."
            )
        path = between(place.graph, source, target)
        if direct:
            path = [node for node in path[-1:] if any(v.id == source.id for v in node.operands)]
        if not path:
            raise ValueError(f"{of!r} is not made from {wrt!r}: there is no local gradient between them.")
        made = {value.id for node in path for value in node.outputs}
        held = list(
            {
                operand.id: operand
                for node in path
                for operand in node.operands
                if operand.id not in made and operand.id != source.id and operand.literal is None
            }.values()
        )
        point = self._needed(source, path[-1])
        values = [self._needed(value, path[-1]) for value in held]
        axes = len(place.steps)
        self._check_shape(source, point, self._axes_of(source))
        if self._axes_of(source) < axes:  # a constant of the loop
            point = jnp.broadcast_to(point, (*place.steps, *jnp.shape(point)))

        def fun(x: Any, others: Sequence[Any]) -> Any:
            env = {source.id: x} | {v.id: o for v, o in zip(held, others, strict=True)}
            for node in path:
                operands = [o.literal if o.literal is not None else env[o.id] for o in node.operands]
                if source.literal is not None:
                    operands = [
                        x if o.id == source.id else y for o, y in zip(node.operands, operands, strict=True)
                    ]
                env |= zip((v.id for v in node.outputs), evaluate(node, operands), strict=True)
            return env[target.id]

        return LocalGradient(
            of=of,
            wrt=wrt,
            out_shape=target.shape,
            out_dtype=target.dtype,
            in_shape=source.shape,
            steps=place.steps,
            _fun=fun,
            _point=jnp.asarray(point),
            _held=values,
            _held_axes=[self._axes_of(value) for value in held],
            path=tuple(path),
            ends=(target, source),
        )

    def _needed(self, value: Value, reader: Node) -> Any:
        x = self._value_of(value)
        if x is None:
            hint = (
                "`record=` keeps no operands: use record=None."
                if not self._static.recorder.keeps_operands
                else f"add {value.name!r} to `nodes=`."
            )
            raise ValueError(
                f"the local gradient of {reader.where} needs the value of {value.name!r}, which was not "
                f"recorded; {hint}"
            )
        return x

    def _check_shape(self, value: Value, x: Any, axes: int) -> None:
        if jnp.shape(x)[axes:] != value.shape or jnp.ndim(x) != axes + len(value.shape):
            raise ValueError(
                f"the value of {value.name!r} on this tape has shape {jnp.shape(x)}, the graph says "
                f"{value.shape}: the tape went through `vmap`. Map over it: "
                "`jax.vmap(lambda tape: tape.local(...).vjp(...))(tape)`."
            )

    def shares(self, name: str) -> Shares:
        """The parts of the cotangent of a value, by the node that reads it. They sum to the cotangent.

            ct[h] = sum over readers r of out_cts[r] . (d r / d h)

        The result of the function itself counts as a reader, `output`; inside a body so does what leaves it:
        `next step` for a carry, `output` for the rest.

        Raises:
            KeyError: there is no such name.
            ValueError: cotangents were not kept (only `record=None` keeps them).
        """
        value = self.graph.value(name)
        if not self._static.recorder.keeps_operands:
            raise ValueError("shares need values and cotangents as they are: use record=None.")
        nothing = f"no cotangent comes to {name!r}: nothing that reads it reaches the output."
        if not value.active:
            raise ValueError(nothing)
        place = self.graph.places[self._maker(value).index]
        found: dict[str, Any] = {}
        for node in place.graph.equations():
            if any(operand.id == value.id for operand in node.operands):
                share = self._share_of(node, value, place)
                if share is not None:
                    found[node.name or node.primitive] = share
        found |= self._shares_leaving(value, place)
        if not found:
            raise ValueError(nothing)
        return Shares(found, len(place.steps))

    def _share_of(self, node: Node, value: Value, place: Place) -> Any:
        cts = [self._cotangent_of(v) for v in node.outputs]
        if all(ct is None for ct in cts) or not node.active:
            return None
        operands = [self._needed(v, node) for v in node.operands]
        axes = [self._axes_of(v) for v in node.operands]
        positions = [i for i, v in enumerate(node.operands) if v.id == value.id]
        filled = [
            ct if ct is not None else jnp.zeros((*place.steps, *v.shape), v.dtype)
            for ct, v in zip(cts, node.outputs, strict=True)
            if _jaxpr.is_inexact(v.dtype)
        ]

        def pull(operands: list[Any], cts: list[Any]) -> Any:
            def of(x: Any) -> list[Any]:
                full = [x if i in positions else o for i, o in enumerate(operands)]
                outputs, _ = Sweep(self._plan).step(node, full, {})
                return [o for o, v in zip(outputs, node.outputs, strict=True) if _jaxpr.is_inexact(v.dtype)]

            return jax.vjp(of, operands[positions[0]])[1](cts)[0]

        for level in reversed(range(len(place.steps))):
            in_axes = [0 if count > level else None for count in axes]
            pull = jax.vmap(pull, in_axes=(in_axes, 0))
        return pull(operands, filled)

    @functools.cached_property
    def _plan(self) -> Plan:
        """What one node is run by once more: its rules, nothing watched."""
        return Plan(self.graph, rules=dict(self._static.rules))

    def _cotangent_of(self, value: Value) -> Any:
        node = self._maker(value)
        position = [v.id for v in node.outputs].index(value.id)
        ct = self._record(BACK, node.index, position)
        if ct is None and value.active and node.index not in self._static.watched:
            raise ValueError(f"the cotangent of {value.name!r} was not recorded; add it to `nodes=`.")
        return ct

    def _shares_leaving(self, value: Value, place: Place) -> dict[str, Any]:
        """The shares of a value that leaves its graph as a result."""
        positions = [i for i, out in enumerate(place.graph.outputs) if out.id == value.id]
        if not place.parents:
            cts = [self.seed[i] for i in positions if self.seed[i] is not None]
            return {"output": functools.reduce(jnp.add, cts)} if cts else {}
        parent, _ = place.parents[-1]
        form = _jaxpr.opened_form(parent.eqn)
        found: dict[str, Any] = {}
        for position in positions:
            ct = self._cotangent_of(parent.outputs[position])
            if isinstance(form, _jaxpr.Scan) and position < form.num_carry:
                share = self._share_of_next_step(form, place, position, ct)
                if share is not None:
                    found["next step"] = share
            elif ct is not None:
                taken = self._taken(self._maker(value)) if isinstance(form, _jaxpr.Cond) else None
                if taken is not None:
                    mask = taken.reshape(taken.shape + (1,) * (ct.ndim - taken.ndim))
                    ct = jnp.where(mask, ct, jnp.zeros_like(ct))
                found["output"] = found["output"] + ct if "output" in found else ct
        return found

    def _share_of_next_step(self, form: _jaxpr.Scan, place: Place, position: int, last: Array | None) -> Any:
        """What comes to a carry from the step after: there it is an input. After the last, from outside."""
        into = place.graph.inputs[form.num_consts + position]
        ct = self._cotangent_of(into)
        if ct is None and last is None:
            return None
        axis = len(place.steps) - 1
        if ct is None:  # the next step does not read it: only from outside something comes
            ct = jnp.zeros((*place.steps, *into.shape), into.dtype)
        if last is None:
            last = jnp.zeros(ct.shape[:axis] + ct.shape[axis + 1 :], ct.dtype)
        last = jnp.expand_dims(last, axis)
        length = form.length
        if form.reverse:
            return jnp.concatenate([last, jax.lax.slice_in_dim(ct, 0, length - 1, axis=axis)], axis)
        return jnp.concatenate([jax.lax.slice_in_dim(ct, 1, length, axis=axis), last], axis)
