"""OpenVINO on the CPU."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.tensor_spec import TensorSpec
from ..errors import InputError, MissingPart, ModelError, one_line
from .engine import Engine, EngineOptions, LayerProfile
from .layer_macs import conv_macs, matmul_macs, recurrent_macs

# Our word → OpenVINO's, for the type that float layers run in.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
# Where the weights of the inputs lie; those of the state follow.
_RECURRENT = {"LSTMSequence": 4, "GRUSequence": 3, "RNNSequence": 3}
_EXECUTED = {"i8": "int8", "u8": "int8", "bf16": "bf16", "f16": "fp16", "f32": "fp32"}


def import_openvino() -> Any:
    """The library, its telemetry and NNCF's switched off before they load.

    Without the package ``openvino_telemetry`` both take their own silent stub; no environment
    variable is read for it (openvino 2026.4, nncf 3.4).

    Raises:
        MissingPart: it is not installed, or does not import here.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    try:
        import openvino
    except ImportError as e:
        raise MissingPart(
            f"OpenVINO does not import here ({one_line(e)}): pip install 'edgeml-toolchain[openvino]'"
        ) from e
    return openvino


@cache
def executable_precisions() -> tuple[str, ...]:
    """The float types that OpenVINO executes natively on this CPU: fp32, and bf16, fp16 where it can."""
    there = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(
        p for p, word in (("fp32", "FP32"), ("bf16", "BF16"), ("fp16", "FP16")) if word in there
    )


class OpenVinoEngine(Engine):
    """A compiled OpenVINO model.

    Args:
        path: an IR (`.xml`) or an ONNX file.
        options: see `EngineOptions`.

    Raises:
        MissingPart: OpenVINO is not installed, or this CPU does not execute `options.execution`.
        ModelError: the file cannot be read, or an axis has no size.
    """

    runtime = "openvino"

    def __init__(self, path: Path, options: EngineOptions) -> None:
        self._ov = import_openvino()
        self.version = self._ov.__version__.split("-")[0]
        self.options = options
        self._path = Path(path)
        if options.execution not in executable_precisions():
            raise MissingPart(
                f"OpenVINO on this CPU executes {', '.join(executable_precisions())}, not {options.execution}"
            )
        self._compiled = self._compile()
        self.input_specs = [_spec(port) for port in self._compiled.inputs]
        self.output_specs = [_spec(port) for port in self._compiled.outputs]
        self._request = self._compiled.create_infer_request()
        self._names = [spec.name for spec in self.input_specs]
        self._outputs = [(spec.name, i) for i, spec in enumerate(self.output_specs)]
        # Static inputs: one tensor each, set once; a call copies its array into it. That is cheaper
        # than wrapping a new array in a tensor every time, which costs about 10 µs in Python.
        self._slots: list[tuple[str, np.ndarray]] | None = None
        if all(None not in spec.shape for spec in self.input_specs):
            tensors = [self._request.get_input_tensor(i) for i in range(len(self.input_specs))]
            self._slots = [(n, t.data) for n, t in zip(self._names, tensors, strict=True)]
        static = all(None not in spec.shape for spec in self.output_specs)
        self._shaped: Any = None
        self._fitting: set[tuple[tuple[int, ...], ...]] = set()
        self._results: list[tuple[str, np.ndarray]] | None = None
        if self._slots is not None and static:
            self._results = [(n, self._request.get_output_tensor(i).data) for n, i in self._outputs]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        if self._slots is not None:
            for name, slot in self._slots:
                slot[...] = inputs[name]
        else:
            self._check_together(inputs)
            for i, name in enumerate(self._names):
                tensor = self._ov.Tensor(np.ascontiguousarray(inputs[name]))
                self._request.set_input_tensor(i, tensor)
        try:
            self._request.infer(share_outputs=True)  # shared: they are copied below, once
        except Exception as e:
            raise InputError(f"OpenVINO cannot run {self._path} on this: {one_line(e)}") from e
        if self._results is not None:
            return {name: data.copy() for name, data in self._results}
        return {name: self._request.get_output_tensor(i).data.copy() for name, i in self._outputs}

    def _check_together(self, inputs: Mapping[str, np.ndarray]) -> None:
        """Open axes of several inputs fit each other, asked once a combination of shapes.

        Without it OpenVINO 2026.4 at times does not refuse shapes that contradict each other and
        leaves the outputs of the call before in place.
        """
        shapes = tuple(inputs[name].shape for name in self._names)
        if len(shapes) == 1 or shapes in self._fitting:
            return
        if self._shaped is None:
            self._shaped = self._model()
        try:
            self._shaped.reshape({i: list(shape) for i, shape in enumerate(shapes)})
        except Exception as e:
            raise InputError(f"OpenVINO cannot run {self._path} on this: {one_line(e)}") from e
        self._fitting.add(shapes)

    def throughput(self, inputs: Mapping[str, np.ndarray], duration_s: float) -> tuple[int, float]:
        self.check(inputs)
        compiled = self._compile(hint="THROUGHPUT")
        queue = self._ov.AsyncInferQueue(compiled)
        feed = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for _ in range(len(queue) * 2):
            queue.start_async(feed)
        queue.wait_all()
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < duration_s:
            queue.start_async(feed)
            count += 1
        queue.wait_all()
        return count, time.perf_counter() - begin

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        self.check(inputs)
        model = self._model()
        # Open axes get the inputs' sizes: without them no layer's work could be counted.
        model.reshape({i: list(inputs[name].shape) for i, name in enumerate(self._names)})
        macs = {op.get_friendly_name(): _macs(op) for op in model.get_ops()}
        compiled = self._compile(model, profile=True)
        request = compiled.create_infer_request()
        for _ in range(3):
            request.infer(dict(inputs))
        types, originals = {}, {}
        for node in compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            name = node.get_friendly_name()
            types[name] = info["runtimePrecision"].astype(str) if "runtimePrecision" in info else ""
            names = info["originalLayersNames"].astype(str) if "originalLayersNames" in info else ""
            originals[name] = [part for part in names.split(",") if part]
        layers, counted = [], set()
        for entry in request.get_profiling_info():
            if entry.status.name != "EXECUTED":
                continue
            sources = [
                s for s in originals.get(entry.node_name, [entry.node_name]) if s not in counted
            ]
            counted.update(sources)
            work = sum(macs.get(source, 0) for source in sources)
            executed = types.get(entry.node_name, "")
            precision = _EXECUTED.get(executed.lower()) if work else None
            layers.append(
                LayerProfile(
                    entry.node_name,
                    entry.node_type,
                    executed or entry.exec_type,
                    precision,
                    entry.real_time.total_seconds() * 1e3,
                    work,
                )
            )
        return layers

    def close(self) -> None:
        super().close()
        self._slots = self._results = None
        self._request = self._compiled = None

    def _model(self) -> Any:
        """The model as read, with its static shapes."""
        try:
            if self._path.suffix == ".onnx":
                # Not read_model: NNCF and the plugin know the graphs of convert_model better.
                model = self._ov.convert_model(self._path)
            else:
                model = self._ov.Core().read_model(self._path)
        except Exception as e:
            raise ModelError(f"OpenVINO cannot read {self._path}: {one_line(e)}") from e
        self._reshape(model)
        return model

    def _reshape(self, model: Any) -> None:
        given = dict(self.options.input_shapes or ())
        shapes = {}
        for port in model.inputs:
            name = port.get_any_name()
            if names := [n for n in port.get_names() if n in given]:
                shapes[name] = self._ov.PartialShape(list(given[names[0]]))
                if not port.partial_shape.compatible(shapes[name]):
                    raise ModelError(
                        f"{self._path}: input {_spec(port)} does not take shape {given[names[0]]}"
                    )
            elif (
                self.options.batch is not None
                and port.partial_shape.rank.is_static
                and len(port.partial_shape)
            ):
                shape = port.partial_shape
                if shape[0].is_dynamic:
                    shape[0] = self.options.batch
                shapes[name] = shape
        try:
            if shapes:
                model.reshape(shapes)
        except Exception as e:
            raise ModelError(
                f"{self._path} does not take shapes {given or self.options.batch}: {one_line(e)}"
            ) from e

    def _compile(self, model: Any = None, profile: bool = False, hint: str | None = None) -> Any:
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": hint or self.options.objective.upper(),
            "INFERENCE_PRECISION_HINT": _HINTS[self.options.execution],
        }
        if self.options.threads:
            config["INFERENCE_NUM_THREADS"] = self.options.threads
        if profile:
            config["PERF_COUNT"] = True
        model = model or self._model()
        try:
            return self._ov.Core().compile_model(model, "CPU", config)
        except Exception as e:
            raise ModelError(f"OpenVINO cannot compile {self._path}: {one_line(e)}") from e


def _spec(port: Any) -> TensorSpec:
    shape = tuple(axis.get_length() if axis.is_static else None for axis in port.partial_shape)
    names = sorted(port.get_names())
    name = port.get_any_name() if names else port.get_node().get_friendly_name()
    return TensorSpec(name, shape, np.dtype(port.get_element_type().to_dtype()).name)


def _macs(op: Any) -> int:
    kind = op.get_type_name()
    backwards = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")
    counted = ("Convolution", "GroupConvolution", "MatMul", *backwards, *_RECURRENT)
    if kind not in counted or op.get_output_partial_shape(0).is_dynamic:
        return 0
    if kind in _RECURRENT:
        at = _RECURRENT[kind]
        return recurrent_macs(*(list(op.get_input_shape(i)) for i in (0, at, at + 1)))
    out = list(op.get_output_shape(0))
    if kind == "MatMul":
        left = list(op.get_input_shape(0))
        transposed = op.get_attributes().get("transpose_a", False)
        return matmul_macs(out, left[-2] if transposed and len(left) > 1 else left[-1])
    weights = list(op.get_input_shape(1))
    if kind in backwards:
        # [in, out, k, k], or [groups, in, out, k, k]: each input element goes into out × window.
        return conv_macs(op.get_input_shape(0), weights[2 if kind.startswith("Group") else 1 :])
    # GroupConvolution: [groups, out, in, k, k]; Convolution: [out, in, k, k].
    return conv_macs(out, weights[2:] if kind == "GroupConvolution" else weights[1:])
