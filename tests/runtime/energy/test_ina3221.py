"""Which rails a board has, which of them is the whole, and what their integral is."""

from __future__ import annotations

import os
import threading
import time

import pytest
from edgeml.runtime.energy.ina3221 import find_rails, ina3221_meter
from edgeml.runtime.energy.meter import MeterError, find_meter
from edgeml.runtime.energy.rails import plan_rails

# board: scope, rails of the total, watts of the total, all rails.
WANTED = {
    "orin-nano": ("module-input", ("VDD_IN",), 4.5, {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}),
    "orin-nx": ("module-input", ("VDD_IN",), 6.0, {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}),
    "agx-orin": (
        "sum-of-rails(partial)",
        ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
        10.0,
        {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"},
    ),
    "thor": (
        "carrier-input",
        ("VIN",),
        24.0,
        {"VIN", "VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"},
    ),
    "thor-without-carrier-sensor": (
        "sum-of-rails(partial)",
        ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
        14.6,
        {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"},
    ),
}


@pytest.mark.parametrize("board", WANTED)
def test_the_total_of_a_board_is_told_with_its_scope(board, make_board):
    scope, total, watts, rails = WANTED[board]
    with ina3221_meter(str(make_board(board))) as meter:
        assert meter.reason is None and (meter.scope, meter.total_rails) == (scope, total)
        assert set(meter.rails) == rails
        meter.start()
        time.sleep(0.15)
        window = meter.stop()
    assert window.mean_w == pytest.approx(watts, rel=1e-6)
    assert window.total_mj == pytest.approx(sum(window.rail_mj[r] for r in total))


def test_unconnected_channels_and_the_sum_of_shunts_are_no_rails(make_board):
    assert list(find_rails(str(make_board("agx-orin")))) == [
        "VDD_GPU_SOC",
        "VDD_CPU_CV",
        "VIN_SYS_5V0",
        "VDDQ_VDD2_1V8AO",
    ]


def test_no_sensor_is_told(tmp_path):
    meter = ina3221_meter(str(tmp_path))
    assert (meter.name, meter.how) == ("ina3221", "unavailable")
    assert "no INA3221 or INA238 sensor" in meter.reason
    with pytest.raises(MeterError, match="no energy meter: "):
        meter.start()


def test_a_board_that_the_table_does_not_know_sums_what_it_has(make_board):
    root = make_board("agx-orin")
    (root / "proc/device-tree/model").write_text("My own carrier")
    (root / "proc/device-tree/compatible").write_text("acme,board")
    meter = ina3221_meter(str(root))
    assert meter.scope == "sum-of-rails(partial)" and len(meter.total_rails) == 4


def test_find_meter_prefers_the_boards_rails_and_keeps_where(make_board):
    with find_meter("cuda", root=str(make_board("thor")), where="emulated") as meter:
        assert (meter.name, meter.where) == ("ina3221", "emulated")


def test_find_meter_says_what_it_looked_for(tmp_path):
    meter = find_meter("cpu", root=str(tmp_path))
    assert meter.name == "none"
    assert "ina3221: no INA" in meter.reason and "tegrastats: " in meter.reason
    assert "rapl: no /sys/class/powercap" in meter.reason


def _square_wave(meter, current):
    """A window while a writer switches the current: its error against what was written, and when."""
    low, high, switches = 400, 2400, []  # at 5 V: 2 W and 12 W
    current.write_text("0400\n")
    stop = threading.Event()

    def write():
        file, level = os.open(current, os.O_WRONLY), low
        while not stop.wait(0.2):
            level = high if level == low else low
            before = time.monotonic()
            os.pwrite(file, b"%04d\n" % level, 0)
            switches.append(((before + time.monotonic()) / 2, level * 5e-3))
        os.close(file)

    writer = threading.Thread(target=write)
    meter.start()
    begin = time.monotonic()
    writer.start()
    time.sleep(2.5)
    window = meter.stop()
    end = begin + window.seconds
    stop.set()
    writer.join()
    truth, at, watts = 0.0, begin, low * 5e-3
    for when, level in [*switches, (end, 0.0)]:
        truth += (min(when, end) - at) * watts if when > at else 0.0
        at, watts = min(when, end), level
    return window, window.total_mj / 1e3 / truth - 1


def test_a_square_wave_is_integrated_to_one_percent_at_fifty_hertz(make_board):
    root = make_board("orin-nano")
    current = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input"
    with ina3221_meter(str(root)) as meter:
        # Writer and sampler want a core each at the right moment; a busy machine gives it now and then.
        for _ in range(4):
            window, error = _square_wave(meter, current)
            if abs(error) <= 0.01:
                break
    assert abs(error) <= 0.01
    assert window.achieved_hz["VDD_IN"] >= 50 and window.achieved_hz["VDD_SOC"] >= 5


def test_a_sampler_that_dies_is_told_and_leaves_no_process(make_board):
    root = make_board("orin-nano")
    meter = ina3221_meter(str(root))
    meter.start()
    child = meter._sampler._child
    child.kill()
    with pytest.raises(MeterError, match="ina3221: "):
        meter.stop()
    meter.close()
    assert child.poll() is not None


def test_the_sampler_ends_with_its_parent(make_board):
    meter = ina3221_meter(str(make_board("orin-nano")))
    meter.start()
    child = meter._sampler._child
    child.stdin.close()  # what the kernel does when the parent dies
    assert child.wait(3) is not None
    meter.close()


def test_a_channel_that_is_off_costs_itself_alone(make_board):
    root = make_board("orin-nano")
    files = find_rails(str(root))
    files["VDD_SOC"][0].write_text(
        ""
    )  # ENODATA of a real one reads as an OSError; both are no number
    assert list(find_rails(str(root))) == [name for name in files if name != "VDD_SOC"]


def test_rails_inside_a_carriers_input_are_not_added_to_it():
    plan = plan_rails(None, ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN"])
    assert (plan.total, plan.scope) == (("VIN",), "carrier-input")
