"""SIGKILL at random moments: a resumed training ends as one that was left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill_train.py"


@pytest.mark.slow
def test_three_killed_trainings_end_in_the_same_weights(tmp_path):
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--kills", "3", "--epochs", "10", "--try"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 killed runs ended in the same weights" in done.stdout
