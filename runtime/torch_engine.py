"""A torch module as an engine: the reference. The only file of this folder that imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..artifact.tensor_spec import TensorSpec
from ..errors import BuildError, MissingPart, ModelError
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
        self.input_specs = [self._spec(n, a) for n, a in example_inputs.items()]
        self.output_specs = [self._spec(n, a) for n, a in self.run(example_inputs).items()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.check(inputs)
        # Copies: a module that works in place would change the caller's arrays.
        feed = {n: torch.from_numpy(np.array(a, order="C")) for n, a in inputs.items()}
        with torch.inference_mode():
            result = self._module(**feed)
        return self._named(result)

    def profile(self, inputs: Mapping[str, np.ndarray]) -> list[LayerProfile]:
        raise BuildError("a torch module has no layer profile here; profile its engines")

    def close(self) -> None:
        super().close()
        self._module = None

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
        return {
            n: t.detach().cpu().numpy().copy() for n, t in zip(names, found.values(), strict=True)
        }
