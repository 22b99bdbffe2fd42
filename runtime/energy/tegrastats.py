"""NVIDIA's tegrastats, where the sensors themselves cannot be read: `parse_line` and a meter on it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .integrated_meter import IntegratedMeter
from .meter import Meter
from .none import NoMeter
from .rails import plan_rails, this_board

# Each line makes it read some fifty files: ten a second is a compromise, and the achieved rate is told.
INTERVAL_MS = 100
FIRST_LINE_S = 5.0

# ``VDD_IN 4761mW/4778mW``, JetPack 7.2 ``…mW/…mW/…mW``, JetPack 4 ``POM_5V_IN 1563/1563``. The first
# number is now; the second, an average, is wrong on 7.2. ``RAM 775/7620MB`` must not match.
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (-?\d+)(?:mW\b|(?=/-?\d+(?![\w.])))")
_GPU = re.compile(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+)\]?)?")
_CPU = re.compile(r"\bCPU \[([^\]]*)\]")
_TEMPERATURE = re.compile(r"\b([A-Za-z][\w-]*)@(-?\d+(?:\.\d+)?)C\b")
_MEMORY = re.compile(r"\bRAM (\d+)/(\d+)MB")
# Sensors that are off read as absolute zero (JetPack 6: ``cv0@-256C``).
_OFF_C = -200.0


def parse_line(line: str) -> dict[str, Any]:
    """What one line says; what it leaves out is None or empty.

    Returns:
        ``rails_w`` by name (negative ones as they are), ``gpu_percent``, ``gpu_mhz`` (a list, one a
        cluster), ``cpu_percent`` and ``cpu_mhz`` by core (None where it is off), ``temperatures_c``,
        ``ram_mb`` (used, all).

    >>> parse_line("RAM 1/2MB CPU [2%@729,off] GR3D_FREQ 0% tj@41.5C VDD_IN -40mW/4778mW")["rails_w"]
    {'VDD_IN': -0.04}
    """
    gpu, cpu, memory = _GPU.search(line), _CPU.search(line), _MEMORY.search(line)
    percents, clocks = [], []
    for core in cpu.group(1).split(",") if cpu else ():
        match = re.match(r"(\d+)%(?:@(\d+))?$", core.strip())
        percents.append(int(match.group(1)) if match else None)
        clocks.append(int(match.group(2)) if match and match.group(2) else None)
    temperatures = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    return {
        "rails_w": {name: int(now) / 1e3 for name, now in _RAIL.findall(line)},
        "gpu_percent": int(gpu.group(1)) if gpu and gpu.group(1) else None,
        "gpu_mhz": [int(n) for n in gpu.group(2).split(",") if n] if gpu and gpu.group(2) else [],
        "cpu_percent": percents,
        "cpu_mhz": clocks,
        "temperatures_c": {n: t for n, t in temperatures.items() if t > _OFF_C},
        "ram_mb": [int(memory.group(1)), int(memory.group(2))] if memory else None,
    }


def tegrastats_meter(root: str = "/") -> Meter:
    """A meter on tegrastats' lines, or a `NoMeter` that says why it cannot be.

    Args:
        root: where ``usr/bin/tegrastats`` and ``proc`` lie; the machine's own is found on PATH too.
    """
    program = Path(root, "usr/bin/tegrastats")
    found = (
        str(program) if program.exists() else shutil.which("tegrastats") if root == "/" else None
    )
    if found is None:
        return NoMeter("tegrastats is not installed: this is no Jetson", "tegrastats")
    line = _first_line([found, "--interval", str(INTERVAL_MS)])
    if line is None:
        return NoMeter(f"{found} printed no line within {FIRST_LINE_S:g} s", "tegrastats")
    labels = list(parse_line(line)["rails_w"])
    if not labels:
        return NoMeter(f"{found} prints no power rail", "tegrastats")
    return TegrastatsMeter(
        "tegrastats",
        plan_rails(this_board(root), labels),
        {"command": [found, "--interval", str(INTERVAL_MS)]},
        root,
    )


class TegrastatsMeter(IntegratedMeter):
    """Its lines are stamped when they arrive and parsed after the window."""

    def samples(self, found: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
        samples: dict[str, list[tuple[float, float]]] = {rail: [] for rail in self.rails}
        for when, line in found["lines"]:
            for rail, watts in parse_line(line)["rails_w"].items():
                if rail in samples:
                    samples[rail].append((when, watts))
        return samples


def _first_line(command: list[str]) -> str | None:
    try:
        program = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
    except OSError:
        return None
    import select

    try:
        readable = select.select([program.stdout], [], [], FIRST_LINE_S)[0]
        return program.stdout.readline().decode("ascii", "replace") if readable else None
    finally:
        program.terminate()
        program.stdout.close()
        try:
            program.wait(2)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
