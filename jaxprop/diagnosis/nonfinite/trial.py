"""A fix is tried before it is printed: at the recorded numbers, and then in the program as a whole."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from ... import _jaxpr
from ...core.control_flow import Recorded, open_node
from ...core.graph import Call, Graph, Node, Value
from ...core.local import evaluate
from ...core.types import Array
from ...record.tape import Tape
from ..passes import Run
from .evidence import Evidence, cotangent_at, value_at
from .rewriting import Rewrite

#: How far a stable form may be from the original where that is finite: relative, and absolute. The absolute
#: part is what `eps` under a root adds at zero.
_TOLERANCE: Mapping[str, tuple[float, float]] = {
    "float16": (1e-2, 2e-3),
    "bfloat16": (2e-2, 2e-6),
    "float32": (1e-4, 2e-6),
    "float64": (1e-8, 2e-12),
}
#: How many batch axes `vmap` may have put in front of what is written in the source.
_MOST_BATCH_AXES = 2


def _agree(new: np.ndarray, old: np.ndarray) -> bool:
    """Whether two arrays are equal, to rounding, wherever the old one is finite."""
    relative, absolute = _TOLERANCE.get(old.dtype.name, _TOLERANCE["float32"])
    finite = np.isfinite(old)
    wide = np.complex128 if np.iscomplexobj(old) else np.float64
    new, old = new.astype(wide)[finite], old.astype(wide)[finite]
    return bool(np.all(np.abs(new - old) <= relative * np.abs(old) + absolute))


# --- at the recorded numbers -----------------------------------------------------------------------


def fitted(rewrite: Rewrite, evidence: Evidence, tape: Tape) -> Rewrite | None:
    """Try a stable form at the numbers of an origin.

    Its value and its derivative must be finite, and the value must equal the original wherever that is finite.
    A value that the forward pass masks need not be finite.

    Returns:
        The rewrite, mapped over the axes of a `vmap` around the expression; None if it does not pass.
    """
    inputs = [value_at(tape, value, evidence.step) for value in rewrite.inputs]
    original = value_at(tape, rewrite.result, evidence.step)
    if original is None or any(x is None for x in inputs):
        return None
    if evidence.kind != "masked":  # a NaN among the operands has another origin
        inputs = [_without_nan(np.asarray(x)) for x in inputs]
    ct = cotangent_at(tape, rewrite.result, evidence.step)
    ones = np.ones(original.shape, original.dtype)
    ct = ones if ct is None else np.where(np.isfinite(ct), ct, ones).astype(original.dtype)
    for depth in range(1 if rewrite.replays else _MOST_BATCH_AXES + 1):
        before = _evaluated(_mapped(rewrite, rewrite.original, depth), inputs, ct)
        if before is None or not _agree(before[0], np.asarray(original)):
            continue  # not under so many `vmap`s, or not the expression that it seems to be
        batched = replace(rewrite, function=_mapped(rewrite, rewrite.function, depth))
        after = _evaluated(batched.function, inputs, ct)
        if after is None or not _agree(after[0], np.asarray(original)):
            return None
        must_be_finite = after if evidence.reaches_loss else after[1:]
        return batched if all(np.all(np.isfinite(x)) for x in must_be_finite) else None
    return None


def _without_nan(x: np.ndarray) -> np.ndarray:
    if not _jaxpr.is_inexact(x.dtype):
        return x
    return np.where(np.isnan(x), np.asarray(0.5, x.dtype), x)


def _mapped(rewrite: Rewrite, function: Callable[..., Array], depth: int) -> Callable[..., Array]:
    """Map a function of the inputs over leading axes, those of the result."""
    for level in reversed(range(depth)):
        length = rewrite.result.shape[level : level + 1]
        axes = [0 if length and value.shape[level : level + 1] == length else None for value in rewrite.inputs]
        if all(axis is None for axis in axes):
            break
        function = jax.vmap(function, in_axes=axes)
    return function


def _evaluated(
    function: Callable[..., Array], inputs: Sequence[np.ndarray], ct: np.ndarray
) -> tuple[np.ndarray, ...] | None:
    """Value and in_cts of a function; None if it does not suit the shapes or types."""
    floats = [i for i, x in enumerate(inputs) if _jaxpr.is_inexact(x.dtype)]

    def of_floats(*points: Array) -> Array:
        full = [jnp.asarray(x) for x in inputs]
        for i, point in zip(floats, points, strict=True):
            full[i] = point
        return function(*full)

    try:
        value, pullback = jax.vjp(of_floats, *(jnp.asarray(inputs[i]) for i in floats))
        if (value.shape, value.dtype) != (ct.shape, ct.dtype):
            return None
        return np.asarray(value), *map(np.asarray, pullback(jnp.asarray(ct)))
    except (TypeError, ValueError, IndexError):
        return None


# --- in the program as a whole ---------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """The stable forms that stood the trial.

    Attributes:
        chosen: for each origin the rewrite to print; None if none stood the trial.
        unresolved: numbers of the differentiated leaves whose gradient is not finite with all of them put in.
    """

    chosen: tuple[Rewrite | None, ...]
    unresolved: tuple[int, ...] = ()


def choose(run: Run, loss: Sequence[np.ndarray], candidates: Sequence[Sequence[Rewrite]]) -> Choice:
    """Put stable forms into the program, and keep those that do not change a finite loss.

    First the best form for each origin, all together; as a rule that is all. If this changes the loss, or
    leaves a number that is not finite although each origin has a form, they are put in one after another, and
    for each origin the form is kept with which the fewest numbers are not finite.

    Args:
        run: passes at the arguments in question.
        loss: the results of the original program that are differentiated.
        candidates: for each origin the rewrites that fit its numbers, the best first.
    """
    if not any(candidates):
        return Choice((None,) * len(candidates))
    trials = _Trials(run, loss)
    chosen: list[Rewrite | None] = [options[0] if options else None for options in candidates]
    score = trials.score(chosen)
    if score == math.inf or (score and all(candidates)):
        chosen = [None] * len(candidates)
        for i, options in enumerate(candidates):
            scores = [trials.score([*chosen[:i], option, *chosen[i + 1 :]]) for option in options]
            if min(scores, default=math.inf) < math.inf:
                chosen[i] = options[scores.index(min(scores))]
    return Choice(tuple(chosen), trials.bad_leaves(chosen))


@dataclass(frozen=True)
class _Trials:
    """Runs of a program with stable forms put in.

    Attributes:
        run: passes at the arguments in question.
        loss: the results of the original program.
        known: what was run already.
    """

    run: Run
    loss: Sequence[np.ndarray]
    known: dict[Hashable, tuple[list[np.ndarray], list[np.ndarray]]] = field(default_factory=dict)

    def score(self, chosen: Sequence[Rewrite | None]) -> float:
        """How many numbers are not finite; infinite if the loss is another, or too much was tried already."""
        found = self._result(chosen)
        if found is None or not all(map(_agree, found[0], self.loss)):
            return math.inf
        return sum(int(np.sum(~np.isfinite(x))) for x in (*found[0], *found[1]))

    def bad_leaves(self, chosen: Sequence[Rewrite | None]) -> tuple[int, ...]:
        """The numbers of the leaves whose gradient is not finite."""
        found = self._result(chosen) if any(chosen) else None
        return () if found is None else tuple(i for i, x in enumerate(found[1]) if not np.all(np.isfinite(x)))

    def _result(self, chosen: Sequence[Rewrite | None]) -> tuple[list[np.ndarray], list[np.ndarray]] | None:
        """Value and gradient; None if too much was tried already."""
        put_in = tuple(one for one in chosen if one is not None)
        key = tuple(map(_trial_key, put_in))
        if key not in self.known:
            if len(self.known) >= _MOST_TRIALS:
                return None
            values, gradient = self.run.gradient(key, _Evaluation(put_in))
            self.known[key] = [np.asarray(x) for x in values], [np.asarray(x) for x in gradient]
        return self.known[key]


#: How many programs are compiled to try stable forms in.
_MOST_TRIALS = 8


def _trial_key(rewrite: Rewrite) -> Hashable:
    """What tells a rewrite from another of the same loss: its nodes are those of one program at some shapes."""
    shapes = tuple((value.id, value.shape, str(value.dtype)) for value in (*rewrite.inputs, rewrite.result))
    return rewrite.form, rewrite.code, rewrite.root.index, shapes


class _Evaluation:
    """One evaluation of a program with stable forms put in, node by node.

    Args:
        put_in: the rewrites; if two have one root, the first counts.
    """

    def __init__(self, put_in: Sequence[Rewrite]) -> None:
        self._at = {rewrite.root.index: rewrite for rewrite in reversed(put_in)}

    def __call__(self, graph: Graph, operands: Sequence[Array]) -> list[Array]:
        """Evaluate a graph at the values of its inputs and constants."""
        env: dict[int, Array] = {}

        def read(value: Value) -> Array:
            return value.literal if value.literal is not None else env[value.id]

        for head, operand in zip(graph.heads, operands, strict=True):
            env[head.outputs[0].id] = operand
        for item in self._items(graph):
            if isinstance(item, Call):
                results = _jaxpr.as_function(item.eqn)(*map(read, item.operands))
            elif item.index in self._at:
                results = self._rewritten(item, env, read)
            else:
                results = self._evaluate(item, list(map(read, item.operands)))
            env.update(zip((value.id for value in item.outputs), results, strict=True))
        return list(map(read, graph.outputs))

    def _items(self, graph: Graph) -> Iterator[Node | Call]:
        """The operations of a graph; calls are inlined if a form is put in inside."""
        stack = [iter(graph.items)]
        while stack:
            item = next(stack[-1], None)
            if item is None:
                stack.pop()
            elif isinstance(item, Call) and any(map(self._is_touched, item.nodes)):
                stack.append(iter(item.items))
            else:
                yield item

    def _is_touched(self, node: Node) -> bool:
        return node.index in self._at or any(not graph.indices.isdisjoint(self._at) for graph in node.graphs)

    def _evaluate(self, node: Node, operands: list[Array]) -> list[Array]:
        if not (node.opened and self._is_touched(node)):
            return evaluate(node, operands)
        opened = open_node(node, lambda body, inside, _: (self(body, inside), Recorded.nothing()))
        return opened(operands, {})[0]

    def _rewritten(self, node: Node, env: Mapping[int, Array], read: Callable[[Value], Array]) -> list[Array]:
        rewrite = self._at[node.index]
        new = rewrite.function(*(env[value.id] for value in rewrite.inputs))
        if len(node.outputs) == 1:  # the original is not even evaluated, so that no cotangent reaches it
            return [new]
        old = self._evaluate(node, list(map(read, node.operands)))
        return [new if v.id == rewrite.result.id else x for v, x in zip(node.outputs, old, strict=True)]
