"""Training as one call."""

import contextlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ...core.rules import Rules
from ...core.types import PyTree
from ..checkpoint.checkpoint import open_store
from ..data.arrays import Reading, open_feed
from ..data.placement import places_of
from ..step.step import State, make_step
from ..step.watch import Watch
from ..writers.writers import telling
from .chunks import RUNNING, Carry, Chunks
from .evaluate import make_evaluate
from .history import History
from .resume import check_best, save_to, settings_of, take_up
from .run import Effects, Run
from .schedule import CAPACITY, Plan, check_budget, eval_period, total_of
from .until import split_until


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
    save_bad_step: str | Path | None = None,
    check_data: bool = False,
    memory_limit: int | None = None,
    checkpoint: Any = None,
    resume: bool = False,
    sharding: Any = None,
    writers: Sequence[Any] = (),
    log_every: int | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Train: take steps over data until it is time to stop.

        params <- params + optimizer(d loss / d params), batch after batch

    Steps run in compiled chunks that grow until one takes about a fifth of a second. What happens between
    chunks (evaluating, writing, saving) comes after the same steps in every run, however fast the machine is.

    Args:
        loss: as in `make_step`: called as `loss(params, *batch)`, with `key` and `model_state` where it has
            such parameters.
        params: a pytree of floating point arrays. They are copied.
        data: a pytree of arrays with the examples on the first axis, of which a tuple is several arguments of
            the loss, such as (x, y); plain numbers are one case; or batches: a list or another iterable, an
            iterator, or a function that gives a fresh iterator for each epoch (it is told the epoch if it takes
            an argument).
        optimizer: any optax optimizer; `optax.sgd(0.01)` by default.
        steps: when to stop, and so `epochs` and `seconds`; the first that is reached counts.
        until: stop when this is true of a row, `lambda row: row["loss"] < 1e-6`. It is asked in every step,
            inside the compiled program; if it reads `eval_...`, after every evaluation. The step it is true of
            is the last.
        batch_size: examples in a batch, where data is arrays; all of them by default.
        key: a random key or a seed, for shuffling and for a loss that takes `key`.
        shuffle: read arrays in another order each epoch. A pure function of key and epoch.
        drop_last: leave out what does not fill a batch; without it that is an error.
        model_state: as in `make_step`, and so `has_aux`, `rules` and `watch`. Scalars of aux are columns of the
            history.
        eval_data: data to evaluate on, as `data`. A last short batch counts by its examples.
        eval_fn: `(params, *batch)` -> a number or a dict of numbers, means over the examples of the batch; by
            default the loss. A parameter `model_state` gets the model's state.
        eval_every: evaluate after so many steps; by default after each epoch, or about a hundred times where an
            epoch is one step.
        check_finite: stop before a step whose loss or gradient is not finite. The step is diagnosed then:
            `history.stop.report` says which operation made the NaN, where and why (see `diagnose`).
        save_bad_step: a file such as "bad_step.npz", for all that the loss was called with in that step:
            `args, kwargs = jaxprop.diagnosis.load_reproduction(file)`, then `loss(*args, **kwargs)`.
        check_data: look for NaN and infinities in the data first.
        memory_limit: bytes. Arrays on the host up to it are put on the device as a whole, larger ones and
            memory-mapped files are streamed. By default half of the device's memory, 1 GiB where it does not
            say.
        checkpoint: a directory, or a `Checkpoint` that says how often to save there and which to keep. The
            state after the last step is saved too.
        resume: go on from the newest checkpoint there is; begin where there is none. The run ends up where it
            would have without the pause, bit for bit, and so does its history, but for `watched`.
        sharding: how the run lies on many devices: a mesh or `data_parallel()` splits batches,
            `fully_sharded()` the state too, `NamedSharding`s put parameters by hand. Under several processes
            arrays are the same in each, and an iterable gives each its own rows.
        writers: objects with `write(step, row)` and `close()`, such as `CSV("log.csv")`. They are closed in the
            end. Under several processes the first one writes.
        log_every: write the rows of so many steps; by default one for each chunk, a few a second.
        progress: show how it goes, on stderr.

    Returns:
        The state after the last step, and the `History`: a mapping of NumPy columns, a row for each step. Its
        `stop` says why the run ended, `watched` holds what was watched.

    Raises:
        TypeError, ValueError: of data, params, optimizer or budget, before anything is run.
        CheckpointError: there are checkpoints and `resume` is false; or the newest is damaged, or of another
            state.

    Warns:
        RuntimeWarning: something was not finite, or the data ended before its time.
        UserWarning: a checkpoint was half-written when the run was killed, and is passed over.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp, optax
        >>> def loss(w, x, y):
        ...     return jnp.mean((w * x - y) ** 2)
        >>> x = jnp.linspace(-1.0, 1.0, 8)
        >>> state, history = jp.fit(loss, 0.0, (x, 2 * x), optimizer=optax.sgd(0.1), steps=300, progress=False)
        >>> round(float(state.params), 3), history["loss"].shape, history.stop.reason
        (2.0, (300,), 'done')
    """
    check_budget(steps, epochs, seconds, until)
    step = make_step(loss, optimizer, has_aux=has_aux, rules=rules, watch=watch)
    places = places_of(sharding)
    settings = settings_of(checkpoint, resume)
    state = places.state(step.init(params, 0 if key is None else key, model_state))
    evaluate = make_evaluate(step, eval_fn, eval_data, batch_size, places)
    reading = Reading(batch_size, shuffle, drop_last, check_data, memory_limit, epochs, steps)
    check_best(settings, evaluate is not None)
    during, after = split_until(until, evaluate is not None)
    with contextlib.ExitStack() as opened:
        store = None if settings is None else opened.enter_context(open_store(settings, resume=resume))
        state, recording = take_up(store, state)
        done = int(state.step)
        feed = places.feed(open_feed(data, state, reading, done, places))
        opened.callback(feed.close)
        total = total_of(steps, epochs, feed.per_epoch)
        plan = Plan(
            total,
            eval_every=0 if evaluate is None else eval_period(eval_every, total, feed.per_epoch),
            save_every=0 if settings is None else settings.every,
            watch_every=0 if watch is None else watch.every,
            per_epoch=feed.per_epoch,
        )
        capacity = CAPACITY if total is None else min(CAPACITY, total)
        tell = opened.enter_context(telling(writers, progress, total, done if resume else None))
        save = None if store is None else save_to(store, recording)
        run = Run(
            step,
            feed,
            plan,
            Chunks(step, feed, during, check_finite, capacity, places.jit(state)),
            Effects(tell, evaluate, save, after, log_every, save_bad_step),
            Carry(state, feed.order(done), places.whole(jnp.int32(RUNNING))),
            done,
            None if seconds is None else time.monotonic() + seconds,
            recording,
        )
        stop = run.go()
        if save is not None:
            save(run.done, run.carry.state, {}, True)
    if stop.reason in ("nonfinite", "data"):
        warnings.warn(stop.message, RuntimeWarning, stacklevel=2)
    return run.carry.state, recording.finish(stop)
