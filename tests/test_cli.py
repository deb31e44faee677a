"""The command line, called as users call it."""

import errno
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprop as jp
from jaxprop.cli import main
from jaxprop.cli.command import terminal

ROOT = Path(__file__).parents[1]
WORKED = str(ROOT / "examples" / "worked.py")
GOLDEN = Path(__file__).parent / "golden"

MODEL = """
import jax.numpy as jnp

print("loaded")


class Model:
    @staticmethod
    def loss(w):
        return w**2


def mean(w, x):
    y = x @ w
    return jnp.mean(y**2)


def pair(params, *, scale=1.0):
    return scale * params["a"] * params["b"][0]


def make():
    return {"w": jnp.ones(3), "x": jnp.ones((2, 3))}


def fails(w):
    raise RuntimeError("not today")


threshold = 3.0
if __name__ == "__main__":
    raise SystemExit("never run")
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model_of_test.py"
    path.write_text(MODEL)
    yield str(path)
    sys.modules.pop("model_of_test", None)


@pytest.fixture(autouse=True)
def same_path():
    """Restore the import path after each test."""
    before = list(sys.path)
    yield
    sys.path[:] = before


def run(capsys, *argv):
    code = main([str(arg) for arg in argv])
    out, err = capsys.readouterr()
    return code, out, err


# --- what commands do --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "ending"), [("text", "txt"), ("markdown", "md"), ("latex", "tex"), ("json", "json")]
)
def test_explain_in_every_format(capsys, form, ending):
    target = f"{GOLDEN / 'lesson.py'}:loss"
    code, out, err = run(capsys, "explain", target, "w=1.", "x=1.", "y=2.", "--to", "w", "--format", form)
    assert (code, err) == (0, "")
    assert out == (GOLDEN / f"loss.{ending}").read_text(encoding="utf-8")


def test_the_worked_example_with_arguments_in_order(capsys):
    code, out, _ = run(capsys, "explain", f"{WORKED}:loss", "1.", "1.", "2.", "--path", "w,y_hat,s,loss")
    assert code == 0
    assert "dloss/ds * ds/dy_hat * dy_hat/dw  = -2 * 1 * 1 = -2" in out


def test_output_to_a_file_whose_ending_says_the_format(capsys, tmp_path):
    file = tmp_path / "chain.md"
    code, out, err = run(capsys, "explain", f"{WORKED}:loss", "w=1", "x=1.", "y=2.", "-o", file)
    assert (code, out, err) == (0, "", f"wrote {file}\n")
    assert file.read_text().startswith("## How loss is computed")


def test_steps_without_a_terminal_do_not_wait(capsys):
    code, out, _ = run(capsys, "explain", f"{WORKED}:loss", "1.", "1.", "2.", "--step")
    assert code == 0 and "3.4  dloss/dw" in out


def test_draw(capsys, tmp_path):
    code, out, _ = run(capsys, "draw", f"{WORKED}:loss", "1.", "1.", "2.")
    assert code == 0 and out.startswith("flowchart TD")
    file = tmp_path / "worked.dot"
    code, out, err = run(capsys, "draw", f"{WORKED}:loss", "w=f32[]", "x=1.", "y=2.", "--graph", "-o", file)
    assert (code, out, err) == (0, "", f"wrote {file}\n")
    assert file.read_text().startswith("digraph")
    code, _, err = run(capsys, "draw", f"{WORKED}:loss", "1.", "1.", "2.", "-o", tmp_path / "worked.png")
    assert code == 2 and "unsupported file extension; supported: .svg, .html," in err


def test_trace_from_types_alone(capsys, model):
    code, out, _ = run(capsys, "trace", f"{model}:mean", "w=f32[3]", "x=f32[2,3]")
    assert code == 0 and "y" in out.split() and "dot_general" not in out
    code, out, _ = run(capsys, "trace", f"{model}:mean", "w=f32[3]", "x=f32[2,3]", "--operations")
    assert code == 0 and "dot_general(x, w)" in out
    code, out, _ = run(capsys, "trace", f"{model}:mean", "w=f32[3]", "x=f32[2,3]", "--format", "json")
    assert json.loads(out)["returns"] == ["mean"]


def test_quiz(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n-1\n1\n-2\n1\n1\n-2\n-2\n"))
    code, out, _ = run(capsys, "quiz", f"{WORKED}:loss", "1.", "1.", "2.")
    assert code == 0 and out.endswith("8 of 8 right on the first try.\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("h\n7\n7\ns\nq\n"))
    code, out, _ = run(capsys, "quiz", f"{WORKED}:loss", "1.", "1.", "2.")
    assert code == 1 and "Not 7." in out and out.endswith("0 of 8 right on the first try.\n")


def test_no_command_prints_help(capsys):
    code, out, _ = run(capsys)
    assert code == 2 and "explain" in out and "exit codes" in out


@pytest.mark.parametrize("command", ["explain", "draw", "trace", "quiz", "demo"])
def test_help_has_examples(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"examples:\n  jaxprop {command}" in capsys.readouterr().out


# --- arguments ---------------------------------------------------------------------------------------------


def gradient(capsys, *argv):
    code, out, err = run(capsys, "explain", *argv, "--format", "json")
    assert code == 0, err
    rows = [row for act in json.loads(out)["acts"] for row in act["rows"]]
    return {row["name"]: row["value"] for row in rows if row["kind"] in ("cotangent", "seed")}


def test_lists_files_and_functions_as_arguments(capsys, model, tmp_path):
    np.save(tmp_path / "w.npy", np.ones(3, np.float32))
    np.savez(tmp_path / "data.npz", x=np.ones((2, 3), np.float32))
    expected = np.asarray(
        jax.grad(lambda w: ((np.ones((2, 3), np.float32) @ w) ** 2).mean())(np.ones(3, np.float32))
    )
    calls = (
        ("w=[1., 1., 1.]", "x=[[1., 1., 1.], [1., 1., 1.]]"),
        (f"w={tmp_path / 'w.npy'}", f"x={tmp_path / 'data.npz'}:x"),
        ("--args", "make"),
        ("--args", f"{model}:make", "w=[1, 1, 1.]"),
    )
    for call in calls:
        found = gradient(capsys, f"{model}:mean", *call)
        np.testing.assert_allclose(found["w"]["first"], expected, rtol=1e-6)


def test_pytrees_keywords_and_wrt(capsys, model):
    found = gradient(capsys, f"{model}:pair", "params={'a': 2., 'b': (3.,)}", "scale=5.")
    assert found["params['a']"] == 15.0 and found["params['b'][0]"] == 10.0
    found = gradient(capsys, f"{WORKED}:loss", "w=1.", "--wrt", "x,y", "x=3.", "y=2")
    assert (found["x"], found["y"]) == (2.0, -2.0) and "w" not in found


def test_a_method_a_module_and_double_precision(capsys, model):
    assert gradient(capsys, f"{model}:Model.loss", "3.") == {"loss": 1.0, "w": 6.0}
    code, out, _ = run(capsys, "trace", f"{model}:Model.loss", "3.", "--x64")
    assert code == 0 and "f64[]" in out
    assert not jax.config.jax_enable_x64
    code, out, _ = run(capsys, "trace", "jax.numpy:tanh", "0.5")
    assert code == 0 and "tanh" in out


def test_what_a_file_prints_is_not_the_result(capsys, model):
    _, out, err = run(capsys, "trace", f"{model}:Model.loss", "3.")
    assert "loaded" not in out + err
    sys.modules.pop("model_of_test")
    _, out, err = run(capsys, "trace", f"{model}:Model.loss", "3.", "--debug")
    assert "loaded" not in out and "loaded" in err


# --- errors: one line, and what to do ------------------------------------------------------------------------

WRONG = {
    "no such file": (["explain", "{folder}/modle.py:mean"], "there is no file {folder}/modle.py."),
    "no such function": (
        ["explain", "{model}:mena"],
        "there is no 'mena' in {model}. Nearest functions: mean, make.",
    ),
    "no function named": (
        ["explain", "{model}"],
        "a target is FILE.py:FUNCTION, got '{model}'. Available functions: Model, mean, pair, make, fails.",
    ),
    "not a function": (
        ["explain", "{model}:threshold"],
        "'threshold' in {model} is not a function, but a float.",
    ),
    "no such module": (
        ["explain", "nowhere:f"],
        "there is no module 'nowhere'; the name of a file ends in .py.",
    ),
    "a missing argument": (
        ["explain", "{model}:mean", "w=[1.]"],
        "mean(w, x) cannot be called with these arguments: missing a required argument: 'x'. Pass x=....",
    ),
    "no such argument": (
        ["explain", "{model}:mean", "v=1."],
        "mean(w, x) has no argument 'v'. Available arguments: w, x.",
    ),
    "an argument twice": (["explain", "{model}:mean", "w=1.", "w=2."], "the argument 'w' is given twice."),
    "in order after by name": (
        ["explain", "{model}:mean", "w=1.", "2."],
        "the positional argument '2.' follows an argument by name: write NAME=2.",
    ),
    "no value": (
        ["explain", "{model}:mean", "w=one", "x=1."],
        "w=one is not a value: write a number, a list, a dict, a .npy or .npz file. Put text in quotes: w='\"one\"'.",
    ),
    "rows of different lengths": (
        ["explain", "{model}:mean", "w=[[1.], [1., 2.]]", "x=1."],
        "w is not an array: its rows have different lengths.",
    ),
    "words in a list": (
        ["explain", "{model}:mean", "w=['a']", "x=1."],
        "w is not an array of numbers: it holds text.",
    ),
    "a type where numbers are needed": (
        ["explain", "{model}:mean", "w=f32[3]", "x=f32[2,3]"],
        "w=f32[3] is a type, but this command needs numbers. `jaxprop trace` accepts types.",
    ),
    "no such type": (["trace", "{model}:mean", "w=f8[3]", "x=f32[2,3]"], "w=f8[3]: there is no type float8."),
    "no such array file": (["explain", "{model}:mean", "w=w.npy", "x=1."], "w: there is no file w.npy."),
    "no such argument to differentiate": (
        ["explain", "{model}:mean", "w=1.", "x=1.", "--wrt", "z"],
        "--wrt: there is no argument 'z' to differentiate. Available arguments: w, x.",
    ),
    "shapes that do not fit": (
        ["explain", "{model}:mean", "w=[1., 2.]", "x=[[1., 2., 3.]]"],
        "TypeError: dot_general requires contracting dimensions to have the same shape",
    ),
    "a function that fails": (["explain", "{model}:fails", "1."], "RuntimeError: not today [{model}:"),
    "a name that is not there": (
        ["explain", "{model}:mean", "--args", "make", "--to", "yy"],
        "the tape has no value named 'yy'.",
    ),
    "a file that cannot be written": (
        ["explain", "{model}:Model.loss", "1.", "-o", "{folder}/none/x.txt"],
        "cannot write {folder}/none/x.txt: No such file or directory.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_one_clear_line(case, capsys, model):
    argv, said = WRONG[case]
    names = {"model": model, "folder": str(Path(model).parent)}
    code, out, err = run(
        capsys, *(arg.replace("{model}", model).replace("{folder}", names["folder"]) for arg in argv)
    )
    assert (code, out) == (2, "")
    assert err.startswith("jaxprop: " + said.replace("{model}", model).replace("{folder}", names["folder"])), (
        err
    )
    assert err.count("\n") == 1, err


def test_broken_files(capsys, tmp_path):
    for text, said in {
        "def f(:": "has a syntax error at line 1: ",
        "x = 1\n1 / 0\n": "cannot be imported: ZeroDivisionError: division by zero [line 2]",
        "raise SystemExit(3)\n": "exits the process (exit code 3).",
    }.items():
        file = tmp_path / "broken_of_test.py"
        file.write_text(text)
        code, _, err = run(capsys, "explain", f"{file}:f", "1.")
        assert code == 2 and said in err and err.count("\n") == 1, err


def test_debug_shows_the_traceback(capsys, model):
    code, _, err = run(capsys, "explain", f"{model}:fails", "1.", "--debug")
    assert code == 2 and "Traceback" in err and "not today" in err


def test_unknown_options_are_usage_errors(capsys):
    for argv in (["explain", f"{WORKED}:loss", "--loud"], ["nothing"], ["demo", "more"]):
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert caught.value.code == 2
        capsys.readouterr()


# --- terminals ---------------------------------------------------------------------------------------------


def test_colours_only_where_wanted(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout", Terminal())
    assert terminal().paint("no", "red") == "\x1b[31mno\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal().paint("no", "red") == "no"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert terminal().paint("no", "red") == "no"


@pytest.mark.slow
@pytest.mark.outside
def test_steps_wait_on_a_real_terminal():
    ours, theirs = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "JAX_PLATFORMS": "cpu"}
    argv = [sys.executable, "-m", "jaxprop", "explain", f"{WORKED}:loss", "1.", "1.", "2.", "--step"]
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=env, close_fds=True)
    os.close(theirs)
    os.write(ours, b"\nq\n")
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=120) == 0
    assert b"1.2" in seen and b"2.1" not in seen
    assert b"\x1b[" in seen


@pytest.mark.slow
@pytest.mark.outside
def test_as_a_process_whose_reader_goes_away():
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m jaxprop explain {WORKED}:loss 1. 1. 2. | head -n 1"
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("How loss is computed\n", "")


class ClosedPipe(io.StringIO):
    """An output that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize(
    "command", ["explain", "draw", "trace", "quiz", "diagnose", "check", "residuals", "demo"]
)
def test_a_closed_pipe_is_not_an_error(command, monkeypatch, capsys):
    """Nothing is printed about it, and the exit code is that of a process ended by SIGPIPE."""
    argv = [command] if command == "demo" else [command, f"{WORKED}:loss", "1.", "1.", "2."]
    monkeypatch.setattr("sys.stdout", ClosedPipe())
    assert main(argv) == 141
    assert capsys.readouterr().err == ""


def test_the_registry_is_what_the_help_lists(capsys):
    from jaxprop.cli.main import COMMANDS

    assert [command.name for command in COMMANDS][:1] == ["explain"]
    assert all(command.examples.strip().startswith("jaxprop ") for command in COMMANDS)
    assert jp.explain is not None


@pytest.mark.slow
@pytest.mark.outside
@pytest.mark.library
def test_the_demo_keeps_its_word(capsys):
    """The worked example, the gradient of every layer, over 95 % on digits held out, and what to try next."""
    code, out, err = run(capsys, "demo")
    assert code == 0
    assert "their product, the gradient of w: -2" in out and "w = 1 -> 1.02" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("h1 ", "h2 ", "logits "))]
    assert [row[0] for row in rows] == ["h1", "h2", "logits"] and all(len(row) == 13 for row in rows)
    assert float(out.partition("test accuracy ")[2].partition("%")[0]) > 95
    assert "What to try next" in out and "step 1/700" in err
