"""Made sysfs trees of boards, as their kernels show them."""

from __future__ import annotations

from pathlib import Path

import pytest

# board: model, compatible, sensors ({driver, address, hwmon number, {channel: (label, mV, mA)} or µW}).
TREES = {
    "orin-nano": (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234",
        {
            "1-0040": (
                "ina3221",
                1,
                {
                    1: ("VDD_IN", 5000, 900),
                    2: ("VDD_CPU_GPU_CV", 5000, 100),
                    3: ("VDD_SOC", 5000, 280),
                },
            )
        },
    ),
    "orin-nx": (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234",
        {
            "1-0040": (
                "ina3221",
                4,
                {
                    1: ("VDD_IN", 5000, 1200),
                    2: ("VDD_CPU_GPU_CV", 5000, 300),
                    3: ("VDD_SOC", 5000, 320),
                },
            )
        },
    ),
    "agx-orin": (
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234",
        {
            "1-0040": (
                "ina3221",
                2,
                {
                    1: ("VDD_GPU_SOC", 20000, 200),
                    2: ("VDD_CPU_CV", 20000, 100),
                    3: ("VIN_SYS_5V0", 5000, 800),
                },
            ),
            "1-0041": (
                "ina3221",
                3,
                {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 160), 3: ("NC", 0, 0)},
            ),
        },
    ),
    "thor": (
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264",
        {
            "2-0040": (
                "ina3221",
                3,
                {
                    1: ("VDD_GPU", 12000, 300),
                    2: ("VDD_CPU_SOC_MSS", 12000, 500),
                    3: ("VIN_SYS_5V0", 5000, 1000),
                },
            ),
            "2-0044": ("ina238", 5, 24_000_000),
        },
    ),
    "thor-without-carrier-sensor": (
        "NVIDIA Jetson AGX Thor Developer Kit",
        "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264",
        {
            "2-0040": (
                "ina3221",
                0,
                {
                    1: ("VDD_GPU", 12000, 300),
                    2: ("VDD_CPU_SOC_MSS", 12000, 500),
                    3: ("VIN_SYS_5V0", 5000, 1000),
                },
            )
        },
    ),
}


@pytest.fixture
def make_board(tmp_path):
    """A function that writes a board's tree and gives its root."""

    def make(name: str) -> Path:
        model, compatible, sensors = TREES[name]
        root = tmp_path / name
        tree = root / "proc/device-tree"
        tree.mkdir(parents=True)
        (tree / "model").write_text(model + "\0")
        (tree / "compatible").write_text(compatible + "\0")
        for address, (driver, number, channels) in sensors.items():
            hwmon = root / f"sys/bus/i2c/drivers/{driver}/{address}/hwmon/hwmon{number}"
            hwmon.mkdir(parents=True)
            (hwmon / "name").write_text(driver + "\n")
            if driver == "ina238":
                (hwmon / "power1_input").write_text(f"{channels}\n")
                continue
            for n, (label, mv, ma) in channels.items():
                (hwmon / f"in{n}_label").write_text(label + "\n")
                (hwmon / f"in{n}_input").write_text(f"{mv}\n")
                (hwmon / f"curr{n}_input").write_text(f"{ma}\n")
            (hwmon / "in7_label").write_text("sum of shunt voltages\n")
            (hwmon / "in7_input").write_text("12\n")
        return root

    return make
