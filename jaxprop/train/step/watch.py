"""Watching from inside the compiled step: what to write down, how often, and how to read it."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ...core.recorders import Recorder
from ...core.selectors import Selector
from ...core.types import Array, PyTree
from ...record.statistics import summary
from ...record.tape import Entry, Tape
from ..examples.per_example import PerExample, noise_and_signal

#: Of each kind there is, one number for each leaf, in the order of the params.
Norms: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class Watch:
    """What to write down of the inside of a step, and how often.

    Attributes:
        nodes: a selector as in `jaxprop.backprop`. `*` is every node a cotangent can reach; `()` none.
        every: watch the steps whose count is a multiple of this: 0, every, 2 * every, ...
        record: what to write down of values and cotangents; bounded statistics by default.
        grads: the norm of each leaf of the gradient, and of the params.
        updates: the norm of each leaf of the update, and its ratio to that of the params.
        examples: norms of the gradients of single examples, and the gradient noise scale, by
            `jaxprop.per_example`: one more backward pass on the steps watched. The loss is then called on
            batches of one, and every array of the batch has the examples on its first axis.
    """

    nodes: Selector = "*"
    every: int = 50
    record: Recorder = summary
    grads: bool = True
    updates: bool = True
    examples: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"Watch(every=...) is a number of steps, 1 or more; got {self.every!r}.")
        if not isinstance(self.record, Recorder):
            raise TypeError(
                "Watch(record=...) is a jaxprop.Recorder, such as jaxprop.summary; got "
                f"{type(self.record).__name__}."
            )

    @property
    def selects(self) -> bool:
        """Whether it looks at any node."""
        return callable(self.nodes) or len(self.nodes) > 0

    @property
    def selector(self) -> Selector | None:
        """What `backprop` is given: constants are left out of `*`, or XLA would fold their statistics."""
        return None if isinstance(self.nodes, str) and self.nodes == "*" else self.nodes


class Leaf(NamedTuple):
    """Norms of one leaf of the params, before the update. NaN where they were not asked for.

    Attributes:
        param: 2-norm of the parameter.
        grad: 2-norm of its gradient.
        update: 2-norm of the change the optimizer makes.
        ratio: update / param: by which fraction the step changes it.
    """

    param: Any
    grad: Any
    update: Any
    ratio: Any


class Singly(NamedTuple):
    """What single examples say of one leaf of the params.

    Attributes:
        rms: root of the mean squared 2-norm of their gradients.
        max: the greatest of these norms.
        noise_scale: batch size at which noise equals signal, see `jaxprop.PerExample.noise_scale`.
    """

    rms: Any
    max: Any
    noise_scale: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watched(Mapping[str, Entry]):
    """What was watched in one step: `watched["h"].cotangent.norm`. Read it on the host.

    A mapping from names of values to entries (`Entry`), empty where the step was not watched: `bool(watched)`
    says which.

    Attributes:
        on: whether the step was watched.
        step: the count of the step.
        tape: records of values and cotangents, None with `nodes=()`.
        norms: of each leaf of the params: of the parameter, its gradient, its update.
        paths: the names of the leaves.
    """

    on: Any
    step: Any
    tape: Tape | None
    norms: Norms
    paths: tuple[str, ...] = field(metadata={"static": True})

    def __bool__(self) -> bool:
        return bool(self.on)

    def __getitem__(self, name: str) -> Entry:
        self._check_on()
        if self.tape is None:
            raise KeyError(f"{name!r} was not watched: `nodes=()` picks nothing.")
        return self.tape[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tape.names if self and self.tape is not None else ())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _check_on(self) -> None:
        if not self:
            raise ValueError(
                "this step was not watched, so there is nothing to read: ask `if metrics.watched:` first."
            )

    @functools.cached_property
    def leaves(self) -> Mapping[str, Leaf]:
        """Norms by leaf of the params: `watched.leaves["params['w1']"].ratio`."""
        self._check_on()
        param, grad, update = map(self._norm, ("param", "grad", "update"))
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = np.transpose([param, grad, update, update / param])
        return {path: Leaf(*row) for path, row in zip(self.paths, rows, strict=True)}

    @functools.cached_property
    def examples(self) -> Mapping[str, Singly]:
        """Single examples by leaf of the params: `watched.examples["w"].max`; with `examples=True`."""
        self._check_on()
        rms, most, noise, signal = map(self._norm, ("example_rms", "example_max", "noise", "signal"))
        with np.errstate(divide="ignore", invalid="ignore"):
            rows = np.transpose([rms, most, noise / signal])
        return {path: Singly(*row) for path, row in zip(self.paths, rows, strict=True)}

    @property
    def noise_scale(self) -> float:
        """The gradient noise scale of all params together, in examples; NaN without `examples=True`."""
        self._check_on()
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(self._norm("noise").sum() / self._norm("signal").sum())

    def _norm(self, kind: str) -> np.ndarray[Any, Any]:
        return np.asarray(self.norms[kind]) if kind in self.norms else np.full(len(self.paths), np.nan)


#: What a step that was not watched says.
UNWATCHED = Watched(False, -1, None, {}, ())


def without_results(tape: Tape) -> Tape:
    """The records alone: what a step returns in another place is taken off the tape."""
    return replace(tape, value=None, aux=None, grads=None, seed=None)


def norms_of(
    watch: Watch, params: PyTree, grads: PyTree, updates: PyTree, examples: PerExample | None
) -> Norms:
    """The norms a `Watch` asks for, leaf by leaf."""
    norms = {} if examples is None else _norms_of_examples(examples)
    if watch.grads or watch.updates:
        norms["param"] = _norms(params)
    if watch.grads:
        norms["grad"] = _norms(grads)
    if watch.updates:
        norms["update"] = _norms(updates)
    return norms


def _norms_of_examples(examples: PerExample) -> Norms:
    """Statistics of single examples' gradients, and noise and signal of each leaf, without bias."""
    squares = jnp.stack(jax.tree.leaves(examples.norms)) ** 2
    noise, signal = noise_and_signal(squares, _norms(examples.grads).astype(squares.dtype) ** 2)
    return {
        "example_rms": jnp.sqrt(squares.mean(1)),
        "example_max": jnp.sqrt(squares.max(1)),
        "noise": noise,
        "signal": signal,
    }


def _norms(tree: PyTree) -> Array:
    return jnp.stack([_norm(x) for x in jax.tree.leaves(tree)])


def _norm(x: Array) -> Array:
    x = jnp.abs(x)
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    return jnp.sqrt(jnp.sum(wide * wide))
