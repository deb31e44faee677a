"""Every primitive: JAX's own test harnesses, and the gradient of each.

JAX keeps a table of harnesses that covers its primitives: a function, how to make its arguments,
and where it is known not to work. For each with a float or complex argument and result, the eager
tape with everything recorded is compared with ``jax.vjp`` under the same random cotangent: the
gradients agree to one unit in the last place, and the values are the same bits.

There are thousands. By default the first and the last of each group (mostly one primitive) are
tried, and where slow tests run `PER_GROUP` of them, evenly spaced in the order of JAX's table: the
families of a group are neighbours there, so each has its share. ``JAXPROP_FULL=1`` takes them all,
and so does ``python tests/test_primitives.py``, which prints the counts as a table.
"""

from __future__ import annotations

import collections
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from helpers import FULL

harnesses = pytest.importorskip("jax._src.internal_test_util.test_harnesses")

pytestmark = [pytest.mark.library, pytest.mark.filterwarnings("ignore")]

PER_GROUP = 6
BITS = {2: np.int16, 4: np.int32, 8: np.int64}
COUNTS: collections.Counter[str] = collections.Counter()
LEFT_OUT: collections.Counter[str] = collections.Counter()


class LeftOut(Exception):
    """A harness that JAX itself cannot differentiate, and why."""


# Which harnesses


def inexact(array):
    """Tell whether an array, or the description of one, holds floats or complex numbers."""
    dtype = getattr(array, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def could_differentiate(harness):
    """Tell whether JAX runs a harness here and some argument may be differentiated."""
    made = any(isinstance(a, harnesses.CustomArg) for a in harness.arg_descriptors)
    return harness.filter(jax.default_backend()) and (made or any(map(inexact, harness.arg_descriptors)))


def evenly(cases, count):
    """Return at most `count` cases, evenly spaced, the first and the last among them."""
    if len(cases) <= count:
        return cases
    return [cases[round(i * (len(cases) - 1) / (count - 1))] for i in range(count)]


def groups():
    """Return the harnesses that could be differentiated, by the name of their group.

    Sorted: JAX lists dtypes out of sets, so its own order is another in every process.
    """
    table = collections.defaultdict(list)
    for harness in filter(could_differentiate, sorted(harnesses.all_harnesses, key=str)):
        table[harness.group_name].append(harness)
    return table


def chosen():
    """Return the harnesses to test, those between the first and the last of a group marked as slow."""
    for group in groups().values():
        some = group if FULL else evenly(group, PER_GROUP)
        for i, harness in enumerate(some):
            marks = pytest.mark.slow if 0 < i < len(some) - 1 else ()
            yield pytest.param(harness, marks=marks, id=str(harness))


# One harness


def problem(harness):
    """Return the function of a harness, its arguments, and which of them are differentiated.

    Outputs that are not inexact have no cotangent, and the function does not return them.
    """
    rng = np.random.RandomState(zlib.crc32(harness.fullname.encode()) % 2**31)
    args = harness.dyn_args_maker(rng)
    argnums = tuple(i for i, arg in enumerate(args) if inexact(arg))
    if not argnums:
        raise LeftOut("no argument is float or complex")

    def function(*args):
        return [out for out in jax.tree.leaves(harness.dyn_fun(*args)) if inexact(out)]

    return function, args, argnums


def by_jax(function, args, argnums):
    """Return the outputs, a random seed and the gradients, by jax.vjp."""

    def of_some(*some):
        every = list(args)
        for i, arg in zip(argnums, some, strict=True):
            every[i] = arg
        return function(*every)

    try:
        outputs, vjp = jax.vjp(of_some, *(args[i] for i in argnums))
        if not outputs:
            raise LeftOut("no output is float or complex")
        seed = [random_like(out, i) for i, out in enumerate(outputs)]
        return outputs, seed, vjp(seed)
    except LeftOut:
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:70]
        raise LeftOut(f"jax.vjp: {type(error).__name__}: {line}") from error


def random_like(array, number):
    """Return random numbers of the shape and dtype of an array."""
    rng = np.random.RandomState(number)
    real = rng.standard_normal(array.shape)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        real = real + 1j * rng.standard_normal(array.shape)
    return jnp.asarray(real, array.dtype)


def ulps(actual, expected):
    """Return the largest distance in units in the last place; NaN is at no distance from NaN."""
    actual, expected = (np.asarray(a) for a in (actual, expected))
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    if np.iscomplexobj(actual):
        return max(ulps(actual.real, expected.real), ulps(actual.imag, expected.imag))
    both_nan = np.isnan(actual) & np.isnan(expected)
    distance = np.abs(rank(actual) - rank(expected))
    return int(np.where(both_nan, 0, distance).max(initial=0))


def rank(array):
    """Number floats in their order, so that neighbours differ by one and both zeros are 0."""
    bits = np.ascontiguousarray(array).view(BITS[array.dtype.itemsize])
    magnitude = bits & np.iinfo(bits.dtype).max
    return np.where(bits < 0, -magnitude.astype(object), magnitude.astype(object))


def recorded(tape):
    """Return the values recorded at the outputs, by position; where one is active it must be."""
    places = [(i, value) for i, value in enumerate(tape.graph.outputs)]
    return {i: tape[v.name].value for i, v in places if v.active or v.name in tape}


def faults(tape, outputs, grads):
    """Say what in a tape differs from JAX: the value, the gradients, what is recorded."""
    found = [*distances("value", tape.value, outputs, 0), *distances("grads", tape.grads, grads, 1)]
    kept = recorded(tape)
    found += distances("recorded", kept.values(), [outputs[i] for i in kept], 0)
    return [f"{what} is {far} units in the last place away" for what, far in found]


def distances(what, actual, expected, most):
    """Return the name and the distance of each pair that is further apart than allowed."""
    pairs = enumerate(zip(actual, expected, strict=True))
    far = [(f"{what}[{i}]", ulps(*pair)) for i, pair in pairs]
    return [each for each in far if each[1] > most]


def compare(harness):
    """Say how the tape of a harness differs from JAX; raise `LeftOut` where JAX cannot say."""
    function, args, argnums = problem(harness)
    outputs, seed, grads = by_jax(function, args, argnums)
    tape = jp.backprop(function, argnums, cotangent=seed)(*args)
    found = faults(tape, outputs, grads)
    if not found:
        COUNTS["the same as jax.vjp"] += 1
        return []
    with jax.disable_jit():  # jaxprop opens jit: each operation is compiled for itself
        outputs, _, grads = by_jax(function, args, argnums)
    if not faults(tape, outputs, grads):
        COUNTS["the same as jax.vjp with jit opened"] += 1
        return []
    COUNTS["different"] += 1
    return found


def left_out(harness, error):
    """Count a harness that is left out, under its reason."""
    COUNTS["left out"] += 1
    LEFT_OUT[f"{harness.group_name}: {error}"] += 1


def report():
    """Return the counts, and what was left out and why, as lines."""
    lines = [f"harnesses: {COUNTS.total()} of {len(harnesses.all_harnesses)} tried"]
    lines += [f"{count:6d} {what}" for what, count in COUNTS.most_common()]
    lines += [f"{count:6d} left out: {why}" for why, count in sorted(LEFT_OUT.items())]
    return "\n".join(lines)


# Tests


@pytest.fixture(autouse=True)
def quick_compile():
    """Compile with few optimizations: an operation is compiled once and runs twice."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.parametrize("harness", list(chosen()))
def test_harness(harness):
    """The eager gradients and values of a harness are JAX's."""
    try:
        found = compare(harness)
    except LeftOut as error:
        left_out(harness, error)
        pytest.skip(f"left out: {error}")
    assert not found


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_ulps_are_counted(dtype):
    """The comparison itself sees one unit in the last place, across zero too."""
    one = jnp.asarray(1.0, dtype)
    assert ulps(one, one) == 0
    assert ulps(one, one + jnp.finfo(dtype).eps) == 1
    tiny = jnp.finfo(dtype).smallest_subnormal
    assert ulps(jnp.asarray(-0.0, dtype), jnp.asarray(0.0, dtype)) == 0
    assert ulps(np.asarray(-tiny), np.asarray(tiny)) == 2


def test_counts(capsys):
    """Print how many harnesses were compared, and which were left out."""
    with capsys.disabled():
        print("\n" + report())


def main():
    """Run every harness and print the counts."""
    jax.config.update("jax_disable_most_optimizations", True)
    for harness in itertools.chain(*groups().values()):
        try:
            found = compare(harness)
        except LeftOut as error:
            left_out(harness, error)
        except Exception as error:
            COUNTS["failed"] += 1
            print(f"{harness}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        else:
            for fault in found:
                print(f"{harness}: {fault}", flush=True)
    print(report())


if __name__ == "__main__":
    main()
