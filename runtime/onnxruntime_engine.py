"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.onnx_file import external_files, nodes, read_onnx, tensors
from ..artifact.tensor_spec import TensorSpec
from ..errors import InputError, MissingPart, ModelError, one_line
from .engine import Engine, EngineOptions, LayerProfile
from .layer_macs import conv_macs, matmul_macs, recurrent_macs

_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_CONVOLUTIONS = {
    "Conv",
    "FusedConv",
    "NhwcFusedConv",
    "QLinearConv",
    "ConvInteger",
    "NhwcQLinearConv",
}
_PRODUCTS = {
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "QLinearMatMul",
    "QGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
}

_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}

_WEIGHTS_FOURTH = {"QLinearConv", "NhwcQLinearConv", "QLinearMatMul", "QGemm"}

# It quantizes the float weights of a layer between Q/DQ while it loads: a layer that was left in
# float on purpose ran in INT8 all the same (seen in its profile, 1.32).
DISABLED_OPTIMIZERS = ["WeightBiasQuantization"]


def import_onnxruntime() -> Any:
    """The library, its telemetry switched off before it loads (on by default since 1.29).

    Raises:
        MissingPart: it is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as e:
        raise MissingPart(
            "onnxruntime is not installed: pip install 'edgeml-toolchain[onnxruntime]'"
        ) from e
    return onnxruntime


class OnnxRuntimeEngine(Engine):
    """An ONNX Runtime session.

    Args:
        path: the ONNX file.
        options: see `EngineOptions`; `execution` must be fp32, the CPU provider has no other.

    Raises:
        MissingPart: ONNX Runtime is not installed, or `options.execution` is not fp32.
        ModelError: the file is no ONNX, uses what the runtime lacks, or names external data outside
            its folder.
    """

    runtime = "onnxruntime"

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._ort = import_onnxruntime()
        self.version = self._ort.__version__
        self.options = options
        self._path = Path(path)
        if options.execution != "fp32":
            raise MissingPart(f"ONNX Runtime's CPU provider executes fp32, not {options.execution}")
        model = read_onnx(self._path)
        external_files(model, self._path)  # refuses what lies outside, before anything reads it
        self._fp8, self._axes = _has_fp8(model), self._free_axes(model)
        del model  # a second copy of the weights
        self._session = self._open()
        self.input_specs = self._static_specs()
        self.output_specs = [_spec(node) for node in self._session.get_outputs()]
        self._output_names = [spec.name for spec in self.output_specs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        try:
            outputs = self._session.run(self._output_names, dict(inputs))
        except Exception as e:
            raise InputError(f"ONNX Runtime cannot run {self._path} on this: {one_line(e)}") from e
        return dict(zip(self._output_names, outputs, strict=True))

    def throughput(self, inputs: Mapping[str, np.ndarray], duration_s: float) -> tuple[int, float]:
        self.check(inputs)
        cores = self.options.threads or len(os.sched_getaffinity(0))
        # One single-threaded stream a core; `run` lets go of Python's lock, so threads do.
        session = self._open(threads=1)
        feed = dict(inputs)

        def stream(end: float) -> int:
            count = 0
            while time.perf_counter() < end:
                session.run(self._output_names, feed)
                count += 1
            return count

        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(stream, [time.perf_counter() + 0.05] * cores))
            begin = time.perf_counter()
            counts = list(pool.map(stream, [begin + duration_s] * cores))
            return sum(counts), time.perf_counter() - begin

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        self.check(inputs)
        # Twice: a kernel that packed its weights leaves their shapes out of its event, and without
        # packing it is slower. So the shapes come from one session, the times from the other.
        times, shapes = self._node_events(inputs), self._node_events(inputs, packing=False)
        return [
            _layer(shapes.get(name, event), event["dur"] / 1e3) for name, event in times.items()
        ]

    def _node_events(
        self, inputs: Mapping[str, np.ndarray], packing: bool = True
    ) -> dict[str, dict[str, Any]]:
        """By name the nodes that ran, of the last, warm, inference."""
        with tempfile.TemporaryDirectory(prefix="edgeml-profile-") as scratch:
            session = self._open(profile_prefix=str(Path(scratch, "run")), packing=packing)
            for _ in range(3):
                session.run(self._output_names, dict(inputs))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return {
            event["name"]: event
            for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        }

    def close(self) -> None:
        super().close()
        self._session = None

    def _open(
        self,
        profile_prefix: str | None = None,
        threads: int | None = None,
        packing: bool = True,
    ) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads or self.options.threads or 0
        # Spinning threads slow every other engine of the process: 18 ms read as 60 (FACTS §8).
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = self._ort.GraphOptimizationLevel
        basic = self._fp8 or self.options.as_written
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if basic else level.ORT_ENABLE_ALL
        for name, size in self._axes.items():
            options.add_free_dimension_override_by_name(name, size)
        if not packing:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if profile_prefix:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        try:
            return self._ort.InferenceSession(
                str(self._path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=DISABLED_OPTIMIZERS,
            )
        except Exception as e:
            raise ModelError(f"ONNX Runtime cannot load {self._path}: {one_line(e)}") from e

    def _free_axes(self, model: Any) -> dict[str, int]:
        """Size by name of the graph's symbolic axes, from the given shapes or the batch."""
        given, sizes = dict(self.options.input_shapes or ()), {}
        for value in model.graph.input:
            for i, axis in enumerate(value.type.tensor_type.shape.dim):
                if not axis.dim_param:
                    continue
                if value.name in given and i < len(given[value.name]):
                    sizes[axis.dim_param] = given[value.name][i]
                elif i == 0 and self.options.batch is not None:
                    sizes[axis.dim_param] = self.options.batch
        return sizes

    def _static_specs(self) -> list[TensorSpec]:
        """The inputs as the session takes them, held to the shapes that were asked for."""
        given = dict(self.options.input_shapes or ())
        specs = []
        for node in self._session.get_inputs():
            spec = _spec(node)
            want = given.get(spec.name)
            if (
                want is None
                and self.options.batch is not None
                and spec.shape
                and spec.shape[0] is None
            ):
                want = (self.options.batch, *spec.shape[1:])
            if want is not None:
                clash = len(want) != len(spec.shape) or any(
                    a is not None and b is not None and a != b
                    for a, b in zip(spec.shape, want, strict=True)
                )
                if clash:
                    raise ModelError(
                        f"{self._path}: input {spec} does not take shape {tuple(want)}"
                    )
                spec = TensorSpec(spec.name, tuple(want), spec.dtype)
            specs.append(spec)
        return specs


def _spec(node: Any) -> TensorSpec:
    shape = tuple(n if isinstance(n, int) and n > 0 else None for n in node.shape)
    return TensorSpec(node.name, shape, _TYPES.get(node.type, node.type))


def _has_fp8(model: Any) -> bool:
    """FP8 Q/DQ is silently wrong above BASIC (10 % agreement, FACTS §8)."""
    fp8 = set(range(17, 21))  # TensorProto.FLOAT8E4M3FN … FLOAT8E5M2FNUZ
    if any(tensor.data_type in fp8 for tensor in tensors(model)):
        return True
    return any(  # without a zero point the type stands here only
        node.op_type == "QuantizeLinear" and attribute.name == "output_dtype" and attribute.i in fp8
        for node in nodes(model)
        for attribute in node.attribute
    )


def _layer(event: dict[str, Any], time_ms: float) -> LayerProfile:
    """One node event of the profile: its shapes give the work, its input types the precision."""
    args = event["args"]
    kind = args.get("op_name", "")
    # An input that is left out is an empty entry or none; those that count here are never optional.
    inputs = [next(iter(entry.items())) for entry in args.get("input_type_shape", []) if entry]
    outputs = [next(iter(entry.items())) for entry in args.get("output_type_shape", []) if entry]
    weights_at = 3 if kind in _WEIGHTS_FOURTH else 1
    macs = 0
    if outputs and len(inputs) > weights_at:
        left, right, out = inputs[0][1], inputs[weights_at][1], outputs[0][1]
        if kind in _CONVOLUTIONS:
            macs = conv_macs(out, right[1:])
        elif kind == "ConvTranspose":  # each input element goes into out × window
            macs = conv_macs(left, right[1:])
        elif kind in _PRODUCTS and math.prod(out):
            # M·K times K·N over M·N is K², whichever side is transposed.
            sides = math.prod(left[-2:]) * math.prod(right[-2:])
            macs = matmul_macs(out, math.isqrt(sides // math.prod(out[-2:])))
        elif kind in _RECURRENT:
            macs = recurrent_macs(left, right, inputs[2][1])
    first = inputs[0][0] if inputs else ""
    integer = kind.startswith("Dynamic") or first in ("uint8", "int8")
    executed = "I8" if integer else "F16" if first == "float16" else "F32"
    precision = {"I8": "int8", "F16": "fp16", "F32": "fp32"}[executed] if macs else None
    name = event["name"].removesuffix("_kernel_time")
    return LayerProfile(name, kind, executed, precision, time_ms, macs)
