"""The process that parses and builds for TensorRT: ``python -m edgeml.export.tensorrt_child``.

Reads one JSON object from stdin (see `tensorrt_plan.Build`), writes one as the last line of stdout. A
process of its own, because a builder may take its process down (tried: TensorRT-RTX 1.7 ends on an
Attention of three equal inputs by a segmentation fault) and because Polygraphy reads at import which
of the two libraries it drives.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    build = json.load(sys.stdin)
    if build["module"] == "tensorrt_rtx":
        os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"
    result: dict[str, Any] = {"ok": False}
    started = time.perf_counter()
    try:
        result |= _build(build)
        result["ok"] = True
    except Exception as e:  # whatever the library raises: the reason goes to the parent
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        result["reason"] = lines[0] if lines else type(e).__name__
    result["seconds"] = time.perf_counter() - started
    print(json.dumps(result))


def _build(build: dict[str, Any]) -> dict[str, Any]:
    from importlib import import_module

    from polygraphy.backend.trt import (
        CreateConfig,
        EngineBytesFromNetwork,
        NetworkFromOnnxPath,
        Profile,
    )

    capability = build["compute_capability"] or _capability()
    trt = import_module(build["module"])
    strong = build["strongly_typed"]
    network = NetworkFromOnnxPath(build["onnx"], strongly_typed=strong)
    builder, parsed, parser = network()
    layers = parsed.num_layers
    profile = Profile()
    for name, shapes in build["profiles"].items():
        profile.add(name, *(tuple(shape) for shape in shapes))
    options: dict[str, Any] = {"profiles": [profile] if build["profiles"] else None}
    if not strong:
        options |= {"fp16": build["fp16"], "int8": build["int8"]}
    if build["workspace_bytes"]:
        options["memory_pool_limits"] = {trt.MemoryPoolType.WORKSPACE: build["workspace_bytes"]}
    cache = build["timing_cache"]
    if cache and Path(cache).exists():
        options["load_timing_cache"] = cache
    configure = CreateConfig(**options)

    def config(builder: Any, network: Any) -> Any:
        made = configure(builder, network)
        if build["compute_capability"]:
            made.num_compute_capabilities = 1
            made.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        return made

    save = cache if build["module"] == "tensorrt" else None
    plan = EngineBytesFromNetwork(
        (builder, parsed, parser), config=config, save_timing_cache=save or None
    )()
    if build["out"] is not None:
        Path(build["out"]).write_bytes(plan)
    return {
        "version": trt.__version__,
        "layers": layers,
        "bytes": plan.nbytes,
        "compute_capability": capability,
    }


def _capability() -> str:
    """Of the first GPU, by the driver (``cuDeviceGetAttribute`` 75 and 76, cuda.h)."""
    import ctypes

    driver = ctypes.CDLL("libcuda.so.1")
    device, values = ctypes.c_int(), (ctypes.c_int * 2)()
    for call, arguments in (
        (driver.cuInit, (0,)),
        (driver.cuDeviceGet, (ctypes.byref(device), 0)),
        (driver.cuDeviceGetAttribute, (ctypes.byref(values, 0), 75, device)),
        (
            driver.cuDeviceGetAttribute,
            (ctypes.byref(values, ctypes.sizeof(ctypes.c_int)), 76, device),
        ),
    ):
        if status := call(*arguments):
            raise RuntimeError(f"no CUDA-capable device ({call.__name__} gives {status})")
    return f"SM{values[0]}{values[1]}"


if __name__ == "__main__":
    main()
