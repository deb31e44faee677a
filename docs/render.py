"""Run the lessons as notebooks, and save them with their output: `python docs/render.py [--check]`.

The scripts in `examples/lessons` are the source. Each gives an executed notebook next to it and a page in
`docs/lessons`. `--check` runs them and lists the pages that would change, without writing.
Requires the extra `lessons`: `pip install -e ".[lessons]"`.
"""

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
LESSONS = ROOT / "examples" / "lessons"
PAGES = ROOT / "docs" / "lessons"


def executed(script: Path) -> nbformat.NotebookNode:
    """Run the script as a notebook; leave out what changes from run to run."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(script.parent)}}).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of Python
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
    return notebook


def page(notebook: nbformat.NotebookNode, name: str) -> dict[str, bytes]:
    """Convert a notebook to a page and its pictures, by file name."""
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, {"output_files_dir": name, "unique_key": name}
    )
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return {f"{name}.md": text.strip().encode() + b"\n"} | dict(resources.get("outputs", {}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page would change")
    parser.add_argument("lesson", nargs="*", help="names of lessons (default: all)")
    options = parser.parse_args()
    stale = []
    for script in sorted(LESSONS.glob("*.py")):
        if options.lesson and script.stem not in options.lesson:
            continue
        notebook = executed(script)
        files = {PAGES / name: data for name, data in page(notebook, script.stem).items()}
        files[script.with_suffix(".ipynb")] = (nbformat.writes(notebook) + "\n").encode()
        for file, data in files.items():
            if file.exists() and file.read_bytes() == data:
                continue
            stale.append(str(file.relative_to(ROOT)))
            if not options.check:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        print(script.stem, flush=True)
    print(
        "\n".join(["would change:" if options.check else "written:", *stale]) if stale else "nothing to change"
    )
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
