"""The layers of DESIGN, as data: imports are relative, point strictly down, stand at the top.

What a planted fault looks like to this test is at the foot of the file.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxprop"

# What each folder holds, from the lowest up: a file or a folder may import only what is named before it.
LAYERS = {
    "": """_text _jaxpr _fingerprint core _structure naming _models _tracing record _seed _backprop _api
        rules show diagnosis train __init__ cli __main__""",
    "naming": "syntax assign labels",
    "core": """types selectors statements graph build structure activity local rules recorders taps control_flow interpreter""",
    "record": "statistics aliases batching brief kept local_gradient contributions tape",
    "rules": "scaling clipping estimators",
    "show": "symbolic explanation drawing plots notebook",
    "show.symbolic": """names kinds expressions arithmetic arrays contractions literals elementwise shapes
        textbook reader text latex derive formula""",
    "show.explanation": """story values reach outline pieces statements lookup paths forward backward renderers explain
        answers questions quiz""",
    "show.drawing": """palette text_metrics scene layout arrays records local_gradients rule_reads edges
        contributions groups build view card formats draw""",
    "show.drawing.formats": "svg dot mermaid model_explorer html",
    "diagnosis": "thresholds report compiled passes measures nonfinite zero flow memory comparison checking diagnose reproduction",
    "diagnosis.nonfinite": """recorders probe propagation events origins evidence expressions
        stable_forms rewriting trial causes cause_table findings""",
    "diagnosis.zero": "reachability wording static experiments dynamic blocked",
    "diagnosis.flow": "cancellation chains loops gains findings flow",
    "diagnosis.memory": "ledger residuals",
    "diagnosis.comparison": "alignment deviations compare references scaling digit_loss precision",
    "diagnosis.checking": "differences float64 inputs rule_functions node_check total_check mistakes check",
    "train": "checks examples watch step checkpoint data writers loop",
    "train.examples": """forms contributions parameters leaves batch coupling book_keeping clip
        per_example""",
    "train.watch": "histogram watch norms attention watched recorded gradient",
    "train.step": "state objective clipped pure step",
    "train.checkpoint": "checkpoint leaves manifest orbax store",
    "train.data": "sharding source stream arrays placement data",
    "train.writers": "writer console files trackers group",
    "train.loop": """watched_history rows open_rows history until schedule evaluate bad_step resume interrupts chunks
        run fit""",
    "cli": "command values loading demo trace draw explain quiz diagnosis main __main__",
}
APART = {  # neighbours that do not import one another
    "": {"rules", "show", "diagnosis"},
    "show": {"explanation", "drawing"},
}
INSIDES = {"jax.core", "jax.extend"}  # only `_jaxpr` may touch these
OPTIONAL = {
    "etils",
    "matplotlib",
    "mlflow",
    "orbax",
    "py_mini_racer",
    "rich",
    "sklearn",
    "tensorboardX",
    "wandb",
}  # comes with an extra, so it may be imported where it is used

HEIGHT = {folder: {name: i for i, name in enumerate(names.split())} for folder, names in LAYERS.items()}


class Import(NamedTuple):
    """One imported module, by its dotted path, and where the import stands."""

    target: str
    line: int
    relative: bool
    in_function: bool


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

        if not is_placed(module):
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
            if imp.in_function and not (not own and imp.target.split(".")[0] in OPTIONAL):
                say(imp.line, f"`{imp.target}` is imported inside a function")
        used = [(i.target, i.line) for i in imports(tree, module, known) if not i.relative]
        used += [(dotted(n), n.lineno) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
        for path, line in dict.fromkeys(used):
            if within(path, "jax._src"):
                say(line, f"`{path}` is private to JAX")
            if module != "_jaxpr" and any(within(path, inside) for inside in INSIDES):
                say(line, f"`{path}`: only `_jaxpr` may touch it")
    return found + [f"a circle of imports: {' -> '.join(c)}" for c in circles(edges)]


def is_placed(module: str) -> bool:
    """Whether every folder on the way to a module names it."""
    parts = module.split(".")
    return all(part in HEIGHT.get(".".join(parts[:i]), {}) for i, part in enumerate(parts))


def _upward(module, target):
    if not is_placed(target):
        return f"`{target}` is not in the table of layers"
    mine, other = module.split("."), target.split(".")
    common = 0
    while common < min(len(mine), len(other)) and mine[common] == other[common]:
        common += 1
    if common == len(mine):
        return None  # the `__init__` of a folder, which names what is in it
    if common == len(other):
        return f"`{module}` imports the folder it is in"
    folder, here, there = ".".join(mine[:common]), mine[common], other[common]
    if {here, there} <= APART.get(folder, set()):
        return f"`{here}` and `{there}` are apart: neither imports the other"
    if HEIGHT[folder][there] >= HEIGHT[folder][here]:
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


def test_the_table_names_what_is_there():
    placed = {f"{folder}.{name}".lstrip(".") for folder, names in HEIGHT.items() for name in names}
    assert placed == set(modules(PACKAGE))


# Each planted fault: the files of a small package, and what must be said of them.
PLANTED = {
    "nothing wrong": (
        {"core/types.py": "import jax", "_jaxpr.py": "from jax.extend import core\nimport jax.core"},
        None,
    ),
    "upwards": ({"_jaxpr.py": "from .core.types import f", "core/types.py": ""}, "does not stand below"),
    "upwards in a folder": (
        {"core/graph.py": "from .rules import f"},
        "does not stand below",
    ),
    "upwards from a folder in a folder": (
        {"show/symbolic/text.py": "from ..plots import f", "show/plots.py": ""},
        "does not stand below",
    ),
    "upwards to the package": ({"_api.py": "from . import grad"}, "does not stand below"),
    "the folder it is in": ({"core/graph.py": "from . import f"}, "imports the folder it is in"),
    "absolute": ({"core/graph.py": "from jaxprop.core.types import f"}, "imported relatively"),
    "in a function": (
        {"core/graph.py": "def f():\n    from .types import g", "core/types.py": ""},
        "inside a function",
    ),
    "another's, in a function": ({"core/graph.py": "def f():\n    import ast"}, "inside a function"),
    "an optional one, in a function": (
        {"cli/demo.py": "def f():\n    from sklearn.datasets import load_digits"},
        None,
    ),
    "under TYPE_CHECKING": (
        {"_jaxpr.py": "if TYPE_CHECKING:\n    from ._api import f", "_api.py": ""},
        "does not stand below",
    ),
    "private import": ({"_jaxpr.py": "from jax._src import core"}, "private to JAX"),
    "private attribute": ({"_jaxpr.py": "import jax\njax._src.core.f()"}, "private to JAX"),
    "insides by import": ({"core/graph.py": "from jax import core"}, "only `_jaxpr`"),
    "insides by attribute": ({"core/graph.py": "import jax\njax.extend.core.Var"}, "only `_jaxpr`"),
    "not in the table": ({"_surprise.py": ""}, "not in the table"),
    "not in the table of a folder": ({"core/surprise.py": ""}, "not in the table"),
    "apart": ({"rules/scaling.py": "from ..show import f", "show/__init__.py": ""}, "are apart"),
    "apart in a folder": (
        {"show/drawing/view.py": "from ..explanation.story import f", "show/explanation/story.py": ""},
        "are apart",
    ),
    "a folder's own files": (
        {"rules/__init__.py": "from .scaling import f", "rules/scaling.py": "from ..core.rules import g"},
        None,
    ),
    "a circle": (
        {"core/graph.py": "from .rules import f", "core/rules.py": "from .graph import g"},
        "a circle of imports: core.graph -> core.rules -> core.graph",
    ),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found(case, tmp_path):
    files, expected = PLANTED[case]
    for name, text in {"__init__.py": "", "core/__init__.py": "", "core/rules.py": "", **files}.items():
        file = tmp_path / "jaxprop" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = faults(tmp_path / "jaxprop")
    assert any(expected in f for f in found) if expected else not found, found
