"""`python -m benchmarks`: what looking costs, as tables. Ten minutes; `--quick` takes one."""

import argparse
import json
import sys

from . import engine, page, show, torch_hooks
from .machine import machine
from .models import MODELS
from .timing import table

PARTS = ("engine", "growth", "torch", "page", "show")


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
    if "page" in options.part:
        _say("\nThe page of a graph: one HTML file, opened in Chromium\n")
        chromium = page.available()
        if not chromium:
            _say("NOT MEASURED in a browser: Chromium or playwright is not installed.\n")
        found["page"] = list(page.measure(options.quick, chromium))
        _say(table(found["page"], page.COLUMNS))
    if "show" in options.part:
        _say("\nPictures of chains of scalar operations, beside torchviz\n")
        found["show"] = list(show.measure(options.quick))
        _say(table(found["show"], show.COLUMNS))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


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
