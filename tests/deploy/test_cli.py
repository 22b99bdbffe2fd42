"""`edgeml deploy` as a user types it, with the real agent on this machine as the device."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import site
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from edgeml.artifact.manifest import EngineEntry
from safetensors.numpy import save

TARGET = "arm64" if os.uname().machine == "aarch64" else "intel-cpu"


@pytest.fixture
def digits_bundle(tmp_path: Path, make_bundle, digits_model: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {f"{i:03}.input.x": rng.random((1, 1, 8, 8), dtype=np.float32) for i in range(4)}
    entry = EngineEntry(
        id="onnxruntime-fp32", runtime="onnxruntime", precision="fp32", files=["model.onnx"]
    )
    return make_bundle(
        tmp_path / "my out",
        engines=[entry],
        files={
            "model.onnx": digits_model.read_bytes(),
            "reference.safetensors": save(tensors),
        },
        reference_files=["reference.safetensors"],
        recipe={"model": "model.onnx", "data": "digits"},
        inputs=[{"name": "x", "shape": [None, 1, 8, 8], "dtype": "float32"}],
        outputs=[{"name": "y", "shape": [None, 10], "dtype": "float32"}],
    )


async def _edgeml(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "edgeml", *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def test_a_bundle_is_scored_and_timed_on_the_device(
    run_async, serving, make_device, digits_bundle: Path, tmp_path: Path
) -> None:
    device = make_device(environment={"PYTHONPATH": os.pathsep.join(site.getsitepackages())})
    result = tmp_path / "result.json"

    async def go():
        async with serving(device):
            to = f"ssh://jetson@127.0.0.1:{device.port}"
            words = ["deploy", str(digits_bundle), "--to", to, "--target", TARGET]
            plan = await _edgeml(*words, "--plan")
            run = await _edgeml(
                *words, "--duration", "0.2", "--no-energy", "--score", "100", "--json", str(result)
            )
            clean = await _edgeml("deploy", "--to", to, "--clean")
            return plan, run, clean

    plan, run, clean = run_async(go(), 180)
    assert plan[0] == 0, plan
    assert "build onnxruntime-fp32" in plan[1]
    code, out, err = run
    assert code == 0, err
    assert "onnxruntime fp32" in out
    assert "loses 0.0 points on the device (n = 100)" in out, out
    (record,) = json.loads(result.read_text())["devices"]
    (row,) = record["rows"]
    assert row["engine"]["metrics"]["accuracy"]["value"] > 0.85
    assert row["engine"]["flips"]["value"] == 0
    assert row["engine"]["latency_p50_ms"]["how"] == "measured"
    assert list((digits_bundle / "measurements").glob("deploy-*.json"))
    assert clean[0] == 0, clean
    assert "removed" in clean[1]


def test_ctrl_c_ends_what_runs_there(run_async, serving, make_device, digits_bundle: Path) -> None:
    device = make_device(environment={"PYTHONPATH": os.pathsep.join(site.getsitepackages())})

    async def go():
        async with serving(device):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "edgeml",
                "deploy",
                str(digits_bundle),
                *("--to", f"jetson@127.0.0.1:{device.port}", "--target", TARGET),
                *("--duration", "60", "--no-energy", "--score", "none"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A shell's background job, such as this test may be, ignores SIGINT; its children would.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            while "bench" not in device.requests:
                await asyncio.sleep(0.1)
            await asyncio.sleep(1)
            process.send_signal(signal.SIGINT)
            _, err = await asyncio.wait_for(process.communicate(), 20)
            ended = await asyncio.wait_for(device.children[-1].wait(), 20)
            return process.returncode, err.decode(), ended

    code, err, _ = run_async(go(), 120)
    assert code == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "a b"], "no host name"),
        (["--to", "none.yaml"], "cannot be read"),
        (["--to", "orin1", "--score", "many"], "give all, none or a number"),
        (["--to", "orin1", "--latency", "60%"], "give a time, as in 5ms"),
        (["--to", "orin1", "--cache-limit", "5"], "has no unit"),
        (["--to", "orin1", "--cache", "here"], "a folder as /… or ~/…"),
        (["--to", "orin1", "--max-drop", "-1"], "no budget"),
        (["--to", "orin1", "--data", "nothing:here"], "nothing:here"),
        (["--to", "no-such-host.invalid", "--score", "none"], "no host"),
        ([], "--to"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    digits_bundle: Path, user_home: Path, words, says, capsys
) -> None:
    from edgeml.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["deploy", str(digits_bundle), *words])
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert says in told.err + told.out
    assert "Traceback" not in told.err


def test_a_bundle_is_asked_for(user_home: Path, capsys) -> None:
    from edgeml.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["deploy", "--to", "orin1"])
    assert ended.value.code == 2
    assert "no bundle" in capsys.readouterr().err
