"""The one interface of every engine, and `load`, which picks the file of its runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..artifact.tensor_spec import TensorSpec, check_inputs
from ..errors import InputError, ModelError, nearest

Objective = Literal["latency", "throughput"]
# What TensorRT's own tools call a plan's file.
PLANS = (".plan", ".engine", ".trt")
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "fp8", "int4")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is compiled and run.

    Attributes:
        threads: CPU threads of one inference; None leaves the choice to the runtime.
        batch: the static batch size; None keeps the graph's own (dynamic) batch axis.
        input_shapes: full static shapes by input name, batch included; wins over `batch`.
        execution: the type that float layers run in: fp32, bf16 or fp16.
        objective: latency (one request at a time) or throughput (parallel requests).
        as_written: ONNX Runtime only: Q/DQ stay as the graph has them, computed in float (its level
            BASIC), and are not fused into the CPU's integer kernels: for numbers that stand for
            another runtime.
    """

    threads: int | None = None
    batch: int | None = 1
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...] | None = None
    execution: str = "fp32"
    objective: Objective = "latency"
    as_written: bool = False


@dataclass(frozen=True)
class LayerProfile:
    """One executed layer of an engine.

    Attributes:
        name: the layer's name in the engine.
        kind: the operator, in the runtime's own word (``Convolution``, ``QLinearConv`` …).
        executed: the type the kernel computed in, in the runtime's word (``I8``, ``F32`` …).
        precision: the same in ours (fp32, bf16, fp16, int8), or None for layers without arithmetic.
        time_ms: its time in one inference.
        macs: multiply-accumulates of one inference; 0 for layers that have none.
    """

    name: str
    kind: str
    executed: str
    precision: str | None
    time_ms: float
    macs: int


class Engine(ABC):
    """A compiled model that runs.

    Use as ``with load(path) as engine: engine.run({"x": array})``. Outputs are the caller's own
    (no buffer is reused by the next call).

    Attributes:
        runtime: the library that executes it: openvino, onnxruntime, tensorrt, tensorrt-rtx, torch.
        device: where it executes: cpu or cuda.
        input_specs, output_specs: names, shapes (axis 0 is the batch) and dtypes.
        options: how it was compiled.
        version: the runtime library's version.
        closed: `close` was called.
    """

    runtime: str
    device: str = "cpu"
    version: str
    options: EngineOptions
    input_specs: list[TensorSpec]
    output_specs: list[TensorSpec]
    closed: bool = False

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference.

        Args:
            inputs: an array an input name, shaped and typed as `input_specs` say.

        Returns:
            An array an output name.

        Raises:
            InputError: a name, shape or dtype does not fit, or the engine was closed.
        """

    @abstractmethod
    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        """The layers that really ran, with their times and types (a separate, profiled compile)."""

    def throughput(self, inputs: Mapping[str, np.ndarray], duration_s: float) -> tuple[int, float]:
        """Run as many inferences as fit into `duration_s`, several requests at once.

        Returns:
            The number of finished inferences and the seconds they took.
        """
        raise NotImplementedError

    def gpu_times_ms(self, inputs: Mapping[str, np.ndarray]) -> dict[str, float] | None:
        """One inference, its parts by CUDA events apart from the host's wall clock; None on a CPU.

        Returns:
            ``host_to_device``, ``compute``, ``device_to_host`` and ``host`` in ms.
        """
        return None

    def gpu_memory_bytes(self) -> int | None:
        """What the engine takes of the GPU's memory; None on a CPU."""
        return None

    def close(self) -> None:
        """Give the engine's memory back; it cannot run afterwards."""
        self.closed = True

    def check(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Raise InputError when `run` cannot take these inputs; called first by every `run`."""
        if self.closed:
            raise InputError(f"this {self.runtime} engine was closed; load it again")
        check_inputs(inputs, self.input_specs)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_file(
    path: Path, runtime: str, options: EngineOptions, trust_plan: str | None = None
) -> Engine:
    """Load one engine file (`.xml`, `.onnx` or a TensorRT plan) in the named runtime.

    Args:
        trust_plan: sha256 of a TensorRT plan that this machine did not build and may run.

    Raises:
        InputError: the runtime is unknown.
        MissingPart: its library is not installed.
        ModelError: the file cannot be read by it.
    """
    if runtime == "openvino":
        from .openvino_engine import OpenVinoEngine

        return OpenVinoEngine(path, options)
    if runtime == "onnxruntime":
        from .onnxruntime_engine import OnnxRuntimeEngine

        return OnnxRuntimeEngine(path, options)
    if runtime in ("tensorrt", "tensorrt-rtx"):
        if path.suffix == ".onnx":
            raise ModelError(
                f"{path} is a graph for TensorRT, which builds it where it runs: "
                f"edgeml export {path} --to {runtime} -o NEW, or edgeml deploy"
            )
        from .tensorrt_engine import TensorRTEngine

        return TensorRTEngine(path, options, trust_plan)
    known = ["openvino", "onnxruntime", "tensorrt", "tensorrt-rtx"]
    raise InputError(f"unknown runtime {runtime!r}, {nearest(runtime, known)}")


def load(
    path: str | Path, options: EngineOptions | None = None, trust_plan: str | None = None
) -> Engine:
    """Load the shipped engine of a bundle, a TensorRT export, or one engine file by its suffix.

    Args:
        trust_plan: sha256 of a TensorRT plan that this machine did not build and may run.

    Raises:
        ModelError: nothing is there, or no runtime takes this file.
        BundleError: a bundle's file does not match its hash, lies outside, or is too new.
    """
    path = Path(path)
    try:
        is_bundle, is_file = path.is_dir(), path.is_file()
    except OSError as e:
        raise ModelError(f"no engine at {path}: {e.strerror}") from e
    if is_bundle and is_tensorrt_export(path):
        return load_file(path, "tensorrt", options or EngineOptions(), trust_plan)
    if is_bundle:
        from .bundle_engine import load_bundle

        return load_bundle(path, options)
    if not is_file:
        raise ModelError(
            f"no engine at {path}; give a bundle's directory, an .xml or an .onnx file"
        )
    if path.suffix == ".xml":
        return load_file(path, "openvino", options or EngineOptions())
    if path.suffix == ".onnx":
        return load_file(path, "onnxruntime", options or EngineOptions())
    if path.suffix in PLANS:
        return load_file(path, "tensorrt", options or EngineOptions(), trust_plan)
    raise ModelError(
        f"{path} is no engine file; give a bundle's directory, an .xml or an .onnx file"
    )


def is_tensorrt_export(path: Path) -> bool:
    """Whether a directory is what ``edgeml export --to tensorrt(-rtx)`` wrote, and no bundle."""
    return (path / "engine.json").is_file() and not (path / "manifest.json").exists()
