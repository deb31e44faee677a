"""The training step: a loss and an optimizer as one compiled function that donates its state."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ... import _jaxpr
from ..._tracing import name_of
from ...core.rules import Rules
from ...core.types import Array, Function, PyTree
from ..checks import check_arrays_only, check_float_leaves, check_optimizer
from ..examples.clip import Clip
from ..watch.watch import Watch
from ..watch.watched import UNWATCHED
from .clipped import check_accumulation, check_examples
from .objective import Objective
from .pure import PureStep
from .state import Metrics, State, donatable


class StepCounter:
    """How many steps the latest state has seen, known on the host without waiting for the device."""

    def __init__(self) -> None:
        self._latest: Array | None = None
        self._count = 0

    def count(self, state: State) -> int:
        """Return the count in a state: that of the latest is known, any other is read from the device."""
        return self._count if state.step is self._latest else int(state.step)

    def set(self, state: State, count: int) -> None:
        """Make `state` the latest."""
        self._latest, self._count = state.step, count


@dataclass(frozen=True, eq=False)
class Step:
    """A training step, made by `make_step`."""

    loss: Function
    optimizer: optax.GradientTransformationExtraArgs
    has_aux: bool
    rules: Rules
    watch: Watch | None
    examples: Clip | None
    donate: bool
    _counter: StepCounter = field(default_factory=StepCounter, repr=False)

    def init(self, params: PyTree, key: Array | int | None = None, model_state: PyTree = None) -> State:
        """Make the state before the first step.

        Everything is copied, so the arrays passed in stay usable when the state is donated.

        Args:
            params: A pytree of floating point arrays, or Python floats.
            key: A random key or a seed. By default 0 if the loss takes a `key` or noise is added, otherwise
                none.
            model_state: A pytree of arrays, for a loss that takes `model_state`.

        Raises:
            TypeError: A leaf of `params` cannot be differentiated, or one of `model_state` is not an array.
            ValueError: The loss takes `model_state` and none is given, or the reverse; `Clip.microbatches` does
                not fit the optimizer.
        """
        check_float_leaves(params)
        if ("model_state" in self.takes) != (model_state is not None):
            raise ValueError(_model_state_mismatch(name_of(self.loss), model_state is not None))
        check_arrays_only(model_state, "model_state")
        random = "key" in self.takes or (self.examples is not None and self.examples.noise > 0)
        seed = 0 if key is None and random else key
        own_key = jax.random.key(seed) if isinstance(seed, int) else seed
        params, model_state, own_key = jax.tree.map(donatable, (params, model_state, own_key))
        opt_state = jax.tree.map(donatable, self.optimizer.init(params))
        check_accumulation(self.examples, opt_state)
        return State(params, opt_state, jnp.zeros((), jnp.int32), own_key, model_state)

    def __call__(self, state: State, *batch: PyTree, watch: bool | None = None) -> tuple[State, Metrics]:
        """Take one step. It is compiled once for each shape of the batch, and donates the state.

        Args:
            state: From `init` or from the step before.
            *batch: What the loss takes after the params.
            watch: Whether to watch this step, if there is a `Watch`. By default the count in the state decides.
        """
        if self.watch is None and not watch:
            return _call_donated(self._compiled_plain, state, batch)
        if _jaxpr.is_tracer(state.step):
            inner = self.pure if watch is None else self.watched if watch else self.plain
            return inner(state, *batch)
        count = self._counter.count(state)
        due = count % self.functions.required_watch().every == 0 if watch is None else watch
        # Chosen on the host, so that the plain program is the one without a `Watch`.
        new, metrics = _call_donated(self._compiled_watched if due else self._compiled_plain, state, batch)
        self._counter.set(new, count + 1)
        return new, metrics if due else metrics._replace(watched=UNWATCHED)

    def pure(self, state: State, *batch: PyTree) -> tuple[State, Metrics]:
        """Take one step as a plain function, not compiled: for your own `jax.lax.scan`, `jax.jit`, `jax.vmap`.

        With a `Watch` it contains a branch, plain or watched by the count in the state. XLA for CPUs runs
        convolutions slowly inside a branch (jax-ml/jax#12868); calling the step has none.
        """
        return self.functions.scheduled(state, *batch)

    def plain(self, state: State, *batch: PyTree) -> tuple[State, Metrics]:
        """Take one step without watching, as a plain function."""
        return self.functions.plain(state, *batch)

    def watched(self, state: State, *batch: PyTree) -> tuple[State, Metrics]:
        """Take one step, watched, as a plain function.

        Raises:
            ValueError: There is no `Watch`.
        """
        return self.functions.watched(state, *batch)

    @functools.cached_property
    def functions(self) -> PureStep:
        """The stages of the step, as pure functions."""
        objective = Objective(self.loss, self.has_aux)
        return PureStep(objective, self.optimizer, self.rules, self.watch, self.examples)

    @property
    def objective(self) -> Objective:
        """The loss, and what its signature asks for."""
        return self.functions.objective

    @property
    def takes(self) -> frozenset[str]:
        """Which of `key` and `model_state` the loss has a parameter for."""
        return self.objective.takes

    @functools.cached_property
    def _compiled_plain(self) -> Callable[..., tuple[State, Metrics]]:
        return self._jit(self.plain)

    @functools.cached_property
    def _compiled_watched(self) -> Callable[..., tuple[State, Metrics]]:
        return self._jit(self.watched)

    def _jit(self, function: Callable[..., tuple[State, Metrics]]) -> Callable[..., tuple[State, Metrics]]:
        return jax.jit(function, donate_argnums=0 if self.donate else ())


def make_step(
    loss: Function,
    optimizer: object = None,
    *,
    has_aux: bool = False,
    rules: Rules = (),
    watch: Watch | None = None,
    examples: Clip | None = None,
    donate: bool = True,
) -> Step:
    """Make a training step from a loss and an optimizer: forward, backward, update, as one compiled function.

        params <- params + optimizer(d loss / d params)

    The loss is called as `loss(params, *batch)`. Its signature says what else it gets:

    - a parameter `key`: a fresh random key in each step, `jax.random.fold_in(state.key, state.step)`;
    - a parameter `model_state`: the model's own state. Then the loss returns a pair (value, new model_state);
      with `has_aux` a pair (value, (new model_state, aux)).

    Args:
        loss: A pure function that returns a scalar; with `has_aux` a pair (scalar, aux).
        optimizer: Any optax optimizer; `optax.sgd(0.01)` by default. Line searches and schedules that ask for
            `value`, `grad`, `value_fn` or `grad_fn` get them.
        has_aux: Whether the loss returns auxiliary output, a pytree of arrays, besides the value.
        rules: How cotangents propagate through nodes, as in `jaxprop.backprop`.
        watch: What to record of the inside of a step, and how often.
        examples: How to clip the gradient of each example, and how much noise to add to their mean. Every array
            of the batch has the examples on its first axis; the loss is that of `jaxprop.per_example`.
        donate: Whether to donate the state: its buffers are reused for the new state.

    Returns:
        A `Step`: `state = step.init(params)`, then `state, metrics = step(state, *batch)`.

    Raises:
        TypeError: The optimizer is not one of optax's, or the loss is not callable.
        ValueError: `examples` is given besides `rules`, or for a loss that takes `model_state`.

    Examples:
        >>> import jaxprop as jp
        >>> def loss(w, x, y):
        ...     y_hat = w * x
        ...     return (y_hat - y) ** 2
        >>> step = jp.make_step(loss)
        >>> state, metrics = step(step.init(1.0), 1.0, 2.0)
        >>> float(metrics.loss), round(float(state.params), 4)
        (1.0, 1.02)
    """
    if not callable(loss):
        raise TypeError(f"`loss` must be a function (params, *batch) -> scalar, got {type(loss).__name__}.")
    checked = optax.sgd(0.01) if optimizer is None else check_optimizer(optimizer)
    step = Step(loss, optax.with_extra_args_support(checked), has_aux, tuple(rules), watch, examples, donate)
    if examples is not None:
        check_examples(examples, step.takes, rules)
    return step


def as_step(loss: Function | Step, **settings: Any) -> Step:
    """Return a step as it is, or make one from a loss.

    Raises:
        TypeError: Settings are given for a step, which has its own.
    """
    if not isinstance(loss, Step):
        return make_step(loss, settings.pop("optimizer"), **settings)
    given = [name for name, value in settings.items() if value]
    if given:
        raise TypeError(f"`{given[0]}` belongs to the step: pass it to make_step, not to `fit`.")
    return loss


def _call_donated(
    program: Callable[..., tuple[State, Metrics]], state: State, batch: tuple[PyTree, ...]
) -> tuple[State, Metrics]:
    """Call a program that donates its state, and explain the error if the state was donated before."""
    try:
        return program(state, *batch)
    except (RuntimeError, ValueError) as error:  # which of the two depends on where JAX notices
        if not any(map(_is_deleted, jax.tree.leaves((state, batch)))):
            raise
        raise RuntimeError(
            "the state (or the batch) holds arrays that were donated: a step reuses the buffers of the state "
            "it is given for the new state. Continue with the state that the step returned, or keep the old "
            "one usable with make_step(..., donate=False)."
        ) from error


def _is_deleted(x: object) -> bool:
    return isinstance(x, jax.Array) and not _jaxpr.is_tracer(x) and x.is_deleted()


def _model_state_mismatch(name: str, given: bool) -> str:
    if given:
        return (
            f"`model_state` is given, but `{name}` has no parameter of that name. Write it as "
            "`def loss(params, *batch, model_state)`, and return (value, new model_state)."
        )
    return f"`{name}` takes `model_state`, but none is given. Pass the model's initial state as model_state=..."
