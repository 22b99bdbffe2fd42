"""Two processes under torchrun: the same curve as one, one run's directory."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from edgeml.artifact.bundle import open_bundle
from edgeml.cli import main
from edgeml.train.processes import OneProcess
from safetensors.numpy import load_file

# Without BatchNorm and dropout, whose statistics and draws are each process's own.
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
"""
# 1,078 training samples in batches of 51: unequal shares, and a last batch of 7.
TRAIN = [
    "-m",
    "edgeml",
    "train",
    "net.py:build",
    "--data",
    "digits",
    "--epochs",
    "3",
    "--batch",
    "51",
    "--precision",
    "fp32",
    "--no-channels-last",
    "--threads",
    "1",
    "--clip",
    "0.5",
    "-o",
]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]


def run(words, folder):
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            process.terminate()  # which torchrun hands on to its workers; a kill it could not
            process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


def run_here(words, folder, monkeypatch):
    """The exit code of the same words in this process, which holds torch already."""
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as ended:
        main(words[2:])
    return ended.value.code


def workers(folder):
    """Ids of the living processes that train in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").resolve() == folder:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found += [int(entry.name)] if b"train" in words else []
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    (folder / "net.py").write_text(NET)
    return folder


def test_two_processes_give_the_curve_of_one(folder, monkeypatch):
    assert not run_here([*TRAIN, "one"], folder, monkeypatch)
    two = run([*TORCHRUN, *TRAIN, "two"], folder)
    assert two.returncode == 0, two.stderr[-2000:]
    curves = [json.loads((folder / name / "curves.json").read_text()) for name in ("one", "two")]
    for single, shared in zip(*curves, strict=True):
        assert shared["loss"] == pytest.approx(single["loss"], abs=1e-4)
        assert shared["validation"]["loss"] == pytest.approx(single["validation"]["loss"], abs=1e-4)
    assert open_bundle(folder / "two", trust_code=True).manifest.engines == []
    assert two.stdout.count("the run is two") == 1


def test_a_batch_too_small_for_the_processes_is_refused(folder, monkeypatch, capsys):
    class OneOfTwo(OneProcess):
        world = 2

    words = [word if word != "51" else "1" for word in TRAIN]
    with monkeypatch.context() as patch:
        patch.setattr("edgeml.train.training_run.processes_here", lambda sharded: OneOfTwo())
        assert run_here([*words, "small"], folder, monkeypatch) == 2
    assert "a batch of 1 cannot be shared by 2 processes" in capsys.readouterr().err
    assert not (folder / "small").exists()


@pytest.mark.slow
def test_workers_that_refuse_end_torchrun(folder):
    words = [word if word != "51" else "1" for word in TRAIN]
    found = run([*TORCHRUN, *words, "small"], folder)
    assert found.returncode != 0
    assert "a batch of 1 cannot be shared by 2 processes" in found.stderr
    assert not (folder / "small").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_when_torchrun_is_killed(folder):
    words = [word if word != "3" else "500" for word in TRAIN]
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, *words, "killed"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("epoch 1/500" in line for line in process.stderr)
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 30
    while (left := workers(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    process.stderr.close()
    assert left == []
    assert (folder / "killed.part" / "checkpoint.safetensors").is_file()


SHARD_NET = """
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x):
        return x * self.weight

def build():
    first = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Scale())
    return nn.Sequential(first, nn.Flatten(), nn.Linear(288, 10))
"""


@pytest.mark.slow
def test_fully_sharded_processes_give_the_curve_of_one_and_whole_weights(folder):
    one = folder / "one"
    if not one.exists():
        assert run([*TRAIN, "one"], folder).returncode == 0
    sharded = run([*TORCHRUN, *TRAIN, "sharded", "--fully-shard"], folder)
    assert sharded.returncode == 0, sharded.stderr[-2000:]
    curves = [json.loads((folder / n / "curves.json").read_text()) for n in ("one", "sharded")]
    for single, split in zip(*curves, strict=True):
        assert split["loss"] == pytest.approx(single["loss"], abs=1e-4)
        assert split["validation"]["loss"] == pytest.approx(single["validation"]["loss"], abs=1e-4)
    shapes = [
        {
            name: tensor.shape
            for name, tensor in load_file(folder / n / "weights.safetensors").items()
        }
        for n in ("one", "sharded")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.slow
def test_a_fully_sharded_run_resumes_from_a_checkpoint_of_whole_weights(folder):
    (folder / "shard_net.py").write_text(SHARD_NET)  # blocks, BatchNorm, a parameter of its own
    change = {"net.py:build": "shard_net.py:build", "3": "8"}
    longer = [change.get(word, word) for word in TRAIN]
    process = subprocess.Popen(
        [sys.executable, *TORCHRUN, *longer, "again", "--fully-shard"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert any("epoch 2/8" in line for line in process.stderr)
    finally:
        process.terminate()
        process.stderr.close()
        process.wait()
    record = load_file(folder / "again.part" / "checkpoint.safetensors")
    # Two processes hold four of the eight filters each; the checkpoint holds them all.
    for name in ("module/0.0.weight", "optimizer/0.exp_avg", "optimizer/0.exp_avg_sq"):
        assert record[name].shape == (8, 1, 3, 3)
    resumed = run([*TORCHRUN, "-m", "edgeml", "train", "--resume", "again"], folder)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on after epoch" in resumed.stderr
    epochs = json.loads((folder / "again" / "curves.json").read_text())
    assert len(epochs) == 8 and epochs[-1]["loss"] < epochs[0]["loss"] / 2


def test_one_process_cannot_be_sharded(folder, monkeypatch, capsys):
    assert run_here([*TRAIN, "alone", "--fully-shard"], folder, monkeypatch) == 2
    assert "torchrun --nproc-per-node=2" in capsys.readouterr().err
    assert not (folder / "alone.part").exists()
