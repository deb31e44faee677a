"""`jaxprop trace`."""

import argparse
import json

from .. import _api
from ..core.graph import Graph, Node, Value
from . import loading
from .command import FINE, Command, Terminal, add_output, format_of, write_result

FORMATS = ("text", "json")


def _add_trace(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser, shapes=True)
    parser.add_argument("--operations", action="store_true", help="show every operation, not only named values")
    add_output(parser, FORMATS)


def _trace(options: argparse.Namespace, console: Terminal) -> int:
    call = loading.load(options)
    graph = call.apply(_api.trace)
    form = format_of(options, FORMATS)
    table = graph.table(operations=options.operations)
    text = table if form == "text" else json.dumps(_graph_data(graph), indent=1)
    write_result(text, options, console)
    return FINE


def _graph_data(graph: Graph) -> dict[str, object]:
    return {"nodes": [_node_data(node) for node in graph.nodes], "returns": [v.name for v in graph.outputs]}


def _node_data(node: Node) -> dict[str, object]:
    return {
        "name": node.name,
        "primitive": node.primitive,
        "scope": node.scope,
        "label": node.label,
        "source": str(node.source) if node.source else None,
        "operands": [value.name for value in node.operands],
        "outputs": [_value_data(value) for value in node.outputs],
        "active": node.active,
        "graphs": [_graph_data(nested) for nested in node.graphs],
    }


def _value_data(value: Value) -> dict[str, object]:
    return {"name": value.name, "shape": list(value.shape), "dtype": str(value.dtype), "active": value.active}


trace = Command(
    name="trace",
    help="print the computational graph of a function, from shapes alone",
    examples="""
jaxprop trace examples/worked.py:loss w=1. x=1. y=2.
jaxprop trace model.py:loss w=f32[64,10] x=f32[32,64] y=i32[32] --format json
""",
    configure=_add_trace,
    run=_trace,
)
