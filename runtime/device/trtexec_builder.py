"""Builds a plan by NVIDIA's trtexec: the words of each version (`artifact.tensorrt_versions`), and the process."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from typing import Any, Sequence

from ...artifact.tensorrt_versions import TensorRTVersion, find_version, trtexec_typing
from ...errors import BuildError, InputError
from .process import die_with_parent, kill_tree
from .trtexec_output import error_line

# trtexec refuses shapes for a graph that has no open axes; only it can tell, there is no ONNX reader here.
_STATIC = "Static model does not take explicit shapes"


def build_command(
    trtexec: str,
    onnx: str,
    plan: str,
    version: TensorRTVersion,
    *,
    int8: bool,
    fp16: bool,
    shapes: dict[str, Sequence[int]] | None = None,
    workspace_mib: int | None = None,
    timing_cache: str | None = None,
) -> list[str]:
    """The words that build `plan` from `onnx` and time nothing."""
    words = [trtexec, "--onnx=" + onnx, "--saveEngine=" + plan]
    words += trtexec_typing(version, int8, fp16)
    if shapes:
        given = shapes_word(shapes)
        words += [f"--{which}Shapes={given}" for which in ("min", "opt", "max")]
    if workspace_mib:
        words.append(f"--memPoolSize=workspace:{workspace_mib}")
    if timing_cache:
        words.append("--timingCacheFile=" + timing_cache)
    # Layer names, so that a profile can be read.
    return [*words, "--profilingVerbosity=detailed", version.skip_inference]


def build_plan(command: list[str], log: Any, timeout_s: float) -> bool:
    """Run `build_command`'s words; every line of trtexec goes to `log`.

    Returns:
        Whether the graph had open axes (its plan must be told shapes when it runs).

    Raises:
        BuildError: trtexec failed or took too long; its last error line is told.
    """
    lines: list[str] = []
    end, timed_out = time.monotonic() + timeout_s, threading.Event()

    def stop() -> None:
        timed_out.set()
        kill_tree(process.pid)

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,
    ) as process:
        timer = threading.Timer(timeout_s, stop)
        timer.daemon = True
        timer.start()
        for raw in process.stdout:
            lines.append(raw.decode("utf-8", "replace").rstrip())
            log(lines[-1])
        code = process.wait()
        timer.cancel()
    if code == 0:
        return any(word.startswith("--minShapes=") for word in command)
    if timed_out.is_set():
        raise BuildError(f"trtexec took longer than {timeout_s:.0f} s and was ended")
    if any(_STATIC in line for line in lines):
        plain = [word for word in command if not re.match("--(min|opt|max)Shapes=", word)]
        return build_plan(plain, log, end - time.monotonic())
    raise BuildError("trtexec: " + error_line("\n".join(lines), code))


def quoted(name: str) -> str:
    """An input's name as trtexec takes it in a list of ``name:value``."""
    return f"'{name}'" if re.search(r"[:,]", name) else name


def shapes_word(shapes: dict[str, Sequence[int]]) -> str:
    """``input:1x3x224x224,mask:1x128``."""
    return ",".join(
        "{}:{}".format(quoted(name), "x".join(map(str, shape))) for name, shape in shapes.items()
    )


def version_row(version: str) -> TensorRTVersion:
    """The table's row of a version that a device told; of a minor release that the table lacks the
    newest older one of its line, whose flags it takes.

    >>> version_row("10.3.0").name, version_row("10.9.0").name
    ('10.3', '10.3')
    """
    from ...artifact.tensorrt_versions import VERSIONS

    try:
        return find_version(version)
    except InputError:
        major, minor = (int(part) for part in (version + ".0").split(".")[:2])
        older = [
            row
            for row in VERSIONS.values()
            if not row.rtx
            and int(row.name.split(".")[0]) == major
            and int(row.name.split(".")[1]) <= minor
        ]
        if not older:
            raise
        return older[-1]
