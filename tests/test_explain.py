"""Explanations: golden pages byte for byte, numbers against JAX and NumPy, and true words where there are none.

`python tests/test_explain.py` rewrites the golden pages; look at them before you commit them.
"""

import importlib.util
import inspect
import json
import re
from pathlib import Path

import formula_check
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprop as jp
from jaxprop.show import Story, StoryRow

pytestmark = pytest.mark.library  # the lessons broadcast as people write it

GOLDEN = Path(__file__).parent / "golden"


def _load():
    spec = importlib.util.spec_from_file_location("lesson", GOLDEN / "lesson.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lesson = _load()

X = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])
PARAMS = {
    "w1": jnp.array([[1.0, -0.5], [0.25, 2.0], [-1.0, 0.75]]),
    "b1": jnp.array([0.5, -0.25]),
    "w2": jnp.array([2.0, -1.0]),
}
ARGS = {
    "loss": (1.0, 1.0, 2.0),
    "fan_out": (1.5, 2.0),
    "recurrent": (0.5, jnp.array([1.0, -1.0, 0.5])),
    "choice": (2.0, 1.5),
    "hidden_layer": (PARAMS, X, jnp.array([1.0, -1.0])),
}
TO = {"loss": "w", "fan_out": "w", "recurrent": None, "choice": None, "hidden_layer": None}
ENDINGS = {"text": "txt", "markdown": "md", "latex": "tex", "json": "json"}
#: All formats of the worked example; the text of the others.
KEPT = [("loss", form) for form in ENDINGS] + [(name, "text") for name in ARGS if name != "loss"]


def tape_of(name, **settings):
    return jp.backprop(getattr(lesson, name), **settings)(*ARGS[name])


def page(name, form):
    return jp.explain(tape_of(name), to=TO[name]).to(form)


@pytest.mark.parametrize(("name", "form"), KEPT)
def test_golden_pages(name, form):
    kept = (GOLDEN / f"{name}.{ENDINGS[form]}").read_text(encoding="utf-8")
    assert page(name, form) == kept


def test_the_worked_example_reads_like_the_lesson():
    text = str(jp.explain(tape_of("loss"), to="w"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "How loss depends on w"
    for line in (
        "Given w = 1 (differentiated), x = 1, y = 2",
        "1.2 s = y_hat - y = 1 - 2 = -1 lesson.py:9",
        "2.1 dloss/ds = d(s**2)/ds = 2*s = 2*(-1) = -2 lesson.py:10",
        "3.3 dloss/dy_hat = dloss/ds * ds/dy_hat = -2 * 1 = -2 lesson.py:8",
        "dloss/dw = dloss/ds * ds/dy_hat * dy_hat/dw = -2 * 1 * 1 = -2",
    ):
        assert line in lines, f"{line}\nis not in\n{text}"


# --- numbers -----------------------------------------------------------------------------------------------


def rows(tape, **settings):
    data = jp.explain(tape, **settings).data()
    return [row for act in data["acts"] for row in act["rows"]]


@pytest.mark.parametrize("name", ["loss", "fan_out", "choice"])
def test_every_number_is_that_of_the_tape(name):
    tape = tape_of(name)
    found = rows(tape)
    for row in found:
        if row["kind"] == "value":
            np.testing.assert_allclose(row["value"], float(tape[row["name"]].value), rtol=1e-6)
        if row["kind"] in ("cotangent", "seed"):
            np.testing.assert_allclose(row["value"], float(tape[row["name"]].cotangent), rtol=1e-6)
    assert "w" in {row["name"] for row in found if row["kind"] == "cotangent"}
    gradient = jax.grad(getattr(lesson, name))(*ARGS[name])
    last = [row for row in found if row.get("name") == "w"][-1]
    np.testing.assert_allclose(last["value"], float(gradient), rtol=1e-6)


def test_a_local_gradient_counts_its_own_operation_alone():
    """`fan_out` is `c - a`, and `c` is made from `a` too: `d(c - a)/da` is -1, whatever `c` does."""
    found = {row["symbol"]: row["value"] for row in rows(tape_of("fan_out")) if row["kind"] == "local"}
    assert found["d(c - a)/da"] == -1.0
    np.testing.assert_allclose(found["dc/da"], np.sin(3.0), rtol=1e-5)


def test_shares_sum_to_the_cotangent():
    found = rows(tape_of("fan_out"))
    at = next(i for i, row in enumerate(found) if row["kind"] == "cotangent" and row["name"] == "a")
    shares = []
    for row in found[at + 1 :]:
        if row["kind"] != "share":
            break
        shares.append(row["value"])
    assert len(shares) == 3
    np.testing.assert_allclose(sum(shares), found[at]["value"], rtol=1e-5)
    assert not any("cancel" in row.get("note", "") for row in found)  # 93 % of their size remains


@pytest.mark.parametrize("other, remains", [(-1.01, "0.5 %"), (-0.5, "33 %"), (-0.2, None), (3.0, None)])
def test_contributions_that_cancel_are_said_to(other, remains):
    def f(w):
        a = 2.0 * w
        b = jnp.sin(0.0) + a
        return jnp.sum(b + other * a)

    for w in (1.0, jnp.ones(3)):
        notes = [row["note"] for row in rows(jp.backprop(f)(w)) if "cancel" in row.get("note", "")]
        assert notes == ([f"the contributions cancel: {remains} of their size remains"] if remains else [])


def test_contributions_to_different_elements_do_not_cancel():
    def f(w):
        a = 2.0 * w
        first, second, third = a[0], a[1], a[2]
        return first + second + third

    found = rows(jp.backprop(f)(jnp.ones(3)))
    assert sum(row["kind"] == "share" for row in found) == 3
    assert not any("cancel" in row.get("note", "") for row in found)


def test_the_sum_over_paths_is_the_gradient():
    end = jp.explain(tape_of("fan_out"), to="w").data()["end"]
    total, *paths = end
    gradient = float(jax.grad(lesson.fan_out)(*ARGS["fan_out"]))
    np.testing.assert_allclose(total["value"], gradient, rtol=1e-5)
    np.testing.assert_allclose(sum(path["value"] for path in paths), gradient, rtol=1e-5)
    assert [path["symbol"] for path in paths] == [
        "w -> a -> c -> fan_out",
        "w -> a -> b -> c -> fan_out",
        "w -> a -> fan_out",
    ]


# --- statements --------------------------------------------------------------------------------------------


def attention(p, x):
    q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
    scores = q @ k.T / jnp.sqrt(jnp.float32(q.shape[-1]))
    a = jax.nn.softmax(scores)
    out = a @ v
    return jnp.mean(out**2)


def layer_norm(x, g, b):
    mu = jnp.mean(x, -1, keepdims=True)
    var = jnp.mean((x - mu) ** 2, -1, keepdims=True)
    n = (x - mu) / jnp.sqrt(var + 1e-5)
    y = n * g + b
    return jnp.mean(y**2)


def masked(w, x):
    y = jnp.where(x > 0, w * x, 0.0)
    return jnp.sum(y) / jnp.sum(x > 0)


def network(w1, w2, x, y):
    z1 = w1 * x + 0.35
    a1 = jax.nn.sigmoid(z1)
    z2 = w2 * a1
    L = 0.5 * (z2 - y) ** 2
    return L


SQUARE = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5], [0.1, 0.3, -0.2]])
STATEMENTS = {
    "attention": (attention, ({"q": SQUARE, "k": SQUARE[::-1], "v": SQUARE.T}, SQUARE * 0.3)),
    "layer_norm": (layer_norm, (SQUARE, 2.0, jnp.ones(3))),
    "masked": (masked, (jnp.ones(3), jnp.array([1.0, -1.0, 2.0]))),
    "network": (network, (0.15, -1.0, 0.05, 0.99)),
    "hidden_layer": (lesson.hidden_layer, ARGS["hidden_layer"]),
}


@pytest.mark.parametrize("case", STATEMENTS)
def test_every_formula_of_a_statement_holds(case):
    """Read back as Python, on the values and cotangents of the tape."""
    fun, args = STATEMENTS[case]
    tape = jp.backprop(fun)(*args)
    names = dict(zip(inspect.signature(fun).parameters, args, strict=True))
    own = [entry for entry in tape if entry.name.isidentifier() and entry.name != entry.node.primitive]
    names |= {entry.name: entry.value for entry in own} | {f"d{entry.name}": entry.cotangent for entry in own}
    consumed = [row["name"] for row in rows(tape) if row["kind"] == "share"]
    checked = 0
    for row in rows(tape):
        if row["kind"] == "value":
            expected = tape[row["name"]].value
        elif row["kind"] == "local" and "/" not in row["symbol"] and not consumed:
            expected = tape[row["symbol"][1:]].cotangent
        else:
            continue
        found = eval(row["formulas"][0], {"__builtins__": {}}, formula_check.NAMESPACE | names)
        np.testing.assert_allclose(np.broadcast_to(found, np.shape(expected)), expected, rtol=2e-4, atol=1e-6)
        checked += 1
    assert checked >= 2


@pytest.mark.parametrize("case", [*STATEMENTS, *ARGS])
def test_every_name_is_defined_before_it_is_used(case):
    fun, args = STATEMENTS.get(case) or (getattr(lesson, case), ARGS[case])
    told = jp.explain(jp.backprop(fun)(*args))
    names = {value.name for node in jp.backprop(fun)(*args).graph.walk() for value in node.outputs}
    defined = {row.symbol.text.strip("{}") for row in told.story.given}
    for row in told.story.acts[0].rows:
        formulas = " ".join(f.text for f in row.formulas if not f.latex.startswith(r"\text"))
        used = set(re.findall(r"[A-Za-z_][\w/]*(?:\['\w+'\])?(?:#\d+)?(?![\w(])", formulas))
        assert used & names <= defined, (row.symbol.text, used & names - defined)
        defined.add(row.symbol.text.strip("{}"))


def test_every_operation_is_one_argument_away():
    fun, args = STATEMENTS["network"]
    tape = jp.backprop(fun)(*args)
    assert [row["name"] for row in rows(tape) if row["kind"] == "value"] == ["z1", "a1", "z2", "L"]
    every = [row["name"] for row in rows(tape, operations=True) if row["kind"] == "value"]
    assert every == [entry.name for entry in tape if entry.node.eqn is not None]
    assert rows(tape)[-1]["value"] == rows(tape, operations=True)[-1]["value"]


def test_a_negative_number_alone_is_said_once():
    fun, args = STATEMENTS["network"]
    found = {row["symbol"]: row for row in rows(jp.backprop(fun)(*args)) if row["kind"] == "local"}
    assert found["dz2/da1"]["formulas"] == ["d(w2*a1)/da1", "w2"]
    assert found["dz2/da1"]["text"] == "-1"
    assert found["dL/dz2"]["formulas"][1] == "z2 - y"
    assert found["da1/dz1"]["formulas"][1] == "a1*(1 - a1)"


def test_contributions_of_a_statement_are_added_up():
    def f(w):
        a = jnp.sin(w)
        b = a * a + jnp.exp(a)
        return b * a

    found = rows(jp.backprop(f)(0.7))
    shares = {row["symbol"]: row["value"] for row in found if row["kind"] == "share"}
    a = np.sin(0.7)
    np.testing.assert_allclose(shares["through b"], a * (2 * a + np.exp(a)), rtol=1e-5)
    np.testing.assert_allclose(shares["through f"], a * a + np.exp(a), rtol=1e-5)
    np.testing.assert_allclose(found[-1]["value"], jax.grad(f)(0.7), rtol=1e-5)


def test_what_is_not_finite_is_shown_operation_by_operation():
    def f(x):
        y = jax.nn.relu(jnp.log(x))
        return jnp.sum(y)

    assert "log" not in {row["name"] for row in rows(jp.backprop(f)(jnp.array([0.5, 2.0])))}
    assert "log" in {row["name"] for row in rows(jp.backprop(f)(jnp.array([0.0, 2.0])))}


# --- parts -------------------------------------------------------------------------------------------------


def test_only_the_way_to_one_value():
    names = {row["name"] for row in rows(tape_of("loss"), to="y_hat") if row["kind"] in ("value", "cotangent")}
    assert names == {"s", "loss", "y_hat"}
    assert jp.explain(tape_of("loss"), to="s").data()["title"] == "How loss depends on s"


def test_one_path():
    told = jp.explain(tape_of("fan_out"), path=["w", "a", "fan_out"])
    (end,) = told.data()["end"]
    assert end["formulas"] == ["dfan_out/da * da/dw", "-1 * 2"]
    assert end["value"] == -2.0
    backwards = jp.explain(tape_of("fan_out"), path=["fan_out", "a", "w"])
    assert str(backwards) == str(told)


def test_a_path_through_arrays():
    tape = tape_of("hidden_layer")
    told = str(jp.explain(tape, path=["params['w1']", "z", "h", "hidden_layer"]))
    norm = np.linalg.norm(jax.grad(lesson.hidden_layer)(*ARGS["hidden_layer"])["w1"])
    comes, whole = map(float, re.search(r"norm (\S+) along this path, (\S+) along all paths", told).groups())
    np.testing.assert_allclose([comes, whole], norm, rtol=1e-4)


def test_step_by_step():
    told = list(jp.explain(tape_of("loss"), to="w").steps())
    assert len(told) == 3 + 3 + 4 + 1
    assert told[0].startswith("1. Forward pass")
    assert [text.split()[0] for text in told[3:5]] == ["2.", "2.2"]
    assert "dloss/dw" in told[-1]


def test_a_page_for_notebooks():
    told = jp.explain(tape_of("loss"))
    assert told._repr_markdown_() == told.to("markdown")
    assert repr(told) == str(told)
    assert str(jp.explain(tape_of("loss"), format="latex")).startswith(r"\subsection*{How loss is computed}")


def test_json_is_plain_data():
    told = jp.explain(tape_of("hidden_layer"), format="json")
    data = json.loads(str(told))
    assert data == json.loads(json.dumps(told.data()))
    h = next(row for act in data["acts"] for row in act["rows"] if row["name"] == "h")
    assert h["value"]["shape"] == [2, 2]
    np.testing.assert_allclose(
        h["value"]["norm"], np.linalg.norm(np.tanh(X @ PARAMS["w1"] + PARAMS["b1"])), rtol=1e-5
    )


# --- loops, choices, other tapes ---------------------------------------------------------------------------


def test_a_loop_says_its_steps():
    text = str(jp.explain(tape_of("recurrent")))
    assert "a loop of 3 steps" in text
    tape = tape_of("recurrent")
    h = ", ".join(f"{float(v):.4g}" for v in tape["h"].value)
    assert f"per step [{h}]" in text
    assert "the cotangent of the next step's carry" in text


def test_only_the_branch_taken_is_told():
    text = str(jp.explain(tape_of("choice")))
    assert "branch 1, taken" in text and "branch 0, not taken" in text
    assert "3*z" in text and "-z" not in text.replace("- z", "")


def test_statistics_only():
    text = str(jp.explain(tape_of("fan_out", record=jp.summary)))
    assert "their contributions are unknown: only statistics were recorded" in text
    assert "norm 3, mean 3, 3 to 3" in text


def test_a_rule_is_named():
    tape = tape_of("loss", rules=[("s", jp.rules.scale(0.5))])
    text = str(jp.explain(tape))
    assert "replaced by a rule" in text
    assert "from the rule given for s" in text
    assert "dloss/ds * ds/dy_hat * dy_hat/dw" not in text  # the chain rule does not hold there


def test_a_part_of_the_nodes():
    tape = tape_of("loss", nodes="s")
    text = str(jp.explain(tape))
    assert "s      = y_hat - y" in text or "s  = y_hat - y" in text


def test_a_tape_out_of_jit_and_one_inside():
    seen = []

    @jax.jit
    def inside(*args):
        tape = jp.backprop(lesson.loss)(*args)
        seen.append(str(jp.explain(tape)))
        return tape

    tape = inside(*map(jnp.asarray, ARGS["loss"]))
    assert "(traced)" in seen[0]
    assert "-2 * 1 * 1 = -2" in str(jp.explain(tape))


def test_checkpoint_custom_rules_and_what_is_not_finite():
    @jax.checkpoint
    def inner(x):
        return jax.nn.relu(jnp.log(x))

    def f(x):
        y = inner(x)
        return jnp.sum(y)

    text = str(jp.explain(jp.backprop(f)(jnp.array([0.0, 2.0]))))
    assert "recomputed in the backward pass to save memory" in text
    assert "d relu(" in text and "-inf" in text


def test_long_programs_are_folded():
    def deep(w, x):
        for _ in range(40):
            z = x @ w
            z = z + 1.0
            x = jnp.tanh(z)
        return jnp.sum(x)

    tape = jp.backprop(deep)(jnp.eye(3), jnp.ones(3))
    text = str(jp.explain(tape))
    assert "121 values" in text and len(text.splitlines()) < 200
    assert len(str(jp.explain(tape, max_rows=1000)).splitlines()) > 300
    few = str(jp.explain(tape, max_rows=4))
    assert len(few.splitlines()) < 60


def test_integers_keys_and_empty_arrays():
    def f(x, key, n):
        one = jax.random.split(key)[0]
        noise = jax.random.normal(one, x.shape)
        rest = x[:0]
        return jnp.sum(x * noise) * n.astype(jnp.float32) + jnp.sum(rest)

    args = jnp.ones(3), jax.random.key(0), jnp.asarray(2)
    text = str(jp.explain(jp.backprop(f, nodes="*")(*args)))
    assert "= key" in text and "empty" in text


def test_complex_numbers():
    tape = jp.backprop(lambda z: jnp.abs(z) ** 2)(jnp.asarray(1.0 + 2.0j))
    assert "1+2j" in str(jp.explain(tape))


def test_markup_in_names_stays_text():
    def f(p):
        return p["<b>_x*"] ** 2

    told = jp.explain(jp.backprop(f)({"<b>_x*": 2.0}))
    for form in ENDINGS:
        assert told.to(form)


# --- renderers -------------------------------------------------------------------------------------------


def test_a_renderer_is_passed():
    def titles(story: Story) -> str:
        return "\n".join([story.title, *(act.title for act in story.acts)])

    told = jp.explain(tape_of("loss"), to="w", format=titles)
    assert str(told) == told.to(titles) == titles(told.story)
    assert told.to(titles).splitlines()[0] == "How loss depends on w"
    assert all(isinstance(row, StoryRow) for act in told.story.acts for row in act.rows)


def test_a_wrong_renderer_is_refused():
    told = jp.explain(tape_of("loss"))
    with pytest.raises(TypeError, match=r"the renderer `as_number` returned int, expected a string\."):
        told.to(as_number)
    with pytest.raises(
        TypeError,
        match=r"`format` must be the name of a format, or a function of a `jaxprop\.show\.Story` that returns "
        r"a string; got int\.",
    ):
        told.to(3)


def as_number(story):
    return 3


# --- errors ------------------------------------------------------------------------------------------------


def test_errors():
    tape = tape_of("loss")
    with pytest.raises(KeyError, match=r"the tape has no value named 'y_hta'\. Nearest names: y_hat\."):
        jp.explain(tape, to="y_hta")
    with pytest.raises(
        ValueError,
        match=r"no cotangent reaches 'x': loss was differentiated with respect to w\. "
        r"Include it in `argnums=` of `backprop`\.",
    ):
        jp.explain(tape, to="x")
    with pytest.raises(
        ValueError,
        match=r"unknown format 'html'; available: text, markdown, latex, json, "
        r"or a function of a `jaxprop\.show\.Story`\.",
    ):
        jp.explain(tape, format="html")
    with pytest.raises(ValueError, match=r"`path` must hold at least two names, such as path="):
        jp.explain(tape, path=["w"])
    with pytest.raises(KeyError, match=r"`path` holds 'v', which is not in the graph\."):
        jp.explain(tape, path=["w", "v"])
    with pytest.raises(ValueError, match=r"'y' does not depend on 'w': there is no local gradient"):
        jp.explain(tape, path=["y", "w"])
    with pytest.raises(
        TypeError, match=r"`explain` takes a tape, `jaxprop\.backprop\(f\)\(\*args\)`; got Graph\."
    ):
        jp.explain(tape.graph)


if __name__ == "__main__":
    for name, form in KEPT:
        (GOLDEN / f"{name}.{ENDINGS[form]}").write_text(page(name, form), encoding="utf-8")
