"""NVIDIA boards and GPU architectures: precisions, power rails, meters; pure data and small lookups.

Sources: the power sections of NVIDIA's Jetson Linux Developer Guide (r35 to r39) and tegrastats lines of each
board for the rails, the device trees of Jetson Linux for the module numbers, TensorRT's and TensorRT-RTX's
support matrices for precisions by compute capability, its modules' data sheets for memory. Nothing
here was read from a board by us; Thor's module and
architecture number are believed, not verified.
Standard library only, Python 3.8: this file travels to the device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# A builder holds the weights, their reordered copies and its workspace; below this it is killed (believed).
_LEAST_MEMORY_BYTES = 256 * 2**20
_MEMORY_PER_BYTE = 3
# What a total covers; a figure of energy is told with it.
MODULE_INPUT = "module-input"
CARRIER_INPUT = "carrier-input"
PARTIAL_SUM = "sum-of-rails(partial)"


@dataclass(frozen=True)
class Rail:
    """One measured supply line.

    Attributes:
        label: as ``in{N}_label`` of hwmon and tegrastats write it.
        measures: what hangs on it.
        driver: the kernel driver of its sensor, ``ina3221`` (mV and mA) or ``ina238`` (µW).
        address: the sensor's I²C address, ``0x40``; None where it is not known: match the label.
    """

    label: str
    measures: str
    driver: str = "ina3221"
    address: str | None = None


@dataclass(frozen=True)
class Board:
    """One board.

    Attributes:
        name: the target's name.
        title: as NVIDIA writes it.
        modules: the module's number in ``/proc/device-tree/compatible``; a prefix.
        compute_capability: of its GPU.
        jetpack: the first JetPack of each line that supports it.
        rails: the ones to record; channels that a board labels otherwise (``NC``) are skipped.
        total: the rail that holds the whole; None where no rail does.
        scope: what the total covers, or that a sum of rails is partial.
        summed: the rails whose sum is told, as partial, where `total` is None or its sensor is absent.
        meters: by preference.
        dla: it has deep-learning accelerators (edgeml names them and does not use them).
        memory_gb: of its modules, the smallest first; CPU and GPU share it. What is free is the probe's to tell.
    """

    name: str
    title: str
    modules: tuple[str, ...]
    compute_capability: str
    jetpack: tuple[str, ...]
    rails: tuple[Rail, ...]
    total: str | None
    scope: str
    summed: tuple[str, ...] = ()
    meters: tuple[str, ...] = ("ina3221", "tegrastats")
    dla: bool = False
    memory_gb: tuple[int, ...] = ()

    @property
    def precisions(self) -> tuple[str, ...]:
        """What its GPU executes."""
        return precisions_of(self.compute_capability)


# VDD_IN is the module's whole input: the other two lie inside it, and CPU and GPU share one.
_ORIN_NANO_NX = (
    Rail("VDD_IN", "the whole module", address="0x40"),
    Rail("VDD_CPU_GPU_CV", "CPU, GPU and vision accelerators together", address="0x40"),
    Rail("VDD_SOC", "the rest of the SoC", address="0x40"),
)

BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        Board(
            "jetson-orin-nano",
            "Jetson Orin Nano",
            ("p3767-0003", "p3767-0004", "p3767-0005"),
            "SM87",
            ("5.1.1", "6.0", "7.2"),
            _ORIN_NANO_NX,
            total="VDD_IN",
            scope=MODULE_INPUT,
            memory_gb=(4, 8),
        ),
        Board(
            "jetson-orin-nx",
            "Jetson Orin NX",
            ("p3767-0000", "p3767-0001"),
            "SM87",
            ("5.1", "6.0", "7.2"),
            _ORIN_NANO_NX,
            total="VDD_IN",
            scope=MODULE_INPUT,
            dla=True,
            memory_gb=(8, 16),
        ),
        Board(
            "jetson-agx-orin",
            "Jetson AGX Orin",
            ("p3701-",),
            "SM87",
            ("5.0", "6.0", "7.2"),
            (
                Rail("VDD_GPU_SOC", "GPU and SoC", address="0x40"),
                Rail("VDD_CPU_CV", "CPU and vision accelerators", address="0x40"),
                Rail("VIN_SYS_5V0", "the 5 V system supply, memory included", address="0x40"),
                # Fed by VIN_SYS_5V0 (believed): adding it would count it twice.
                Rail("VDDQ_VDD2_1V8AO", "memory I/O and always-on", address="0x41"),
            ),
            total=None,
            scope=PARTIAL_SUM,
            summed=("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
            dla=True,
            memory_gb=(32, 64),
        ),
        Board(
            "jetson-thor",
            "Jetson AGX Thor",
            ("p3834-",),
            "SM110",
            ("7.0", "7.2"),
            (
                Rail("VDD_GPU", "GPU"),
                Rail("VDD_CPU_SOC_MSS", "CPU, SoC and memory subsystem"),
                Rail("VIN_SYS_5V0", "the 5 V system supply"),
                # On the carrier's own sensor, which may be absent.
                Rail("VIN", "the whole carrier board", driver="ina238"),
            ),
            total="VIN",
            scope=CARRIER_INPUT,
            summed=("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
            meters=("ina238", "ina3221", "tegrastats"),
            memory_gb=(64, 128),
        ),
    )
}

# What tensor cores and TensorRT execute by architecture; FP8 came with Ada and Hopper, FP4 with Blackwell.
_TURING = ("fp32", "fp16", "int8", "int4")
_AMPERE = ("fp32", "bf16", "fp16", "int8", "int4")
_ADA = (*_AMPERE, "fp8")
_BLACKWELL = (*_ADA, "fp4")
CAPABILITIES: dict[str, tuple[str, ...]] = {
    "SM75": _TURING,
    "SM80": _AMPERE,
    "SM86": _AMPERE,
    "SM87": _AMPERE,
    "SM89": _ADA,
    "SM90": _ADA,
    "SM100": _BLACKWELL,
    "SM103": _BLACKWELL,
    "SM110": _BLACKWELL,
    "SM120": _BLACKWELL,
    "SM121": _BLACKWELL,
}
# Thor's number before CUDA 13 (believed).
_RENAMED = {"SM101": "SM110"}


def capability_name(word: str) -> str:
    """A compute capability as this table writes it.

    Raises:
        ValueError: it is none, or one that is not in the table.

    >>> capability_name("8.7"), capability_name("sm_87"), capability_name("12.0")
    ('SM87', 'SM87', 'SM120')
    """
    match = re.match(r"^(?:sm_?)?(\d{2,3})$|^(\d{1,2})\.(\d)$", word.strip().lower())
    number = match and (match.group(1) or match.group(2) + match.group(3))
    name = f"SM{number}"
    name = _RENAMED.get(name, name)
    if name not in CAPABILITIES:
        raise ValueError(
            f"compute capability {word!r} is not known; known: {', '.join(CAPABILITIES)}"
        )
    return name


def precisions_of(capability: str) -> tuple[str, ...]:
    """What a GPU of that compute capability executes.

    Raises:
        ValueError: it is not in the table.

    >>> "fp8" in precisions_of("SM86"), "fp8" in precisions_of("SM89")
    (False, True)
    """
    return CAPABILITIES[capability_name(capability)]


def lowest_capability(precision: str) -> str | None:
    """The oldest GPU architecture that executes a precision; None where none does.

    >>> lowest_capability("fp8"), lowest_capability("fp16")
    ('SM89', 'SM75')
    """
    return next((name for name, known in CAPABILITIES.items() if precision in known), None)


def find_board(model: str, compatible: str = "") -> Board | None:
    """The board that a device says it is; None where the table has none like it.

    Args:
        model: the text of ``/proc/device-tree/model``.
        compatible: of ``/proc/device-tree/compatible``; decides where it names a module, as an Orin NX
            sits on the same carrier as an Orin Nano.

    >>> find_board("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super").name
    'jetson-orin-nano'
    >>> find_board("NVIDIA Jetson", "nvidia,p3768-0000+p3767-0000\\0nvidia,tegra234").name
    'jetson-orin-nx'
    """
    modules = compatible.lower()
    for board in BOARDS.values():
        if any(number in modules for number in board.modules):
            return board
    text = " ".join(model.lower().replace("\0", " ").split())
    for board in BOARDS.values():
        words = board.name.replace("jetson-", "").replace("-", " ")
        if words in text:
            return board
    return None


def build_memory_bytes(model_bytes: int) -> int:
    """About how much free memory building an engine from files of that size takes.

    >>> build_memory_bytes(100_000_000)
    568435456
    """
    return _LEAST_MEMORY_BYTES + _MEMORY_PER_BYTE * model_bytes
