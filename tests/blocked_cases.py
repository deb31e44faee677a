"""Losses whose gradient is cut, as data: minimal forms of real reports where a reference is named.

The line of the cut ends in `# cut`. Each case says which leaves get nothing, the class of the cause, and whether
the program alone tells (`static`) or only its numbers do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """A loss that gets no gradient somewhere.

    Attributes:
        loss: the function; the first argument is differentiated.
        args: its arguments.
        leaves: the leaves that get nothing.
        cause: the class of the cause.
        static: whether the program alone tells.
        reference: the report it is taken from, "" for none.
        has_aux: whether the loss returns auxiliary data.
    """

    loss: Callable[..., Any]
    args: tuple[Any, ...]
    leaves: tuple[str, ...]
    cause: str
    static: bool = True
    reference: str = ""
    has_aux: bool = False

    @property
    def name(self) -> str:
        return self.loss.__name__


def _numbers(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


W, X, Y = _numbers(3, 4), _numbers(5, 3), jnp.ones((5, 4))
PARAMS = {"w": W, "b": _numbers(4)}


def mlp(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["w"] + params["b"][None]


# --- cut in the program itself ---------------------------------------------------------------------------


def argmax_in_loss(params, x):
    logits = mlp(params, x)
    picked = jnp.argmax(logits, axis=-1)  # cut
    return jnp.mean((picked.astype(jnp.float32) - 1.0) ** 2)


def categorical_sample(params, x):
    probs = jax.nn.softmax(mlp(params, x))
    samples = jax.random.categorical(jax.random.key(0), probs, axis=1)  # cut
    return jnp.mean(samples.astype(jnp.float32) ** 2)


def bernoulli_agents(p):
    infected = jax.random.bernoulli(jax.random.key(0), jnp.repeat(p, 8))  # cut
    return jnp.mean((jnp.sum(infected.astype(jnp.float32)) - 3.0) ** 2)


def floored_probability(params, x):
    prob = jax.nn.sigmoid(mlp(params, x))
    label = jnp.floor(prob)  # cut
    return jnp.mean(jnp.abs(label - 1.0))


def rounded(w, x):
    w = jnp.round(w)  # cut
    return jnp.sum(x @ w)


def cast_and_back(w, x):
    steps = w.astype(jnp.int32).astype(jnp.float32)  # cut
    return jnp.sum(x @ steps)


def histogram_matching(w):
    counts = jnp.sum(w[..., None] > jnp.array([-1.0, 0.0, 1.0])[None, None], axis=(0, 1))  # cut
    return jnp.sum((counts.astype(jnp.float32) - 4.0) ** 2)


def convection_trigger(threshold, cape, rate):
    active = cape > threshold  # cut
    return jnp.sum(jnp.where(active, rate * cape, 0.0))


def trigger_by_cond(params, x):
    deep = jnp.mean(x) > params["threshold"]  # cut
    return jax.lax.cond(deep, lambda r: jnp.sum(r * x), lambda r: jnp.sum(r), params["rate"])


def frozen_parameters(params, x):
    backbone = jax.lax.stop_gradient(params["w"])  # cut
    return jnp.mean((x @ backbone + params["b"][None]) ** 2)


def target_network(params, x):
    target = jax.lax.stop_gradient(mlp(params["target"], x))  # cut
    return jnp.mean((mlp(params["online"], x) - target) ** 2)


def straight_through_mistake(w, x):
    q = jax.lax.stop_gradient(w + (jnp.round(w) - w))  # cut
    return jnp.sum(x @ q)


def indices_from_positions(position, table):
    index = jnp.clip(position, 0.0, 3.0).astype(jnp.int32)  # cut
    return jnp.sum(table[index] ** 2)


def one_hot_of_argmax(w, x):
    choice = jax.nn.one_hot(jnp.argmax(w, axis=-1), 4)  # cut
    return jnp.sum(x @ choice)


def top_k_indices(scores, table):
    _, best = jax.lax.top_k(scores, 2)  # cut
    return jnp.sum(table[best])


def sign_activation(w, x):
    h = jnp.sign(x @ w)  # cut
    return jnp.mean(h)


def loop_count(steps):
    def body(state):
        i, x = state
        return i + 1.0, x * 1.5

    _, x = jax.lax.while_loop(lambda s: s[0] < steps, body, (0.0, 1.0))  # cut
    return x


def stopped_in_a_scan(w, xs):
    def step(h, x):
        h = jnp.tanh(jax.lax.stop_gradient(w @ h) + x)  # cut
        return h, h

    h, _ = jax.lax.scan(step, jnp.zeros(3), xs)
    return jnp.sum(h)


def floored_under_remat(w, x):
    @jax.checkpoint
    def block(w, x):
        return x @ jnp.floor(w)  # cut

    return jnp.sum(block(w, x))


@jax.custom_vjp
def _quantise(x):
    return jnp.round(x * 4.0) / 4.0


_quantise.defvjp(lambda x: (_quantise(x), None), lambda _, ct: (jnp.zeros_like(ct),))


def rule_of_zeros(w, x):
    return jnp.sum(x @ _quantise(w))  # cut


@jax.custom_vjp
def _masked(x, mask):
    return x * mask


_masked.defvjp(lambda x, mask: (x * mask, None), lambda _, ct: (None, None))


def rule_of_none(w, mask):
    return jnp.sum(_masked(w, mask))  # cut


@jax.custom_jvp
def _step(x):
    return jnp.where(x > 0, 1.0, 0.0)


_step.defjvp(lambda primals, tangents: (_step(*primals), jnp.zeros_like(primals[0])))


def spiking_without_surrogate(w, x):
    spikes = _step(x @ w)  # cut
    return jnp.mean(spikes)


def forgotten(params, x):
    return jnp.sum(x @ params["w"])


def only_logged(params, x):
    penalty = jnp.sum(params["b"] ** 2)  # cut
    return jnp.sum(x @ params["w"]), {"penalty": penalty}


def thrown_away(params, x):
    h = x @ params["w"] + params["b"][None]  # cut
    h = x @ params["w"]
    return jnp.sum(h)


BOTH = ("params['b']", "params['w']")

STATIC = (
    Case(argmax_in_loss, (PARAMS, X), BOTH, "argmax", reference="google-deepmind/dm-haiku#442"),
    Case(categorical_sample, (PARAMS, X), BOTH, "sampling", reference="jax-ml/jax#17556"),
    Case(bernoulli_agents, (jnp.float32(0.3),), ("p",), "sampling", reference="jax-ml/jax#11606"),
    Case(floored_probability, (PARAMS, X), BOTH, "rounding", reference="tensorflow/tensorflow#8625"),
    Case(rounded, (W, X), ("w",), "rounding", reference="tensorflow/tensorflow#5888"),
    Case(cast_and_back, (W, X), ("w",), "cast", reference="r-xla/anvl#462"),
    Case(histogram_matching, (W,), ("w",), "comparison", reference="tensorflow/tensorflow#14894"),
    Case(
        convection_trigger,
        (jnp.float32(0.1), _numbers(5), _numbers(5)),
        ("threshold",),
        "comparison",
        reference="climate-analytics-lab/jax-gcm#614",
    ),
    Case(
        trigger_by_cond,
        ({"rate": _numbers(5, 3), "threshold": jnp.float32(0.0)}, X),
        ("params['threshold']",),
        "comparison",
        reference="climate-analytics-lab/jax-gcm#614",
    ),
    Case(frozen_parameters, (PARAMS, X), ("params['w']",), "stop_gradient", reference="pmelchior/scarlet2#32"),
    Case(
        target_network,
        ({"online": PARAMS, "target": {"w": 2.0 * W, "b": _numbers(4)}}, X),
        ("params['target']['b']", "params['target']['w']"),
        "stop_gradient",
        reference="LouisDesdoigts/amigo#82",
    ),
    Case(straight_through_mistake, (W, X), ("w",), "stop_gradient", reference="jax-ml/jax#9032"),
    Case(indices_from_positions, (_numbers(5), W), ("position",), "cast", reference="jax-ml/jax#3024"),
    Case(one_hot_of_argmax, (W, X), ("w",), "argmax", reference="pytorch/pytorch#1339"),
    Case(top_k_indices, (_numbers(5), X), ("scores",), "index"),
    Case(sign_activation, (W, X), ("w",), "rounding", reference="jiecaoyu/XNOR-Net-PyTorch#25"),
    Case(loop_count, (jnp.float32(3.0),), ("steps",), "loop count"),
    Case(stopped_in_a_scan, (_numbers(3, 3), X), ("w",), "stop_gradient", reference="jax-ml/jax#492"),
    Case(floored_under_remat, (W, X), ("w",), "rounding", reference="tensorflow/tensorflow#897"),
    Case(rule_of_zeros, (W, X), ("w",), "custom rule", reference="eladhoffer/quantized.pytorch#5"),
    Case(rule_of_none, (W, jnp.ones((3, 4))), ("w",), "custom rule"),
    Case(spiking_without_surrogate, (W, X), ("w",), "custom rule"),
    Case(forgotten, (PARAMS, X), ("params['b']",), "never used", reference="tensorflow/tensorflow#1768"),
    Case(only_logged, (PARAMS, X), ("params['b']",), "only in aux", has_aux=True),
    Case(thrown_away, (PARAMS, X), ("params['b']",), "unused result", reference="tensorflow/tensorflow#1511"),
)


# --- zero at these numbers -------------------------------------------------------------------------------


def dead_relu(params, x):
    h = jax.nn.relu(mlp(params, x) - 50.0)  # cut
    return jnp.sum(h + 1.0)


def relu_at_the_output(params, x):
    y_hat = jnp.maximum(mlp(params, x) - 50.0, 0.0)  # cut
    return jnp.mean((y_hat - 1.0) ** 2)


def zero_weights_before_relu(params, x):
    h = jax.nn.relu(x @ params["w"])  # cut
    return jnp.sum(h + 1.0)


def where_relu(params, x):
    z = mlp(params, x) - 50.0
    h = jnp.where(z > 0, z, 0.0)  # cut
    return jnp.sum(h + 1.0)


def saturated_sigmoid(params, x):
    prob = jax.nn.sigmoid(1e4 + mlp(params, x))  # cut
    return jnp.mean((prob - 0.5) ** 2)


def saturated_tanh(params, x):
    h = jnp.tanh(1e3 + mlp(params, x))  # cut
    return jnp.mean(h**2)


def saturated_softmax(params, x):
    shift = jnp.array([0.0, 0.0, 0.0, 1e4])
    weights = jax.nn.softmax(mlp(params, x) + shift[None])  # cut
    return jnp.sum(weights * jnp.arange(4.0)[None])


def clipped_action(params, x):
    action = jnp.clip(mlp(params, x) + 50.0, -1.0, 1.0)  # cut
    return jnp.mean((action - 0.5) ** 2)


def where_never_taken(params, x):
    y = jnp.where(x[:, :1] > 1e3, x @ params["w"], params["b"][None])  # cut
    return jnp.sum(y**2)


def branch_not_taken(params, x):
    return jax.lax.cond(jnp.sum(x) > 1e6, *_branches(), params)  # cut


def _branches():
    return lambda p: jnp.sum(p["w"] ** 2), lambda p: jnp.sum(p["b"] ** 2)


def masked_out(params, x):
    mask = jnp.zeros((5, 1))
    h = mask * (x @ params["w"])  # cut
    return jnp.sum(h + params["b"][None])


def zero_last_layer(params, x):
    h = jnp.tanh(x @ params["w"])
    return jnp.mean((h @ params["out"] - 1.0) ** 2)  # cut


def underflow_in_float16(w, x):
    h = (x @ w).astype(jnp.float16)
    h = h * jnp.float16(1e-4)  # cut
    h = h * jnp.float16(1e-4)
    return jnp.mean(h.astype(jnp.float32))


def norm_overflow_in_float16(w):
    size = jnp.sqrt(jnp.sum(w * w))  # cut
    return size.astype(jnp.float32)


def loss_at_its_optimum(params, x):
    y = jnp.zeros((5, 4))
    error = x @ params["w"] - y
    return jnp.mean(error**2)  # cut


@jax.custom_vjp
def _clipped_straight_through(x):
    return jnp.round(x)


_clipped_straight_through.defvjp(
    lambda x: (_clipped_straight_through(x), x), lambda x, ct: (jnp.where(jnp.abs(x) < 1e-6, ct, 0.0),)
)


def rule_that_masks_everything(params, x):
    q = _clipped_straight_through(x @ params["w"])  # cut
    return jnp.sum(q + params["b"][None])


def dead_in_a_scan(params, x):
    def step(h, _):
        return jax.nn.relu(h @ params["w"] - 50.0) + 1.0, None  # cut

    h, _ = jax.lax.scan(step, x, None, length=3)
    return jnp.sum(h + params["b"][None])


ZERO = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(4)}
SQUARE = {"w": _numbers(3, 3), "b": _numbers(3)}
LAST = {"w": W, "out": jnp.zeros((4, 1))}
ONLY_W = ("params['w']",)

DYNAMIC = (
    Case(dead_relu, (PARAMS, X), BOTH, "dead relu", False, "jax-ml/jax#19268"),
    Case(relu_at_the_output, (PARAMS, X), BOTH, "dead relu", False, "chelsea0x3b/dfdx#486"),
    Case(
        zero_weights_before_relu,
        ({"w": ZERO["w"]}, X),
        ONLY_W,
        "dead relu",
        False,
        "lucidrains/deep-cross-attention#2",
    ),
    Case(where_relu, (PARAMS, X), BOTH, "where never taken", False),
    Case(saturated_sigmoid, (PARAMS, X), BOTH, "saturated", False),
    Case(saturated_tanh, (PARAMS, X), BOTH, "saturated", False),
    Case(saturated_softmax, (PARAMS, X), BOTH, "saturated", False),
    Case(clipped_action, (PARAMS, X), BOTH, "clipped", False, "tensorflow/tensorflow#44333"),
    Case(
        where_never_taken, (PARAMS, X), ONLY_W, "where never taken", False, "climate-analytics-lab/jax-gcm#614"
    ),
    Case(branch_not_taken, (PARAMS, X), ONLY_W, "branch not taken", False, "climate-analytics-lab/jax-gcm#614"),
    Case(masked_out, (PARAMS, X), ONLY_W, "zero factor", False),
    Case(zero_last_layer, (LAST, X), ONLY_W, "zero factor", False),
    Case(underflow_in_float16, (W, X), ("w",), "underflow", False, "warner-benjamin/optimi#15"),
    Case(
        norm_overflow_in_float16,
        (jnp.full((9,), 100.0, jnp.float16),),
        ("w",),
        "overflow",
        False,
        "jax-ml/jax#39899",
    ),
    Case(loss_at_its_optimum, ({"w": ZERO["w"]}, X), ONLY_W, "stationary", False),
    Case(rule_that_masks_everything, (PARAMS, X), ONLY_W, "custom rule", False),
    Case(dead_in_a_scan, (SQUARE, X), ONLY_W, "dead relu", False),
)

#: Cases in which the report says so in a note: the gradient comes back by itself, or should be zero.
HARMLESS = frozenset({"zero_last_layer", "loss_at_its_optimum", "forgotten"})
