"""The forward evaluation of a graph, node by node; JAX differentiates it.

Two things are inserted where they are requested:

- a tap, where a recorder records cotangents (`taps`);
- a rule, where cotangents do not propagate by the chain rule: the node becomes a function whose derivative is
  the rule.

Otherwise nothing is inserted, and a call (`jit`) in which nothing is requested is evaluated as one equation.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from .. import _jaxpr
from .control_flow import Carriers, Evaluate, Recorded, Results, open_node
from .graph import Call, Graph, Node, Value
from .local import Local, active_operands, evaluate, fill_zeros, partial_function, scatter, take
from .recorders import Forward, Tapped
from .rules import Rule, check_in_cts
from .taps import carriers, present_ct, primals, tap
from .types import Array, InCts, NodeIndex, OutCts, Position, PyTree, ValueId


@dataclass(frozen=True, eq=False)
class Plan:
    """What is requested, by node.

    Attributes:
        graph: the program.
        rules: rules, by index of the node.
        forward: what is recorded in the forward pass, by index.
        backward: what is recorded in the backward pass, by index.
        kept: ids of values that are kept unchanged.
    """

    graph: Graph
    rules: Mapping[NodeIndex, Rule] = field(default_factory=dict)
    forward: Mapping[NodeIndex, Forward] = field(default_factory=dict)
    backward: Mapping[NodeIndex, Tapped] = field(default_factory=dict)
    kept: frozenset[ValueId] = frozenset()

    @functools.cached_property
    def interpreted(self) -> frozenset[NodeIndex]:
        """Indices of the nodes that cannot be left to JAX: something is requested at them, or inside them."""
        found: set[NodeIndex] = set()
        for node in reversed(list(self.graph.walk())):
            if self._requested_at(node) or any(i in found for graph in node.graphs for i in graph.indices):
                found.add(node.index)
        return frozenset(found)

    def _requested_at(self, node: Node) -> bool:
        return (
            node.index in self.forward
            or node.index in self.backward
            or node.index in self.rules
            or any(value.id in self.kept for value in node.outputs)
            or _is_active_while(node)
        )

    def opens(self, node: Node) -> bool:
        """Whether something is requested inside an opened node."""
        return node.opened and any(i in self.interpreted for graph in node.graphs for i in graph.indices)

    def carriers(self) -> Carriers:
        """Zeros by which the records of the backward pass leave it."""
        places = self.graph.places
        return {index: carriers(tapped.struct, places[index].steps) for index, tapped in self.backward.items()}


@dataclass(frozen=True, eq=False)
class Interpreter:
    """One evaluation of a plan.

    Attributes:
        plan: what is requested, by node.
        arrived: (index, position) of the tapped outputs that a cotangent arrived at; filled in the backward
            pass. It depends on the program alone, not on numbers.
        recorded_in_branches: types of what the branches of each cond record; filled when they are first traced.
    """

    plan: Plan
    arrived: set[tuple[NodeIndex, Position]] = field(default_factory=set)
    recorded_in_branches: dict[NodeIndex, list[Recorded]] = field(default_factory=dict)

    def run(self, graph: Graph, operands: Sequence[Array], carriers: Carriers) -> Results:
        """Evaluate a graph: read the operands of each node, write its outputs. The loop of the forward pass."""
        env: dict[ValueId, Array] = {}
        recorded = Recorded.nothing()

        def read(value: Value) -> Array:
            return value.literal if value.literal is not None else env[value.id]

        def write(values: Sequence[Value], results: Sequence[Array]) -> None:
            for value, result in zip(values, results, strict=True):
                env[value.id] = result
                if value.id in self.plan.kept:
                    recorded.values[value.id] = result

        for head, operand in zip(graph.heads, operands, strict=True):
            write(head.outputs, self.step(head, [operand], carriers, recorded))

        stack = [iter(graph.items)]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
            elif isinstance(item, Node):
                write(item.outputs, self.step(item, list(map(read, item.operands)), carriers, recorded))
            elif self.looks_into(item):
                stack.append(iter(item.items))
            else:
                write(item.outputs, _jaxpr.as_function(item.eqn)(*map(read, item.operands)))
        return [read(value) for value in graph.outputs], recorded

    def looks_into(self, call: Call) -> bool:
        """Whether something is requested inside a call."""
        return any(node.index in self.plan.interpreted for node in call.nodes)

    def step(self, node: Node, operands: list[Array], carriers: Carriers, recorded: Recorded) -> list[Array]:
        """Evaluate one node, with what is requested at it."""
        if node.index not in self.plan.interpreted:
            return evaluate(node, operands)
        rule = self.plan.rules.get(node.index)
        if rule is not None and node.active:
            outputs, inside = self.ruled(node, rule, operands, carriers)
            recorded.update(inside)
        elif self.plan.opens(node):
            outputs, inside = self.function_of(node)(operands, carriers)
            recorded.update(inside)
        else:
            outputs = evaluate(node, operands)
        if _is_active_while(node):
            outputs = _refuse_cotangents(node, outputs)
        if node.index in self.plan.forward:
            local = Local(node, tuple(operands), tuple(outputs))
            recorded.records[node.index] = self.plan.forward[node.index](local)
        if node.index in self.plan.backward:
            outputs = self.tapped(node, operands, outputs, carriers[node.index])
        return outputs

    # --- rules and taps --------------------------------------------------------------------------

    def ruled(self, node: Node, rule: Rule, operands: list[Array], carriers: Carriers) -> Results:
        """Evaluate a node whose cotangents propagate by a rule."""
        positions = active_operands(node) if node.operands else (0,)
        inside = {i: c for graph in node.graphs for i, c in carriers.items() if i in graph.indices}
        run = self.function_of(node)

        @jax.custom_vjp
        def call(operands: list[Array], inside: Carriers) -> Results:
            return run(operands, inside)

        def forward(operands: Any, inside: Any) -> Any:
            operands, inside = primals((operands, inside))

            def of(points: list[Array], inside: Carriers) -> Any:
                box: list[Recorded] = []

                def outputs_of(*full: Array) -> list[Array]:
                    outputs, recorded = run(full, inside)
                    box.append(recorded)
                    return outputs

                return partial_function(outputs_of, operands, positions)(*points), box[0]

            outputs, pull, recorded = jax.vjp(of, take(operands, positions), inside, has_aux=True)
            return (outputs, recorded), (operands, outputs, pull)

        def backward(kept: Any, cts: Any) -> Any:
            operands, outputs, pull = kept
            out_cts = tuple(map(present_ct, cts[0]))
            inner: list[PyTree] = []

            def pullback(out_cts: OutCts) -> InCts:
                point_cts, inside_cts = pull(fill_zeros(out_cts, node))
                inner[:] = [inside_cts]
                return scatter(point_cts, positions, len(operands))

            local = Local(node, tuple(operands), tuple(outputs), pullback)
            in_cts = check_in_cts(rule(local, out_cts), local)
            return list(in_cts), (inner[0] if inner else None)

        call.defvjp(forward, backward, symbolic_zeros=True)
        return call(operands, inside)

    def function_of(self, node: Node) -> Evaluate:
        """A node as a function of its operands and of the carriers inside it."""
        if self.plan.opens(node):
            return open_node(node, self.run, self.recorded_in_branches)
        return lambda operands, carriers: (evaluate(node, operands), Recorded.nothing())

    def tapped(self, node: Node, operands: list[Array], outputs: list[Array], carrier: PyTree) -> list[Array]:
        """Let the recorder of a node record what arrives in the backward pass."""
        write, struct, unread = self.plan.backward[node.index]
        positions = [i for i, value in enumerate(node.outputs) if value.active]
        kept = [x for x, type_ in zip((*operands, *outputs), unread, strict=True) if type_ is None]

        def record(kept: list[Array], active_cts: OutCts) -> PyTree:
            self.arrived.update(
                (node.index, Position(i)) for i, ct in zip(positions, active_cts, strict=True) if ct is not None
            )
            it = iter(kept)
            full: list[PyTree] = [next(it) if type_ is None else type_ for type_ in unread]
            primals_in, primals_out = full[: len(operands)], full[len(operands) :]
            out_cts = scatter(active_cts, positions, len(outputs))
            return _conform(write(Local(node, tuple(primals_in), tuple(primals_out)), out_cts), struct)

        results = list(outputs)
        tapped = tap(take(outputs, positions), kept, carrier, record)
        for position, output in zip(positions, tapped, strict=True):
            results[position] = output
        return results


def _conform(record: PyTree, struct: PyTree) -> PyTree:
    """A record in the structure of its types: zeros where nothing was recorded since no cotangent arrived."""
    leaves, tree = jax.tree.flatten(record, is_leaf=lambda x: x is None)
    parts = zip(leaves, tree.flatten_up_to(struct), strict=True)
    return tree.unflatten([jax.tree.map(_jaxpr.zeros, part) if x is None else x for x, part in parts])


def _is_active_while(node: Node) -> bool:
    return node.active and _jaxpr.is_while(node.eqn)


def _refuse_cotangents(node: Node, outputs: list[Array]) -> list[Array]:
    """Raise an error that names the `while`, if a cotangent reaches it."""

    def refuse(kept: PyTree, cts: OutCts) -> PyTree:
        raise ValueError(
            f"a cotangent reaches the while loop {node.where}, which has no reverse-mode derivative because "
            "its trip count is not known at trace time. Use `jax.lax.scan`, or `fori_loop` with bounds that "
            "are plain Python integers; or block the gradient with `jax.lax.stop_gradient`."
        )

    return [
        tap([x], (), (), refuse)[0] if value.active else x
        for x, value in zip(outputs, node.outputs, strict=True)
    ]
