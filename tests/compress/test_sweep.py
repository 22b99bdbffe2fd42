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
import yaml
from edgeml.artifact.bundle import open_bundle
from edgeml.cli import main

# Large enough that a share of it is faster than the whole.
NETWORK = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.a(x))))

def build():
    torch.manual_seed(0)
    blocks = [Block(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks)
"""
# Every process of the sweep reads it: this is about what is on disk, and engines are timed for a blink.
BLINK = """
import edgeml.runtime.latency as latency
real = latency.bench
latency.BLOCK_S, latency.WARMUP_MAX_S = 0.005, 0.05
latency.bench = lambda *engines, duration_s=0, **more: real(*engines, duration_s=0.02, **more)
"""
DRIVER = """
import sys
import edgeml.compress.search as search
search.BENCH_SECONDS = 0.05
from edgeml.cli import main
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The words of a sweep without its length, in a folder of its own."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "net.py").write_text(NETWORK)
    (folder / "blink").mkdir()
    (folder / "blink" / "sitecustomize.py").write_text(BLINK)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = rng.standard_normal((400, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "data.npz", x=x + np.eye(3, dtype=np.float32)[y][:, :, None, None], y=y)
    words = [sys.executable, "-c", DRIVER, "sweep", f"{folder}/net.py:build"]
    words += ["--data", f"npz:{folder}/data.npz", "--runtime", "openvino", "--route", "nncf"]
    words += ["--calibration-samples", "16", "--threads", "1", "--epochs", "0", "--max-drop", "100"]
    return folder, [*words, "-o", str(folder / "sweep")]


def environment(folder):
    paths = {"EDGEML_CACHE": str(folder / "cache"), "PYTHONPATH": str(folder / "blink")}
    return {**os.environ, **paths}


def run(folder, *words):
    env = environment(folder)
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)


def processes_of(folder) -> list[str]:
    done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if f"{folder}/sweep" in line]


def test_a_killed_sweep_goes_on_to_its_front_and_repeats_nothing(asked):
    folder, words = asked
    env, asked_for = environment(folder), [*words, "--trials", "1"]
    driver = subprocess.Popen(asked_for, env=env, stderr=subprocess.PIPE, text=True)
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
    assert {trial["state"] for trial in trials} <= {"done", "failed", "lost", "out of reach"}, (
        trials
    )
    done_before = [trial for trial in trials if trial["state"] == "done"]
    assert len(done_before) == 1, trials
    table = json.loads((sweep / "results.json").read_text())
    front = [row for row in table["rows"] if row["front"] == "yes"]
    assert front and all(row["latency_p50_ms"]["value"] > 0 for row in front)
    points = {row["bundle"] for row in table["rows"] if row["bundle"]}
    assert points == {f"points/{path.name}" for path in (sweep / "points").iterdir()}
    for point in points:
        open_bundle(sweep / point)
    assert table["settings"]["test_reads"] == 1
    recipe = yaml.safe_load(
        (sweep / "recipes" / f"{done_before[0]['recipe_hash']}.yaml").read_text()
    )
    assert recipe["engine"] == done_before[0]["params"]["engine"]
    # One cut for all trials: what a trial trains on is validated and tested on by none.
    assert recipe["data"].startswith("cut:60-20-20:npz:")

    # A finished sweep that is gone on with: test_sweep_driver.py, test_sweep_final.py.

    with pytest.raises(SystemExit) as ended:
        main(["report", str(sweep), "-o", str(folder / "page")])
    assert not ended.value.code
    assert (folder / "page" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "say how long"),
        (["--trials", "1", "--objectives", "accuracy,beauty"], "beauty"),
        (
            ["--trials", "1", "--measure-on", "ssh://jetson@orin1"],
            "--measure-on ssh://jetson@orin1",
        ),
    ],
)
def test_what_cannot_be_swept_is_one_line(asked, capsys, monkeypatch, more, said):
    folder, words = asked
    monkeypatch.setenv("EDGEML_CACHE", str(folder / "cache"))
    with pytest.raises(SystemExit) as ended:
        main([*words[3:-1], str(folder / "other"), *more])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told
    assert len([line for line in told.splitlines() if line.startswith("edgeml: ")]) == 1
    assert not (folder / "other").exists()
