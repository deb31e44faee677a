"""Frameworks compared: one process for each, alternating, because in one process they compete for the cores."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

#: The jobs of one model: a name, and a function that runs the job once, waits, and returns a number to show.
Jobs = dict[str, Callable[[], Any]]


class Worker:
    """A process that answers one request at a time: `python -m MODULE --worker FRAMEWORK`."""

    def __init__(self, module: str, framework: str, quick: bool) -> None:
        command = [sys.executable, "-m", module, "--worker", framework]
        self._process = subprocess.Popen(
            command + ["--quick"] * quick,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"OMP_WAIT_POLICY": "passive", **os.environ},  # threads that wait do not spin
        )

    def ask(self, **question: Any) -> Any:
        time.sleep(0.25)  # the threads of the other process spin for a while before they sleep
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the worker ended (exit code {self._process.wait()}); see above")
        return json.loads(answer)

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def measure(
    module: str, frameworks: Sequence[str], models: Sequence[str], quick: bool, rounds: int, base: str
) -> list[dict[str, Any]]:
    """Return a row for every model, framework and job; ratios are to the job `base` of the same framework."""
    workers = {name: Worker(module, name, quick) for name in frameworks}
    rows = []
    try:
        for model in models:
            told = {name: worker.ask(load=model) for name, worker in workers.items()}
            samples: dict[tuple[str, str], list[float]] = {}
            for turn in range(rounds):
                for name, worker in workers.items():
                    for what, took in worker.ask(turn=turn)["ms"].items():
                        samples.setdefault((name, what), []).append(took)
            for (name, what), took in samples.items():
                plain = samples[name, base]
                rows.append(
                    {
                        "model": model,
                        "framework": f"{name} {told[name]['version']}",
                        "what": what,
                        "told": told[name]["told"][what],
                        "run_ms": statistics.median(took),
                        "run": statistics.median(t / p for t, p in zip(took, plain, strict=True)),
                        "run_min": min(took) / min(plain),
                    }
                )
    finally:
        for worker in workers.values():
            worker.stop()
    return rows


def serve(load: Callable[[str], tuple[str, Jobs]]) -> None:
    """Answer requests on standard input until it closes."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # only answers may be written there
    jobs: Jobs = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "load" in question:
            version, jobs = load(question["load"])
            for job in jobs.values():  # twice: the first call compiles
                job(), job()
            answer = {"version": version, "told": {what: job() for what, job in jobs.items()}}
        else:
            answer = {"ms": _turn(jobs, question["turn"])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _turn(jobs: Jobs, turn: int) -> dict[str, float]:
    """Return milliseconds per call of each job, from a run of at least 20 ms; the order rotates."""
    times = {}
    order = list(jobs.items())
    begin = turn % len(order)
    for what, job in order[begin:] + order[:begin]:
        job()  # wakes the threads
        start, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - start < 0.02:
            job()
            calls += 1
        times[what] = 1e3 * (time.perf_counter() - start) / calls
    return times
