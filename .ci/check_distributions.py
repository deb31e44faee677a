"""Check what a wheel and an sdist contain: `python .ci/check_distributions.py DIST`, in a checkout."""

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Folders and files of the checkout that the sdist holds: enough to run the tests from it.
IN_SDIST = ("benchmarks", "docs", "examples", "jaxprop", "tests")
FILES_IN_SDIST = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "mkdocs.yml",
    "noxfile.py",
    "pyproject.toml",
)
GENERATED = ("__pycache__", ".ipynb_checkpoints")


def in_checkout(folder: str) -> set[str]:
    """The files of a folder of the checkout, relative to its root."""
    files = (file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file())
    return {file.as_posix() for file in files if not set(file.parts) & set(GENERATED)}


def difference(kind: str, found: set[str], expected: set[str]) -> list[str]:
    """One line for each file that is missing from a distribution, or should not be in it."""
    return [f"{kind}: missing {file}" for file in sorted(expected - found)] + [
        f"{kind}: unexpected {file}" for file in sorted(found - expected)
    ]


def check_wheel(path: Path) -> list[str]:
    """The wheel holds the package and its metadata with the license, and nothing else."""
    names = set(zipfile.ZipFile(path).namelist())
    metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    wrong = difference("wheel", names - metadata, in_checkout("jaxprop"))
    kept = {name.partition("/")[2] for name in metadata}
    return wrong + difference("wheel metadata", kept & EXPECTED_METADATA, EXPECTED_METADATA)


EXPECTED_METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def check_sdist(path: Path) -> list[str]:
    """The sdist holds the package, its tests, docs, examples and benchmarks."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    expected = set(FILES_IN_SDIST).union(*map(in_checkout, IN_SDIST))
    return difference("sdist", names - {"PKG-INFO", ".gitignore"}, expected)


def main(folder: str) -> int:
    (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    wrong = check_wheel(wheel) + check_sdist(sdist)
    print("\n".join(wrong) or f"{wheel.name} and {sdist.name} contain what they should")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
