"""One test run for each supported JAX line, each on the Python it is tested with.

`nox` runs them all, `nox -s tests-jax-0.12` one; arguments after `--` are passed to pytest.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

PYTHON_OF_JAX = {"0.10": "3.11", "0.11": "3.12", "0.12": "3.13"}
#: Runs every example, opens exported files with the programs they are for, and compiles with all of XLA's
#: optimizations, as users do.
NEWEST = "0.12"
OLDEST = "0.10"
#: Left out on the older lines: what hardly depends on JAX.
LEFT_OUT = ("cli", "cli_diagnose", "draw", "exports", "page", "plots", "quiz", "scene", "writers")
#: Left out on the line between: what takes long and is the same on every line.
LEFT_OUT_BETWEEN = (
    *("blocked", "check", "checkpoint", "compare", "devices", "explain", "flow", "formula", "healthy"),
    *("model_arguments", "origin", "per_example", "primitives", "random_programs", "records", "residuals"),
)


def interpreter(version: str) -> str | None:
    """The first Python `version` on this machine that starts: on the PATH, else one of pyenv."""
    wanted = f"python{version}"
    places = [Path(place) for place in os.get_exec_path()]
    pyenv = shutil.which("pyenv")
    root = subprocess.run([pyenv, "root"], capture_output=True, text=True) if pyenv else None
    roots = [Path(root.stdout.strip())] if root and root.stdout.strip() else []
    for each in [*roots, Path.home() / ".pyenv"]:
        places += sorted(each.glob(f"versions/{version}*/bin"), reverse=True)
    for place in places:
        if _is(str(place / wanted), version):
            return str(place / wanted)
    return None


def _is(python: str, version: str) -> bool:
    """Whether `python` starts and has this version: a pyenv shim may exist and refuse to start."""
    ask = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip() == version
    except OSError:
        return False


def selection(line: str) -> list[str]:
    """The options that select the tests of a JAX line."""
    if line == NEWEST:
        return ["-m", "not slow or example or outside"]
    left_out = LEFT_OUT if line == OLDEST else LEFT_OUT + LEFT_OUT_BETWEEN
    return [f"--ignore=tests/test_{name}.py" for name in left_out]


def add_session(line: str, version: str) -> None:
    """Add the session that tests a JAX line; if its interpreter is missing, it says so and is skipped."""
    python = interpreter(version)

    @nox.session(name=f"tests-jax-{line}", python=python or False)
    def tests(session: nox.Session) -> None:
        if python is None:
            session.skip(f"NOT FOUND: Python {version}, so JAX {line} is NOT tested here")
        extras = "test,readers" if line == NEWEST else "test"
        session.install("-e", f".[{extras}]", f"jax=={line}.*", f"jaxlib=={line}.*")
        session.run("python", "-c", "import jax; print('JAX', jax.__version__)")
        environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "JAXPROP_EXAMPLES": "1"} if line == NEWEST else {}
        session.run("pytest", "-n", "2", *selection(line), *session.posargs, env=environment)


for _line, _version in PYTHON_OF_JAX.items():
    add_session(_line, _version)
