"""Lines as boards print them, JetPack 4 to 7.2."""

from __future__ import annotations

import pytest
from edgeml.runtime.energy.tegrastats import parse_line, tegrastats_meter

ORIN_NANO_6 = (
    "11-30-2025 13:26:01 RAM 2461/7620MB (lfb 3x2MB) SWAP 1243/3810MB (cached 5MB) CPU "
    "[19%@729,14%@729,22%@729,8%@729,15%@729,17%@729] EMC_FREQ 4%@2133 GR3D_FREQ 0%@[305] NVDEC off NVJPG "
    "off NVJPG1 off VIC off OFA off APE 200 cpu@46.531C soc2@47.312C soc0@46.593C gpu@48.218C tj@48.843C "
    "soc1@48.843C VDD_IN 5704mW/5704mW VDD_CPU_GPU_CV 831mW/831mW VDD_SOC 1624mW/1624mW"
)
ORIN_NANO_PLAIN = (
    "04-27-2026 14:59:41 RAM 775/7620MB (lfb 4x4MB) CPU [0%@1728,off,off] GR3D_FREQ 0% cv0@-256C cpu@46C "
    "VDD_IN 4761mW/4778mW VDD_CPU_GPU_CV 515mW/501mW VDD_SOC 1428mW/1428mW"
)
AGX_ORIN_51 = (
    "RAM 3021/62800MB (lfb 14x4MB) SWAP 0/31400MB (cached 0MB) CPU [2%@729,off,1%@729] EMC_FREQ 0% GR3D_FREQ "
    "17% GR3D2_FREQ 0% CV0@-256C Tboard@31C SOC2@41.5C GPU@38C tj@42C VDD_GPU_SOC 2389mW/2389mW VDD_CPU_CV "
    "398mW/398mW VIN_SYS_5V0 3028mW/3028mW VDDQ_VDD2_1V8AO 403mW/403mW"
)
AGX_ORIN_72 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 GR3D_FREQ "
    "12%@[1300,1300] NVENC0 off APE 174 cpu@52.968C/52.968C gpu@47.625C/47.625C VDD_GPU_SOC "
    "5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW"
)
THOR_70 = (
    "RAM 4722/125772MB CPU [1%@972] GR3D_FREQ @[314,314,314] cpu@38.5C VDD_GPU 1962mW/1962mW VDD_CPU_SOC_MSS "
    "5886mW/5886mW VIN_SYS_5V0 5152mW/5152mW VIN 19780mW/19780mW"
)
THOR_72 = (
    "RAM 4722/125772MB GR3D_FREQ 98%@[1575,1575,1575] VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS "
    "9012mW/4506mW/9012mW VIN_SYS_5V0 5152mW/5152mW/5152mW VIN 87426mW/43713mW/87426mW"
)
JETPACK_4 = (
    "RAM 1923/3964MB (lfb 2x2MB) SWAP 191/1982MB (cached 6MB) IRAM 0/252kB(lfb 252kB) CPU "
    "[5%@1224,4%@1224,off,off] EMC_FREQ 0%@1600 GR3D_FREQ 0%@76 APE 25 PLL@37C CPU@40C PMIC@50C GPU@40C "
    "AO@45C thermal@40C POM_5V_IN 1750/1628 POM_5V_GPU 0/0 POM_5V_CPU 366/406"
)
NEGATIVE = "CPU [off] cpu@40C VDD_GPU -12mW/3mW VDD_CPU_SOC_MSS 5886mW/-1mW"
RAILS = {
    ORIN_NANO_6: {"VDD_IN": 5.704, "VDD_CPU_GPU_CV": 0.831, "VDD_SOC": 1.624},
    ORIN_NANO_PLAIN: {"VDD_IN": 4.761, "VDD_CPU_GPU_CV": 0.515, "VDD_SOC": 1.428},
    AGX_ORIN_51: {
        "VDD_GPU_SOC": 2.389,
        "VDD_CPU_CV": 0.398,
        "VIN_SYS_5V0": 3.028,
        "VDDQ_VDD2_1V8AO": 0.403,
    },
    AGX_ORIN_72: {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5},
    THOR_70: {"VDD_GPU": 1.962, "VDD_CPU_SOC_MSS": 5.886, "VIN_SYS_5V0": 5.152, "VIN": 19.78},
    THOR_72: {"VDD_GPU": 37.528, "VDD_CPU_SOC_MSS": 9.012, "VIN_SYS_5V0": 5.152, "VIN": 87.426},
    JETPACK_4: {"POM_5V_IN": 1.75, "POM_5V_GPU": 0.0, "POM_5V_CPU": 0.366},
    NEGATIVE: {"VDD_GPU": -0.012, "VDD_CPU_SOC_MSS": 5.886},
}


@pytest.mark.parametrize("line", RAILS, ids=lambda line: line[-30:])
def test_rails_are_the_first_number_and_nothing_else_is_one(line):
    assert parse_line(line)["rails_w"] == pytest.approx(RAILS[line])


def test_load_clocks_and_temperatures():
    orin = parse_line(AGX_ORIN_72)
    assert (orin["gpu_percent"], orin["gpu_mhz"]) == (12, [1300, 1300])
    assert orin["temperatures_c"] == {"cpu": 52.968, "gpu": 47.625}
    assert parse_line(THOR_70)["gpu_percent"] is None
    assert parse_line(THOR_70)["gpu_mhz"] == [314, 314, 314]
    assert parse_line(NEGATIVE)["gpu_mhz"] == [] and parse_line(NEGATIVE)["gpu_percent"] is None
    assert parse_line(JETPACK_4)["gpu_mhz"] == [76]
    assert parse_line(JETPACK_4)["ram_mb"] == [1923, 3964]


def test_cores_that_are_off_and_sensors_that_are_off():
    found = parse_line(ORIN_NANO_PLAIN)
    assert found["cpu_percent"] == [0, None, None] and found["cpu_mhz"] == [1728, None, None]
    assert found["temperatures_c"] == {"cpu": 46.0}


@pytest.mark.parametrize("line", ["", "NVPMODEL WARN: \x00\xff", "VDD_IN mW/mW", "RAM 1/"])
def test_a_line_that_says_nothing_is_empty(line):
    assert parse_line(line)["rails_w"] == {}


def _program(root, text):
    program = root / "usr/bin/tegrastats"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(text)
    program.chmod(0o755)


def test_a_meter_on_its_lines(make_board):
    root = make_board("orin-nano")
    _program(root, f"#!/bin/sh\nwhile :; do echo '{ORIN_NANO_6}'; sleep 0.05; done\n")
    with tegrastats_meter(str(root)) as meter:
        assert (meter.name, meter.how, meter.scope) == ("tegrastats", "integrated", "module-input")
        meter.start()
        import time

        time.sleep(0.4)
        window = meter.stop()
    assert window.mean_w == pytest.approx(5.704, rel=1e-6)
    assert 2 < window.achieved_hz["VDD_IN"] <= 25 and window.sampler_cpu_share is not None
    assert window.rail_mj["VDD_SOC"] == pytest.approx(1624 * window.seconds)


def test_no_tegrastats_and_one_without_rails_say_so(make_board):
    root = make_board("orin-nano")
    assert "not installed" in tegrastats_meter(str(root)).reason
    _program(root, "#!/bin/sh\necho RAM 1/2MB\n")
    assert "prints no power rail" in tegrastats_meter(str(root)).reason
