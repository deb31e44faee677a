"""Training as one call."""

import contextlib
import os
import time
from collections.abc import Sequence

import jax.numpy as jnp

from ...core.rules import Rules
from ...core.types import Array, Function, PyTree
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.store import open_store
from ..checks import explains_keywords, warn_user
from ..data.data import Data, Extent, data_settings, open_source
from ..data.placement import device_placement
from ..data.sharding import Sharding
from ..step.state import State
from ..step.step import Step, as_step
from ..watch.watch import Watch
from ..writers.console import Console
from ..writers.group import WriterGroup
from ..writers.writer import Writer
from .chunks import RUNNING, Chunks, LoopCarry
from .evaluate import Evaluation, as_evaluation, make_evaluate
from .history import History
from .interrupts import Rescue
from .resume import Resume, begin, check_best, checkpoint_settings, saver
from .run import SideEffects, TrainingRun
from .schedule import CAPACITY, Schedule, check_budget, eval_period, total_steps
from .until import Condition, Until, as_until, split_condition


@explains_keywords(data=Data, evaluation=Evaluation, until=Until, watch=Watch, checkpoint=Checkpoint)
def fit(
    loss: Function | Step,
    params: PyTree,
    data: object,
    *,
    optimizer: object = None,
    steps: int | None = None,
    epochs: int | None = None,
    until: Condition | Until | None = None,
    batch_size: int | None = None,
    key: Array | int | None = None,
    evaluation: object = None,
    watch: Watch | None = None,
    has_aux: bool = False,
    model_state: PyTree = None,
    rules: Rules = (),
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    resume: Resume = False,
    sharding: Sharding | None = None,
    writers: Sequence[Writer] = (),
    log_every: int | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Train: take optimizer steps over data until it is time to stop.

        params <- params + optimizer(d loss / d params), batch after batch

    Steps run in compiled chunks that grow until one takes about a fifth of a second. What happens between
    chunks (evaluating, writing, saving) happens after the same steps in every run, however fast the machine is.

    Nothing is lost if the run is interrupted by Ctrl-C, or if the data, a writer or a checkpoint raises an
    exception: the state and the history are attached to the exception as `error.state` and `error.history` (in
    a notebook `sys.last_value.state`), and a checkpoint is saved if `checkpoint` is given.

    Args:
        loss: As in `make_step`: called as `loss(params, *batch)`, with `key` and `model_state` if it has such
            parameters. Or a step made by `make_step`, with its optimizer and all other settings.
        params: A pytree of floating point arrays. They are copied.
        data: A pytree of arrays with the examples on the first axis; a tuple such as (x, y) is several
            arguments of the loss. Or plain numbers, a single example. Or batches: a list or another iterable,
            an iterator, or a function that returns a fresh iterator for each epoch (called with the epoch if
            it takes an argument). Or `jaxprop.train.Data`, which also says how to read it: `Data((x, y),
            shuffle=False)`.
        optimizer: Any optax optimizer; `optax.sgd(0.01)` by default.
        steps: The number of steps after which to stop. If `epochs` is given too, whichever comes first counts.
        epochs: The number of passes over the data after which to stop.
        until: A condition that ends the run earlier, such as `lambda row: row["loss"] < 1e-6`, or
            `jaxprop.train.Until`, which also holds the time limit and what to do about NaN.
        batch_size: The number of examples in a batch, if data is arrays; all of them by default.
        key: A random key or a seed, for shuffling and for a loss that takes `key`.
        evaluation: Data to evaluate the loss on after each epoch, or `jaxprop.train.Evaluation`, which also
            says what to evaluate and how often: `Evaluation((x, y), accuracy, every=100)`.
        watch: As in `make_step`, and so are `has_aux`, `model_state` and `rules`. Scalars of aux are columns
            of the history.
        checkpoint: A directory, or a `jaxprop.train.Checkpoint`, which also says how often to save and which
            checkpoints to keep. The state after the last step is saved too.
        resume: Whether to continue from the newest checkpoint, if there is one. The run ends where it would
            have without the pause, bit for bit, and so does its history. The data must be read as before;
            `resume="state"` continues from the state with data that is read differently, such as with another
            batch size.
        sharding: How the run is laid out on several devices: a mesh or `data_parallel()` splits batches,
            `fully_sharded()` the state too, `NamedSharding`s place parameters explicitly. Under several
            processes arrays are the same in each, and an iterable gives each its own rows.
        writers: Objects with `write(step, row)` and `close()`, such as `CSV("log.csv")`. They are closed at
            the end. Under several processes only the first one writes.
        log_every: The number of steps between the rows that are written; by default one row for each chunk, a
            few per second.
        progress: Whether to show the progress on stderr.

    Returns:
        The state after the last step, and the `History`: a mapping of NumPy columns, a row for each step. Its
        `stop` says why the run ended, `watched` holds what was watched.

    Raises:
        TypeError, ValueError: Data, params, optimizer or settings are wrong; raised before anything is run.
        CheckpointError: There are checkpoints and `resume` is false; or the newest is damaged, or of another
            state.

    Warns:
        RuntimeWarning: Something was not finite, or the data ended early.
        UserWarning: A checkpoint was half-written when the run was killed, and is skipped.

    Examples:
        >>> import jax.numpy as jnp, jaxprop as jp, optax
        >>> def loss(w, x, y):
        ...     return jnp.mean((w * x - y) ** 2)
        >>> x = jnp.linspace(-1.0, 1.0, 8)
        >>> state, history = jp.fit(loss, 0.0, (x, 2 * x), optimizer=optax.sgd(0.1), steps=300, progress=False)
        >>> round(float(state.params), 3), history["loss"].shape, history.stop.reason
        (2.0, (300,), 'done')
    """
    reading, evaluating, ending = data_settings(data, batch_size), as_evaluation(evaluation), as_until(until)
    check_budget(steps, epochs, ends=ending.condition is not None or ending.seconds is not None)
    step = as_step(loss, optimizer=optimizer, has_aux=has_aux, rules=rules, watch=watch)
    watch = step.watch
    placement = device_placement(sharding)
    settings = checkpoint_settings(checkpoint, resume)
    state = placement.state(step.init(params, 0 if key is None else key, model_state))
    evaluate = make_evaluate(step.objective, evaluating, reading.batch_size, placement)
    check_best(settings, evaluate is not None)
    during, after = split_condition(ending.condition, evaluate is not None)
    with Rescue() as rescue, contextlib.ExitStack() as opened:
        store = None if settings is None else opened.enter_context(open_store(settings, resume=bool(resume)))
        start = begin(store, state, resume)
        done = int(start.state.step)
        extent = Extent(done, steps, epochs, start.data)
        source = placement.source(open_source(reading, start.state, extent, placement))
        opened.callback(source.close)
        start.check_data(source)
        total = total_steps(steps, epochs, source.per_epoch)
        schedule = Schedule(
            total,
            eval_every=0 if evaluating is None else eval_period(evaluating.every, total, source.per_epoch),
            save_every=0 if settings is None else settings.every,
            watch_every=0 if watch is None else watch.every,
            per_epoch=source.per_epoch,
        )
        group = opened.enter_context(WriterGroup(writers, Console(total) if progress else None))
        if resume:
            group.resume(done)
        capacity = CAPACITY if total is None else min(CAPACITY, total)
        chunks = Chunks(step.functions, source, during, ending.nonfinite, capacity, placement.jit(start.state))
        save = None if store is None else saver(store, start.history, source)
        effects = SideEffects(group, evaluate, save, after, log_every, ending.save_bad_step)
        carry = LoopCarry(start.state, source.order(done), placement.whole(jnp.int32(RUNNING)))
        deadline = None if ending.seconds is None else time.monotonic() + ending.seconds
        host = (carry, done, start.history, deadline)
        rescue.run = run = TrainingRun(step.functions, source, schedule, chunks, effects, *host)
        stop = run.go()
    if stop.reason in ("nonfinite", "data"):
        warn_user(stop.message, RuntimeWarning)
    return run.carry.state, run.result(stop)
