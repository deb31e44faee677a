"""A scene for Model Explorer (google-ai-edge): the graph, and norms of cotangents as data of its nodes."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .. import palette
from ..scene import Box, Scene, SceneNode, Shown


def explorer_graphs(scene: Scene) -> dict[str, Any]:
    """The graph collection Model Explorer opens: boxes are its namespaces, the backward pass an overlay."""
    boxes = {box.id: box for box in scene.boxes}
    incoming: dict[int, list[dict[str, str]]] = {}
    for edge in scene.edges:
        if edge.kind in ("data", "enter"):
            incoming.setdefault(edge.target[0], []).append(
                {
                    "sourceNodeId": str(edge.source[0]),
                    "sourceNodeOutputId": str(edge.source[1]),
                    "targetNodeInputId": str(edge.target[1]),
                }
            )
    nodes = [_node(node, scene, boxes, incoming.get(node.id, [])) for node in scene.nodes]
    graph: dict[str, Any] = {"id": scene.title or "graph", "nodes": nodes}
    backward = [
        {"sourceNodeId": str(e.target[0]), "targetNodeId": str(e.source[0]), "label": e.share.text}
        for e in scene.edges
        if e.active and e.share is not None
    ]
    if backward:
        overlay = {"name": "backward pass", "edgeColor": palette.THEMES["light"]["backward"], "edges": backward}
        data = {"name": "jaxprop", "type": "edge_overlays", "overlays": [overlay]}
        graph["tasksData"] = {"edgeOverlaysDataListLeftPane": [data]}
    return {"label": scene.title or "jaxprop", "graphs": [graph]}


def explorer_data(scene: Scene) -> dict[str, Any]:
    """The node data Model Explorer lays over it: log10 of the norm of each cotangent, by node."""
    results = dict(_results(scene))
    ramp = palette.RAMPS["light"]
    gradient = [{"stop": i / (len(ramp) - 1), "bgColor": colour} for i, colour in enumerate(ramp)]
    name = "log10 norm of the cotangent"
    return {scene.title or "graph": {"name": name, "results": results, "gradient": gradient}}


def _results(scene: Scene) -> Iterator[tuple[str, dict[str, Any]]]:
    for node in scene.nodes:
        shown = [out.cotangent for out in node.outputs if out.cotangent is not None]
        if any(cotangent.nonfinite for cotangent in shown):
            yield str(node.id), {"value": 0, "bgColor": palette.THEMES["light"]["bad"], "textColor": "#ffffff"}
            continue
        norms = [cotangent.norm for cotangent in shown if cotangent.norm]
        if norms:
            yield str(node.id), {"value": float(f"{math.log10(max(norms)):.4g}")}


def _node(
    node: SceneNode, scene: Scene, boxes: Mapping[str, Box], incoming: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "id": str(node.id),
        "label": node.name.rsplit("/", 1)[-1] if "[" not in node.name else node.name,
        "namespace": "/".join(_path(node.box, boxes)),
        "attrs": [{"key": key, "value": value} for key, value in _attributes(node, scene) if value],
        "incomingEdges": incoming,
        "outputsMetadata": [
            {
                "id": str(i),
                "attrs": [{"key": "__tensor_tag", "value": out.name}, {"key": "type", "value": out.type}],
            }
            for i, out in enumerate(node.outputs)
        ],
    }


def _path(box: str | None, boxes: Mapping[str, Box]) -> list[str]:
    path: list[str] = []
    while box is not None:
        # Ids keep apart boxes of one name; a slash would open one more level.
        path.append(f"{boxes[box].name.replace('/', '.')} ({box})")
        box = boxes[box].parent
    return path[::-1]


def _attributes(node: SceneNode, scene: Scene) -> Iterator[tuple[str, str]]:
    yield "kind", node.kind
    yield "primitive", node.primitive
    yield "expression", node.label
    yield "operation", node.call
    if node.source is not None:
        place = scene.sources[node.source]
        yield "source", f"{place.file}:{place.line} {place.text}"
    for out in node.outputs:
        for word, shown in (("value", out.value), ("cotangent", out.cotangent)):
            if shown is not None:
                yield f"{word} of {out.name or '_'}", _said(shown)


def _said(shown: Shown) -> str:
    return shown.text if not shown.nonfinite else f"{shown.text} ({shown.nonfinite} not finite)"
