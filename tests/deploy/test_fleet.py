"""Several devices: one that fails does not stop the rest; the time of ten; memory flat in the bundle's size."""

from __future__ import annotations

import asyncio
import contextlib
import doctest
import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from edgeml.artifact.bundle import write_manifest
from edgeml.artifact.manifest import EngineEntry, Manifest
from edgeml.deploy.address import Address
from edgeml.deploy.device_table import table_lines
from edgeml.deploy.fleet import exit_code
from edgeml.deploy.plan import DeployOptions
from onnx import ModelProto, TensorProto, helper
from safetensors.numpy import save


def test_doctests() -> None:
    assert doctest.testmod(import_module("edgeml.deploy.fleet")).failed == 0


def test_a_host_that_fails_or_cannot_be_reached_does_not_stop_the_rest(
    run_async, serving, make_device, deploying
) -> None:
    good, bad, strange, away = (make_device(name) for name in ("good", "bad", "strange", "away"))
    bad.settings(fault={"bench": "kill"})

    async def go():
        async with (
            serving(good, name="good"),
            serving(bad, name="bad"),
            serving(strange, trusted=False, name="strange"),
        ):
            away.address = Address("127.0.0.1", "jetson", 1, "away")
            return await deploying(good, bad, strange, away)

    records = run_async(go())
    assert [r.status for r in records] == ["done", "failed", "refused", "refused"]
    assert exit_code(records) == 1
    lines = table_lines(records)
    assert lines[1].startswith("good")
    assert "tensorrt fp16" in lines[1]
    told = "\n".join(lines)
    assert "bad: bench: the process there was ended by signal KILL" in told
    assert "host key unknown" in told
    assert "refused; does sshd run there?" in told


def test_nothing_reachable_is_exit_2(run_async, make_device, deploying) -> None:
    away = make_device("away")
    away.address = Address("127.0.0.1", "jetson", 1, "away")
    records = run_async(deploying(away))
    assert exit_code(records) == 2


def test_the_tables_name_every_engine_and_print_no_emulated_number(
    run_async, serving, device, deploying, scorer
) -> None:
    async def go():
        async with serving(device):
            real = await deploying(device, scorer=scorer)
            device.settings(probe={"board": {"id": "jetson-orin-nano", "emulated": True}})
            return real, await deploying(device, scorer=scorer)

    real, emulated = run_async(go())
    lines = table_lines(real)
    assert lines[0].split()[:3] == ["engine", "built", "by"]
    assert "passed (70 dB, 32 inputs)" in lines[1]
    assert any(line.startswith("ships tensorrt fp16: p50 1.5") for line in lines)
    shown = table_lines(emulated)
    assert "—" in shown[1]
    assert "1.5" not in "\n".join(shown)
    assert any("mean nothing" in line for line in shown)


@pytest.mark.slow
def test_ten_devices_take_at_most_three_times_as_long_as_one(
    run_async, serving, make_device, deploying
) -> None:
    devices = [make_device(f"orin{i}") for i in range(10)]
    options = DeployOptions(duration_s=0.1, steady_s=0, lock_wait_s=5)
    for device in devices:
        device.settings(bench_s=4.0)

    async def go():
        async with contextlib.AsyncExitStack() as stack:
            for i, device in enumerate(devices):
                await stack.enter_async_context(serving(device, name=f"orin{i}"))
            begin = time.monotonic()
            one = await deploying(devices[0], options=options)
            between = time.monotonic()
            ten = await deploying(*devices, options=options, parallel=10)
            return one + ten, between - begin, time.monotonic() - between

    records, one_s, ten_s = run_async(go(), 300)
    assert {record.status for record in records} == {"done"}
    assert ten_s <= 3 * one_s, (one_s, ten_s)


_CLIENT = """
import json, resource, sys
from pathlib import Path
from edgeml.artifact.bundle import open_bundle
from edgeml.deploy.address import parse_address
from edgeml.deploy.fleet import deploy
from edgeml.deploy.plan import DeployOptions
options = DeployOptions(duration_s=0.1, steady_s=0)
(record,) = deploy(open_bundle(sys.argv[1]), [parse_address(sys.argv[2])], options, agent=Path(sys.argv[3]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"status": record.status, "reason": record.reason, "peak_kb": peak, "sent": record.sent_bytes}))
"""


def _write_large_onnx(path: Path, size: int) -> None:
    """A network whose weights, zeros, are in the file itself, written sparse: no memory, no disk."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, 4])],
    )
    tensor = TensorProto(name="w", data_type=TensorProto.UINT8, dims=[size]).SerializeToString()

    def field(number: int, length: int) -> bytes:
        found = bytearray()
        for part in (number << 3 | 2, length):
            while part > 127:
                found.append(part & 127 | 128)
                part >>= 7
            found.append(part)
        return bytes(found)

    tensor += field(9, size)  # raw_data; its zeros follow
    begin = graph.SerializeToString()
    begin += field(5, len(tensor) + size) + tensor  # initializer
    model = ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", 20)])
    with path.open("wb") as file:
        file.write(model.SerializeToString() + field(7, len(begin) + size) + begin)
        file.truncate(file.tell() + size)


@pytest.mark.slow
def test_host_memory_is_flat_in_the_size_of_the_bundle(
    run_async, serving, make_device, make_bundle, stand_in_agent, images, tmp_path
) -> None:
    tensors = {f"{i:03}.input.x": image[None] for i, image in enumerate(images)}
    tensors |= {f"{i:03}.output.y": image[0, :1, :4] for i, image in enumerate(images)}

    def bundle(megabytes: int) -> Path:
        root = tmp_path / f"bundle of {megabytes} MB"
        entry = EngineEntry(
            id="tensorrt-int8",
            runtime="tensorrt",
            precision="int8",
            files=["model.int8.onnx"],
            reference="reference.safetensors",
        )
        make_bundle(
            root,
            engines=[entry],
            shipped=entry.id,
            files={"model.int8.onnx": b"", "reference.safetensors": save(tensors)},
            reference_files=["reference.safetensors"],
        )
        _write_large_onnx(root / "model.int8.onnx", megabytes * 10**6)
        write_manifest(root, Manifest(**json.loads((root / "manifest.json").read_text())))
        return root

    async def peak(megabytes: int) -> int:
        device = make_device(f"orin{megabytes}")
        device.settings(unbuilt=["tensorrt-fp16"])
        async with serving(device):
            client = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _CLIENT,
                str(bundle(megabytes)),
                f"jetson@127.0.0.1:{device.port}",
                str(stand_in_agent),
                stdout=subprocess.PIPE,
            )
            out, _ = await client.communicate()
        found = json.loads(out)
        assert found["status"] == "done", found
        assert found["sent"] > megabytes * 10**6
        return found["peak_kb"]

    async def both() -> tuple[int, int]:
        return await peak(10), await peak(1000)

    small, large = run_async(both(), 500)
    print(f"peak RSS {small / 1e3:.1f} and {large / 1e3:.1f} MB")
    assert abs(large - small) <= 0.2 * small, (small, large)
