"""Norms of single examples' gradients, against `jax.vmap` of `jax.grad`."""

import re

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


def unrolled(p, x):
    h = jnp.zeros((x.shape[0], 4))
    for i in range(x.shape[1]):
        h = jnp.tanh(h @ p["u"] + x[:, i] @ p["w"] + p["b"][None])
    return jnp.mean((h @ p["u"].T) ** 2)


def sliced(p, x):
    q, k, v = jnp.split(p["qkv"], 3, axis=1)
    h = jnp.tanh(x @ q) * (x @ k) + x @ v
    for i in range(2):
        h = jnp.tanh(h @ p["layers"][i])
    return jnp.mean((h @ p["qkv"][:4, :2] @ p["wide"][::2, :3]) ** 2)


def deep_conv(p, x):
    return jnp.mean(jnp.tanh(conv(x, p["k"], (1, 1), "VALID")) ** 2)


def conv_in_scan(p, x):
    def layer(h, k):
        return jnp.tanh(conv(h, k, (1, 1), "SAME")), None

    return jnp.mean(jax.lax.scan(layer, x, p["k"])[0] ** 2)


def tied_in_scan(p, t):
    def layer(h, w):
        return jnp.tanh(h @ w @ p["shared"]), None

    h, _ = jax.lax.scan(layer, p["table"][t], p["w"])
    return jnp.mean(h @ p["table"].T)


def many_lookups(p, t):
    return jnp.mean(jnp.tanh(p["table"][t]) ** 2)


def complex_numbers(p, x):
    h = x.astype(jnp.complex64) @ p
    return jnp.mean(jnp.abs(h) ** 2)


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
    "unrolled": (unrolled, dictionary(u=(4, 4), w=(3, 4), b=(4,)), arrays((6, 5, 3))),
    "unrolled, wide": (unrolled, dictionary(u=(4, 4), w=(30, 4), b=(4,)), arrays((6, 5, 30))),
    "sliced": (sliced, dictionary(qkv=(5, 12), layers=(2, 4, 4), wide=(4, 4)), arrays((6, 5))),
    "deep convolution": (deep_conv, dictionary(k=(3, 3, 40, 50)), arrays((4, 4, 4, 40))),
    "convolution in scan": (conv_in_scan, dictionary(k=(2, 3, 3, 2, 2)), arrays((4, 5, 5, 2))),
    "tied in scan": (
        tied_in_scan,
        dictionary(table=(50, 4), w=(3, 4, 6), shared=(6, 4)),
        [tokens(7, 3)],
    ),
    "many lookups": (many_lookups, dictionary(table=(50, 2)), [tokens(3, 300, below=50)]),
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


#: Cases that show what others do not; the rest are slow by their number.
QUICK = {"mlp", "sequence", "cnn", "rnn", "layers by scan", "tied", "branches", "sliced", "carried", "unused"}
SOME = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", SOME)
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


def gradients(loss, params, batch):
    """The gradient of every example, as in an oracle: `jax.vmap` of `jax.grad`."""

    def one(p, *example):
        return loss(p, *(x[None] for x in example))

    return jax.vmap(jax.grad(one), (None, *(0,) * len(batch)))(params, *batch)


def scaled(grads, weights):
    """The mean of gradients, each times the weight of its example; `weights` is a tree, or one for all."""
    if isinstance(weights, jax.Array):
        weights = jax.tree.map(lambda g: weights, grads)
    return jax.tree.map(lambda g, w: jnp.einsum("b...,b->...", g, w.astype(g.dtype)) / len(w), grads, weights)


def norms_of(grads):
    squares = [jnp.sum(g.astype(jnp.float32) ** 2, tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)]
    return jnp.sqrt(sum(squares))


def near(ours, theirs, tolerance):
    """Compared by the scale of the leaf."""
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    scale = max(float(jnp.max(jnp.abs(theirs.astype(jnp.float32)))), 1e-30)
    np.testing.assert_allclose(
        ours.astype(jnp.float32) / scale, theirs.astype(jnp.float32) / scale, atol=tolerance
    )


@pytest.mark.parametrize("name", CASES)
def test_clipped_gradients_are_those_of_single_examples(name):
    loss, params, batch = CASES[name]
    grads = jax.jit(gradients, static_argnums=0)(loss, params, batch)
    norm = norms_of(grads)
    bound = 0.97 * float(jnp.median(norm))
    found = jax.jit(jp.per_example(loss, clip=bound))(params, *batch)
    weights = jnp.minimum(1, bound / norm)
    tolerance = 2e-2 if name == "bfloat16" else 2e-6
    jax.tree.map(lambda a, b: near(a, b, tolerance), found.grads, scaled(grads, weights))
    for each in jax.tree.leaves(found.weights):
        np.testing.assert_allclose(each, weights, rtol=3e-2 if name == "bfloat16" else 1e-5)
    assert jax.tree.structure(found.weights) == jax.tree.structure(params)
    assert float(found.clipped) == pytest.approx(np.mean(np.asarray(norm) > bound))


@pytest.mark.parametrize("name", SOME)
def test_inner_products_are_those_of_single_examples(name):
    loss, params, batch = CASES[name]
    some = [x[: max(1, len(x) // 2)] for x in batch]
    ours, theirs = (jax.jit(gradients, static_argnums=0)(loss, params, part) for part in (some, batch))
    expected = sum(
        jnp.einsum("ai,bi->ab", *(g.reshape(len(g), -1).astype(jnp.float32) for g in pair))
        for pair in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )
    found = jax.jit(jp.per_example(loss).inner)(params, tuple(some), tuple(batch))
    near(found, expected, 3e-2 if name == "bfloat16" else 3e-6)


def test_in_double_precision_they_are_equal():
    loss, params, batch = CASES["cnn"]
    with jax.enable_x64(True):
        params, batch = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, batch))
        grads = jax.jit(gradients, static_argnums=0)(loss, params, batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2, tuple(range(1, g.ndim))) for g in jax.tree.leaves(grads)))
        found = jax.jit(jp.per_example(loss, clip=float(norm.mean())))(params, *batch)
        expected = scaled(grads, jnp.minimum(1, norm.mean() / norm))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), found.grads, expected)


def test_parameters_may_be_complex():
    w = jnp.asarray([[1 + 2j, 0.5j], [3.0, -1j]], jnp.complex64)
    (x,) = arrays((5, 2))
    found = jax.jit(jp.per_example(complex_numbers, clip=1.0))(w, x)
    grads = gradients(complex_numbers, w, (x,))
    norm = jnp.sqrt(jnp.sum(jnp.abs(grads) ** 2, (1, 2)))
    np.testing.assert_allclose(found.norms, norm, rtol=1e-5)
    expected = jnp.einsum("bij,b->ij", grads, jnp.minimum(1, 1 / norm).astype(grads.dtype)) / 5
    np.testing.assert_allclose(found.grads, expected, rtol=1e-5)


BOUNDS = {"h*": 0.05, "w2": 0.1, "*": 0.2}


def test_leaves_are_clipped_in_groups():
    loss, params, (x, y) = CASES["mlp"]
    params = {"h": {"w1": params["w1"], "b1": params["b1"]}, "w2": params["w2"], "b2": params["b2"]}

    def grouped(p, x, y):
        return loss({**p["h"], "w2": p["w2"], "b2": p["b2"]}, x, y)

    found = jax.jit(jp.per_example(grouped, clip=BOUNDS))(params, x, y)
    grads = gradients(grouped, params, (x, y))

    def weights(bound, *leaves):
        return jnp.minimum(1, bound / norms_of(leaves))

    h = weights(0.05, *grads["h"].values())
    expected = {"h": {"w1": h, "b1": h}, "w2": weights(0.1, grads["w2"]), "b2": weights(0.2, grads["b2"])}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found.weights, expected)
    jax.tree.map(lambda a, b: near(a, b, 1e-6), found.grads, scaled(grads, expected))
    clipped = jnp.any(jnp.stack(jax.tree.leaves(expected)) < 1, 0)
    assert float(found.clipped) == pytest.approx(float(clipped.mean()))


def test_gradients_may_be_weighted_by_a_function_of_their_norms():
    """As in AUTO-S, Bu et al. 2022, arXiv:2206.07136."""
    loss, params, batch = CASES["tied"]
    found = jax.jit(jp.per_example(loss, weight=lambda norm: 1 / (norm + 0.01)))(params, *batch)
    grads = gradients(loss, params, batch)
    jax.tree.map(lambda a, b: near(a, b, 2e-6), found.grads, scaled(grads, 1 / (norms_of(grads) + 0.01)))


def test_without_a_bound_nothing_is_clipped():
    loss, params, batch = CASES["mlp"]
    found = jp.per_example(loss, clip=np.inf)(params, *batch)
    plain = jp.per_example(loss)(params, *batch)
    jax.tree.map(lambda a, b: near(a, b, 1e-6), found.grads, plain.grads)
    assert float(found.clipped) == 0.0 == float(plain.clipped)


def test_clipping_composes_with_vmap_and_other_axes():
    loss, params, (x, y) = CASES["rnn"]

    def steps_first(p, x, y):
        return loss(p, x.swapaxes(0, 1), y)

    clip = jp.per_example(steps_first, in_axes=(1, 0), clip=0.1)
    several = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), params)
    found = jax.jit(jax.vmap(clip, (0, None, None)))(several, x.swapaxes(0, 1), y)
    for i in range(2):
        alone = jax.jit(jp.per_example(loss, clip=0.1))(jax.tree.map(lambda w, i=i: w[i], several), x, y)
        jax.tree.map(lambda a, b, i=i: near(a[i], b, 1e-5), found.grads, alone.grads)


def test_the_kernel_of_a_model_is_the_sum_of_inner_products():
    """The empirical tangent kernel, against Jacobians: neural-tangents, section 2 (arXiv:1912.02803)."""
    _, params, (x, _) = CASES["mlp"]

    def model(p, x):
        h = jnp.tanh(x @ p["w1"] + p["b1"][None])
        return h @ p["w2"] + p["b2"][None]

    def of_output(direction, one, other):
        output = lambda p, x: jnp.sum(model(p, x) @ direction)  # noqa: E731
        return jp.per_example(output).inner(params, one, other)

    kernel = jax.jit(jax.vmap(of_output, (0, None, None)))(jnp.eye(3), x[:4], x).sum(0)
    ours, theirs = (jax.jacobian(model)(params, part) for part in (x[:4], x))
    expected = sum(
        jnp.einsum("aoi,boi->ab", *(g.reshape(*g.shape[:2], -1) for g in pair))
        for pair in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )
    near(kernel, expected, 2e-6)


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
    for clip in (None, 1.0):
        program = jax.make_jaxpr(jp.per_example(loss, clip=clip))(params, *batch)
        assert max(sizes(program.jaxpr)) < refused
    assert max(sizes(jax.make_jaxpr(by_vmap, static_argnums=0)(loss, params, batch).jaxpr)) >= refused


def test_examples_are_taken_in_chunks(monkeypatch):
    loss, params, batch = CASES["cnn"]
    whole = jax.jit(jp.per_example(loss))(params, *batch)
    monkeypatch.setattr("jaxprop.train.examples.forms.CHUNK", 2_000)
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


# --- losses that couple the examples --------------------------------------------------------------------


def batch_norm(p, x):
    h = x @ p["w"]
    mean = h.mean(0, keepdims=True)
    centred = h - mean
    scale = jax.lax.rsqrt(jnp.mean(centred**2, 0, keepdims=True) + 1e-5) * p["gain"][None]
    return jnp.mean(jax.nn.relu(centred * scale))


def whitened(p, x):
    mean = x.mean(0, keepdims=True)
    return jnp.mean((x - mean) @ p["w"])


def contrastive(p, x):
    z = x @ p["w"]
    logits = z @ z.T
    return -jnp.mean(jnp.diag(jax.nn.log_softmax(logits)))


def covariance(p, x):
    z = x @ p["w"]
    c = z.T @ z
    return jnp.sum(c**2)


def root(p, x):
    mean = jnp.mean((x @ p["w"]) ** 2)
    return jnp.sqrt(mean)


def largest(p, x):
    return jnp.max(x @ p["w"])


def running(p, x):
    return jnp.mean(jnp.cumsum(x @ p["w"], 0) ** 2)


def batch_norm_in_scan(p, x):
    def layer(h, w):
        h = jnp.tanh(h @ w)
        mean = h.mean(0, keepdims=True)
        return h - mean, None

    return jnp.mean(jax.lax.scan(jax.checkpoint(layer), x, p["layers"])[0] ** 2)


WEIGHTS = dictionary(w=(3, 3), gain=(3,), layers=(2, 3, 3))
COUPLED = {
    batch_norm: r"`centred` \(sub\) at \S+:\d+ combines each example with `mean`, computed from all of them",
    whitened: r"`\S+` \(sub\) at \S+:\d+ combines each example with `mean`, computed from all of them",
    contrastive: r"`logits` \(dot_general\) at \S+:\d+ combines each example with every other",
    covariance: r"`\S+` \(integer_pow\) at \S+:\d+ is a nonlinear function of `c`, a sum over them",
    root: r"`\S+` \(sqrt\) at \S+:\d+ is a nonlinear function of `mean`, a sum over them",
    largest: r"`\S+` \(reduce_max\) at \S+:\d+ reduces them, and not by a sum",
    running: r"`\S+` \(cumsum\) at \S+:\d+ runs along the axis of the examples",
    batch_norm_in_scan: r"`\S+` \(sub\) at \S+:\d+ combines each example with `mean`, computed from all of them",
}


@pytest.mark.parametrize("loss", COUPLED, ids=lambda loss: loss.__name__)
def test_a_loss_that_couples_examples_is_refused(loss):
    message = (
        rf"`{loss.__name__}` couples the examples of a batch: {COUPLED[loss]}\. So no example has a gradient of "
        r"its own\. Normalize within each example \(layer or group normalization\) or with fixed statistics\. To "
        r"see each example as a batch of one all the same, write that into the loss, with `jax\.vmap` over its "
        r"examples\."
    )
    with pytest.raises(ValueError) as caught:
        jax.jit(jp.per_example(loss, clip=1.0))(WEIGHTS, *arrays((6, 3)))
    assert re.fullmatch(message, str(caught.value)), caught.value


def layer_norm(p, x):
    h = x @ p["w"]
    h = (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-5)
    return jnp.mean(h * p["gain"][None])


def masked_mean(p, x):
    each, mask = jnp.sum((x @ p["w"]) ** 2, 1), (x[:, 0] > 0).astype(jnp.float32)
    return jnp.sum(each * mask) / jnp.maximum(mask.sum(), 1.0)


def weighted_mean(p, x):
    each, mask = jnp.sum((x @ p["w"]) ** 2, 1), (x[:, 0] > 0).astype(jnp.float32)
    return jnp.sum(each * (mask / jnp.maximum(mask.sum(), 1.0)))


def with_temperature(p, x):
    return p["gain"][0] * jnp.mean((x @ p["w"]) ** 2) / jnp.sum(p["gain"] ** 2) + jnp.sum(p["w"] ** 2)


def stabilized(p, x):
    h = jnp.sum(x @ p["w"], 1)
    return jnp.mean(jnp.log(jnp.exp(h - jax.lax.stop_gradient(h.max()))))


def looped(p, x):
    return sum(jnp.sum((row @ p["w"]) ** 2) for row in x) / len(x)


def scanned(p, x):
    return jax.lax.scan(lambda total, row: (total + jnp.sum((row @ p["w"]) ** 2), None), 0.0, x)[0] / len(x)


def batch_of_one(p, x):
    return jnp.mean(jax.vmap(lambda row: batch_norm(p, row[None]))(x))


UNCOUPLED = [
    layer_norm,
    masked_mean,
    weighted_mean,
    with_temperature,
    stabilized,
    looped,
    scanned,
    batch_of_one,
]


@pytest.mark.parametrize("loss", UNCOUPLED, ids=lambda loss: loss.__name__)
def test_a_loss_that_adds_examples_is_not(loss):
    params, (x,) = {"w": WEIGHTS["w"], "gain": WEIGHTS["gain"]}, arrays((6, 3))
    found = jax.jit(jp.per_example(loss, clip=0.1))(params, x)
    grads = gradients(loss, params, (x,))
    norm = norms_of(grads)
    weights = jnp.where(norm > 0.1, 0.1 / norm, 1.0)
    jax.tree.map(lambda a, b: near(a, b, 3e-6), found.grads, scaled(grads, weights))


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


OPTIONS = {
    "pass either `clip` or `weight`, not both": ({"clip": 1.0, "weight": lambda norm: norm}, ValueError),
    "a bound on the norms of gradients must be positive, got 0.0.": ({"clip": 0.0}, ValueError),
    "a bound on the norms of gradients must be positive, got -1.": ({"clip": {"*": -1}}, ValueError),
    "`clip` is an empty mapping: there is no bound. Pass a number, or {'*': 1.0}.": ({"clip": {}}, ValueError),
    "a positive number, or a mapping from globs to such numbers; got 'large'.": ({"clip": "large"}, TypeError),
    "`clip` has no bound for `p['w']`. Add one for all other leaves: '*'.": (
        {"clip": {"gain": 1.0}},
        ValueError,
    ),
    "the bound of 'v' in `clip` is that of no leaf: it matches none, or only what an earlier glob matches. "
    "Leaves: p['gain'], p['w'].": ({"clip": {"*": 1.0, "v": 2.0}}, ValueError),
    "`weight` must return one weight for each of the 6 examples, an array of shape (6,); it returned shape ().": (
        {"weight": lambda norm: norm.mean()},
        ValueError,
    ),
}


@pytest.mark.parametrize("sentence", OPTIONS)
def test_errors_of_options(sentence):
    options, kind = OPTIONS[sentence]
    params = {"w": WEIGHTS["w"], "gain": WEIGHTS["gain"]}
    with pytest.raises(kind) as error:
        jp.per_example(layer_norm, **options)(params, *arrays((6, 3)))
    assert sentence in str(error.value)


def test_the_noise_scale_of_clipped_gradients_is_refused():
    loss, params, batch = CASES["mlp"]
    with pytest.raises(
        ValueError, match="the noise scale compares the gradients of single examples with their"
    ):
        jp.per_example(loss, clip=1.0)(params, *batch).noise_scale()
