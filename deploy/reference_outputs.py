"""What ONNX Runtime here computes of a bundle's reference inputs: the outputs a device is held against.

In a process of its own, because a large network's memory would stay with ours, and kept by content
hash, so that a second deploy makes none.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ..artifact.content_hash import hash_file
from ..artifact.stage_cache import StageCache
from ..errors import EdgemlError, ModelError

TIMEOUT_S = 900
NAME = "reference.safetensors"


def reference_file(
    model: Path, model_hash: str, inputs: Path, cache: StageCache | None = None
) -> Path:
    """A tensor file of the inputs in `inputs` and the outputs of `model` in ONNX Runtime.

    Args:
        inputs: a tensor file with ``NNN.input.NAME``; outputs in it are not used.

    Raises:
        ModelError: ONNX Runtime cannot run the model on them.
    """
    from importlib.metadata import version

    key = {"model": model_hash, "inputs": hash_file(inputs), "onnxruntime": version("onnxruntime")}

    def make(folder: Path) -> None:
        job = {"model": str(model), "inputs": str(inputs), "out": str(folder / NAME)}
        child = [sys.executable, "-m", __spec__.name]
        try:
            done = subprocess.run(
                child, input=json.dumps(job), capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired as e:
            raise ModelError(f"{model} took longer than {TIMEOUT_S} s in ONNX Runtime") from e
        if done.returncode:
            told = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason told"]
            raise ModelError(f"{model} does not run in ONNX Runtime here: {told[-1][:300]}")

    folder, _ = (cache or StageCache()).run("device-reference", key, make)
    return folder / NAME


def _main() -> int:
    import numpy as np
    from safetensors.numpy import load_file as load_tensors
    from safetensors.numpy import save_file

    from ..runtime.engine import EngineOptions, load_file

    job = json.loads(sys.stdin.read())
    samples: dict[str, dict[str, np.ndarray]] = {}
    for key, array in load_tensors(job["inputs"]).items():
        number, kind, name = key.split(".", 2)
        if kind == "input":
            samples.setdefault(number, {})[name] = array
    shapes = tuple((name, array.shape) for name, array in next(iter(samples.values())).items())
    options = EngineOptions(input_shapes=shapes, as_written=True)
    made = {}
    with load_file(Path(job["model"]), "onnxruntime", options) as engine:
        for number, inputs in sorted(samples.items()):
            made |= {f"{number}.input.{name}": array for name, array in inputs.items()}
            for name, array in engine.run(inputs).items():
                made[f"{number}.output.{name}"] = np.ascontiguousarray(array)
    save_file(made, job["out"])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except EdgemlError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
