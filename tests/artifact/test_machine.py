"""What a number was measured on, and how noisy it was."""

from __future__ import annotations

import doctest
import json
import os
from importlib import import_module

import pytest
from edgeml.artifact import machine
from edgeml.artifact.machine import (
    cpu_times,
    describe_machine,
    isa_name,
    noise_warning,
    tool_versions,
)


def test_docstring_examples():
    assert doctest.testmod(import_module("edgeml.artifact.machine")).failed == 0


def test_a_machine_is_described_in_plain_json():
    found = describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["arch"] and found["governor"]
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["memory_bytes"] > 2**28
    assert len(found["load_average"]) == 3
    assert set(found["isa"]) <= set(machine.ISA_FLAGS)
    assert found["tools"] == tool_versions()
    assert found["tools"]["numpy"]


def test_arm_boards_are_named_by_their_device_tree(monkeypatch):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"Features": "asimd asimddp i8mm"})
    monkeypatch.setattr(machine, "_device_tree", lambda: "NVIDIA Jetson Orin Nano")
    found = describe_machine()
    assert found["cpu"] == "NVIDIA Jetson Orin Nano"
    assert found["isa"] == ["asimd", "asimddp", "i8mm"]
    assert isa_name(found) == "Arm i8mm"


@pytest.mark.parametrize(
    ("isa", "name"),
    [
        (["avx2", "avx_vnni"], "AVX2 VNNI"),
        (["avx2", "avx512f", "avx512_vnni"], "AVX-512 VNNI"),
        (["avx2", "avx512f"], "AVX-512 without VNNI"),
        (["asimd", "asimddp"], "Arm dot product"),
        ([], "riscv64"),
    ],
)
def test_isa_names(isa, name):
    assert isa_name({"isa": isa, "arch": "riscv64"}) == name


def test_cpu_times_only_grow():
    before, after = cpu_times(), cpu_times()
    assert set(before) == {"total", "idle", "steal", "own"}
    assert all(after[name] >= before[name] for name in before)


def times(total, idle, own, steal=0.0):
    return {"total": total, "idle": idle, "own": own, "steal": steal}


START = times(100, 50, 10)


@pytest.mark.parametrize(
    ("after", "share"),
    [
        (times(120, 60, 20), None),  # half idle, half ours
        (times(120, 50, 30), None),  # all ours
        (times(120, 50, 20), "50%"),
        (times(120, 69, 10), None),  # 5 %: not worth a word
        (times(120, 50, 31), None),  # rounding of clock ticks
        (START, None),  # no time between the two
        ({}, None),  # no /proc/stat
    ],
)
def test_the_warning_names_what_others_used(after, share):
    line = noise_warning(START, after)
    assert line is None if share is None else f"others used {share} of the CPU time" in line


def test_the_warning_names_what_the_host_stole():
    assert "30% stolen by the host" in noise_warning(START, times(120, 50, 20, steal=6))
    assert "stolen" not in noise_warning(START, times(120, 50, 20))
