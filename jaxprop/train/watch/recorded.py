"""One pass that records what a `Watch` asks for."""

from dataclasses import replace
from typing import Any

from ..._backprop import make_plan, run
from ..._seed import seed_of
from ..._tracing import check_points, trace_call
from ...core.rules import Rules
from ...core.types import Argnums, Function, PyTree
from ...record.tape import Tape
from .attention import attention_halves, attention_sites
from .watch import Watch


def recorded_pass(
    watch: Watch,
    fun: Function,
    args: tuple[PyTree, ...],
    kwargs: dict[str, PyTree],
    argnums: Argnums,
    has_aux: bool,
    rules: Rules,
    **options: Any,
) -> Tape:
    """Differentiate a call, and record what is watched.

    Args:
        watch: What to record.
        fun, args, kwargs, argnums, has_aux, rules: As in `backprop`.
        options: `holomorphic` and `allow_int`.
    """
    holomorphic = options.get("holomorphic", False)
    check_points(args, argnums, fun, holomorphic, options.get("allow_int", False), "value_and_grad")
    traced = trace_call(fun, args, kwargs, argnums, has_aux)
    planned = make_plan(traced, watch.selector if watch.selects else (), watch.recorder, rules)
    if watch.attention:
        forward = dict(planned.plan.forward)
        for site in attention_sites(planned.graph):
            forward |= attention_halves(site, forward)
        planned = replace(planned, plan=replace(planned.plan, forward=forward))
    return run(traced, planned, seed_of(traced, None, holomorphic), argnums)
