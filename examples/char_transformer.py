"""A character-level transformer, trained on the help texts that come with Python.

Every thirtieth step is watched, inside the compiled program.
"""

import pydoc_data.topics
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprop as jp

# The help texts of the language reference, half a megabyte that every Python has, as lower-case letters.
pages = " ".join(pydoc_data.topics.topics.values()).lower()
text = " ".join(re.sub("[^a-z.,()]", " ", pages).split())
alphabet = sorted(set(text))
codes = np.array([alphabet.index(char) for char in text], np.int32)

LENGTH, WIDTH, HEADS, LAYERS, BATCH = 32, 64, 4, 2, 24


def init(key):
    def matrix(key, m, n):
        return jax.random.normal(key, (m, n)) / np.sqrt(m)

    embed, place, out, *layers = jax.random.split(key, 3 + LAYERS)
    return {
        "embed": 0.1 * jax.random.normal(embed, (len(alphabet), WIDTH)),
        "place": 0.1 * jax.random.normal(place, (LENGTH, WIDTH)),
        "out": matrix(out, WIDTH, len(alphabet)),
        "layers": [
            {
                name: matrix(k, m * WIDTH, n * WIDTH)
                for k, (name, m, n) in zip(
                    jax.random.split(key, 4),
                    [("qkv", 1, 3), ("mix", 1, 1), ("up", 1, 4), ("down", 4, 1)],
                    strict=True,
                )
            }
            for key in layers
        ],
    }


def normalize(x):
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def attention(layer, x):
    qkv = (normalize(x) @ layer["qkv"]).reshape(*x.shape[:-1], 3, HEADS, -1)
    q, k, v = (qkv[..., i, :, :] for i in range(3))
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return mixed.reshape(x.shape) @ layer["mix"]


def model(params, tokens):
    x = params["embed"][tokens] + params["place"]
    for layer in params["layers"]:
        attended = attention(layer, x)
        x = x + attended
        hidden = jax.nn.gelu(normalize(x) @ layer["up"])
        x = x + hidden @ layer["down"]
    return normalize(x) @ params["out"]


def loss(params, window):
    logits = model(params, window[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()


windows = np.lib.stride_tricks.sliding_window_view(codes, LENGTH + 1)
train, test = windows[: -100 * LENGTH], windows[-99 * LENGTH :: LENGTH]  # no window is in both


def batches():
    rng = np.random.default_rng(0)
    while True:
        yield train[rng.integers(len(train), size=BATCH)]


state, history = jp.fit(
    loss,
    init(jax.random.key(0)),
    batches,
    optimizer=optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-2, 30, 300)),
    steps=300,
    evaluation=jp.train.Evaluation(test, every=100),
    watch=jp.Watch(nodes=["attended*", "hidden*"], every=30),
    progress=False,
)
untrained = np.log(len(alphabet))
for step in (100, 200, 300):
    print(f"step {step}  test loss {history['eval_loss'][step - 1]:.3f} (guessing: {untrained:.3f})")
for name in ("attended", "hidden", "attended#2", "hidden#2"):
    norms = history.watched[name].cotangent.norm
    print(f"|d loss / d {name}| in the first step {norms[0]:.1e}, in the last watched step {norms[-1]:.1e}")


@jax.jit
def next_code(params, window, key):
    return jax.random.categorical(key, 2.0 * model(params, window[None])[0, -1])


written = list(codes[:LENGTH])
for key in jax.random.split(jax.random.key(1), 80):
    written.append(int(next_code(state.params, np.array(written[-LENGTH:]), key)))
print("".join(alphabet[code] for code in written))

assert history["eval_loss"][-1] < 0.6 * untrained
assert history.watched.steps.tolist() == list(range(0, 300, 30))
assert all(np.isfinite(track.cotangent.norm).all() for track in history.watched.values())
