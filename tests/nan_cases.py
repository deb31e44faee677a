"""NaN and Inf as people met them: minimal programs, each with the report it was taken from.

A case is a loss of one array; `bad` spoils its gradient (or its value), `good` does not. The line at fault is marked in
the source with `# origin` (`# origin 2` for a second one). The case also states the half of the pass, the element of
the array there, the step of each loop around, and the class of the cause.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Expect(NamedTuple):
    """One origin."""

    cause: str
    element: tuple[int, ...] = ()
    back: bool = True  # whether it shows in the backward pass only
    step: tuple[int, ...] = ()


class Case(NamedTuple):
    name: str
    reference: str
    loss: Callable[..., Any]
    bad: Any
    good: Any
    origins: tuple[Expect, ...]


def marked_lines(loss: Callable[..., Any]) -> list[int]:
    """Line numbers of `# origin`, `# origin 2`, ... in the source of a loss, in this order."""
    lines, start = inspect.getsourcelines(loss)
    marks = ["# origin", *(f"# origin {n}" for n in range(2, 5))]
    return [start + i for mark in marks for i, line in enumerate(lines) if line.rstrip().endswith(mark)]


CASES: list[Case] = []


def case(reference: str, bad: Any, good: Any, *origins: Expect, dtype: Any = np.float32) -> Callable[..., Any]:
    """Add a case."""

    def add(loss: Callable[..., Any]) -> Callable[..., Any]:
        arrays = (None if x is None else jnp.asarray(x, dtype) for x in (bad, good))
        CASES.append(Case(loss.__name__, reference, loss, *arrays, origins))
        return loss

    return add


INF, NAN = np.inf, np.nan

# --- a mask hides the value, not the derivative ---------------------------------------------------


@case("jax-ml/jax#5798", 0.0, 0.5, Expect("sqrt at 0"))
def where_sqrt(x):
    return jnp.where(x < 1.0, x, jnp.sqrt(x))  # origin


@case("jax-ml/jax#347", [[1, 2], [3, 4], [0, 0]], [[1, 2], [3, 4], [5, 6]], Expect("norm at 0", (2,)))
def norm_then_where(x):
    norms = jnp.sqrt(jnp.sum(x**2, axis=1))  # origin
    return jnp.sum(jnp.where(norms > 0.5, norms, jnp.ones_like(norms)))


@case(
    "jax-ml/jax#654",
    [[0.0, 0.0], [3.0, 4.0]],
    None,
    Expect("norm at 0", (0, 0)),
    Expect("division by 0", (0, 0), back=False),
)
def pairwise_energy(x):
    distance = jnp.linalg.norm(x[:, None] - x[None, :], axis=-1)  # origin
    off = ~jnp.eye(2, dtype=bool)
    return jnp.sum(jnp.where(off, 1.0 / distance, 0.0))  # origin 2


@case("jax-ml/jax#2630", 1.0, None, Expect("0 times inf"))
def where_times_inf(x):
    return jnp.where(x > 0, jnp.zeros_like(x), jnp.maximum(x * jnp.inf, -1e3))  # origin


@case("jax-ml/jax#1722", 0.0, 0.5, Expect("division by 0", back=False))
def sinc(x):
    return jnp.where(x == 0.0, 1.0, jnp.sin(x) / x)  # origin


@case("jax-ml/jax#1052", [3.0, 0.0, -5.0], [3.0, 1.0, -5.0], Expect("arctan2 at (0, 0)", (1,)))
def masked_arctan2(x):
    angle = jnp.arctan2(x, x)  # origin
    return jnp.sum(jnp.where(x == 0.0, 0.0, angle))


@case("sail-sg/jax_xc#29", 0.0, 1.0, Expect("log of 0", back=False))
def where_log(x):
    return jnp.where(x > 0.0, jnp.log(x), 0.0)  # origin


@case("pytorch/pytorch#68425", 100.0, 1.0, Expect("overflow of exp", back=False))
def where_exp(x):
    return jnp.where(x <= 0.0, jnp.exp(x), 1.0 + x)  # origin


@case("pytorch/pytorch#108618", [0.0, 2.0, 3.0], [1.0, 2.0, 3.0], Expect("log of 0", (0,), back=False))
def where_log2(x):
    return jnp.sum(jnp.where(x > 2.0, jnp.log2(x), 2.0 * x))  # origin


@case(
    "pytorch/pytorch#187297", [-1.0, -4.0, 4.0], [1.0, 4.0, 4.0], Expect("sqrt of a negative", (0,), back=False)
)
def where_sqrt_of_negative(x):
    return jnp.sum(jnp.where(x > 0.0, jnp.sqrt(x), x))  # origin


@case("pytorch/pytorch#36923", [2.0, 0.0], [2.0, 1.0], Expect("division by 0", (1,), back=False))
def where_x_over_t(x):
    y = x * (1.0 / x)  # origin
    return jnp.sum(jnp.where(x >= 0.5, y, x))


@case("pytorch/pytorch#23395", [16.0, 0.0], [16.0, 1.0], Expect("sqrt at 0", (1,)))
def where_half_or_root(x):
    return jnp.sum(jnp.where(x == 0.0, x / 2.0, jnp.sqrt(x) + 1.0))  # origin


@case("jax-md/jax-md#63", [[0.0, 0.0], [1.0, 1.0]], [[0.5, 0.0], [1.0, 1.0]], Expect("norm at 0", (0,)))
def safe_distance_that_is_not(x):
    square = jnp.sum(x * x, axis=-1)
    distance = jnp.sqrt(square)  # origin
    return jnp.sum(jnp.where(square > 0.0, distance, 0.0) ** 2)


# --- roots and norms at 0 ---------------------------------------------------------------------------


@case("jax-ml/jax#3058", [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], Expect("norm at 0"))
def norm(x):
    return jnp.linalg.norm(x)  # origin


@case("jax-ml/jax#4177", [0.0, 0.0], [0.0, 1.0], Expect("norm at 0"))
def squared_norm(x):
    return jnp.linalg.norm(x) ** 2  # origin


@case("HIPS/autograd#183", [[0.0], [0.0]], [[1.0], [0.0]], Expect("norm at 0"))
def gaussian_of_norm(x):
    return jnp.exp(-(jnp.linalg.norm(x) ** 2))  # origin


@case("jax-ml/jax#11716", [1.0, 1.0], [1.0, 2.0], Expect("sqrt at 0"))
def std_of_constant(x):
    return jnp.std(x)  # origin


@case("FluxML/Flux.jl#2096", [[1.0, 2.0], [3.0, 3.0]], [[1.0, 2.0], [3.0, 4.0]], Expect("sqrt at 0", (1, 0)))
def normalise(x):
    deviation = jnp.std(x, axis=1, keepdims=True)  # origin
    return jnp.sum(jnp.sin((x - jnp.mean(x, axis=1, keepdims=True)) / (deviation + 1e-5)))


@case("pytorch/pytorch#44452", [0.0, 4.0], [1.0, 4.0], Expect("power at 0", (0,)))
def half_norm(x):
    return jnp.sum(jnp.abs(x) ** 0.5) ** 2.0  # origin


@case(
    "google/flax#1671",
    [[0.0, 0.0], [3.0, 4.0]],
    [[1.0, 0.0], [3.0, 4.0]],
    Expect("division by 0", (0, 0), back=False),
    Expect("norm at 0", (0, 0)),
)
def weight_norm(x):
    length = jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))  # origin 2
    return jnp.sum((x / length) ** 2)  # origin


@case(
    "google-deepmind/optax#946",
    [[0.0, 0.0], [3.0, 4.0]],
    [[1.0, 0.0], [3.0, 4.0]],
    Expect("norm at 0", (0,)),
    Expect("division by 0", (0, 0), back=False),
)
def contrastive(x):
    length = jnp.linalg.norm(x, axis=1)  # origin
    similar = (x @ x.T) / (length[:, None] * length[None, :])  # origin 2
    return jnp.sum(similar)


@case(
    "google-deepmind/optax#1743",
    [0.0, 0.0],
    [3.0, 4.0],
    Expect("norm at 0"),
    Expect("division by 0", (0,), False),
)
def sharpness_aware_step(x):
    gradient = 2.0 * x
    length = optax.tree.norm(gradient)  # origin
    ascent = gradient / length  # origin 2
    return jnp.sum((x + 0.1 * ascent) ** 2)


@case(
    "keras-team/keras#23075",
    [[0.0, 0.0], [1.0, 2.0]],
    [[1.0, 0.0], [1.0, 2.0]],
    Expect("division by 0", (0, 0), False),
)
def normalise_by_rsqrt(x):
    square = jnp.sum(jnp.square(x), axis=1, keepdims=True)
    inverse = jnp.minimum(jax.lax.rsqrt(square), 1e6)  # origin
    return jnp.sum(x * inverse)


@case("jax-ml/jax#6752", [0.9, 0.8], [0.6, 0.6], Expect("sqrt of a negative", (), False))
def cholesky_factor_of_correlation(x):
    rest = 1.0 - jnp.sum(x**2)
    return jnp.sqrt(rest)  # origin


# --- powers, logarithms, exponentials ------------------------------------------------------------------


@case("jax-ml/jax#12409", [1.0], [1.5], Expect("power at 0", (0,)))
def power_of_fraction(x):
    return jnp.sum(jnp.power(x - jnp.floor(x), 0.25))  # origin


@case("jax-ml/jax#6024", [-2.0, 2.0], [2.0, 2.0], Expect("power of a negative", (0,), False))
def even_power(x):
    odd = jnp.power(x, 1.5)  # origin
    return jnp.sum(jnp.where(x < 0.0, -x, odd))


@case("tensorflow/tfjs#346", 2.5, None, Expect("power of a negative", (), False))
def exponent_of_negative(x):
    return jnp.power(jnp.float32(-2.0), x)  # origin


@case("jax-ml/jax#777", [-200.0, -1.0], [-2.0, -1.0], Expect("overflow of exp", (0,), False))
def sigmoid_by_hand(x):
    return jnp.sum(1.0 / (1.0 + jnp.exp(-x)) ** 2)  # origin


@case("tracel-ai/burn#5373", [1.0, 100.0], [1.0, 10.0], Expect("overflow of exp", (1,), False))
def softplus_by_hand(x):
    return jnp.sum(jnp.log(jnp.exp(x) + 1.0))  # origin


@case("patrick-kidger/diffrax#368", [0.0, 90.0], [0.0, 1.0], Expect("overflow of exp", (1,), False))
def stiff_vector_field(x):
    rate = jnp.exp(x)  # origin
    return jnp.sum(rate * x - rate)


@case("google-deepmind/optax#1786", [0.0, 0.4, 0.6], [0.1, 0.4, 0.5], Expect("log of 0", (0,), False))
def kl_divergence(x):
    log_q = jax.nn.log_softmax(jnp.array([0.5, 1.0, 2.0]))
    log_p = jnp.where(x == 0.0, 0.0, jnp.log(x))  # origin
    return jnp.sum(x * (log_p - log_q))


@case("jax-ml/jax#573", [0.0, 0.5, 0.5], [0.2, 0.4, 0.4], Expect("log of 0", (0,), False))
def entropy(x):
    return -jnp.sum(x * jnp.log(x))  # origin


@case("pyro-ppl/numpyro#2088", 0.0, 0.5, Expect("log of 0", (), False))
def beta_log_prob(x):
    a, b = jnp.float32(1.0), jnp.float32(8.0)
    return (a - 1.0) * jnp.log(x) + (b - 1.0) * jnp.log1p(-x)  # origin


@case("pytorch/pytorch#28441", [0.2, 0.0], [0.2, 0.3], Expect("log of 0", (1,), False))
def dirichlet_log_prob(x):
    return jnp.sum(jnp.array([1.5, 1.0]) * jnp.log(x))  # origin


@case("patrick-kidger/diffrax#280", [0.5, -0.1], [0.5, 0.1], Expect("log of a negative", (1,), False))
def log_in_vector_field(x):
    return jnp.sum(x * jnp.log(x))  # origin


@case("rail-berkeley/rlkit#37", [0.5, 20.0], [0.5, 1.0], Expect("log of 0", (1,), False))
def tanh_squashed_log_prob(x):
    action = jnp.tanh(x)
    return -jnp.sum(jnp.log(1.0 - action**2))  # origin


# --- inverse functions ------------------------------------------------------------------------------------


@case("jax-ml/jax#15798", [0.0, 1.0], [0.6, 0.6], Expect("arccos at 1"))
def angle_between(x):
    return jnp.arccos(jnp.vdot(x, jnp.array([0.0, 1.0])))  # origin


@case("jax-ml/jax#23649", 10.0, 0.5, Expect("arccos at 1"))
def clipped_arccos(x):
    return jnp.arccos(jnp.clip(x, -1.0, 1.0))  # origin


@case("HorizonRobotics/alf#463", [0.0, 1.0], [0.0, 0.5], Expect("arctanh at 1", (1,), False))
def inverse_tanh(x):
    return jnp.sum(jnp.arctanh(x))  # origin


# --- linear algebra ----------------------------------------------------------------------------------------


@case(
    "jax-ml/jax#4646",
    np.diag([4.0, 1.0, 1.0]),
    np.diag([4.0, 1.0, 2.0]),
    Expect("degenerate eigenvalues", (0, 0)),
)
def eigenvector(x):
    vectors = jnp.linalg.eigh(x)[1]  # origin
    return jnp.sum(vectors[:, 2] ** 2 * jnp.array([1.0, 2.0, 3.0]))


@case("jax-ml/jax#8732", np.eye(2), np.diag([1.0, 2.0]), Expect("degenerate singular values", (0, 0)))
def singular_vectors(x):
    u, s, v = jnp.linalg.svd(x)  # origin
    return u[0, 0] + 2.0 * v[0, 1]


@case(
    "jax-ml/jax#775",
    [[1.0, 2.0], [2.0, 1.0]],
    [[2.0, 1.0], [1.0, 2.0]],
    Expect("not positive definite", (0, 0), False),
)
def cholesky(x):
    factor = jnp.linalg.cholesky(x)  # origin
    return jnp.sum(jnp.diagonal(factor))


@case("dfm/tinygp#48", [0.0, 0.0, 1.0], [0.0, 2.0, 4.0], Expect("not positive definite", (0, 0), False))
def gaussian_process(x):
    kernel = jnp.exp(-0.5 * (x[:, None] - x[None, :]) ** 2) - 1e-3 * jnp.eye(3)
    factor = jnp.linalg.cholesky(kernel)  # origin
    return jnp.sum(jnp.log(jnp.diagonal(factor)))


# --- minus infinity, masks, softmax -------------------------------------------------------------------------


@case("jax-ml/jax#6811", 1.0, None, Expect("logsumexp of all -inf", (), False))
def logsumexp_of_nothing(x):
    return jax.nn.logsumexp(jnp.stack([jnp.full_like(x, -jnp.inf), x - jnp.inf]))  # origin


@case("pytorch/pytorch#41508", [[1.0, 2.0], [3.0, 4.0]], None, Expect("softmax of all -inf", (1, 0), False))
def attention_with_a_masked_row(x):
    seen = jnp.array([[True, False], [False, False]])
    scores = jnp.where(seen, x @ x.T, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)  # origin
    return jnp.sum(weights @ x)


@case("google-deepmind/optax#896", [0.5, 1.0], None, Expect("0 times inf", (0,), False))
def cross_entropy_with_masked_logit(x):
    logits = jnp.where(jnp.array([False, True]), x, -jnp.inf)
    labels = jnp.array([0.0, 1.0])
    return -jnp.sum(labels * jax.nn.log_softmax(logits))  # origin


@case("tensorflow/tensorflow#11756", [1.0, 0.0], None, Expect("0 times inf", (1,), False))
def infinity_mask(x):
    masked = x * jnp.array([4.0, -jnp.inf])  # origin
    return jax.nn.softmax(masked)[0]


@case("jax-ml/jax#40409", [60000.0, 60000.0], [1.0, 2.0], Expect("overflow", (), False), dtype=np.float16)
def half_precision_sum(x):
    total = jnp.sum(x, dtype=jnp.float16)  # origin
    return (total / 2.0).astype(jnp.float32)


@case("openvla/openvla#30", [10.0, 300.0], [10.0, 30.0], Expect("cast overflow", (1,), False))
def cast_to_half(x):
    half = (x * x).astype(jnp.float16)  # origin
    return jnp.sum(half.astype(jnp.float32))


# --- normalisation -----------------------------------------------------------------------------------------


@case("google/flax#1491", [4097.0, 4097.0, 4097.0], [1.0, 2.0, 3.0], Expect("sqrt of a negative", (), False))
def fast_variance(x):
    mean = jnp.mean(x)
    variance = jnp.mean(x**2) - mean**2 - 1e-3 * mean
    return jnp.sum((x - mean) * jax.lax.rsqrt(variance + 1e-5))  # origin


@case("google-deepmind/optax#1752", [0.0, 0.0], [3.0, 4.0], Expect("division by 0", (0,), False))
def clip_by_global_norm(x):
    square = jnp.sum(x**2)
    clipped = x / square  # origin
    return jnp.sum(clipped)


# --- custom rules, indices, data ------------------------------------------------------------------------------


@jax.custom_vjp
def spike(x):
    return (x > 0.0).astype(x.dtype)


def _spike_fwd(x):
    return spike(x), x


def _spike_bwd(x, ct):
    decay = jnp.exp(-25.0 * x)
    return (ct * decay / (decay + 1.0) ** 2,)


spike.defvjp(_spike_fwd, _spike_bwd)


@case("jeshraghian/snntorch#433", [0.5, -5.0], [0.5, -0.5], Expect("custom rule", (1,)))
def surrogate_gradient(x):
    return jnp.sum(spike(x))  # origin


@case("jax-ml/jax#16899", [0.0, 1.0, 2.0], None, Expect("index out of bounds", (1,), False))
def take_out_of_bounds(x):
    return jnp.sum(jnp.take(x, jnp.array([1, 5])))  # origin


@case("jax-ml/jax#9040", [NAN, 1.0, 2.0], [0.0, 1.0, 2.0], Expect("masked NaN", (0,)))
def nan_in_data(x):
    return jnp.nanmean(x**2)  # origin


@case("pytorch/pytorch#18287", [0.0, INF], [0.0, 2.0], Expect("inf in an operand", (1,), False))
def infinity_in_data(x):
    return jnp.sum(jnp.where(x < 1.0, jnp.cos(x), jnp.zeros_like(x)))  # origin


# --- loops ---------------------------------------------------------------------------------------------------


@case(
    "climate-analytics-lab/jax-gcm#559",
    [4.5, 1.5, 9.0],
    [4.5, 5.5, 9.0],
    Expect("sqrt of a negative", (1,), False, (2,)),
)
def draining_reservoir(x):
    def body(level, _):
        flow = jnp.sqrt(level)  # origin
        return level - 1.0, jnp.where(level > 0.0, flow, 0.0)

    _, flows = jax.lax.scan(body, x, length=4)
    return jnp.sum(flows)


@case("patrick-kidger/diffrax#742", [1.0, 1.0], [1.5, 1.0], Expect("norm at 0", (), True, (2,)))
def passing_by(x):
    def body(position, target):
        distance = jnp.sqrt(jnp.sum((position - target) ** 2))  # origin
        return position + 1.0, distance

    targets = jnp.array([[5.0, 5.0], [5.0, 5.0], [3.0, 3.0], [7.0, 7.0]])
    _, distances = jax.lax.scan(body, x, targets)
    return jnp.sum(distances)


@case("climate-analytics-lab/jax-gcm#561", [0.0, 0.5], [0.1, 0.5], Expect("power at 0", (0,), True, (1,)))
def effective_radius(x):
    def body(radius, _):
        liquid = jnp.maximum(x - radius, 0.0) + 0.0 * radius
        return jnp.where(liquid > 1e-3, 0.1 * liquid ** (1.0 / 3.0), 0.0), jnp.sum(radius)  # origin

    radius, heating = jax.lax.scan(body, jnp.zeros_like(x), length=2)
    return jnp.sum(heating) + jnp.sum(radius)
