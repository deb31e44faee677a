"""The API pages document every public name once, and importing jaxprop loads only what it needs."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import jaxprop

ROOT = Path(__file__).parents[1]
MODULES = ("jaxprop", "jaxprop.rules", "jaxprop.show", "jaxprop.diagnosis", "jaxprop.train")
#: Modules that are documented as a whole: with what they define.
MODULE_PAGES = {"jaxprop.show.drawing.scene", "jaxprop.show.symbolic"}
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))


def public(module: str) -> dict[str, object]:
    """The names that a package exports, `from .x import y as y`, with what they stand for; modules excluded."""
    found = importlib.import_module(module)
    tree = ast.parse(Path(found.__file__).read_text(encoding="utf-8"))
    names = [
        alias.asname
        for node in ast.walk(tree)  # some names are imported when they are first used
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    objects = {f"{module}.{name}": getattr(found, name) for name in names}
    return {path: x for path, x in objects.items() if not isinstance(x, ModuleType)}


def documented() -> list[str]:
    """Every `::: name` of the API pages."""
    return [
        name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.M)
    ]


def faults(exported: dict[str, object], pages: list[str]) -> list[str]:
    """What is missing from the pages, documented twice, or not there. One object may have several public paths."""
    modules = {name for name in pages if name in MODULE_PAGES}
    found = [
        f"{name} is documented, but is not a public name" for name in pages if name not in {*exported, *modules}
    ]
    paths: dict[int, list[str]] = {}
    for path, x in exported.items():
        paths.setdefault(id(x), []).append(path)
    for same in paths.values():
        home = getattr(exported[same[0]], "__module__", None)
        count = sum(pages.count(path) for path in (*same, *modules & {home}))
        if count != 1:
            found.append(f"{' or '.join(same)} is documented {count} times")
    return found


def test_every_public_name_is_documented_once():
    exported = {path: x for module in MODULES for path, x in public(module).items()}
    assert len(exported) > 50
    found = faults(exported, documented())
    assert not found, "\n".join(found)


def test_a_fault_in_the_pages_is_found():
    one, two = object(), object()
    exported = {"a.one": one, "a.b.one": one, "a.two": two}
    assert faults(exported, ["a.one", "a.two"]) == []
    assert faults(exported, ["a.one"]) == ["a.two is documented 0 times"]
    assert faults(exported, ["a.one", "a.b.one", "a.two"]) == ["a.one or a.b.one is documented 2 times"]
    assert faults(exported, ["a.one", "a.two", "a.three"]) == [
        "a.three is documented, but is not a public name"
    ]


def test_the_packages_that_are_imported_on_first_use():
    code = (
        "import sys, jaxprop as jp\n"
        "heavy = {'jaxprop.diagnosis', 'jaxprop.show', 'jaxprop.train'}\n"
        "assert not heavy & {*sys.modules}, heavy & {*sys.modules}\n"
        "names = [name for names in jp._LAZY.values() for name in names.split()]\n"
        "assert {*names, *jp._LAZY} <= {*dir(jp)}\n"
        "print(*names)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    tree = ast.parse((ROOT / "jaxprop" / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = [
        node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    declared = [alias.asname for node in checked.body for alias in node.names if node.module]
    assert sorted(run.stdout.split()) == sorted(declared)
    with pytest.raises(AttributeError, match=r"^module 'jaxprop' has no attribute 'diagnos'$"):
        jaxprop.diagnos  # noqa: B018


def test_every_public_name_has_a_docstring():
    exported = {path: x for module in MODULES for path, x in public(module).items()}
    written = {
        path: x for path, x in exported.items() if callable(x) and path != "jaxprop.Rule"
    }  # no constants
    missing = [path for path, x in written.items() if not x.__doc__]
    assert not missing


def documented_arguments(doc: str) -> list[str]:
    """The names in the section `Args:` of a docstring; one entry may describe several, `argnums, has_aux: ...`."""
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", inspect.cleandoc(doc) + "\n", re.M)
    entries = re.findall(r"^    ([*\w]+(?:, [*\w]+)*):", section[1], re.M) if section else []
    return [name.lstrip("*") for entry in entries for name in entry.split(", ")]


def test_documented_arguments_exist():
    checked = 0
    for module in MODULES:
        for path, x in public(module).items():
            if callable(x) and x.__doc__ and inspect.isfunction(x):
                names = documented_arguments(x.__doc__)
                checked += len(names)
                assert set(names) <= set(inspect.signature(x).parameters), path
    assert checked > 100


def test_help_lists_the_rules():
    rules = importlib.import_module("jaxprop.rules")
    assert {f"jaxprop.rules.{name}" for name in rules.__all__} == set(public("jaxprop.rules"))
    for name in rules.__all__:
        assert f"    {name}(" in rules.__doc__, name


#: What `import jaxprop` may load besides the standard library: what it requires, and what these require.
REQUIRED = {"jaxprop", "jax", "jaxlib", "jaxtyping", "wadler_lindig", "numpy", "optax"}


def test_importing_loads_no_optional_library():
    """Matplotlib, Orbax, rich and the like are imported where they are used: they take longer than jaxprop."""
    code = (
        "import json, sys, jax, optax; before = set(sys.modules); import jaxprop; "
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy = set(json.loads(done.stdout)) - REQUIRED - set(sys.stdlib_module_names)
    assert not heavy
