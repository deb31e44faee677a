"""Every example runs in its own process and checks itself."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = [*sorted(FOLDER.glob("*.py")), *sorted((FOLDER / "lessons").glob("*.py"))]


def test_there_are_examples():
    assert EXAMPLES


#: CI runs the others on the oldest and on the newest JAX line.
QUICK = {"worked", "double_where"}


@pytest.mark.example
@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem in QUICK else pytest.mark.slow) for path in EXAMPLES],
    ids=lambda path: path.stem,
)
def test_example(path, tmp_path):
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{path.name}:\n{done.stdout}\n{done.stderr}"
