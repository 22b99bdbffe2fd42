"""Load time, first inference and peak memory, in a process that does nothing else."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifact.measurement import Measurement
from ..errors import EdgemlError
from .engine import EngineOptions, load_file

TIMEOUT_S = 120


@dataclass(frozen=True)
class OwnProcess:
    """Medians of several processes.

    Attributes:
        load_ms: from the engine's file to ready, the runtime library already imported.
        first_inference_ms: the first call after it.
        peak_memory_bytes: the process's peak resident memory, Python and the library included.
        library_bytes: of that, the peak before the engine was loaded.
    """

    load_ms: Measurement
    first_inference_ms: Measurement
    peak_memory_bytes: Measurement
    library_bytes: Measurement


def measure_in_own_process(
    path: Path,
    runtime: str,
    options: EngineOptions,
    inputs: Mapping[str, np.ndarray],
    repeats: int = 3,
    trust_plan: str | None = None,
) -> OwnProcess:
    """Load an engine and run it three times, in `repeats` processes one after another.

    Args:
        inputs: only names, shapes and dtypes are used; the child feeds zeros.

    Raises:
        EdgemlError: the child died or took longer than two minutes.
    """
    shapes = {name: (list(array.shape), str(array.dtype)) for name, array in inputs.items()}
    job = {
        "path": str(path),
        "runtime": runtime,
        "options": asdict(options),
        "inputs": shapes,
        "trust_plan": trust_plan,
    }
    found = [_child(job) for _ in range(repeats)]

    def median(name: str, unit: str) -> Measurement:
        values = [child[name] for child in found]
        return Measurement(
            value=statistics.median(values),
            unit=unit,
            n=repeats,
            low=min(values),
            high=max(values),
            method=f"median of {repeats} processes, their range",
        )

    return OwnProcess(
        median("load_ms", "ms"),
        median("first_inference_ms", "ms"),
        median("peak_memory_bytes", "bytes"),
        median("library_bytes", "bytes"),
    )


# A numpy.py in the user's folder is not the library (Python 3.10 has no PYTHONSAFEPATH yet).
_CHILD = """
import sys
if "" in sys.path:
    sys.path.remove("")
from edgeml.runtime.memory import measure_here
measure_here()
"""


def _child(job: dict[str, Any]) -> dict[str, float]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise EdgemlError(
            f"loading {job['path']} in its own process took over {TIMEOUT_S} s"
        ) from e
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgemlError(f"{job['path']} died in its own process (exit {done.returncode}): {last}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_here() -> None:
    """What the process of its own does: read a job from stdin, print its numbers, exit."""
    job = json.load(sys.stdin)
    options = dict(job["options"])
    if options["input_shapes"]:
        options["input_shapes"] = tuple(
            (name, tuple(shape)) for name, shape in options["input_shapes"]
        )
    if job["runtime"] == "openvino":
        from .openvino_engine import import_openvino

        import_openvino()
    elif job["runtime"] == "onnxruntime":
        from .onnxruntime_engine import import_onnxruntime

        import_onnxruntime()
        # Our own check of the file reads it with this library: 80 ms that are not the engine's.
        import onnx  # noqa: F401
    elif job["runtime"].startswith("tensorrt"):
        from .device.cuda_runtime import load_cudart
        from .device.tensorrt_runner import import_tensorrt

        import_tensorrt(job["runtime"].replace("-", "_"))
        load_cudart()
    inputs = {name: np.zeros(shape, dtype) for name, (shape, dtype) in job["inputs"].items()}
    library = _peak_bytes()
    begin = time.perf_counter()
    try:
        engine = load_file(
            Path(job["path"]), job["runtime"], EngineOptions(**options), job["trust_plan"]
        )
    except EdgemlError as e:
        sys.exit(str(e))
    load_ms = (time.perf_counter() - begin) * 1e3
    begin = time.perf_counter()
    engine.run(inputs)
    first_ms = (time.perf_counter() - begin) * 1e3
    for _ in range(2):
        engine.run(inputs)
    print(
        json.dumps(
            {
                "load_ms": load_ms,
                "first_inference_ms": first_ms,
                "library_bytes": library,
                "peak_memory_bytes": _peak_bytes(),
            }
        ),
        flush=True,
    )
    os._exit(0)  # some runtimes take a second to unload, which is nobody's number


def _peak_bytes() -> int:
    """VmHWM; ru_maxrss where there is no /proc, which a child inherits from a larger parent."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
