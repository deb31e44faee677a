"""The step against the loop anyone would write by hand with `jax.value_and_grad` and optax: the same bits."""

import re

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprop as jp
from helpers import check_close, check_equal, trained_by_hand


def lesson(w, x, y):
    y_hat = w * x
    s = y_hat - y
    return s**2


def noisy(w, x, y, *, key):
    return (w * x + jax.random.normal(key) - y) ** 2


def mlp(params, x, y):
    h = jnp.tanh(x @ params["w1"] + params["b1"][None])
    y_hat = h @ params["w2"]
    return jnp.mean((y_hat - y) ** 2)


def mlp_params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "w1": rng.normal(size=(4, 8)).astype(np.float32),
        "b1": np.zeros(8, np.float32),
        "w2": rng.normal(size=(8, 2)).astype(np.float32),
    }


def batches(count, size=6, seed=1):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield rng.normal(size=(size, 4)).astype(np.float32), rng.normal(size=(size, 2)).astype(np.float32)


def run(step, state, data):
    losses = []
    for batch in data:
        state, metrics = step(state, *batch)
        losses.append(metrics.loss)
    return state, losses


OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-2),
    "clipping and a schedule": optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(optax.cosine_decay_schedule(1e-2, 10))
    ),
    "slow copies of params": optax.ema(0.9),  # a state that could share arrays with params
}


@pytest.mark.library  # optax's own arithmetic is not strict
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_bits_as_by_hand(name):
    optimizer = OPTIMIZERS[name]
    step = jp.make_step(mlp, optimizer)
    state, losses = run(step, step.init(mlp_params()), batches(5))
    params, opt_state, expected = trained_by_hand(mlp, optimizer, mlp_params(), batches(5))
    check_equal((state.params, state.opt_state, losses), (params, opt_state, expected))
    assert int(state.step) == 5


def test_the_lesson():
    step = jp.make_step(lesson)
    state, metrics = step(step.init(1.0), 1.0, 2.0)
    assert float(metrics.loss) == float(metrics["loss"]) == 1.0
    np.testing.assert_allclose(state.params, 1.02, rtol=1e-6)
    assert state.params.dtype == jnp.float32 and not state.params.weak_type
    with pytest.raises(KeyError, match="a step has no metric 'accuracy'; available: loss, aux, watched"):
        metrics["accuracy"]


@pytest.mark.library  # optax's own arithmetic is not strict
def test_gradients_accumulate_by_optax():
    """Four small batches through MultiSteps are one step on all of them."""
    pieces = list(batches(4))
    whole = tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))
    for optimizer in (
        optax.MultiSteps(optax.sgd(0.1), 4),
        optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
    ):
        step = jp.make_step(mlp, optimizer)
        state, _ = run(step, step.init(mlp_params()), pieces)
        params, _, _ = trained_by_hand(mlp, optax.sgd(0.1), mlp_params(), [whole])
        check_close(state.params, params)


@pytest.mark.library  # optax's own arithmetic is not strict
def test_a_line_search_gets_what_it_asks_for():
    def loss(w):
        return jnp.sum((w - jnp.arange(3.0)) ** 4)

    step = jp.make_step(loss, optax.lbfgs())
    state = step.init(jnp.ones(3) * 5)
    for _ in range(25):
        state, metrics = step(state)
    assert metrics.loss < 1e-6


# --- one program, and it is the plain one --------------------------------------------------------------


def costs(compiled):
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return cost["flops"], cost["bytes accessed"], memory.temp_size_in_bytes


@pytest.mark.library  # optax's own arithmetic is not strict
def test_nothing_recorded_is_the_program_written_by_hand():
    optimizer, batch = optax.adam(1e-3), next(batches(1, size=64))
    step = jp.make_step(mlp, optimizer)
    state = step.init(mlp_params())

    def hand(carry, x, y):
        params, opt_state, count = carry
        value, grads = jax.value_and_grad(mlp)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, count + 1), value

    plain = jax.jit(hand, donate_argnums=0).lower((state.params, state.opt_state, state.step), *batch).compile()
    ours = jax.jit(step.pure, donate_argnums=0).lower(state, *batch).compile()
    flops, moved, temp = costs(plain)
    our_flops, our_moved, our_temp = costs(ours)
    assert our_flops == flops and our_temp == temp
    assert our_moved <= moved + 32  # the key goes through


@pytest.mark.library  # optax's own arithmetic is not strict
def test_traced_once():
    traces = []

    def loss(w, x, y):
        traces.append(1)
        return lesson(w, x, y)

    step = jp.make_step(loss, optax.adam(0.1))
    state = step.init(1.0)
    for _ in range(4):
        state, _ = step(state, jnp.float32(1), jnp.float32(2))
    assert len(traces) == 1


def test_a_state_is_used_up_and_what_was_handed_in_lives_on():
    w = {"a": jnp.ones(3), "b": np.ones(2, np.float32)}
    w["c"] = w["a"]  # twice the same array
    key = jax.random.key(3)
    step = jp.make_step(lambda w, x: sum(jnp.sum(leaf) * x for leaf in w.values()))
    first = step.init(w, key)
    second, _ = step(first, jnp.float32(1))
    assert float(w["a"][0]) == float(w["b"][0]) == 1.0 and not key.is_deleted()
    assert first.params["a"].is_deleted() and not second.params["a"].is_deleted()
    message = (
        r"the state \(or the batch\) holds arrays that were donated: a step reuses the buffers of the state it is given "
        r"for the new state\. Continue with the state that the step returned, or keep the old one usable with "
        r"make_step\(\.\.\., donate=False\)\."
    )
    with pytest.raises(RuntimeError, match=message):
        step(first, jnp.float32(1))
    kept = jp.make_step(step.loss, donate=False)
    first = kept.init(w)
    check_equal(kept(first, jnp.float32(1)), kept(first, jnp.float32(1)))


@pytest.mark.library  # optax's own arithmetic is not strict
def test_the_pure_step_goes_into_scan_and_vmap():
    step = jp.make_step(mlp, optax.adam(1e-2))
    data = list(batches(3))
    stacked = tuple(jnp.stack(parts) for parts in zip(*data, strict=True))
    state, losses = jax.jit(lambda s, xs: jax.lax.scan(lambda s, b: step.pure(s, *b), s, xs))(
        step.init(mlp_params()), stacked
    )
    params, _, expected = trained_by_hand(mlp, optax.adam(1e-2), mlp_params(), data)
    check_close((state.params, list(losses.loss)), (params, expected))

    many = jax.tree.map(lambda *xs: jnp.stack(xs), *(step.init(mlp_params(seed)) for seed in range(2)))
    ensemble, _ = jax.jit(jax.vmap(step.pure, in_axes=(0, None, None)))(many, *data[0])
    for seed in range(2):
        params, _, _ = trained_by_hand(mlp, optax.adam(1e-2), mlp_params(seed), data[:1])
        check_close(jax.tree.map(lambda x, seed=seed: x[seed], ensemble.params), params)


def test_rules_change_the_step():
    step = jp.make_step(mlp, optax.sgd(1.0), rules=[("h", jp.rules.stop())])
    batch = next(batches(1))
    state, _ = step(step.init(mlp_params()), *batch)
    check_equal(state.params["w1"], jnp.asarray(mlp_params()["w1"]))
    expected, _, _ = trained_by_hand(mlp, optax.sgd(1.0), mlp_params(), [batch])
    check_close(state.params["w2"], expected["w2"])


# --- keys, aux, the model's own state --------------------------------------------------------------------


def test_a_fresh_key_each_step():
    def loss(w, x, *, key):
        return w * x * jax.random.normal(key), jax.random.key_data(key)

    step = jp.make_step(loss, has_aux=True)
    for key in (7, jax.random.key(7)):
        state = step.init(1.0, key)
        for i in range(3):
            state, metrics = step(state, jnp.float32(1))
            check_equal(metrics.aux, jax.random.key_data(jax.random.fold_in(jax.random.key(7), i)))
        check_equal(jax.random.key_data(state.key), jax.random.key_data(jax.random.key(7)))


@pytest.mark.parametrize("has_aux", [False, True])
def test_a_model_state_goes_round(has_aux):
    def loss(w, x, *, model_state):
        new = {"mean": 0.5 * model_state["mean"] + 0.5 * x, "seen": model_state["seen"] + 1}
        return (w * x - model_state["mean"]) ** 2, ((new, 2 * x) if has_aux else new)

    step = jp.make_step(loss, has_aux=has_aux)
    state = step.init(1.0, model_state={"mean": 0.0, "seen": jnp.int32(0)})
    for _ in range(3):
        state, metrics = step(state, jnp.float32(4))
    assert (float(state.model_state["mean"]), int(state.model_state["seen"])) == (3.5, 3)
    assert metrics.aux is None if not has_aux else float(metrics.aux) == 8.0


def test_a_key_that_is_bound_stays():
    import functools

    def loss(w, x, key):
        return w * x + jax.random.normal(key)

    step = jp.make_step(functools.partial(loss, key=jax.random.key(1)))
    assert step.takes == frozenset()
    _, metrics = step(step.init(0.0), jnp.float32(1))
    check_equal(metrics.loss, jax.random.normal(jax.random.key(1)))


# --- other people's models -------------------------------------------------------------------------------

X = np.random.default_rng(5).normal(size=(16, 4)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5], [3.0]], np.float32)


def falls(step, state, steps=60):
    first = last = None
    for _ in range(steps):
        state, metrics = step(state, X, Y)
        first, last = (metrics.loss if first is None else first), metrics.loss
    assert last < 0.5 * first, (first, last)
    return state


@pytest.mark.library
def test_flax_linen_with_batch_norm_and_dropout():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
            return nn.Dense(1)(nn.Dropout(0.1, deterministic=not train)(nn.relu(x)))

    model = Model()
    variables = model.init(jax.random.key(0), X, train=False)

    def loss(params, x, y, *, key, model_state):
        y_hat, model_state = model.apply(
            {"params": params, **model_state}, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.mean((y_hat - y) ** 2), model_state

    step = jp.make_step(loss, optax.adam(1e-2))
    rest = {"batch_stats": variables["batch_stats"]}
    state = falls(step, step.init(variables["params"], key=1, model_state=rest))
    assert np.abs(state.model_state["batch_stats"]["BatchNorm_0"]["mean"]).max() > 0


@pytest.mark.library
def test_flax_nnx():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.inner, self.norm = nnx.Linear(4, 16, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
            self.drop, self.out = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(self.drop(nnx.relu(self.norm(self.inner(x)))))

    graphdef, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, x, y, *, model_state):
        model = nnx.merge(graphdef, params, model_state, copy=True)  # it is changed in place
        value = jnp.mean((model(x) - y) ** 2)
        return value, nnx.split(model, nnx.Param, ...)[2]

    step = jp.make_step(loss, optax.adam(1e-2))
    state = falls(step, step.init(params, model_state=rest))
    assert nnx.merge(graphdef, state.params, state.model_state)(X).shape == (16, 1)


@pytest.mark.library
def test_equinox():
    model = eqx.nn.MLP(4, 1, 16, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, x, y):
        y_hat = jax.vmap(eqx.combine(params, static))(x)
        return jnp.mean((y_hat - y) ** 2)

    step = jp.make_step(loss, optax.adam(1e-2))
    state = falls(step, step.init(params))
    assert eqx.combine(state.params, static)(X[0]).shape == (1,)


@pytest.mark.library
@pytest.mark.parametrize(
    ("optimizer", "extra"),
    [
        pytest.param(lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01)), (), id="sam"),
        pytest.param(
            lambda: optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01), opaque_mode=True),
            ("grad_fn",),
            id="sam, opaque",
        ),
        pytest.param(lambda: optax.lbfgs(), ("value", "grad", "value_fn"), id="lbfgs"),
        pytest.param(lambda: optax.polyak_sgd(), ("value",), id="polyak"),
    ],
)
def test_an_optimizer_gets_what_it_asks_for_and_no_more(optimizer, extra):
    params, rows = {"w": np.full(4, 0.5, np.float32)}, (X, X.sum(axis=1))

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] - y) ** 2)

    step = jp.make_step(loss, optimizer())
    state, params_by_hand = step.init(params), jax.tree.map(jnp.asarray, params)
    opt_state = optimizer().init(params_by_hand)
    for _ in range(4):
        value, grads = jax.value_and_grad(loss)(params_by_hand, *rows)
        more = {
            "value": value,
            "grad": grads,
            "value_fn": lambda params: loss(params, *rows),
            "grad_fn": lambda params, _: jax.grad(loss)(params, *rows),
        }
        known = {name: more[name] for name in extra}
        updates, opt_state = optimizer().update(grads, opt_state, params_by_hand, **known)
        params_by_hand = optax.apply_updates(params_by_hand, updates)
        state, _ = step(state, *rows)
    np.testing.assert_allclose(state.params["w"], params_by_hand["w"], rtol=2e-5)


# --- errors ------------------------------------------------------------------------------------------------


def stateful(w, x, *, model_state):
    return w * x, model_state


def widening(w, x, *, model_state):
    return w * x, model_state.astype(jnp.bfloat16)


def restructuring(w, x, *, model_state):
    return w * x, {"mean": x}


def unpaired(w, x, *, model_state):
    return w * x, x


def stepped(loss, init, **options):
    step = jp.make_step(loss, **options)
    return lambda: step(step.init(1.0, **init), jnp.float32(1))


ERRORS = {
    "a maker of optimizers": (
        TypeError,
        r"`optimizer` is the function optax\.adam, which makes an optimizer\. Call it, as in optax\.adam\(1e-3\)\.",
        lambda: jp.make_step(lesson, optax.adam),
    ),
    "a learning rate": (
        TypeError,
        r"`optimizer` must be an optax optimizer, a pair of functions `init` and `update` such as optax\.adam\(1e-3\); "
        r"got float 0\.1\.",
        lambda: jp.make_step(lesson, 0.1),
    ),
    "an object": (
        TypeError,
        r"`optimizer` must be an optax optimizer, .* got an object of type object\.",
        lambda: jp.make_step(lesson, object()),
    ),
    "no function": (
        TypeError,
        r"`loss` must be a function \(params, \*batch\) -> scalar, got float\.",
        lambda: jp.make_step(0.0),
    ),
    "an integer": (
        TypeError,
        r"`params\['n'\]` has dtype int32, but only floating point can be trained\. Convert it to a float, or keep it out of "
        r"`params` \(close over it, or put it into `model_state`\)\.",
        lambda: jp.make_step(lesson).init({"w": 1.0, "n": 3}),
    ),
    "a function among params": (
        TypeError,
        r"`params\['act'\]` is a function, which is not an array and cannot be trained\. Keep it out of `params` and close "
        r"over it; from a model object, split off the arrays \(`eqx\.partition\(model, eqx\.is_inexact_array\)`, "
        r"`nnx\.split\(model, nnx\.Param, \.\.\.\)`\)\.",
        lambda: jp.make_step(lesson).init({"w": 1.0, "act": lesson}),
    ),
    "nothing to train": (
        ValueError,
        r"`params` holds no arrays: there is nothing to train\.",
        lambda: jp.make_step(lesson).init({}),
    ),
    "a model state nobody takes": (
        ValueError,
        r"`model_state` is given, but `lesson` has no parameter of that name\. Write it as `def loss\(params, \*batch, "
        r"model_state\)`, and return \(value, new model_state\)\.",
        lambda: jp.make_step(lesson).init(1.0, model_state=1.0),
    ),
    "no model state": (
        ValueError,
        r"`stateful` takes `model_state`, but none is given\. Pass the model's initial state as model_state=\.\.\.",
        lambda: jp.make_step(stateful).init(1.0),
    ),
    "a state without a key": (
        ValueError,
        r"`noisy` takes a `key`, but the state has none\. Make the state with step\.init\(params, key\) of this step\.",
        lambda: jp.make_step(noisy)(jp.make_step(lesson).init(1.0), 1.0, 2.0),
    ),
    "a state of another type": (
        TypeError,
        r"one step turns `state\.model_state` from float32\[\] into bfloat16\[\], so the next step would be another "
        r"program\. Make the types agree where it is computed; often the data have a wider dtype than the params\.",
        stepped(widening, {"model_state": 1.0}),
    ),
    "a state of another structure": (
        TypeError,
        r"one step changes the structure of the state: `state\.model_state` is gone and `state\.model_state\['mean'\]` "
        r"is new\. The model_state that the loss returns must have the structure of the one it was given, and so must "
        r"the optimizer's state\.",
        stepped(restructuring, {"model_state": 1.0}),
    ),
    "a state without its aux": (
        TypeError,
        r"`unpaired` takes `model_state` and has_aux=True, so it must return \(value, \(new model_state, aux\)\); its "
        r"second result is a \w+\.",
        stepped(unpaired, {"model_state": 1.0}, has_aux=True),
    ),
    "watching without a watch": (
        ValueError,
        r"the step has no `watch`\. Make it with make_step\(\.\.\., watch=jaxprop\.Watch\(\)\)\.",
        lambda: jp.make_step(lesson)(jp.make_step(lesson).init(1.0), 1.0, 2.0, watch=True),
    ),
    "a loss that is no scalar": (
        TypeError,
        r"a gradient requires a scalar-output function, but `<lambda>` returned float32\[3\]\. .*",
        lambda: jp.make_step(lambda w, x: w * x)(jp.make_step(lesson).init(1.0), jnp.ones(3)),
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    kind, message, call = ERRORS[case]
    with pytest.raises(kind) as caught:
        call()
    assert re.fullmatch(message, str(caught.value), re.DOTALL), caught.value
