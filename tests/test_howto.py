"""Every how-to page runs, and prints what it says it prints."""

from pathlib import Path

import pytest
from test_readme import run

PAGES = sorted((Path(__file__).parents[1] / "docs" / "how-to").glob("*.md"))


def test_there_are_pages():
    assert PAGES


@pytest.mark.library
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page(page, tmp_path):
    assert run(page.read_text(encoding="utf-8"), tmp_path) > 0
