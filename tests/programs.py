"""Programs as people write them, from the papers and tutorials of many fields: each a loss and its arguments."""

import functools
from functools import partial

import jax
import jax.experimental.ode
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

R = np.random.default_rng(0)
PROGRAMS = {}


def n(*shape):
    return jnp.asarray(R.normal(size=shape).astype(np.float32))


def prog(make):
    """Put a maker into the table: what it draws depends on its name alone."""

    @functools.wraps(make)
    def made():
        global R
        R = np.random.default_rng(sum(map(ord, make.__name__)))
        return make()

    PROGRAMS[make.__name__] = made
    return made


@prog
def gp():
    x = jnp.linspace(0, 1, 20)
    y = jnp.sin(6 * x)

    def nll(p):
        ls, amp, noise = jnp.exp(p["ls"]), jnp.exp(p["amp"]), jnp.exp(p["noise"])
        K = amp * jnp.exp(-0.5 * ((x[:, None] - x[None]) / ls) ** 2) + noise * jnp.eye(20)
        L = jnp.linalg.cholesky(K)
        a = jax.scipy.linalg.cho_solve((L, True), y)
        return 0.5 * y @ a + jnp.sum(jnp.log(jnp.diag(L)))

    return nll, ({"ls": jnp.float32(-1.0), "amp": jnp.float32(0.0), "noise": jnp.float32(-2.0)},)


@prog
def hmm():
    def loss(logits, obs):
        logA = jax.nn.log_softmax(logits["A"])
        logB = jax.nn.log_softmax(logits["B"])
        logpi = jax.nn.log_softmax(logits["pi"])

        def step(alpha, o):
            alpha = jax.scipy.special.logsumexp(alpha[:, None] + logA, axis=0) + logB[:, o]
            return alpha, None

        alpha, _ = lax.scan(step, logpi + logB[:, obs[0]], obs[1:])
        return -jax.scipy.special.logsumexp(alpha)

    return loss, ({"A": n(4, 4), "B": n(4, 5), "pi": n(4)}, jnp.asarray(R.integers(0, 5, 12)))


@prog
def kalman():
    def loss(p, ys):
        F = jnp.array([[1.0, 1.0], [0.0, 1.0]])
        H = jnp.array([[1.0, 0.0]])
        Q = jnp.exp(p["q"]) * jnp.eye(2)
        Rm = jnp.exp(p["r"]) * jnp.eye(1)

        def step(c, y):
            m, Pm = c
            m = F @ m
            Pm = F @ Pm @ F.T + Q
            S = H @ Pm @ H.T + Rm
            K = jnp.linalg.solve(S, H @ Pm).T
            v = y - H @ m
            ll = -0.5 * (v @ jnp.linalg.solve(S, v) + jnp.linalg.slogdet(S)[1])
            return (m + K @ v, Pm - K @ S @ K.T), ll

        _, ll = lax.scan(step, (jnp.zeros(2), jnp.eye(2)), ys)
        return -ll.sum()

    return loss, ({"q": jnp.float32(-1), "r": jnp.float32(0)}, n(15, 1))


@prog
def ode():
    def loss(p, y0):
        ys = jax.experimental.ode.odeint(lambda y, t, p: jnp.tanh(p @ y), y0, jnp.linspace(0.0, 1.0, 5), p)
        return jnp.mean(ys[-1] ** 2)

    return loss, (0.3 * n(3, 3), n(3))


@prog
def ctc():
    def loss(w, x, lab):
        logits = x @ w
        return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), lab, jnp.zeros(lab.shape)).mean()

    return loss, (n(6, 5), n(2, 10, 6), jnp.asarray(R.integers(1, 5, (2, 4))))


@prog
def sinkhorn():
    def loss(x, y):
        C = ((x[:, None] - y[None]) ** 2).sum(-1)
        f = jnp.zeros(8)
        g = jnp.zeros(8)
        eps = 0.5

        def body(c, _):
            f, g = c
            f = -eps * jax.scipy.special.logsumexp((g[None] - C) / eps, axis=1)
            g = -eps * jax.scipy.special.logsumexp((f[:, None] - C) / eps, axis=0)
            return (f, g), None

        (f, g), _ = lax.scan(body, (f, g), None, length=10)
        Pm = jnp.exp((f[:, None] + g[None] - C) / eps)
        return (Pm * C).sum()

    return loss, (n(8, 2), n(8, 2))


@prog
def pinn():
    def net(p, t):
        h = jnp.tanh(p["a"] * t + p["b"])
        return h @ p["c"]

    def loss(p, ts):
        res = jax.vmap(lambda t: jax.grad(jax.grad(net, 1), 1)(p, t) + net(p, t))(ts)
        return jnp.mean(res**2) + (net(p, 0.0) - 1) ** 2

    return loss, ({"a": n(16), "b": n(16), "c": 0.3 * n(16)}, jnp.linspace(0, 1, 10))


@prog
def realnvp():
    def loss(p, x):
        ld = 0.0
        h = x
        for i, q in enumerate(p):
            a, b = (h[:, :2], h[:, 2:]) if i % 2 == 0 else (h[:, 2:], h[:, :2])
            s = jnp.tanh(a @ q["s"])
            t = a @ q["t"]
            b = b * jnp.exp(s) + t
            ld = ld + s.sum(-1)
            h = jnp.concatenate([a, b], -1) if i % 2 == 0 else jnp.concatenate([b, a], -1)
        return jnp.mean(0.5 * (h**2).sum(-1) - ld)

    return loss, ([{"s": 0.3 * n(2, 2), "t": 0.3 * n(2, 2)} for _ in range(4)], n(32, 4))


@prog
def gnn():
    s = jnp.asarray(R.integers(0, 10, 30))
    r = jnp.asarray(R.integers(0, 10, 30))

    def loss(p, x):
        h = x
        for w in p:
            m = jax.nn.relu(h[s] @ w)
            agg = jax.ops.segment_sum(m, r, 10)
            h = jnp.tanh(agg + h @ w)
        return jnp.mean(h**2)

    return loss, ([0.5 * n(8, 8) for _ in range(2)], n(10, 8))


@prog
def vae():
    def loss(p, x, key):
        h = jax.nn.relu(x @ p["e"])
        mu, lv = h @ p["mu"], h @ p["lv"]
        z = mu + jnp.exp(0.5 * lv) * jax.random.normal(key, mu.shape)
        lo = jax.nn.relu(z @ p["d"]) @ p["o"]
        rec = optax.sigmoid_binary_cross_entropy(lo, jax.nn.sigmoid(x)).sum(-1)
        return jnp.mean(rec - 0.5 * (1 + lv - mu**2 - jnp.exp(lv)).sum(-1))

    return loss, (
        {
            "e": 0.3 * n(12, 16),
            "mu": 0.3 * n(16, 3),
            "lv": 0.1 * n(16, 3),
            "d": 0.3 * n(3, 16),
            "o": 0.3 * n(16, 12),
        },
        n(8, 12),
        jax.random.key(0),
    )


@prog
def ppo():
    def loss(p, obs, act, adv, old):
        logp = jax.nn.log_softmax(obs @ p["pi"])
        lp = jnp.take_along_axis(logp, act[:, None], 1)[:, 0]
        r = jnp.exp(lp - old)
        pg = -jnp.minimum(r * adv, jnp.clip(r, 0.8, 1.2) * adv).mean()
        v = (obs @ p["v"])[:, 0]
        ent = -(jnp.exp(logp) * logp).sum(-1).mean()
        return pg + 0.5 * jnp.mean((v - adv) ** 2) - 0.01 * ent

    return loss, (
        {"pi": 0.3 * n(6, 4), "v": 0.3 * n(6, 1)},
        n(16, 6),
        jnp.asarray(R.integers(0, 4, 16)),
        n(16),
        jnp.full(16, -1.4),
    )


@prog
def dqn():
    def loss(p, tp, o, a, r, o2):
        q = jax.nn.relu(o @ p["w"]) @ p["v"]
        t = r + 0.9 * lax.stop_gradient((jax.nn.relu(o2 @ tp["w"]) @ tp["v"]).max(-1))
        return optax.huber_loss(jnp.take_along_axis(q, a[:, None], 1)[:, 0], t).mean()

    p = {"w": n(6, 16), "v": 0.3 * n(16, 3)}
    return loss, (p, p, n(16, 6), jnp.asarray(R.integers(0, 3, 16)), n(16), n(16, 6))


@prog
def attention():
    def loss(p, x):
        B, T, D = x.shape
        q, k, v = (x @ p[c] for c in "qkv")
        s = jnp.einsum("btd,bsd->bts", q, k) / D**0.5
        s = jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, -jnp.inf)
        a = jax.nn.softmax(s)
        o = x + a @ v
        o = (o - o.mean(-1, keepdims=True)) * lax.rsqrt(o.var(-1, keepdims=True) + 1e-5)
        return jnp.mean((o @ p["o"]) ** 2)

    return loss, ({c: 0.3 * n(16, 16) for c in "qkvo"}, n(2, 6, 16))


@prog
def fixedpoint():
    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def fp(f, a, x0):
        def cond(c):
            return jnp.max(jnp.abs(c[0] - c[1])) > 1e-6

        return lax.while_loop(cond, lambda c: (c[1], f(a, c[1])), (x0, f(a, x0)))[1]

    def fwd(f, a, x0):
        x = fp(f, a, x0)
        return x, (a, x)

    def bwd(f, res, g):
        a, x = res
        _, vx = jax.vjp(lambda x: f(a, x), x)
        u = fp(lambda g, u: vx(u)[0] + g, g, jnp.zeros_like(x))
        _, va = jax.vjp(lambda a: f(a, x), a)
        return va(u)[0], jnp.zeros_like(x)

    fp.defvjp(fwd, bwd)

    def loss(w, b):
        return jnp.sum(fp(lambda a, x: jnp.tanh(a @ x) + b, w, jnp.zeros(4)) ** 2)

    return loss, (0.2 * n(4, 4), n(4))


@prog
def raymarch():
    def loss(c, d):
        def sdf(p):
            return jnp.sqrt(jnp.sum((p - c) ** 2) + 1e-9) - 1.0

        def step(t, _):
            return t + sdf(t * d), None

        t, _ = lax.scan(step, 0.0, None, length=12)
        return (t - 2.5) ** 2

    return loss, (jnp.array([0.0, 0.0, 4.0]), jnp.array([0.0, 0.0, 1.0]))


@prog
def leapfrog():
    def U(q, A):
        return 0.5 * q @ A @ q + jnp.sum(q**4)

    def loss(A, q, p):
        def step(c, _):
            q, p = c
            p = p - 0.05 * jax.grad(U)(q, A)
            q = q + 0.1 * p
            p = p - 0.05 * jax.grad(U)(q, A)
            return (q, p), None

        (q, p), _ = lax.scan(step, (q, p), None, length=10)
        return U(q, A) + 0.5 * p @ p

    return loss, (jnp.eye(3) + 0.1 * n(3, 3), n(3), n(3))


@prog
def diffusion():
    def loss(p, x, key):
        kt, ke = jax.random.split(key)
        t = jax.random.uniform(kt, (x.shape[0], 1))
        e = jax.random.normal(ke, x.shape)
        xt = jnp.sqrt(1 - t) * x + jnp.sqrt(t) * e
        h = jax.nn.silu(jnp.concatenate([xt, t], -1) @ p["a"])
        return jnp.mean((h @ p["b"] - e) ** 2)

    return loss, ({"a": 0.3 * n(5, 32), "b": 0.3 * n(32, 4)}, n(16, 4), jax.random.key(1))


@prog
def bilstm():
    def cell(p, c, x):
        h, cc = c
        i, f, g, o = jnp.split(jnp.concatenate([x, h], -1) @ p["w"] + p["b"], 4, -1)
        cc = jax.nn.sigmoid(f + 1) * cc + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(cc)
        return (h, cc), h

    def loss(p, xs):
        z = (jnp.zeros((2, 8)),) * 2
        _, f = lax.scan(partial(cell, p["f"]), z, xs)
        _, b = lax.scan(partial(cell, p["b"]), z, xs, reverse=True)
        return jnp.mean((jnp.concatenate([f, b], -1) @ p["o"]) ** 2)

    q = lambda: {"w": 0.3 * n(12, 32), "b": jnp.zeros(32)}
    return loss, ({"f": q(), "b": q(), "o": n(16, 2)}, n(7, 2, 4))


@prog
def contrastive():
    def loss(p, a, b):
        z = lambda x: (lambda h: h / (jnp.linalg.norm(h, axis=-1, keepdims=True) + 1e-8))(
            jax.nn.relu(x @ p["w"]) @ p["v"]
        )
        s = z(a) @ z(b).T / 0.1
        l = jnp.arange(8)
        return optax.softmax_cross_entropy_with_integer_labels(s, l).mean()

    return loss, ({"w": n(6, 16), "v": 0.3 * n(16, 4)}, n(8, 6), n(8, 6))


@prog
def qr_svd():
    def loss(w, x):
        q, r = jnp.linalg.qr(x @ w)
        u, s, v = jnp.linalg.svd(r)
        return jnp.sum(jnp.log(s)) + jnp.sum(q[0])

    return loss, (n(4, 4), n(6, 4))


@prog
def fft():
    def loss(f, x):
        X = jnp.fft.rfft(x)
        y = jnp.fft.irfft(X * f, n=x.shape[-1])
        return jnp.mean((y - jnp.roll(y, 1)) ** 2) + jnp.sum(jnp.abs(X * f) ** 2) * 1e-3

    return loss, (n(9), n(3, 16))


@prog
def condmoe():
    def loss(p, x):
        g = jax.nn.softmax(x @ p["g"])
        k = jnp.argmax(g)
        y = lax.switch(k, [lambda x: jnp.tanh(x @ p["a"]), lambda x: jax.nn.relu(x @ p["b"]), lambda x: x], x)
        return jnp.sum((y * g[k]) ** 2)

    return loss, ({"g": n(4, 3), "a": n(4, 4), "b": n(4, 4)}, n(4))


@prog
def nerf():
    def loss(p, ts):
        x = jnp.stack([ts, ts**2], -1)
        h = jax.nn.relu(x @ p["w"])
        sig = jax.nn.softplus(h @ p["s"])
        rgb = jax.nn.sigmoid(h @ p["c"])
        d = jnp.diff(ts, append=ts[-1:] + 0.1)
        a = 1 - jnp.exp(-sig * d)
        T = jnp.cumprod(jnp.concatenate([jnp.ones(1), 1 - a + 1e-10]))[:-1]
        return jnp.sum(((a * T)[:, None] * rgb).sum(0) ** 2)

    return loss, ({"w": n(2, 16), "s": 0.3 * n(16), "c": 0.3 * n(16, 3)}, jnp.linspace(0.1, 1, 12))


@prog
def maml():
    def inner(p, x, y):
        return jnp.mean((jnp.tanh(x @ p["w"]) @ p["v"] - y) ** 2)

    def loss(p, x, y, x2, y2):
        g = jax.grad(inner)(p, x, y)
        q = jax.tree.map(lambda a, b: a - 0.1 * b, p, g)
        return inner(q, x2, y2)

    return loss, ({"w": n(3, 8), "v": n(8)}, n(5, 3), n(5), n(5, 3), n(5))


@prog
def crf():
    def loss(p, em, tags):
        T = p["T"]

        def step(a, e):
            return jax.nn.logsumexp(a[:, None] + T, 0) + e, None

        a, _ = lax.scan(step, em[0] + p["b"], em[1:])
        gold = em[jnp.arange(6), tags].sum() + T[tags[:-1], tags[1:]].sum() + p["b"][tags[0]]
        return jax.nn.logsumexp(a) - gold

    return loss, ({"T": n(4, 4), "b": n(4)}, n(6, 4), jnp.array([0, 1, 1, 2, 3, 0]))


@prog
def special():
    def loss(p):
        a, b = jax.nn.softplus(p["a"]), jax.nn.softplus(p["b"])
        x = jax.nn.sigmoid(p["x"])
        return (
            jax.scipy.special.gammaln(a)
            + jax.scipy.special.digamma(b)
            + jax.scipy.special.erf(x)
            + jax.scipy.special.i0e(x)
            + jax.scipy.special.ndtri(x)
            + jax.scipy.special.gammainc(jax.lax.stop_gradient(a), x)
        ).sum()

    return loss, ({"a": n(4), "b": n(4), "x": n(4)},)


@prog
def linalg():
    def loss(A, b):
        S = A @ A.T + jnp.eye(4)
        w, v = jnp.linalg.eigh(S)
        return (
            jnp.sum(jnp.log(w))
            + jnp.linalg.slogdet(S)[1]
            + jnp.sum(jnp.linalg.inv(S))
            + jnp.sum(jax.scipy.linalg.expm(0.1 * A))
            + jnp.sum(jnp.linalg.lstsq(A, b)[0] ** 2)
            + jnp.linalg.norm(jnp.linalg.pinv(A))
            + jnp.sum(v[0] ** 2)
        )

    return loss, (n(4, 4), n(4))


@prog
def sorts():
    def loss(x):
        t, _ = lax.top_k(x, 3)
        return (
            jnp.sum(jnp.sort(x) * jnp.arange(8.0))
            + jnp.median(x)
            + jnp.quantile(x, 0.3)
            + t.sum()
            + jnp.cumsum(x)[-2]
            + jnp.max(x)
            + jnp.logaddexp(x[0], x[1])
        )

    return loss, (n(8),)


@prog
def interp():
    def loss(fp, x):
        return jnp.sum(jnp.interp(x, jnp.linspace(0, 1, 6), fp) ** 2) + jnp.sum(
            jax.scipy.ndimage.map_coordinates(jnp.outer(fp, fp), [x * 4, x * 3], order=1)
        )

    return loss, (n(6), jnp.linspace(0.05, 0.95, 7))


@prog
def assoc():
    def loss(a, b):
        f = lambda l, r: (l[0] * r[0], l[1] * r[0] + r[1])
        A, B = lax.associative_scan(f, (jax.nn.sigmoid(a), b))
        return jnp.sum(B**2)

    return loss, (n(9, 3), n(9, 3))


@prog
def quantum():
    def loss(th):
        s = jnp.array([1, 0], jnp.complex64)
        for i in range(3):
            c, si = jnp.cos(th[i] / 2), jnp.sin(th[i] / 2)
            U = jnp.array([[1, 0], [0, 1]], jnp.complex64) * c - 1j * si * jnp.array(
                [[0, 1], [1, 0]], jnp.complex64
            )
            s = U @ s
            s = s * jnp.exp(1j * th[i] * jnp.array([0.0, 1.0]))
        return jnp.abs(s[1]) ** 2

    return loss, (n(3),)


@prog
def gumbel():
    def loss(l, key):
        g = jax.random.gumbel(key, l.shape)
        y = jax.nn.softmax((l + g) / 0.5)
        hard = jax.nn.one_hot(y.argmax(-1), 5)
        z = hard + y - lax.stop_gradient(y)
        return jnp.sum(z @ jnp.arange(5.0) ** 2)

    return loss, (n(4, 5), jax.random.key(0))


@prog
def softdtw():
    def loss(x, y):
        D = (x[:, None] - y[None]) ** 2

        def row(prev, d):
            def col(c, e):
                left, diag, up = c, e[1], e[2]
                v = e[0] - 0.5 * jax.nn.logsumexp(-jnp.stack([left, diag, up]) / 0.5)
                return v, v

            _, r = lax.scan(col, jnp.float32(1e3), (d, prev[:-1], prev[1:]))
            return jnp.concatenate([jnp.full(1, 1e3), r]), None

        init = jnp.concatenate([jnp.zeros(1), jnp.full(5, 1e3)])
        r, _ = lax.scan(row, init, D)
        return r[-1]

    return loss, (n(6), n(5))


@prog
def nbody():
    m = jnp.array([1.0, 0.5, 0.2])

    def acc(q):
        d = q[None] - q[:, None]
        r2 = (d**2).sum(-1) + 0.05
        return (m[None, :, None] * d / r2[..., None] ** 1.5).sum(1)

    def loss(v, q):
        def step(c, _):
            q, v = c
            v = v + 0.01 * acc(q)
            return (q + 0.01 * v, v), None

        (q, v), _ = lax.scan(step, (q, v), None, length=20)
        return jnp.sum(q**2)

    return loss, (n(3, 2), n(3, 2))


@prog
def convs():
    def loss(p, x):
        h = lax.conv_general_dilated(x, p["a"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        h = jax.nn.gelu(h)
        h = lax.conv_transpose(h, p["b"], (2, 2), "SAME")
        h = lax.reduce_window(h, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return jnp.mean((h - h.mean((0, 1, 2))) ** 2 / (h.var((0, 1, 2)) + 1e-5) * p["g"])

    return loss, (
        {"a": 0.3 * n(3, 3, 2, 4), "b": 0.3 * n(3, 3, 4, 2), "g": jnp.array([1.0, 2.0])},
        n(2, 8, 8, 2),
    )


@prog
def gan():
    def loss(g, d, z):
        x = jnp.tanh(z @ g)
        l = (jax.nn.leaky_relu(x @ d["a"], 0.2) @ d["b"])[:, 0]
        gp = jax.vmap(jax.grad(lambda x: (jax.nn.leaky_relu(x @ d["a"], 0.2) @ d["b"])[0]))(x)
        return (
            optax.sigmoid_binary_cross_entropy(l, jnp.ones_like(l)).mean()
            + ((jnp.sqrt((gp**2).sum(-1) + 1e-8) - 1) ** 2).mean()
        )

    return loss, (n(4, 6), {"a": n(6, 16), "b": 0.3 * n(16, 1)}, n(8, 4))


@prog
def root():
    def loss(a):
        x = lax.custom_root(
            lambda x: x**3 + a * x - 1.0,
            jnp.float32(1.0),
            lambda f, x0: lax.fori_loop(0, 20, lambda i, x: x - f(x) / jax.grad(f)(x), x0),
            lambda g, y: y / g(jnp.float32(1.0)),
        )
        return x**2

    return loss, (jnp.float32(2.0),)


@prog
def cg():
    def loss(w, b):
        A = lambda x: x * jax.nn.softplus(w) + 0.1 * (jnp.roll(x, 1) + jnp.roll(x, -1) - 2 * x) * -1
        x, _ = jax.scipy.sparse.linalg.cg(A, b, maxiter=50)
        return jnp.sum(x**2)

    return loss, (n(8) + 2, n(8))


@prog
def scatter():
    def loss(x, v):
        y = jnp.zeros(10).at[jnp.array([1, 3, 3, 7])].add(x)
        y = y.at[jnp.array([0, 2])].set(v)
        y = y.at[5].multiply(x[0])
        z = y.at[jnp.array([1, 3])].max(x[:2])
        return jnp.sum(z**2 * jnp.arange(10.0)) + jnp.sum(jax.ops.segment_max(x, jnp.array([0, 0, 1, 1]), 2))

    return loss, (n(4), n(2))


@prog
def ssm():
    def loss(p, u):
        A = -jnp.exp(p["A"])
        dA = jnp.exp(0.1 * A)

        def step(h, x):
            h = dA * h + 0.1 * p["B"] * x
            return h, (p["C"] * h).sum()

        _, y = lax.scan(step, jnp.zeros(8), u)
        return jnp.mean((y - jnp.roll(u, 1)) ** 2)

    return loss, ({"A": n(8), "B": n(8), "C": n(8)}, n(20))


@prog
def rope():
    def loss(w, x):
        q = x @ w
        f = 1 / 10000 ** (jnp.arange(4) / 4)
        ang = jnp.arange(6)[:, None] * f
        c, s = jnp.cos(ang), jnp.sin(ang)
        a, b = q[..., :4], q[..., 4:]
        q = jnp.concatenate([a * c - b * s, a * s + b * c], -1)
        att = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), q @ q.T, -1e30))
        return jnp.mean((att @ x) ** 2)

    return loss, (n(8, 8), n(6, 8))


@prog
def focal():
    def loss(w, x, y):
        l = x @ w
        return (
            optax.sigmoid_focal_loss(l, y, alpha=0.25, gamma=2.0).mean()
            + optax.kl_divergence(jax.nn.log_softmax(l), jax.nn.softmax(y)).mean()
            + optax.cosine_distance(l, y + 0.1).mean()
            + optax.hinge_loss(l, 2 * y - 1).mean()
            + optax.log_cosh(l, y).mean()
        )

    return loss, (n(4, 3), n(6, 4), jnp.asarray(R.integers(0, 2, (6, 3)).astype(np.float32)))


@prog
def sde():
    def loss(p, key):
        def step(c, k):
            dx = jnp.tanh(p["f"] @ c) * 0.1 + jax.nn.sigmoid(p["g"]) * jnp.sqrt(0.1) * jax.random.normal(
                k, (3,)
            )
            return c + dx, c

        x, _ = lax.scan(step, jnp.zeros(3), jax.random.split(key, 10))
        return jnp.sum(x**2)

    return loss, ({"f": n(3, 3), "g": n(3)}, jax.random.key(2))


@prog
def remat():
    def loss(ws, x):
        f = jax.checkpoint(
            lambda h, w: (jnp.tanh(h @ w) + h, None), policy=jax.checkpoint_policies.dots_saveable
        )
        h, _ = lax.scan(f, x, ws)
        return jnp.mean(h**2)

    return loss, (0.3 * n(5, 6, 6), n(3, 6))


@prog
def mix():
    def loss(p, x):
        lp = jax.nn.log_softmax(p["pi"])
        ll = jax.scipy.stats.norm.logpdf(x[:, None], p["mu"], jnp.exp(p["s"]))
        return -jax.nn.logsumexp(lp + ll, -1).mean()

    return loss, ({"pi": n(3), "mu": n(3), "s": n(3)}, n(20))


@prog
def vq():
    def loss(p, x):
        z = x @ p["e"]
        d = ((z[:, None] - p["cb"][None]) ** 2).sum(-1)
        k = d.argmin(-1)
        q = p["cb"][k]
        st = z + lax.stop_gradient(q - z)
        return (
            jnp.mean((st @ p["d"] - x) ** 2)
            + jnp.mean((lax.stop_gradient(z) - q) ** 2)
            + 0.25 * jnp.mean((z - lax.stop_gradient(q)) ** 2)
        )

    return loss, ({"e": 0.5 * n(6, 3), "cb": n(8, 3), "d": 0.5 * n(3, 6)}, n(16, 6))
