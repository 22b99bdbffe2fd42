"""What the power sampling costs, and what it catches, on this machine against a made sysfs tree.

    python benchmarks/energy_sampler.py [--seconds 10] [--repeats 5]

Three rails of a made Orin Nano, and six files a sample of a made AGX Orin (its total is a sum of three):
achieved rates, the sampling process's share of one core (to be < 2 %), the shift of a small loop's p50 with
sampling on and off in alternating blocks, and the error of a square wave's integral (to be ≤ 1 %). A real
sensor takes about 0.5 ms a read on its bus; that is waiting, not CPU time, and it is not in here.

Writes benchmarks/results/energy_sampler.json and energy_sampler.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from edgeml.artifact.machine import cpu_times, describe_machine, noise_warning
from edgeml.runtime.energy.ina3221 import ina3221_meter
from edgeml.runtime.energy.method import sampling_shift

RESULTS = Path(__file__).resolve().parent / "results"
BOARDS = {
    "orin-nano": ("NVIDIA Jetson Orin Nano", ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")),
    "agx-orin": ("NVIDIA Jetson AGX Orin", ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")),
}
LOW_MA, HIGH_MA, MV = 400, 2400, 5000


def make_tree(root: Path, model: str, rails: tuple[str, ...]) -> Path:
    """A board with one INA3221; the first rail's current file, which the square wave is written to."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/model").write_text(model)
    hwmon = root / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    hwmon.mkdir(parents=True)
    for n, label in enumerate(rails, 1):
        (hwmon / f"in{n}_label").write_text(label)
        (hwmon / f"in{n}_input").write_text(f"{MV:04d}\n")
        (hwmon / f"curr{n}_input").write_text(f"{LOW_MA:04d}\n")
    return hwmon / "curr1_input"


def square_wave(meter, file: Path, seconds: float) -> float:
    """Relative error of one window's first rail against what was written, and when."""
    switches: list[tuple[float, float]] = []
    stop = threading.Event()

    def write() -> None:
        handle, level = os.open(file, os.O_WRONLY), LOW_MA
        while not stop.wait(0.2):
            level = HIGH_MA + LOW_MA - level
            before = time.monotonic()
            os.pwrite(handle, b"%04d\n" % level, 0)
            switches.append(((before + time.monotonic()) / 2, level * MV * 1e-6))
        os.pwrite(handle, b"%04d\n" % LOW_MA, 0)
        os.close(handle)

    writer = threading.Thread(target=write)
    meter.start()
    begin = time.monotonic()
    writer.start()
    time.sleep(seconds)
    window = meter.stop()
    stop.set()
    writer.join()
    end, truth, at, watts = begin + window.seconds, 0.0, begin, LOW_MA * MV * 1e-6
    for when, level in [*switches, (end, 0.0)]:
        truth += max(0.0, min(when, end) - at) * watts
        at, watts = min(when, end), level
    return window.rail_mj[meter.rails[0]] / 1e3 / truth - 1


def measure(board: str, seconds: float, repeats: int) -> dict:
    model, rails = BOARDS[board]
    weights = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="edgeml-sampler-") as folder:
        file = make_tree(Path(folder), model, rails)
        with ina3221_meter(folder) as meter:
            windows = []
            for _ in range(repeats):
                meter.start()
                time.sleep(seconds)
                windows.append(meter.stop())
            errors = [square_wave(meter, file, seconds) for _ in range(repeats)]
            shift = sampling_shift(lambda: weights @ weights, meter)
    return {
        "board": board,
        "windows": repeats,
        "window_s": seconds,
        "achieved_hz": {
            rail: statistics.median(w.achieved_hz[rail] for w in windows) for rail in rails
        },
        "cpu_share": statistics.median(w.sampler_cpu_share for w in windows),
        "cpu_share_most": max(w.sampler_cpu_share for w in windows),
        "p50_shift": shift,
        "square_wave_errors": errors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    before = cpu_times()
    found = [measure(board, options.seconds, options.repeats) for board in BOARDS]
    machine, noise = describe_machine(), noise_warning(before, cpu_times())
    lines = [
        f"On {machine['cpu']}, {machine['cores']} cores; made sysfs, {options.repeats} windows of "
        f"{options.seconds:g} s." + (f" Warning: {noise}." if noise else ""),
        "",
        "| board | total Hz | slowest Hz | CPU share (most) | p50 shift | square wave error, median (worst) |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        rates = row["achieved_hz"].values()
        worst = max(row["square_wave_errors"], key=abs)
        lines.append(
            f"| {row['board']} | {max(rates):.1f} | {min(rates):.1f} | {row['cpu_share']:.2%} "
            f"({row['cpu_share_most']:.2%}) | {row['p50_shift']:+.2%} | "
            f"{statistics.median(row['square_wave_errors']):+.2%} ({worst:+.2%}) |"
        )
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": machine, "warning": noise, "boards": found}
    (RESULTS / "energy_sampler.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "energy_sampler.md").write_text(text)
    missed = [
        row
        for row in found
        if row["cpu_share"] >= 0.02 or abs(statistics.median(row["square_wave_errors"])) > 0.01
    ]
    sys.exit(f"missed: {', '.join(r['board'] for r in missed)}" if missed else 0)


if __name__ == "__main__":
    main()
