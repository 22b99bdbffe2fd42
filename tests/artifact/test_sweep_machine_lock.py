"""Nothing is timed while something trains; who trains lets a timing pass between two steps."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeml.artifact import machine_lock as lock_module
from edgeml.artifact.machine_lock import machine_lock

TIMES = """
import sys, time
from edgeml.artifact.machine_lock import machine_lock
with machine_lock("timing"):
    print("timing", time.monotonic(), flush=True)
    time.sleep(0.3)
    print("timed", time.monotonic(), flush=True)
"""
TRIAL = """
from edgeml.artifact.machine_lock import machine_lock
with machine_lock("trial", shared=True) as trial:
    for _ in range(300):
        trial.pause()
        with machine_lock("training", shared=True) as hold:
            for _ in range(3):
                hold.pause()
        with machine_lock("timing"):
            pass
"""
TRAINS = """
import time
from pathlib import Path
from edgeml.artifact.machine_lock import machine_lock
with machine_lock("training", shared=True) as hold:
    print("training", flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(lock_module.tempfile, "tempdir", str(tmp_path))


def run(code):
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def test_a_training_lets_a_timing_pass_between_two_steps_and_waits_for_it():
    steps = []
    with (
        machine_lock("trial", shared=True),
        machine_lock("training", shared=True) as hold,
        run(TIMES) as other,
    ):
        while other.poll() is None:
            hold.pause()
            steps.append(time.monotonic())
            time.sleep(0.002)
        (_, begin), (_, end) = (line.split() for line in other.stdout.read().splitlines())
    assert steps[0] < float(begin)
    assert not [t for t in steps if float(begin) < t < float(end)]


def test_trainings_run_side_by_side_and_a_timing_waits_for_each():
    with run(TRAINS) as other:
        assert other.stdout.readline() == "training\n"
        lines = []
        with machine_lock("training", lines.append, shared=True):
            assert not lines
        with run(TIMES) as timing:
            time.sleep(0.3)
            assert timing.poll() is None
            other.communicate("\n")
            assert timing.stdout.read().startswith("timing")


def test_a_trial_may_time_inside_its_own_hold():
    lines = []
    with machine_lock("trial", lines.append, shared=True) as hold:
        with machine_lock("timing", lines.append), run(TRAINS) as other:
            time.sleep(0.3)
            other.kill()
            assert other.stdout.read() == ""
        hold.pause()
    assert lines == []


def test_a_training_that_begins_inside_a_trial_lets_a_timing_that_waits_pass():
    with machine_lock("trial", shared=True), run(TIMES) as other:
        deadline = time.monotonic() + 10
        while not waits_to_time():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with machine_lock("training", shared=True) as hold:
            assert other.wait(10) == 0
            hold.pause()


def waits_to_time():
    """Whether another process has the second file for itself."""
    root = lock_module.tempfile.gettempdir()
    with Path(root, f"edgeml-{os.getuid()}.wanted").open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_two_trials_that_train_and_time_do_not_wait_for_each_other_for_ever():
    with run(TRIAL) as one, run(TRIAL) as two:
        assert [one.wait(60), two.wait(60)] == [0, 0]


def test_a_folder_that_cannot_be_written_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(lock_module.tempfile, "tempdir", str(tmp_path / "none"))
    with machine_lock("timing"), machine_lock("training", shared=True) as hold:
        hold.pause()


PAUSES_AND_LOGS = """
from edgeml.artifact.machine_lock import machine_lock
with machine_lock("trial", shared=True) as hold:
    def log(line):
        hold.pause()
        print("waits", flush=True)
        hold.pause()
    with machine_lock("timing", log):
        hold.pause()
        print("timed", flush=True)
"""


def test_a_log_line_that_pauses_does_not_make_a_timing_wait_for_itself():
    other = run(TRAINS)
    assert other.stdout.readline() == "training\n"
    trial = run(PAUSES_AND_LOGS)
    assert trial.stdout.readline() == "waits\n"
    other.communicate("\n", timeout=20)
    out, _ = trial.communicate(timeout=20)
    assert out == "timed\n" and trial.returncode == 0
