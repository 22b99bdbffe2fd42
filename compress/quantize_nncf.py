"""INT8 by NNCF's post-training quantization of the OpenVINO model.

Documentation: NNCF "Post-training Quantization"; the model must come from ``ov.convert_model(onnx)``:
after ``Core.read_model`` depthwise layers stay in float and run 1.5 times slower (FACTS §1).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from ..artifact.onnx_file import read_onnx
from ..errors import MissingPart
from ..runtime.openvino_engine import import_openvino
from .calibration import Calibration
from .node_names import match_nodes
from .step import StepResult


class QuantizeNncf:
    """NNCF post-training INT8: per-channel weights, fast bias correction.

    Args:
        preset: ``performance`` (symmetric activations) or ``mixed`` (asymmetric ones).
        nodes_to_exclude: regular expressions over ONNX node names that stay in float.

    Raises:
        MissingPart: nncf or openvino is not installed.
    """

    runtimes = ("openvino",)
    calibrates = True

    def __init__(
        self,
        preset: Literal["performance", "mixed"] = "performance",
        nodes_to_exclude: tuple[str, ...] = (),
    ) -> None:
        try:
            self._versions = {name: version(name) for name in ("nncf", "openvino")}
        except PackageNotFoundError as e:
            raise MissingPart(
                f"{e.name} is not installed: pip install 'edgeml-toolchain[compress]'"
            ) from e
        self.preset = preset
        self.nodes_to_exclude = nodes_to_exclude
        self.route = f"nncf {preset}"

    def settings(self) -> dict[str, Any]:
        return {
            "route": self.route,
            "nodes_to_exclude": list(self.nodes_to_exclude),
            "versions": self._versions,
        }

    def __call__(self, model: Path, calibration: Calibration, directory: Path) -> StepResult:
        """Writes ``model.xml`` and ``model.bin`` into `directory`; the batch axis stays dynamic."""
        with quiet():
            ov = import_openvino()  # before NNCF: it switches the telemetry of both off
            import nncf

            excluded = match_nodes(model, self.nodes_to_exclude)
            network = ov.convert_model(model)
            names = {op.get_friendly_name() for op in network.get_ops()}
            found = {node: here & names for node, here in _friendly(model, excluded).items()}
            scope = nncf.IgnoredScope(names=sorted(set().union(*found.values())))
            quantized = nncf.quantize(
                network,
                nncf.Dataset(calibration),
                preset=nncf.QuantizationPreset(self.preset),
                subset_size=calibration.samples,
                ignored_scope=scope,
            )
            path = directory / "model.xml"
            ov.save_model(quantized, path, compress_to_fp16=False)
        quantizers = sum(op.get_type_name() == "FakeQuantize" for op in quantized.get_ops())
        size = sum((directory / name).stat().st_size for name in ("model.xml", "model.bin"))
        lost = sum(not here for here in found.values())
        notes = [f"{lost} excluded nodes were fused away before quantization"] if lost else []
        return StepResult(path, quantizers, size, notes)


def _friendly(model: Path, nodes: Sequence[str]) -> dict[str, set[str]]:
    """The names that OpenVINO's operators of an ONNX node may have: the node's own, that of the output
    of the graph that it computes, and of the product before a bias, which is an operator of its own.
    """
    graph = read_onnx(model).graph
    ends = {value.name for value in graph.output}
    found = {name: {name} for name in nodes}
    for node in graph.node:
        if node.name in found:
            found[node.name].update(ends.intersection(node.output))
    return {n: here | {f"{name}/WithoutBiases" for name in here} for n, here in found.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep NNCF's progress bars and log lines out of our table; its errors still raise."""
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
