"""The step: a loss and an optimizer become one pure, compiled, donated function."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ... import _jaxpr
from ..._api import backprop, value_and_grad
from ..._tracing import argument_names, name_of
from ...core.rules import Rules
from ...core.types import Array, PyTree
from ...record.tape import Tape
from ..checks import check_float_leaves, check_optimizer, check_pair, check_same_types
from ..examples.per_example import per_example
from .watch import UNWATCHED, Norms, Watch, Watched, norms_of, without_results

#: Names of a row that are not the user's.
_TAKEN = ("loss", "step", "epoch", "steps_per_second")


class State(NamedTuple):
    """All that a step changes: a pytree, as it is saved and restored.

    Attributes:
        params: what is differentiated.
        opt_state: the state of the optimizer.
        step: how many steps were taken, an int32 scalar.
        key: the random key of the run, None where there is none. It stays; the key of a step is
            `jax.random.fold_in(key, step)`.
        model_state: the model's own state (batch statistics, counters), None where there is none.
    """

    params: PyTree
    opt_state: PyTree
    step: Array
    key: Array | None = None
    model_state: PyTree = None


class Metrics(NamedTuple):
    """What a step says of itself; `metrics["loss"]` is `metrics.loss`.

    Attributes:
        loss: the loss at the params before the update.
        aux: what the loss returned beside it, None without `has_aux`.
        watched: what was watched (`Watched`), None without `watch`.
    """

    loss: Array
    aux: PyTree = None
    watched: Watched | None = None

    def __getitem__(self, name: Any) -> Any:
        if isinstance(name, int | slice):
            return tuple(self)[name]
        if name not in self._fields:
            raise KeyError(f"a step has no metric {name!r}: there are loss, aux, watched.")
        return getattr(self, name)


class Gradient(NamedTuple):
    """What the forward and the backward pass of one step give."""

    loss: Array
    grads: PyTree
    aux: PyTree
    model_state: PyTree


class Counts:
    """How many steps the last state has seen, known on the host without waiting for the device."""

    def __init__(self) -> None:
        self._last: Any = None
        self._count = 0

    def of(self, state: State) -> int:
        """The count in a state: the last one's is known, any other is waited for."""
        return self._count if state.step is self._last else int(state.step)

    def note(self, state: State, count: int) -> None:
        """Take note of the last state."""
        self._last, self._count = state.step, count


@dataclass(frozen=True, eq=False)
class Step:
    """A training step. Made by `make_step`."""

    loss: Callable[..., Any]
    optimizer: optax.GradientTransformationExtraArgs
    has_aux: bool
    rules: Rules
    watch: Watch | None
    donate: bool
    _counts: "Counts" = field(default_factory=lambda: Counts())

    def init(self, params: PyTree, key: Any = None, model_state: PyTree = None) -> State:
        """Make the state before the first step.

        Everything is copied: the arrays handed in live on when the state is donated.

        Args:
            params: a pytree of floating point arrays, or Python floats.
            key: a random key or a seed. By default 0 where the loss takes a `key`, none where it does not.
            model_state: a pytree of arrays, for a loss that takes `model_state`.

        Raises:
            TypeError: a leaf of `params` cannot be differentiated.
            ValueError: the loss takes `model_state` and none is given, or the reverse.
        """
        check_float_leaves(params)
        if ("model_state" in self.takes) != (model_state is not None):
            raise ValueError(_model_state_mismatch(name_of(self.loss), model_state is not None))
        key = 0 if key is None and "key" in self.takes else key
        key = jax.random.key(key) if isinstance(key, int) else key
        params, model_state, key = jax.tree.map(own, (params, model_state, key))
        opt_state = jax.tree.map(own, self.optimizer.init(params))
        return State(params, opt_state, jnp.zeros((), jnp.int32), key, model_state)

    def __call__(self, state: State, *batch: Any, watch: bool | None = None) -> tuple[State, Metrics]:
        """Take one step. Compiled once for each shape of the batch; the state handed in is used up.

        Args:
            state: from `init` or from the step before.
            *batch: what the loss takes after the params.
            watch: with a `Watch`, whether to watch this step. By default the count in the state decides.
        """
        if self.watch is None and not watch:
            return self._run(self._compiled_plain, state, batch)
        if _jaxpr.is_tracer(state.step):
            inner = self.pure if watch is None else self.watched if watch else self.plain
            return inner(state, *batch)
        count = self._counts.of(state)
        due = count % self._watch().every == 0 if watch is None else watch
        # Chosen on the host, so that the plain program is the one without a `Watch`.
        new, metrics = self._run(self._compiled_watched if due else self._compiled_plain, state, batch)
        self._counts.note(new, count + 1)
        return new, metrics if due else metrics._replace(watched=UNWATCHED)

    def pure(self, state: State, *batch: Any) -> tuple[State, Metrics]:
        """The step as a plain function, not compiled: for `jax.lax.scan`, `jax.jit`, `jax.vmap` by hand.

        With a `Watch` there is a branch in it, plain or watched by the count in the state. XLA for CPUs runs
        convolutions slowly inside a branch (jax-ml/jax#12868); calling the step has none.
        """
        if self.watch is None:
            return self.plain(state, *batch)
        shapes = jax.eval_shape(self._watched_once, state, *batch)[1].watched

        def plain(state: State, *batch: Any) -> tuple[State, Metrics]:
            state, metrics = self.plain(state, *batch)
            return state, metrics._replace(watched=jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))

        # The whole step stands in the branches: what is only watched is not kept for the other, and the donated
        # state is updated in place in both.
        due = state.step % self.watch.every == 0
        return jax.lax.cond(due, self._watched_once, plain, state, *batch)

    def plain(self, state: State, *batch: Any) -> tuple[State, Metrics]:
        """The step without watching, as a plain function."""
        found = self.gradient(state, *batch)
        return self.update(state, found, *batch), Metrics(found.loss, found.aux)

    def watched(self, state: State, *batch: Any) -> tuple[State, Metrics]:
        """The step watched, as a plain function.

        Raises:
            ValueError: there is no `Watch`.
        """
        found, tape = self.opened(state, *batch)
        new, norms = self.update_observed(state, found, *batch)
        return new, Metrics(found.loss, found.aux, self.observed(tape, norms, state))

    # --- the two halves of a step --------------------------------------------------------------------

    def gradient(self, state: State, *batch: Any) -> Gradient:
        """The loss and its gradient."""
        both = value_and_grad(self.loss, has_aux=self.paired, rules=self.rules)
        value, grads = both(state.params, *batch, **self.extras(state))
        return self.split(value, state.model_state)._replace(grads=grads)

    def opened(self, state: State, *batch: Any) -> tuple[Gradient, Tape | None]:
        """The loss and its gradient, and the records of what lies between.

        Raises:
            ValueError: there is no `Watch`.
        """
        watch = self._watch()
        if not watch.selects:
            return self.gradient(state, *batch), None
        opened = backprop(
            self.loss, has_aux=self.paired, nodes=watch.selector, record=watch.record, rules=self.rules
        )
        tape = opened(state.params, *batch, **self.extras(state))
        value = (tape.value, tape.aux) if self.paired else tape.value
        found = self.split(value, state.model_state)._replace(grads=tape.grads)
        return found, without_results(tape)

    def update(self, state: State, found: Gradient, *batch: Any) -> State:
        """The state after a gradient."""
        return self._advance(state, found, batch)[0]

    def update_observed(self, state: State, found: Gradient, *batch: Any) -> tuple[State, Norms]:
        """The state after a gradient, and the norms of what changed it."""
        watch = self._watch()
        new, updates = self._advance(state, found, batch)
        examples = None
        if watch.examples:
            singly = per_example(self.loss, has_aux=self.paired)
            examples = singly(state.params, *batch, **self.extras(state))
        return new, norms_of(watch, state.params, found.grads, updates, examples)

    def observed(self, tape: Tape | None, norms: Norms, state: State) -> Watched:
        """What was watched of a step that began with `state`."""
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        paths = tuple(self.root + jax.tree_util.keystr(path) for path, _ in leaves)
        return Watched(jnp.bool_(True), state.step, tape, norms, paths)

    def _advance(self, state: State, found: Gradient, batch: tuple[Any, ...]) -> tuple[State, PyTree]:
        def value_fn(params: PyTree) -> Array:
            value = self.loss(params, *batch, **self.extras(state))
            return value[0] if self.paired else value

        known = {
            "value": found.loss,
            "grad": found.grads,
            "value_fn": value_fn,
            "grad_fn": lambda params, _: jax.grad(value_fn)(params),
        }
        extra = {name: known[name] for name in asked_of(self.optimizer.update)}
        updates, opt_state = self.optimizer.update(found.grads, state.opt_state, state.params, **extra)
        params = optax.apply_updates(state.params, updates)
        new = State(params, opt_state, state.step + jnp.int32(1), state.key, found.model_state)
        check_same_types(state, new)
        return new, updates

    def _watch(self) -> Watch:
        if self.watch is None:
            raise ValueError("the step has no `watch`: make it with make_step(..., watch=jaxprop.Watch()).")
        return self.watch

    def split(self, result: Any, model_state: PyTree) -> Gradient:
        """Take apart what the loss returned; the gradient is still to come."""
        value, rest = result if self.paired else (result, None)
        if "model_state" not in self.takes:
            return Gradient(value, None, rest, model_state)
        if not self.has_aux:
            return Gradient(value, None, None, rest)
        model_state, aux = check_pair(rest, name_of(self.loss))
        return Gradient(value, None, aux, model_state)

    # --- how the loss is called ----------------------------------------------------------------------

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """Which of `key` and `model_state` the loss has a parameter for."""
        return takes(self.loss)

    @functools.cached_property
    def root(self) -> str:
        """How the loss calls its first argument, by which leaves are named: `params['w']`."""
        return argument_names(self.loss, 1)[0]

    @property
    def paired(self) -> bool:
        """Whether the loss returns a pair."""
        return self.has_aux or "model_state" in self.takes

    def extras(self, state: State) -> dict[str, Any]:
        """What the loss is called with by keyword."""
        extras: dict[str, Any] = {}
        if "key" in self.takes:
            if state.key is None:
                raise ValueError(
                    f"`{name_of(self.loss)}` takes a `key`, and the state has none: make it with "
                    "step.init(params, key) of this step."
                )
            extras["key"] = jax.random.fold_in(state.key, state.step)
        if "model_state" in self.takes:
            extras["model_state"] = state.model_state
        return extras

    def _run(self, program: Callable[..., Any], state: State, batch: tuple[Any, ...]) -> tuple[State, Metrics]:
        try:
            return program(state, *batch)
        except (RuntimeError, ValueError) as error:  # which of them depends on how JAX came to see it
            if not any(map(_is_deleted, jax.tree.leaves((state, batch)))):
                raise
            raise RuntimeError(
                "the state (or the batch) holds arrays that were donated: a step uses up the state it is "
                "given, so that the new one can stand in its place. Go on with the state the step returned, "
                "or keep the old one usable with make_step(..., donate=False)."
            ) from error

    # --- compiled ------------------------------------------------------------------------------------

    @functools.cached_property
    def _watched_once(self) -> Callable[..., tuple[State, Metrics]]:
        return jax.jit(self.watched)  # for its cache: traced once, for the shapes and for the branch

    def _jit(self, function: Callable[..., Any]) -> Callable[..., tuple[State, Metrics]]:
        return jax.jit(function, donate_argnums=0 if self.donate else ())

    @functools.cached_property
    def _compiled_plain(self) -> Callable[..., tuple[State, Metrics]]:
        return self._jit(self.plain)

    @functools.cached_property
    def _compiled_watched(self) -> Callable[..., tuple[State, Metrics]]:
        return self._jit(self.watched)


def make_step(
    loss: Callable[..., Any],
    optimizer: Any = None,
    *,
    has_aux: bool = False,
    rules: Rules = (),
    watch: Watch | None = None,
    donate: bool = True,
) -> Step:
    """Make a training step of a loss and an optimizer: forward, backward, update, as one compiled function.

        params <- params + optimizer(d loss / d params)

    The loss is called as `loss(params, *batch)`. What else it gets, its signature says:

    - a parameter `key`: a fresh random key each step, `jax.random.fold_in(state.key, state.step)`;
    - a parameter `model_state`: the model's own state. Then it returns a pair (value, new model_state); with
      `has_aux` a pair (value, (new model_state, aux)).

    Args:
        loss: a pure function that returns a scalar; with `has_aux` a pair (scalar, aux).
        optimizer: any optax optimizer; `optax.sgd(0.01)` by default. Line searches and schedules that ask for
            `value`, `grad`, `value_fn` or `grad_fn` get them.
        has_aux: whether the loss returns auxiliary data beside the value.
        rules: how cotangents cross nodes, as in `jaxprop.backprop`.
        watch: what to write down of the inside, and how often.
        donate: let the new state take the place of the old. The state handed in is used up.

    Returns:
        A `Step`: `state = step.init(params)`, then `state, metrics = step(state, *batch)`.

    Raises:
        TypeError: the optimizer is not one of optax's; the loss is not callable.

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
    optimizer = optax.sgd(0.01) if optimizer is None else check_optimizer(optimizer)
    return Step(loss, optimizer, has_aux, tuple(rules), watch, donate)


def takes(function: Callable[..., Any]) -> frozenset[str]:
    """Which of `key` and `model_state` a function has a parameter for that is not bound yet."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset()
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return frozenset(
        name
        for name in ("key", "model_state")
        if name in parameters
        and name not in bound
        and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    )


def asked_of(update: Callable[..., Any]) -> tuple[str, ...]:
    """Which extra arguments an optimizer gets: those it names; where it takes any, what line searches read.

    Not all of them then: a line search hands what it does not know to `value_fn`, and refuses.
    """
    parameters = inspect.signature(update).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return ("value", "grad", "value_fn")
    return tuple(name for name in ("value", "grad", "value_fn", "grad_fn") if name in parameters)


def own(x: Any) -> Array:
    """A copy of an array of JAX's own, whose type is not weak: it can be donated, and stays what it is."""
    dtype = jnp.result_type(x)
    return jnp.array(x, dtype=dtype, copy=True)


def _is_deleted(x: Any) -> bool:
    return isinstance(x, jax.Array) and not _jaxpr.is_tracer(x) and x.is_deleted()


def _model_state_mismatch(name: str, given: bool) -> str:
    if given:
        return (
            f"`model_state` is given, but `{name}` has no parameter of that name. Write it as "
            "`def loss(params, *batch, model_state)`, and return (value, new model_state)."
        )
    return f"`{name}` takes `model_state`, and none is given: pass the model's first state as model_state=..."


def row_of(loss: Array, aux: PyTree) -> dict[str, Array]:
    """The numbers of a step: the loss, and the scalars of the auxiliary data by their keys."""
    row = {"loss": loss}
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if jnp.shape(leaf) == () and jnp.issubdtype(jnp.result_type(leaf), jnp.number):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            named = isinstance(path[0], jax.tree_util.DictKey | jax.tree_util.GetAttrKey) if path else False
            row[name if named and name not in _TAKEN else f"aux/{name}".rstrip("/")] = jnp.asarray(leaf)
    return row
