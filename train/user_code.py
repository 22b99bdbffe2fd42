"""Running a Python file that the user named: ``file.py:NAME`` for models, tasks and data.

Naming a file runs it, as ``python file.py`` does. What it prints goes to stderr (stdout is for
results), what it raises becomes one line of ours that names the file and the line.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError, nearest, one_line

# Modules that were run from a file, under a name of their own, begin with it.
FILE_MODULES = "edgeml_user_"


def user_attribute(reference: str, error: type[InputError]) -> tuple[Any, Path]:
    """Run ``file.py`` and look up NAME in it.

    Args:
        reference: ``file.py:NAME``.
        error: the class of error to raise.

    Returns:
        What the name stands for, and the file.

    Raises:
        InputError: as `error`: no such file, it raises, or it has no such name (the nearest is told).
    """
    file_name, _, name = reference.rpartition(":")
    if not file_name.endswith(".py") or not name:
        raise error(f"{reference} names no Python object; write FILE.py:NAME")
    file = Path(file_name)
    module = run_file(reference, file, read_source(reference, file, error), error)
    return attribute(reference, module, name, file, error), file


def run_user_function(reference: str, error: type[InputError]) -> Any:
    """Call NAME of ``file.py:NAME`` without arguments.

    Raises:
        InputError: as `error`: it is no function without arguments, or it raises.
    """
    function, file = user_attribute(reference, error)
    check_takes_no_arguments(reference, function, error)
    with user_code_runs(reference, file, file.resolve().parent, error):
        return function()


def read_source(reference: str, file: Path, error: type[InputError]) -> str:
    """The text of a Python file."""
    if not file.is_file():
        raise error(f"{reference}: no file {file}")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise error(f"{reference}: {file} is not UTF-8 text: {one_line(e)}") from e
    if not text.strip():
        raise error(f"{reference}: {file} is empty")
    return text


def run_file(reference: str, file: Path, text: str, error: type[InputError]) -> ModuleType:
    """Execute the text as a module of a name of its own."""
    # In sys.modules: dataclasses and torch.export look a class's module up there.
    name = (
        f"{FILE_MODULES}{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}_{file.stem}"
    )
    with user_code_runs(reference, file, file.resolve().parent, error):
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        # Compiled from the text that was read (and hashed), not through an older __pycache__.
        exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def attribute(
    reference: str, module: ModuleType, name: str, file: Path, error: type[InputError]
) -> Any:
    """`module.name`, or an error that names the nearest function or class of the file."""
    if hasattr(module, name):
        return getattr(module, name)
    known = [
        n
        for n, v in vars(module).items()
        if callable(v) and getattr(v, "__module__", None) == module.__name__
    ]
    hint = nearest(name, known) if known else "it defines no function or class"
    raise error(f"{reference}: {file.name} has no {name}, {hint}")


def check_takes_no_arguments(
    reference: str, function: Any, error: type[InputError], returns: str = "the samples"
) -> None:
    """Refuse what cannot be called without arguments."""
    if not callable(function):
        kind = type(function).__name__
        article = "an" if kind[0] in "aeiouAEIOU" else "a"
        raise error(
            f"{reference} is {article} {kind}; name a function without arguments that returns {returns}"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # built in C: calling it will tell
    needed = [
        p.name
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if needed:
        raise error(
            f"{reference} needs arguments ({', '.join(needed)}); give a function that takes none, "
            "or defaults"
        )


@contextlib.contextmanager
def on_path(folder: Path | None) -> Iterator[None]:
    """`folder` first on sys.path, as ``python file.py`` has it, so the file finds its neighbours."""
    if folder is None:
        yield
        return
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def user_code_runs(
    reference: str, file: Path, folder: Path | None, error: type[InputError]
) -> Iterator[None]:
    """User code inside: what it raises names the last line of `file` that took part."""
    try:
        with on_path(folder), contextlib.redirect_stdout(sys.stderr):
            yield
    except InputError:
        raise
    except (Exception, SystemExit) as e:
        lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if _same(f.filename, file)]
        if isinstance(e, SyntaxError) and e.filename and _same(e.filename, file):
            lines = [e.lineno]
        line = lines[-1] if lines else None
        at = f"{file}:{line}" if line else str(file)
        raise error(f"{reference}: {at} raised {type(e).__name__}: {one_line(e)}") from e


def _same(filename: str, file: Path) -> bool:
    return Path(filename).name == file.name and Path(filename).resolve() == file.resolve()
