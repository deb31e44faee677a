"""The graph: what it shows, what can be picked out of it, which graphs are equal, what is active."""

import textwrap
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprop as jp

VECTOR = jnp.linspace(0.5, 1.5, 3)
ROWS = jnp.ones((4, 3))


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


# --- what it shows --------------------------------------------------------------------------------------


def test_the_table_of_the_worked_example():
    line = loss.__code__.co_firstlineno
    graph = jp.trace(loss)(1.0, 1.0, 2.0)
    expected = f"""\
        value  type   expression       source
        --------------------------------------------------------
        w      f32[]  input                               active
        x      f32[]  input
        y      f32[]  input
        y_hat  f32[]  w * x            test_graph.py:{line + 1}  active
        s      f32[]  y_hat - y        test_graph.py:{line + 2}  active
        loss   f32[]  s**2             test_graph.py:{line + 3}  active
        returns loss"""
    assert squeezed(str(graph)) == squeezed(textwrap.dedent(expected))
    operations = [line.split()[2] for line in graph.table(operations=True).splitlines()[5:-1]]
    assert operations == ["mul(w,", "sub(y_hat,", "integer_pow(s)"]
    assert repr(graph) == "Graph(6 nodes, 4 active)"


def squeezed(table):
    """The words of each line: how wide a column is depends on the longest line number."""
    return [line.split() for line in table.splitlines() if set(line.strip()) != {"-"}]


def test_the_table_shows_bodies_indented():
    def scanned(w):
        carry, ys = lax.scan(lambda c, row: (c * w, row), w, ROWS)
        return carry.sum()

    lines = str(jp.trace(scanned)(VECTOR)).splitlines()
    assert [line for line in lines if line.startswith("carry")]
    assert [line for line in lines if line.startswith("  scan/c ")]
    assert lines[-1] == "returns scanned"


# --- statements -------------------------------------------------------------------------------------------


def _line(w, b, x):
    z = w * x + b
    return jnp.tanh(z) * 2.0


def _helper(w):
    def inner(a):
        return a * a + jnp.exp(a)

    b = inner(jnp.sin(w))
    return b


def _long_and_shared(w):
    def inner(a):
        b = a + 1.0
        c = a * 2.0
        return b * c

    return inner(jnp.exp(jnp.sin(w) * 2.0 - 1.0) / w)


def _short_and_shared(w):
    def inner(a):
        b = a + 1.0
        c = a * 2.0
        return b * c

    return inner(2.0 * w)


def _returns_two(w):
    h = w * 2.0
    return h + 1.0, jnp.sin(h)


def _unused(w):
    jnp.cos(w)
    y = w * 3.0
    return y


def _softmax(s):
    a = jax.nn.softmax(s)
    return a.sum()


def _scanned(w):
    def step(h, x):
        h = jnp.tanh(w * h + x)
        return h, None

    last, _ = lax.scan(step, jnp.float32(0.0), jnp.arange(3.0))
    return last * 2.0


#: A function, its arguments, and its statements: the name, the primitives folded, and the operands.
FOLDED = {
    "a line": (
        _line,
        (1.0, 2.0, 3.0),
        {"z": ("mul add", "w x b"), "_line": ("tanh mul", "z")},
    ),
    "a helper": (_helper, (1.0,), {"b": ("sin mul exp add", "w")}),
    "long and shared": (
        _long_and_shared,
        (1.0,),
        {
            "div": ("sin mul sub exp div", "w"),
            "b": ("add", "div"),
            "c": ("mul", "div"),
            "_long_and_shared": ("mul", "b c"),
        },
    ),
    "short and shared": (
        _short_and_shared,
        (1.0,),
        {"b": ("mul add", "w"), "c": ("mul mul", "w"), "_short_and_shared": ("mul", "b c")},
    ),
    "two results": (
        _returns_two,
        (1.0,),
        {"h": ("mul", "w"), "add": ("add", "h"), "sin": ("sin", "h")},
    ),
    "unused": (_unused, (1.0,), {"y": ("mul", "w")}),
    "a loop": (_scanned, (1.0,), {"last": ("scan", "w"), "_scanned": ("mul", "last")}),
}


@pytest.mark.parametrize("case", FOLDED)
def test_statements(case):
    fun, args, expected = FOLDED[case]
    graph = jp.trace(fun)(*args)
    found = {
        statement.node.name.rsplit("/", 1)[-1]: (
            " ".join(node.primitive for node in statement.nodes),
            " ".join(value.name.rsplit("/", 1)[-1] for value in statement.operands if value.literal is None),
        )
        for statement in graph.statements
    }
    for name, (primitives, operands) in expected.items():
        assert found[name][0].replace("iota ", "") == primitives
        assert set(operands.split()) <= set(found[name][1].split())
    assert set(found) - {"arange", "iota"} == set(expected)


@pytest.mark.parametrize("case", FOLDED)
def test_a_statement_computes_its_value_from_its_operands(case):
    """Operand by operand: what is folded into a statement is what lies between."""
    fun, args, _ = FOLDED[case]
    graph = jp.trace(fun)(*args)
    for level in graph.levels():
        known = {value.id for node in level.heads for value in node.outputs}
        for statement in level.statements:
            assert {value.id for value in statement.operands if value.literal is None} <= known
            made = {value.id for value in statement.operands}
            for node in statement.nodes:
                assert {value.id for value in node.operands if value.id >= 0} <= made
                made |= {value.id for value in node.outputs}
            assert {value.id for value in statement.outputs} <= made
            known |= {value.id for value in statement.outputs}
        assert {value.id for value in level.outputs if value.id >= 0} <= known


def test_without_a_source_every_operation_is_a_statement():
    scope = {}
    exec("import jax.numpy as jnp\ndef f(w):\n    z = w * 2.0 + 1.0\n    return jnp.tanh(z)", scope)
    graph = jp.trace(scope["f"])(1.0)
    assert [len(statement.nodes) for statement in graph.statements] == [1, 1, 1]
    assert not any(value.anonymous for node in graph for value in node.outputs)


def test_bodies_have_statements_of_their_own():
    graph = jp.trace(_scanned)(1.0)
    (body,) = graph["last"].graphs
    (statement,) = body.statements
    assert statement.node.name == "h"
    assert [n.primitive for n in statement.nodes if "convert" not in n.primitive] == ["mul", "add", "tanh"]
    assert repr(statement) == f"Statement(h: {len(statement.nodes)} operations)"
    assert {graph.by_index[i].name for i in graph.stated} >= {"w", "last", "h", "_scanned"}


def test_what_a_node_says():
    def held(params):
        with jax.named_scope("enc"):
            h = jnp.matmul(params["w"], params["v"])
        return h.sum()

    graph = jp.trace(held)({"w": ROWS, "v": VECTOR})
    node = graph["h"]
    assert (node.name, node.names, node.primitive, node.scope) == ("h", ("h",), "dot_general", "enc")
    assert (node.shape, node.dtype, node.active) == ((4,), jnp.float32, True)
    assert node.label == 'jnp.matmul(params["w"], params["v"])'
    assert str(node.source) == f"test_graph.py:{held.__code__.co_firstlineno + 2}"
    assert node.source.function == "held"
    assert [value.name for value in node.operands] == ["params['w']", "params['v']"]
    assert node.params["dimension_numbers"] == (((1,), (0,)), ((), ()))
    assert repr(node) == "Node(h = dot_general(params['w'], params['v']))"
    assert repr(node.outputs[0]) == "Value(h: f32[4])"
    head = graph["params['v']"]
    assert (head.primitive, head.operands, head.source, head.params) == ("input", (), None, {})


def test_nodes_stand_in_program_order_and_bodies_after_their_node():
    def scanned(w):
        start = jnp.sin(w)

        def step(carry, row):
            new = carry * w
            return new, new

        carry, _ = lax.scan(step, start, ROWS)
        end = jnp.cos(carry)
        return end.sum()

    graph = jp.trace(scanned)(VECTOR)
    assert [node.name for node in graph.nodes if node.operands] == ["start", "carry", "end", "scanned"]
    walked = [node.name for node in graph.walk()]
    assert walked.index("start") < walked.index("carry") < walked.index("new") < walked.index("end")
    assert [node.index for node in graph.walk()] == list(range(len(graph)))
    assert [node.name for node in graph] == walked
    (body,) = graph["carry"].graphs
    assert [node.name for node in body.nodes][-1] == "new" and "new" in graph
    assert graph.value("carry").shape == (3,) and graph["new"] not in graph.nodes


def test_shapes_alone_are_enough():
    def wide(params, x):
        h = jnp.tanh(x @ params["w"])
        return h.mean()

    struct = jax.ShapeDtypeStruct
    params, x = {"w": struct((10**6, 10**5), jnp.bfloat16)}, struct((10**7, 10**6), jnp.bfloat16)
    graph = jp.trace(wide)(params, x)
    assert graph["h"].shape == (10**7, 10**5) and graph["h"].dtype == jnp.bfloat16
    small = jp.trace(wide)({"w": jnp.ones((3, 2))}, ROWS)
    assert jp.trace(wide)({"w": struct((3, 2), jnp.float32)}, struct((4, 3), jnp.float32)) == small


def rolled(x):
    return lax.scan(lambda c, row: (jnp.sin(c) * row, None), x, ROWS)[0]


# Each form: a program, the primitive that holds the bodies, and how many there are.
FORMS = {
    "scan": (rolled, "scan", 1),
    "cond": (lambda x: lax.cond(x[0] > 0.0, jnp.sin, jnp.cos, x), "cond", 2),
    "switch": (lambda x: lax.switch(jnp.argmax(x), [jnp.sin, jnp.cos, jnp.tan], x), "cond", 3),
    "while": (lambda x: lax.while_loop(lambda s: s[0] < 1.0, lambda s: s * 2.0, x), "while", 2),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(jnp.cos(x))), "checkpoint", 1),
    "custom rule": (jax.nn.relu, "relu", 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_bodies_are_nested_graphs(form):
    fun, primitive, count = FORMS[form]
    graph = jp.trace(lambda x: fun(x).sum())(VECTOR)
    (node,) = (node for node in graph.nodes if node.primitive == primitive)
    assert len(node.graphs) == count
    assert all(nested.nodes for nested in node.graphs)
    assert len(graph) == len(graph.nodes) + sum(map(len, node.graphs))


def test_calls_are_inlined_under_their_scope():
    @jax.jit
    def outer(x):
        @jax.jit
        def inner(x):
            return jnp.sin(x) * 2.0

        return inner(x) + 1.0

    graph = jp.trace(lambda w: outer(w).sum())(VECTOR)
    scopes = [(node.primitive, node.scope) for node in graph.nodes if node.operands]
    assert scopes == [("sin", "outer/inner"), ("mul", "outer/inner"), ("add", "outer"), ("reduce_sum", "")]
    assert not [node for node in graph.nodes if node.graphs]


# --- picking ---------------------------------------------------------------------------------------------


def layered(params):
    with jax.named_scope("enc"):
        h = jnp.sin(params["w"])
        h = jnp.cos(h)
    out = jax.nn.relu(h * params["w1"])
    return out.sum()


PARAMS = {"w": VECTOR, "w1": VECTOR}
PICKS = {
    "a name": ("h", ["h"]),
    "a name that was given twice": ("h#2", ["h#2"]),
    "a glob on names": ("h*", ["h", "h#2"]),
    "a question mark": ("h?2", ["h#2"]),
    "brackets are no set of characters": ("params['w']", ["params['w']"]),
    "brackets with a glob": ("params[*]", ["params['w']", "params['w1']"]),
    "a scope": ("enc", ["h", "h#2"]),
    "a primitive": ("mul", ["mul"]),
    "a custom rule, and what stands in its scope": ("relu", ["out", "relu/max"]),
    "several": (["sin", "out", "params['w1']"], ["params['w1']", "h", "out"]),
    "a tuple of several": (("sin", "nothing*"), ["h"]),
    "a predicate": (lambda node: node.active and not node.operands, ["params['w']", "params['w1']"]),
    "inputs": ("input", ["params['w']", "params['w1']", "relu/x"]),
}


@pytest.mark.parametrize("pick", PICKS)
def test_selectors(pick):
    selector, expected = PICKS[pick]
    assert [node.name for node in jp.trace(layered)(PARAMS).find(selector)] == expected


NOTHING = {
    "a misspelt name": ("params['w2']", ValueError, "params['w1']"),
    "case": ("H", ValueError, "matches no node"),
    "an empty list": ([], ValueError, "matches no node"),
    "a set of characters": ("[hx]", ValueError, "matches no node"),
    "a predicate": (lambda node: False, ValueError, "matches no node"),
    "a number": (3, TypeError, "a glob, a list of globs, or a predicate"),
    "a list of other things": (["h", 3], TypeError, "a glob, a list of globs, or a predicate"),
}


@pytest.mark.parametrize("pick", NOTHING)
def test_a_selector_that_picks_nothing_says_so(pick):
    selector, kind, said = NOTHING[pick]
    with pytest.raises(kind) as caught:
        jp.trace(layered)(PARAMS).find(selector)
    assert said in str(caught.value)


def test_an_unknown_name_says_which_come_near():
    graph = jp.trace(loss)(1.0, 1.0, 2.0)
    with pytest.raises(KeyError, match="y_hat"):
        graph["yhat"]
    assert "yhat" not in graph and "y_hat" in graph


# --- equality ---------------------------------------------------------------------------------------------


def made(how, number):
    """A function built anew, of one text, that differs in a number only."""
    if how == "plain":
        return lambda w: (w * number).sum()
    if how == "in a call":
        return lambda w: jax.jit(lambda x: x * number)(w).sum()
    if how == "in a scan":
        return lambda w: lax.scan(lambda c, row: (c * number, None), w, ROWS)[0].sum()
    if how == "in a cond":
        return lambda w: lax.cond(w[0] > 0.0, lambda: w * number, lambda: w).sum()
    if how == "in a while":
        return lambda w: lax.while_loop(lambda s: s[0] < number, lambda s: s * 2.0, w).sum()
    if how == "in a checkpoint":
        return lambda w: jax.checkpoint(lambda x: x * number)(w).sum()
    if how == "in a rule of custom_jvp":
        return lambda w: tangents_times(number)(w).sum()
    if how == "in a rule of custom_vjp":
        return lambda w: cotangents_times(number)(w).sum()
    if how == "in a rule, in a scan":
        return lambda w: lax.scan(lambda c, row: (cotangents_times(number)(c), None), w, ROWS)[0].sum()
    if how == "as a parameter":
        return lambda w: jnp.clip(w, None, number).sum() + (w ** int(number)).sum()
    if how == "in a callback":
        struct = jax.ShapeDtypeStruct((3,), np.float32)
        return lambda w: (w * jax.pure_callback(lambda x: np.asarray(x) * number, struct, ROWS[0])).sum()
    raise KeyError(how)


def tangents_times(number):
    @jax.custom_jvp
    def identity(x):
        return x * 1.0

    identity.defjvps(lambda t, ans, x: t * number)
    return identity


def cotangents_times(number):
    @jax.custom_vjp
    def identity(x):
        return x * 1.0

    identity.defvjp(lambda x: (x * 1.0, None), lambda _, ct: (ct * number,))
    return identity


PLACES = [
    "plain",
    "in a call",
    "in a scan",
    "in a cond",
    "in a while",
    "in a checkpoint",
    "in a rule of custom_jvp",
    "in a rule of custom_vjp",
    "in a rule, in a scan",
    "as a parameter",
    "in a callback",
]


#: The halves of a `custom_vjp` are not run to compare them: libraries keep state in them.
ONLY_ITSELF = ["in a rule of custom_vjp", "in a rule, in a scan"]


@pytest.mark.parametrize("how", PLACES)
def test_graphs_are_equal_where_they_do_the_same(how):
    """Of one function traced twice, of its like built anew; not of one that differs in a number."""
    first = made(how, 2.0)
    graph = jp.trace(first)(VECTOR)
    for other in (jp.trace(first)(VECTOR), jp.trace(made(how, 2.0))(VECTOR)):
        assert hash(graph) == hash(other)
        if how in ONLY_ITSELF:
            continue
        assert graph == other
        assert len({graph, other}) == 1
    assert graph != jp.trace(made(how, 3.0))(VECTOR)


def built_in(fun):
    return lambda w: fun(w).sum()


SAME = {
    "relu": built_in(jax.nn.relu),
    "softmax": built_in(lambda w: jax.nn.softmax(w)[:2]),
    "logsumexp": built_in(jax.nn.logsumexp),
    "scan": built_in(rolled),
    "remat with a policy": built_in(
        jax.checkpoint(lambda w: jnp.sin(jnp.cos(w)), policy=jax.checkpoint_policies.dots_saveable)
    ),
    "a solver": built_in(lambda w: jnp.linalg.solve(jnp.diag(w), w)),
    "a sort": built_in(jnp.sort),
    "random bits": built_in(lambda w: w * jax.random.uniform(jax.random.key(0), w.shape)),
}


@pytest.mark.parametrize("name", SAME)
def test_two_traces_give_equal_graphs(name):
    """Otherwise a tape that enters `jax.jit` would be compiled anew at every call."""
    first, second = (jp.backprop(SAME[name])(VECTOR).graph for _ in range(2))
    assert first == second and hash(first) == hash(second)


def wired(w, x):
    return ((w - x) * w).sum()


DIFFERENT = {
    "shape": (wired, (VECTOR, VECTOR), wired, (ROWS, ROWS)),
    "dtype": (wired, (VECTOR, VECTOR), wired, (VECTOR.astype(jnp.float16),) * 2),
    "wiring": (wired, (VECTOR, VECTOR), lambda w, x: ((x - w) * w).sum(), (VECTOR, VECTOR)),
    "order of the operands": (jnp.subtract, (VECTOR, VECTOR), lambda w, x: x - w, (VECTOR, VECTOR)),
    "names": (lambda a: a.sum(), (VECTOR,), lambda b: b.sum(), (VECTOR,)),
    "an axis": (lambda w: w.sum(0).sum(), (ROWS,), lambda w: w.sum(1).sum(), (ROWS,)),
    "the length of a loop": (
        lambda w: lax.scan(lambda c, _: (c * w, None), w, length=3)[0].sum(),
        (VECTOR,),
        lambda w: lax.scan(lambda c, _: (c * w, None), w, length=4)[0].sum(),
        (VECTOR,),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_graphs_differ_where_programs_do(name):
    fun, args, other, other_args = DIFFERENT[name]
    assert jp.trace(fun)(*args) != jp.trace(other)(*other_args)
    assert jp.trace(fun)(*args) != "a graph"


def test_what_is_differentiated_is_part_of_a_graph():
    graphs = {jp.trace(wired, argnums)(VECTOR, VECTOR) for argnums in (0, 1, (0, 1))}
    assert len(graphs) == 3


ARRAYS = np.float32([1.0, 2.0, 3.0]), np.float32([1.0, 2.0, 4.0])


def scaled_in_a_call(table):
    @jax.jit
    def scaled(x):
        y = x * table
        return y

    return lambda w: scaled(w).sum()


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_arrays_a_call_closes_over_are_part_of_a_graph(kind):
    """Or a tape that enters `jax.jit` is differentiated at the array of another."""
    pull = jax.jit(lambda tape: tape.local("y", wrt="w").vjp(jnp.ones(3)))
    tapes = [jp.backprop(scaled_in_a_call(kind(array)))(VECTOR) for array in ARRAYS]
    for tape, array in zip(tapes, ARRAYS, strict=True):
        np.testing.assert_array_equal(jax.tree.leaves(pull(tape))[0], array)
    assert tapes[0].graph != tapes[1].graph


def test_code_of_one_text_in_two_modules_is_two_functions():
    """They read other globals."""
    text = "def read(x):\n    return x * NUMBER\n"
    struct = jax.ShapeDtypeStruct((3,), np.float32)
    reads = []
    for number in (np.float32(2.0), np.float32(3.0)):
        space = {"NUMBER": number}
        exec(compile(text, "<module>", "exec"), space)
        reads.append(space["read"])
    first, second = (
        jp.trace(lambda w, read=read: (w * jax.pure_callback(read, struct, ROWS[0])).sum())(VECTOR)
        for read in reads
    )
    assert first != second


# --- activity ----------------------------------------------------------------------------------------------


class Activity(NamedTuple):
    """A program, its arguments, the nodes that are active, and some that are not."""

    fun: object
    args: tuple
    active: str
    quiet: str


def rounding(w):
    r = jnp.round(w)
    f = jnp.floor(w) * 2.0
    g = jnp.sign(w)
    y = w * r
    return (y + f + g).sum()


def stopped(w):
    s = lax.stop_gradient(w)
    t = s * 2.0
    y = w * t
    return y.sum()


def through_integers(w):
    i = w.astype(jnp.int32)
    back = i.astype(jnp.float32)
    k = jnp.argmax(w)
    flag = w > 1.0
    y = jnp.where(flag, w, back)
    return y[k] * 2.0


def unused(w):
    u = jnp.sin(w)
    v = jnp.cos(u)  # noqa: F841
    y = w * 2.0
    return y.sum()


def data_only(w, x):
    a = jnp.sin(x)
    b = a * 2.0
    y = w * b
    return y.sum()


def while_on_data(w, x):
    v = lax.while_loop(lambda s: s[0] < 3.0, lambda s: s * 2.0, x)
    y = v * w
    return y.sum()


def fixpoint(w, x):
    def step(carry, row):
        a, b, c, d = carry
        e = a * 2.0
        f = d + row
        return (b, c, c * w, f), e

    (p, q, r, d), es = lax.scan(step, (x, x, x, x), ROWS)
    out = p * d
    return out.sum()


def one_branch(w, up):
    y = lax.cond(up, lambda: w * 2.0, lambda: jnp.zeros_like(w))
    return y.sum()


def nothing(w, x):
    y = x * 2.0
    return y.sum()


ACTIVE = {
    "rounding": Activity(rounding, (VECTOR,), "w y rounding", "r f g floor"),
    "stop_gradient": Activity(stopped, (VECTOR,), "w y stopped", "s t"),
    "through integers": Activity(through_integers, (VECTOR,), "w y through_integers", "i back k flag"),
    "unused results": Activity(unused, (VECTOR,), "w y unused", "u v"),
    "what hangs on data only": Activity(data_only, (VECTOR, VECTOR), "w y data_only", "x a b"),
    "a loop on data": Activity(while_on_data, (VECTOR, VECTOR), "w y while_on_data", "x v"),
    # Where `w` goes shows after three turns, and where the result comes from too.
    "carries of a scan": Activity(
        fixpoint, (VECTOR, VECTOR), "w p step/carry[1] step/carry[2] out fixpoint", "x q r d f e step/carry[3]"
    ),
    "one branch of two": Activity(one_branch, (VECTOR, jnp.array(True)), "w y mul one_branch", "up"),
    "nothing": Activity(nothing, (VECTOR, VECTOR), "", "w x y nothing"),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_activity(name):
    case = ACTIVE[name]
    graph = jp.trace(case.fun)(*case.args)
    values = {v.name: v.active for node in graph.walk() for v in node.outputs}
    assert [n for n in case.active.split() if not values[n]] == []
    assert [n for n in case.quiet.split() if values[n]] == []


def test_activity_follows_argnums():
    graph = jp.trace(loss, argnums=1)(1.0, 1.0, 2.0)
    assert [node.name for node in graph.nodes if node.active] == ["x", "y_hat", "s", "loss"]
    both = jp.trace(loss, argnums=(0, 2))(1.0, 1.0, 2.0)
    assert [node.name for node in both.nodes if node.active] == ["w", "y", "y_hat", "s", "loss"]


@pytest.mark.parametrize("name", [name for name in ACTIVE if name != "nothing"])
def test_gradients_of_what_is_active_are_there(name):
    """Every active value outside of bodies gets a cotangent; the gradient is that of JAX."""
    case = ACTIVE[name]
    tape = jp.backprop(case.fun)(*case.args)
    np.testing.assert_array_equal(tape.grads, jax.grad(case.fun)(*case.args))
    outer = {value.name for node in tape.graph.nodes for value in node.outputs if value.active}
    assert not [n for n in case.active.split() if n in outer and tape[n].cotangent is None]
