"""The values every way goes through: the chain along which a gradient shrinks or grows.

A value *post-dominates* another where every way from that to the result goes through it. From a weight of the
first layer these are the activations of layer after layer, or the residual stream: what stands between two of
them is bypassed by nothing, so the ratio of their cotangents is the gain of that part.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ... import _jaxpr
from ...core.graph import Graph, Node, Value
from ...core.structure import joints
from ..measures import Field

Edges = Callable[[Value], Iterable[Value]]


@dataclass(frozen=True, eq=False)
class Spine:
    """For each value the next one that every way to the sinks goes through."""

    after: Mapping[int, Value | None]

    @classmethod
    def of(cls, sources: Sequence[Value], sinks: Sequence[Value], onward: Edges) -> "Spine":
        """Find the immediate post-dominators of all values between sources and sinks.

        Source: Cooper, Harvey & Kennedy, A Simple, Fast Dominance Algorithm (2001).
        """
        ends = {value.id for value in sinks}
        rank: dict[int, int] = {}
        after: dict[int, Value | None] = {}

        def common(a: Value | None, b: Value | None) -> Value | None:
            while a is not None and b is not None and a.id != b.id:
                if rank[a.id] > rank[b.id]:
                    a = after[a.id]
                else:
                    b = after[b.id]
            return a if a is not None and b is not None else None

        for value in _last_first(sources, onward):
            nexts = [new for new in onward(value) if new.id in rank]
            if value.id not in ends and not nexts:
                continue  # leads nowhere
            rank[value.id] = len(rank)
            if value.id in ends:
                after[value.id] = None
                continue
            found: Value | None = nexts[0]
            for other in nexts[1:]:
                found = common(found, other)
            after[value.id] = found
        return cls(after)

    def chain(self, value: Value) -> list[Value]:
        """A value, and all that every way from it goes through, as far as the result."""
        found: list[Value] = []
        following: Value | None = value if value.id in self.after else None
        while following is not None:
            found.append(following)
            following = self.after[following.id]
        return found


def _last_first(sources: Sequence[Value], onward: Edges) -> list[Value]:
    """All values that sources lead to, each after all that is made from it."""
    done: set[int] = set()
    order: list[Value] = []
    for source in sources:
        if source.id in done:
            continue
        done.add(source.id)
        stack = [(source, iter(onward(source)))]
        while stack:
            value, rest = stack[-1]
            new = next((new for new in rest if new.id not in done), None)
            if new is None:
                order.append(value)
                stack.pop()
            else:
                done.add(new.id)
                stack.append((new, iter(onward(new))))
    return order


def along_depth(field: Field) -> Edges:
    """From a value to those made from it: through `checkpoint` and branches, past loops."""

    def onward(value: Value) -> Iterable[Value]:
        for node, position in field.readers.get(value.id, ()):
            inside = node.opened and not is_loop(node)
            made = field.entering(node, position) if inside else node.outputs
            yield from (new for new in made if new.active)
        for node, new in field.leaving.get(value.id, ()):
            if new.active and not is_loop(node):
                yield new

    return onward


def is_loop(node: Node) -> bool:
    return node.opened and isinstance(_jaxpr.opened_form(node.eqn), _jaxpr.Scan)


@dataclass(frozen=True)
class Carry:
    """The carries of a loop through which gradients flow.

    Attributes:
        node: the loop.
        body: its body.
        form: its parts.
        into: what each step starts from, as values of the body.
        out: what each step hands on, as values of the body.
        last: what comes out of the loop.
    """

    node: Node
    body: Graph
    form: _jaxpr.Scan
    into: tuple[Value, ...]
    out: tuple[Value, ...]
    last: tuple[Value, ...]


def carries_of(node: Node) -> Carry | None:
    """The active carries of a loop, None where it has none."""
    form = _jaxpr.opened_form(node.eqn) if node.opened else None
    if not isinstance(form, _jaxpr.Scan):
        return None
    (body,) = node.graphs
    around = joints(node, body).around
    active = [i for i, (_, value) in enumerate(around) if value.active]
    if not active:
        return None
    return Carry(
        node=node,
        body=body,
        form=form,
        into=tuple(around[i][1] for i in active),
        out=tuple(around[i][0] for i in active),
        last=tuple(node.outputs[i] for i in active),
    )
