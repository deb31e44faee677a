"""The contributions to the cotangent of a value, by consumer."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .. import _jaxpr
from ..core.control_flow import Recorded
from ..core.graph import Node, Place, Value
from ..core.interpreter import Interpreter, Plan
from ..core.structure import producers
from ..core.types import Array, Steps
from .brief import brief
from .kept import Kept


class Shares(Mapping[str, Array]):
    """The contributions to a value's cotangent, by the node that reads it. They sum to the cotangent.

    Attributes:
        total: their sum, the cotangent of the value.
        cancellation: `|sum of contributions| / sum of |contributions|` in 2-norms, between 0 (they cancel out)
            and 1 (they all have one direction). One for each step inside a scan.
    """

    def __init__(self, shares: Mapping[str, Array], steps: int) -> None:
        self._shares = dict(shares)
        self._steps = steps

    def __getitem__(self, consumer: str) -> Array:
        if consumer not in self._shares:
            raise KeyError(f"{consumer!r} does not read the value. Consumers: {', '.join(self._shares)}.")
        return self._shares[consumer]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shares)

    def __len__(self) -> int:
        return len(self._shares)

    @property
    def total(self) -> Array:
        return functools.reduce(jnp.add, self._shares.values())

    @property
    def cancellation(self) -> Array:
        def norm(x: Array) -> Array:
            axes = tuple(range(self._steps, jnp.ndim(x)))
            return jnp.sqrt(jnp.sum(jnp.abs(x) ** 2, axis=axes))

        parts = functools.reduce(jnp.add, map(norm, self._shares.values()))
        return jnp.where(parts > 0, norm(self.total) / jnp.where(parts > 0, parts, 1), 1.0)

    def __repr__(self) -> str:
        parts = ", ".join(f"{consumer}: {brief(share)}" for consumer, share in self.items())
        return f"Shares({parts})"


@dataclass(frozen=True)
class Contributions:
    """What the contributions to a cotangent are computed from.

    Attributes:
        plan: the graph and the rules of the pass; nothing recorded.
        kept: the values of the forward pass.
        cotangent: the cotangent of a value, None where none arrives.
        taken: whether the branch that a node is in was taken, one for each step; None outside of branches.
        seed: the cotangents of the outputs.
        hint: what to do where a value was not kept.
    """

    plan: Plan
    kept: Kept
    cotangent: Callable[[Value], Array | None]
    taken: Callable[[Node], Array | None]
    seed: Sequence[Array | None]
    hint: str

    def to(self, value: Value) -> Shares:
        """Compute the contributions to the cotangent of a value.

        Raises:
            ValueError: no cotangent reaches it.
        """
        node = producers(self.plan.graph)[value.id]
        place = self.plan.graph.places[node.index]
        found: dict[str, Array] = {}
        if value.active:
            for consumer in place.graph.equations():
                if any(operand.id == value.id for operand in consumer.operands):
                    share = self._of_consumer(consumer, value, place.steps)
                    if share is not None:
                        found[consumer.name or consumer.primitive] = self._where_taken(node, share)
            found |= self._leaving(value, place)
        if not found:
            raise ValueError(
                f"no cotangent reaches {value.name!r}: no node that reads it is on a path to the output."
            )
        return Shares(found, len(place.steps))

    def _of_consumer(self, node: Node, value: Value, steps: Steps) -> Array | None:
        """The contribution of one node: `out_cts . (d node / d value)`."""
        cts = [self.cotangent(v) for v in node.outputs]
        if all(ct is None for ct in cts) or not node.active:
            return None
        operands = [self.kept.needed(v, node, self.hint) for v in node.operands]
        axes = [self.kept.steps(v) for v in node.operands]
        positions = [i for i, v in enumerate(node.operands) if v.id == value.id]
        inexact = [i for i, v in enumerate(node.outputs) if _jaxpr.is_inexact(v.dtype)]
        out_cts = [_zeros_where_none(cts[i], node.outputs[i], steps) for i in inexact]

        def pull(operands: list[Array], out_cts: list[Array]) -> Array:
            def of(x: Array) -> list[Array]:
                full = [x if i in positions else o for i, o in enumerate(operands)]
                outputs = Interpreter(self.plan).step(node, full, {}, Recorded.nothing())
                return [outputs[i] for i in inexact]

            return jax.vjp(of, operands[positions[0]])[1](out_cts)[0]

        for level in reversed(range(len(steps))):
            in_axes = [0 if count > level else None for count in axes]
            pull = jax.vmap(pull, in_axes=(in_axes, 0))
        return pull(operands, out_cts)

    def _leaving(self, value: Value, place: Place) -> dict[str, Array]:
        """The contributions to a value that leaves its graph as a result."""
        positions = [i for i, out in enumerate(place.graph.outputs) if out.id == value.id]
        if not place.parents:
            cts = [ct for ct in (self.seed[i] for i in positions) if ct is not None]
            return {"output": functools.reduce(jnp.add, cts)} if cts else {}
        parent, _ = place.parents[-1]
        form = _jaxpr.opened_form(parent.eqn)
        found: dict[str, Array] = {}
        for position in positions:
            ct = self.cotangent(parent.outputs[position])
            name = "output"
            if isinstance(form, _jaxpr.Scan) and position < form.num_carry:
                name, ct = "next step", self._of_next_step(form, place, position, ct)
            elif ct is not None and isinstance(form, _jaxpr.Cond):
                ct = self._where_taken(producers(self.plan.graph)[value.id], ct)
            if ct is not None:
                found[name] = found[name] + ct if name in found else ct
        return found

    def _where_taken(self, node: Node, ct: Array) -> Array:
        """A cotangent inside a branch: zero where the branch was not taken."""
        taken = self.taken(node)
        if taken is None:
            return ct
        mask = taken.reshape(taken.shape + (1,) * (ct.ndim - taken.ndim))
        return jnp.where(mask, ct, jnp.zeros_like(ct))

    def _of_next_step(self, form: _jaxpr.Scan, place: Place, position: int, last: Array | None) -> Array | None:
        """What a carry gets from the step after, where it is an input; after the last step, from outside."""
        carried = place.graph.inputs[form.num_consts + position]
        ct = self.cotangent(carried)
        if ct is None and last is None:
            return None
        axis = len(place.steps) - 1
        ct = _zeros_where_none(ct, carried, place.steps)
        if form.length == 0:
            return ct
        if last is None:
            last = jnp.zeros(ct.shape[:axis] + ct.shape[axis + 1 :], ct.dtype)
        last = jnp.expand_dims(last, axis)
        if form.reverse:
            return jnp.concatenate([last, jax.lax.slice_in_dim(ct, 0, form.length - 1, axis=axis)], axis)
        return jnp.concatenate([jax.lax.slice_in_dim(ct, 1, form.length, axis=axis), last], axis)


def _zeros_where_none(ct: Array | None, value: Value, steps: Steps) -> Array:
    return jnp.zeros((*steps, *value.shape), value.dtype) if ct is None else ct
