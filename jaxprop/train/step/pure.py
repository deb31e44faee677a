"""The training step as pure functions of a state and a batch, not compiled."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from ..._api import value_and_grad
from ...core.rules import Rules
from ...core.types import Array, Function, PyTree
from ...record.tape import Tape
from ..checks import check_same_types
from ..examples.clip import Clip
from ..examples.per_example import per_example
from ..watch.norms import LeafStatistics, of_examples, of_gradient, of_update
from ..watch.recorded import recorded_pass
from ..watch.watch import Watch
from ..watch.watched import Watched, without_results
from .clipped import clipped_gradient
from .objective import Objective
from .state import Gradient, Metrics, State


@dataclass(frozen=True, eq=False)
class PureStep:
    """A training step in two stages: the gradient, and the update it leads to.

    Each stage comes in two forms: plain, and watched with the records of a `Watch`.
    """

    objective: Objective
    optimizer: optax.GradientTransformationExtraArgs
    rules: Rules
    watch: Watch | None
    examples: Clip | None = None

    def plain(self, state: State, *batch: PyTree) -> tuple[State, Metrics]:
        """Take a step without watching."""
        found = self.gradient(state, *batch)
        return self.update(state, found, *batch), Metrics(found.loss, found.aux, None, found.examples)

    def watched(self, state: State, *batch: PyTree) -> tuple[State, Metrics]:
        """Take a step, watched.

        Raises:
            ValueError: There is no `Watch`.
        """
        found, tape = self.recorded_gradient(state, *batch)
        new, statistics = self.watched_update(state, found, *batch)
        return new, Metrics(found.loss, found.aux, self.report(tape, statistics, state), found.examples)

    def scheduled(self, state: State, *batch: PyTree) -> tuple[State, Metrics]:
        """Take a step, plain or watched by the count in the state."""
        if self.watch is None:
            return self.plain(state, *batch)
        shapes = jax.eval_shape(self._watched_once, state, *batch)[1].watched

        def unwatched(state: State, *batch: PyTree) -> tuple[State, Metrics]:
            state, metrics = self.plain(state, *batch)
            return state, metrics._replace(watched=_zeros_like(shapes))

        # The branches hold the whole step: then what only the watched one needs is not kept for the other, and
        # the donated state is updated in place in both.
        due = state.step % self.watch.every == 0
        return jax.lax.cond(due, self._watched_once, unwatched, state, *batch)

    @functools.cached_property
    def _watched_once(self) -> Callable[..., tuple[State, Metrics]]:
        return jax.jit(self.watched)  # for its cache: traced once, for the shapes and for the branch

    # --- the gradient --------------------------------------------------------------------------------

    def gradient(self, state: State, *batch: PyTree) -> Gradient:
        """Return the loss and its gradient, or the mean of the clipped gradients of examples."""
        call = self.objective
        if self.examples is not None:
            return clipped_gradient(call, self.examples, state, batch)
        both = value_and_grad(call.loss, has_aux=call.paired, rules=self.rules)
        result, grads = both(state.params, *batch, **call.keywords(state))
        return Gradient(*call.split(result, state.model_state), grads)

    def recorded_gradient(self, state: State, *batch: PyTree) -> tuple[Gradient, Tape | None]:
        """Return the loss and its gradient, and the records of the nodes watched.

        Raises:
            ValueError: There is no `Watch`.
        """
        watch, call = self.required_watch(), self.objective
        if not watch.records_nodes:
            return self.gradient(state, *batch), None
        args, keywords = (state.params, *batch), call.keywords(state)
        tape = recorded_pass(watch, call.loss, args, keywords, 0, call.paired, self.rules)
        if self.examples is not None:
            return self.gradient(state, *batch), without_results(tape)
        result = (tape.value, tape.aux) if call.paired else tape.value
        return Gradient(*call.split(result, state.model_state), tape.grads), without_results(tape)

    # --- the update ----------------------------------------------------------------------------------

    def update(self, state: State, found: Gradient, *batch: PyTree) -> State:
        """Return the state after the step that a gradient leads to."""

        def value_fn(params: PyTree) -> Array:
            result = self.objective.loss(params, *batch, **self.objective.keywords(state))
            return result[0] if self.objective.paired else result

        known = {
            "value": found.loss,
            "grad": found.grads,
            "value_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(value_fn)(params),
        }
        extra = {name: known[name] for name in extra_arguments(self.optimizer.update)}
        updates, opt_state = self.optimizer.update(found.grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        new = State(params, opt_state, state.step + jnp.int32(1), state.key, found.model_state)
        check_same_types(state, new)
        return new

    def watched_update(self, state: State, found: Gradient, *batch: PyTree) -> tuple[State, LeafStatistics]:
        """Return the state after the step, and what is recorded of the leaves of the params."""
        watch = self.required_watch()
        new = self.update(state, found, *batch)
        old, updated, grads = map(jax.tree.leaves, (state.params, new.params, found.grads))
        statistics = of_gradient(watch, old, grads) | of_update(watch, old, updated)
        if watch.per_example:
            norms_of = per_example(self.objective.loss, has_aux=self.objective.paired)
            statistics |= of_examples(norms_of(state.params, *batch, **self.objective.keywords(state)))
        return new, statistics

    def report(self, tape: Tape | None, statistics: LeafStatistics, state: State) -> Watched:
        """Return what was watched in the step that started from `state`."""
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        paths = tuple(self.objective.root + jax.tree_util.keystr(path) for path, _ in leaves)
        return Watched(jnp.bool_(True), state.step, tape, statistics, paths, self.watch)

    def required_watch(self) -> Watch:
        """Return the `Watch`.

        Raises:
            ValueError: There is none.
        """
        if self.watch is None:
            raise ValueError("the step has no `watch`. Make it with make_step(..., watch=jaxprop.Watch()).")
        return self.watch


def extra_arguments(update: Function) -> tuple[str, ...]:
    """Return which extra arguments an optimizer's `update` gets.

    Those it names. If it takes any keyword, those that line searches read, not all: a line search passes what
    it does not know to `value_fn`, which refuses it.
    """
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("value", "grad", "value_fn")
    return tuple(name for name in ("value", "grad", "value_fn", "grad_fn") if name in parameters)


def _zeros_like(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
