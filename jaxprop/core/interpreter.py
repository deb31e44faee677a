"""The sweep: the graph is run forward once, and JAX walks it back. The file to read first.

Backpropagation has two halves. On the way out every node is run, and what its local gradient needs is kept; on
the way back each node turns the cotangents of its outputs into those of its operands, and where a value is read
by several nodes their shares add. The second half is JAX's (`jax.vjp`), exactly as under `jax.grad`. What is
done here is to run the first half node by node, and to put two things into it where someone asks:

- a tap, where a recorder is to write down values and cotangents (`taps`);
- a rule, where cotangents are to cross a node in another way than by the chain rule: the node becomes a
  function whose derivative is the rule.

Where nobody asks nothing is put in, and calls (`jit`) nobody looks into are run as one piece.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .. import _jaxpr
from . import taps
from .aliases import BACK, OUT, Site, shared_sites
from .control_flow import Carriers, Opened, Written, open_node
from .graph import Call, Graph, Node, Value
from .local import Local, evaluate, fill_zeros, moved_operands, partial_function, scatter, take
from .rules import Recorder, Rule, check_in_cts
from .types import PyTree


@dataclass(frozen=True, eq=False)
class Plan:
    """What is to be done where, in one sweep.

    Attributes:
        graph: the program.
        recorder: what is written down at the watched nodes.
        watched: indices of the nodes the recorder looks at.
        rules: rules by index of the node.
        kept: ids of values that are kept as they are.
        guarded: whether a `while` says so when a cotangent reaches it.
    """

    graph: Graph
    recorder: Recorder = Recorder()
    watched: frozenset[int] = frozenset()
    rules: Mapping[int, Rule] = field(default_factory=dict)
    kept: frozenset[int] = frozenset()
    guarded: bool = False

    @functools.cached_property
    def touched(self) -> frozenset[int]:
        """Indices of the nodes that cannot be left to JAX: something is asked of them, or inside them."""
        found: set[int] = set()
        for node in reversed(list(self.graph.walk())):
            inside = any(i in found for graph in node.graphs for i in graph.indices)
            if inside or self._asks(node):
                found.add(node.index)
        return frozenset(found)

    def _asks(self, node: Node) -> bool:
        return (
            node.index in self.watched
            or node.index in self.rules
            or any(value.id in self.kept for value in node.outputs)
            or (self.guarded and node.eqn is not None and _jaxpr.is_while(node.eqn))
        )

    @functools.cached_property
    def structs(self) -> Mapping[int, PyTree]:
        """Types of what the recorder writes on the way back, by index of the node."""
        if self.recorder.backward is None:
            return {}
        one_of_type = functools.cache(functools.partial(_jaxpr.eval_shape, self.recorder.backward))
        found = {}
        for node in self.graph.walk():
            if node.index not in self.watched or not node.active:
                continue
            if self.recorder.per_value:
                found[node.index] = tuple(
                    (_flat(value) if self.defers(node, value) else one_of_type(_jaxpr.struct_of(value.aval)))
                    if value.active and (BACK, node.index, position) not in self.shared
                    else None
                    for position, value in enumerate(node.outputs)
                )
            else:
                found[node.index] = _struct_of_node_record(self.recorder.backward, node)
        return found

    @functools.cached_property
    def shared(self) -> Mapping[Site, Site]:
        """Records that are those of another site, where the recorder does not mind the order of elements."""
        if not self.recorder.order_free:
            return {}
        return shared_sites(self.graph, self.watched, frozenset(self.rules))

    def defers(self, node: Node, value: Value) -> bool:
        """Whether an array is carried along as it is, and recorded with its like at the end."""
        return (
            0 < self.recorder.deferred >= math.prod(value.shape)
            and not self.graph.places[node.index].steps
            and _jaxpr.is_whole(value.aval)
        )

    def carriers(self) -> Carriers:
        return {
            index: taps.carriers(structs, self.graph.places[index].steps)
            for index, structs in self.structs.items()
        }


def _flat(value: Value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((math.prod(value.shape),), value.dtype)


def _struct_of_node_record(write: Callable[..., PyTree], node: Node) -> PyTree:
    operands = [_jaxpr.struct_of(value.aval) for value in node.operands or node.outputs]
    outputs = [_jaxpr.struct_of(value.aval) for value in node.outputs]
    cts = tuple(struct if value.active else None for struct, value in zip(outputs, node.outputs, strict=True))
    return _jaxpr.eval_shape(lambda o, r, c: write(Local(node, tuple(o), tuple(r)), c), operands, outputs, cts)


@dataclass(frozen=True, eq=False)
class Sweep:
    """One run of a plan.

    Attributes:
        plan: what is to be done where.
        reached: (index, output) of the watched nodes a cotangent came to, filled on the way back. It depends
            on the program alone, not on numbers.
    """

    plan: Plan
    reached: set[tuple[int, int]] = field(default_factory=set)

    def run(self, graph: Graph, operands: Sequence[Any], carriers: Carriers) -> tuple[list[Any], Written]:
        """Run a graph: read the operands of each node, write its outputs. The loop of the forward pass."""
        env: dict[int, Any] = {}
        written = Written.nothing()

        def read(value: Value) -> Any:
            return value.literal if value.literal is not None else env[value.id]

        def write(values: Sequence[Value], results: Sequence[Any]) -> None:
            for value, result in zip(values, results, strict=True):
                env[value.id] = result
                if value.id in self.plan.kept:
                    written.values[value.id] = jax.lax.stop_gradient(result)

        for head, operand in zip(graph.heads, operands, strict=True):
            results, notes = self.step(head, [operand], carriers)
            written.take(notes)
            write(head.outputs, results)

        stack = [iter(graph.items)]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
            elif isinstance(item, Call) and self.looks_into(item):
                stack.append(iter(item.items))
            elif isinstance(item, Call):
                results = _jaxpr.as_function(item.eqn)(*map(read, item.operands))
                write(item.outputs, results)
            else:
                results, notes = self.step(item, list(map(read, item.operands)), carriers)
                written.take(notes)
                write(item.outputs, results)
        return [read(value) for value in graph.outputs], written

    def looks_into(self, call: Call) -> bool:
        return any(node.index in self.plan.touched for node in call.nodes)

    def step(self, node: Node, operands: list[Any], carriers: Carriers) -> tuple[list[Any], Written]:
        """Run one node, with what is asked of it."""
        if node.index not in self.plan.touched:
            return evaluate(node, operands), Written.nothing()
        run = self.function_of(node)
        rule = self.plan.rules.get(node.index)
        if rule is not None and node.active:
            outputs, written = self.ruled(node, rule, run, operands, carriers)
        else:
            outputs, written = run(operands, carriers)
        if self.plan.guarded and node.eqn is not None and _jaxpr.is_while(node.eqn):
            outputs = _guard_while(node, outputs)
        if node.index in self.plan.watched:
            self.note_forward(node, operands, outputs, written)
            outputs = self.watch(node, operands, outputs, carriers)
        return outputs, written

    def function_of(self, node: Node) -> Opened:
        inside = any(i in self.plan.touched for graph in node.graphs for i in graph.indices)
        if node.opened and inside:
            return open_node(node, self.run)
        return lambda operands, carriers: (evaluate(node, operands), Written.nothing())

    # --- the two seams ---------------------------------------------------------------------------

    def ruled(
        self, node: Node, rule: Rule, run: Opened, operands: list[Any], carriers: Carriers
    ) -> tuple[list[Any], Written]:
        """Run a node whose cotangents cross by a rule."""
        moved = moved_operands(node) if node.operands else (0,)
        inside = {i: c for g in node.graphs for i, c in carriers.items() if i in g.indices}

        @jax.custom_vjp
        def call(operands: list[Any], inside: Carriers) -> Any:
            return run(operands, inside)

        def fwd(operands: list[Any], inside: Carriers) -> Any:
            operands, inside = taps.values((operands, inside))

            def of(points: list[Any], inside: Carriers) -> Any:
                outs: list[Any] = []

                def plain(*full: Any) -> list[Any]:
                    results, written = run(list(full), inside)
                    outs.append(written)
                    return results

                return partial_function(plain, operands, moved)(*points), outs[0]

            outputs, pull, written = jax.vjp(of, take(operands, moved), inside, has_aux=True)
            return (outputs, written), (operands, outputs, pull)

        def bwd(kept: Any, cts: Any) -> Any:
            operands, outputs, pull = kept
            out_cts = tuple(map(taps.present_ct, cts[0]))
            inner: list[Any] = []

            def pullback(out_cts: Any) -> Any:
                point_cts, inside_cts = pull(fill_zeros(out_cts, node))
                inner[:] = [inside_cts]
                return scatter(point_cts, moved, len(operands))

            local = Local(node, tuple(operands), tuple(outputs), pullback)
            in_cts = check_in_cts(rule(local, out_cts), local)
            return list(in_cts), (inner[0] if inner else None)

        call.defvjp(fwd, bwd, symbolic_zeros=True)
        return call(operands, inside)

    def note_forward(self, node: Node, operands: list[Any], outputs: list[Any], written: Written) -> None:
        """Let the recorder write on the way out."""
        note = self.plan.recorder.forward
        if note is None:
            return
        values = [jax.lax.stop_gradient(x) for x in outputs]
        if self.plan.recorder.per_value:
            written.records[node.index] = tuple(
                self._noted(node, position, x, note)
                if (OUT, node.index, position) not in self.plan.shared
                else None
                for position, x in enumerate(values)
            )
        else:
            held = tuple(jax.lax.stop_gradient(x) for x in operands)
            written.records[node.index] = note(Local(node, held, tuple(values)))

    def watch(self, node: Node, operands: list[Any], outputs: list[Any], carriers: Carriers) -> list[Any]:
        """Let the recorder write on the way back."""
        note = self.plan.recorder.backward
        if note is None or node.index not in carriers:
            return outputs
        carrier = carriers[node.index]
        if self.plan.recorder.per_value:
            return [
                taps.tap(x, mine, self._noting(node, position, note)) if mine is not None else x
                for position, (x, mine) in enumerate(zip(outputs, carrier, strict=True))
            ]

        def write(outputs: list[Any], operands: list[Any], cts: tuple[Any, ...]) -> PyTree:
            self.reached.update((node.index, i) for i, ct in enumerate(cts) if ct is not None)
            return note(Local(node, tuple(operands), tuple(outputs)), cts)

        return taps.tap_all(outputs, operands, carrier, write)

    def _noting(self, node: Node, position: int, note: Callable[[Any], PyTree]) -> Any:
        def write(ct: Any) -> PyTree:
            self.reached.add((node.index, position))
            return self._noted(node, position, ct, note)

        return write

    def _noted(self, node: Node, position: int, x: Any, note: Callable[[Any], PyTree]) -> PyTree:
        return jnp.ravel(x) if self.plan.defers(node, node.outputs[position]) else note(x)


def _guard_while(node: Node, outputs: list[Any]) -> list[Any]:
    """Say which `while` it is, where a cotangent reaches one."""

    def refuse(ct: Any) -> Any:
        raise ValueError(
            f"a cotangent reaches the while loop {node.where}, and a loop whose number of steps is not known "
            "beforehand cannot be walked back: its steps are not kept. Use `jax.lax.scan`, or `fori_loop` with "
            "bounds that are plain Python integers; or cut it off with `jax.lax.stop_gradient`."
        )

    return [
        taps.tap(x, (), refuse) if value.active else x for x, value in zip(outputs, node.outputs, strict=True)
    ]
