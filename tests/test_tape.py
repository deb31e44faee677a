"""The tape against closed forms: values, cotangents, local gradients, shares, of known programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from helpers import check_close, check_equal


def worked(w, x, y):
    y_hat = w * x
    s = y_hat - y
    loss = s**2
    return loss


def hidden(params, x, y):
    z = x @ params["w1"] + params["b1"]
    h = jnp.tanh(z)
    y_hat = h @ params["w2"]
    e = y_hat - y
    return jnp.sum(e * e)


@pytest.fixture
def layer(key):
    k = jax.random.split(key, 4)
    params = {
        "w1": jax.random.normal(k[0], (3, 4)),
        "b1": jax.random.normal(k[1], (4,)),
        "w2": jax.random.normal(k[2], (4, 2)),
    }
    x = jax.random.normal(k[3], (3,))
    return params, x, jnp.array([0.5, -0.5])


def numpy_hidden(params, x, y):
    """Values and cotangents of `hidden`, worked out by hand in float64."""
    p = {name: np.asarray(a, np.float64) for name, a in params.items()}
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    z = x @ p["w1"] + p["b1"]
    h = np.tanh(z)
    e = h @ p["w2"] - y
    d_e = 2 * e
    d_h = p["w2"] @ d_e
    d_z = d_h * (1 - h**2)
    values = {"z": z, "h": h, "y_hat": h @ p["w2"], "e": e}
    cotangents = {"z": d_z, "h": d_h, "y_hat": d_e, "e": d_e}
    grads = {"w1": np.outer(x, d_z), "b1": d_z, "w2": np.outer(h, d_e)}
    return values, cotangents, grads


def test_the_worked_example():
    tape = jp.backprop(worked)(1.0, 1.0, 2.0)
    assert float(tape.value) == 1.0
    assert float(tape.grads) == -2.0
    assert {e.name: float(e.value) for e in tape} == {
        "w": 1.0,
        "x": 1.0,
        "y": 2.0,
        "y_hat": 1.0,
        "s": -1.0,
        "loss": 1.0,
    }
    cotangents = {e.name: None if e.cotangent is None else float(e.cotangent) for e in tape}
    assert cotangents == {"w": -2.0, "x": None, "y": None, "y_hat": -2.0, "s": -2.0, "loss": 1.0}
    assert float(tape.local("y_hat", wrt="w")) == 1.0
    assert float(tape.local("s", wrt="y_hat")) == 1.0
    assert float(tape.local("loss", wrt="s")) == -2.0
    assert repr(tape.local("loss", wrt="s")) == "d loss/d s = -2"


def test_the_table_of_the_worked_example():
    lines = str(jp.backprop(worked)(1.0, 1.0, 2.0)).splitlines()
    assert lines[0].split() == ["value", "type", "|value|", "|cotangent|", "expression", "source"]
    assert [line.split()[0] for line in lines[2:]] == ["w", "x", "y", "y_hat", "s", "loss"]
    assert lines[-1].split()[:4] == ["loss", "f32[]", "1", "1"]


def test_the_table_shows_statements_and_operations_if_asked(layer):
    def names(table):
        return [line.split()[0] for line in table.splitlines()[2:] if "operations inside" not in line]

    tape = jp.backprop(hidden)(*layer)
    operations = names(tape.table(operations=True))
    assert operations == [entry.name for entry in tape]
    shown = names(tape.table())
    assert shown == [name for name in operations if not tape.graph.value(name).anonymous]
    inside = f"{len(operations) - len(shown)} operations inside these statements: .table(operations=True)"
    assert str(tape).splitlines()[-1] == inside
    chosen = jp.backprop(hidden, nodes="*dot_general")(*layer)  # what was asked for is shown
    assert "operations inside" not in str(chosen)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_values_and_cotangents_are_those_worked_out_by_hand(layer, jit):
    run = jp.backprop(hidden)
    tape = (jax.jit(run) if jit else run)(*layer)
    values, cotangents, grads = numpy_hidden(*layer)
    for name in values:
        np.testing.assert_allclose(tape[name].value, values[name], rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(tape[name].cotangent, cotangents[name], rtol=2e-5, atol=1e-6)
    for name in grads:
        np.testing.assert_allclose(tape.grads[name], grads[name], rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(tape[f"params['{name}']"].cotangent, tape.grads[name])


def test_an_eager_gradient_is_jax_s_to_the_bit(layer):
    check_equal(jp.backprop(hidden)(*layer).grads, jax.grad(hidden)(*layer))


def test_a_cotangent_is_the_gradient_of_what_comes_after(layer):
    params, x, y = layer
    tape = jp.backprop(hidden)(params, x, y)

    def after_h(h):
        return jnp.sum((h @ params["w2"] - y) ** 2)

    check_close(tape["h"].cotangent, jax.grad(after_h)(tape["h"].value))


def test_local_gradients_of_arrays(layer):
    params, x, y = layer
    tape = jp.backprop(hidden)(params, x, y)
    h = np.asarray(tape["h"].value)
    local = tape.local("h", wrt="z")
    assert local.shape == (4, 4)
    np.testing.assert_allclose(local.diagonal(), 1 - h**2, rtol=1e-5)
    np.testing.assert_allclose(local.jacobian(), np.diag(1 - h**2), rtol=1e-5)
    ct = jnp.arange(4.0)
    np.testing.assert_allclose(local.vjp(ct), (1 - h**2) * ct, rtol=1e-5)
    np.testing.assert_allclose(local.jvp(ct), (1 - h**2) * ct, rtol=1e-5)
    np.testing.assert_allclose(tape.local("y_hat", wrt="h").jacobian(), params["w2"].T, rtol=1e-6)
    np.testing.assert_allclose(
        tape.local("y_hat", wrt="params['w2']").vjp(ct[:2]), np.outer(h, ct[:2]), rtol=1e-6
    )


def test_the_product_of_local_gradients_is_the_gradient(layer):
    tape = jp.backprop(hidden)(*layer)
    ct = jnp.ones(())
    for of, wrt in (("hidden", "e"), ("e", "y_hat"), ("y_hat", "h"), ("h", "z")):
        ct = tape.local(of, wrt).vjp(ct)
    check_close(ct, tape["z"].cotangent)


def test_a_local_gradient_composes_the_nodes_between(layer):
    tape = jp.backprop(hidden)(*layer)
    check_close(tape.local("hidden", wrt="z").jacobian(), tape["z"].cotangent)


def test_a_local_gradient_from_inside_jit(layer):
    run = jp.backprop(hidden)

    @jax.jit
    def diagonal(*args):
        return run(*args).local("h", wrt="z").diagonal()

    h = run(*layer)["h"].value
    np.testing.assert_allclose(diagonal(*layer), 1 - h**2, rtol=1e-5)


def test_an_operand_read_twice_counts_twice():
    tape = jp.backprop(lambda a: a * a)(3.0)
    (name,) = tape.graph.by_name.keys() - {"a"}
    assert float(tape.local(name, wrt="a")) == 6.0


ELEMENTWISE = {
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "square": lambda x: x * x,
    "power": lambda x: x**3,
    "where": lambda x: jnp.where(x > 0.5, x, 2 * x),
    "relu": jax.nn.relu,
    "cast": lambda x: x.astype(jnp.float16),
}
NOT_ELEMENTWISE = {
    "sort": jnp.sort,
    "reverse": lambda x: x[::-1],
    "cumsum": jnp.cumsum,
    "softmax": jax.nn.softmax,
    "matmul": lambda x: jnp.full((5, 5), 0.5) @ x,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_the_diagonal_of_what_is_elementwise(name):
    def f(x):
        y = ELEMENTWISE[name](x)
        return jnp.sum(y.astype(jnp.float32))

    x = jnp.array([0.1, 0.9, 0.4, 0.7, -0.3])
    tape = jp.backprop(f)(x)
    expected = jax.jacobian(ELEMENTWISE[name])(x)
    np.testing.assert_array_equal(tape.local("y", wrt="x").diagonal(), np.diag(expected).astype(np.float32))


@pytest.mark.parametrize("name", NOT_ELEMENTWISE)
def test_there_is_no_diagonal_of_what_is_not(name):
    def f(x):
        y = NOT_ELEMENTWISE[name](x)
        return jnp.sum(y)

    tape = jp.backprop(f)(jnp.array([0.1, 0.9, 0.4, 0.7, -0.3]))
    with pytest.raises(
        ValueError, match=r"d y/d x is not a diagonal matrix: y \[5\] is not an elementwise function of x \[5\]"
    ):
        tape.local("y", wrt="x").diagonal()


def test_the_shares_of_a_fan_out_sum_to_its_cotangent(key):
    def f(w):
        h = jnp.sin(w)
        a = h * 2.0
        b = jnp.exp(h)
        return jnp.sum(a * b) + jnp.sum(h)

    w = jax.random.normal(key, (5,))
    tape = jp.backprop(f)(w)
    shares = tape.shares("h")
    assert set(shares) == {"a", "b", "reduce_sum"} or len(shares) == 3
    check_close(shares.total, tape["h"].cotangent)
    np.testing.assert_allclose(shares["a"], 2.0 * tape["b"].value, rtol=1e-6)
    parts = [np.linalg.norm(share) for share in shares.values()]
    expected = np.linalg.norm(tape["h"].cotangent) / sum(parts)
    np.testing.assert_allclose(shares.cancellation, expected, rtol=1e-5)


def test_shares_that_cancel():
    def f(w):
        h = w * 2.0
        a = h * 3.0
        b = h * -3.0
        return a + b

    shares = jp.backprop(f)(1.0).shares("h")
    assert (float(shares["a"]), float(shares["b"])) == (3.0, -3.0)
    assert float(shares.cancellation) == 0.0


def test_the_result_itself_is_a_reader():
    def f(w):
        h = w * 3.0
        g = h * h
        return h, g

    tape = jp.backprop(f, cotangent=(5.0, 7.0))(2.0)
    assert {name: float(share) for name, share in tape.shares("h").items()} == {"g": 84.0, "output": 5.0}
    assert float(tape.grads) == 3.0 * 89.0


def test_shares_follow_rules():
    def f(w):
        h = w * 2.0
        a = jnp.sin(h)
        return a + h

    tape = jp.backprop(f, rules=[("a", jp.rules.scale(10.0))])(0.3)
    shares = tape.shares("h")
    np.testing.assert_allclose(shares["a"], 10.0 * np.cos(0.6), rtol=1e-6)
    check_close(shares.total, tape["h"].cotangent)


def rnn(w, xs):
    def step(h, x):
        h = jnp.tanh(w * h + x)
        return h, h * h

    last, squares = jax.lax.scan(step, jnp.zeros(()), xs)
    return last + jnp.sum(squares)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_has_a_step_axis(key, reverse):
    def f(w, xs):
        def step(h, x):
            h = jnp.tanh(w * h + x)
            return h, h * h

        last, squares = jax.lax.scan(step, jnp.zeros(()), xs, reverse=reverse)
        return last + jnp.sum(squares)

    xs = jax.random.normal(key, (6,))
    tape = jp.backprop(f)(0.7, xs)
    hs, h = [], 0.0
    for x in np.asarray(xs, np.float64)[:: -1 if reverse else 1]:
        h = np.tanh(0.7 * h + x)
        hs.append(h)
    ct, cts = 1.0, []
    for h in hs[::-1]:
        ct = ct + 2 * h
        cts.append(ct)
        ct = ct * (1 - h**2) * 0.7
    order = slice(None, None, -1) if reverse else slice(None)
    np.testing.assert_allclose(tape["h"].value, np.array(hs)[order], rtol=1e-5)
    np.testing.assert_allclose(tape["h"].cotangent, np.array(cts[::-1])[order], rtol=1e-5)
    shares = tape.shares("h")
    check_close(shares.total, tape["h"].cotangent)
    assert set(shares) == {"next step", tape.graph["h"].name and "step/mul#2"} or len(shares) == 2
    assert shares.cancellation.shape == (6,)


def test_local_gradients_inside_a_scan_are_one_for_each_step(key):
    xs = jax.random.normal(key, (6,))
    tape = jp.backprop(rnn)(0.7, xs)
    (z,) = (node.operands[0].name for node in [tape.graph["h"]])
    local = tape.local("h", wrt=z)
    assert local.shape == (6,)
    np.testing.assert_allclose(local.jacobian(), 1 - tape["h"].value ** 2, rtol=1e-5)
    np.testing.assert_allclose(local.diagonal(), 1 - tape["h"].value ** 2, rtol=1e-5)
    np.testing.assert_allclose(local.vjp(jnp.ones(6)), 1 - tape["h"].value ** 2, rtol=1e-5)


def test_a_loop_constant_is_kept_once(key):
    def f(w, xs):
        def step(h, x):
            h = jnp.tanh(w @ h + x)
            return h, None

        return jnp.sum(jax.lax.scan(step, jnp.zeros(3), xs)[0])

    w = jax.random.normal(key, (3, 3))
    tape = jp.backprop(f)(w, jnp.ones((5, 3)))
    sizes = [x.size for x in jax.tree.leaves(tape)]
    assert max(sizes) <= 15  # nowhere five copies of `w`
    inner = next(name for name in tape.graph.by_name if name.startswith("step/") and name.endswith("w"))
    np.testing.assert_array_equal(tape[inner].value, w)
    z = tape.graph["h"].operands[0].name
    matvec = tape.graph[z].operands[0].name
    jacobian = tape.local(matvec, wrt="step/h").jacobian()
    np.testing.assert_allclose(jacobian, np.broadcast_to(w, (5, 3, 3)), rtol=1e-6)


def test_the_branch_of_a_cond_says_whether_it_was_taken():
    def f(x):
        def double(v):
            d = v * 2.0
            return d

        def square(v):
            q = v * v
            return q

        return jax.lax.cond(x > 1.0, double, square, x)

    for x, d, q in ((3.0, True, False), (0.5, False, True)):
        tape = jax.jit(jp.backprop(f))(x)
        assert bool(tape["d"].taken) is d
        assert bool(tape["q"].taken) is q
        assert float(tape["d"].cotangent) == float(d)
        assert float(tape["q"].value) == (x * x if q else 0.0)


def test_a_branch_inside_a_scan_is_taken_step_by_step():
    def f(x):
        def step(c, flag):
            c = jax.lax.cond(flag, jnp.sin, lambda v: v * 1.5, c)
            return c, None

        return jax.lax.scan(step, x, jnp.array([True, False, True]))[0]

    tape = jp.backprop(f)(0.3)
    (sin,) = tape.find("sin")
    np.testing.assert_array_equal(sin.taken, [True, False, True])
    np.testing.assert_array_equal(sin.cotangent != 0, [True, False, True])


def test_a_tape_crosses_jit_in_both_directions(layer):
    run = jax.jit(jp.backprop(hidden))
    tape = run(*layer)
    traces = []

    @jax.jit
    def norm_of_h(tape):
        traces.append(1)
        return jnp.linalg.norm(tape["h"].cotangent)

    np.testing.assert_allclose(norm_of_h(tape), np.linalg.norm(tape["h"].cotangent), rtol=1e-6)
    # Another trace of the same function gives the same static part: no second compilation.
    norm_of_h(jax.jit(jp.backprop(hidden))(*layer))
    norm_of_h(jp.backprop(hidden)(*layer))
    assert len(traces) == 1


def test_a_mapped_tape_is_mapped_over(layer):
    params, x, y = layer
    xs = jnp.stack([x, 2 * x])
    tape = jax.vmap(jp.backprop(hidden), in_axes=(None, 0, None))(params, xs, y)
    check_close(tape.grads, jax.vmap(jax.grad(hidden), in_axes=(None, 0, None))(params, xs, y))
    with pytest.raises(ValueError, match="the tape went through `vmap`"):
        tape.local("h", wrt="z").diagonal()
    diagonal = jax.vmap(lambda tape: tape.local("h", wrt="z").diagonal())(tape)
    np.testing.assert_allclose(diagonal, 1 - tape["h"].value ** 2, rtol=1e-5)


def test_looking_up(layer):
    tape = jp.backprop(hidden)(*layer)
    assert "h" in tape and "q" not in tape
    assert [e.name for e in tape.find("params*")] == ["params['b1']", "params['w1']", "params['w2']"]
    assert [e.name for e in tape.find("params['w1']")] == ["params['w1']"]
    assert [e.name for e in tape.find(lambda node: node.primitive == "tanh")] == ["h"]
    names = [e.name for e in tape]
    assert [e.name for e in reversed(tape)] == names[::-1]
    assert len(tape) == len(names)
    assert isinstance(tape["h"].node, jp.Node)


def test_only_what_is_asked_for_is_recorded(layer):
    tape = jp.backprop(hidden, nodes=["z", "h"])(*layer)
    assert {e.name for e in tape if e.cotangent is not None} == {"z", "h"}
    tape.local("h", wrt="z")
    with pytest.raises(
        KeyError, match="'e' is in the graph but was not recorded: it is not matched by `nodes=`"
    ):
        tape["e"]
    assert len(jp.backprop(hidden, nodes=())(*layer)) == 0


def test_an_inactive_value_can_be_recorded():
    def f(w, x):
        t = x * 3.0
        return w * jnp.sum(t)

    x = jnp.arange(3.0)
    tape = jp.backprop(f, nodes=["t"])(2.0, x)
    np.testing.assert_array_equal(tape["t"].value, 3.0 * x)
    assert tape["t"].cotangent is None


def test_aux_comes_out_as_it_is(layer):
    def f(params, x, y):
        h = jnp.tanh(x @ params["w1"])
        return jnp.sum(h @ params["w2"]), {"h": h, "name": "hidden", "count": 3}

    tape = jp.backprop(f, has_aux=True)(*layer)
    assert tape.aux["name"] == "hidden" and tape.aux["count"] == 3
    np.testing.assert_array_equal(tape.aux["h"], tape["h"].value)


def test_a_function_that_is_no_scalar_takes_a_cotangent(key):
    def f(w):
        a = jnp.sin(w)
        return {"a": a, "n": 3 * a[0]}

    w = jax.random.normal(key, (4,))
    ct = {"a": jnp.arange(4.0), "n": jnp.ones(())}
    tape = jp.backprop(f, cotangent=ct)(w)
    check_close(tape.grads, jax.vjp(f, w)[1](ct)[0])
    check_close(jp.backprop(f, cotangent={"a": ct["a"], "n": None})(w).grads, ct["a"] * jnp.cos(w))


DERIVATIVES = {
    "from the end": ("loss", "s", -2.0),
    "from the middle": ("s", "w", 3.0),
    "of an argument": ("y_hat", "x", 1.0),
    "of itself": ("s", "s", 1.0),
}


@pytest.mark.parametrize("case", DERIVATIVES)
def test_derivatives_between_any_two_values(case):
    of, wrt, expected = DERIVATIVES[case]
    x = 3.0 if case == "from the middle" else 1.0
    assert float(jp.derivative(worked, of=of, wrt=wrt)(1.0, x, 2.0)) == expected


def test_the_derivative_of_an_array_by_an_array_is_the_jacobian(layer):
    params, x, y = layer
    jacobian = jp.derivative(hidden, of="e", wrt="h")(params, x, y)
    np.testing.assert_allclose(jacobian, params["w2"].T, rtol=1e-6)
    check_close(
        jp.derivative(hidden, of="hidden", wrt="z")(params, x, y),
        jp.backprop(hidden)(params, x, y)["z"].cotangent,
    )


def test_the_derivative_by_a_value_inside_a_scan_has_its_step_axis(key):
    xs = jax.random.normal(key, (6,))
    ct = jp.derivative(rnn, of="rnn", wrt="h")(0.7, xs)
    check_close(ct, jp.backprop(rnn)(0.7, xs)["h"].cotangent)


def test_a_recorder_that_defers_nothing_defers_no_empty_array():
    largest = jp.Recorder.each(cotangent=lambda ct: jnp.max(jnp.abs(ct), initial=0.0))

    def loss(w, x):
        return jnp.sum(x @ w)

    tape = jp.backprop(loss, nodes=lambda node: node.active, record=largest)(
        jnp.ones((3, 2)), jnp.zeros((0, 3))
    )
    assert [entry.cotangent.shape for entry in tape] == [(), (), ()]
