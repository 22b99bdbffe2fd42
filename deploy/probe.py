"""What a device is and has, as its agent found it: one round trip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..artifact.boards import BOARDS, Board, precisions_of
from ..artifact.row_text import significant
from .session import Session

# Probing reads files in seconds; before it a power mode that was left may be put back (120 s at most there).
PROBE_S = 260


@dataclass(frozen=True)
class DeviceFacts:
    """A probe's answer; `values` has the fields of ``docs/decisions/009-device-protocol.md``."""

    values: dict[str, Any]

    @property
    def emulated(self) -> bool:
        """A made device: its milliseconds, joules and watts mean nothing."""
        return bool(self._part("board").get("emulated"))

    @property
    def board(self) -> Board | None:
        """The row of the table, or None where it is no Jetson that the table knows."""
        return BOARDS.get(self._part("board").get("id") or "")

    @property
    def title(self) -> str:
        """What it is, for people: its board's name, else its model or CPU."""
        board = self._part("board").get("model")
        return board or self.values.get("cpu") or f"a {self.values.get('machine')} machine"

    @property
    def tensorrt(self) -> str | None:
        """Its version, or None."""
        return self._part("tensorrt").get("version")

    @property
    def tensorrt_builds(self) -> bool:
        """Whether anything there builds TensorRT engines: the bindings with numpy, or trtexec."""
        bindings = self._part("tensorrt").get("bindings") and self.values.get("numpy")
        return bool(bindings or self.values.get("trtexec"))

    @property
    def precisions(self) -> tuple[str, ...] | None:
        """What its GPU executes, or None where that is not known."""
        capability = self.values.get("compute_capability")
        if self.board is not None:
            return self.board.precisions
        try:
            return precisions_of(capability) if capability else None
        except ValueError:
            return None

    @property
    def power_modes(self) -> list[str]:
        """Names of nvpmodel's modes."""
        return [str(mode["name"]) for mode in self._part("power").get("modes") or ()]

    @property
    def meter(self) -> str | None:
        """The energy meter there, or None; `meter_reason` says why."""
        return self._part("meter").get("name")

    @property
    def meter_reason(self) -> str:
        return str(self._part("meter").get("why") or "no power rail can be read there")

    def missing(self, part: str) -> str:
        """Why a part is missing, and the package that brings it."""
        for entry in self.values.get("missing") or ():
            if entry.get("part") == part:
                package = entry.get("package")
                return f"sudo apt install {package}" if package else str(entry.get("why"))
        return f"no {part}"

    def lines(self) -> list[str]:
        """The facts, for ``--plan``; the first line is the device's head line."""
        v = self.values
        versions = [
            f"JetPack {v['jetpack']}" if v.get("jetpack") else "",
            f"L4T {v['l4t']}" if v.get("l4t") else "",
            f"TensorRT {self.tensorrt}" if self.tensorrt else "no TensorRT",
            f"CUDA {v['cuda']}" if v.get("cuda") else "",
            f"Python {v.get('python')}",
        ]
        power, clocks = self._part("power"), self._part("clocks")
        modes = ", ".join(self.power_modes) or power.get("why") or "none known"
        rows = [
            f"{self.title}: {', '.join(word for word in versions if word)}"
            + (" (emulated)" if self.emulated else ""),
            f"runs with: {self._runs_with()}",
            f"memory {_gb(v.get('memory_available_bytes'))} free of {_gb(v.get('memory_total_bytes'))}, "
            f"disk {_gb(v.get('disk_free_bytes'))} free",
            f"power mode {power.get('active') or 'unknown'} (modes: {modes})",
            f"clocks: {self._clock_text(clocks)}",
            f"energy: {self._meter_text()}",
        ]
        if zones := v.get("temperatures_c"):
            hottest = max(zones, key=zones.get)
            rows.append(f"temperature {zones[hottest]:.0f} °C ({hottest}), fan {v.get('fan')}")
        if v.get("dla"):
            rows.append(f"{v['dla']} deep-learning accelerators, unused: edgeml builds for the GPU")
        for user in v.get("gpu_users") or ():
            rows.append(f"the GPU is used by {user.get('name')} (process {user.get('pid')})")
        for entry in v.get("missing") or ():
            rows.append(
                f"missing {entry['part']}: {entry.get('why')}; {self.missing(entry['part'])}"
            )
        if v.get("restored"):
            rows.append(str(v["restored"]))
        return rows

    @property
    def gpu_users_text(self) -> str | None:
        """Who else uses the GPU; None where nobody is seen to."""
        users = ", ".join(str(user.get("name")) for user in self.values.get("gpu_users") or ())
        return f"the GPU is used by {users}: times may be longer than alone" if users else None

    def _runs_with(self) -> str:
        v = self.values
        parts = [
            f"TensorRT bindings {self._part('tensorrt').get('bindings')}"
            if self._part("tensorrt").get("bindings")
            else "",
            f"trtexec {v['trtexec']}" if v.get("trtexec") else "",
            f"ONNX Runtime {v['onnxruntime']}" if v.get("onnxruntime") else "",
            f"numpy {v['numpy']}" if v.get("numpy") else "no numpy",
        ]
        return ", ".join(part for part in parts if part)

    def _clock_text(self, clocks: dict[str, Any]) -> str:
        parts = [
            f"{unit.upper()} {significant(clocks[f'{unit}_mhz'], 4)} of {significant(clocks[f'{unit}_max_mhz'], 4)} MHz"
            for unit in ("gpu", "cpu")
            if clocks.get(f"{unit}_mhz") and clocks.get(f"{unit}_max_mhz")
        ]
        locked = {True: "locked", False: "not locked"}.get(clocks.get("locked"), "lock unknown")
        return ", ".join([*parts, locked])

    def _meter_text(self) -> str:
        meter = self._part("meter")
        if self.meter is None:
            return f"no meter here: {self.meter_reason}"
        total = meter.get("total") or "no total"
        return f"{self.meter}, rails {', '.join(meter.get('rails') or ())}; total: {total} ({meter.get('scope')})"

    def _part(self, name: str) -> dict[str, Any]:
        return self.values.get(name) or {}


async def probe(session: Session) -> DeviceFacts:
    """Ask the agent what the device has.

    Raises:
        DeviceError: the link is lost, or the agent failed.
    """
    answer = await session.ask("probe", limit_s=PROBE_S)
    return DeviceFacts({k: v for k, v in answer.items() if k not in ("id", "event")})


def _gb(size: Any) -> str:
    return f"{size / 1e9:.1f} GB" if size else "unknown"
