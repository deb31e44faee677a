"""What to watch inside a step, and how often."""

from dataclasses import dataclass

from ..._backprop import is_active
from ...core.recorders import EachValue, Recorder
from ...core.selectors import Selector
from ...record.statistics import summary
from .histogram import Histograms, as_histograms, with_histograms


@dataclass(frozen=True)
class Watch:
    """What to record of the inside of a step, and how often.

    Pass it to `value_and_grad` in a loop of your own, to `make_step`, or to `fit`.

    Attributes:
        nodes: A selector as in `jaxprop.backprop`. By default the values of variables that a cotangent can
            reach (`jaxprop.Graph.statements`); `"*"` is every node that one can reach, `()` none.
        every: Watch the steps whose count is a multiple of this number: 0, every, 2 * every, ...
        record: What to record of values and cotangents; bounded statistics by default.
        grads: Whether to record the norm of each leaf of the gradient, and of the params.
        updates: Whether to record the norm of each leaf's change by the step as applied, its ratio to that of
            the params, and the fraction of elements that did not change.
        per_example: Whether to record norms of the gradients of single examples, and the gradient noise scale,
            by `jaxprop.per_example`: one more backward pass in the steps watched. The loss is then called on
            batches of one, and every array of the batch must have the examples on its first axis.
        histograms: A number of bins, or `jaxprop.train.Histograms`: count histograms of all that is recorded.
        attention: Whether to record the largest logit and the entropy of every attention: of each softmax whose
            result is the weights of a matrix product.

    Raises:
        ValueError: `every` is not a positive integer, or `histograms` is not possible with `record`.
        TypeError: `record` is not a `Recorder`.
    """

    nodes: Selector | None = None
    every: int = 50
    record: Recorder = summary
    grads: bool = True
    updates: bool = True
    per_example: bool = False
    histograms: Histograms | int | None = None
    attention: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.nodes, list):
            object.__setattr__(self, "nodes", tuple(self.nodes))  # so that a `Watch` can be hashed
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"Watch(every=...) must be a positive number of steps, got {self.every!r}.")
        if not isinstance(self.record, Recorder):
            raise TypeError(
                "Watch(record=...) must be a jaxprop.Recorder, such as jaxprop.summary; got "
                f"{type(self.record).__name__}."
            )
        forward = self.recorder.forward
        if self.attention and not isinstance(forward, EachValue | None):
            raise ValueError(
                "Watch(attention=True) needs a recorder of single arrays, such as jaxprop.summary or one made "
                "by jaxprop.Recorder.each."
            )

    @property
    def selects(self) -> bool:
        """Whether any node is watched."""
        return self.nodes is None or callable(self.nodes) or len(self.nodes) > 0

    @property
    def records_nodes(self) -> bool:
        """Whether anything is recorded besides the leaves of the params."""
        return self.selects or self.attention

    @property
    def selector(self) -> Selector | None:
        """What is passed to `backprop`: for `"*"` without constants, since XLA would fold their statistics."""
        return is_active if isinstance(self.nodes, str) and self.nodes == "*" else self.nodes

    @property
    def recorder(self) -> Recorder:
        """What records values and cotangents, with their histograms if asked for."""
        histograms = as_histograms(self.histograms)
        return self.record if histograms is None else with_histograms(self.record, histograms)
