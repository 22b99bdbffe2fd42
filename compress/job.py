"""What a run works on: the network as ONNX, its reference, its task; made before any search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.machine import usable_threads
from ..artifact.preprocess import ImagePreprocess
from ..artifact.recipe import QuantizeStep, Recipe
from ..artifact.target import Target, find_target
from ..artifact.tensor_spec import TensorSpec
from ..errors import DataError, EdgemlError, InputError, ModelError, one_line
from ..export.onnx_check import OnnxInfo, inspect_onnx
from ..runtime.engine import Engine, EngineOptions, load_file
from ..train.model_source import ModelSource, open_model
from ..train.open_task import OpenedTask, open_data, open_user_task, require_samples
from ..train.task import Inputs
from .calibration import Calibration, random_calibration
from .candidates import require_candidates
from .node_names import match_nodes
from .stages import Stages

REFERENCE_SAMPLES = 32


@dataclass(frozen=True)
class Job:
    """A network, its task and how its engines are compiled.

    Attributes:
        onnx: the float network as ONNX, its batch axis dynamic where the network allows it.
        module: the torch module it was exported from (with what was folded into it), or None.
        teacher: the original network, where `module` was pruned or trained since; what is lost is
            counted from it.
        opened: its task; None when a run may only calibrate on noise.
        sample: one sample's inputs without the batch axis; fixes the engines' static shapes.
        options: of every engine, apart from the execution precision.
    """

    recipe: Recipe
    source: ModelSource
    onnx: Path
    onnx_key: str
    info: OnnxInfo
    module: Any
    opened: OpenedTask | None
    sample: Inputs
    options: EngineOptions
    notes: list[str] = field(default_factory=list)
    teacher: Any = None

    @property
    def settings(self) -> QuantizeStep | None:
        return self.recipe.quantize_step

    def calibration(self) -> Calibration:
        """The stream that quantization reads its ranges from."""
        settings = self.settings or QuantizeStep()
        batch = self.info.inputs[0].shape[0] or 1  # checked to be that of all, where it is fixed
        if self.opened is None:
            static = [TensorSpec(n, (1, *a.shape), str(a.dtype)) for n, a in self.sample.items()]
            return random_calibration(static, settings.calibration_samples, self.recipe.seed, batch)
        return Calibration(
            self.opened.calibration,
            settings.calibration_samples,
            self.opened.calibration_fingerprint,
            batch=batch,
        )

    def reference_engine(self) -> tuple[str, Engine]:
        """What every candidate is compared with: the torch module, or the float ONNX file.

        Returns:
            Its row id and the engine.
        """
        if self.module is not None:
            return "torch-fp32", self._torch_engine(self.teacher or self.module)
        from .candidates import installed_runtimes

        there = installed_runtimes(self.recipe.runtimes)
        runtime = "onnxruntime" if "onnxruntime" in there else there[0]
        return f"{runtime}-fp32", load_file(self.onnx, runtime, self.options)

    def own_engine(self, reference: Engine) -> Engine:
        """What engines of this network must compute: the student, where there is a teacher; else
        the reference."""
        return self._torch_engine(self.module) if self.teacher is not None else reference

    def _torch_engine(self, module: Any) -> Engine:
        from ..runtime.torch_engine import TorchEngine

        names = [spec.name for spec in self.info.outputs]
        return TorchEngine(module, batched(self.sample, self.recipe.batch), names, self.options)


def student_job(job: Job, module: Any, identity: str, stages: Stages) -> Job:
    """The job of a network that was pruned or trained from the job's own, which is its teacher.

    Args:
        module: in eval mode; the same inputs and outputs.
        identity: stands for everything that made it: structure and weights.
    """
    key = f"{job.onnx_key}:{identity}"
    source = replace(job.source, module=module)
    onnx = _export(source, job.sample, key, stages)
    return replace(
        job,
        source=source,
        onnx=onnx,
        onnx_key=key,
        info=inspect_onnx(onnx),
        module=module,
        teacher=job.teacher or job.module,
    )


def batched(sample: Inputs, batch: int) -> Inputs:
    """`sample` repeated along a new batch axis."""
    return {name: np.repeat(np.ascontiguousarray(a)[None], batch, 0) for name, a in sample.items()}


def open_job(recipe: Recipe, stages: Stages, trust_code: bool = False) -> Job:
    """Open the model and its task, export to ONNX, and check that they fit each other.

    Raises:
        InputError: model, weights, data or task cannot be used, each with its own line.
    """
    require_candidates(recipe)
    source = open_model(recipe.model, Path(recipe.weights) if recipe.weights else None, trust_code)
    if source.kind == "onnx":
        onnx, info = source.path, inspect_onnx(source.path)
        key = source.sha256
        _check_batch(info, recipe.batch)
        opened = _open_task(recipe, info.inputs, source, _classes_of(info))
        sample = _first_sample(recipe, opened, info.inputs)
        _check_fit(recipe.data, opened, sample, info.inputs)
    else:
        specs = _forward_specs(source.module)
        opened = _open_task(recipe, specs, source, None)
        if opened is None:
            raise InputError(
                "a torch model needs --data or --task: its input shapes come from a sample"
            )
        sample = _first_sample(recipe, opened, None)
        classes = _try_forward(source.module, sample)
        if recipe.task is None:
            # Now that the number of outputs is known, labels are checked against it.
            opened = _open_task(recipe, specs, source, classes)
        key = f"{source.sha256}:{ {n: (a.shape, str(a.dtype)) for n, a in sample.items()} }"
        onnx = _export(source, sample, key, stages)
        info = inspect_onnx(onnx)
    notes, module = list(opened.notes) if opened else [], source.module
    if recipe.fold_preprocess:
        onnx, module, opened = _fold(recipe, source, onnx, key, info, opened, stages)
        key = onnx.parent.name
        info = inspect_onnx(onnx)
        sample = _first_sample(recipe, opened, info.inputs)
    shapes = tuple((name, (recipe.batch, *array.shape)) for name, array in sample.items())
    options = EngineOptions(
        threads=usable_threads(recipe.threads),
        batch=recipe.batch,
        input_shapes=shapes,
        objective=recipe.objective,
    )
    job = Job(recipe, source, onnx, key, info, module, opened, sample, options, notes)
    if job.settings is not None:
        match_nodes(onnx, job.settings.nodes_to_exclude)
        first = {name: array[0] for name, array in next(iter(job.calibration())).items()}
        _check_fit(recipe.calibration_data or recipe.data, opened, first, info.inputs)
    return job


def _check_batch(info: OnnxInfo, batch: int) -> None:
    for spec in info.inputs:
        if spec.shape and spec.shape[0] not in (None, batch):
            raise InputError(
                f"{info.path}: input {spec} is fixed to batch {spec.shape[0]}; give --batch "
                f"{spec.shape[0]}, or export it with an open batch axis"
            )


def _check_fit(
    data: str | None, opened: OpenedTask | None, sample: Inputs, specs: Sequence[TensorSpec]
) -> None:
    """Whether the network takes a sample of `data` (a task's own samples were checked before)."""
    for spec in specs if data is not None else ():
        want, got = spec.shape[1:], sample[spec.name].shape
        if len(want) == len(got) and all(w in (None, g) for w, g in zip(want, got, strict=True)):
            continue
        how = (
            "--resize --crop --color --layout say what an image becomes"
            if opened is not None and opened.preprocess is not None
            else "arrays are fed as they are"
        )
        takes = "×".join("?" if n is None else str(n) for n in want)
        raise DataError(
            f"a sample of {data} is {'×'.join(map(str, got))}, the network's input {spec.name} "
            f"takes {takes}; {how}"
        )


def _open_task(
    recipe: Recipe, specs: list[TensorSpec], source: ModelSource, outputs: int | None
) -> OpenedTask | None:
    if recipe.task:
        return open_user_task(
            recipe.task,
            specs,
            names_only=source.kind == "torch",
            calibrates=recipe.quantize_step is not None,
        )
    if recipe.data is None:
        return None
    opened = open_data(
        recipe.data,
        specs,
        calibration_data=recipe.calibration_data,
        classes=_read_classes(recipe.classes),
        preprocess=_preprocess(recipe, source),
        outputs=outputs,
        seed=recipe.seed,
        on_bad_sample=recipe.on_bad_sample,
        tokenizer=source.tokenizer,
        model_classes=source.classes,
    )
    for split in ("validation", "test"):
        if len(opened.task.indices(split)) == 0:
            raise DataError(f"{recipe.data} has too few samples: none is left for {split}")
    return opened


def _preprocess(recipe: Recipe, source: ModelSource) -> ImagePreprocess | None:
    """As declared; else as the model's bundle says; else None (assumed from the input's shape)."""
    if recipe.preprocess is not None:
        return ImagePreprocess.from_values(recipe.preprocess)
    if source.path is not None:
        stored = source.path.parent / "preprocess.json"
        if stored.is_file() and (source.path.parent / "manifest.json").is_file():
            return ImagePreprocess.from_file(stored)
    return None


def _read_classes(file: str | None) -> list[str] | None:
    if file is None:
        return None
    try:
        names = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"--classes {file} cannot be read: {one_line(e)}") from e
    return [name.strip() for name in names if name.strip()]


def _classes_of(info: OnnxInfo) -> int | None:
    """The number of classes, where the first output is N×classes."""
    shape = info.outputs[0].shape
    return shape[1] if len(shape) == 2 else None


def _first_sample(
    recipe: Recipe, opened: OpenedTask | None, specs: list[TensorSpec] | None
) -> Inputs:
    if opened is not None:
        return require_samples(opened.task, "validation")
    closed = [_closed(spec, find_target(recipe.target)) for spec in specs or []]
    for spec in closed:
        if None in spec.shape[1:]:
            raise ModelError(f"input {spec} has open axes; without data their sizes are not known")
    return {spec.name: np.zeros(spec.shape[1:], spec.dtype) for spec in closed}


def _closed(spec: TensorSpec, target: Target) -> TensorSpec:
    """An image input with the target's usual height and width where its own are open."""
    if len(spec.shape) != 4 or spec.shape[1] not in (1, 3):
        return spec
    sides = (a or b for a, b in zip(spec.shape[2:], target.input_shape[1:], strict=True))
    return TensorSpec(spec.name, (*spec.shape[:2], *sides), spec.dtype)


def _forward_specs(module: Any) -> list[TensorSpec]:
    """Input names from the signature of ``forward``; shapes and types come from the samples."""
    from ..export.onnx_graph import forward_inputs

    names = forward_inputs(module)
    if not names:
        raise ModelError(f"{type(module).__name__}.forward takes no input; edgeml cannot feed it")
    # A network of token ids says so; a signature cannot.
    dtype = getattr(module, "input_dtype", "float32")
    return [TensorSpec(name, (None, None, None, None), dtype) for name in names]


def _try_forward(module: Any, sample: Inputs) -> int | None:
    """Run one sample, so that a network that does not take it says so before any work.

    Returns:
        The number of classes, where the output is N×classes.
    """
    from ..runtime.torch_engine import TorchEngine

    seen = ", ".join(f"{n} {'×'.join(map(str, a.shape))} {a.dtype}" for n, a in sample.items())
    try:
        engine = TorchEngine(module, batched(sample, 1), None, EngineOptions())
        output = next(iter(engine.run(batched(sample, 1)).values()))
    except EdgemlError:
        raise
    except Exception as e:
        raise DataError(
            f"the network does not take a sample of the data ({seen}): {one_line(e)}"
        ) from e
    if not np.isfinite(output).all():
        raise ModelError(
            "the network gives NaN or infinite outputs on the first sample; check its weights"
        )
    return output.shape[1] if output.ndim == 2 else None


def _export(source: ModelSource, sample: Inputs, key: str, stages: Stages) -> Path:
    def make(directory: Path) -> None:
        from ..export.onnx_graph import to_onnx

        to_onnx(source.module, batched(sample, 2), directory / "model.onnx")

    versions = {name: version(name) for name in ("torch", "onnx", "onnxscript")}
    stage = stages.run("export", {"model": key, "versions": versions}, "exporting to ONNX", make)
    return stage / "model.onnx"


def _fold(
    recipe: Recipe,
    source: ModelSource,
    onnx: Path,
    key: str,
    info: OnnxInfo,
    opened: OpenedTask | None,
    stages: Stages,
) -> tuple[Path, Any, OpenedTask]:
    """Put cast, mean/std and layout into the graph, and before the torch module that is its
    reference, and open the task again with uint8 inputs."""
    if opened is None or opened.preprocess is None:
        raise InputError("--fold-preprocess needs image data; there is no preprocessing to fold")
    from ..export.fold_preprocess import fold_preprocess, folded_module

    preprocess = opened.preprocess

    def make(directory: Path) -> None:
        fold_preprocess(onnx, preprocess, directory / "model.onnx")

    facts = {
        "model": key,
        "preprocess": preprocess.model_dump(mode="json"),
        "onnx": version("onnx"),
    }
    folded = stages.run("fold-preprocess", facts, "folding preprocessing into the graph", make)
    path = folded / "model.onnx"
    spec = inspect_onnx(path).inputs[0]
    again = open_data(
        recipe.data or "",
        spec,
        calibration_data=recipe.calibration_data,
        classes=_read_classes(recipe.classes),
        preprocess=preprocess.model_copy(update={"folded": True}),
        outputs=_classes_of(info),
        seed=recipe.seed,
        on_bad_sample=recipe.on_bad_sample,
        model_classes=source.classes,
    )
    module = source.module
    return path, folded_module(module, preprocess) if module is not None else None, again
