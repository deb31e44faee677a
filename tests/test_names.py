"""Names of values: what stands in the source, and what is said where it does not.

Each program of the first part is a case: its decorator holds the names its operations must have, in program
order, those of a body after the operation that holds it.
"""

import dataclasses
import functools
import importlib.util
import linecache
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

import jaxprop as jp
import models

ROOT = Path(__file__).parents[1]
VECTOR = jnp.linspace(0.5, 1.5, 3)
ROWS = jnp.ones((4, 3))


class Case(NamedTuple):
    """A program, the arguments it is traced at, and the names of its operations."""

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    names: list[str]


CASES: dict[str, Case] = {}


def case(names: str, *args: Any) -> Callable[..., Any]:
    """Make the function below a case. A blank separates operations, a comma the outputs of one."""

    def add(fun):
        CASES[fun.__name__] = Case(fun, args or (VECTOR,), names.split())
        return fun

    return add


def operations(graph):
    return [node for node in graph.walk() if node.primitive not in ("input", "const")]


def names_of(graph):
    """The names of the operations, nested ones included; those of one operation joined by a comma."""
    return [",".join(node.names) for node in operations(graph)]


def check_names(graph):
    """Every active value has a name, and no two values have the same."""
    values = [value for node in graph.walk() for value in node.outputs]
    assert all(value.name for value in values if value.active)
    given = [value.name for value in values if value.name]
    assert len(given) == len(set(given)), given


# --- assignments ----------------------------------------------------------------------------------------


@case("y s loss")
def assigned(w):
    y = w * 3.0
    s = y - 1.0
    loss = s.sum()
    return loss


@case("y result_of_the_function")
def result_of_the_function(w):
    y = w * 3.0
    return y.sum()


@case("h h#2 h#3 repeated")
def repeated(w):
    h = jnp.sin(w)
    h = jnp.cos(h)
    h = jnp.tanh(h)
    return h.sum()


@case("h h#2 cos h#3 sin h#4 augmented")
def augmented(w):
    h = jnp.sin(w)
    h += w
    h *= jnp.cos(w)  # the cosine is no `h`
    h -= jnp.sin(w) if w.ndim else w
    return h.sum()


@case("h t reduce_sum reduce_sum#2 walrus")
def walrus(w):
    if (h := jnp.sin(w)).shape == (3,):
        return (t := h * 2.0).sum() + t.sum()


@case("a b c d e neg tan exp g add literal_tuples")
def literal_tuples(w):
    a, b = jnp.sin(w), jnp.cos(w)
    (c, [d, e]), *rest = (a * b, [a + b, a - b]), -a, jnp.tan(a)  # noqa: F841
    _, g = jnp.exp(w), jnp.exp(a)
    return (c + g).sum()


@case("a b chained_targets")
def chained_targets(w):
    a = kept = w * 3.0
    held = {}
    held["k"] = b = kept - a
    return b.sum()


@case("box.h d['k'] d['m'] box.z parts[i] other_targets")
def other_targets(w):
    box, d, parts, i = Box(), {}, [0, 0], 1
    box.h = jnp.sin(w)
    d["k"] = jnp.cos(w)
    d["m"], box.z = jnp.exp(w), jnp.tan(w)
    parts[i] = jnp.tanh(w)
    return parts[1].sum()


class Box:
    """Holds whatever is put in it."""


@case("g annotated")
def annotated(w):
    g: jax.Array = jnp.sqrt(w)
    return g.sum()


@case("sin cos h mul k")
def several_lines(w):
    h = (
        jnp.sin(w)
        + jnp.cos(
            w,
        )
    )  # fmt: skip
    k = jnp.sum(
        h
        * h,
        axis=0,
    )  # fmt: skip
    return k


@case("a sin b c conditional")
def conditional(w):
    a = jnp.sin(w) if w.ndim == 1 else jnp.cos(w)
    b = 2.0 * (jnp.sin(w) if w.ndim == 1 else w)
    c = jnp.tan(b if w.ndim else a)
    return c.sum()


@case("pair['a'] pair['b'][0] add literal_of_literals")
def literal_of_literals(w):
    pair = {"a": jnp.sin(w), "b": [jnp.cos(w)]}
    return (pair["a"] + pair["b"][0]).sum()


@case("sin cos pair[0] add after_a_star")
def after_a_star(w):
    few = [w]
    pair = (*few, jnp.sin(w), jnp.cos(w))
    pair = (jnp.exp(w), *few, pair[1])
    return (pair[0] + pair[1]).sum()


@case("high,low pieces[0],pieces[1] add in_pieces")
def in_pieces(w):
    high, low = jnp.split(w, [1])
    pieces = lax.top_k(w, 1)
    return (high + pieces[0]).sum()


# --- helpers ---------------------------------------------------------------------------------------------


def expression(x):
    return jnp.sin(x) * 2.0


def variable(x):
    y = jnp.sin(x)
    return y


def deeper(x):
    z = expression(x)
    return z


def deepest(x):
    out = deeper(x)
    return out


@case("expression/sin h k expression/sin#2 m helpers")
def helpers(w):
    h = expression(w)
    k = variable(h)
    m = deepest(k)
    return m.sum()


@case("y y#2 add inside_an_expression")
def inside_an_expression(w):
    return (variable(variable(w)) + w).sum()


def looping(x):
    for _ in range(3):
        x = jnp.sin(x)
    return x


@case("x x#2 h loop_in_a_helper")
def loop_in_a_helper(w):
    h = looping(w)
    return h.sum()


@case("m out m#2 out#2 helper_in_a_loop")
def helper_in_a_loop(w):
    out = w
    for _ in range(2):
        m = variable(out)
        out = m + 1.0
    return out.sum()


def pair_of_expressions(x):
    return jnp.sin(x), jnp.cos(x)


def pair_of_variables(x):
    a = jnp.sin(x)
    b = jnp.cos(x)
    return b, {"a": a}


@case("p q s['a'] r t[0] t[1] helpers_with_several_results")
def helpers_with_several_results(w):
    p, q = pair_of_expressions(w)
    r, s = pair_of_variables(p)
    t = pair_of_expressions(r)
    return t[0].sum()


def dictionary(x):
    a = jnp.sin(x)
    return {"a": a, "b": jnp.cos(x), 3: jnp.tan(x)}


@case("d['a'] d['b'] d[3] helper_with_a_dictionary")
def helper_with_a_dictionary(w):
    d = dictionary(w)
    return d["a"].sum()


def early(x, stop):
    y = jnp.sin(x)
    if stop:
        return y
    z = jnp.cos(y)
    return z


# A value that may or may not be what comes back keeps the name it has inside.
@case("y h y#2 early_returns")
def early_returns(w):
    h = early(w, stop=False)
    g = early(h, stop=True)
    return g.sum()


def branching(x, up):
    if up:  # noqa: SIM108
        y = jnp.sin(x)
    else:
        y = jnp.cos(x)
    return y


def changed(x):
    y = jnp.sin(x)
    y = y + 1.0
    return y


@case("h g y k returned_once")
def returned_once(w):
    h = branching(w, up=True)
    g = branching(h, up=False)
    k = changed(g)
    return k.sum()


def leaves_the_loop(x, count):
    for i in range(3):
        if i == count:
            return x
        y = jnp.sin(x)
    return y


@case("y y#2 out_of_a_loop")
def out_of_a_loop(w):
    h = leaves_the_loop(w, 2)
    return h.sum()


def recursive(x, depth):
    if depth == 0:
        return x
    y = jnp.sin(x)
    return recursive(y, depth - 1)


@case("y y#2 y#3 recursion")
def recursion(w):
    h = recursive(w, 3)
    return h.sum()


class Model:
    def __init__(self, scale):
        self.scale = scale

    def layer(self, x):
        z = self.scale * x
        return z

    def __call__(self, x):
        return self.layer(x) + 1.0

    @property
    def norm(self):
        return (self.scale**2).sum()

    @staticmethod
    def activation(x):
        return jnp.tanh(x)

    @classmethod
    def make(cls, scale):
        doubled = scale * 2.0
        return cls(doubled)


@case("doubled h z y norm/integer_pow n a mul methods")
def methods(w):
    model = Model.make(w)
    h = model.layer(w)
    y = model(h)
    n = model.norm
    a = Model.activation(y)
    return (a * n).sum()


def transparent(fun):
    @functools.wraps(fun)
    def wrapper(*args):
        return fun(*args)

    return wrapper


def doubling(fun):
    @functools.wraps(fun)
    def wrapper(*args):
        out = fun(*args)
        return 2.0 * out

    return wrapper


@transparent
def plainly(x):
    return jnp.sin(x)


@doubling
def doubly(x):
    return jnp.sin(x)


@case("h out k decorators")
def decorators(w):
    h = plainly(w)
    k = doubly(h)
    return k.sum()


@case("h k lambdas")
def lambdas(w):
    f = lambda t: jnp.sin(t)  # noqa: E731
    h = f(w)
    k = (lambda t: jnp.cos(t))(h)
    return k.sum()


@case("sin mul sin#2 mul#2 cos tan total comprehensions")
def comprehensions(w):
    hs = [jnp.sin(w) * i for i in (2.0, 3.0)]
    d = {k: jnp.cos(hs[0]) for k in "a"}
    total = sum((jnp.tan(x) for x in d.values()), start=w)
    return total.sum()


@case("add add#2 total sums")
def sums(w):
    total = sum([w, w, w, w][1:], start=w)
    return total.sum()


def parts(x):
    for _ in range(2):
        y = jnp.sin(x)
        yield y
        x = y


@case("y total y#2 total#2 generators")
def generators(w):
    total = w
    for part in parts(w):
        total = total + part
    return total.sum()


@case("h each slice squeeze other add mapped", ROWS)
def mapped(w):
    def local(x):
        h = jnp.sin(x)
        return h.sum()

    each = jax.vmap(local)(w)
    other = jax.vmap(lambda row: row[0] * 2.0)(w)
    return (each + other).sum()


# --- calls and bodies ------------------------------------------------------------------------------------


@jax.jit
def jitted(x):
    y = jnp.sin(x)
    return y * 2.0


@case("y h y#2 k calls_twice")
def calls_twice(w):
    h = jitted(w)
    k = jitted(h)
    return k.sum()


@case("carry,ys step/mul new y reduce_sum reduce_sum#2 scanned")
def scanned(w):
    def step(carry, x):
        new = carry * w + x
        y = jnp.sin(new)
        return new, y

    carry, ys = lax.scan(step, w, ROWS)
    return carry.sum() + ys.sum()


@case("last['a'],last['b'],p,q a b out[0]['a'],out[0]['b'],out[1][0],out[1][1] a#2 b#2 carries_a_dictionary")
def carries_a_dictionary(w):
    def step(c, x):
        a = c["a"] + x
        b = c["b"] * a
        return {"a": a, "b": b}, (a, b)

    last, (p, q) = lax.scan(step, {"a": w, "b": w}, ROWS)
    out = lax.scan(step, last, q)
    return out[0]["a"].sum()


@case("final step/mul only_the_carry")
def only_the_carry(w):
    def step(carry, x):
        return carry * x, None

    final, _ = lax.scan(step, w, ROWS)
    return final.sum()


# JAX takes out of a loop what is only passed through: one name too few must not shift the others.
@case("carry['a'],ys['p'] step/mul passed_through")
def passed_through(w):
    def step(c, x):
        return {"a": c["a"] * x, "b": c["b"]}, {"p": c["a"], "q": x}

    carry, ys = lax.scan(step, {"a": w, "b": w}, ROWS)
    return carry["a"].sum()


@case("y mul made['b'] mul#2 over_rows")
def over_rows(w):
    y = lax.map(lambda x: x * 2.0, w)
    made = lax.map(lambda x: {"a": x, "b": x * 2.0}, y)
    return made["b"].sum()


@case("scan[0],f add mul counted")
def counted(w):
    f = lax.fori_loop(0, 3, lambda i, x: x * w, w)
    return f.sum()


@case("n,v nx body/add lt while[0],while[1],g['x'] add#2 add#3 lt#2 add whiles", VECTOR, VECTOR)
def whiles(w, x):
    def body(state):
        i, x = state
        nx = x * 1.5
        return i + 1, nx

    n, v = lax.while_loop(lambda state: state[0] < 3, body, (0, x))
    g = lax.fori_loop(0, n, lambda i, s: {"x": s["x"] + 1.0}, {"x": v})
    return (g["x"] + w).sum()


def halved(x):
    half = x / 2.0
    return half


def doubled(x):
    double = x * 2.0
    return double


@case(
    "clamp a half double clamp#2 b sub add clamp#3 c sin cos clamp#4 d,e neg mul#2 tan mul#3 "
    "clamp#5 f['x'] sub#2 add#2 mul choices",
    VECTOR,
    jnp.int32(1),
)
def choices(w, number):
    a = lax.switch(number, [halved, doubled], w)
    b = lax.switch(number, [lambda x: x - 1.0, lambda x: x + 1.0], a)
    c = lax.switch(number, [jnp.sin, jnp.cos], b)
    d, e = lax.switch(number, [lambda x: (-x, x * 3.0), lambda x: (jnp.tan(x), x * 2.0)], c)
    f = lax.switch(number, [lambda x: {"x": x - 1.0, "y": x}, lambda x: {"x": x + 1.0, "y": x}], e)
    return (d * f["x"]).sum()


@case(
    "convert_element_type h half double convert_element_type#2 k mul mul#2 choice_of_two",
    VECTOR,
    jnp.array(True),
)
def choice_of_two(w, up):
    h = lax.cond(up, doubled, halved, w)
    k = lax.cond(up, lambda: h * 2.0, lambda: h * 3.0)
    return k.sum()


@case("y h block/cos z tanh checkpointed")
def checkpointed(w):
    @jax.checkpoint
    def block(x):
        h = jnp.sin(x)
        return jnp.cos(h)

    y = block(w)
    z = jax.checkpoint(lambda x: jnp.tanh(x))(y)
    return z.sum()


@case("mul seen sin seen#2 given")
def given(w):
    first = checkpoint_name(w * 2.0, "seen")
    second = checkpoint_name(jnp.sin(first), name="seen")
    return second.sum()


@case("h enc/inner/cos k called/tan m scopes")
def scopes(w):
    with jax.named_scope("enc"):
        h = jnp.sin(w)
        with jax.named_scope("inner"):
            k = jnp.cos(h) * 2.0
    m = jax.named_call(lambda x: jnp.tan(x) * 3.0, name="called")(k)
    return m.sum()


@jax.custom_jvp
def soft(x):
    inside = jnp.sin(x)
    return inside


soft.defjvps(lambda t, ans, x: t * jnp.cos(x))


@jax.custom_vjp
def product(x, y):
    inside = x * y
    return inside


product.defvjp(lambda x, y: (x * y, (x, y)), lambda kept, ct: (ct * kept[1], ct * kept[0]))


@case("a inside b inside#2 r relu/max soft inside#3 custom_rules")
def custom_rules(w):
    a = soft(w)
    b = product(a, w)
    r = jax.nn.relu(b)
    return soft(r).sum()


# Under `vmap` JAX forgets what the body returns: the carries are known by what it takes.
@case(
    "last['a'],last['b'],ys step/slice step/squeeze new['a'] new['b'] run/add run/reduce_sum each mapped_loop",
)
def mapped_loop(w):
    def run(x):
        def step(c, row):
            new = {"a": c["a"] * row[0], "b": c["b"] + 1.0}
            return new, {"y": c["a"]}

        last, ys = lax.scan(step, {"a": x, "b": x}, ROWS)
        return last["a"] + last["b"] + ys["y"].sum()

    each = jax.vmap(run)(w)
    return each.sum()


# --- derivatives taken inside ----------------------------------------------------------------------------

# Of the operations of a derivative only those are named that surely are a value: not what is kept for the way
# back (the cosine, of a sine), nor cotangents.


def energy(x):
    y = jnp.sin(x)
    e = y.sum()
    return e


@case("energy/sin energy/cos e energy/broadcast_in_dim energy/mul gradient_inside")
def gradient_inside(w):
    force = jax.grad(energy)(w)
    return force.sum()


def rolled(x):
    def step(carry, row):
        new = jnp.sin(carry["a"]) * row
        return {"a": new, "b": carry["b"] + new}, new

    last, rows = lax.scan(step, {"a": x, "b": x}, ROWS)
    return last["a"].sum() + rows.sum()


@case("sin cos mul pulled")
def pulled(w):
    y, pull = jax.vjp(jnp.sin, w)
    (back,) = pull(y)
    return back.sum()


@pytest.mark.parametrize("name", CASES)
def test_names_of(name):
    case = CASES[name]
    graph = jp.trace(case.fun)(*case.args)
    assert names_of(graph) == case.names
    check_names(graph)


def test_a_derived_body_claims_no_names():
    """In the body of the derivative of a loop nothing is surely what the source says."""
    graph = jp.trace(lambda w: jax.grad(rolled)(w).sum())(VECTOR)
    names = {name.split("#")[0] for node in graph.walk() for name in node.names}
    assert not names & {"new", "last", "last['a']", "last['b']", "rows"}
    check_names(graph)
    assert "new" in jp.trace(rolled)(VECTOR)


def test_branches_that_vmap_runs_both_are_not_the_result():
    """They are traced apart and put in later: what a branch returns is not what the function returns."""

    def mapped(w):
        v = jax.vmap(lambda x: lax.cond(x > 0.0, lambda: jnp.sin(x), lambda: x * 2.0))(w)
        return v.sum()

    graph = jp.trace(mapped)(VECTOR)
    named = {name: graph[name].primitive for name in ("v", "mapped", "sin", "mul")}
    assert named == {"v": "select_n", "mapped": "reduce_sum", "sin": "sin", "mul": "mul"}
    assert graph["mapped"].operands[0].name == "v" and "v#2" not in graph


def test_what_has_no_place_has_that_of_the_call_around_it():
    def chosen(w, number):
        c = lax.switch(number, [jnp.sin, jnp.cos], w)
        return c.sum()

    graph = jp.trace(chosen)(VECTOR, 1)
    assert graph["sin"].source == graph["c"].source and graph["c"].source is not None
    assert (graph["sin"].label, graph["c"].label) == ("", "lax.switch(number, [jnp.sin, jnp.cos], w)")


def test_repeated_calls_of_a_derivative_are_told_apart():
    def loss(w):
        first, rate = jax.value_and_grad(energy)(w)
        second, push = jax.jvp(energy, (w,), (w,))
        return first + second + push + rate.sum()

    graph = jp.trace(loss)(VECTOR)
    check_names(graph)
    assert graph["e"].primitive == "reduce_sum" and not [n for n in graph.walk() if n.name.startswith("y")]


# --- the same names wherever it is run --------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_names_are_the_same_when_jitted(name):
    """Names in a second trace, of the eager tape, and inside `jax.jit` are those of the first trace."""
    fun, args, _ = CASES[name]
    expected = names_of(jp.trace(fun)(*args))
    structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "shape") else x, args)
    assert names_of(jp.trace(fun)(*structs)) == expected
    eager = names_of(jp.backprop(fun)(*args).graph)
    jitted = names_of(jax.eval_shape(lambda first: jp.backprop(fun)(first, *args[1:]), args[0]).graph)
    assert eager == jitted
    if len(args) == 1:
        assert eager == expected


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import jaxprop as jp
import test_names as t
for name, case in t.CASES.items():
    print(name, *t.names_of(jp.trace(case.fun)(*case.args)))
"""


def run_script(script, *flags, seed="0"):
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run(
        [sys.executable, *flags, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_names_are_the_same_in_other_processes():
    """In processes with other hash seeds, with `-O`, and where `pytest` has not rewritten the file."""
    script = SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")])
    expected = [" ".join([name, *case.names]) for name, case in CASES.items()]
    assert run_script(script, seed="17") == expected
    assert run_script(script, "-O", seed="4711") == expected


def test_without_positions_in_the_code_names_fall_back():
    """`-X no_debug_ranges` leaves lines, but no columns."""
    script = SCRIPT.format(paths=[str(ROOT), str(ROOT / "tests")])
    lines = run_script(script, "-X", "no_debug_ranges", "-B")
    assert lines[0] == "assigned mul sub reduce_sum"
    assert len(lines) == len(CASES)


# --- arguments ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    parts: Any


def by_position(a, b, /, c):
    return (a * b * c).sum()


def several(first, *rest):
    return (first * rest[0] * rest[1]["w"]).sum()


def by_keyword(first, *, second, **others):
    return (first * second * others["third"]["w"]).sum()


def with_default(first, second=2.0):
    return (first * second).sum()


def nested(params):
    return jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, params))


ARGUMENTS = {
    "positional": (by_position, (VECTOR, VECTOR, VECTOR), {}, ["a", "b", "c"]),
    "rest": (several, (VECTOR, VECTOR, {"w": VECTOR}), {}, ["first", "rest[0]", "rest[1]['w']"]),
    "keywords": (
        by_keyword,
        (VECTOR,),
        {"second": VECTOR, "third": {"w": VECTOR}},
        ["first", "second", "third['w']"],
    ),
    "a default": (with_default, (VECTOR,), {}, ["first"]),
    "a dictionary": (
        nested,
        ({"w1": VECTOR, "deep": [VECTOR, (VECTOR,)], "none": None},),
        {},
        ["params['deep'][0]", "params['deep'][1][0]", "params['w1']"],
    ),
    "a bare array": (nested, (VECTOR,), {}, ["params"]),
    "a named tuple": (nested, (Pair(VECTOR, [VECTOR]),), {}, ["params.left", "params.right[0]"]),
    "a dataclass": (
        nested,
        (Layer(VECTOR, Pair(VECTOR, VECTOR)),),
        {},
        ["params.kernel", "params.parts.left", "params.parts.right"],
    ),
    "a callable object": (Model(2.0), (VECTOR,), {}, ["x"]),
    "a library's function": (jnp.square, (VECTOR,), {}, ["x"]),
    "a partial": (functools.partial(by_position, VECTOR), (VECTOR, VECTOR), {}, ["b", "c"]),
    "a jitted function": (jax.jit(by_position), (VECTOR, VECTOR, VECTOR), {}, ["a", "b", "c"]),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_named_by_their_paths(name):
    fun, args, kwargs, expected = ARGUMENTS[name]
    graph = jp.trace(fun)(*args, **kwargs)
    assert [node.name for node in graph.nodes if node.primitive == "input"] == expected
    check_names(graph)


def test_arguments_that_are_not_differentiated_keep_their_names():
    """They are closed over, and known again by identity."""

    def loss(params, batch, *, scale):
        return (params["w"] * batch["x"] * scale).sum()

    batch, scale = {"x": VECTOR + 1.0, "unused": VECTOR + 2.0}, VECTOR + 3.0
    tape = jp.backprop(loss)({"w": VECTOR}, batch, scale=scale)
    heads = [(n.name, n.primitive) for n in tape.graph.nodes if n.primitive in ("input", "const")]
    assert heads == [("params['w']", "input"), ("batch['x']", "const"), ("scale", "const")]


def test_arrays_closed_over_have_a_name():
    table, other = VECTOR + 1.0, VECTOR + 2.0
    graph = jp.trace(lambda w: (w * table * other).sum())(VECTOR)
    assert [n.name for n in graph.nodes if n.primitive == "const"] == ["const", "const#2"]


def test_plain_numbers_are_known_again_by_the_source():
    def loss(w, x, y, unused):
        y_hat = w * x
        s = y_hat - y
        return s * 3.0 * x

    graph = jp.backprop(loss)(jnp.float32(1.0), 3.0, 2.0, 3.0).graph
    assert [v.name for v in graph["y_hat"].operands] == ["w", "x"]
    assert [v.name for v in graph["s"].operands] == ["y_hat", "y"]
    assert [[v.name for v in node.operands] for node in graph.find(["mul", "loss"])][1:] == [
        ["s", "3.0"],  # a number of the source, though it equals an argument
        ["mul", "x"],
    ]


# --- what is traced -------------------------------------------------------------------------------------


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, w):
        y = self.scale * w
        return y.sum()

    def method(self, w):
        y = self.scale * w
        return y.sum()


def of_two(scale, w):
    y = scale * w
    return y.sum()


TRACED = {
    "a lambda": (lambda w: (w * 2.0).sum(), ["mul", "reduce_sum"]),
    "a partial": (functools.partial(of_two, 2.0), ["y", "of_two"]),
    "a callable object": (Scaled(2.0), ["y", "Scaled/reduce_sum"]),
    "a bound method": (Scaled(2.0).method, ["y", "method"]),
    "a jitted function": (jax.jit(result_of_the_function), ["y", "result_of_the_function"]),
    "a jitted method": (jax.jit(Scaled(2.0).method), ["y", "method"]),
    "a jitted partial": (jax.jit(functools.partial(of_two, 2.0)), ["y", "of_two"]),
    "a decorated function": (doubling(result_of_the_function), ["y", "out", "result_of_the_function"]),
    "a checkpointed function": (jax.checkpoint(jnp.sum), ["checkpoint", "reduce_sum"]),
    "a library's function": (jnp.sum, ["reduce_sum"]),
    "a library's function with a rule": (jax.nn.relu, ["relu", "relu/max"]),
}


@pytest.mark.parametrize("name", TRACED)
def test_whatever_is_traced_has_names(name):
    fun, expected = TRACED[name]
    graph = jp.trace(fun)(VECTOR)
    assert names_of(graph) == expected
    check_names(graph)
    assert not [node for node in graph.walk() if node.source and "site-packages" in node.source.file]


def test_the_frames_of_the_caller_are_not_those_of_the_function():
    """What the tape is assigned to is no name for the value."""
    value = jp.backprop(lambda w: w.sum())(VECTOR).graph
    assert names_of(value) == ["reduce_sum"]


# --- where the source is ----------------------------------------------------------------------------------

PROGRAM = """
import jax.numpy as jnp

def loss(w):
    y_hat = w * 3.0
    s = jnp.sin(y_hat)
    return s.sum()
"""


def loaded(file, text, name="written"):
    """Import a module from a file newly written."""
    file.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_source_names_fall_back_and_lines_stay():
    space = {}
    exec(PROGRAM, space)
    graph = jp.trace(space["loss"])(VECTOR)
    assert names_of(graph) == ["mul", "sin", "reduce_sum"]
    assert [str(node.source) for node in operations(graph)] == ["<string>:5", "<string>:6", "<string>:7"]
    assert {node.label for node in operations(graph)} == {""}


def test_another_source_under_the_same_name_is_not_believed(monkeypatch):
    """A file called `<string>` that happens to be there says nothing of a program made by `exec`."""
    space = {}
    exec(PROGRAM, space)
    other = PROGRAM.replace("y_hat", "other").splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<string>", (1, None, other, "<string>"))
    assert names_of(jp.trace(space["loss"])(VECTOR)) == ["mul", "sin", "reduce_sum"]


# Each edit: the text after it, and the names then. What still stands as it was compiled keeps its name.
KEPT, LOST = ["y_hat", "s", "loss"], ["mul", "sin", "reduce_sum"]
EDITS = {
    "nothing": (PROGRAM, KEPT),
    "a line before": ("# new\n" + PROGRAM, LOST),
    "a line within": (PROGRAM.replace("    s =", "\n    s ="), LOST),
    "another variable": (PROGRAM.replace("y_hat", "other"), LOST),
    "another number": (PROGRAM.replace("3.0", "4.0"), LOST),
    "another function called": (PROGRAM.replace("jnp.sin", "jnp.cos"), LOST),
    "two lines swapped": (PROGRAM.replace("y_hat =", "s =").replace("s = jnp", "y_hat = jnp"), LOST),
    "a line after": (PROGRAM + "\nx = 1\n", KEPT),
    "a comment at the end of a line": (PROGRAM.replace("3.0", "3.0  # three"), KEPT),
    "no longer Python": (PROGRAM + "\ndef (\n", LOST),
    "empty": ("", LOST),
    "gone": (None, LOST),
}


@pytest.mark.parametrize("traced_before", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_a_source_edited_since_import_gives_no_wrong_name(tmp_path, edit, traced_before):
    text, expected = EDITS[edit]
    file = tmp_path / "written.py"
    module = loaded(file, PROGRAM)
    if traced_before:
        assert names_of(jp.trace(module.loss)(VECTOR)) == KEPT
        expected = KEPT  # it was read while it stood there as compiled
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    graph = jp.trace(module.loss)(VECTOR)
    assert names_of(graph) == expected
    assert [node.source.line for node in operations(graph)] == [5, 6, 7]


def test_a_module_reloaded_after_an_edit_has_its_new_names(tmp_path):
    file = tmp_path / "written.py"
    assert names_of(jp.trace(loaded(file, PROGRAM).loss)(VECTOR)) == KEPT
    edited = "# a line more\n" + PROGRAM.replace("y_hat", "prediction")
    assert names_of(jp.trace(loaded(file, edited).loss)(VECTOR)) == ["prediction", "s", "loss"]


TEXTS = {
    "text before on the line": """
        def loss(w):
            größe = "äöü→"; ŷ = w * 3.0; z = (ŷ if größe else w) + 1.0
            return z.sum()
    """,
    "tabs": "def loss(w):\n\tif True:\n\t\tŷ = w * 3.0\n\t\tz = ŷ + 1.0\n\treturn z.sum()\n",
    "form feed and Windows lines": (
        "\f\r\ndef loss(w):\r\n    ŷ = w * 3.0\r\n    z = ŷ + 1.0\r\n    return z.sum()\r\n"
    ),
    "a mark of byte order": "\ufeffdef loss(w):\n    ŷ = w * 3.0\n    z = ŷ + 1.0\n    return z.sum()\n",
    "annotations of the future": """
        from __future__ import annotations

        def loss(w: Missing) -> Missing:
            ŷ: Missing = w * 3.0
            z: Missing = ŷ + 1.0
            return z.sum()
    """,
    "assertions": """
        def loss(w):
            assert w.shape == (3,), "shape"
            ŷ = w * 3.0
            z = ŷ + 1.0
            return z.sum()
    """,
    "a docstring and a continued line": """
        def loss(w):
            "Say what it is, à la carte."
            ŷ = \\
                w * 3.0
            z = ŷ \\
                + 1.0
            return z.sum()
    """,
    "everything on one line": "def loss(w): ŷ = w * 3.0; z = ŷ + 1.0; return z.sum()\n",
    "a class within a function": """
        def make():
            class Inner:
                def loss(self, w):
                    ŷ = w * 3.0
                    z = ŷ + 1.0
                    return z.sum()
            return Inner().loss
        loss = make()
    """,
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_look_of_the_source_does_not_matter(tmp_path, name):
    text = TEXTS[name]
    module = loaded(tmp_path / "written.py", textwrap.dedent(text))
    graph = jp.trace(module.loss)(VECTOR)
    assert names_of(graph) == ["ŷ", "z", "loss"]
    assert graph["ŷ"].label == "w * 3.0"


def test_a_source_in_latin_1(tmp_path):
    file = tmp_path / "written.py"
    text = "# coding: latin-1\ndef loss(w):\n    é = 'àéè'; y = w * 3.0\n    return y.sum()\n"
    file.write_bytes(text.encode("latin-1"))
    spec = importlib.util.spec_from_file_location("written", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    graph = jp.trace(module.loss)(VECTOR)
    assert names_of(graph) == ["y", "loss"]
    assert graph["y"].label == "w * 3.0"


def test_notebook_cells_by_hand():
    """A cell is compiled under a name of its own, and its text stands in `linecache` only."""
    space = {}
    for number, text in enumerate((PROGRAM, PROGRAM.replace("y_hat", "z_hat"))):
        file = f"/tmp/ipykernel_1/{number}.py"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        exec(compile(text, file, "exec"), space)
        names = names_of(jp.trace(space["loss"])(VECTOR))
        assert names == [["y_hat", "z_hat"][number], "s", "loss"]
    del linecache.cache[file]


def test_notebook_cells():
    interactive = pytest.importorskip("IPython.core.interactiveshell", reason="needs IPython")
    shell = interactive.InteractiveShell.instance()
    shell.run_cell(PROGRAM)
    assert names_of(jp.trace(shell.user_ns["loss"])(VECTOR)) == KEPT
    shell.run_cell(PROGRAM.replace("y_hat", "z_hat"))
    assert names_of(jp.trace(shell.user_ns["loss"])(VECTOR)) == ["z_hat", "s", "loss"]


def test_a_long_function_is_named_in_little_time(tmp_path):
    """Positions and text are read once for each function and file, not once for each operation."""
    count = 3000
    lines = "".join(f"    h{i} = jnp.sin(w)\n" for i in range(count))
    text = f"import jax.numpy as jnp\ndef loss(w):\n{lines}    return h0.sum()\n"
    module = loaded(tmp_path / "written.py", text)
    begun = time.perf_counter()
    graph = jp.trace(module.loss)(VECTOR)
    taken = time.perf_counter() - begun
    assert names_of(graph) == [*(f"h{i}" for i in range(count)), "loss"]
    assert taken < 15.0


def test_installed_code_is_the_users_where_it_is_what_is_traced():
    """A library's own functions are named inside when one of them is traced, but those of JAX never."""
    graph = jp.trace(optax.losses.squared_error)(VECTOR, VECTOR)
    assert {node.source.function for node in operations(graph)} == {"squared_error"}


# --- modules of the libraries ------------------------------------------------------------------------------


def mean_square(apply):
    def loss(params):
        out = apply(params, ROWS)
        return (out**2).mean()

    return loss


def linen():
    nn = models.need("flax.linen")

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(5, name="first")(x)
            h = nn.relu(x)
            return nn.Dense(1)(h)

    module = MLP()
    return module.apply, module.init(jax.random.key(0), ROWS)


def nnx():
    flax = models.need("flax.nnx")

    class MLP(flax.Module):
        def __init__(self, rngs):
            self.first = flax.Linear(3, 5, rngs=rngs)
            self.second = flax.Linear(5, 1, rngs=rngs)

        def __call__(self, x):
            x = self.first(x)
            h = flax.relu(x)
            return self.second(h)

    rest, state = flax.split(MLP(flax.Rngs(0)))
    return (lambda params, x: flax.merge(rest, params)(x)), state


def equinox():
    eqx = models.need("equinox")

    class MLP(eqx.Module):
        first: eqx.nn.Linear
        second: eqx.nn.Linear

        def __call__(self, x):
            x = self.first(x)
            h = jax.nn.relu(x)
            return self.second(h)

    key = jax.random.key(0)
    module = MLP(eqx.nn.Linear(3, 5, key=key), eqx.nn.Linear(5, 1, key=key))
    arrays, rest = eqx.partition(module, eqx.is_array)
    return (lambda params, x: jax.vmap(eqx.combine(params, rest))(x)), arrays


def haiku():
    hk = models.need("haiku")

    def network(x):
        x = hk.Linear(5, name="first")(x)
        h = jax.nn.relu(x)
        return hk.Linear(1, name="second")(h)

    made = hk.without_apply_rng(hk.transform(network))
    return made.apply, made.init(jax.random.key(0), ROWS)


# Of each library: its module, the paths of two parameters, and the name of the first matrix product.
LIBRARIES = {
    "linen": (
        linen,
        {"params['params']['first']['kernel']", "params['params']['Dense_0']['bias']"},
        "MLP/first/dot_general",
    ),
    "nnx": (nnx, {"params.first.kernel", "params.second.bias"}, "MLP/dot_general"),
    "equinox": (equinox, {"params.first.weight", "params.second.bias"}, "eqx.nn.Linear/dot_general"),
    "haiku": (haiku, {"params['first']['w']", "params['second']['b']"}, "first/dot_general"),
}


@pytest.mark.library
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("library", LIBRARIES)
def test_modules_of_a_library_are_scopes(library):
    """Variables of the model's own code are names; what a layer does inside has the layer's scope."""
    make, paths, product = LIBRARIES[library]
    apply, params = make()
    graph = jp.trace(mean_square(apply))(params)
    check_names(graph)
    assert paths <= {node.name for node in graph.nodes if node.primitive == "input"}
    assert graph[product].primitive == "dot_general"
    primitives = {name: graph[name].primitive for name in ("x", "h", "out", "loss")}
    assert primitives == {"x": "add", "h": "relu", "out": "add", "loss": "div"}
    assert {node.source.file for node in operations(graph) if node.active and node.source} == {__file__}


def test_numpy_arguments_keep_their_names():
    def loss(w, x, y):
        return jnp.sum((x @ w - y) ** 2)

    x, y = np.ones((2, 3), np.float32), np.zeros(2, np.float32)
    names = [node.name for node in jp.backprop(loss)(np.ones(3, np.float32), x, y).graph.nodes]
    assert names[:3] == ["w", "x", "y"]
