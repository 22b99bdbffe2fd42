"""The agent by its protocol: every request with real engines, faults as lines, and that nothing outlives it."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load


def spec_of(host, content: bytes, **fields) -> dict:
    found = {
        "id": "fp32",
        "runtime": "onnxruntime",
        "precision": "fp32",
        "execution": "fp32",
        "files": {"model.onnx": host.put(content)},
        "model": "model.onnx",
        "shapes": {"x": [1, 3, 16, 16]},
        "threads": 1,
    }
    return {**found, **fields}


@pytest.fixture
def built(host, engine):
    assert host.ask("build", engines=[engine])["engines"][0]["status"] == "built"
    return host


def test_the_whole_way_of_a_deploy(host, engine, reference, images):
    assert host.ask("probe")["numpy"] == np.__version__
    (row,) = host.ask("build", engines=[engine])["engines"]
    assert (row["status"], row["how"], row["reason"]) == ("built", "onnxruntime", None)
    digest = host.put(reference)
    (row,) = host.ask("check", engines=[{"id": "fp32", "reference": digest}])["engines"]
    assert (row["status"], row["n"], row["how"]) == ("checked", 5, "onnxruntime")
    assert row["outputs"][0]["max_rel"] < 1e-5 and row["outputs"][0]["cosine"] > 0.999999
    (row,) = host.ask("score", engines=["fp32"], samples=[digest])["engines"]
    assert (row["status"], row["n"]) == ("scored", 5)
    head, payload = host.data[-1]
    assert (head["engine"], head["samples"]) == ("fp32", digest)
    expected = load(reference)
    for number in range(5):
        key = f"{number:03}.output.y"
        np.testing.assert_allclose(load(payload)[key], expected[key], rtol=1e-4, atol=1e-5)
    bench = host.ask("bench", engines=["fp32"], reference=digest, duration_s=0.1, warmup_s=0.05)
    (row,) = bench["engines"]
    assert row["status"] == "timed" and len(row["rounds_ms"]) >= 6
    assert min(map(min, row["rounds_ms"])) > 0 and row["load_ms"] > 0
    assert row["peak_memory_bytes"] > 10e6
    assert host.ask("bye")["event"] == "result"
    assert host.process.wait(timeout=10) == 0


def test_a_rate_is_held_and_end_to_end_has_its_stages(built, reference):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (20, 20), (9, 200, 9)).save(file, "JPEG")
    images = [built.put(file.getvalue())]
    preprocess = built.put(json.dumps({"resize": 16, "crop": 16}).encode())
    bench = built.ask(
        "bench",
        engines=["fp32"],
        reference=built.put(reference),
        duration_s=0.2,
        warmup_s=0.01,
        rate_hz=50,
        end_to_end={"images": images, "preprocess": preprocess},
    )
    (row,) = bench["engines"]
    assert row["rate"]["wanted_hz"] == 50 and row["rate"]["held_hz"] <= 50.5
    assert row["rate"]["mean_w"] is None  # no meter here
    stages = row["end_to_end_ms"]
    assert set(stages) == {"decode", "preprocess", "infer", "postprocess"}
    assert all(stages.values())


def test_energy_without_a_meter_says_why(built, reference):
    (row,) = built.ask("energy", engines=["fp32"], reference=built.put(reference), idle_s=0.1)[
        "engines"
    ]
    assert row["status"] == "not measured" and row["reason"] and row["gross_mj"] is None


def test_a_profile_names_the_layers(built, reference):
    answer = built.ask("profile", engines=["fp32"], reference=built.put(reference), iterations=3)
    (row,) = answer["engines"]
    assert answer["throttle"] == []
    assert row["status"] == "profiled" and len(row["layers"]) >= 3
    assert all(layer["ms"] >= 0 for layer in row["layers"])


def test_external_data_lies_under_its_own_name(host, save_graph, tmp_path, reference):
    import onnx
    from onnx import helper

    weight = np.arange(4000, dtype=np.float32).reshape(1000, 4)
    path = save_graph(
        tmp_path / "big.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", [1, 1000])],
        [("y", [1, 4])],
        [("w", weight)],
    )
    model = onnx.load(path)
    (tmp_path / "weights dir").mkdir()
    place = {"location": "weights dir/w.bin", "size_threshold": 0}
    onnx.save_model(model, path, save_as_external_data=True, **place)
    files = {
        "big.onnx": host.put(path.read_bytes()),
        "weights dir/w.bin": host.put((tmp_path / "weights dir/w.bin").read_bytes()),
    }
    spec = spec_of(host, b"", files=files, model="big.onnx", shapes={"x": [1, 1000]})
    (row,) = host.ask("build", engines=[spec])["engines"]
    assert row["status"] == "built", row["reason"]


@pytest.mark.parametrize("name", ["../out.bin", "/tmp/out.bin", "a/../../out.bin"])
def test_a_name_outside_the_models_folder_is_refused(host, engine, name):
    engine["files"][name] = host.put(b"x")
    (row,) = host.ask("build", engines=[engine])["engines"]
    assert row["status"] == "failed" and "points outside" in row["reason"]


def test_one_engine_that_cannot_be_built_is_a_row(host, engine):
    broken = spec_of(host, b"no onnx", id="broken")
    tensorrt = {**engine, "id": "trt", "runtime": "tensorrt"}
    rows = host.ask("build", engines=[broken, tensorrt, engine])["engines"]
    assert [row["status"] for row in rows] == ["failed", "failed", "built"]
    assert "onnxruntime cannot load it" in rows[0]["reason"]
    assert "no TensorRT to build with" in rows[1]["reason"]


def test_a_blob_that_changed_is_removed_and_told(host, engine):
    path = host.cache / "blobs" / engine["files"]["model.onnx"]
    path.write_bytes(b"damaged")
    answer = host.ask("build", engines=[engine])
    assert (answer["event"], answer["code"]) == ("error", "changed")
    assert not path.exists()


@pytest.mark.parametrize(
    ("do", "fields", "told"),
    [
        ("dance", {}, "unknown request 'dance'"),
        ("bench", {}, "KeyError"),
        ("check", {"engines": [{"id": "x", "reference": "0" * 64}]}, "no engine 'x' was built"),
        ("fetch", {"hash": "../../etc/passwd"}, "is no sha256"),
        ("fetch", {"hash": "0" * 64}, "no file"),
        ("score", {"engines": [], "samples": ["0" * 64]}, "no file"),
    ],
)
def test_a_bad_request_is_an_error_and_not_the_end(host, do, fields, told):
    answer = host.ask(do, **fields)
    assert (answer["event"], answer["code"]) == ("error", "bad-request")
    assert told in answer["message"] and "\n" not in answer["message"]
    assert host.ask("probe")["event"] == "result"


def test_power_modes_are_refused_where_there_are_none(host):
    assert host.ask("power", mode=None, lock_clocks=False)["note"] is None
    answer = host.ask("power", mode="15W", lock_clocks=False)
    assert answer["code"] == "unsupported" and "no power modes" in answer["message"]


def test_fetch_gives_a_blob_back(host):
    content = os.urandom(600_000)
    digest = host.put(content)
    assert host.ask("fetch", hash=digest)["hash"] == digest
    assert host.data[-1][1] == content


def test_clean_removes_the_oldest_and_never_what_is_used(host, engine):
    host.ask("build", engines=[engine])
    old = host.put(b"o" * 1000)
    os.utime(host.cache / "blobs" / old, (1, 1))
    young = host.put(b"y" * 1000)
    used = host.cache / "blobs" / engine["files"]["model.onnx"]
    os.utime(used, (0, 0))
    answer = host.ask("clean", limit_bytes=used.stat().st_size + 1000)
    assert answer["removed_bytes"] == 1000
    assert not (host.cache / "blobs" / old).exists() and (host.cache / "blobs" / young).exists()
    assert host.ask("clean", all=True)["removed_bytes"] == 1000
    assert used.exists()


def test_clean_leaves_what_is_none_of_ours(host):
    """The cache may be any folder that the user names."""
    kept = [host.cache / name for name in ("blobs/notes.txt", "plans/house.plan", "work/src/a.py")]
    for path in kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    (host.cache / "work/deploy-killed").mkdir()
    assert host.ask("clean", all=True)["event"] == "result"
    assert all(path.read_text() == "mine" for path in kept)
    assert not (host.cache / "work/deploy-killed").exists()


# ---- that nothing outlives it ----


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def children_of(pid: int) -> list[int]:
    from edgeml.runtime.device.process import descendants

    return descendants(pid)


@pytest.fixture
def busy(built, reference):
    """A host whose agent is in the middle of a long bench; the agent's pid and its child's."""
    built.send(
        id=99, do="bench", engines=["fp32"], reference=built.put(reference), duration_s=600
    )  # fmt: skip
    end = time.monotonic() + 20
    while not (found := children_of(built.process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    return built, [built.process.pid, *found]


def test_a_closed_connection_ends_everything_at_once(busy):
    host, pids = busy
    assert len(pids) == 2
    host.process.stdin.close()
    assert gone_within(pids, 5)
    assert not list((host.cache / "work").glob("*"))


def test_a_host_that_reads_no_more_ends_everything_too(busy):
    host, pids = busy
    host.process.stdout.close()
    host.process.stdin.close()
    assert gone_within(pids, 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_killed_agent_leaves_no_child(busy, number):
    host, pids = busy
    os.kill(host.process.pid, number)
    assert gone_within(pids, 5)


def test_a_child_that_is_killed_is_an_error_with_its_signal(busy):
    host, pids = busy
    os.kill(pids[1], signal.SIGKILL)
    while True:
        answer = json.loads(host.process.stdout.readline())
        if answer["event"] == "error":
            break
    assert (answer["id"], answer["code"], answer["signal"]) == (99, "killed", 9)
    assert "most likely by the kernel for memory" in answer["message"]
    assert host.ask("probe")["event"] == "result"


@pytest.mark.slow
def test_no_heartbeat_ends_everything_within_thirty_seconds(busy):
    host, pids = busy
    begin = time.monotonic()
    host.send(do="beat")
    assert not gone_within(pids, 15)
    assert gone_within(pids, 30 - (time.monotonic() - begin))


def test_heartbeats_are_answered_by_nothing(host):
    for _ in range(3):
        host.send(do="beat")
    assert host.ask("probe")["id"] == 1
