"""Compiled passes over a loss: one program for each thing recorded, reused at the same shapes."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jaxpr
from .._api import backprop
from .._backprop import is_active
from .._models import pack
from .._seed import ONE, seed_of
from .._tracing import CONCRETE, Traced, leaf_names, normalize_argnums, trace_call
from ..core.recorders import Recorder
from ..core.selectors import Selector
from ..core.types import Array, Function, PyTree
from ..record.tape import Tape
from .compiled import MOST_PROGRAMS, is_hashable, jit_with_structure

#: Another evaluation of a graph: (graph, values of its inputs and constants, *extra) -> outputs.
Forward: TypeAlias = Callable[..., list[Array]]


class Arguments(NamedTuple):
    """What a loss is called with."""

    args: tuple[PyTree, ...]
    kwargs: dict[str, PyTree]


class Passes:
    """Compiled passes over one loss.

    Arrays among the arguments are traced; plain integers, strings and the like are static, as under `jax.grad`.
    If Python needs the numbers in an argument that is not differentiated, that argument becomes a constant of
    the program, and the pass is compiled again for each call. The `MOST_PROGRAMS` programs used last are kept.

    Attributes:
        loss: the function to differentiate.
        argnums, has_aux, cotangent: as in `backprop`.
    """

    def __init__(
        self,
        loss: Function,
        argnums: int | tuple[int, ...] = 0,
        has_aux: bool = False,
        cotangent: PyTree | None = None,
    ) -> None:
        if not callable(loss):
            raise TypeError(f"expected a loss function, got {type(loss).__name__}.")
        self.loss, self.argnums, self.has_aux, self.cotangent = loss, argnums, has_aux, cotangent
        self._programs: OrderedDict[Hashable, Function] = OrderedDict()

    def at(self, *args: PyTree, **kwargs: PyTree) -> "Run":
        """Return the passes at some arguments.

        Raises:
            TypeError: called inside a traced function.
            ValueError: an argument was donated.
        """
        call = Arguments(args, kwargs)
        _check_readable(call)
        return Run(self, call)

    def run(self, call: Arguments, key: Hashable, pass_: Function, *extra: Array) -> PyTree:
        """Run a function of `(args, kwargs, *extra)` as a compiled program.

        Args:
            call: the arguments of the loss.
            key: identifies the function: at the same key, shapes and static arguments its program is reused.
            pass_: what to compile.
            extra: arrays passed on to it.
        """
        try:
            return self._program(key, pass_)(*call, *extra)
        except TypeError as error:
            if not isinstance(error.__cause__, CONCRETE):
                raise
        chosen = normalize_argnums(self.argnums, len(call.args))
        points = {id(leaf) for i in chosen for leaf in jax.tree.leaves(pack(call.args[i]))}
        moved = points.union(map(id, extra))
        return jit_with_structure(pass_, lambda leaf: id(leaf) in moved)(*call, *extra)

    def _program(self, key: Hashable, pass_: Function) -> Function:
        """The compiled pass of a key; the `MOST_PROGRAMS` used last are kept."""
        if not is_hashable(key):
            return jit_with_structure(pass_)
        program = self._programs.setdefault(key, jit_with_structure(pass_))
        self._programs.move_to_end(key)
        while len(self._programs) > MOST_PROGRAMS:
            self._programs.popitem(last=False)
        return program


class Run:
    """Passes at one point: a loss with its arguments."""

    def __init__(self, passes: Passes, call: Arguments) -> None:
        self.passes, self.args, self.kwargs = passes, call.args, call.kwargs

    def __call__(self, nodes: Selector | frozenset[int] | None = None, record: Recorder | None = None) -> Tape:
        """Run a recorded pass. The tape has no `aux`.

        Args:
            nodes: a selector, or a set of indices of nodes; every node that a cotangent can reach by default.
            record: as in `backprop`.
        """
        passes = self.passes
        selector = (lambda node: node.index in nodes) if isinstance(nodes, frozenset) else nodes
        with_tape = backprop(
            passes.loss,
            passes.argnums,
            passes.has_aux,
            nodes=is_active if selector is None else selector,
            record=record,
            cotangent=passes.cotangent,
        )

        def pass_(args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> Tape:
            return replace(with_tape(*args, **kwargs), aux=None)

        key = (tuple(nodes) if isinstance(nodes, list) else nodes, record)
        return passes.run(Arguments(self.args, self.kwargs), key, pass_)

    def gradient(self, key: Hashable, forward: Forward, *extra: Array) -> tuple[list[Array], list[Array]]:
        """Differentiate another evaluation of the same graph.

        Args:
            key: identifies `forward`, as in `Passes.run`.
            forward: see `Forward`.
            extra: arrays passed on to it.

        Returns:
            The outputs that are differentiated, and the gradient for each differentiated leaf.
        """
        passes = self.passes

        def pass_(args: tuple[PyTree, ...], kwargs: dict[str, PyTree], *extra: Array) -> PyTree:
            traced = trace_call(passes.loss, args, kwargs, passes.argnums, passes.has_aux)
            return _gradient(traced, seed_of(traced, passes.cotangent, False), forward, extra)

        return passes.run(Arguments(self.args, self.kwargs), (key, "gradient"), pass_, *extra)

    @functools.cached_property
    def leaf_names(self) -> frozenset[str]:
        """The paths of the leaves of all arguments."""
        return frozenset(leaf_names(self.passes.loss, self.args, self.kwargs))


def _gradient(
    traced: Traced,
    seed: list[Array],
    forward: Forward,
    extra: tuple[Array, ...],
) -> tuple[list[Array], list[Array]]:
    seeded = [i for i, ct in enumerate(seed) if ct is not None]

    def roots_of(points: list[Array]) -> list[Array]:
        outputs = forward(traced.graph, [*points, *traced.program.consts], *extra)
        return [outputs[i] for i in seeded]

    roots, pullback = jax.vjp(roots_of, traced.points)
    cts = [jnp.ones_like(root) if seed[i] is ONE else seed[i] for i, root in zip(seeded, roots, strict=True)]
    (gradient,) = pullback(cts)
    return roots, gradient


def on_host(tape: Tape) -> Tape:
    """Return the tape with its records as NumPy arrays, which are cheap to read; gradients are left out."""
    return as_numpy(replace(tape, grads=None, aux=None))


def as_numpy(tree: PyTree) -> PyTree:
    """Convert the arrays of a tree to NumPy; random keys, which NumPy does not have, are kept."""
    return jax.tree.map(lambda x: x if _jaxpr.is_key(x) else np.asarray(x), tree)


def _check_readable(call: Arguments) -> None:
    """Refuse arguments that hold no numbers.

    Raises:
        TypeError: called inside a traced function.
        ValueError: an argument was donated.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tuple(call)):
        if _jaxpr.is_tracer(leaf):
            raise TypeError(
                "`diagnose` reads numbers, and inside `jax.jit`, `jax.vmap` or `jax.grad` there are none yet. "
                "Call it outside, on the loss itself: it compiles its own pass."
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"the argument leaf {jax.tree_util.keystr(path)} was donated to a compiled function and is "
                "gone. Diagnose before the step that takes it, or keep a copy (`jax.tree.map(jnp.copy, "
                "state)`)."
            )
