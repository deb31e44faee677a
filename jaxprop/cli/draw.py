"""`jaxprop draw`."""

import argparse
from pathlib import Path

from .. import _api
from ..show import Drawing, draw
from . import loading
from .command import FINE, Command, CommandError, Terminal, cannot_write

FORMATS = ("svg", "html", "dot", "mermaid", "json")
_EXTENSIONS = (".svg", ".html", ".dot", ".gv", ".mmd", ".json", ".me.json")


def _add_draw(parser: argparse.ArgumentParser) -> None:
    loading.add_arguments(parser, shapes=True)
    parser.add_argument("--graph", action="store_true", help="draw the graph without numbers; types suffice")
    parser.add_argument("--to", metavar="NAME", help="draw only the nodes between this value and the result")
    parser.add_argument("--collapse", metavar="N", help="open N levels of scopes, or all of them")
    parser.add_argument("--theme", choices=("light", "dark", "auto"), default="light", help="colours of an SVG")
    parser.add_argument("--direction", choices=("down", "right"), default="down", help="of the forward pass")
    parser.add_argument("--format", choices=FORMATS, help="format to print (default: mermaid)")
    parser.add_argument("-o", "--output", metavar="FILE", help=f"write to a file ({', '.join(_EXTENSIONS)})")


def _draw(options: argparse.Namespace, console: Terminal) -> int:
    if options.output is not None and not options.output.endswith(_EXTENSIONS):
        supported = ", ".join(_EXTENSIONS)
        raise CommandError(f"{options.output}: unsupported file extension; supported: {supported}.")
    options.shapes = options.graph
    call = loading.load(options)
    what = call.apply(_api.trace if options.graph else _api.backprop)
    try:
        drawing = draw(
            what, collapse=_collapse(options), to=options.to, theme=options.theme, direction=options.direction
        )
        _write_drawing(drawing, options, console)
    except KeyError as error:
        raise CommandError(str(error.args[0])) from error
    except (ValueError, ImportError) as error:
        raise CommandError(str(error)) from error
    return FINE


def _collapse(options: argparse.Namespace) -> bool | int | None:
    if options.collapse is None:
        return None
    if options.collapse == "all":
        return False
    if not options.collapse.isdigit():
        raise CommandError(f"--collapse {options.collapse}: expected a number of levels, or all.")
    return int(options.collapse)


def _write_drawing(drawing: Drawing, options: argparse.Namespace, console: Terminal) -> None:
    if options.output is not None:
        try:
            drawing.save(Path(options.output))
        except OSError as error:
            raise cannot_write(options.output, error) from error
        console.note(f"wrote {options.output}")
        return
    console.say(drawing.to(options.format or "mermaid").rstrip("\n"))


draw_ = Command(
    name="draw",
    help="draw a function: values, local gradients and cotangents in one picture",
    examples="""
jaxprop draw examples/worked.py:loss w=1. x=1. y=2. -o worked.svg
jaxprop draw examples/worked.py:loss w=1. x=1. y=2. -o worked.html
jaxprop draw model.py:loss --graph w=f32[64,10] x=f32[32,64] --format dot
""",
    configure=_add_draw,
    run=_draw,
)
