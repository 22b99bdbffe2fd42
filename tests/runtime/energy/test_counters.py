"""RAPL and NVML: counters that wrap, begin anew, or may not be read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from edgeml.runtime.energy import rapl
from edgeml.runtime.energy.meter import CounterReset, MeterError
from edgeml.runtime.energy.nvml import nvml_meter
from edgeml.runtime.energy.rapl import RaplMeter, rapl_meter

RANGE_UJ = 262143328850


def make_zones(root, zones):
    for name, (label, energy) in zones.items():
        zone = root / "sys/class/powercap" / name
        zone.mkdir(parents=True)
        (zone / "name").write_text(label + "\n")
        (zone / "energy_uj").write_text(f"{energy}\n")
        (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return root


@pytest.fixture
def zones(tmp_path):
    made = {
        "intel-rapl:0": ("package-0", 1_000_000),
        "intel-rapl:0:0": ("core", 5),
        "intel-rapl:0:1": ("dram", 2_000_000),
        "intel-rapl:1": ("package-1", RANGE_UJ - 1_000_000),
        "intel-rapl:2": ("psys", 7),
    }
    return make_zones(tmp_path, made)


def counted(meter, zones, after, seconds=10.0):
    """One window of so many seconds at whose end the counters stand at `after`."""
    now = [0.0]
    meter._clock = lambda: now[0]
    meter.start()
    now[0] = seconds
    for name, energy in after.items():
        (zones / "sys/class/powercap" / name / "energy_uj").write_text(f"{energy}\n")
    return meter.stop()


def test_packages_are_the_total_and_memory_is_told_beside_it(zones):
    meter = rapl_meter(str(zones))
    assert isinstance(meter, RaplMeter) and meter.scope == "cpu-package"
    assert meter.rails == ("package-0", "dram-0", "package-1")
    assert meter.total_rails == ("package-0", "package-1")
    window = counted(meter, zones, {"intel-rapl:0": 41_000_000, "intel-rapl:0:1": 12_000_000})
    assert window.total_mj == pytest.approx(40_000) and window.mean_w == pytest.approx(4)
    assert window.rail_mj["dram-0"] == pytest.approx(10_000)
    assert window.achieved_hz == {}


def test_a_counter_that_wraps_goes_on(zones):
    window = counted(rapl_meter(str(zones)), zones, {"intel-rapl:1": 2_000_000})
    # One µJ from the top to zero.
    assert window.rail_mj["package-1"] == pytest.approx((1_000_000 + 1 + 2_000_000) / 1e3)


def test_a_counter_that_began_anew_is_no_wrap(zones):
    with pytest.raises(CounterReset, match="package-0 went backwards"):
        counted(rapl_meter(str(zones)), zones, {"intel-rapl:0": 0})


def test_a_window_in_which_it_may_wrap_twice_is_refused(zones):
    with pytest.raises(MeterError, match="take at most 262 s"):
        counted(rapl_meter(str(zones)), zones, {}, seconds=300)


def test_no_permission_says_what_to_do(zones, monkeypatch):
    def refuse(zone):
        raise PermissionError(13, "Permission denied", str(zone / "energy_uj"))

    monkeypatch.setattr(rapl, "_counter", refuse)
    meter = rapl_meter(str(zones))
    assert meter.how == "unavailable" and "readable by root only" in meter.reason


def test_a_counter_that_vanishes_is_told(zones):
    meter = rapl_meter(str(zones))
    meter.start()
    (zones / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    with pytest.raises(MeterError, match="cannot be read"):
        meter.stop()


class FakeNvml:
    """The functions that are used, as nvidia-ml-py has them."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, counters=(), lacks=()):
        self.counters, self.lacks, self.calls = list(counters), lacks, []

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls.append(name)
            if name in self.lacks:
                raise self.NVMLError("Not Supported")
            if name == "nvmlDeviceGetTotalEnergyConsumption":
                return self.counters.pop(0)
            return {
                "nvmlDeviceGetClockInfo": {1: 1980, 2: 2619}.get(arguments[-1] if arguments else 0),
                "nvmlDeviceGetTemperature": 41,
                "nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x20,
                "nvmlDeviceGetEnforcedPowerLimit": 700_000,
                "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=1, total=2),
                "nvmlDeviceGetName": b"NVIDIA H100",
                "nvmlSystemGetDriverVersion": "580.1",
                "nvmlDeviceGetPerformanceState": 0,
            }.get(name)

        return call


def test_nvml_takes_the_difference_of_its_counter():
    fake = FakeNvml([5, 1000, 4500])
    with nvml_meter(0, fake) as meter:
        assert (meter.how, meter.scope, meter.rails) == ("counter", "gpu-board", ("gpu0",))
        assert meter.shortest_window_s == 10
        meter.start()
        assert meter.stop().total_mj == 3500
        found = meter.conditions()
    assert found["throttling"] == ["software power cap", "software thermal slowdown"]
    assert found["power_limit_w"] == 700 and found["clocks_mhz"] == {"sm": 1980, "memory": 2619}
    assert found["gpu"] == "NVIDIA H100" and found["temperatures_c"] == {"gpu": 41}
    assert fake.calls[-1] == "nvmlShutdown"


def test_nvml_counter_that_began_anew():
    meter = nvml_meter(0, FakeNvml([5, 1000, 3]))
    meter.start()
    with pytest.raises(CounterReset, match="began anew"):
        meter.stop()


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("nvmlInit", "no NVIDIA driver"),
        ("nvmlDeviceGetTotalEnergyConsumption", "no energy counter"),
    ],
)
def test_no_driver_and_no_counter_are_told(lacks, said):
    meter = nvml_meter(0, FakeNvml([1], (lacks,)))
    assert meter.how == "unavailable" and said in meter.reason


def test_what_a_gpu_lacks_is_left_out():
    lacks = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetEnforcedPowerLimit")
    found = nvml_meter(0, FakeNvml([1], lacks)).conditions()
    assert "power_limit_w" not in found and "throttling" not in found


def test_without_a_driver_the_real_library_says_so():
    pytest.importorskip("pynvml")
    meter = nvml_meter()
    if meter.reason is None:
        pytest.skip("this machine has a GPU")
    assert "no NVIDIA driver answers" in meter.reason


def test_nvml_counts_the_gpu_that_engines_run_on(monkeypatch):
    """CUDA_VISIBLE_DEVICES=1: CUDA's first is not NVML's."""
    from edgeml.runtime.energy import nvml

    class TwoGpus(FakeNvml):
        def nvmlDeviceGetHandleByPciBusId(self, bus):
            assert bus == b"0000:41:00.0"
            return "second"

        def nvmlDeviceGetIndex(self, handle):
            assert handle == "second"
            return 1

    monkeypatch.setattr(nvml, "first_cuda_gpu", lambda: b"0000:41:00.0")
    assert nvml_meter(None, TwoGpus([5])).rails == ("gpu1",)
    monkeypatch.setattr(nvml, "first_cuda_gpu", lambda: None)
    assert nvml_meter(None, FakeNvml([5])).rails == ("gpu0",)
