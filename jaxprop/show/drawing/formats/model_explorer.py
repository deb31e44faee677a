"""A scene for Model Explorer (google-ai-edge): the graph, and norms of cotangents as node data."""

import math
from collections.abc import Iterator, Mapping

from .. import palette
from ..scene import Box, Json, Scene, SceneNode, Shown


def explorer_graphs(scene: Scene) -> dict[str, Json]:
    """The graph collection that Model Explorer opens: boxes are namespaces, the backward pass an overlay."""
    boxes = {box.id: box for box in scene.boxes}
    incoming: dict[int, list[Json]] = {}
    for edge in scene.edges:
        if edge.kind in ("data", "enter"):
            incoming.setdefault(edge.target[0], []).append(
                {
                    "sourceNodeId": str(edge.source[0]),
                    "sourceNodeOutputId": str(edge.source[1]),
                    "targetNodeInputId": str(edge.target[1]),
                }
            )
    nodes: list[Json] = [_explorer_node(node, scene, boxes, incoming.get(node.id, [])) for node in scene.nodes]
    graph: dict[str, Json] = {"id": scene.title or "graph", "nodes": nodes}
    backward: list[Json] = [
        {"sourceNodeId": str(e.target[0]), "targetNodeId": str(e.source[0]), "label": e.share.text}
        for e in scene.edges
        if e.active and e.share is not None
    ]
    if backward:
        colour = palette.THEMES["light"]["backward"]
        overlay: Json = {"name": "backward pass", "edgeColor": colour, "edges": backward}
        data: Json = {"name": "jaxprop", "type": "edge_overlays", "overlays": [overlay]}
        graph["tasksData"] = {"edgeOverlaysDataListLeftPane": [data]}
    return {"label": scene.title or "jaxprop", "graphs": [graph]}


def explorer_data(scene: Scene) -> dict[str, Json]:
    """Node data for Model Explorer: log10 of the norm of each cotangent."""
    ramp = palette.RAMPS["light"]
    gradient: list[Json] = [{"stop": i / (len(ramp) - 1), "bgColor": colour} for i, colour in enumerate(ramp)]
    name = "log10 norm of the cotangent"
    results: dict[str, Json] = dict(_norms_by_node(scene))
    return {scene.title or "graph": {"name": name, "results": results, "gradient": gradient}}


def _norms_by_node(scene: Scene) -> Iterator[tuple[str, Json]]:
    for node in scene.nodes:
        cotangents = [out.cotangent for out in node.outputs if out.cotangent is not None]
        if any(cotangent.nonfinite for cotangent in cotangents):
            yield str(node.id), {"value": 0, "bgColor": palette.THEMES["light"]["bad"], "textColor": "#ffffff"}
            continue
        norms = [cotangent.norm for cotangent in cotangents if cotangent.norm]
        if norms:
            yield str(node.id), {"value": float(f"{math.log10(max(norms)):.4g}")}


def _explorer_node(node: SceneNode, scene: Scene, boxes: Mapping[str, Box], incoming: list[Json]) -> Json:
    outputs: list[Json] = [
        {
            "id": str(i),
            "attrs": [{"key": "__tensor_tag", "value": out.name}, {"key": "type", "value": out.type}],
        }
        for i, out in enumerate(node.outputs)
    ]
    return {
        "id": str(node.id),
        "label": next((out.short for out in node.outputs if out.name == node.name and out.short), node.name),
        "namespace": "/".join(_namespace(node.box, boxes)),
        "attrs": [{"key": key, "value": value} for key, value in _attributes(node, scene) if value],
        "incomingEdges": incoming,
        "outputsMetadata": outputs,
    }


def _namespace(box: str | None, boxes: Mapping[str, Box]) -> list[str]:
    path: list[str] = []
    while box is not None:
        # The id tells boxes of one name apart; a slash would open another level.
        path.append(f"{boxes[box].name.replace('/', '.')} ({box})")
        box = boxes[box].parent
    return path[::-1]


def _attributes(node: SceneNode, scene: Scene) -> Iterator[tuple[str, str]]:
    yield "kind", node.kind
    yield "primitive", node.primitive
    yield "expression", node.label
    yield "operation", node.call
    if node.source is not None:
        line = scene.sources[node.source]
        yield "source", f"{line.file}:{line.line} {line.text}"
    for out in node.outputs:
        for word, shown in (("value", out.value), ("cotangent", out.cotangent)):
            if shown is not None:
                yield f"{word} of {out.name or '_'}", _number_text(shown)


def _number_text(shown: Shown) -> str:
    return shown.text if not shown.nonfinite else f"{shown.text} ({shown.nonfinite} not finite)"
