"""What a deploy brought home: a row an engine, and what it was measured on; a file beside the bundle."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .. import __version__
from ..artifact.atomic_file import write_json
from ..artifact.bundle import MEASUREMENTS, Bundle
from ..artifact.content_hash import hash_json
from ..artifact.measurement import How, Measurement, not_measured
from ..artifact.result_row import EngineRow

RECORD_VERSION = 1
# done; its budget is missed; failed on the way; refused before anything was started.
Status = Literal["done", "missed", "failed", "refused", "planned"]


class DeviceRow(BaseModel):
    """One engine on one device.

    Attributes:
        engine: as in every table; latency, score, load and memory are those of the device.
        built: bindings, trtexec or onnxruntime: what built and ran it.
        build_s: seconds; 0 where it was taken from the device's cache.
        version: of the library that runs it there.
        check: passed, far (outside the tolerance), failed, or not checked; `check_text` says more.
        end_to_end_ms: p50 by stage (decode, preprocess, infer, postprocess).
        rate: frames a second held of those wanted, and watts at that rate.
        energy_gross_mj, energy_net_mj: an inference; net is never told without gross.
        mean_w: while inferring.
        energy: every label of the reading (meter, how, scope, where, rails, rates …).
    """

    model_config = ConfigDict(extra="forbid")

    engine: EngineRow
    built: str | None = None
    build_s: float | None = None
    version: str | None = None
    check: Literal["passed", "far", "failed", "not checked"] = "not checked"
    check_text: str = ""
    end_to_end_ms: dict[str, Measurement] = Field(default_factory=dict)
    rate: dict[str, Any] | None = None
    energy_gross_mj: Measurement = Field(
        default_factory=lambda: not_measured("mJ", "not asked for")
    )
    energy_net_mj: Measurement = Field(default_factory=lambda: not_measured("mJ", "not asked for"))
    mean_w: Measurement = Field(default_factory=lambda: not_measured("W", "not asked for"))
    energy: dict[str, Any] = Field(default_factory=dict)


class DeviceRecord(BaseModel):
    """One deploy to one device.

    Attributes:
        status: as above; `reason` says why where it is not done.
        bundle, recipe: sha256 of the bundle's manifest and of its recipe.
        facts: the probe's answer.
        rows: an engine each, best first; `chosen` is the id of the one that ships there.
        budget: what had to hold.
        primary: the metric's name; None where nothing was scored.
        conditions: temperatures, throttle events, fan, clocks, power mode of the bench.
        emulated: no millisecond, joule or watt in it means anything.
        waits: round trips; `sent_bytes` of files.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = RECORD_VERSION
    edgeml_version: str = __version__
    created: str = ""
    device: str
    address: str
    status: Status = "done"
    reason: str | None = None
    bundle: str | None = None
    recipe: str | None = None
    facts: dict[str, Any] = Field(default_factory=dict)
    runtime: str | None = None
    rows: list[DeviceRow] = Field(default_factory=list)
    chosen: str | None = None
    verdict_line: str | None = None
    budget: dict[str, Any] = Field(default_factory=dict)
    primary: str | None = None
    points_per_unit: float = 100.0
    conditions: dict[str, Any] = Field(default_factory=dict)
    power: dict[str, Any] = Field(default_factory=dict)
    emulated: bool = False
    waits: int = 0
    sent_bytes: int = 0
    fetched: list[str] = Field(default_factory=list)
    plan: list[str] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)

    @property
    def how(self) -> How:
        """The label of its milliseconds, joules and watts."""
        return "emulated" if self.emulated else "measured"


def new_record(device: str, address: str, bundle: Bundle | None) -> DeviceRecord:
    """An empty record of now."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return DeviceRecord(
        created=now,
        device=device,
        address=address,
        bundle=bundle.hash if bundle else None,
        recipe=hash_json(bundle.manifest.recipe) if bundle else None,
    )


def save_record(record: DeviceRecord, bundle: Bundle) -> Path:
    """Write it as ``measurements/deploy-DEVICE-TIME.json`` in the bundle, whose manifest it names."""
    folder = bundle.root / MEASUREMENTS
    folder.mkdir(exist_ok=True)
    device = re.sub(r"[^A-Za-z0-9_.-]+", "_", record.device)
    stamp = re.sub(r"[^0-9T]", "", record.created.split("+")[0])
    path, more = folder / f"deploy-{device}-{stamp}.json", 1
    while path.exists():  # of two devices whose names are one here, or of two deploys in a second
        more += 1
        path = folder / f"deploy-{device}-{stamp}-{more}.json"
    write_json(path, record.model_dump(mode="json"))
    return path
