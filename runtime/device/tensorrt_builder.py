"""From an ONNX file to a TensorRT plan, by the library's own bindings. On a GPU: not run on hardware yet.

Flags follow ``artifact/tensorrt_versions.py``: strongly typed from 10 on, precision flags before. It builds
where it runs; TensorRT-RTX also builds for a GPU that is not there. Standard library, Python 3.8.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence, Tuple

from ...artifact.tensorrt_versions import find_version
from ...errors import BuildError, InputError
from .tensorrt_runner import import_tensorrt, make_logger

# min, opt, max of one input.
Profile = Tuple[Sequence[int], Sequence[int], Sequence[int]]


class BuiltPlan(NamedTuple):
    """What a build gave.

    Attributes:
        version: of the library.
        layers: of the parsed network.
        open_axes: the graph had some, which `profiles` closed.
        seconds: parsing and building.
        size_bytes: of the plan.
    """

    version: str
    layers: int
    open_axes: bool
    seconds: float
    size_bytes: int


def build_plan(
    onnx: str,
    out: str,
    *,
    module: Any = "tensorrt",
    int8: bool = False,
    fp16: bool = False,
    profiles: Mapping[str, Profile] | None = None,
    workspace_bytes: int | None = None,
    timing_cache: str | None = None,
    capability: str | None = None,
    detailed: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> BuiltPlan:
    """Parse, build, write (to a temporary name first).

    A builder can take its process down (``docs/decisions/008``): call it in a process of its own.

    Args:
        onnx: the model; its external data lie beside it.
        out: where the plan goes.
        module: ``tensorrt``, ``tensorrt_rtx`` or the library.
        int8, fp16: weakly typed versions (8.x) only: the graph carries Q/DQ; what does not may run in FP16.
        profiles: min, opt and max shape of inputs with open axes; one that is not named becomes batch 1.
        workspace_bytes: the most scratch memory of a layer.
        timing_cache: read where it is, written afterwards, so that builds repeat; not for TensorRT-RTX.
        capability: ``SM89`` of a GPU that is not here; TensorRT-RTX only.
        detailed: layers keep their types and tactics for the profile.

    Raises:
        MissingPart: the library is not installed.
        InputError: a profile that does not fit, an input whose axes stay open, a version without a row.
        BuildError: the parser or the builder refuses the graph.
    """
    trt = import_tensorrt(module) if isinstance(module, str) else module
    rtx = trt.__name__.startswith("tensorrt_rtx")
    row = find_version("rtx" if rtx else trt.__version__)
    begin = time.perf_counter()
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    # Implicit batch is gone with 10, and with it the flag's meaning; 8.x needs it.
    creation = trt.NetworkDefinitionCreationFlag
    flag = creation.STRONGLY_TYPED if row.strong else creation.EXPLICIT_BATCH
    network = builder.create_network(1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        raise BuildError(
            f"TensorRT {trt.__version__} cannot read {onnx}: {_parser_error(parser, logger)}"
        )
    config = builder.create_builder_config()
    if not row.strong:
        for wanted, name in ((fp16, "FP16"), (int8, "INT8")):
            if wanted:
                config.set_flag(getattr(trt.BuilderFlag, name))
    if workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    open_axes = _add_profile(builder, network, config, profiles or {})
    if capability and rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    # TensorRT-RTX tunes when the engine loads: it has no timings to keep (and raises SystemError).
    cached = timing_cache is not None and not rtx
    if cached:
        timings = config.create_timing_cache(_read(timing_cache))
        if not config.set_timing_cache(timings, False):  # of another version or GPU: begun anew
            config.set_timing_cache(config.create_timing_cache(b""), False)
    layers = network.num_layers
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildError(f"TensorRT {trt.__version__} cannot build {onnx}: {logger.said()}")
    size = _write(out, memoryview(plan))
    if cached:
        kept = config.get_timing_cache()
        if kept is not None:
            _write(timing_cache, memoryview(kept.serialize()))
    return BuiltPlan(trt.__version__, layers, open_axes, time.perf_counter() - begin, size)


def _add_profile(builder: Any, network: Any, config: Any, given: Mapping[str, Profile]) -> bool:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    known = [tensor.name for tensor in inputs]
    for name in given:
        if name not in known:
            raise InputError(f"no input {name!r} for a shape; the graph has {', '.join(known)}")
    profile, open_axes = builder.create_optimization_profile(), False
    for tensor in inputs:
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        open_axes = True
        if tensor.name in given:
            shapes = tuple(tuple(s) for s in given[tensor.name])
        elif -1 in shape[1:]:
            raise InputError(
                f"input {tensor.name!r} has open axes besides the batch; give its shape"
            )
        else:
            shapes = ((1, *shape[1:]),) * 3
        for axes in zip(shape, *shapes):
            if not (1 <= axes[1] <= axes[2] <= axes[3]) or axes[0] not in (-1, axes[2]):
                raise InputError(
                    f"the shapes of input {tensor.name!r} do not fit: 1 ≤ min ≤ opt ≤ max must hold, "
                    f"and fixed axes stay ({shape})"
                )
        if any(len(s) != len(shape) for s in shapes):
            raise InputError(f"input {tensor.name!r} has {len(shape)} axes; its shapes have others")
        profile.set_shape(tensor.name, *shapes)
    if open_axes:
        config.add_optimization_profile(profile)
    return open_axes


def _parser_error(parser: Any, logger: Any) -> str:
    if parser.num_errors:
        error = parser.get_error(0)
        node = getattr(error, "node_name", None)
        place = f" (node {node()})" if callable(node) and node() else ""
        return str(error.desc()).strip().splitlines()[0] + place
    return logger.said()


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _write(path: str, data: Any) -> int:
    part = Path(f"{path}.part")
    part.write_bytes(data)
    os.replace(part, path)
    return data.nbytes
