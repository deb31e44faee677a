"""The intermediate representation of pictures: its contents, its numbers, and that it is reproducible."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pictures
import pytest

import jaxprop as jp
from jaxprop.show.drawing.arrays import chosen, show_array, thumbnail
from jaxprop.show.drawing.build import scene_of
from jaxprop.show.drawing.scene import as_data, json_number


@pytest.fixture(scope="module")
def scenes():
    return {name: scene_of(make()) for name, make in pictures.TAPES.items()}


def named(scene):
    return {out.name: (node, out) for node in scene.nodes for out in node.outputs}


def edge(scene, source, target, kind="data"):
    found = named(scene)
    ends = found[source][0].id, found[target][0].id
    return next(e for e in scene.edges if (e.source[0], e.target[0]) == ends and e.kind == kind)


def test_the_worked_example(scenes):
    scene = scenes["worked"]
    found = named(scene)
    assert [(name, node.kind) for name, (node, _) in found.items()] == [
        ("w", "parameter"), ("x", "data"), ("y", "data"), ("y_hat", "op"), ("s", "op"), ("loss", "loss"),
    ]  # fmt: skip
    assert {name: (out.value.number, out.cotangent and out.cotangent.number) for name, (_, out) in found.items()} == {
        "w": (1, -2), "x": (1, None), "y": (2, None), "y_hat": (1, -2), "s": (-1, -2), "loss": (1, 1),
    }  # fmt: skip
    assert [found[name][0].level for name in ("w", "y_hat", "s", "loss")] == [0, 1, 2, 3]
    local = edge(scene, "s", "loss").local
    assert (local.text, local.number) == ("d(s**2)/ds = 2*s", -2)
    assert edge(scene, "s", "loss").share.number == -2
    assert edge(scene, "x", "y_hat").local is None and not edge(scene, "x", "y_hat").active
    place = scene.sources[found["y_hat"][0].source]
    assert (place.file, place.text, place.function) == ("pictures.py", "y_hat = w * x", "loss")
    assert place.context[place.line - place.first].strip() == place.text
    assert (scene.title, scene.value, scene.numbers) == ("loss", "1", "full")


def test_local_numbers_are_those_of_jax():
    def f(a, b):
        p = jnp.sin(a)
        q = p * b
        r = jnp.exp(q)
        return r / 3.0 + jnp.tanh(p)

    tape = jp.backprop(f, argnums=(0, 1))(0.3, 1.7)
    scene = scene_of(tape)
    numbers = [e for e in scene.edges if e.local is not None]
    assert len(numbers) == 8
    by_id = {node.id: node for node in scene.nodes}
    for e in numbers:
        of, wrt = by_id[e.target[0]].name, by_id[e.source[0]].outputs[e.source[1]].name
        assert e.local.number == pytest.approx(float(tape.local(of, wrt)), rel=1e-6)


def test_shares_sum_to_the_cotangent():
    def f(x):
        y = jnp.sin(x)
        return jnp.sum(y * 2.0) + jnp.sum(jnp.exp(y)) + jnp.sum(y * y)

    tape = jp.backprop(f)(jnp.array(0.4))
    scene = scene_of(tape)
    node, out = named(scene)["y"]
    shares = {e.target[0]: e.share.number for e in scene.edges if e.source[0] == node.id}
    assert len(shares) == 3
    assert sum(shares.values()) == pytest.approx(out.cotangent.number, rel=1e-6)
    assert sum(shares.values()) == pytest.approx(2 + math.exp(math.sin(0.4)) + 2 * math.sin(0.4), rel=1e-5)


def test_scans_carry_steps_and_wires(scenes):
    scene = scenes["recurrent"]
    found = named(scene)
    node, out = found["h"]
    assert node.steps == (3,) and [box.length for box in scene.boxes if box.kind == "scan"] == [3]
    # h: 1 -> 2+1=3 -> 6-1=5 -> 10+2=12
    assert out.value.steps.at == (0, 1, 2) and out.value.steps.text == ("3", "5", "12")
    carry = next(e for e in scene.edges if e.kind == "carry")
    assert (carry.name, {n.id: n.kind for n in scene.nodes}[carry.target[0]]) == ("h", "carry")
    taken = {box.branch: box.taken for box in scene.boxes if box.kind == "cond"}
    assert sorted(taken.values()) == [0.0, 1.0]


def test_a_graph_alone_has_no_numbers():
    graph = jp.trace(pictures.loss)(jax.ShapeDtypeStruct((), jnp.float32), 1.0, 2.0)
    scene = scene_of(graph)
    assert scene.numbers == "none" and scene.scale is None
    assert all(out.value is None and out.cotangent is None for node in scene.nodes for out in node.outputs)
    assert edge(scene, "s", "loss").local.text == "d(s**2)/ds = 2*s"


def test_a_summary_tape_has_the_same_norms(scenes):
    full = scenes["hidden"]
    with jax.numpy_rank_promotion("allow"):
        summary = jp.backprop(pictures.hidden, record=jp.summary)(*pictures.hidden_args())
    scene = scene_of(summary)
    assert scene.numbers == "summary"
    for name, (_, out) in named(scene).items():
        if out.cotangent is not None:
            assert out.cotangent.norm == pytest.approx(named(full)[name][1].cotangent.norm, rel=1e-6)
            assert out.cotangent.thumb is None


def test_reads_are_those_of_jax_vjp():
    def f(x, w):
        y = x * w
        z = jnp.tanh(y)
        return jnp.sum(z + x)

    scene = scene_of(jp.trace(f, argnums=(0, 1))(jnp.ones(8), jnp.ones(8)))
    by_id = {node.id: node.name for node in scene.nodes}
    reads = {(r.name, by_id[r.target]): (r.bytes, r.size) for r in scene.reads}
    assert reads["x", "y"] == reads["w", "y"] == (32, "32 bytes")
    assert not any(reader.startswith(("add", "reduce_sum")) for _, reader in reads)
    _, pull = jax.vjp(lambda y: jnp.tanh(y), jnp.ones(8))
    tanh = next(node for node in scene.nodes if node.primitive == "tanh")
    own = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert tanh.rule_bytes + sum(r.bytes for r in scene.reads if r.target == tanh.id) == own


def test_boxes_are_consecutive_and_nested():
    def f(x):
        for i in range(3):
            with jax.named_scope(f"block{i}"):
                with jax.named_scope("inner"):
                    x = jnp.sin(x) * 2.0
                x = jnp.cos(x) + 1.0
        return x

    scene = scene_of(jp.backprop(f)(1.0))
    assert [(b.name, b.kind) for b in scene.boxes if b.parent is None] == [
        (f"block{i}", "scope") for i in range(3)
    ]
    assert [b.name for b in scene.boxes if b.parent == "b0"] == ["inner"]
    assert [b.count for b in scene.boxes[:2]] == [5, 3]  # the argument is in the box of its consumer
    order = {box.id: i for i, box in enumerate(scene.boxes)}
    assert all(box.parent is None or order[box.parent] < order[box.id] for box in scene.boxes)


def test_large_graphs_are_quick_and_cut_into_ranges():
    def chain(x):
        for _ in range(1_000):
            x = jnp.sin(x)
        return x

    tape = jp.backprop(chain)(jnp.float32(0.5))
    start = time.perf_counter()
    scene = scene_of(tape)
    took = time.perf_counter() - start
    assert len(scene.nodes) == 1_001 and took < 2.0  # a tenth of that on an idle core
    tops = [box for box in scene.boxes if box.parent is None]
    assert 1 < len(tops) <= 60 and all(box.kind == "range" for box in tops)


def test_the_same_function_gives_the_same_bytes():
    first, second = (scene_of(pictures.recurrent_tape()).json() for _ in range(2))
    assert first == second
    data = json.loads(first)
    assert data["version"] == 2 and data["title"]


def test_numbers_are_json():
    assert [json_number(x) for x in (1.0, 1 / 3, math.nan, -math.inf, 1e-20)] == [
        1,
        0.3333333,
        "nan",
        "-inf",
        1e-20,
    ]
    assert as_data((True, None, "a", 0)) == [True, None, "a", 0]


def test_heat_maps_are_block_means():
    x = np.arange(40 * 40, dtype=np.float32).reshape(40, 40) - 800
    thumb = thumbnail(x)
    assert (thumb.rows, thumb.cols) == (16, 16)
    starts = [i * 40 // 16 for i in range(17)]
    block = x[starts[3] : starts[4], starts[5] : starts[6]].mean()
    assert thumb.data[3 * 16 + 5] == round(block / thumb.absmax * 100)
    x[0, 0] = np.nan
    assert thumbnail(x).data[0] is None and thumbnail(x).data[1] is not None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "bool", "complex64"])
def test_statistics_are_those_of_numpy(dtype, key):
    x = np.asarray((jax.random.normal(key, (5, 7)) * 10).astype(dtype))
    wide = np.abs(x).astype(float) if dtype == "complex64" else x.astype(float)
    shown = show_array(x, 0, 1)
    for name, expected in (
        ("mean", wide.mean()),
        ("std", wide.std()),
        ("min", wide.min()),
        ("max", wide.max()),
    ):
        assert getattr(shown, name) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert shown.norm == pytest.approx(np.linalg.norm(wide), rel=1e-6)


def test_steps_shown_are_spread():
    assert chosen(5, 64) == (0, 1, 2, 3, 4)
    assert chosen(1000, 4) == (0, 333, 666, 999)


def test_odd_values_are_drawn():
    def f(x, key, flags):
        noise = jax.random.normal(key, (0,))
        return jnp.sum(x) + jnp.sum(noise) + jnp.sum(jnp.where(flags, x, 0.0))

    tape = jp.backprop(f)(jnp.ones(3), jax.random.key(0), jnp.array([True, False, True]))
    scene = scene_of(tape)
    json.loads(scene.json())
    assert named(scene)["x"][1].cotangent.text == "[2, 1, 2]"


def test_constants_raise_no_alarm():
    def f(x):
        safe = jnp.where(x > 0, x, jnp.nan)
        return jnp.sum(jnp.log(safe))

    scene = scene_of(jp.backprop(f)(jnp.ones(3)))
    bad = [node for node in scene.nodes if any(s and s.nonfinite for o in node.outputs for s in (o.value,))]
    assert all(node.constant for node in bad)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(TypeError, match="`draw` takes a `Graph` .* or a `Tape` .*, got float."):
        scene_of(1.0)

    @jax.jit
    def traced(x):
        scene_of(jp.backprop(jnp.sin)(x))
        return x

    with pytest.raises(TypeError, match="the tape holds tracers instead of numbers"):
        traced(1.0)
    mapped = jax.vmap(jp.backprop(lambda x: jnp.sum(jnp.sin(x))))(jnp.ones((4, 3)))
    with pytest.raises(
        ValueError, match="the tape went through `vmap`, so it holds one record for each example"
    ):
        scene_of(mapped)
    one = scene_of(jax.tree.map(lambda x: x[0], mapped))
    assert one.numbers == "full"
