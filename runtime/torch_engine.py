"""A torch module as an engine: the reference, and a baseline. The only file of this folder that imports torch.

On a GPU, by `torch.compile` or AOTInductor it is a baseline for what a toolchain must beat; CUDA is
written, not run on hardware.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..artifact.tensor_spec import TensorSpec
from ..errors import BuildError, MissingPart, ModelError, one_line
from .device.cuda_runtime import OutOfGpuMemory
from .engine import Engine, EngineOptions, LayerProfile

try:
    import torch
except ImportError as e:
    raise MissingPart("torch is not installed: pip install 'edgeml-toolchain[train]'") from e

Mode = Literal["eager", "compile", "aoti"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TorchEngine(Engine):
    """Runs a built module: eager, compiled, or ahead of time by AOTInductor.

    Args:
        module: put into eval mode. For another device or type than its own a copy is taken.
        example_inputs: an array an input name, batch axis first; fixes the specs. Names are those
            of ``forward``'s parameters.
        output_names: default ``output``, or ``output_0``, ``output_1`` … of a tuple, or a dict's keys.
        options: `execution` is the type of weights and float inputs; arrays in and out stay float32.
        device: cpu or cuda.
        mode: compile and aoti build for the example's shapes.

    Raises:
        MissingPart: torch sees no GPU.
        BuildError: the module cannot be compiled here.
        OutOfGpuMemory: it does not fit into the GPU.
    """

    runtime = "torch"

    def __init__(
        self,
        module: torch.nn.Module,
        example_inputs: Mapping[str, np.ndarray],
        output_names: Sequence[str] | None = None,
        options: EngineOptions | None = None,
        device: str = "cpu",
        mode: Mode = "eager",
    ) -> None:
        self.version = torch.__version__
        self.options = options or EngineOptions()
        if device == "cuda" and not torch.cuda.is_available():
            raise MissingPart(
                f"torch {torch.__version__} sees no CUDA GPU here (built for CUDA "
                f"{torch.version.cuda or 'none'}); its CPU engines work"
            )
        self.device, self.mode = device, mode
        self._dtype = _DTYPES[self.options.execution]
        if device != "cpu" or self._dtype != torch.float32:
            module = copy.deepcopy(module)  # the caller's stays where and what it is
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self._output_names = list(output_names) if output_names else None
        self._module = self._guarded(lambda: module.eval().to(device=device, dtype=self._dtype))
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._call = self._build(example_inputs)
        self.input_specs = [self._spec(n, a) for n, a in example_inputs.items()]
        self.output_specs = [self._spec(n, a) for n, a in self.run(example_inputs).items()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        with torch.inference_mode():
            return self._guarded(lambda: self._named(self._call(**self._feed(inputs))))

    def gpu_times_ms(self, inputs: Mapping[str, np.ndarray]) -> dict[str, float] | None:
        if self.device == "cpu":
            return None
        self.check(inputs)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        with torch.inference_mode():
            begin = time.perf_counter()
            events[0].record()
            feed = self._feed(inputs)
            events[1].record()
            result = self._guarded(lambda: self._call(**feed))
            events[2].record()
            self._named(result)
            events[3].record()
            torch.cuda.synchronize()
            host = (time.perf_counter() - begin) * 1e3
        parts = ("host_to_device", "compute", "device_to_host")
        found = {p: events[k].elapsed_time(events[k + 1]) for k, p in enumerate(parts)}
        return {**found, "host": host}

    def gpu_memory_bytes(self) -> int | None:
        """The most that torch had allocated in this process."""
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated()

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        raise BuildError("a torch module has no layer profile here; profile its engines")

    def close(self) -> None:
        super().close()
        self._module = self._call = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _build(self, example_inputs: Mapping[str, np.ndarray]) -> Callable[..., Any]:
        if self.mode == "eager":
            return self._module
        feed = self._feed(example_inputs)
        try:
            if self.mode == "compile":
                compiled = torch.compile(self._module, dynamic=False)
                with torch.inference_mode():
                    compiled(**feed)
                return compiled
            # A .pt2 of others may run code when it loads (docs/decisions/006): this one is made here, loaded
            # at once, and lies in a folder that goes with the engine.
            from torch._inductor import aoti_compile_and_package, aoti_load_package

            self._scratch = tempfile.TemporaryDirectory(prefix="edgeml-aoti-")
            with torch.no_grad():
                exported = torch.export.export(self._module, (), kwargs=feed)
                file = Path(self._scratch.name, "model.pt2")
                return aoti_load_package(aoti_compile_and_package(exported, package_path=str(file)))
        except torch.OutOfMemoryError as e:
            raise OutOfGpuMemory(f"out of GPU memory: {one_line(e)}") from e
        except Exception as e:  # a missing C++ compiler, an operator without a kernel …
            if self._scratch is not None:
                self._scratch.cleanup()
            raise BuildError(f"torch cannot build this by {self.mode}: {one_line(e)}") from e

    def _feed(self, inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        feed = {}
        for name, array in inputs.items():
            # Copies: a module that works in place would change the caller's arrays.
            tensor = torch.from_numpy(np.array(array, order="C"))
            dtype = self._dtype if tensor.is_floating_point() else tensor.dtype
            feed[name] = tensor.to(device=self.device, dtype=dtype)
        return feed

    def _guarded(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except torch.OutOfMemoryError as e:
            raise OutOfGpuMemory(f"out of GPU memory: {one_line(e)}") from e

    def _spec(self, name: str, array: np.ndarray) -> TensorSpec:
        """The example's shape; its batch axis stays open where the options leave it open."""
        shape = array.shape if self.options.batch is not None else (None, *array.shape[1:])
        return TensorSpec(name, shape, str(array.dtype))

    def _named(self, result: Any) -> dict[str, np.ndarray]:
        if isinstance(result, Mapping):
            found = {key: value for key, value in result.items() if isinstance(value, torch.Tensor)}
        elif isinstance(result, torch.Tensor):
            found = {"output": result}
        elif isinstance(result, list | tuple):
            tensors = [value for value in result if isinstance(value, torch.Tensor)]
            found = {f"output_{i}": value for i, value in enumerate(tensors)}
        else:
            found = {}
        names = self._output_names or list(found)
        if not found or len(names) != len(found):
            want = f"{len(names)} outputs ({', '.join(names)})" if names else "an output"
            raise ModelError(
                f"{type(self._module).__name__}.forward returns {type(result).__name__} with "
                f"{len(found)} tensors; expected {want}"
            )
        # A view of torch's own memory would change with the module's next in-place operation.
        return {n: _array(t) for n, t in zip(names, found.values(), strict=True)}


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()
    if tensor.dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # numpy has no bf16, and callers know float32
        tensor = tensor.float()
    return tensor.cpu().numpy().copy()
