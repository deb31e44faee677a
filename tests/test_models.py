"""Real models, unmodified: their gradients are JAX's, and every active value has a name.

The models are the table in ``models.py``. Each is tried jitted, eagerly, and inside the
transformations people put a gradient in. That compiles much and runs little, so all but one test
turn XLA's slower optimizations off: the numbers are the same to rounding. The tests run model by
model, and JAX's caches are cleared after every few.

Every other model has the quick tests. Where slow tests run, all models have these, and each has one
of the long ones; with JAXPROP_FULL=1 each has all.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxprop as jp
from helpers import check_close, sample, tolerance
from models import CASES

pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Model:
    """A model made once: its loss and arguments, and its tapes, computed when asked for."""

    def __init__(self, case):
        self.tags = case.tags
        self.loss, self.args, self.argnums = case.make(jax.random.key(0))

    @functools.cached_property
    def tape(self):
        """The jitted tape with everything recorded."""
        return jax.jit(jp.backprop(self.loss, self.argnums))(*self.args)

    @functools.cached_property
    def summary(self):
        """The jitted tape with statistics of everything."""
        watched = jp.backprop(self.loss, self.argnums, record=jp.summary)
        return jax.jit(watched)(*self.args)

    @property
    def made(self):
        """The loss, the arguments and the argnums."""
        return self.loss, self.args, self.argnums

    @property
    def tolerance(self):
        """How far numbers may be apart, as a fraction of their scale."""
        return tolerance(jnp.bfloat16) if "bf16" in self.tags else 4 * tolerance(jnp.float32)

    def check(self, actual, expected):
        """Compare trees to rounding."""
        check_close(actual, expected, self.tolerance / tolerance(jnp.float32))


_made = itertools.count(1)


@pytest.fixture(scope="module")
def model(request):
    """Make a model; clear JAX's caches only after every fourth, since models share operations when they are made."""
    yield Model(request.param)
    if next(_made) % 4 == 0:
        jax.clear_caches()


@pytest.fixture
def optimised():
    """Request all of XLA's optimizations."""


@pytest.fixture(autouse=True)
def quick_compile(request):
    """Compile with few optimizations unless a test requests all; this takes half the time or less."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", "optimised" not in request.fixturenames)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


QUICK = CASES[::2]
_long_tests = itertools.count()


def cases(without=(), long=False, every=1):
    """Run a test for every model, except those with some tags; as a slow test for every second one.

    A test may ask for each `every`-th model only. Of the nine long tests each model has one.
    """
    some = sample(CASES, 9, next(_long_tests)) if long else sample(CASES, every)
    params = [pytest.param(c, marks=marks(c.tags, without, long or c not in QUICK), id=c.name) for c in some]
    return pytest.mark.parametrize("model", params, indirect=True, scope="module")


def marks(tags, without, slow):
    """Return the marks of a case."""
    beyond_jax = pytest.mark.skip(reason="JAX itself cannot do this to the model")
    return [
        *([beyond_jax] if tags & set(without) else ()),
        *([pytest.mark.slow] if slow else ()),
    ]


# Gradients


@cases()
def test_jitted_gradients_are_those_of_jax(model):
    """The jitted tape has the loss and the gradients of jax.value_and_grad."""
    loss, args, argnums = model.made
    value, grads = jax.jit(jax.value_and_grad(loss, argnums))(*args)
    model.check(model.tape.value, value)
    model.check(model.tape.grads, grads)


@cases(long=True)
def test_optimised_gradients_are_those_of_jax(model, optimised):
    """The same with all of XLA's optimizations, under which operations are fused."""
    loss, args, argnums = model.made
    value, grads = jax.jit(jax.value_and_grad(loss, argnums))(*args)
    tape = jax.jit(jp.backprop(loss, argnums))(*args)
    model.check(tape.value, value)
    model.check(tape.grads, grads)


@cases(long=True)
def test_eager_gradients_are_those_of_jax(model):
    """The eager tape has the loss and the gradients of jax.value_and_grad."""
    loss, args, argnums = model.made
    value, grads = jax.value_and_grad(loss, argnums)(*args)
    tape = jp.backprop(loss, argnums)(*args)
    model.check(tape.value, value)
    model.check(tape.grads, grads)


@cases(every=3)
def test_drop_in_gradients_are_those_of_jax(model):
    """jp.value_and_grad returns what jax.value_and_grad returns, to the last bit."""
    loss, args, argnums = model.made
    expected = jax.jit(jax.value_and_grad(loss, argnums))(*args)
    actual = jax.jit(jp.value_and_grad(loss, argnums))(*args)
    check_close(actual, expected, 0.0)


# Names


def outputs(graph):
    """Return every pair of a node and one of its active outputs, nested graphs included."""
    return [(node, value) for node in graph.walk() for value in node.outputs if value.active]


@cases()
def test_every_active_value_has_a_name_and_a_place(model):
    """Names are there and differ; what model code computes has a scope or a source."""
    loss, args, argnums = model.made
    found = outputs(jp.trace(loss, argnums)(*args))
    assert found
    assert not [value for _, value in found if not value.name]
    names = [value.name for _, value in found]
    assert len(set(names)) == len(names), sorted({n for n in names if names.count(n) > 1})
    computed = [(n, v) for n, v in found if n.primitive not in ("input", "const")]
    assert not [v.name for n, v in computed if not (n.scope or n.source)]


@cases()
def test_names_do_not_depend_on_how_the_model_is_run(model):
    """Shapes alone, a second trace and the jitted tape all give the same names."""
    loss, args, argnums = model.made
    expected = [value.name for _, value in outputs(jp.trace(loss, argnums)(*args))]
    again = jp.trace(loss, argnums)(*args)
    assert [value.name for _, value in outputs(again)] == expected
    assert [value.name for _, value in outputs(model.tape.graph)] == expected


@cases()
def test_every_active_value_of_the_outer_graph_is_recorded(model):
    """The tape has an entry with a value for each active value outside loops and branches."""
    tape = model.tape
    names = [v.name for node in tape.graph.nodes for v in node.outputs if v.active]
    assert not [n for n in names if n not in tape]
    assert not [n for n in names if tape[n].value is None]


@cases()
def test_inputs_carry_their_gradients(model):
    """The cotangents recorded at the differentiated inputs are the gradients, in order."""
    tape = model.tape
    inputs = [n for n in tape.graph.nodes if n.primitive == "input" and n.active]
    cotangents = [tape[node.name].cotangent for node in inputs]
    model.check(not_zero(cotangents), not_zero(jax.tree.leaves(tape.grads)))


def not_zero(arrays):
    """Leave out what is zero everywhere: the gradient of what the loss does not use."""
    return [array for array in arrays if array is not None and np.any(array)]


# Inside other transformations


def positions(argnums):
    """Return argnums as a tuple."""
    return (argnums,) if isinstance(argnums, int) else argnums


def split(function, args, argnums):
    """Return the function of the differentiated arguments alone, and those arguments."""
    where = positions(argnums)

    def of_some(*some):
        every = list(args)
        for i, arg in zip(where, some, strict=True):
            every[i] = arg
        return function(*every)

    return of_some, tuple(args[i] for i in where)


def vmapped(differentiate, loss, args, argnums):
    """Differentiate at two points at once."""
    function, some = split(differentiate(loss, argnums), args, argnums)
    two = jax.tree.map(lambda x: jnp.stack([x, (x * 1.01).astype(x.dtype)]), some)
    return jax.jit(jax.vmap(function))(*two)


def checkpointed(differentiate, loss, args, argnums):
    """Differentiate inside jax.checkpoint."""
    return jax.jit(jax.checkpoint(differentiate(loss, argnums)))(*args)


def of_checkpoint(differentiate, loss, args, argnums):
    """Differentiate a loss that is recomputed as a whole."""
    return jax.jit(differentiate(jax.checkpoint(loss), argnums))(*args)


def sharded(differentiate, loss, args, argnums):
    """Differentiate inside shard_map over a mesh of one device."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    function = differentiate(loss, argnums)
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P()))(*args)


def inside(place, model):
    """Compare the gradients of both packages at one place."""
    tape = place(jp.backprop, *model.made)
    model.check(tape.grads, place(jax.grad, *model.made))


@cases(long=True)
def test_inside_vmap(model):
    """A tape under vmap has the gradients of jax.grad under vmap."""
    inside(vmapped, model)


@cases(long=True)
def test_inside_checkpoint(model):
    """A tape inside jax.checkpoint has the gradients of jax.grad there."""
    inside(checkpointed, model)


@cases(long=True)
def test_of_a_checkpointed_loss(model):
    """A tape of a recomputed loss has the gradients of jax.grad of it."""
    inside(of_checkpoint, model)


@cases(without={"no_shard_map"}, long=True)
def test_inside_shard_map(model):
    """A tape inside shard_map has the gradients of jax.grad there."""
    inside(sharded, model)


# Second order


def tape_grads(loss, argnums):
    """Return the function that computes the gradients of a tape with everything recorded."""
    tape = jp.backprop(loss, argnums)
    return lambda *args: tape(*args).grads


def pushed(differentiate, loss, args, argnums):
    """Push a tangent through the gradient: a Hessian-vector product."""
    function, some = split(differentiate(loss, argnums), args, argnums)
    tangents = jax.tree.map(jnp.ones_like, some)
    return jax.jit(lambda some, tangents: jax.jvp(function, some, tangents))(some, tangents)


def pulled(differentiate, loss, args, argnums):
    """Differentiate the sum of squares of the gradient: reverse over reverse."""
    function, some = split(differentiate(loss, argnums), args, argnums)

    def squares(some):
        return sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(function(*some)))

    return jax.jit(jax.grad(squares))(some)


@cases(without={"first_order"}, long=True)
def test_tangents_through_the_gradients(model):
    """jax.jvp of the gradients of a tape is jax.jvp of jax.grad."""
    model.check(pushed(tape_grads, *model.made), pushed(jax.grad, *model.made))


@cases(without={"first_order"}, long=True)
def test_gradients_of_the_gradients(model):
    """jax.grad of the gradients of a tape is jax.grad of jax.grad."""
    model.check(pulled(tape_grads, *model.made), pulled(jax.grad, *model.made))


# Statistics


def norms(arrays, steps):
    """Return the norm of each array by NumPy, over all but the leading axes of steps."""
    wide = {name: np.asarray(a).astype(np.float64) for name, a in arrays.items()}
    axes = {name: tuple(range(steps[name], a.ndim)) for name, a in wide.items()}
    return {name: np.sqrt(np.sum(a**2, axis=axes[name])) for name, a in wide.items()}


def halves(tape, half):
    """Return what is recorded under each name in one half of a tape, where it is there."""
    found = {entry.name: getattr(entry, half) for entry in tape}
    return {name: what for name, what in found.items() if what is not None}


@cases(long=True)
@pytest.mark.parametrize("half", ["value", "cotangent"])
def test_norms_of_the_summary_are_those_of_numpy(model, half):
    """record=jp.summary has the norm, at every name, that NumPy finds on the full tape."""
    actual = {n: np.asarray(s.norm) for n, s in halves(model.summary, half).items()}
    steps = {n: norm.ndim for n, norm in actual.items()}
    full = halves(model.tape, half)  # keeps what its nodes read as well
    assert {n for n in full if model.tape[n].node.active} == set(actual)
    expected = norms({n: full[n] for n in actual}, steps)
    tol = model.tolerance
    scale = max(n[np.isfinite(n) & (n < 1e18)].max(initial=0.0) for n in expected.values())
    for n in expected:
        with np.errstate(over="ignore"):
            reference = expected[n].astype(np.float32)
        np.testing.assert_allclose(actual[n], reference, rtol=tol, atol=tol * scale, err_msg=n)
