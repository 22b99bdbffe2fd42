"""From a built engine to the object that runs it: bindings, trtexec or ONNX Runtime."""

from __future__ import annotations

from typing import Any

from ...errors import InputError


def load_runner(engine: dict[str, Any]) -> Any:
    """The runner of an engine as `build.build_engine` described it.

    Every runner has ``how``, ``version``, ``load_ms``, ``run(inputs) -> outputs`` in `Tensor`s,
    ``profile(inputs, iterations)`` and ``close()``. Those that stay loaded also have ``bound(inputs)``, a
    function that runs these inputs for timing, and ``infer_arrays(arrays)``.

    Raises:
        EdgemlError: it cannot be loaded here.
    """
    how = engine["how"]
    if how == "onnxruntime":
        from .onnxruntime_runner import OnnxRuntimeRunner

        return OnnxRuntimeRunner(engine["model"], engine.get("shapes"), engine.get("threads"))
    if how == "trtexec":
        from .trtexec_builder import version_row
        from .trtexec_runner import TrtexecRunner

        shapes = engine["shapes"] if engine.get("open_axes") else None
        return TrtexecRunner(
            engine["trtexec"], engine["plan"], version_row(engine["version"]), shapes
        )
    if how == "bindings":
        from .bindings_runner import BindingsRunner

        return BindingsRunner(engine["plan"], engine.get("shapes"))
    raise InputError(f"no runner for {how!r}")
