"""The network that a training starts from: built by its name, its head checked against the data."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..artifact.content_hash import hash_file, hash_json
from ..errors import DataError, InputError, ModelError, one_line
from .decoded import DecodedSplits
from .model_source import module_sha256, open_model
from .trained_bundle import CONFIG
from .training_data import TrainingData
from .weights import load_weights
from .zoo.catalogue import ZOO, build_zoo, zoo_options

if TYPE_CHECKING:
    from .training_run import TrainingRequest


@dataclass(frozen=True)
class Network:
    """A module ready to be trained.

    Attributes:
        inputs: names, by ``forward``'s signature.
        how: what builds it again: ``{"zoo", "options"}``, ``{"timm", "options"}``, ``{"hf"}`` with
            the files, or ``{"factory"}`` with `user_code`.
        code_sha256: of all that defines it before training.
        files: by name, what the run's directory must hold to build it again.
        notes: what the user should know of how it was made.
    """

    module: nn.Module
    inputs: Sequence[str]
    how: dict[str, Any]
    user_code: dict[str, Any] | None
    code_sha256: str
    files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())


def open_network(request: TrainingRequest, data: DecodedSplits) -> Network:
    """Build the network; one of the zoo or of timm is given the data's classes, channels and size.

    First weights that are drawn at random follow the request's seed.

    Raises:
        ModelError: it cannot be built, or its weights do not fit.
        DataError: it does not take a sample, or has another number of classes than the data.
    """
    scheme, _, rest = request.model.partition(":")
    name = request.model.removeprefix("zoo:")
    if name in ZOO:
        network = _zoo_network(name, request, data)
    elif scheme == "timm":
        network = _timm_network(rest, request, data)
    elif scheme == "hf":
        network = _hf_network(rest, request, data)
    else:
        network = _other_network(name, request)
    _check_head(network, request, data)
    return network


def _zoo_network(name: str, request: TrainingRequest, data: DecodedSplits) -> Network:
    known = zoo_options(name)
    sample = next(iter(data.sample().values()))
    follows: dict[str, Any] = {}
    if isinstance(data, TrainingData):
        follows["classes"] = data.class_count
    if ZOO[name].takes == "image":
        if sample.ndim != 3:
            raise DataError(f"{name} takes images, {data.source} gives {_shape(sample)}")
        follows["channels"] = sample.shape[0]
        if "size" in known:
            follows["size"] = sample.shape[1]
    else:
        if sample.ndim != 1 or sample.dtype != "int64":
            raise DataError(f"{name} takes texts, {data.source} gives {_shape(sample)}")
        if isinstance(data, TrainingData) and data.vocabulary is not None:
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
    how = {"zoo": name, "options": options}
    return Network(module, input_names(module), how, None, hash_json(code))


def _timm_network(name: str, request: TrainingRequest, data: DecodedSplits) -> Network:
    from .timm_model import build_timm, load_timm_weights

    sample = next(iter(data.sample().values()))
    if sample.ndim != 3:
        raise DataError(f"timm:{name} takes images, {data.source} gives {_shape(sample)}")
    follows = {"in_chans": sample.shape[0]}
    if isinstance(data, TrainingData):
        follows["num_classes"] = data.class_count
    options = {**follows, **request.options}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(request.settings.seed)
        module = build_timm(name, options)
    notes: tuple[str, ...] = ()
    if request.weights and load_timm_weights(module, Path(request.weights)):
        notes = (f"{request.weights} has another number of classes: the head starts anew",)
    how = {"timm": name, "options": options}
    code = module_sha256(module, name, [])
    return Network(module, input_names(module), how, None, code, notes=notes)


def _hf_network(name: str, request: TrainingRequest, data: DecodedSplits) -> Network:
    from .hf_model import INPUTS, config_text, open_hf

    if request.options or request.weights:
        given = "weights" if request.weights else next(iter(request.options))
        raise InputError(f"--{given} is not for hf: models, whose directory says all")
    if not isinstance(data, TrainingData):
        raise InputError(f"hf:{name} is trained on --data text-csv:FILE, not with --task")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(request.settings.seed)
        found = open_hf(name, data.classes or data.class_count)
    notes = ("the model has no classification head: a new one is trained",) * found.new_head
    return Network(
        found.module,
        INPUTS,
        {"hf": CONFIG},
        None,
        module_sha256(found.module, name, []),
        {CONFIG: config_text(found.module)},
        notes,
    )


def _other_network(name: str, request: TrainingRequest) -> Network:
    if request.options:
        raise InputError(
            f"--{next(iter(request.options))} varies networks of the zoo, {name} is none"
        )
    if ":" not in name and not Path(name).exists():
        from .zoo.catalogue import zoo_entry

        zoo_entry(name)  # raises, and names the nearest
    weights = Path(request.weights) if request.weights else None
    source = open_model(name, weights, seed=request.settings.seed)
    if source.module is None:
        raise InputError(
            f"{name} is an ONNX file, which cannot be trained; give the code that builds it"
        )
    if source.user_code is None:
        raise InputError(f"{name} cannot be trained yet; give a zoo name or file.py:factory")
    factory = name.rpartition(":")[2]
    return Network(
        source.module,
        input_names(source.module),
        {"factory": factory},
        source.user_code,
        source.sha256,
    )


def input_names(module: nn.Module) -> list[str]:
    """Of the inputs that ``module.forward`` cannot do without.

    Raises:
        ModelError: there is none.
    """
    names = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not names:
        raise ModelError(f"{type(module).__name__}.forward takes no input; edgeml cannot feed it")
    return names


def _check_head(network: Network, request: TrainingRequest, data: DecodedSplits) -> None:
    """Whether the network takes a sample, and gives as many classes as the data has."""
    module, sample = network.module, data.named(network.inputs).sample()
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            outputs = module(**{n: torch.from_numpy(a[None]) for n, a in sample.items()})
    except Exception as e:
        shapes = ", ".join(_shape(array) for array in sample.values())
        raise DataError(
            f"{request.model} does not take a sample of {data.source} ({shapes}): {one_line(e)}"
        ) from e
    module.train(was_training)
    if not isinstance(data, TrainingData):
        return
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        raise DataError(f"{request.model} gives no [N, classes] logits; it cannot classify")
    if outputs.shape[1] != data.class_count:
        raise DataError(
            f"{data.source} has {data.class_count} classes, {request.model} has "
            f"{outputs.shape[1]} outputs; change its last layer, or --classes"
        )


def _shape(array: Any) -> str:
    return f"{'×'.join(map(str, array.shape))} {array.dtype}"
