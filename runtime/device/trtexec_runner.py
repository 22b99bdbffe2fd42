"""TensorRT through NVIDIA's trtexec, for boards without its Python bindings or numpy: builds, runs, times.

Every call is a process of its own: it loads the plan, reads inputs as raw bytes, writes outputs and times as
JSON. Its times stand in a column of their own: they are taken inside trtexec, not around a call of ours.
Formats: TensorRT's samples/common/sampleReporting.cpp; flags: `artifact.tensorrt_versions`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from typing import Any, Sequence

from ...artifact.tensorrt_versions import TensorRTVersion, find_version, trtexec_typing
from ...errors import BuildError, EdgemlError, InputError
from .process import die_with_parent, kill_tree
from .tensor_file import DTYPES, Tensor, to_numbers

# trtexec refuses shapes for a graph that has no open axes; only it can tell, there is no ONNX reader here.
_STATIC = "Static model does not take explicit shapes"
_DTYPE_LETTERS = {row[0]: row[2] for row in DTYPES.values()}
# One run loads the plan: seconds; a minute is a hang.
RUN_TIMEOUT_S = 120.0


class TrtexecRunner:
    """Runs one plan by starting trtexec for every inference.

    Args:
        trtexec: the executable's path.
        plan: the engine that it built here.
        shapes: by input, batch included; given to trtexec only where the plan was built with them.
    """

    how = "trtexec"

    def __init__(
        self,
        trtexec: str,
        plan: str,
        version: TensorRTVersion,
        shapes: dict[str, Sequence[int]] | None = None,
    ) -> None:
        self._trtexec, self._plan, self._version = trtexec, plan, version
        self._shapes = shapes
        self.version = version.name
        self.load_ms = None
        self._scratch = tempfile.mkdtemp(prefix="edgeml-trtexec-")

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """One inference.

        Raises:
            EdgemlError: trtexec failed; its last error line is told.
        """
        outputs = os.path.join(self._scratch, "outputs.json")
        words = self._load(inputs)
        words += ["--iterations=1", "--warmUp=0", "--duration=0", "--exportOutput=" + outputs]
        self._call(words)
        return read_outputs(outputs)

    def times_ms(
        self, inputs: dict[str, Tensor], duration_s: float, warmup_s: float
    ) -> list[float]:
        """The latency of every inference within `duration_s`: copy in, compute, copy out, in ms.

        CUDA graphs, spin-wait and data transfers are set for every version, as their defaults differ.
        """
        times = os.path.join(self._scratch, "times.json")
        words = self._load(inputs)
        words += ["--useCudaGraph", "--useSpinWait", "--iterations=10"]
        words += [f"--warmUp={int(warmup_s * 1e3):d}"]
        words += [f"--duration={max(1, round(duration_s)):d}"]
        words += ["--exportTimes=" + times]
        self._call(words, duration_s + warmup_s)
        rows = read_json(times)
        return [float(row["latencyMs"]) for row in rows]

    def profile(self, inputs: dict[str, Tensor], iterations: int) -> list[dict[str, Any]]:
        """Mean ms a layer."""
        found = os.path.join(self._scratch, "profile.json")
        words = self._load(inputs)
        words += [f"--iterations={iterations}", "--duration=0", "--separateProfileRun"]
        words += ["--dumpProfile", "--exportProfile=" + found]
        self._call(words)
        return [
            {"name": row["name"], "ms": float(row["averageMs"])}
            for row in read_json(found)
            if "averageMs" in row
        ]

    def close(self) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _load(self, inputs: dict[str, Tensor]) -> list[str]:
        words = ["--loadEngine=" + self._plan]
        pairs = []
        for i, (name, tensor) in enumerate(inputs.items()):
            path = os.path.join(self._scratch, f"input{i}.bin")
            with open(path, "wb") as file:
                file.write(self._bytes(tensor))
            pairs.append(f"{quoted(name)}:{path}")
        words.append("--loadInputs=" + ",".join(pairs))
        if self._shapes:
            words.append("--shapes=" + shapes_word(self._shapes))
        if self._version.typing == "strong":  # from 11 on transfers are off unless asked for
            words.append("--includeDataTransfers")
        return words

    def _bytes(self, tensor: Tensor) -> bytes:
        """As the engine takes them: before 10 TensorRT's parser makes int64 inputs int32."""
        if tensor.dtype != "int64" or int(self._version.name.split(".")[0]) >= 10:
            return tensor.data
        values = [int(value) for value in to_numbers(tensor)]
        try:
            return struct.pack(f"<{len(values)}i", *values)
        except struct.error as e:
            raise InputError("an input has values that the engine's int32 does not hold") from e

    def _call(self, words: list[str], expected_s: float = 0.0) -> str:
        try:
            done = subprocess.run(
                [self._trtexec, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=RUN_TIMEOUT_S + 3 * expected_s,
                preexec_fn=die_with_parent,
            )
        except subprocess.TimeoutExpired as e:
            raise EdgemlError(f"trtexec did not end within {e.timeout:.0f} s") from e
        text = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            raise EdgemlError("trtexec: " + error_line(text, done.returncode))
        return text


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


def all_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return all(value - value == 0 for value in to_numbers(tensor))
