"""The search for a target that is not this machine: made, checked and scored here, timed there.

For TensorRT every candidate is a graph with its types, linted for the version, shown to NVIDIA's parser and builder
where TensorRT-RTX can stand in, and scored in ONNX Runtime at its level BASIC with every FP16 result rounded to
FP16. For a CPU the engines of its own runtimes run here. Accuracy got that way is *emulated*; latency is
*not measured*: only the device tells.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from ..artifact.atomic_file import write_json
from ..artifact.boards import lowest_capability
from ..artifact.manifest import TensorRTBuild
from ..artifact.measurement import Measurement, not_measured
from ..artifact.result_row import EngineRow
from ..artifact.target import Target
from ..artifact.tensorrt_versions import TensorRTVersion, trtexec_typing
from ..errors import BuildError, DiskFull, EdgemlError, InputError, MissingPart, one_line
from ..export.lint_finding import grouped
from ..export.model_files import model_bytes
from ..export.qdq_lint import lint
from ..export.tensorrt_plan import (
    Profile,
    build_engine,
    engine_name,
    profiles_from_shapes,
    stand_in,
    trtexec_line,
)
from ..runtime.engine import Engine, load_file
from ..train.evaluate import evaluate, score_rows
from .accuracy_cause import tell_outliers
from .budget import Budget
from .build_engines import Trial, build, caveat, fail, quantized_model, verify
from .candidates import MODELOPT_QAT_ROUTE, Candidate
from .job import Job
from .search import (
    any_keeps,
    judge_all,
    lacking_row,
    network_misses,
    open_reference,
    score,
    trains_quantized,
)
from .stage_keys import data_key
from .stages import Stages
from .target_candidates import Candidates, target_candidates, target_version
from .target_graph import GRAPH, write_typed_graph

SHOWN = 3  # findings of the linter told with a row; `edgeml lint` lists all
# Where a graph's engines go when they are built beside the bundle, in which nothing may be added.
ENGINES = "../engines"


def search_for_target(
    job: Job, target: Target, stages: Stages, budget: Budget, others: Sequence[Trial] = ()
) -> list[Trial]:
    """Make, check and score every candidate for `target`.

    Args:
        others: loaded engines of the original network, scored beside a pruned one's.

    Returns:
        The reference's trial first, then the candidates; their engines stand for the target's.

    Raises:
        InputError: the recipe asks for what the target cannot execute.
        ParityError: the torch module's export does not compute what it does.
    """
    operators = job.info.op_counts
    found = target_candidates(job.recipe, target, operators, module=job.module)
    reference, samples = open_reference(job, stages)
    own = job.own_engine(reference.engine)
    if not target.by_tensorrt and job.module is None:
        # The float graph is an engine of the target itself, as it is of this machine.
        reference.candidate, reference.file = Candidate(reference.row.runtime, "fp32"), job.onnx
        reference.row.size_bytes = model_bytes(job.onnx)
        engines = [c for c in found.engines if c.id != reference.row.id]
        found = replace(found, engines=engines)
    trials = [reference, *others, *_try(job, target, found, stages, own, samples)]
    score(job, trials, stages, None, "score")
    judge_all(trials, budget)
    wanted = "proven" if job.recipe.strict else "plausible"
    missed = not any_keeps(job, trials, budget, wanted)
    curable = not (missed and network_misses(trials, budget, stages))
    if job.settings and missed and curable:
        more = target_candidates(job.recipe, target, operators, True, job.module)
        if more.engines:
            stages.log("the budget is missed: trying the slower calibration methods")
            slow = _scored(job, target, more, stages, reference, own, samples)
            tell_outliers(trials, slow, stages)
            trials += slow
            judge_all(trials, budget)
    if target.by_tensorrt and trains_quantized(job, not any_keeps(job, trials, budget, wanted)):
        trials += _scored(
            job, target, _trained(job, trials, stages), stages, reference, own, samples
        )
        judge_all(trials, budget)
    if curable and target.by_tensorrt and not any_keeps(job, trials, budget, wanted):
        fewest = _fewest_bits(job, reference, trials, stages)
        if fewest.engines:
            stages.log("the budget is missed: seeking the fewest layers to leave in float")
            trials += _scored(job, target, fewest, stages, reference, own, samples)
            judge_all(trials, budget)
    for trial in trials[1:]:
        _say_how(trial.row, target)
    return trials


def _scored(
    job: Job,
    target: Target,
    found: Candidates,
    stages: Stages,
    reference: Trial,
    own: Engine,
    samples: list[dict],
) -> list[Trial]:
    extra = _try(job, target, found, stages, own, samples)
    score(job, [reference, *extra], stages, None, "score")
    return extra


def _trained(job: Job, trials: list[Trial], stages: Stages) -> Candidates:
    """QAT by ModelOpt; nothing where no INT8 engine of the network could be made without."""
    from .quantize_modelopt_qat import QuantizeModeloptQat

    int8 = [
        t.candidate
        for t in trials[1:]
        if t.engine and t.candidate and t.candidate.precision == "int8"
    ]
    if not int8:
        why = "it trains the INT8 engine, and none can be made of this network"
        return Candidates(lacking=[(MODELOPT_QAT_ROUTE, why)])
    try:
        step = QuantizeModeloptQat(job, job.recipe.step("qat"), stages)
    except MissingPart as e:
        return Candidates(lacking=[(MODELOPT_QAT_ROUTE, str(e))])
    return Candidates([Candidate(int8[0].runtime, "int8", "fp16", step)])


def _fewest_bits(job: Job, reference: Trial, trials: list[Trial], stages: Stages) -> Candidates:
    """ModelOpt with as few layers in float as keep the budget (`auto_quantize`), of each quantized precision that
    was tried; where there is a torch module, data and time."""
    routes = job.settings.routes if job.settings else ()
    budget = job.recipe.max_drop_points
    if job.module is None or job.opened is None or budget is None or stages.out_of_time():
        return Candidates()
    if routes is not None and "modelopt" not in routes:
        return Candidates()
    from .auto_quantize import AutoQuantizeModelopt

    def drop(file: Path) -> float:
        """Points lost on validation by a Q/DQ file as it is written; what fails loses everything."""
        options = replace(job.options, as_written=True)
        with load_file(file, "onnxruntime", options) as engine:
            task, name = job.opened.task, reference.row.id
            engines = {name: reference.engine, "try": engine}
            batch = job.recipe.batch
            done = evaluate(engines, task, "validation", batch=batch, reference_id=name)
            scored = score_rows(done, task, name).get("try")
        found = scored.drop_points.value if scored else None
        return float("inf") if found is None else found

    made = {t.row.precision: t.candidate for t in trials[1:] if t.candidate and t.candidate.step}
    engines = []
    for precision, candidate in made.items():
        try:
            step = AutoQuantizeModelopt(
                job.module,
                drop,
                budget,
                "fp8" if precision == "fp8" else "max",
                job.settings.nodes_to_exclude,
                scored_on=data_key(job, stages),
            )
        except MissingPart:
            continue  # the route's own row says so
        engines.append(Candidate(candidate.runtime, precision, "fp16", step))
    return Candidates(engines)


def _try(
    job: Job,
    target: Target,
    found: Candidates,
    stages: Stages,
    own: Engine,
    samples: list[dict],
) -> list[Trial]:
    if target.by_tensorrt:
        trials = [_tensorrt_trial(job, target, candidate, stages) for candidate in found.engines]
    else:
        trials = build(job, found.engines, stages)
    alive = sum(trial.engine is not None for trial in trials)
    stages.log(f"verifying {alive} engines on {len(samples)} samples")
    verify(job, trials, own, samples)
    return trials + [Trial(lacking_row(route, reason)) for route, reason in found.lacking]


def _tensorrt_trial(job: Job, target: Target, candidate: Candidate, stages: Stages) -> Trial:
    row = EngineRow(
        id=candidate.id,
        runtime=candidate.runtime,
        precision=candidate.precision,
        execution=candidate.execution,
        route=candidate.route,
        mark=caveat(job, candidate),
    )
    trial = Trial(row, candidate)
    version = target_version(job.recipe, target)
    if stages.out_of_time():
        fail(trial, f"not tried: --time {job.recipe.time_s:g} s were used up")
        return trial
    try:
        trial.file, facts = typed_model(job, candidate, version, stages)
        row.warnings += facts["notes"]
        numerics = trial.file.with_name(facts["numerics"])
        options = replace(job.options, as_written=True)
        trial.engine = load_file(numerics, "onnxruntime", options)
        row.size_bytes = model_bytes(trial.file)
        trial.build = tensorrt_build(job, target, version, trial, facts, stages)
    except (InputError, DiskFull) as e:
        if not isinstance(e, MissingPart):
            raise
        fail(trial, str(e))
    except EdgemlError as e:
        fail(trial, str(e))
    except Exception as e:  # whatever ONNX Runtime raises while it loads
        fail(trial, f"{type(e).__name__}: {one_line(e)}")
    return trial


def typed_model(
    job: Job, candidate: Candidate, version: TensorRTVersion, stages: Stages
) -> tuple[Path, dict[str, Any]]:
    """The graph that TensorRT builds from, made by stages that the cache may already hold.

    Returns:
        The file, and ``{"numerics": the file beside it that is scored, "kept": {node: reason}, "notes": […]}``.

    Raises:
        BuildError: a route failed, or the linter found what the version would not build or make wrong.
    """
    source, key, notes = job.onnx, job.onnx_key, []
    if candidate.step is not None:
        source, notes = quantized_model(job, candidate.step, stages)
        key = source.parent.name
    fp16 = candidate.execution == "fp16"
    calibration = job.calibration()

    def make(directory: Path) -> None:
        typed = write_typed_graph(source, directory, version, fp16, calibration)
        report = lint(typed.path, version, shapes=dict(job.options.input_shapes or ()))
        if report.errors:
            first, *others = grouped(report.errors)
            more = f" and {len(others)} more" if others else ""
            raise BuildError(f"TensorRT {version.name}: {first}{more}")
        lines = grouped(report.findings)
        told = lines[:SHOWN]
        if len(lines) > SHOWN:
            told.append(f"and {len(lines) - SHOWN} more findings; edgeml lint lists them")
        write_json(
            directory / "typed.json",
            {
                "numerics": typed.numerics.name,
                "kept": typed.kept,
                "notes": [f"{candidate.id}: {note}" for note in _worth_telling(typed.notes, told)],
            },
        )

    libraries = ("onnx", "onnxruntime", "onnxconverter-common")
    facts = {
        "model": key,
        "tensorrt": version.name,
        "fp16": fp16,
        "versions": {name: installed(name) for name in libraries},
        "candidate": candidate.id,
    }
    if fp16:
        facts["samples"] = calibration.fingerprint
    line = f"writing the {candidate.precision} graph for TensorRT {version.name}"
    stage = stages.run("tensorrt-graph", facts, line, make)
    values = json.loads((stage / "typed.json").read_text(encoding="utf-8"))
    return stage / GRAPH, {**values, "notes": notes + values["notes"]}


def _worth_telling(notes: list[str], findings: list[str]) -> list[str]:
    """Nodes left in fp32 and findings; that nodes were cast or rewritten is what was asked for."""
    return [n for n in notes if not n.startswith(("FP16: ", "rewritten: "))] + findings


def tensorrt_build(
    job: Job,
    target: Target,
    version: TensorRTVersion,
    trial: Trial,
    facts: dict[str, Any],
    stages: Stages,
) -> TensorRTBuild:
    """How the device builds the trial's graph, and whether NVIDIA's own parser and builder take it.

    Raises:
        BuildError: TensorRT-RTX itself is the target and refuses the graph.
    """
    precision = trial.row.precision
    int8, fp16 = precision in ("int8", "fp8"), trial.row.execution == "fp16"
    shapes = {name: list(shape) for name, shape in job.options.input_shapes or ()}
    profiles = profiles_from_shapes(trial.file, {}, _open_inputs(trial.file, shapes), {})
    state, library, warnings = _legality(trial.file, target, version, profiles, stages)
    trial.row.warnings += [f"{trial.row.id}: {line}" for line in warnings]
    name = f"model.{precision}"
    number = "" if version.rtx else version.name  # its own number is known when it builds
    plan = engine_name(name, version.module, number, target.compute_capability or "SMxx")
    plan = plan.replace("-smxx", "")
    if version.rtx:
        command = (
            f"edgeml export . --to tensorrt-rtx --precision {precision} -o ../{name}-rtx "
            f"--compute-capability {target.compute_capability}"
        )
    else:
        command = trtexec_line(
            Path(f"{name}.onnx"),
            Path(ENGINES, plan),
            version,
            profiles,
            int8=int8,
            fp16=fp16,
            timing_cache=Path(ENGINES, f"timing.trt{version.name}.cache"),
        )
    return TensorRTBuild(
        tensorrt=version.name,
        form="typed" if version.strong else "flags",
        flags=list(trtexec_typing(version, int8, fp16)),
        profiles={n: (p.minimum, p.optimum, p.maximum) for n, p in profiles.items()},
        needs=lowest_capability(precision) or "SM75",
        plan=plan,
        command=command,
        state=state,
        stand_in=library,
        fp32_nodes=facts["kept"] if version.strong else {},
    )


def _open_inputs(onnx: Path, shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The shapes of inputs that have open axes; the others need no profile."""
    from ..export.onnx_check import inspect_onnx

    return {s.name: shapes[s.name] for s in inspect_onnx(onnx).inputs if None in s.shape}


def _legality(
    graph: Path,
    target: Target,
    version: TensorRTVersion,
    profiles: dict[str, Profile],
    stages: Stages,
) -> tuple[str, str | None, list[str]]:
    """Whether TensorRT-RTX takes the graph: state, what took it, and what should be told."""
    try:
        library = installed("tensorrt-rtx-cu13")
    except ModuleNotFoundError:
        why = "TensorRT-RTX is not installed: the graph was linted, not parsed by NVIDIA's parser"
        return "written", None, [why]
    capability = stand_in(target.compute_capability or "SM89")

    def make() -> dict[str, str | None]:
        try:
            build_engine(graph, None, "tensorrt_rtx", profiles, compute_capability=capability)
        except (BuildError, MissingPart) as e:
            return {"refused": str(e)}
        return {"refused": None}

    key = {"graph": graph.parent.name, "library": library, "capability": capability}
    line = f"building it by TensorRT-RTX for {capability}, to see that it is legal"
    refused = stages.values("tensorrt-legal", key, line, make)["refused"]
    if refused is None:
        return "legal", f"TensorRT-RTX {library} for {capability}", []
    if version.rtx:
        raise BuildError(refused)
    return "written", None, [f"TensorRT-RTX {library}, which stands in here, refuses it: {refused}"]


def _say_how(row: EngineRow, target: Target) -> None:
    """Rows keep apart what was measured: accuracy here stands for the target's, latency is unknown."""
    if row.status == "failed":
        return
    row.metrics = {name: emulated(m) for name, m in row.metrics.items()}
    row.change_points, row.drop_points = emulated(row.change_points), emulated(row.drop_points)
    row.flips = emulated(row.flips)
    row.latency_p50_ms = not_measured("ms", f"not measured on {target.name}: edgeml deploy does")
    runtime = "onnxruntime" if target.by_tensorrt else f"{row.runtime} here"
    row.mark = ", ".join(filter(None, [row.mark, f"numerics by {runtime}"]))


def emulated(m: Measurement | None) -> Measurement | None:
    """The same number, marked as got by another engine than the one that ships."""
    if m is None or m.value is None:
        return m
    return m.model_copy(update={"how": "emulated"})
