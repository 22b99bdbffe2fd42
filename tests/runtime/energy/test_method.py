"""Idle, windows, gross and net, on a clock of our own."""

from __future__ import annotations

import pytest
from edgeml.runtime.energy.meter import CounterReset, Meter, MeterError, Window
from edgeml.runtime.energy.method import measure_energy, sampling_shift
from edgeml.runtime.energy.none import NoMeter


class Machine(Meter):
    """Draws `idle_w`, and `busy_mj` more for each inference of `inference_s`."""

    name, how, scope = "made", "integrated", "module-input"
    rails = total_rails = ("VDD_IN",)

    def __init__(self, idle_w=5.0, busy_mj=20.0, inference_s=0.01, slower=0.0, resets=0):
        self.now, self.mj, self.metering = 0.0, 0.0, False
        self.idle_w, self.busy_mj, self.inference_s = idle_w, busy_mj, inference_s
        self.slower, self.resets, self.windows, self.hz = slower, resets, [], 100.0

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.mj += self.idle_w * seconds * 1e3

    def run(self):
        self.sleep(self.inference_s * (1 + self.slower * self.metering))
        self.mj += self.busy_mj

    def start(self):
        self.metering, self.begin = True, (self.now, self.mj)

    def stop(self):
        self.metering = False
        seconds, spent = self.now - self.begin[0], self.mj - self.begin[1]
        self.windows.append(seconds)
        if self.resets:
            self.resets -= 1
            raise CounterReset("made: began anew")
        return Window(seconds, spent, {"VDD_IN": spent}, {"VDD_IN": self.hz}, 0.01)

    def conditions(self):
        return {"power_mode": "0 MAXN"}


def measure(machine, **options):
    return measure_energy(machine.run, machine, clock=machine.clock, sleep=machine.sleep, **options)


def test_gross_and_net_are_exact():
    reading = measure(Machine())
    # 10 ms at 5 W are 50 mJ, and 20 more.
    assert reading.gross_mj == pytest.approx(70) and reading.net_mj == pytest.approx(20)
    assert reading.idle_w == pytest.approx(5) and reading.mean_w == pytest.approx(7)
    assert reading.gross_mj_low == pytest.approx(70) == reading.gross_mj_high
    assert reading.rail_mj == {"VDD_IN": pytest.approx(70)}
    assert reading.inferences_per_s == pytest.approx(100)
    assert reading.conditions_after == {"power_mode": "0 MAXN"} and reading.warnings == []


def test_the_method_is_that_of_the_documents():
    machine = Machine()
    reading = measure(machine)
    idle, *windows = machine.windows[:6]
    assert idle == pytest.approx(10)
    assert windows == pytest.approx([10] * 5, abs=0.02) and reading.windows == 5
    assert reading.p50_shift == pytest.approx(0, abs=1e-9)


def test_a_batch_is_shared_by_its_samples():
    assert measure(Machine(), samples_per_run=4).gross_mj == pytest.approx(17.5)


def test_sampling_that_slows_is_warned_of():
    reading = measure(Machine(slower=0.05))
    assert reading.p50_shift == pytest.approx(0.05)
    assert "sampling moves the p50 by +5.0%" in reading.warnings


def test_a_slow_sampler_is_warned_of():
    machine = Machine()
    machine.hz = 10.0
    assert measure(machine).warnings == ["the total was sampled at 10 Hz, below 50"]


def test_a_window_that_a_reset_spoiled_is_done_again():
    machine = Machine(resets=2)
    assert measure(machine).gross_mj == pytest.approx(70)
    with pytest.raises(MeterError, match="began anew"):
        measure(Machine(resets=9))


def test_a_counter_has_no_sampler_to_shift_anything():
    machine = Machine()
    machine.how, machine.shortest_window_s = "counter", 12.0
    stop = machine.stop
    machine.stop = lambda: Window(**{**vars(stop()), "achieved_hz": {}, "sampler_cpu_share": None})
    reading = measure(machine, window_s=1, idle_s=1)
    assert reading.p50_shift is None and reading.sampler_cpu_share is None
    assert reading.window_s == 12 and machine.windows[0] == pytest.approx(12)


def test_a_colder_run_than_idle_is_told():
    assert "less than when idle" in measure(Machine(busy_mj=-1.0)).warnings[0]


def test_no_meter_is_a_reading_that_says_why():
    ran = []
    reading = measure_energy(lambda: ran.append(1), NoMeter("a virtual machine shows none", "rapl"))
    assert not ran and reading.how == "unavailable" and reading.gross_mj is None
    assert reading.as_json()["reason"] == "a virtual machine shows none"


def test_work_that_fails_ends_the_window():
    machine = Machine()

    def fail():
        raise ValueError("the engine broke")

    with pytest.raises(ValueError, match="the engine broke"):
        measure_energy(fail, machine, clock=machine.clock, sleep=machine.sleep, warmup_s=0)
    with pytest.raises(ValueError):
        sampling_shift(fail, machine, clock=machine.clock)
    assert not machine.metering
