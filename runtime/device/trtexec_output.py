"""What NVIDIA's trtexec prints and writes, as values: outputs, JSON of C++, versions, errors.

Formats: TensorRT's samples/common/sampleReporting.cpp.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

from ...errors import EdgemlError, InputError
from .process import die_with_parent
from .tensor_file import Tensor

# One run loads the plan: seconds; a minute is a hang.
RUN_TIMEOUT_S = 120.0


def read_outputs(path: str) -> dict[str, Tensor]:
    """The file of ``--exportOutput``: ``[{"name", "dimensions": "1x1000", "values": […]}]``, as float32.

    trtexec prints six digits: a float32 comes back to about 1e-6 of its size.
    """
    import array

    found = {}
    for row in read_json(path):
        shape = tuple(int(n) for n in re.findall(r"\d+", row["dimensions"]))
        values = array.array("f", [float(value) for value in row["values"]])
        found[row["name"]] = Tensor("float32", shape, values.tobytes())
    return found


def read_json(path: str) -> Any:
    """A JSON file of trtexec's, which writes ``nan`` and ``inf`` as C++ does.

    Raises:
        EdgemlError: it wrote none, or it is cut short.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
        text = re.sub(r"(?<=[\[,:\s])(-?)nan(?=[\s,\]}])", "NaN", text)
        text = re.sub(r"(?<=[\[,:\s])(-?)inf(?=[\s,\]}])", r"\1Infinity", text)
        return json.loads(text)
    except (OSError, ValueError) as e:
        raise EdgemlError(f"trtexec wrote no usable {os.path.basename(path)}: {e}") from e


def error_line(text: str, code: int) -> str:
    """The last error that trtexec told, without its time stamp."""
    if code == -9:
        return "killed by the kernel, most likely for memory (signal 9)"
    told = re.findall(r"^(?:\[[^\]]*\] )*\[E\] (.*)$", text, re.M)
    told = [line for line in told if line.strip()] or [t for t in text.splitlines() if t.strip()]
    return "{} (exit code {})".format(told[-1].strip() if told else "no output", code)


def trtexec_version(trtexec: str) -> str:
    """TensorRT's version by trtexec's own first line, ``[TensorRT v100300]``.

    Raises:
        InputError: it says none.
    """
    try:
        done = subprocess.run(
            [trtexec, "--help"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=RUN_TIMEOUT_S,
            preexec_fn=die_with_parent,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise InputError(f"{trtexec} does not run: {e}") from e
    return version_of_banner(done.stdout.decode("utf-8", "replace"))


def version_of_banner(text: str) -> str:
    """The version in trtexec's banner: four digits for 8.x, six from 10 on.

    >>> version_of_banner("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec")
    '8.5.2'
    >>> version_of_banner("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] [b30] # trtexec")
    '10.3.0'
    """
    match = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if match is None:
        raise InputError("trtexec tells no version in its first line")
    number = int(match.group(1))
    base = 1000 if number < 10000 else 10000
    return f"{number // base}.{number % base // 100}.{number % 100}"
