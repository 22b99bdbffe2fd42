"""Clocks, temperatures, fan and power mode of a board, read without root."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def board_conditions(root: str = "/") -> dict[str, Any]:
    """What a power figure depends on besides the work; what cannot be read is left out.

    Returns:
        ``power_mode`` (nvpmodel's number and name), ``cpu_mhz`` by core, ``clocks_mhz`` by devfreq device
        (the GPU among them), ``temperatures_c`` by zone, ``fan_rpm``, ``governor``.
    """
    found = {
        "power_mode": power_mode(root),
        "governor": _read(Path(root, "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "cpu_mhz": _cpu_mhz(root),
        "clocks_mhz": _device_mhz(root),
        "temperatures_c": temperatures_c(root),
        "fan_rpm": _fan_rpm(root),
    }
    return {name: value for name, value in found.items() if value}


def power_mode(root: str = "/") -> str | None:
    """nvpmodel's mode by its own state file, as in ``2 15W``; None where there is none."""
    match = re.search(r"pmode:\s*(\d+)", _read(Path(root, "var/lib/nvpmodel/status")) or "")
    if match is None:
        return None
    number = int(match.group(1))
    table = _read(Path(root, "etc/nvpmodel.conf")) or ""
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", table)
    name = {int(n): word for n, word in names}.get(number)
    return f"{number} {name}" if name else str(number)


def temperatures_c(root: str = "/") -> dict[str, float]:
    """By thermal zone; zones that are off or cannot be read are left out."""
    found = {}
    for zone in sorted(Path(root, "sys/class/thermal").glob("thermal_zone*")):
        name, value = _read(zone / "type"), _read(zone / "temp")
        try:
            celsius = int(value or "") / 1e3
        except ValueError:
            continue
        if name and celsius > -200:
            found[name] = celsius
    return found


def _cpu_mhz(root: str) -> list[float | None]:
    cores = Path(root, "sys/devices/system/cpu").glob("cpu[0-9]*")
    clocks = [
        _mhz(core / "cpufreq/scaling_cur_freq", 1e3)
        for core in sorted(cores, key=lambda core: int(core.name[3:]))
    ]
    return clocks if any(clocks) else []


def _device_mhz(root: str) -> dict[str, float]:
    found = {}
    for device in sorted(Path(root, "sys/class/devfreq").glob("*")):
        clock = _mhz(device / "cur_freq", 1e6)
        if clock is not None:
            found[device.name] = clock
    return found


def _fan_rpm(root: str) -> int | None:
    for file in sorted(Path(root, "sys/class/hwmon").glob("hwmon*/rpm")):
        text = _read(file)
        if text and text.isdigit():
            return int(text)
    return None


def _mhz(file: Path, divisor: float) -> float | None:
    try:
        return int(_read(file) or "") / divisor
    except ValueError:
        return None


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None
