"""Formulas: what they say, word for word; and that what they say holds."""

import gc
import inspect
import json
import shutil
import subprocess
import weakref

import formula_check
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

import jaxprop as jp
import programs
from jaxprop.show import PRIMITIVES, expression_of, formulas_of, symbolic
from jaxprop.show.symbolic import add, derive, divide, num, reshape
from jaxprop.show.symbolic import expressions as ex
from jaxprop.show.symbolic.expressions import LIMIT
from jaxprop.show.symbolic.latex import latex
from jaxprop.show.symbolic.text import Names, text


@pytest.mark.library  # NumPy's own rules of promotion apply to the formulas that are read back
@pytest.mark.parametrize("group", formula_check.GROUPS)
def test_every_formula_holds(group, x64):
    found = [checked for case in formula_check.GROUPS[group]() for checked in formula_check.check(case)]
    wrong = [c for c in found if c.error is not None and not c.error <= formula_check.TOLERANCE]
    assert not wrong, "\n".join(f"{c.case}, operand {c.operand}: {c.text} (error {c.error:.1e})" for c in wrong)
    least = {"elementwise, discovered": 45, "contractions": 1, "other linear maps": 15}.get(group, 10)
    assert len({c.primitive for c in found}) >= least, sorted({c.primitive for c in found})
    if group != "maps without a closed form":
        sentences = {c.case for c in found if c.form == "map"}
        allowed = {
            "reduce_prod (0,)",
            "reduce_prod (1,)",
            "reduce_prod (0, 1)",
            "pad with a value",
            "reduce_precision",
        }
        assert sentences <= allowed


def test_a_wrong_formula_is_found():
    a = np.linspace(0.2, 0.8, 5)
    assert formula_check._error(np.cos(a), np.cos(a)) == 0
    assert formula_check._error(1.001 * np.cos(a), np.cos(a)) > 100 * formula_check.TOLERANCE
    assert formula_check._error(np.where(a > 0.5, np.nan, a), a) == np.inf


# --- what they say ---------------------------------------------------------------------------------------


def one(fun, *args, argnums=0):
    """The formulas of the last operation of a function."""
    node = [node for node in jp.trace(fun, argnums)(*args).nodes if node.eqn is not None][-1]
    return [formula.text if formula else None for formula in formulas_of(node)]


def _power(s):
    loss = s**2
    return loss


def _tanh(z):
    h = jnp.tanh(z)
    return h


def _matmul(x, W):
    y = x @ W
    return y


def _product(w, x):
    y_hat = w * x
    return y_hat


def _twice(x):
    y = x * x
    return y


def _relu(z):
    h = jax.nn.relu(z)
    return h


def _mean(x):
    total = jnp.sum(x, axis=0)
    return total


def _literal(x):
    y = 0.1 * x
    return y


def _quotient(x):
    y = x / 8.0
    return y


def _indexed(p):
    y = p["w"] * p["b"]
    return y


SAID = {
    "power": (_power, (3.0,), 0, ["d(s**2)/ds = 2*s"]),
    "tanh": (_tanh, (3.0,), 0, ["d tanh(z)/dz = 1 - tanh(z)**2"]),
    "product": (_product, (3.0, 2.0), (0, 1), ["d(w*x)/dw = x", "d(w*x)/dx = w"]),
    "product with data": (_product, (jnp.ones(2), jnp.ones(2)), 0, ["d(w*x)/dw = x", "d(w*x)/dx = w"]),
    "one value in two places": (_twice, (3.0,), 0, ["d(x**2)/dx = 2*x"] * 2),
    "matrices": (_matmul, (jnp.ones((2, 3)), jnp.ones((3, 4))), (0, 1), ["dx = dy @ W.T", "dW = x.T @ dy"]),
    "a rule of its own": (_relu, (3.0,), 0, ["d relu(z)/dz = where(z > 0, 1, 0)"]),
    "a sum": (_mean, (jnp.ones((2, 3)),), 0, ["dx = broadcast_to(dtotal, (2, 3))"]),
    "a number as it was written": (_literal, (3.0,), 0, [None, "d(0.1*x)/dx = 0.1"]),
    "a quotient": (_quotient, (3.0,), 0, ["d(x/8)/dx = 1/8", None]),
    "argument paths": (
        _indexed,
        ({"w": 1.0, "b": 2.0},),
        0,
        ["d(p['w']*p['b'])/dp['w'] = p['b']", "d(p['w']*p['b'])/dp['b'] = p['w']"],
    ),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_formula_says(case):
    fun, args, argnums, expected = SAID[case]
    assert one(fun, *args, argnums=argnums) == expected


def loss(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


def test_a_local_gradient_has_a_formula():
    tape = jp.backprop(loss)(1.0, 1.0, 2.0)
    said = {
        ("loss", "s"): "d(s**2)/ds = 2*s",
        ("s", "y_hat"): "d(y_hat - y)/dy_hat = 1",
        ("y_hat", "w"): "d(w*x)/dw = x",
        ("loss", "w"): "dloss/dw = 2*s*x",
        ("loss", "y_hat"): "dloss/dy_hat = 2*s",
        ("s", "w"): "ds/dw = x",
    }
    assert {pair: str(jp.formula(tape.local(*pair))) for pair in said} == said


def test_latex_and_plain_data():
    tape = jp.backprop(loss)(1.0, 1.0, 2.0)
    formula = jp.formula(tape.local("s", "y_hat"))
    assert formula.latex == r"\frac{\partial\left(\hat{y} - y\right)}{\partial \hat{y}} = 1"
    assert json.loads(json.dumps(formula.data)) == {
        "of": "s",
        "wrt": "y_hat",
        "of_type": "f32[]",
        "wrt_type": "f32[]",
        "form": "local",
        "kind": "elementwise",
        "left": "d(y_hat - y)/dy_hat",
        "right": "1",
        "tree": "1",
    }
    assert (formula.left, formula.right, formula.kind) == ("d(y_hat - y)/dy_hat", "1", "elementwise")
    assert formula._repr_latex_().startswith("$\\displaystyle ")


def test_several_ways_are_summed():
    def f(x):
        a = jnp.sin(x)
        b = a * x
        return b

    tape = jp.backprop(f)(0.7)
    whole = jp.formula(tape.local("b", wrt="x"))
    value = eval(whole.right, {"cos": np.cos, "sin": np.sin, "x": 0.7, "a": np.sin(0.7)})
    np.testing.assert_allclose(value, float(tape.local("b", wrt="x")), rtol=1e-6)
    assert str(jp.formula(tape.local("b", wrt="x", direct=True))) == "d(a*x)/dx = a"
    np.testing.assert_allclose(float(tape.local("b", wrt="x", direct=True)), np.sin(0.7), rtol=1e-6)


def test_direct_needs_an_operation_that_reads_the_value():
    tape = jp.backprop(loss)(1.0, 1.0, 2.0)
    with pytest.raises(
        ValueError, match=r"'loss' does not depend on 'w': there is no local gradient between them\."
    ):
        tape.local("loss", wrt="w", direct=True)


def test_a_custom_rule_is_opened():
    @jax.custom_vjp
    def clipped(x):
        return x

    clipped.defvjp(lambda x: (x, x), lambda x, ct: (jnp.where(jnp.abs(x) < 1, ct, 0.0),))

    def f(x):
        y = clipped(x)
        return jnp.sum(y)

    tape = jp.backprop(f)(jnp.array([0.5, 2.0]))
    assert str(jp.formula(tape.local("y", wrt="x"))) == "dx = where(abs(x) < 1, dy, 0)"


def test_softmax_and_logsumexp_from_their_own_rules():
    @jax.custom_jvp
    def softmax(x):
        e = jnp.exp(x - jnp.max(x))
        return e / jnp.sum(e)

    @softmax.defjvp
    def _(primals, tangents):
        y = softmax(*primals)
        return y, y * (tangents[0] - jnp.sum(y * tangents[0]))

    def f(x):
        y = softmax(x)
        return y[0]

    x = jnp.array([0.1, 0.5, -0.3])
    formula = jp.formula(jp.backprop(f)(x).local("y", wrt="x"))
    ct = jnp.array([1.0, -2.0, 0.5])
    right = eval(formula.right, {"sum": jnp.sum, "dy": ct, "y": jax.nn.softmax(x)})
    np.testing.assert_allclose(right, jax.vjp(jax.nn.softmax, x)[1](ct)[0], rtol=1e-5)
    assert formula.kind == "custom rule"


def test_a_rule_with_a_loop_inside_is_not_opened():
    @jax.custom_vjp
    def slow(x):
        return jax.lax.fori_loop(0, 3, lambda i, v: v * 0.5, x)

    slow.defvjp(lambda x: (slow(x), None), lambda _, ct: (ct * 0.125,))

    def f(x):
        y = slow(x)
        return y

    (formula,) = formulas_of(jp.trace(f)(1.0)["y"])
    assert (
        formula.text == "dx: dy is propagated by the custom rule of the function (custom rule, f32[] -> f32[])"
    )


def test_what_has_no_closed_form_is_said_in_a_sentence():
    def f(x):
        y = jnp.sort(x)
        return y

    node = [n for n in jp.trace(f)(jnp.ones(3)).nodes if n.primitive == "sort"][0]
    (formula,) = formulas_of(node)
    assert (
        formula.text
        == "dx: the elements of dy are moved back to their places in x (permutation, f32[3] -> f32[3])"
    )
    assert formula.data["form"] == "map"


def test_inputs_and_integers_have_no_formula():
    graph = jp.trace(lambda x, n: x * n.astype(x.dtype))(jnp.ones(3), jnp.arange(3))
    assert formulas_of(graph["x"]) == ()
    convert = next(node for node in graph.nodes if node.primitive == "convert_element_type")
    assert formulas_of(convert) == (None,)


def test_a_local_of_a_rule_has_formulas_too():
    seen = []

    def rule(local, out_cts):
        seen.extend(jp.formula(local))
        return local.vjp(out_cts)

    jp.grad(loss, rules=[("y_hat", rule)])(1.0, 3.0, 2.0)
    assert [formula.text for formula in seen if formula] == ["d(w*x)/dw = x", "d(w*x)/dx = w"]


def test_a_formula_of_something_else():
    with pytest.raises(
        TypeError, match=r"`formula` takes a local gradient, `tape\.local\(of, wrt\)`; got float\."
    ):
        jp.formula(1.0)


def test_expressions():
    graph = jp.trace(loss)(1.0, 1.0, 2.0)
    assert [expression_of(node) for node in graph.nodes] == [None, None, None, "w*x", "y_hat - y", "s**2"]


def test_like_operations_share_one_derivation():
    def deep(x):
        for _ in range(200):
            x = jnp.tanh(x)
        return x

    graph = jp.trace(deep)(1.0)
    texts = {f.text for node in graph.nodes for f in formulas_of(node) if f is not None}
    assert len(texts) == 200  # each with its own names


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(tmp_path):
    tape = jp.backprop(loss)(1.0, 1.0, 2.0)
    page = (
        "\\documentclass{article}\\usepackage{amsmath}\\begin{document}$"
        + jp.formula(tape.local("loss", "w")).latex
        + "$\\end{document}"
    )
    (tmp_path / "page.tex").write_text(page)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "page.tex"], cwd=tmp_path, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stdout.decode()


#: The other programs take longer.
QUICK = {"attention", "mix", "vq", "remat"}


@pytest.mark.library
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in programs.PROGRAMS]
)
def test_every_statement_of_a_program_holds(name):
    fun, args, *_ = programs.PROGRAMS[name]()
    found = list(formula_check.check_statements(fun, args))
    wrong = [c for c in found if c.error is not None and not c.error <= 5e-3]  # float32
    assert not wrong, "\n".join(f"{c.case}, operand {c.operand}: {c.text} (error {c.error:.1e})" for c in wrong)
    assert found


# --- as a textbook writes it -----------------------------------------------------------------------------


def _softmax(s):
    a = jax.nn.softmax(s)
    return a


def _logistic(z):
    a = 1 / (1 + jnp.exp(-z))
    return a


def _sigmoid(z1):
    a1 = jax.nn.sigmoid(z1)
    return a1


def _silu(x):
    y = jax.nn.silu(x)
    return y


def _cross_entropy(z, onehot):
    loss = -jnp.sum(onehot * jax.nn.log_softmax(z))
    return loss


def _gaussian(mu, s, x):
    loss = 0.5 * ((x - mu) / s) ** 2 + jnp.log(s)
    return loss


def _ols(b, X, y):
    loss = jnp.mean((X @ b - y) ** 2)
    return loss


def _standardized(x):
    n = (x - jnp.mean(x)) / 2.0
    return n


def _cubic(X):
    y = X**3 + X**2
    return y


def _square(x):
    y = x**2 + 2 * x + 1
    return y


def _error(z2, y):
    L = 0.5 * (z2 - y) ** 2
    return L


def _root(v):
    r = jnp.sqrt(v)
    return r


def _masked(w):
    y = jnp.where(w > 0, jnp.exp(w), 0.0)
    return y


ROW = np.array([0.3, -1.2, 0.7])
GRID = np.array([[0.3, -1.2, 0.7], [2.0, 0.1, -0.4]])
TEXTBOOK = {
    "a cubic": (_cubic, (GRID,), "dy/dX = 3*X**2 + 2*X"),
    "a square": (_square, (ROW,), "dy/dx = 2*x + 2"),
    "a squared error": (_error, (1.5, 2.0), "dL/dz2 = z2 - y"),
    "sigmoid": (_sigmoid, (0.4,), "d sigmoid(z1)/dz1 = a1*(1 - a1)"),
    "logistic": (_logistic, (0.4,), "da/dz = a*(1 - a)"),
    "silu": (_silu, (0.4,), "dy/dx = sigmoid(x)*(1 + x*(1 - sigmoid(x)))"),
    "root": (_root, (0.4,), "d sqrt(v)/dv = 1/(2*sqrt(v))"),
    "softmax": (_softmax, (ROW,), "ds = a*(da - sum(da*a))"),
    "softmax of rows": (_softmax, (GRID,), "ds = a*(da - sum(da*a, axis=1, keepdims=True))"),
    "cross entropy": (
        _cross_entropy,
        (ROW, np.array([0.0, 1.0, 0.0])),
        "dz = dloss*(softmax(z)*sum(onehot) - onehot)",
    ),
    "gaussian": (_gaussian, (0.5, 2.0, 1.5), "dloss/dmu = -(x - mu)/s**2"),
    "least squares": (_ols, (ROW, GRID, np.array([1.0, -1.0])), "db = dloss*((X @ b - y) @ X)"),
    "a mean": (_standardized, (ROW,), "dx = dn/2 - mean(dn)/2"),
    "a mask": (_masked, (ROW,), "dy/dw = where(w > 0, exp(w), 0)"),
}


@pytest.mark.library
@pytest.mark.parametrize("case", TEXTBOOK)
def test_textbook_forms(case, x64):
    fun, args, said = TEXTBOOK[case]
    args = [jnp.asarray(x) for x in args]
    out, pull = jax.vjp(lambda x: fun(x, *args[1:]), args[0])
    tape = jp.backprop(fun, cotangent=jnp.ones(out.shape))(*args)
    (of,) = tape.graph.outputs
    formula = jp.formula(tape.local(of.name, wrt=next(iter(tape)).name))
    assert str(formula) == said
    names = dict(zip(inspect.signature(fun).parameters, args, strict=True))
    ct = jnp.asarray(np.random.default_rng(0).normal(size=out.shape))
    names |= {of.name: out, f"d{of.name}": ct}
    found = eval(formula.right, {"__builtins__": {}}, formula_check.NAMESPACE | names)
    found = found * ct if formula.data["form"] == "local" else found
    np.testing.assert_allclose(found, pull(ct)[0], rtol=1e-9, atol=1e-12)


def test_a_stopped_gradient_is_shown():
    def f(w):
        q = w + jax.lax.stop_gradient(jnp.round(w) - w)
        return q

    local = jp.backprop(f)(0.7).local("q", wrt="w")
    assert str(jp.formula(local)) == "dq/dw = 1"
    assert "q  = w + stop_gradient(round(w) - w)" in str(jp.explain(jp.backprop(f)(0.7)))


# --- readers of primitives -------------------------------------------------------------------------------


softplus_p = Primitive("my_softplus")
softplus_p.def_impl(lambda x: np.log1p(np.exp(x)))
softplus_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(softplus_p, mlir.lower_fun(lambda x: jnp.log1p(jnp.exp(x)), multiple_results=False))
ad.primitive_jvps[softplus_p] = lambda p, t: (softplus_p.bind(*p), t[0] * (1 - jnp.exp(-softplus_p.bind(*p))))


def _softplus_loss(w):
    a = softplus_p.bind(w)
    return a


def read_softplus(operands, equation):
    assert (equation.primitive, equation.shapes, len(equation.operand_dtypes)) == ("my_softplus", ((),), 1)
    return symbolic.apply("softplus", *operands)


def test_a_reader_of_a_primitive_is_passed():
    local = jp.backprop(_softplus_loss)(0.5).local("a", wrt="w")
    opaque = "dw: da is propagated by JAX's own rule for the operation (opaque, f32[] -> f32[])"
    assert str(jp.formula(local)) == opaque
    primitives = {**PRIMITIVES, "my_softplus": read_softplus}
    found = jp.formula(local, primitives=primitives)
    assert str(found) == "d softplus(w)/dw = 1 - exp(-softplus(w))"
    value = eval(found.right, {"exp": np.exp, "softplus": jax.nn.softplus, "w": 0.5})
    np.testing.assert_allclose(value, float(local), rtol=1e-6)
    node = jp.trace(_softplus_loss)(0.5)["a"]
    assert expression_of(node, primitives) == "softplus(w)"
    assert [str(f) for f in formulas_of(node, primitives=primitives)] == [str(found)]
    assert str(jp.formula(local)) == opaque  # it was passed, not registered


READERS_REFUSED = {
    "not a mapping": (
        [read_softplus],
        TypeError,
        "`primitives` must be a mapping from the names of primitives to their readers, such as "
        "{**jaxprop.show.PRIMITIVES, 'my_p': read_my_p}; got list.",
    ),
    "not a function": (
        {"my_softplus": "softplus"},
        TypeError,
        "the reader of 'my_softplus' in `primitives` must be a function (operands, equation) -> expression under "
        "the name of the primitive; got str.",
    ),
    "not an expression": (
        {"my_softplus": lambda operands, equation: "softplus"},
        TypeError,
        "the reader of `my_softplus` returned str, expected an expression, or one for each of several outputs. "
        "Build it with the functions of `jaxprop.show.symbolic`.",
    ),
    "too many": (
        {"my_softplus": lambda operands, equation: [*operands, *operands]},
        ValueError,
        "the reader of `my_softplus` returned 2 expressions, expected 1: one for each output.",
    ),
    "of another shape": (
        {"my_softplus": lambda operands, equation: symbolic.broadcast(operands[0], (3,))},
        ValueError,
        "the reader of `my_softplus` returned an expression of shape (3,), expected (), the shape of the output.",
    ),
}


@pytest.mark.parametrize("case", READERS_REFUSED)
def test_a_wrong_reader_is_refused(case):
    primitives, kind, said = READERS_REFUSED[case]
    tape = jp.backprop(_softplus_loss)(0.5)
    for ask in (
        lambda p: jp.formula(tape.local("a", wrt="w"), primitives=p),
        lambda p: jp.explain(tape, primitives=p),
    ):
        with pytest.raises(kind) as caught:
            ask(primitives)
        assert str(caught.value) == said


def test_a_reader_may_give_up():
    def none(operands, equation):
        raise symbolic.Unreadable(equation.primitive)

    local = jp.backprop(_softplus_loss)(0.5).local("a", wrt="w")
    assert jp.formula(local, primitives={"my_softplus": none}).data["form"] == "map"


# --- depth, memory ---------------------------------------------------------------------------------------


def _nested(depth):
    """A function with a rule of its own: so many sines inside one another."""

    @jax.custom_jvp
    def nested(x):
        for _ in range(depth):
            x = jnp.sin(x)
        return x

    @nested.defjvp
    def _(primals, tangents):
        (x,), (t,) = primals, tangents
        for _ in range(depth):
            x = jnp.sin(x)
        return x, x * t

    def f(x):
        y = nested(x)
        return y

    return f


@pytest.mark.parametrize("depth", [340, LIMIT - 3, LIMIT + 1])
def test_expressions_are_as_deep_as_they_are_large(depth):
    tape = jp.backprop(_nested(depth))(0.3)
    (formula,) = formulas_of(tape.graph["y"])
    expected = f"dx: dy is propagated by the custom rule of the function (custom rule, {tape.graph['y'].dtype}"
    assert formula.text.startswith(expected.replace("float32", "f32"))
    assert "y  = nested(x)" in str(jp.explain(tape))
    assert jp.draw(tape).scene is not None
    with pytest.raises(ValueError, match="there is nothing to ask"):
        jp.quiz(tape, kinds=["local gradient"])


def test_a_deep_expression_is_spelled_in_every_form():
    x = ex.Sym("in", 0)
    for _ in range(LIMIT - 1):
        x = ex.Apply("sin", (x,), ())
    names = Names({("in", 0): "x"})
    assert text(x, names) == "sin(" * (LIMIT - 1) + "x" + ")" * (LIMIT - 1)
    assert latex(x, names).count(r"\sin") == LIMIT - 1
    assert ex.contains(x, ex.Sym("in", 0)) and not ex.contains(x, ex.Sym("in", 1))
    assert ex.is_diagonal(x, ex.Sym("in", 0))
    with pytest.raises(ex.TooLarge):
        ex.Apply("sin", (x,), ())


def test_deep_sums_and_products_are_reshaped():
    a = x = ex.Sym("in", 0, (3,))
    while x.size < 3 * LIMIT // 4:
        x = add(divide(a, x), num(1))
    found = reshape(x, (3, 1))
    names = Names({("in", 0): "a"})
    a = np.array([0.2, 0.7, -0.4])
    np.testing.assert_allclose(eval(text(found, names)), eval(text(x, names))[:, None], rtol=1e-12)


def _use_everything(f, *args):
    tape = jp.backprop(f)(*args)
    for node in tape.graph.nodes:
        formulas_of(node), expression_of(node)
    jp.formula(tape.local("loss", wrt="w"))
    str(jp.explain(tape)), jp.quiz(tape).ask()


@pytest.mark.parametrize("kind", ["jit", "custom_jvp", "custom_vjp"])
def test_arrays_closed_over_are_freed(kind):
    """4 MB inside a helper live no longer than the helper."""

    def watched():
        big = jnp.ones((1024, 1024))

        def helper(x):
            return x * big[0, 0] + jnp.sum(big) * x

        if kind == "jit":
            called = jax.jit(helper)
        elif kind == "custom_jvp":
            called = jax.custom_jvp(helper)
            called.defjvp(lambda p, t: (helper(*p), t[0] * big[1, 1]))
        else:
            called = jax.custom_vjp(helper)
            called.defvjp(lambda x: (helper(x), None), lambda _, ct: (ct * big[1, 1],))

        def f(w):
            s = called(w)
            loss = s**2
            return loss

        _use_everything(f, 1.5)
        return weakref.ref(big)

    gone = watched()
    jax.clear_caches()
    gc.collect()
    assert gone() is None


def test_operations_alike_are_derived_once(monkeypatch):
    def f(w):
        for _ in range(50):
            w = jnp.tanh(w) * 1.01
        return w

    def fresh(w):
        return jnp.tanh(w) * 1.01

    for node in jp.trace(fresh)(0.3).nodes:
        formulas_of(node)
    traced = []
    monkeypatch.setattr(derive, "_traced", lambda fun, *structs: traced.append(fun))
    graph = jp.trace(f)(0.3)
    assert all(formulas_of(node) for node in graph.nodes if node.eqn is not None)
    assert not traced
