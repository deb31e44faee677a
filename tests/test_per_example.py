"""Norms of single examples' gradients, against `jax.vmap` of `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def dictionary(**shapes):
    return dict(zip(shapes, arrays(*shapes.values()), strict=True))


def tokens(*shape, below=11):
    return jnp.asarray(np.random.default_rng(1).integers(0, below, shape), jnp.int32)


# --- programs -------------------------------------------------------------------------------------


def mlp(p, x, y):
    h = jnp.tanh(x @ p["w1"] + p["b1"][None])
    return jnp.mean((h @ p["w2"] + p["b2"][None] - y) ** 2)


def sequence(p, t, y):
    h = p["table"][t]
    h = jax.nn.gelu((h @ p["w"].T) * p["gain"][None, None] + p["shift"])
    q = jnp.einsum("bti,hio->bhto", h, p["heads"])
    return jnp.mean((q.sum(1) - y) ** 2)


def conv(x, k, *options, **more):
    return jax.lax.conv_general_dilated(x, k, *options, dimension_numbers=NHWC, **more)


def cnn(p, x, y):
    h = conv(x, p["k"], (2, 1), "SAME", rhs_dilation=(1, 2))
    h = jax.nn.relu(h + p["b"][None, None, None])
    h = conv(h, p["grouped"], (1, 1), ((0, 1), (2, 0)), feature_group_count=2, lhs_dilation=(1, 2))
    h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return jnp.sum((h.mean((1, 2)) @ p["w"] - y) ** 2)


def rnn(p, x, y):
    def step(h, x):
        h = jnp.tanh(h @ p["u"] + x @ p["w"] + p["b"][None])
        return h, None

    h, _ = jax.lax.scan(step, jnp.zeros((x.shape[0], 4)), x.swapaxes(0, 1))
    return jnp.mean((h @ p["out"] - y) ** 2)


def rnn_with_penalty(p, x, y):
    return rnn(p, x, y) + jnp.sum(p["u"] ** 2)


def layers_by_scan(p, x):
    @jax.checkpoint
    def layer(h, layer):
        h = jnp.tanh(h @ layer["w"] + layer["b"][None])
        return h @ p["shared"].T @ p["shared"], None

    h, _ = jax.lax.scan(layer, x, p["layers"], reverse=True)
    return jnp.mean(h**2)


def scan_in_scan(p, x):
    def outer(h, block):
        def inner(h, _):
            return jnp.tanh(h @ block["w"].T + p["b"][None]), None

        return jax.lax.scan(inner, h, None, length=2)[0], None

    return jnp.mean(jax.lax.scan(outer, x, p["blocks"])[0] ** 2)


def tied(p, t):
    h = jnp.tanh(p["table"][t[:, :-1]] @ p["w"])
    logits = jax.nn.log_softmax(h @ p["table"].T)
    return -jnp.mean(jnp.take_along_axis(logits, t[:, 1:, None], -1))


def branches(p, x):
    def one(x):
        return x @ p["w"]

    def other(x):
        return jnp.sin(x @ p["w"] @ p["v"])

    return jnp.mean(jax.lax.cond(p["switch"] > 0, one, other, x))


def penalised(p, x):
    return jnp.mean((x @ p["w"]) ** 2) + 0.1 * jnp.sum(p["w"] ** 2) + jnp.sum(jnp.sin(p["b"])[None] * x)


def carried(p, x):
    def step(w, _):
        return w * 1.5, jnp.sum((x @ w) ** 2)

    return jnp.mean(jax.lax.scan(step, p["w"], None, length=3)[1])


def unused(p, x):
    return jnp.mean(x @ jax.lax.stop_gradient(p["stopped"])) + jnp.sum(x * p["used"][None])


def half(p, x):
    return jnp.mean(x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32)


LAYERS = {"w": (3, 4, 4), "b": (3, 4)}
CASES = {
    "mlp": (mlp, dictionary(w1=(4, 5), b1=(5,), w2=(5, 3), b2=(3,)), arrays((7, 4), (7, 3))),
    "a batch of one": (mlp, dictionary(w1=(4, 5), b1=(5,), w2=(5, 3), b2=(3,)), arrays((1, 4), (1, 3))),
    "sequence": (
        sequence,
        dictionary(table=(11, 6), w=(4, 6), gain=(4,), shift=(), heads=(2, 4, 3)),
        [tokens(7, 5), *arrays((7, 5, 3))],
    ),
    "cnn": (
        cnn,
        dictionary(k=(3, 3, 2, 4), b=(4,), grouped=(2, 3, 2, 6), w=(6, 3)),
        arrays((5, 8, 6, 2), (5, 3)),
    ),
    "rnn": (rnn, dictionary(u=(4, 4), w=(3, 4), b=(4,), out=(4, 2)), arrays((6, 9, 3), (6, 2))),
    "layers by scan": (
        layers_by_scan,
        {"layers": dictionary(**LAYERS), "shared": arrays((2, 4))[0]},
        arrays((6, 4)),
    ),
    "scan in scan": (
        scan_in_scan,
        {"blocks": dictionary(w=(3, 4, 4)), "b": arrays((4,))[0]},
        arrays((6, 4)),
    ),
    "tied": (tied, dictionary(table=(11, 6), w=(6, 6)), [tokens(7, 5)]),
    "branches": (branches, dictionary(switch=(), w=(3, 2), v=(2, 2)), arrays((5, 3))),
    "penalised": (penalised, dictionary(w=(3, 2), b=(3,)), arrays((5, 3))),
    "carried": (carried, dictionary(w=(3, 3)), arrays((4, 3))),
    "unused": (unused, dictionary(stopped=(3,), used=(3,), never=(2,)), arrays((4, 3))),
    "bfloat16": (half, dictionary(w=(3, 2)), arrays((5, 3))),
}


def by_vmap(loss, params, batch):
    """Losses, norms and the mean gradient, one example after the other."""

    def one(p, *example):
        return loss(p, *(x[None] for x in example))

    axes = (None, *(0,) * len(batch))
    losses, grads = jax.vmap(jax.value_and_grad(one), axes)(params, *batch)
    norms = jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2, axis=tuple(range(1, g.ndim)))), grads)
    return losses, norms, jax.tree.map(lambda g: g.mean(0), grads)


@pytest.mark.parametrize("name", CASES)
def test_norms_and_gradient_are_those_of_single_examples(name):
    loss, params, batch = CASES[name]
    found = jax.jit(jp.per_example(loss))(params, *batch)
    losses, norms, grads = jax.jit(by_vmap, static_argnums=0)(loss, params, batch)
    # Positions are summed in another order than in the oracle: in bfloat16 that shows.
    tolerance = 2e-2 if name == "bfloat16" else 3e-4

    def same(ours, theirs):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance / 100)

    same(found.losses, losses)
    same(found.value, losses.mean())
    jax.tree.map(same, found.norms, norms)
    jax.tree.map(same, found.grads, grads)


def sizes(jaxpr):
    """The number of elements of every value in a program, nested ones included."""
    for eqn in jaxpr.eqns:
        yield from (np.prod(var.aval.shape, dtype=int) for var in eqn.outvars)
        for param in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


WIDE = {
    "mlp": (mlp, dictionary(w1=(64, 64), b1=(64,), w2=(64, 3), b2=(3,)), arrays((7, 64), (7, 3)), 7 * 64 * 64),
    "rnn": (
        rnn,
        dictionary(u=(4, 4), w=(900, 4), b=(4,), out=(4, 2)),
        arrays((6, 3, 900), (6, 2)),
        6 * 900 * 4,
    ),
    "table": (tied, dictionary(table=(5000, 4), w=(4, 4)), [tokens(7, 5)], None),
}


@pytest.mark.parametrize("name", ["mlp", "rnn"])
def test_no_gradient_of_an_example_is_built(name):
    loss, params, batch, refused = WIDE[name]
    program = jax.make_jaxpr(jp.per_example(loss))(params, *batch)
    assert max(sizes(program.jaxpr)) < refused
    assert max(sizes(jax.make_jaxpr(by_vmap, static_argnums=0)(loss, params, batch).jaxpr)) >= refused


def test_examples_are_taken_in_chunks(monkeypatch):
    loss, params, batch = CASES["cnn"]
    whole = jp.per_example(loss)(params, *batch)
    monkeypatch.setattr("jaxprop.train.examples.contributions.CHUNK", 2_000)
    chunked = jax.jit(jp.per_example(loss))(params, *batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole.norms, chunked.norms)


def test_the_noise_scale_is_that_of_its_definition():
    loss, params, batch = CASES["mlp"]
    found = jp.per_example(loss)(params, *batch)

    def flat(i):
        g = jax.grad(loss)(params, *(x[i : i + 1] for x in batch))
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(g)]).astype(np.float64)

    grads = np.stack([flat(i) for i in range(7)])
    noise = np.trace(np.cov(grads.T))  # without bias
    signal = np.sum(grads.mean(0) ** 2) - noise / 7
    np.testing.assert_allclose(found.noise_scale(), noise / signal, rtol=1e-4)
    np.testing.assert_allclose(found.norm, np.linalg.norm(grads, axis=1), rtol=1e-5)


def test_one_example_has_no_noise_scale():
    loss, params, batch = CASES["a batch of one"]
    assert np.isnan(jp.per_example(loss)(params, *batch).noise_scale())


def test_auxiliary_data_comes_for_each_example():
    def loss(w, x):
        return jnp.sum((x @ w) ** 2), {"mean": x.mean()}

    w, x = arrays((3,), (4, 3))
    found = jp.per_example(loss, has_aux=True)(w, x)
    np.testing.assert_allclose(found.aux["mean"], x.mean(1), rtol=1e-6)


def test_another_argument_and_keywords():
    def loss(x, w, *, scale):
        return scale * jnp.sum((x @ w) ** 2)

    w, x = arrays((3,), (4, 3))
    found = jp.per_example(loss, argnums=1)(x, w, scale=2.0)
    np.testing.assert_allclose(found.norms, 4 * np.abs(x @ w) * np.linalg.norm(x, axis=1), rtol=1e-5)


@pytest.mark.parametrize("loss", [rnn, rnn_with_penalty])
def test_examples_may_be_counted_by_another_axis(loss):
    _, params, (x, y) = CASES["rnn"]

    def steps_first(p, x, y):
        return loss(p, x.swapaxes(0, 1), y)

    found = jax.jit(jp.per_example(steps_first, in_axes=(1, 0)))(params, x.swapaxes(0, 1), y)
    _, norms, _ = by_vmap(loss, params, (x, y))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found.norms, norms)


def test_an_argument_may_be_the_same_for_all_examples():
    def loss(w, x, key):
        return jnp.sum((x @ (w * jax.random.normal(key, w.shape))) ** 2) + jnp.sum(x @ w)

    w, x = arrays((3,), (4, 3))
    key = jax.random.key(0)
    found = jp.per_example(loss, in_axes=(0, None))(w, x, key)
    _, norms, _ = by_vmap(lambda w, x: loss(w, x, key), w, (x,))
    np.testing.assert_allclose(found.norms, norms, rtol=1e-4)


ERRORS = {
    "a batch of (4, 3), (5,), but every array of a batch needs the same number of examples, at least one": (
        lambda w, x, y: jnp.sum(w) * x.sum() * y.sum(),
        (jnp.ones(3), jnp.ones((4, 3)), jnp.ones(5)),
        ValueError,
    ),
    "a batch of no arrays, but every array of a batch needs": (jnp.sum, (jnp.ones(3),), ValueError),
    "a batch of (0, 3), but every array of a batch needs": (
        lambda w, x: jnp.sum(w * x),
        (jnp.ones(3), jnp.ones((0, 3))),
        ValueError,
    ),
    "must return a scalar, but it returned shape (3,) for a batch of one example": (
        lambda w, x: (w * x)[0],
        (jnp.ones((1, 3)), jnp.ones((4, 3))),
        TypeError,
    ),
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors(sentence):
    loss, args, kind = ERRORS[sentence]
    with pytest.raises(kind) as error:
        jp.per_example(loss)(*args)
    assert sentence in str(error.value)
