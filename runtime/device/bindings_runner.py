"""A TensorRT plan through the system's Python bindings, behind the same few names as the other runners."""

from __future__ import annotations

import time
from typing import Any, Callable, Sequence

from .tensor_file import Tensor, from_array, to_array
from .tensorrt_runner import TensorRTRunner


class BindingsRunner:
    """`TensorRTRunner` in tensors.

    Args:
        plan: the file's path.
        shapes: by input, batch included.

    Raises:
        MissingPart, InputError, OutOfGpuMemory: see `TensorRTRunner`.
    """

    how = "bindings"

    def __init__(self, plan: str, shapes: dict[str, Sequence[int]] | None = None) -> None:
        begin = time.perf_counter()
        with open(plan, "rb") as file:
            self._runner = TensorRTRunner(file.read(), shapes=shapes)
        self.load_ms = (time.perf_counter() - begin) * 1e3
        self.version = self._runner.version

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One inference."""
        outputs = self._runner.run({name: to_array(tensor) for name, tensor in inputs.items()})
        return {name: from_array(array) for name, array in outputs.items()}

    def bound(self, inputs: dict[str, Tensor]) -> Callable[[], Any]:
        """A function that runs these inputs, for timing: from host memory to host memory."""
        feed = {name: to_array(tensor) for name, tensor in inputs.items()}
        return lambda: self._runner.run(feed)

    def infer_arrays(self, feed: dict[str, Any]) -> Any:
        """One inference of numpy arrays; the next overwrites its outputs."""
        return self._runner.run(feed)

    def profile(self, inputs: dict[str, Tensor], iterations: int) -> list[dict[str, Any]]:
        """Mean ms a layer."""
        feed = {name: to_array(tensor) for name, tensor in inputs.items()}
        times = self._runner.profile(feed, iterations)
        return [{"name": name, "ms": ms} for name, ms in times.items()]

    def close(self) -> None:
        self._runner.close()
