"""The NVIDIA parts of this machine, and what each of them enables; none needs another to be looked at."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ..artifact.boards import precisions_of
from ..errors import BuildError, MissingPart

# What works where nothing of NVIDIA's is installed.
WITHOUT = "edgeml compress --target jetson-…|rtx, lint, export --command and deploy work without it"


def gpu() -> str:
    """The GPU that CUDA finds: what it executes, and what that enables.

    Raises:
        MissingPart: no CUDA runtime, driver or GPU.
    """
    from ..runtime.device.cuda_runtime import CudaRuntime

    try:
        cuda = CudaRuntime()
    except MissingPart as e:
        raise MissingPart(f"{e}; {WITHOUT}") from e
    runtime, driver = cuda.versions()
    capability = cuda.capability()
    executes = " ".join(precisions_of(capability))
    return (
        f"{capability}, CUDA {runtime} (driver to {driver}), {cuda.memory()[1] / 2**30:.0f} GiB, executes "
        f"{executes}: edgeml bench of TensorRT engines"
    )


def tensorrt(module: str, model: Path) -> str:
    """Parse and build a network; running it would need the GPU it is built for."""
    from ..export.tensorrt_export import version_of
    from ..export.tensorrt_plan import build_engine, profiles_from_shapes

    version = version_of(module.replace("_", "-"), None)
    profiles = profiles_from_shapes(model, {}, {}, {})
    built = build_engine(model, None, module, profiles, version=version)
    enables = (
        "export --to tensorrt-rtx, and shows that graphs for a Jetson are legal (compress --target, lint --fix)"
        if module == "tensorrt_rtx"
        else "export --to tensorrt, bench"
    )
    return (
        f"parsed and built a convolution for {built.compute_capability} in {built.seconds:.1f} s, not "
        f"run: {enables}"
    )


def modelopt() -> str:
    """Quantize a layer: max calibration on noise."""
    from .modelopt_export import import_modelopt, quiet

    mtq = import_modelopt()
    import torch

    layer = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with quiet():
        mtq.quantize(layer, mtq.INT8_DEFAULT_CFG, lambda m: m(torch.randn(4, 8)))
    return "quantized a layer to INT8: --route modelopt, --precision fp8; without it --route tensorrt-form"


def fp16(model: Path, scratch: Path) -> str:
    """Cast a network to FP16 and compare it."""
    from .fp16_cast import cast_fp16

    rng = np.random.default_rng(1)
    samples = [{"x": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(2)]
    done = cast_fp16(model, scratch / "fp16.onnx", samples)
    if done.kept:
        raise BuildError(f"{len(done.kept)} of {done.nodes} nodes stayed in fp32")
    return (
        f"cast {done.nodes} nodes to FP16: every graph of --target jetson-…|rtx and export --fp16"
    )


def energy() -> str:
    """The energy counter of the first GPU.

    Raises:
        MissingPart: there is none; why is told.
    """
    from ..runtime.energy.none import NoMeter
    from ..runtime.energy.nvml import nvml_meter

    meter = nvml_meter()
    if isinstance(meter, NoMeter):
        raise MissingPart(meter.reason)
    return f"{meter.rails[0]} has an energy counter: edgeml bench --energy"


def trtexec() -> str:
    """Whether JetPack's command is there, which is not on PATH."""
    from ..export.tensorrt_plan import TRTEXEC

    if Path(TRTEXEC).is_file():
        return f"{TRTEXEC}: build.sh of a bundle"
    where = "a Jetson's own" if sys.platform == "linux" else "not on this system"
    raise MissingPart(f"nothing at {TRTEXEC} ({where}): build.sh and export --command are for it")
