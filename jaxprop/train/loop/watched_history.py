"""What was watched in a whole run, as arrays over the watched steps."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Int

from ..._jaxpr import is_key
from ..._text import in_columns, plural
from ...core.types import PyTree, Shape
from ...record.statistics import Summary
from ..watch.attention import Attention
from ..watch.histogram import Histogram
from ..watch.watched import ExampleNorms, LeafNorms, Watched

T = TypeVar("T")


class WatchedValue(NamedTuple):
    """What was watched of one value, with the watched steps on the first axis.

    Attributes:
        value: Statistics of the value (a `Summary` of arrays), or what the recorder returned.
        cotangent: The same for its cotangent, None if no cotangent arrives.
    """

    value: PyTree
    cotangent: PyTree


class StepNumbers(NamedTuple):
    """What was watched in one step, by name."""

    values: dict[str, WatchedValue]
    leaves: dict[str, LeafNorms]
    per_example: dict[str, ExampleNorms]
    attention: dict[str, Attention] = {}
    histograms: dict[str, Histogram] = {}


#: Containers of `StepNumbers` other than dict, list and tuple, by the name they have on disk.
_CONTAINERS: dict[str, Callable[..., PyTree]] = {
    kind.__name__: kind
    for kind in (StepNumbers, WatchedValue, LeafNorms, ExampleNorms, Summary, Attention, Histogram)
}


def step_numbers(watched: Watched) -> StepNumbers:
    """Return what was watched in one step, by name."""
    values = {name: WatchedValue(entry.value, entry.cotangent) for name, entry in watched.items()}
    per_example = watched.per_example if "noise" in watched.statistics.norms else {}
    others = dict(watched.attention), dict(watched.histograms)
    return StepNumbers(values, dict(watched.leaves), dict(per_example), *others)


def growth(norms: ArrayLike) -> np.ndarray:
    """Return by which factor cotangents grow from one step of a scan to the one before, on average.

        (norm of the first step / norm of the last) ** (1 / (steps - 1))

    Args:
        norms: Norms of the cotangents, the steps on the last axis.

    Returns:
        Without the last axis; NaN if there are no steps, or only one, or if a norm is zero or not finite.
    """
    norms = np.asarray(norms, np.float64)
    if norms.ndim == 0 or norms.shape[-1] < 2:
        return np.full(norms.shape[:-1], np.nan)
    first, last = norms[..., 0], norms[..., -1]
    known = np.isfinite(first) & np.isfinite(last) & (first > 0) & (last > 0)
    ratio = np.divide(first, last, out=np.full(known.shape, np.nan), where=known)
    return ratio ** (1 / (norms.shape[-1] - 1))


@dataclass(frozen=True)
class Slot:
    """Where a number is kept: in which stack, and in which row of it."""

    stack: int
    row: int


@dataclass
class WatchedColumns:
    """The numbers of the watched steps of a run, arrays of one shape and dtype in one stack.

    Attributes:
        slots: Where each number is, in the structure of `StepNumbers`; None before the first watched step.
        steps: The counts of the watched steps.
        stacks: For each shape and dtype and each watched step, an array with a row for each number.
    """

    slots: PyTree = None
    steps: list[int] = field(default_factory=list)
    stacks: list[list[np.ndarray]] = field(default_factory=list)
    _tree: Hashable | None = None
    _stack_of: list[int] = field(default_factory=list)

    def add(self, step: int, numbers: StepNumbers) -> bool:
        """Append the numbers of a step. Returns False if earlier, unlike ones were dropped."""
        leaves, tree = jax.tree.flatten(numbers)
        arrays = list(map(_on_host, leaves))
        fits = True
        if self._tree is None or tree != self._tree:
            slots = _slots_of(arrays)
            layout = _in_order(jax.tree.unflatten(tree, slots), numbers)
            fits = self.slots is None or to_json(layout) == to_json(self.slots)
            self.slots, self._tree, self._stack_of = layout, tree, [slot.stack for slot in slots]
        members: list[list[np.ndarray]] = [[] for _ in range(max(self._stack_of, default=-1) + 1)]
        for stack, array in zip(self._stack_of, arrays, strict=True):
            members[stack].append(array)
        rows = [np.stack(some) for some in members]
        fits = fits and all(stack[0].shape == row.shape for stack, row in zip(self.stacks, rows, strict=False))
        if not fits:
            self.steps, self.stacks = [], []
        self.steps.append(step)
        self.stacks = self.stacks or [[] for _ in rows]
        for stack, row in zip(self.stacks, rows, strict=True):
            stack.append(row)
        return fits

    def history(self) -> "WatchedHistory":
        """Return the numbers by name."""
        stacks = [np.stack(stack) for stack in self.stacks]
        return WatchedHistory(np.array(self.steps, np.int64), self.slots or StepNumbers({}, {}, {}), stacks)

    # --- in checkpoints ------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the stacks as arrays to save."""
        return {str(i): np.stack(stack) for i, stack in enumerate(self.stacks)}

    def layout(self) -> dict[str, object]:
        """Return everything else to save, as JSON."""
        return {"steps": self.steps, "slots": None if self.slots is None else to_json(self.slots)}

    @classmethod
    def restored(cls, layout: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "WatchedColumns":
        """Return the columns that were saved."""
        slots = None if layout["slots"] is None else from_json(layout["slots"])
        stacks = [list(arrays[str(i)]) for i in range(len(arrays))]
        return cls(slots, list(layout["steps"]), stacks)


def _slots_of(arrays: Sequence[np.ndarray]) -> list[Slot]:
    """Where to keep each array: those of one shape and dtype in one stack."""
    counts: dict[tuple[np.dtype, Shape], int] = {}
    slots = []
    for array in arrays:
        kind = (array.dtype, array.shape)
        row = counts.setdefault(kind, 0)
        counts[kind] += 1
        slots.append(Slot(list(counts).index(kind), row))
    return slots


def _in_order(layout: StepNumbers, numbers: StepNumbers) -> StepNumbers:
    """The names in the order in which they were watched: JAX sorts the keys of a dict."""
    return StepNumbers(
        {name: layout.values[name] for name in numbers.values},
        {path: layout.leaves[path] for path in numbers.leaves},
        {path: layout.per_example[path] for path in numbers.per_example},
        {name: layout.attention[name] for name in numbers.attention},
        {name: layout.histograms[name] for name in numbers.histograms},
    )


def to_json(slots: PyTree) -> object:
    """Return a tree of slots as JSON. A container that is not known here becomes a list of its leaves."""
    if slots is None:
        return None
    if isinstance(slots, Slot):
        return [slots.stack, slots.row]
    if isinstance(slots, Mapping) and all(isinstance(key, str) for key in slots):
        return {"dict": [[key, to_json(child)] for key, child in slots.items()]}
    name = type(slots).__name__
    if name in _CONTAINERS or isinstance(slots, list) or type(slots) is tuple:
        return {name: [to_json(child) for child in slots]}
    return {"list": [to_json(leaf) for leaf in jax.tree.leaves(slots)]}


def from_json(text: Any) -> PyTree:
    """Return the tree of slots that `to_json` wrote."""
    if text is None:
        return None
    if isinstance(text, list):
        return Slot(*text)
    ((name, children),) = text.items()
    if name == "dict":
        return {key: from_json(child) for key, child in children}
    members = [from_json(child) for child in children]
    return (
        _CONTAINERS[name](*members) if name in _CONTAINERS else tuple(members) if name == "tuple" else members
    )


def _on_host(x: object) -> np.ndarray:
    if isinstance(x, np.ndarray):
        return x
    return np.asarray(jax.random.key_data(x) if is_key(x) else x)  # type: ignore[arg-type]


class WatchedHistory(Mapping[str, WatchedValue]):
    """What was watched in a run: `history.watched["h"].cotangent.norm` is an array over the watched steps.

    Printing it shows a table: for each value and each leaf of the params, the first and the last watched step.

    Attributes:
        steps: The counts of the watched steps.
    """

    def __init__(
        self, steps: Int[np.ndarray, " watched"], slots: StepNumbers, stacks: Sequence[np.ndarray]
    ) -> None:
        self.steps = steps
        self._slots = slots
        self._stacks = stacks

    def __getitem__(self, name: str) -> WatchedValue:
        if name not in self._slots.values:
            hint = "pass watch=jaxprop.Watch(...)" if not len(self.steps) else "it is not matched by `nodes=`"
            raise KeyError(f"{name!r} was not watched: {hint}.")
        return self._filled(self._slots.values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots.values)

    def __len__(self) -> int:
        return len(self._slots.values)

    @property
    def leaves(self) -> Mapping[str, LeafNorms]:
        """Norms by leaf of the params, as arrays over the watched steps."""
        return {path: self._filled(slots) for path, slots in self._slots.leaves.items()}

    @property
    def per_example(self) -> Mapping[str, ExampleNorms]:
        """Single examples by leaf of the params, over the watched steps; with `Watch(per_example=True)`."""
        return {path: self._filled(slots) for path, slots in self._slots.per_example.items()}

    @property
    def attention(self) -> Mapping[str, Attention]:
        """The largest logit and the entropy of each attention, with `Watch(attention=True)`."""
        return {name: self._filled(slots) for name, slots in self._slots.attention.items()}

    @property
    def histograms(self) -> Mapping[str, Histogram]:
        """Histograms by name and quantity, such as "h/cotangent", with `Watch(histograms=...)`."""
        return {name: self._filled(slots) for name, slots in self._slots.histograms.items()}

    @property
    def growth(self) -> Mapping[str, np.ndarray]:
        """By which factor cotangents inside a scan grow from one of its steps to the one before, on average."""
        norms = {
            name: side.cotangent.norm for name, side in self.items() if isinstance(side.cotangent, Summary)
        }
        return {name: growth(x) for name, x in norms.items() if np.ndim(x) > 1}

    def _filled(self, slots: T) -> T:
        return jax.tree.map(lambda slot: self._stacks[slot.stack][:, slot.row], slots)

    def __repr__(self) -> str:
        return f"WatchedHistory({plural(len(self.steps), 'step')}, {plural(len(self), 'value')})"

    def __str__(self) -> str:
        if not len(self.steps):
            return "nothing was watched"
        first, last = int(self.steps[0]), int(self.steps[-1])
        head = f"watched in {plural(len(self.steps), 'step')}, from {first} to {last}: first -> last"
        tables = self._table_of_values(), self._table_of_leaves(), self._table_of_attention()
        return "\n\n".join([head, *filter(None, tables)])

    def _table_of_values(self) -> str:
        rows = [("value", "|value|", "|cotangent|", "zeros", "not finite")]
        for name, (value, cotangent) in self.items():
            sides = [side for side in (value, cotangent) if isinstance(side, Summary)]
            zeros = (
                _change(value.zeros.mean(axis=_scan_axes(value.zeros))) if isinstance(value, Summary) else ""
            )
            nonfinite = str(int(sum(side.nonfinite.sum() for side in sides))) if sides else ""
            rows.append((name, _change(_size_of(value)), _change(_size_of(cotangent)), zeros, nonfinite))
        return in_columns(rows) if len(rows) > 1 else ""

    def _table_of_leaves(self) -> str:
        rows = [("parameter", *LeafNorms._fields)]
        rows += [(path, *map(_change, norms)) for path, norms in self.leaves.items()]
        return in_columns(rows) if len(rows) > 1 else ""

    def _table_of_attention(self) -> str:
        rows = [("attention", "largest logit", "entropy", "of at most")]
        for name, (logit, entropy, keys) in self.attention.items():
            axes = _scan_axes(logit)
            most = f"{np.log(np.max(keys)):.3g}"
            rows.append((name, _change(np.max(logit, axes)), _change(np.mean(entropy, axes)), most))
        return in_columns(rows) if len(rows) > 1 else ""


def _size_of(side: PyTree) -> ArrayLike | None:
    """One number per watched step: the norm of a `Summary`, or the number that a recorder returned."""
    if isinstance(side, Summary):
        return np.sqrt(np.sum(np.square(side.norm), axis=_scan_axes(side.norm)))
    return side if isinstance(side, np.ndarray) and side.ndim == 1 else None


def _scan_axes(x: ArrayLike) -> tuple[int, ...]:
    """The axes of scans, after that of the watched steps."""
    return tuple(range(1, np.ndim(x)))


def _change(column: ArrayLike | None) -> str:
    """The first and the last number of a column; nothing for what was not recorded."""
    column = np.empty(0) if column is None else np.asarray(column)
    column = np.abs(column) if np.iscomplexobj(column) else column
    if np.isnan(column).all():
        return ""
    ends = column[:1] if len(column) == 1 else column[[0, -1]]
    return " -> ".join("-" if np.isnan(x) else f"{float(x):.3g}" for x in ends)
