"""`jaxprop trace`."""

import argparse
import json
from typing import Any

from .. import _api
from ..core.graph import Graph, Node, Value
from . import loading
from .command import FINE, Command, Console, add_output, deliver, format_of

FORMATS = ("text", "json")


def _configure(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser, shapes=True)
    add_output(parser, FORMATS)


def _run(options: argparse.Namespace, console: Console) -> int:
    call = loading.load(options)
    graph = call.apply(_api.trace)
    form = format_of(options, FORMATS)
    text = str(graph) if form == "text" else json.dumps(_plain(graph), indent=1)
    deliver(text, options, console)
    return FINE


def _plain(graph: Graph) -> dict[str, Any]:
    return {"nodes": [_plain_node(node) for node in graph.nodes], "returns": [v.name for v in graph.outputs]}


def _plain_node(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "primitive": node.primitive,
        "scope": node.scope,
        "label": node.label,
        "source": str(node.source) if node.source else None,
        "operands": [value.name for value in node.operands],
        "outputs": [_plain_value(value) for value in node.outputs],
        "active": node.active,
        "graphs": [_plain(nested) for nested in node.graphs],
    }


def _plain_value(value: Value) -> dict[str, Any]:
    return {"name": value.name, "shape": list(value.shape), "dtype": str(value.dtype), "active": value.active}


trace = Command(
    name="trace",
    help="print the computational graph of a function, from shapes alone",
    examples="""
jaxprop trace examples/worked.py:loss w=1. x=1. y=2.
jaxprop trace model.py:loss w=f32[64,10] x=f32[32,64] y=i32[32] --format json
""",
    configure=_configure,
    run=_run,
)
