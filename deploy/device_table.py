"""The tables of a deploy: a row an engine for one device, a row a device for several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..artifact.measurement import Measurement
from ..artifact.row_text import decimals, engine_name, significant
from .record import DeviceRecord, DeviceRow

# What an emulated device's milliseconds, joules and watts print as.
EMULATED = "—"
NOT_MEASURED = "not measured"
NOT_ON_DEVICE = "not measured on the device"


def table_lines(records: Sequence[DeviceRecord]) -> list[str]:
    """The whole output of a deploy, a line each; no number is cut."""
    # A device's own words stand in it: whatever they are, a terminal shows them.
    return ["".join(c if c.isprintable() else "?" for c in line) for line in _lines(records)]


def _lines(records: Sequence[DeviceRecord]) -> list[str]:
    if all(record.status == "planned" for record in records):
        return [line for record in records for line in _plan_lines(record)]
    found: list[str] = []
    if len(records) == 1:
        found += _one(records[0])
    else:
        found += _grid(_FLEET, [_fleet_row(record) for record in records])
        found += [f"{r.device}: {r.verdict_line}" for r in records if r.verdict_line]
    for record in records:
        found += [f"warning: {line}" for line in _warnings(record)]
    for record in records:
        if record.reason and not (
            len(records) == 1 and record.reason.endswith(str(record.verdict_line))
        ):
            found.append(f"{record.status}: {record.reason}")
    return found


def _plan_lines(record: DeviceRecord) -> list[str]:
    first, *rest = record.plan or ["nothing was found out"]
    return [f"{record.device}: {first}", *(f"  {line}" for line in rest)]


def _one(record: DeviceRecord) -> list[str]:
    if not record.rows:
        return [f"{record.device}: {record.verdict_line}"] if record.verdict_line else []
    head = [
        "engine",
        "built by",
        "check",
        record.primary or "score",
        "drop",
        "p50 ms",
        "p99 ms",
        "end to end ms",
        "mJ gross",
        "mJ net",
        "W",
        "size MB",
    ]
    rows = [_engine_row(row, record) for row in record.rows]
    if any(row.rate for row in record.rows):
        head.append("rate")
        for cells, row in zip(rows, record.rows, strict=True):
            cells.append(_rate(row, record.emulated))
    found = _grid(head, rows)
    found += [f"{row.engine.id}: {row.engine.reason}" for row in record.rows if row.engine.reason]
    return found + ([record.verdict_line] if record.verdict_line else [])


def _engine_row(row: DeviceRow, record: DeviceRecord) -> list[str]:
    engine = row.engine
    failed = engine.status == "failed"
    metric = engine.metrics.get(record.primary or "")
    drop = engine.drop_points
    per_unit = record.points_per_unit
    total = [m.value for m in row.end_to_end_ms.values() if m.value is not None]
    end_to_end = EMULATED if record.emulated else significant(sum(total)) if total else NOT_MEASURED

    def figure(m: Measurement | None, show: Callable[[float], str] = significant) -> str:
        return "" if failed and m is None else _text(m, record.emulated, show)

    return [
        ("→ " if engine.shipped else "  ") + engine_name(engine),
        row.built or ("failed" if failed else ""),
        f"{row.check} ({row.check_text})"
        if row.check_text and row.check != "failed"
        else row.check,
        decimals(metric.value * per_unit) if metric and metric.value is not None else NOT_ON_DEVICE,
        decimals(drop.value, sign=True) if drop and drop.value is not None else NOT_ON_DEVICE,
        figure(engine.latency_p50_ms),
        figure(engine.latency_p99_ms),
        "" if failed else end_to_end,
        "" if failed else _text(row.energy_gross_mj, record.emulated),
        "" if failed else _text(row.energy_net_mj, record.emulated),
        "" if failed else _text(row.mean_w, record.emulated),
        f"{engine.size_bytes / 1e6:.2f}" if engine.size_bytes else "",
    ]


def _rate(row: DeviceRow, emulated: bool) -> str:
    if not row.rate:
        return NOT_MEASURED
    if emulated:
        return EMULATED
    watts = row.rate.get("mean_w")
    held = f"{row.rate.get('held_hz'):.1f} of {row.rate.get('wanted_hz'):g}/s"
    return held + (f" at {watts:.2f} W" if watts is not None else "")


_FLEET = ["device", "status", "board", "engine", "drop", "p50 ms", "p99 ms", "mJ gross", "W"]


def _fleet_row(record: DeviceRecord) -> list[str]:
    chosen = next((row for row in record.rows if row.engine.shipped), None)
    board = (record.facts.get("board") or {}).get("model") or record.facts.get("cpu") or ""
    cells = [record.device, record.status, str(board)]
    if chosen is None:
        return cells + [""] * (len(_FLEET) - len(cells))
    drop = chosen.engine.drop_points
    return [
        *cells,
        engine_name(chosen.engine),
        decimals(drop.value, sign=True) if drop and drop.value is not None else NOT_ON_DEVICE,
        _text(chosen.engine.latency_p50_ms, record.emulated),
        _text(chosen.engine.latency_p99_ms, record.emulated),
        _text(chosen.energy_gross_mj, record.emulated),
        _text(chosen.mean_w, record.emulated),
    ]


def _text(m: Measurement | None, emulated: bool, show: Callable[[float], str] = significant) -> str:
    if m is None or m.value is None:
        return NOT_MEASURED
    return EMULATED if emulated or m.how == "emulated" else show(m.value)


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; one that says the same nothing in each row is left out."""
    keep = [
        i
        for i in range(len(head))
        if i == 0 or not rows or any(row[i] not in ("", NOT_MEASURED) for row in rows)
    ]
    widths = [max(len(line[i]) for line in [head, *rows]) for i in keep]
    return [
        "  ".join(
            line[i].ljust(width) if i == 0 else line[i].rjust(width)
            for i, width in zip(keep, widths, strict=True)
        ).rstrip()
        for line in [head, *rows]
    ]


def _warnings(record: DeviceRecord) -> list[str]:
    found = [*record.warnings]
    if record.emulated:
        found.append(f"{record.device} is emulated: its times, joules and watts mean nothing")
    for row in record.rows:
        found += row.engine.warnings
        if row.engine.mark == "timed by trtexec":
            found.append(f"{row.engine.id}: timed by trtexec, not by the runner of the other rows")
        why = row.energy_gross_mj.note
        if row.energy and why:
            found.append(f"{row.engine.id}: energy not measured: {why}")
    return list(dict.fromkeys(found))
