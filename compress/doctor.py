"""What works on this machine: each part is tried on a small network, not only imported."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..artifact.machine import describe_machine, isa_name
from ..errors import EdgemlError, one_line
from . import doctor_nvidia as nvidia


@dataclass(frozen=True)
class Part:
    """One part of the toolchain on this machine.

    Attributes:
        name: the library or capability.
        version: the installed version, None when it is not installed.
        works: whether what was tried gave the right result.
        detail: what was tried, or why it does not work and what to install.
    """

    name: str
    version: str | None
    works: bool
    detail: str


def examine() -> list[Part]:
    """Try every part; none of them can make this function raise."""
    machine = describe_machine()
    cpu = f"{machine['cpu']}, {machine['cores']} cores, {isa_name(machine)}, governor {machine['governor']}"
    parts = [Part("cpu", None, True, cpu)]
    with tempfile.TemporaryDirectory(prefix="edgeml-doctor-") as scratch:
        model = Path(scratch, "model.onnx")
        _write_network(model)
        for name, extra, trial in (
            ("onnx", "", lambda: _check(model)),
            ("onnxruntime", "onnxruntime", lambda: _run(model, "onnxruntime")),
            ("openvino", "openvino", lambda: _run(model, "openvino")),
            (
                "nncf",
                "compress",
                lambda: _quantize("nncf performance", model, Path(scratch, "nncf")),
            ),
            ("torch", "train", lambda: _export(Path(scratch, "torch.onnx"))),
            ("torch-pruning", "prune", _prune),
            ("onnxconverter-common", "", lambda: nvidia.fp16(model, Path(scratch))),
            ("nvidia-modelopt", "modelopt", nvidia.modelopt),
            ("tensorrt-rtx-cu13", "tensorrt-rtx", lambda: nvidia.tensorrt("tensorrt_rtx", model)),
            ("tensorrt", "tensorrt", lambda: nvidia.tensorrt("tensorrt", model)),
            ("nvidia-ml-py", "energy", nvidia.energy),
            ("tokenizers", "text", lambda: _import("tokenizers")),
        ):
            parts.append(_try(name, extra, trial))
        parts += [_look("nvidia gpu", nvidia.gpu), _look("trtexec", nvidia.trtexec)]
        if any(p.name == "onnxruntime" and p.works for p in parts):
            route = Path(scratch, "ort")
            trial = lambda: _quantize("onnxruntime minmax", model, route)  # noqa: E731
            parts.append(_try("onnxruntime quantization", "compress", trial, package="onnxruntime"))
    return parts


def _prune() -> str:
    from torch import nn, zeros

    from .prune_model import prune

    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    pruned, _ = prune(net, zeros(2, 4), ratio=0.5)
    return f"{pruned[0].out_features} of 8 units of a small network are left, the rest is cut"


def _try(name: str, extra: str, trial: Callable[[], str], package: str | None = None) -> Part:
    try:
        installed = version(package or name)
    except PackageNotFoundError:
        hint = f"pip install 'edgeml-toolchain[{extra}]'" if extra else f"pip install {name}"
        return Part(name, None, False, f"not installed: {hint}")
    try:
        return Part(name, installed, True, trial())
    except EdgemlError as e:
        return Part(name, installed, False, one_line(e))
    except Exception as e:  # the reason is the answer
        return Part(name, installed, False, f"{type(e).__name__}: {one_line(e)}")


def _look(name: str, trial: Callable[[], str]) -> Part:
    """A part that no package brings."""
    try:
        return Part(name, None, True, trial())
    except Exception as e:  # as above
        return Part(name, None, False, one_line(e))


def _write_network(path: Path) -> None:
    """A convolution with ReLU, 1×3×16×16 in: the smallest network every part has an opinion on."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        "doctor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 16, 16])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )


def _samples() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((3, 16, 16)).astype(np.float32)} for _ in range(8)]


def _check(model: Path) -> str:
    from ..export.onnx_check import inspect_onnx

    return f"checked a model of {len(inspect_onnx(model).inputs)} input"


def _run(model: Path, runtime: str) -> str:
    """Run the network and compare with ReLU's defining property and numpy's own result at one pixel."""
    import onnx
    from onnx import numpy_helper

    from ..runtime.engine import EngineOptions, load_file

    x = _samples()[0]["x"][None]
    weights = numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    expected = np.maximum((weights * x[0, :, 4:7, 4:7]).sum((1, 2, 3)), 0)
    with load_file(model, runtime, EngineOptions(input_shapes=(("x", x.shape),))) as engine:
        got = engine.run({"x": x})["y"][0, :, 5, 5]
    error = float(np.abs(got - expected).max())
    if error > 1e-3:
        raise ArithmeticError(f"a convolution is wrong by {error:.3g}")
    if runtime == "openvino":
        from ..runtime.openvino_engine import executable_precisions

        return (
            f"ran a convolution, right to {error:.0e}; executes {' '.join(executable_precisions())}"
        )
    return f"ran a convolution, right to {error:.0e}"


def _quantize(route: str, model: Path, directory: Path) -> str:
    from .calibration import Calibration
    from .candidates import ROUTES
    from .step import apply

    directory.mkdir()
    result = apply(ROUTES[route](()), model, Calibration(lambda: iter(_samples()), 8), directory)
    return f"quantized a convolution to INT8 ({result.quantizers} quantizers)"


def _export(path: Path) -> str:
    if not find_spec("onnxscript"):
        raise ModuleNotFoundError(
            "onnxscript is not installed: pip install 'edgeml-toolchain[train]'"
        )
    import torch

    from ..export.onnx_graph import to_onnx

    to_onnx(torch.nn.Conv2d(3, 4, 3), {"input": np.zeros((2, 3, 8, 8), np.float32)}, path)
    return "exported a convolution to ONNX"


def _import(module: str) -> str:
    from importlib import import_module

    import_module(module)
    return "imports"
