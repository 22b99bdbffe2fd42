"""TensorRT through NVIDIA's trtexec, for boards without its Python bindings or numpy: runs a plan, times it.

Every call is a process of its own: it loads the plan, reads inputs as raw bytes, writes outputs and times as
JSON. Its times stand in a column of their own: they are taken inside trtexec, not around a call of ours.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from typing import Any, Sequence

from ...artifact.tensorrt_versions import TensorRTVersion
from ...errors import EdgemlError, InputError
from .process import die_with_parent
from .tensor_file import Tensor, to_numbers
from .trtexec_builder import quoted, shapes_word
from .trtexec_output import RUN_TIMEOUT_S, error_line, read_json, read_outputs


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
