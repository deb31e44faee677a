"""What a diagnosis says: findings as data, put together in a report that prints itself."""

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from ..core.graph import Graph, Node, Source

Severity: TypeAlias = Literal["error", "warning", "note"]

_RANK: Mapping[str, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, at one place of the program.

    Attributes:
        kind: what was found, a short word: `origin`, `blocked`, `vanishing`, ...
        severity: `error` (a result is wrong), `warning` (it may be), `note` (harmless, worth knowing).
        message: the finding in one sentence.
        node: name of the node in the graph, "" where the finding is of no single node.
        primitive: the primitive of the node.
        source: file, line and function in the user's code, None where unknown.
        code: the expression in the source.
        path: the nodes around it, outermost first: `scan h`, `cond`, `checkpoint`.
        step: the step of each loop around it, outermost first; () outside of loops.
        branch: the branch of the innermost `cond` around it, None where there is none.
        element: index into the array of the node, None where the finding is of the whole array.
        cause: the class of the cause, a short word.
        why: the cause in one sentence.
        fix: what to do, one line of code or of advice.
        numbers: what was measured, by name: numbers, texts, or lists of them.
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
    numbers: Mapping[str, Any] = field(default_factory=dict)
    leaves: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.severity not in _RANK:
            raise ValueError(f"a severity is one of {', '.join(_RANK)}; got {self.severity!r}.")

    @property
    def place(self) -> str:
        """File, line and function, "" where unknown."""
        if self.source is None:
            return ""
        function = f" in {self.source.function}" if self.source.function else ""
        return f"{self.source}{function}"

    def data(self) -> dict[str, Any]:
        """The finding as plain data, fit for JSON."""
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
        if where := self._standing():
            yield from _labelled("where", where)
        if self.numbers:
            yield from _labelled("numbers", ", ".join(f"{k} = {spell(v)}" for k, v in self.numbers.items()))
        if self.why:
            yield from _labelled("why", self.why)
        if self.fix:
            yield f"{'fix':<8} {self.fix}"  # code: in one line, to be copied
        if self.leaves:
            yield from _labelled("reaches", _some(self.leaves))

    def _standing(self) -> str:
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

    Iterating gives the findings; `str` is the text, `json` the data. `ok` says whether all is well; as an empty
    list, a report without findings is false.

    Attributes:
        title: what was asked, such as `diagnose loss`.
        findings: what was found, worst first.
        figures: what was measured on the way, by name.
        notes: sentences on what was done, and on what was left out.

    Examples:
        >>> import jaxprop as jp
        >>> from jaxprop.diagnosis import Finding, Report
        >>> report = Report.of("diagnose loss", [Finding("origin", "error", "NaN is born at `y`.", node="y")])
        >>> report.ok, [finding.node for finding in report]
        (False, ['y'])
        >>> print(report)
        diagnose loss: 1 error
        <BLANKLINE>
        1. error: NaN is born at `y`.
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
        """A report of findings in any order: errors first, then warnings, notes; else in the order given."""
        ranked = sorted(findings, key=lambda finding: _RANK[finding.severity])
        return cls(title, tuple(ranked), dict(figures or {}), tuple(notes))

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong: no error and no warning. Notes are no fault."""
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

    def data(self) -> dict[str, Any]:
        """The report as plain data: dicts, lists, texts and numbers; NaN and Inf as texts."""
        return {
            "title": self.title,
            "ok": self.ok,
            "findings": [finding.data() for finding in self.findings],
            "figures": plain(self.figures),
            "notes": list(self.notes),
        }

    def json(self, indent: int | None = 2) -> str:
        """The report as JSON text."""
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
        said = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
        return ", ".join(said) or "nothing found"


def at(graph: Graph, node: Node) -> dict[str, Any]:
    """What a `Finding` says of where a node is: name, primitive, source, code and path, by field."""
    parents = graph.places[node.index].parents
    numbers = [number for parent, number in parents if parent.primitive == "cond"]
    return {
        "node": node.name,
        "primitive": node.primitive,
        "source": node.source,
        "code": node.label,
        "path": tuple(_around(parent) for parent, _ in parents),
        "branch": numbers[-1] if numbers else None,
    }


def _around(parent: Node) -> str:
    """A loop, a branch or a remat by what it is and its name: `scan h`."""
    named = parent.name and not parent.name.startswith(parent.primitive)
    return f"{parent.primitive} {parent.name}" if named else parent.primitive


def plain(x: Any) -> Any:
    """Anything as plain data: arrays as lists, NaN and Inf as texts, what has no form in JSON as its text."""
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, Mapping):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, tuple | list):
        return [plain(item) for item in x]
    if hasattr(x, "tolist"):
        return plain(x.tolist())
    if isinstance(x, float):
        return x if math.isfinite(x) else str(x)
    return str(x)


def spell(x: Any) -> str:
    """A number as people write it: six digits."""
    if hasattr(x, "tolist"):
        x = x.tolist()
    if not isinstance(x, float):
        return f"[{', '.join(map(spell, x))}]" if isinstance(x, tuple | list) else str(x)
    if not math.isfinite(x):
        return str(x)
    return f"{x:.1f}" if x == int(x) and abs(x) < 1e6 else f"{x:.6g}"


def _labelled(label: str, text: str, width: int = 100) -> Iterator[str]:
    lines = textwrap.wrap(text, width) or [""]
    yield f"{label:<8} {lines[0]}"
    for line in lines[1:]:
        yield f"{'':<8} {line}"


def _some(names: Sequence[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
