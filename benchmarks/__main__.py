"""`python -m benchmarks`: what looking costs, as tables. Ten minutes; `--quick` takes one."""

import argparse
import json
import sys

from . import devices, engine, per_example, torch_hooks, train
from .machine import machine
from .models import MODELS
from .timing import table

PARTS = ("engine", "growth", "torch", "per-example", "train", "devices")


def main(argv: list[str] | None = None) -> None:
    options = _options(argv)
    found = {"machine": machine()}
    print(", ".join(f"{key} {value}" for key, value in found["machine"].items()), flush=True)
    if "engine" in options.part:
        _say("\nAgainst jitted jax.value_and_grad (its rows are the base; the others are ratios)\n")
        found["engine"] = []
        for name in options.model:
            model = MODELS[name](quick=options.quick)
            compiles = 1 if options.quick else options.compiles
            for row in engine.measure(name, model, options.seconds, compiles):
                found["engine"].append(row)
            _progress(name)
        _say(table(found["engine"], engine.COLUMNS))
    if "growth" in options.part:
        _say("\nChains of equations, eager: microseconds per equation\n")
        sizes = (10, 100) if options.quick else (100, 1_000, 10_000)
        found["growth"] = list(engine.growth(sizes))
        _say(table(found["growth"], engine.GROWTH))
    if "torch" in options.part:
        _say("\nThe norm of every intermediate gradient, beside PyTorch on this CPU\n")
        if torch_hooks.available():
            models = [name for name in torch_hooks.SIZES if name in options.model]
            rounds = 3 if options.quick else 15
            found["torch"] = torch_hooks.measure(models, options.quick, rounds)
            _say(table(found["torch"], torch_hooks.COLUMNS))
        else:
            _say("NOT MEASURED: PyTorch is not installed (pip install -e '.[bench]').")
    if "per-example" in options.part:
        _say("\nNorms of single examples' gradients, over each framework's own plain gradient\n")
        found["per-example"] = per_example.measure(options.model, options.quick, 3 if options.quick else 15)
        _say(table(found["per-example"], per_example.COLUMNS))
        if not per_example.available():
            _say("BackPACK NOT MEASURED: pip install -e '.[bench]'.")
    if "devices" in options.part:
        _say("\nTwo host devices against one: they share the cores, so 1.00 is all there is to gain\n")
        found["devices"] = devices.measure(options.quick)
        _say(table(found["devices"]["scaling"], devices.SCALING))
        _say("\nA run of `fit` that is watched, and saved\n")
        _say(table(found["devices"]["cost"], devices.COST))
    if "train" in options.part:
        _train(options, found)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


def _train(options, found):
    models = [name for name in train.SIZES if name in options.model]
    _say("\nTraining, against the same loop written by hand (its row is the base; the others are ratios)\n")
    found["train"] = []
    for name in models:
        found["train"] += train.measure(name, options.quick, options.seconds)
        _progress(name)
    _say(table(found["train"], train.COLUMNS))
    _say("\nTraining beside PyTorch on this CPU\n")
    if torch_hooks.available():
        found["train_torch"] = train.beside_torch(models, options.quick, 3 if options.quick else 15)
        _say(table(found["train_torch"], train.BESIDE))
    else:
        _say("NOT MEASURED: PyTorch is not installed (pip install -e '.[bench]').")


def _options(argv):
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small models, few repetitions")
    parser.add_argument("--seconds", type=float, help="run time spent on a model (12; quick: 1)")
    parser.add_argument("--compiles", type=int, default=3, help="compilations of each program")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here as well")
    options = parser.parse_args(argv)
    if options.seconds is None:
        options.seconds = 1.0 if options.quick else 12.0
    return options


def _say(text):
    print(text, flush=True)


def _progress(name):
    if sys.stderr.isatty():
        print(f"{name} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
