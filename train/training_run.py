"""One training from words to a run's directory: the work of `edgeml train`."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..artifact.atomic_file import write_json, write_text
from ..artifact.bundle import write_manifest
from ..artifact.content_hash import hash_file, hash_json
from ..artifact.machine import describe_machine, tool_versions
from ..artifact.manifest import Manifest
from ..artifact.work_directory import WorkDirectory
from ..errors import InputError
from .batches import ArrayBatches
from .checkpoint import Checkpoint, weights_of
from .curves import write_curves
from .losses import classification_loss
from .metrics import ClassificationScores, score_classifier, validator
from .network import Network, open_network
from .processes import FabricProcesses, OneProcess, check_shares, processes_here
from .settings import TrainSettings
from .tokenizer import TokenizerSettings
from .trained_bundle import TOKENIZER, WEIGHTS
from .training_data import TrainingData, open_training_data
from .training_loop import FitResult, OnStep, fit

REQUEST, CHECKPOINT = "request.json", "checkpoint.safetensors"
EVALUATION_BATCH = 256


class TrainingRequest(BaseModel):
    """What is trained on what; with `settings` everything a run depends on besides file contents.

    Attributes:
        model: a zoo name, or anything `train.model_source` builds a torch module from.
        options: of a zoo network: width, blocks …
        augment: ``flip``, ``crop`` (moved by up to an eighth of the side).
        tokenizer: how texts become ids; for text data only.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: str
    classes: str | None = None
    preprocess: dict[str, Any] | None = None
    on_bad_sample: Literal["error", "skip"] = "error"
    augment: tuple[Literal["flip", "crop"], ...] = ()
    tokenizer: TokenizerSettings = TokenizerSettings()
    settings: TrainSettings


@dataclass(frozen=True)
class TrainingResult:
    """What `run_training` did.

    Attributes:
        scores: by split, over all of its samples; None for processes other than the first.
    """

    output: Path
    fit: FitResult
    scores: dict[str, ClassificationScores] | None


def read_request(output: Path) -> TrainingRequest:
    """The request of an unfinished run, for `--resume`.

    Raises:
        InputError: there is none, or it is finished.
    """
    file = output.parent / f"{output.name}.part" / REQUEST
    if not file.is_file():
        done = (output / "manifest.json").is_file()
        why = "it is finished" if done else f"there is no unfinished run at {file.parent}"
        raise InputError(f"--resume {output}: {why}")
    try:
        return TrainingRequest.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError as e:
        raise InputError(f"--resume {output}: {file} is damaged; train anew") from e


def run_training(
    request: TrainingRequest,
    output: Path,
    *,
    log: Callable[[str], None],
    on_step: OnStep | None = None,
) -> TrainingResult:
    """Train, score, and write the run's directory; the same call goes on with a killed run.

    Under torchrun every process calls it; the first one writes and logs.

    Raises:
        InputError: model, data or settings cannot be used, or do not fit each other; `output`
            exists; the unfinished run there has other code, data or settings (which is told).
    """
    processes = processes_here()
    first = processes.rank == 0
    log = log if first else (lambda line: None)
    part = output.parent / f"{output.name}.part"
    with WorkDirectory(output, "training") if first else nullcontext() as work:
        log(f"opening {request.data}")
        data = open_training_data(request, part if first else None)
        for note in data.notes:
            log(note)
        network = open_network(request, data)
        data = replace(data, input_name=network.input_name)
        train = data.batches("train", request.settings.batch, request.augment)
        check_shares(train.samples, train.batch, processes.world)
        identity = {
            "settings": request.settings.model_dump(mode="json"),
            "model": {"reference": request.model, **request.options},
            "code": network.code_sha256,
            "data": data.fingerprint,
            "augmentation": list(request.augment),
            "processes": processes.world,
        }
        checkpoint = Checkpoint(part / CHECKPOINT, identity)
        if work is not None:
            checkpoint.load()  # refuses another training before anything of this one is written
            write_json(part / REQUEST, request.model_dump(mode="json"))
            if not work.events():
                work.log("begun", "training")
        result, scores = _train(request, data, train, network, checkpoint, processes, log, on_step)
        if work is None:
            return TrainingResult(output, result, None)
        root = work.fresh_contents()
        _write_run(root, output, request, data, network, result, scores)
        work.publish()
    return TrainingResult(output, result, scores)


def _train(
    request: TrainingRequest,
    data: TrainingData,
    train: ArrayBatches,
    network: Network,
    checkpoint: Checkpoint,
    processes: OneProcess | FabricProcesses,
    log: Callable[[str], None],
    on_step: OnStep | None,
) -> tuple[FitResult, dict[str, ClassificationScores]]:
    settings = request.settings
    loss = classification_loss(settings)
    first = processes.rank == 0
    held_out = {split: data.batches(split, EVALUATION_BATCH) for split in ("validation", "test")}
    log(
        f"training {request.model} ({network.parameters:,} parameters) on {train.samples:,} "
        f"samples, {data.size_bytes / 2**20:,.0f} MB decoded"
    )
    result = fit(
        network.module,
        train,
        settings,
        loss=loss,
        validate=validator(held_out["validation"], loss, data.class_count),
        checkpoint=checkpoint,
        processes=processes,
        log=log,
        on_step=on_step if first else None,
    )
    scores = {
        split: score_classifier(network.module, batches, loss, data.class_count)
        for split, batches in held_out.items()
        if first
    }
    return result, scores


def _write_run(
    root: Path,
    output: Path,
    request: TrainingRequest,
    data: TrainingData,
    network: Network,
    result: FitResult,
    scores: dict[str, ClassificationScores],
) -> None:
    """Fill the run's directory: weights, preprocessing, classes, curves, scores, and the manifest."""
    from safetensors.torch import save_file

    weights = {n: t.contiguous() for n, t in weights_of(network.module).items()}
    save_file(weights, root / WEIGHTS)
    data.write_preprocess(root)
    facts = data.facts
    if data.tokenizer is not None:
        write_text(root / TOKENIZER, data.tokenizer.read_text(encoding="utf-8"))
        # The cache may be emptied; the run's own copy stays with it.
        moved = data.source.replace(str(data.tokenizer), f"{output}/{TOKENIZER}")
        facts = {**facts, "source": moved}
    if data.classes:
        write_text(root / "classes.txt", "".join(f"{name}\n" for name in data.classes))
    write_curves(result.epochs, root)
    write_json(
        root / "scores.json",
        {
            "summary": result.summary(),
            "best_epoch": result.best_epoch,
            "execution": result.execution.values(),
            **{split: asdict(found) for split, found in scores.items()},
        },
    )
    sample = data.sample()
    with torch.inference_mode():
        outputs = network.module(**{n: torch.from_numpy(a[None]) for n, a in sample.items()})
    manifest = Manifest(
        edgeml_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        name=request.model.rpartition(":")[2],
        model={
            "kind": "torch",
            "reference": request.model,
            "sha256": hash_json(
                {"code": network.code_sha256, "weights": hash_file(root / WEIGHTS)}
            ),
            "trained": network.how,
            "user_code": network.user_code,
        },
        recipe=request.model_dump(mode="json"),
        data=facts,
        seed=request.settings.seed,
        tools=tool_versions(),
        machine=describe_machine(),
        inputs=[
            {"name": n, "shape": [None, *a.shape], "dtype": str(a.dtype)} for n, a in sample.items()
        ],
        outputs=[{"name": "output", "shape": [None, *outputs.shape[1:]], "dtype": "float32"}],
        engines=[],
        shipped=None,
    )
    write_manifest(root, manifest)
