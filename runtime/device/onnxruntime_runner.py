"""ONNX Runtime on the device's CPU, where it is installed; labelled onnxruntime, never tensorrt."""

from __future__ import annotations

import json
import os
import tempfile
import time
from typing import Any, Callable, Sequence

from ...errors import EdgemlError, MissingPart, one_line
from .tensor_file import Tensor, from_array, to_array


class OnnxRuntimeRunner:
    """One session on the CPU.

    Args:
        model: the ONNX file.
        shapes: by input, batch included: what the graph's open axes become.
        threads: of one inference; None leaves the choice to the library.

    Raises:
        MissingPart: ONNX Runtime or numpy is not installed.
        EdgemlError: it cannot load the file.
    """

    how = "onnxruntime"

    def __init__(
        self,
        model: str,
        shapes: dict[str, Sequence[int]] | None = None,
        threads: int | None = None,
    ) -> None:
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        try:
            import onnxruntime
        except ImportError as e:
            raise MissingPart(f"onnxruntime is not installed: {one_line(e)}") from e
        self._ort, self._model, self._threads = onnxruntime, model, threads
        self.version = onnxruntime.__version__
        self._sizes: dict[str, int] = {}
        begin = time.perf_counter()
        self._session = self._open()
        # Axes are named in the file, and only a session tells their names: opened again, made static.
        for node in self._session.get_inputs():
            for axis, size in zip(node.shape, (shapes or {}).get(node.name, ())):
                if isinstance(axis, str):
                    self._sizes[axis] = int(size)
        if self._sizes:
            begin = time.perf_counter()
            self._session = self._open()
        self.load_ms = (time.perf_counter() - begin) * 1e3
        self._outputs = [node.name for node in self._session.get_outputs()]

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One inference.

        Raises:
            EdgemlError: the inputs do not fit, or it failed.
        """
        outputs = self.bound(inputs)()
        return {name: from_array(array) for name, array in zip(self._outputs, outputs)}

    def bound(self, inputs: dict[str, Tensor]) -> Callable[[], Any]:
        """A function that runs these inputs, for timing."""
        feed = {name: to_array(tensor) for name, tensor in inputs.items()}

        def infer() -> Any:
            try:
                return self._session.run(self._outputs, feed)
            except Exception as e:  # its errors share no class
                raise EdgemlError(f"onnxruntime: {one_line(e)}") from e

        return infer

    def infer_arrays(self, feed: dict[str, Any]) -> Any:
        """One inference of numpy arrays."""
        return self._session.run(self._outputs, feed)

    def profile(self, inputs: dict[str, Tensor], iterations: int) -> list[dict[str, Any]]:
        """Mean ms a node, of a session that is profiled apart."""
        with tempfile.TemporaryDirectory(prefix="edgeml-profile-") as folder:
            session = self._open(os.path.join(folder, "run"))
            feed = {name: to_array(tensor) for name, tensor in inputs.items()}
            for _ in range(iterations):
                session.run(self._outputs, feed)
            with open(session.end_profiling(), encoding="utf-8") as file:
                events = json.load(file)
        total: dict[str, float] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"][: -len("_kernel_time")]
                total[name] = total.get(name, 0.0) + event["dur"] / 1e3
        return [{"name": name, "ms": ms / iterations} for name, ms in total.items()]

    def close(self) -> None:
        self._session = None

    def _open(self, profile: str | None = None) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = self._threads or 0
        # Spinning threads slow every other engine that is timed beside this one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        for name, size in self._sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        try:
            return self._ort.InferenceSession(
                self._model,
                options,
                providers=["CPUExecutionProvider"],
                # It would quantize layers that were left in float on purpose (runtime/onnxruntime_engine.py).
                disabled_optimizers=["WeightBiasQuantization"],
            )
        except Exception as e:
            raise EdgemlError(f"onnxruntime cannot load it: {one_line(e)}") from e
