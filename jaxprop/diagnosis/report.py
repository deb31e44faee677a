"""The result of a diagnosis: findings as data, collected in a report that prints itself."""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from .._text import listed, plural
from ..core.graph import Graph, Node, Source

Severity: TypeAlias = Literal["error", "warning", "note"]

#: Plain data, as JSON has it.
Json: TypeAlias = "None | bool | int | float | str | list[Json] | dict[str, Json]"

_RANK: Mapping[str, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, at one place in the program.

    Attributes:
        kind: what was found, in a word or two: `origin`, `blocked`, `vanishing`, ...
        severity: `error` (a result is wrong), `warning` (a result may be wrong), `note` (harmless, but worth
            knowing).
        message: the finding in one sentence.
        node: name of the node in the graph; "" if the finding concerns no single node.
        primitive: the primitive of the node.
        source: file, line and function in the user's code; None if unknown.
        code: the expression in the source.
        path: the scans, conds and checkpoints around the node, outermost first: `scan h`, `cond`, `checkpoint`.
        step: the step of each loop around the node, outermost first; () outside of loops.
        branch: the branch of the innermost `cond` around the node; None if there is none.
        element: index into the array of the node; None if the finding concerns the whole array.
        cause: the class of the cause, in a few words.
        why: the cause in one sentence.
        fix: what to do: code to paste, or advice in words.
        numbers: what was measured, by name: numbers, strings, or lists of them.
        leaves: paths of the differentiated leaves concerned, such as `params['w']`.
    """

    kind: str
    severity: Severity
    message: str
    node: str = ""
    primitive: str = ""
    source: Source | None = None
    code: str = ""
    path: tuple[str, ...] = ()
    step: tuple[int, ...] = ()
    branch: int | None = None
    element: tuple[int, ...] | None = None
    cause: str = ""
    why: str = ""
    fix: str = ""
    numbers: Mapping[str, object] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in _RANK:
            raise ValueError(f"`severity` must be one of {', '.join(_RANK)}; got {self.severity!r}.")

    @property
    def place(self) -> str:
        """File, line and function; "" if unknown."""
        if self.source is None:
            return ""
        function = f" in {self.source.function}" if self.source.function else ""
        return f"{self.source}{function}"

    def data(self) -> dict[str, Json]:
        """Return the finding as plain data that JSON can hold."""
        found = {item.name: plain(getattr(self, item.name)) for item in fields(self) if item.name != "source"}
        source = self.source
        found["source"] = source and {
            "file": source.file,
            "line": source.line,
            "function": source.function,
        }
        return found

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.message}", *(f"  {line}" for line in self._details())]
        return "\n".join(lines)

    def _details(self) -> Iterator[str]:
        code = "" if self.code == self.node else " ".join(self.code.split())
        if self.place or code:
            yield "   ".join(part for part in (self.place, code) if part)
        if where := self._location():
            yield from _labelled("where", where)
        if self.numbers:
            yield from _labelled("numbers", ", ".join(f"{k} = {spell(v)}" for k, v in self.numbers.items()))
        if self.why:
            yield from _labelled("why", self.why)
        if self.fix:
            yield f"{'fix':<8} {self.fix}"  # on one line, so that code can be copied
        if self.leaves:
            yield from _labelled("reaches", listed(self.leaves, 6))

    def _location(self) -> str:
        heads = {"input": "argument", "const": "constant"}
        parts = [heads.get(self.primitive, self.primitive)] if self.primitive else []
        parts += [f"in {' > '.join(self.path)}"] if self.path else []
        parts += [f"branch {self.branch}"] if self.branch is not None else []
        parts += [f"step {', step '.join(map(str, self.step))}"] if self.step else []
        parts += [f"element [{', '.join(map(str, self.element))}]"] if self.element else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Report:
    """Findings, worst first.

    Iterate over it for the findings; `str` gives the text and `json` the data. A test asserts `ok`. Like an
    empty list, a report without findings is falsy.

    Attributes:
        title: what was asked, such as `diagnose loss`.
        findings: what was found, worst first.
        figures: what was measured along the way, by name.
        notes: sentences about what was done and what was left out.

    Examples:
        >>> import jaxprop as jp
        >>> from jaxprop.diagnosis import Finding, Report
        >>> finding = Finding("origin", "error", "NaN first appears at `y`.", node="y")
        >>> report = Report.of("diagnose loss", [finding])
        >>> report.ok, [finding.node for finding in report]
        (False, ['y'])
        >>> print(report)
        diagnose loss: 1 error
        <BLANKLINE>
        1. error: NaN first appears at `y`.
    """

    title: str
    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        title: str,
        findings: Sequence[Finding],
        figures: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> "Report":
        """Sort findings by severity, errors first; those of one severity stay in the order given."""
        ranked = sorted(findings, key=lambda finding: _RANK[finding.severity])
        return cls(title, tuple(ranked), dict(figures or {}), tuple(notes))

    @property
    def ok(self) -> bool:
        """Whether there is no error and no warning. Notes do not count."""
        return all(finding.severity == "note" for finding in self.findings)

    def __add__(self, other: "Report") -> "Report":
        return Report.of(
            self.title,
            [*self.findings, *other.findings],
            {**self.figures, **other.figures},
            (*self.notes, *other.notes),
        )

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index: int) -> Finding:
        return self.findings[index]

    def data(self) -> dict[str, Json]:
        """Return the report as plain data: dicts, lists, strings and numbers; NaN and Inf as strings."""
        return {
            "title": self.title,
            "ok": self.ok,
            "findings": [finding.data() for finding in self.findings],
            "figures": plain(self.figures),
            "notes": list(self.notes),
        }

    def json(self, indent: int | None = 2) -> str:
        """Return the report as JSON."""
        return json.dumps(self.data(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        parts = [f"{self.title}: {self._count()}"]
        parts += [f"{number}. {finding}" for number, finding in enumerate(self.findings, 1)]
        if self.figures:
            parts.append(", ".join(f"{name}: {spell(value)}" for name, value in self.figures.items()))
        parts += ["\n".join(textwrap.wrap(note, 100)) for note in self.notes]
        return "\n\n".join(parts)

    __repr__ = __str__

    def _count(self) -> str:
        counts = {
            kind: sum(finding.severity == kind for finding in self.findings)
            for kind in ("error", "warning", "note")
        }
        return ", ".join(plural(count, kind) for kind, count in counts.items() if count) or "nothing found"


def at(graph: Graph, node: Node) -> dict[str, Any]:
    """Say where a node is: the fields of a `Finding` that the graph alone gives."""
    parents = graph.places[node.index].parents
    branches = [number for parent, number in parents if parent.primitive == "cond"]
    return {
        "node": node.name,
        "primitive": node.primitive,
        "source": node.source,
        "code": node.label,
        "path": tuple(_enclosing(parent) for parent, _ in parents),
        "branch": branches[-1] if branches else None,
    }


def _enclosing(parent: Node) -> str:
    """Name a loop, a branch or a remat by its primitive and its own name: `scan h`."""
    named = parent.name and not parent.name.startswith(parent.primitive)
    return f"{parent.primitive} {parent.name}" if named else parent.primitive


def plain(x: object) -> Json:
    """Convert to plain data: arrays to lists, NaN, Inf and what JSON cannot hold to strings."""
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return [plain(item) for item in x]
    if callable(tolist := getattr(x, "tolist", None)):
        return plain(tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else str(x)
    return str(x)


def spell(x: object) -> str:
    """Write numbers with six significant digits, a float always with a point or an exponent."""
    if callable(tolist := getattr(x, "tolist", None)):
        x = tolist()
    if isinstance(x, tuple | list):
        return f"[{', '.join(map(spell, x))}]"
    if not isinstance(x, float) or not math.isfinite(x):
        return str(x)
    return f"{x:.1f}" if x == int(x) and abs(x) < 1e6 else f"{x:.6g}"


def _labelled(label: str, text: str, width: int = 100) -> Iterator[str]:
    lines = textwrap.wrap(text, width) or [""]
    yield f"{label:<8} {lines[0]}"
    for line in lines[1:]:
        yield f"{'':<8} {line}"
