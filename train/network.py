"""The network that a training starts from: built by its name, its head checked against the data."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..artifact.content_hash import hash_file, hash_json
from ..errors import DataError, InputError, one_line
from .model_source import open_model
from .training_data import TrainingData
from .weights import load_weights
from .zoo.catalogue import ZOO, build_zoo, zoo_options

if TYPE_CHECKING:
    from .training_run import TrainingRequest


@dataclass(frozen=True)
class Network:
    """A module ready to be trained.

    Attributes:
        input_name: of its one input, by ``forward``'s signature.
        how: what builds it again: ``{"zoo", "options"}`` or ``{"factory"}`` with `user_code`.
        code_sha256: of all that defines it apart from what training changes.
    """

    module: nn.Module
    input_name: str
    how: dict[str, Any]
    user_code: dict[str, str] | None
    code_sha256: str

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def open_network(request: TrainingRequest, data: TrainingData) -> Network:
    """Build the network; a zoo network is given the data's classes, channels and size.

    Raises:
        ModelError: it cannot be built, or its weights do not fit.
        DataError: it does not take a sample, or has another number of classes than the data.
    """
    name = request.model.removeprefix("zoo:")
    network = _zoo_network(name, request, data) if name in ZOO else _other_network(name, request)
    _check_head(network.module, request, data)
    return network


def _zoo_network(name: str, request: TrainingRequest, data: TrainingData) -> Network:
    known = zoo_options(name)
    sample = next(iter(data.sample().values()))
    follows: dict[str, Any] = {"classes": data.class_count}
    if ZOO[name].takes == "image":
        if sample.ndim != 3:
            raise DataError(f"{name} takes images, {data.source} gives {_shape(sample)}")
        follows["channels"] = sample.shape[0]
        if "size" in known:
            follows["size"] = sample.shape[1]
    else:
        if sample.ndim != 1 or sample.dtype != "int64":
            raise DataError(f"{name} takes texts, {data.source} gives {_shape(sample)}")
        if data.vocabulary is not None:
            follows["vocabulary"] = data.vocabulary
        if "max_length" in known:
            follows["max_length"] = sample.shape[0]
    # The defaults too: a run must build the same network when they change.
    options = {**known, **follows, **request.options}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(request.settings.seed)
        module = build_zoo(name, options)
    if request.weights:
        load_weights(module, Path(request.weights))
    code = {
        "zoo": hash_file(Path(__file__).parent / "zoo" / f"{ZOO[name].file}.py"),
        "weights": hash_file(Path(request.weights)) if request.weights else None,
    }
    return Network(
        module, _input_name(module), {"zoo": name, "options": options}, None, hash_json(code)
    )


def _other_network(name: str, request: TrainingRequest) -> Network:
    if request.options:
        raise InputError(
            f"--{next(iter(request.options))} varies networks of the zoo, {name} is none"
        )
    if ":" not in name and not Path(name).exists():
        from .zoo.catalogue import zoo_entry

        zoo_entry(name)  # raises, and names the nearest
    source = open_model(name, Path(request.weights) if request.weights else None)
    if source.module is None:
        raise InputError(
            f"{name} is an ONNX file, which cannot be trained; give the code that builds it"
        )
    if source.user_code is None:
        raise InputError(f"{name} cannot be trained yet; give a zoo name or file.py:factory")
    factory = name.rpartition(":")[2]
    return Network(
        source.module,
        _input_name(source.module),
        {"factory": factory},
        source.user_code,
        source.sha256,
    )


def _input_name(module: nn.Module) -> str:
    required = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(required) != 1:
        raise DataError(
            f"{type(module).__name__}.forward takes {len(required)} inputs "
            f"({', '.join(required)}); --data feeds networks of one"
        )
    return required[0]


def _check_head(module: nn.Module, request: TrainingRequest, data: TrainingData) -> None:
    sample = next(iter(data.sample().values()))
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            outputs = module(torch.from_numpy(sample[None]))
    except Exception as e:
        raise DataError(
            f"{request.model} does not take a sample of {data.source} "
            f"({_shape(sample)}): {one_line(e)}"
        ) from e
    module.train(was_training)
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise DataError(f"{request.model} gives no [N, classes] logits; it cannot classify")
    if outputs.shape[1] != data.class_count:
        raise DataError(
            f"{data.source} has {data.class_count} classes, {request.model} has "
            f"{outputs.shape[1]} outputs; change its last layer, or --classes"
        )


def _shape(array: Any) -> str:
    return f"{'×'.join(map(str, array.shape))} {array.dtype}"
