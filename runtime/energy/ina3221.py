"""The INA3221 and INA238 power sensors of Jetson boards, through the kernel's hwmon. No root needed."""

from __future__ import annotations

from pathlib import Path

from .integrated_meter import IntegratedMeter
from .meter import Meter
from .none import NoMeter
from .rails import plan_rails, this_board

# hwmon's sysfs interface: in*_input in mV, curr*_input in mA, power*_input in µW
# (Documentation/hwmon/sysfs-interface.rst). Channel 7 of an INA3221 sums shunt voltages: no rail.
CHANNELS = (1, 2, 3)
UNCONNECTED = ("", "NC")


def ina3221_meter(root: str = "/") -> Meter:
    """The board's rails, or a `NoMeter` that says what is missing.

    Args:
        root: where ``sys`` and ``proc`` lie.
    """
    board = this_board(root)
    carrier = [r.label for r in board.rails if r.driver == "ina238"] if board else []
    try:
        files = find_rails(root, carrier[0] if carrier else "VIN")
    except PermissionError as e:
        return NoMeter(f"{e.filename} is not readable by this user", "ina3221")
    if not files:
        return NoMeter("no INA3221 or INA238 sensor in /sys: this is no Jetson board", "ina3221")
    plan = plan_rails(board, list(files))
    job = {"rails": {rail: files[rail] for rail in plan.rails}, "fast": plan.total}
    return IntegratedMeter("ina3221", plan, job, root)


def find_rails(root: str = "/", carrier: str = "VIN") -> dict[str, list[Path]]:
    """By label the files whose product is the rail's power in µW.

    The number of a hwmon directory varies from boot to boot, so labels decide. An INA238 has one channel
    and often no label: it is taken as the carrier's input.

    Raises:
        PermissionError: a sensor is there and cannot be read.
    """
    found: dict[str, list[Path]] = {}
    for driver in ("ina3221", "ina238"):
        for hwmon in sorted(Path(root, "sys/bus/i2c/drivers", driver).glob("*-*/hwmon/hwmon*")):
            rails = _ina3221(hwmon) if driver == "ina3221" else _ina238(hwmon, carrier)
            for label, files in rails.items():
                try:
                    for file in files:
                        int(file.read_text())
                except PermissionError:
                    raise
                except (OSError, ValueError):  # a channel that is off (in*_enable 0) gives ENODATA
                    continue
                found.setdefault(label, files)
    return found


def _ina3221(hwmon: Path) -> dict[str, list[Path]]:
    found = {}
    for n in CHANNELS:
        label = _label(hwmon / f"in{n}_label")
        files = [hwmon / f"in{n}_input", hwmon / f"curr{n}_input"]
        if label not in UNCONNECTED and all(file.exists() for file in files):
            found[label] = files
    return found


def _ina238(hwmon: Path, carrier: str) -> dict[str, list[Path]]:
    file = hwmon / "power1_input"
    if not file.exists():
        return {}
    label = _label(hwmon / "power1_label") or _label(hwmon / "in1_label")
    return {carrier if label in UNCONNECTED else label: [file]}


def _label(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except FileNotFoundError:
        return ""
