"""Where a model comes from: a reference such as ``net.py:build`` becomes a `ModelSource`.

Opening ``file.py:factory`` or ``module:factory`` RUNS that Python code, as ``python file.py`` does:
open only files you would run. A bundle that names user code is refused without `trust_code`. ONNX
files and bundles of ONNX alone are data; opening them imports no torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ..artifact.content_hash import hash_file
from ..artifact.onnx_file import external_files, read_onnx
from ..errors import MissingPart, ModelError, one_line
from .kept_code import import_root, neighbours, record_code
from .user_code import (
    FILE_MODULES,
    attribute,
    check_takes_no_arguments,
    on_path,
    read_source,
    run_file,
    user_code_runs,
)
from .zoo.catalogue import build_zoo, zoo_entry

if TYPE_CHECKING:
    import torch

    from ..artifact.bundle import Bundle

FORMS = (
    "model.onnx, file.py:factory, module:factory, a bundle's directory, hf:DIR_OR_ID, zoo:NAME or "
    "timm:NAME"
)
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, read and checked.

    Attributes:
        kind: ``onnx`` (see `path`) or ``torch`` (see `module`).
        reference: the text it was opened by.
        sha256: of all that defines it: the ONNX file with its external data; or the factory's
            source files, every parameter and buffer (name, shape, dtype, bytes).
        path: the ONNX file, for kind ``onnx``.
        module: the ``torch.nn.Module`` in eval mode with its weights loaded, for kind ``torch``.
        user_code: see `kept_code.record_code`: of the Python file that built it, or None when no
            code of the user's ran (a bundle's ONNX file runs none). A manifest keeps it.
        weights: the safetensors file that was loaded, if any.
        tokenizer: the file that makes a text the model's inputs, where one comes with it.
        classes: names of its outputs, in their order, where they come with it.
    """

    kind: Literal["onnx", "torch"]
    reference: str
    sha256: str
    path: Path | None = None
    module: Any = None
    user_code: dict[str, Any] | None = None
    weights: Path | None = None
    tokenizer: Path | None = None
    classes: list[str] | None = None


def open_model(
    reference: str, weights: Path | None = None, trust_code: bool = False, seed: int = 0
) -> ModelSource:
    """Open the model that `reference` names.

    Args:
        reference: ``model.onnx``; ``file.py:factory`` or ``module:factory``, a callable without
            arguments that returns a ``torch.nn.Module`` (this RUNS the file); the directory of a
            bundle (its fp32 ONNX); ``hf:DIR_OR_ID``, a text classifier; ``zoo:resnet20``;
            ``timm:NAME``.
        weights: a ``.safetensors`` file for the module that a factory builds.
        trust_code: open a bundle although its manifest names user code.
        seed: of first weights that are drawn at random.

    Returns:
        The source. Factories run with torch's seed at `seed`, so that one that draws its first
        weights at random gives the same model, and the same hash, in every run.

    Raises:
        ModelError: the file is missing, empty or damaged; the factory is missing, raises, needs
            arguments or returns no module; the weights do not fit or are not finite.
        MissingPart: torch, timm or transformers is needed and not installed.
        BundleError: the bundle is damaged, or names user code without `trust_code`.
    """
    reference = str(reference)
    scheme, _, name = reference.partition(":")
    if scheme == "hf":
        _no_weights(reference, weights, "the model's directory carries its own")
        return _open_hf(reference, name)
    if scheme == "zoo":
        return _open_factory(reference, *_zoo_factory(name), weights, seed)
    if scheme == "timm":
        return _open_factory(reference, *_timm_factory(name), weights, seed)
    path = Path(reference)
    if not reference:
        raise ModelError(f"no model was named; give {FORMS}")
    if path.is_dir():
        _no_weights(reference, weights, "a bundle carries its own")
        return _open_bundle(reference, path, trust_code)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        _no_weights(reference, weights, "an ONNX file carries its own")
        return _open_onnx(reference, path)
    if suffix in (*PICKLED, ".safetensors"):
        raise ModelError(
            f"{reference}: weights alone are no model; name the code that builds it, as in "
            "net.py:build --weights w.safetensors"
        )
    if suffix == ".py":
        raise ModelError(f"{reference} names no factory; write {reference}:NAME")
    target, colon, factory = reference.rpartition(":")
    if colon and target and factory:
        if target.endswith(".py"):
            return _open_python_file(reference, Path(target), factory, weights, seed)
        if not Path(target).exists() and all(p.isidentifier() for p in target.split(".")):
            return _open_python_module(reference, target, factory, weights, seed)
    if path.is_file():
        raise ModelError(f"{reference} is no model that can be opened; give {FORMS}")
    raise ModelError(f"no model at {reference}; give {FORMS}")


def _no_weights(reference: str, weights: Path | None, why: str) -> None:
    if weights is not None:
        raise ModelError(f"{reference} takes no --weights {weights}: {why}")


# ---------------------------------------------------------------- ONNX files and bundles


def _open_onnx(reference: str, path: Path) -> ModelSource:
    model = read_onnx(path)
    digest = hashlib.sha256(hash_file(path).encode())
    for data in external_files(model, path):
        digest.update(f"{data.name}:{hash_file(data)}".encode())
    return ModelSource("onnx", reference, digest.hexdigest(), path=path)


def _open_bundle(reference: str, path: Path, trust_code: bool) -> ModelSource:
    """The float ONNX file of a bundle; its user code, if any, built that file and runs no more. A
    training's bundle has none yet: its network is built, from the zoo or the code it keeps."""
    from ..artifact.bundle import open_bundle
    from .trained_bundle import TOKENIZER, WEIGHTS, build_trained, is_trained

    bundle = open_bundle(path, trust_code)
    brings = {"tokenizer": _of_bundle(bundle, TOKENIZER), "classes": _classes(bundle)}
    if not is_trained(bundle):
        return replace(_open_onnx(reference, bundle.file("model.onnx")), **brings)
    with _seeded(reference):
        module = build_trained(bundle)
    digest = module_sha256(module, bundle.manifest.model["sha256"], [])
    code, weights = bundle.manifest.model["user_code"], bundle.file(WEIGHTS)
    return ModelSource(
        "torch", reference, digest, module=module, user_code=code, weights=weights, **brings
    )


def _of_bundle(bundle: Bundle, name: str) -> Path | None:
    return bundle.file(name) if name in bundle.manifest.files else None


def _classes(bundle: Bundle) -> list[str] | None:
    file = _of_bundle(bundle, "classes.txt")
    return file.read_text(encoding="utf-8").splitlines() if file else None


# ---------------------------------------------------------------- factories and libraries


def _open_hf(reference: str, name: str) -> ModelSource:
    _import_torch(reference)
    from .hf_model import hf_tokenizer, open_hf

    with _seeded(reference):
        found = open_hf(name)
    return ModelSource(
        "torch",
        reference,
        module_sha256(found.module, reference, []),
        module=found.module,
        tokenizer=hf_tokenizer(name),
        classes=found.classes,
    )


def _zoo_factory(name: str) -> tuple[Callable[[], Any], list[Path]]:
    return lambda: build_zoo(name), [Path(__file__).parent / "zoo" / f"{zoo_entry(name).file}.py"]


def _timm_factory(name: str) -> tuple[Callable[[], Any], list[Path]]:
    from .timm_model import build_timm, timm_library

    return lambda: build_timm(name), [Path(timm_library(name).__file__)]


def _open_python_file(
    reference: str, file: Path, factory: str, weights: Path | None, seed: int
) -> ModelSource:
    text = read_source(reference, file, ModelError)
    with _seeded(reference, seed):
        module = run_file(reference, file, text, ModelError)
    folder = file.resolve().parent
    return _open_attribute(reference, module, factory, file, text, weights, seed, folder)


def _open_python_module(
    reference: str, name: str, factory: str, weights: Path | None, seed: int
) -> ModelSource:
    with on_path(Path.cwd()):
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError) as e:
            raise ModelError(f"{reference}: module {name} cannot be found: {one_line(e)}") from e
        if found is None or not found.origin or not found.origin.endswith(".py"):
            raise ModelError(
                f"{reference}: no Python module {name} here; give file.py:factory, or one that "
                "is installed or lies in this directory"
            )
        file = Path(found.origin)
        text = read_source(reference, file, ModelError)
        with _seeded(reference, seed), user_code_runs(reference, file, Path.cwd(), ModelError):
            module = importlib.import_module(name)
    return _open_attribute(reference, module, factory, file, text, weights, seed, Path.cwd())


def _open_attribute(
    reference: str,
    module: ModuleType,
    name: str,
    file: Path,
    text: str,
    weights: Path | None,
    seed: int,
    folder: Path,
) -> ModelSource:
    found = attribute(reference, module, name, file, ModelError)
    imported = None if module.__name__.startswith(FILE_MODULES) else module.__name__
    root = import_root(file, imported)
    source = _open_factory(reference, found, [file], weights, seed, folder, root)
    return replace(source, user_code=record_code(reference, file, text, imported))


def _open_factory(
    reference: str,
    factory: Any,
    files: list[Path],
    weights: Path | None,
    seed: int,
    folder: Path | None = None,
    root: Path | None = None,
) -> ModelSource:
    """`folder`: where code of the user's finds its neighbours, `root`: where they lie; None: it is
    not the user's."""
    torch = _import_torch(reference)
    from .weights import check_finite, load_weights

    if isinstance(factory, torch.nn.Module):
        module = factory  # `model = Net()` at the top of the file: what it is cannot be mistaken
    else:
        check_takes_no_arguments(reference, factory, ModelError, "a torch.nn.Module")
        with _seeded(reference, seed), user_code_runs(reference, files[0], folder, ModelError):
            module = factory()
    if not isinstance(module, torch.nn.Module):
        raise ModelError(
            f"{reference} returned {_a(type(module).__name__)}; it must return a torch.nn.Module"
        )
    if weights is not None:
        load_weights(module, Path(weights))
    check_finite(module, f"{reference}" if weights is None else f"{weights}")
    sources = files + (neighbours(files[0], root) if folder else [])
    return ModelSource(
        "torch",
        reference,
        module_sha256(module.eval(), reference, sources),
        module=module,
        weights=None if weights is None else Path(weights),
    )


def _import_torch(reference: str) -> Any:
    try:
        import torch
    except ImportError as e:
        raise MissingPart(
            f"{reference} needs torch, which does not import here ({one_line(e)}); install "
            "edgeml-toolchain[train], or give a .onnx file"
        ) from e
    return torch


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiouAEIOU" else f"a {noun}"


@contextlib.contextmanager
def _seeded(reference: str, seed: int = 0) -> Iterator[None]:
    """torch's seed is `seed` inside, and as before afterwards."""
    torch = _import_torch(reference)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the GPUs', which no one would reset
        yield


def module_sha256(module: torch.nn.Module, reference: str, sources: list[Path]) -> str:
    """Over the source files, the factory's name and every parameter and buffer in use (also
    buffers that a state dict leaves out)."""
    import torch

    digest = hashlib.sha256(reference.rpartition(":")[2].encode())
    for file in sources:
        digest.update(hash_file(file).encode())
    tensors = {**dict(module.named_buffers()), **module.state_dict()}
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, torch.Tensor):  # get_extra_state() may be anything
            digest.update(f"{name}={tensor!r}".encode())
            continue
        digest.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        plain = tensor.detach().cpu().contiguous()
        if plain.numel():
            digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
