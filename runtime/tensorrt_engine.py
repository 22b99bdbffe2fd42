"""TensorRT and TensorRT-RTX, on an NVIDIA GPU. Written, not run on hardware.

A plan is executable code for one library version, GPU architecture and OS. All of that, and that it was
built here, is checked from its record before a byte of it is loaded.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.content_hash import hash_bytes
from ..artifact.tensor_spec import TensorSpec
from ..errors import BundleError, InputError, MissingPart, ModelError
from .built_plans import built_here
from .device.cuda_runtime import CudaRuntime
from .device.tensorrt_runner import TensorRTRunner, import_tensorrt
from .engine import PRECISIONS, Engine, EngineOptions, LayerProfile

RECORD = "engine.json"  # written by `edgeml export --to tensorrt(-rtx)`
MODULES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
STILL = "edgeml lint, export --command and the ONNX in ONNX Runtime work here"
# How the engine's own inspector writes a tensor's type: "Row major linear FP16 format", "Int8", "Half".
_EXECUTED = (
    (("int8",), "int8"),
    (("fp8",), "fp8"),
    (("int4",), "int4"),
    (("bf16", "bfloat16"), "bf16"),
    (("fp16", "half"), "fp16"),
    (("fp32", "float"), "fp32"),
)


class TensorRTEngine(Engine):
    """A plan with its record, or a bare plan that the user vouches for.

    Args:
        path: the directory that ``edgeml export`` wrote (``engine.json`` in it), or a ``.plan`` file.
        options: `batch` or `input_shapes` choose the shape of a dynamic engine; the types are the plan's.
        trust_plan: the sha256 of a plan that was not built here and may run.
        module, cuda: the library and CUDA, where they are there already.

    Raises:
        MissingPart: no TensorRT, no GPU, or a driver that does not fit; what still works is told.
        BundleError: the plan is damaged, or was not built here and is not trusted.
        InputError: it is for another GPU, version, OS or architecture; how to rebuild is told.
        OutOfGpuMemory: it does not fit into the GPU.
    """

    device = "cuda"

    def __init__(
        self,
        path: Path,
        options: EngineOptions,
        trust_plan: str | None = None,
        module: Any = None,
        cuda: CudaRuntime | None = None,
    ) -> None:
        self._path, self.options = Path(path), options
        plan, record = read_record(self._path)
        library = record.get("library", "tensorrt")
        self.runtime = MODULES.get(library, library)
        data = refuse_before_loading(plan, record, trust_plan)
        try:
            module = module or import_tensorrt(library)
            refuse_other_version(plan, record, module.__version__)
            cuda = cuda or CudaRuntime()
        except MissingPart as e:
            raise MissingPart(f"{plan} cannot run: {e}; {STILL}") from e
        refuse_other_gpu(plan, record, cuda.capability())
        self._runner = TensorRTRunner(data, module, cuda=cuda)
        self.version = self._runner.version
        try:
            shapes = self._shapes()
            self._runner.set_shapes(shapes)
        except BaseException:
            self._runner.close()
            raise
        self.input_specs = [
            TensorSpec(p.name, shapes.get(p.name, tuple(p.shape)), p.dtype)
            for p in self._runner.inputs
        ]
        self.output_specs = [
            TensorSpec(p.name, tuple(self._runner.output_shape(p.name)), p.dtype)
            for p in self._runner.outputs
        ]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        # Copies: the runner's arrays are pinned memory that its next call overwrites.
        return {name: array.copy() for name, array in self._runner.run(inputs).items()}

    def gpu_times_ms(self, inputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        self.check(inputs)
        return self._runner.run_timed(inputs)._asdict()

    def gpu_memory_bytes(self) -> int | None:
        return self._runner.memory_bytes

    def throughput(self, inputs: Mapping[str, np.ndarray], duration_s: float) -> tuple[int, float]:
        self.check(inputs)
        return self._runner.throughput(inputs, duration_s)

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        self.check(inputs)
        times = self._runner.profile(inputs)
        layers = {layer.get("Name", ""): layer for layer in self._runner.layers()}
        found = []
        for name, ms in times.items():
            layer = layers.get(name, {})
            executed = _executed(layer)
            # Its work is not in the plan: 0, so that no share is made up from it.
            found.append(
                LayerProfile(
                    name, layer.get("LayerType", ""), executed, _precision(executed), ms, 0
                )
            )
        return found

    def close(self) -> None:
        super().close()
        self._runner.close()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs with open axes: the shapes that were asked for, else the batch, else one."""
        given, found = dict(self.options.input_shapes or ()), {}
        for port in self._runner.inputs:
            if port.name in given:
                found[port.name] = tuple(given[port.name])
            elif -1 in port.shape:
                if -1 in port.shape[1:]:
                    raise ModelError(
                        f"{self._path}: input {port.name} has open axes besides the batch; "
                        "give a shape, or export with --opt-shape"
                    )
                found[port.name] = (self.options.batch or 1, *port.shape[1:])
        return found


def read_record(path: Path) -> tuple[Path, dict[str, Any]]:
    """The plan and what was written down of it; a bare plan has its hash only by being read.

    Raises:
        ModelError: there is none.
        BundleError: the record is damaged.
    """
    if not path.is_dir():
        return path, {"library": "tensorrt_rtx" if ".trtrtx" in path.name else "tensorrt"}
    file = path / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        engine = record["engine"]
        if engine is None:
            raise ModelError(
                f"{path} holds a graph and no engine; build it where TensorRT is: edgeml export "
                f"{path / 'model.onnx'} --to tensorrt -o NEW"
            )
        name = engine["file"]
        if Path(name).name != name or (path / name).is_symlink():
            raise BundleError(f"{path}: {name!r} points outside; refused")
        return path / name, dict(engine)
    except OSError as e:
        raise ModelError(f"{file} cannot be read: {e.strerror}") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BundleError(f"{file} is damaged; export again") from e


def plan_precision(path: Path) -> str:
    """What the export was asked for, else what stands in the plan's name, else fp32."""
    if path.is_dir():
        try:
            asked = json.loads((path / RECORD).read_text(encoding="utf-8")).get("precision")
        except (OSError, ValueError, AttributeError):
            asked = None
        if asked in PRECISIONS:
            return asked
    name = read_record(path)[0].name
    return next((p for p in PRECISIONS if f".{p}." in name), "fp32")


def refuse_before_loading(plan: Path, record: Mapping[str, Any], trust_plan: str | None) -> bytes:
    """What needs no library: the hash, the OS, where it was built.

    Returns:
        The plan: the very bytes that were checked.

    Raises:
        BundleError, InputError: one line.
    """
    try:
        data = plan.read_bytes()
    except OSError as e:
        raise BundleError(f"{plan} cannot be read ({e.strerror}); export again") from e
    digest = hash_bytes(data)
    if record.get("sha256") not in (None, digest):
        raise BundleError(f"{plan} does not match its hash: damaged or changed; export again")
    for key, mine in (("os", platform.system()), ("arch", platform.machine())):
        if record.get(key) not in (None, mine):
            raise InputError(
                f"{plan} is for {record['os']} on {record['arch']}, this is {platform.system()} on "
                f"{platform.machine()}; {_rebuild(plan)}"
            )
    if trust_plan is not None and trust_plan.lower() != digest:
        raise InputError(
            f"--trust-plan {trust_plan} is not the sha256 of {plan}, which is {digest}"
        )
    if trust_plan is None and not built_here(digest):
        raise BundleError(
            f"{plan} was not built on this machine, and a plan is executable code; {_rebuild(plan)}, "
            f"or --trust-plan {digest} if you trust its maker"
        )
    return data


def refuse_other_version(plan: Path, record: Mapping[str, Any], version: str) -> None:
    """Plans do not pass from one version to another.

    Raises:
        InputError: one line.
    """
    if record.get("version") not in (None, version):
        raise InputError(
            f"{plan} was built by {record.get('library')} {record['version']}, here is {version}; "
            f"{_rebuild(plan)}"
        )


def refuse_other_gpu(plan: Path, record: Mapping[str, Any], capability: str) -> None:
    """Nor from one GPU architecture to another.

    Raises:
        InputError: one line.
    """
    if record.get("compute_capability") not in (None, capability):
        raise InputError(
            f"{plan} is for {record['compute_capability']}, this GPU is {capability}; {_rebuild(plan)}"
        )


def _rebuild(plan: Path) -> str:
    to = "tensorrt-rtx" if ".trtrtx" in plan.name else "tensorrt"
    return f"rebuild it: edgeml export {plan.parent / 'model.onnx'} --to {to} -o NEW"


def _executed(layer: Mapping[str, Any]) -> str:
    """The type of the layer's first input, as its inspector writes it."""
    for tensor in layer.get("Inputs", ()):
        if isinstance(tensor, Mapping) and (text := tensor.get("Format/Datatype")):
            return str(text)
    return ""


def _precision(executed: str) -> str | None:
    text = executed.lower()
    return next((ours for words, ours in _EXECUTED if any(w in text for w in words)), None)
