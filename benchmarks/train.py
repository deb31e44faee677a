"""Training: `make_step` and `fit` compared with loops written by hand, and with PyTorch.

Everything for one model is timed alternately in one run. PyTorch has its own process; the two alternate.

    python -m benchmarks --part train [--quick]
"""

import argparse
import functools
import statistics
import sys
import time
from typing import Any

from . import worker
from .machine import cores
from .timing import in_turns, ratios

COLUMNS = {
    "model": "model",
    "what": "what",
    "step_us": "us a step|,.3f",
    "run": "time|.3f",
    "run_min": "(of minima)|.3f",
    "memory": "peak memory|.3f",
    "flops": "flops|.3f",
    "first_s": "first step, s|.2f",
}
BESIDE = {
    "model": "model",
    "framework": "framework",
    "what": "what",
    "step_us": "us a step|,.3f",
    "per_second": "steps a second|,.0f",
    "run": "over its own step|.2f",
}

#: What the other jobs of a framework are compared to.
PLAIN = "a step in a loop"

SIZES = {
    "scalar": {"steps": 1000},
    "scalar, long": {"steps": 100_000},
    "mlp": {"steps": 100, "batch": 256, "widths": (64, 256, 256, 10)},
    "transformer": {
        **{"steps": 2, "layers": 6, "batch": 8, "length": 128},
        **{"width": 256, "heads": 8, "vocab": 512},
    },
}
QUICK = {
    "scalar": SIZES["scalar"],
    "scalar, long": SIZES["scalar, long"],
    "mlp": {"steps": 20, "batch": 256, "widths": (64, 256, 256, 10)},
    "transformer": {
        **{"steps": 2, "layers": 2, "batch": 2, "length": 32},
        **{"width": 32, "heads": 2, "vocab": 64},
    },
}


def kind_of(name: str) -> str:
    """Return the model of `benchmarks.models` that a row is about."""
    return name.split(",")[0]


# --- against loops by hand ---------------------------------------------------------------------------------


def measure(name: str, quick: bool, budget: float) -> list[dict[str, Any]]:
    """Return the rows of one model: the first is the loop by hand, the others are ratios to it."""
    import jax

    sizes = (QUICK if quick else SIZES)[name]
    jobs = _programs(name, sizes)
    first, jobs = _first_calls(jobs)
    samples = in_turns([job.run for job in jobs.values()], budget)
    base = next(iter(jobs.values()))
    rows = []
    for (what, job), took, (run, run_min) in zip(jobs.items(), samples, ratios(samples), strict=True):
        rows.append(
            {
                "model": name,
                "what": what,
                "step_us": 1e6 * statistics.median(took) / job.steps,
                "run": run * base.steps / job.steps,
                "run_min": run_min * base.steps / job.steps,
                "memory": None if job.memory is None else job.memory / base.memory,
                "flops": None if job.flops is None else job.flops / base.flops,
                "first_s": first[what],
            }
        )
    jax.clear_caches()
    return rows


class Job:
    """A run of steps that can be repeated; the state is donated from run to run."""

    def __init__(self, steps: int, start: Any, advance: Any, program: Any = None) -> None:
        self.steps, self._state, self._advance = steps, start, advance
        self.memory = self.flops = None
        self._program = program

    def analyse(self) -> None:
        """Ask XLA what one program needs. It is compiled for that, so only after the timing."""
        if self._program is not None:
            program = self._program()
            memory = program.memory_analysis()
            held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            self.memory = memory.temp_size_in_bytes + held
            self.flops = program.cost_analysis()["flops"]

    def run(self) -> Any:
        self._state, out = self._advance(self._state)
        return out


def _first_calls(makers: dict[str, Any]) -> tuple[dict[str, float], dict[str, Job]]:
    """Make each job and run it once with empty caches: tracing, compiling and the first steps."""
    import jax

    took, jobs = {}, {}
    for what, make in makers.items():
        jax.clear_caches()
        start = time.perf_counter()
        jobs[what] = make()
        jax.block_until_ready(jobs[what].run())
        took[what] = time.perf_counter() - start
    for job in jobs.values():
        job.analyse()
    return took, jobs


def _programs(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return functions that make the jobs of a model, the loop by hand first."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxprop as jp

    from .models import MODELS

    steps = sizes["steps"]
    model = MODELS[kind_of(name)](**{key: size for key, size in sizes.items() if key != "steps"})
    optimizer = optax.sgd(0.01) if kind_of(name) == "scalar" else optax.adam(1e-3)
    params, *batch = model.args
    loss = model.loss
    batch = [jnp.asarray(x) for x in batch]

    def by_hand(carry, *batch):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def fresh():
        mine = jax.tree.map(lambda x: jnp.array(x, jnp.result_type(x)), params)
        return mine, optimizer.init(mine)

    def hand_scan():
        @functools.partial(jax.jit, donate_argnums=0)
        def chunk(carry, *batch):
            return jax.lax.scan(lambda carry, _: by_hand(carry, *batch), carry, None, length=steps)

        return Job(
            steps, fresh(), lambda state: chunk(state, *batch), lambda: chunk.lower(fresh(), *batch).compile()
        )

    def hand_loop():
        step = jax.jit(by_hand, donate_argnums=0)
        return Job(steps, fresh(), _loop(step, batch, steps), lambda: step.lower(fresh(), *batch).compile())

    def made_loop(watch=None, every=None):
        def make():
            step = jp.make_step(loss, optimizer, watch=watch)
            state = step.init(params)
            watched = watch is not None and watch.every == 1
            program = jax.jit(step.watched if watched else step.plain, donate_argnums=0)
            compiled = lambda: program.lower(step.init(params), *batch).compile()  # noqa: E731
            return Job(steps, state, _loop(step, batch, steps), compiled)

        return make

    def made_scan():
        step = jp.make_step(loss, optimizer)

        @functools.partial(jax.jit, donate_argnums=0)
        def chunk(state, *batch):
            return jax.lax.scan(lambda state, _: step.pure(state, *batch), state, None, length=steps)

        state = step.init(params)
        return Job(
            steps,
            state,
            lambda state: chunk(state, *batch),
            lambda: chunk.lower(step.init(params), *batch).compile(),
        )

    def fitted(watch=None, nonfinite=True):
        """The chunk of `fit`, as `fit` compiles it."""

        def make():
            step = jp.make_step(loss, optimizer, watch=watch)
            chunk, carry = _chunks_of_fit(step, params, batch, steps, nonfinite)
            return Job(steps, carry, chunk)

        return make

    if name == "scalar, long":
        return {
            "lax.scan by hand": hand_scan,
            "make_step in lax.scan": made_scan,
            "chunk of fit": fitted(),
            "chunk of fit, nonfinite=False": fitted(nonfinite=False),
        }
    if name == "scalar":
        return {
            "lax.scan by hand": hand_scan,
            "make_step in lax.scan": made_scan,
            "chunk of fit": fitted(),
            "jitted loop by hand": hand_loop,
            "make_step in a loop": made_loop(),
        }
    return {
        "jitted loop by hand": hand_loop,
        "make_step in a loop": made_loop(),
        "chunk of fit": fitted(),
        "make_step, every node each 50 steps": made_loop(jp.Watch(every=50)),
        "chunk of fit, every node each 50 steps": fitted(jp.Watch(every=50)),
        "make_step, every node each step": made_loop(jp.Watch(every=1)),
    }


def _loop(step: Any, batch: Any, steps: int) -> Any:
    """Return a function that runs consecutive steps. The schedule of watching continues from run to run."""

    def advance(state):
        out = None
        for _ in range(steps):
            state, out = step(state, *batch)
        return state, getattr(out, "loss", out)

    return advance


def _chunks_of_fit(step: Any, params: Any, batch: Any, steps: int, nonfinite: bool) -> tuple[Any, Any]:
    """Return what `fit` dispatches for this many steps on one batch, and the initial carry."""
    import jax.numpy as jnp
    import numpy as np

    from jaxprop.train.data.source import ArraySource, Batching
    from jaxprop.train.loop.chunks import RUNNING, Chunks, LoopCarry
    from jaxprop.train.loop.schedule import CAPACITY, Schedule

    arrays = tuple(batch)
    source = ArraySource(arrays, Batching(1, None), None)
    chunks = Chunks(step.functions, source, None, nonfinite, min(CAPACITY, steps))
    schedule = Schedule(None, watch_every=step.watch.every if step.watch else 0)

    def advance(held):
        (carry, done), left, result = held, steps, None
        while left:
            chunk = chunks.watched if schedule.watches(done) else chunks.many
            count = schedule.steps(done, min(left, CAPACITY))
            carry, result = chunk(carry, arrays, np.int32(0), np.int32(count))
            done, left = done + count, left - count
        return (carry, done), result.rows

    return advance, (LoopCarry(step.init(params), None, jnp.int32(RUNNING)), 0)


# --- compared with PyTorch ---------------------------------------------------------------------------------


def beside_torch(models: list[str], quick: bool, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of the second table: both frameworks, each in its own process, alternating."""
    rows = worker.measure(__spec__.name, ("torch", "jax"), models, quick, rounds, base=PLAIN)
    for row in rows:
        row["step_us"] = 1e3 * row["run_ms"] / row["told"]
        row["per_second"] = 1e6 / row["step_us"]
    return rows


def _jax_jobs(name, sizes):
    import jax

    kinds = _programs(name, sizes)
    wanted = {
        PLAIN: "make_step in a loop",
        "the same by fit": "chunk of fit",
        "norms of every node": "make_step, every node each step",
    }
    jobs = {what: kinds[kind]() for what, kind in wanted.items() if kind in kinds}

    def run(job):
        jax.block_until_ready(job.run())
        return job.steps

    return jax.__version__, {what: functools.partial(run, job) for what, job in jobs.items()}


def _torch_jobs(name, sizes):
    """The same steps in PyTorch: eager, compiled, and with a hook that computes the norm at every module."""
    import warnings

    import torch

    from .torch_hooks import torch_model

    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    steps = sizes["steps"]
    if name == "scalar":
        return torch.__version__.split("+")[0], {PLAIN: _torch_lesson(steps)}
    model, args = torch_model(name, **{key: size for key, size in sizes.items() if key != "steps"})
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def run(forward):
        def job():
            for _ in range(steps):
                optimizer.zero_grad()
                forward(*args).backward()
                optimizer.step()
            return steps

        return job

    def hooked():
        found = []

        def hook(part, grad_in, grad_out):
            found.extend(g.norm() for g in grad_out if g is not None)

        parts = [part for part in model.modules() if not list(part.children())]
        handles = [part.register_full_backward_hook(hook) for part in parts]
        run(model)()
        for handle in handles:
            handle.remove()
        return steps

    jobs = {PLAIN: run(model), "hooks, norms at every part": hooked}
    try:
        compiled = torch.compile(model)
        compiled(*args).backward()
        jobs["torch.compile"] = run(compiled)
    except Exception as error:  # there may be no C++ compiler
        print(f"torch.compile is NOT MEASURED: {type(error).__name__}", file=sys.stderr)
    return torch.__version__.split("+")[0], jobs


def _torch_lesson(steps):
    """The loop of the lesson: forward, backward, update under no_grad, zero the gradient."""
    import torch

    x, y = torch.tensor(1.0), torch.tensor(2.0)
    w = torch.tensor(1.0, requires_grad=True)

    def job():
        for _ in range(steps):
            loss = (w * x - y) ** 2
            loss.backward()
            with torch.no_grad():
                w.sub_(0.01 * w.grad)
            w.grad.zero_()
        return steps

    return job


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", choices=["torch", "jax"], required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes = QUICK if options.quick else SIZES
    load = {"torch": _torch_jobs, "jax": _jax_jobs}[options.worker]
    worker.serve(lambda name: load(name, sizes[name]))
