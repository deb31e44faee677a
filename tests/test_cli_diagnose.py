"""The commands that report on a gradient: what they print, and what they exit with."""

import json
import textwrap

import pytest

from jaxprop.cli import main

PROGRAM = """
import jax
import jax.numpy as jnp


@jax.custom_vjp
def square(x):
    return x**2


square.defvjp(lambda x: (x**2, x), lambda x, ct: (ct * x,))


def healthy(w, x):
    h = jnp.sin(w * x)
    return jnp.sum(h**2)


def wrong(w, x):
    y = square(w * x)
    return jnp.sum(y)


def trap(w, x):
    return jnp.sum(jnp.where(w > 0, jnp.sqrt(w), 0.0) * x)


def small(w, x):
    h = w * x * 1e-3
    return jnp.mean(h**2)
"""


@pytest.fixture
def run(tmp_path, capsys, request):
    file = tmp_path / f"program_{request.node.callspec.id if hasattr(request.node, 'callspec') else 'x'}.py"
    file = tmp_path / "program_for_the_cli.py"
    file.write_text(textwrap.dedent(PROGRAM))

    def call(command, function, *options):
        code = main([command, f"{file}:{function}", "w=[0.5,1.0]", "x=[2.0,3.0]", *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


pytestmark = pytest.mark.library


def test_check_of_a_healthy_function(run):
    code, out, _ = run("check", "healthy")
    assert code == 0
    assert out.startswith("check healthy: nothing found")


def test_check_of_a_wrong_rule(run):
    code, out, _ = run("check", "wrong", "--no-total")
    assert code == 1
    assert "it is 0.5 times the derivative" in out and "program_for_the_cli.py:20" in out
    code, out, _ = run("check", "wrong", "--expected", "y")
    assert code == 0 and "1 rule excluded by `expected=`." in out


def test_check_as_json(run):
    code, out, _ = run("check", "wrong", "--json", "--no-total")
    data = json.loads(out)
    assert code == 1 and [finding["cause"] for finding in data["findings"]] == ["factor"]


def test_diagnose(run, tmp_path):
    assert run("diagnose", "healthy")[0] == 0
    code, out, _ = run("diagnose", "trap", "w=[0.0,1.0]")
    assert code == 2  # the argument is given twice
    file = tmp_path / "program_for_the_cli.py"
    code = main(
        ["diagnose", f"{file}:trap", "w=[0.0,1.0]", "x=[2.0,3.0]", "--json", "-o", str(tmp_path / "out.json")]
    )
    data = json.loads((tmp_path / "out.json").read_text())
    assert code == 1 and data["findings"][0]["primitive"] == "sqrt"


def test_precision(run):
    code, out, _ = run("precision", "healthy")
    assert code == 0 and out.startswith("precision healthy, bfloat16 against float32: nothing found")
    code, out, _ = run("precision", "small", "--dtype", "float16", "--json")
    assert code in (0, 1) and json.loads(out)["title"] == "precision small, float16 against float32"


def test_residuals(run):
    code, out, _ = run("residuals", "healthy", "--no-compile")
    assert code == 0 and out.startswith("residuals healthy: ")
    code, out, err = run("residuals", "healthy", "--no-compile", "--max-bytes", "1KiB")
    assert (code, err) == (0, "")
    code, out, err = run("residuals", "healthy", "--max-bytes", "4")
    assert code == 1 and "more than --max-bytes=4" in err and "Temporary memory" in out
    code, out, err = run("residuals", "healthy", "--max-bytes", "many")
    assert code == 2
    assert "--max-bytes requires a number of bytes, such as 65536, 64KiB or 1.5GiB; got 'many'." in err
