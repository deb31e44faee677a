"""Every Python block of the README and of the docs runs, in order, and prints the output shown below it."""

import contextlib
import doctest
import importlib.util
import io
import re
import runpy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The lessons are run as scripts, see `test_examples`.
WITH_CODE = [
    page for page in PAGES if page.parent.name != "lessons" and "```py" in page.read_text(encoding="utf-8")
]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One Python block: its text, its first line's number, and what must be printed, if stated."""

    code: str
    line: int
    expected: str | None


def blocks(markdown: str) -> list[Block]:
    """The Python blocks; the `text` block that follows one directly is what it prints."""
    fences = list(FENCE.finditer(markdown))
    found = []
    for fence, after in zip(fences, [*fences, None][1:], strict=True):
        if fence[1] not in ("python", "py"):
            continue
        told = after and after[1] == "text" and not markdown[fence.end() : after.start()].strip()
        line = markdown.count("\n", 0, fence.start(2)) + 1
        found.append(Block(fence[2], line, after[2] if told else None))
    return found


def run(markdown: str, folder: Path) -> int:
    """Run the blocks in one namespace; returns how many had their output compared.

    Each is written to a file of its own, at the page's line numbers: variable names are read from the source,
    and an error shows the page's line.
    """
    namespace, compared = {"__name__": "page"}, 0
    for block in blocks(markdown):
        file, text = folder / f"page_{block.line}.py", "\n" * (block.line - 1) + block.code
        file.write_text(text)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, str(file), "exec"), namespace)
        if block.expected is not None:
            compare(out.getvalue(), block.expected, block.line)
            compared += 1
    return compared


def compare(got: str, expected: str, line: int) -> None:
    """The two texts are equal, up to spaces at line ends; `...` matches anything."""
    got, expected = (
        "\n".join(part.rstrip() for part in text.strip("\n").splitlines()) + "\n" for text in (got, expected)
    )
    if not doctest.OutputChecker().check_output(expected, got, doctest.ELLIPSIS):
        raise AssertionError(f"the block at line {line} printed\n\n{got}\nbut the page says\n\n{expected}")


#: Pages whose programs take more than ten seconds to compile.
LONG = ("train", "models-with-state")
#: Pages about a library, and its package.
NEEDS = {
    "watch-linen": "flax",
    "watch-nnx": "flax",
    "watch-equinox": "equinox",
    "watch-haiku": "haiku",
    "watch-keras": "keras",
}


@pytest.mark.library
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow) if page.stem in LONG else page for page in WITH_CODE],
    ids=lambda page: page.stem,
)
def test_page(page, tmp_path, monkeypatch):
    if (package := NEEDS.get(page.stem)) and importlib.util.find_spec(package) is None:
        pytest.skip(f"NOT CHECKED: {package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with np.printoptions():  # a page may set its own
        run(page.read_text(encoding="utf-8"), tmp_path)


@pytest.mark.library
def test_the_picture_is_what_the_code_draws():
    pytest.importorskip("py_mini_racer", reason="static pictures need mini-racer")
    drawn = runpy.run_path(str(ROOT / "docs" / "picture.py"))
    assert drawn["picture"]() == drawn["PICTURE"].read_text(encoding="utf-8"), "run: python docs/picture.py"


@pytest.mark.parametrize("page", ["README", "tutorial", "from-nothing", "write-a-rule", "write-a-recorder"])
def test_output_is_stated(page):
    (path,) = (path for path in WITH_CODE if path.stem == page)
    assert any(block.expected for block in blocks(path.read_text(encoding="utf-8")))


def test_a_wrong_number_in_a_page_is_found(tmp_path):
    page = "# Title\n\n```python\nx = 2\n```\n\n```python\nprint(x * 3)\n```\n\n```text\n{}\n```\n"
    assert run(page.format("6"), tmp_path) == 1
    with pytest.raises(AssertionError, match="at line 8 printed"):
        run(page.format("7"), tmp_path)


def test_errors_show_the_pages_own_line(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        run("# Title\n\n```python\nx = 1\nx / 0\n```\n", tmp_path)
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno + 1) == (tmp_path / "page_4.py", 5)
