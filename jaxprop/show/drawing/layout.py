"""Where cards, frames and lines lie: laid out by dagre, the same in the static picture and in the page.

Why dagre (`@dagrejs/dagre`, MIT, 48 kB, in `assets/` with its licence): it draws layered graphs with nested
boxes and room for the labels of edges, gives the same places for the same graph everywhere, and is small enough
to lie inside a page one mails. Here it runs in V8 (`mini-racer`, ISC, a wheel without dependencies for every
Python and system): no system Graphviz, no Node, no display. ELK is thirty times its size under the EPL;
Graphviz is no wheel; pure Python packages (grandalf: GPL, fast-sugiyama: no boxes) do not know nested boxes.
About 0.2 s for 150 cards, 1.5 s for 750.
"""

import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

#: Places of cards and of lines on the levels they cross, in one picture: more take minutes.
MOST_PLACES = 20_000
INSTALL = "pip install 'jaxprop-toolkit[show]'"


class Size(NamedTuple):
    """Width and height, in pixels."""

    width: float
    height: float


class Rect(NamedTuple):
    """A rectangle: left, top, width, height, in pixels."""

    x: float
    y: float
    width: float
    height: float


class Wire(NamedTuple):
    """A connection to lay out: ids of its ends, and room for its label."""

    source: str
    target: str
    label: Size


class Route(NamedTuple):
    """The way of a connection: its bends from source to target, and the middle of its label."""

    points: tuple[tuple[float, float], ...]
    label: tuple[float, float]


class Layout(NamedTuple):
    """Places of everything; the picture reaches from (0, 0) to `size`."""

    size: Size
    cards: dict[str, Rect]
    frames: dict[str, Rect]
    routes: tuple[Route, ...]


def lay_out(
    cards: dict[str, Size],
    frames: Sequence[str],
    parents: dict[str, str],
    wires: Sequence[Wire],
    direction: str = "down",
) -> Layout:
    """Lay out cards inside frames.

    Args:
        cards: their sizes, by id.
        frames: ids of the frames, parents first.
        parents: the frame each card or frame lies in, if any.
        wires: what connects the cards.
        direction: `down` or `right`: where the forward pass goes.

    Raises:
        ImportError: the extra `show` is not installed.
    """
    if not cards:
        return Layout(Size(0, 0), {}, {}, ())
    problem = {
        "options": {
            "rankdir": "TB" if direction == "down" else "LR",
            "nodesep": 26, "ranksep": 34, "edgesep": 14, "marginx": 0, "marginy": 0,
        },
        "nodes": [{"id": f"n{i}", "w": w, "h": h, "p": _parent(parents, i)} for i, (w, h) in cards.items()],
        "frames": [{"id": f"n{i}", "p": _parent(parents, i)} for i in frames],
        "edges": [{"s": f"n{s}", "t": f"n{t}", "w": w, "h": h} for s, t, (w, h) in wires],
    }  # fmt: skip
    _check_size(list(cards), wires)
    answer = json.loads(_engine().call("layOut", json.dumps(problem)))
    places = {name[1:]: Rect(*rect) for name, rect in answer["nodes"].items()}
    return Layout(
        size=Size(answer["width"], answer["height"]),
        cards={i: places[i] for i in cards},
        frames={i: places[i] for i in frames},
        routes=tuple(Route(tuple(map(tuple, e["points"])), tuple(e["label"])) for e in answer["edges"]),
    )


def _check_size(cards: Sequence[str], wires: Sequence[Wire]) -> None:
    """Refuse what would take minutes: dagre gives a connection a place on each level it crosses."""
    after: dict[str, list[str]] = {}
    for wire in wires:
        after.setdefault(wire.source, []).append(wire.target)
    level = dict.fromkeys(cards, 0)
    for card in cards:  # in program order, so makers come first
        for reader in after.get(card, []):
            level[reader] = max(level[reader], level[card] + 1)
    places = len(cards) + sum(max(0, level[wire.target] - level[wire.source]) for wire in wires)
    if places > MOST_PLACES:
        raise RuntimeError(
            f"a picture of {len(cards):,} cards with lines this long would take minutes to lay out. "
            "Draw fewer: `collapse=` closes frames, `to=` keeps what leads from one value; the HTML page opens "
            "frames one by one."
        )


def _parent(parents: dict[str, str], item: str) -> str | None:
    return f"n{parents[item]}" if item in parents else None


# Of a browser's functions dagre uses one that a bare engine lacks: to copy the options of a graph.
_MISSING = "globalThis.structuredClone ??= (data) => JSON.parse(JSON.stringify(data));"
_GLUE = """
function layOut(text) {
  const problem = JSON.parse(text);
  const g = new dagre.graphlib.Graph({ compound: true, multigraph: true });
  g.setGraph(problem.options);
  g.setDefaultEdgeLabel(() => ({}));
  for (const f of problem.frames) g.setNode(f.id, {});
  for (const n of problem.nodes) g.setNode(n.id, { width: n.w, height: n.h });
  for (const n of [...problem.frames, ...problem.nodes]) if (n.p) g.setParent(n.id, n.p);
  problem.edges.forEach((e, i) =>
    g.setEdge(e.s, e.t, { width: e.w, height: e.h, labelpos: "c" }, "e" + i));
  dagre.layout(g);
  const round = (x) => Math.round(x * 10) / 10;
  const nodes = {};
  for (const v of g.nodes()) {
    const n = g.node(v);
    nodes[v] = [n.x - n.width / 2, n.y - n.height / 2, n.width, n.height].map(round);
  }
  const edges = problem.edges.map((e, i) => {
    const found = g.edge(e.s, e.t, "e" + i);
    const middle = found.points[Math.floor(found.points.length / 2)];
    return {
      points: found.points.map((p) => [round(p.x), round(p.y)]),
      label: [round(found.x ?? middle.x), round(found.y ?? middle.y)],
    };
  });
  const size = g.graph();
  return JSON.stringify({ width: round(size.width), height: round(size.height), nodes, edges });
}
"""


@functools.cache
def _engine() -> Any:
    try:
        from py_mini_racer import MiniRacer
    except ImportError as error:
        raise ImportError(
            f"pictures are laid out with mini-racer, which is not installed: {INSTALL}. Without it, "
            "`draw(...).dot()`, `.mermaid()`, `.json()` and the HTML page work."
        ) from error
    engine = MiniRacer()
    engine.eval(_MISSING)
    dagre = resources.files(__package__ or "jaxprop.show").joinpath("assets", "dagre.min.js")
    engine.eval(dagre.read_text("utf-8") + _GLUE)
    return engine
