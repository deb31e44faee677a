"""Load the function a command is about, and its arguments, from the command line."""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from .._text import suggestion
from ..core.types import Function, PyTree
from .command import CommandError
from .values import read_value

Result = TypeVar("Result")


@dataclass(frozen=True)
class Invocation:
    """A function and the arguments to call it with.

    Attributes:
        fun: the function.
        args, kwargs: its arguments.
        argnums: the positions of the differentiated arguments.
        names: their names.
    """

    fun: Function
    args: tuple[PyTree, ...]
    kwargs: dict[str, PyTree]
    argnums: int | tuple[int, ...]
    names: tuple[str, ...]

    def apply(self, transform: Callable[..., Callable[..., Result]], **settings: object) -> Result:
        """`transform(fun, argnums, **settings)(*args, **kwargs)`, for `backprop`, `trace` and the like."""
        return transform(self.fun, self.argnums, **settings)(*self.args, **self.kwargs)


def add_arguments(parser: argparse.ArgumentParser, shapes: bool = False) -> None:
    """Add the options that select a function and its arguments; `shapes` allows types: `w=f32[64,10]`."""
    parser.set_defaults(shapes=shapes)
    parser.add_argument("target", metavar="FILE.py:FUNCTION", help="the function, in a file or a module")
    parser.add_argument(
        "arguments",
        metavar="ARGUMENT",
        nargs="*",
        help="NAME=VALUE or VALUE: a number, a list (an array), a dict or tuple of these, FILE.npy, FILE.npz, "
        "FILE.npz:KEY" + (", or a type such as f32[64,10]" if shapes else ""),
    )
    parser.add_argument(
        "--args",
        metavar="FILE.py:FUNCTION",
        help="a function that returns the arguments: a tuple, or a dict by name; "
        "of a function in the same file, the name is enough",
    )
    parser.add_argument(
        "--wrt", metavar="NAMES", help="arguments to differentiate, by name: w or w,b (default: the first)"
    )
    parser.add_argument("--x64", action="store_true", help="compute in double precision")


def load(options: argparse.Namespace) -> Invocation:
    """Load the function and the arguments selected by the options of `add_arguments`.

    Raises:
        CommandError: a file, a name, a value or an argument is wrong; the message says which.
    """
    file, fun = load_function(options.target, options.debug)
    args, kwargs = (), {}
    if options.args is not None:
        target = options.args if ":" in options.args else f"{file}:{options.args}"
        args, kwargs = _returned_arguments(target, options.debug)
    more, named = _read_arguments(options.arguments, options.shapes)
    if args and more:
        raise CommandError(f"{options.args} already returns the positional arguments; pass others by name.")
    signature = _signature(fun, len(args) + len(more))
    bound = _bind_arguments(fun, signature, (*args, *more), {**kwargs, **named})
    argnums, names = _differentiated(fun, signature, bound, options.wrt)
    args = list(bound.args)
    for i in (argnums,) if isinstance(argnums, int) else argnums:
        args[i] = _as_float(args[i])
    return Invocation(fun, tuple(args), bound.kwargs, argnums, names)


def _as_float(x: PyTree) -> PyTree:
    """A plain integer as a float, so that it can be differentiated; anything else unchanged."""
    return float(x) if isinstance(x, int) and not isinstance(x, bool) else x


# --- the function ----------------------------------------------------------------------------------


def load_function(target: str, show: bool = False) -> tuple[str, Function]:
    """Load `FILE.py:FUNCTION` or `MODULE:FUNCTION`; return the file or module, and the function.

    A file is imported under its own name, never as `__main__`. What it prints is shown only with `show`.

    Raises:
        CommandError: there is no such file or function, or the file cannot be imported.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise CommandError(f"a target is FILE.py:FUNCTION, got {target!r}.{_functions_hint(target, show)}")
    module = _load_module(place, show)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(
                f"there is no {name!r} in {place}.{suggestion(name, _functions(module), 'functions')}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(f"{name!r} in {place} is not a function, but {_article(type(found).__name__)}.")
    return place, found


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _functions_hint(target: str, show: bool) -> str:
    if not target.endswith(".py") or not os.path.isfile(target):
        return ""
    functions = _functions(_load_module(target, show))
    return f" Available functions: {', '.join(functions[:8])}." if functions else ""


def _functions(module: ModuleType) -> list[str]:
    """The public functions and classes a module defines."""
    return [
        name
        for name, x in vars(module).items()
        if callable(x) and getattr(x, "__module__", "") == module.__name__ and not name.startswith("_")
    ]


def _load_module(place: str, show: bool) -> ModuleType:
    is_file = place.endswith(".py") or os.sep in place
    if is_file and not os.path.isfile(place):
        raise CommandError(f"there is no file {place}.{_files_hint(place)}")
    printed = sys.stderr if show else io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            return _import_file(Path(place).resolve()) if is_file else _import_module(place)
    except (CommandError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise CommandError(f"importing {place} exits the process (exit code {error.code}).") from error
    except SyntaxError as error:
        raise CommandError(f"{place} has a syntax error at line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        if show:
            raise
        where = _line_in(error, place)
        raise CommandError(
            f"{place} cannot be imported: {type(error).__name__}: {_first_line(error)}{where} "
            "(--debug shows the traceback)"
        ) from error


def _line_in(error: Exception, place: str) -> str:
    """The last line of the file that was executed."""
    file, line, at = os.path.realpath(place), None, error.__traceback__
    while at is not None:
        if os.path.realpath(at.tb_frame.f_code.co_filename) == file:
            line = at.tb_lineno
        at = at.tb_next
    return f" [line {line}]" if line is not None else ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _files_hint(place: str) -> str:
    folder = Path(place).parent
    if not folder.is_dir():
        return f" There is no folder `{folder}`."
    files = sorted(path.name for path in folder.glob("*.py"))
    if not files:
        return f" There are no .py files in `{folder}`."
    return suggestion(Path(place).name, files, "files")


def _import_module(name: str) -> ModuleType:
    sys.path.insert(0, os.getcwd())
    try:
        if importlib.util.find_spec(name.split(".")[0]) is None:
            raise CommandError(f"there is no module {name!r}; the name of a file ends in .py.")
        return importlib.import_module(name)
    finally:
        sys.path.remove(os.getcwd())


def _import_file(file: Path) -> ModuleType:
    """Import a file under its own path; its folder comes first on the path, as when Python runs it.

    A file of a package is imported as a module of the package, so that its relative imports work.
    """
    name, root = file.stem, file.parent
    while (root / "__init__.py").exists():
        name, root = f"{root.name}.{name}", root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if "." in name:
        module = importlib.import_module(name)
        if os.path.realpath(getattr(module, "__file__", "") or "") == os.path.realpath(file):
            return module
    if name in sys.modules and os.path.realpath(getattr(sys.modules[name], "__file__", "") or "") == str(file):
        return sys.modules[name]
    if name in sys.modules or "." in name:  # another module has this name
        name = f"_jaxprop_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# --- the arguments -----------------------------------------------------------------------------------


def _signature(fun: Function, count: int) -> inspect.Signature:
    """The signature of a function; if it is unknown, that of a function of `count` positional arguments."""
    try:
        return inspect.signature(fun)
    except (TypeError, ValueError):
        positional = inspect.Parameter.POSITIONAL_ONLY
        return inspect.Signature([inspect.Parameter(f"arg{i}", positional) for i in range(count)])


def _read_arguments(texts: Sequence[str], shapes: bool) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    args, named = [], {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            if named:
                raise CommandError(
                    f"the positional argument {text!r} follows an argument by name: write NAME={text}."
                )
            args.append(read_value(text, f"argument {len(args) + 1}", shapes))
        elif name in named:
            raise CommandError(f"the argument {name!r} is given twice.")
        else:
            named[name] = read_value(value, name, shapes)
    return tuple(args), named


def _returned_arguments(target: str, show: bool) -> tuple[tuple[PyTree, ...], dict[str, PyTree]]:
    """The arguments that the function of `--args` returns: by position, by name."""
    returned = load_function(target, show)[1]()
    if isinstance(returned, dict) and all(isinstance(key, str) for key in returned):
        return (), returned
    return (tuple(returned), {}) if isinstance(returned, tuple | list) else ((returned,), {})


def _bind_arguments(
    fun: Function, signature: inspect.Signature, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]
) -> inspect.BoundArguments:
    call = f"{_name(fun)}{signature}"
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for key in kwargs:
        if key not in signature.parameters and not takes_any:
            hint = suggestion(key, signature.parameters, "arguments")
            raise CommandError(f"{call} has no argument {key!r}.{hint}")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        missing = _missing(signature, args, kwargs)
        raise CommandError(f"{call} cannot be called with these arguments: {error}.{missing}") from None


def _name(fun: Function) -> str:
    return getattr(fun, "__name__", "the function")


def _missing(signature: inspect.Signature, args: tuple[PyTree, ...], kwargs: dict[str, PyTree]) -> str:
    needed = [
        p.name
        for i, p in enumerate(signature.parameters.values())
        if p.default is p.empty
        and i >= len(args)
        and p.name not in kwargs
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f" Pass {', '.join(f'{name}=...' for name in needed)}." if needed else ""


def _differentiated(
    fun: Function, signature: inspect.Signature, bound: inspect.BoundArguments, wrt: str | None
) -> tuple[int | tuple[int, ...], tuple[str, ...]]:
    """The positions and the names of the arguments to differentiate."""
    names = [
        name
        for name in bound.arguments
        if signature.parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    positional = names[: len(bound.args)]
    if not positional:
        raise CommandError(f"{_name(fun)} was given no argument to differentiate.")
    if wrt is None:
        return 0, (positional[0],)
    asked = [part.strip() for part in wrt.split(",") if part.strip()]
    for name in asked:
        if name not in positional:
            hint = suggestion(name, positional, "arguments")
            raise CommandError(f"--wrt: there is no argument {name!r} to differentiate.{hint}")
    numbers = tuple(positional.index(name) for name in asked)
    return (numbers[0] if len(numbers) == 1 else numbers), tuple(asked)
