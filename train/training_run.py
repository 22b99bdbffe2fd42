"""One training from words to a run's directory: the work of `edgeml train`."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..artifact.atomic_file import write_json, write_text
from ..artifact.bundle import write_manifest
from ..artifact.content_hash import hash_file, hash_json
from ..artifact.machine import describe_machine, tool_versions
from ..artifact.manifest import Manifest
from ..artifact.tensor_spec import TensorSpec
from ..artifact.work_directory import WorkDirectory
from ..errors import InputError
from ..runtime.engine import EngineOptions
from ..runtime.torch_engine import TorchEngine
from .batches import ArrayBatches
from .checkpoint import Checkpoint, weights_of
from .curves import write_curves
from .metrics import ClassificationScores
from .network import Network, open_network
from .processes import FabricProcesses, OneProcess, check_shares, processes_here
from .settings import TrainSettings
from .task_data import TaskData, TaskScores, open_task_data
from .tokenizer import TokenizerSettings
from .trained_bundle import WEIGHTS
from .training_data import TrainingData, open_training_data
from .training_loop import FitResult, OnStep, fit
from .weights import write_safetensors

REQUEST, CHECKPOINT = "request.json", "checkpoint.safetensors"


class TrainingRequest(BaseModel):
    """What is trained on what; with `settings` everything a run depends on besides file contents.

    Attributes:
        model: a zoo name, or anything `train.model_source` builds a torch module from.
        options: of a zoo network: width, blocks …; of a timm network, what `create_model` takes.
        data, task: where samples come from; exactly one of them is given.
        augment: ``flip``, ``crop`` (moved by up to an eighth of the side).
        tokenizer: how texts become ids; for text data only.
        fully_shard: split gradients and the optimizer's state over the processes of torchrun.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    options: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    data: str | None = None
    task: str | None = None
    classes: str | None = None
    preprocess: dict[str, Any] | None = None
    on_bad_sample: Literal["error", "skip"] = "error"
    augment: tuple[Literal["flip", "crop"], ...] = ()
    tokenizer: TokenizerSettings = TokenizerSettings()
    fully_shard: bool = False
    settings: TrainSettings


@dataclass(frozen=True)
class TrainingResult:
    """What `run_training` did.

    Attributes:
        scores: by split, over all of its samples; None for processes other than the first.
        user_code: whether opening the run runs code of the user's.
    """

    output: Path
    fit: FitResult
    scores: dict[str, ClassificationScores | TaskScores] | None
    user_code: bool = False


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
    processes = processes_here(request.fully_shard)
    first = processes.rank == 0
    log = log if first else (lambda line: None)
    part = output.parent / f"{output.name}.part"
    with WorkDirectory(output, "training") if first else nullcontext() as work:
        log(f"opening {request.data or request.task}")
        data = _open_data(request, part if first else None)
        network = open_network(request, data)
        for note in (*data.notes, *network.notes):
            log(note)
        data = data.named(network.inputs)
        if isinstance(data, TaskData):
            data.try_out(network.module)
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
    return TrainingResult(output, result, scores, network.user_code is not None)


def _open_data(request: TrainingRequest, folder: Path | None) -> TrainingData | TaskData:
    if (request.data is None) == (request.task is None):
        raise InputError("give --data SOURCE or --task FILE.py:NAME, one of them")
    if request.task is None:
        return open_training_data(request, folder)
    for name in ("classes", "preprocess", "augment"):
        if getattr(request, name):
            raise InputError(
                f"{name} is for --data; the inputs of --task are made by its samples()"
            )
    return open_task_data(request.task, folder)


def _train(
    request: TrainingRequest,
    data: TrainingData | TaskData,
    train: ArrayBatches,
    network: Network,
    checkpoint: Checkpoint,
    processes: OneProcess | FabricProcesses,
    log: Callable[[str], None],
    on_step: OnStep | None,
) -> tuple[FitResult, dict[str, ClassificationScores | TaskScores]]:
    settings = request.settings
    loss = data.loss(settings)
    first = processes.rank == 0
    log(
        f"training {request.model} ({network.parameters:,} parameters) on {train.samples:,} "
        f"samples, {data.size_bytes / 2**20:,.0f} MB decoded"
    )
    result = fit(
        network.module,
        train,
        settings,
        loss=loss,
        validate=lambda module: data.validate(module, loss),
        checkpoint=checkpoint,
        processes=processes,
        log=log,
        on_step=on_step if first else None,
    )
    scores = {
        split: data.score(network.module, split, loss) for split in ("validation", "test") if first
    }
    return result, scores


def _write_run(
    root: Path,
    output: Path,
    request: TrainingRequest,
    data: TrainingData | TaskData,
    network: Network,
    result: FitResult,
    scores: dict[str, ClassificationScores | TaskScores],
) -> None:
    """Fill the run's directory: weights, preprocessing, classes, curves, scores, and the manifest."""
    weights = {n: t.contiguous() for n, t in weights_of(network.module).items()}
    write_safetensors(weights, root / WEIGHTS)
    data.write(root)
    for name, text in network.files.items():
        write_text(root / name, text)
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
    sample = {name: array[None] for name, array in data.sample().items()}
    engine = TorchEngine(network.module, sample, None, EngineOptions(batch=None))
    manifest = Manifest(
        edgeml_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        name=Path(request.model.rpartition(":")[2]).name,
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
        data=data.facts_in(output),
        seed=request.settings.seed,
        tools=tool_versions(),
        machine=describe_machine(),
        inputs=_specs(engine.input_specs),
        outputs=_specs(engine.output_specs),
        engines=[],
        shipped=None,
    )
    write_manifest(root, manifest)


def _specs(specs: list[TensorSpec]) -> list[dict[str, Any]]:
    return [{"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in specs]
