"""Ctrl-C, kill -9 and a full disk: nothing half-written at OUT, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeml.artifact.bundle import open_bundle

from .conftest import split_stderr

# The command line in a process of its own, its benches cut short.
PROGRAM = """import signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is born deaf
import edgeml.compress.search as search
import edgeml.runtime.latency as latency
search.SCREEN_SECONDS, search.BENCH_SECONDS, latency.BLOCK_S = 0.05, 0.1, 0.006
from edgeml.cli import main
main()
"""
ARGS = ["compress", "net.onnx", "--data", "npz:good.npz"]
ARGS += ["--runtime", "onnxruntime", "--int8", "--max-drop", "60", "-o"]


@pytest.fixture
def start(things, tmp_path):
    """Starts the command that makes ``tmp_path/out``, with an empty cache of its own."""
    started: list[subprocess.Popen] = []

    def run(limit_bytes: int | None = None) -> subprocess.Popen:
        limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))"
        program = f"import resource\n{limit}\n{PROGRAM}" if limit_bytes else PROGRAM
        process = subprocess.Popen(
            [sys.executable, "-c", program, *ARGS, tmp_path / "out"],
            cwd=things,
            env={**os.environ, "EDGEML_CACHE": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen, text: str) -> None:
    """Read the progress until a line holds `text`."""
    for line in process.stderr:
        if text in line:
            return
    pytest.fail(f"the run ended ({process.wait()}) without a line of {text!r}")


def finish(process: subprocess.Popen) -> tuple[int, list[str], list[str]]:
    _, err = process.communicate(timeout=60)
    progress, said = split_stderr(err)
    return process.returncode, progress, said


def whole(out: Path) -> None:
    """OUT is a bundle that opens, OUT.part is gone, and no stage is logged as done twice."""
    events = [json.loads(line) for line in (out / "stages.jsonl").read_text().splitlines()]
    done = [event["stage"] for event in events if event["event"] == "done"]
    assert len(done) == len(set(done)) > 4
    assert open_bundle(out).manifest.shipped
    assert not out.with_name("out.part").exists()
    assert not list((out.parent / "cache").glob(".tmp-*"))


def test_ctrl_c_and_kill_leave_nothing_half_and_the_same_command_goes_on(start, tmp_path):
    out = tmp_path / "out"
    run = start()
    wait_for(run, "quantizing")
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: the whole group
    code, _, said = finish(run)
    # Where C++ code was importing something, Python ends by the signal itself: 130 in a shell as well.
    assert code in (130, -signal.SIGINT)
    assert said == ["edgeml: interrupted; the same command goes on where it stopped"]
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)  # no child of it is left
    assert not out.exists() and (tmp_path / "out.part" / "stages.jsonl").is_file()

    run = start()
    wait_for(run, "timing")
    run.kill()
    assert run.wait() == -signal.SIGKILL
    assert not out.exists()

    code, progress, said = finish(start())
    assert code == 0 and said == []
    assert any("quantizing" in line and "from the cache" in line for line in progress)
    whole(out)


def test_an_interrupt_in_process_exits_130(inside, edgeml, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeml.compress.run_recipe.search", interrupt)
    run = edgeml(*ARGS, tmp_path / "out")
    assert run.code == 130
    assert run.said == ["edgeml: interrupted; the same command goes on where it stopped"]
    assert not list(tmp_path.iterdir())


# 3,500 bytes: the quantized network does not fit; 14,000: the bundle's results do not.
@pytest.mark.parametrize(("limit_bytes", "at"), [(3_500, "cache/quantize-"), (14_000, "out.part")])
def test_a_full_disk_is_exit_1_and_with_space_the_same_command_goes_on(
    limit_bytes, at, start, tmp_path
):
    began = time.monotonic()
    code, _, said = finish(start(limit_bytes))
    assert code == 1
    assert len(said) == 1 and said[0].startswith("edgeml: no space left on the disk while writing")
    assert at in said[0] and said[0].endswith("free some, the same command goes on")
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - began < 60
    code, _, said = finish(start())
    assert code == 0 and said == []
    whole(tmp_path / "out")
