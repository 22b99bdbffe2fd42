"""Predictions for samples that the host sent: it has the labels and the task, so the outputs go home."""

from __future__ import annotations

from typing import Any, Callable

from ...errors import EdgemlError
from .tensor_file import Tensor, read_tensors, sample_hash, samples, write_tensors


def score_engine(
    runner: Any, files: dict[str, str], send: Callable[[str, bytes], None]
) -> dict[str, Any]:
    """Run every sample of every file.

    Args:
        files: path by hash, of tensor files with ``NNN.input.NAME``.
        send: takes the hash and a tensor file of ``NNN.output.NAME`` and ``NNN.sample.sha256``, the hash of
            the sample that was run; one call a file, so that no more than one file's outputs are held.

    Returns:
        The protocol's row: status, n, reason.
    """
    done = 0
    for digest, path in files.items():
        found: dict[str, Tensor] = {}
        for number, feed in samples(read_tensors(path), "input").items():
            try:
                outputs = runner.run(feed)
            except EdgemlError as e:
                return {"status": "failed", "n": done, "reason": f"{number}: {e}"}
            found.update({f"{number}.output.{n}": t for n, t in outputs.items()})
            found[f"{number}.sample.sha256"] = sample_hash(feed)
            done += 1
        send(digest, write_tensors(found))
    return {"status": "scored", "n": done, "reason": None}
