"""The task's score of what a device predicted, by the code that scores every other engine.

The samples are preprocessed here and go to the device as tensors; its outputs come home and are played
back beside the float network's, so that metrics, flips and intervals are paired as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.bundle import Bundle
from ..artifact.preprocess import ImagePreprocess
from ..artifact.recipe import build_recipe
from ..artifact.tensor_spec import TensorSpec
from ..errors import DataError, EdgemlError, InputError
from ..runtime.engine import Engine, EngineOptions, LayerProfile, load_file
from ..train.data_source import runs_code
from ..train.evaluate import evaluate, read_samples, score_rows
from ..train.model_source import open_model
from ..train.open_task import OpenedTask, open_data, open_user_task

# The choice reads validation; test stays unread.
SPLIT = "validation"
SAMPLES_PER_FILE = 64
REFERENCE = "reference"
DEFAULT_LIMIT = 256


class DeviceScorer:
    """Samples for a device, and the score of what it made of them (`deploy.run_deploy.Scorer`).

    Args:
        bundle: its float network is the reference.
        data: where samples come from instead of the bundle's own source.
        limit: so many samples; None takes the whole validation split.
        trust_code: run the task or data source in Python that the bundle names.

    Raises:
        InputError: there is no data, it does not open, or it is code that was not trusted.
    """

    def __init__(
        self,
        bundle: Bundle,
        data: str | None = None,
        limit: int | None = DEFAULT_LIMIT,
        trust_code: bool = False,
    ) -> None:
        if "model.onnx" not in bundle.manifest.files:
            raise InputError(
                f"{bundle.root} has no float network to compare a device's answers with"
            )
        self._bundle, self._limit = bundle, limit
        self._opened = _open(bundle, data, trust_code)
        self.primary: str = self._opened.task.primary
        self.points_per_unit: float = getattr(self._opened.task, "points_per_unit", 100.0)

    def sample_files(self, folder: Path) -> list[Path]:
        """Write the preprocessed inputs, ``NNN.input.NAME`` with the batch axis, 64 a file.

        Raises:
            DataError: there is no sample.
        """
        from safetensors.numpy import save_file

        made: list[Path] = []
        tensors: dict[str, np.ndarray] = {}

        def flush() -> None:
            if tensors:
                made.append(folder / f"samples-{len(made):03}.safetensors")
                save_file(tensors, made[-1])
                tensors.clear()

        for index, (inputs, _) in enumerate(read_samples(self._opened.task, SPLIT, self._limit)):
            number = index % SAMPLES_PER_FILE
            if number == 0:
                flush()
            for name, array in inputs.items():
                tensors[f"{number:03}.input.{name}"] = np.ascontiguousarray(array)[None]
        flush()
        if not made:
            raise DataError(f"the bundle's data has no {SPLIT} samples to score a device on")
        return made

    def judge(self, outputs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
        """Score each engine's outputs against the float network's, paired.

        Args:
            outputs: engine → its tensor files (``NNN.output.NAME``), as `sample_files` lists them.

        Returns:
            Engine → fields of an `EngineRow`, or a text that says why it was not scored.
        """
        path = self._bundle.file("model.onnx")
        with load_file(path, "onnxruntime", EngineOptions(batch=1)) as reference:
            engines: dict[str, Engine] = {REFERENCE: reference}
            engines |= {name: _Recorded(files, reference) for name, files in outputs.items()}
            found = evaluate(
                engines, self._opened.task, SPLIT, limit=self._limit, reference_id=REFERENCE
            )
        scored = score_rows(found, self._opened.task, REFERENCE)
        rows: dict[str, Any] = dict(found.failed)
        for name, score in scored.items():
            if name != REFERENCE:
                rows[name] = {key: getattr(score, key) for key in type(score).model_fields}
        return rows


class _Recorded(Engine):
    """Plays back outputs that a device computed, in the samples' order."""

    runtime = "recorded"
    version = "0"

    def __init__(self, files: Sequence[Path], like: Engine) -> None:
        self.options = EngineOptions(batch=1)
        batch = [(1, *spec.shape[1:]) for spec in like.input_specs]
        self.input_specs = [
            TensorSpec(spec.name, shape, spec.dtype)
            for spec, shape in zip(like.input_specs, batch, strict=True)
        ]
        self.output_specs = list(like.output_specs)
        self._outputs = _outputs(files)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            found = next(self._outputs)
        except StopIteration:
            raise EdgemlError("the device sent fewer outputs than it was given samples") from None
        for spec in self.output_specs:
            got = found.get(spec.name)
            if got is None or not _fits(got.shape, spec.shape):
                told = "none" if got is None else f"shape {list(got.shape)}"
                raise EdgemlError(
                    f"of output {spec.name!r} the device sent {told}, the network has {list(spec.shape)}"
                )
        return found

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        return []


def _fits(shape: tuple[int, ...], spec: tuple[int | None, ...]) -> bool:
    """Whether one sample's output is of the network's shape; axis 0 is the batch, here 1."""
    sides = zip(shape[1:], spec[1:], strict=False)
    return (
        len(shape) == len(spec)
        and shape[:1] in ((), (1,))
        and all(b in (a, None) for a, b in sides)
    )


def _outputs(files: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    from safetensors.numpy import load_file as load_tensors

    for file in files:
        samples: dict[str, dict[str, np.ndarray]] = {}
        for key, array in load_tensors(file).items():
            number, kind, name = key.split(".", 2)
            if kind == "output":
                samples.setdefault(number, {})[name] = array
        yield from (samples[number] for number in sorted(samples))


def _open(bundle: Bundle, data: str | None, trust_code: bool) -> OpenedTask:
    recipe = build_recipe(bundle.manifest.recipe, f"{bundle.root}/manifest.json")
    specs = [TensorSpec(i["name"], tuple(i["shape"]), i["dtype"]) for i in bundle.manifest.inputs]
    chosen = data or recipe.data
    named = recipe.task if data is None and recipe.task else chosen
    if data is None and named is not None and (recipe.task or runs_code(named)) and not trust_code:
        raise InputError(
            f"{bundle.root} names code for its samples ({named}), which would run: --trust-code, if "
            "you trust its maker, or --score none"
        )
    if data is None and recipe.task:
        return open_user_task(recipe.task, specs, calibrates=False)
    if chosen is None:
        raise InputError(f"{bundle.root} names no data to score on; give --data SOURCE")
    source = open_model(str(bundle.root), trust_code=trust_code)
    preprocess = None
    if "preprocess.json" in bundle.manifest.files:
        preprocess = ImagePreprocess.from_file(bundle.file("preprocess.json"))
    outputs = bundle.manifest.outputs[0]["shape"] if bundle.manifest.outputs else []
    return open_data(
        chosen,
        specs,
        calibration_data=recipe.calibration_data if data is None else None,
        preprocess=preprocess,
        outputs=outputs[1] if len(outputs) == 2 else None,
        seed=recipe.seed,
        on_bad_sample=recipe.on_bad_sample,
        tokenizer=source.tokenizer,
        model_classes=source.classes,
    )
