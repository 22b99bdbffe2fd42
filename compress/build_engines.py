"""From candidates to loaded engines; what does not build is a row with its reason."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import write_json
from ..artifact.machine import describe_machine
from ..artifact.manifest import TensorRTBuild
from ..artifact.result_row import EngineRow
from ..errors import (
    BuildError,
    DiskFull,
    EdgemlError,
    InputError,
    ModelError,
    ParityError,
    one_line,
)
from ..export.model_files import model_bytes
from ..runtime.engine import Engine, load_file
from .candidates import Candidate
from .job import Job, batched
from .stages import Stages
from .step import QuantizationStep, apply


@dataclass
class Trial:
    """One engine under trial.

    Attributes:
        row: what is known of it so far.
        candidate: what it is; None for the torch reference, which ships nowhere.
        engine: loaded and ready; None when it failed.
        file: the file its runtime loads.
        stays: it is scored and timed in full however slow: others are measured against it.
        split_hash: of the whole validation split; the reference's trial has it, once it was scored.
        build: how the device builds it from `file`; None where `file` is loaded as it is.
    """

    row: EngineRow
    candidate: Candidate | None = None
    engine: Engine | None = None
    file: Path | None = None
    split_hash: str | None = None
    build: TensorRTBuild | None = None
    stays: bool = False


def trial_of(row: EngineRow | None, trials: Iterable[Trial]) -> Trial | None:
    """Which of `trials` has that row; None where there is no row, or it is of another."""
    return next((t for t in trials if row is not None and t.row.id == row.id), None)


def close(trials: Iterable[Trial]) -> None:
    """Let go of what their engines hold."""
    for trial in trials:
        if trial.engine is not None:
            trial.engine.close()


def build(job: Job, candidates: list[Candidate], stages: Stages) -> list[Trial]:
    """Quantize, convert and load every candidate, in order, until the time is up."""
    trials, machine = [], describe_machine()
    for candidate in candidates:
        row = EngineRow(
            id=candidate.id,
            runtime=candidate.runtime,
            precision=candidate.precision,
            execution=candidate.execution,
            route=candidate.route,
            mark=caveat(job, candidate),
        )
        trial = Trial(row, candidate)
        trials.append(trial)
        if warning := saturates(candidate, machine):
            row.warnings.append(warning)
        if stages.out_of_time():
            fail(trial, f"not tried: --time {job.recipe.time_s:g} s were used up")
            continue
        try:
            trial.file, notes = model_file(job, candidate, stages)
            row.warnings += notes
            options = replace(job.options, execution=candidate.execution)
            trial.engine = load_file(trial.file, candidate.runtime, options)
            row.size_bytes = model_bytes(trial.file)
        except (InputError, DiskFull):
            raise
        except EdgemlError as e:
            fail(trial, str(e))
        except Exception as e:  # whatever a runtime raises while it compiles
            fail(trial, f"{type(e).__name__}: {one_line(e)}")
    return trials


def caveat(job: Job, candidate: Candidate) -> str | None:
    """The row's mark: what its accuracy rests on, where that is less than labels."""
    if job.opened is None:
        return "random calibration" if candidate.step and candidate.step.calibrates else None
    agreement = getattr(job.opened.task, "targets_from_reference", False)
    return "agreement only" if agreement else None


def fail(trial: Trial, reason: str) -> None:
    """Leave a trial behind as a row with its reason."""
    trial.row.status, trial.row.reason = "failed", reason
    if trial.engine is not None:
        trial.engine.close()
    trial.engine = None


def model_file(job: Job, candidate: Candidate, stages: Stages) -> tuple[Path, list[str]]:
    """The file that the candidate's runtime loads, made by stages that the cache may already hold;
    and what its quantization had to say.

    Raises:
        BuildError: its quantization or conversion failed.
    """
    onnx, key, notes = job.onnx, job.onnx_key, []
    if candidate.step is not None:
        onnx, notes = quantized_model(job, candidate.step, stages)
        if onnx.suffix == ".xml":
            return onnx, notes
        key = onnx.parent.name
    if candidate.runtime == "onnxruntime":
        return onnx, notes
    source = onnx

    def convert(directory: Path) -> None:
        from ..export.openvino_ir import to_openvino

        try:
            to_openvino(source, directory)
        except ModelError as e:
            if candidate.step is None:
                raise
            # Not the user's file: that a library wrote it wrong costs one row, not the run.
            raise BuildError(f"{candidate.step.route} wrote a wrong file: {e}") from e

    facts = {"model": key, "openvino": version("openvino")}
    stage = stages.run("openvino-ir", facts, "converting to OpenVINO IR", convert)
    return stage / "model.xml", notes


def quantized_model(job: Job, step: QuantizationStep, stages: Stages) -> tuple[Path, list[str]]:
    """The file that a quantization step wrote, and its notes.

    Raises:
        BuildError: the library failed, or quantized nothing.
    """
    calibration = job.calibration()
    # "form": what a finished stage holds; another form is another stage.
    facts, samples = {"form": "notes.json", "model": job.onnx_key, **step.settings()}, ""
    if step.calibrates:
        facts["calibration"] = calibration.fingerprint
        samples = f" (at most {calibration.samples} calibration samples)"

    def quantize(directory: Path) -> None:
        result = apply(step, job.onnx, calibration, directory)
        write_json(directory / "notes.json", [f"{step.route}: {note}" for note in result.notes])

    stage = stages.run("quantize", facts, f"quantizing by {step.route}{samples}", quantize)
    ir, notes = stage / "model.xml", (stage / "notes.json").read_text(encoding="utf-8")
    # A route of another precision than int8 says so.
    onnx = stage / f"model.{getattr(step, 'precision', 'int8')}.onnx"
    return ir if ir.is_file() else onnx, json.loads(notes)


def saturates(candidate: Candidate, machine: dict[str, Any]) -> str | None:
    """The warning for INT8 kernels that may saturate: ONNX Runtime multiplies u8 by s8 and adds two
    products in 16 bits on x86 without VNNI (its documentation, "Quantize ONNX Models")."""
    step = candidate.step
    if step is None or candidate.runtime != "onnxruntime" or getattr(step, "reduce_range", False):
        return None
    if machine["arch"] not in ("x86_64", "AMD64") or any("vnni" in f for f in machine["isa"]):
        return None
    return (
        f"{candidate.id}: this CPU has no VNNI, where ONNX Runtime's u8s8 kernels may saturate; "
        "--reduce-range avoids it"
    )


def verify(job: Job, trials: list[Trial], reference: Engine, samples: list[dict]) -> None:
    """Compare every engine with the reference on real inputs.

    A float engine that computes something else fails, and the first layer where the outputs part is
    named. A quantized one only gets a warning: its accuracy is scored.
    """
    from ..export.parity import compare

    inputs = [batched(sample, job.recipe.batch) for sample in samples]
    for trial in trials:
        if trial.engine is None:
            continue
        try:
            report = compare(reference, trial.engine, inputs, trial.row.precision)
        except EdgemlError as e:
            fail(trial, str(e))
            continue
        if report.passed:
            continue
        if trial.row.precision in ("int8", "fp8"):
            trial.row.warnings.append(report.line)
        else:
            fail(trial, f"parity failed: {report.line}{_blame(job, trial, inputs)}")


def verify_export(job: Job, reference: Engine, samples: list[dict]) -> None:
    """Compare the torch module with its ONNX export, in whatever runtime is installed.

    Raises:
        ParityError: the export computes something else; the module where they part is named.
    """
    from ..export.blame import first_divergence_torch
    from ..export.parity import compare
    from .candidates import installed_runtimes

    runtime = installed_runtimes(None)[-1]
    inputs = [batched(sample, job.recipe.batch) for sample in samples]
    with load_file(job.onnx, runtime, job.options) as engine:
        report = compare(reference, engine, inputs, "fp32")
    if report.passed:
        return
    line = f"the ONNX export does not compute what the torch module does: {report.line}"
    with contextlib.suppress(Exception):  # a hint; the failure it explains must not be lost to it
        blame = first_divergence_torch(job.module, job.onnx, inputs[:2], "fp32", runtime)
        line += f"; {blame.line}" if blame else ""
    raise ParityError(line)


def _blame(job: Job, trial: Trial, inputs: list[dict]) -> str:
    """A clause that names the first layer where the outputs part, where it can be found."""
    from ..export.blame import first_divergence
    from .candidates import installed_runtimes

    others = [name for name in installed_runtimes(None) if name != trial.row.runtime]
    options = replace(job.options, execution=trial.row.execution)
    try:
        blame = first_divergence(
            job.onnx,
            (others or [trial.row.runtime])[0],
            trial.row.runtime,
            inputs[:2],
            trial.row.precision,
            options,
        )
    except Exception as e:  # as above
        return f" (no layer found: {one_line(e)})"
    return f"; {blame.line}" if blame else ""
