"""Real models, as data: unmodified library code at small shapes.

Each case has a name, a function ``make(key) -> (loss, args, argnums)`` and tags. A missing library
skips the test that asks for the case, and says which library it was. The tags are:

- the libraries a case needs (``flax``, ``equinox``, ...), ``digits`` where it reads scikit-learn's;
- ``bf16``: it computes in bfloat16, so that numbers agree to that precision only;
- ``first_order``: JAX itself cannot differentiate its gradient (a ``custom_vjp`` inside);
- ``no_shard_map``: JAX itself cannot run its gradient inside ``shard_map``;
- ``big``: many equations, so that an eager run, or a gradient of a gradient, takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

Made = tuple[Callable[..., jax.Array], tuple[Any, ...], int | tuple[int, ...]]


class Case(NamedTuple):
    """A model: its name, how to make its loss and arguments, and its tags."""

    name: str
    make: Callable[[jax.Array], Made]
    tags: frozenset[str] = frozenset()


def need(module: str) -> Any:
    """Import a library, or skip the test that needs it."""
    return pytest.importorskip(module, reason=f"the model needs {module}", exc_type=ImportError)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross entropy with integer labels, by optax."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def digits(count: int) -> tuple[jax.Array, jax.Array]:
    """Return the first images of scikit-learn's digits, scaled to [0, 1], and their labels."""
    images, labels = need("sklearn.datasets").load_digits(return_X_y=True)
    pixels = images[:count] / 16.0
    return jnp.asarray(pixels, jnp.float32), jnp.asarray(labels[:count], jnp.int32)


def normal(key: jax.Array, *shape: int) -> jax.Array:
    """Return normally distributed numbers."""
    return jax.random.normal(key, shape)


def dense(key: jax.Array, rows: int, columns: int) -> dict[str, jax.Array]:
    """Return the parameters of one dense layer, as a plain dict."""
    return {"w": normal(key, rows, columns) / np.sqrt(rows), "b": jnp.zeros(columns)}


# Plain dicts


def dict_mlp(key: jax.Array) -> Made:
    """Fit a sine with two dense layers, written out by hand."""
    one, two = jax.random.split(key)
    params = {"hidden": dense(one, 1, 16), "out": dense(two, 16, 1)}
    x = jnp.linspace(-3.0, 3.0, 12)[:, None]

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        y_hat = hidden @ params["out"]["w"] + params["out"]["b"]
        return jnp.mean((y_hat - y) ** 2)

    return loss, (params, x, jnp.sin(x)), 0


def dict_digits_mlp(key: jax.Array) -> Made:
    """Classify the digits with two dense layers; the loss reads the batch as a dict."""
    one, two = jax.random.split(key)
    params = {"hidden": dense(one, 64, 24), "out": dense(two, 24, 10)}
    x, y = digits(16)

    def layer(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["w"] + p["b"]

    def loss(params: Any, batch: Any) -> jax.Array:
        hidden = jax.nn.relu(layer(params["hidden"], batch["x"]))
        logits = layer(params["out"], hidden)
        return cross_entropy(logits, batch["y"])

    return loss, (params, {"x": x, "y": y}), 0


def dict_two_arguments(key: jax.Array) -> Made:
    """Differentiate with respect to the weights and the input, and not the target between them."""
    w, x, y = (normal(k, 4, 4) for k in jax.random.split(key, 3))

    def loss(w: jax.Array, y: jax.Array, x: jax.Array) -> jax.Array:
        y_hat = jax.nn.gelu(x @ w)
        return optax.losses.huber_loss(y_hat, y).sum()

    return loss, (w, y, x), (0, 2)


def dict_scan_layers(key: jax.Array) -> Made:
    """Run three stacked layers by scan."""
    layers = jax.vmap(lambda k: dense(k, 6, 6))(jax.random.split(key, 3))
    x = normal(key, 5, 6)

    def loss(layers: Any, x: jax.Array) -> jax.Array:
        def body(h: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
            h = h + jnp.tanh(h @ layer["w"] + layer["b"])
            return h, jnp.mean(h**2)

        h, penalties = jax.lax.scan(body, x, layers)
        return jnp.sum(jax.nn.logsumexp(h, axis=-1)) + 0.1 * penalties.sum()

    return loss, (layers, x), 0


def dict_checkpoint_policy(key: jax.Array) -> Made:
    """Recompute all but the products of matrices, through jax.checkpoint with a policy."""
    keys = jax.random.split(key, 3)
    layers = [dense(k, 6, 6) for k in keys]
    x = normal(key, 5, 6)
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    @partial(jax.checkpoint, policy=policy)
    def block(p: Any, h: jax.Array) -> jax.Array:
        return h + jax.nn.gelu(h @ p["w"] + p["b"])

    def loss(layers: Any, x: jax.Array) -> jax.Array:
        h = x
        for p in layers:
            h = block(p, h)
        return jnp.mean(h**2)

    return loss, (layers, x), 0


def dict_bf16(key: jax.Array) -> Made:
    """Keep weights in float32 and compute in bfloat16."""
    one, two = jax.random.split(key)
    params = {"hidden": dense(one, 64, 16), "out": dense(two, 16, 10)}
    x, y = digits(8)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        low, x = optax.tree_utils.tree_cast((params, x), jnp.bfloat16)
        hidden = jax.nn.relu(x @ low["hidden"]["w"] + low["hidden"]["b"])
        logits = hidden @ low["out"]["w"] + low["out"]["b"]
        return cross_entropy(logits.astype(jnp.float32), y)

    return loss, (params, x, y), 0


# Flax linen


def linen_mlp(key: jax.Array) -> Made:
    """Classify the digits with a linen MLP, with dropout."""
    nn = need("flax.linen")

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Dense(24)(x)
            x = nn.relu(x)
            x = nn.Dropout(0.2, deterministic=False)(x)
            return nn.Dense(10)(x)

    x, y = digits(16)
    model = MLP()
    params = jax.jit(model.init)({"params": key, "dropout": key}, x)

    def loss(params: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = model.apply(params, x, rngs={"dropout": key})
        return cross_entropy(logits, y)

    return loss, (params, key, x, y), 0


def linen_cnn(key: jax.Array) -> Made:
    """Classify the digits with convolutions, batch norm and pooling."""
    nn = need("flax.linen")

    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(4, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.relu(x)
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
            x = nn.Conv(8, (3, 3))(x)
            x = nn.BatchNorm(use_running_average=False)(x)
            x = nn.relu(x)
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            return nn.Dense(10)(x.reshape(len(x), -1))

    pixels, y = digits(8)
    x = pixels.reshape(-1, 8, 8, 1)
    model = CNN()
    variables = jax.jit(model.init)(key, x)

    def loss(params: Any, stats: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        variables = {"params": params, "batch_stats": stats}
        logits, _ = model.apply(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y)

    return loss, (variables["params"], variables["batch_stats"], x, y), 0


def linen_rnn(cell: str, key: jax.Array) -> Made:
    """Run a linen cell over the rows of the digits, by nn.RNN, and read its last state."""
    nn = need("flax.linen")

    class Reader(nn.Module):
        @nn.compact
        def __call__(self, rows: jax.Array) -> jax.Array:
            states = nn.RNN(getattr(nn, cell)(8))(rows)
            return nn.Dense(10)(states[:, -1])

    pixels, y = digits(4)
    rows = pixels.reshape(-1, 8, 8)
    model = Reader()
    params = jax.jit(model.init)(key, rows)

    def loss(params: Any, rows: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(model.apply(params, rows), y)

    return loss, (params, rows, y), 0


def linen_block() -> Any:
    """Return the class of a transformer block of linen parts, with dropout."""
    nn = need("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            h = nn.LayerNorm()(x)
            h = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=False)(h)
            x = x + nn.Dropout(0.1, deterministic=False)(h)
            h = nn.LayerNorm()(x)
            h = nn.Dense(16)(h)
            h = nn.Dense(8)(nn.gelu(h))
            return x + h

    return Block


def linen_transformer(key: jax.Array) -> Made:
    """Predict the next token with a transformer block, with dropout keys."""
    nn = need("flax.linen")
    block = linen_block()

    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            embed = nn.Embed(11, 8)
            x = embed(tokens) + self.param("position", nn.initializers.normal(0.02), (5, 8))
            return embed.attend(nn.LayerNorm()(block()(x)))

    tokens = jax.random.randint(key, (2, 6), 0, 11)
    model = Model()
    params = jax.jit(model.init)({"params": key, "dropout": key}, tokens[:, :-1])

    def loss(params: Any, tokens: jax.Array, key: jax.Array) -> jax.Array:
        logits = model.apply(params, tokens[:, :-1], rngs={"dropout": key})
        return cross_entropy(logits, tokens[:, 1:])

    return loss, (params, tokens, key), 0


def linen_vae(key: jax.Array) -> Made:
    """Train a VAE on the digits, with the reparametrised sample taken from a key."""
    nn = need("flax.linen")

    class VAE(nn.Module):
        def setup(self) -> None:
            self.encoder = nn.Dense(16)
            self.mean = nn.Dense(3)
            self.logvar = nn.Dense(3)
            self.decoder = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(64)])

        def __call__(self, x: jax.Array, key: jax.Array) -> tuple[jax.Array, ...]:
            h = nn.relu(self.encoder(x))
            mean, logvar = self.mean(h), self.logvar(h)
            z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
            return self.decoder(z), mean, logvar

    x, _ = digits(8)
    model = VAE()
    params = jax.jit(model.init)(key, x, key)

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        logits, mean, logvar = model.apply(params, x, key)
        reconstruction = optax.losses.sigmoid_binary_cross_entropy(logits, x).sum(-1)
        divergence = -0.5 * jnp.sum(1 + logvar - mean**2 - jnp.exp(logvar), -1)
        return jnp.mean(reconstruction + divergence)

    return loss, (params, x, key), 0


def linen_remat(key: jax.Array) -> Made:
    """Recompute two blocks through nn.remat with a policy."""
    nn = need("flax.linen")
    block = nn.remat(linen_block(), policy=jax.checkpoint_policies.dots_saveable)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(1)(block()(block()(x)))

    x = normal(key, 2, 4, 8)
    model = Model()
    params = jax.jit(model.init)({"params": key, "dropout": key}, x)

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean(model.apply(params, x, rngs={"dropout": key}) ** 2)

    return loss, (params, x, key), 0


def linen_scan(wrap: str, key: jax.Array) -> Made:
    """Run three layers by nn.scan, each with its own parameters and dropout key."""
    nn = need("flax.linen")

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            h = nn.LayerNorm()(x)
            h = nn.Dense(8)(nn.swish(nn.Dense(12)(h)))
            return x + nn.Dropout(0.1, deterministic=False)(h), None

    layer = nn.remat(Layer, prevent_cse=False) if wrap == "remat" else Layer
    rngs = {"params": True, "dropout": True}
    stack = nn.scan(layer, variable_axes={"params": 0}, split_rngs=rngs, length=3)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x, _ = stack()(x, None)
            return nn.Dense(1)(x)

    x = normal(key, 4, 8)
    model = Model()
    params = jax.jit(model.init)({"params": key, "dropout": key}, x)

    def loss(params: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.mean(model.apply(params, x, rngs={"dropout": key}) ** 2)

    return loss, (params, x, key), 0


def linen_bf16(key: jax.Array) -> Made:
    """Compute in bfloat16 with parameters in float32, as linen's dtype argument does."""
    nn = need("flax.linen")
    half = {"dtype": jnp.bfloat16, "param_dtype": jnp.float32}
    model = nn.Sequential([nn.Dense(16, **half), nn.LayerNorm(**half), nn.silu, nn.Dense(10)])
    x, y = digits(8)
    params = jax.jit(model.init)(key, x)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(model.apply(params, x).astype(jnp.float32), y)

    return loss, (params, x, y), 0


def linen_embedding(key: jax.Array) -> Made:
    """Embed bags of words, with labels smoothed."""
    nn = need("flax.linen")
    table, head = nn.Embed(20, 6), nn.Dense(4)
    words = jax.random.randint(key, (5, 7), 0, 20)
    y = jax.random.randint(key, (5,), 0, 4)
    params = {"table": table.init(key, words), "head": head.init(key, normal(key, 5, 6))}

    def loss(params: Any, words: jax.Array, y: jax.Array) -> jax.Array:
        bag = table.apply(params["table"], words).mean(1)
        logits = head.apply(params["head"], bag)
        smooth = optax.losses.smooth_labels(jax.nn.one_hot(y, 4), 0.1)
        return optax.losses.softmax_cross_entropy(logits, smooth).mean()

    return loss, (params, words, y), 0


# Flax NNX


def nnx_split(model: Any) -> tuple[Any, Any, Callable[[Any, Any], Any]]:
    """Split an NNX model into its parameters, the rest, and a function that joins them."""
    nnx = need("flax.nnx")
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return params, rest, lambda params, rest: nnx.merge(graph, params, rest, copy=True)


def nnx_mlp(key: jax.Array) -> Made:
    """Classify the digits with an NNX module, with dropout."""
    nnx = need("flax.nnx")

    class MLP(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.hidden = nnx.Linear(64, 24, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.out = nnx.Linear(24, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.hidden(x))
            return self.out(self.dropout(x))

    params, rest, join = nnx_split(MLP(nnx.Rngs(key)))
    x, y = digits(16)

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(join(params, rest)(x), y)

    return loss, (params, rest, x, y), 0


def nnx_cnn(key: jax.Array) -> Made:
    """Classify the digits with NNX convolutions and batch norm."""
    nnx = need("flax.nnx")

    class CNN(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.out = nnx.Linear(64, 10, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nnx.relu(self.norm(self.conv(x)))
            x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            return self.out(x.reshape(len(x), -1))

    params, rest, join = nnx_split(CNN(nnx.Rngs(key)))
    pixels, y = digits(8)

    def loss(params: Any, rest: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(join(params, rest)(x), y)

    return loss, (params, rest, pixels.reshape(-1, 8, 8, 1), y), 0


def nnx_attention(key: jax.Array) -> Made:
    """Run NNX attention under a causal mask, with layer norm."""
    nnx = need("flax.nnx")

    class Block(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.out = nnx.Linear(8, 8, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            mask = nnx.make_causal_mask(x[..., 0])
            x = x + self.attention(self.norm(x), mask=mask)
            return self.out(nnx.gelu(x))

    params, rest, join = nnx_split(Block(nnx.Rngs(key)))

    def loss(params: Any, rest: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(join(params, rest)(x) ** 2)

    return loss, (params, rest, normal(key, 2, 4, 8)), 0


def nnx_gru(key: jax.Array) -> Made:
    """Run an NNX cell over time, by nnx.RNN."""
    nnx = need("flax.nnx")
    rngs = nnx.Rngs(key)
    params, rest, join = nnx_split(nnx.RNN(nnx.GRUCell(4, 6, rngs=rngs), rngs=rngs))

    def loss(params: Any, rest: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(join(params, rest)(x)[:, -1] ** 2)

    return loss, (params, rest, normal(key, 3, 5, 4)), 0


# Equinox


def eqx_split(model: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Split an Equinox model into its parameters and a function that joins them to the rest."""
    eqx = need("equinox")
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return params, lambda params: eqx.combine(params, static)


def eqx_mlp(key: jax.Array) -> Made:
    """Classify the digits with eqx.nn.MLP under vmap."""
    eqx = need("equinox")
    params, join = eqx_split(eqx.nn.MLP(64, 10, 16, 2, key=key))
    x, y = digits(16)

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(jax.vmap(join(params))(x), y)

    return loss, (params, x, y), 0


def eqx_cnn(key: jax.Array) -> Made:
    """Classify the digits with convolutions and a batch norm over a named axis."""
    eqx = need("equinox")
    keys = jax.random.split(key)
    parts = (
        eqx.nn.Conv2d(1, 4, 3, key=keys[0]),
        eqx.nn.BatchNorm(4, axis_name="batch", mode="batch"),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Linear(36, 10, key=keys[1]),
    )
    state = eqx.nn.State(parts)
    params, join = eqx_split(parts)
    pixels, y = digits(8)

    def apply(parts: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        conv, norm, pool, out = parts
        h, state = norm(conv(x), state)
        return out(pool(jax.nn.relu(h)).ravel()), state

    def loss(params: Any, state: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        batched = jax.vmap(apply, (None, None, 0), (0, None), axis_name="batch")
        logits, _ = batched(join(params), state, x)
        return cross_entropy(logits, y)

    return loss, (params, state, pixels.reshape(-1, 1, 8, 8), y), 0


def eqx_rnn(cell: str, key: jax.Array) -> Made:
    """Run an Equinox cell over time with jax.lax.scan."""
    eqx = need("equinox")
    params, join = eqx_split(getattr(eqx.nn, cell)(3, 6, key=key))
    start = jnp.zeros(6)
    state = (start, start) if cell == "LSTMCell" else start

    def loss(params: Any, xs: jax.Array) -> jax.Array:
        run = join(params)
        last, _ = jax.lax.scan(lambda state, x: (run(x, state), None), state, xs)
        return sum(jnp.sum(part**2) for part in jax.tree.leaves(last))

    return loss, (params, normal(key, 7, 3)), 0


def eqx_transformer(key: jax.Array) -> Made:
    """Run attention with dropout, layer norm and an MLP, with a key for each example."""
    eqx = need("equinox")
    keys = jax.random.split(key, 3)
    parts = (
        eqx.nn.MultiheadAttention(2, 8, dropout_p=0.1, key=keys[0]),
        eqx.nn.LayerNorm(8),
        eqx.nn.MLP(8, 8, 16, 1, activation=jax.nn.gelu, key=keys[1]),
        eqx.nn.Dropout(0.1),
    )
    params, join = eqx_split(parts)

    def apply(parts: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        attention, norm, mlp, dropout = parts
        one, two = jax.random.split(key)
        h = jax.vmap(norm)(x)
        x = x + attention(h, h, h, key=one)
        return x + dropout(jax.vmap(mlp)(x), key=two)

    def loss(params: Any, x: jax.Array, keys: jax.Array) -> jax.Array:
        y = jax.vmap(apply, (None, 0, 0))(join(params), x, keys)
        return jnp.mean(y**2)

    return loss, (params, normal(key, 2, 4, 8), jax.random.split(keys[2], 2)), 0


# Haiku


def haiku_loss(network: Callable[..., Any], key: jax.Array, x: jax.Array, y: jax.Array) -> Made:
    """Return a case whose loss is the cross entropy of a Haiku network with state and a key."""
    model = need("haiku").transform_with_state(network)
    params, state = jax.jit(model.init)(key, x)

    def loss(params: Any, state: Any, key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        logits, _ = model.apply(params, state, key, x)
        return cross_entropy(logits, y)

    return loss, (params, state, key, x, y), 0


def haiku_mlp(key: jax.Array) -> Made:
    """Classify the digits with hk.nets.MLP and dropout."""
    hk = need("haiku")
    x, y = digits(16)

    def network(x: jax.Array) -> jax.Array:
        return hk.nets.MLP([24, 10])(x, dropout_rate=0.1, rng=hk.next_rng_key())

    return haiku_loss(network, key, x, y)


def haiku_cnn(key: jax.Array) -> Made:
    """Classify the digits with Haiku convolutions and batch norm."""
    hk = need("haiku")
    pixels, y = digits(8)

    def network(x: jax.Array) -> jax.Array:
        x = hk.Conv2D(4, 3, with_bias=False)(x)
        x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
        x = hk.MaxPool((2, 2, 1), (2, 2, 1), "VALID")(jax.nn.relu(x))
        return hk.Linear(10)(hk.Flatten()(x))

    return haiku_loss(network, key, pixels.reshape(-1, 8, 8, 1), y)


def haiku_rnn(core: str, key: jax.Array) -> Made:
    """Run a Haiku core over the rows of the digits, by hk.dynamic_unroll."""
    hk = need("haiku")
    pixels, y = digits(4)

    def network(rows: jax.Array) -> jax.Array:
        cell = getattr(hk, core)(8)
        states, _ = hk.dynamic_unroll(cell, rows, cell.initial_state(rows.shape[1]))
        return hk.Linear(10)(states[-1])

    return haiku_loss(network, key, pixels.reshape(-1, 8, 8).swapaxes(0, 1), y)


# Neural ODEs and flows


def diffrax_ode(adjoint: str, key: jax.Array) -> Made:
    """Integrate a small vector field over eight fixed steps, with diffrax."""
    eqx, diffrax = need("equinox"), need("diffrax")
    params, join = eqx_split(eqx.nn.MLP(2, 2, 8, 1, activation=jnp.tanh, key=key))

    def loss(params: Any, start: jax.Array) -> jax.Array:
        field = join(params)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(y)),
            diffrax.Heun(),
            t0=0.0,
            t1=1.0,
            dt0=0.125,
            y0=start,
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=getattr(diffrax, adjoint)(),
            max_steps=8,
        )
        return jnp.sum(solution.ys**2)

    return loss, (params, normal(key, 2)), 0


def distrax_flow(key: jax.Array) -> Made:
    """Fit a coupling flow of two masked layers, with distrax and a Haiku conditioner."""
    distrax, hk = need("distrax"), need("haiku")
    x = normal(key, 8, 4)
    mask = jnp.arange(4) % 2 == 0

    def conditioner() -> Any:
        last = hk.Linear(8, w_init=hk.initializers.RandomNormal(0.1))
        return hk.Sequential([hk.Linear(8), jnp.tanh, last, hk.Reshape((4, 2))])

    def bijector(params: jax.Array) -> Any:
        shift, log_scale = params[..., 0], params[..., 1]
        return distrax.ScalarAffine(shift=shift, log_scale=jnp.tanh(log_scale))

    def log_prob(x: jax.Array) -> jax.Array:
        masks = (mask, ~mask)
        layers = [distrax.MaskedCoupling(m, conditioner(), bijector) for m in masks]
        base = distrax.MultivariateNormalDiag(jnp.zeros(4), jnp.ones(4))
        return distrax.Transformed(base, distrax.Chain(layers)).log_prob(x)

    model = hk.without_apply_rng(hk.transform(log_prob))

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return -model.apply(params, x).mean()

    return loss, (model.init(key, x), x), 0


def flowjax_flow(key: jax.Array) -> Made:
    """Fit a masked autoregressive flow with splines, with flowjax."""
    flows, paramax = need("flowjax.flows"), need("paramax")
    eqx, distributions = need("equinox"), need("flowjax.distributions")
    flow = flows.masked_autoregressive_flow(
        key,
        base_dist=distributions.Normal(jnp.zeros(3)),
        flow_layers=2,
        nn_width=8,
        nn_depth=1,
    )
    frozen = partial(_is_a, paramax.NonTrainable)
    params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=frozen)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return -paramax.unwrap(eqx.combine(params, static)).log_prob(x).mean()

    return loss, (params, normal(key, 6, 3)), 0


def _is_a(kind: type, leaf: Any) -> bool:
    return isinstance(leaf, kind)


def case(name: str, make: Callable[..., Made], *tags: str) -> Case:
    """Return a case from one line of the table."""
    return Case(name, make, frozenset(tags))


CHECKPOINTED_WHILE = ("diffrax", "big", "first_order", "no_shard_map")

CASES = (
    case("dict_mlp", dict_mlp),
    case("dict_digits_mlp", dict_digits_mlp, "digits"),
    case("dict_two_arguments", dict_two_arguments),
    case("dict_scan_layers", dict_scan_layers),
    case("dict_checkpoint_policy", dict_checkpoint_policy),
    case("dict_bf16", dict_bf16, "digits", "bf16"),
    case("linen_mlp", linen_mlp, "flax", "digits"),
    case("linen_cnn", linen_cnn, "flax", "digits", "big"),
    case("linen_lstm", partial(linen_rnn, "LSTMCell"), "flax", "digits"),
    case("linen_gru", partial(linen_rnn, "GRUCell"), "flax", "digits"),
    case("linen_transformer", linen_transformer, "flax", "big"),
    case("linen_vae", linen_vae, "flax", "digits"),
    case("linen_remat", linen_remat, "flax", "big"),
    case("linen_scan", partial(linen_scan, ""), "flax"),
    case("linen_remat_scan", partial(linen_scan, "remat"), "flax"),
    case("linen_bf16", linen_bf16, "flax", "digits", "bf16"),
    case("linen_embedding", linen_embedding, "flax"),
    case("nnx_mlp", nnx_mlp, "flax", "digits"),
    case("nnx_cnn", nnx_cnn, "flax", "digits"),
    case("nnx_attention", nnx_attention, "flax"),
    case("nnx_gru", nnx_gru, "flax"),
    case("eqx_mlp", eqx_mlp, "equinox", "digits"),
    case("eqx_cnn", eqx_cnn, "equinox", "digits", "big", "no_shard_map"),
    case("eqx_lstm", partial(eqx_rnn, "LSTMCell"), "equinox"),
    case("eqx_gru", partial(eqx_rnn, "GRUCell"), "equinox"),
    case("eqx_transformer", eqx_transformer, "equinox", "big"),
    case("haiku_mlp", haiku_mlp, "haiku", "digits"),
    case("haiku_cnn", haiku_cnn, "haiku", "digits", "big"),
    case("haiku_lstm", partial(haiku_rnn, "LSTM"), "haiku", "digits"),
    case("haiku_gru", partial(haiku_rnn, "GRU"), "haiku", "digits"),
    case("diffrax_ode", partial(diffrax_ode, "RecursiveCheckpointAdjoint"), *CHECKPOINTED_WHILE),
    case("diffrax_ode_direct", partial(diffrax_ode, "DirectAdjoint"), "diffrax", "big"),
    case("distrax_flow", distrax_flow, "distrax", "haiku"),
    case("flowjax_flow", flowjax_flow, "flowjax", "big"),
)
