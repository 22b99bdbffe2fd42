"""A torch module as an engine: the reference. The only file of this folder that imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..artifact.tensor_spec import TensorSpec, check_inputs
from ..errors import BuildError, MissingPart
from .engine import Engine, EngineOptions, LayerProfile

try:
    import torch
except ImportError as e:
    raise MissingPart("torch is not installed: pip install 'edgeml-toolchain[train]'") from e


class TorchEngine(Engine):
    """Runs a built module in eager mode, fp32.

    Args:
        module: put into eval mode.
        example_inputs: an array an input name, batch axis first; fixes the specs. Names are those
            of ``forward``'s parameters.
        output_names: default ``output``, or ``output_0``, ``output_1`` … of a tuple, or a dict's keys.
    """

    runtime = "torch"

    def __init__(
        self,
        module: torch.nn.Module,
        example_inputs: Mapping[str, np.ndarray],
        output_names: Sequence[str] | None = None,
        options: EngineOptions | None = None,
    ) -> None:
        self.version = torch.__version__
        self.options = options or EngineOptions()
        self._module = module.eval()
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        self._output_names = list(output_names) if output_names else None
        self.input_specs = [TensorSpec(n, a.shape, str(a.dtype)) for n, a in example_inputs.items()]
        outputs = self.run(example_inputs)
        self.output_specs = [TensorSpec(n, a.shape, str(a.dtype)) for n, a in outputs.items()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(inputs, self.input_specs)
        with torch.inference_mode():
            result = self._module(**{n: torch.from_numpy(a) for n, a in inputs.items()})
        return self._named(result)

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        raise BuildError("a torch module has no layer profile here; profile its engines")

    def _named(self, result: Any) -> dict[str, np.ndarray]:
        if isinstance(result, Mapping):
            found = {key: value for key, value in result.items() if isinstance(value, torch.Tensor)}
        elif isinstance(result, torch.Tensor):
            found = {"output": result}
        else:
            tensors = [value for value in result if isinstance(value, torch.Tensor)]
            found = {f"output_{i}": value for i, value in enumerate(tensors)}
        names = self._output_names or list(found)
        # A view of torch's own memory would change with the module's next in-place operation.
        return {
            n: t.detach().cpu().numpy().copy() for n, t in zip(names, found.values(), strict=True)
        }
