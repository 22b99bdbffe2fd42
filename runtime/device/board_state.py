"""What a board says of itself while it works: power mode, clocks, temperatures, fan, throttling.

All is read from files, without root and without NVIDIA's tools; `root` is where ``sys``, ``etc`` and ``proc``
lie, so that made trees can be read. A file that is absent or refuses is a None, never an error.
"""

from __future__ import annotations

import glob
import os
import re
from typing import Any

# devfreq's names of the GPU by L4T: 35 has ga10b and gv11b, 36 and later gpu, Thor gb10b (believed).
_GPU = re.compile(r"gpu|ga10b|gv11b|gb10b")


def read_text(path: str) -> str | None:
    """A file's text without its end, or None. Device-tree texts end in a zero byte."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None


def read_number(path: str) -> float | None:
    """A file's number, or None."""
    text = read_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def under(root: str, path: str) -> str:
    """``/sys/…`` as it lies under `root`."""
    return os.path.join(root, path.lstrip("/"))


def find(root: str, pattern: str) -> list[str]:
    """Paths under `root` that match, in order; root's own brackets are no pattern."""
    return sorted(glob.glob(under(glob.escape(root), pattern)))


def device_tree(name: str, root: str = "/") -> str | None:
    """A text of the device tree: ``model`` or ``compatible``. ``/proc/device-tree`` is a link to where it
    lies, and absent where ``/proc`` is another's (a container)."""
    text = read_text(under(root, "/proc/device-tree/" + name))
    return read_text(under(root, "/sys/firmware/devicetree/base/" + name)) if text is None else text


def temperatures_c(root: str = "/") -> dict[str, float]:
    """°C by thermal zone; zones that cannot be read (a switched-off block) are left out."""
    found = {}
    for zone in find(root, "/sys/class/thermal/thermal_zone*"):
        name, value = read_text(zone + "/type"), read_number(zone + "/temp")
        if name and value is not None and value > -100000:
            found[name] = value / 1e3
    return found


def hottest_c(root: str = "/") -> float | None:
    """The hottest zone, °C; on a Jetson that is tj-thermal."""
    return max(temperatures_c(root).values(), default=None)


def clocks(root: str = "/") -> dict[str, Any]:
    """GPU and CPU clocks in MHz, whether they are pinned (min = max), and the CPU's governor."""
    gpu_mhz = gpu_max_mhz = cpu_mhz = cpu_max_mhz = None
    pinned = []
    for device in find(root, "/sys/class/devfreq/*"):
        if not _GPU.search(os.path.basename(device)):
            continue
        gpu_mhz = _scaled(device + "/cur_freq", 1e6)
        gpu_max_mhz = _scaled(device + "/max_freq", 1e6)
        pinned.append((read_text(device + "/min_freq"), read_text(device + "/max_freq")))
        break
    cores = find(root, "/sys/devices/system/cpu/cpu[0-9]*/cpufreq")
    if cores:
        speeds = [s for s in (_scaled(c + "/scaling_cur_freq", 1e3) for c in cores) if s]
        cpu_mhz = max(speeds) if speeds else None
        cpu_max_mhz = _scaled(cores[0] + "/scaling_max_freq", 1e3)
        pinned.append(
            (read_text(cores[0] + "/scaling_min_freq"), read_text(cores[0] + "/scaling_max_freq"))
        )
    known = [pair for pair in pinned if None not in pair]
    return {
        "gpu_mhz": gpu_mhz,
        "gpu_max_mhz": gpu_max_mhz,
        "cpu_mhz": cpu_mhz,
        "cpu_max_mhz": cpu_max_mhz,
        "locked": all(low == high for low, high in known) if known else None,
        "governor": read_text(cores[0] + "/scaling_governor") if cores else None,
    }


def _scaled(path: str, unit: float) -> float | None:
    value = read_number(path)
    return None if value is None else value / unit


def fan(root: str = "/") -> str | None:
    """The fan's duty and speed, as in ``pwm 88 of 255, 2140 rpm``; None where there is none."""
    duties, speeds = [], []
    for hwmon in find(root, "/sys/class/hwmon/hwmon*"):
        duty = read_number(hwmon + "/pwm1")
        speed = read_number(hwmon + "/rpm")
        speed = read_number(hwmon + "/fan1_input") if speed is None else speed
        if duty is not None:
            duties.append(f"pwm {duty:.0f} of 255")
        if speed is not None:
            speeds.append(f"{speed:.0f} rpm")
    return ", ".join(duties[:1] + speeds[:1]) or None


def throttle_counts(root: str = "/") -> dict[str, int]:
    """Throttling so far, by source: over-current events counted by the SoC (``oc*_event_cnt`` of hwmon's
    soctherm_oc) and cooling devices that are on now. Two readings of it tell what happened between."""
    found = {}
    for path in find(root, "/sys/class/hwmon/hwmon*/oc*_event_cnt"):
        value = read_number(path)
        if value is not None:
            found["over-current " + os.path.basename(path).split("_")[0]] = int(value)
    for device in find(root, "/sys/class/thermal/cooling_device*"):
        name, state = read_text(device + "/type"), read_number(device + "/cur_state")
        # The fan is a cooling device too, and no throttling.
        if name and state and "fan" not in name:
            found["cooling " + name] = int(state)
    return found


def throttled(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What grew between two `throttle_counts`, in words.

    >>> throttled({"over-current oc1": 2}, {"over-current oc1": 5, "cooling cpu-hot": 1})
    ['cooling cpu-hot: on', 'over-current oc1: 3 times']
    """
    lines = []
    for name in sorted(after):
        more = after[name] - before.get(name, 0)
        if name.startswith("cooling "):
            lines.append(f"{name}: on")
        elif more > 0:
            lines.append("{}: {} time{}".format(name, more, "s" * (more > 1)))
    return lines


def power_modes(root: str = "/") -> list[dict[str, Any]]:
    """The board's modes as ``{"id", "name"}``, from ``/etc/nvpmodel.conf``."""
    text = read_text(under(root, "/etc/nvpmodel.conf")) or ""
    pairs = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", text)
    return [{"id": int(number), "name": name} for number, name in pairs]


def active_mode(root: str = "/") -> str | None:
    """The active mode's name, from nvpmodel's own record ``pmode:0002``; None where it keeps none."""
    text = read_text(under(root, "/var/lib/nvpmodel/status")) or ""
    match = re.search(r"pmode:(\d+)", text)
    if match is None:
        return None
    names = {mode["id"]: mode["name"] for mode in power_modes(root)}
    return names.get(int(match.group(1)), f"mode {int(match.group(1))}")
