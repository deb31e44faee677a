"""What `torch.autograd.detect_anomaly` says of the reports in `tests/nan_cases.py`, and what it costs.

The programs are written again in PyTorch, the line at fault marked alike. A process of its own prints JSON:

    python -m benchmarks.torch_nans [--quick]
"""

import inspect
import io
import json
import re
import statistics
import sys
import time
import traceback
import warnings
from typing import Any

from .torch_hooks import QUICK, SIZES, torch_model

PROGRAMS: dict[str, Any] = {}


def program(x: Any) -> Any:
    def add(loss: Any) -> Any:
        PROGRAMS[loss.__name__] = (loss, x)
        return loss

    return add


@program(0.0)
def where_sqrt(torch, x):
    return torch.where(x < 1.0, x, torch.sqrt(x))  # origin


@program([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
def norm_then_where(torch, x):
    norms = torch.sqrt(torch.sum(x**2, dim=1))  # origin
    return torch.where(norms > 0.5, norms, torch.ones_like(norms)).sum()


@program([3.0, 0.0, -5.0])
def masked_arctan2(torch, x):
    angle = torch.atan2(x, x)  # origin
    return torch.where(x == 0.0, torch.zeros_like(x), angle).sum()


@program(0.0)
def where_log(torch, x):
    return torch.where(x > 0.0, torch.log(x), torch.zeros_like(x))  # origin


@program(100.0)
def where_exp(torch, x):
    return torch.where(x <= 0.0, torch.exp(x), 1.0 + x)  # origin


@program([0.0, 2.0, 3.0])
def where_log2(torch, x):
    return torch.where(x > 2.0, torch.log2(x), 2.0 * x).sum()  # origin


@program([-1.0, -4.0, 4.0])
def where_sqrt_of_negative(torch, x):
    return torch.where(x > 0.0, torch.sqrt(x), x).sum()  # origin


@program([16.0, 0.0])
def where_half_or_root(torch, x):
    return torch.where(x == 0.0, x / 2.0, torch.sqrt(x) + 1.0).sum()  # origin


@program([0.0, 4.0])
def half_norm(torch, x):
    return torch.sum(torch.abs(x) ** 0.5) ** 2.0  # origin


@program([0.0, 0.5, 0.5])
def entropy(torch, x):
    return -torch.sum(x * torch.log(x))  # origin


@program([-200.0, -1.0])
def sigmoid_by_hand(torch, x):
    return torch.sum(1.0 / (1.0 + torch.exp(-x)) ** 2)  # origin


@program(10.0)
def clipped_arccos(torch, x):
    return torch.acos(torch.clamp(x, -1.0, 1.0))  # origin


@program([0.2, 0.0])
def dirichlet_log_prob(torch, x):
    return torch.sum(torch.tensor([1.5, 1.0]) * torch.log(x))  # origin


@program([[1.0, 2.0], [3.0, 4.0]])
def attention_with_a_masked_row(torch, x):
    seen = torch.tensor([[True, False], [False, False]])
    scores = torch.where(seen, x @ x.T, torch.tensor(float("-inf")))
    weights = torch.softmax(scores, dim=-1)  # origin
    return torch.sum(weights @ x)


@program([1.0, 1.0])
def passing_by(torch, x):
    position, total = x, 0.0
    for target in ([5.0, 5.0], [5.0, 5.0], [3.0, 3.0], [7.0, 7.0]):
        distance = torch.sqrt(torch.sum((position - torch.tensor(target)) ** 2))  # origin
        position, total = position + 1.0, total + distance
    return total


@program([4.5, 1.5, 9.0])
def draining_reservoir(torch, x):
    level, total = x, 0.0
    for _ in range(4):
        flow = torch.sqrt(level)  # origin
        total = total + torch.where(level > 0.0, flow, torch.zeros_like(flow)).sum()
        level = level - 1.0
    return total


def marked(loss: Any) -> list[int]:
    """Lines with the mark `# origin`."""
    lines, start = inspect.getsourcelines(loss)
    return [start + i for i, line in enumerate(lines) if "# origin" in line]


def said(torch: Any, loss: Any, x: Any) -> dict[str, Any]:
    """Whether detect_anomaly raises, what it says, and whether it shows the line."""
    x = torch.tensor(x, requires_grad=True)
    shown = io.StringIO()
    stderr, sys.stderr = sys.stderr, shown
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            with torch.autograd.detect_anomaly():
                loss(torch, x).backward()
        message = ""
    except RuntimeError as error:
        message = str(error)
        traceback.print_exc(file=shown)
    finally:
        sys.stderr = stderr
    lines = {int(n) for n in re.findall(r'torch_nans.py", line (\d+)', shown.getvalue())}
    return {"message": message.splitlines()[0] if message else "", "line": bool(lines & set(marked(loss)))}


def cost(torch: Any, quick: bool, rounds: int) -> dict[str, Any]:
    """A plain step and one under detect_anomaly, in milliseconds, in turns."""
    found = {}
    for name in SIZES:
        torch.manual_seed(0)
        model, args = torch_model(name, **(QUICK if quick else SIZES)[name])

        def step(model: Any = model, args: Any = args) -> None:
            model.zero_grad(set_to_none=True)
            model(*args).backward()

        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(rounds + 1):
            for anomaly in (False, True):
                start = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    with torch.autograd.set_detect_anomaly(anomaly):
                        step()
                if turn:
                    times[anomaly].append(1e3 * (time.perf_counter() - start))
        plain, watched = (statistics.median(times[key]) for key in (False, True))
        found[name] = {"ms": plain, "run": watched / plain}
    return found


def main() -> None:
    import torch

    quick = "--quick" in sys.argv
    answers = {name: said(torch, loss, x) for name, (loss, x) in PROGRAMS.items()}
    print(json.dumps({"cases": answers, "cost": cost(torch, quick, 3 if quick else 15)}))


if __name__ == "__main__":
    main()
