"""Positions of cards, frames and lines, computed by dagre.

dagre (`@dagrejs/dagre`, MIT, 48 kB, in `assets/` with its licence) draws layered graphs with nested boxes and
room for edge labels, gives the same positions everywhere, and is small enough to be part of every page. The
page runs it in the browser, the static pictures in V8 (`mini-racer`, ISC: a wheel without dependencies for
every Python and system); `page/layered.js` is the code around it, for both. No Graphviz, Node or display is
needed. The alternatives: ELK is thirty times larger (EPL), Graphviz is not a wheel, and the pure Python
packages have no nested boxes (fast-sugiyama) or are under the GPL (grandalf).

It takes about 0.2 s for 150 cards and 1.5 s for 750.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from typing import NamedTuple, Protocol

#: At most this many positions in one picture: of cards, and of lines on each rank they cross.
MOST_POSITIONS = 20_000
#: At most this many positions on the borders of frames.
MOST_BORDERS = 2_000_000
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


class Connection(NamedTuple):
    """A connection to lay out: the ids of its ends, and the size of its label."""

    source: str
    target: str
    label: Size


class Polyline(NamedTuple):
    """A connection in the layout: its points from source to target, and the centre of its label."""

    points: tuple[tuple[float, float], ...]
    label: tuple[float, float]


class Layout(NamedTuple):
    """The positions of everything, in a picture from (0, 0) to `size`."""

    size: Size
    cards: dict[str, Rect]
    frames: dict[str, Rect]
    lines: tuple[Polyline, ...]


def lay_out(
    cards: Mapping[str, Size],
    frames: Sequence[str],
    parents: Mapping[str, str],
    connections: Sequence[Connection],
    direction: str = "down",
) -> Layout:
    """Lay out cards inside frames.

    Args:
        cards: their sizes, by id, in program order.
        frames: ids of the frames, outer ones first.
        parents: the frame around each card or frame, if any.
        connections: the connections between cards.
        direction: the direction of the forward pass, `down` or `right`.

    Raises:
        ImportError: the extra `show` is not installed.
        RuntimeError: the picture is too large.
    """
    if not cards:
        return Layout(Size(0, 0), {}, {}, ())
    _check_size(list(cards), frames, parents, connections)
    items = [{"id": f"n{i}"} for i in frames]
    items += [{"id": f"n{i}", "width": w, "height": h} for i, (w, h) in cards.items()]
    for item in items:
        if item["id"][1:] in parents:
            item["parent"] = f"n{parents[item['id'][1:]]}"
    problem = {
        "options": {
            "rankdir": "TB" if direction == "down" else "LR",
            "nodesep": 26, "ranksep": 34, "edgesep": 14, "marginx": 0, "marginy": 0,
        },
        "items": items,
        "edges": [
            {"from": f"n{source}", "to": f"n{target}", "width": w, "height": h, "labelpos": "c"}
            for source, target, (w, h) in connections
        ],
    }  # fmt: skip
    answer = json.loads(_engine().call("layeredJson", json.dumps(problem)))
    places = {name[1:]: Rect(*rect) for name, rect in answer["items"].items()}
    return Layout(
        size=Size(answer["width"], answer["height"]),
        cards={i: places[i] for i in cards},
        frames={i: places[i] for i in frames},
        lines=tuple(
            Polyline(tuple((x, y) for x, y in edge["points"]), tuple(edge["label"])) for edge in answer["edges"]
        ),
    )


def _check_size(
    cards: Sequence[str], frames: Sequence[str], parents: Mapping[str, str], connections: Sequence[Connection]
) -> None:
    """Refuse what would take minutes: dagre gives lines and frames a position on every rank they cross."""
    rank = _ranks(cards, connections)
    crossed = sum(max(0, rank[c.target] - rank[c.source]) for c in connections)
    if len(cards) + crossed > MOST_POSITIONS:
        reason = "such long connections"
    elif _border_positions(rank, frames, parents) > MOST_BORDERS:
        reason = "frames nested so deep"
    else:
        return
    raise RuntimeError(
        f"a picture of {len(cards):,} cards with {reason} would take minutes to lay out. Draw fewer cards: "
        "`collapse=` closes frames, `to=` keeps the part that depends on one value. The HTML page has no such "
        "limit."
    )


def _ranks(cards: Sequence[str], connections: Sequence[Connection]) -> dict[str, int]:
    """The longest path to each card; cards are in program order, so producers come before consumers."""
    consumers: dict[str, list[str]] = {}
    for connection in connections:
        consumers.setdefault(connection.source, []).append(connection.target)
    rank = dict.fromkeys(cards, 0)
    for card in cards:
        for consumer in consumers.get(card, []):
            rank[consumer] = max(rank[consumer], rank[card] + 1)
    return rank


def _border_positions(rank: Mapping[str, int], frames: Sequence[str], parents: Mapping[str, str]) -> int:
    """Positions on the borders of frames: two on each rank, and dagre adds ranks for each level of frames."""
    depth: dict[str, int] = {}
    for frame in frames:
        depth[frame] = depth[parents[frame]] + 1 if frame in parents else 1
    spans: dict[str, tuple[int, int]] = {}
    for item, at in rank.items():
        while item in parents:
            item = parents[item]
            low, high = spans.get(item, (at, at))
            spans[item] = min(low, at), max(high, at)
    ranks_per_rank = 2 * max(depth.values(), default=0) + 1
    return sum(2 * (high - low + 1) * ranks_per_rank for low, high in spans.values())


class Engine(Protocol):
    """The part of `py_mini_racer.MiniRacer` that is used here."""

    def eval(self, code: str) -> object: ...
    def call(self, expr: str, *args: object) -> str: ...


@functools.cache
def _engine() -> Engine:
    try:
        from py_mini_racer import MiniRacer
    except ImportError as error:
        raise ImportError(
            f"static pictures are laid out with mini-racer, which is not installed: {INSTALL}. Without it, "
            "`draw(...).dot()`, `.mermaid()`, `.json()` and the HTML page work."
        ) from error
    # In a thread of its own it starts an event loop of its own. Here it would take one that is running, such as
    # a notebook's, and fail when that is closed.
    with ThreadPoolExecutor(1) as thread:
        engine: Engine = thread.submit(MiniRacer).result()
    folder = resources.files("jaxprop.show.drawing")
    engine.eval(SHIM + (folder / "assets" / "dagre.min.js").read_text("utf-8"))
    engine.eval((folder / "page" / "layered.js").read_text("utf-8"))
    return engine


#: The one browser function that dagre needs and a bare engine lacks; it copies the options of a graph.
SHIM = "globalThis.structuredClone ??= (data) => JSON.parse(JSON.stringify(data));"
