"""Building TensorRT and TensorRT-RTX engines from ONNX, through Polygraphy, and the trtexec line for it.

An engine that was built is *legal*: NVIDIA's parser and builder accept the graph. Whether it runs, and
how fast, only the GPU tells (``docs/nvidia.md``).
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..artifact.boards import CAPABILITIES
from ..artifact.tensorrt_versions import TensorRTVersion, trtexec_typing
from ..errors import BuildError, InputError, MissingPart, nearest
from .onnx_check import inspect_onnx

# Where JetPack puts it; not on PATH.
TRTEXEC = "/usr/src/tensorrt/bin/trtexec"
# What an engine without a GPU is built for: CURRENT asks the driver. Ada is the first with FP8.
NO_GPU_CAPABILITY = "SM89"
MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
BUILD_SECONDS = 1800
# What TensorRT-RTX 1.7 builds for (tried): no data-centre GPU, no Jetson.
RTX_CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest shape of one input."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class Built:
    """What a build left behind.

    Attributes:
        version: of the library that built it.
        layers: of the parsed network.
        size_bytes: of the engine.
        seconds: parsing and building.
        compute_capability: of the GPU it is for, ``SM87``.
    """

    version: str
    layers: int
    size_bytes: int
    seconds: float
    compute_capability: str


@dataclass(frozen=True)
class Build:
    """What the child process is asked for; its fields are the JSON it reads."""

    module: str
    onnx: str
    out: str | None = None
    profiles: dict[str, list[list[int]]] = field(default_factory=dict)
    strongly_typed: bool = True
    fp16: bool = False
    int8: bool = False
    workspace_bytes: int | None = None
    timing_cache: str | None = None
    compute_capability: str | None = None


def profiles_from_shapes(
    path: Path,
    minimum: Mapping[str, Sequence[int]],
    optimum: Mapping[str, Sequence[int]],
    maximum: Mapping[str, Sequence[int]],
) -> dict[str, Profile]:
    """Profiles of the inputs that have open axes; what is not given is the same as what is.

    Without any shape an open batch axis becomes 1: engines are static unless asked otherwise.

    Raises:
        InputError: an unknown input, a rank or fixed axis that does not fit, min > opt or opt > max,
            or an axis besides the batch that no shape closes.
    """
    inputs = {spec.name: spec for spec in inspect_onnx(path).inputs}
    for flag, shapes in (
        ("--min-shape", minimum),
        ("--opt-shape", optimum),
        ("--max-shape", maximum),
    ):
        for name, shape in shapes.items():
            if name not in inputs:
                raise InputError(f"{flag} {name}: no such input, {nearest(name, inputs)}")
            spec, text = inputs[name], "x".join(map(str, shape))
            if len(shape) != len(spec.shape) or any(
                want not in (None, got) for want, got in zip(spec.shape, shape, strict=True)
            ):
                raise InputError(f"{flag} {name}:{text} does not fit input {spec}")
    profiles = {}
    for name, spec in inputs.items():
        given = [shapes[name] for shapes in (optimum, maximum, minimum) if name in shapes]
        if None not in spec.shape:
            continue
        if not given:
            if None in spec.shape[1:]:
                raise InputError(
                    f"input {spec} has open axes besides the batch; give --opt-shape {name}:…"
                )
            given = [(1, *spec.shape[1:])]
        low, usual, high = (
            tuple(shapes.get(name, given[0])) for shapes in (minimum, optimum, maximum)
        )
        for axis, (a, b, c) in enumerate(zip(low, usual, high, strict=True)):
            if not 1 <= a <= b <= c:
                raise InputError(
                    f"profile of {name}: axis {axis} has min {a}, opt {b}, max {c}; "
                    "1 ≤ min ≤ opt ≤ max must hold"
                )
        profiles[name] = Profile(low, usual, high)
    return profiles


def stand_in(capability: str) -> str:
    """The GPU that TensorRT-RTX builds for which is nearest to another: of the same precisions, the next older one.

    >>> stand_in("SM87"), stand_in("SM90"), stand_in("SM110"), stand_in("SM89")
    ('SM86', 'SM89', 'SM120', 'SM89')
    """
    same = [c for c in RTX_CAPABILITIES if CAPABILITIES[c] == CAPABILITIES[capability]]
    number = int(capability.removeprefix("SM"))
    older = [c for c in same if int(c.removeprefix("SM")) <= number]
    return older[-1] if older else same[0]


def engine_name(stem: str, module: str, version: str, capability: str) -> str:
    """The file name that tells where an engine may run.

    >>> engine_name("model.int8", "tensorrt", "10.3.0.30", "SM87")
    'model.int8.trt10.3-sm87.plan'
    >>> engine_name("model", "tensorrt_rtx", "1.7.1.116", "SM89")
    'model.trtrtx1.7-sm89.plan'
    """
    short = ".".join(version.split(".")[:2])
    kind = "trtrtx" if module == "tensorrt_rtx" else "trt"
    return f"{stem}.{kind}{short}-{capability.lower()}.plan"


def require(module: str) -> None:
    """See that a build can be tried here.

    Raises:
        MissingPart: the library, or Polygraphy, is not installed; what still works is told.
    """
    for name in (module, "polygraphy"):
        if find_spec(name) is None:
            other = (
                "; --to tensorrt-rtx builds without a GPU, --command prints the trtexec line"
                if name == "tensorrt"
                else ""
            )
            raise MissingPart(
                f"{name} is not installed: pip install 'edgeml-toolchain[{_EXTRAS[module]}]'{other}"
            )


def build_engine(
    path: Path,
    out: Path | None,
    module: str,
    profiles: Mapping[str, Profile],
    *,
    compute_capability: str | None = None,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
    version: TensorRTVersion | None = None,
    fp16: bool = False,
    int8: bool = False,
) -> Built:
    """Parse and build in a process of its own.

    Args:
        path: the ONNX file.
        out: where the engine goes; None builds and forgets (is it legal?).
        module: ``tensorrt`` or ``tensorrt_rtx``.
        profiles: of the inputs with open axes.
        compute_capability: ``SM75 … SM121`` of the target; TensorRT-RTX only, which builds for a GPU
            that is not there.
        workspace_mib: the most scratch memory a layer may take on the GPU.
        timing_cache: read if there, written afterwards, so that builds repeat.
        version: of the library; None is one that obeys the types in the graph.
        fp16, int8: what TensorRT 8.x may choose, which knows no types in the graph; later ones ignore it.

    Raises:
        InputError: TensorRT-RTX builds for no GPU of that compute capability.
        MissingPart: the library is not installed, or needs a GPU that is not there.
        BuildError: the parser or the builder refuses the graph; its reason is told.
    """
    if module == "tensorrt_rtx" and compute_capability not in (None, *RTX_CAPABILITIES):
        raise InputError(
            f"--compute-capability {compute_capability}: TensorRT-RTX builds for "
            f"{', '.join(RTX_CAPABILITIES)}; for a Jetson, --to tensorrt --command prints the line for its trtexec"
        )
    require(module)
    values = Build(
        module=module,
        onnx=str(Path(path).resolve()),
        out=str(Path(out).resolve()) if out else None,
        profiles={
            name: [list(p.minimum), list(p.optimum), list(p.maximum)]
            for name, p in profiles.items()
        },
        strongly_typed=version is None or version.strong,
        fp16=fp16,
        int8=int8,
        compute_capability=(
            compute_capability or NO_GPU_CAPABILITY if module == "tensorrt_rtx" else None
        ),
        workspace_bytes=workspace_mib * 2**20 if workspace_mib else None,
        timing_cache=str(timing_cache.resolve()) if timing_cache else None,
    )
    command = [sys.executable, "-m", "edgeml.export.tensorrt_child"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(values.__dict__),
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
        )
    except subprocess.TimeoutExpired as e:
        raise BuildError(f"{module} did not finish within {BUILD_SECONDS} s") from e
    result = _last_json(done.stdout)
    if result is None:
        raise BuildError(
            f"{module} ended its process (signal {-done.returncode}) while building {path}; "
            "edgeml lint may name the operator"
            if done.returncode < 0
            else f"{module} gave no result: {_reason(done.stdout + done.stderr)}"
        )
    if not result["ok"]:
        reason = _reason(done.stdout) or result["reason"]
        if re.search(
            r"CUDA initialization failure|no CUDA-capable device|libcuda|libcudart", reason
        ):
            raise MissingPart(
                f"{module} needs a GPU that is not there ({reason}); --to tensorrt-rtx builds "
                "without one, --command prints the trtexec line for the device"
            )
        raise BuildError(f"{module} refuses {path}: {reason}")
    return Built(
        result["version"],
        result["layers"],
        result["bytes"],
        result["seconds"],
        result["compute_capability"],
    )


def _last_json(output: str) -> dict[str, Any] | None:
    lines = output.splitlines()
    if lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    return None


def _reason(output: str) -> str:
    """The last error that the library logged, without its source lines."""
    errors = [line[4:].strip() for line in output.splitlines() if line.startswith("[E] ")]
    told = [e for e in errors if not e.startswith("ModelImporter.cpp")]
    return (told or errors or [""])[-1]


def trtexec_line(
    path: Path,
    out: Path,
    version: TensorRTVersion,
    profiles: Mapping[str, Profile],
    *,
    int8: bool,
    fp16: bool,
    workspace_mib: int | None = None,
    timing_cache: Path | None = None,
) -> str:
    """The command that builds the same engine on the device; it builds and times nothing.

    Args:
        int8: the graph carries Q/DQ.
        fp16: what is not quantized may run in FP16 (TensorRT 8.x; later ones take the graph's types).

    Raises:
        InputError: the version has no trtexec.
    """
    if version.rtx:
        raise InputError("TensorRT-RTX has no trtexec line; build with --to tensorrt-rtx")
    words = [TRTEXEC, f"--onnx={path}", f"--saveEngine={out}"]
    words += trtexec_typing(version, int8, fp16)
    for flag, pick in (("min", "minimum"), ("opt", "optimum"), ("max", "maximum")):
        shapes = [f"{name}:{'x'.join(map(str, getattr(p, pick)))}" for name, p in profiles.items()]
        words += [f"--{flag}Shapes={','.join(shapes)}"] if shapes else []
    words += [f"--memPoolSize=workspace:{workspace_mib}"] if workspace_mib else []
    words += [f"--timingCacheFile={timing_cache}"] if timing_cache else []
    words.append(version.skip_inference)
    return shlex.join(words)


def build_record(built: Built, module: str) -> dict[str, Any]:
    """What the manifest keeps of an engine: a runner refuses it where one of these differs."""
    return {
        "library": module,
        "version": built.version,
        "compute_capability": built.compute_capability,
        "os": platform.system(),
        "arch": platform.machine(),
        "layers": built.layers,
        "size_bytes": built.size_bytes,
        "build_seconds": round(built.seconds, 3),
        "state": "legal",  # built, not run: docs/nvidia.md
    }
