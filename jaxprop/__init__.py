"""jaxprop opens the backward pass of JAX.

Pass it an ordinary pure function: besides the gradient it returns every intermediate value, local gradient and
cotangent, and it lets you change the rules by which cotangents propagate.

- `backprop`, `trace`, `derivative`: record a pass and inspect it. `value_and_grad`, `grad`: with other rules.
- `rules`: ready-made rules. `show`: explanations, formulas, pictures, plots. `diagnosis`: where a gradient goes
  wrong. `train`: the optimizer step and the loop.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from . import rules as rules
from ._api import backprop as backprop
from ._api import derivative as derivative
from ._api import grad as grad
from ._api import trace as trace
from .core.graph import Graph as Graph
from .core.graph import Node as Node
from .core.graph import Source as Source
from .core.graph import Value as Value
from .core.local import Local as Local
from .core.recorders import Recorder as Recorder
from .core.rules import Rule as Rule
from .record.contributions import Shares as Shares
from .record.local_gradient import LocalGradient as LocalGradient
from .record.statistics import Summary as Summary
from .record.statistics import summarize as summarize
from .record.statistics import summary as summary
from .record.tape import Entry as Entry
from .record.tape import Tape as Tape

if TYPE_CHECKING:
    from . import diagnosis as diagnosis
    from . import show as show
    from . import train as train
    from .diagnosis import Finding as Finding
    from .diagnosis import Report as Report
    from .diagnosis import Thresholds as Thresholds
    from .diagnosis import assert_gradients as assert_gradients
    from .diagnosis import assert_residuals as assert_residuals
    from .diagnosis import blocked_gradients as blocked_gradients
    from .diagnosis import check as check
    from .diagnosis import compare as compare
    from .diagnosis import diagnose as diagnose
    from .diagnosis import gradient_flow as gradient_flow
    from .diagnosis import precision as precision
    from .diagnosis import residuals as residuals
    from .show import draw as draw
    from .show import explain as explain
    from .show import formula as formula
    from .show import quiz as quiz
    from .train import Clip as Clip
    from .train import History as History
    from .train import PerExample as PerExample
    from .train import Watch as Watch
    from .train import fit as fit
    from .train import make_step as make_step
    from .train import per_example as per_example
    from .train import value_and_grad as value_and_grad

__version__ = "0.2.0"

#: What is imported when it is first used: these packages take longer to import than all the rest.
_LAZY = {
    "diagnosis": """Finding Report Thresholds assert_gradients assert_residuals blocked_gradients check compare
        diagnose gradient_flow precision residuals""",
    "show": "draw explain formula quiz",
    "train": "Clip History PerExample Watch fit make_step per_example value_and_grad",
}
_PACKAGE_OF = {name: package for package, names in _LAZY.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    if name not in _PACKAGE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_PACKAGE_OF[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_PACKAGE_OF})


if "IPython" in sys.modules:  # pictures of graphs and tapes in notebooks
    import_module(".show.notebook", __name__)
