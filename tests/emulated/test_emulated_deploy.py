"""The whole of `edgeml deploy` onto the emulated Jetson: real client, real sshd, real agent, aarch64."""

from __future__ import annotations

import json
import re
import shlex
import signal
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from edgeml.artifact.manifest import EngineEntry
from safetensors.numpy import save

pytestmark = pytest.mark.emulated
SHAPES = {"x": [1, 3, 16, 16]}
# Any figure of time, energy or power; the heads p50 ms and p99 ms are none.
FIGURE = re.compile(r"(?<![p\d.])\d[\d.,]* (ms|mJ|J|W)\b")


def entry(runtime: str, precision: str, file: str) -> EngineEntry:
    return EngineEntry(
        id=f"{runtime}-{precision}",
        runtime=runtime,
        precision=precision,
        execution="fp16" if runtime == "tensorrt" else "fp32",
        files=[file],
        threads=1,
        input_shapes=SHAPES,
    )


@pytest.fixture
def references() -> int:
    """Reference inputs; few, as every one is a process under qemu where trtexec runs it."""
    return 2


@pytest.fixture
def bundle(tmp_path, make_bundle, int8_onnx, conv_onnx, references) -> Path:
    """A float network, its INT8 for ONNX Runtime and for TensorRT."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((32, 1, 3, 16, 16)).astype(np.float32)
    x += 2 * rng.standard_normal((32, 1, 3, 1, 1)).astype(np.float32)
    tensors = {f"{i:03}.input.x": image for i, image in enumerate(x[:references])}
    session = onnxruntime.InferenceSession(conv_onnx, providers=["CPUExecutionProvider"])
    labels = [int(session.run(None, {"x": image})[0].argmax()) for image in x]
    np.savez(tmp_path / "data.npz", x=np.concatenate([x[:, 0]] * 8), y=labels * 8)
    return make_bundle(
        tmp_path / "a bundle's $name",
        engines=[
            entry("onnxruntime", "int8", "model.int8.onnx"),
            entry("tensorrt", "int8", "model.int8.onnx"),
        ],
        shipped="onnxruntime-int8",
        files={"model.int8.onnx": int8_onnx.read_bytes(), "reference.safetensors": save(tensors)},
        reference_files=["reference.safetensors"],
        inputs=[{"name": "x", "shape": [None, 3, 16, 16], "dtype": "float32"}],
        recipe={"model": "model.onnx", "data": f"npz:{tmp_path / 'data.npz'}", "max_drop_points": None},
    )  # fmt: skip


def deploy(device, bundle: Path, *words, code: int = 0) -> tuple[str, dict]:
    """What it printed, and its JSON."""
    out = bundle.parent / "result.json"
    common = ("--to", "jetson", "--duration", "0.2", "--no-energy", "--json", out)
    done = device.edgeml("deploy", bundle, *common, *words)
    assert done.returncode == code, done.stderr
    return done.stdout, json.loads(out.read_text())["devices"][0]


@pytest.mark.parametrize("references", [32])
def test_a_bundle_is_built_checked_scored_and_timed_there(device, bundle, references):
    text, first = deploy(device, bundle, "--target", "arm64", "--score", "64")
    assert first["status"] == "done" and first["emulated"] is True
    assert first["facts"]["machine"] == "aarch64"
    assert first["facts"]["board"]["id"] == "jetson-orin-nano"
    rows = {row["engine"]["id"]: row for row in first["rows"]}
    assert set(rows) == {"onnxruntime-int8", "onnxruntime-fp32"}
    for row in rows.values():
        assert row["built"] == "onnxruntime" and row["check"] == "passed", row["check_text"]
        assert row["engine"]["metrics"], row["engine"]["warnings"]
        # The plumbing's values are kept, and kept apart.
        assert row["engine"]["latency_p50_ms"]["how"] == "emulated"
    assert "—" in text and not FIGURE.search(text), text
    assert "tensorrt" not in text.lower()

    text, second = deploy(device, bundle, "--target", "arm64", "--score", "64")
    assert second["sent_bytes"] == 0 < first["sent_bytes"]
    assert not FIGURE.search(text), text
    assert not device.processes()


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", "11.4.1"])
def test_engines_are_built_and_checked_by_trtexec_where_there_are_no_bindings(
    device, bundle, version
):
    device.install_trtexec(version)
    try:
        text, record = deploy(device, bundle, "--score", "none")
    finally:
        device.remove_trtexec()
    rows = {row["engine"]["id"]: row for row in record["rows"]}
    # From 10 on types lie in the graph: the float network is no FP16 engine there.
    names = {"tensorrt-int8", "tensorrt-fp16"} if version == "8.6.2" else {"tensorrt-int8"}
    assert set(rows) == names
    for row in rows.values():
        assert row["built"] == "trtexec" and row["version"].startswith(version[:4])
        assert row["check"] == "passed", row["check_text"]
    assert not FIGURE.search(text), text


def test_energy_is_read_from_the_boards_rails_and_not_told_as_a_figure(device, bundle, monkeypatch):
    from edgeml.artifact.bundle import open_bundle
    from edgeml.deploy.address import parse_address
    from edgeml.deploy.device_table import table_lines
    from edgeml.deploy.fleet import deploy as deploy_to_all
    from edgeml.deploy.plan import DeployOptions

    monkeypatch.setenv("HOME", str(device.home))
    options = DeployOptions(
        target="arm64", duration_s=0.1, steady_s=0, energy=True, energy_window_s=0.5
    )
    (record,) = deploy_to_all(open_bundle(bundle), [parse_address("jetson")], options)
    assert record.status == "done", record.reason
    reading = record.rows[0].energy
    assert (reading["meter"], reading["how"], reading["where"]) == (
        "ina3221",
        "integrated",
        "emulated",
    )
    assert reading["scope"] == "module-input" and reading["total_rails"] == ["VDD_IN"]
    # 5 V times 1 A, as the made sensor says.
    assert reading["mean_w"] == pytest.approx(5.0, rel=0.01)
    assert reading["rail_mj"]["VDD_CPU_GPU_CV"] == pytest.approx(reading["gross_mj"] / 5, rel=0.02)
    text = "\n".join(table_lines([record]))
    assert not FIGURE.search(text), text


def test_single_inputs_run_there_too(device, bundle, tmp_path):
    x = np.load(tmp_path / "data.npz")["x"][:3]
    np.save(tmp_path / "x.npy", x)
    words = ("--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz", "--json", "-")
    here = device.edgeml("run", bundle, *words)
    assert here.returncode == 0, here.stderr
    expected = np.load(tmp_path / "y.npz")["000.y"]
    there = device.edgeml("run", bundle, *words, "--to", "jetson", "--target", "arm64")
    assert there.returncode == 0, there.stderr
    found = np.load(tmp_path / "y.npz")["000.y"]
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=np.abs(expected).max() * 0.05)
    top = [json.loads(done.stdout)[0]["top"][0]["index"] for done in (here, there)]
    assert top[0] == top[1]


def test_a_host_that_vanishes_leaves_nothing_running(device, bundle):
    from edgeml.runtime.device.zipapp_build import build_agent

    build_agent(device.device_home / "agent.pyz")
    client = device.start("exec python3 agent.pyz agent --cache ~/.cache/edgeml")
    client.stdin.write(json.dumps({"id": 1, "do": "probe"}) + "\n")
    client.stdin.flush()
    assert json.loads(client.stdout.readline())["event"] == "result"
    assert device.processes()
    client.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    while device.processes() and time.monotonic() - begin < 30:
        time.sleep(0.2)
    assert not device.processes()
    client.communicate()


def test_a_plan_starts_nothing_and_lists_what_is_there(device, bundle):
    done = device.edgeml("deploy", bundle, "--to", "jetson", "--target", "arm64", "--plan")
    assert done.returncode == 0, done.stderr
    assert "JetPack 6.2" in done.stdout and "15W" in done.stdout
    assert "build onnxruntime-int8" in done.stdout


REFUSED = {
    "": "on which nothing builds engines",
    "--target arm64 --power-mode 50W": "has no power mode '50W'",
    "--target intel-cpu": "give --target arm64",
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_line_and_exit_2(device, bundle, words):
    done = device.edgeml("deploy", bundle, "--to", "jetson", *words.split(), "--score", "none")
    assert done.returncode == 2
    assert REFUSED[words] in done.stderr, done.stderr


@pytest.mark.parametrize("kind", ["systemd", "dockerfile"])
def test_what_is_emitted_starts_there_and_answers_a_client(device, bundle, kind, conv_onnx):
    """The unit's and the Dockerfile's own start line, in the device, against the example client."""
    deploy(device, bundle, "--target", "arm64", "--score", "none", "--emit", kind)
    (out,) = bundle.parent.glob(f"*-jetson-{kind}")
    there = device.device_home / "served"
    there.mkdir(exist_ok=True)
    for path in out.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    name = "a-bundle-s-name"
    if kind == "systemd":
        unit = (out / f"edgeml-{name}.service").read_text()
        start = re.search(r"^ExecStart=(.*)$", unit, re.M)[1].replace("%t", "/home/jetson/run")
        socket = f"/home/jetson/run/edgeml/{name}.sock"
        line = f"cd served && exec {start} --cache ~/.cache/edgeml"
    else:
        command = json.loads(re.search(r"^CMD (.*)$", (out / "Dockerfile").read_text(), re.M)[1])
        # What the image's COPY, volume and socket folder are in this sandbox.
        moved = {f"/opt/edgeml/{name}": "/home/jetson/served", "/run/edgeml": "/home/jetson/run",
                 "/var/cache/edgeml": "/home/jetson/.cache/edgeml"}  # fmt: skip
        text = shlex.join(command)
        for old, new in moved.items():
            text = text.replace(old, new)
        socket = f"/home/jetson/run/{name}.sock"
        line = f"exec {text}"
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
    np.savez(there / "inputs.npz", x=x)
    # Sandboxes of two logins share the home, so the client of one finds the socket of the other.
    server = device.start(line)
    try:
        said = server.stderr.readline()
        assert said.startswith("listening at"), said + server.stderr.read()
        done = device.shell(f"cd served && python3 client.py {socket} inputs.npz outputs.npz")
        assert done.returncode == 0, done.stderr
    finally:
        server.kill()
        server.communicate()
    found = np.load(there / "outputs.npz")["y"]
    chosen = json.loads((out / "engine.json").read_text())
    session = onnxruntime.InferenceSession(
        out / chosen["model"], providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": x})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=np.abs(expected).max() * 0.05)
