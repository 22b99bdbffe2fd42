"""What a device is and has, from made trees of real boards' files."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgeml.runtime.device.board_state import (
    active_mode,
    clocks,
    fan,
    power_modes,
    temperatures_c,
    throttle_counts,
    throttled,
)
from edgeml.runtime.device.installed import (
    cuda_version,
    installed_packages,
    jetpack_release,
    l4t_release,
    tensorrt_parts,
)
from edgeml.runtime.device.probe import dla_devices, is_emulated, probe

RELEASE = (
    "# R{} (release), REVISION: {}, GCID: 36923193, BOARD: generic, EABI: aarch64, DATE: Fri\n"
)
BOARDS = {  # JetPack's own texts: model, compatible, R, revision → board, L4T, JetPack
    "orin nano": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "nvidia,p3768-0000+p3767-0005\0nvidia,tegra234",
        ("36", "4.3"),
        ("jetson-orin-nano", "36.4.3", "6.2"),
    ),
    "orin nx": (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234",
        ("35", "4.1"),
        ("jetson-orin-nx", "35.4.1", "5.1"),
    ),
    "agx orin": (
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234",
        ("36", "3.0"),
        ("jetson-agx-orin", "36.3.0", "6.0"),
    ),
    "thor": (
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p3971-0080+p3834-0008\0nvidia,tegra264",
        ("38", "2.0"),
        ("jetson-thor", "38.2.0", "7.0"),
    ),
}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def orin(tmp_path) -> Path:
    """An Orin Nano with JetPack 6.2, as its files read."""
    model, compatible, (release, revision), _ = BOARDS["orin nano"]
    gpu, cpu = "sys/class/devfreq/17000000.gpu", "sys/devices/system/cpu/cpu0/cpufreq"
    root = write(
        tmp_path / "an [odd] root",
        {
            "proc/device-tree/model": model + "\0",
            "proc/device-tree/compatible": compatible + "\0",
            "proc/meminfo": "MemTotal:        7802236 kB\nMemAvailable:    6000000 kB\n",
            "proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
            "etc/nv_tegra_release": RELEASE.format(release, revision),
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n",
            "var/lib/nvpmodel/status": "pmode:0001 fmode:fanNull",
            "var/lib/dpkg/status": (
                "Package: libnvinfer10\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
                "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2.1+b38\n\n"
                "Package: libnvinfer-bin\nStatus: deinstall ok config-files\nVersion: 8.5.2-1\n"
            ),
            "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
            f"{gpu}/cur_freq": "306000000",
            f"{gpu}/min_freq": "306000000",
            f"{gpu}/max_freq": "1020000000",
            f"{cpu}/scaling_cur_freq": "729600",
            f"{cpu}/scaling_min_freq": "729600",
            f"{cpu}/scaling_max_freq": "1728000",
            f"{cpu}/scaling_governor": "schedutil",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": "48875",
            "sys/class/thermal/thermal_zone1/type": "cv0-thermal",
            "sys/class/thermal/thermal_zone1/temp": "-256000",
            "sys/class/thermal/cooling_device0/type": "pwm-fan",
            "sys/class/thermal/cooling_device0/cur_state": "2",
            "sys/class/hwmon/hwmon0/pwm1": "88",
            "sys/class/hwmon/hwmon1/rpm": "2140",
            "sys/class/hwmon/hwmon2/oc3_event_cnt": "4",
            "usr/src/tensorrt/bin/trtexec": "#!/bin/sh\n",
        },
    )
    (root / "usr/src/tensorrt/bin/trtexec").chmod(0o755)
    return root


def test_an_orin_nano_is_read_from_its_files(orin):
    found = probe(str(orin), str(orin / "cache"))
    assert found["board"]["id"] == "jetson-orin-nano" and not found["board"]["emulated"]
    assert found["board"]["model"] == BOARDS["orin nano"][0]
    assert (found["l4t"], found["jetpack"], found["cuda"]) == ("36.4.3", "6.2.1", "12.6")
    assert found["compute_capability"] == "8.7"
    assert found["tensorrt"]["version"] == "10.3.0.30"
    assert found["tensorrt"]["bindings"] is None and "tensorrt" in found["tensorrt"]["why"]
    assert found["trtexec"].endswith("/usr/src/tensorrt/bin/trtexec")
    assert found["cpu"] == "ARMv8 Processor rev 1 (v8l)"
    assert found["memory_available_bytes"] == 6_000_000 * 1024
    assert found["power"] == {
        "modes": [{"id": 0, "name": "15W"}, {"id": 1, "name": "25W"}],
        "active": "25W",
        "why": None,
    }
    assert found["temperatures_c"] == {"cpu-thermal": 48.875}  # a switched-off zone is none
    assert found["fan"] == "pwm 88 of 255, 2140 rpm"
    assert found["clocks"] == {
        "gpu_mhz": 306.0,
        "gpu_max_mhz": 1020.0,
        "cpu_mhz": 729.6,
        "cpu_max_mhz": 1728.0,
        "locked": False,
        "governor": "schedutil",
    }
    missing = {row["part"]: row["package"] for row in found["missing"]}
    assert missing["bindings"] == "python3-libnvinfer" and "trtexec" not in missing


@pytest.mark.parametrize("name", BOARDS)
def test_every_board_is_known_by_its_device_tree(tmp_path, name):
    model, compatible, (release, revision), (board, l4t, jetpack) = BOARDS[name]
    files = {
        "proc/device-tree/model": model + "\0",
        "proc/device-tree/compatible": compatible,
        "etc/nv_tegra_release": RELEASE.format(release, revision),
    }
    found = probe(str(write(tmp_path, files)))
    assert (found["board"]["id"], found["l4t"], found["jetpack"]) == (board, l4t, jetpack)


def test_a_machine_that_is_no_jetson_has_none_of_it(tmp_path):
    found = probe(str(tmp_path))
    assert found["board"] == {"id": None, "model": None, "emulated": False}
    for key in ("l4t", "jetpack", "cuda", "compute_capability", "trtexec", "fan"):
        assert found[key] is None
    assert found["power"]["modes"] == [] and "not a Jetson" in found["power"]["why"]
    assert {row["part"] for row in found["missing"]} >= {"tensorrt", "bindings", "trtexec"}
    assert found["meter"]["name"] is None and found["meter"]["why"]


def test_an_emulated_device_says_so():
    assert is_emulated("NVIDIA Jetson Orin Nano (emulated)", "")
    assert is_emulated(None, "linux,dummy-virt") and not is_emulated("NVIDIA Jetson", "")


def test_packages_that_were_removed_do_not_count(orin):
    assert set(installed_packages(str(orin))) == {"libnvinfer10", "nvidia-jetpack"}


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [("35.4.1", "5.1"), ("36.3.0", "6.0"), ("36.4.0", "6.1"), ("36.4.3", "6.2"), ("36.5.0", "6.2.2"),
     ("38.2.0", "7.0"), ("38.4.0", "7.1"), ("39.2.0", "7.2"), ("32.7.1", None), (None, None)],
)  # fmt: skip
def test_jetpack_by_l4t(l4t, jetpack):
    assert jetpack_release(l4t, {}) == jetpack


def test_files_that_are_odd_or_refuse_are_nothing(tmp_path):
    files = {
        "etc/nv_tegra_release": "garbage",
        "usr/local/cuda/version.json": "{",
        "sys/class/thermal/thermal_zone0/type": "x",
        "sys/class/thermal/thermal_zone0/temp": "warm",
        "etc/nvpmodel.conf": "< POWER_MODEL NAME=15W >",
        "var/lib/nvpmodel/status": "pmode:0007",
    }
    root = str(write(tmp_path, files))
    assert l4t_release(root) is None and cuda_version(root) is None
    assert temperatures_c(root) == {} and power_modes(root) == []
    assert active_mode(root) == "mode 7"
    assert clocks(root)["locked"] is None and fan(root) is None
    assert tensorrt_parts(root, {})[0]["version"] is None


def test_throttling_is_what_grew(orin):
    before = throttle_counts(str(orin))
    assert before == {"over-current oc3": 4}  # the fan is no throttling
    write(orin, {"sys/class/hwmon/hwmon2/oc3_event_cnt": "6"})
    assert throttled(before, throttle_counts(str(orin))) == ["over-current oc3: 2 times"]


def test_accelerators_are_counted_and_named_unused(tmp_path):
    write(tmp_path, {"sys/bus/platform/devices/15880000.nvdla0/x": "", "dev/nvhost-nvdla0": ""})
    assert dla_devices(str(tmp_path)) == ["nvhost-nvdla0"]


def test_cuda_by_its_library_where_the_toolkit_is_not_installed(tmp_path):
    write(tmp_path, {"usr/local/cuda-12.6/targets/aarch64-linux/lib/libcudart.so.12.6.68": ""})
    assert cuda_version(str(tmp_path)) == "12.6"
