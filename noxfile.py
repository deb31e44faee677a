"""One test run per supported JAX line, each on the Python that line is tested with: the ends in full.

`nox` runs them all, `nox -s tests-jax-0.12` one; what follows `--` goes to pytest.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

PYTHON_OF_JAX = {"0.10": "3.11", "0.11": "3.12", "0.12": "3.13"}
#: Runs the slow tests too, reads what is written with the programs it is written for, and compiles as users do:
#: the other lines leave XLA's costly optimisations out, which a quarter of the time goes to.
NEWEST = "0.12"
#: Left out on the line between the ends: what hardly depends on JAX, or asks the same of every line at length.
BETWEEN = {"0.11"}
LEFT_OUT = (
    *(
        "blocked",
        "check",
        "checkpoint",
        "cli",
        "cli_diagnose",
        "compare",
        "devices",
        "draw",
        "explain",
        "exports",
    ),
    *("flow", "formula", "healthy", "origin", "page", "per_example", "plots", "primitives", "quiz"),
    *("random_programs", "residuals", "scene", "writers"),
)


def interpreter(version: str) -> str | None:
    """The first Python `version` on this machine that starts: on the PATH, else pyenv's."""
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
    """Whether `python` starts and is of `version`: a pyenv shim may be there and refuse."""
    ask = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(ask, capture_output=True, text=True).stdout.strip() == version
    except OSError:
        return False


def add_session(line: str, version: str) -> None:
    """The session that tests JAX `line`; without its interpreter it says so and is skipped."""
    python = interpreter(version)

    @nox.session(name=f"tests-jax-{line}", python=python or False)
    def tests(session: nox.Session) -> None:
        if python is None:
            session.skip(f"NOT FOUND: Python {version}, so JAX {line} is NOT tested here")
        extras = "test,readers" if line == NEWEST else "test"
        session.install("-e", f".[{extras}]", f"jax=={line}.*", f"jaxlib=={line}.*")
        session.run("python", "-c", "import jax; print('JAX', jax.__version__)")
        drawn = "1" if line == NEWEST else "0.3"  # how many of the random programs
        # Each worker takes a half in order, so that what a module makes once is made once.
        selection = () if line == NEWEST else ("-m", "not slow")
        if line in BETWEEN:
            selection += tuple(f"--ignore=tests/test_{name}.py" for name in LEFT_OUT)
        session.run(
            "pytest",
            "-n",
            "2",
            "--dist",
            "worksteal",
            *selection,
            *session.posargs,
            env={"JAXPROP_EXAMPLES": drawn, "JAX_DISABLE_MOST_OPTIMIZATIONS": "01"[line != NEWEST]},
        )


for _line, _version in PYTHON_OF_JAX.items():
    add_session(_line, _version)
