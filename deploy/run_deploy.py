"""One bundle onto one device: probe, plan, upload, build, check, score, bench, energy, choose, record."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..artifact.bundle import MEASUREMENTS, Bundle
from ..artifact.content_hash import hash_file
from ..artifact.row_text import printable
from ..errors import DeviceError, EdgemlError, InputError, one_line
from .address import Address
from .choose import choose
from .connection import Passphrases, connect
from .package import Package, pack
from .plan import DeployOptions, Plan, make_plan
from .predictions import check_predictions
from .probe import DeviceFacts, probe
from .record import DeviceRecord, DeviceRow, new_record, save_record
from .results import add_build, add_check, add_energy, add_times, fail, new_row
from .session import RemoteError, Session, open_session, refuse_input
from .upload import upload

Progress = Callable[[str], None]
# Room for warm-up and slow answers on top of what was asked to be timed.
SLACK_S = 300.0


class Scorer(Protocol):
    """Scores what a device predicted; made by the command, because tasks belong to `train`.

    Attributes:
        primary, points_per_unit: of the task.
    """

    primary: str
    points_per_unit: float

    def sample_files(self, folder: Path) -> list[Path]:
        """Write preprocessed samples into tensor files (``NNN.input.NAME``)."""
        ...

    def judge(self, outputs: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
        """Engine → fields of an `EngineRow` (metrics, change_points, drop_points, flips), or a text
        that says why it could not be scored. `outputs`: its tensor files in the samples' order."""
        ...


@dataclass
class Shared:
    """What all devices of a run share: the bundle made ready once, the agent's file, passphrases.

    Attributes:
        agent: file and sha256 of the agent.
        scratch: a folder that lives as long as the run.
    """

    bundle: Bundle
    agent: tuple[Path, str]
    scratch: Path
    scorer: Scorer | None = None
    images: Sequence[bytes] = ()
    passphrases: Passphrases = field(default_factory=Passphrases)
    ssh_config: list[str] | None = None
    _package: Package | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def package(self) -> Package:
        """The bundle made ready: the first device waits for it, the others find it."""
        async with self._lock:
            if self._package is None:
                self._package = await asyncio.to_thread(self._pack)
        return self._package

    def _pack(self) -> Package:
        package = pack(self.bundle)
        if self.scorer is not None:
            folder = self.scratch / "samples"
            folder.mkdir(exist_ok=True)
            package.samples = [package.add(path) for path in self.scorer.sample_files(folder)]
        if "preprocess.json" in self.bundle.manifest.files and self.images:
            package.preprocess = package.add(self.bundle.file("preprocess.json"))
            for index, data in enumerate(self.images):
                path = self.scratch / f"image-{index:03}"
                path.write_bytes(data)
                package.images.append(package.add(path))
        return package


async def deploy_to(
    address: Address, shared: Shared, options: DeployOptions, plan_only: bool, log: Progress
) -> DeviceRecord:
    """Do everything on one device; what goes wrong becomes the record's status and reason."""
    record = new_record(address.name, str(address), shared.bundle)
    run = _Run(address, shared, options, plan_only, log, record)
    try:
        async with connect(address, shared.passphrases, shared.ssh_config) as connection:
            await run.over(connection)
    except RemoteError as e:
        refused = refuse_input(e)
        record.status = "refused" if refused and not run.started else "failed"
        record.reason = str(e)
    except EdgemlError as e:
        record.status = "refused" if isinstance(e, InputError) and not run.started else "failed"
        record.reason = _named(address.name, str(e))
    except Exception as e:
        # Another host must finish: a bug of ours, or of a library, is this host's row.
        record.status = "failed"
        record.reason = f"{address.name}: {run.stage}: {type(e).__name__}: {one_line(e)}"
    if record.rows and not plan_only:
        try:
            await asyncio.to_thread(save_record, record, shared.bundle)
        except (EdgemlError, OSError) as e:
            record.warnings.append(f"{address.name}: its record is not kept: {one_line(e)}")
    if record.reason:
        log(printable(record.reason))
    return record


def _named(name: str, text: str) -> str:
    return text if text.startswith(name) or f"@{name}" in text else f"{name}: {text}"


@dataclass
class _Run:
    """One device's way; `started` once anything of the work was begun."""

    address: Address
    shared: Shared
    options: DeployOptions
    plan_only: bool
    log: Progress
    record: DeviceRecord
    started: bool = False
    stage: str = "start"

    async def over(self, connection: Any) -> None:
        """Probe and plan; then work in the same session, or in a second one where files are missing."""
        package = await self.shared.package()
        files = {**package.files, self.shared.agent[1]: self.shared.agent[0]}
        async with self._session(connection, files) as session:
            agent = {self.shared.agent[1]: self.shared.agent[0]}
            self.record.sent_bytes += await upload(session, agent)
            await session.send({"do": "run"})
            facts = await probe(session)
            self._keep(facts)
            power = self.address.power_mode or self.options.power_mode
            plan = make_plan(self.address.name, facts, package, self.options, power)
            self.record.runtime = plan.runtime
            self.record.warnings += plan.warnings
            if self.plan_only:
                self.record.status = "planned"
                self.record.plan = [*facts.lines(), *plan.lines(package)]
                await session.ask("bye", limit_s=30)
                return
            if all(name in session.hello["present"] for name in plan.blobs):
                await self._work(session, facts, plan, package)
                return
            await session.ask("bye", limit_s=30)
        needed = {name: files[name] for name in [*plan.blobs, self.shared.agent[1]]}
        async with self._session(connection, needed) as session:
            self.record.sent_bytes += await upload(session, needed)
            await session.send({"do": "run"})
            await self._work(session, facts, plan, package)

    @contextlib.asynccontextmanager
    async def _session(self, connection: Any, files: Mapping[str, Path]) -> Any:
        sizes = {name: path.stat().st_size for name, path in files.items()}
        async with open_session(
            connection,
            self.address.name,
            agent=self.shared.agent[1],
            blobs=sizes,
            progress=self.log,
            cache=self.options.cache,
            lock_wait_s=self.options.lock_wait_s,
        ) as session:
            try:
                yield session
            finally:
                self.stage = session.stage
                self.record.waits += session.waits

    def _keep(self, facts: DeviceFacts) -> None:
        self.record.facts = facts.values
        self.record.emulated = facts.emulated
        if facts.values.get("restored"):
            self.record.warnings.append(f"{self.address.name}: {facts.values['restored']}")

    async def _work(
        self, session: Session, facts: DeviceFacts, plan: Plan, package: Package
    ) -> None:
        """Everything after the files are there."""
        record, options = self.record, self.options
        rows = {c.id: new_row(c, package.size_bytes(c)) for c in plan.builds}
        record.rows = list(rows.values())
        record.warnings += [f"{name} left out: {why}" for name, why in plan.skipped]
        record.budget = {
            "max_drop_points": options.max_drop_points,
            "latency_ms": options.latency_ms,
        }
        if plan.power_mode or options.lock_clocks:
            answer = await session.ask(
                "power", mode=plan.power_mode, lock_clocks=options.lock_clocks, limit_s=60
            )
            record.power = {k: answer.get(k) for k in ("before", "after", "note")}
        # Until now nothing was begun that the user could not mend: a mode, a full disk.
        self.started = True
        await self._build(session, plan, package, rows)
        await self._check(session, plan, package, rows)
        with tempfile.TemporaryDirectory(dir=self.shared.scratch) as folder:
            outputs = await self._score(session, package, rows, Path(folder))
            reference = package.references[plan.builds[0].id]
            await self._bench(session, package, rows, reference)
            if plan.energy:
                await self._energy(session, rows, reference)
            await self._judge(outputs, rows)
        chosen, held, record.verdict_line = choose(
            record.rows, options.max_drop_points, options.latency_ms
        )
        if chosen is not None:
            chosen.engine.shipped = True
            record.chosen = chosen.engine.id
            if options.fetch_engine:
                await self._fetch(session, chosen)
        record.status = "done" if held else "missed" if _alive(rows) else "failed"
        record.reason = None if held else f"{record.device}: {_why_not(record, rows)}"
        record.rows.sort(key=_best_first)
        if options.cache_limit_bytes is not None:
            await session.ask(
                "clean", all=False, limit_bytes=options.cache_limit_bytes, limit_s=120
            )
        await session.ask("bye", limit_s=60)

    async def _build(
        self, session: Session, plan: Plan, package: Package, rows: dict[str, DeviceRow]
    ) -> None:
        engines = [
            {
                "id": c.id,
                "runtime": c.runtime,
                "precision": c.precision,
                "execution": c.execution,
                "files": package.hashes(c),
                "model": next(iter(package.hashes(c))),
                "shapes": package.shapes,
                "threads": c.threads,
            }
            for c in plan.builds
        ]
        limit = self.options.build_timeout_s
        answer = await session.ask(
            "build", engines=engines, timeout_s=limit, limit_s=len(engines) * limit + SLACK_S
        )
        self._each(answer, rows, add_build)
        self._hashes = {a["id"]: a.get("hash") for a in answer["engines"]}
        self._versions = {a["id"]: a.get("version") for a in answer["engines"]}

    async def _check(
        self, session: Session, plan: Plan, package: Package, rows: dict[str, DeviceRow]
    ) -> None:
        engines = [
            {"id": c.id, "reference": package.references[c.id]}
            for c in plan.builds
            if c.id in _alive(rows)
        ]
        if engines:
            answer = await session.ask("check", engines=engines, limit_s=SLACK_S * len(engines))
            self._each(answer, rows, add_check)

    async def _score(
        self, session: Session, package: Package, rows: dict[str, DeviceRow], folder: Path
    ) -> dict[str, list[Path]]:
        """The device's predictions, as files a row and sample file."""
        names = _alive(rows)
        if not (package.samples and names):
            return {}

        def place(fields: dict[str, Any]) -> Path:
            engine, sample = str(fields["engine"]), str(fields["samples"])
            if engine not in rows or sample not in package.samples:
                raise DeviceError(
                    f"{session.name}: score: outputs of {engine!r}, which was not asked"
                )
            return folder / f"{names.index(engine)}-{sample}"

        answer = await session.ask(
            "score",
            engines=names,
            samples=package.samples,
            on_data=place,
            limit_s=SLACK_S + 60.0 * len(package.samples) * len(names),
        )
        found = {}
        for entry in answer["engines"]:
            files = [folder / f"{names.index(entry['id'])}-{name}" for name in package.samples]
            if entry.get("status") != "scored" or not all(file.is_file() for file in files):
                rows[entry["id"]].engine.warnings.append(
                    f"{entry['id']}: not scored on the device: {entry.get('reason')}"
                )
                continue
            try:
                for sample, file in zip(package.samples, files, strict=True):
                    await asyncio.to_thread(check_predictions, package.files[sample], file)
                found[entry["id"]] = files
            except DeviceError as e:  # an engine whose answers are of other samples does not ship
                fail(rows[entry["id"]], f"score: {e}")
        return found

    async def _judge(self, outputs: dict[str, list[Path]], rows: dict[str, DeviceRow]) -> None:
        if self.shared.scorer is None or not outputs:
            return
        self.record.primary = self.shared.scorer.primary
        self.record.points_per_unit = self.shared.scorer.points_per_unit
        for name, found in (await asyncio.to_thread(self.shared.scorer.judge, outputs)).items():
            if isinstance(found, str):
                fail(rows[name], f"score: {found}")
                continue
            for key, value in found.items():
                setattr(rows[name].engine, key, value)

    async def _bench(
        self, session: Session, package: Package, rows: dict[str, DeviceRow], reference: str
    ) -> None:
        options, names = self.options, _alive(rows)
        if not names:
            return
        images = None
        if options.end_to_end and package.images:
            images = {"images": package.images, "preprocess": package.preprocess}
        answer = await session.ask(
            "bench",
            engines=names,
            duration_s=options.duration_s,
            reference=reference,
            steady=options.steady_s > 0,
            max_s=options.steady_s,
            rate_hz=options.rate_hz,
            end_to_end=images,
            limit_s=SLACK_S + options.steady_s + 6 * options.duration_s * len(names),
        )
        self._each(answer, rows, functools.partial(add_times, how=self.record.how))
        told = ("temperatures_c", "steady", "throttle", "fan", "clocks", "mode")
        self.record.conditions = {key: answer.get(key) for key in told}
        asked = (self.record.power.get("after") or {}).get("mode")
        if asked and answer.get("mode") and answer["mode"] != asked:
            # Somebody else's nvpmodel, or ours was held for its four hours and put back.
            self.record.warnings.append(
                f"{session.name}: power mode {answer['mode']} when the bench ended, {asked} was set: "
                "its times are not of one mode"
            )
        if answer.get("steady") is False:
            self.record.warnings.append(f"{session.name}: still warming when the bench ended")
        for event in answer.get("throttle") or ():
            self.record.warnings.append(f"{session.name}: throttled: {event}")

    async def _energy(self, session: Session, rows: dict[str, DeviceRow], reference: str) -> None:
        names, window_s = _alive(rows), self.options.energy_window_s
        if not names:
            return
        try:
            answer = await session.ask(
                "energy",
                engines=names,
                idle_s=window_s,
                window_s=window_s,
                windows=5,
                reference=reference,
                limit_s=SLACK_S + 20 * window_s * len(names),
            )
        except RemoteError as e:  # the link holds: what was timed and scored still decides
            answer = {"engines": [{"id": name, "reason": str(e)} for name in names]}
        self._each(answer, rows, functools.partial(add_energy, how=self.record.how))

    async def _fetch(self, session: Session, row: DeviceRow) -> None:
        digest = self._hashes.get(row.engine.id)
        if digest is None:
            self.record.warnings.append(
                f"{session.name}: --fetch-engine: {row.engine.id} has no plan"
            )
            return
        folder = self.shared.bundle.root / MEASUREMENTS
        folder.mkdir(exist_ok=True)
        path = folder / _plan_name(session.name, row, self.record.facts)
        part = path.with_name(f".{path.name}.part")
        try:
            await session.ask("fetch", hash=digest, on_data=lambda _: part, limit_s=SLACK_S)
            if not part.is_file() or await asyncio.to_thread(hash_file, part) != digest:
                raise DeviceError(
                    f"{session.name}: fetch: what came does not match the plan's hash"
                )
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        self.record.fetched.append(path.name)

    def _each(
        self,
        answer: dict[str, Any],
        rows: dict[str, DeviceRow],
        add: Callable[[DeviceRow, dict[str, Any]], None],
    ) -> None:
        for entry in answer["engines"]:
            if entry.get("id") in rows:
                add(rows[entry["id"]], entry)


def _alive(rows: dict[str, DeviceRow]) -> list[str]:
    return [name for name, row in rows.items() if row.engine.status != "failed"]


def _why_not(record: DeviceRecord, rows: dict[str, DeviceRow]) -> str:
    if _alive(rows):
        return str(record.verdict_line)
    return "; ".join(f"{name}: {row.engine.reason}" for name, row in rows.items())


def _best_first(row: DeviceRow) -> tuple[bool, bool, float]:
    p50 = row.engine.latency_p50_ms
    value = p50.value if p50 is not None and p50.value is not None else float("inf")
    return not row.engine.shipped, row.engine.status == "failed", value


def _plan_name(device: str, row: DeviceRow, facts: dict[str, Any]) -> str:
    version = ".".join(str(row.version or "").split(".")[:2])
    gpu = str(facts.get("compute_capability") or "").replace(".", "").lower()
    words = [f"trt{version}" if version else "trt", f"sm{gpu.removeprefix('sm')}" if gpu else ""]
    name = f"{device}-model.{row.engine.precision}.{'-'.join(w for w in words if w)}.plan"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)
