"""RAPL: the energy counters of x86 CPU packages, through the kernel's powercap."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable

from .conditions import board_conditions
from .meter import COUNTER, CPU_PACKAGE, CounterReset, Meter, MeterError, Window
from .none import NoMeter

# More than any package draws: in a shorter window than range / this the counter wraps at most once.
MOST_W = 1000.0


def rapl_meter(root: str = "/") -> Meter:
    """The CPU packages' counters, or a `NoMeter` that says why they cannot be read.

    Args:
        root: where ``sys`` lies.
    """
    zones = {}
    # ``intel-rapl:0`` is a package, ``intel-rapl:0:1`` a part of it (core, uncore) or its DRAM, which is
    # not in the package. AMD's counters have the same names. psys is another word for the platform.
    for zone in sorted(Path(root, "sys/class/powercap").glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
        except OSError:
            continue
        if ":" in zone.name.replace("intel-rapl:", "", 1) and name == "dram":
            name = "dram-" + zone.name.split(":")[1]
        elif not name.startswith("package"):
            continue
        zones[name] = zone
    packages = [name for name in zones if name.startswith("package")]
    if not packages:
        return NoMeter(
            "no /sys/class/powercap/intel-rapl: this CPU, kernel or virtual machine shows none",
            "rapl",
        )
    try:
        for zone in zones.values():
            _counter(zone)
    except PermissionError as e:
        # CVE-2020-8694: readable by root only since Linux 5.10.
        return NoMeter(
            f"{e.filename} is readable by root only; sudo chmod a+r it for this boot, or run as root",
            "rapl",
        )
    except OSError as e:
        return NoMeter(f"{e.filename} cannot be read: {e.strerror}", "rapl")
    return RaplMeter(zones, root)


class RaplMeter(Meter):
    """Counters in µJ that wrap at ``max_energy_range_uj``.

    Args:
        zones: their directories by name; ``package…`` make the total, ``dram…`` are told beside it.
        clock: seconds, monotonic.
    """

    name = "rapl"
    how = COUNTER
    scope = CPU_PACKAGE

    def __init__(
        self, zones: dict[str, Path], root: str = "/", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rails = tuple(zones)
        self.total_rails = tuple(name for name in zones if name.startswith("package"))
        self._zones, self._root, self._clock = zones, root, clock
        self._ranges = {
            name: int((zone / "max_energy_range_uj").read_text()) for name, zone in zones.items()
        }
        self._before: dict[str, int] = {}
        self._begin = 0.0

    def start(self) -> None:
        self._before = self._read()
        self._begin = self._clock()

    def stop(self) -> Window:
        seconds, after = self._clock() - self._begin, self._read()
        energy_mj = {}
        for name in self.rails:
            limit = self._ranges[name]
            if seconds * MOST_W * 1e6 > limit:
                raise MeterError(
                    f"rapl: {name} may wrap twice in a window of {seconds:.0f} s; "
                    f"take at most {limit / 1e6 / MOST_W:.0f} s"
                )
            spent = after[name] - self._before[name]
            if spent < 0:
                spent += limit + 1
            if spent > seconds * MOST_W * 1e6 + 1e6:
                raise CounterReset(f"rapl: {name} went backwards by other than a wrap")
            energy_mj[name] = spent / 1e3
        return Window(
            seconds=seconds,
            total_mj=sum(energy_mj[name] for name in self.total_rails),
            rail_mj=energy_mj,
        )

    def conditions(self) -> dict[str, Any]:
        return board_conditions(self._root)

    def _read(self) -> dict[str, int]:
        try:
            return {name: _counter(zone) for name, zone in self._zones.items()}
        except OSError as e:
            raise MeterError(f"rapl: {e.filename} cannot be read: {e.strerror}") from e


def _counter(zone: Path) -> int:
    return int((zone / "energy_uj").read_text())
