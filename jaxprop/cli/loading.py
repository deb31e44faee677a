"""The function a command is about, and its arguments, as they are written on the command line."""

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
from typing import Any

from ..core.selectors import nearest
from .command import CommandError
from .values import read_value


@dataclass(frozen=True)
class Call:
    """A function and the arguments to call it with.

    Attributes:
        fun: the function.
        args, kwargs: its arguments.
        argnums: the positions of the differentiated ones.
        names: their names.
    """

    fun: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    argnums: int | tuple[int, ...]
    names: tuple[str, ...]

    def apply(self, transform: Callable[..., Callable[..., Any]], **settings: Any) -> Any:
        """`transform(fun, argnums, **settings)(*args, **kwargs)`, for `backprop`, `trace` and the like."""
        return transform(self.fun, self.argnums, **settings)(*self.args, **self.kwargs)


def add_arguments(parser: argparse.ArgumentParser, shapes: bool = False) -> None:
    """Add what says which function, with which arguments. With `shapes`, types will do: `w=f32[64,10]`."""
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
        help="a function that returns the arguments: a tuple, or a dict by name (may stand in the same file)",
    )
    parser.add_argument(
        "--wrt", metavar="NAMES", help="arguments to differentiate, by name: w or w,b (default: the first)"
    )
    parser.add_argument("--x64", action="store_true", help="compute in double precision")


def load(options: argparse.Namespace) -> Call:
    """The function and its arguments, as `add_arguments` has them.

    Raises:
        CommandError: a file, a name, a value or an argument is wrong; the message says which.
    """
    show = options.debug
    file, fun = load_function(options.target, show)
    signature = _signature(fun)
    args, kwargs = (), {}
    if options.args is not None:
        own = options.args if ":" in options.args else f"{file}:{options.args}"
        args, kwargs = _made_arguments(own, show)
    more, named = _read_arguments(options.arguments, options.shapes)
    if args and more:
        raise CommandError(f"{options.args} gives the arguments in order already; give more of them by name.")
    bound = _bind(fun, signature, (*args, *more), {**kwargs, **named})
    argnums, names = _differentiated(fun, signature, bound, options.wrt)
    args = list(bound.args)
    for i in (argnums,) if isinstance(argnums, int) else argnums:
        args[i] = _as_float(args[i])
    return Call(fun, tuple(args), bound.kwargs, argnums, names)


def _as_float(x: Any) -> Any:
    """A whole number that is to be differentiated, as the number it is meant to be."""
    return float(x) if isinstance(x, int) and not isinstance(x, bool) else x


# --- the function ----------------------------------------------------------------------------------


def load_function(target: str, show: bool = False) -> tuple[str, Callable[..., Any]]:
    """Load `FILE.py:FUNCTION` or `MODULE:FUNCTION`; returns the file or module, and the function.

    A file is imported under its own name, never as `__main__`. What it prints is shown only with `show`.

    Raises:
        CommandError: there is no such file or function, or the file cannot be imported.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise CommandError(f"a target is FILE.py:FUNCTION, got {target!r}.{_functions_hint(target, show)}")
    module = _load_module(place, show)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise CommandError(f"there is no {name!r} in {place}.{_nearest_function(name, module)}")
        found = getattr(found, part)
    if not callable(found):
        raise CommandError(f"{name!r} in {place} is {_a(type(found).__name__)}, no function.")
    return place, found


def _a(word: str) -> str:
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def _functions_hint(target: str, show: bool) -> str:
    if not target.endswith(".py") or not os.path.isfile(target):
        return ""
    functions = _functions(_load_module(target, show))
    return f" Functions there: {', '.join(functions[:8])}." if functions else ""


def _functions(module: Any) -> list[str]:
    own = [
        n for n, x in vars(module).items() if callable(x) and getattr(x, "__module__", "") == module.__name__
    ]
    return [name for name in own if not name.startswith("_")]


def _nearest_function(name: str, module: Any) -> str:
    functions = _functions(module)
    return (
        nearest(name, functions).replace("names", "functions").replace("Names", "Functions")
        if functions
        else ""
    )


def _load_module(place: str, show: bool) -> Any:
    is_file = place.endswith(".py") or os.sep in place
    if is_file and not os.path.isfile(place):
        raise CommandError(f"there is no file {place}.{_nearest_file(place)}")
    said = sys.stderr if show else io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            return _import_file(Path(place).resolve()) if is_file else _import_module(place)
    except (CommandError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise CommandError(
            f"{place} ends the process while it is imported (exit code {error.code})."
        ) from error
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
    """The last line of the file that was being run."""
    file, line, at = os.path.realpath(place), None, error.__traceback__
    while at is not None:
        if os.path.realpath(at.tb_frame.f_code.co_filename) == file:
            line = at.tb_lineno
        at = at.tb_next
    return f" [line {line}]" if line is not None else ""


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0]


def _nearest_file(place: str) -> str:
    folder = Path(place).parent
    if not folder.is_dir():
        return f" There is no folder {folder}."
    files = sorted(path.name for path in folder.glob("*.py"))
    if not files:
        return f" There are no .py files in {folder}."
    hint = nearest(Path(place).name, files)
    return hint.replace("names", "files").replace("Names", "Files")


def _import_module(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        if importlib.util.find_spec(name.split(".")[0]) is None:
            raise CommandError(f"there is no module {name!r}; a file ends in .py.")
        return importlib.import_module(name)
    finally:
        sys.path.remove(os.getcwd())


def _import_file(file: Path) -> Any:
    """Import a file under its own path; its folder comes first on the path, as when Python runs it.

    A file of a package is imported as the package's module, so that its relative imports work.
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
    if name in sys.modules or "." in name:  # the name is another's
        name = f"_jaxprop_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CommandError(f"{file} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# --- the arguments -----------------------------------------------------------------------------------


def _signature(fun: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(fun)
    except (TypeError, ValueError):
        return None


def _read_arguments(texts: Sequence[str], shapes: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, named = [], {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            if named:
                raise CommandError(
                    f"{text!r} comes after an argument by name: give it by name too, NAME={text}."
                )
            args.append(read_value(text, f"argument {len(args) + 1}", shapes))
        elif name in named:
            raise CommandError(f"the argument {name!r} is given twice.")
        else:
            named[name] = read_value(value, name, shapes)
    return tuple(args), named


def _made_arguments(target: str, show: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
    _, make = load_function(target, show)
    made = make()
    if isinstance(made, dict) and all(isinstance(key, str) for key in made):
        return (), made
    return (tuple(made), {}) if isinstance(made, tuple | list) else ((made,), {})


def _bind(
    fun: Any, signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments:
    name = getattr(fun, "__name__", "the function")
    if signature is None:
        signature = inspect.Signature([inspect.Parameter(f"arg{i}", _POSITIONAL) for i in range(len(args))])
    spelled = f"{name}{signature}"
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    for key in kwargs:
        if key not in signature.parameters and not takes_any:
            hint = nearest(key, list(signature.parameters)) if signature.parameters else ""
            hint = hint.replace("names", "arguments").replace("Names", "Arguments")
            raise CommandError(f"{spelled} has no argument {key!r}.{hint}")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CommandError(
            f"{spelled} cannot be called so: {error}.{_missing(signature, args, kwargs)}"
        ) from None


_POSITIONAL = inspect.Parameter.POSITIONAL_ONLY


def _missing(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    needed = [
        p.name
        for i, p in enumerate(signature.parameters.values())
        if p.default is p.empty
        and i >= len(args)
        and p.name not in kwargs
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f" Give {', '.join(f'{name}=...' for name in needed)}." if needed else ""


def _differentiated(
    fun: Any, signature: inspect.Signature | None, bound: inspect.BoundArguments, wrt: str | None
) -> tuple[int | tuple[int, ...], tuple[str, ...]]:
    names = [
        name
        for name in bound.arguments
        if signature is None or signature.parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    positional = names[: len(bound.args)]
    if not positional:
        raise CommandError(f"{getattr(fun, '__name__', 'the function')} is given no argument to differentiate.")
    if wrt is None:
        return 0, (positional[0],)
    asked = [part.strip() for part in wrt.split(",") if part.strip()]
    for name in asked:
        if name not in positional:
            hint = nearest(name, positional).replace("names", "arguments").replace("Names", "Arguments")
            raise CommandError(f"--wrt: there is no argument {name!r} to differentiate.{hint}")
    numbers = tuple(positional.index(name) for name in asked)
    return (numbers[0] if len(numbers) == 1 else numbers), tuple(asked)
