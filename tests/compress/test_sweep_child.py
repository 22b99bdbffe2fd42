"""How a trial's process ended: in time, killed from outside, by the kernel, or too late."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from edgeml.compress import sweep_child
from edgeml.compress.sweep_child import Child, oom_kills


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a trial whose process runs a line of shell."""

    def started(line, seconds=None):
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\ncd {tmp_path}\n{line}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sweep_child.sys, "executable", str(script))
        return Child(tmp_path, seconds)

    return started


def ended(child):
    deadline = time.monotonic() + 20
    while (found := child.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def test_a_result_is_taken_as_it_is(start):
    found = ended(start("""echo '{"state": "done"}' > result.json"""))
    assert found == {"state": "done"}


def test_who_kills_it_from_outside_is_not_called_a_lack_of_memory(start, tmp_path):
    found = ended(start("kill -9 $$"))
    assert (found["state"], found["reason"]) == (
        "failed",
        "its process was killed by signal 9 (SIGKILL)",
    )
    assert json.loads((tmp_path / "result.json").read_text()) == found


def test_what_the_kernel_killed_was_out_of_memory(start, monkeypatch):
    counts = iter([3, 4])
    monkeypatch.setattr(sweep_child, "oom_kills", lambda: next(counts))
    found = ended(start("kill -9 $$"))
    assert found["state"] == "out of memory" and "ran out of memory" in found["reason"]


def test_one_that_ends_without_a_result_says_so(start):
    found = ended(start("exit 3"))
    assert found["state"] == "failed" and "ended with 3 and left no result" in found["reason"]


def test_the_bound_ends_it_and_all_that_it_started(start, tmp_path):
    child = start("sleep 60 & echo $! > pid; wait", seconds=0.5)
    found = ended(child)
    assert (found["state"], found["reason"]) == ("out of time", "--time was over")
    assert 0.4 < found["seconds"] < 10
    stat = Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().split()[2] != "Z":  # nobody may reap it in a container
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_this_machine_counts_the_kernels_kills():
    assert oom_kills() is None or oom_kills() >= 0
