"""Every formula printed, evaluated from its text and compared with `jax.vjp` at random points.

`python tests/formula_check.py` prints what is covered. Python evaluates the text with the names of NumPy: nothing of
the package is involved except the text itself.
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import numpy as np
from jax import lax

import jaxprop as jp
from jaxprop.show import PRIMITIVES, formulas_of
from jaxprop.show.explanation.lookup import lookup_in
from jaxprop.show.symbolic.formula import Formulas


def _broadcast(fun: Callable[..., Any]) -> Callable[..., Any]:
    """A function of `jax.lax` that broadcasts as NumPy does."""
    return lambda *args: fun(*jnp.broadcast_arrays(*(jnp.asarray(x, float) for x in args)))


NAMESPACE = {
    **{name: getattr(lax, name) for name in dir(lax) if not name.startswith("_")},
    **{name: getattr(special, name) for name in dir(special) if not name.startswith("_")},
    **{name: getattr(jax.nn, name) for name in ("relu", "silu", "softplus", "sigmoid", "relu6", "softmax")},
    **{name: getattr(jnp, name) for name in dir(jnp) if not name.startswith("_")},
    "triangular_solve": lax.linalg.triangular_solve,
    "complex": _broadcast(lax.complex),
    **{name: _broadcast(getattr(lax, name)) for name in ("polygamma", "igamma_grad_a", "random_gamma_grad")},
    "round": jnp.round,
    "trunc": jnp.trunc,
}


class Case(NamedTuple):
    """One operation, its arguments, and the positions to differentiate with respect to (all floating ones)."""

    name: str
    fun: Callable[..., Any]
    args: tuple[Any, ...]
    wrt: tuple[int, ...] | None = None


class Checked(NamedTuple):
    """One formula compared with JAX."""

    case: str
    primitive: str
    operand: int
    text: str
    form: str
    kind: str
    error: float | None


def check(case: Case) -> Iterator[Checked]:
    """Check the formulas of the one operation a case consists of."""
    fun = _named(case)
    floats = (i for i, x in enumerate(case.args) if jnp.issubdtype(jnp.result_type(x), jnp.inexact))
    moved = case.wrt if case.wrt is not None else tuple(floats)
    graph = jp.trace(fun, argnums=moved)(*case.args)
    nodes = [node for node in graph.nodes if node.eqn is not None]
    if len(nodes) > 1:  # JAX sorts the indices first
        nodes = [node for node in nodes if node.active]
    if len(nodes) != 1:
        yield from _unchecked(case, nodes)
        return
    (node,) = nodes
    outs, pull = jax.vjp(lambda *xs: fun(*_put(case.args, moved, xs)), *(case.args[i] for i in moved))
    cts = _random_like(outs)
    expected = dict(zip(moved, pull(cts), strict=True))
    names = dict(zip("abc", case.args, strict=False))
    flat_outs, flat_cts = jax.tree.leaves(outs), jax.tree.leaves(cts)
    several = len(flat_outs) > 1  # then their names are y[0], y[1]
    names |= {"y": flat_outs, "dy": flat_cts} if several else {"y": flat_outs[0], "dy": flat_cts[0]}
    for formula, operand in zip(formulas_of(node), node.operands, strict=True):
        i = "abc".find(operand.name)
        if i not in moved or formula is None:
            continue
        error = None
        if formula.data["form"] != "map":
            found = eval(formula.right, {"__builtins__": {}}, NAMESPACE | names)
            found = found * flat_cts[0] if formula.data["form"] == "local" else found
            error = _error(found, expected[i])
        yield Checked(case.name, node.primitive, i, formula.text, formula.data["form"], formula.kind, error)


def _unchecked(case: Case, nodes: Iterable[Any]) -> Iterator[Checked]:
    """Formulas of several operations: one for each operand, or a sentence."""
    for node in nodes:
        for i, formula in enumerate(formulas_of(node)):
            if formula is not None:
                data = formula.data
                yield Checked(case.name, node.primitive, i, formula.text, data["form"], formula.kind, None)


def _named(case: Case) -> Callable[..., Any]:
    """The function with arguments named a, b, c and a result named y, as in the formulas."""

    def one(a):
        y = case.fun(a)
        return y

    def two(a, b):
        y = case.fun(a, b)
        return y

    def three(a, b, c):
        y = case.fun(a, b, c)
        return y

    return (one, two, three)[len(case.args) - 1]


def _put(args: tuple[Any, ...], moved: tuple[int, ...], points: tuple[Any, ...]) -> list[Any]:
    full = list(args)
    for i, x in zip(moved, points, strict=True):
        full[i] = x
    return full


def _random_like(outs: Any) -> Any:
    rng = np.random.default_rng(1)

    def one(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return np.zeros(x.shape, jax.dtypes.float0)
        found = rng.normal(size=x.shape)
        if jnp.issubdtype(x.dtype, jnp.complexfloating):
            found = found + 1j * rng.normal(size=x.shape)
        return jnp.asarray(found, x.dtype)

    return jax.tree.map(one, outs)


def _error(found: Any, expected: Any) -> float:
    """The largest difference, relative to the scale of the expected value."""
    found, expected = np.asarray(found), np.asarray(expected)
    found = np.broadcast_to(found, expected.shape)
    both = np.isfinite(expected)
    if not np.array_equal(np.isfinite(found), both):
        return math.inf
    scale = np.abs(expected[both]).max(initial=1e-30)
    return float(np.abs(found - expected)[both].max(initial=0.0) / scale)


# --- statements of whole programs ----------------------------------------------------------------------


def check_statements(fun: Callable[..., Any], args: tuple[Any, ...]) -> Iterator[Checked]:
    """Check every statement of a program, and its local gradients, at the values the program has."""
    lookup = lookup_in(jp.backprop(fun)(*args), PRIMITIVES)
    known = {entry.name: entry.value for entry in jp.backprop(fun, nodes="*")(*args)}
    formulas = Formulas(called=lambda value: f"v{value.id}")
    for node in lookup.tape.graph.equations():
        statement = lookup.statements.of(node)
        values = [known.get(value.name) for value in statement.inputs]
        if node.opened or any(value is None for value in values):
            continue
        if node.outputs[0].id in lookup.statements.folded:
            continue
        names = {f"v{value.id}": x for value, x in zip(statement.inputs, values, strict=True)}
        names |= {f"v{v.id}": x for v, x in zip(statement.outputs, statement.function(*values), strict=True)}
        operation = formulas.operation(statement)
        if operation is not None and jnp.issubdtype(node.outputs[0].dtype, jnp.inexact):
            error = _error_of(operation.text, names, names[f"v{node.outputs[0].id}"])
            yield Checked(node.name, node.primitive, -1, operation.text, "forward", "", error)
        for i, wrt in enumerate(statement.inputs):
            formula = formulas.of(statement, wrt) if wrt.active else None
            if formula is not None and formula.data["form"] != "map":
                cts, in_ct = _pulled(statement, values, i)
                scaled = f"({formula.right})*ct" if formula.data["form"] == "local" else formula.right
                found = _error_of(scaled, names | cts, in_ct)
                yield Checked(node.name, node.primitive, i, formula.text, formula.data["form"], "", found)


def _pulled(statement: Any, values: list[Any], position: int) -> tuple[dict[str, Any], Any]:
    """Random cotangents of the outputs, by name, and the cotangent of one input."""
    inexact = [i for i, v in enumerate(statement.outputs) if jnp.issubdtype(v.dtype, jnp.inexact)]

    def along(x: Any) -> list[Any]:
        found = statement.function(*(x if i == position else y for i, y in enumerate(values)))
        return [found[i] for i in inexact]

    outs, pull = jax.vjp(along, jnp.asarray(values[position]))
    cts = _random_like(outs)
    return {f"dv{statement.outputs[i].id}": ct for i, ct in zip(inexact, cts, strict=True)} | {
        "ct": cts[0]
    }, pull(cts)[0]


def _error_of(text: str, names: dict[str, Any], expected: Any) -> float | None:
    """The error of a formula; None where it calls a private function of JAX, or a number is not finite."""
    if not np.isfinite(np.asarray(expected)).all():
        return None
    try:
        return _error(eval(text, {"__builtins__": {}}, NAMESPACE | names), expected)
    except NameError as error:
        if str(error).startswith("name '_"):
            return None
        raise


# --- cases ---------------------------------------------------------------------------------------------

_RNG = np.random.default_rng(0)


def _array(*shape: int, low: float = 0.2, high: float = 0.8, dtype: Any = None) -> Any:
    return jnp.asarray(_RNG.uniform(low, high, shape), dtype)


#: Public functions of `jax.lax` that are not operations on numbers.
_NO_OPERATION = {"fori_loop", "while_loop", "scan", "map", "cond", "switch", "custom_root", "stop_gradient"}


def discovered() -> Iterator[Case]:
    """The elementwise functions among those of `jax.lax`, found by trying them."""
    for name in sorted(dir(lax)):
        fun = getattr(lax, name)
        if name.startswith("_") or name in _NO_OPERATION or not callable(fun) or inspect.isclass(fun):
            continue
        if name.endswith("_p") or name[:1].isupper():
            continue
        for count in (1, 2, 3):
            case = Case(name, fun, tuple(_points(name, count)))
            if _is_pointwise(case):
                yield case
                break


def _points(name: str, count: int) -> Iterator[Any]:
    low, high = (1.2, 2.0) if name == "acosh" else (0.2, 0.8)
    for i in range(count):
        if name == "clamp":
            yield _array(7, low=(0.1, 0.0, 0.5)[i], high=(0.3, 1.0, 0.7)[i])
        elif name == "polygamma" and i == 0:
            yield jnp.full(7, 2.0)
        else:
            yield _array(7, low=low, high=high)


def _is_pointwise(case: Case) -> bool:
    """Whether it takes these arguments, is one operation that keeps the shape, and has a derivative."""
    try:
        jaxpr = jax.make_jaxpr(case.fun)(*case.args)
        (out,) = jaxpr.out_avals
        if len(jaxpr.jaxpr.eqns) != 1 or out.shape != (7,) or _is_move(jaxpr):
            return False
        jax.eval_shape(lambda *args: jax.vjp(case.fun, *args)[1](args[0]), *case.args)
    except Exception:  # it needs other arguments, or has no derivative
        return False
    return jnp.issubdtype(out.dtype, jnp.inexact)


#: Operations that keep the shape and move elements.
_MOVES = {"sort", "rev", "copy", "reshape", "convert_element_type", "reduce_precision", "transpose"}


def _is_move(jaxpr: Any) -> bool:
    name = jaxpr.jaxpr.eqns[0].primitive.name
    return name in _MOVES or name.startswith("cum")


def pointwise() -> Iterator[Case]:
    """More points of elementwise functions: negative numbers, kinks, exact exponents, complex numbers."""
    signed = _array(7, low=-0.9, high=0.9)
    for name in (
        "sin",
        "tanh",
        "abs",
        "sign",
        "erf",
        "logistic",
        "exp",
        "sinh",
        "atan",
        "expm1",
        "square",
        "neg",
    ):
        yield Case(f"{name} of negative numbers", getattr(lax, name), (signed,))
    for power in (-3, -1, 2, 3, 5):
        yield Case(f"integer_pow {power}", lambda a, power=power: lax.integer_pow(a, power), (signed,))
    for power in (0.5, 0.3, -1.5, 2.0):
        yield Case(f"pow {power}", lambda a, power=power: lax.pow(a, power), (_array(7),))
    same = _array(7)
    yield Case("max of equal numbers", lax.max, (same, same.at[::2].add(0.1)))
    yield Case("min of equal numbers", lax.min, (same, same.at[::2].add(0.1)))
    yield Case("select", lax.select, (jnp.arange(7) > 3, signed, same))
    yield Case("betainc", lambda a, b, c: lax.betainc(a, b, c), (same + 1, same + 2, _array(7)), (2,))
    yield Case("polygamma", lambda a, b: lax.polygamma(a, b), (jnp.full(7, 2.0), same), (1,))
    yield Case("mul by itself", lambda a: lax.mul(a, a), (signed,))
    z = lax.complex(_array(5), _array(5))
    for name in ("exp", "sin", "tanh", "log", "sqrt", "neg", "conj", "real", "imag", "abs", "rsqrt", "cosh"):
        yield Case(f"complex {name}", getattr(lax, name), (z,))
    for name in ("mul", "div", "add", "sub"):
        yield Case(f"complex {name}", getattr(lax, name), (z, lax.complex(_array(5), _array(5))))
    yield Case("complex from parts", lax.complex, (_array(5), _array(5)))
    scalar = jnp.asarray(0.3)
    for name in ("sin", "tanh", "log", "sqrt", "mul", "div", "atan2", "pow"):
        fun = getattr(lax, name)
        count = 1 if name in ("sin", "tanh", "log", "sqrt") else 2
        yield Case(f"{name} of scalars", fun, (scalar, scalar + 0.4)[:count])


def _dot(dims: Any) -> Callable[..., Any]:
    return lambda a, b: lax.dot_general(a, b, dims)


def contractions() -> Iterator[Case]:
    """`dot_general` in all patterns of batch, contracted and free axes of up to three axes each."""
    sizes = {"i": 2, "j": 3, "k": 4, "l": 5, "m": 2}
    patterns = ["i,i", "ik,k", "k,kj", "ik,kj", "ki,kj", "ik,jk", "ki,jk", "i,j", "ij,kl", "bik,bkj", "bki,bkj"]
    patterns += [
        "bik,bjk",
        "bki,bjk",
        "ibk,bkj",
        "bi,bi",
        "bi,bj",
        "b,b",
        "b,bi",
        "bik,bk",
        "iks,ksj",
        "isk,ksj",
    ]
    patterns += [
        "ijk,kl",
        "ijk,lk",
        "kij,kl",
        "bcik,bckj",
        "bcik,cbkj",
        "ik,skj",
        "ijk,ijk",
        "bjk,bk",
        "cbi,cb",
    ]
    sizes |= {"b": 3, "c": 2, "s": 2}
    for pattern in patterns:
        left, right = pattern.split(",")
        shared = [c for c in left if c in right]
        batch = [c for c in shared if c in "bc"]
        over = [c for c in shared if c not in "bc"]
        dims = tuple(
            tuple(tuple(side.index(c) for c in group) for side in (left, right)) for group in (over, batch)
        )
        args = tuple(_array(*(sizes[c] for c in side), low=-1) for side in (left, right))
        yield Case(f"dot_general {pattern}", _dot(dims), args)


def linear() -> Iterator[Case]:
    """The common maps between arrays."""
    x, v, t = _array(3, 4, low=-1), _array(4, low=-1), _array(2, 3, 4, low=-1)
    for axes in ((0,), (1,), (0, 1)):
        yield Case(f"reduce_sum {axes}", lambda a, axes=axes: lax.reduce_sum(a, axes), (x,))
        yield Case(f"reduce_max {axes}", lambda a, axes=axes: lax.reduce_max(a, axes), (x,))
        yield Case(f"reduce_min {axes}", lambda a, axes=axes: lax.reduce_min(a, axes), (x,))
        yield Case(f"reduce_prod {axes}", lambda a, axes=axes: lax.reduce_prod(a, axes), (x,))
    yield Case("reduce_sum middle", lambda a: lax.reduce_sum(a, (1,)), (t,))
    yield Case("reduce_max with a tie", lambda a: lax.reduce_max(a, (0,)), (jnp.array([1.0, 3.0, 3.0]),))
    for shape, dims in (((3, 4), (1,)), ((4, 3), (0,)), ((2, 4, 3), (1,)), ((1, 4), (1,)), ((4, 1), (0,))):
        yield Case(
            f"broadcast_in_dim {shape} {dims}", lambda a, s=shape, d=dims: lax.broadcast_in_dim(a, s, d), (v,)
        )
    yield Case(
        "broadcast_in_dim of a scalar", lambda a: lax.broadcast_in_dim(a, (2, 3), ()), (jnp.asarray(0.7),)
    )
    yield Case("broadcast_in_dim of one", lambda a: lax.broadcast_in_dim(a, (3, 4), (0, 1)), (_array(3, 1),))
    yield Case("reshape", lambda a: lax.reshape(a, (2, 6)), (x,))
    yield Case("squeeze", lambda a: lax.squeeze(a, (1,)), (_array(3, 1),))
    yield Case("expand_dims", lambda a: lax.expand_dims(a, (1,)), (v,))
    for order in ((1, 0, 2), (2, 0, 1), (0, 2, 1)):
        yield Case(f"transpose {order}", lambda a, o=order: lax.transpose(a, o), (t,))
    yield Case("transpose", lambda a: lax.transpose(a, (1, 0)), (x,))
    yield Case("rev", lambda a: lax.rev(a, (0,)), (x,))
    yield Case("concatenate", lambda a, b: lax.concatenate([a, b], 0), (x, _array(2, 4)))
    yield Case("concatenate 1", lambda a, b: lax.concatenate([a, b], 1), (x, _array(3, 2)))
    yield Case("concatenate of lines", lambda a, b: lax.concatenate([a, b, a], 0), (v, v))
    yield Case("split", lambda a: lax.split(a, (1, 3), 1), (x,))
    yield Case("slice", lambda a: lax.slice(a, (1, 0), (3, 2)), (x,))
    yield Case("slice with strides", lambda a: lax.slice(a, (0, 1), (3, 4), (2, 2)), (x,))
    yield Case("slice of a line", lambda a: lax.slice(a, (1,), (3,)), (v,))
    yield Case("pad", lambda a: lax.pad(a, 0.0, ((1, 2, 0), (0, 1, 0))), (x,))
    yield Case("pad inside", lambda a: lax.pad(a, 0.0, ((1, 2, 1),)), (v,))
    yield Case("pad by less than nothing", lambda a: lax.pad(a, 0.0, ((-1, 2, 0),)), (v,))
    yield Case("pad with a value", lambda a, b: lax.pad(a, b, ((1, 2, 0),)), (v, jnp.asarray(0.5)))
    for reverse in (False, True):
        yield Case(f"cumsum {reverse}", lambda a, r=reverse: lax.cumsum(a, 0, r), (x,))
    yield Case("cumsum of a line", lambda a: lax.cumsum(a, 0), (v,))
    yield Case("select_n", lax.select_n, (jnp.arange(4) % 2 == 0, v, _array(4)))
    yield Case("select_n of three", lambda a, b, c: lax.select_n(a, b, c, c), (jnp.arange(4) % 3, v, _array(4)))
    yield Case("clamp by scalars", lambda a: lax.clamp(-0.3, a, 0.5), (x,))
    one = jnp.asarray(1)
    yield Case("dynamic_slice", lambda a, b: lax.dynamic_slice_p.bind(a, b, slice_sizes=(2,)), (v, one))
    yield Case("dynamic_update_slice", lax.dynamic_update_slice_p.bind, (v, _array(2), one))
    lower = jnp.tril(_array(3, 3)) + 2 * jnp.eye(3)
    for flag in (False, True):
        yield Case(
            f"triangular_solve {flag}",
            lambda a, b, f=flag: lax.linalg.triangular_solve(a, b, left_side=True, lower=True, transpose_a=f),
            (lower, _array(3, 2)),
        )
    yield Case("convert", lambda a: lax.convert_element_type(a, jnp.float16), (v,))
    yield Case("reduce_precision", lambda a: lax.reduce_precision(a, 8, 23), (v,))


def maps() -> Iterator[Case]:
    """Operations that need no closed form: there must be a sentence, or a formula that holds."""
    x, v, t = _array(3, 4, low=-1), _array(4, low=-1), _array(1, 2, 6, low=-1)
    spd = (lambda a: a @ a.T + jnp.eye(3))(_array(3, 3))
    i = jnp.array([2, 0, 2])
    yield Case("gather", lambda a: a.at[i].get(mode="promise_in_bounds"), (v,))
    yield Case("sort", lambda a: lax.sort(a), (v,))
    yield Case("top_k", lambda a: lax.top_k(a, 2), (v,))
    yield Case("conv", lambda a, b: lax.conv(a, b, (1,), "SAME"), (t, _array(3, 2, 3)))
    yield Case("cumprod", lambda a: lax.cumprod(a), (v,))
    yield Case("cummax", lambda a: lax.cummax(a), (v,))
    yield Case("cumlogsumexp", lambda a: lax.cumlogsumexp(a), (v,))
    yield Case("cholesky", lambda a: lax.linalg.cholesky(a, symmetrize_input=False), (spd,))
    yield Case("qr", lambda a: lax.linalg.qr(a, full_matrices=False), (x.T,))
    yield Case("eigh", lambda a: lax.linalg.eigh(a, symmetrize_input=False), (spd,))
    yield Case("svd", lambda a: lax.linalg.svd(a, full_matrices=False), (x.T,))
    yield Case("lu", lambda a: lax.linalg.lu(a), (spd,))
    yield Case("fft", lambda a: lax.fft(a, "FFT", (4,)), (lax.complex(v, v),))
    yield Case("argsorted scatter", lambda a, b: a.at[i].add(b, mode="promise_in_bounds"), (v, _array(3)))


GROUPS = {
    "elementwise, discovered": discovered,
    "elementwise, more points": pointwise,
    "contractions": contractions,
    "other linear maps": linear,
    "maps without a closed form": maps,
}
TOLERANCE = 1e-6


def main() -> int:
    """Print what is covered; returns 1 if a formula disagrees."""
    wrong = 0
    primitives: set[str] = set()
    with jax.enable_x64(True):
        for title, group in GROUPS.items():
            found = [checked for case in group() for checked in check(case)]
            closed = [c for c in found if c.error is not None]
            primitives |= {c.primitive for c in closed}
            bad = [c for c in closed if not c.error <= TOLERANCE]
            wrong += len(bad)
            print(
                f"{title}: {len(found)} formulas of {len({c.primitive for c in found})} primitives, "
                f"{len(closed)} in closed form, {len(bad)} disagree"
            )
            for c in bad:
                print(f"  WRONG {c.case}, operand {c.operand}: {c.text} (error {c.error:.1e})")
            for c in found:
                if "-v" in sys.argv:
                    print(f"  {c.case}: {c.text}")
    print(f"{len(primitives)} primitives have formulas in closed form; {wrong} disagreements with jax.vjp")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
