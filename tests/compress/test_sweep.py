"""A whole sweep on a tiny network: killed, gone on with, its front and its page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from edgeml.artifact.bundle import open_bundle

# Large enough that a share of it is faster than the whole.
NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.a(x))))

def build():
    torch.manual_seed(0)
    blocks = [Block(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks)
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The words of a sweep without its length, in a folder of its own."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = rng.standard_normal((400, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=x + np.eye(3, dtype=np.float32)[y][:, :, None, None], y=y)
    words = [sys.executable, "-m", "edgeml", "sweep", f"{folder}/net.py:build"]
    words += ["--data", f"npz:{folder}/data.npz", "--runtime", "openvino", "--route", "nncf"]
    words += ["--calibration-samples", "16", "--threads", "1", "--epochs", "0", "--max-drop", "100"]
    return folder, [*words, "-o", str(folder / "sweep")]


def run(folder, *words):
    env = {**os.environ, "EDGEML_CACHE": str(folder / "cache")}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)


def processes_of(folder) -> list[str]:
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if f"{folder}/sweep" in line]


def test_a_killed_sweep_goes_on_to_its_front_and_repeats_nothing(asked):
    folder, words = asked
    env = {**os.environ, "EDGEML_CACHE": str(folder / "cache")}
    driver = subprocess.Popen([*words, "--trials", "1"], env=env, stderr=subprocess.PIPE, text=True)
    for line in driver.stderr:
        if "trial 0" in line:
            break
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    deadline = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_of(folder)  # no trial outlives its driver

    done = run(folder, *words, "--trials", "1")
    assert done.returncode == 0, done.stderr
    assert "finished before" in done.stderr  # the original's engines are not measured again
    sweep = folder / "sweep"
    trials = [json.loads(line) for line in (sweep / "trials.jsonl").read_text().splitlines()]
    assert {trial["state"] for trial in trials} <= {"done", "failed", "lost"}, trials
    done_before = [trial for trial in trials if trial["state"] == "done"]
    assert len(done_before) == 1, trials
    table = json.loads((sweep / "results.json").read_text())
    front = [row for row in table["rows"] if row["front"] == "yes"]
    assert front and all(row["latency_p50_ms"]["value"] > 0 for row in front)
    for point in (sweep / "points").iterdir():
        open_bundle(point)

    again = run(folder, *words, "--trials", "1")
    assert again.returncode == 0 and "trial 1" not in again.stderr

    page = run(folder, *words[:3], "report", str(sweep), "-o", str(folder / "page"))
    assert page.returncode == 0, page.stderr
    assert (folder / "page" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "say how long"),
        (["--trials", "1", "--objectives", "accuracy,beauty"], "beauty"),
    ],
)
def test_what_cannot_be_swept_is_one_line(asked, more, said):
    folder, words = asked
    done = run(folder, *words[:-1], str(folder / "other"), *more)
    assert done.returncode == 2 and said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("edgeml: ")]) == 1
    assert not (folder / "other").exists()
