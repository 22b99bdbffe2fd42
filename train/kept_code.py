"""A user's code as a bundle keeps it: the file that builds the network, and what it imports beside it."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import tempfile
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from ..artifact.content_hash import hash_bytes, hash_json
from ..errors import BundleError, ModelError
from .user_code import (
    attribute,
    check_takes_no_arguments,
    read_source,
    run_file,
    user_code_runs,
)


def neighbours(file: Path, root: Path | None = None) -> list[Path]:
    """Loaded modules of the user's at or below `root` (by default the folder of `file`): they
    define the model as much as the file does, so they belong into its hash and its bundle."""
    folder = str((root or file.resolve().parent).resolve()) + os.sep
    standard = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
    found = set()
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if not origin or name.split(".")[0] == __package__.split(".")[0]:
            continue  # ours are versioned by the tool, and differ by what was imported before
        path = Path(origin)
        if not path.is_absolute() or not path.is_file():
            continue  # torch.classes says "_classes.py", a file that is nowhere
        inside = str(path.resolve()).startswith(folder) and not origin.startswith(standard)
        if inside and path.suffix == ".py" and "site-packages" not in path.parts:
            found.add(path.resolve())
    return sorted(found - {file.resolve()})


def import_root(file: Path, module: str | None = None) -> Path:
    """The folder that imports start at: that of the file, or of the package that `module` is in."""
    root = file.resolve().parent
    for _ in range((module or "").count(".") + (bool(module) and file.name == "__init__.py")):
        root = root.parent
    return root


def record_code(reference: str, file: Path, text: str, module: str | None = None) -> dict[str, Any]:
    """What a manifest holds of the code: call it after the network was built, when all is imported.

    Args:
        text: of `file`, as it was run.
        module: its dotted name, where it was imported by one.

    Returns:
        ``{"file", "text", "sha256"}``; with ``neighbours`` (text by path from the folder that the
        imports start at) where there are any, and ``module``.

    Raises:
        ModelError: a neighbour is not UTF-8 text.
    """
    root = import_root(file, module)
    beside = {
        path.relative_to(root).as_posix(): read_source(reference, path, ModelError)
        if path.read_bytes().strip()
        else ""
        for path in neighbours(file, root)
    }
    code: dict[str, Any] = {"file": file.resolve().relative_to(root).as_posix(), "text": text}
    if beside:
        code["neighbours"] = beside
    if module and "site-packages" not in file.resolve().parts:
        code["module"] = module  # of an installed package the one text is kept, and run by itself
    return {**code, "sha256": hash_json(code) if beside else hash_bytes(text.encode())}


def run_kept_code(reference: str, code: Any, factory: str) -> Any:
    """What `factory` of a manifest's code returns. This RUNS the code.

    Raises:
        BundleError: the record is no such code, names a file outside its folder, or what it holds
            raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = _write(reference, code, Path(folder))
        reference = f"{reference}: {file.name}:{factory}"
        for name in _module_names([*code.get("neighbours", {}), code["file"]]):
            sys.modules.pop(name, None)  # of another bundle, or of the folder it was trained in
        module = _load(reference, file, code, Path(folder))
        function = attribute(reference, module, factory, file, BundleError)
        check_takes_no_arguments(reference, function, BundleError, "a torch.nn.Module")
        with user_code_runs(reference, file, Path(folder), BundleError):
            return function()


def _write(reference: str, code: Any, folder: Path) -> Path:
    try:
        texts = {**code.get("neighbours", {}), code["file"]: code["text"]}
        for name, text in texts.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or path.suffix != ".py":
                raise BundleError(f"{reference}: its manifest names the code file {name!r}")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        return folder / code["file"]
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as e:
        raise BundleError(f"{reference}: its manifest keeps no code that can be run") from e


def _module_names(files: list[str]) -> list[str]:
    parts = [PurePosixPath(name).with_suffix("").parts for name in files]
    return [".".join(p[:-1] if p[-1] == "__init__" else p) for p in parts]


def _load(reference: str, file: Path, code: dict[str, Any], folder: Path) -> ModuleType:
    if "module" not in code:
        return run_file(reference, file, code["text"], BundleError)
    with user_code_runs(reference, file, folder, BundleError):
        found = importlib.import_module(str(code["module"]))
    if Path(found.__file__ or "").resolve() != file.resolve():
        raise BundleError(
            f"{reference}: {code['module']} comes from {found.__file__}, not from the bundle"
        )
    return found
