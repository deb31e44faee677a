"""A loss, and what its signature asks for."""

import functools
import inspect
from dataclasses import dataclass

import jax

from ..._tracing import argument_names, name_of
from ...core.types import Function, PyTree
from ..checks import check_outputs, check_pair
from .state import LossOutput, State


@dataclass(frozen=True, eq=False)
class Objective:
    """A loss, and how to call it.

    Attributes:
        loss: Called as `loss(params, *batch)`, with `key` and `model_state` if it has such parameters.
        has_aux: Whether it returns a pair (value, aux).
    """

    loss: Function
    has_aux: bool

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """Which of `key` and `model_state` the loss has a parameter for."""
        return requested_extras(self.loss)

    @functools.cached_property
    def root(self) -> str:
        """The name of the loss's first argument, from which leaves are named: `params['w']`."""
        return argument_names(self.loss, 1)[0]

    @property
    def paired(self) -> bool:
        """Whether the loss returns a pair."""
        return self.has_aux or "model_state" in self.takes

    def keywords(self, state: State) -> dict[str, PyTree]:
        """Return the keyword arguments of the loss in the step that starts from `state`.

        Raises:
            ValueError: The loss takes a key, and the state has none.
        """
        keywords: dict[str, PyTree] = {}
        if "key" in self.takes:
            if state.key is None:
                raise ValueError(
                    f"`{name_of(self.loss)}` takes a `key`, but the state has none. Make the state with "
                    "step.init(params, key) of this step."
                )
            keywords["key"] = jax.random.fold_in(state.key, state.step)
        if "model_state" in self.takes:
            keywords["model_state"] = state.model_state
        return keywords

    def split(self, result: PyTree, model_state: PyTree) -> LossOutput:
        """Take apart what the loss returned. `model_state` is what it was called with.

        Raises:
            TypeError: The loss does not return what its signature promises.
        """
        value, rest = result if self.paired else (result, None)
        aux = rest if self.has_aux else None
        if "model_state" in self.takes:
            model_state, aux = check_pair(rest, name_of(self.loss)) if self.has_aux else (rest, None)
            check_outputs(model_state, name_of(self.loss), "model_state")
        check_outputs(aux, name_of(self.loss), "aux")
        return LossOutput(value, aux, model_state)


def requested_extras(function: Function) -> frozenset[str]:
    """Return which of `key` and `model_state` a function has a parameter for that is not bound yet."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return frozenset()
    bound = function.keywords if isinstance(function, functools.partial) else {}
    return frozenset(
        name
        for name in ("key", "model_state")
        if name in parameters
        and name not in bound
        and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY
    )
