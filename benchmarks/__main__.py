"""`python -m benchmarks`: the cost of jaxprop, as tables. Half an hour; `--quick` takes a few minutes."""

import argparse
import json
import sys
from collections.abc import Callable

from . import (
    check,
    devices,
    diagnose,
    engine,
    explain,
    flow,
    page,
    per_example,
    process,
    show,
    torch_hooks,
    train,
)
from .machine import machine
from .models import MODELS
from .timing import table

NO_TORCH = "NOT MEASURED: PyTorch is not installed (pip install -e '.[bench]')."


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    found = {"machine": machine()}
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()), flush=True)
    for part in options.part:
        found[part] = PARTS[part](options)
        if options.json:  # after each part, so that an interrupted run keeps its numbers
            with open(options.json, "w") as file:
                json.dump(found, file, indent=1)


def _engine(options):
    _say("\nRelative to the jitted jax.value_and_grad (its rows are absolute, the others are ratios)\n")
    compiles = 1 if options.quick else options.compiles
    rows = _each(options, lambda name, model: engine.measure(name, model, options.seconds, compiles))
    return _table(rows, engine.COLUMNS)


def _growth(options):
    _say("\nChains of equations, eager: microseconds per equation\n")
    sizes = (10, 100) if options.quick else (100, 1_000, 10_000)
    return _table(list(engine.growth(sizes)), engine.GROWTH)


def _torch(options):
    _say("\nThe norm of every intermediate gradient, compared with PyTorch on this CPU\n")
    if not torch_hooks.available():
        return _say(NO_TORCH)
    models = [name for name in torch_hooks.SIZES if name in options.model]
    return _table(torch_hooks.measure(models, options.quick, options.rounds), torch_hooks.COLUMNS)


def _per_example(options):
    _say("\nGradients of single examples, relative to each framework's own plain gradient\n")
    for name in per_example.missing():
        _say(f"{name} NOT MEASURED: pip install -e '.[bench]'.\n")
    return _table(per_example.measure(options.model, options.quick, options.rounds), per_example.COLUMNS)


def _train(options):
    models = [name for name in train.SIZES if train.kind_of(name) in options.model]
    _say("\nTraining, relative to the same loop written by hand (its row is absolute, the others are ratios)\n")
    rows = []
    for name in models:
        rows += train.measure(name, options.quick, options.seconds)
        _progress(name)
    _table(rows, train.COLUMNS)
    _say("\nTraining, compared with PyTorch on this CPU\n")
    if not torch_hooks.available():
        _say(NO_TORCH)
        return {"train": rows}
    once = [name for name in models if name in options.model]  # longer runs of the same model add nothing
    compared = train.beside_torch(once, options.quick, options.rounds)
    return {"train": rows, "torch": _table(compared, train.BESIDE)}


def _devices(options):
    _say("\nTwo host devices relative to one: they share the cores, so 1.00 is the best possible\n")
    found = devices.measure(options.quick)
    _table(found["scaling"], devices.SCALING)
    _say("\nA run of `fit` with watching and with checkpoints\n")
    _table(found["cost"], devices.COST)
    return found


def _diagnose(options):
    _say("\nWhich tools find the line that produces a NaN or Inf\n")
    cases = list(diagnose.compare(options.quick))
    _table([*cases, diagnose.summary(cases)], diagnose.COLUMNS)
    _say("\nThe cost of a diagnosis, once compiled\n")
    costs = _each(options, lambda name, model: diagnose.cost(name, model, options.seconds))
    costs += diagnose.torch_cost(options.quick) if torch_hooks.available() else []
    return {"cases": cases, "cost": _table(costs, diagnose.COST)}


def _flow(options):
    _say("\nWhere a gradient is blocked, vanishes or explodes (the first row of a model is absolute)\n")
    return _table(_each(options, lambda name, model: flow.measure(name, model, options.seconds)), flow.COLUMNS)


def _check(options):
    _say("\nEvery local gradient compared with finite differences; the second call reuses compiled nodes\n")
    checks = _table(_each(options, lambda name, model: [check.measure(name, model)]), check.COLUMNS)
    _say("\nResiduals, compared with the temporary memory of the compiled gradient\n")
    return {"check": checks, "residuals": _table(_each(options, check.residuals), check.RESIDUALS)}


def _show(options):
    _say("\nExplanations of chains of equations\n")
    explained = _table(list(explain.measure(options.quick)), explain.COLUMNS)
    _say("\nDrawings of chains of equations, compared with torchviz and `dot`\n")
    return {"explained": explained, "drawn": _table(list(show.measure(options.quick)), show.COLUMNS)}


def _page(options):
    _say("\nThe page of a graph: one HTML file, opened in Chromium\n")
    chromium = page.available()
    if not chromium:
        _say("NOT MEASURED in a browser: Chromium or playwright is not installed.\n")
    return _table(list(page.measure(options.quick, chromium)), page.COLUMNS)


def _process(options):
    _say("\nImports\n")
    found = {"imports": _table(list(process.imports(options.rounds)), process.IMPORT)}
    _say("\nMLPs of many layers through `diagnose`\n")
    layers = (10, 20) if options.quick else (40, 80, 160)
    found["depth"] = _table(list(process.depth(layers)), process.DEPTH)
    _say("\nFresh functions through every tool\n")
    return found | {"memory": _table(list(process.memory(40 if options.quick else 2_000)), process.MEMORY)}


#: The parts, in the order in which they run.
PARTS: dict[str, Callable] = {
    "engine": _engine,
    "growth": _growth,
    "process": _process,
    "torch": _torch,
    "per-example": _per_example,
    "train": _train,
    "devices": _devices,
    "diagnose": _diagnose,
    "flow": _flow,
    "check": _check,
    "show": _show,
    "page": _page,
}


def _each(options, measure):
    """The rows of all models."""
    rows = []
    for name in options.model:
        rows += measure(name, MODELS[name](quick=options.quick))
        _progress(name)
    return rows


def _table(rows, columns):
    _say(table(rows, columns))
    return rows


def _say(text):
    print(text, flush=True)


def _progress(name):
    if sys.stderr.isatty():
        print(f"{name} done", file=sys.stderr, flush=True)


def _options(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small models, few repetitions")
    parser.add_argument("--seconds", type=float, help="run time for each model (default: 12; quick: 1)")
    parser.add_argument("--compiles", type=int, default=3, help="compilations of each program (default: 3)")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to a file")
    options = parser.parse_args(argv)
    if options.seconds is None:
        options.seconds = 1.0 if options.quick else 12.0
    options.rounds = 3 if options.quick else 15  # turns of each framework
    return options


if __name__ == "__main__":
    main()
