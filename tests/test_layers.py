"""The layers of DESIGN, as data: imports are relative, point strictly down, stand at the top.

What a planted fault looks like to this test is at the foot of the file.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxprop"

# Rows from the lowest up; within a row, what is named first stands lower.
LAYERS = (
    ("_types",),
    ("_jaxpr",),
    ("_source", "_same", "_names", "_graph", "_wiring", "_draft", "_activity", "_build"),
    ("_local",),
    ("_rules", "_summary"),
    ("_channel", "_views", "_control", "_interpret", "_batch"),
    ("_call", "_seed", "_tape", "_pass", "_api"),
    ("rules", "show", "diagnose"),
    ("train",),
    ("__init__", "_demo", "cli", "__main__"),
)
APART = {"rules", "show", "diagnose"}  # public rooms: none imports another
INSIDES = {"jax.core", "jax.extend"}  # only `_jaxpr` may touch these
OPTIONAL = {"sklearn", "matplotlib", "py_mini_racer"}  # comes with an extra, so it may be imported where it is used

HEIGHT = {room: i for i, room in enumerate(room for row in LAYERS for room in row)}


class Import(NamedTuple):
    """One imported module, by its dotted path, and where the import stands."""

    target: str
    line: int
    relative: bool
    in_function: bool


def room(module: str) -> str:
    """The row's entry a module belongs to: `rules.clip` is in `rules`."""
    return module.split(".")[0]


def modules(package: Path) -> dict[str, Path]:
    """Every module below `package`: its dotted path without the package's name, and its file."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = file
    return found


def imports(tree: ast.AST, module: str, known: dict[str, Path]) -> list[Import]:
    """What a module imports; relative ones resolved to the package's own modules."""
    found = []

    def visit(node, in_function):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(alias.name, node.lineno, False, in_function))
        elif isinstance(node, ast.ImportFrom):
            for target in _targets(node, module, known):
                found.append(Import(target, node.lineno, node.level > 0, in_function))
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(tree, False)
    return found


def _targets(node, module, known):
    if node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    path = [] if module == "__init__" else module.split(".")
    is_package = known[module].name == "__init__.py"
    keep = len(path) - node.level + (1 if is_package and path else 0)
    base = path[: max(keep, 0)] + (node.module.split(".") if node.module else [])
    targets = set()
    for alias in node.names:
        deeper = ".".join([*base, alias.name])
        targets.add(deeper if deeper in known else ".".join(base) or "__init__")
    return sorted(targets)


def dotted(node) -> str:
    """`jax.core.eval_jaxpr` of the attribute chain that `node` is, else ''."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + ".")


def faults(package: Path) -> list[str]:
    """Every breach of the layers in `package`, as `file:line: what`."""
    known = modules(package)
    found, edges = [], {}
    for module, file in known.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        edges[module] = set()

        def say(line, what, file=file):
            found.append(f"{file.relative_to(package.parent)}:{line}: {what}")

        if room(module) not in HEIGHT:
            say(1, f"`{module}` is not in the table of layers")
            continue
        for imp in imports(tree, module, known):
            own = imp.relative or within(imp.target, package.name)
            if own and not imp.relative:
                say(imp.line, f"`{imp.target}` must be imported relatively")
            elif own:
                edges[module].add(imp.target)
                if complaint := _upward(module, imp.target):
                    say(imp.line, complaint)
            if imp.in_function and not (not own and room(imp.target) in OPTIONAL):
                say(imp.line, f"`{imp.target}` is imported inside a function")
        used = [(i.target, i.line) for i in imports(tree, module, known) if not i.relative]
        used += [(dotted(n), n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        for path, line in dict.fromkeys(used):
            if within(path, "jax._src"):
                say(line, f"`{path}` is private to JAX")
            if module != "_jaxpr" and any(within(path, inside) for inside in INSIDES):
                say(line, f"`{path}`: only `_jaxpr` may touch it")
    return found + [f"a circle of imports: {' -> '.join(c)}" for c in circles(edges)]


def _upward(module, target):
    here, there = room(module), room(target)
    if there not in HEIGHT:
        return f"`{target}` is not in the table of layers"
    if here == there:
        return None  # within one package; circles are looked for below
    if here in APART and there in APART:
        return f"`{here}` and `{there}` are apart: neither imports the other"
    if HEIGHT[there] >= HEIGHT[here]:
        return f"`{target}` does not stand below `{module}`"
    return None


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Circles among the modules; a package's own `__init__` counts as one of them."""
    found, done = [], set()

    def walk(module, path):
        if module in path:
            found.append([*path[path.index(module) :], module])
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                walk(target, [*path, module])
            done.add(module)

    for module in edges:
        walk(module, [])
    return found


def test_the_package_keeps_its_layers():
    assert modules(PACKAGE), f"no modules in {PACKAGE}"
    found = faults(PACKAGE)
    assert not found, "\n".join(found)


# Each planted fault: the files of a small package, and what must be said of them.
PLANTED = {
    "nothing wrong": (
        {"_types.py": "import jax", "_jaxpr.py": "from jax.extend import core\nimport jax.core"},
        None,
    ),
    "upwards": ({"_types.py": "from ._jaxpr import f", "_jaxpr.py": ""}, "does not stand below"),
    "upwards in a row": (
        {"_names.py": "from ._graph import f", "_graph.py": ""},
        "does not stand below",
    ),
    "upwards to the package": ({"_api.py": "from . import grad"}, "does not stand below"),
    "absolute": ({"_graph.py": "from jaxprop._names import f"}, "imported relatively"),
    "in a function": (
        {"_graph.py": "def f():\n    from ._names import g", "_names.py": ""},
        "inside a function",
    ),
    "another's, in a function": ({"_graph.py": "def f():\n    import ast"}, "inside a function"),
    "an optional one, in a function": (
        {"cli.py": "def f():\n    from sklearn.datasets import load_digits"},
        None,
    ),
    "under TYPE_CHECKING": (
        {"_types.py": "if TYPE_CHECKING:\n    from ._api import f", "_api.py": ""},
        "does not stand below",
    ),
    "private import": ({"_jaxpr.py": "from jax._src import core"}, "private to JAX"),
    "private attribute": ({"_jaxpr.py": "import jax\njax._src.core.f()"}, "private to JAX"),
    "insides by import": ({"_graph.py": "from jax import core"}, "only `_jaxpr`"),
    "insides by attribute": ({"_graph.py": "import jax\njax.extend.core.Var"}, "only `_jaxpr`"),
    "not in the table": ({"_surprise.py": ""}, "not in the table"),
    "rooms apart": ({"rules/__init__.py": "from ..show import f", "show.py": ""}, "are apart"),
    "a room's own files": (
        {"rules/__init__.py": "from .clip import f", "rules/clip.py": "from .._rules import g"},
        None,
    ),
    "a circle in a room": (
        {
            "rules/a.py": "from .b import f",
            "rules/b.py": "from . import a",
            "rules/__init__.py": "",
        },
        "a circle of imports: rules.a -> rules.b -> rules.a",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case, tmp_path):
    files, expected = PLANTED[case]
    for name, text in {"__init__.py": "", "_rules.py": "", **files}.items():
        file = tmp_path / "jaxprop" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = faults(tmp_path / "jaxprop")
    assert any(expected in f for f in found) if expected else not found, found
