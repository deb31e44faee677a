"""Training as one call."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .._rules import Rules
from .._types import PyTree
from ._checks import check_dtypes
from ._data import Reading, open_feed
from ._evaluate import Evaluation, eval_function
from ._history import History, Recording
from ._loop import RUNNING, Carry, make_chunks
from ._plan import CAPACITY, Plan, check_budget, eval_period, total_of
from ._run import Effects, Run
from ._step import State, make_step, own
from ._until import split_until
from ._watch import Watch


def fit(
    loss: Callable[..., Any],
    params: PyTree,
    data: Any,
    *,
    optimizer: Any = None,
    steps: int | None = None,
    epochs: int | None = None,
    seconds: float | None = None,
    until: Callable[[Mapping[str, Any]], Any] | None = None,
    batch_size: int | None = None,
    key: Any = None,
    shuffle: bool = True,
    drop_last: bool = False,
    model_state: PyTree = None,
    has_aux: bool = False,
    rules: Rules = (),
    watch: Watch | None = None,
    eval_data: Any = None,
    eval_fn: Callable[..., Any] | None = None,
    eval_every: int | None = None,
    check_finite: bool = True,
    check_data: bool = False,
    memory_limit: int | None = None,
    checkpoint: Any = None,
    resume: bool = False,
    sharding: Any = None,
    writers: Sequence[Any] = (),
    log_every: int | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Train: run the step over data until it is done.

    Example:
        >>> import jax.numpy as jnp, jaxprop as jp
        >>> def loss(w, x, y):
        ...     return jnp.mean((w * x - y) ** 2)
        >>> x = jnp.linspace(-1.0, 1.0, 8)
        >>> state, history = jp.fit(loss, 0.0, (x, 2 * x), steps=300, optimizer=optax.sgd(0.1), progress=False)
        >>> round(float(state.params), 3), history["loss"].shape
        (2.0, (300,))
    """
    check_budget(steps, epochs, seconds, until)
    step = make_step(loss, optimizer, has_aux=has_aux, rules=rules, watch=watch)
    state = step.init(params, key, model_state)
    place = jax.device_put
    done = 0
    check_dtypes(state.params, data)
    reading = Reading(batch_size, shuffle, drop_last, check_data, memory_limit, epochs)
    feed = open_feed(data, own(state.key), reading, done, place)
    evaluate = make_evaluation(loss, eval_fn, has_aux, eval_data, batch_size, place)
    during, after = split_until(until, evaluate is not None)
    total = total_of(steps, epochs, feed.per_epoch)
    plan = Plan(
        total,
        eval_every=0 if evaluate is None else eval_period(eval_every, total, feed.per_epoch),
        watch_every=0 if watch is None else watch.every,
        per_epoch=feed.per_epoch,
    )
    run = Run(
        step,
        feed,
        plan,
        make_chunks(step, feed, during, check_finite, CAPACITY if total is None else min(CAPACITY, total)),
        Effects(tell_all(writers), evaluate, None, after, log_every),
        Carry(state, feed.order(done), np.int32(RUNNING)),
        done,
        None if seconds is None else time.monotonic() + seconds,
        Recording(done),
    )
    try:
        stop = run.go()
    finally:
        feed.close()
        for writer in writers:
            writer.close()
    if stop.reason in ("nonfinite", "data"):
        warnings.warn(stop.message, RuntimeWarning, stacklevel=2)
    return run.carry.state, run.recording.finish(stop)


def make_evaluation(
    loss: Callable[..., Any],
    given: Callable[..., Any] | None,
    has_aux: bool,
    data: Any,
    batch_size: int | None,
    place: Callable[[PyTree], PyTree],
) -> Evaluation | None:
    """The evaluation a run is asked for, if any.

    Raises:
        ValueError: there is a function and no data for it.
    """
    if data is None:
        if given is not None:
            raise ValueError("`eval_fn` is given, and no data to evaluate it on: pass eval_data.")
        return None
    function, pair = eval_function(loss, given, has_aux)
    return Evaluation(function, pair, data, batch_size, place)


def tell_all(writers: Sequence[Any]) -> Callable[[int, Mapping[str, Any]], None]:
    """Tell every writer."""

    def tell(step: int, row: Mapping[str, Any]) -> None:
        for writer in writers:
            writer.write(step, row)

    return tell
