"""Builds engines on the device: by TensorRT's bindings, else by trtexec; ONNX Runtime needs no building.

A plan is kept under a key of everything that it depends on: the model's files, shapes, precision, TensorRT's
version, GPU and Linux release. What lies there is used again only where its hash still fits.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from typing import Any, Callable

from ...errors import BuildError, EdgemlError, MissingPart, one_line
from . import board_state, installed
from .probe import available_memory
from .trtexec_builder import build_command, build_plan, version_row
from .trtexec_output import trtexec_version

Log = Callable[[str], None]

# GPU and CPU share the memory of a Jetson: the rest of the build and the system need the other half.
WORKSPACE_SHARE = 0.5


def build_engine(
    spec: dict[str, Any], folder: str, cache: str, timeout_s: float, log: Log
) -> dict[str, Any]:
    """Build one engine, or take it from the cache.

    Args:
        spec: the protocol's ENGINE.
        folder: where the model's files lie under their own names.
        cache: the device's cache; plans go to its ``plans``.
        timeout_s: of trtexec; the bindings' own process is ended by its parent.
        log: takes the builder's lines.

    Returns:
        The protocol's row, with what `load_runner` needs besides: model, plan, trtexec, shapes, open_axes,
        threads.

    Raises:
        EdgemlError: it cannot be built here; one line says why.
    """
    model = os.path.join(folder, spec["model"])
    base = {
        "id": spec["id"],
        "model": model,
        "shapes": spec.get("shapes") or {},
        "threads": spec.get("threads"),
        "plan": None,
        "trtexec": None,
        "hash": None,
        "reason": None,
        "log": "",
    }
    begin = time.monotonic()
    if spec["runtime"] == "onnxruntime":
        files = [os.path.join(folder, name) for name in spec["files"]]
        return {**base, **_onnxruntime(base, files, begin)}
    found, trtexec = installed.tensorrt_parts("/", installed.installed_packages())
    how, why = ("bindings", None) if _bindings_work(found) else ("trtexec", found["why"])
    if how == "trtexec" and trtexec is None:
        raise MissingPart(
            f"no TensorRT to build with: bindings: {why}; no trtexec at {installed.TRTEXEC} "
            "(sudo apt install nvidia-jetpack)"
        )
    version = found["bindings"] if how == "bindings" else trtexec_version(trtexec)
    plans = os.path.join(cache, "plans")
    os.makedirs(plans, exist_ok=True)
    key = plan_key(spec, version)
    plan = os.path.join(plans, key + ".plan")
    kept = _kept(plan)
    if kept is not None:
        os.utime(plan)
        # Who runs it is decided now: bindings may have come since trtexec built it, or have gone.
        row = {**base, **kept, "how": how, "status": "cached", "seconds": 0.0}
    else:
        log("building {} with TensorRT {} by {}".format(spec["id"], version, how))
        open_axes = _build(
            how, trtexec, model, plan + ".part", spec, version, plans, timeout_s, log
        )
        digest = hash_file(plan + ".part")
        os.replace(plan + ".part", plan)
        kept = {
            "how": how,
            "version": version,
            "hash": digest,
            "size_bytes": os.path.getsize(plan),
            "open_axes": open_axes,
        }
        _write_json(plan + ".json", kept)
        row = {**base, **kept, "status": "built", "seconds": time.monotonic() - begin}
    return {**row, "plan": plan, "trtexec": trtexec}


def _onnxruntime(base: dict[str, Any], files: list[str], begin: float) -> dict[str, Any]:
    """Loading is the proof that this file runs here; the session of the measurement is another."""
    from .onnxruntime_runner import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner(base["model"], base["shapes"], base["threads"])
    version = runner.version
    runner.close()
    return {
        "status": "built",
        "how": "onnxruntime",
        "version": version,
        "size_bytes": sum(map(os.path.getsize, files)),  # weights may lie beside the ONNX
        "seconds": time.monotonic() - begin,
    }


def _bindings_work(found: dict[str, str | None]) -> bool:
    """They import, and numpy, which the runner needs, does too."""
    return found["bindings"] is not None and installed.library_version("numpy")[0] is not None


def _build(
    how: str,
    trtexec: str | None,
    model: str,
    plan: str,
    spec: dict[str, Any],
    version: str,
    plans: str,
    timeout_s: float,
    log: Log,
) -> bool:
    """Write the plan; whether its graph had open axes."""
    available = available_memory()
    workspace = int(available * WORKSPACE_SHARE) if available else None
    # What differs from build to build is of interest then, and the kept timings would hide it.
    anew = bool(spec.get("build"))
    timing_cache = None if anew else os.path.join(plans, f"timing-{version}.cache")
    int8 = spec["precision"] == "int8"
    # TensorRT 8.x takes precisions by flag: what is not quantized may run in FP16 unless told otherwise.
    fp16 = spec["precision"] == "fp16" or (int8 and spec.get("execution") != "fp32")
    if how == "bindings":
        from . import tensorrt_builder

        built = tensorrt_builder.build_plan(
            model,
            plan,
            int8=int8,
            fp16=fp16,
            profiles={name: (shape,) * 3 for name, shape in (spec.get("shapes") or {}).items()},
            workspace_bytes=workspace,
            timing_cache=timing_cache,
            log=log,
        )
        return built.open_axes
    command = build_command(
        str(trtexec),
        model,
        plan,
        version_row(version),
        int8=int8,
        fp16=fp16,
        shapes=spec.get("shapes"),
        workspace_mib=workspace // 2**20 if workspace else None,
        timing_cache=timing_cache,
    )
    log(" ".join(command))
    open_axes = build_plan(command, log, timeout_s)
    if not os.path.isfile(plan):
        raise BuildError("trtexec ended well and wrote no plan")
    return open_axes


def plan_key(spec: dict[str, Any], version: str) -> str:
    """sha256 of everything that a plan depends on."""
    device = {
        "board": board_state.device_tree("model"),
        "l4t": installed.l4t_release(),
        "machine": platform.machine(),
    }
    fields = {k: spec.get(k) for k in ("files", "model", "shapes", "precision", "execution")}
    if spec.get("build"):
        fields["build"] = spec["build"]
    text = json.dumps([fields, version, device], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _kept(plan: str) -> dict[str, Any] | None:
    """What was noted of a plan that is whole; a damaged one is removed."""
    try:
        with open(plan + ".json", encoding="utf-8") as file:
            kept = json.load(file)
        if hash_file(plan) == kept["hash"]:
            return kept
    except (OSError, ValueError, KeyError):
        pass
    for path in (plan, plan + ".json", plan + ".part"):
        if os.path.exists(path):
            os.unlink(path)
    return None


def hash_file(path: str) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            digest.update(piece)
    return digest.hexdigest()


def lay_out(files: dict[str, str], blobs: str, folder: str) -> None:
    """Give blobs their own names in a folder: an ONNX file names its external data by path.

    Hard links, because ONNX Runtime refuses external data behind a symbolic link out of the folder.

    Raises:
        BuildError: a name points outside the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, digest in files.items():
        path = os.path.normpath(os.path.join(folder, name))
        if not path.startswith(folder + os.sep) or os.path.isabs(name) or "\0" in name:
            raise BuildError(f"{name!r} points outside the model's folder")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        blob = os.path.join(blobs, digest)
        try:
            os.link(blob, path)
        except OSError:  # a file system without hard links
            shutil.copyfile(blob, path)


def _write_json(path: str, value: Any) -> None:
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(path + ".part", path)


def failure(error: BaseException) -> str:
    """One line of any error."""
    if isinstance(error, EdgemlError):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)}"
