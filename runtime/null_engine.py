"""An engine without a library: zeros out, for tests of what takes engines."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from ..artifact.tensor_spec import TensorSpec
from .engine import Engine, EngineOptions, LayerProfile


class NullEngine(Engine):
    """Gives zeros of the declared shapes after `sleep_ms`."""

    runtime = "null"
    version = "0"

    def __init__(
        self,
        input_specs: Sequence[TensorSpec],
        output_specs: Sequence[TensorSpec],
        sleep_ms: float = 0.0,
    ) -> None:
        self.options = EngineOptions()
        self.input_specs, self.output_specs = list(input_specs), list(output_specs)
        self._sleep_s = sleep_ms / 1e3

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        if self._sleep_s:
            time.sleep(self._sleep_s)
        batch = next(iter(inputs.values())).shape[0]
        shapes = {
            s.name: (batch if s.shape[0] is None else s.shape[0], *s.shape[1:])
            for s in self.output_specs
        }
        return {s.name: np.zeros(shapes[s.name], s.dtype) for s in self.output_specs}

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        return []
