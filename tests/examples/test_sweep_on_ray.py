"""Example 4: students trained by jobs, on Ray where it is installed; timed here."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch_pruning")
FILE = Path(__file__).resolve().parents[2] / "examples" / "04_sweep_on_ray" / "sweep_on_ray.py"


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("sweep_on_ray", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "argv", ["sweep_on_ray"])
    spec.loader.exec_module(module)
    return module


def run(example, train_all, folder):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((70, 3, 16, 16)).astype(np.float32)
    found = example.sweep(
        train_all, example.resnet(8).eval(), x, rng.integers(0, 10, 70), folder, ratios=(0.5,)
    )
    assert set(found) == {"original", "0.5"}
    assert all(p50 > 0 for p50 in found.values())


def test_its_jobs_train_what_is_timed_here(example, tmp_path):
    run(example, lambda jobs: [example.train(*job) for job in jobs], tmp_path)


@pytest.mark.slow
def test_it_runs_on_a_real_local_ray(tmp_path):
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install ray")
    # As a script: workers get its folder and the working folder on their path, and no test's modules.
    done = subprocess.run(
        [sys.executable, str(FILE)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert {"original", "0.25", "0.5"} <= set(ast.literal_eval(done.stdout.splitlines()[-1]))
