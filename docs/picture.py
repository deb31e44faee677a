"""Draw the picture at the top of the README from the example below it: `python docs/picture.py`."""

import contextlib
import io
import re
import runpy
import tempfile
from pathlib import Path

import jaxprop as jp

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "assets" / "worked.svg"


def picture() -> str:
    """The tape of the README's first example, drawn as SVG."""
    example = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / "example.py"  # variable names are read from the source
        file.write_text(example[1], encoding="utf-8")
        tape = runpy.run_path(str(file))["tape"]
        return jp.draw(tape, theme="auto", direction="right").svg()


if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
