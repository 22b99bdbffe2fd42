"""The result on disk: engine files as they are, the ONNX beside them, and all that was measured."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..artifact.atomic_file import write_json, write_text
from ..artifact.bundle import MANIFEST, write_manifest
from ..artifact.machine import describe_machine, tool_versions
from ..artifact.manifest import EngineEntry, Manifest
from ..artifact.result_row import ResultTable
from ..artifact.target import Target
from ..artifact.work_directory import JOURNAL, WorkDirectory
from ..export.model_files import model_files
from ..train.trained_bundle import HISTORY, TOKENIZER, WEIGHTS
from .build_engines import Trial
from .example_script import example_script
from .job import REFERENCE_SAMPLES, Job, batched
from .stages import Stages
from .target_script import build_script


def write_bundle(
    job: Job,
    shipped: Trial,
    reference: Trial,
    table: ResultTable,
    work: WorkDirectory,
    stages: Stages,
    beside: Sequence[Trial] = (),
    target: Target | None = None,
    student: Path | None = None,
) -> None:
    """Fill ``OUT.part`` and rename it to OUT.

    Everything is written anew, so that what a killed run left there cannot end up in a bundle.

    Args:
        beside: engines of other precisions, for a device to choose from.
        target: where they run, where that is not this machine.
        student: the folder of a pruned network's history and weights, which build it again.
    """
    stages.log("writing the bundle")
    root = work.fresh_contents()
    _copy(job.onnx, root, "model.onnx")
    entry = _entry(job, shipped, root, target)
    entries = [entry, *(_entry(job, trial, root, target, beside=True) for trial in beside)]
    opened = job.opened
    if opened is not None and opened.preprocess is not None:
        write_json(root / "preprocess.json", opened.preprocess.model_dump(mode="json"))
    tokenizer = opened.tokenizer if opened is not None else None
    if tokenizer is not None:
        shutil.copyfile(tokenizer, root / TOKENIZER)
    classes = getattr(opened.task, "classes", None) if opened else None
    if classes:
        write_text(root / "classes.txt", "".join(f"{name}\n" for name in classes))
    _write_reference_tensors(job, shipped, root)
    if student is not None:
        for name in (WEIGHTS, HISTORY):
            shutil.copyfile(student / name, root / name)
    write_text(root / "recipe.yaml", job.recipe.to_yaml())
    write_text(root / JOURNAL, "".join(f"{json.dumps(event)}\n" for event in work.events()))
    write_json(root / "results.json", table.model_dump(mode="json"))
    if any(e.build for e in entries):
        write_text(root / "build.sh", build_script(entries))
    write_text(
        root / "example.py",
        example_script(
            entry, opened.preprocess if opened else None, classes, tokenizer is not None
        ),
    )
    manifest = _manifest(job, entries, table, reference, target)
    if student is not None and (how := _built_by(job)):
        manifest = manifest.model_copy(update={"model": {**manifest.model, "trained": how}})
    write_manifest(root, manifest)
    work.publish()


def _built_by(job: Job) -> dict[str, Any] | None:
    """The words that build the unpruned network without code of the user's: a zoo network's. Of any
    other one the bundle holds history and weights, and its own factory builds it."""
    reference = job.recipe.model
    if reference.startswith("zoo:"):
        return {"zoo": reference.removeprefix("zoo:"), "options": {}}
    manifest = Path(reference) / MANIFEST
    if not manifest.is_file():
        return None
    trained = json.loads(manifest.read_text(encoding="utf-8"))["model"].get("trained")
    return trained if isinstance(trained, dict) and "zoo" in trained else None


def _entry(
    job: Job, trial: Trial, root: Path, target: Target | None, beside: bool = False
) -> EngineEntry:
    """Copy an engine's files, and its expected outputs where it lies beside the one that ships."""
    reference = f"reference.{trial.row.precision}.safetensors" if beside else None
    if reference:
        _write_reference_tensors(job, trial, root, reference)
    return EngineEntry(
        id=trial.row.id,
        runtime=trial.row.runtime,
        precision=trial.row.precision,
        execution=trial.row.execution,
        route=trial.row.route,
        files=_copy_engine(job, trial, root),
        # This machine's number says nothing of another's.
        threads=job.options.threads if target is None else job.recipe.threads,
        batch=job.recipe.batch,
        objective=job.recipe.objective,
        input_shapes={name: list(shape) for name, shape in job.options.input_shapes or ()},
        reference=reference,
        build=trial.build,
    )


def _copy_engine(job: Job, shipped: Trial, root: Path) -> list[str]:
    """The engine's files, the first of them the one its runtime loads; names relative to the bundle."""
    if shipped.file is None or shipped.file == job.onnx:
        return _copy(job.onnx, root, "model.onnx")
    return _copy(shipped.file, root, f"model.{shipped.row.precision}{shipped.file.suffix}")


def _copy(model: Path, root: Path, name: str) -> list[str]:
    """Copy a model's files, the first as `name`; their names relative to `root`."""
    names = {file: file.relative_to(model.parent).as_posix() for file in model_files(model)}
    names[model] = name
    if model.suffix == ".xml":  # finds its weights by its own name; ONNX by the path in the graph
        names[model.with_suffix(".bin")] = str(Path(name).with_suffix(".bin"))
    for file, place in names.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, root / place)
    return list(names.values())


def _write_reference_tensors(
    job: Job, shipped: Trial, root: Path, name: str = "reference.safetensors"
) -> None:
    """Inputs of real samples and what the shipped engine answers, to check another machine by.

    Keys are ``NNN.input.NAME`` and ``NNN.output.NAME``, arrays with the batch axis.
    """
    from safetensors.numpy import save

    from ..artifact.atomic_file import write_bytes

    if job.opened is None:
        samples = [job.sample]
    else:
        source = job.opened.task.samples("validation")
        samples = [inputs for inputs, _ in islice(source, REFERENCE_SAMPLES)]
    tensors: dict[str, np.ndarray] = {}
    for i, sample in enumerate(samples):
        inputs = batched(sample, job.recipe.batch)
        outputs = shipped.engine.run(inputs)
        tensors |= {f"{i:03}.input.{n}": array for n, array in inputs.items()}
        tensors |= {f"{i:03}.output.{n}": np.ascontiguousarray(a) for n, a in outputs.items()}
    write_bytes(root / name, save(tensors))


def _manifest(
    job: Job,
    entries: list[EngineEntry],
    table: ResultTable,
    reference: Trial,
    target: Target | None,
) -> Manifest:
    opened, final = job.opened, table.final or {}
    data: dict[str, Any] = dict(opened.facts) if opened else {"source": None}
    if opened:
        data |= {"validation_split_sha256": reference.split_hash}
        data |= {"test_split_sha256": final.get("split_hash"), "test_reads": final.get("reads", 0)}
        report = getattr(opened.task, "report", None)
        data |= {"bad_samples": report()} if report else {}
    return Manifest(
        edgeml_version=__version__,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        name=Path(job.recipe.model).stem,
        parent=job.source.sha256 if Path(job.recipe.model).is_dir() else None,
        model={
            "kind": job.source.kind,
            "reference": job.source.reference,
            "sha256": job.source.sha256,
            # The engines and the ONNX need none of the user's code, so the bundle names none to run;
            # its hash tells what the network came from.
            "code_sha256": (job.source.user_code or {}).get("sha256"),
            "user_code": None,
        },
        recipe=job.recipe.model_dump(mode="json"),
        data=data,
        seed=job.recipe.seed,
        tools=tool_versions(),
        machine=describe_machine(),
        inputs=[
            {"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in job.info.inputs
        ],
        outputs=[
            {"name": s.name, "shape": list(s.shape), "dtype": s.dtype} for s in job.info.outputs
        ],
        engines=entries,
        shipped=entries[0].id,
        target=target.model_dump(mode="json") if target else None,
        reference_files=["reference.safetensors", *(e.reference for e in entries if e.reference)],
        random_calibration=bool(job.settings and job.settings.random_calibration),
    )
